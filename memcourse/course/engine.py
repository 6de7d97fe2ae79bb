"""Check an answer: one pytest item a stage, in order, until the first that fails.

pytest runs inside whatever is already running (a Jupyter kernel, another pytest) and leaves it as it found it: no
plugins but its own core, no configuration, no files, no output.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from memcourse.course import pictures
from memcourse.course.exercise import Exercise, Mistake, Outcome, Report, Wrong
from memcourse.course.mistakes import recognise
from memcourse.course.stages import Attempt, Crashed, NotAttempted, Task
from memcourse.course.words import capital

WITHOUT = "terminal cacheprovider capture warnings logging faulthandler unraisableexception threadexception debugging"
LAST_ERROR = ("last_type", "last_value", "last_traceback", "last_exc")
OPTIONS = ["--exitfirst", "--noconftest", "--assert=plain", "-c", os.devnull, "--rootdir", os.path.dirname(__file__)]
MOST_TASKS = 64
OPTIONS += [option for plugin in WITHOUT.split() for option in ("-p", f"no:{plugin}")]


def run(exercise: Exercise, answer: Any) -> Report:
    """Check one answer.  KeyboardInterrupt passes through; whatever else the answer raises becomes the report."""
    if answer is None or answer is ...:
        return _report(exercise, NotAttempted(), ())
    with _undisturbed():
        attempt = Attempt(_task(exercise), answer)
        course = Course(attempt)
        code = pytest.main(OPTIONS, plugins=[course])
        if stopped_by := course.interrupt or course.fault:
            raise stopped_by
        if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(f"the check of {exercise.id} did not run: pytest stopped with {code!r}")
        mistake = picture = None
        if isinstance(course.failure, Wrong | Crashed):
            mistake = recognise(attempt, course.failed_at, course.failure)
        if isinstance(course.failure, Wrong):
            picture = pictures.of(attempt, course.failed_at)
        return _report(exercise, course.failure, tuple(course.passed), course.failed_at, mistake, picture)


_tasks: dict[int, Task] = {}  # of the last exercises: cases, right results and known mistakes are made once


def _task(exercise: Exercise) -> Task:
    task = _tasks.pop(id(exercise), None)
    if task is None or task.exercise is not exercise:
        task = Task(exercise)
    _tasks[id(exercise)] = task
    if len(_tasks) > MOST_TASKS:
        del _tasks[next(iter(_tasks))]
    return task


def _report(
    exercise: Exercise,
    failure: Exception | None,
    passed: tuple[str, ...],
    stage: str = "",
    mistake: Mistake | None = None,
    picture: pictures.Picture | None = None,
) -> Report:
    detail = str(failure or "")
    match failure:
        case None:
            outcome: Outcome = "passed"
        case NotAttempted():
            outcome, passed = "not attempted", ()
        case Crashed():
            outcome = "crashed"
            detail = f"{mistake.says}.\n{detail}" if mistake else detail
        case _:
            outcome = "wrong"
            detail = f"{stage}: {mistake.says}.\n{capital(detail, exercise.name)}" if mistake else f"{stage}: {detail}"
    points = exercise.points if failure is None else 0
    says = mistake.says if mistake else None
    return Report(exercise.id, exercise.name, outcome, points, exercise.points, passed, detail, says, picture)


class Stage(pytest.Item):
    """One stage of a check."""

    def __init__(self, *, course: Course, check: Callable[[Attempt], None], **more: Any):
        super().__init__(**more)
        self.course, self.check = course, check

    def runtest(self) -> None:
        try:
            self.check(self.course.attempt)
        except (Wrong, Crashed, NotAttempted) as failure:
            self.course.failed_at, self.course.failure = self.name, failure
            raise
        except Exception as fault:
            self.course.fault = fault
            raise
        self.course.passed.append(self.name)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        return str(excinfo.value)


class Course:
    """The pytest plugin: it hands over the stages in place of files, and keeps what came of them."""

    def __init__(self, attempt: Attempt):
        self.attempt = attempt
        self.passed: list[str] = []
        self.failed_at = ""
        self.failure: Exception | None = None
        self.fault: Exception | None = None  # the course's own, never to be taken for a passed check
        self.interrupt: BaseException | None = None

    def pytest_collection(self, session: pytest.Session) -> bool:
        session.items = [
            Stage.from_parent(session, name=name, course=self, check=check)
            for name, check in self.attempt.task.stages()
        ]
        session.testscollected = len(session.items)
        return True

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        self.interrupt = excinfo.value


@contextmanager
def _undisturbed() -> Iterator[None]:
    """On the CPU with autograd on; give back the environment, the last error and the random numbers as they were."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("PYTEST")}
    last_error = {name: getattr(sys, name) for name in LAST_ERROR if hasattr(sys, name)}
    numbers = random.getstate(), np.random.get_state()
    _replace_variables({"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    try:
        # torch.device as a context slows every call of torch, so it is there only where it is needed
        home = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad(), home:
            yield
    finally:
        _replace_variables(variables)
        for name in LAST_ERROR:
            vars(sys).pop(name, None)
        vars(sys).update(last_error)
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])


def _replace_variables(variables: dict[str, str]) -> None:
    """Of the environment's PYTEST variables, leave these alone."""
    for name in [name for name in os.environ if name.startswith("PYTEST")]:
        del os.environ[name]
    os.environ.update(variables)
