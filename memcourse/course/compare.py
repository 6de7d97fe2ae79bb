"""Compare what an answer gave with what was expected: type, shape, dtype, finite, values.

One function a stage; each trusts the stages before it and raises Wrong.  Nothing here broadcasts.  In `expected`,
a NumPy array or scalar stands for a torch.Tensor; see `memcourse.course.exercise.Exercise`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from memcourse.course.exercise import Wrong
from memcourse.course.words import describe, expected_found, place

THE_RESULT = "the result"


def check_type(found: Any, expected: Any, where: str = THE_RESULT) -> None:
    """The same structure, and at each leaf exactly the type that is asked for."""
    match expected:
        case np.ndarray() | np.generic():
            right = type(found) in (torch.Tensor, torch.nn.Parameter) and found.layout is torch.strided
            wanted = "a torch.Tensor"
        case bool():
            right, wanted = isinstance(found, bool | np.bool_), "True or False"
        case int():
            right, wanted = isinstance(found, Integral) and not isinstance(found, bool), "an int"
        case float():
            right, wanted = isinstance(found, Real) and not isinstance(found, bool), "a number"
        case tuple() | list():
            kind = tuple if isinstance(expected, tuple) else list
            right = isinstance(found, kind) and len(found) == len(expected)
            wanted = f"a {kind.__name__} of {len(expected)}"
        case Mapping():
            right = isinstance(found, Mapping) and found.keys() == expected.keys()
            wanted = f"a dict with the keys {', '.join(map(repr, expected))}"
        case _:
            right = found is None if expected is None else isinstance(found, type(expected))
            wanted = "None" if expected is None else f"a {type(expected).__name__}"
    if not right:
        raise Wrong(f"{where} should be {wanted}; found {describe(found)}{_advice(found, wanted, where)}")
    for part, found_part, expected_part in _parts(found, expected, where):
        check_type(found_part, expected_part, part)


def _advice(found: Any, wanted: str, where: str) -> str:
    if found is None:
        return "" if where.endswith("]") else ": is a `return` missing?"  # a dict's entry returns nothing
    if wanted == "a torch.Tensor":
        if isinstance(found, np.ndarray | np.generic):
            return ": stay in torch, for no gradient flows through NumPy"
        if isinstance(found, int | float):
            return ": .item() and float() take a number out of its tensor"
        if isinstance(found, list):
            return ": torch.stack makes one tensor of several"
    elif isinstance(found, torch.Tensor) and found.numel() == 1:
        return ": .item() takes the number out"
    return ""


def check_shape(found: Any, expected: Any) -> None:
    for where, tensor, array in tensors(found, expected):
        if tuple(tensor.shape) != array.shape:
            raise Wrong(f"{where} should have shape {array.shape}; found {tuple(tensor.shape)}")


def check_dtype(found: Any, expected: Any, floating: torch.dtype) -> None:
    """`floating` is the dtype of the arguments, which a floating-point result keeps."""
    for where, tensor, array in tensors(found, expected):
        wanted = {"f": floating, "i": torch.int64, "u": torch.int64, "b": torch.bool}[array.dtype.kind]
        if tensor.dtype != wanted:
            raise Wrong(f"{where} should be {wanted}; found {tensor.dtype}")


def check_finite(found: Any, expected: Any, *, secret: bool = False) -> None:
    """Finite wherever the expected value is.  secret: do not print what was expected."""
    for where, leaf, wanted in leaves(found, expected):
        if isinstance(wanted, float | np.ndarray | np.generic):
            array, value = np.asarray(wanted), as_array(leaf)
            _no_difference(where, value, array, lost(value, array), secret)


def check_values(found: Any, expected: Any, tolerance: float, *, secret: bool = False, which_way: bool = False) -> None:
    """|found - expected| <= tolerance * (1 + |expected|); exact for integers and bools; case counts in no str.

    secret: do not print what was expected (it is what the learner is asked to predict).
    which_way: of a secret number, say whether the one that was found is too large or too small.
    """
    wrong = []
    for where, leaf, wanted in leaves(found, expected):
        if isinstance(wanted, float | np.ndarray | np.generic):
            array, value = np.asarray(wanted), as_array(leaf)
            differs = differing(value, array, tolerance)
        else:
            same = _plain(leaf) == _plain(wanted)
            array, value, differs = np.array(wanted, object), np.array(leaf, object), np.array(not same)
        try:
            _no_difference(where, value, array, differs, secret, which_way)
        except Wrong as difference:
            if not secret:
                raise
            wrong.append(str(difference))  # a prediction: all that is wrong with it, at once
    if wrong:
        raise Wrong("; ".join(wrong))


def _no_difference(
    where: str,
    found: np.ndarray,
    expected: np.ndarray,
    differs: np.ndarray,
    secret: bool,
    which_way: bool = False,
) -> None:
    if differs.any():
        index = tuple(np.argwhere(differs)[0].tolist())
        at = ", ".join(filter(None, [where if where != THE_RESULT or not index else "", place(index)]))
        if secret:
            one, other = found.item(*index), expected.item(*index)
            numbers = isinstance(one, Real) and isinstance(other, Real) and not isinstance(other, bool)
            side = f": too {'large' if one > other else 'small'}" if which_way and numbers else ""
            said = float(f"{one:.10g}") if isinstance(one, float) else one  # 3 * 0.1 is 0.3 to its reader
            raise Wrong(f"{where}{f', {place(index)}' if index else ''} is not {said!r}{side}")
        pair = expected_found(expected.item(*index), found.item(*index))
        count = f" ({differs.sum()} of {differs.size} entries differ)" if differs.size > 1 else ""
        raise Wrong(f"{at}: {pair}{count}")


def lost(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Where a number should be, and none is."""
    return np.isfinite(expected) & ~np.isfinite(found)


