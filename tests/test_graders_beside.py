"""The grader and the notebook agree: what passes there passes in a process of its own, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
from beside import beside

from memcourse.course import engine, sandbox
from memcourse.course.answers import collect
from memcourse.course.checks import CHAPTERS, all_exercises, exercises
from memcourse.course.fresh import on_fresh_numbers
from memcourse.course.left_out import imported_all_the_same

HERE = Path(__file__).parent
EXERCISES = all_exercises()
CODE = [exercise for exercise in EXERCISES if exercise.asks_for_code]


def correct():
    """(exercise under the answer's name, its closure) for every correct answer that does without the taught module."""
    for chapter, slug in CHAPTERS.items():
        path = HERE / "correct_answers" / f"{slug}.py"
        spec = importlib.util.spec_from_file_location(f"correct_answers_{slug}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        definitions = collect([path.read_text()])
        for exercise in exercises(chapter):
            for answer in module.ANSWERS[exercise.id]:
                if not exercise.asks_for_code:
                    yield exercise, collect([f"{exercise.name} = {answer!r}"]).closure(exercise.name)
                    continue
                closure = definitions.closure(answer.__name__)
                if not imported_all_the_same(exercise, closure):
                    yield dataclasses.replace(exercise, name=answer.__name__), closure


CORRECT = list(correct())
FIRST = {exercise.id: (exercise, closure) for exercise, closure in reversed(CORRECT)}


def test_every_exercise_has_two_correct_answers_without_the_module_that_its_chapter_teaches():
    for exercise in EXERCISES:
        found = [asked for asked, _ in CORRECT if asked.id == exercise.id]
        assert len(found) >= (2 if exercise.asks_for_code else 1), exercise.id


@pytest.mark.parametrize("id", FIRST)
def test_a_correct_answer_passes(id):
    passes(*FIRST[id])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CORRECT)), ids=[f"{e.id} {e.name}" for e, _ in CORRECT])
def test_every_correct_answer_passes(number):
    passes(*CORRECT[number])


def passes(exercise, closure):
    report = sandbox.run(exercise, closure)
    assert (report.outcome, report.points) == ("passed", exercise.points), f"{report}"


@pytest.mark.parametrize("exercise", CODE, ids=lambda exercise: exercise.id)
def test_a_known_mistake_is_named_as_in_the_notebook(exercise):
    named_alike(exercise, 0)


MISTAKES = [(exercise, number) for exercise in CODE for number in range(1, len(exercise.mistakes))]


@pytest.mark.slow
@pytest.mark.parametrize(("exercise", "number"), MISTAKES, ids=lambda value: getattr(value, "id", str(value)))
def test_every_known_mistake_is_named_as_in_the_notebook(exercise, number):
    named_alike(exercise, number)


def named_alike(exercise, number):
    mistake = exercise.mistakes[number]
    with beside(mistake.answer) as there:
        report = engine.run(exercise, there)
    if report.outcome == "passed":  # it calls the library, which the sandbox leaves out and this process has
        assert any(check.__name__.endswith("_without_the_library") for check in exercise.properties)
        assert "library" in mistake.says
        return
    assert report.outcome in ("wrong", "crashed") and report.mistake == mistake.says, f"{report}"


@pytest.mark.slow
@pytest.mark.parametrize("exercise", CODE, ids=lambda exercise: exercise.id)
def test_fresh_numbers_have_one_answer(exercise):
    """Ten draws: all correct answers pass on every one."""
    if not exercise.fresh_numbers:
        return
    answers = [(asked, closure) for asked, closure in CORRECT if asked.id == exercise.id]
    from memcourse.course.runner.building import build

    for asked, closure in answers:
        for _ in range(10):
            assert engine.run(on_fresh_numbers(exercise), build(closure, asked.name)).outcome == "passed"
