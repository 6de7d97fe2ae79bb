"""The engine: four outcomes, the order of the stages, what a report says, and that nothing outside is disturbed."""

import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from memcourse.course import engine, words
from memcourse.course.exercise import Exercise, Mistake, Report, Wrong

ROOT = Path(__file__).resolve().parents[1]
OVER_QUERIES = "this looks like a softmax over the queries: each column sums to 1, and each row should"


def cases():
    generator = torch.Generator().manual_seed(0)
    sizes = [(2, 3, 5), (7, 5, 3)]
    return [(torch.randn(T, d, generator=generator), torch.randn(S, d, generator=generator)) for T, S, d in sizes]


def oracle(query, key):
    weights = np.zeros((len(query), len(key)))
    for t, q in enumerate(query):
        scores = np.array([sum(q * k) / np.sqrt(len(q)) for k in key])
        weights[t] = np.exp(scores) / np.exp(scores).sum()
    return weights


def right(query, key):
    return torch.softmax(query @ key.T / query.shape[1] ** 0.5, dim=-1)


def over_queries(query, key):
    return torch.softmax(query @ key.T / query.shape[1] ** 0.5, dim=0)


def no_scale(query, key):
    return torch.softmax(query @ key.T, dim=-1)


def detached(query, key):
    return right(query, key).detach()


def probe(answer, query, key):
    return answer(query, key)


SOFTMAX = Exercise(
    id="0.1",
    name="attention_weights",
    title="The address",
    kind="write the equation",
    points=2,
    minutes=5,
    difficulty="easy",
    question="Write the softmax.",
    stub="def attention_weights(query, key):\n    raise NotImplementedError",
    hints=("one", "two", "three"),
    cases=cases,
    probe=probe,
    oracle=oracle,
    mistakes=(
        Mistake(OVER_QUERIES, over_queries),
        Mistake("the scale is missing", no_scale),
        Mistake("the result is detached", detached),
    ),
)


def variant(**changes):
    return dataclasses.replace(SOFTMAX, **changes)


def stopped_at(report):
    """The stage that a wrong answer fails at."""
    assert report.outcome == "wrong" and report.points == 0
    return report.message.split(":")[0]


# passed and not attempted


def test_a_right_answer_passes_every_stage_in_order():
    report = engine.run(SOFTMAX, right)
    assert report == Report(
        "0.1", "attention_weights", "passed", 2, 2, ("type", "shape", "dtype", "finite", "values", "gradient")
    )
    assert str(report).splitlines() == [
        "0.1 attention_weights: checks passed (2 of 2 points)",
        "  passed: type, shape, dtype, finite, values, gradient",
    ]


def test_a_report_survives_json():
    report = engine.run(SOFTMAX, over_queries)
    assert report.mistake == OVER_QUERIES
    assert Report.from_json(report.to_json()) == report


def stub(query, key):
    raise NotImplementedError


class StubOfAClass:
    def __init__(self):
        raise NotImplementedError


@pytest.mark.parametrize("answer", [None, ..., stub, StubOfAClass])
def test_not_attempted(answer):
    exercise = variant(name="StubOfAClass", probe=lambda a, *_: a()) if answer is StubOfAClass else SOFTMAX
    report = engine.run(exercise, answer)
    assert (report.outcome, report.points, report.stages, report.message) == ("not attempted", 0, (), "")
    assert len(str(report).splitlines()) == 1


def test_an_answer_that_leans_on_a_stub_is_not_attempted_and_says_which():
    report = engine.run(SOFTMAX, lambda query, key: stub(query, key))
    assert report.outcome == "not attempted"
    assert report.message == "it calls stub, which still raises NotImplementedError"


def test_torchs_own_not_implemented_is_a_crash():
    def answer(query, key):
        return torch.zeros(2, dtype=torch.complex64) % 2

    with pytest.raises(NotImplementedError):
        answer(1, 1)  # else this test says nothing
    assert engine.run(SOFTMAX, answer).outcome == "crashed"


def test_a_branch_left_open_is_a_crash():
    def answer(query, key):
        if len(query) > 2:
            raise NotImplementedError
        return right(query, key)

    assert engine.run(SOFTMAX, answer).outcome == "crashed"


# crashed