def differing(found: np.ndarray, expected: np.ndarray, tolerance: float) -> np.ndarray:
    """Where the two are not the same; integers and bools differ as soon as they are not equal."""
    slack = tolerance if expected.dtype.kind == "f" else 0.0
    return ~np.isclose(found, expected, rtol=slack, atol=slack, equal_nan=True)


def same(one: Any, other: Any, tolerance: float) -> bool:
    """Are two results of answers the same in structure, type, shape, dtype and values?  NaN equals NaN.

    Of plain numbers, 6 is the same as 6.0.
    """
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and bool(
            np.isclose(as_array(one), as_array(other), rtol=tolerance, atol=tolerance, equal_nan=True).all()
        )
    if {type(one), type(other)} == {int, float}:
        one, other = float(one), float(other)
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key], tolerance) for key in one)
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance) or (one != one and other != other)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return not isinstance(one, bool | int | str) or _plain(one) == _plain(other)


def leaves(found: Any, expected: Any, where: str = THE_RESULT) -> Iterator[tuple[str, Any, Any]]:
    """(where, found, expected) for everything that is no container, in order."""
    if isinstance(expected, tuple | list | Mapping):
        for part, found_part, expected_part in _parts(found, expected, where):
            yield from leaves(found_part, expected_part, part)
    else:
        yield where, found, expected


def tensors(found: Any, expected: Any) -> Iterator[tuple[str, torch.Tensor, np.ndarray]]:
    """The leaves that are tensors."""
    for where, leaf, wanted in leaves(found, expected):
        if isinstance(wanted, np.ndarray | np.generic):
            yield where, leaf, np.asarray(wanted)


def _parts(found: Any, expected: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(expected, Mapping):
        for key in expected:
            yield f"{where}[{key!r}]", found[key], expected[key]
    elif isinstance(expected, tuple | list):
        for i, (found_part, expected_part) in enumerate(zip(found, expected, strict=True), start=1):
            yield f"part {i} of {where}", found_part, expected_part


def as_array(value: Any) -> np.ndarray:
    """A tensor as NumPy, floating point as float64; and plain numbers."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.double() if value.is_floating_point() else value).numpy()
    return np.asarray(value)


def _plain(value: Any) -> Any:
    return value.strip().casefold() if isinstance(value, str) else value
