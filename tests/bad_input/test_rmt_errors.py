"""Wrong arguments, tokens, states and files of the Recurrent Memory Transformer: a ValueError names what is wrong."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memcourse import CausalAttention, MemoryTransformer, RecurrentMemoryTransformer
from memcourse.memory import reset

ARGUMENTS: dict[str, Any] = {
    "vocab_size": 11,
    "d_model": 12,
    "n_layers": 1,
    "n_heads": 2,
    "n_memory": 3,
    "segment_len": 4,
}


def made(**changed: Any) -> RecurrentMemoryTransformer:
    return RecurrentMemoryTransformer(**ARGUMENTS | changed)


MODEL, TOKENS = made(), torch.zeros(2, 5, dtype=torch.long)
STATE = MODEL(TOKENS)[1]

REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "heads that do not divide": (lambda: made(n_heads=5), ["d_model", "12", "multiple of n_heads=5"]),
    "heads of odd width": (lambda: made(n_heads=4), ["d_model", "12", "n_heads=4 times an even width"]),
    "no layers": (lambda: made(n_layers=0), ["n_layers", "0", "at least 1"]),
    "no memory": (lambda: made(n_memory=0), ["n_memory", "0", "at least 1"]),
    "no segment": (lambda: made(segment_len=0), ["segment_len", "0", "at least 1"]),
    "a token beyond the vocabulary": (lambda: MODEL(TOKENS + 11), ["tokens", "11", "from 0 to 10"]),
    "tokens that are no integers": (lambda: MODEL(TOKENS.float()), ["tokens", "float32", "integers"]),
    "an empty prompt": (lambda: MODEL.generate(TOKENS[:, :0], 1), ["prompt", "(2, 0)", "at least one token"]),
    "the state of another batch size": (
        lambda: MODEL(TOKENS[:1], STATE),
        ["state.previous batch size", "2", "of x, 1"],
    ),
    "the state of another depth": (lambda: made(n_layers=2)(TOKENS, STATE), ["state", "this layer's own making"]),
    "the state of another memory": (
        lambda: made(n_memory=2)(TOKENS, STATE),
        ["state.memory.shape", "(2, 3, 12)", "(batch, 2, 12)"],
    ),
    "the state of another dtype": (lambda: made().double()(TOKENS, STATE), ["state.previous.dtype", "float64"]),
    "a reset inside a segment": (lambda: reset(MODEL, STATE, [0]), ["state", "3 tokens before the end", "segment"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises(ValueError, match="(?s)" + "".join(f"(?=.*{re.escape(word)})" for word in words)):
        call()


def test_the_file_of_another_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    MODEL.save(path)
    with pytest.raises(ValueError, match="n_memory: 2 here, 3 in the file"):
        made(n_memory=2).load(path)
    with pytest.raises(ValueError, match="class: MemoryTransformer here, RecurrentMemoryTransformer in the file"):
        MemoryTransformer(11, 12, 1, lambda: CausalAttention(12, 2)).load(path)
