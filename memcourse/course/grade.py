"""Notebooks to reports: each answer is rebuilt from the notebook's definitions and checked in the sandbox."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from memcourse.course import sandbox
from memcourse.course.answers import Definitions, NotACourseNotebook, Notebook, collect, read
from memcourse.course.checks import CHAPTERS, exercises
from memcourse.course.exercise import Exercise, Outcome, Report
from memcourse.course.start import find_copy

AT_A_TIME = 2
COLORS = {"passed": "green", "wrong": "red", "crashed": "magenta", "not attempted": "dim"}


@dataclass(frozen=True)
class NotebookReport:
    path: Path
    chapter: str
    reports: tuple[Report, ...]

    @property
    def points(self) -> int:
        return sum(report.points for report in self.reports)

    @property
    def max_points(self) -> int:
        return sum(report.max_points for report in self.reports)

    def to_dict(self) -> dict[str, Any]:
        totals = {"points": self.points, "max_points": self.max_points}
        return {
            "notebook": str(self.path),
            "chapter": self.chapter,
            **totals,
            "reports": [asdict(r) for r in self.reports],
        }

    def __rich__(self) -> RenderableType:
        """A table of the answers, and under it what the failing ones should know."""
        table = Table(title=f"{self.path}", title_justify="left", show_footer=True)
        table.add_column("exercise", "total", no_wrap=True)
        table.add_column("points", f"{self.points} of {self.max_points}", justify="right", no_wrap=True)
        table.add_column("outcome", no_wrap=True)
        for report in self.reports:
            outcome = "checks passed" if report.outcome == "passed" else report.outcome
            table.add_row(
                f"{report.exercise} {report.name}",
                f"{report.points} of {report.max_points}",
                Text(outcome, style=COLORS[report.outcome]),
            )
        failures = [report for report in self.reports if report.outcome in ("wrong", "crashed")]
        return Group(table, *(Padding(Text(as_text(report)), (1, 0, 0, 0)) for report in failures))


def as_text(report: Report) -> str:
    """The report as a terminal shows it: `hint` is a command there."""
    return str(report).replace(f'hint("{report.exercise}")', f"memcourse hint {report.exercise}")


def default_notebooks() -> list[Path]:
    """The exercise notebooks of the learner's copy. Raises NotACourseNotebook where there are none."""
    copy = find_copy()
    found = sorted((copy / "exercises").glob("*.ipynb")) if copy else []
    if not found:
        raise NotACourseNotebook(
            "There is no copy of the course here: go to its folder, make one with `memcourse start`, "
            "or name a notebook."
        )
    return found


def notebook_of(exercise: Exercise) -> Path:
    """The notebook of the learner's copy that asks this exercise. Raises NotACourseNotebook without one."""
    chapter = next(chapter for chapter in CHAPTERS if exercise in exercises(chapter))
    named = [path for path in default_notebooks() if path.stem == chapter]
    if not named:
        raise NotACourseNotebook(
            f"Your copy of the course has no exercises/{chapter}.ipynb: `memcourse start` brings it back."
        )
    return named[0]


def grade(paths: Sequence[str | Path]) -> list[NotebookReport]:
    """Grade every exercise of these notebooks, two answers at a time. All are read before any answer runs.

    Raises NotACourseNotebook where one cannot be graded, and sandbox.SandboxFault where no process can be
    started.
    """
    notebooks = [(Path(path), read(path)) for path in paths]
    tasks = [
        (path, chapter, exercise, collect(notebook.cells))
        for path, notebook in notebooks
        for chapter in _chapters(notebook)
        for exercise in exercises(chapter)
    ]
    stop = threading.Event()
    work = [lambda task=task: check_answer(task[2], task[3], folder=task[0].parent, stop=stop) for task in tasks]
    reports = _two_at_a_time(work, [f"{exercise.id} {exercise.name}" for _, _, exercise, _ in tasks], stop)
    graded: dict[tuple[Path, str], list[Report]] = {}
    for (path, chapter, _, _), report in zip(tasks, reports, strict=True):
        graded.setdefault((path, chapter), []).append(report)
    return [NotebookReport(path, chapter, tuple(found)) for (path, chapter), found in graded.items()]


def check_answer(
    exercise: Exercise,
    definitions: Definitions,
    *,
    folder: Path | None = None,
    stop: threading.Event | None = None,
) -> Report:
    """Grade one exercise from a notebook's definitions. Raises SandboxFault where no process can start."""
    name = exercise.name

    def report(outcome: Outcome, message: str) -> Report:
        return Report(exercise.id, name, outcome, 0, exercise.points, message=message)

    if fault := definitions.broken(name):
        return report("crashed", str(fault))
    if name not in definitions:
        if name in definitions.mentioned:
            return report("crashed", _not_carried(name, definitions))
        return report("not attempted", f"The notebook does not define `{name}`.")
    found = sandbox.run(exercise, definitions.closure(name), folder=folder, stop=stop)
    missing = definitions.missing(name)
    if found.outcome == "passed" or not missing:
        return found
    if found.outcome == "not attempted" and name not in missing:
        return found
    attempted: Outcome = "crashed" if found.outcome == "not attempted" else found.outcome
    notes = [_not_carried(used, definitions) for used in missing]
    return dataclasses.replace(found, outcome=attempted, message="\n".join([found.message, *notes]).strip())


def _not_carried(name: str, definitions: Definitions) -> str:
    statement = definitions.rebound(name)
    if statement is None:
        return f"`{name}` is not defined in the notebook."
    return (
        f"`{name}` is not carried into grading: cell {statement.cell}, line {statement.line} is\n"
        f"    {statement.source}\n"
        "and grading takes imports, functions, classes and simple constants, not the results of calls."
    )


def _chapters(notebook: Notebook) -> list[str]:
    """The chapter that the notebook names, or those whose answers it holds."""
    if notebook.chapter in CHAPTERS:
        return [notebook.chapter]
    names = collect(notebook.cells).mentioned
    return [chapter for chapter in CHAPTERS if not names.isdisjoint(exercise.name for exercise in exercises(chapter))]


def _two_at_a_time(work: Sequence[Callable[[], Report]], names: Sequence[str], stop: threading.Event) -> list[Report]:
    columns = (TextColumn("Grading"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        ThreadPoolExecutor(AT_A_TIME) as pool,
    ):
        shown = progress.add_task("", total=len(work))
        futures: list[Future[Report]] = [pool.submit(job) for job in work]
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                running = [name for name, future in zip(names, futures, strict=True) if future.running()]
                progress.update(shown, completed=len(work) - len(waiting), description=", ".join(running))
        except BaseException:  # Ctrl-C, or no process could be started: end the answers that run, start no more
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [future.result() for future in futures]
