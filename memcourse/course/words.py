"""Values, places, arguments and errors in the words of a message."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import numpy as np
import torch

SMALL = 16  # numbers of a tensor that are printed; of a larger one only the shape
NOT_THE_LEARNERS = tuple(
    str(folder)
    for folder in {
        Path(__file__).parents[1],
        Path(torch.__file__).parent,
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    }
)


def describe(value: Any) -> str:
    """What kind of thing this is: "a torch.Tensor of shape (2, 3)", "None", "a function"."""
    if value is None:
        return "None"
    if isinstance(value, torch.Tensor):
        kind = "torch.Tensor" if type(value) in (torch.Tensor, torch.nn.Parameter) else type(value).__name__
        return f"a {kind} of shape {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"a NumPy array of shape {value.shape}"
    if isinstance(value, bool | int | float | str):
        return f"the {type(value).__name__} {value!r}"
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, value))}" if value else "an empty dict"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, FunctionType):
        return "a function"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"an object of type {type(value).__name__}"


def place(index: Sequence[int]) -> str:
    """Where in an array: "", "position 3", "row 1, column 3", "index [0, 1, 3]"; all count from 0."""
    match tuple(int(i) for i in index):
        case ():
            return ""
        case (i,):
            return f"position {i}"
        case (i, j):
            return f"row {i}, column {j}"
        case more:
            return f"index {list(more)}"


def expected_found(expected: Any, found: Any) -> str:
    """ "expected 0.3775, found 0.5000", with as many digits as it takes to see that the two differ."""
    for digits in (4, 7, 17):
        texts = [f"{x:#.{digits}g}" if isinstance(x, float) else repr(x) for x in (expected, found)]
        if texts[0] != texts[1]:
            break
    return f"expected {texts[0]}, found {texts[1]}"


def capital(sentence: str, name: str = "") -> str:
    """With a capital, unless it begins with something from code: `name`, n_heads, k, result['a'], f(x)."""
    word = re.match(r"[A-Za-z][a-z'-]*(?=[ ,:;.]|$)", sentence)
    code = word is None or word.group() == name or (len(word.group()) == 1 and word.group() != "a")
    return sentence if code else sentence[0].upper() + sentence[1:]


def listed(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def shapes(names: Sequence[str], case: Sequence[Any]) -> str:
    """ "With query of shape (2, 3) and key of shape (5, 3)"."""
    return "With " + listed([_shape(name, value) for name, value in zip(names, case, strict=False)])


def numbers(names: Sequence[str], case: Sequence[Any]) -> str:
    """A line for each argument, "With query = [[0.5, -1]]": the numbers where they are few, else the shape."""
    small = [not isinstance(value, torch.Tensor) or value.numel() <= SMALL for value in case]
    lines = [
        f"{name} = {_nested(value.tolist())}" if few and isinstance(value, torch.Tensor) else _shape(name, value)
        for name, value, few in zip(names, case, small, strict=False)
    ]
    return "With " + "\n     ".join(lines)


def _shape(name: str, value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{name} of shape {tuple(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return f"{name} = {value!r}"
    return f"{name} = {'a dict' if isinstance(value, dict) else describe(value)}"


def _nested(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_nested, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


class OwnLine(NamedTuple):
    """A line of the learner's: "line 4 of its cell", the function that it is in, its text."""

    where: str
    function: str
    text: str


def own_line(error: BaseException, ours: frozenset[CodeType]) -> OwnLine | None:
    """The learner's last line in a traceback; None when the error never entered the learner's code.

    Frames of `ours` (the exercise's probe), of libraries and of the course are not the learner's.
    """
    last = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if frame.f_code not in ours and not file.startswith((*NOT_THE_LEARNERS, "<frozen", "<@beartype")):
            last = frame, number
    if last is None:
        return None
    frame, number = last
    file = frame.f_code.co_filename
    home = "" if file.startswith("<") else f" of {Path(file).name}"
    if "ipykernel" in file or file.startswith("<ipython"):
        home = " of its cell"
    text = _short(linecache.getline(file, number, frame.f_globals))
    return OwnLine(f"line {number}{home}", frame.f_code.co_qualname.replace("<locals>.", ""), text)


def error_text(error: BaseException) -> str:
    """ "NameError: name 'troch' is not defined. Did you mean: 'torch'?", at most three lines of it."""
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return "\n".join(map(_short, lines[:3]))


def _short(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 160 else line[:157] + "..."
