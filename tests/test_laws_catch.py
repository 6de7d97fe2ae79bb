"""Each law fails on planted bugs of the kind it is there to catch: mistakes found in public implementations."""

import dataclasses
from typing import Any

import pytest
import torch
from laws import LAWS
from memories import MEMORIES, Memory
from torch import Tensor, nn

from memcourse import CausalAttention
from memcourse.attention import KeyValueCache, masked_attention
from memcourse.memory import detach

CHUNK = MEMORIES["attention"]
WINDOW = MEMORIES["attention in a window"]


class NoCausalMask(CausalAttention):
    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        query, key, value = self.heads.split(x, x)
        return self.heads.merge(masked_attention(query, key, value)), super().advance(x, state)[1]


class HeadsSplitWithoutTranspose(CausalAttention):
    """`.view(B, H, T, d)` where a transpose was needed: a head reads a mixture of times, and future tokens leak."""

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        B, T, D = x.shape
        split = [p(x).view(B, 2, T, D // 2) for p in (self.heads.query, self.heads.key, self.heads.value)]
        read = masked_attention(*split, causal=True)
        return self.heads.merge(read), super().advance(x, state)[1]


class GatePoolsOverTheSegment(CausalAttention):
    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = super().advance(x, state)
        return y * x.mean(dim=1, keepdim=True).sigmoid(), state


class ReadsNothing(CausalAttention):
    """Causal, since nothing that comes in ever comes out."""

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = super().advance(x * 0, state)
        return y, state


class PositionStartsAgain(CausalAttention):
    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = super().advance(x, state)
        return y, after._replace(position=torch.zeros_like(after.position))


class KeysAndValuesOutOfStep(CausalAttention):
    """A ring that is full drops the oldest value one token late."""

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = super().advance(x, state)
        return y, after._replace(value=after.value.roll(1, dims=2))


class StartsFromNoise(CausalAttention):
    def initial_state(self, *args: Any, **kwargs: Any) -> KeyValueCache:
        empty = super().initial_state(*args, **kwargs)
        noise = torch.rand(()).item()
        return empty._replace(key=empty.key + noise, position=empty.position + 4)


class CountsEmptyChunks(CausalAttention):
    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        y, after = super().forward(x, state)
        return y, after._replace(position=after.position + (x.shape[1] == 0))


class WriteAlwaysDetached(CausalAttention):
    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = super().advance(x, state)
        return y, detach(state)


class StateOnTheModule(CausalAttention):
    """Kept between calls on the module: it survives `detach`, and meets the next, unrelated batch."""

    kept: Tensor | None = None

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = super().advance(x, state)
        if self.kept is not None and len(self.kept) == len(y):
            y = y + self.kept
        self.kept = x.mean(dim=1, keepdim=True)
        return y, state


class NormalizesOverTheBatch(CausalAttention):
    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return super().advance(x - x.mean(dim=0, keepdim=True), state)


class ResetRowSeesEmptyEntries(CausalAttention):
    """No per-row count of valid entries: a row that starts afresh attends to its neighbour's empty ones."""

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return super().advance(x, state._replace(position=state.position.amax().expand_as(state.position)))


class CacheGrowsForEver(CausalAttention):
    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = super().advance(x, state)
        grown = torch.cat([after.key.new_zeros(*after.key.shape[:2], x.shape[1], after.key.shape[3]), after.key], dim=2)
        return y, after._replace(key=grown)


class KeepsTheChunkAlive(CausalAttention):
    """The window is a view of the chunk's keys: as small as it should be, and all of the chunk stays in memory."""

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = super().advance(x, state)
        chunk = torch.cat([after.key.new_zeros(*after.key.shape[:2], x.shape[1], after.key.shape[3]), after.key], dim=2)
        return y, after._replace(key=chunk[:, :, x.shape[1] :])


class StateInHalfPrecision(CausalAttention):
    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, after = super().advance(x, state)
        return y, after._replace(key=after.key.bfloat16(), value=after.value.bfloat16())

    def accept(self, state: Any, *args: Any) -> Any:
        return (
            super().accept(None, *args)
            if state is None
            else state._replace(key=state.key.float(), value=state.value.float())
        )


class DividesByTheNorm(CausalAttention):
    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return super().advance(x / x.norm(dim=-1, keepdim=True), state)


class IgnoresItsWindow(CausalAttention):
    def __init__(self, d_model: int, n_heads: int, *, window: int | None = None) -> None:
        super().__init__(d_model, n_heads, window=window)
        self.config["window"] = 5


class AcceptsAnything(CausalAttention):
    def __init__(self, d_model: int, n_heads: int, *, window: int | None = None) -> None:
        super().__init__(d_model // 12 * 12, n_heads, window=window)


class ParameterOutOfUse(CausalAttention):
    def __init__(self, d_model: int, n_heads: int, *, window: int | None = None) -> None:
        super().__init__(d_model, n_heads, window=window)
        self.unused = nn.Parameter(torch.zeros(d_model))


class HalfSavedState(CausalAttention):
    """A part of what the next token needs stays on the module, so that a loaded state is not the whole state."""

    tokens_seen = 0

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state = super().advance(x, state)
        y = y * (1 + self.tokens_seen)
        self.tokens_seen += x.shape[1]
        return y, state


PLANTED: list[tuple[str, type[CausalAttention], Memory]] = [
    ("causal", NoCausalMask, CHUNK),
    ("causal", HeadsSplitWithoutTranspose, CHUNK),
    ("causal", GatePoolsOverTheSegment, CHUNK),
    ("causal", ReadsNothing, CHUNK),
    ("streaming", PositionStartsAgain, CHUNK),
    ("streaming", KeysAndValuesOutOfStep, WINDOW),
    ("streaming", NoCausalMask, CHUNK),
    ("initial state", StartsFromNoise, WINDOW),
    ("initial state", CountsEmptyChunks, CHUNK),
    ("gradient", WriteAlwaysDetached, CHUNK),
    ("gradient", StateOnTheModule, CHUNK),
    ("rows", NormalizesOverTheBatch, CHUNK),
    ("rows", ResetRowSeesEmptyEntries, CHUNK),
    ("rows", GatePoolsOverTheSegment, CHUNK),
    ("saved", HalfSavedState, CHUNK),
    ("size", CacheGrowsForEver, WINDOW),
    ("size", KeepsTheChunkAlive, WINDOW),
    ("numbers", StateInHalfPrecision, CHUNK),
    ("numbers", DividesByTheNorm, CHUNK),
    ("arguments", IgnoresItsWindow, CHUNK),
    ("arguments", AcceptsAnything, CHUNK),
    ("arguments", ParameterOutOfUse, CHUNK),
]


@pytest.mark.parametrize(("law", "bug", "memory"), PLANTED, ids=lambda part: getattr(part, "__name__", None))
def test_law_catches(law: str, bug: type[CausalAttention], memory: Memory) -> None:
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        LAWS[law](dataclasses.replace(memory, cls=bug), "cpu")


def test_every_law_has_a_planted_bug() -> None:
    assert {law for law, _, _ in PLANTED} == set(LAWS)
