"""Messages between the grader and an answer: JSON for what things are, raw bytes for their numbers, and no pickle.

    lengths     header in bytes, number of tensors                        two unsigned 32-bit integers
    header      {"body": ..., "tensors": [[dtype, shape, meta], ...]}     JSON; a meta tensor has no numbers
    numbers     one run of bytes for each tensor, in order

Whatever comes in is taken for hostile: a dtype, a shape or a length that does not fit is a BadMessage.
"""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

LARGEST_HEADER = 1 << 18  # what an answer may say beside the numbers of tensors; the grader may say more
LARGEST_ORDER = 1 << 24
LARGEST_MESSAGE = 1 << 26  # bytes of all tensors together
MOST_TENSORS = 1 << 16
MOST_AXES = 16
SMALL = 1 << 16
BUFFER = 1 << 22  # bytes; the system may give less
LENGTHS = struct.Struct("<II")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


DTYPES = {
    _name(dtype): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    )
}


class BadMessage(Exception):
    """What came in is no message, or one that is too large."""


class HungUp(Exception):
    """The other side has closed the connection."""


class Late(Exception):
    """Nothing came within the time allowed."""


class Connection:
    """Whole messages over a socket.  `deadline`: on time.monotonic, after which `receive` raises Late."""

    def __init__(self, link: socket.socket, largest_header: int = LARGEST_HEADER) -> None:
        self.link, self.largest_header = link, largest_header
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            with suppress(OSError):
                link.setsockopt(socket.SOL_SOCKET, buffer, BUFFER)
        self.deadline = math.inf

    def send(self, body: Any, tensors: Sequence[Tensor]) -> None:
        """Raises HungUp, Late, and BadMessage for more than a message may hold."""
        shown = [[_name(t.dtype), list(t.shape), t.device.type == "meta"] for t in tensors]
        runs = [_bytes(t) for t in tensors if t.device.type != "meta"]
        if sum(map(len, runs)) > LARGEST_MESSAGE or len(tensors) > MOST_TENSORS:
            raise BadMessage(f"more than {LARGEST_MESSAGE >> 20} MB in one result")
        header = json.dumps({"body": body, "tensors": shown}).encode()
        if len(header) > LARGEST_ORDER:
            raise BadMessage(f"more than {LARGEST_ORDER >> 20} MB beside the numbers of tensors")
        try:
            self._wait_at_most(self.deadline - time.monotonic())
            start = LENGTHS.pack(len(header), len(tensors)) + header
            together = sum(map(len, runs)) < SMALL  # one copy more costs less than one message more
            pieces: list[bytes | memoryview] = [b"".join([start, *runs])] if together else [start, *runs]
            for piece in pieces:
                self.link.sendall(piece)
        except TimeoutError:
            raise Late from None
        except OSError:
            raise HungUp from None

    def receive(self) -> tuple[Any, list[Tensor]]:
        """The next message's body, and its tensors, each in memory of its own.  Raises HungUp, Late, BadMessage."""
        if time.monotonic() >= self.deadline:  # where messages come without end, nothing else looks at the clock
            raise Late
        size, count = LENGTHS.unpack(self._exactly(LENGTHS.size))
        if size > self.largest_header or count > MOST_TENSORS:
            raise BadMessage("its lengths are out of range")
        try:
            header = json.loads(self._exactly(size))
            body, shown = header["body"], header["tensors"]
            kinds = [(DTYPES[dtype], _shape(shape), meta is True) for dtype, shape, meta in shown]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise BadMessage("its header cannot be read") from None
        lengths = [0 if meta else math.prod(shape) * dtype.itemsize for dtype, shape, meta in kinds]
        if len(kinds) != count or sum(lengths) > LARGEST_MESSAGE:
            raise BadMessage("its tensors are too large")
        try:
            return body, [_tensor(kind, self._exactly(n)) for kind, n in zip(kinds, lengths, strict=True)]
        except RuntimeError:
            raise BadMessage("its tensors have no possible shape") from None

    def _exactly(self, size: int) -> bytearray:
        run = bytearray(size)
        view, at = memoryview(run), 0
        while at < size:
            try:
                self._wait_at_most(self.deadline - time.monotonic())
                got = self.link.recv_into(view[at:])
            except TimeoutError:
                raise Late from None
            except OSError:  # the process was killed
                raise HungUp from None
            if not got:
                raise HungUp
            at += got
        return run

    def _wait_at_most(self, seconds: float) -> None:
        self.link.settimeout(None if seconds == math.inf else max(seconds, 1e-3))


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().flatten()
    if flat.is_conj() or flat.is_neg():
        flat = flat.resolve_conj().resolve_neg()
    return memoryview(flat.view(torch.uint8).numpy().data if len(flat) else b"")


def _tensor(kind: tuple[torch.dtype, tuple[int, ...], bool], run: bytearray) -> Tensor:
    dtype, shape, meta = kind
    if meta or not run:
        return torch.empty(shape, dtype=dtype, device="meta" if meta else "cpu")
    if dtype == torch.bool:  # a byte may hold more than 0 and 1
        return torch.frombuffer(run, dtype=torch.uint8).reshape(shape) != 0
    return torch.frombuffer(run, dtype=dtype).reshape(shape)


def _shape(sizes: Any) -> tuple[int, ...]:
    if len(sizes) > MOST_AXES or not all(type(n) is int and 0 <= n < 1 << 48 for n in sizes):
        raise ValueError(sizes)
    return tuple(sizes)
