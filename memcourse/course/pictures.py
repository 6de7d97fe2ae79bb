"""A wrong answer as a picture, where looking is quicker than reading: what it gave beside what is right.

A picture is plain data, and travels in the report as JSON:

    kind       "matrices": a result and the right one.   "leak": which place of the result depends on which place of the
               arguments; a place that depends on a later one sees the future.
    found, expected   rows of numbers; what is not finite is "nan", "inf" or "-inf", for which JSON has no number
    marks      [row, column] of the cells that are wrong
    title      what to see         rows, columns   what a row and a column are

It is taken from the smallest case that fails, of answers that are code: a prediction's right value stays secret.
`figure` draws it, where matplotlib is installed.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from memcourse.course import compare
from memcourse.course.stages import Attempt, Task, use
from memcourse.course.words import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Picture = dict[str, Any]

SIDES = range(2, 33)  # rows and columns of a matrix that can be looked at
WITH_NUMBERS = 8  # rows and columns of one whose numbers can be read
INK = "#222222"


def of(attempt: Attempt, stage: str) -> Picture | None:
    """The picture of an answer that is wrong at this stage; None where there is nothing to look at."""
    task = attempt.task
    if stage not in ("finite", "values") or not task.exercise.asks_for_code:
        return None
    for i, expected in enumerate(task.expected):
        for part, (where, tensor, array) in enumerate(compare.tensors(attempt.result(i).value, expected)):
            found = compare.as_array(tensor)
            tolerance = task.exercise.tolerance
            wrong = compare.lost(found, array) if stage == "finite" else compare.differing(found, array, tolerance)
            if wrong.any():
                return _leak(attempt, i, part) or _matrices(task, stage, where, part, found, array, wrong)
    return None


def _matrices(
    task: Task, stage: str, where: str, part: int, found: np.ndarray, expected: np.ndarray, wrong: np.ndarray
) -> Picture | None:
    """The first matrix of this part of the result in which something is wrong."""
    at = tuple(np.argwhere(wrong)[0, :-2].tolist())
    found, expected, wrong = found[at], expected[at], wrong[at]
    if wrong.ndim != 2 or not all(side in SIDES for side in wrong.shape):
        return None
    whole = where.replace(compare.THE_RESULT, task.exercise.name)
    place = f", at {list(at)}" if at else ""
    what = f"{'is' if wrong.sum() == 1 else 'are'} {'not finite' if stage == 'finite' else 'wrong'}"
    rows, columns = _axes(task, part, len(at) + 2)
    return {
        "kind": "matrices",
        "found": _rows(found),
        "expected": _rows(expected),
        "marks": np.argwhere(wrong).tolist(),
        "title": f"{whole}{place}: {wrong.sum()} of {wrong.size} cells {what}{_sums(found, expected)}",
        "rows": rows,
        "columns": columns,
    }


def _sums(found: np.ndarray, expected: np.ndarray) -> str:
    """What to look at where every row should sum to 1."""
    if not np.allclose(expected.sum(axis=1), 1) or np.allclose(found.sum(axis=1), 1, atol=1e-4):
        return ""
    columns = ", its columns do" if np.allclose(found.sum(axis=0), 1, atol=1e-4) else ""
    return f"; its rows do not sum to 1{columns}"


def _leak(attempt: Attempt, i: int, part: int) -> Picture | None:
    """Which place of the result depends on which place of the arguments, where one depends on what comes after it."""
    task = attempt.task
    case, expected = task.cases[i], _part(task.expected[i], task.expected[i], part)
    for axis, length in enumerate(expected.shape[:-1]):
        inputs = [name for name, value in _inputs(task, case) if length in value.shape[:-1]]
        if length not in SIDES or not inputs:
            continue
        right = _depends(task, part, axis, task.expected[i], task.right, case)
        if np.triu(right, 1).any() or not np.tril(right, -1).any():
            continue  # not a sequence whose places depend on what came before them
        answer = partial(use, task.exercise, attempt.answer)
        value = attempt.result(i).value
        try:
            moves = _depends(task, part, axis, value, answer, case)
        except KeyboardInterrupt:
            raise
        except BaseException:  # an answer may refuse other numbers than those of its cases, SystemExit included
            return None
        if (future := np.triu(moves, 1)).any():
            reader, read = np.argwhere(future)[0].tolist()
            return {
                "kind": "leak",
                "found": _rows(moves),
                "expected": _rows(right),
                "marks": np.argwhere(future).tolist(),
                "title": f"The future leaks: place {reader} of the result depends on place {read}, after it",
                "rows": "place of the result",
                "columns": f"place of {listed(inputs)}",
            }
    return None


def _depends(
    task: Task, part: int, axis: int, before: Any, run: Callable[[Any], Any], case: Sequence[Any]
) -> np.ndarray:
    """(T, T), True where place t of the result changes when place s of the arguments is halved."""
    usual = compare.as_array(_part(before, task.expected[0], part))
    length = usual.shape[axis]
    moves = np.zeros((length, length), dtype=bool)
    for s in range(length):
        changed = deepcopy(case)
        for _, value in _inputs(task, changed):
            if length in value.shape[:-1]:
                value.select(value.shape.index(length), s).mul_(0.5)
        after = compare.as_array(_part(run(changed), task.expected[0], part))
        moved = compare.differing(after, usual, task.exercise.tolerance)
        moves[:, s] = np.moveaxis(moved, axis, 0).reshape(length, -1).any(axis=1)
    return moves


def _part(found: Any, expected: Any, part: int) -> Any:
    """The tensor of this number among the parts of a result."""
    return list(compare.tensors(found, expected))[part][1]


def _inputs(task: Task, case: Sequence[Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The arguments that are floating-point tensors, by name."""
    for name, value in zip(task.names, case, strict=False):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            yield name, value


