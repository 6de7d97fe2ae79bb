"""Recognise a wrong answer as one of the mistakes that are known.

A mistake is named only when nothing tells it from the learner's answer:

    both fail at the same stage, and
    type ... values   they agree on every case: type, shape, dtype, values, what they change in place; where one
                      raises, the other raises the same error
    gradient          the message is the same, numbers included
    a property        the message is the same, apart from its numbers (which may be times)

The first that matches is named.
"""

from __future__ import annotations

import re

from memcourse.course.compare import same
from memcourse.course.exercise import Mistake, Wrong
from memcourse.course.stages import Attempt, Crashed, NotAttempted, Result

BY_RESULT = ("type", "shape", "dtype", "finite", "values")
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")


def recognise(attempt: Attempt, stage: str, failure: Wrong | Crashed) -> Mistake | None:
    """The known mistake that the answer makes, where one is."""
    for number, mistake in enumerate(attempt.task.exercise.mistakes):
        other = attempt.task.known.setdefault(number, Attempt(attempt.task, mistake.answer))
        if stage in BY_RESULT and not _agree(attempt, other):
            continue
        other.failure = its_stage, its_failure = other.failure or first_failure(other)
        if its_stage == stage and (stage in BY_RESULT or _trace(failure, stage) == _trace(its_failure, stage)):
            return mistake
    return None


def first_failure(attempt: Attempt) -> tuple[str, Exception | None]:
    """Where an answer fails, and how; ("", None) for one that passes."""
    for name, stage in attempt.task.stages():
        try:
            stage(attempt)
        except (Wrong, Crashed, NotAttempted) as failure:
            return name, failure
    return "", None


def _agree(one: Attempt, other: Attempt) -> bool:
    task = one.task
    return all(_same_result(one.result(i), other.result(i), task.exercise.tolerance) for i in range(len(task.cases)))


def _same_result(one: Result, other: Result, tolerance: float) -> bool:
    if one.error is not None or other.error is not None:
        return _same_error(one.error) == _same_error(other.error)
    return one.changed == other.changed and same(one.value, other.value, tolerance)


def _same_error(error: BaseException | None) -> tuple[str, str]:
    """By its name, for an error that was raised in another process is of a class of its own here."""
    return type(error).__name__, str(error)


def _trace(failure: Exception | None, stage: str) -> tuple[type | str, str]:
    """What two answers that fail at this stage for the same reason have in common."""
    if isinstance(failure, Crashed):
        return _same_error(failure.__cause__)
    text = str(failure)
    return type(failure), text if stage == "gradient" else NUMBER.sub("#", text)
