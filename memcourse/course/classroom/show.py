"""What a run shows in the terminal: how far it is, and at its end who has which points and what could not be graded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from memcourse.course.classroom.results import Graded, to_dict


class Meter:
    """A bar on stderr, where that is a terminal: submissions, answers, and whose are being graded."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        what = TextColumn("{task.description}", markup=False)
        columns = (TextColumn("Grading"), BarColumn(), MofNCompleteColumn(), what)
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task("reading the submissions", total=None)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, total: int, results: Sequence[Graded]) -> None:
        self.progress.update(self.task, total=total)
        self.show(results, [])

    def show(self, results: Sequence[Graded], running: Sequence[str]) -> None:
        answers = sum(len(found.reports) for found in results)
        said = ", ".join([f"{answers} answers", *running])
        self.progress.update(self.task, completed=len(results), description=said)


def summary(results: Sequence[Graded], level: str, out: Any, notes: Sequence[str]) -> RenderableType:
    """A table of points, the faults below it, how answers were confined, and where the report lies."""
    table = Table()
    for heading, justify in (("learner", "left"), ("chapter", "left"), ("passed", "right"), ("points", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("")
    for found in results:
        if not found.fault:
            passed = sum(report.outcome == "passed" for report in found.reports)
            table.add_row(
                Text(found.learner),
                found.chapter,
                f"{passed} of {len(found.reports)}",
                f"{found.points:g} of {found.max_points:g}",
                Text("; ".join(filter(None, [found.late, found.note]))),
            )
    faults = [Padding(Text(found.refusal), (0, 0, 0, 2)) for found in results if found.fault]
    above = [Text(f"Could not be graded: {len(faults)}")] if faults else []
    ends = [*notes, f"Answers were confined at the level {level!r}.", f"The report: {out}/index.html"]
    return Group(*([table] if table.row_count else []), *above, *faults, *map(Text, ends))


def document(title: str, results: Sequence[Graded], level: str, out: Any, notes: Sequence[str]) -> dict[str, Any]:
    """The same, for a program to read."""
    return {
        "title": title,
        "report": str(out),
        "level": level,
        "notes": list(notes),
        "results": [to_dict(found) for found in results],
    }
