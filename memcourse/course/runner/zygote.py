"""The process that answers are forked from: torch and the library are loaded once, and nothing else is known here.

It is started by the grader, takes orders on one socket, and ends with it:

    {"do": "fork", ...}  with a socket for the answer    -> {"pid": ...}
    {"do": "end", "pid": ..., "patience": seconds}       -> {"code": the exit code, or minus the signal, or null}
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

LITTLE = 1 << 28  # bytes


def main(control: socket.socket) -> None:
    """Load what answers use, say so, and take orders until the grader hangs up."""
    _load()
    control.sendall(b"ready\n")
    answers: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not message:
            os._exit(0)
        order = json.loads(message)
        if order["do"] == "end":
            answers.discard(order["pid"])
            reply = {"code": _end(order["pid"], order["patience"], answers)}
        else:
            pid = os.fork()
            if not pid:
                control.close()
                _answer(socket.socket(fileno=descriptors[0]), order)
            os.close(descriptors[0])
            answers.add(pid)
            reply = {"pid": pid}
        control.sendall(json.dumps(reply).encode() + b"\n")


def alone(link: socket.socket, order: str) -> None:
    """The whole of it where no process can be forked: one answer."""
    _load()
    _answer(link, json.loads(order))


def _load() -> None:
    import torch

    torch.set_num_threads(1)
    import memcourse

    for file in Path(memcourse.__file__).parent.glob("*.py"):
        if file.stem != "__main__":
            with contextlib.suppress(ImportError):  # what the chapter teaches is left out, and so is what stands on it
                import_module(f"memcourse.{file.stem}")
    from . import answering, confine

    assert answering  # loaded once, for all answers
    confine.shield()
    if sys.platform == "linux":  # whatever an answer leaves behind becomes a child of this process
        import ctypes

        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _answer(link: socket.socket, order: dict[str, Any]) -> None:
    """In the child: confined from here on, it serves the grader until one of the two hangs up."""
    code = 1
    try:
        from .answering import Answering
        from .confine import Limits, enter
        from .wire import LARGEST_ORDER, Connection, HungUp

        scratch, readable, hidden = Path(order["scratch"]), order["readable"], order["hidden"]
        try:
            enter(
                order["level"],
                Limits(**order["limits"]),
                scratch,
                [Path(folder) for folder in readable],
                link.fileno(),
                hidden=[Path(folder) for folder in hidden],
            )
        except (OSError, RuntimeError) as error:
            Connection(link).send({"fault": str(error)}, [])
            os._exit(1)
        sys.path += order["path"]
        if order["limits"]["memory_bytes"] < LITTLE:
            _give_memory_back_at_once()
        connection = Connection(link, largest_header=LARGEST_ORDER)
        connection.send({"ready": True}, [])
        peer = Answering(connection)
        with contextlib.suppress(HungUp):
            while True:
                peer.serve(*connection.receive())
        code = 0
    finally:
        os._exit(code)


def _give_memory_back_at_once() -> None:
    """Else a heap with holes, whose size is chance, may count for more than an answer needs (glibc's mallopt)."""
    import ctypes

    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD


def _end(pid: int, patience: float, others: set[int]) -> int | None:
    """The exit code of an answer; None where it had to be killed.  Nothing stays but the other answers."""
    until = time.monotonic() + patience
    status = _status(pid)
    while status is None and time.monotonic() < until:
        time.sleep(0.002)
        status = _status(pid)
    with contextlib.suppress(OSError):
        os.killpg(pid, signal.SIGKILL)
    if status is None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    for _ in range(2000):
        strays = [child for child in _children() if child not in others]
        if not strays:
            break
        for stray in strays:
            with contextlib.suppress(OSError):
                os.kill(stray, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(stray, 0)
    return None if status is None else os.waitstatus_to_exitcode(status)


def _status(pid: int) -> int | None:
    found, status = os.waitpid(pid, os.WNOHANG)
    return status if found else None


def _children() -> list[int]:
    """What has this process as its parent, on Linux."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []
