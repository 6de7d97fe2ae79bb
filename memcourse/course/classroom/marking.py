"""One submission: its answers checked, which a grading process does, and its points, which the class's file decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from memcourse.course.answers import Definitions, collect
from memcourse.course.checks import exercises
from memcourse.course.classroom import deadlines, reading
from memcourse.course.classroom.class_config import ClassConfig
from memcourse.course.classroom.extra_checks import with_hidden
from memcourse.course.classroom.printable import printable
from memcourse.course.classroom.results import Graded
from memcourse.course.classroom.similarity import fingerprints
from memcourse.course.classroom.submissions import Submission, fetch
from memcourse.course.exercise import Exercise, Report
from memcourse.course.grade import check_answer


@dataclass(frozen=True)
class Rules:
    """How answers are checked, the same for every submission of a run.

    limits: exercise id -> seconds;   check: as `grade.check_answer`
    """

    level: str
    extra: Path | None = None
    variants: bool = False
    limits: Mapping[str, float] = field(default_factory=dict)
    check: Callable[..., Report] = check_answer


class Checked(NamedTuple):
    reports: tuple[Report, ...]
    fingerprints: dict[str, str]


def check(rules: Rules, submission: Submission) -> Checked:
    """Check every answer of a submission, in a grading process.  Raises CannotRead, SandboxFault."""
    definitions = collect(reading.read(fetch(submission), submission.source).cells)
    found = reports(rules, submission.chapter, definitions, submission.learner)
    return Checked(found, fingerprints(submission.chapter, definitions))


def reports(rules: Rules, chapter: str, definitions: Definitions, learner: str) -> tuple[Report, ...]:
    found = []
    for exercise in exercises(chapter):
        asked = with_hidden(_own(exercise, learner) if rules.variants else exercise, rules.extra)
        report = rules.check(asked, definitions, seconds=rules.limits.get(exercise.id), level=rules.level)
        found.append(dataclasses.replace(report, message=printable(report.message)))
    return tuple(found)


def graded(submission: Submission, found: Checked, config: ClassConfig) -> Graded:
    """Points as the class counts them: each exercise's own worth, then what is kept of a late submission."""
    worth = {exercise.id: exercise.points for exercise in exercises(submission.chapter)} | dict(config.points)
    valued = tuple(_valued(report, worth[report.exercise]) for report in found.reports)
    raw = sum(report.points for report in valued)
    submitted = config.submitted.get(submission.chapter, {}).get(submission.learner, submission.submitted)
    extra = config.extra_days.get(submission.learner, 0)
    late = deadlines.lateness(submitted, config.deadlines.get(submission.chapter), extra)
    kept = config.late.kept(late)
    return Graded(
        learner=submission.learner,
        chapter=submission.chapter,
        source=submission.source,
        submitted=submitted.isoformat() if submitted else None,
        reports=valued,
        points=round(raw * kept.percent / 100, 4),
        raw_points=raw,
        max_points=sum(report.max_points for report in valued),
        late=kept.says,
        fault="",
        level=next((report.level for report in valued if report.level), None),
        seconds=round(sum(report.seconds for report in valued), 3),
        note=submission.note,
        fingerprints=found.fingerprints,
        days_late=kept.days,
        share=kept.percent / 100,
    )


def faulty(submission: Submission, why: str) -> Graded:
    """A submission that could not be graded.  `why` goes on where a sentence begins with its name."""
    submitted = submission.submitted.isoformat() if submission.submitted else None
    said = f"It {why.rstrip('.')}."
    return Graded(
        submission.learner, submission.chapter, submission.source, submitted, (), 0, 0, 0, "", said, None, 0.0
    )


def _own(exercise: Exercise, learner: str) -> Exercise:
    """The learner's own version of it."""
    from memcourse.course.variants import variant

    return variant(exercise, learner)


def _valued(report: Report, worth: float) -> Report:
    """The report with the points that the class gives.  A check gives all of an exercise's points or none."""
    points = worth if report.outcome == "passed" else 0
    return dataclasses.replace(report, points=points, max_points=worth)
