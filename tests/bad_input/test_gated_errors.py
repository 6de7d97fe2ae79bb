"""Gates outside [0, 1] and shapes that do not fit are refused with a ValueError that names them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from memcourse import GatedMemory, ParallelGatedMemory, gated_update, linear_scan

HALF = torch.full((2, 3), 0.5)
GATES = torch.full((2, 5, 3), 0.5)
NOT_A_NUMBER = torch.full((2, 3), float("nan"))

REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "forget gate above 1": (lambda: gated_update(HALF, HALF, HALF + 1, HALF), ["forget_gate", "1.5", "[0, 1]"]),
    "forget gate just above 1": (lambda: gated_update(HALF, HALF, HALF + 0.501, HALF), ["forget_gate", "1.001"]),
    "input gate below 0": (lambda: gated_update(HALF, HALF, HALF, HALF - 1), ["input_gate", "-0.5", "[0, 1]"]),
    "a gate that is no number": (lambda: gated_update(HALF, HALF, HALF, NOT_A_NUMBER), ["input_gate", "nan"]),
    "candidate of another shape": (
        lambda: gated_update(HALF, HALF[:1], HALF, HALF),
        ["candidate", "(1, 3)", "(2, 3)"],
    ),
    "gate that would broadcast": (
        lambda: gated_update(HALF, HALF, HALF[:, :1], HALF),
        ["forget_gate", "(2, 1)", "(2, 3)"],
    ),
    "scan with a gate above 1": (lambda: linear_scan(GATES + 1, GATES), ["forget_gate", "1.5", "[0, 1]"]),
    "scan with a gate below 0": (lambda: linear_scan(GATES - 1, GATES), ["forget_gate", "-0.5", "[0, 1]"]),
    "scan of two dimensions": (lambda: linear_scan(HALF, HALF), ["update", "(2, 3)", "(batch, time, dim)"]),
    "scan, gates of another length": (
        lambda: linear_scan(GATES[:, 1:], GATES),
        ["forget_gate", "(2, 4, 3)", "(2, 5, 3)"],
    ),
    "scan from a state of another batch": (
        lambda: linear_scan(GATES, GATES, HALF[:1]),
        ["initial", "(1, 3)", "(2, 3)"],
    ),
    "no width": (lambda: GatedMemory(0), ["d_model", "0", "at least 1"]),
    "no width in parallel": (lambda: ParallelGatedMemory(-1), ["d_model", "-1", "at least 1"]),
    "x of another width": (lambda: GatedMemory(4)(GATES), ["x", "(2, 5, 3)", "d_model=4"]),
    "state of another width": (
        lambda: ParallelGatedMemory(3)(GATES, ParallelGatedMemory(4).initial_state(2)),
        ["state.memory.shape", "(2, 4)", "(batch, 3)"],
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
