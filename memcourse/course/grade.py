"""Notebooks to reports: each answer is rebuilt from the notebook's definitions and checked in the sandbox."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from memcourse.course import sandbox
from memcourse.course.answers import Definitions, NotACourseNotebook, Notebook, collect, read
from memcourse.course.checks import CHAPTERS, chapter_of, exercises, find
from memcourse.course.classroom.pool import Pool
from memcourse.course.exercise import Exercise, Outcome, Report
from memcourse.course.start import find_copy, learner_of

AT_A_TIME = 2
COLORS = {"passed": "green", "wrong": "red", "crashed": "magenta", "not attempted": "dim"}


@dataclass(frozen=True)
class Task:
    """One exercise of one notebook, as it goes to a grading process."""

    path: Path
    chapter: str
    exercise: str
    name: str
    definitions: Definitions


@dataclass(frozen=True)
class NotebookReport:
    path: Path
    chapter: str
    reports: tuple[Report, ...]

    @property
    def points(self) -> float:
        return sum(report.points for report in self.reports)

    @property
    def max_points(self) -> float:
        return sum(report.max_points for report in self.reports)

    def to_dict(self) -> dict[str, Any]:
        totals = {"points": self.points, "max_points": self.max_points}
        return {
            "notebook": str(self.path),
            "chapter": self.chapter,
            **totals,
            "reports": [asdict(r) for r in self.reports],
        }

    def __rich__(self) -> RenderableType:
        """A table of the answers, and under it what the failing ones should know."""
        table = Table(title=f"{self.path}", title_justify="left", show_footer=True)
        table.add_column("exercise", "total", no_wrap=True)
        table.add_column("points", f"{self.points} of {self.max_points}", justify="right", no_wrap=True)
        table.add_column("outcome", no_wrap=True)
        for report in self.reports:
            outcome = "checks passed" if report.outcome == "passed" else report.outcome
            table.add_row(
                f"{report.exercise} {report.name}",
                f"{report.points} of {report.max_points}",
                Text(outcome, style=COLORS[report.outcome]),
            )
        failures = [report for report in self.reports if report.outcome in ("wrong", "crashed")]
        return Group(table, *(Padding(Text(as_text(report)), (1, 0, 0, 0)) for report in failures))


def as_text(report: Report) -> str:
    """The report as a terminal shows it: `hint` is a command there."""
    return str(report).replace(f'hint("{report.exercise}")', f"memcourse hint {report.exercise}")


def default_notebooks() -> list[Path]:
    """The exercise notebooks of the learner's copy. Raises NotACourseNotebook where there are none."""
    copy = find_copy()
    found = sorted((copy / "exercises").glob("*.ipynb")) if copy else []
    if not found:
        raise NotACourseNotebook(
            "There is no copy of the course here: go to its folder, make one with `memcourse start`, "
            "or name a notebook."
        )
    return found


def notebook_of(exercise: Exercise) -> Path:
    """The notebook of the learner's copy that asks this exercise. Raises NotACourseNotebook without one."""
    chapter = chapter_of(exercise)
    named = [path for path in default_notebooks() if path.stem == chapter]
    if not named:
        raise NotACourseNotebook(
            f"Your copy of the course has no exercises/{chapter}.ipynb: `memcourse start` brings it back."
        )
    return named[0]


def own(exercise: Exercise, notebook: Path) -> Exercise:
    """The exercise in the variant of the learner whose copy holds the notebook, where the copy has a name."""
    from memcourse.course.variants import variant

    learner = learner_of(find_copy(notebook.parent))
    return variant(exercise, learner) if learner else exercise


def grade(paths: Sequence[str | Path], *, check: Callable[..., Report] | None = None) -> list[NotebookReport]:
    """Grade every exercise of these notebooks, two answers at a time. All are read before any answer runs.

    check: in place of `check_answer`, and with its arguments. Raises NotACourseNotebook where a notebook cannot be
    graded, and sandbox.SandboxFault where no process can be started.
    """
    notebooks = [(Path(path), read(path)) for path in paths]
    tasks = [
        Task(path, chapter, exercise.id, exercise.name, collect(notebook.cells))
        for path, notebook in notebooks
        for chapter in _chapters(notebook)
        for exercise in exercises(chapter)
    ]
    found = _two_at_a_time(partial(_check, check or check_answer), tasks)
    graded: dict[tuple[Path, str], list[Report]] = {}
    for task in tasks:
        graded.setdefault((task.path, task.chapter), []).append(found[task.path, task.exercise])
    return [NotebookReport(path, chapter, tuple(reports)) for (path, chapter), reports in graded.items()]


def check_answer(
    exercise: Exercise,
    definitions: Definitions,
    *,
    folder: Path | None = None,
    seconds: float | None = None,
    level: str | None = None,
) -> Report:
    """Grade one exercise from a notebook's definitions. Raises SandboxFault where no process can start.

    folder, seconds, level: as in `sandbox.run`, which runs in one thread of a process.
    """
    name = exercise.name

    def report(outcome: Outcome, message: str) -> Report:
        return Report(exercise.id, name, outcome, 0, exercise.points, message=message)

    if fault := definitions.broken(name):
        return report("crashed", str(fault))
    if name not in definitions:
        if name in definitions.mentioned:
            return report("crashed", _not_carried(name, definitions))
        return report("not attempted", f"The notebook does not define `{name}`.")
    found = sandbox.run(exercise, definitions.closure(name), folder=folder, seconds=seconds, level=level)
    missing = definitions.missing(name)
    if found.outcome == "passed" or not missing:
        return found
    if found.outcome == "not attempted" and name not in missing:
        return found
    attempted: Outcome = "crashed" if found.outcome == "not attempted" else found.outcome
    notes = [_not_carried(used, definitions) for used in missing]
    return dataclasses.replace(found, outcome=attempted, message="\n".join([found.message, *notes]).strip())


def _not_carried(name: str, definitions: Definitions) -> str:
    statement = definitions.rebound(name)
    if statement is None:
        return f"`{name}` is not defined in the notebook."
    return (
        f"`{name}` is not carried into grading: cell {statement.cell}, line {statement.line} is\n"
        f"    {statement.source}\n"
        "and grading takes imports, functions, classes and simple constants, not the results of calls."
    )


def _chapters(notebook: Notebook) -> list[str]:
    """The chapter that the notebook names, or those whose answers it holds."""
    if notebook.chapter in CHAPTERS:
        return [notebook.chapter]
    names = collect(notebook.cells).mentioned
    return [chapter for chapter in CHAPTERS if not names.isdisjoint(exercise.name for exercise in exercises(chapter))]


def _check(check: Callable[..., Report], task: Task) -> Report:
    return check(own(find(task.exercise), task.path), task.definitions, folder=task.path.parent)


def _two_at_a_time(work: Callable[[Task], Report], tasks: Sequence[Task]) -> dict[tuple[Path, str], Report]:
    """(notebook, exercise id) -> report.  Raises what grading raised, and starts no more."""
    columns = (TextColumn("Grading"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    found: dict[tuple[Path, str], Report] = {}
    with (
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
        Pool(AT_A_TIME) as pool,
    ):
        shown = progress.add_task("", total=len(tasks))
        for task, outcome in pool.each(work, tasks):
            if isinstance(outcome, Exception):
                raise outcome
            found[task.path, task.exercise] = outcome
            running = ", ".join(f"{other.exercise} {other.name}" for other in pool.running)
            progress.update(shown, completed=len(found), description=running)
    return found
