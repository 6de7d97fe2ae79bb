"""Three-way merge of a notebook by cells: the learner's own work into a new version of the course.

    base   the notebook as it was copied        mine   what the learner has made of it
    new    the course's version of now

A cell that the learner did not touch follows the course: mended, moved, or gone. A cell that the learner changed or
added stays as it is, outputs and all, below the cell that it followed. A cell that both changed is the learner's,
and the course's text of it stands below, in a markdown cell. A cell that the learner deleted stays deleted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any

Cell = dict[str, Any]
Notebook = dict[str, Any]

ALIKE = 0.6  # difflib's ratio, from which two texts count as versions of one cell
TOP = -1  # stands before the first cell
NEWER = "newer-"  # the id of a cell that shows the course's text begins so; the rest is made from its source
CHECK = re.compile(r"""^check\(["']([^"']+)["'],\s*(\w+)\)""", re.MULTILINE)
QUESTION = re.compile(r"### (\d+\.\d+) ")


class CannotMerge(ValueError):
    """The file is not a notebook that can be merged; the message says what it is."""


def read(content: bytes) -> Notebook:
    """A notebook in format 4.  Raises CannotMerge."""
    try:
        notebook = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise CannotMerge("is not JSON, or was cut off") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("nbformat"), int):
        raise CannotMerge("is JSON, but no notebook")
    if notebook["nbformat"] != 4:
        raise CannotMerge(f"is in notebook format {notebook['nbformat']}, and only 4 can be merged")
    try:
        for cell in notebook["cells"]:
            source(cell) + cell["cell_type"] + cell.get("id", "")  # three texts
        about(notebook), notebook["nbformat_minor"] + 0
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CannotMerge("is a malformed notebook") from None
    return notebook


def write(notebook: Notebook) -> bytes:
    return _bytes(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


def source(cell: Cell) -> str:
    return "".join(cell["source"])  # a text or its lines


def about(notebook: Notebook) -> dict[str, Any]:
    """What the build says of a notebook: version, chapter, kind."""
    return dict(notebook["metadata"].get("memcourse", {}))


def merge(base: Notebook, mine: Notebook, new: Notebook) -> Notebook:
    """The new version with the learner's work in it; all three stay as they are."""
    places = _pairs(base["cells"], mine["cells"])
    theirs, own = _grouped(mine["cells"], places)
    follows = {j: i for i, j in _pairs(base["cells"], new["cells"]).items()}
    fresh: Callable[[Cell], Cell] = _as_not_run if about(new).get("kind") == "exercises" else dict
    course = {follows.get(j, len(base["cells"]) + j): fresh(cell) for j, cell in enumerate(new["cells"])}

    moved = list(theirs) != sorted(theirs)  # by the learner, whose order then goes before the course's
    cells: list[Cell] = []
    for key in _woven(theirs, course) if moved else _woven(course, theirs):
        was = base["cells"][key] if 0 <= key < len(base["cells"]) else None
        cells += _one(was, theirs.get(key), course.get(key), own.get(key, []))
    minor = max(mine["nbformat_minor"], new["nbformat_minor"])
    metadata = {**mine["metadata"], "memcourse": about(new)}
    merged = {**mine, "metadata": metadata, "nbformat_minor": minor, "cells": cells}
    return merged if minor < 5 else {**merged, "cells": list(_with_ids(cells))}


def _one(was: Cell | None, mine: Cell | None, now: Cell | None, own: list[Cell]) -> list[Cell]:
    """What becomes of one of the course's cells, with the learner's own below it."""
    if mine is None:  # new, or deleted by the learner
        return [now, *own] if now and not was else own
    if was is None or now is None:  # gone from the course
        return own if was and _same(mine, was) else [mine, *own]
    if _same(mine, was):
        return [mine if _same(now, was) else now, *own]
    if _same(now, was) or _same(now, mine):
        return [mine, *own]
    return [mine, _shown(now), *(cell for cell in own if not _is_shown(cell))]


def _same(one: Cell, other: Cell) -> bool:
    return one["cell_type"] == other["cell_type"] and source(one) == source(other)


def _shown(cell: Cell) -> Cell:
    """A markdown cell that holds the text of the course's cell."""
    text = source(cell)
    fence = "~" * max(3, 1 + max(map(len, re.findall("~+", text)), default=0))
    language = {"code": "python", "markdown": "markdown"}.get(cell["cell_type"], "")
    said = (
        f"The course's new version of the cell above, which stays as you left it:\n\n{fence}{language}\n{text}\n{fence}"
    )
    return {"cell_type": "markdown", "id": _shown_id(said), "metadata": {}, "source": said.splitlines(keepends=True)}


def _shown_id(text: str) -> str:
    return NEWER + _digest(text)


