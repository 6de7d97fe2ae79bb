"""A copy keeps its fingerprint under new names; whoever wrote something else has another one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from memcourse.course.answers import collect, read
from memcourse.course.checks import CHAPTERS, exercises, find
from memcourse.course.classroom import similarity
from memcourse.course.classroom.results import Graded
from memcourse.course.statements import Definition

HERE = Path(__file__).parent
ORIGINAL = """
import math
import torch.nn.functional as F
from torch import Tensor, nn

SHARPNESS = 2.0


def scores(query: Tensor, key: Tensor, *, scale: float = 1.0) -> Tensor:
    # every query with every key
    return query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1]) * scale


class Layer(nn.Module):
    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.mixing = nn.Linear(d_model, d_model, bias=False)

    def _mixed(self, x: Tensor) -> Tensor:
        '''One of several.'''
        return self.mixing(x)

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for i, row in enumerate(x):
            weights = F.softmax(scores(row, x, scale=SHARPNESS), dim=-1)
            rows.append([w for w in weights] if i else weights)
        return self._mixed(rows)
"""
RENAMED = '''
import torch
from math import sqrt


class Layer(torch.nn.Module):
    """All my own work."""

    def __init__(self, width):
        super().__init__()
        self.out = torch.nn.Linear(width, width, bias=False)

    def project(self, tokens):
        return self.out(tokens)

    def forward(self, tokens):
        pass
        found: list = []
        for number, t in enumerate(tokens):
            a = torch.nn.functional.softmax(similarity_of(t, tokens, factor=MUCH), dim=-1)
            found.append([one for one in a] if number else a)
        return self.project(found)


MUCH = 2.0
def similarity_of(a, b, *, factor=1.0): return a @ b.transpose(-2, -1) / sqrt(a.shape[-1]) * factor
'''


def fingerprint(source: str, name: str = "Layer") -> str:
    return similarity.fingerprint(collect([source]).closure(name), name)


def test_a_renamed_copy_is_found():
    assert fingerprint(ORIGINAL) == fingerprint(RENAMED) != ""
    assert int(fingerprint(ORIGINAL).partition("-")[0]) > similarity.SHORT


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("dim=-1", "dim=0"),
        ("SHARPNESS = 2.0", "SHARPNESS = 3.0"),
        ("F.softmax", "F.log_softmax"),
        ("self.mixing(x)", "self.mixing(x) + x"),
        ("query @ key", "key @ query"),
        ("scores(row, x,", "scores(x, row,"),
        ("bias=False", "bias=True"),
    ],
)
def test_whatever_computes_something_else_has_another_tree(old, new):
    assert ORIGINAL.count(old) == 1
    assert fingerprint(ORIGINAL) != fingerprint(ORIGINAL.replace(old, new))


def test_two_variables_are_not_taken_for_one():
    one = "def f(a, b):\n    c = a\n    return c - b"
    other = "def f(a, b):\n    c = b\n    return c - b"
    assert fingerprint(one, "f") != fingerprint(other, "f")


def test_a_nonlocal_name_is_the_outer_one():
    source = "def f():\n    a = 1\n    b = 2\n    def g():\n        nonlocal a\n        a = 3\n    g()\n    return a, b"
    other = source.replace("nonlocal a\n        a = 3", "nonlocal b\n        b = 3")
    assert fingerprint(source, "f") != fingerprint(other, "f")


def test_names_in_different_functions_have_nothing_to_do_with_each_other():
    same = "def g(x):\n    return x\n\ndef f(x):\n    return x, [g(x) for x in range(3)]"
    different = "def g(u):\n    return u\n\ndef f(v):\n    return v, [g(w) for w in range(3)]"
    assert fingerprint(same, "f") == fingerprint(different, "f")


def test_reordered_statements_are_not_seen_through():
    """A limit that the page names: telling which order matters would take running the code."""
    one = "def f(x):\n    a = x + 1\n    b = x - 1\n    return a * b"
    other = "def f(x):\n    b = x - 1\n    a = x + 1\n    return a * b"
    assert fingerprint(one, "f") != fingerprint(other, "f")


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    match x:\n        case [first, *rest]:\n            return rest\n        case 1 as y: y",
        "def f(x):\n    try:\n        return x()\n    except ValueError as error:\n        return error",
        "def f(x):\n    total = 0\n    def add(y):\n        nonlocal total\n        total += y\n    return add(x)",
        "def f(x, *more, key=lambda y: y, **rest):\n    return (z := key(x)), z, more, rest",
        "async def f(x):\n    async with x as y:\n        return {a: b async for a, b in y}",
        "f = lambda x: x + 1",
        "a, b = 1, 2\ndef f(x=a):\n    global c\n    import os\n    return os.sep, b, x",
        "from typing import NamedTuple\nclass f(NamedTuple):\n    a: int\n    b: int = 2",
    ],
)
def test_every_kind_of_statement_can_be_read(source):
    found = fingerprint(source, "f")
    assert found and found == fingerprint(ast.unparse(ast.parse(source)), "f")


def test_fields_of_a_class_are_more_than_type_hints():
    one = "from typing import NamedTuple\nclass f(NamedTuple):\n    a: int\n    b: float"
    assert fingerprint(one, "f") == fingerprint(one.replace("float", "str"), "f")
    assert fingerprint(one, "f") != fingerprint(one + "\n    c: int", "f")


def test_source_that_is_too_deep_has_none():
    deep = "def f(x):\n    return " + "+".join(["x"] * 3000)
    assert similarity.fingerprint([Definition(("f",), deep, 1, 1)], "f") == ""


# ---- a class ----

EXERCISE = find("1.5")  # its answer is long enough to be compared


def graded(learner: str, source: str, exercise: str = EXERCISE.id) -> Graded:
    name = find(exercise).name
    found = {exercise: similarity.fingerprint(collect([source]).closure(name), name)}
    notebook = f"{learner}.ipynb"
    return Graded(learner, "01_attention", notebook, None, (), 0, 0, 0, "", "", None, 0.0, fingerprints=found)


LONG = f"""
def {EXERCISE.name}(query, key, value, window):
    T = query.shape[0]
    rows = []
    for t in range(T):
        first = max(0, t - window + 1)
        scores = query[t] @ key[first : t + 1].T / query.shape[-1] ** 0.5
        weights = scores.softmax(-1)
        rows.append(weights @ value[first : t + 1])
    return torch.stack(rows)
