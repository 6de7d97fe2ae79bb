"""Right answers to the exercises of chapter 07 in different styles: by exercise id, at least two for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcourse.attention import attend
from memcourse.infini_attention import read, write

State = tuple[Tensor, Tensor, Tensor, Tensor]


def segment_by_matrices(query: Tensor, key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> Any:
    q, k = F.elu(query) + 1, F.elu(key) + 1
    retrieved = q @ memory / (q @ normalizer[..., None]).clamp(min=1e-10)
    return retrieved, memory + k.mT @ value, normalizer + k.sum(dim=2)


def sigma_by_cases(x: Tensor) -> Tensor:
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def segment_by_einsum(query: Tensor, key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> Any:
    """The guard is added, and sigma is written by cases."""
    q, k = sigma_by_cases(query), sigma_by_cases(key)
    weight = torch.einsum("bhld,bhd->bhl", q, normalizer) + 1e-6
    retrieved = torch.einsum("bhld,bhdv->bhlv", q, memory) / weight[..., None]
    return retrieved, memory + torch.einsum("bhld,bhlv->bhdv", k, value), normalizer + torch.einsum("bhld->bhd", k)


def segment_token_by_token(query: Tensor, key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> list[Any]:
    """Divided by 1 where nothing has been written; tokens one after the other, in a list of results."""
    before, z, reads = memory, normalizer, []
    for t in range(query.shape[2]):
        q, k = nn.functional.elu(query[:, :, t]) + 1, nn.functional.elu(key[:, :, t]) + 1
        weight = (q * z).sum(dim=-1, keepdim=True)
        reads.append((q[..., None] * before).sum(dim=2) / torch.where(weight > 0, weight, torch.ones_like(weight)))
        memory = memory + k[..., None] * value[:, :, t, None, :]
        normalizer = normalizer + k
    return torch.stack(reads, dim=2), memory, normalizer  # type: ignore[return-value]


def delta_by_matrices(key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> Any:
    k = F.elu(key) + 1
    known = k @ memory / (k @ normalizer[..., None]).clamp(min=1e-10)
    return memory + k.mT @ (value - known), normalizer + k.sum(dim=2)


def delta_in_two_sums(key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> Any:
    """What is known is taken off as outer products of its own."""
    k = sigma_by_cases(key)
    weight = torch.einsum("bhld,bhd->bhl", k, normalizer)
    scaled = k / torch.where(weight > 0, weight, torch.ones_like(weight))[..., None]
    memory = memory + k.transpose(2, 3) @ value - torch.einsum("bhld,bhle,bhev->bhdv", k, scaled, memory)
    return memory, k.sum(dim=2).add(normalizer)


def parallel_by_cumsum(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Any:
    cut = (-1, segment_len)
    q, k = (F.elu(query) + 1).unflatten(2, cut), (F.elu(key) + 1).unflatten(2, cut)
    written, counted = k.mT @ value.unflatten(2, cut), k.sum(dim=3)
    before, before_z = (
        torch.cat([torch.zeros_like(part[:, :, :1]), part.cumsum(dim=2)[:, :, :-1]], dim=2)
        for part in (written, counted)
    )
    reads = (q @ before / (q @ before_z[..., None]).clamp(min=1e-10)).flatten(2, 3)
    return reads, written.sum(dim=2), counted.sum(dim=2)


def parallel_with_a_column_of_ones(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Any:
    """The normalizer is the memory of a value that is always 1; sums are moved on by a segment of zeros."""
    B, H, T, _ = query.shape
    ones = torch.cat([value, value.new_ones(B, H, T, 1)], dim=3)
    q, k, u = (part.reshape(B, H, -1, segment_len, part.shape[3]) for part in (query, key, ones))
    sums = F.pad(((F.elu(k) + 1).transpose(3, 4) @ u).cumsum(dim=2), (0, 0, 0, 0, 1, 0))  # (B, H, S + 1, d, v + 1)
    read_of_both = (F.elu(q) + 1) @ sums[:, :, :-1]
    reads = read_of_both[..., :-1] / read_of_both[..., -1:].clamp(min=1e-8)
    return reads.reshape(B, H, T, -1), sums[:, :, -1, :, :-1], sums[:, :, -1, :, -1]


def parallel_from_the_second(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Any:
    """The first segment reads nothing, so that nothing has to be guarded; segments come first."""
    q, k, v = (torch.stack(part.split(segment_len, dim=2)) for part in (F.elu(query) + 1, F.elu(key) + 1, value))
    sums, counts = torch.einsum("sbhld,sbhlv->sbhdv", k, v).cumsum(0), k.sum(dim=3).cumsum(0)
    later = q[1:] @ sums[:-1] / (q[1:] @ counts[:-1, ..., None])
    return torch.cat([0 * v[0], *later], dim=2), sums[-1], counts[-1]


def groups_by_name(model: nn.Module, learning_rate: float, weight_decay: float, steps: int) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    gates = [p for name, p in named if name.split(".")[-1] == "gate"]
    others = [p for name, p in named if name.split(".")[-1] != "gate"]
    return [
        {"params": others, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": gates, "lr": 10 / steps, "weight_decay": 0.0},
    ]


def groups_by_module(model: nn.Module, learning_rate: float, weight_decay: float, steps: int) -> Any:
    """A tuple of a group for each parameter, and gates that can go 8."""

    def each() -> Iterator[dict[str, Any]]:
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                gate = name == "gate"
                rate, decay = (8 / steps, 0) if gate else (learning_rate, weight_decay)
                yield {"params": [parameter], "lr": rate, "weight_decay": decay, "name": name}

    return tuple(each())


def token_by_matrices(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, segment_len: int, state: State) -> Any:
    memory, normalizer, keys, values = state
    keys, values = torch.cat([keys, key[:, :, None]], dim=2), torch.cat([values, value[:, :, None]], dim=2)
    weights = (keys @ query[..., None] / query.shape[-1] ** 0.5).softmax(dim=2)
    local = (weights * values).sum(dim=2)
    share = gate.sigmoid()[:, None]
    output = share * read(query[:, :, None], memory, normalizer)[:, :, 0] + (1 - share) * local
    if keys.shape[2] == segment_len:
        memory, normalizer = write(keys, values, memory, normalizer)
        keys, values = keys[:, :, :0], values[:, :, :0]
    return output, (memory, normalizer, keys, values)


def token_by_attend(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, segment_len: int, state: State) -> Any:
    """A query of one token for everything; without the library's read and write; the state in a list."""
    memory, normalizer, keys, values = state
    q, k, v = (part.unsqueeze(2) for part in (query, key, value))
    remembered = (sigma_by_cases(q) @ memory) / ((sigma_by_cases(q) * normalizer[:, :, None]).sum(-1, True) + 1e-9)
    keys, values = torch.cat((keys, k), 2), torch.cat((values, v), 2)
    local, _ = attend(q, keys, values)
    beta = gate.view(1, -1, 1, 1)
    output = remembered * torch.sigmoid(beta) + local * torch.sigmoid(-beta)
    if keys.size(2) < segment_len:
        return output.squeeze(2), [memory, normalizer, keys, values]
    features = sigma_by_cases(keys)
    state = (memory + features.mT @ values, normalizer + features.sum(2), keys.narrow(2, 0, 0), values.narrow(2, 0, 0))
    return output.squeeze(2), list(state)


