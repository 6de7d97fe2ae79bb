"""Small changes to a correct solution, each of which its checks should notice.

`mutants(source)` gives at most 25, evenly over six kinds and over the source, and always the same ones. What a
reader sees of the code and a check cannot (docstrings, annotations, what is raised) is left alone.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .tree import (
    NOT_SEEN,
    Item,
    Place,
    beside,
    called,
    calls_a_part,
    difference,
    inputs,
    is_none,
    like,
    number,
    places,
    replaced,
    whole_number,
    with_input,
    without,
)

AT_MOST = 25

PRODUCTS = ast.Mult | ast.MatMult | ast.Div
OTHER_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
OPPOSITES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE,
    ast.GtE: ast.Lt,
    ast.Gt: ast.LtE,
    ast.LtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
BOUNDARIES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
PAIRS = (
    "sum mean, max min, amax amin, argmax argmin, tril triu, sigmoid tanh, zeros ones, zeros_like ones_like, any all"
)
OTHER_FUNCTIONS = {a: b for pair in PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}

TURNS = ("transpose", "permute", "swapaxes", "movedim")
NOT_ODD = (
    "exp log softmax log_softmax sigmoid sqrt elu relu gelu logsumexp topk argmax argmin argsort sort max min".split()
)
REMOVABLE = (  # calls whose input is of the kind of their result
    "abs clamp clamp_min clone contiguous cumsum detach elu exp expand flip float gelu int item log log_softmax long "
    "masked_fill min max norm relu scatter sigmoid softmax sort sqrt square squeeze tanh tril triu unsqueeze where"
).split()


@dataclass(frozen=True)
class Mutant:
    """One changed solution.  was, now: the lines that differ, as `ast.unparse` writes them."""

    kind: str
    was: str
    now: str
    source: str


def mutants(source: str, at_most: int = AT_MOST) -> list[Mutant]:
    """At most so many mutants, evenly over the kinds and, within a kind, over the source."""
    return [mutant for kind in choose(all_mutants(source), at_most).values() for mutant in kind]


def all_mutants(source: str) -> dict[str, list[Mutant]]:
    """Every mutant by its kind, from the top of the source; none is the original or another one again."""
    tree = ast.parse(source)
    original = ast.unparse(tree)
    seen = {original}
    found: dict[str, list[Mutant]] = {kind: [] for kind in KINDS}
    for kind, change in KINDS.items():
        for place in places(tree):
            for new in change(place):
                text = ast.unparse(ast.fix_missing_locations(replaced(tree, place.path, new)))
                if text not in seen:
                    seen.add(text)
                    found[kind].append(Mutant(kind, *difference(original, text), text))
    return found


def choose(of: dict[str, list[Item]], at_most: int) -> dict[str, list[Item]]:
    """As many of each kind, as far as there are; of a longer list, items that stand evenly apart."""
    quota = dict.fromkeys(of, 0)
    for _ in range(at_most):
        open_kinds = [kind for kind in of if quota[kind] < len(of[kind])]
        if open_kinds:
            quota[min(open_kinds, key=lambda kind: quota[kind])] += 1
    return {
        kind: [items[(2 * i + 1) * len(items) // (2 * quota[kind])] for i in range(quota[kind])]
        for kind, items in of.items()
    }


def operators(place: Place) -> Iterator[ast.AST]:
    """Another operator, operands the other way round, the opposite comparison, a function's counterpart."""
    match node := place.node:
        case ast.BinOp(left=left, op=op, right=right):
            if type(op) in OTHER_OPERATORS:
                yield like(node, op=OTHER_OPERATORS[type(op)]())
            if isinstance(op, ast.Sub | ast.Div | ast.MatMult):
                yield like(node, left=right, right=left)
        case ast.AugAssign(op=op) if type(op) in OTHER_OPERATORS:
            yield like(node, op=OTHER_OPERATORS[type(op)]())
        case ast.Compare(ops=[op]):
            yield like(node, ops=[OPPOSITES[type(op)]()])
        case ast.BoolOp(op=op):
            yield like(node, op=ast.Or() if isinstance(op, ast.And) else ast.And())
        case ast.Call(func=ast.Attribute() as func) if func.attr in OTHER_FUNCTIONS:
            yield like(node, func=like(func, attr=OTHER_FUNCTIONS[func.attr]))
        case ast.Call(func=ast.Name() as func) if func.id in OTHER_FUNCTIONS:
            yield like(node, func=like(func, id=OTHER_FUNCTIONS[func.id]))


