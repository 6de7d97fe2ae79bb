"""An answer put together again from its definitions, each with the file name and the line numbers of its cell."""

from __future__ import annotations

import ast
import linecache
import sys
import types
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

MODULE = "notebook_answer"  # the module that a rebuilt answer lives in


class Statement(Protocol):
    """cell, line: where it starts, both counted from 1.   flags: of the compiler (postponed annotations)."""

    @property
    def source(self) -> str: ...
    @property
    def cell(self) -> int: ...
    @property
    def line(self) -> int: ...
    @property
    def flags(self) -> int: ...


def file_of(cell: int) -> str:
    """The file name of a cell's code."""
    return f"your notebook, cell {cell}"  # messages show it as it stands


def compiled(statement: Statement) -> types.CodeType:
    """Raises SyntaxError where only the compiler sees a fault, a stray `break` for one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the notebook has shown them once
        tree = ast.increment_lineno(ast.parse(statement.source), statement.line - 1)
        return compile(tree, file_of(statement.cell), "exec", statement.flags, dont_inherit=True)


def build(closure: Sequence[Statement], name: str) -> Any:
    """Run the definitions in a module of their own and return what they call `name`.

    A traceback shows the learner's own lines.
    """
    module = types.ModuleType(MODULE)
    module.__dict__["display"] = print  # IPython's, for an answer that shows something on its way
    sys.modules[MODULE] = module  # dataclasses and pickle look a class's module up by its name
    _remember_lines(closure)
    for statement in closure:
        exec(compiled(statement), module.__dict__)
    return module.__dict__[name]


def _remember_lines(closure: Sequence[Statement]) -> None:
    """Put the learner's lines where Python's tracebacks look for them."""
    lines: dict[str, dict[int, str]] = {}
    for statement in closure:
        for offset, text in enumerate(statement.source.split("\n")):
            lines.setdefault(file_of(statement.cell), {})[statement.line + offset] = text
    for file, known in lines.items():
        padded = [known.get(number, "") + "\n" for number in range(1, max(known) + 1)]
        linecache.cache[file] = (sum(map(len, padded)), None, padded, file)
