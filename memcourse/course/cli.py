"""The command line, `memcourse`: each command loads what it needs when it is called, so that help comes at
once.

Exit codes: 0 done (for `check`: passed), 1 a check not passed or a fault found by `doctor`, 2 cannot: one
sentence on stderr, nothing written. Ctrl-C: 130.
"""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from memcourse import __version__
from memcourse.course import datastore_commands
from memcourse.course.classroom import commands

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(datastore_commands.app, name="datastore", help="Build a datastore from text, and look into it.")
app.add_typer(commands.app)
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]
ExerciseId = Annotated[
    str, typer.Argument(metavar="ID", help="The exercise's number, such as 1.2.", show_default=False)
]
Folder = Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where your copy of the course is, or will be.")]


def _for_a_class(help: str, **more: Any) -> Any:
    return typer.Option(help=help, rich_help_panel="For a class", show_default=False, **more)


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point: what a person can mend is one sentence on stderr, a fault of ours shows whole."""
    try:
        app(args=arguments, prog_name="memcourse")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if not isinstance(error, _expected()):
            raise
        print(error, file=sys.stderr)
        sys.exit(2)


def _expected() -> tuple[type[Exception], ...]:
    from memcourse.course.answers import NotACourseNotebook
    from memcourse.course.checks import UnknownExercise
    from memcourse.course.classroom import CannotGrade
    from memcourse.course.datastore_commands import Refused
    from memcourse.course.sandbox import SandboxFault
    from memcourse.course.start import CannotStart
    from memcourse.downloads import DataError

    return CannotGrade, CannotStart, DataError, NotACourseNotebook, Refused, SandboxFault, UnknownExercise


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"memcourse {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def help_first(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """How neural networks remember: a course in notebooks, its exercises, and the checks that answer them.

    Begin with `memcourse lab`. It makes your own copy of the course in the folder *my_course* and opens the
    first chapter in JupyterLab. Read a chapter, then do its exercises; `memcourse grade` tells you how far
    you are.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def start(
    folder: Folder = Path("my_course"),
    learner: Annotated[
        str | None, typer.Option(help="Your name, where your class has a variant of some exercises for each learner.")
    ] = None,
) -> None:
    """Make your copy of the course, or bring it up to date.

    Files that you have changed are yours and are never overwritten.
    """
    from memcourse.course.start import start

    print(start(folder, learner=learner))


@app.command()
def lab(folder: Folder = Path("my_course")) -> None:
    """Make your copy of the course and open it in JupyterLab, at the first chapter."""
    from memcourse.course.start import lab

    lab(folder)


@app.command()
def check(
    exercise: ExerciseId,
    notebook: Annotated[
        Path | None, typer.Option(help="The notebook that holds your answer, if not the one in your copy.")
    ] = None,
    json: Json = False,
) -> None:
    """Check your answer to one exercise, as it is saved in your notebook.

    It runs in a process of its own, with a limit on time and on memory. The exit code is 0 when the checks
    pass.
    """
    from memcourse.course.answers import collect, read
    from memcourse.course.checks import find
    from memcourse.course.grade import as_text, check_answer, notebook_of, own

    asked = find(exercise)
    path = notebook or notebook_of(asked)
    report = check_answer(own(asked, path), collect(read(path).cells), folder=path.parent)
    _record([report], path)
    print(report.to_json() if json else as_text(report))
    for sentence in () if json else _own_numbers([report], path).values():
        print(f"  {sentence}")
    raise typer.Exit(0 if report.outcome == "passed" else 1)


@app.command()
def hint(exercise: ExerciseId) -> None:
    """Show the next hint for an exercise: there are three, from a nudge to nearly the answer.

    They are counted, and cost no points.
    """
    from memcourse.course.checks import find
    from memcourse.course.notebook import hint

    hint(find(exercise).id)


@app.command()
def question(
    exercise: ExerciseId,
    learner: Annotated[str, typer.Option(help="Whose numbers. Left out: those of your copy.")] = "",
) -> None:
    """Show what an exercise asks, with your own numbers where your class has variants."""
    from memcourse.course.checks import find
    from memcourse.course.variants import name_of_learner, show

    print(show(find(exercise), learner or name_of_learner()))


@app.command()
def progress(json: Json = False) -> None:
    """Show which exercises you have passed, and how many points that makes."""
    from rich.console import Console

    from memcourse.course.progress import rows, table
    from memcourse.course.start import find_copy

    found = rows(find_copy())
    _print_json(found) if json else Console().print(table(found))