def test_a_crash_shows_the_learners_own_line():
    def answer(query, key):
        scores = torch.matmul(query, key)
        return scores

    report = engine.run(SOFTMAX, answer)
    line = answer.__code__.co_firstlineno + 1
    assert report.outcome == "crashed" and report.points == 0
    where, source, error, used = report.message.splitlines()
    assert where.startswith(f"line {line} of test_engine.py, in ") and where.endswith("answer:")
    assert source == "    scores = torch.matmul(query, key)"
    assert error == "RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 3x5)"
    assert used == "With query of shape (2, 5) and key of shape (3, 5)"


def test_a_crash_inside_a_library_shows_the_line_that_called_it():
    def answer(query, key):
        return torch.nn.functional.cross_entropy(query, key[0, 0])

    assert "return torch.nn.functional.cross_entropy(query, key[0, 0])" in engine.run(SOFTMAX, answer).message


def test_a_crash_on_a_later_case_shows_that_case():
    def answer(query, key):
        assert len(query) == 2, "only two queries"
        return right(query, key)

    message = engine.run(SOFTMAX, answer).message
    assert "AssertionError: only two queries" in message
    assert message.endswith("With query of shape (7, 3) and key of shape (5, 3)")


@pytest.mark.parametrize("answer", [lambda query: query, lambda: 1, torch.softmax])
def test_an_answer_that_cannot_be_called_so(answer):
    report = engine.run(SOFTMAX, answer)
    assert report.outcome == "crashed"
    assert report.message.startswith("before any line of yours ran:\nTypeError: ")
    assert report.message.endswith("Does it take the arguments that the stub takes, in the same order?")


@pytest.mark.parametrize(
    "error", [SystemExit(3), GeneratorExit(), pytest.skip.Exception("no"), pytest.exit.Exception("no")]
)
def test_whatever_an_answer_raises_is_a_crash(error):
    def answer(query, key):
        raise error

    report = engine.run(SOFTMAX, answer)
    assert report.outcome == "crashed" and "raise error" in report.message


@pytest.mark.parametrize("where", ["values", "gradient", "property"])
def test_ctrl_c_passes_through(where):
    def answer(query, key):
        if where == "values" or query.requires_grad:
            raise KeyboardInterrupt
        return right(query, key)

    def interrupted(answer):
        raise KeyboardInterrupt

    exercise = variant(properties=(interrupted,), gradient=False) if where == "property" else SOFTMAX
    with pytest.raises(KeyboardInterrupt):
        engine.run(exercise, answer)


