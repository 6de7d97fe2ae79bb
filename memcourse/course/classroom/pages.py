"""What people read after a run: a page for the class, and a page for each learner that names nobody else.

Each is one HTML file that loads nothing: pictures are inside it, and a content security policy forbids scripts.
Whatever comes from a submission is escaped by the template.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from memcourse.course.classroom import drawings, similarity
from memcourse.course.classroom.class_config import ClassConfig
from memcourse.course.classroom.printable import printable
from memcourse.course.classroom.results import Graded, safe_name
from memcourse.course.exercise import Outcome, Report
from memcourse.course.runner.confine import LEVELS, NOT_PROMISED, PROMISES, notes
from memcourse.course.start import write_atomically
from memcourse.course.words import capital


@dataclass(frozen=True)
class Chapter:
    """What the page of the class says about one chapter.

    rows: the submissions that could be graded, each with its reports by exercise id.   exercises: id -> name.
    mistakes: (exercise id, the mistake, how many made it), the most common first within an exercise.
    """

    name: str
    rows: list[tuple[Graded, dict[str, Report]]]
    exercises: dict[str, str]
    counts: dict[str, Counter[Outcome]]
    mistakes: list[tuple[str, str, int]]
    matches: list[similarity.Match]
    plot: drawings.Drawing
    solution_known: bool


def write(results: Sequence[Graded], out: Path, config: ClassConfig, notes_on_run: Sequence[str] = ()) -> None:
    """Write out/index.html and out/learners/NAME.html, and remove the pages of learners who are gone."""
    templates = _templates(config)
    page = templates.get_template("class.html").render(
        results=results,
        learners={graded.learner for graded in results},
        levels=_levels(results),
        notes=notes_on_run,
        odd=[graded for graded in results if graded.fault or graded.note],
        chapters=_chapters(results),
        outcomes=drawings.LOOKS,
        short=similarity.SHORT,
    )
    _save(page, out / "index.html")
    by_learner: dict[str, list[Graded]] = {}
    for graded in results:
        by_learner.setdefault(graded.learner, []).append(graded)
    template = templates.get_template("learner.html")
    for learner, submissions in by_learner.items():
        page = template.render(learner=learner, submissions=submissions, picture=drawings.picture)
        _save(page, out / _page_of(learner))
    current = {out / _page_of(learner) for learner in by_learner}
    for path in (out / "learners").glob("*.html"):
        if path not in current:
            path.unlink()


def _templates(config: ClassConfig) -> Environment:
    zone = config.time_zone
    templates = Environment(
        loader=PackageLoader("memcourse.course.classroom"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": _number, "capital": capital, "page": _page_of, "outcome": drawings.said}
    templates.filters["when"] = lambda at: _when(at, zone)
    templates.globals |= {"course": config.title, "made": f"{datetime.now(zone):%Y-%m-%d %H:%M %Z}"}
    return templates


def _levels(results: Sequence[Graded]) -> list[tuple[str, list[str], str]]:
    """The levels that were active, what each promises (what the weaker ones do, and more), and what it does not."""
    active = {graded.level for graded in results}
    return [
        (level, [PROMISES[weaker] for weaker in LEVELS[: place + 1]], " ".join([NOT_PROMISED[level], *notes(level)]))
        for place, level in enumerate(LEVELS)
        if level in active
    ]


def _chapters(results: Sequence[Graded]) -> list[Chapter]:
    could_be = [graded for graded in results if graded.reports]
    names = sorted({graded.chapter for graded in could_be})
    return [_chapter(name, [graded for graded in could_be if graded.chapter == name]) for name in names]


def _chapter(name: str, graded: Sequence[Graded]) -> Chapter:
    rows = [(one, {report.exercise: report for report in one.reports}) for one in graded]
    exercises = {report.exercise: report.name for one in graded for report in one.reports}
    answers = {id: [found[id] for _, found in rows if id in found] for id in exercises}
    counts = {id: Counter(report.outcome for report in reports) for id, reports in answers.items()}
    mistakes = [
        (id, says, count)
        for id, reports in answers.items()
        for says, count in Counter(report.mistake for report in reports if report.mistake).most_common()
    ]
    plot = drawings.outcomes(name, exercises, counts)
    matches = similarity.same_trees(graded)
    return Chapter(name, rows, exercises, counts, mistakes, matches, plot, similarity.solution(name).is_file())


def _number(points: float) -> str:
    return f"{round(points, 2):g}"


def _when(submitted: str, zone: tzinfo) -> str:
    """The time in the class's zone; one without a zone is taken to be in it."""
    at = datetime.fromisoformat(submitted)
    return f"{at.astimezone(zone) if at.tzinfo else at:%Y-%m-%d %H:%M}"


def _page_of(learner: str) -> str:
    return f"learners/{safe_name(learner)}.html"


def _save(page: str, path: Path) -> None:
    write_atomically(path, page.encode())
