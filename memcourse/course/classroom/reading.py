"""The code cells and the chapter of a submitted notebook, from its bytes and from nothing else.

Runs in a grading process, for the bytes are hostile.  Outputs are dropped unread.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from memcourse import __version__
from memcourse.course.answers import collect
from memcourse.course.checks import CHAPTERS, exercises

MOST_CODE = 300_000  # characters; a whole chapter's answers are a tenth of it
FORMATS = (2, 3, 4)


class CannotRead(ValueError):
    """The submission cannot be graded; the message says why, and begins where a file's name would end."""


class Read(NamedTuple):
    cells: tuple[str, ...]
    chapter: str
    note: str  # what was odd about it, or nothing


def read(content: bytes, name: str) -> Read:
    """Take the code out of a notebook.  `name`, its file's, may say which chapter it is.  Raises CannotRead."""
    text, encoding = _decoded(content)
    document = _parsed(text)
    version = document.get("nbformat")
    if version not in FORMATS:
        raise CannotRead(f"is in notebook format {version!r}, and 2 to 4 can be read: save it again from JupyterLab")
    try:
        cells = tuple(_code(document, version))
        metadata = document.get("metadata", {})
        ours = metadata.get("memcourse", {})
        made_by, kind, chapter = (ours.get(key) for key in ("version", "kind", "chapter"))
    except (AttributeError, KeyError, TypeError):
        raise CannotRead("is not a notebook: its cells are malformed") from None
    if sum(map(len, cells)) > MOST_CODE:
        raise CannotRead(f"holds more than {MOST_CODE} characters of code")
    if kind == "chapter":
        raise CannotRead("is a chapter and has no answers in it: exercises/ has its exercises")
    notes = [f"it was in {encoding}"] if encoding else []
    notes += [f"it was in notebook format {version}"] if version != 4 else []
    notes += [f"it was made by version {made_by} of the course"] if made_by not in (None, __version__) else []
    return Read(cells, _chapter(chapter, name, cells), "; ".join(notes).encode("utf-8", "replace").decode())


def slug_in(name: str) -> str | None:
    """The chapter that a file's name names: "01_attention" in "ada_01_attention"."""
    return next((chapter for chapter in CHAPTERS if chapter in name), None)


def _decoded(content: bytes) -> tuple[str, str]:
    """The text, and its encoding where that is an odd one."""
    if not content.strip(b"\0\t\r\n "):
        raise CannotRead("is empty")
    try:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            return content.decode("utf-16"), "UTF-16"
        return content.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        seems = "it seems to be in Latin-1 or Windows-1252" if content.lstrip()[:1] == b"{" else "nor in UTF-16"
        raise CannotRead(f"is not in UTF-8 ({seems}): save it again from JupyterLab") from None


def _parsed(text: str) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except RecursionError:
        raise CannotRead("is not a notebook: its JSON is nested too deeply") from None
    except ValueError:
        raise CannotRead("is not a notebook: it is not JSON, or it was cut short") from None
    if not isinstance(document, dict) or not ("cells" in document or "worksheets" in document):
        raise CannotRead("is not a notebook: it is JSON without cells")
    return document


def _code(document: Mapping[str, Any], version: int) -> list[str]:
    """Before format 4, cells lay in worksheets, and code was called input."""
    cells = document["cells"] if version == 4 else [cell for sheet in document["worksheets"] for cell in sheet["cells"]]
    key = "source" if version == 4 else "input"
    sources = [cell[key] for cell in cells if cell["cell_type"] == "code"]
    texts = [source if isinstance(source, str) else "".join(source) for source in sources]
    return [text.encode("utf-8", "replace").decode() for text in texts]  # no halves of characters


def _chapter(named: Any, name: str, cells: tuple[str, ...]) -> str:
    """The chapter that the notebook names, or its file, or the one whose answers it holds."""
    mentioned = collect(cells).mentioned
    held = [c for c in CHAPTERS if not mentioned.isdisjoint(exercise.name for exercise in exercises(c))]
    if not held:
        raise CannotRead("has no answers in it: it defines none of the names that the exercises ask for")
    told = named if isinstance(named, str) and named in CHAPTERS else slug_in(name)
    if told is None and len(held) > 1:
        raise CannotRead(f"names no chapter and holds answers to several ({', '.join(held)}): name its file after one")
    return told or held[0]
