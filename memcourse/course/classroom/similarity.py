"""Which submissions hold the same code, under whatever names?

An answer is the definitions that it leans on. Its canonical form keeps what they do and drops how they are
written down: no comments, docstrings, type hints or positions; arguments, variables, helpers and attributes are
numbered in the order in which they appear; helpers follow in the order in which the answer reaches them; `F.softmax`
and `torch.nn.functional.softmax` are one name. Renaming, another layout and other imports therefore hide no copy;
reordered statements do, and so does any change to what is computed.

The same tree is a reason to look, not proof. Answers that most people would write alike are left out: trees of
fewer than `SHORT` nodes, the untouched stub, and the course's own solution where solutions/ lies beside the package.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from memcourse.course.answers import Definitions, collect, read
from memcourse.course.checks import exercises
from memcourse.course.classroom.results import Graded
from memcourse.course.start import repository
from memcourse.course.statements import DOES_NOT_PARSE, Definition

SHORT = 40  # nodes
Function = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass(frozen=True)
class Match:
    """Learners whose answers to one exercise have the same tree, and how many nodes it has."""

    chapter: str
    exercise: str
    learners: tuple[str, ...]
    nodes: int


def fingerprint(closure: Sequence[Definition], name: str) -> str:
    """ "142-9f86d0...": the nodes of the answer's canonical tree, and its SHA-256. Nothing is run.

    Empty where the source is nested too deeply to be read. Equal for equal trees under one version of Python.
    """
    try:
        tree = _Canonical(closure).tree(name)
        text = ast.dump(tree)
    except DOES_NOT_PARSE:
        return ""
    nodes = sum(not isinstance(node, ast.expr_context) for node in ast.walk(tree))
    return f"{nodes}-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"


def fingerprints(chapter: str, definitions: Definitions) -> dict[str, str]:
    """Exercise id -> fingerprint, of every answer that is code and that a notebook defines."""
    return {
        exercise.id: fingerprint(definitions.closure(exercise.name), exercise.name)
        for exercise in exercises(chapter)
        if exercise.asks_for_code and exercise.name in definitions
    }


def same_trees(results: Iterable[Graded]) -> list[Match]:
    """Learners with the same tree, by exercise in the order of the course, the longest tree first."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for graded in results:
        for exercise, print_ in graded.fingerprints.items():
            if print_ and _nodes(print_) >= SHORT and print_ not in given(graded.chapter):
                found.setdefault((graded.chapter, exercise, print_), set()).add(graded.learner)
    matches = [
        Match(chapter, exercise, tuple(sorted(learners)), _nodes(print_))
        for (chapter, exercise, print_), learners in found.items()
        if len(learners) > 1
    ]
    return sorted(matches, key=lambda match: (match.chapter, match.exercise, -match.nodes, match.learners))


@cache
def given(chapter: str) -> frozenset[str]:
    """The fingerprints of what the course itself hands out: the stubs, and the solutions where they are at hand."""
    handed_out = [collect([exercise.stub]) for exercise in exercises(chapter)]
    if solution(chapter).is_file():
        handed_out.append(collect(read(solution(chapter)).cells))
    return frozenset(print_ for definitions in handed_out for print_ in fingerprints(chapter, definitions).values())


def solution(chapter: str) -> Path:
    """The course's own answers, which come with a clone and not with the package alone."""
    return repository() / "solutions" / f"{chapter}.ipynb"


def _nodes(print_: str) -> int:
    return int(print_.partition("-")[0])


