"""One statement of a notebook: is it carried into grading, what does it bind, and what does it lean on?"""

from __future__ import annotations
import __future__

import ast
import re
import symtable
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from memcourse.course.runner.building import compiled

# Calls that a simple constant may hold: they compute in no time and touch nothing. So does everything in `math`.
SIMPLE_CALLS = frozenset(
    "bool bytes complex dict float frozenset int list max min range round set slice str tuple "
    "partial functools.partial torch.tensor torch.device np.array numpy.array".split()
)
LITERALS = ast.Constant | ast.Tuple | ast.List | ast.Set | ast.Dict | ast.Starred | ast.JoinedStr | ast.FormattedValue
LOOKUPS = ast.Name | ast.Attribute | ast.Subscript | ast.Slice | ast.keyword | ast.expr_context
ARITHMETIC = ast.UnaryOp | ast.BinOp | ast.BoolOp | ast.Compare | ast.IfExp
OPERATORS = ast.unaryop | ast.operator | ast.boolop | ast.cmpop
# Cell magics that run their cell as Python, in the notebook's own names.
PYTHON_CELL_MAGICS = ("time", "capture", "prun")
LONGEST_LINE = 200  # characters of it that a message shows
COMPREHENSIONS = ("listcomp", "setcomp", "dictcomp", "genexpr")
# What the parser raises on odd text.
DOES_NOT_PARSE = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)


@dataclass(frozen=True)
class Definition:
    """One carried statement.

    cell, line: where it starts, both counted from 1.   flags: of the compiler (postponed annotations).
    eager:      names looked up when it runs: decorators, defaults, annotations, bases, class bodies.
    deferred:   names looked up when a function is called.
    optional:   names used if they exist: a class attribute or a `global` may share its name with a definition.
    """

    names: tuple[str, ...]
    source: str
    cell: int
    line: int
    eager: frozenset[str] = frozenset()
    deferred: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    flags: int = 0

    @property
    def extends_its_name(self) -> bool:
        """`import xml.dom` and `import xml.sax` both bind `xml`, and neither replaces the other."""
        return self.source.startswith("import ") and "." in self.source and " as " not in self.source


@dataclass(frozen=True)
class NotCarried:
    """A statement that binds names, and that grading leaves out."""

    names: tuple[str, ...]
    source: str  # its first line
    cell: int
    line: int


@dataclass(frozen=True)
class DoesNotParse:
    """A cell or a statement that is not Python, with the names that its text seems to define."""

    names: tuple[str, ...]
    cell: int
    line: int
    text: str
    error: str

    def __str__(self) -> str:
        shown = f"\n    {self.text}" if self.text else ""
        return f"Cell {self.cell} does not parse. Line {self.line}: {self.error}{shown}"


def without_magics(cell: str) -> str:
    """The cell as Python, line for line: IPython's magics, shell lines and questions are no definitions."""
    head = cell.lstrip()
    if head.startswith("%%"):
        magic = re.match(r"%%(\w*)[^\n]*", head)
        if magic is None or magic.group(1) not in PYTHON_CELL_MAGICS:
            return ""
        blank = "\n" * cell[: len(cell) - len(head)].count("\n")
        return without_magics(blank + head[magic.end() :])
    try:
        ast.parse(cell)
        return cell
    except DOES_NOT_PARSE:
        pass
    try:
        from IPython.core.inputtransformer2 import TransformerManager
    except ModuleNotFoundError:
        return re.sub(r"(?m)^([ \t]*)(?:[%!?][^\n]*|[\w.%]+\?\??[ \t]*)$", r"\1pass", cell)
    blank_lines = re.match(r"(?:[ \t]*\n)*", cell)  # IPython drops them, and line numbers would slip
    offset = blank_lines.group().count("\n") if blank_lines else 0
    return "\n" * offset + TransformerManager().transform_cell(cell)


def fault(source: str, cell: int, error: BaseException, statement: ast.stmt | None = None) -> DoesNotParse:
    """What is wrong with a cell, or with the one statement of it that parses and cannot be compiled."""
    lines = source.split("\n")
    line = (error.lineno if isinstance(error, SyntaxError) else None) or (statement.lineno if statement else 1)
    lost = lines[statement.lineno - 1 : statement.end_lineno] if statement else lines
    patterns = r"(?m)^[ \t]*(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|^(\w+)[ \t]*(?::[^=\n]+)?=(?!=)"
    names = dict.fromkeys(one or two for one, two in re.findall(patterns, "\n".join(lost)))
    message = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
    text = lines[line - 1].rstrip() if line <= len(lines) else ""
    return DoesNotParse(tuple(names), cell, line, text[:LONGEST_LINE], message[:LONGEST_LINE])


