"""A class is graded: every submission in parallel, each result on disk as soon as it is there, then the reports.

A result is used again while nothing has changed that it came from: so a run that was stopped goes on, and a new
deadline or other points cost no grading.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import memcourse
from memcourse.course import sandbox
from memcourse.course.checks import exercises
from memcourse.course.classroom import (
    CannotGrade,
    extra_checks,
    gradescope,
    junit,
    marking,
    pages,
    reference_times,
    results,
    submissions,
    tables,
)
from memcourse.course.classroom.class_config import ClassConfig
from memcourse.course.classroom.marking import Checked, Rules, faulty, graded
from memcourse.course.classroom.pool import Died, Pool
from memcourse.course.classroom.printable import printable
from memcourse.course.classroom.reading import CannotRead
from memcourse.course.classroom.results import Graded
from memcourse.course.classroom.show import Meter
from memcourse.course.classroom.submissions import Submission
from memcourse.course.exercise import Report
from memcourse.course.grade import check_answer
from memcourse.course.runner import confine
from memcourse.course.words import listed

READING = 30.0  # seconds that a file may take to be read; some code can be parsed only slowly
STARTING = 300.0  # seconds beyond the answers' own limits, for processes to start on a slow disk


class Interrupted(KeyboardInterrupt):
    """Ctrl-C; the message says how to go on."""


@dataclass
class Class:
    """What a run is about, and what it has found so far.  key: changes with the course, its checks, the confinement."""

    out: Path
    config: ClassConfig
    rules: Rules
    key: str
    results: list[Graded] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fingerprint(self, submission: Submission) -> str:
        """Changes with whatever the reports of a submission come from."""
        learner = submission.learner if self.rules.variants else ""
        parts = [submission.sha256, submission.chapter, learner, self.key]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def keep(self, found: Graded, fingerprint: str = "") -> None:
        if any(sandbox.LATE in report.message for report in found.reports):
            fingerprint = ""  # on a machine that is less busy it may have the time
        with _writing(self):
            results.save(found, self.out, fingerprint)
        self.results.append(found)


def grade_class(
    folder: Path,
    out: Path,
    config: ClassConfig,
    *,
    extra: Path | None = None,
    level: str | None = None,
    workers: int | None = None,
    check: Callable[..., Report] = check_answer,
    pool: Callable[[int], Any] = Pool,
) -> Class:
    """Grade the submissions in `folder` and write the report to `out`.

    extra: a folder of hidden checks.   level: how answers are confined; the strongest there is unless given.
    Raises CannotGrade, BadCheck, SandboxFault before anything runs, Interrupted at Ctrl-C.
    """
    _apart(folder, out, extra)
    files = submissions.walk(folder)
    if not any(file.path.suffix.lower() in (submissions.NOTEBOOK, submissions.ZIP) for file in files):
        held = "notebooks, zips of them, or a folder of these for each learner"
        raise CannotGrade(f"{folder} holds no submission ({held}).")
    rules = Rules(sandbox.offered(level), extra.resolve() if extra else None, config.variants, check=check)
    hidden = extra_checks.digest(rules.extra) if rules.extra else "none"
    this = Class(out, config, rules, key=f"course {_course()}, level {rules.level}, hidden checks {hidden}")
    with _writing(this):
        (out / results.FOLDER).mkdir(parents=True, exist_ok=True)
    try:
        with pool(workers or _cores()) as processes, Meter() as meter:
            if rules.extra:
                _one(processes, extra_checks.names, rules.extra)
            left = _not_graded_yet(this, _found(this, processes, files))
            this.rules = replace(rules, limits=_limits(this, processes, {one.chapter for one in left}))
            _grade(this, processes, left, meter)
        _report(this)
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped. {_so_far(this)}") from None
    return this


def _apart(folder: Path, out: Path, extra: Path | None) -> None:
    if not folder.is_dir():
        raise CannotGrade(f"{folder} is not a folder of submissions.")
    for what, path in (("The report", out), ("The folder of hidden checks", extra)):
        if path is not None and path.resolve().is_relative_to(folder.resolve()):
            raise CannotGrade(f"{what}, {path}, must lie outside of the submissions, {folder}.")
    if extra is not None and not extra.is_dir():
        raise CannotGrade(f"{extra} is not a folder of hidden checks.")


def _found(this: Class, processes: Any, files: Sequence[Submission]) -> list[Submission]:
    """The submissions that can be graded; the others are kept with their faults."""
    named = [replace(file, learner=this.config.roster.get(file.learner, file.learner)) for file in files]
    looked: list[Submission] = [file for file in named if file.fault]
    look = partial(submissions.look, zone=this.config.time_zone)
    for file, outcome in processes.each(look, [file for file in named if not file.fault], READING):
        looked += [replace(file, fault=_why(outcome))] if isinstance(outcome, Exception) else outcome
    by_place = sorted(looked, key=lambda one: one.source)
    found = _one_for_each_chapter(_asked_for(by_place, this.config.chapters))
    for one in found:
        if one.fault:
            this.keep(faulty(one, one.fault))
    return [one for one in found if not one.fault]


def _asked_for(found: Sequence[Submission], chapters: Sequence[str]) -> list[Submission]:
    """A notebook of another chapter is a fault, or a note on those that its learner handed in of the right ones."""
    if not chapters:
        return list(found)
    asked = {_person(one) for one in found if one.chapter in chapters}
    others: dict[str, set[str]] = {}
    kept = []
    why = f"and this class is graded on {listed(chapters)}"
    for one in found:
        if one.fault or one.chapter in chapters:
            kept.append(one)
        elif _person(one) in asked:
            others.setdefault(_person(one), set()).add(one.chapter)
        else:
            kept.append(replace(one, fault=f"is of chapter {one.chapter}, {why}"))
    return [one if one.fault else _with_others(one, others.pop(_person(one), set())) for one in kept]


def _with_others(one: Submission, others: set[str]) -> Submission:
    """With the note, which the first of a learner's notebooks has for all of them."""
    if not others:
        return one
    count = f"{len(others)} other {'chapter' if len(others) == 1 else 'chapters'}"
    said = f"also handed in: notebooks of {count}, which this class is not graded on"
    return replace(one, note="; ".join(filter(None, [one.note, said])))


