"""How the answers of chapter 05 are used, and what is right: cases, probes, oracles, properties.

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

Labels = NDArray[np.int64]


def read(distances: Array, residuals: Array, bandwidth: float) -> Array:
    """(k,), (k, C) -> (C,): the residuals, weighted by exp(-distance / bandwidth) over its sum."""
    correction = np.zeros(residuals.shape[1])
    for weight, residual in zip(softmax(-distances / bandwidth), residuals, strict=True):
        correction += weight * residual
    return correction


def nearest(query: Array, keys: Array, k: int) -> tuple[list[float], list[int]]:
    """The distances and the rows of the k nearest keys, nearest first."""
    found = sorted((math.sqrt(sum((query - key) ** 2)), row) for row, key in enumerate(keys))[:k]
    return [distance for distance, _ in found], [row for _, row in found]


# 5.2 residual_correction


def correction_cases() -> list[tuple[Any, ...]]:
    """(Q, k, C) = (2, 3, 5); (5, 7, 3), with a memory at the query itself, a query that is far from all, and
    neighbours that an index did not find, at distance inf with the value 0."""
    small = random(1, 2, 3).square().sort(dim=1).values * 4
    squared = random(3, 5, 7).square().sort(dim=1).values
    squared[1, 0] = 0.0
    squared[2] = (300 + torch.arange(7) / 8) ** 2
    residuals = random(4, 5, 7, 3)
    squared[4, 5:], residuals[4, 5:] = math.inf, 0.0
    return [(small, random(2, 2, 3, 5), 0.7), (squared, residuals, 1.3)]


def correction_oracle(squared_distances: Array, residuals: Array, bandwidth: float) -> Array:
    return np.array([
        read(np.sqrt(distances), held, bandwidth) for distances, held in zip(squared_distances, residuals, strict=True)
    ])  # fmt: skip


def one_query_and_an_empty_memory(answer: Any) -> None:
    shape = tuple(answer(random(1, 1, 1).square(), random(2, 1, 1, 1), 1.0).shape)
    if shape != (1, 1):
        raise Wrong(
            f"one query, one memory and one target should give a correction of shape (1, 1); found {shape}. squeeze() "
            "without an axis drops every axis of length 1"
        )
    empty = answer(torch.zeros(3, 0), torch.zeros(3, 0, 2), 1.0)
    if tuple(empty.shape) != (3, 2) or empty.any():
        raise Wrong(
            "three queries to an empty memory, squared_distances (3, 0) and residuals (3, 0, 2), should give zeros of "
            f"shape (3, 2); found {empty.tolist()} of shape {tuple(empty.shape)}"
        )


# 5.3 ResidualClassifier


def classifier_cases() -> list[tuple[Any, ...]]:
    """(n, D, C, Z, Q, k) = (7, 3, 5, 2, 2, 3), memorised as 4 and 3; then (11, 5, 3, 7, 1, 1), as 5 and 6."""
    cases = []
    for seed, (n, D, C, Z, Q, first, k) in ((1, (7, 3, 5, 2, 2, 4, 3)), (2, (11, 5, 3, 7, 1, 5, 1))):
        y = torch.randint(C, (n,), generator=torch.Generator().manual_seed(seed))
        tensors = random(seed, n, D), y, 2 * random(seed + 5, D, C), random(seed + 10, D, Z), random(seed + 15, Q, D)
        cases.append((*tensors, first, k, 0.7, 1.9))
    return cases


def classifier_probe(
    answer: Any,
    x: Tensor,
    y: Tensor,
    to_logits: Tensor,
    to_embedding: Tensor,
    queries: Tensor,
    memorised_first: int,
    k: int,
    bandwidth: float,
    temperature: float,
) -> Any:
    """Memorise the first examples, then the others, and ask."""
    model = answer(lambda x: x @ to_logits, lambda x: x @ to_embedding, k, bandwidth, temperature)
    model.memorize(x[:memorised_first], y[:memorised_first])
    model.memorize(x[memorised_first:], y[memorised_first:])
    return model(queries)


def classifier_oracle(
    x: Array,
    y: Labels,
    to_logits: Array,
    to_embedding: Array,
    queries: Array,
    memorised_first: int,
    k: int,
    bandwidth: float,
    temperature: float,
) -> Array:
    def probabilities(row: Array) -> Array:
        return softmax(np.array([sum(row * column) / temperature for column in to_logits.T]))

    def embedding(row: Array) -> Array:
        return np.array([sum(row * column) for column in to_embedding.T])

    residuals = np.array([-probabilities(row) for row in x])
    for i, label in enumerate(y):
        residuals[i, label] += 1
    keys = np.array([embedding(row) for row in x])
    scores = []
    for query in queries:
        distances, rows = nearest(embedding(query), keys, k)
        scores.append(probabilities(query) + read(np.array(distances), residuals[rows], bandwidth))
    return np.array(scores)


# 5.4 error_for_every_k

SPEED_UP = 5
TIMED = {"queries": 128, "neighbours": 128, "targets": 3}


def every_k_cases() -> list[tuple[Any, ...]]:
    """(Q, K, C) = (2, 3, 5); (5, 7, 2), where a query is far from all; (3, 1, 2)."""
    cases = []
    for seed, (Q, K, C, bandwidth) in enumerate([(2, 3, 5, 0.7), (5, 7, 2, 1.3), (3, 1, 2, 0.5)], start=1):
        distances = random(seed, Q, K).abs().sort(dim=1).values
        if K == 7:
            distances[3] += 300
        tensors = random(seed + 5, Q, C), distances, random(seed + 10, Q, K, C), random(seed + 15, Q, C)
        cases.append((*tensors, bandwidth))
    return cases


def every_k_oracle(prediction: Array, distances: Array, residuals: Array, targets: Array, bandwidth: float) -> Array:
    Q, K, C = residuals.shape
    errors = np.zeros(K)
    for k in range(1, K + 1):
        for q in range(Q):
            said = prediction[q] + read(distances[q, :k], residuals[q, :k], bandwidth)
            errors[k - 1] += sum((said - targets[q]) ** 2) / (Q * C)
    return errors


def every_k_loop(prediction: Tensor, distances: Tensor, residuals: Tensor, targets: Tensor, bandwidth: float) -> Tensor:
    """The loop that the stub prints."""
    errors = []
    for k in range(1, distances.shape[1] + 1):
        weights = (-distances[:, :k] / bandwidth).softmax(dim=1)
        correction = (weights[:, :, None] * residuals[:, :k]).sum(dim=1)
        errors.append((prediction + correction - targets).square().mean())
    return torch.stack(errors)


def at_least_five_times_as_fast_as_the_loop(answer: Any) -> None:
    Q, K, C = TIMED.values()
    distances = random(1, Q, K).abs().sort(dim=1).values
    case = (random(2, Q, C), distances, random(3, Q, K, C), random(4, Q, C), 0.7)
    ratio = times_as_fast(answer, every_k_loop, case, asked=SPEED_UP)
    if ratio < SPEED_UP:
        raise Wrong(
            f"the same numbers as the loop, at {ratio:.1f} times its speed; at least {SPEED_UP} times is asked. "
            f"A loop that makes each of the {K} means afresh is too slow, and so is a table of {K} x {K}"
        )


# 5.7 three_errors


class LinearClassifier:
    """What scikit-learn's classifiers have: NumPy in, NumPy out."""

    def __init__(self, to_logits: Tensor) -> None:
        self.to_logits = to_logits.double().numpy()
        self.classes_ = np.arange(to_logits.shape[1])

    def predict_proba(self, x: Any) -> Array:
        logits = np.asarray(x, dtype=np.float64) @ self.to_logits
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def predict(self, x: Any) -> Labels:
        return self.predict_proba(x).argmax(axis=1)


