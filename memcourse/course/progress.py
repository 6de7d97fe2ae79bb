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
from html import escape
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
COUNTS = "The best outcome of each exercise counts."
WORST_TO_BEST: tuple[Outcome, ...] = ("not attempted", "crashed", "wrong", "passed")


@dataclass
class Record:
    """One exercise: the best outcome so far, its points, checks, hints seen, the first pass, the last check or hint."""

    outcome: Outcome = "not attempted"
    points: float = 0
    attempts: int = 0
    hints: int = 0
    passed_at: str | None = None
    last_at: str | None = None


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
        kept.last_at = _now()
        if report.outcome == "passed" and kept.passed_at is None:
            kept.passed_at = kept.last_at


def record_hint(id: str, number: int, folder: Path | None) -> None:
    """Hint `number`, counted from 1, has been seen.  Raises NotRecorded."""
    with _changing(id, folder) as kept:
        kept.hints = max(kept.hints, number)
        kept.last_at = _now()


def read(folder: Path | None) -> dict[str, Record]:
    """The records by exercise id; empty where there are none yet, or where the file cannot be read."""
    if folder is None:
        return _unsaved
    try:
        return _parse((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return {}


def rows(folder: Path | None) -> list[dict[str, Any]]:
    """One row for each exercise, in the order of the course, as `memcourse progress --json` prints them.

    `next` is true in one of them: the exercise to do next, unless all are passed.
    """
    records = read(folder)
    found = [
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
    following = _following(found)
    return [row | {"next": row is following} for row in found]


def _following(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first that is not passed of the chapter that the learner was in last, or else of the chapters after it."""
    last = max(reversed(rows), key=lambda row: (_begun([row]), row["last_at"] or ""))  # of several, the furthest
    chapters = list(CHAPTERS)
    here = chapters.index(last["chapter"]) if _begun([last]) else 0
    left = [row for row in rows if row["outcome"] != "passed"]
    return min(left, key=lambda row: (chapters.index(row["chapter"]) - here) % len(chapters), default=None)


def _begun(rows: Sequence[dict[str, Any]]) -> bool:
    return any(row["attempts"] or row["hints"] for row in rows)


def what_next(rows: Sequence[dict[str, Any]]) -> str:
    """What to do next, in a sentence or two."""
    following = next((row for row in rows if row["next"]), None)
    if following is None:
        return "All done."
    chapter, id = following["chapter"], following["exercise"]
    read = (
        "" if _begun([row for row in rows if row["chapter"] == chapter]) else f"read chapters/{chapter}.ipynb, then do "
    )
    so_far = {
        "not attempted": "",
        "crashed": " Your answer crashed so far:",
        "wrong": " Your answer was wrong so far:",
    }[following["outcome"]]
    stuck = f'{so_far} `memcourse hint {id}`, or hint("{id}") in the notebook, helps.' if so_far else ""
    minutes = f"{following['minutes']} minute{'s' * (following['minutes'] != 1)}"
    return f"Next: {read}{id} {following['title']} ({minutes}), in exercises/{chapter}.ipynb.{stuck}"


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for a terminal: what is done, points by chapter, and the exercise to do next."""
    shown = Table(caption=f"{what_next(rows)}\n{COUNTS}", caption_justify="left", caption_style="")
    for heading, justify in (("", "right"), ("exercise", "left"), ("outcome", "left"), ("points", "right")):
        shown.add_column(heading, justify=justify)  # type: ignore[arg-type]
    shown.add_column("checks", justify="right")
    shown.add_column("hints", justify="right")
    for chapter, in_chapter in groupby(rows, key=itemgetter("chapter")):
        group = list(in_chapter)
        for row in group:
            shown.add_row(*_cells(row))
        passed, points = _totals(group)
        shown.add_section()
        shown.add_row("", chapter, passed, points, style="bold")
        shown.add_section()
    return shown


def html(rows: Sequence[dict[str, Any]]) -> str:
    """The rows for a notebook: a line for each chapter that unfolds to its exercises, the next one's unfolded."""
    parts = [f"<p>{escape(what_next(rows))}<br>{COUNTS}</p>"]
    headings = "".join(f"<th>{name}</th>" for name in ("", "exercise", "outcome", "points", "checks", "hints"))
    for chapter, in_chapter in groupby(rows, key=itemgetter("chapter")):
        group = list(in_chapter)
        unfolded = " open" if any(row["next"] for row in group) else ""
        link = f'<a href="../exercises/{chapter}.ipynb">{chapter}</a>'
        lines = ["".join(f"<td>{escape(cell)}</td>" for cell in _cells(row)) for row in group]
        body = "".join(f"<tr>{line}</tr>" for line in [headings, *lines])
        summary = f"<summary><b>{link}</b>: {', '.join(_totals(group))} points</summary>"
        parts.append(f"<details{unfolded}>{summary}<table>{body}</table></details>")
    return "\n".join(parts)


def _cells(row: dict[str, Any]) -> list[str]:
    """One exercise: number, title, outcome, points, checks, hints."""
    of = f"{row['points']} of {row['max_points']}"
    counts = [str(row[key]) if row[key] else "" for key in ("attempts", "hints")]
    return [row["exercise"], row["title"], OUTCOMES[row["outcome"]], of, *counts]


def _totals(rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """How many are passed, and the points."""
    passed = sum(row["outcome"] == "passed" for row in rows)
    points, most = (sum(row[key] for row in rows) for key in ("points", "max_points"))
    return f"{passed} of {len(rows)} passed", f"{points} of {most}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


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
