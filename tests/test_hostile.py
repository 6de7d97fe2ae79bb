"""No hostile submission gets a point, harms a neighbour, stops the grader or leaves anything behind (tests/hostile)."""

from __future__ import annotations

import sys
from functools import cache

import pytest
from hostile import GROUPS, SUBMISSIONS
from hostile.grading import Run, grade
from hostile.submission import LEVELS

from memcourse.course.runner import confine

if sys.platform == "win32":
    pytest.skip("the attacks are written for POSIX", allow_module_level=True)

A_DOZEN = (
    "sums_for_ever",
    "fills_memory_in_torch",
    "exits_as_if_all_were_well",
    "segfaults",
    "patches_comparisons",
    "lies_about_its_class",
    "is_wrong_every_other_time",
    "reads_its_neighbour",
    "calls_home",
    "writes_reports",
    "answers_too_deeply",
    "zip_slips",
    "name_script",
)
EVERY_RUN = [(level, group) for level in LEVELS for group in GROUPS]


@cache
def graded(level: str, *names: str) -> Run:
    return grade([SUBMISSIONS[name] for name in names], level)


@pytest.mark.parametrize("name", A_DOZEN)
def test_a_hostile_submission_achieves_nothing(name: str) -> None:
    run = graded(confine.available()[-1], *A_DOZEN)
    (verdict,) = [verdict for verdict in run.verdicts if verdict.submission.name == name]
    assert (verdict.points, verdict.harmed, verdict.unanswered, verdict.faults) == (0, False, False, [])


def test_nothing_is_left_of_a_dozen() -> None:
    assert_harmless(graded(confine.available()[-1], *A_DOZEN))


@pytest.mark.slow
@pytest.mark.parametrize("level, group", EVERY_RUN)
def test_every_submission_at_every_level(level: str, group: str) -> None:
    """What a level does not promise is left out: there it may destroy what others of the group need."""
    if fault := confine.why_not(level):
        pytest.skip(fault)
    promised = [submission.name for submission in GROUPS[group] if submission.promised_at(level)]
    run = graded(level, *promised)
    achieved = [v.submission.name for v in run.verdicts if v.points or v.harmed or v.unanswered or v.faults]
    assert achieved == []
    assert_harmless(run)


def assert_harmless(run: Run) -> None:
    assert (run.crash, run.changed, run.left, run.unsafe) == ("", (), (), ())


def test_there_are_enough_and_each_says_what_it_is_about() -> None:
    assert len(SUBMISSIONS) == sum(map(len, GROUPS.values())) >= 40
    for submission in SUBMISSIONS.values():
        assert submission.intent.endswith(".") and bool(submission.code) != bool(submission.build)
