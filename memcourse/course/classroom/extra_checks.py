"""An instructor's hidden checks, from a folder of their own: `CHECKS = {"1.2": [rows_sum_to_one]}` in any *.py there.

Each takes the answer and raises when it is wrong.  A learner reads its name and nothing else of it.  They are
loaded in the grading processes and run there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from memcourse.course.checks import UnknownExercise, find
from memcourse.course.classroom import CannotGrade
from memcourse.course.exercise import Exercise, Wrong

Check = Callable[[Any], None]
STAGE = "a hidden check"


class BadCheck(CannotGrade):
    """A file of hidden checks cannot be used; the message names it."""


@cache
def load(folder: Path) -> Mapping[str, tuple[Check, ...]]:
    """Exercise id -> its hidden checks.  Raises BadCheck."""
    found: dict[str, tuple[Check, ...]] = {}
    for path in _files(folder):
        for id, checks in _checks(path).items():
            try:
                find(id)
            except UnknownExercise as error:
                raise BadCheck(f"{path}: {error}") from None
            if not isinstance(checks, list | tuple) or not all(map(_is_check, checks)):
                raise BadCheck(f"{path}: CHECKS[{id!r}] should be a list of functions, and is {checks!r}.")
            found[id] = found.get(id, ()) + tuple(checks)
    return found


def names(folder: Path) -> list[str]:
    """The ids of the exercises that have hidden checks.  Raises BadCheck."""
    return list(load(folder))


def digest(folder: Path) -> str:
    """Changes with every file of the folder: a check may read or import its neighbours."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    hashes = [f"{path.relative_to(folder)}:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(hashes).encode("utf-8", "surrogateescape")).hexdigest()


def with_hidden(exercise: Exercise, folder: Path | None) -> Exercise:
    """The exercise with its hidden checks after its own."""
    hidden = load(folder).get(exercise.id, ()) if folder else ()
    if not hidden:
        return exercise  # the very same: its cases and known mistakes are made once
    return dataclasses.replace(exercise, properties=exercise.properties + tuple(map(_hidden, hidden)))


def _hidden(check: Check) -> Check:
    def hidden(answer: Any) -> None:
        try:
            check(answer)
        except KeyboardInterrupt:
            raise
        except BaseException:  # whatever it is, its text could tell what is checked
            raise Wrong(check.__name__.replace("_", " ").strip()) from None

    hidden.__name__ = STAGE
    hidden.hidden = True  # type: ignore[attr-defined]  # run after everything else
    return hidden


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.py"))
    if not files:
        raise BadCheck(f"{folder} has no *.py with hidden checks.")
    return files


def _checks(path: Path) -> Mapping[str, Any]:
    spec = importlib.util.spec_from_file_location(f"hidden_checks_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BadCheck(f"{path} cannot be loaded as a module.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadCheck(f"{path} does not load: {type(error).__name__}: {error}") from error
    checks = getattr(module, "CHECKS", None)
    if not isinstance(checks, Mapping):
        raise BadCheck(f'{path} should define CHECKS = {{"1.2": [function, ...]}}, and defines {checks!r}.')
    return checks


def _is_check(value: Any) -> bool:
    return callable(value) and hasattr(value, "__name__")
