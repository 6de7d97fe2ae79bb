"""A class in one small TOML file: its chapters, points, deadlines and names."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from memcourse.course.checks import CHAPTERS, all_exercises
from memcourse.course.classroom import CannotGrade
from memcourse.course.classroom.deadlines import LateRule

GUIDE = "INSTRUCTORS.md shows a whole file."
KEYS = (
    "title",
    "time_zone",
    "chapters",
    "variants",
    "points",
    "deadlines",
    "late",
    "roster",
    "extra_days",
    "submitted",
)
LATE_KEYS = ("grace_minutes", "percent_per_day", "floor", "steps")
STEP_KEYS = ("days", "percent")


class BadConfig(CannotGrade):
    """The class's file cannot be used; the message names the key."""


@dataclass(frozen=True)
class ClassConfig:
    """What an instructor says about a class.

    chapters:    those that are graded; empty: all
    points:      exercise id -> the most that it gives, in place of the exercise's own points
    deadlines:   chapter -> the last moment
    roster:      another name, as it stands in a file's name -> the learner's name
    extra_days:  learner -> days after each deadline
    submitted:   chapter -> learner -> when it was handed in, in place of the file's own time
    """

    title: str = "Class"
    time_zone: tzinfo = UTC
    chapters: tuple[str, ...] = ()
    variants: bool = False
    points: Mapping[str, float] = field(default_factory=dict)
    deadlines: Mapping[str, datetime] = field(default_factory=dict)
    late: LateRule = LateRule()
    roster: Mapping[str, str] = field(default_factory=dict)
    extra_days: Mapping[str, float] = field(default_factory=dict)
    submitted: Mapping[str, Mapping[str, datetime]] = field(default_factory=dict)


def read(path: Path) -> ClassConfig:
    """The class that a TOML file describes.  Raises BadConfig, which names the file and the key."""
    try:
        return parse(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}.") from None
    except BadConfig as error:
        raise BadConfig(f"{path}: {error} {GUIDE}") from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise BadConfig(f"{path} is not TOML: {error}. {GUIDE}") from None


def parse(document: Mapping[str, Any]) -> ClassConfig:
    """Raises BadConfig for an unknown key, a wrong type, or a chapter or exercise that does not exist."""
    _all_known(document, KEYS, "key")
    plain = ClassConfig()
    zone = _zone(document["time_zone"]) if "time_zone" in document else plain.time_zone
    chapters = _list(document.get("chapters", []), "chapters")
    _all_known(chapters, CHAPTERS, "chapter", "chapters: ")
    points = _table(document, "points")
    ids = [exercise.id for exercise in all_exercises()]
    _all_known(points, ids, "exercise", "[points] ", 'An id stands in quotes: "1.2" = 5.')
    deadlines, submitted = _table(document, "deadlines"), _table(document, "submitted")
    _all_known(deadlines, CHAPTERS, "chapter", "[deadlines] ")
    _all_known(submitted, CHAPTERS, "chapter", "[submitted] ")
    return ClassConfig(
        title=_of_type(document.get("title", plain.title), str, "title", "a text in quotes"),
        time_zone=zone,
        chapters=tuple(chapters),
        variants=_of_type(document.get("variants", plain.variants), bool, "variants", "true or false"),
        points={id: _number(value, f"[points] {id}") for id, value in points.items()},
        deadlines={name: _moment(value, zone, f"[deadlines] {name}") for name, value in deadlines.items()},
        late=_late(_table(document, "late")),
        roster={
            alias: _of_type(name, str, f"[roster] {alias}", "a learner's name in quotes")
            for alias, name in _table(document, "roster").items()
        },
        extra_days={
            name: _number(days, f"[extra_days] {name}") for name, days in _table(document, "extra_days").items()
        },
        submitted={
            chapter: {
                name: _moment(value, zone, f"[submitted.{chapter}] {name}")
                for name, value in _table(submitted, chapter, "submitted.").items()
            }
            for chapter in submitted
        },
    )


def _late(rule: Mapping[str, Any]) -> LateRule:
    _all_known(rule, LATE_KEYS, "key", "[late] ")
    numbers = {key: _number(rule.get(key, 0), f"[late] {key}") for key in ("grace_minutes", "percent_per_day", "floor")}
    if "steps" in rule and "percent_per_day" in rule:
        raise BadConfig("[late] has both steps and percent_per_day: one of them is allowed.")
    steps = []
    for number, step in enumerate(_list(rule.get("steps", []), "[late] steps"), start=1):
        where = f"[late] steps, number {number}"
        if not isinstance(step, Mapping) or sorted(step) != sorted(STEP_KEYS):
            raise BadConfig(f"{where} is {step!r}; it should be {{days = 1, percent = 80}}.")
        steps.append((_number(step["days"], f"{where}, days"), _number(step["percent"], f"{where}, percent", 100)))
    return LateRule(
        grace=timedelta(minutes=numbers["grace_minutes"]),
        percent_per_day=_number(numbers["percent_per_day"], "[late] percent_per_day", 100),
        floor=_number(numbers["floor"], "[late] floor", 100),
        steps=tuple(sorted(steps)),
    )


def _all_known(names: Iterable[Any], allowed: Iterable[str], what: str, where: str = "", note: str = "") -> None:
    """Every one is allowed, or BadConfig names the first that is not, and the nearest that is."""
    known = list(allowed)
    for name in names:
        if name not in known:
            near = get_close_matches(str(name), known, n=1, cutoff=0.4)
            rest = f"The nearest is {near[0]!r}." if near else f"There are {', '.join(known)}."
            raise BadConfig(" ".join(filter(None, [f"{where}there is no {what} {name!r}.", rest, note])))


def _of_type(value: Any, kind: type, where: str, allowed: str) -> Any:
    if not isinstance(value, kind):
        raise BadConfig(f"{where} is {value!r}; it should be {allowed}.")
    return value


def _table(document: Mapping[str, Any], key: str, where: str = "") -> Mapping[str, Any]:
    return _of_type(document.get(key, {}), dict, f"{where}{key}", f"a table, [{where}{key}]")


def _list(value: Any, where: str) -> list[Any]:
    return _of_type(value, list, where, "a list in square brackets")


def _number(value: Any, where: str, most: float = 100_000) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise BadConfig(f"{where} is {value!r}; it should be a number from 0 to {most:,g}.")
    return value


def _moment(value: Any, zone: tzinfo, where: str) -> datetime:
    """A date means the end of that day; a time without a zone is in the class's."""
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=zone)
    day = _of_type(value, date, where, "a date or a time without quotes: 2026-10-12 or 2026-10-12T18:00:00+02:00")
    return datetime.combine(day, time.max, zone)


def _zone(name: Any) -> tzinfo:
    try:
        return ZoneInfo(_of_type(name, str, "time_zone", "a name in quotes"))
    except (OSError, ValueError, LookupError):
        raise BadConfig(f'time_zone is {name!r}; it should be a name like "Europe/Berlin" or "UTC".') from None
