"""Answers are definitions: what grading takes out of a notebook, and how it puts an answer together again.

Grading does not run a notebook. It reads the code cells from top to bottom and takes imports, functions,
classes, lambdas and simple constants from the top level of each. Of two definitions of a name the last one
counts. An answer is then rebuilt from the definitions that it leans on and from nothing else, so a cell that
was copied, split, moved or deleted, or that raises, costs nothing beyond the answers it holds.

What is not carried: the values that calls compute, and whatever is bound inside `if`, `try`, `for`, `with` or
`while`. `Definitions.missing` names it, and `check` warns about it in the notebook.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from memcourse.course.statements import (
    DOES_NOT_PARSE,
    Definition,
    DoesNotParse,
    NotCarried,
    bound,
    definitions,
    fault,
    lines_of,
    text_of,
    without_magics,
)

ALWAYS_THERE = (frozenset(dir(builtins)) - {"get_ipython", "__IPYTHON__"}) | {"__name__", "display"}


class NotACourseNotebook(ValueError):
    """The file cannot be graded; the message is one sentence that says why."""


class Notebook(NamedTuple):
    cells: tuple[str, ...]  # the source of every code cell, in order
    version: str | None  # of the course that made the notebook, where it says so
    chapter: str | None  # "01_attention", where it says so


@dataclass(frozen=True)
class Definitions:
    """What `collect` found, in the order of the notebook."""

    carried: tuple[Definition, ...]
    not_carried: tuple[NotCarried, ...]
    unparsed: tuple[DoesNotParse, ...]

    def __contains__(self, name: str) -> bool:
        return any(name in definition.names for definition in self.carried)

    @property
    def mentioned(self) -> frozenset[str]:
        """Every name that the notebook defines in some way, carried or not."""
        statements: tuple[Definition | NotCarried | DoesNotParse, ...]
        statements = (*self.carried, *self.not_carried, *self.unparsed)
        return frozenset(name for statement in statements for name in statement.names)

    def closure(self, name: str) -> tuple[Definition, ...]:
        """The definitions that `name` leans on and itself, in the notebook's order, ready for `build`.

        Raises KeyError where `name` is not carried.
        """
        if name not in self:
            raise KeyError(name)
        reached: set[int] = set()
        waiting = self._resolve(name)
        while waiting:
            index = waiting.pop()
            if index not in reached:
                reached.add(index)
                waiting += [needed for kind in self._needs(index) for needed in kind]
        ordered: dict[int, None] = {}
        started: set[int] = set()

        def place(index: int, with_deferred: bool) -> None:
            """The notebook's order, except that what a statement runs must come before it."""
            if index in started:
                return
            started.add(index)
            eager, deferred = self._needs(index)
            for needed in eager + (deferred if with_deferred else []):
                place(needed, with_deferred=True)
            ordered[index] = None

        for index in sorted(reached):
            place(index, with_deferred=False)
        return tuple(self.carried[index] for index in ordered)

    def missing(self, name: str) -> tuple[str, ...]:
        """Names that `name` leans on and that grading does not have, or has only in an older form."""
        closure = self.closure(name)
        leans_on = {name}.union(*(definition.eager | definition.deferred for definition in closure))
        star_import = any("*" in definition.names for definition in self.carried)
        here = {used for used in leans_on if used in self}
        absent = set() if star_import else leans_on - here - ALWAYS_THERE
        stale = {used for used in here if self.rebound(used)}
        return tuple(sorted(absent | stale))

    def rebound(self, name: str) -> NotCarried | None:
        """The statement that gives `name` its last value, where it is one that grading leaves out."""
        found = [statement for statement in self.not_carried if name in statement.names]
        if not found:
            return None
        last = max(found, key=_place)
        carried = [definition for definition in self.carried if name in definition.names]
        return None if any(_place(definition) > _place(last) for definition in carried) else last

    def broken(self, name: str) -> DoesNotParse | None:
        """The text that does not parse and that holds the last form of `name`, or of what `name` leans on."""
        closure = self.closure(name) if name in self else ()
        leans_on = {name}.union(*(definition.eager | definition.deferred for definition in closure))
        for unparsed in reversed(self.unparsed):
            for used in leans_on.intersection(unparsed.names):
                later = (d for d in self.carried if used in d.names and _place(d) > _place(unparsed))
                if not any(later):
                    return unparsed
        return None

    def _resolve(self, name: str, before: int | None = None) -> list[int]:
        """Where `name` is defined: the last time before `before`, or else the last time at all."""
        found = [index for index, definition in enumerate(self.carried) if name in definition.names]
        if not found:
            stars = [index for index, definition in enumerate(self.carried) if "*" in definition.names]
            return [] if name in ALWAYS_THERE else stars
        earlier = [index for index in found if before is not None and index < before]
        last = (earlier or found)[-1]
        if self.carried[last].extends_its_name:
            return [i for i in found if i == last or self.carried[i].source.startswith("import ")]
        return [last]

    def _needs(self, index: int) -> tuple[list[int], list[int]]:
        definition = self.carried[index]
        eager = [
            i for name in sorted(definition.eager | definition.optional) for i in self._resolve(name, before=index)
        ]
        deferred = [i for name in sorted(definition.deferred) for i in self._resolve(name)]
        return eager, deferred