@app.command()
def grade(
    notebooks: Annotated[
        list[Path] | None,
        typer.Argument(help="The notebooks to grade. Left out: those of your copy.", show_default=False),
    ] = None,
    json: Json = False,
    out: Annotated[
        Path | None, _for_a_class("Grade a folder of submissions, and write the report into this folder.")
    ] = None,
    config: Annotated[Path | None, _for_a_class("The class's TOML file: points, deadlines, late rules, names.")] = None,
    extra_checks: Annotated[Path | None, _for_a_class("A folder of checks that learners do not see.")] = None,
    level: Annotated[
        str | None, _for_a_class("How answers are confined: limits, seccomp, namespaces. Left out: the strongest here.")
    ] = None,
    workers: Annotated[
        int | None, _for_a_class("How many submissions at a time. Left out: one for each core.", min=1)
    ] = None,
) -> None:
    """Grade notebooks: every exercise in them, each answer in a process of its own.

    Grading takes the definitions out of a notebook and does not run the notebook itself, so cells may be
    copied, moved or broken: that costs nothing beyond the answers they hold.

    For a class: `memcourse grade submissions/ --out report/` grades a folder of notebooks, of zips, or of one
    folder for each learner. Stopped, the same command goes on from there.
    """
    if out is not None:
        _grade_class(notebooks or [], out, config, extra_checks, level, workers, json)
        return
    if any(option is not None for option in (config, extra_checks, level, workers)):
        raise typer.BadParameter("--config, --extra-checks, --level and --workers go with --out, for a class.")
    if folder := next((path for path in notebooks or [] if path.is_dir()), None):
        raise typer.BadParameter(f"{folder} is a folder: to grade a class, say with --out where its report goes.")
    from memcourse.course.grade import default_notebooks, grade

    graded = grade(notebooks or default_notebooks())
    for notebook in graded:
        _record(notebook.reports, notebook.path)
    if json:
        _print_json([notebook.to_dict() for notebook in graded])
        return
    from rich.console import Console

    for notebook in graded:
        Console().print(notebook)
        for id, sentence in _own_numbers(notebook.reports, notebook.path).items():
            print(f"{id}: {sentence}")


def _grade_class(
    folders: Sequence[Path],
    out: Path,
    config: Path | None,
    extra_checks: Path | None,
    level: str | None,
    workers: int | None,
    json: bool,
) -> None:
    if len(folders) != 1:
        raise typer.BadParameter("With --out, name one folder of submissions.")
    from rich.console import Console

    from memcourse.course.classroom import CannotGrade

    try:
        from memcourse.course.classroom import class_config, show
        from memcourse.course.classroom.run import Interrupted, grade_class
    except ModuleNotFoundError as error:
        needed = f"Grading a class needs {error.name}, which is not installed: pip install 'memcourse[course]'"
        raise CannotGrade(needed) from None

    described = class_config.read(config) if config else class_config.ClassConfig()
    try:
        graded = grade_class(folders[0], out, described, extra=extra_checks, level=level, workers=workers)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        raise typer.Exit(130) from None
    if json:
        _print_json(show.document(described.title, graded.results, graded.rules.level, out, graded.notes))
    else:
        Console().print(show.summary(graded.results, graded.rules.level, out, graded.notes))


@app.command()
def doctor(json: Json = False) -> None:
    """Say what is installed, which devices are seen, and what is wrong, with the command that mends it."""
    from memcourse.course.doctor import run

    raise typer.Exit(run(json))


@app.command()
def data(
    name: Annotated[
        str | None,
        typer.Argument(help="The data set to download. Left out: all are listed.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """List the data sets with their sizes, licences and sources, or download one.

    The chapters need none of them. A download is verified by its checksum, and goes on where it was
    interrupted.
    """
    from memcourse import corpora

    if name is not None:
        try:
            folder = corpora.download(name)
        except ValueError as error:  # there is no such data
            raise corpora.DataError(str(error)) from None
        _print_json({"name": name, "folder": str(folder)}) if json else print(f"{name} is ready in {folder}.")
        return
    rows = corpora.catalog()
    if json:
        _print_json([row._asdict() for row in rows])
        return
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for heading in ("name", "MB", "licence", "source", "state"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "MB" else "left")
    for row in rows:
        table.add_row(row.name, f"{row.megabytes:.1f}", row.licence, row.source, row.state)
    Console().print(table)


def _record(reports: Sequence[Any], notebook: Path) -> None:
    """Note the results in the notebook's own copy; neither a solution nor a notebook from elsewhere counts."""
    from memcourse.course import progress
    from memcourse.course.start import find_copy

    copy = find_copy(notebook.parent)
    if copy is None or not notebook.resolve().is_relative_to(copy) or notebook.resolve().parent.name == "solutions":
        return
    try:
        for report in reports:
            progress.record(report, copy)
    except progress.NotRecorded as fault:
        print(fault, file=sys.stderr)


def _own_numbers(reports: Sequence[Any], notebook: Path) -> dict[str, str]:
    """Exercise id -> where the learner whose copy holds the notebook finds their numbers, until they pass."""
    from memcourse.course.checks import find
    from memcourse.course.start import find_copy, learner_of
    from memcourse.course.variants import reminder

    learner = learner_of(find_copy(notebook.parent))
    said = {
        r.exercise: reminder(find(r.exercise), r.outcome, learner, f"`memcourse question {r.exercise}`")
        for r in reports
    }
    return {id: sentence for id, sentence in said.items() if sentence}


def _print_json(document: Any) -> None:
    print(json_module.dumps(document, indent=2))
