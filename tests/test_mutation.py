"""What each kind of mutant changes, which mutants are chosen, and what a process that ends badly counts as."""

import ast
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest
from mutants import mutation, report, run
from mutants.mutation import KINDS, all_mutants, choose, mutants
from mutants.report import Explanation, Found, Survivor

from memcourse.course.checks import find

HERE = Path(__file__).parent
LAYER = '''
import torch

class Layer:
    """A docstring with 7 and x + y."""

    def forward(self, x: "7 * d", mask, *, k: int = 3) -> "d + 1":
        """Another: -1."""
        if k < 0:
            raise ValueError(f"k is {k + 1}, and should be 0 or more")
        S = x.shape[1]
        weights = (x @ x.mT / S ** 0.5).masked_fill(~mask[:, None], -torch.inf).softmax(dim=-1)
        total = weights.sum(dim=1, keepdim=True, dtype=torch.float64)
        for t in range(S):
            total = total + self.norm(x[:, :t]) - 2
        self.count += 1
        return torch.cat([total, x], dim=1) if k == 3 and S > 1 else total
'''


@pytest.mark.parametrize(
    ("kind", "line", "changed"),
    [
        ("operators", "a + b", "a - b"),
        ("operators", "a / b", "a * b"),
        ("operators", "a / b", "b / a"),
        ("operators", "a @ b", "a * b"),
        ("operators", "a ** b", "a * b"),
        ("operators", "a < b", "a >= b"),
        ("operators", "a and b", "a or b"),
        ("operators", "a & b", "a | b"),
        ("operators", "a.sum()", "a.mean()"),
        ("operators", "max(a, b)", "min(a, b)"),
        ("axes", "a.softmax(dim=-1)", "a.softmax(dim=-2)"),
        ("axes", "a.sum(0)", "a.sum(1)"),
        ("axes", "a.transpose(1, 2)", "a.transpose(0, 2)"),
        ("axes", "a.transpose(1, 2)", "a"),
        ("axes", "a.mT", "a"),
        ("axes", "a.sum(b, keepdim=True)", "a.sum(b, keepdim=False)"),
        ("axes", "a.shape[-1]", "a.shape[-2]"),
        ("axes", "a[:, None]", "a[None, :]"),
        ("signs", "-a", "a"),
        ("signs", "~a", "a"),
        ("signs", "a * b", "-(a * b)"),
        ("signs", "a + b", "-a + b"),
        ("signs", "a.exp()", "(-a).exp()"),
        ("signs", "torch.exp(a)", "torch.exp(-a)"),
        ("signs", "a if b else c", "a if not b else c"),
        ("off by one", "a[3]", "a[4]"),
        ("off by one", "a[:-1]", "a[:-2]"),
        ("off by one", "a[b:]", "a[b + 1:]"),
        ("off by one", "range(a)", "range(a - 1)"),
        ("off by one", "a < b", "a <= b"),
        ("missing terms", "a + b", "b"),
        ("missing terms", "1 - a", "a"),
        ("missing terms", "a / b", "a"),
        ("missing terms", "a.softmax(dim=-1)", "a"),
        ("missing terms", "torch.softmax(a, b)", "a"),
        ("missing terms", "a.clamp(min=b)", "a"),
        ("missing terms", "a.masked_fill(b, c)", "a"),
        ("missing terms", "a.detach()", "a"),
        ("missing terms", "self.norm(a)", "a"),
        ("missing terms", "min(a, b)", "b"),
        ("missing terms", "f(a, dtype=b)", "f(a)"),
        ("missing terms", "torch.cat([a, b])", "torch.cat([a])"),
        ("constants", "a * 0.5", "a * 1.0"),
        ("constants", "a.clamp(min=0.0)", "a.clamp(min=1.0)"),
        ("constants", "f(a, False)", "f(a, True)"),
        ("constants", "a.masked_fill(b, torch.inf)", "a.masked_fill(b, 1.0)"),
    ],
)
def test_what_a_kind_changes(kind, line, changed):
    assert f"x = {changed}" in [mutant.now for mutant in all_mutants(f"x = {line}")[kind]]


@pytest.mark.parametrize(
    ("statement", "left_out"),
    [("f(x)", True), ("x += y", True), ("x = x + y", True), ("if x:\n    f(y)", True), ("x = y", False)],
)
def test_a_statement_is_left_out_where_what_it_sets_has_a_value_without_it(statement, left_out):
    found = all_mutants(statement)["missing terms"]
    assert ("pass" in [mutant.now for mutant in found]) == left_out


def test_what_a_check_cannot_see_is_left_alone():
    every = [mutant for kind in all_mutants(LAYER).values() for mutant in kind]
    for text in ("import torch", "A docstring with 7 and x + y.", "Another: -1.", "7 * d", "d + 1", "{k + 1}"):
        assert all(text in mutant.source for mutant in every if mutant.now != "pass")
    assert not any("device" in mutant.was for mutant in all_mutants("x = f(device=y + 1)")["missing terms"])


def test_every_mutant_is_new_and_parses():
    every = [mutant for kind in all_mutants(LAYER).values() for mutant in kind]
    trees = [ast.dump(ast.parse(mutant.source)) for mutant in every]
    assert len({*trees, ast.dump(ast.parse(LAYER))}) == len(every) + 1
    assert all(mutant.was != mutant.now for mutant in every)
    assert all(mutant.was.splitlines()[0] in ast.unparse(ast.parse(LAYER)) for mutant in every)


