"""What a learner calls in a notebook: setup, question, check, hint, show_progress."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from textwrap import indent
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from memcourse import __version__
from memcourse.course import progress as kept
from memcourse.course.checks import UnknownExercise, find
from memcourse.course.exercise import Exercise, Report
from memcourse.course.start import CannotStart, find_copy, is_newer, learner_of

if TYPE_CHECKING:
    from memcourse.course.answers import Definitions

CARRIED = "imports, functions, classes and simple constants from the top level of cells, and no results of calls"
WIDE = 120  # columns of the table of progress, where HTML is not shown
QUICK = 10.0  # an exercise that may take longer is not checked twice


def setup(version: str, *, seed: int = 0) -> torch.device:
    """Seed Python, NumPy and torch, set the course's figure style, return the device: CUDA if present, else CPU.

    Torch gets one thread: the course's tensors are too small to be worth a second one, and on a busy machine two
    wait for each other.

    Prints a line only when the notebook was made by another version of the course.
    """
    if version != __version__:
        remedy = (
            "Update the course first: `git pull` in its folder."
            if is_newer(version)
            else "Run `memcourse start` for notebooks of your version: it keeps your work."
        )
        print(f"This notebook was made by version {version} of the course; you have {__version__}. {remedy}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    if find_spec("matplotlib") is not None:
        from memcourse.course.figures import use_style

        use_style()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")  # not MPS, which has no float64


def question(id: str) -> None:
    """Print what an exercise asks, in the learner's own variant where it has one."""
    learner = _learner()
    if exercise := _known(id, learner):
        from memcourse.course.variants import show

        print(show(exercise, learner))


def check(id: str, answer: Any) -> None:
    """Check an answer, show what was found, and count it in the progress of this copy of the course."""
    learner = _learner()
    if exercise := _known(id, learner):
        from memcourse.course import engine  # brings in pytest
        from memcourse.course.variants import reminder

        report = engine.run(exercise, answer)
        print(report)
        if own_numbers := reminder(exercise, report.outcome, learner, f'question("{exercise.id}")'):
            print(f"  {own_numbers}\n    from memcourse.course import question")
        _show(report)
        for note in _differs_in_grading(exercise, answer, report):
            _note(note)
        _unless_not_recorded(kept.record, report, _copy())


def hint(id: str) -> None:
    """Print the next of the exercise's hints; all of them again when there is no further one."""
    if exercise := _known(id, _learner()):
        folder = _copy()
        seen = kept.read(folder).get(exercise.id, kept.Record()).hints
        last = len(exercise.hints)
        if seen < last:
            print(f"Hint {seen + 1} of {last} for {exercise.id}: {exercise.hints[seen]}")
            if not seen:
                print("  Hints are counted, and cost no points.")
            _unless_not_recorded(kept.record_hint, exercise.id, seen + 1, folder)
            return
        print(f"There are no further hints for {exercise.id}. All {last} again:")
        for number, text in enumerate(exercise.hints, start=1):
            print(f"  {number}. {text}")


def show_progress() -> None:
    """Show what is done, the points of each chapter, and the exercise to do next."""
    from rich.console import Console

    rows = kept.rows(_copy())
    if _shell() is None:
        Console().print(kept.table(rows))
        return
    from IPython.display import display

    text = StringIO()
    Console(width=WIDE, file=text, force_jupyter=False, force_terminal=False).print(kept.table(rows))
    display({"text/html": kept.html(rows), "text/plain": text.getvalue()}, raw=True)


def _known(id: str, learner: str) -> Exercise | None:
    """The exercise, in the variant of this learner; None, and a printed sentence, when there is none of this id."""
    try:
        exercise = find(id)
    except UnknownExercise as unknown:
        print(unknown)
        return None
    if not learner:
        return exercise
    from memcourse.course.variants import variant

    return variant(exercise, learner)


def _learner() -> str:
    """The name that `memcourse start --learner` was given."""
    try:
        return learner_of(_copy())
    except CannotStart as reason:
        _note(reason)
        return ""


def _show(report: Report) -> None:
    """The report's picture below its text, in a notebook."""
    if report.picture is None or _shell() is None or find_spec("matplotlib") is None:
        return
    from memcourse.course import figures, pictures

    figures.show(pictures.figure(report.picture), pictures.description(report.picture))


def _unless_not_recorded(write: Callable[..., None], *arguments: Any) -> None:
    try:
        write(*arguments)
    except kept.NotRecorded as reason:
        _note(reason)


def _note(text: object) -> None:
    print(indent(f"Note: {text}", "  "))


def _shell() -> Any:
    """IPython's shell, where there is one."""
    module = sys.modules.get("IPython")
    return module.get_ipython() if module else None


def _copy() -> Path | None:
    """The course copy to count progress in.

    A notebook counts only in the copy that it lies in, and not from among the solutions: neither building the
    course nor reading a solution passes anything.
    """
    copy, here = find_copy(), Path.cwd()
    if _shell() is not None and copy is not None:
        return copy if here.resolve().is_relative_to(copy) and here.name != "solutions" else None
    return copy


def _differs_in_grading(exercise: Exercise, answer: Any, report: Report) -> Iterator[str]:
    """Sentences on what grading, which sees definitions alone, will do differently from this notebook."""
    shell, name = _shell(), exercise.name
    if shell is None or report.outcome == "not attempted":
        return
    from memcourse.course.answers import collect
    from memcourse.course.left_out import imported_all_the_same

    names = shell.user_ns
    if exercise.asks_for_code and names.get(name) is not answer:
        if isinstance(answer, FunctionType | type):
            yield f"grading looks for `{name}`, and this answer is called `{answer.__name__}`: give it that name."
        elif report.outcome == "passed":
            yield f"grading looks for a function or a class `{name}`, and this answer is neither."
        return
    cells = names.get("In", [])[1:]  # IPython counts its cells from 1
    if not cells:  # a tool runs the notebook without a history: there is nothing to compare with
        return
    definitions = collect(cells)
    if name not in definitions:
        yield f"grading does not see `{name}`: it carries {CARRIED}."
        return
    for missing in definitions.missing(name):
        if missing in names:
            yield f"the answer leans on `{missing}`, which grading does not carry: it carries {CARRIED}."
        else:
            yield f"`{missing}` is neither defined nor imported in this notebook."
    for module in imported_all_the_same(exercise, definitions.closure(name)):
        yield f"grading leaves out memcourse.{module}, which this chapter teaches: write the answer without it."
    if exercise.time_limit <= QUICK:
        yield from _rebuilt(exercise, definitions, report)


def _rebuilt(exercise: Exercise, definitions: Definitions, report: Report) -> Iterator[str]:
    """Check the answer as grading rebuilds it; a sentence when the outcome is another."""
    from memcourse.course import engine
    from memcourse.course.runner.building import build
    from memcourse.course.runner.traces import error_text

    try:
        again = engine.run(exercise, build(definitions.closure(exercise.name), exercise.name))
        outcome, message = again.outcome, again.message
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a definition may raise anything, SystemExit too
        outcome, message = "crashed", error_text(error)
    if outcome != report.outcome:
        gives = f"{outcome}\n{indent(message, '  ')}".rstrip()
        yield f"from its definitions alone, as grading takes it, the answer gives: {gives}"
