"""What a learner waits for: the import, and a check."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.timing import Row


def import_seconds(modules: str, repeats: int = 5) -> float:
    """Median seconds that a fresh interpreter needs for `import modules`."""
    program = f"import time; start = time.perf_counter(); import {modules}; print(time.perf_counter() - start)"
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        for _ in range(repeats)
    ]
    return statistics.median(float(run.stdout) for run in runs)


def check_seconds() -> list[tuple[str, float, int]]:
    """Exercise, mean seconds of its check over its known wrong answers, and the limit: 10 s where it trains."""
    from memcourse.course.checks import all_exercises
    from memcourse.course.engine import run

    times = []
    for exercise in all_exercises():
        answers = [mistake.answer for mistake in exercise.mistakes]
        run(exercise, answers[0])  # the first check of a session also imports pytest
        start = time.perf_counter()
        for answer in answers:
            run(exercise, answer)
        spent = (time.perf_counter() - start) / len(answers)
        times.append((exercise.id, spent, 10 if exercise.time_limit > 10 else 1))
    return times


def rows() -> Iterator[Row]:
    ours, torch_alone = import_seconds("memcourse"), import_seconds("torch")
    extra = import_seconds("torch, memcourse") - torch_alone
    yield Row(
        "import memcourse, alone",
        f"{ours:.2f} s",
        f"within 0.3 s of import torch ({torch_alone:.2f} s)",
        ours - torch_alone < 0.3,
    )
    yield Row("import memcourse after import torch", f"{extra:.2f} s", "at most 0.3 s", extra < 0.3)
    everything = "memcourse.attention, memcourse.transformer, memcourse.training"
    whole = import_seconds(everything)
    yield Row(
        "import of all its modules",
        f"{whole:.2f} s",
        f"within 0.3 s of import torch ({torch_alone:.2f} s)",
        whole - torch_alone < 0.3,
    )
    for name, spent, limit in check_seconds():
        yield Row(
            f"check {name}, mean over its known wrong answers", f"{spent:.2f} s", f"at most {limit} s", spent < limit
        )