def test_at_most_25_evenly_over_the_kinds_and_over_the_source():
    by_kind = {kind: [m for m in mutants(LAYER) if m.kind == kind] for kind in KINDS}
    there_are = {kind: len(found) for kind, found in all_mutants(LAYER).items()}
    assert sum(map(len, by_kind.values())) == mutation.AT_MOST == 25
    most = max(map(len, by_kind.values()))
    for kind, found in by_kind.items():
        assert len(found) >= most - 1 or len(found) == there_are[kind]
    assert choose({"a": list(range(100)), "b": [0]}, 6) == {"a": [10, 30, 50, 70, 90], "b": [0]}
    assert choose({"a": [1, 2], "b": []}, 25) == {"a": [1, 2], "b": []}


def test_another_process_chooses_the_same():
    code = "import sys; from mutants.mutation import mutants; print(mutants(sys.stdin.read()))"
    environment = {**os.environ, "PYTHONPATH": str(HERE), "PYTHONHASHSEED": "7"}
    other = subprocess.run(
        [sys.executable, "-c", code], input=LAYER, env=environment, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == str(mutants(LAYER))


def endless_loop():
    while True:
        pass


def sleep():
    time.sleep(100)


def memory_hog():
    return len(bytearray(2**40))


def segfault():
    os.kill(os.getpid(), signal.SIGSEGV)


def fault():
    raise RuntimeError("the grader's own")


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (lambda: "survived", "survived"),
        (endless_loop, "late"),
        (sleep, "late"),
        (lambda: os._exit(0), "crashed"),
        (lambda: sys.exit(0), "crashed"),
        (segfault, "crashed"),
        (fault, "fault"),
    ],
)
def test_what_a_process_that_ends_badly_counts_as(work, outcome):
    start = time.perf_counter()
    assert run.in_a_process(work, seconds=0.2) == outcome
    assert time.perf_counter() - start < 10


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds the memory of a process")
def test_a_process_that_takes_all_memory_is_caught():
    assert run.in_a_process(memory_hog, seconds=2) == "crashed"


def test_the_right_answer_survives_and_a_wrong_one_is_caught():
    exercise = find("0.1")
    right = run.solution(exercise)
    assert run.check(exercise, right) == "survived"
    assert run.check(exercise, right.replace("+", "-")) == "caught"
    assert run.check(exercise, "raise RuntimeError") == "caught"


def test_every_mutant_of_an_exercise_gets_its_outcome():
    exercise = find("0.1")
    found = run.outcomes(exercise)
    assert [mutant for mutant, _ in found] == mutants(run.solution(exercise))
    assert {outcome for _, outcome in found} == {"caught"}
    blind = replace(exercise, oracle=lambda *case: -exercise.oracle(*case))
    with pytest.raises(ValueError, match="the solution of 0.1 does not pass its own check"):
        run.outcomes(blind)


@pytest.mark.parametrize(
    ("turns", "timed", "outcome"),
    [
        (["survived", "survived", "survived"], True, "survived"),
        (["slow", "slow", "slow"], True, "slow"),
        (["slow", "survived", "slow"], True, "survived"),
        (["survived", "slow", "slow"], True, "survived"),
        (["caught"], True, "caught"),
        (["late", "late"], True, "late"),
        (["crashed", "survived"], False, "survived"),
        (["survived"], False, "survived"),
    ],
)
def test_what_may_be_the_machines_doing_is_checked_again(turns, timed, outcome):
    left = iter(turns)
    assert run.verdict(lambda: next(left), timed) == outcome
    assert not list(left)


SURVIVORS = (Survivor("signs", "x = -a", "x = a"), Survivor("signs", "y = -a", "y = a", slow=True))
TRIED = {"0.1": Found("hash", 10, SURVIVORS)}


def test_a_survivor_that_nothing_explains_is_a_problem():
    (problem,) = report.problems(TRIED, [])
    assert "0.1: no check notices" in problem and "- x = -a\n+ x = a" in problem
    assert report.figures(TRIED.values()) == {"tried": 10, "caught": 9, "equivalent": 0, "share": 0.9}


def test_an_explained_survivor_is_none():
    given = [Explanation("0.1", "x = -a", "x = a", "a is 0")]
    explained = report.explained(TRIED, given)
    assert list(report.problems(explained, given)) == []
    assert report.figures(explained.values()) == {"tried": 10, "caught": 9, "equivalent": 1, "share": 1.0}


def test_an_explanation_stands_for_a_mutant_that_only_time_decides():
    given = [Explanation("0.1", s.was, s.now, "a is 0") for s in SURVIVORS]
    explained = report.explained(TRIED, given)
    assert list(report.problems(explained, given)) == []
    assert report.figures(explained.values())["equivalent"] == 2


@pytest.mark.parametrize("stale", [("0.1", "x = -a", "x = b"), ("9.9", "x = -a", "x = a")])
def test_an_explanation_of_nothing_is_a_problem(stale):
    given = [Explanation("0.1", "x = -a", "x = a", "a is 0"), Explanation(*stale, "why not")]
    (problem,) = report.problems(report.explained(TRIED, given), given)
    assert f"{stale[0]}: equivalent.toml explains a mutant that does not survive" in problem


def test_an_explanation_needs_its_parts(tmp_path):
    path = tmp_path / "equivalent.toml"
    path.write_text(
        dedent("""\
        [["1.2"]]
        was = "a"
        now = "b"
    """)
    )
    with pytest.raises(ValueError, match=r"an entry of 1\.2 needs `was`, `now` and `why`"):
        report.explanations(path)


def test_a_report_is_read_as_it_was_written():
    assert report.load(report.dump(TRIED)) == TRIED
