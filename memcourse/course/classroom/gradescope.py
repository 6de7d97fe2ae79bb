"""Gradescope: results in the form that it reads, and a zip that makes it grade one chapter of this course."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from memcourse.course.checks import CHAPTERS
from memcourse.course.classroom import CannotGrade, class_config
from memcourse.course.classroom.printable import printable
from memcourse.course.classroom.results import Graded, safe_name
from memcourse.course.exercise import Report
from memcourse.course.start import repository, write_atomically

TEMPLATES = Path(__file__).parent / "templates" / "gradescope"
CONFIG, EXTRA_CHECKS, NOT_FINISHED = "class.toml", "extra_checks", "not_finished.json"  # as they are called in the zip
LONG_AGO = (2020, 1, 1, 0, 0, 0)  # of every file in the zip, so that equal zips are equal


class CannotPack(CannotGrade):
    """There is nothing to pack the autograder from, or no such chapter; the message is one sentence."""


def results_json(graded: Sequence[Graded]) -> dict[str, Any]:
    """The content of results.json. The score is that after the late rule, so it may be less than the tests' sum."""
    return {
        "score": round(sum(one.points for one in graded), 6),
        "execution_time": round(sum(one.seconds for one in graded), 3),
        "output": "\n".join(line for one in graded for line in _about(one)),
        "output_format": "text",
        "stdout_visibility": "hidden",
        "tests": [test for one in graded for test in _tests(one)],
    }


def write(results: Sequence[Graded], folder: Path) -> None:
    """A results.json for each learner, in a folder that bears the learner's name; none of learners who are gone."""
    current = {folder / safe_name(one.learner) / "results.json" for one in results}
    for path in folder.glob("*/results.json"):
        if path not in current:
            path.unlink()
            with suppress(OSError):  # somebody keeps something else in it
                path.parent.rmdir()
    for learner, graded in groupby(sorted(results, key=lambda one: one.learner), key=lambda one: one.learner):
        text = json.dumps(results_json(list(graded)), indent=1)
        write_atomically(folder / safe_name(learner) / "results.json", f"{text}\n".encode())


def not_graded(says: str, for_the_instructor: str = "") -> dict[str, Any]:
    """What stands in results.json where nothing was graded: no points, and the reason."""
    tests = [_test("Grading", says, "failed")]
    if for_the_instructor:
        tests.append(_test("For the instructor", for_the_instructor, "failed") | {"visibility": "hidden"})
    return {"score": 0, "stdout_visibility": "hidden", "tests": tests}


def _about(graded: Graded) -> Iterator[str]:
    yield f"{graded.chapter or graded.source}: {graded.points:g} of {graded.max_points:g} points"
    if graded.late:
        yield f"{graded.late} of {graded.raw_points:g} points"
    if graded.note:
        yield printable(graded.note)
    if graded.level:
        yield f'The answers were confined at the level "{graded.level}".'


def _tests(graded: Graded) -> Iterator[dict[str, Any]]:
    if graded.fault:
        yield _test("Grading", graded.refusal, "failed")
    for report in graded.reports:
        yield _exercise(report)


def _exercise(report: Report) -> dict[str, Any]:
    passed = report.outcome == "passed"
    says = "Checks passed." if passed else f"{report.outcome}\n{report.message}".strip()
    test = _test(f"{report.exercise} {report.name}", says, "passed" if passed else "failed")
    return test | {"number": report.exercise, "score": report.points, "max_score": report.max_points}


def _test(name: str, output: str, status: str) -> dict[str, Any]:
    shown = {"name": printable(name), "output": printable(output), "name_format": "text", "output_format": "text"}
    return shown | {"status": status, "score": 0, "max_score": 0, "visibility": "visible"}


def pack(path: Path, chapter: str, config: Path | None = None, extra_checks: Path | None = None) -> None:
    """Write the autograder of one chapter to `path`, ready to be handed to Gradescope. Raises CannotPack.

    config: the class's TOML file.   extra_checks: a folder of checks that learners do not see.
    """
    if chapter not in CHAPTERS:
        raise CannotPack(f"chapter is {chapter!r}; it can be {', '.join(CHAPTERS)}.")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, mode, text in _files(chapter, config, extra_checks):
            entry = zipfile.ZipInfo(name, LONG_AGO)
            entry.create_system, entry.external_attr = 3, (0o100000 | mode) << 16  # Unix, a plain file
            archive.writestr(entry, text, zipfile.ZIP_DEFLATED)
    write_atomically(path, content.getvalue())


def _files(chapter: str, config: Path | None, extra_checks: Path | None) -> Iterator[tuple[str, int, bytes]]:
    """Name in the zip, mode, content."""
    run = (TEMPLATES / "run_autograder.sh").read_text().replace("CHAPTER", chapter)
    yield "setup.sh", 0o755, (TEMPLATES / "setup.sh").read_bytes()
    yield "run_autograder", 0o755, run.encode()
    unfinished = not_graded("The grader did not finish: it ran out of time or of memory. Please tell your instructor.")
    yield NOT_FINISHED, 0o600, json.dumps(unfinished, indent=1).encode()
    if config is not None:
        class_config.read(config)  # a fault in it shows now, and not when the first learner hands in
        yield CONFIG, 0o600, config.read_bytes()
    if extra_checks is not None:
        found = sorted(extra_checks.glob("*.py"))
        if not found:
            raise CannotPack(f"There are no checks in {extra_checks}: it should hold files *.py.")
        for file in found:
            yield f"{EXTRA_CHECKS}/{file.name}", 0o600, file.read_bytes()
    yield from _course()


def _course() -> Iterator[tuple[str, int, bytes]]:
    root = repository()
    if not (root / "pyproject.toml").is_file():
        raise CannotPack("The autograder is packed from a clone of the course, and this course was installed without.")
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
        built = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if built.returncode:
            said = (built.stderr or built.stdout).strip().splitlines()
            raise CannotPack(f"The course could not be packed: {said[-1]}")
        (wheel,) = Path(folder).glob("*.whl")
        yield wheel.name, 0o600, wheel.read_bytes()
    yield "constraints.txt", 0o600, (root / "constraints.txt").read_bytes()
