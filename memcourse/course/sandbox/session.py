"""One answer's process, from its start to its end, and the server that all of them are forked from."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from memcourse.course.runner import confine
from memcourse.course.runner.peer import Parcel
from memcourse.course.runner.wire import BadMessage, Connection, HungUp, Late
from memcourse.course.sandbox import kit
from memcourse.course.sandbox.stand_ins import Asking

STARTUP = 120.0  # seconds; a cold disk and an old laptop take twenty to import torch
Process = tuple[int, Callable[[float], int | None]]  # its number, and what ends it and says how it ended
FORKS = hasattr(os, "fork")
START = """
import json, socket, sys
settings = json.loads(sys.argv[1])
sys.path[:0] = [settings["kit"]]
sys.path += settings["libraries"]
from runner import zygote
link = sys.stdin.buffer.read()
link = socket.fromshare(link) if sys.platform == "win32" else socket.socket(fileno=int(link))
getattr(zygote, settings["function"])(link, *sys.argv[2:])
"""


class SandboxFault(RuntimeError):
    """The process for the answer could not be started: nothing was learned about the answer."""


class Stopped(Exception):
    """`stop` was set while the answer ran."""


class Ended(BaseException):
    """The answer's process is gone, or is not listened to any more: no check may take that for an answer's error."""


class Zygote:
    """The server of one kit: it has loaded torch and the library, and forks a process for each answer."""

    def __init__(self, folder: Path) -> None:
        self.control, theirs = socket.socketpair()
        with theirs:
            self.process = _start(folder, "main", theirs)
        self.closed = weakref.finalize(self, _close, self.process, self.control)
        if self._line(STARTUP) != b"ready":
            self.closed()
            raise SandboxFault("The process that grades the answer did not start.")

    def run(self, link: socket.socket, order: dict[str, Any]) -> Process:
        """A new process that serves on `link`; what ends it, at the latest after some seconds, and says how it ended.

        The exit code, or minus the signal; None where it had to be killed, or has killed the server.
        """
        socket.send_fds(self.control, [json.dumps({"do": "fork"} | order).encode()], [link.fileno()])
        pid = json.loads(self._line(STARTUP))["pid"]

        def end(patience: float) -> int | None:
            try:
                self.control.sendall(json.dumps({"do": "end", "pid": pid, "patience": patience}).encode())
                return json.loads(self._line(patience + 30))["code"]
            except (OSError, ValueError):
                self.closed()
                return None

        return pid, end

    @property
    def alive(self) -> bool:
        return self.closed.alive and self.process.poll() is None

    def _line(self, seconds: float) -> bytes:
        self.control.settimeout(seconds)
        received = b""
        with suppress(OSError):
            while not received.endswith(b"\n"):
                part = self.control.recv(1 << 12)
                if not part:
                    break
                received += part
        return received.strip()


def _close(process: subprocess.Popen[bytes], control: socket.socket) -> None:
    control.close()
    process.kill()
    process.wait()


_zygotes: dict[Path, Zygote] = {}


def _zygote(folder: Path) -> Zygote:
    if folder not in _zygotes or not _zygotes[folder].alive:
        _zygotes[folder] = Zygote(folder)
    return _zygotes[folder]


def run_alone(folder: Path, link: socket.socket, order: dict[str, Any]) -> Process:
    """`Zygote.run` where no process can be forked (Windows): each answer loads torch again."""
    process = _start(folder, "alone", link, json.dumps(order))

    def end(patience: float) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(patience)
        process.kill()
        process.wait()
        return None

    return process.pid, end


def _start(folder: Path, function: str, link: socket.socket, *more: str) -> subprocess.Popen[bytes]:
    """A process that calls a function of the runner's `zygote` with a socket."""
    settings = {"kit": str(folder), "libraries": kit.libraries(), "function": function}
    environment = {"OMP_NUM_THREADS": "1", "PATH": os.defpath, "LANG": "C.UTF-8", "HOME": str(folder)}
    if sys.platform == "win32":
        environment |= {name: os.environ[name] for name in ("SYSTEMROOT",) if name in os.environ}
    inherited = {} if sys.platform == "win32" else {"pass_fds": [link.fileno()], "start_new_session": True}
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-c", START, json.dumps(settings), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            **inherited,  # type: ignore[call-overload]
        )
        share = getattr(link, "share", None)  # Windows alone has it
        with process.stdin:
            process.stdin.write(share(process.pid) if share else str(link.fileno()).encode())
    except OSError as error:
        raise SandboxFault(f"No process could be started for the answer: {error}.") from error
    return process


