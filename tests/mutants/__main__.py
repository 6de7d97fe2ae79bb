"""`python -m tests.mutants`, or `make mutants`: change the solutions, and see whether the checks notice."""

from __future__ import annotations

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch: a process that has used a GPU must not be forked

import subprocess
import time
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import report as reports
from .run import ROOT, chapter_of, code_exercises, depends_on, outcomes


def main(
    only: Annotated[list[str] | None, typer.Option(help="An exercise such as 1.2, or a chapter: 01_attention.")] = None,
    changed: Annotated[bool, typer.Option("--changed", help="Only where the report is out of date.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="REVISION", help="Only where the report of this revision is out of date.")
    ] = None,
) -> None:
    """Run the mutants, write report.json after every exercise, and print what survives."""
    torch.set_num_threads(1)
    console = Console(highlight=False, soft_wrap=True)
    every = code_exercises()
    asked = [exercise for exercise in every if not only or exercise.id in only or chapter_of(exercise) in only]
    if not asked:
        raise typer.BadParameter(
            f"no exercise whose answer is code, and no chapter, is called {' or '.join(only or [])}"
        )
    current = reports.load()
    known = reports.load(_report_at(since)) if since else current if changed else {}
    stamps = {exercise.id: depends_on(exercise) for exercise in asked}  # now: a file may change while they run
    wanted = [
        exercise for exercise in asked if getattr(known.get(exercise.id), "depends_on", "") != stamps[exercise.id]
    ]
    given = reports.explanations()
    for exercise in wanted:
        start = time.perf_counter()
        current[exercise.id] = reports.found(outcomes(exercise), stamps[exercise.id])
        current = {e.id: current[e.id] for e in every if e.id in current}  # in order, and none that is gone
        reports.save(reports.explained(current, given))
        tried = current[exercise.id].tried
        console.print(f"{exercise.id} {exercise.name}: {tried} mutants in {time.perf_counter() - start:.0f} s")
    current = reports.explained(current, given)
    reports.save(current)
    _print(console, current)
    faults = list(reports.problems(current, given))
    for fault in faults:
        console.print(fault, markup=False, style="red")
    raise typer.Exit(bool(faults))


def _report_at(revision: str) -> str:
    """The report as git has it at a revision; an empty one where there is none, so that everything runs."""
    path = f"{revision}:./tests/mutants/report.json"
    try:
        return subprocess.run(["git", "show", path], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "{}"


def _print(console: Console, report: reports.Report) -> None:
    table = Table()
    for column in ("chapter", "exercises", "mutants", "caught", "equivalent", "share caught"):
        table.add_column(column, justify="left" if column == "chapter" else "right")
    for chapter, of in reports.by_chapter(report).items():
        found = reports.figures(of.values())
        numbers = [str(found[name]) for name in ("tried", "caught", "equivalent")]
        table.add_row(chapter, str(len(of)), *numbers, f"{found['share']:.1%}")
    console.print(table)
    for id, exercise in report.items():
        for survivor in exercise.survivors:
            if survivor.why:
                console.print(Text(f"{id} survives\n{survivor}\n  {survivor.why}"))


if __name__ == "__main__":
    typer.run(main)
