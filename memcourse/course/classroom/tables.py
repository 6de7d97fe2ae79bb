"""The results as CSV: `results.csv`, for a gradebook, has a row for each submission, `exercises.csv` for an answer."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from memcourse.course.classroom.results import Graded
from memcourse.course.start import write_atomically

STARTS_A_FORMULA = tuple("=+-@\t\r\n")


def write(results: Sequence[Graded], out: Path, zone: tzinfo) -> None:
    ids = sorted(
        {report.exercise for graded in results for report in graded.reports},
        key=lambda id: [int(part) if part.isdigit() else 0 for part in id.split(".")],
    )
    totals = ("raw_points", "points", "max_points", "late", "days_late", "share")
    about = ("learner", "chapter", *ids, *totals, "submitted", "fault", "source")
    _write(out / "results.csv", about, (_row(graded, ids, zone) for graded in results))
    each = ("learner", "chapter", "exercise", "name", "outcome", "points", "max_points", "mistake", "seconds")
    _write(
        out / "exercises.csv",
        each,
        (
            (g.learner, g.chapter, r.exercise, r.name, r.outcome, r.points, r.max_points, r.mistake or "", r.seconds)
            for g in results
            for r in g.reports
        ),
    )


def _row(graded: Graded, ids: Sequence[str], zone: tzinfo) -> tuple[Any, ...]:
    points = {report.exercise: report.points for report in graded.reports}
    late = (graded.late, graded.days_late, graded.share)
    totals = (graded.raw_points, graded.points, graded.max_points, *late) if graded.reports else ("",) * 6
    submitted = datetime.fromisoformat(graded.submitted).astimezone(zone).isoformat() if graded.submitted else ""
    each = (points.get(id, "") for id in ids)
    return (graded.learner, graded.chapter, *each, *totals, submitted, graded.fault, graded.source)


def _write(path: Path, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(heading)
    writer.writerows([_cell(value) for value in row] for row in rows)
    write_atomically(path, text.getvalue().encode("utf-8-sig"))  # spreadsheets take it for Latin-1 without the mark


def _cell(value: Any) -> Any:
    """A spreadsheet computes what looks like a formula, and a learner may choose their own name."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return f"'{value}" if isinstance(value, str) and value.startswith(STARTS_A_FORMULA) else value
