"""One answer in a process of its own: whatever it does there costs its own points and nothing else.

The checks run here, in the grader.  The answer's process is forked from a server that has torch and a copy of the
library loaded (`kit`), is confined as far as the system allows (`memcourse.course.runner.confine`), and carries out
calls (`session`, `stand_ins`).  Plain tensors, numbers and strings come back, and nothing else is believed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from memcourse.course.exercise import Exercise, Report
from memcourse.course.fresh import on_fresh_numbers
from memcourse.course.left_out import left_out
from memcourse.course.runner import confine
from memcourse.course.runner.traces import error_text, own_line
from memcourse.course.sandbox.processes import SandboxFault
from memcourse.course.sandbox.session import LATE, Ended, Session, opened, strongest
from memcourse.course.statements import Definition

__all__ = ["LATE", "MEMORY", "SandboxFault", "offered", "run"]

MEMORY = 1 << 30  # bytes that an answer may use beyond what the course itself takes
LONGEST_MESSAGE = 4000
OUT_OF_MEMORY = (
    "MemoryError",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "Cannot allocate memory",
)


def run(
    exercise: Exercise,
    closure: Sequence[Definition],
    *,
    seconds: float | None = None,
    memory_bytes: int = MEMORY,
    folder: Path | None = None,
    level: str | None = None,
) -> Report:
    """Build the answer from `closure` in a process of its own, check it from here, and report.

    seconds   the time that the answer has, the exercise's own limit unless given; starting the process does not count
    folder    where the answer's own modules are found: the notebook's folder
    level     how the process is confined, the strongest that the system offers unless named; SandboxFault where it
              does not offer it

    From one thread of a process at a time: the checks use its random numbers.
    """
    level = offered(level)
    limit = exercise.time_limit if seconds is None else seconds
    limits = asdict(confine.Limits(memory_bytes=memory_bytes, cpu_seconds=int(limit) + 10))
    with opened(left_out(exercise), level=level, seconds=limit, limits=limits, folder=folder) as session:
        report = _checked(exercise, closure, session)
    if session.fault:
        report = _crashed(exercise, session.said_of_its_end)
    message = _printable(report.message)
    if report.outcome == "crashed" and any(sign in message for sign in OUT_OF_MEMORY):
        message = f"It used more than {_size(memory_bytes)} of memory.\n{message}"
    return dataclasses.replace(report, message=message, seconds=session.seconds_used, level=level)


def offered(level: str | None) -> str:
    if level is None:
        return strongest()
    if level not in confine.LEVELS:
        raise SandboxFault(f"There is no level {level!r}; there are {', '.join(confine.LEVELS)}.")
    if level not in confine.available():
        raise SandboxFault(f"This system does not offer the level {level!r}: {confine.why_not(level)}")
    return level


def _checked(exercise: Exercise, closure: Sequence[Definition], session: Session) -> Report:
    from memcourse.course import engine  # brings in pytest

    definitions = [{key: getattr(part, key) for key in ("source", "cell", "line", "flags")} for part in closure]
    try:
        answer: Any = session.define(definitions, exercise.name)
    except Ended as end:
        return _crashed(exercise, str(end))
    except Exception as error:
        own = own_line(error, frozenset())
        where = f", at {own.where}:\n    {own.text}" if own else ":"
        return _crashed(exercise, f"It stopped while it was defined{where}\n{error_text(error)}")
    hidden = tuple(check for check in exercise.properties if getattr(check, "hidden", False))
    known = dataclasses.replace(exercise, properties=tuple(c for c in exercise.properties if c not in hidden))
    try:
        report = engine.run(known if hidden else exercise, answer)
        if report.outcome == "passed" and exercise.asks_for_code and exercise.fresh_numbers:
            again = engine.run(on_fresh_numbers(exercise), answer)
            if again.outcome != "passed":
                said = f"the cases of the check pass, and with other numbers in them it is {again.outcome}."
                return dataclasses.replace(report, outcome="wrong", points=0, message=f"{said}\n{again.message}")
        if report.outcome == "passed" and hidden:  # last: an answer could tell what it was called with
            session.secret = True
            last = engine.run(dataclasses.replace(known, properties=hidden), answer)
            stages = report.stages + tuple(stage for stage in last.stages if stage not in report.stages)
            report = dataclasses.replace(last, stages=stages)
        return report
    except Ended as end:
        return _crashed(exercise, str(end))
    except Exception as error:
        return _crashed(exercise, f"It could not be checked on what it returned: {error_text(error)}")


def _printable(text: str) -> str:
    """Not too long, without what would move the cursor of a terminal, or could not be printed at all."""
    shown = text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]} ..."
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in shown)


def _crashed(exercise: Exercise, message: str) -> Report:
    return Report(exercise.id, exercise.name, "crashed", 0, exercise.points, message=message)


def _size(memory_bytes: int) -> str:
    return f"{memory_bytes / (1 << 30):g} GB" if memory_bytes >= 1 << 30 else f"{memory_bytes / (1 << 20):.0f} MB"
