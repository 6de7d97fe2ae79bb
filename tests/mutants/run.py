"""Which mutants of the course's solutions do the checks of its exercises catch?

Every mutant is checked in a process of its own, one after the other, so that a speed is measured undisturbed. What
ends that process, or takes more than its time, twice, is caught: it could not have passed.

Where an exercise asks for speed, a mutant that gives the right numbers is checked three times, and counts as caught
by its speed only where it was too slow each time. An explanation may stand for it either way, so that no noise
decides whether a run succeeds.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import types
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import jupytext

from memcourse.course import engine
from memcourse.course.answers import Definitions, collect
from memcourse.course.checks import CHAPTERS, all_exercises, exercises
from memcourse.course.exercise import Exercise

from .mutation import Mutant, mutants

Outcome = Literal["caught", "crashed", "late", "slow", "survived", "fault"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
COURSE = ROOT / "memcourse" / "course"
FORK = multiprocessing.get_context("fork")
MEMORY = 4 * 2**30  # bytes beyond what the process begins with
WALL = 20  # times the limit of its CPU time, for one that sleeps
CHECKING = "engine stages compare fresh checks/timing runner/meters".split()
MUTATING = "mutation tree run".split()


def code_exercises() -> list[Exercise]:
    return [exercise for exercise in all_exercises() if exercise.asks_for_code]


def chapter_of(exercise: Exercise) -> str:
    return next(chapter for chapter in CHAPTERS if any(other.id == exercise.id for other in exercises(chapter)))


@cache
def _definitions(chapter: str) -> Definitions:
    master = jupytext.read(ROOT / "source" / "exercises" / f"{chapter}.py", fmt="py:percent")
    return collect([cell.source for cell in master.cells if cell.cell_type == "code"])


def solution(exercise: Exercise) -> str:
    """The course's own answer, with the imports and the definitions that it leans on."""
    closure = _definitions(chapter_of(exercise)).closure(exercise.name)
    return "\n".join(definition.source for definition in closure)


def depends_on(exercise: Exercise) -> str:
    """A hash of what decides the outcome: the solution, its checks, the engine and the mutation."""
    checks = sorted((COURSE / "checks").glob(f"{CHAPTERS[chapter_of(exercise)]}*.py"))
    machinery = [*(COURSE / f"{name}.py" for name in CHECKING), *(HERE / f"{name}.py" for name in MUTATING)]
    texts = [solution(exercise), *(path.read_text(encoding="utf-8") for path in (*checks, *machinery))]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def outcomes(exercise: Exercise) -> list[tuple[Mutant, Outcome]]:
    """Every mutant of the exercise's solution, and what came of it.  Raises ValueError where the solution fails."""
    nameless = replace(exercise, mistakes=())  # which mistake it is does not matter here, and takes long to find out
    source = solution(exercise)
    seconds = 0.0
    for _ in range(2):  # the first one also makes what is made once
        start = time.process_time()
        found = check(nameless, source)
        seconds = time.process_time() - start
        if found not in ("survived", "slow"):
            raise ValueError(f"the solution of {exercise.id} does not pass its own check")
    timed = any("times_as_fast" in stage.__name__ for stage in exercise.properties)
    limit = 10 * seconds + 2
    return [
        (mutant, verdict(partial(in_a_process, partial(check, nameless, mutant.source), limit), timed))
        for mutant in mutants(source)
    ]


def verdict(once: Callable[[], Outcome], timed: bool) -> Outcome:
    """What ends badly is checked once more, since that may have been the machine's doing.

    Of a timed exercise, what has the right numbers is checked twice more, and is slow only if it always is.
    """
    found = once()
    if found in ("crashed", "late"):
        found = once()
    if timed and found in ("survived", "slow"):
        return "slow" if {found, once(), once()} == {"slow"} else "survived"
    return found


def check(exercise: Exercise, source: str) -> Outcome:
    """The outcome of one answer, in this process."""
    try:
        answer = built(source, exercise.name)
    except Exception:  # it cannot even be defined
        return "caught"
    report = engine.run(exercise, answer)
    if report.outcome == "passed":
        return "survived"
    too_slow = report.outcome == "wrong" and "times as fast" in report.message.partition(":")[0]
    return "slow" if too_slow else "caught"


def built(source: str, name: str) -> Any:
    module = types.ModuleType("mutant")
    sys.modules["mutant"] = module  # where a class looks for its own module
    exec(compile(source, "mutant.py", "exec"), vars(module))
    return vars(module)[name]


def in_a_process(work: Callable[[], Outcome], seconds: float) -> Outcome:
    """What `work` returns; "crashed" where its process ends without an answer, "late" where its time is over first.

    "fault" is an exception that `work` raises: the grader's own.
    """
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_child, args=(work, theirs, seconds))
    process.start()
    theirs.close()
    try:
        return json.loads(ours.recv_bytes()) if ours.poll(WALL * seconds) else "late"
    except EOFError:
        process.join()
        return "late" if process.exitcode == -signal.SIGPROF else "crashed"
    finally:
        process.kill()
        process.join()
        ours.close()


def _child(work: Callable[[], Outcome], answer: Any, seconds: float) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # of CPU time: a busy machine makes nothing late
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    try:
        found = work()
    except MemoryError:
        found = "crashed"
    except Exception:
        found = "fault"
    answer.send_bytes(json.dumps(found).encode())
    os._exit(0)
