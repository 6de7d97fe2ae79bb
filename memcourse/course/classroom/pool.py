"""Grading processes: trusted, one task at a time each, replaced when one dies.

What they read is hostile and may crash a parser, so the process that hands out the work reads none of it.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Self

from memcourse.course.sandbox.processes import STARTUP, SandboxFault

READY = "ready"
PATIENCE = 5.0  # seconds that a process has to end its answer and itself


class Died(RuntimeError):
    """A task ended its grading process, or took too long; the message says how."""


class Pool:
    """Up to `size` processes, started when there is work for them and ended with the `with` block.

    A process calls `sandbox.run` from its one thread.  Ctrl-C reaches this process alone, and this one ends them.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, _Busy] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        workers = [*self._idle, *(busy.worker for busy in self._busy.values())]
        for worker in workers:
            worker.process.terminate()  # all at once: each takes a moment
        for worker in workers:
            worker.end()
        self._idle.clear()
        self._busy.clear()

    @property
    def running(self) -> list[Any]:
        """The tasks that are being worked on."""
        return [busy.task for busy in self._busy.values()]

    def each(
        self, work: Callable[[Any], Any], tasks: Iterable[Any], seconds: float = float("inf")
    ) -> Iterator[tuple[Any, Any]]:
        """(task, work(task)) as each is finished; in place of a result the exception that was raised, or Died.

        seconds: what one task may take.
        """
        waiting = deque(tasks)
        while waiting or self._busy:
            while waiting and len(self._busy) < self.size:
                worker = self._idle.pop() if self._idle else _Worker()
                task = waiting.popleft()
                self._busy[worker.connection] = _Busy(worker, task, time.monotonic() + seconds)
                with suppress(OSError):  # it is dead already, as will be seen below
                    worker.connection.send((work, task))
            remaining = min(busy.deadline for busy in self._busy.values()) - time.monotonic()
            ready = wait(list(self._busy), None if remaining == float("inf") else max(0.0, remaining))
            now = time.monotonic()
            for connection in [c for c, busy in self._busy.items() if c in ready or busy.deadline <= now]:
                worker, task, _ = self._busy.pop(connection)
                late = Died(f"it took longer than {seconds:g} s, and was stopped")
                outcome = worker.outcome() if connection in ready else late
                if isinstance(outcome, Died):
                    worker.end()
                else:
                    self._idle.append(worker)
                yield task, outcome


class _Worker:
    def __init__(self) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        self.process: BaseProcess = _context().Process(target=_serve, args=(theirs,))  # type: ignore[attr-defined]
        try:
            self.process.start()
        except (OSError, EOFError) as error:
            raise SandboxFault(f"No process could be started for grading: {error}.") from error
        finally:
            theirs.close()
        try:
            if not self.connection.poll(STARTUP) or self.outcome() != READY:  # what follows is timed
                raise SandboxFault("The process for grading did not start.")
        except BaseException:  # Ctrl-C too
            self.end()
            raise

    def outcome(self) -> Any:
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(PATIENCE)
            return Died(_how_it_ended(self.process.exitcode))

    def end(self) -> None:
        """End it, and first the answer that it runs."""
        if self.process.is_alive():
            self.process.terminate()
            self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()


class _Busy(NamedTuple):
    worker: _Worker
    task: Any
    deadline: float


def _context() -> BaseContext:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    from memcourse.course.checks import CHAPTERS

    context = multiprocessing.get_context("forkserver")
    checks = [f"memcourse.course.checks.{module}" for module in CHAPTERS.values()]
    context.set_forkserver_preload(["memcourse.course.classroom.marking", "memcourse.course.engine", *checks])
    return context


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"it ended the grading process by signal {-code} ({(signal.strsignal(-code) or 'unknown').lower()})"
    return f"it ended the grading process (exit code {code})"


# ---- what follows runs in a grading process ----


def _serve(connection: Connection) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; who handed out the work decides
    if sys.platform != "win32":
        signal.signal(signal.SIGTERM, _stop)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    with suppress(KeyboardInterrupt, EOFError, OSError):  # ended, or nobody is there any more
        connection.send(READY)
        while True:
            work, task = connection.recv()
            try:
                outcome = work(task)
            except Exception as error:
                outcome = _portable(error)
            connection.send(outcome)


def _stop(*_: object) -> None:
    """End what runs as Ctrl-C would: the answer's process first, and in peace."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _portable(error: Exception) -> Exception:
    """An exception that arrives whole on the other side, with the place where it was raised as a note."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
