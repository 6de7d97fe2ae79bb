"""Grade hostile submissions through the front door, each beside a good neighbour, and judge what became of them."""

from __future__ import annotations

import csv
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from memcourse.course.classroom.results import Graded, load_all

from .notebook import write_notebook
from .place import GOOD, Place, place
from .submission import Submission

NEIGHBOURS_POINTS = 2  # of exercise 1.2
LONGEST_MESSAGE = 5000
LONGEST_RUN = 1800.0
ACTIVE = re.compile(r"<script>alert|<img src=x")  # of the texts that submissions try to smuggle into a page
FORMULA = re.compile(r"[=+@\t\r-]")


@dataclass(frozen=True)
class Verdict:
    """What became of one submission and of the neighbour that was graded beside it."""

    submission: Submission
    points: float  # all of them forged
    harmed: bool  # the neighbour has not got its points
    unanswered: bool  # the submission has no line in the report
    messages: tuple[str, ...]

    @property
    def faults(self) -> list[str]:
        """What is wrong with what the learner is told."""
        told = self.messages
        found = [] if any(re.search(self.submission.says, m, re.I) for m in told) else ["does not say what happened"]
        found += ["too long"] if any(len(message) > LONGEST_MESSAGE for message in told) else []
        found += ["not printable"] if not all(c.isprintable() or c == "\n" for m in told for c in m) else []
        found += ["the course is at fault"] if any("fault of the course" in message for message in told) else []
        return found


@dataclass(frozen=True)
class Run:
    """One run of the grader over some submissions.

    crash:   how the grader ended, if not as it should.
    changed: files that are not what they were.   left: files and processes that are still there.
    unsafe:  parts of the report that would harm whoever opens it.
    """

    level: str
    verdicts: tuple[Verdict, ...]
    crash: str
    changed: tuple[str, ...]
    left: tuple[str, ...]
    unsafe: tuple[str, ...]
    seconds: float


def grade(submissions: Sequence[Submission], level: str, *, workers: int = 2) -> Run:
    """Each submission and a good neighbour, one beside or right after the other."""
    if not submissions:
        return Run(level, (), "", (), (), (), 0.0)
    with place() as there:
        learners = {f"{number:03}_{one.name}": one for number, one in enumerate(submissions)}
        for learner, submission in learners.items():
            write_notebook(there.notebook(f"{learner}_neighbour"), GOOD)
            submission.write(there, learner)
        before = there.fingerprint()
        started = time.monotonic()
        with adopting_orphans() as orphans:
            crash = _run(command(there, level, workers), there)
        seconds = time.monotonic() - started
        left = [*orphans, *map(str, [*there.temporary.iterdir(), *there.left_outside()])]
        if there.canary.poll() is not None:
            crash = f"{crash} the canary was killed".strip()
        after = there.fingerprint()
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        try:
            results = load_all(there.report)
        except ValueError as error:  # somebody else has written there
            results, crash = [], f"{crash} {error}".strip()
        verdicts = [_judge(submission, learner, there, results) for learner, submission in learners.items()]
        unsafe = list(_unsafe(there.report))
        return Run(level, tuple(verdicts), crash, tuple(changed), tuple(left), tuple(unsafe), seconds)


def command(there: Place, level: str, workers: int) -> list[str]:
    folders = [str(there.submissions), "--out", str(there.report)]
    return [sys.executable, "-m", "memcourse", "grade", *folders, "--level", level, "--workers", str(workers)]


def _run(arguments: Sequence[str], there: Place) -> str:
    """How the grader ended, or nothing where it ended as it should."""
    grader = subprocess.Popen(
        arguments,
        cwd=there.home,
        env=there.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # a signal to its group is not one to ours
    )
    try:
        said = grader.communicate(timeout=LONGEST_RUN)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        os.killpg(grader.pid, signal.SIGKILL)
        grader.communicate()
        return f"it did not end within {LONGEST_RUN:g} s"
    if grader.returncode != 0 or "Traceback" in said:
        return f"exit code {grader.returncode}: {said[-2000:]}"
    return "it wrote escapes to the terminal" if "\x1b" in said else ""


def _judge(submission: Submission, learner: str, there: Place, results: Sequence[Graded]) -> Verdict:
    neighbour = there.notebook(f"{learner}_neighbour").name
    own = [graded for graded in results if learner in graded.source and graded.source != neighbour]
    beside = [graded.points for graded in results if graded.source == neighbour]
    attempted = [report for graded in own for report in graded.reports if report.outcome != "not attempted"]
    told = [report.message for report in attempted] + [f"{graded.fault} {graded.note}".strip() for graded in own]
    if not any(told):
        told = [report.message for graded in own for report in graded.reports]
    return Verdict(
        submission,
        points=sum(graded.points for graded in own),
        harmed=beside != [NEIGHBOURS_POINTS],
        unanswered=not own,
        messages=tuple(filter(None, told)),
    )


def _unsafe(report: Path) -> Iterator[str]:
    for path in report.rglob("*"):
        if path.is_symlink() or "forged" in path.name:
            yield f"{path.name} is not the grader's"
        elif path.suffix == ".html" and ACTIVE.search(path.read_text(errors="replace")):
            yield f"{path.name} holds a submission's script"
        elif path.suffix == ".xml":
            with suppress(xml.etree.ElementTree.ParseError):
                xml.etree.ElementTree.parse(path)
                continue
            yield f"{path.name} is not XML"
        elif path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                if any(FORMULA.match(cell) and not _is_number(cell) for row in csv.reader(file) for cell in row):
                    yield f"{path.name} holds a formula"


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


@contextmanager
def adopting_orphans() -> Iterator[list[str]]:
    """On Linux: whatever outlives its parents becomes ours; at the end it is listed, and killed."""
    orphans: list[str] = []
    if sys.platform != "linux":
        yield orphans
        return
    adopt = 36  # PR_SET_CHILD_SUBREAPER
    libc = ctypes.CDLL(None)
    libc.prctl(adopt, 1, 0, 0, 0)
    before = set(_children())
    try:
        yield orphans
        until = time.monotonic() + 2  # what was killed may take a moment to end
        while set(_children()) - before and time.monotonic() < until:
            for pid in set(_children()) - before:
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.05)
    finally:
        libc.prctl(adopt, 0, 0, 0, 0)
        for pid in set(_children()) - before:
            with suppress(OSError):
                orphans.append(f"process {Path(f'/proc/{pid}/cmdline').read_bytes().decode(errors='replace')!r}")
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _children() -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(entry.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                yield int(entry.parent.name)