def _place(statement: Definition | NotCarried | DoesNotParse) -> tuple[int, int]:
    return statement.cell, statement.line


def collect(cells: Sequence[str]) -> Definitions:
    """Take the definitions from the code cells of a notebook, or from IPython's history. Nothing is run."""
    carried: list[Definition] = []
    not_carried: list[NotCarried] = []
    unparsed: list[DoesNotParse] = []
    parsed: list[tuple[int, str, list[bytes], ast.stmt]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a learner's "\d" is no concern of the grader's stderr
        for number, cell in enumerate(cells, start=1):
            try:
                source = without_magics(cell)
                lines = lines_of(source)
                parsed += [(number, source, lines, statement) for statement in ast.parse(source).body]
            except DOES_NOT_PARSE as error:
                unparsed.append(fault(cell, number, error))
        future = any(
            isinstance(statement, ast.ImportFrom)
            and statement.module == "__future__"
            and "annotations" in bound(statement)
            for *_, statement in parsed
        )
        for number, source, lines, statement in parsed:
            text, line = text_of(lines, statement)
            try:
                found = list(definitions(statement, text, number, line, future))
                names = () if found else bound(statement)
            except DOES_NOT_PARSE as error:
                unparsed.append(fault(source, number, error, statement))
                continue
            carried += found
            if names:
                not_carried.append(NotCarried(names, text.partition("\n")[0], number, line))
    return Definitions(tuple(carried), tuple(not_carried), tuple(unparsed))


def read(path: str | Path) -> Notebook:
    """Read a notebook of this course. Raises NotACourseNotebook, with a sentence, for any other file."""
    try:
        import nbformat
    except ModuleNotFoundError:
        raise NotACourseNotebook(
            "Reading a notebook needs nbformat, which is not installed: pip install 'memcourse[course]'"
        ) from None
    from memcourse import __version__
    from memcourse.course.checks import all_exercises

    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        content = json.loads(text)
    except FileNotFoundError:
        raise NotACourseNotebook(f"There is no file {path}.") from None
    except OSError as error:
        raise NotACourseNotebook(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):  # not UTF-8, or not JSON to its end
        raise NotACourseNotebook(f"{path} is not a notebook: it is not JSON, or it was cut off.") from None
    if not isinstance(content, dict) or not ("cells" in content or "worksheets" in content):
        raise NotACourseNotebook(f"{path} is not a notebook: it is JSON without cells.")
    if content.get("nbformat") not in (3, 4):
        raise NotACourseNotebook(
            f"{path} is in notebook format {content.get('nbformat')!r}, and 3 and 4 can be read: "
            "save it again from JupyterLab."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a missing cell id harms nobody here
            notebook = nbformat.reads(text, as_version=4)
        cells = tuple(str(cell.source) for cell in notebook.cells if cell.cell_type == "code")
        ours = dict(notebook.metadata.get("memcourse", {}))
    except Exception:  # a malformed notebook can fail anywhere inside nbformat, with any exception
        raise NotACourseNotebook(f"{path} is not a notebook: its cells are malformed.") from None
    stamp = re.search(r"""\bsetup\(\s*["']([^"']+)["']""", cells[0]) if cells else None
    version = ours.get("version") or (stamp and stamp.group(1))
    if version is not None and version != __version__:
        raise NotACourseNotebook(
            f"{path} was made by version {version} of the course, and this is version {__version__}: "
            "the older of the two has to be brought up to date, a notebook by `memcourse start`, which keeps your work."
        )
    if ours.get("kind") == "chapter":
        raise NotACourseNotebook(f"{path} has no answers in it: it is a chapter, and exercises/ has its exercises.")
    if collect(cells).mentioned.isdisjoint(exercise.name for exercise in all_exercises()):
        raise NotACourseNotebook(
            f"{path} has no answers in it: it defines none of the names that the exercises ask for."
        )
    return Notebook(cells, version, ours.get("chapter"))
