"""Right answers to the exercises of chapter 02 in different styles: by exercise id, at least two for each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memcourse import key_value


def address_by_normalizing(query: Tensor, keys: Tensor, sharpness: float) -> Tensor:
    return torch.softmax(sharpness * F.normalize(query, dim=-1) @ F.normalize(keys, dim=-1).T, dim=-1)


def address_by_torchs_cosine(query: Tensor, keys: Tensor, sharpness: float) -> Tensor:
    cosine = F.cosine_similarity(query[:, None], keys[None], dim=-1)  # (q, n)
    return (cosine * sharpness).softmax(dim=1)


def address_by_dividing_the_scores(query: Tensor, keys: Tensor, sharpness: float) -> Tensor:
    lengths = query.norm(dim=1)[:, None] * keys.norm(dim=1)  # (q, n)
    exponentials = torch.exp(sharpness * (query @ keys.T) / lengths.clamp(min=1e-20))
    return exponentials / exponentials.sum(dim=1, keepdim=True)


def address_with_a_small_addend(query: Tensor, keys: Tensor, sharpness: float) -> Tensor:
    query, keys = (rows / (rows.norm(dim=-1, keepdim=True) + 1e-8) for rows in (query, keys))
    return F.softmax(sharpness * torch.einsum("qd,nd->qn", query, keys), dim=-1)


def address_by_the_library(query: Tensor, keys: Tensor, sharpness: float) -> Tensor:
    return key_value.address(query, keys, similarity="cosine", sharpness=sharpness)


def write_in_the_stubs_words(values: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    values = values.clone()
    for slot, weight in enumerate(weights):
        values[slot] *= 1 - weight * erase
        values[slot] += weight * add
    return values


def write_all_slots(values: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    return values * (1 - weights[:, None] * erase) + weights[:, None] * add


def write_by_outer_products(values: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    return values - values * torch.outer(weights, erase) + torch.outer(weights, add)


def top_by_candidates(scores_1: Tensor, scores_2: Tensor, k: int) -> tuple[Tensor, Tensor]:
    m = len(scores_2)
    first, second = scores_1.topk(min(k, len(scores_1))), scores_2.topk(min(k, m))
    best = (first.values[:, None] + second.values).flatten().topk(k)
    slots = first.indices[:, None] * m + second.indices
    return best.values, slots.flatten()[best.indices]


def top_by_places(scores_1: Tensor, scores_2: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sorts both lists whole and divides the place in the table."""
    (a, i), (b, j) = (scores.sort(descending=True) for scores in (scores_1, scores_2))
    a, b = a[:k], b[:k]
    sums, places = torch.topk((a.unsqueeze(1) + b.unsqueeze(0)).reshape(-1), k)
    return sums, i[places // len(b)] * len(scores_2) + j[places % len(b)]


def top_by_a_staircase(scores_1: Tensor, scores_2: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Rank r of one list and s of the other can be among the k best only where (r + 1) (s + 1) <= k."""
    (a, i), (b, j) = (scores.topk(min(k, len(scores))) for scores in (scores_1, scores_2))
    r, s = torch.arange(1, len(a) + 1)[:, None], torch.arange(1, len(b) + 1)
    row, column = (r * s <= k).nonzero(as_tuple=True)
    sums, places = (a[row] + b[column]).topk(k)
    return sums, (i[row] * len(scores_2) + j[column])[places]


PREDICTED = {
    "dot": "b",
    "cosine": "a",
    "twice_as_sharp": 25,
    "zero_query": 1 / 3,
    "flat_top_two": 0.5,
    "written": 5,
}
LIMITS = {"popular, oldest": 256, "popular, least_used": 32, "recent, oldest": 16, "recent, least_used": 256}

ANSWERS: dict[str, list[Any]] = {
    "2.1": [PREDICTED, PREDICTED | {"dot": "B", "zero_query": 0.333, "written": 5.0}],
    "2.2": [
        address_by_normalizing,
        address_by_torchs_cosine,
        address_by_dividing_the_scores,
        address_with_a_small_addend,
        address_by_the_library,
    ],
    "2.3": [write_in_the_stubs_words, write_all_slots, write_by_outer_products],
    "2.4": [top_by_candidates, top_by_places, top_by_a_staircase],
    "2.5": [
        LIMITS,
        {"popular, oldest": 128, "popular, least_used": 64, "recent, oldest": 16, "recent, least_used": 256},
    ],
}