"""


def test_learners_with_one_tree_are_named_together():
    renamed = LONG.replace("rows", "out").replace("weights", "w").replace("first", "start")
    other = LONG.replace("rows.append(weights @", "rows.append(weights.detach() @")
    results = [graded("cy", other), graded("bo", renamed), graded("ada", LONG), graded("ada", LONG)]
    (match,) = similarity.same_trees(results)
    assert (match.exercise, match.learners) == (EXERCISE.id, ("ada", "bo"))
    assert match.nodes >= similarity.SHORT


def test_short_answers_agree_by_chance():
    short = "def attention_weights(query, key):\n    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)"
    assert similarity.same_trees([graded("ada", short, "1.2"), graded("bo", short, "1.2")]) == []


def test_an_ordinary_answer_of_one_line_more_is_seen():
    """The answers of chapter 02 are short; one that a copy shares with nobody else is still long enough."""
    answer = """
def add(query, key, value, query_next):
    scores = query @ key.transpose(-2, -1)
    scaled = scores / math.sqrt(query.shape[-1])
    weights = torch.softmax(scaled, dim=-1)
    found = weights @ value
    return found
"""
    nodes = int(fingerprint(answer, "add").partition("-")[0])
    assert similarity.SHORT <= nodes < 80
    assert len(similarity.same_trees([graded(name, answer.replace("add", "attend"), "1.3") for name in "ab"])) == 1


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_no_solution_and_no_stub_is_reported(chapter):
    for definitions in definitions_handed_out(chapter):
        prints = similarity.fingerprints(chapter, definitions)
        learners = [
            Graded(name, chapter, name, None, (), 0, 0, 0, "", "", None, 0.0, fingerprints=prints) for name in "ab"
        ]
        assert similarity.same_trees(learners) == []


def definitions_handed_out(chapter):
    return [collect(read(similarity.solution(chapter)).cells), *(collect([e.stub]) for e in exercises(chapter))]


def test_the_stub_and_the_solution_are_nobodys_copy(monkeypatch):
    longest = find("1.4")
    assert similarity.same_trees([graded(name, longest.stub, "1.4") for name in ("ada", "bo")]) == []
    (stub,) = set(graded("ada", longest.stub, "1.4").fingerprints.values())
    assert int(stub.partition("-")[0]) >= similarity.SHORT, "the stub is left out for what it is, not for its length"
    monkeypatch.setattr(similarity, "given", lambda chapter: frozenset())
    assert len(similarity.same_trees([graded(name, longest.stub, "1.4") for name in ("ada", "bo")])) == 1


def test_the_course_knows_what_it_hands_out():
    asked = [exercise for exercise in exercises("01_attention") if exercise.asks_for_code]
    solutions = collect(read(similarity.solution("01_attention")).cells)
    for exercise in asked:
        for source in (solutions, collect([exercise.stub])):
            print_ = similarity.fingerprint(source.closure(exercise.name), exercise.name)
            assert print_ in similarity.given("01_attention")


@pytest.mark.parametrize("slug", CHAPTERS.values())
def test_right_answers_in_different_styles_are_different(slug):
    source = (HERE / "correct_answers" / f"{slug}.py").read_text()
    definitions = collect([source])
    for id, names in named_answers(source).items():
        found = [similarity.fingerprint(definitions.closure(name), name) for name in names if name in definitions]
        assert len(set(found)) == len(found), id


def named_answers(source: str) -> dict[str, list[str]]:
    """Exercise id -> the functions and classes that ANSWERS names."""
    (answers,) = [node.value for node in ast.parse(source).body if "ANSWERS" in ast.unparse(node).partition("=")[0]]
    assert isinstance(answers, ast.Dict)
    return {
        ast.literal_eval(key): [ast.unparse(one) for one in value.elts]
        for key, value in zip(answers.keys, answers.values, strict=True)
    }