def _is_shown(cell: Cell) -> bool:
    """Is it such a cell, and did the learner leave it alone?"""
    return cell.get("id") == _shown_id(source(cell))


def _as_not_run(cell: Cell) -> Cell:
    """An exercise's output is from before its answer."""
    return {**cell, "outputs": [], "execution_count": None} if cell["cell_type"] == "code" else dict(cell)


def _grouped(cells: Sequence[Cell], places: dict[int, int]) -> tuple[dict[int, Cell], dict[int, list[Cell]]]:
    """The course's cells by their place in the base, in the learner's order; and the learner's own that follow each."""
    keys = {j: i for i, j in places.items()}
    theirs: dict[int, Cell] = {}
    own: dict[int, list[Cell]] = {}
    last = TOP
    for j, cell in enumerate(cells):
        if j in keys:
            last = keys[j]
            theirs[last] = cell
        else:
            own.setdefault(last, []).append(cell)
    return theirs, own


def _woven(first: dict[int, Cell], second: dict[int, Cell]) -> list[int]:
    """The order of the first, and what only the second has, each behind the one that it follows there."""
    order, last = [TOP, *first], TOP
    for key in second:
        if key not in first:
            order.insert(order.index(last) + 1, key)
        last = key
    return order


def _pairs(base: Sequence[Cell], other: Sequence[Cell]) -> dict[int, int]:
    """Place in `base` -> place in `other` of the same cell: by id, by text, by its part in an exercise, by likeness."""
    pairs: dict[int, int] = {}
    for keys in (_ids, _texts, _roles):
        taken = set(pairs.values())
        found = {key: j for j, key in reversed(list(enumerate(keys(other)))) if key and j not in taken}
        for i, key in enumerate(keys(base)):
            if i not in pairs and key in found:
                pairs[i] = found.pop(key)
    pairs |= dict(_alike(base, other, pairs))
    return pairs


def _ids(cells: Sequence[Cell]) -> list[Any]:
    return [cell.get("id") for cell in cells]


def _texts(cells: Sequence[Cell]) -> list[Any]:
    return [(cell["cell_type"], source(cell)) for cell in cells]


def _roles(cells: Sequence[Cell]) -> list[Any]:
    """("question" | "answer" | "check", the name that is asked for), where a cell is one of these."""
    checks = [CHECK.finditer(source(cell)) for cell in cells if cell["cell_type"] == "code"]
    names = {match[1]: match[2] for matches in checks for match in matches}
    return [_role(cell, names) for cell in cells]


def _role(cell: Cell, names: dict[str, str]) -> tuple[str, str] | None:
    text = source(cell)
    if cell["cell_type"] == "markdown":
        asked = QUESTION.match(text)
        return ("question", names[asked[1]]) if asked and asked[1] in names else None
    if check := CHECK.search(text):
        return "check", check[2]
    defined = [n for n in names.values() if re.search(rf"^(?:(?:def|class)\s+{n}\b|{n}\s*[=:])", text, re.MULTILINE)]
    return ("answer", defined[-1]) if defined else None


def _alike(base: Sequence[Cell], other: Sequence[Cell], pairs: dict[int, int]) -> Iterator[tuple[int, int]]:
    """Versions of one cell between the same two neighbours."""
    taken = set(pairs.values())
    after, low = TOP, TOP
    for bound in [*sorted(pairs), len(base)]:
        high = pairs.get(bound, len(other))
        for i in range(after + 1, bound):
            likeness = {j: _likeness(base[i], other[j]) for j in range(low + 1, high) if j not in taken}
            best = max(likeness, key=lambda j: likeness[j], default=TOP)
            if likeness.get(best, 0.0) >= ALIKE:
                yield i, best
                low = best
        after, low = bound, high


def _likeness(one: Cell, other: Cell) -> float:
    if one["cell_type"] != other["cell_type"]:
        return 0.0
    return SequenceMatcher(None, source(one), source(other), autojunk=False).ratio()


def _with_ids(cells: Sequence[Cell]) -> Iterator[Cell]:
    """Every cell with an id of its own, as format 4.5 asks."""
    seen: set[str] = set()
    for cell in cells:
        name = str(cell.get("id") or _digest(source(cell)))
        number = 1
        while (unique := name if number == 1 else f"{name[:56]}-{number}") in seen:
            number += 1
        seen.add(unique)
        yield {**cell, "id": unique}


def _digest(text: str) -> str:
    return hashlib.sha256(_bytes(text)).hexdigest()[:8]


def _bytes(text: str) -> bytes:
    """In UTF-8, with half a surrogate pair, which it does not have, as JSON writes it."""
    return text.encode(errors="backslashreplace")
