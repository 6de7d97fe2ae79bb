"""Right answers to the exercises of chapter 04 in different styles: by exercise id, at least two for each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from memcourse.datastore import Datastore, Neighbors
from memcourse.knn_lm import KNNLM
from memcourse.transformer import MemoryTransformer


def pairs_by_slices(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return hidden[:, :-1].flatten(0, 1).detach(), tokens[:, 1:].flatten()


def pairs_by_loops(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = [hidden.new_zeros(0, hidden.shape[2])], [tokens.new_zeros(0)]
    for of_text, text in zip(hidden.detach(), tokens, strict=True):
        for t in range(len(text) - 1):
            keys.append(of_text[None, t])
            values.append(text[None, t + 1])
    return torch.cat(keys), torch.cat(values)


@torch.no_grad()
def pairs_by_a_mask(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Flat first, and then without the last place of each row."""
    B, T = tokens.shape
    inside = (torch.arange(B * T) + 1) % T != 0
    return hidden.reshape(B * T, -1)[inside], tokens.roll(-1, dims=1).reshape(-1)[inside]


def share_by_masking(distances: Tensor, tokens: Tensor, targets: Tensor, temperature: float) -> Tensor:
    scores = -distances / temperature
    same = tokens == targets.unsqueeze(-1)
    return scores.masked_fill(~same, -math.inf).logsumexp(-1) - scores.logsumexp(-1)


def share_by_log_softmax(distances: Tensor, tokens: Tensor, targets: Tensor, temperature: float) -> Tensor:
    log_weights = torch.log_softmax(-distances / temperature, dim=-1)
    nothing = torch.full_like(log_weights, -torch.inf)
    return torch.where(tokens == targets[..., None], log_weights, nothing).logsumexp(dim=-1)


def share_by_loops(distances: Tensor, tokens: Tensor, targets: Tensor, temperature: float) -> Tensor:
    results = []
    k = distances.shape[-1]
    for row, words, target in zip(distances.reshape(-1, k), tokens.reshape(-1, k), targets.flatten(), strict=True):
        below = above = torch.tensor(-math.inf)
        for distance, word in zip(row, words, strict=True):
            if distance < math.inf:
                below = torch.logaddexp(below, -distance / temperature)
                above = torch.logaddexp(above, -distance / temperature) if word == target else above
        results.append(above - below)
    return torch.stack(results).reshape(targets.shape)


def mix_by_logaddexp(log_p_model: Tensor, log_p_knn: Tensor, weight: float) -> Tensor:
    share = torch.as_tensor(weight)
    return torch.logaddexp(share.log() + log_p_knn, (1 - share).log() + log_p_model)


def mix_by_stacking(log_p_model: Tensor, log_p_knn: Tensor, weight: float) -> Tensor:
    shares = torch.tensor([1 - weight, weight]).log()
    return torch.logsumexp(torch.stack([log_p_model, log_p_knn], dim=-1) + shares, dim=-1)


def mix_by_cases(log_p_model: Tensor, log_p_knn: Tensor, weight: float) -> Tensor:
    if weight == 0:
        return log_p_model
    if weight == 1:
        return log_p_knn
    return torch.logaddexp(math.log1p(-weight) + log_p_model, math.log(weight) + log_p_knn)


def search_with_a_running_top_k(queries: Tensor, blocks: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    distances, rows, start = queries.new_zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.long), 0
    lengths = (queries**2).sum(dim=1, keepdim=True)
    for block in blocks:
        here = torch.arange(start, start + len(block)).expand(len(queries), -1)
        distances = torch.cat([distances, lengths - 2 * queries @ block.T + (block**2).sum(dim=1)], dim=1)
        rows = torch.cat([rows, here], dim=1)
        distances, best = distances.topk(min(k, distances.shape[1]), largest=False)
        rows = rows.gather(1, best)
        start += len(block)
    return distances, rows


