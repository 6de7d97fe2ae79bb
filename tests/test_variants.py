"""Each learner's own numbers: the right answers, the known mistakes, and the words that go with them."""

import dataclasses
import math
import re
import subprocess
import sys
from fractions import Fraction
from functools import cache

import pytest

from memcourse.course import engine, variants
from memcourse.course.checks import all_exercises, find
from memcourse.course.compare import same

WITH_VARIANTS = [exercise for exercise in all_exercises() if exercise.variant]
PREDICTIONS = [exercise for exercise in WITH_VARIANTS if exercise.kind == "predict, then run"]
LEARNERS = """Ada Alan Anna Ben Carla Chen Dana Dmitri Elif Emma Farid Fatima Grace Hana Hugo Ines Ivan Jamal Jin Jonas
Kofi Lena Leila Li Luca Maja Maria Mei Nadia Noah Olga Omar Paul Priya Rosa Sam Sofia Tariq Yuki Zoe""".split()
BY_ID = pytest.mark.parametrize("exercise", WITH_VARIANTS, ids=lambda exercise: exercise.id)


@cache
def variant(id, learner):
    return variants.variant(find(id), learner)


@cache
def right(id, learner):
    return tuple(variant(id, learner).oracle().items())


def used(exercise, answer):
    """What the check compares: an answer within a step of a limit counts as the limit."""
    return exercise.probe(answer)


def accepted(exercise, answer):
    expected = exercise.oracle()
    return answer.keys() == expected.keys() and alike(exercise, answer, expected)


def alike(exercise, one, other):
    def plain(answer):
        return {key: value if isinstance(value, str) else float(value) for key, value in answer.items()}

    return same(plain(used(exercise, one)), plain(used(exercise, other)), exercise.tolerance)


def test_every_exercise_whose_answer_is_values_has_variants():
    assert [exercise.id for exercise in all_exercises() if not exercise.asks_for_code] == [e.id for e in WITH_VARIANTS]


@pytest.mark.parametrize("id", ["1.2", "8.6"])
def test_an_exercise_without_variants_is_itself(id):
    assert variants.variant(find(id), "Ada") is find(id)


@pytest.mark.parametrize("name", ["", "   ", "\n"])
def test_an_empty_name_has_no_variant(name):
    with pytest.raises(ValueError, match="learner is .* should be a name"):
        variants.variant(find("1.1"), name)


@BY_ID
def test_case_and_blanks_at_the_ends_do_not_matter(exercise):
    one, other = variants.variant(exercise, "Ada Lovelace"), variants.variant(exercise, "  ada LOVELACE\n")
    assert (one.question, one.stub, tuple(one.hints)) == (other.question, other.stub, tuple(other.hints))


def test_a_name_gives_the_same_numbers_on_every_day_and_in_every_process():
    assert variants.seed_of(find("1.1"), "Ada") == 12024551961448931146
    assert "(log 5, 0, 0, 0)" in variant("1.1", "Ada").stub
    reach = {"keys": 11, "first_keys": 5, "feedback_keys": 9, "window_reach": 60, "earliest": 16, "state": 180}
    assert dict(right("8.1", "Grace")) == reach | {"earliest_with_feedback": 1}
    script = "from memcourse.course import checks, variants; print(variants.show(checks.find('2.1'), 'Ada'))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.strip() == variants.show(find("2.1"), "Ada")


def test_what_is_shown_is_the_variants_question_and_stub_or_the_courses():
    exercise, own = find("1.1"), variant("1.1", "Ada")
    shown = variants.show(exercise, "Ada")
    assert own.question in shown and own.stub in shown and "Ada" in shown
    assert variants.show(exercise, "") == f"1.1 {exercise.title}\n\n{exercise.question}\n\n{exercise.stub}"
    assert "Ada" not in variants.show(find("1.2"), "Ada")


def test_a_reminder_is_for_a_name_a_variant_and_an_answer_that_does_not_pass():
    said = "You have numbers of your own here: this shows them."
    for outcome in ("not attempted", "crashed", "wrong"):
        assert variants.reminder(find("1.1"), outcome, "Ada", "this") == said
        assert variants.reminder(find("1.1"), outcome, "", "this") == ""
        assert variants.reminder(find("1.2"), outcome, "Ada", "this") == ""
    assert variants.reminder(find("1.1"), "passed", "Ada", "this") == ""


