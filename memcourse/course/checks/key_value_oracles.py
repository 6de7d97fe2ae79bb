"""How the answers of chapter 02 are used, and what is right: cases, oracles, properties.

The oracles are the equations in NumPy float64, one number at a time: no library, no torch, no matrix product.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memcourse.course.checks.attention_oracles import Array, random, softmax
from memcourse.course.checks.timing import times_as_fast
from memcourse.course.exercise import Wrong

# 2.1 predicted_reads


def predictions() -> dict[str, float | str]:
    """What the query (1, 0) finds among the keys a = (2, 0), b = (3, 4), c = (0, 0); and one write."""
    keys = {"a": np.array([2.0, 0.0]), "b": np.array([3.0, 4.0]), "c": np.array([0.0, 0.0])}
    query, rows = np.array([1.0, 0.0]), np.array(list(keys.values()))
    cosine = {name: cosine_of(query, key) for name, key in keys.items()}
    sharpness = math.log(5) / (cosine["a"] - cosine["b"])  # a has five times the weight of b
    doubled = softmax(np.array([2 * sharpness * score for score in cosine.values()]))
    return {
        "dot": max(keys, key=lambda name: sum(query * keys[name])),
        "cosine": max(cosine, key=lambda name: cosine[name]),
        "twice_as_sharp": float(doubled[0] / doubled[1]),
        "zero_query": float(cosine_oracle(np.zeros((1, 2)), rows, 3.0)[0, 0]),
        "flat_top_two": float(softmax(np.zeros(2))[0]),
        "written": float(erase_oracle(np.array([[8.0]]), np.array([0.5]), np.array([1.0]), np.array([2.0]))[0, 0]),
    }


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
TIMED = {"n": 640, "m": 631, "k": 16}


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


# 2.5 smallest_capacity

CAPACITIES = [2**i for i in range(2, 9)]  # 4, 8, ... 256
FACTS, WIDTH, QUESTIONS = 256, 16, 2
POPULAR, RECENT = 8, 12  # every 8th fact is popular; the last 12 are recent


@cache
def limits() -> dict[str, int]:
    """The smallest capacity of the grid at which at least 90 % of the questions are answered."""
    return {
        f"{asked}, {evict}": next(size for size in CAPACITIES if _answered(asked, evict, size) >= 0.9)
        for asked in ("popular", "recent")
        for evict in ("oldest", "least_used")
    }


def _answered(asked: str, evict: str, capacity: int) -> float:
    """The share of questions whose fact is still held.  A question for one that is not uses the nearest instead."""
    generator = np.random.default_rng(0)
    keys = generator.standard_normal((FACTS, WIDTH))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    held: list[int] = []  # in the order of their puts
    used, answered = np.zeros(FACTS), 0
    for t in range(FACTS):
        if len(held) == capacity:
            held.remove(held[0] if evict == "oldest" else min(held, key=lambda fact: used[fact]))
        held.append(t)
        for chance in generator.random(QUESTIONS):
            popular, recent = POPULAR * int(chance * (t // POPULAR + 1)), max(0, t - int(chance * RECENT))
            fact = popular if asked == "popular" else recent
            nearest = fact if fact in held else held[int((keys[held] @ keys[fact]).argmax())]
            used[nearest] += 1
            answered += nearest == fact
    return answered / (FACTS * QUESTIONS)


def limits_probe(answer: Any) -> Any:
    """A capacity within a factor of two of the limit, one step of the grid, counts as the limit."""
    if not isinstance(answer, dict):
        return answer
    return {name: _limit_if_near(size, limits().get(name)) for name, size in answer.items()}


def _limit_if_near(size: Any, limit: int | None) -> Any:
    near = isinstance(size, int | float) and limit is not None and limit / 2 <= size <= 2 * limit
    return limit if near else size