class _Canonical(ast.NodeTransformer):
    """Rewrites the definitions of one answer, beginning with the answer itself."""

    def __init__(self, closure: Sequence[Definition]) -> None:
        self.statements: dict[str, ast.stmt] = {}
        self.imported: dict[str, str] = {}
        self.members: dict[str, str] = {}  # attributes and methods that the answer itself makes
        self.reached: set[ast.stmt] = set()
        self.waiting: list[ast.stmt] = []
        self.count = 0
        for definition in closure:
            (statement,) = ast.parse(definition.source).body
            self._note(statement)
            if not isinstance(statement, ast.Import | ast.ImportFrom):
                self.statements |= dict.fromkeys(definition.names, statement)
        self.scopes = [dict.fromkeys(self.statements, "")]  # name -> its number, from its first appearance on

    def tree(self, name: str) -> ast.Module:
        self._name(name)
        return ast.Module([self.visit(statement) for statement in self.waiting], [])  # it grows as it is read

    def _note(self, statement: ast.stmt) -> None:
        """Imports and own attributes, wherever they stand in a statement."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    first = alias.name.partition(".")[0]
                    self.imported[alias.asname or first] = alias.name if alias.asname else first
            elif isinstance(node, ast.ImportFrom):
                home = "." * node.level + (node.module or "")
                self.imported |= {alias.asname or alias.name: f"{home}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                self.members[node.attr] = ""
            elif isinstance(node, ast.ClassDef):
                methods = [part.name for part in node.body if isinstance(part, Function)]
                self.members |= dict.fromkeys([name for name in methods if not name.startswith("__")], "")

    # ---- names ----

    def _name(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                if scope is self.scopes[0] and self.statements[name] not in self.reached:
                    self.reached.add(self.statements[name])
                    self.waiting.append(self.statements[name])
                return self._number(scope, name)
        return self.imported.get(name, name)

    def _member(self, name: str) -> str:
        return self._number(self.members, name) if name in self.members else name

    def _number(self, names: dict[str, str], name: str) -> str:
        if not names[name]:
            self.count += 1
            names[name] = f"_{self.count}"
        return names[name]

    def _is_bound(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and any(node.id in scope for scope in self.scopes)

    def _path(self, node: ast.expr) -> str | None:
        """The full name of something that was imported."""
        if isinstance(node, ast.Attribute):
            home = self._path(node.value)
            return home and f"{home}.{node.attr}"
        return self.imported.get(node.id) if isinstance(node, ast.Name) and not self._is_bound(node) else None

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self._name(node.id), node.ctx)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if path := self._path(node):
            return ast.Name(path, node.ctx)
        return ast.Attribute(self.visit(node.value), self._member(node.attr), node.ctx)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """The answer's own helpers may call their arguments what they like."""
        if self._is_bound(node.func) or (isinstance(node.func, ast.Attribute) and node.func.attr in self.members):
            for keyword in node.keywords:
                keyword.arg = keyword.arg and "_"
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.arg:
        return ast.arg(self._name(node.arg))

    def _named(self, node: Any) -> ast.AST:
        node.name = node.name and self._name(node.name)
        return self.generic_visit(node)

    visit_ExceptHandler = visit_MatchAs = visit_MatchStar = _named

    def _declared(self, node: Any) -> ast.AST:
        node.names = [self._name(name) for name in node.names]
        return node

    visit_Global = visit_Nonlocal = _declared

    # ---- what does nothing ----

    def _dropped(self, node: ast.AST) -> None:
        return None

    visit_Pass = visit_Import = visit_ImportFrom = _dropped

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        return self.visit(ast.Assign([node.target], node.value)) if node.value else None

    # ---- what opens a scope ----

    def _function(self, node: Any) -> ast.AST:
        node.name, node.returns = self._name(node.name), None
        with self._scope(_arguments(node.args) | _bound(node.body)):
            return self.generic_visit(node)

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        with self._scope(_arguments(node.args)):
            return self.generic_visit(node)

    def _comprehension(self, node: Any) -> ast.AST:
        with self._scope(_bound([part.target for part in node.generators])):
            return self.generic_visit(node)

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _comprehension

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.name = self._name(node.name)
        for part in node.body:
            if isinstance(part, Function):
                part.name = self._member(part.name)
        # A field without a value is more than a type hint.
        node.body = [
            ast.Expr(part.target) if isinstance(part, ast.AnnAssign) and part.value is None else part
            for part in node.body
        ]
        return self.generic_visit(node)

    @contextmanager
    def _scope(self, names: set[str]) -> Iterator[None]:
        self.scopes.append(dict.fromkeys(names, ""))
        yield
        self.scopes.pop()


def _arguments(arguments: ast.arguments) -> set[str]:
    return {node.arg for node in ast.walk(arguments) if isinstance(node, ast.arg)}


def _bound(nodes: Sequence[ast.AST]) -> set[str]:
    """The names that these statements or targets bind in their own scope."""
    names: set[str] = set()
    elsewhere: set[str] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if isinstance(node, Function | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            elsewhere.update(node.names)
        elif isinstance(node, COMPREHENSIONS):
            names.update(part.target.id for part in ast.walk(node) if isinstance(part, ast.NamedExpr))
        elif not isinstance(node, ast.Lambda):
            if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                names.add(node.id)
            elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
                names.add(node.name)
            waiting += ast.iter_child_nodes(node)
    return names - elsewhere
