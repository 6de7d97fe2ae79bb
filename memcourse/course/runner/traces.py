"""Which line of the learner's raised, and what it said.  Plain Python, for it runs beside untrusted answers too."""

from __future__ import annotations

import linecache
import sysconfig
import traceback
from importlib.util import find_spec
from pathlib import Path
from types import CodeType
from typing import NamedTuple

NOT_THE_LEARNERS = tuple(
    str(folder)
    for folder in {
        Path(__file__).parents[1],
        *(Path(spec.origin).parent for spec in [find_spec("torch")] if spec and spec.origin),
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    }
)


class OwnLine(NamedTuple):
    """A line of the learner's: "line 4 of its cell", the function that it is in, its text."""

    where: str
    function: str
    text: str


class Elsewhere(NamedTuple):
    """What another process said of an error that was raised there, as attribute `elsewhere` of its copy here."""

    own: OwnLine | None
    text: str


def own_line(error: BaseException, ours: frozenset[CodeType]) -> OwnLine | None:
    """The learner's last line in a traceback; None when the error never entered the learner's code.

    Frames of `ours` (the exercise's probe), of libraries and of the course are not the learner's.
    """
    if isinstance(elsewhere := getattr(error, "elsewhere", None), Elsewhere):
        return elsewhere.own
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
    if isinstance(elsewhere := getattr(error, "elsewhere", None), Elsewhere):
        text = "\n".join([elsewhere.text, *getattr(error, "__notes__", [])])
    else:
        text = "".join(traceback.format_exception_only(error))
    return "\n".join(map(_short, text.strip().splitlines()[:3]))


def _short(line: str) -> str:
    line = line.strip()
    return line if len(line) <= 160 else line[:157] + "..."