def test_the_name_comes_from_the_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert variants.name_of_learner() == ""
    (tmp_path / ".memcourse.json").write_text('{"version": "1", "files": {}, "learner": "Ada"}')
    assert variants.name_of_learner() == "Ada"


@BY_ID
def test_learners_have_different_right_answers_and_the_courses_is_seldom_one(exercise):
    assert len({right(exercise.id, learner) for learner in LEARNERS}) >= 8
    passes = sum(accepted(variant(exercise.id, learner), exercise.oracle()) for learner in LEARNERS)
    assert passes <= len(LEARNERS) / 4


@BY_ID
def test_a_neighbours_answer_seldom_passes(exercise):
    pairs = list(zip(LEARNERS, LEARNERS[1:] + LEARNERS[:1], strict=True))
    passes = sum(accepted(variant(exercise.id, one), dict(right(exercise.id, other))) for one, other in pairs)
    few = 3 / 4 if exercise.id == "2.5" else 1 / 4  # the limits of 2.5 span few steps of the grid
    assert passes <= few * len(pairs)


@BY_ID
def test_each_variant_differs_from_the_course_in_what_it_asks_and_keeps_the_rest(exercise):
    for learner in LEARNERS:
        own = variant(exercise.id, learner)
        assert (own.question, own.stub) != (exercise.question, exercise.stub)
        assert (own.id, own.name, own.points) == (exercise.id, exercise.name, exercise.points)
        assert own.cases() == [()] and not own.asks_for_code
        assert len(own.hints) == 3 and all(own.hints)
        assert "{n" not in own.question + own.stub + "".join(own.hints)