def lines_of(source: str) -> list[bytes]:
    """The lines of a cell as Python counts them, and as it counts columns: in bytes."""
    return re.sub("\r\n?", "\n", source).encode().split(b"\n")


def text_of(lines: Sequence[bytes], statement: ast.stmt) -> tuple[str, int]:
    """The statement as it is written, decorators and comments included, and its first line."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        first = min([statement.lineno, *(decorator.lineno for decorator in statement.decorator_list)])
        return b"\n".join(lines[first - 1 : statement.end_lineno]).decode(), first
    own = list(lines[statement.lineno - 1 : statement.end_lineno])  # `a = 1; b = 2` share a line
    own[-1] = own[-1][: statement.end_col_offset]
    own[0] = own[0][statement.col_offset :]
    return b"\n".join(own).decode(), statement.lineno


def bound(statement: ast.stmt) -> tuple[str, ...]:
    """The names that a statement binds at the top level of the notebook."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return tuple(alias.asname or alias.name.split(".")[0] for alias in statement.names)
    table = symtable.symtable(ast.unparse(statement), "notebook", "exec")
    return tuple(symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported())


def definitions(statement: ast.stmt, text: str, cell: int, line: int, future: bool) -> Iterator[Definition]:
    """What is carried of a statement: nothing, itself, or an import for each name. Raises DOES_NOT_PARSE."""
    if isinstance(statement, ast.Import | ast.ImportFrom):
        # One definition per name: in `import torch, faiss`, a missing faiss costs nothing that leans on torch.
        for alias in statement.names:
            single: ast.stmt
            if isinstance(statement, ast.Import):
                single = ast.Import([alias])
            elif statement.module == "__future__":
                continue
            else:
                single = ast.ImportFrom(statement.module, [alias], statement.level)
            yield Definition(bound(single), ast.unparse(single), cell, line)
        return
    if _is_setup(statement):
        # The notebook's first cell. Checks compute on the CPU, and seeding again would disturb the learner.
        text = re.sub(r"(?s)=.*", '= __import__("torch").device("cpu")', text)
    elif not _is_definition(statement):
        return
    flags = __future__.annotations.compiler_flag if future else 0
    compiled(Definition((), text, cell, line, flags=flags))
    prefix = "from __future__ import annotations\n" if future else ""
    eager, deferred, optional = _leaning(symtable.symtable(prefix + text, "notebook", "exec"))
    optional |= _leaning(symtable.symtable(text, "notebook", "exec"))[0] - eager  # postponed annotations
    yield Definition(bound(statement), text, cell, line, eager, deferred, optional, flags)


def _is_setup(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Call)
        and ast.unparse(statement.value.func) == "setup"
    )


def _is_definition(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return True
    if isinstance(statement, ast.Assign):
        stored = (node for target in statement.targets for node in ast.walk(target))
        plain = all(
            isinstance(node, ast.Name | ast.Tuple | ast.List | ast.Starred | ast.expr_context) for node in stored
        )
        return plain and _is_simple(statement.value)
    if isinstance(statement, ast.AnnAssign):
        return isinstance(statement.target, ast.Name) and statement.value is not None and _is_simple(statement.value)
    return type(statement).__name__ == "TypeAlias"  # `type Weights = Tensor`, from Python 3.12


def _is_simple(value: ast.AST) -> bool:
    if isinstance(value, ast.Lambda):
        return True  # its body runs when it is called, as a function's does
    if isinstance(value, ast.Call):
        called = ast.unparse(value.func)
        if called not in SIMPLE_CALLS and not called.startswith("math."):
            return False
        return all(_is_simple(argument) for argument in [*value.args, *value.keywords])
    return isinstance(value, LITERALS | LOOKUPS | ARITHMETIC | OPERATORS) and all(
        _is_simple(child) for child in ast.iter_child_nodes(value)
    )


def _leaning(top: symtable.SymbolTable) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    eager: set[str] = set()
    deferred: set[str] = set()
    optional: set[str] = set()

    def visit(table: symtable.SymbolTable, called_later: bool) -> None:
        in_class = table.get_type() == "class"
        for symbol in table.get_symbols():
            name = symbol.get_name()
            own_attribute = in_class and symbol.is_local() and symbol.is_referenced()
            if own_attribute or (symbol.is_declared_global() and symbol.is_assigned()):
                optional.add(name)
            elif symbol.is_referenced() and (table is top or symbol.is_global()):
                (deferred if called_later else eager).add(name)
        for child in table.get_children():
            later = child.get_type() == "function" and child.get_name() not in COMPREHENSIONS
            visit(child, called_later or later)

    visit(top, called_later=False)
    return frozenset(eager), frozenset(deferred), frozenset(optional)
