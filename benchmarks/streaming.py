"""Every memory streamed: time per token at the end of 64k tokens against the start, and how the state grows."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import Row, ratio
from memcourse import (
    CausalAttention,
    FeedbackBlock,
    GatedMemory,
    InfiniAttention,
    KeyValueMemory,
    LM2Block,
    MemorizingAttention,
    ParallelGatedMemory,
    RecurrentMemoryTransformer,
)
from memcourse.attention import KeyValueCache
from memcourse.memory import n_bytes, stream

D, H, SEGMENT, CHUNK, VOCAB = 64, 4, 64, 1024, 32
LENGTH = 65_536

MEMORIES: dict[str, Any] = {
    "CausalAttention in a window": lambda: CausalAttention(D, H, window=SEGMENT),
    "GatedMemory": lambda: GatedMemory(D),
    "ParallelGatedMemory": lambda: ParallelGatedMemory(D),
    "KeyValueMemory": lambda: KeyValueMemory(D, 16),
    "LM2Block": lambda: LM2Block(D, H, 16, segment_len=SEGMENT),
    "InfiniAttention, linear": lambda: InfiniAttention(D, H, segment_len=SEGMENT),
    "InfiniAttention, delta": lambda: InfiniAttention(D, H, segment_len=SEGMENT, rule="delta"),
    "MemorizingAttention": lambda: MemorizingAttention(D, H, segment_len=SEGMENT, capacity=512, k=8),
    "FeedbackBlock": lambda: FeedbackBlock(D, H, block_len=SEGMENT, n_feedback=4, n_past_blocks=1),
    "RecurrentMemoryTransformer, 2 layers": lambda: RecurrentMemoryTransformer(
        VOCAB, D, 2, H, n_memory=4, segment_len=SEGMENT
    ),
}


def inputs(layer: Any, length: int, device: str) -> Tensor:
    """Tokens for a model, vectors for a mixer or a block: (1, T) or (1, T, D)."""
    if layer.level == "model":
        return torch.randint(VOCAB, (1, length), device=device)
    return torch.randn(1, length, D, device=device)


def time_per_token(layer: Any, piece: Tensor, late: Any, early: Any) -> float:
    """Time of a piece after the late state over its time after the early one."""
    times = max(1, 32 // piece.shape[1])  # one token alone is too short to be timed

    def read(state: Any) -> None:
        for _ in range(times):
            layer(piece, state)

    return ratio(lambda: read(late), lambda: read(early), rounds=9)


@torch.no_grad()
def rows() -> Iterator[Row]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, make in MEMORIES.items():
        layer = make().to(device)
        x, early = inputs(layer, LENGTH, device), None
        for _, state in stream(layer, x, CHUNK):
            early = state if early is None else early
        (empty, full), sizes_early = (sizes(layer, x, after) for after in (state, early))
        ratios = [time_per_token(layer, x[:, :time], state, early) for time in (CHUNK, 1)]
        yield Row(
            f"{name}, D={D} on {device}: time per token at T={LENGTH} / at T={CHUNK}, in chunks and one by one; "
            "state at a segment's start and end",
            f"{ratios[0]:.2f}x, {ratios[1]:.2f}x; {empty / 1000:.1f} to {full / 1000:.1f} kB",
            "at most 1.3x; as many bytes",
            max(ratios) <= 1.3 and (empty, full) == sizes_early,
        )
    layer = CausalAttention(D, H).to(device)
    # its own stream of this length would take longer than all others together
    late, early = (random_cache(length, device) for length in (LENGTH, CHUNK))
    found, growth = time_per_token(layer, inputs(layer, 1, device), late, early), n_bytes(late) / n_bytes(early)
    yield Row(
        f"CausalAttention with no window, D={D} on {device}, from a random cache: the same, one by one; state",
        f"{found:.1f}x; {n_bytes(late) / 1000:.0f} kB, {growth:.0f}x",
        "none: it grows",
        True,
    )


def sizes(layer: Any, x: Tensor, state: Any) -> tuple[int, int]:
    """Bytes of a state in which no segment is open, and of the same with a segment that misses its last token."""
    return n_bytes(state), n_bytes(layer(x[:, : SEGMENT - 1], state)[1])


def random_cache(length: int, device: str) -> KeyValueCache:
    shape = (1, H, length, D // H)
    position = torch.full((1,), length, device=device)
    return KeyValueCache(torch.randn(shape, device=device), torch.randn(shape, device=device), position)