def test_a_fault_of_the_course_is_not_taken_for_an_answer(monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("memcourse.course.compare.check_values", broken)
    with pytest.raises(ZeroDivisionError):
        engine.run(SOFTMAX, right)


# wrong, in this order


@pytest.mark.parametrize(
    ("answer", "stage", "says"),
    [
        (3, "type", "attention_weights should be a function or a class; found the int 3"),
        (torch.zeros(2, 3), "type", 'without calling it: check("0.1", attention_weights)'),
        (lambda q, k: None, "type", "is a `return` missing?"),
        (lambda q, k: right(q, k).numpy(), "type", "found a NumPy array"),
        (lambda q, k: right(q, k).T.double() * torch.nan, "shape", "should have shape (2, 3); found (3, 2)"),
        (lambda q, k: right(q, k)[:1], "shape", "found (1, 3)"),
        (lambda q, k: right(q, k)[:, :1], "shape", "found (2, 1)"),
        (lambda q, k: right(q, k).double() * torch.nan, "dtype", "should be torch.float32; found torch.float64"),
        (lambda q, k: right(q, k) * torch.nan, "finite", "row 0, column 0: expected"),
        (lambda q, k: right(q, k) + 1e-3, "values", "6 of 6 entries differ"),
        (lambda q, k: 0.5 * right(q, k).detach() + 0.5 * right(q, k), "gradient", "with respect to `query`, row 0"),
    ],
)
def test_stages_stop_at_the_first_failure(answer, stage, says):
    report = engine.run(SOFTMAX, answer)
    order = ("type", "shape", "dtype", "finite", "values", "gradient")
    assert stopped_at(report) == stage
    assert report.stages == order[: order.index(stage)]
    assert says in report.message
    assert report.mistake is None
    assert str(report).endswith('\n  Stuck? hint("0.1")')


def test_the_smallest_failing_case_is_shown():
    def only_large(query, key):
        return right(query, key) + (0.1 if len(query) == 7 else 0.0)

    assert "With query = [[" in engine.run(SOFTMAX, lambda q, k: right(q, k) + 0.1).message
    assert "With query of shape (7, 3)" in engine.run(SOFTMAX, only_large).message


def test_small_arguments_are_printed_as_numbers():
    exercise = variant(cases=lambda: [(torch.tensor([[1.0, -2.5]]), torch.tensor([[0.125, 3.0], [1.0, 0.0]]))])
    message = engine.run(exercise, lambda q, k: right(q, k) + 0.1).message
    assert "With query = [[1, -2.5]]\n     key = [[0.125, 3], [1, 0]]" in message


def test_an_argument_changed_in_place_is_named():
    def answer(query, key):
        query /= query.shape[1] ** 0.5
        return torch.softmax(query @ key.T, dim=-1)

    report = engine.run(SOFTMAX, answer)
    assert stopped_at(report) == "values" and report.stages[-1] == "finite"
    assert "your answer changes its argument `query` in place" in report.message


def test_every_use_gets_its_own_copy_of_the_case():
    made = cases()
    engine.run(variant(cases=lambda: made), lambda q, k: q.zero_() @ k.zero_().T)
    assert all(
        torch.equal(a, b) for mine, fresh in zip(made, cases(), strict=True) for a, b in zip(mine, fresh, strict=True)
    )


# gradient


def test_each_argument_that_the_gradient_does_not_reach_is_named():
    report = engine.run(SOFTMAX, lambda query, key: right(query, key.detach()))
    assert stopped_at(report) == "gradient"
    assert "the gradient does not reach `key`" in report.message


def test_an_answer_that_goes_through_numpy_is_told_so_with_its_line():
    def answer(query, key):
        return torch.from_numpy(right(query, key).numpy())

    report = engine.run(SOFTMAX, answer)
    assert stopped_at(report) == "gradient"
    assert "does not reach `query` and `key`: stay in torch, without NumPy" in report.message
    assert "return torch.from_numpy(right(query, key).numpy())" in report.message


def test_an_answer_without_any_gradient():
    assert "does not reach `query`" in engine.run(variant(mistakes=()), detached).message


def test_a_crash_on_the_way_back_is_a_crash():
    def answer(query, key):
        weights = torch.exp(query @ key.T / query.shape[1] ** 0.5)
        weights /= weights.sum(dim=-1, keepdim=True)  # exp needs its result on the way back
        return weights

    report = engine.run(SOFTMAX, answer)
    assert report.outcome == "crashed" and "modified by an inplace operation" in report.message
    assert report.stages[-1] == "values"


def masked(query, mask):
    return query.masked_fill(~mask, 0).sum(), {
        "largest": query.argmax(),
        "masked": query.masked_fill(~mask, -torch.inf),
    }


def masked_oracle(query, mask):
    shown = np.where(mask, query, -np.inf)
    return np.where(mask, query, 0.0).sum(), {"largest": query.argmax(), "masked": shown}


def test_masks_integers_tuples_and_infinities():
    query, mask = torch.tensor([[0.5, -1.0, 2.0]]), torch.tensor([[True, False, True]])
    exercise = variant(
        cases=lambda: [(query, mask)], probe=lambda a, *case: a(*case), oracle=masked_oracle, mistakes=()
    )
    assert engine.run(exercise, masked).outcome == "passed"

    def cut_off(query, mask):
        total, parts = masked(query, mask)
        return total.detach(), parts

    report = engine.run(exercise, cut_off)
    assert stopped_at(report) == "gradient" and "with respect to `query`" in report.message


def test_no_gradient_stage_where_there_is_nothing_to_differentiate():
    ints = variant(
        cases=lambda: [(torch.tensor([3, 1]),)], probe=lambda a, x: a(x), oracle=lambda x: np.sort(x), mistakes=()
    )
    assert engine.run(ints, lambda x: x.sort().values).stages == ("type", "shape", "dtype", "finite", "values")
    assert "gradient" not in engine.run(variant(gradient=False), detached).stages


def test_a_notebook_under_no_grad_is_no_obstacle():
    with torch.no_grad():
        assert engine.run(SOFTMAX, right).outcome == "passed"
    with torch.inference_mode():
        assert engine.run(SOFTMAX, right).outcome == "passed"


def test_a_notebook_whose_tensors_live_elsewhere_is_no_obstacle():
    torch.set_default_device("meta")
    try:
        assert engine.run(SOFTMAX, right).outcome == "passed"
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device(None)


# properties


def rows_sum_to_one(answer):
    sums = answer(*cases()[0]).sum(dim=1)
    if not torch.allclose(sums, torch.ones(2)):
        raise Wrong(f"row 0 sums to {sums[0]:.3f}")


def test_a_property_is_a_stage_named_after_its_function():
    exercise = variant(properties=(rows_sum_to_one,))
    assert engine.run(exercise, right).stages[-1] == "rows sum to one"
    uses = []

    def spoiled(query, key):
        uses.append(key)
        return right(query, key) * (2 if len(uses) > 3 else 1)  # two cases and the gradient, then the property

    report = engine.run(exercise, spoiled)
    assert stopped_at(report) == "rows sum to one" and report.stages[-1] == "gradient"
    assert "row 0 sums to 2.000" in report.message


def test_a_crash_in_a_property_says_what_was_being_checked():
    def one_key(answer):
        answer(*cases()[0])[5]

    report = engine.run(variant(properties=(one_key,)), right)
    assert report.outcome == "crashed" and "While checking: one key" in report.message


def test_the_probe_may_say_what_is_wrong():
    def picky(answer, query, key):
        raise Wrong("the class should inherit from nn.Module")

    report = engine.run(variant(probe=picky, mistakes=()), right)
    assert (report.outcome, report.message) == ("wrong", "type: the class should inherit from nn.Module")


# mistakes are named, and only when they are made


@pytest.mark.parametrize("mistake", SOFTMAX.mistakes, ids=lambda m: m.says)
def test_a_mistake_is_named_in_whatever_style_it_is_written(mistake):
    report = engine.run(SOFTMAX, lambda query, key: mistake.answer(query.clone(), key.clone()) * 1.0)
    assert report.mistake == mistake.says
    assert report.message.split("\n")[0].endswith(f": {mistake.says}.")


def test_nothing_is_named_that_the_answer_does_not_do_on_every_case():
    def on_the_first_case_only(query, key):
        return no_scale(query, key) if len(query) == 2 else right(query, key)

    def two_at_once(query, key):
        return torch.softmax(query @ key.T, dim=0)

    for answer in (on_the_first_case_only, two_at_once, lambda q, k: no_scale(q, k).double()):
        report = engine.run(SOFTMAX, answer)
        assert report.outcome == "wrong" and report.mistake is None


def test_a_value_mistake_is_not_named_for_a_failing_gradient():
    report = engine.run(variant(mistakes=SOFTMAX.mistakes[:2]), detached)
    assert report.mistake is None


def test_another_wrong_gradient_is_not_named():
    report = engine.run(SOFTMAX, lambda query, key: right(query.detach() * 0.5 + query * 0.5, key))
    assert stopped_at(report) == "gradient" and report.mistake is None


def test_of_several_matching_mistakes_the_first_is_named():
    doubled = variant(mistakes=(Mistake("first", no_scale), Mistake("second", no_scale)))
    assert engine.run(doubled, no_scale).mistake == "first"


def test_a_mistake_that_raises_is_named_by_the_same_error():
    def one_query_only(query, key):
        return torch.softmax(key @ query / query.shape[1] ** 0.5, dim=-1)

    exercise = variant(mistakes=(Mistake("query and key are swapped", one_query_only),))
    report = engine.run(exercise, lambda query, key: key @ query)
    assert (report.outcome, report.mistake) == ("crashed", "query and key are swapped")
    assert report.message.startswith("query and key are swapped.\nline ")
    assert engine.run(exercise, lambda query, key: query @ key).mistake is None


def test_a_mistake_that_only_a_property_tells_apart():
    spoilt = {"uses": 0}

    def property_fails(answer):
        if answer is not right:
            spoilt["uses"] += 1
            raise Wrong(f"{answer.__name__.split('_')[0]} takes {spoilt['uses']} seconds")

    def slow_one(query, key):
        return right(query, key)

    def slow_two(query, key):
        return right(query, key)

    def stale(query, key):
        return right(query, key)

    exercise = variant(properties=(property_fails,), mistakes=(Mistake("it is slow", slow_one),))
    assert engine.run(exercise, right).outcome == "passed"
    assert engine.run(exercise, slow_two).mistake == "it is slow"  # times differ, and nothing else
    assert engine.run(exercise, stale).mistake is None


def test_a_mistake_that_fails_another_property_is_not_named():
    def slow(query, key):
        return right(query, key)

    def first(answer):
        if answer is slow:
            raise Wrong("a row is off")

    def second(answer):
        raise Wrong("a row is off")

    exercise = variant(properties=(first, second), mistakes=(Mistake("it is slow", slow),))
    assert engine.run(exercise, slow).mistake == "it is slow"
    assert engine.run(exercise, right).mistake is None


# predictions

PREDICTION = variant(
    name="prediction",
    stub="prediction = None",
    cases=lambda: [()],
    probe=lambda answer: answer,
    oracle=lambda: 0.75,
    tolerance=1e-2,
    mistakes=(Mistake("the scores are not doubled", 0.5),),
)


def test_predictions():
    assert engine.run(PREDICTION, 0.749).outcome == "passed"
    assert engine.run(PREDICTION, 3 / 4).stages == ("type", "shape", "dtype", "finite", "values")
    assert engine.run(PREDICTION, None).outcome == "not attempted"
    assert engine.run(PREDICTION, 0.5).mistake == "the scores are not doubled"
    assert stopped_at(engine.run(PREDICTION, lambda: 0.75)) == "type"
    for wrong in (0.6, float("nan"), "3/4"):
        report = engine.run(PREDICTION, wrong)
        assert report.outcome == "wrong" and "0.75" not in str(report)


def test_a_limit_that_is_wrong_lies_on_one_side():
    limit = variant(name="limit", kind="find the limit", stub="limit = None", cases=lambda: [()],
                    probe=lambda answer: answer, oracle=lambda: {"a": 8}, mistakes=())  # fmt: skip
    assert engine.run(limit, {"a": 64}).message == "values: limit['a'] is not 64: too large"
    assert engine.run(limit, {"a": 1}).message == "values: limit['a'] is not 1: too small"
    assert "too" not in engine.run(PREDICTION, 0.6).message  # a prediction is not to be guessed by halves


# a capital for a sentence, and none for what comes from code


@pytest.mark.parametrize(
    ("sentence", "with_capital"),
    [
        ("row 0, column 1: expected 2", "Row 0, column 1: expected 2"),
        ("position 3: expected 2", "Position 3: expected 2"),
        ("the result should be a tuple", "The result should be a tuple"),
        ("a query that is far", "A query that is far"),
        ("noise_limits['20 %'] is not 128", "noise_limits['20 %'] is not 128"),
        ("limits['a'] is not 3", "limits['a'] is not 3"),
        ("limit is not 3", "limit is not 3"),  # the exercise's name
        ("result['ResMem']: expected 0.3243", "result['ResMem']: expected 0.3243"),
        ("f(x) is missing", "f(x) is missing"),
        ("k should be 3", "k should be 3"),
        ("", ""),
    ],
)
def test_capitals(sentence, with_capital):
    assert words.capital(sentence, "limit") == with_capital


def test_a_part_of_the_result_is_called_by_its_place_in_code():
    exercise = variant(oracle=lambda query, key: {"a": 0.5}, gradient=False,
                       mistakes=(Mistake("it is doubled", lambda query, key: {"a": 1.0}),))  # fmt: skip
    assert engine.run(exercise, lambda query, key: {"a": 1.0}).message.split("\n")[:2] == [
        "values: it is doubled.",
        "result['a']: expected 0.5000, found 1.000",
    ]
    assert "type: result['a'] should be a number" in engine.run(exercise, lambda query, key: {"a": "x"}).message
    assert "type: the result should be a dict" in engine.run(exercise, lambda query, key: {}).message


# nothing outside is disturbed


def test_configuration_and_plugins_of_the_surroundings_are_ignored(tmp_path, monkeypatch, capfd):
    (tmp_path / "conftest.py").write_text("raise RuntimeError('conftest was read')")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "test_x.py").write_text("def test(): assert False")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    monkeypatch.setenv("PYTEST_PLUGINS", "no_such_module")
    before = dict(os.environ)
    assert engine.run(SOFTMAX, right).outcome == "passed"
    assert dict(os.environ) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["conftest.py", "pytest.ini", "test_x.py"]
    assert capfd.readouterr() == ("", "")


