"""The time that an answer has: ten times what the course's own solution takes here, in the very same confinement."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path

from memcourse.course.answers import collect
from memcourse.course.checks import exercises
from memcourse.course.classroom import marking, reading
from memcourse.course.classroom.extra_checks import STAGE, BadCheck
from memcourse.course.start import repository, write_atomically

FILE = "reference_times.json"
TIMES = 10.0
LEAST = 2.0  # seconds


def measure(rules: marking.Rules, chapter: str) -> dict[str, float]:
    """Exercise id -> seconds of the solution, where it passes; nothing where the solutions are not at hand.

    Runs in a grading process.  Raises BadCheck for a hidden check that the solution does not pass.
    """
    path = repository() / "solutions" / f"{chapter}.ipynb"
    if not path.is_file():
        return {}
    definitions = collect(reading.read(path.read_bytes(), chapter).cells)
    plain = dataclasses.replace(rules, variants=False)  # the solutions have the numbers of the course
    found = marking.reports(plain, chapter, definitions, learner="")
    for report in found:
        if report.outcome == "wrong" and report.message.startswith(STAGE):
            raise BadCheck(f"The course's own solution of {report.exercise} does not pass {report.message}.")
    return {report.exercise: report.seconds for report in found if report.outcome == "passed" and report.seconds > 0}


def limits(chapter: str, times: Mapping[str, float]) -> dict[str, float]:
    """Exercise id -> seconds: the exercise's own limit where the solution's time is not known."""
    return {
        exercise.id: _limit(times[exercise.id]) if exercise.id in times else exercise.time_limit
        for exercise in exercises(chapter)
    }


def _limit(seconds: float) -> float:
    """Rounded up to a tenth of a second, as people read it."""
    return max(LEAST, math.ceil(10 * TIMES * seconds) / 10)


def load(out: Path, key: str) -> dict[str, dict[str, float]]:
    """Chapter -> times, as an earlier run with the same key measured them."""
    try:
        document = json.loads((out / FILE).read_bytes())
        return dict(document["times"]) if document["key"] == key else {}
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or not of our making
        return {}


def save(out: Path, key: str, times: Mapping[str, Mapping[str, float]]) -> None:
    write_atomically(out / FILE, f"{json.dumps({'key': key, 'times': times}, indent=1)}\n".encode())
