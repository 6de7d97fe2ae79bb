"""Times that a busy machine does not spoil: two calls take turns, and each is represented by its fastest runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One line of the report: what was measured, the figure, its limit, and whether it keeps it."""

    what: str
    figure: str
    limit: str
    kept: bool


def seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, the device's queue included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(ours: Callable[[], object], peer: Callable[[], object], *, rounds: int = 30) -> float:
    """Time of ours over time of the peer: the median of the fastest third of each, taken in turns."""
    ours(), peer()  # warm up
    pairs = [(seconds(ours), seconds(peer)) for _ in range(rounds)]
    fastest = [sorted(times)[: rounds // 3] for times in zip(*pairs, strict=True)]
    middle = [times[len(times) // 2] for times in fastest]
    return middle[0] / middle[1]
