"""One answer's process, from its start to its end, and the server that all of them are forked from."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from memcourse.course.runner import confine
from memcourse.course.runner.peer import Parcel
from memcourse.course.runner.wire import BadMessage, Connection, HungUp, Late
from memcourse.course.sandbox import kit
from memcourse.course.sandbox.processes import STARTUP, SandboxFault, begun, clock_of
from memcourse.course.sandbox.stand_ins import Asking

LATE = "It took longer than"


class Ended(BaseException):
    """The answer's process is gone, or is not listened to any more: no check may take that for an answer's error."""


class Session(Asking):
    """A conversation with one answer's process, which has `seconds` in all.

    seconds_used: how long the grader has waited for it.   fault: why it ended before its time, if it did.
    """

    passing = (HungUp, Late, Ended, KeyboardInterrupt)

    def __init__(self, connection: Connection, seconds: float) -> None:
        super().__init__(connection)
        self.allowed, self.seconds_used, self.fault = seconds, 0.0, ""
        self.secret = False  # what is asked now must not be told
        self._depth = 0

    def ask(self, do: str, body: dict[str, Any], parcel: Parcel, arguments: Sequence[Any] = ()) -> Any:
        with self._ending():
            return super().ask(do, body, parcel, arguments)

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

    @property
    def said_of_its_end(self) -> str:
        """The fault; of one that came while hidden checks ran, nothing that an answer could choose."""
        return "It ended while hidden checks ran." if self.secret else self.fault

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """What ends the conversation is kept as its fault, and nothing is asked any more."""
        if not self.fault:
            try:
                yield
                return
            except Late:
                self.fault = f"{LATE} {self.allowed:g} s, and was stopped."
            except HungUp:
                self.fault = "It ended"
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
) -> Iterator[Session]:
    """A process for one answer, ready to be told its definitions.  Raises SandboxFault where none can be started."""
    confine.shield()  # else an answer of the same user could write into this process's memory
    place = kit.make(without)
    with _scratch() as scratch:
        (pid, end), link = begun(place, level, limits, scratch, folder)
        patience = 0.0
        try:
            connection = Connection(link)
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
            with suppress(OSError):  # no `rm`
                subprocess.run(["rm", "-rf", "--", outer], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(outer, ignore_errors=True)


@cache
def strongest() -> str:
    """The strongest level that this system offers.  Raises SandboxFault where it offers none."""
    if not confine.available():
        raise SandboxFault(confine.why_not(confine.LEVELS[0]))
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
