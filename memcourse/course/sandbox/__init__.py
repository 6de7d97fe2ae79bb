"""One answer in a process of its own: whatever it does there costs its own points and nothing else.

The process is forked from a server that has torch and the course loaded already (started anew where there is
no forkserver). It gets an empty folder to work in, no terminal, and limits on memory and on the size of a
file; it hands back its report as JSON, and then it and whatever it started are killed. This guards against
accidents, not against malice: an answer can still read and write what its user can.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import get_args

from memcourse.course.answers import Definition, build
from memcourse.course.exercise import Exercise, Outcome, Report

MEMORY = 1 << 30  # bytes that an answer may use beyond what the course itself takes
LARGEST_FILE = 1 << 24
LARGEST_REPORT = 1 << 16
STARTUP = 120.0  # seconds; a cold disk and an old laptop take twenty to import torch
READY = b"ready\n"
OUT_OF_MEMORY = (
    "MemoryError",
    "can't allocate memory",
    "not enough memory",
    "bad_alloc",
    "Cannot allocate memory",
)

_starting_or_joining = (
    threading.Lock()
)  # multiprocessing polls every child when one starts: not from two threads at once


class SandboxFault(RuntimeError):
    """The process for the answer could not be started: nothing was learned about the answer."""


class Stopped(Exception):
    """`stop` was set while the answer ran."""


def run(
    exercise: Exercise,
    closure: Sequence[Definition],
    *,
    seconds: float | None = None,
    memory_bytes: int = MEMORY,
    folder: Path | None = None,
    stop: threading.Event | None = None,
) -> Report:
    """Build the answer from `closure`, run its checks in a process of its own, and report.

    seconds: the time that the answer has (the exercise's own limit unless given); starting the process does
    not count. folder:  where the answer's own modules are found: the notebook's folder. stop:    set it from
    another thread to kill the process; `Stopped` is raised.
    """
    limit = exercise.time_limit if seconds is None else seconds
    for _ in range(2):  # a neighbour may have killed the server just now
        with tempfile.TemporaryDirectory(prefix="memcourse-", ignore_cleanup_errors=True) as scratch:
            connection, process = _start(exercise, closure, scratch, folder, limit, memory_bytes)
            try:
                with connection:
                    inbox = _Inbox(connection, process, stop)
                    started = inbox.line(STARTUP) == READY
                    line = inbox.line(limit) if started else b""
            finally:
                _end(process, scratch)
        if line:
            return _received(exercise, line, memory_bytes)
        if started:
            late = f"It took longer than {limit:g} s, and was stopped." if inbox.late else ""
            return _crashed(exercise, late or inbox.fault or _how_it_ended(process.exitcode))
    raise SandboxFault("The process that grades the answer did not start.")


def _start(
    exercise: Exercise,
    closure: Sequence[Definition],
    scratch: str,
    folder: Path | None,
    seconds: float,
    memory_bytes: int,
) -> tuple[socket.socket, BaseProcess]:
    context = _context()
    ours, theirs = socket.socketpair()  # read as it comes: a Connection would wait for the end of a message
    arguments = (
        theirs,
        exercise.id,
        tuple(closure),
        scratch,
        str(folder) if folder else None,
        seconds,
        memory_bytes,
    )
    with _starting_or_joining, _environment():
        process = context.Process(target=_answer, args=arguments, daemon=True)  # type: ignore[attr-defined]
        try:
            process.start()
        except (OSError, EOFError) as error:
            ours.close()
            raise SandboxFault(f"No process could be started for the answer: {error}.") from error
        finally:
            theirs.close()
    return ours, process


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from memcourse.course.checks import CHAPTERS

    context = multiprocessing.get_context("forkserver")
    checks = [f"memcourse.course.checks.{module}" for module in CHAPTERS.values()]
    context.set_forkserver_preload(["torch", "memcourse.course.sandbox", "memcourse.course.engine", *checks])
    return context


@contextmanager
def _environment() -> Iterator[None]:
    """What a grading process inherits: this very course, no module from the current folder, no GPU."""
    home = str(Path(__file__).parents[3])
    changes = {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class _Inbox:
    """Lines from the process, read without ever trusting it to finish one."""

    def __init__(self, connection: socket.socket, process: BaseProcess, stop: threading.Event | None) -> None:
        self.connection, self.process, self.stop = connection, process, stop
        self.received = b""
        self.late = False
        self.fault = ""

    def line(self, seconds: float) -> bytes:
        """The next line, or nothing when the process ended, was late, or sent too much."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self.received:
            if self.stop is not None and self.stop.is_set():
                raise Stopped
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                self.late = True
                return b""
            waiting = min(remaining, 0.2) if self.stop else remaining
            if multiprocessing.connection.wait([self.connection], waiting) and not self._receive():
                # It hung up, and may go on for a while.
                self.late = not (self.fault or multiprocessing.connection.wait([self.process.sentinel], remaining))
                return b""
        found, newline, self.received = self.received.partition(b"\n")
        return found + newline

    def _receive(self) -> bool:
        try:
            part = self.connection.recv(LARGEST_REPORT)
        except OSError:  # the process was killed
            return False
        self.received += part
        if len(self.received) > 2 * LARGEST_REPORT:
            self.fault = "Its report was too long to be read."
        return bool(part) and not self.fault


def _end(process: BaseProcess, scratch: str) -> None:
    """Kill the process and its group, collect its exit code; on Linux, kill whatever left the group too."""
    if sys.platform != "win32" and process.pid is not None:
        with suppress(OSError):  # it has ended, or has no group of its own yet
            os.killpg(process.pid, signal.SIGKILL)
    multiprocessing.connection.wait([process.sentinel], timeout=1.0)
    with _starting_or_joining:
        if process.exitcode is None:
            process.kill()
        process.join(10)
    for stray in _living_in(scratch):
        with suppress(OSError):
            os.kill(stray, signal.SIGKILL)


def _living_in(scratch: str) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*") if sys.platform == "linux" else ():
        with suppress(OSError):  # gone by now, or another user's
            marked = f"TMPDIR={scratch}\0".encode() in (entry / "environ").read_bytes() + b"\0"
            if marked or os.readlink(entry / "cwd").startswith(scratch):
                yield int(entry.name)


def _received(exercise: Exercise, line: bytes, memory_bytes: int) -> Report:
    """The report in a form that can be trusted: an answer may have written it."""
    try:
        sent = Report.from_json(line.decode())
        if sent.exercise != exercise.id or sent.outcome not in get_args(Outcome):
            raise ValueError(sent)
        stages = tuple(_printable(str(stage)) for stage in sent.stages)
    except (ValueError, TypeError, KeyError, AttributeError):
        return _crashed(exercise, "Its report could not be read: the answer seems to write where the grader writes.")
    points = exercise.points if sent.outcome == "passed" else 0
    message = _printable(str(sent.message))
    mistake = None if sent.mistake is None else _printable(str(sent.mistake))
    if sent.outcome == "crashed" and any(sign in message for sign in OUT_OF_MEMORY):
        message = f"It used more than {_size(memory_bytes)} of memory.\n{message}"
    return Report(exercise.id, exercise.name, sent.outcome, points, exercise.points, stages, message, mistake)


def _printable(text: str) -> str:
    """Without what would move the cursor of a terminal, or could not be printed at all."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _crashed(exercise: Exercise, message: str) -> Report:
    return Report(exercise.id, exercise.name, "crashed", 0, exercise.points, message=message)


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.strsignal(-code) or "unknown"
        return f"It was ended by signal {-code} ({name.lower()}) before the checks were done."
    return f"It ended the process (exit code {code}) before the checks were done."


def _size(memory_bytes: int) -> str:
    return f"{memory_bytes / (1 << 30):g} GB" if memory_bytes >= 1 << 30 else f"{memory_bytes / (1 << 20):.0f} MB"


# ---- what follows runs in the answer's own process ----


def _answer(
    connection: socket.socket,
    exercise_id: str,
    closure: tuple[Definition, ...],
    scratch: str,
    folder: str | None,
    seconds: float,
    memory_bytes: int,
) -> None:
    if sys.platform != "win32":
        os.setsid()  # a group of its own, to be killed whole, and out of reach of the terminal's Ctrl-C
    import torch

    from memcourse.course import engine
    from memcourse.course.checks import find
    from memcourse.course.words import error_text, own_line

    exercise = find(exercise_id)
    torch.set_num_threads(1)
    _confine(scratch, seconds, memory_bytes, keep=connection.fileno())
    if folder is not None:
        sys.path.append(folder)
    connection.sendall(READY)
    stage = "while it was defined"
    try:
        answer = build(closure, exercise.name)
        stage = "while it was checked"
        report = engine.run(exercise, answer)
    except BaseException as error:  # an answer may raise anything, SystemExit and KeyboardInterrupt included
        own = own_line(error, frozenset())
        lines = [f"It stopped {stage}, at {own.where}:", f"    {own.text}"] if own else [f"It stopped {stage}:"]
        report = _crashed(exercise, "\n".join([*lines, error_text(error)]))
    connection.sendall(report.to_json().encode() + b"\n")


def _confine(scratch: str, seconds: float, memory_bytes: int, keep: int) -> None:
    if sys.platform != "win32":
        os.closerange(3, keep)  # the server's own pipes, which an answer could fill
        os.closerange(keep + 1, 1 << 16)
    os.chdir(scratch)
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    os.close(nowhere)
    sys.stdin = open(os.devnull)  # where multiprocessing has put a file of its own
    if sys.platform == "win32":
        return
    import resource

    signal.alarm(int(seconds) + 10)  # should the grader itself be killed
    for name, size in (("RLIMIT_CORE", 0), ("RLIMIT_FSIZE", LARGEST_FILE)):
        _soft_limit(getattr(resource, name), size)
    if sys.platform == "linux":  # elsewhere the system does not say, or does not keep to it
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _soft_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + memory_bytes)


def _soft_limit(kind: int, size: int) -> None:
    import resource

    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
