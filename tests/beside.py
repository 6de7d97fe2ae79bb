"""An object in a process of its own, and what stands for it here: the sandbox's conversation without its walls."""

from __future__ import annotations

import os
import resource
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from memcourse.course.runner.answering import Answering
from memcourse.course.runner.wire import LARGEST_ORDER, Connection, HungUp
from memcourse.course.sandbox.session import Session


class Holding(Answering):
    """It has its answer already, unless it is told definitions."""

    def __init__(self, connection: Connection, answer: Any) -> None:
        super().__init__(connection)
        self.answer = answer

    def serve_define(self, body: Any, tensors: Any, parcel: Any) -> dict[str, Any]:
        if body["definitions"]:
            return super().serve_define(body, tensors, parcel)
        return {"value": self.encode(self.answer, parcel), "depends": [], "changed": [], "refilled": []}


@contextmanager
def session_with(serve: Callable[[socket.socket], None], seconds: float = 60.0) -> Iterator[Session]:
    """A conversation with a forked process that runs `serve`."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if not child:
        ours.close()
        with suppress(HungUp, BrokenPipeError):
            try:
                serve(theirs)
            except (HungUp, BrokenPipeError):
                raise
            except BaseException:
                traceback.print_exc()
        os._exit(0)
    theirs.close()
    try:
        yield Session(Connection(ours), seconds)
    finally:
        ours.close()
        os.waitpid(child, 0)


@contextmanager
def beside(answer: Any, seconds: float = 60.0) -> Iterator[Any]:
    """What stands for `answer` here, while it is used in a process of its own."""
    with ExitStack() as stack:

        def another(memory_bytes: int | None = None) -> Session:
            session = stack.enter_context(session_with(partial(_serve, answer, memory_bytes), seconds))
            session.another = another
            return session

        yield another().define([], "")


def _serve(answer: Any, memory_bytes: int | None, link: socket.socket) -> None:
    if memory_bytes is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    torch.set_num_threads(1)
    peer = Holding(Connection(link, largest_header=LARGEST_ORDER), answer)
    while True:
        peer.serve(*peer.connection.receive())
