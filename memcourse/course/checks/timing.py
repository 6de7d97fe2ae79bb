"""How many times as fast an answer is as the plain way, on a machine that may be busy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from memcourse.course.compare import same
from memcourse.course.exercise import Wrong
from memcourse.course.fresh import shrunk
from memcourse.threads import one_thread

TURNS = 7  # and three times as many where it is close
TOLERANCE = 1e-3  # of float32, summed in another order
MOST = 0.99
LEAST = 1e-6  # seconds; no answer takes less


@one_thread()
def times_as_fast(answer: Any, plain: Callable[..., Any], case: tuple[Any, ...], *, asked: float) -> float:
    """Computing time of `plain` over that of the answer: in turns, and the least of each, so that a hiccup hits both.

    It ends early where the answer is hopeless, and goes on for a while where it may have had bad luck.  No two runs
    have the same numbers: what an answer remembers of an earlier one is of no use.  The time that numbers take
    to an answer in another process and back is not the answer's.  Raises Wrong where it gives other numbers.
    """
    twin = answer.twin(plain) if hasattr(type(answer), "twin") else None
    slow = fast = way = math.inf
    for turn in range(1, 3 * TURNS + 1):
        warm, numbers = shrunk(case), shrunk(case)
        taken, expected = _timed(twin.run if twin else plain, numbers)
        slow = min(slow, taken)
        if turn > 1:  # a hopeless one ends with its first run
            answer(*warm)  # one that has waited is slower at first
        taken, found = _timed(answer, numbers)
        fast = min(fast, taken)
        if not _alike(found, expected):
            raise Wrong("while it is timed it gives other numbers than the plain way")
        if twin:
            echo = twin.echo(expected)
            echo(*warm)
            way = min(way, _timed(echo, numbers)[0])
        else:
            way = 0.0
        ratio = (slow - way) / max(fast - way, LEAST)
        if ratio < 1 / 4 or (turn >= TURNS and not asked / 2 < ratio < asked):
            break
    return ratio


def _timed(function: Callable[..., Any], case: tuple[Any, ...]) -> tuple[float, Any]:
    """Seconds of computing, and what it gave."""
    clock = getattr(function, "clock", time.process_time)
    start = clock()
    found = function(*case)
    return clock() - start, found


def _alike(found: Any, expected: Any) -> bool:
    if isinstance(found, tuple | list) and isinstance(expected, tuple | list):
        return len(found) == len(expected) and all(map(_alike, found, expected))
    if isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor):
        if found.shape != expected.shape:
            return False
        near = torch.isclose(found.double(), expected.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        return near.double().mean().item() > MOST  # of two that are as good as equal, either may come first
    return same(found, expected, TOLERANCE)
