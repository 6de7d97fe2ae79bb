"""The memories that the laws are asked of.  A new one joins by adding its line to MEMORIES."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memcourse import (
    CausalAttention,
    GatedMemory,
    KeyValueMemory,
    MemoryTransformer,
    ParallelGatedMemory,
    SequenceMemory,
)


@dataclass(frozen=True)
class Memory:
    """A class, small arguments for it, and for law 9 another good value and a wrong one for every argument."""

    cls: type[SequenceMemory]
    arguments: dict[str, Any]
    other: dict[str, Any] = field(default_factory=dict)
    wrong: dict[str, Any] = field(default_factory=dict)
    fixed_size: bool = True

    def make(self, device: str, dtype: torch.dtype = torch.float64, **changed: Any) -> SequenceMemory:
        torch.manual_seed(1)
        return self.cls(**self.arguments | changed).to(device, dtype)

    def inputs(
        self, device: str, time: int, *, batch: int = 3, dtype: torch.dtype = torch.float64, seed: int = 2
    ) -> Tensor:
        """Vectors for a mixer or a block, tokens for a model: (B, T, D) or (B, T)."""
        generator = torch.Generator().manual_seed(seed)
        if self.cls.level == "model":
            return torch.randint(self.arguments["vocab_size"], (batch, time), generator=generator).to(device)
        width = self.arguments["d_model"]
        return torch.randn(batch, time, width, generator=generator, dtype=torch.float64).to(device, dtype)


def causal() -> CausalAttention:
    return CausalAttention(12, 2)


def windowed() -> CausalAttention:
    return CausalAttention(12, 2, window=5)


_attention = {
    "other": {"d_model": 24, "n_heads": 3, "window": 4},
    "wrong": {"d_model": 13, "n_heads": 0, "window": 0},
}
_model = {
    "other": {"vocab_size": 23, "d_model": 6, "n_layers": 1, "memory": causal},
    "wrong": {"vocab_size": 0, "d_model": 7, "n_layers": 0, "memory": [causal]},
}

MEMORIES: dict[str, Memory] = {
    "attention": Memory(CausalAttention, {"d_model": 12, "n_heads": 2, "window": None}, **_attention, fixed_size=False),
    "attention in a window": Memory(CausalAttention, {"d_model": 12, "n_heads": 2, "window": 5}, **_attention),
    "gated": Memory(GatedMemory, {"d_model": 12}, {"d_model": 10}, {"d_model": 0}),
    "gated by the input alone": Memory(ParallelGatedMemory, {"d_model": 12}, {"d_model": 10}, {"d_model": 0}),
    "key-value": Memory(
        KeyValueMemory, {"d_model": 12, "n_slots": 5}, {"d_model": 10, "n_slots": 7}, {"d_model": 0, "n_slots": 0}
    ),
    "a model with a window": Memory(
        MemoryTransformer, {"vocab_size": 29, "d_model": 12, "n_layers": 2, "memory": windowed}, **_model
    ),
    "a hybrid model": Memory(
        MemoryTransformer,
        {"vocab_size": 29, "d_model": 12, "n_layers": 2, "memory": [windowed, causal]},
        **_model,
        fixed_size=False,
    ),
}

Law = Callable[[Memory, str], None]
