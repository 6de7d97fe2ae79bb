"""The modules of the library that an answer cannot import when it is graded: those that its chapter teaches."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import memcourse
from memcourse.course.checks import CHAPTERS, chapter_of
from memcourse.course.exercise import Exercise
from memcourse.course.statements import Definition

TAUGHT_WITH = {"lm2": ("rmt",), "infini_attention": ("memorizing",)}  # chapters that teach two modules


def left_out(exercise: Exercise) -> tuple[str, ...]:
    """("attention",) for an exercise of that chapter; none where the exercise is to use the library."""
    if exercise.kind == "use the library":
        return ()
    slug = CHAPTERS[chapter_of(exercise)]
    taught = (slug, *TAUGHT_WITH.get(slug, ()))
    return tuple(name for name in taught if (Path(memcourse.__file__).parent / f"{name}.py").exists())


def imported_all_the_same(exercise: Exercise, closure: Sequence[Definition]) -> tuple[str, ...]:
    """Those of them that an answer imports."""
    imported = {module for definition in closure for module in _modules(ast.parse(definition.source))}
    return tuple(module for module in left_out(exercise) if module in imported)


def _modules(tree: ast.AST) -> Iterator[str]:
    """The modules of the library that are imported: "attention" for each of the three ways to do so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("memcourse."))
        elif isinstance(node, ast.ImportFrom) and node.module == "memcourse":
            yield from (memcourse._HOME.get(name.name, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("memcourse."):
            yield str(node.module).split(".")[1]
