"""Grade the hostile submissions and print, for each level, what they achieved."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from memcourse.course.runner import confine

from . import GROUPS, SUBMISSIONS
from .grading import Run, grade
from .submission import LEVELS, Submission

FIGURES = ("tried", "forged", "harmed", "crashes", "left or changed", "beyond promise", "succeeded")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="submissions or groups; left out: all of them")
    parser.add_argument("--level", choices=LEVELS, help="left out: every level that this system offers")
    parser.add_argument("--messages", action="store_true", help="show what each learner is told")
    asked = parser.parse_args()
    chosen = [one for name in asked.names or GROUPS for one in GROUPS.get(name) or [SUBMISSIONS[name]]]
    table = Table("level", *FIGURES)
    for level in [asked.level] if asked.level else confine.available():
        table.add_row(level, *map(str, figures(chosen, level, asked.messages)))
    Console().print(table)


def figures(chosen: Sequence[Submission], level: str, messages: bool) -> tuple[int, ...]:
    """One row of the table. What a level does not promise is tried apart: it may spoil the place for the others.

    Of that, those succeeded that got points or harmed a neighbour; what they left or changed stands in the details.
    """
    promised = grade([one for one in chosen if one.promised_at(level)], level)
    beyond = grade([one for one in chosen if not one.promised_at(level)], level)
    for run in (promised, beyond):
        print("\n".join(details(run, messages)), flush=True)
    return (
        len(promised.verdicts),
        sum(verdict.points > 0 for verdict in promised.verdicts),
        sum(verdict.harmed for verdict in promised.verdicts),
        int(bool(promised.crash)) + sum(verdict.unanswered for verdict in promised.verdicts),
        len(promised.changed) + len(promised.left) + len(promised.unsafe),
        len(beyond.verdicts),
        sum(verdict.points > 0 or verdict.harmed for verdict in beyond.verdicts),
    )


def details(run: Run, messages: bool) -> Iterator[str]:
    yield f"{run.level}: {len(run.verdicts)} submissions in {run.seconds:.0f} s"
    for verdict in run.verdicts:
        found = [f"{verdict.points:g} points forged"] if verdict.points else []
        found += ["its neighbour was harmed"] if verdict.harmed else []
        found += ["no line in the report"] if verdict.unanswered else []
        found += verdict.faults
        if found or messages:
            yield f"  {verdict.submission.name}: {'; '.join(found) or 'nothing'}"
        if found and not messages:
            yield from (f"      {line}" for message in verdict.messages for line in message[:300].splitlines()[:3])
        if messages:
            yield from (f"      {line}" for message in verdict.messages for line in message.splitlines())
    for what in ("crash", "changed", "left", "unsafe"):
        if getattr(run, what):
            yield f"  {what}: {getattr(run, what)}"


if __name__ == "__main__":
    main()
