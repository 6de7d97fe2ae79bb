"""The recorded mutation run is that of the exercises as they stand, and nothing survives unexplained."""

import pytest
from mutants import report, run

RECORDED = report.load()
RUN_IT = "run `python -m tests.mutants --changed`"


@pytest.mark.parametrize("exercise", run.code_exercises(), ids=lambda exercise: exercise.id)
def test_the_record_is_of_this_exercise(exercise):
    assert exercise.id in RECORDED, RUN_IT
    assert RECORDED[exercise.id].depends_on == run.depends_on(exercise), RUN_IT
    assert RECORDED[exercise.id].tried == len(run.mutants(run.solution(exercise)))


def test_no_mutant_survives_unexplained_and_no_explanation_is_stale():
    given = report.explanations()
    assert "\n".join(report.problems(report.explained(RECORDED, given), given)) == ""


def test_the_record_is_complete_and_its_figures_follow_from_it():
    assert set(RECORDED) == {exercise.id for exercise in run.code_exercises()}
    assert report.REPORT.read_text(encoding="utf-8") == report.dump(report.explained(RECORDED, report.explanations()))
