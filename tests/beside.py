"""An object in a process of its own, and what stands for it here: the sandbox's conversation without its walls."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from memcourse.course.runner.answering import Answering
from memcourse.course.runner.wire import LARGEST_ORDER, Connection, HungUp
from memcourse.course.sandbox.session import Session


class Holding(Answering):
    """It has its answer already."""

    def __init__(self, connection: Connection, answer: Any) -> None:
        super().__init__(connection)
        self.answer = answer

    def serve_define(self, body: Any, tensors: Any, parcel: Any) -> dict[str, Any]:
        return {"value": self.encode(self.answer, parcel), "depends": [], "changed": []}


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

    def serve(link: socket.socket) -> None:
        torch.set_num_threads(1)
        peer = Holding(Connection(link, largest_header=LARGEST_ORDER), answer)
        while True:
            peer.serve(*peer.connection.receive())

    with session_with(serve, seconds) as session:
        yield session.define([], "")
