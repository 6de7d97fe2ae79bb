"""A syntax tree with one of its nodes changed: where it may be changed, and how it then reads."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from copy import copy, deepcopy
from typing import Any, NamedTuple, TypeVar

Path = tuple[tuple[str, int | None], ...]
Node = TypeVar("Node", bound=ast.AST)
Item = TypeVar("Item")

LEFT_ALONE = ast.Raise | ast.Assert | ast.Import | ast.ImportFrom | ast.JoinedStr
NOT_CODE = ("annotation", "returns", "decorator_list", "bases")
NOT_SEEN = ("device",)  # a keyword argument that makes no difference on the CPU

AXIS_KEYWORDS = ("dim", "axis", "dim0", "dim1", "start_dim", "end_dim")
AXIS_METHODS = (  # whose whole numbers are axes
    "all amax amin any argmax argmin cat cumprod cumsum flatten gather index_select logcumsumexp logsumexp log_softmax "
    "max mean min scatter scatter_add size softmax squeeze stack sum swapaxes transpose unbind unflatten unsqueeze"
).split()


class Place(NamedTuple):
    """A node, and where in the tree it stands."""

    node: ast.AST
    parent: ast.AST
    field: str
    path: Path

    @property
    def is_axis(self) -> bool:
        """Is this whole number an axis?"""
        match self.parent:
            case ast.keyword(arg=name):
                return name in AXIS_KEYWORDS
            case ast.Call():
                return self.field == "args" and called(self.parent) in AXIS_METHODS
            case ast.Subscript(value=ast.Attribute(attr="shape")):
                return self.field == "slice"
        return False


def places(tree: ast.AST, path: Path = ()) -> Iterator[Place]:
    """Every node that may be changed, from top to bottom."""
    for field, value in ast.iter_fields(tree):
        if field in NOT_CODE:
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not isinstance(child, LEFT_ALONE) and not _is_invisible(child):
                here = (*path, (field, index))
                yield Place(child, tree, field, here)
                if whole_number(child) is None:  # the 1 of -1 is no place of its own
                    yield from places(child, here)


def replaced(tree: ast.AST, path: Path, new: ast.AST) -> ast.AST:
    """A copy of the tree with `new` at this place."""
    changed = deepcopy(tree)
    parent: Any = changed
    for field, index in path[:-1]:
        parent = getattr(parent, field) if index is None else getattr(parent, field)[index]
    field, index = path[-1]
    if index is None:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[index] = new
    return changed


def difference(one: str, other: str) -> tuple[str, str]:
    """The lines between the common first and the common last ones, without the indentation that they share."""
    a, b = one.splitlines(), other.splitlines()
    while a and b and a[0] == b[0]:
        a, b = a[1:], b[1:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    return "\n".join(map(str.strip, a)), "\n".join(map(str.strip, b))


def like(node: Node, **fields: Any) -> Node:
    """The node with other fields."""
    new = copy(node)
    vars(new).update(fields)
    return new


def number(value: int) -> ast.expr:
    return ast.UnaryOp(ast.USub(), ast.Constant(-value)) if value < 0 else ast.Constant(value)


def whole_number(node: Any) -> int | None:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))) if not isinstance(value, bool):
            return -value
    return None


def _is_invisible(node: ast.AST) -> bool:
    """A docstring, or a keyword argument that is left alone."""
    match node:
        case ast.Expr(value=ast.Constant()):
            return True
        case ast.keyword(arg=name):
            return name in NOT_SEEN
    return False


def is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def called(node: ast.Call) -> str:
    """The last name of what is called: "softmax" for x.softmax(), torch.softmax(x) and softmax(x)."""
    return str(getattr(node.func, "attr", "") or getattr(node.func, "id", ""))


def calls_a_part(node: ast.Call) -> bool:
    """self.norm(x) or norm(x), with one argument: perhaps a module, of which x is the input."""
    own = isinstance(node.func, ast.Name) or ast.unparse(node.func).startswith("self.")
    return own and len(node.args) == 1 and isinstance(node.args[0], ast.Name | ast.Call | ast.BinOp)


def _is_method(node: ast.Call) -> bool:
    """x.softmax(), and not torch.softmax(x)."""
    return isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) not in (
        "torch",
        "math",
        "F",
        "self",
        "nn.functional",
        "torch.nn.functional",
    )


def inputs(node: ast.Call) -> Sequence[ast.expr]:
    """What a call could be replaced by: the tensor of a method, the arguments of min, max and where, else the first."""
    if _is_method(node):
        return [node.func.value]  # type: ignore[attr-defined]
    return node.args if called(node) in ("min", "max", "where") else node.args[:1]


def with_input(node: ast.Call, change: Callable[[ast.expr], ast.expr]) -> Iterator[ast.Call]:
    """The call with a changed tensor, where it takes one."""
    if _is_method(node):
        yield like(node, func=like(node.func, value=change(node.func.value)))  # type: ignore[attr-defined]
    elif len(node.args) >= 1 and isinstance(node.func, ast.Attribute):
        yield like(node, args=[change(node.args[0]), *node.args[1:]])


def beside(value: ast.expr) -> list[ast.expr]:
    return [ast.BinOp(value, op, ast.Constant(1)) for op in (ast.Add(), ast.Sub())]


def without(items: Sequence[Item], i: int) -> list[Item]:
    return [*items[:i], *items[i + 1 :]]