def axes(place: Place) -> Iterator[ast.AST]:
    """The axis beside it, keepdim the other way round, a transposition left out, the new axis in another place."""
    match node := place.node:
        case ast.Constant(value=bool(kept)) if getattr(place.parent, "arg", None) == "keepdim":
            yield ast.Constant(not kept)
        case ast.Attribute(attr="T" | "mT", value=value):
            yield value
        case ast.Call(func=ast.Attribute(value=value, attr=attr)) if attr in TURNS:
            yield value
        case ast.Subscript(slice=ast.Tuple(elts=parts) as index):
            for i, (one, other) in enumerate(zip(parts, parts[1:], strict=False)):
                if is_none(one) != is_none(other):
                    swapped = [*parts[:i], other, one, *parts[i + 2 :]]
                    yield like(node, slice=like(index, elts=swapped))
    axis = whole_number(node)
    if axis is not None and place.is_axis:
        yield number(axis - 1 if axis > 0 or axis == -1 else axis + 1)


def signs(place: Place) -> Iterator[ast.AST]:
    """A minus, a `not` or a `~` taken away or put in."""
    match node := place.node:
        case ast.UnaryOp(operand=operand) if not place.is_axis:
            yield operand
        case ast.BinOp(op=op) if isinstance(op, PRODUCTS):
            if not isinstance(getattr(place.parent, "op", None), PRODUCTS):  # a * b * c has one sign
                yield ast.UnaryOp(ast.USub(), node)
        case ast.BinOp(op=ast.Add(), left=left):
            yield like(node, left=ast.UnaryOp(ast.USub(), left))
        case ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value="-inf")]):
            yield like(node, args=[ast.Constant("inf")])
        case ast.Call() if called(node) in NOT_ODD:
            yield from with_input(node, lambda value: ast.UnaryOp(ast.USub(), value))
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            yield like(node, test=ast.UnaryOp(ast.Not(), test))


def off_by_one(place: Place) -> Iterator[ast.AST]:
    """One more and one less: a whole number, a slice's bound, a range's end; a comparison with or without equality."""
    match node := place.node:
        case ast.Compare(ops=[op]) if type(op) in BOUNDARIES:
            yield like(node, ops=[BOUNDARIES[type(op)]()])
        case ast.Slice():
            for bound in ("lower", "upper"):
                value = getattr(node, bound)
                if value is not None and whole_number(value) is None:
                    yield from (like(node, **{bound: other}) for other in beside(value))
        case ast.Call(args=[*first, last]) if called(node) in ("range", "arange") and whole_number(last) is None:
            yield from (like(node, args=[*first, other]) for other in beside(last))
    value = whole_number(node)
    if value is not None and not place.is_axis:
        yield number(value + 1)
        yield number(value - 1)


def missing_terms(place: Place) -> Iterator[ast.AST]:
    """An operand, a part, a keyword argument, a call or a statement left out."""
    match node := place.node:
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.BitAnd() | ast.BitOr(), left=left, right=right):
            yield left
            yield right
        case ast.BinOp(op=ast.Div() | ast.FloorDiv() | ast.Mod() | ast.Pow(), left=left):
            yield left
        case ast.BoolOp(values=values):
            yield from values
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.Call(args=args, keywords=keywords):
            droppable = [i for i, keyword in enumerate(keywords) if keyword.arg not in NOT_SEEN]
            yield from (like(node, keywords=without(keywords, i)) for i in droppable)
            if called(node) in REMOVABLE or calls_a_part(node):
                yield from inputs(node)
            if called(node) in ("cat", "stack") and args and isinstance(args[0], ast.List):
                fewer = (like(args[0], elts=without(args[0].elts, i)) for i in range(len(args[0].elts)))
                yield from (like(node, args=[few, *args[1:]]) for few in fewer)
        case ast.Expr() | ast.AugAssign() | ast.If():
            yield ast.Pass()
        case ast.Assign(targets=targets, value=value):  # of a name that has a value before it
            read = {part.id for part in ast.walk(value) if isinstance(part, ast.Name)}
            set_here = {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
            if set_here & read and all(isinstance(target, ast.Name | ast.Tuple) for target in targets):
                yield ast.Pass()


def constants(place: Place) -> Iterator[ast.AST]:
    """Twice and half of a number, a finite number in place of infinity, True for False."""
    match place.node:
        case ast.Constant(value=bool(flag)) if getattr(place.parent, "arg", None) != "keepdim":
            yield ast.Constant(not flag)
        case ast.Constant(value=float(value)):
            yield from (ast.Constant(other) for other in ([2 * value, value / 2] if value else [1.0]))
        case ast.Attribute(attr="inf") | ast.Call(func=ast.Name(id="float"), args=[ast.Constant(value="inf" | "-inf")]):
            yield ast.Constant(1.0)


KINDS: dict[str, Callable[[Place], Iterator[ast.AST]]] = {
    "operators": operators,
    "axes": axes,
    "signs": signs,
    "off by one": off_by_one,
    "missing terms": missing_terms,
    "constants": constants,
}
