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

TURNS = 10  # and three times as many where it is close
TOLERANCE = 1e-3  # of float32, summed in another order
MOST = 0.99


@one_thread()
def times_as_fast(
    answer: Callable[..., Any], plain: Callable[..., Any], case: tuple[Any, ...], *, asked: float
) -> float:
    """Time of `plain` over time of the answer: in turns, and the least of each, so that a hiccup hits both or neither.

    It ends early where the answer is hopeless, and goes on for a while where it may have had bad luck.  No two runs
    have the same numbers: what an answer remembers of an earlier one is of no use.  The time that numbers take
    to an answer in another process and back is not the answer's.  Raises Wrong where it gives other numbers.
    """
    slow = fast = math.inf
    for turn in range(1, 3 * TURNS + 1):
        numbers = shrunk(case)
        taken, expected = _timed(plain, numbers)
        slow = min(slow, taken)
        taken, found = _timed(answer, numbers)
        fast = min(fast, taken)
        if not _alike(found, expected):
            raise Wrong("while it is timed it gives other numbers than the plain way")
        if fast > 4 * slow or (turn >= TURNS and not asked / 2 < slow / fast < asked):
            break
    on_the_way = answer.on_the_way(numbers, expected) if hasattr(type(answer), "on_the_way") else 0.0
    return slow / max(fast - on_the_way, 1e-9)


def _timed(function: Callable[..., Any], case: tuple[Any, ...]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = function(*case)
    return time.perf_counter() - start, found


def _alike(found: Any, expected: Any) -> bool:
    if isinstance(found, tuple | list) and isinstance(expected, tuple | list):
        return len(found) == len(expected) and all(map(_alike, found, expected))
    if isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor):
        if found.shape != expected.shape:
            return False
        near = torch.isclose(found.double(), expected.double(), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        return near.double().mean().item() > MOST  # of two that are as good as equal, either may come first
    return same(found, expected, TOLERANCE)
