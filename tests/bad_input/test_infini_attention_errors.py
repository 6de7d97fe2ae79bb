"""Rules that do not exist, sizes that do not fit and states of other layers are refused, and named."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from memcourse import InfiniAttention, MemorizingAttention
from memcourse.infini_attention import write
from memcourse.memorizing import search

X = torch.zeros(2, 5, 8)
KEY = torch.zeros(1, 2, 3, 4)
MEMORY = torch.zeros(1, 2, 4, 4)


def infini(d_model: int = 8, n_heads: int = 2, segment_len: int = 4, **options: Any) -> InfiniAttention:
    return InfiniAttention(d_model, n_heads, segment_len=segment_len, **options)


def memorizing(d_model: int = 8, n_heads: int = 2, segment_len: int = 4, **options: Any) -> MemorizingAttention:
    return MemorizingAttention(d_model, n_heads, **{"segment_len": segment_len, "capacity": 6, "k": 2} | options)


REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "a rule that does not exist": (lambda: infini(rule="detla"), ["rule", "'detla'", "'linear', 'delta'"]),
    "a rule that write does not know": (
        lambda: write(KEY, KEY, MEMORY, MEMORY[..., 0], rule="Delta"),
        ["rule", "'Delta'", "'linear', 'delta'"],
    ),
    "no segment": (lambda: infini(segment_len=0), ["segment_len", "0", "at least 1 token"]),
    "heads that do not divide": (lambda: infini(9, 2), ["d_model", "9", "n_heads=2"]),
    "an odd width": (lambda: infini(6, 2), ["d_model", "6", "even width"]),
    "no heads": (lambda: infini(8, 0), ["n_heads", "0", "at least 1"]),
    "x of another width": (lambda: infini(12)(X), ["x", "(2, 5, 8)", "d_model=12"]),
    "the state of other heads": (
        lambda: infini()(X, infini(8, 1).initial_state(2)),
        ["state.memory.shape", "(2, 1, 8, 8)", "(batch, 2, 4, 4)"],
    ),
    "the state of another layer": (
        lambda: infini()(X, memorizing().initial_state(2)),
        ["state", "MemorizingState", "InfiniState"],
    ),
    "the state of another batch": (
        lambda: infini()(X, infini().initial_state(3)),
        ["state.memory batch size", "3", "2"],
    ),
    "a state in double precision": (
        lambda: infini()(X, infini().initial_state(2, dtype=torch.float64)),
        ["state.memory.dtype", "torch.float64", "torch.float32"],
    ),
    "a state of another device": (
        lambda: infini()(X, infini().initial_state(2, device="meta")),
        ["state.memory.device", "meta", "cpu"],
    ),
    "memorizing, no segment": (lambda: memorizing(segment_len=-1), ["segment_len", "-1", "at least 1 token"]),
    "no capacity": (lambda: memorizing(capacity=0), ["capacity", "0", "at least 1 token"]),
    "k of none": (lambda: memorizing(k=0), ["k", "0", "capacity=6"]),
    "k beyond the capacity": (lambda: memorizing(k=7), ["k", "7", "from 1 to capacity=6"]),
    "memorizing, heads that do not divide": (lambda: memorizing(9, 2), ["d_model", "9", "n_heads=2"]),
    "the ring of another capacity": (
        lambda: memorizing()(X, memorizing(capacity=5).initial_state(2)),
        ["state.memory_key.shape", "(2, 2, 5, 4)", "(batch, 2, 6, 4)"],
    ),
    "a search for more than there is": (lambda: search(KEY, KEY, None, 4), ["k", "4", "3 entries"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert message.startswith(f"{words[0]} must be ")
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"
