"""How the answers of chapter 02 are used, and what is right: cases, oracles, properties.

The oracles are the equations in NumPy float64, one number at a time: no library, no torch, no matrix product.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memcourse.course.checks.attention_oracles import Array, random, softmax
from memcourse.course.checks.timing import times_as_fast
from memcourse.course.exercise import Wrong

# 2.2 cosine_address


def cosine_cases() -> list[tuple[Any, ...]]:
    """(q, n, d) = (2, 3, 5) and (7, 5, 3), where some are very long or short; then with vectors of zeros."""
    query, keys = random(3, 7, 3), random(4, 5, 3)
    query[1] *= 1000
    query[2] /= 30
    keys[4] *= 1000
    return [(random(1, 2, 5), random(2, 3, 5), 3.0), (query, keys, 3.0), (*cosine_with_zeros(), 2.0)]


def cosine_with_zeros() -> tuple[Tensor, Tensor]:
    query, keys = random(5, 2, 3), random(6, 5, 3)
    query[1] = keys[2] = 0.0
    return query, keys


def cosine_of(query: Array, key: Array) -> float:
    lengths = math.sqrt(sum(query**2)) * math.sqrt(sum(key**2))
    return sum(query * key) / lengths if lengths > 0 else 0.0


def cosine_oracle(query: Array, keys: Array, sharpness: float) -> Array:
    return np.array([softmax(np.array([sharpness * cosine_of(q, key) for key in keys])) for q in query])


def the_gradient_at_a_vector_of_zeros(answer: Any) -> None:
    parts = dict(zip(("query", "keys"), cosine_with_zeros(), strict=True))
    for part in parts.values():
        part.requires_grad_()
    gradients = torch.autograd.grad(answer(*parts.values(), 2.0)[:, 0].sum(), list(parts.values()))
    spoiled = [f"`{name}`" for name, g in zip(parts, gradients, strict=True) if not g.isfinite().all()]
    if spoiled:
        raise Wrong(
            f"the weights of a vector of zeros are right, but it puts NaN into the gradient of {', '.join(spoiled)}. "
            "0 / 0 is NaN, and replacing the NaN afterwards mends the value alone: let no NaN arise"
        )


# 2.3 erase_and_add


def erase_cases() -> list[tuple[Tensor, ...]]:
    """(n, v) = (2, 3) and (5, 7), where one slot has no weight, one has all, and parts of them are erased whole."""
    weights, erase = torch.tensor([0.25, 0.0, 1.0, 0.5, 0.75]), random(5, 7).sigmoid()
    erase[2], erase[4] = 0.0, 1.0
    return [
        (random(1, 2, 3), torch.tensor([0.75, 0.25]), random(2, 3).sigmoid(), random(3, 3)),
        (random(4, 5, 7), weights, erase, random(6, 7)),
    ]


def erase_oracle(values: Array, weights: Array, erase: Array, add: Array) -> Array:
    written = np.zeros_like(values)
    for i, d in np.ndindex(values.shape):
        written[i, d] = values[i, d] * (1 - weights[i] * erase[d]) + weights[i] * add[d]
    return written


# 2.4 top_k_of_sums

SPEED_UP = 5
TIMED = {"n": 1021, "m": 1013, "k": 16}


def sums_cases() -> list[tuple[Any, ...]]:
    """(n, m, k) = (3, 5, 2); (7, 5, 4); more sums than either list is long; all sums; one."""
    sizes = [(3, 5, 2), (7, 5, 4), (2, 5, 7), (3, 2, 6), (13, 11, 1), (23, 19, 17)]
    return [(random(seed, n), random(seed + 10, m), k) for seed, (n, m, k) in enumerate(sizes, start=1)]


def sums_oracle(scores_1: Array, scores_2: Array, k: int) -> tuple[Array, NDArray[np.int64]]:
    n, m = len(scores_1), len(scores_2)
    sums = sorted(((scores_1[i] + scores_2[j], i * m + j) for i in range(n) for j in range(m)), reverse=True)
    return np.array([total for total, _ in sums[:k]]), np.array([slot for _, slot in sums[:k]])


def brute_force(scores_1: Tensor, scores_2: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What the stub prints: (n,), (m,) -> (k,), (k,)."""
    best = (scores_1[:, None] + scores_2).flatten().topk(k)
    return best.values, best.indices


def at_least_five_times_as_fast_as_all_sums(answer: Any) -> None:
    n, m, k = TIMED.values()
    ratio = times_as_fast(answer, brute_force, (random(1, n), random(2, m), k), asked=SPEED_UP)
    if ratio < SPEED_UP:
        raise Wrong(
            f"the same numbers as brute force, at {ratio:.1f} times its speed; at least {SPEED_UP} times is "
            f"asked. The {n * m} sums need not all be made: which of the {n} first scores can be in the {k} best?"
        )