def search_by_cdist(queries: Tensor, blocks: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The best of each block first, then of all of them."""
    distances, rows, start = [], [], 0
    for block in blocks:
        found = torch.cdist(queries, block).square().topk(min(k, len(block)), largest=False)
        distances.append(found.values)
        rows.append(found.indices + start)
        start += block.shape[0]
    best = torch.cat(distances, dim=1).topk(k, largest=False)
    return best.values, torch.cat(rows, dim=1).gather(1, best.indices)


def search_in_tables_of_fixed_width(queries: Tensor, blocks: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """Full of infinity at first; sorted whole at the end of each block, the queries centred on the first keys."""
    center = blocks[0].mean(dim=0)
    queries = queries - center
    distances = torch.full((len(queries), k), torch.inf)
    rows = torch.full((len(queries), k), -1)
    start = 0
    for block in blocks:
        block = block - center
        squares = torch.addmm(block.square().sum(dim=1), queries, block.T, alpha=-2)
        near, where = squares.topk(min(k, len(block)), largest=False, sorted=False)
        distances, order = torch.cat([distances, near], dim=1).sort(dim=1, stable=True)
        distances, rows = distances[:, :k], torch.cat([rows, where + start], dim=1).gather(1, order[:, :k])
        start += len(block)
    return distances + queries.square().sum(dim=1, keepdim=True), rows


def domain_below_a_quantile(model: MemoryTransformer, new: Tensor, old: Tensor) -> KNNLM:
    knn = KNNLM(model, Datastore(model.config["d_model"]), k=8)
    knn.memorize(new)
    limit = knn.neighbors(old).distances[..., 0].flatten().quantile(0.03)
    knn.weight = lambda near: 0.5 * (near.distances[..., 0] < limit)
    return knn


class ShareThatFades:
    """The weight falls with the distance, from 0.9, and is half of that at `middle`."""

    def __init__(self, middle: float) -> None:
        self.middle = middle

    def __call__(self, near: Neighbors) -> Tensor:
        return 0.9 * torch.sigmoid(5 * (1 - near.distances[:, :, 0] / self.middle))


def domain_with_a_fading_weight(model: MemoryTransformer, new: Tensor, old: Tensor) -> KNNLM:
    """As large a weight as costs held-out old text at most 1.5 percent."""
    knn = KNNLM(model, Datastore(model.hidden(old[:1]).shape[-1]), k=16, weight=0.0)
    knn.memorize(new, document="manual")
    own = knn.perplexity(old)
    usual = knn.neighbors(old).distances[..., 0].flatten().quantile(0.03).item()
    for part in (0.5, 0.4, 0.3, 0.2, 0.1):
        knn.weight = ShareThatFades(part * usual)
        if knn.perplexity(old) < 1.015 * own:
            break
    return knn


PREDICTED = {
    "as_given": 3 / 4,
    "all_farther": 3 / 4,
    "half_temperature": 5 / 6,
    "very_hot": 2 / 3,
    "blue_twice": 3 / 5,
    "mixed": 7 / 20,
    "green": 2 / 5,
}
LIMITS = {"100 entries": 0.2, "1000 entries": 0.6, "10000 entries": 0.8, "its own text": 0.9, "harmful, 100": 0.5}

ANSWERS: dict[str, list[Any]] = {
    "4.1": [PREDICTED, PREDICTED | {"half_temperature": 0.833, "very_hot": 0.667}],
    "4.2": [pairs_by_slices, pairs_by_loops, pairs_by_a_mask],
    "4.3": [share_by_masking, share_by_log_softmax, share_by_loops],
    "4.4": [mix_by_logaddexp, mix_by_stacking, mix_by_cases],
    "4.5": [search_with_a_running_top_k, search_by_cdist, search_in_tables_of_fixed_width],
    "4.6": [LIMITS, LIMITS | {"100 entries": 0.1, "1000 entries": 0.5, "harmful, 100": 0.6}],
    "4.7": [domain_below_a_quantile, domain_with_a_fading_weight],
}
