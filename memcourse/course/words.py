"""Values, places, arguments and errors in the words of a message."""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch

SMALL = 16  # numbers of a tensor that are printed; of a larger one only the shape
SMALL_MASK = 64  # of a mask, which takes a digit for each
FEW = 4  # tensors of a dict or a list whose shapes are printed; of more only how many


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
    lines = [_numbers(name, value) for name, value in zip(names, case, strict=False)]
    return "With " + "\n     ".join(lines)


def _numbers(name: str, value: Any) -> str:
    if isinstance(value, torch.Tensor) and value.dtype == torch.bool and SMALL < value.numel() <= SMALL_MASK:
        return f"{name} = {_digits(value.int().tolist())}, 1 for True"
    if isinstance(value, torch.Tensor) and value.numel() <= SMALL:
        return f"{name} = {_nested(value.tolist())}"
    return _shape(name, value)


def _shape(name: str, value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{name} of shape {tuple(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return f"{name} = {value!r}"
    if shapes := _shapes(value):
        return f"{name} of shapes {listed(shapes)}"
    return f"{name} = {'a dict' if isinstance(value, dict) else describe(value)}"


def _shapes(value: Any) -> list[str]:
    """Of a few tensors in a dict or a list; empty for everything else."""
    parts = value if isinstance(value, dict) else dict(enumerate(value)) if isinstance(value, list | tuple) else {}
    if len(parts) > FEW or not all(isinstance(part, torch.Tensor) for part in parts.values()):
        return []
    labels = [f"{key} " if isinstance(value, dict) else "" for key in parts]
    return [f"{label}{tuple(part.shape)}" for label, part in zip(labels, parts.values(), strict=True)]


def _digits(value: Any) -> str:
    """Rows of 0 and 1, without commas inside a row: [10, 01]."""
    if isinstance(value[0], list):
        return f"[{', '.join(map(_digits, value))}]"
    return "".join(map(str, value))


def _nested(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_nested, value))}]"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
