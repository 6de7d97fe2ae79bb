"""Every exercise of the course: its stub, its known mistakes and its correct answers, through the real check."""

import ast
import importlib.util
import sys
import time
from pathlib import Path

import pytest
import torch

import memcourse
from memcourse.course import engine
from memcourse.course.checks import CHAPTERS, all_exercises, exercises
from memcourse.course.compare import same

HERE = Path(__file__).parent
EXERCISES = all_exercises()
BY_ID = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)


def correct_answers(slug):
    """{exercise id: [answer, ...]} from tests/correct_answers/<slug>.py."""
    name = f"correct_answers_{slug}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / "correct_answers" / f"{slug}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name].ANSWERS


ANSWERS = {id: answers for slug in CHAPTERS.values() for id, answers in correct_answers(slug).items()}
MISTAKES = [(exercise, number) for exercise in EXERCISES for number in range(len(exercise.mistakes))]
CORRECT = [(exercise, number) for exercise in EXERCISES for number in range(len(ANSWERS.get(exercise.id, ())))]


def ids(value):
    return value.id if hasattr(value, "id") else str(value)


@BY_ID
def test_the_stub_is_not_attempted(exercise):
    namespace = {"torch": torch, "nn": torch.nn} | {name: getattr(memcourse, name) for name in memcourse.__all__}
    exec(compile(exercise.stub, "<stub>", "exec"), namespace)
    report = engine.run(exercise, namespace[exercise.name])
    assert (report.outcome, report.points, report.message) == ("not attempted", 0, "")


@BY_ID
def test_the_stub_defines_the_answer_and_says_what_it_should_do(exercise):
    tree = ast.parse(exercise.stub)
    definitions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert exercise.asks_for_code == bool(definitions)
    if definitions:
        assert definitions[-1].name == exercise.name
        assert ast.get_docstring(definitions[-1])


@pytest.mark.parametrize(("exercise", "number"), MISTAKES, ids=ids)
def test_every_known_mistake_fails_and_is_named_by_its_own_sentence(exercise, number):
    mistake = exercise.mistakes[number]
    report = engine.run(exercise, mistake.answer)
    assert report.outcome in ("wrong", "crashed") and report.points == 0
    assert report.mistake == mistake.says, f"{report}"
    assert mistake.says in report.message


@BY_ID
def test_there_are_enough_mistakes_and_each_has_its_sentence(exercise):
    said = [mistake.says for mistake in exercise.mistakes]
    assert all(sentence and sentence == sentence.strip().rstrip(".") for sentence in said)
    if exercise.asks_for_code:
        assert len(set(said)) >= 3


@pytest.mark.parametrize(("exercise", "number"), CORRECT, ids=ids)
def test_every_correct_answer_passes_in_time(exercise, number):
    answer = ANSWERS[exercise.id][number]
    start = time.process_time()
    report = engine.run(exercise, answer)
    if exercise.time_limit <= 10 and time.process_time() - start >= 1:
        start = time.process_time()  # once more: the first check of a process also makes the cases
        engine.run(exercise, answer)
    taken = time.process_time() - start
    assert report.outcome == "passed", f"{report}"
    assert report.points == exercise.points
    assert taken < (1 if exercise.time_limit <= 10 else exercise.time_limit)


@BY_ID
def test_there_are_enough_correct_answers(exercise):
    assert len(ANSWERS[exercise.id]) >= (2 if exercise.asks_for_code else 1)


@BY_ID
def test_in_some_case_every_axis_of_an_argument_has_a_size_of_its_own(exercise):
    """A swapped axis cannot pass there."""
    shapes = [[tuple(value.shape) for value in case if isinstance(value, torch.Tensor)] for case in exercise.cases()]
    assert any(all(len(set(shape)) == len(shape) for shape in case) for case in shapes)


@BY_ID
def test_cases_are_the_same_every_time(exercise):
    for first, second in zip(exercise.cases(), exercise.cases(), strict=True):
        assert same(first, second, 0.0)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_has_four_to_seven_exercises_of_mixed_kinds(chapter):
    found = exercises(chapter)
    if chapter == "00_what_is_memory":  # the map: one exercise that takes a minute, to learn how exercises work
        assert [exercise.minutes for exercise in found] == [1]
    else:
        assert 4 <= len(found) <= 7
        assert len({exercise.kind for exercise in found}) >= 3
        assert all(2 <= exercise.minutes <= 30 for exercise in found)
    assert {exercise.difficulty for exercise in found} <= {"easy", "medium", "hard"}
    for exercise in found:
        assert exercise.points > 0
        assert len(exercise.hints) == 3 and all(exercise.hints)
        assert exercise.id.startswith(f"{int(chapter[:2])}.")
    assert set(correct_answers(CHAPTERS[chapter])) == {exercise.id for exercise in found}


def test_ids_and_names_are_unique():
    for key in ("id", "name"):
        found = [getattr(exercise, key) for exercise in EXERCISES]
        assert len(set(found)) == len(found)