def _one_for_each_chapter(found: Sequence[Submission]) -> list[Submission]:
    """The same bytes count once; two that differ are a fault of both."""
    kept = [one for one in found if one.fault]
    groups: dict[tuple[str, str], dict[str, Submission]] = {}
    for one in found:
        if not one.fault:
            groups.setdefault((_person(one), one.chapter), {}).setdefault(one.sha256, one)
    for (_, chapter), versions in groups.items():
        several = [one.source for one in versions.values()]
        why = f"is one of {len(several)} different notebooks of one learner for {chapter} ({listed(several)}): keep one"
        kept += [replace(one, fault=why if len(several) > 1 else "") for one in versions.values()]
    return kept


def _person(one: Submission) -> str:
    """The learner's name, as far as it tells two people apart."""
    return unicodedata.normalize("NFC", one.learner).strip().casefold()


def _not_graded_yet(this: Class, found: Sequence[Submission]) -> list[Submission]:
    left = []
    for one in found:
        fingerprint = this.fingerprint(one)
        before = results.load(one.source, this.out, fingerprint)
        if before is None:
            left.append(one)
        else:
            this.keep(graded(one, Checked(before.reports, before.fingerprints), this.config), fingerprint)
    return left


def _limits(this: Class, processes: Any, chapters: set[str]) -> dict[str, float]:
    """Exercise id -> seconds; the solutions are timed once for each course and level."""
    times = reference_times.load(this.out, this.key)
    unknown = sorted(chapters - set(times))
    longest = max((sum(e.time_limit for e in exercises(chapter)) for chapter in unknown), default=0)
    measure = partial(reference_times.measure, this.rules)
    for chapter, outcome in processes.each(measure, unknown, STARTING + 3 * longest):
        if isinstance(outcome, Exception):
            raise outcome
        times[chapter] = outcome
    with _writing(this):
        reference_times.save(this.out, this.key, times)
    without = [e.id for chapter in sorted(chapters) for e in exercises(chapter) if e.id not in times[chapter]]
    if without:
        this.notes.append(f"No solution was timed for {listed(without)}: the time limit is the exercise's own.")
    return {id: limit for chapter in chapters for id, limit in reference_times.limits(chapter, times[chapter]).items()}


def _grade(this: Class, processes: Any, left: Sequence[Submission], meter: Meter) -> None:
    limits = this.rules.limits
    longest = max((sum(limits[e.id] for e in exercises(one.chapter)) for one in left), default=0)
    meter.start(len(this.results) + len(left), this.results)
    for one, outcome in processes.each(partial(marking.check, this.rules), left, STARTING + 3 * longest):
        if isinstance(outcome, Exception):
            this.keep(faulty(one, _why(outcome)))
        else:
            this.keep(graded(one, outcome, this.config), this.fingerprint(one))
        meter.show(this.results, [running.learner for running in processes.running])


def _report(this: Class) -> None:
    """The results in order, and everything that is made of them.  Results of what is no longer there are removed."""
    this.results.sort(key=results.order)
    named = {found.learner for found in this.results}
    promised = {*this.config.extra_days, *(name for names in this.config.submitted.values() for name in names)}
    this.notes += [f"The class's file names {name}, who handed in nothing." for name in sorted(promised - named)]
    on_level = [f"At the level {this.rules.level!r} here: {note}" for note in confine.notes(this.rules.level)]
    with _writing(this):
        current = {f"{results.safe_name(found.source)}.json" for found in this.results}
        for path in (this.out / results.FOLDER).glob("*.json"):
            if path.name not in current:
                path.unlink()
        tables.write(this.results, this.out, this.config.time_zone)
        pages.write(this.results, this.out, this.config, this.notes)  # which says of the level all that there is
        junit.write(this.results, this.out / "junit.xml")
        gradescope.write(this.results, this.out / "gradescope")
    this.notes += on_level


@contextmanager
def _writing(this: Class) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CannotGrade(f"{this.out} cannot be written: {error.strerror or error}. {_so_far(this)}") from error


def _so_far(this: Class) -> str:
    count = sum(not found.fault for found in this.results)
    return f"What was graded so far ({count}) is kept in {this.out}: the same command goes on from there."


def _why(error: Exception) -> str:
    """What came in place of a result, as the end of a sentence that begins with It."""
    match error:
        case CannotRead():
            return str(error)
        case Died() | sandbox.SandboxFault():
            return f"could not be graded: {error}"
    print(printable("\n".join(getattr(error, "__notes__", [repr(error)]))), file=sys.stderr)
    return f"could not be graded, by a fault of the course: {type(error).__name__}: {error}"


def _one(processes: Any, work: Callable[[Any], Any], task: Any) -> Any:
    """The result of one task, or what it raised."""
    ((_, outcome),) = processes.each(work, [task])
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def _course() -> str:
    """The course's version and a hash of its source, which in a clone changes more often."""
    folder = Path(memcourse.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.read_bytes())
    return f"{memcourse.__version__} {digest.hexdigest()[:16]}"
