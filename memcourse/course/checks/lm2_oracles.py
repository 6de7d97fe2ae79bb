"""How the answers of chapter 06 are used, and what is right: cases, probes, oracles, properties.

The oracles are the equations in NumPy float64, one row at a time: no library, no torch, no matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memcourse.course.checks.attention_oracles import Array, Parameters, random, softmax, with_parameters
from memcourse.course.checks.gated_oracles import sigmoid
from memcourse.course.checks.timing import times_as_fast
from memcourse.course.exercise import Wrong
from memcourse.course.runner.portable import portable

Weights = dict[str, Array]


def matrices(seed: int, names: str, width: int) -> Parameters:
    """Square matrices by name, small enough for no gate and no softmax to be shut."""
    return {name: random(seed + n, width, width) / width**0.5 for n, name in enumerate(names.split())}


def times(rows: Array, matrix: Array) -> Array:
    """rows @ matrix: (T, D), (D, D) -> (T, D)."""
    return np.array([(row[:, None] * matrix).sum(axis=0) for row in rows]).reshape(len(rows), matrix.shape[1])


def attended(query: Array, key: Array, value: Array, n_heads: int = 1) -> Array:
    """Every query over every key, head by head: (T, D), (S, D), (S, D) -> (T, D)."""
    d = query.shape[1] // n_heads
    read = np.zeros(query.shape)
    for head in range(n_heads):
        own = slice(head * d, (head + 1) * d)
        for t, q in enumerate(query[:, own]):
            scores = np.array([(q * k).sum() / math.sqrt(d) for k in key[:, own]])
            for weight, v in zip(softmax(scores), value[:, own], strict=True):
                read[t, own] += weight * v
    return read


def read_row(tokens: Array, memory: Array, W: Weights, n_heads: int = 1) -> Array:
    """g_out * R for one row of the batch: (T, D), (N, D) -> (T, D)."""
    R = attended(times(tokens, W["q"]), times(memory, W["k"]), times(memory, W["v"]), n_heads)
    return np.asarray(sigmoid(times(R, W["out"])) * R)


def gathered(memory: Array, segment: Array, U: Weights, n_heads: int = 1) -> Array:
    """C for one row of the batch: (N, D), (L, D) -> (N, D)."""
    return attended(times(memory, U["q"]), times(segment, U["k"]), times(segment, U["v"]), n_heads)


def updated(memory: Array, candidate: Array, W: Weights, b_f: Array) -> Array:
    new = np.zeros_like(memory)
    for n, (slot, c) in enumerate(zip(memory, candidate, strict=True)):
        g_in, g_f = sigmoid(times(c[None], W["in"])[0]), sigmoid(times(slot[None], W["f"])[0] + b_f)
        new[n] = g_f * slot + g_in * np.tanh(c)
    return new


# 6.2 update_bank


def update_cases() -> list[tuple[Any, ...]]:
    """(B, N, D) = (2, 3, 5) and (3, 7, 2)."""
    return [
        (random(seed, B, N, D), random(seed + 1, B, N, D), matrices(seed + 2, "in f", D), random(seed + 9, D))
        for seed, (B, N, D) in ((1, (2, 3, 5)), (31, (3, 7, 2)))
    ]


def update_oracle(memory: Array, candidate: Array, W: Weights, b_f: Array) -> Array:
    return np.array([updated(M, C, W, b_f) for M, C in zip(memory, candidate, strict=True)])


# 6.3 read_bank

Sizes = tuple[int, int, int, int, int]
HEADS: tuple[Sizes, ...] = ((2, 3, 5, 4, 2), (3, 7, 2, 10, 5), (2, 5, 7, 3, 1))  # B, T, N, D, H


def read_cases() -> list[tuple[Any, ...]]:
    """(B, T, N, D) = (2, 3, 5, 4) with 2 heads of 2, (3, 7, 2, 10) with 5 of 2, (2, 5, 7, 3) with one of 3."""
    return [
        (random(seed, B, T, D), random(seed + 1, B, N, D), matrices(seed + 2, "q k v out", D), H)
        for seed, (B, T, N, D, H) in zip((1, 11, 21), HEADS, strict=True)
    ]


def read_oracle(tokens: Array, memory: Array, W: Weights, n_heads: int) -> Array:
    return np.array([read_row(E, M, W, n_heads) for E, M in zip(tokens, memory, strict=True)])


# 6.4 slots_query_segment


def slots_cases() -> list[tuple[Any, ...]]:
    """(B, N, L, D) as (B, T, N, D) of 6.3."""
    return [
        (random(seed, B, N, D), random(seed + 1, B, L, D), matrices(seed + 2, "q k v", D), H)
        for seed, (B, N, L, D, H) in zip((41, 51, 61), HEADS, strict=True)
    ]


def slots_oracle(memory: Array, segment: Array, U: Weights, n_heads: int) -> Array:
    return np.array([gathered(M, Z, U, n_heads) for M, Z in zip(memory, segment, strict=True)])


# 6.5 BankLayer

LAYERS = "W_q W_k W_v W_out U_q U_k U_v W_in W_f"


def bank_layer_cases() -> list[tuple[Any, ...]]:
    """(B, T, N, D), L = (2, 7, 3, 2), 3: two segments and a token; (3, 5, 7, 3), 5: one; (2, 3, 7, 5), 11: none."""
    return [
        (random(seed, B, T, D), random(seed + 1, B, N, D), segment_len, bank_layer_parameters(seed + 2, D))
        for seed, (B, T, N, D), segment_len in ((1, (2, 7, 3, 2), 3), (21, (3, 5, 7, 3), 5), (41, (2, 3, 7, 5), 11))
    ]


def bank_layer_parameters(seed: int, width: int) -> Parameters:
    drawn = {f"{name}.weight": matrix for name, matrix in matrices(seed, LAYERS, width).items()}
    return drawn | {"W_f.bias": random(seed + 15, width)}


def bank_layer_probe(answer: Any, x: Tensor, memory: Tensor, segment_len: int, parameters: Parameters) -> Any:
    layer = answer(x.shape[2], segment_len)
    return with_parameters(layer, parameters, x, memory)


def bank_layer_oracle(x: Array, memory: Array, segment_len: int, parameters: Weights) -> tuple[Array, Array]:
    by_letter: dict[str, Weights] = {"W": {}, "U": {}}
    for name in LAYERS.split():
        by_letter[name[0]][name[2:]] = parameters[f"{name}.weight"].T  # a layer's weight is (out, in)
    y, after = x.copy(), memory.copy()
    for b in range(len(x)):
        for start in range(0, x.shape[1], segment_len):
            segment = x[b, start : start + segment_len]
            y[b, start : start + segment_len] += read_row(segment, after[b], by_letter["W"])
            if len(segment) == segment_len:
                C = gathered(after[b], segment, by_letter["U"])
                after[b] = updated(after[b], C, by_letter["W"], parameters["W_f.bias"])
    return y, after


# 6.6 write_segment


def write_cases() -> list[tuple[Any, ...]]:
    """(B, N, L, D) = (2, 3, 5, 2) for "both", then (3, 2, 7, 5) for each of the four."""
    sizes = [((2, 3, 5, 2), "both"), *(((3, 2, 7, 5), writes) for writes in ("input", "thought", "both", "joint"))]
    return [
        (
            random(seed, B, N, D),
            random(seed + 1, B, L, D),
            random(seed + 2, B, L, D),
            matrices(seed + 3, "q k v", D),
            matrices(seed + 6, "in f", D),
            random(seed + 8, D),
            writes,
        )
        for seed, ((B, N, L, D), writes) in enumerate(sizes, start=71)
    ]


def write_oracle(
    memory: Array, inputs: Array, thoughts: Array, U: Weights, W: Weights, b_f: Array, writes: str
) -> Array:
    after = memory.copy()
    for b in range(len(memory)):
        both_in_one = np.concatenate([inputs[b], thoughts[b]])
        passes = {
            "input": [inputs[b]],
            "thought": [thoughts[b]],
            "both": [inputs[b], thoughts[b]],
            "joint": [both_in_one],
        }
        for Z in passes[writes]:
            after[b] = updated(after[b], gathered(after[b], Z, U), W, b_f)
    return after


# 6.7 read_segments

SPEED_UP = 5
READS = 3  # of whole segments, and of an open one, and one to spare
TIMED = {"batch": 2, "time": 256, "slots": 4, "width": 8, "segment_len": 16}

Read = Callable[[Tensor, Tensor], Tensor]
Write = Callable[[Tensor, Tensor], Tensor]


def segments_cases() -> list[tuple[Any, ...]]:
    """(B, T, N, D), L = (2, 7, 3, 2), 3; (3, 14, 2, 5), 7; (3, 2, 7, 5), 3: less than a segment; (2, 5, 3, 2), 1."""
    return [
        (
            random(seed, B, T, D),
            random(seed + 1, B, N, D),
            matrices(seed + 2, "q k v out in f Uq Uk Uv", D),
            segment_len,
        )
        for seed, (B, T, N, D), segment_len in (
            (1, (2, 7, 3, 2), 3),
            (21, (3, 14, 2, 5), 7),
            (41, (3, 2, 7, 5), 3),
            (61, (2, 5, 3, 2), 1),
        )
    ]


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(B, T, D), (B, S, D), (B, S, D) -> (B, T, D)."""
    return (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(dim=-1) @ value


@portable(attend)
def reader(p: Parameters) -> Read:
    """What 6.7 hands over as `read`: (B, T, D), (B, N, D) -> (B, T, D)."""

    def read(tokens: Tensor, memory: Tensor) -> Tensor:
        same_rows = tokens.ndim == memory.ndim == 3 and len(tokens) == len(memory)
        if not same_rows:
            raise ValueError(
                f"read takes (B, T, D) and (B, N, D) with the same B, got {tuple(tokens.shape)} and "
                f"{tuple(memory.shape)}"
            )
        R = attend(tokens @ p["q"], memory @ p["k"], memory @ p["v"])
        return (R @ p["out"]).sigmoid() * R

    return read


@portable(attend)
def writer(p: Parameters) -> Write:
    """What 6.7 hands over as `write`: (B, N, D), (B, L, D) -> (B, N, D)."""

    def write(memory: Tensor, segment: Tensor) -> Tensor:
        if not (segment.ndim == memory.ndim == 3 and len(segment) == len(memory)):
            raise ValueError(
                f"write takes (B, N, D) and (B, L, D) with the same B, got {tuple(memory.shape)} and "
                f"{tuple(segment.shape)}"
            )
        C = attend(memory @ p["Uq"], segment @ p["Uk"], segment @ p["Uv"])
        return (memory @ p["f"] + 1).sigmoid() * memory + (C @ p["in"]).sigmoid() * C.tanh()

    return write


def segments_probe(
    answer: Any, x: Tensor, memory: Tensor, weights_of_read_and_write: Parameters, segment_len: int
) -> Any:
    weights = weights_of_read_and_write
    return answer(x, memory, reader(weights), writer(weights), segment_len)


def segments_oracle(
    x: Array, memory: Array, weights_of_read_and_write: Weights, segment_len: int
) -> tuple[Array, Array]:
    weights = weights_of_read_and_write
    U = {name: weights[f"U{name}"] for name in "qkv"}
    reads, after = np.zeros_like(x), memory.copy()
    for b in range(len(x)):
        for start in range(0, x.shape[1], segment_len):
            segment = x[b, start : start + segment_len]
            reads[b, start : start + segment_len] = read_row(segment, after[b], weights)
            if len(segment) == segment_len:
                after[b] = updated(after[b], gathered(after[b], segment, U), weights, np.ones(x.shape[2]))
    return reads, after


def token_loop(x: Tensor, memory: Tensor, read: Read, write: Write, segment_len: int) -> tuple[Tensor, Tensor]:
    """The loop that the stub prints."""
    reads = []
    for t in range(x.shape[1]):
        reads.append(read(x[:, t : t + 1], memory))
        if (t + 1) % segment_len == 0:
            memory = write(memory, x[:, t + 1 - segment_len : t + 1])
    return torch.cat(reads, dim=1), memory


def _timed_case() -> tuple[Any, ...]:
    B, T, N, D, segment_len = TIMED.values()
    weights = matrices(3, "q k v out in f Uq Uk Uv", D)
    return random(1, B, T, D), random(2, B, N, D), reader(weights), writer(weights), segment_len


def at_least_five_times_as_fast_as_the_loop(answer: Any) -> None:
    with torch.no_grad():
        ratio = times_as_fast(answer, token_loop, _timed_case(), asked=SPEED_UP)
    if ratio < SPEED_UP:
        raise Wrong(
            f"the same numbers as the loop, at {ratio:.1f} times its speed; at least {SPEED_UP} times is asked. "
            "One `write` for each segment, and a few calls of `read`, are enough"
        )


def all_segments_are_read_at_once(answer: Any) -> None:
    x, memory, read, write, segment_len = _timed_case()
    called: list[int] = []

    def counted(tokens: Tensor, bank: Tensor) -> Tensor:
        called.append(tokens.shape[1])
        return read(tokens, bank)

    answer(x, memory, counted, write, segment_len)
    if len(called) > READS:
        every = ", for each token by itself" if len(called) >= x.shape[1] else ""
        raise Wrong(
            f"for {x.shape[1] // segment_len} segments `read` is called {len(called)} times{every}; a few calls are "
            "enough, however many segments there are. Writes wait for each other, reads do not: keep the banks of all "
            "segments, and put the segments into the batch"
        )
