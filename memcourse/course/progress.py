"""What a learner has done, kept in progress.json in the copy of the course.

Each function takes the folder of a copy, or None where there is none: then it remembers until the process ends.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.table import Table

from memcourse.course.checks import CHAPTERS, exercises
from memcourse.course.exercise import Outcome, Report
from memcourse.course.start import write_atomically

FILE = "progress.json"
PATIENCE = 5.0  # seconds to wait for another kernel that is writing
OUTCOMES = {"not attempted": "", "crashed": "crashed", "wrong": "wrong", "passed": "passed"}  # as the table shows them
WORST_TO_BEST: tuple[Outcome, ...] = ("not attempted", "crashed", "wrong", "passed")


@dataclass
class Record:
    """One exercise: the best outcome so far, its points, how often it was checked, hints seen, the first pass."""

    outcome: Outcome = "not attempted"
    points: int = 0
    attempts: int = 0
    hints: int = 0
    passed_at: str | None = None


class NotRecorded(Exception):
    """Progress could not be written, or an unreadable file was set aside; the message is for the learner."""


_unsaved: dict[str, Record] = {}


def record(report: Report, folder: Path | None) -> None:
    """Count a check; one that was not attempted counts as nothing.  Raises NotRecorded."""
    if report.outcome == "not attempted":
        return
    with _changing(report.exercise, folder) as kept:
        kept.attempts += 1
        kept.points = max(kept.points, report.points)
        kept.outcome = max(kept.outcome, report.outcome, key=WORST_TO_BEST.index)
        if report.outcome == "passed" and kept.passed_at is None:
            kept.passed_at = datetime.now(UTC).isoformat(timespec="seconds")


def record_hint(id: str, number: int, folder: Path | None) -> None:
    """Hint `number`, counted from 1, has been seen.  Raises NotRecorded."""
    with _changing(id, folder) as kept:
        kept.hints = max(kept.hints, number)


def read(folder: Path | None) -> dict[str, Record]:
    """The records by exercise id; empty where there are none yet, or where the file cannot be read."""
    if folder is None:
        return _unsaved
    try:
        return _parse((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return {}


def rows(folder: Path | None) -> list[dict[str, Any]]:
    """One row for each exercise, in the order of the course, as `memcourse progress --json` prints them."""
    records = read(folder)
    return [
        {
            "chapter": chapter,
            "exercise": exercise.id,
            "name": exercise.name,
            "title": exercise.title,
            "minutes": exercise.minutes,
            "max_points": exercise.points,
            **asdict(records.get(exercise.id, Record())),
        }
        for chapter in CHAPTERS
        for exercise in exercises(chapter)
    ]


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for a person: what is done, points by chapter, and the exercise to do next."""
    left = [row for row in rows if row["outcome"] != "passed"]
    following = [f"Next: {row['exercise']} {row['title']} ({row['minutes']} minutes)" for row in left[:1]]
    shown = Table(caption=(following or ["All done."])[0], caption_justify="left", caption_style="")
    for heading, justify in (("", "right"), ("exercise", "left"), ("outcome", "left"), ("points", "right")):
        shown.add_column(heading, justify=justify)  # type: ignore[arg-type]
    shown.add_column("checks", justify="right")
    shown.add_column("hints", justify="right")
    for chapter, in_chapter in groupby(rows, key=itemgetter("chapter")):
        group = list(in_chapter)
        for row in group:
            of = f"{row['points']} of {row['max_points']}"
            counts = [str(row[key]) if row[key] else "" for key in ("attempts", "hints")]
            shown.add_row(row["exercise"], row["title"], OUTCOMES[row["outcome"]], of, *counts)
        passed = sum(row["outcome"] == "passed" for row in group)
        points, most = (sum(row[key] for row in group) for key in ("points", "max_points"))
        shown.add_section()
        shown.add_row("", chapter, f"{passed} of {len(group)} passed", f"{points} of {most}", style="bold")
        shown.add_section()
    return shown


@contextmanager
def _changing(id: str, folder: Path | None) -> Iterator[Record]:
    """The record of one exercise, to be changed inside `with`; nobody else writes meanwhile, and nobody sees half."""
    if folder is None:
        yield _unsaved.setdefault(id, Record())
        return
    path, note = folder / FILE, ""
    try:
        with FileLock(folder / f".{FILE}.lock", timeout=PATIENCE):
            try:
                records = _parse(path.read_bytes()) if path.exists() else {}
            except ValueError:
                aside = path.with_name(f"progress.unreadable-{time.time_ns()}.json")
                os.replace(path, aside)
                records, note = {}, f"{FILE} could not be read: it is kept as {aside.name}, and counting starts afresh."
            yield records.setdefault(id, Record())
            text = json.dumps({id: asdict(kept) for id, kept in sorted(records.items())}, indent=2)
            write_atomically(path, f"{text}\n".encode())
    except Timeout:
        raise NotRecorded(f"Progress was not recorded: another program holds {FILE}.") from None
    except OSError as error:
        raise NotRecorded(f"Progress was not recorded: {error}.") from None
    if note:
        raise NotRecorded(note)


def _parse(text: bytes) -> dict[str, Record]:
    """Raises ValueError for whatever this module did not write."""
    try:
        records = {id: Record(**fields) for id, fields in json.loads(text).items()}
    except (AttributeError, TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    for kept in records.values():
        counts = (kept.points, kept.attempts, kept.hints)
        if kept.outcome not in WORST_TO_BEST or not all(type(count) is int for count in counts):
            raise ValueError(f"not a record: {kept}")
    return records