@BY_ID
def test_no_mistake_can_be_taken_for_the_right_answer_or_for_another_mistake(exercise):
    """For numbers that learners can get, from all over their list."""
    others = exercise.variant.others
    for numbers in others[:: 1 + len(others) // 12]:
        own = dataclasses.replace(exercise, **exercise.variant.fields(numbers))
        expected, seen = own.oracle(), {}
        assert len(own.mistakes) >= 2
        for mistake in own.mistakes[:45]:
            assert mistake.answer.keys() == expected.keys()
            assert not alike(own, mistake.answer, expected), f"{numbers}: {mistake.says}"
            fingerprint = tuple(v if isinstance(v, str) else f"{v:.6g}" for v in own.probe(mistake.answer).values())
            assert seen.setdefault(fingerprint, mistake.says) == mistake.says, f"{numbers}: {seen[fingerprint]}"


@BY_ID
def test_the_check_passes_the_right_answer_and_names_each_mistake_by_its_own_sentence(exercise):
    for number, learner in enumerate(LEARNERS[:4]):
        own = variant(exercise.id, learner)
        assert engine.run(own, dict(right(exercise.id, learner))).outcome == "passed"
        for mistake in own.mistakes[:25] if number == 0 else own.mistakes[number::60]:
            report = engine.run(own, mistake.answer)
            assert report.outcome == "wrong" and report.mistake == mistake.says, f"{report}"


@pytest.mark.parametrize("exercise", PREDICTIONS, ids=lambda exercise: exercise.id)
def test_a_sentence_can_be_counted_with_those_of_the_course(exercise):
    own = variant(exercise.id, "Ada")
    for mistake, usual in list(zip(own.mistakes, exercise.mistakes, strict=True))[:25]:
        assert variants.usual_sentence(exercise, mistake.says) == usual.says


# The same answers once more, from the numbers that the text names, with fractions and by hand.


def parsed(pattern, text):
    return [int(found) if found.isdigit() else found for found in re.search(pattern, text).groups()]


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_weights_follow_from_the_text(learner):
    own = variant("1.1", learner)
    ratio, zeros = parsed(r"scores are \(log (\d+)((?:, 0)+)\)", own.stub)
    others = zeros.count("0")
    assert dict(right("1.1", learner)) == pytest.approx({
        "as_given": Fraction(ratio, ratio + others),
        "plus_ten": Fraction(ratio, ratio + others),
        "times_two": Fraction(ratio**2, ratio**2 + others),
        "times_hundred": 1,
        "times_zero": Fraction(1, 1 + others),
        "stored_twice": Fraction(ratio, 2 * ratio + others),
    })  # fmt: skip


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_reads_follow_from_the_text(learner):
    own = variant("2.1", learner)
    keys = {name: (int(x), int(y)) for name, x, y in re.findall(r"([abc]) = \((\d+), (\d+)\)", own.question)}
    near, ratio, off = parsed(r"where (\w) weighs (\d+) times as much as (\w);", own.stub)
    held, added = parsed(r"a slot holds (\d+); .* add (\d+)", own.stub)
    cosine = {name: x / math.hypot(x, y) if x else 0 for name, (x, y) in keys.items()}
    assert sorted(cosine, key=cosine.get)[::-1][:2] == [near, off]
    names = {"dot": max(keys, key=keys.get), "cosine": near}
    numbers = {"twice_as_sharp": ratio**2, "written": (held + added) / 2, "zero_query": 1 / 3, "flat_top_two": 1 / 2}
    found = dict(right("2.1", learner))
    assert {name: found.pop(name) for name in names} == names
    assert found == pytest.approx(numbers)


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_shares_follow_from_the_text(learner):
    own = variant("4.1", learner)
    votes = [Fraction(1, number) for number in parsed(r"distances log (\d+), log (\d+) and log (\d+)", own.question)]
    model, weight = map(Fraction, parsed(r"gives red (\S+) and the weight of the neighbours is (\S+)", own.stub))
    (green,) = map(Fraction, parsed(r"the model gives green (\S+)", own.stub))

    def share(first, blue, last, copies=1):
        return (first + last) / (first + last + copies * blue)

    assert dict(right("4.1", learner)) == pytest.approx({
        "as_given": share(*votes),
        "all_farther": share(*votes),
        "half_temperature": share(*(vote**2 for vote in votes)),
        "very_hot": Fraction(2, 3),
        "blue_twice": share(*votes, copies=2),
        "mixed": weight * share(*votes) + (1 - weight) * model,
        "green": (1 - weight) * green,
    }, rel=1e-5)  # fmt: skip


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_outputs_follow_from_the_text(learner):
    own = variant("5.1", learner)
    (model,) = parsed(r"A model says (\d+)", own.question)
    targets = parsed(r"targets were (\d+), (\d+) and (\d+)", own.question)

    def said(*weights):
        return Fraction(sum(w * t for w, t in zip(weights, targets, strict=True)), sum(weights))

    assert dict(right("5.1", learner)) == pytest.approx({
        "narrow": targets[0],
        "wide": said(1, 1, 1),
        "halving": said(4, 2, 1),
        "far_away": said(2, 1, 1),
        "stored_twice": said(4, 1, 0),
        "knn_alone": said(4, 2, 1),
        "interpolates": model,
    })  # fmt: skip
    different = {round(value, 6) for _, value in right("5.1", learner)}
    assert len(different) == 6, "two are the same, and not by chance"


@pytest.mark.parametrize("learner", LEARNERS)
def test_the_reach_follows_from_the_text(learner):
    own = variant("8.1", learner)
    length, feedback, width = parsed(r"block_len=(\d+), n_feedback=(\d+), n_past_blocks=1, d_model=(\d+)", own.stub)
    (place,) = parsed(r"the (\w+) token of block 7", own.stub)
    place = "first second third fourth fifth sixth".split().index(place) + 1
    layers, window = parsed(r"(\d+) layers, each a window of (\d+) tokens", own.stub)
    deep, past = parsed(r"(\d+) layers with n_past_blocks=(\d+)", own.stub)
    (last,) = parsed(r"token of block (\d+)\n#   \"earliest_with", own.stub)
    assert dict(right("8.1", learner)) == {
        "keys": length + feedback + place,
        "first_keys": feedback + place,
        "feedback_keys": feedback + length,
        "state": (feedback + 2 * length) * width,
        "window_reach": layers * (window - 1),
        "earliest": last - deep * past,
        "earliest_with_feedback": 1,
    }