def three_cases() -> list[tuple[Any, ...]]:
    """(n, D, C) = (41, 3, 5) and (67, 2, 7), 29 and 31 held out, 37 for the test; the classes overlap.

    Here kNN alone makes the same errors with a k and bandwidth of its own and with ResMem's: both ways are right.
    """
    cases = []
    for seed, (n, held, test, D, C) in ((0, (41, 29, 37, 3, 5)), (1, (67, 31, 37, 2, 7))):
        centres = 1.6 * random(seed, C, D)
        parts: list[Tensor] = []
        for part, size in enumerate((n, held, test), start=1):
            labels = torch.randint(C, (size,), generator=torch.Generator().manual_seed(100 * part + seed))
            parts += [centres[labels] + random(200 * part + seed, size, D), labels]
        cases.append((*parts, 0.4 * centres.T.contiguous(), (5, 2, 1, 11), (0.1, 0.4, 1.6)))
    return cases


def three_probe(
    answer: Any,
    train_x: Tensor,
    train_y: Tensor,
    held_out_x: Tensor,
    held_out_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    to_logits: Tensor,
    ks: tuple[int, ...],
    bandwidths: tuple[float, ...],
) -> Any:
    train, held_out, test = (train_x, train_y), (held_out_x, held_out_y), (test_x, test_y)
    return answer(LinearClassifier(to_logits), train, held_out, test, ks, bandwidths)


def three_oracle(
    train_x: Array,
    train_y: Labels,
    held_out_x: Array,
    held_out_y: Labels,
    test_x: Array,
    test_y: Labels,
    to_logits: Array,
    ks: tuple[int, ...],
    bandwidths: tuple[float, ...],
) -> dict[str, float]:
    def probabilities(row: Array) -> Array:
        return softmax(np.array([sum(row * column) for column in to_logits.T]))

    one_hot = np.eye(to_logits.shape[1])[train_y]
    residuals = one_hot - np.array([probabilities(row) for row in train_x])

    def errors(x: Array, y: Labels, held: Array, model: bool, k: int, bandwidth: float) -> tuple[float, float]:
        """The share of errors and the squared error of the model (or not) with what is held."""
        wrong = squared = 0.0
        for query, label in zip(x, y, strict=True):
            distances, rows = nearest(query, train_x, k)
            said = model * probabilities(query) + read(np.array(distances), held[rows], bandwidth)
            wrong += float(said.argmax() != label)
            squared += float(sum((said - np.eye(len(said))[label]) ** 2))
        return wrong / len(y), squared / len(y)

    grid = [(k, bandwidth) for k in ks for bandwidth in bandwidths]
    best = min(grid, key=lambda pair: errors(held_out_x, held_out_y, residuals, True, *pair))
    return {
        "base": errors(test_x, test_y, 0 * residuals, True, *best)[0],
        "kNN alone": errors(test_x, test_y, one_hot, False, *best)[0],
        "ResMem": errors(test_x, test_y, residuals, True, *best)[0],
    }
