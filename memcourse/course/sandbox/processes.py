"""The processes that answers run in: forked from a server that has loaded torch, and gone with all they started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from memcourse.course.sandbox import kit

MOST_ZYGOTES = 2  # each holds a hundred megabytes
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


def begun(
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
    zygote = _zygotes.pop(folder, None)
    if zygote is None or not zygote.alive:
        zygote = Zygote(folder)
    _zygotes[folder] = zygote  # the last one used is the last one
    if len(_zygotes) > MOST_ZYGOTES:
        _zygotes.pop(next(iter(_zygotes))).closed()
    return zygote


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


def clock_of(pid: int, level: str) -> Callable[[], float]:
    """Seconds of computing of an answer's process, which a busy machine does not change; else, of the wall's clock.

    Linux keeps such a clock for every process.  It knows nothing of processes that an answer starts, so where an answer
    can start any, it is not asked.
    """
    if sys.platform != "linux" or level == "limits":
        return time.perf_counter
    try:
        while children := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            pid = int(children[0])  # those above it wait for it
    except OSError:
        return time.perf_counter
    number = ~pid << 3 | 2  # see clock_getcpuclockid
    return lambda: time.clock_gettime(number)
