"""Wrong arguments, inputs and states of LM2Block: a ValueError names the argument, the value and what is allowed."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from memcourse import LM2Block
from memcourse.lm2 import update
from memcourse.memory import reset

ARGUMENTS: dict[str, Any] = {"d_model": 12, "n_heads": 2, "n_slots": 3, "segment_len": 4}
LAYER, X = LM2Block(**ARGUMENTS), torch.zeros(2, 5, 12)
STATE = LAYER(X)[1]
BANK = torch.zeros(2, 3, 12)


def made(**changed: Any) -> Callable[[], LM2Block]:
    return lambda: LM2Block(**ARGUMENTS | changed)


REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "heads that do not divide": (made(n_heads=5), ["d_model", "12", "multiple of n_heads=5"]),
    "heads of odd width": (made(n_heads=4), ["d_model", "12", "n_heads=4 times an even width"]),
    "no heads": (made(n_heads=0), ["n_heads", "0", "at least 1"]),
    "no slots": (made(n_slots=0), ["n_slots", "0", "at least 1"]),
    "no segment": (made(segment_len=0), ["segment_len", "0", "at least 1"]),
    "a write that does not exist": (made(writes="output"), ["writes", "'output'", "input, thought, both, joint"]),
    "another width": (lambda: LAYER(torch.zeros(2, 5, 10)), ["x", "(2, 5, 10)", "d_model=12"]),
    "the state of another batch size": (lambda: LAYER(X[:1], STATE), ["state.memory batch size", "2", "of x, 1"]),
    "the state of another number of slots": (
        lambda: made(n_slots=4)()(X, STATE),
        ["state.memory.shape", "(2, 3, 12)", "(batch, 4, 12)"],
    ),
    "the state of another dtype": (lambda: LAYER.double()(X.double(), STATE), ["state.memory.dtype", "float64"]),
    "the state of another layer": (lambda: LAYER(X, (BANK,)), ["state", "LM2State"]),
    "a reset inside a segment": (lambda: reset(LAYER, STATE, [0]), ["state", "3 tokens before the end", "segment"]),
    "a candidate of another shape": (
        lambda: update(BANK, BANK[:1], BANK, BANK),
        ["candidate", "(1, 3, 12)", "(2, 3, 12)"],
    ),
    "a gate that would broadcast": (
        lambda: update(BANK, BANK, BANK, BANK[..., :1]),
        ["input_gate", "(2, 3, 1)", "(2, 3, 12)"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words)):
        call()
