"""FeedbackBlock refuses wrong arguments, inputs and states with a ValueError that names them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from memcourse import FeedbackBlock
from memcourse.memory import reset


def layer(
    d_model: int = 12, n_heads: int = 2, *, block_len: int = 5, n_feedback: int = 3, n_past_blocks: int = 1
) -> Any:
    return FeedbackBlock(d_model, n_heads, block_len=block_len, n_feedback=n_feedback, n_past_blocks=n_past_blocks)


X = torch.zeros(2, 7, 12)

REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "no width": (lambda: layer(0), ["d_model", "multiple of n_heads=2", "got 0"]),
    "heads that do not divide": (lambda: layer(13), ["d_model", "multiple of n_heads=2", "got 13"]),
    "heads of odd width": (lambda: layer(6), ["d_model", "even width", "got 6"]),
    "no heads": (lambda: layer(12, 0), ["n_heads", "at least 1", "got 0"]),
    "no tokens in a block": (lambda: layer(block_len=0), ["block_len", "at least 1 token", "got 0"]),
    "less than no feedback": (lambda: layer(n_feedback=-1), ["n_feedback", "0 vectors or more", "got -1"]),
    "less than no past": (lambda: layer(n_past_blocks=-2), ["n_past_blocks", "0 blocks or more", "got -2"]),
    "x of another width": (lambda: layer()(X[..., 1:]), ["x", "(2, 7, 11)", "d_model=12"]),
    "x of two dimensions": (lambda: layer()(X[0]), ["x", "(7, 12)", "(batch, time, d_model=12)"]),
    "a state with other feedback": (
        lambda: layer()(X, layer(n_feedback=2).initial_state(2)),
        ["state.feedback.shape", "(2, 2, 12)", "(batch, 3, 12)"],
    ),
    "a state with other past blocks": (
        lambda: layer()(X, layer(n_past_blocks=2).initial_state(2)),
        ["state.past_key.shape", "(2, 2, 10, 6)", "(batch, 2, 5, 6)"],
    ),
    "a state of another batch size": (
        lambda: layer()(X, layer().initial_state(3)),
        ["state.feedback batch size", "that of x, 2", "got 3"],
    ),
    "a state of another dtype": (
        lambda: layer()(X, layer().initial_state(2, dtype=torch.float64)),
        ["state.feedback.dtype", "torch.float32", "got torch.float64"],
    ),
    "a state on another device": (
        lambda: layer()(X, layer().initial_state(2, device="meta")),
        ["state.feedback.device", "that of x, cpu", "got meta"],
    ),
    "something else as a state": (lambda: layer()(X, (X, X)), ["state", "FeedbackState", "got tuple"]),
    "a row reset inside a block": (
        lambda: reset(layer(), layer()(X)[1], [0]),
        ["state", "at a segment's end", "3 tokens before the end"],
    ),
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
