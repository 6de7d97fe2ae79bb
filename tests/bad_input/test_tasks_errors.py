"""Sizes that make no task are refused with a ValueError that names the argument, the value and what is allowed."""

from collections.abc import Callable

import pytest

from memcourse import Batch
from memcourse.tasks import associative_recall, flip_flop, passkey, selective_copy

REFUSED: dict[str, tuple[Callable[[], Batch], list[str]]] = {
    "more pairs than keys": (
        lambda: associative_recall(batch_size=2, n_pairs=20, seed=0),
        ["n_pairs", "20", "n_keys=16"],
    ),
    "more queries than pairs": (
        lambda: associative_recall(batch_size=2, n_pairs=3, n_queries=4, seed=0),
        ["n_queries", "4", "n_pairs=3"],
    ),
    "no room for the pairs": (
        lambda: associative_recall(batch_size=2, n_pairs=3, length=5, seed=0),
        ["length", "5", "at least 6"],
    ),
    "no pairs": (lambda: associative_recall(batch_size=2, n_pairs=0, seed=0), ["n_pairs", "0", "at least 1"]),
    "no queries": (
        lambda: associative_recall(batch_size=2, n_pairs=1, n_queries=0, seed=0),
        ["n_queries", "0", "at least 1"],
    ),
    "no values": (lambda: associative_recall(batch_size=2, n_pairs=1, n_values=0, seed=0), ["n_values", "0"]),
    "no rows": (lambda: passkey(batch_size=0, n_segments=2, seed=0), ["batch_size", "0", "at least 1"]),
    "no segments": (lambda: passkey(batch_size=2, n_segments=0, seed=0), ["n_segments", "0", "at least 1"]),
    "too far": (lambda: passkey(batch_size=2, n_segments=4, distance=4, seed=0), ["distance", "4", "0 to", "3"]),
    "too near": (lambda: passkey(batch_size=2, n_segments=4, distance=-1, seed=0), ["distance", "-1", "0 to"]),
    "no room for a needle": (
        lambda: passkey(batch_size=2, n_segments=4, segment_len=3, seed=0),
        ["segment_len", "3", "at least 4"],
    ),
    "no fillers": (lambda: passkey(batch_size=2, n_segments=4, n_fillers=0, seed=0), ["n_fillers", "0"]),
    "one instruction": (
        lambda: flip_flop(batch_size=2, n_instructions=1, seed=0),
        ["n_instructions", "1", "at least 2"],
    ),
    "a probability above 1": (
        lambda: flip_flop(batch_size=2, n_instructions=9, p_ignore=1.5, seed=0),
        ["p_ignore", "1.5", "from 0 to 1"],
    ),
    "a probability below 0": (
        lambda: flip_flop(batch_size=2, n_instructions=9, p_ignore=-0.1, seed=0),
        ["p_ignore", "-0.1"],
    ),
    "no rows of instructions": (lambda: flip_flop(batch_size=0, n_instructions=9, seed=0), ["batch_size", "0"]),
    "no items": (lambda: selective_copy(batch_size=2, n_items=0, length=9, seed=0), ["n_items", "0"]),
    "no symbols": (lambda: selective_copy(batch_size=2, n_items=1, length=9, n_symbols=0, seed=0), ["n_symbols", "0"]),
    "more items than places": (
        lambda: selective_copy(batch_size=2, n_items=10, length=9, seed=0),
        ["length", "9", "n_items=10"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert message.startswith(f"{words[0]} must be ")
    assert all(word in message for word in words)