class Session(Asking):
    """A conversation with one answer's process, which has `seconds` in all.

    seconds_used: how long the grader has waited for it.   fault: why it ended before its time, if it did.
    """

    passing = (HungUp, Late, Stopped, Ended, KeyboardInterrupt)

    def __init__(self, connection: Connection, seconds: float) -> None:
        super().__init__(connection)
        self.allowed, self.seconds_used, self.fault = seconds, 0.0, ""
        self.stopped = False
        self._depth = 0

    def ask(self, do: str, body: dict[str, Any], parcel: Parcel) -> Any:
        with self._ending():
            return super().ask(do, body, parcel)

    def back(self, call: int, gradients: Sequence[Tensor]) -> list[Tensor | None]:
        with self._ending():
            return super().back(call, gradients)

    def exchange(self, body: dict[str, Any], sent: Sequence[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
        if self._depth:  # it asks, and is asked back, and asks again: all of this is the first question's time
            return super().exchange(body, sent)
        since = time.monotonic()
        self.connection.deadline = since + self.allowed - self.seconds_used
        self._depth += 1
        try:
            return super().exchange(body, sent)
        finally:
            self._depth -= 1
            self.seconds_used += time.monotonic() - since

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """What ends the conversation is kept as its fault, and nothing is asked any more."""
        if not self.fault:
            try:
                yield
                return
            except Late:
                self.fault = f"It took longer than {self.allowed:g} s, and was stopped."
            except HungUp:
                self.fault = "It ended"
            except Stopped:
                self.stopped, self.fault = True, "It was stopped"
            except BadMessage as fault:
                self.fault = f"What it returned could not be read: {fault}."
        raise Ended(self.fault)


@contextmanager
def opened(
    without: tuple[str, ...],
    *,
    level: str,
    seconds: float,
    limits: dict[str, int],
    folder: Path | None,
    stop: Any = None,
) -> Iterator[Session]:
    """A process for one answer, ready to be told its definitions.  Raises SandboxFault where none can be started."""
    confine.shield()  # else an answer of the same user could write into this process's memory
    place = kit.make(without)
    with _scratch() as scratch:
        (pid, end), link = _begun(place, level, limits, scratch, folder)
        patience = 0.0
        try:
            connection = Connection(link, None if stop is None else lambda: _unless_stopped(stop))
            connection.deadline = time.monotonic() + STARTUP
            first = _first_word(connection)
            if "fault" in first:
                raise SandboxFault(str(first["fault"]))
            session = Session(connection, seconds)
            session.clock = clock_of(pid, level)
            with ExitStack() as beside:
                same = partial(opened, without, level=level, seconds=STARTUP, folder=None)
                session.another = lambda **fewer: beside.enter_context(same(limits=limits | fewer))
                yield session
            patience = 1.0 if session.fault == "It ended" else 0.0
        finally:
            code = end(patience)
            link.close()
            for stray in _living_in(scratch):
                with suppress(OSError):
                    os.kill(stray, signal.SIGKILL)
        if session.fault == "It ended":
            session.fault = _how_it_ended(code)


def clock_of(pid: int, level: str) -> Callable[[], float]:
    """Seconds of computing of an answer's process, which a busy machine does not change; else, of the wall's clock.

    Linux keeps such a clock for every process.  It knows nothing of processes that an answer starts, so where an answer
    can start any, it is not asked.
    """
    if sys.platform != "linux" or level == "limits":
        return time.perf_counter
    while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        pid = int(children[0])  # those above it wait for it
    number = ~pid << 3 | 2  # see clock_getcpuclockid
    return lambda: time.clock_gettime(number)


def _begun(
    place: Path, level: str, limits: dict[str, int], scratch: str, folder: Path | None
) -> tuple[Process, socket.socket]:
    """A process for an answer, and the socket to it."""
    seen = [str(folder.resolve())] if folder else []
    order = {
        "level": level,
        "limits": limits,
        "scratch": scratch,
        "path": seen,
        "readable": [*kit.readable(), str(place), *seen],
        "hidden": kit.hidden(),
    }
    for _ in range(2):  # an answer may have killed the server just now
        ours, theirs = socket.socketpair()
        with theirs, suppress(OSError, ValueError):
            return (_zygote(place).run(theirs, order) if FORKS else run_alone(place, theirs, order)), ours
        ours.close()
        if place in _zygotes:
            _zygotes[place].closed()
    raise SandboxFault("The process that grades the answer did not start.")


def _first_word(connection: Connection) -> dict[str, Any]:
    try:
        return connection.receive()[0]
    except (HungUp, Late, BadMessage) as fault:
        return {"fault": f"The process for the answer did not start: {type(fault).__name__}."}


@contextmanager
def _scratch() -> Iterator[str]:
    """An empty folder in one of the grader's, for an answer that owns it may give it another name."""
    outer = tempfile.mkdtemp(prefix="memcourse-")
    os.chmod(outer, 0o711)
    try:
        os.mkdir(inner := os.path.join(outer, "scratch"), 0o700)
        yield inner
    finally:
        if sys.platform != "win32":  # folders in folders, a thousand deep, are too many for shutil
            subprocess.run(["rm", "-rf", "--", outer], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(outer, ignore_errors=True)


def _unless_stopped(stop: Any) -> None:
    if stop.is_set():
        raise Stopped


@cache
def strongest() -> str:
    """The strongest level that this system offers."""
    return confine.available()[-1]


def _how_it_ended(code: int | None) -> str:
    if code is None:
        return "It cut itself off from the grader before the checks were done."
    if code < 0:
        name = signal.strsignal(-code) or "unknown"
        return f"It was ended by signal {-code} ({name.lower()}) before the checks were done."
    return f"It ended the process (exit code {code}) before the checks were done."


def _living_in(scratch: str) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*") if sys.platform == "linux" else ():
        with suppress(OSError):  # gone by now, or another user's
            if os.readlink(entry / "cwd").startswith(scratch):
                yield int(entry.name)
