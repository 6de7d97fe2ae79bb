"""How many times as fast an answer is as the plain way, on a machine that may be busy."""

import math
from collections.abc import Callable
from timeit import timeit
from typing import Any

from memcourse.threads import one_thread

TURNS = 7  # and three times as many where it is close


@one_thread()
def times_as_fast(
    answer: Callable[..., Any], plain: Callable[..., Any], case: tuple[Any, ...], *, asked: float
) -> float:
    """Time of `plain` over time of the answer: in turns, and the least of each, so that a hiccup hits both or neither.

    It ends early where the answer is hopeless, and goes on for a while where it may have had bad luck.
    """
    slow = fast = math.inf
    for turn in range(1, 3 * TURNS + 1):
        slow = min(slow, timeit(lambda: plain(*case), number=1))
        fast = min(fast, timeit(lambda: answer(*case), number=1), timeit(lambda: answer(*case), number=1))
        if fast > 4 * slow or (turn >= TURNS and not asked / 2 < slow / fast < asked):
            break
    return slow / fast
