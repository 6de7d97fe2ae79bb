"""What tests put in place of `grade.check_answer`.  Grading processes import this module, so it imports little."""

from __future__ import annotations

import os
import signal
import time

from memcourse.course.exercise import Report
from memcourse.course.grade import check_answer
from memcourse.course.sandbox import SandboxFault


def report(exercise, outcome, **more):
    points = exercise.points if outcome == "passed" else 0
    return Report(exercise.id, exercise.name, outcome, points, exercise.points, **more)


def right_or_wrong(exercise, definitions, *, seconds=None, level=None):
    """An answer passes when it holds the word "right"; what it was asked with goes into the message."""
    if exercise.name not in definitions:
        return report(exercise, "not attempted")
    source = definitions.closure(exercise.name)[-1].source
    if "kill" in source:
        os.kill(os.getpid(), signal.SIGKILL)
    if "fault" in source:
        raise SandboxFault("no process could be started")
    if "bug" in source:
        raise ZeroDivisionError("a bug of the course")
    outcome = "passed" if "right" in source else "wrong"
    return report(exercise, outcome, message=f"limit {seconds}", seconds=0.5, level=level)


def no_times(rules, chapter):
    """In place of `reference_times.measure`: no solution is at hand."""
    return {}


def impatient(id, exercise, definitions, *, folder):
    """`check_answer`, with one second for the exercise `id`."""
    return check_answer(exercise, definitions, folder=folder, seconds=1.0 if exercise.id == id else None)


def no_process(exercise, definitions, *, folder):
    raise SandboxFault("no processes left")


def leave_a_mark(exercise, definitions, *, folder):
    """Wait until two answers have begun, and leave a file that says when this one began and ended, and where."""
    began = time.monotonic()
    (folder / f"{exercise.id}.began").touch()
    while len(list(folder.glob("*.began"))) < 2 and time.monotonic() < began + 20:
        time.sleep(0.01)
    time.sleep(0.02)
    (folder / f"{exercise.id}.mark").write_text(f"{began} {time.monotonic()} {os.getpid()}")
    return report(exercise, "passed")


def sleep_or(what):
    """A task for a pool."""
    if what == "sleep":
        time.sleep(60)
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "exit":
        os._exit(3)
    if what == "raise":
        raise KeyError("x")
    return os.getpid(), what
