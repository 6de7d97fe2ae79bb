"""The commands for the systems where a class hands in: Gradescope and GitHub Classroom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def gradescope(
    chapter: Annotated[str, typer.Option(help="The chapter to grade, such as 01_attention.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The zip to write.")] = Path("autograder.zip"),
    config: Annotated[Path | None, typer.Option(help="The class's TOML file.")] = None,
    extra_checks: Annotated[Path | None, typer.Option(help="A folder of checks that learners do not see.")] = None,
) -> None:
    """Pack a Gradescope autograder for one chapter: upload the zip where the assignment asks for an autograder."""
    from memcourse.course.classroom.gradescope import pack

    pack(out, chapter, config, extra_checks)
    print(f"{out} is ready: it grades {chapter}.")


@app.command()
def classroom_workflow(
    course: Annotated[
        str,
        typer.Option(help="What pip installs: an address, or memcourse==VERSION.", show_default=False),
    ],
) -> None:
    """Print the GitHub Classroom workflow, for .github/workflows/classroom.yml of the learners' template."""
    from memcourse.course.classroom.github import workflow

    print(workflow(course), end="")


@app.command()
def classroom_points(
    report: Annotated[Path, typer.Argument(help="The folder that `memcourse grade --out` wrote.")],
) -> None:
    """Print the points of a graded folder in the form that GitHub Classroom reads (its workflow calls this)."""
    from memcourse.course.classroom.github import output
    from memcourse.course.classroom.results import load_all

    print(output(load_all(report)))