def test_random_numbers_go_on_as_if_nothing_had_run():
    def greedy(query, key):
        torch.manual_seed(1), random.random(), np.random.rand()
        return right(query, key)

    def numbers():
        return torch.rand(3).tolist(), random.random(), np.random.rand()

    drawn = []
    for checked in (False, True):
        torch.manual_seed(5), random.seed(5), np.random.seed(5)
        if checked:
            engine.run(SOFTMAX, greedy)
        drawn.append(numbers())
    assert drawn[0] == drawn[1]


def test_an_answer_with_dropout_sees_the_same_numbers_every_time():
    seen = []

    def answer(query, key):
        seen.append(torch.rand(()).item())
        return right(query, key)

    for seed in (1, 2):
        torch.manual_seed(seed)
        engine.run(SOFTMAX, answer)
    assert len(seen) == 6 and len(set(seen)) == 1


def test_a_check_costs_little():
    times = []
    for _ in range(5):
        start = time.process_time()
        engine.run(PREDICTION, 0.75)
        times.append(time.process_time() - start)
    assert min(times) < 0.1


PLAIN_PROCESS = """
import json, logging, os, signal, sys, threading, warnings
import memcourse.course
from memcourse.course import check, hint
assert "pytest" not in sys.modules, "pytest is there before a check runs"
from memcourse.course.checks import find
exercise = find("1.2")

def state():
    return {
        "filters": repr(warnings.filters), "showwarning": repr(warnings.showwarning),
        "handlers": repr(logging.root.handlers), "level": logging.root.level, "disabled": logging.root.manager.disable,
        "hooks": repr((sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook, sys.breakpointhook)),
        "streams": repr((sys.stdout, sys.stderr, sys.stdin)), "last": hasattr(sys, "last_value"),
        "interrupt": repr(signal.getsignal(signal.SIGINT)), "here": os.getcwd(), "environment": dict(os.environ),
    }

def wrong(query, key):
    print("the learner's own print")
    return query

import pytest
before, finders, path = state(), list(sys.meta_path), list(sys.path)
check("1.2", wrong)
after = state()
assert finders == sys.meta_path and path == sys.path
changed = [name for name in before if before[name] != after[name]]
assert not changed, changed
"""