def _rows(matrix: np.ndarray) -> list[list[float | str]]:
    """Six digits are enough to look at."""
    numbers = [[float(f"{value:.6g}") for value in row] for row in matrix.astype(float)]
    return [[value if math.isfinite(value) else str(value) for value in row] for row in numbers]


def _axes(task: Task, part: int, ndim: int) -> tuple[str, str]:
    """What the stub's docstring calls the last two axes of this part: "query: (T, d), key: (S, d) -> (T, S)"."""
    stub = [node for node in ast.parse(task.exercise.stub).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    arguments, _, result = (ast.get_docstring(stub[-1]) or "").rpartition("->")
    result = re.sub(r"^\s*\([^()]*\):", "", result)  # the names of several results
    shapes = [axes.split(", ") for axes in re.findall(r"\((\w+(?:, \w+)+)\)", result)]
    n_parts = len(list(compare.tensors(task.expected[0], task.expected[0])))
    if len(shapes) < n_parts or len(shapes[part]) != ndim:
        return "row", "column"
    listed = re.findall(r"((?:\w+, )*\w+): (?:[A-Z] )?\((\w+(?:, \w+)+)\)", arguments)
    owners = [(name, axes.split(", ")) for names, axes in listed for name in names.split(", ")]
    return _axis(shapes[part][-2], owners), _axis(shapes[part][-1], owners)


def _axis(letter: str, owners: Sequence[tuple[str, list[str]]]) -> str:
    """ "query (T)", where T counts the rows of `query` and of no other argument, else "T"."""
    counted = [name for name, axes in owners if letter in axes[:-1]]
    return f"{counted[0]} ({letter})" if len(counted) == 1 else letter


def description(picture: Picture) -> str:
    """The picture in one line, for who does not see it."""
    marks = [f"({row}, {column})" for row, column in picture["marks"]]
    more = [f"{len(marks) - 4} more"] if len(marks) > 4 else []
    shape = f"{len(picture['found'])} rows of {len(picture['found'][0])} cells"
    crossed = f"crossed out, as (row, column): {listed(marks[:4] + more)}"
    return f"Figure: {picture['title']}. Found and expected side by side, {shape}; {crossed}."


def figure(picture: Picture) -> Figure:
    """What was found, what was expected, and a cross in every cell that is wrong."""
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    from memcourse.course.figures import WIDTH

    found, expected = (np.array(picture[key], dtype=float) for key in ("found", "expected"))  # "nan" becomes one
    both = np.concatenate([found, expected])
    finite = both[np.isfinite(both)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    norm = Normalize(min(low, 0.0), max(high, 1e-12))

    rows, columns = found.shape
    height = min(7.0, 1.45 + (WIDTH - 1.6) / 3 * min(1.6, max(0.4, rows / columns)))
    fig = Figure(figsize=(WIDTH, height))
    axes = fig.subplots(1, 3, sharex=True, sharey=True)
    fig.suptitle(picture["title"], x=0.01, ha="left", fontsize=11, fontweight="bold", wrap=True)
    for ax, name, matrix in zip(
        axes, ("found", "expected", "wrong where crossed"), (found, expected, expected), strict=True
    ):
        ax.set_title(name, fontsize=10, fontweight="normal")
        ax.set_xlabel(picture["columns"])
        ax.grid(False)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
        if ax is axes[2]:
            _crosses(ax, found.shape, picture["marks"])
        else:
            image = _heat(ax, matrix, norm)
    axes[0].set_ylabel(picture["rows"])
    for axis, count in ((axes[0].yaxis, rows), (axes[0].xaxis, columns)):
        axis.set_ticks(range(0, count, math.ceil(count / 8)))
    leak = picture["kind"] == "leak"
    bar = fig.colorbar(image, ax=list(axes[:2]), location="bottom", shrink=0.6, aspect=30)
    bar.set_label("1: depends on it" if leak else "value")
    if leak:
        bar.set_ticks([0, 1])
    return fig


def _heat(ax: Axes, matrix: np.ndarray, norm: Any) -> Any:
    """A heat map with its numbers, where they can be read; cells without a number are hatched."""
    from matplotlib.patches import Rectangle

    image = ax.imshow(np.where(np.isfinite(matrix), matrix, np.nan), norm=norm, cmap="cividis", aspect="auto")
    for row, column in np.argwhere(~np.isfinite(matrix)):
        hatched: dict[str, Any] = {"facecolor": "white", "edgecolor": "#999999", "hatch": "////", "linewidth": 0}
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **hatched))
    if max(matrix.shape) <= WITH_NUMBERS:
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9 if matrix.shape[1] <= 5 else 6.5}
        whole = np.array_equal(matrix, matrix.round())
        for (row, column), value in np.ndenumerate(matrix):
            if np.isfinite(value):
                text = f"{value:.2f}" if abs(value) < 100 and not whole else f"{value:.3g}"
                ax.text(column, row, text, color="white" if norm(value) < 0.55 else "black", **style)
            else:
                ax.text(column, row, str(value), bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5}, **style)
    return image


def _crosses(ax: Axes, shape: Sequence[int], marks: Sequence[Sequence[int]]) -> None:
    """A pale grid with a cross in every marked cell."""
    ax.imshow(np.zeros(shape), cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for edge in range(1, shape[0]):
        ax.axhline(edge - 0.5, color="#dddddd", linewidth=0.8)
    for edge in range(1, shape[1]):
        ax.axvline(edge - 0.5, color="#dddddd", linewidth=0.8)
    size = min(60.0, (90 / max(shape)) ** 2)
    ax.scatter([column for _, column in marks], [row for row, _ in marks], marker="x", s=size, color=INK, linewidth=1.4)