LIMITS = {
    "linear": 16,
    "delta": 32,
    "linear, d = 16": 8,
    "linear, scale 1": 4,
    "linear, rewritten": 0,
    "delta, rewritten": 8,
}


def memorizing_by_scatter(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor, k: int, local: Tensor, gate: Tensor
) -> Tensor:
    scores = (query @ key.detach().mT).masked_fill(~valid[:, None, None], -torch.inf)
    best = scores.topk(min(k, scores.shape[-1]), dim=-1)
    kept = torch.full_like(scores, -torch.inf).scatter(-1, best.indices, best.values)
    some = valid.any(dim=1)[:, None, None, None]
    weights = torch.where(some, kept, 0.0).softmax(dim=-1).masked_fill(kept == -torch.inf, 0.0)
    share = gate.sigmoid()[:, None, None]
    return share * (weights @ value.detach()) + (1 - share) * local


def memorizing_by_gather(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor, k: int, local: Tensor, gate: Tensor
) -> Tensor:
    """Entries are found without a gradient, then fetched and scored again; a low number stands for -inf."""
    B, H, T, _ = query.shape
    with torch.no_grad():
        lowest = torch.finfo(query.dtype).min
        scores = torch.einsum("bhtd,bhcd->bhtc", query, key).masked_fill(~valid[:, None, None], lowest)
        entries = scores.topk(min(k, key.shape[2]), dim=-1).indices  # (B, H, T, k)
        rows, heads = torch.arange(B)[:, None, None, None], torch.arange(H)[None, :, None, None]
        keys, values, real = key[rows, heads, entries], value[rows, heads, entries], valid[rows, entries]
    weights = (query[:, :, :, None] * keys).sum(-1).masked_fill(~real, lowest).softmax(dim=-1) * real
    remembered = (weights[..., None] * values).sum(dim=3)
    return torch.lerp(local, remembered, torch.sigmoid(gate).view(1, H, 1, 1).expand_as(local))


ANSWERS: dict[str, list[Any]] = {
    "7.1": [segment_by_matrices, segment_by_einsum, segment_token_by_token],
    "7.2": [delta_by_matrices, delta_in_two_sums],
    "7.3": [parallel_by_cumsum, parallel_with_a_column_of_ones, parallel_from_the_second],
    "7.4": [groups_by_name, groups_by_module],
    "7.5": [token_by_matrices, token_by_attend],
    "7.6": [LIMITS, LIMITS | {"linear": 32.0, "linear, rewritten": 2, "delta, rewritten": 16}],
    "7.7": [memorizing_by_scatter, memorizing_by_gather],
}