def test_in_a_plain_process_only_the_report_is_printed_and_no_file_is_left(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PLAIN_PROCESS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    report = done.stdout[done.stdout.index("1.2 ") :]
    assert done.stdout.removesuffix(report).replace("the learner's own print\n", "") == ""
    assert report.startswith("1.2 attention_weights: wrong (0 of 2 points)\n  passed: type\n  shape: ")
    assert list(tmp_path.iterdir()) == []
    assert not list((ROOT / "memcourse").rglob(".pytest_cache"))


def test_the_error_that_the_notebook_saw_last_stays_the_last(monkeypatch):
    mine = ValueError("mine")
    monkeypatch.setattr(sys, "last_value", mine, raising=False)
    assert engine.run(SOFTMAX, over_queries).outcome == "wrong"
    assert sys.last_value is mine


def test_under_an_outer_pytest_with_every_plugin_installed(tmp_path):
    """hypothesis, nbval, anyio, jaxtyping and xdist as far as they are installed; the outer run goes on unharmed."""
    (tmp_path / "test_outer.py").write_text(
        "import os, warnings, pytest\n"
        "from test_engine import SOFTMAX, engine, right, over_queries\n"
        "@pytest.fixture\n"
        "def late():\n"
        "    yield\n"
        "    assert engine.run(SOFTMAX, right).outcome == 'passed'\n"
        "def test_one(late, tmp_path):\n"
        "    assert engine.run(SOFTMAX, over_queries).outcome == 'wrong'\n"
        "    assert 'test_one' in os.environ['PYTEST_CURRENT_TEST']\n"
        "def test_two():\n"
        "    with pytest.warns(UserWarning, match='mine'):\n"
        "        engine.run(SOFTMAX, lambda q, k: (warnings.warn('mine'), right(q, k))[1])\n"
        "def test_three():\n"
        "    x = 1\n"
        "    assert x == 2\n"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")} | {"PYTHONPATH": paths}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_outer.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert "1 failed, 2 passed" in done.stdout, done.stdout + done.stderr
    assert "assert 1 == 2" in done.stdout  # the outer run still explains its own failures


def test_reports_are_plain_data():
    assert json.loads(engine.run(SOFTMAX, right).to_json())["stages"][0] == "type"
