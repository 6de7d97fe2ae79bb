"""The memories that the laws are asked of.  A new one joins by adding its line to MEMORIES."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memcourse import (
    CausalAttention,
    FeedbackBlock,
    GatedMemory,
    InfiniAttention,
    KeyValueMemory,
    LM2Block,
    MemorizingAttention,
    MemoryTransformer,
    ParallelGatedMemory,
    RecurrentMemoryTransformer,
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


def feedback() -> FeedbackBlock:
    return FeedbackBlock(12, 2, block_len=5, n_feedback=3, n_past_blocks=1)


def bank() -> LM2Block:
    return LM2Block(12, 2, 4, segment_len=5, writes="both")


def infini() -> InfiniAttention:
    return InfiniAttention(12, 2, segment_len=5, rule="delta")


_attention = {
    "other": {"d_model": 24, "n_heads": 3, "window": 4},
    "wrong": {"d_model": 13, "n_heads": 0, "window": 0},
}
_feedback = {
    "other": {"d_model": 24, "n_heads": 3, "block_len": 4, "n_feedback": 2, "n_past_blocks": 3},
    "wrong": {"d_model": 13, "n_heads": 0, "block_len": 0, "n_feedback": -1, "n_past_blocks": -1},
}
_feedback_small = {"d_model": 12, "n_heads": 2, "block_len": 5, "n_feedback": 3, "n_past_blocks": 0}
_bank = {
    "other": {"d_model": 24, "n_heads": 3, "n_slots": 6, "segment_len": 4, "writes": "joint"},
    "wrong": {"d_model": 13, "n_heads": 0, "n_slots": 0, "segment_len": 0, "writes": "output"},
}
_bank_small = {"d_model": 12, "n_heads": 2, "n_slots": 4, "segment_len": 5, "writes": "input"}
_recurrent = {
    "other": {"vocab_size": 23, "d_model": 24, "n_layers": 1, "n_heads": 3, "n_memory": 2, "segment_len": 4},
    "wrong": {"vocab_size": 0, "d_model": 13, "n_layers": 0, "n_heads": 0, "n_memory": 0, "segment_len": 0},
}
_infini = {
    "other": {"d_model": 24, "n_heads": 3, "segment_len": 4},
    "wrong": {"d_model": 13, "n_heads": 0, "segment_len": 0, "rule": "detla"},
}
_infini_small = {"d_model": 12, "n_heads": 2, "segment_len": 5}
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
    "feedback": Memory(FeedbackBlock, _feedback_small, **_feedback),
    "feedback and past blocks": Memory(FeedbackBlock, _feedback_small | {"n_past_blocks": 2}, **_feedback),
    "past blocks without feedback": Memory(
        FeedbackBlock, _feedback_small | {"n_feedback": 0, "n_past_blocks": 2}, **_feedback
    ),
    "blocks without feedback": Memory(FeedbackBlock, _feedback_small | {"n_feedback": 0}, **_feedback),
    "bank of inputs": Memory(LM2Block, _bank_small, **_bank),
    "bank of thoughts": Memory(LM2Block, _bank_small | {"writes": "thought"}, **_bank),
    "bank of both": Memory(LM2Block, _bank_small | {"writes": "both"}, **_bank),
    "bank of both in one pass": Memory(
        LM2Block, _bank_small | {"writes": "joint"}, other=_bank["other"] | {"writes": "input"}, wrong=_bank["wrong"]
    ),
    "bank of more slots than units": Memory(LM2Block, _bank_small | {"n_slots": 15}, **_bank),
    "recurrent memory": Memory(
        RecurrentMemoryTransformer,
        {"vocab_size": 29, "d_model": 12, "n_layers": 2, "n_heads": 2, "n_memory": 3, "segment_len": 5},
        **_recurrent,
    ),
    "infini, linear": Memory(
        InfiniAttention, _infini_small | {"rule": "linear"}, _infini["other"] | {"rule": "delta"}, _infini["wrong"]
    ),
    "infini, delta": Memory(
        InfiniAttention, _infini_small | {"rule": "delta"}, _infini["other"] | {"rule": "linear"}, _infini["wrong"]
    ),
    "memorizing": Memory(
        MemorizingAttention,
        {"d_model": 12, "n_heads": 2, "segment_len": 5, "capacity": 8, "k": 3},
        {"d_model": 24, "n_heads": 3, "segment_len": 4, "capacity": 6, "k": 2},
        {"d_model": 13, "n_heads": 0, "segment_len": 0, "capacity": 0, "k": 9},
    ),
    "a model with matrices": Memory(
        MemoryTransformer, {"vocab_size": 29, "d_model": 12, "n_layers": 2, "memory": infini}, **_model
    ),
    "a model with banks": Memory(
        MemoryTransformer, {"vocab_size": 29, "d_model": 12, "n_layers": 2, "memory": bank}, **_model
    ),
    "a model with a window": Memory(
        MemoryTransformer, {"vocab_size": 29, "d_model": 12, "n_layers": 2, "memory": windowed}, **_model
    ),
    "a model with feedback": Memory(
        MemoryTransformer, {"vocab_size": 29, "d_model": 12, "n_layers": 2, "memory": feedback}, **_model
    ),
    "a hybrid model": Memory(
        MemoryTransformer,
        {"vocab_size": 29, "d_model": 12, "n_layers": 2, "memory": [windowed, causal]},
        **_model,
        fixed_size=False,
    ),
}

Law = Callable[[Memory, str], None]
