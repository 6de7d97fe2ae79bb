"""Right answers to the exercises of chapter 05 in different styles: by exercise id, at least two for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memcourse.datastore import Datastore
from memcourse.resmem import ResMem, residual_read

Pair = tuple[Tensor, Tensor]
Function = Callable[[Tensor], Tensor]


def correction_by_softmax(squared_distances: Tensor, residuals: Tensor, bandwidth: float) -> Tensor:
    weights = torch.softmax(-squared_distances.sqrt() / bandwidth, dim=-1)
    return torch.einsum("qk,qkc->qc", weights, residuals)


def correction_by_loops(squared_distances: Tensor, residuals: Tensor, bandwidth: float) -> Tensor:
    rows = []
    for squared, held in zip(squared_distances, residuals, strict=True):
        total = torch.zeros(held.shape[1])
        if len(squared):
            weights = torch.exp(-(squared.sqrt() - squared.sqrt().min()) / bandwidth)
            for weight, residual in zip(weights / weights.sum(), held, strict=True):
                total = total + weight * residual
        rows.append(total)
    return torch.stack(rows)


def correction_in_log_space(squared_distances: Tensor, residuals: Tensor, bandwidth: float) -> Tensor:
    logs = -(squared_distances**0.5) / bandwidth
    weights = (logs - logs.logsumexp(dim=1, keepdim=True)).exp()
    return (weights.unsqueeze(1) @ residuals).squeeze(1)


def correction_by_the_library(squared_distances: Tensor, residuals: Tensor, bandwidth: float) -> Tensor:
    return residual_read(squared_distances.sqrt(), residuals, bandwidth=bandwidth)


class ClassifierInTheStubsWords:
    """The stub's lines, changed as little as can be."""

    def __init__(self, logits: Function, embed: Function, k: int, bandwidth: float, temperature: float) -> None:
        self.logits, self.embed = logits, embed
        self.k, self.bandwidth, self.temperature = k, bandwidth, temperature
        self.keys: Tensor | None = None
        self.residuals = torch.zeros(0)

    def memorize(self, x: Tensor, y: Tensor) -> None:
        probabilities = (self.logits(x) / self.temperature).softmax(dim=1)
        residuals = F.one_hot(y, probabilities.shape[1]) - probabilities
        if self.keys is None:
            self.keys, self.residuals = self.embed(x), residuals
        else:
            self.keys = torch.cat([self.keys, self.embed(x)])
            self.residuals = torch.cat([self.residuals, residuals])

    def __call__(self, x: Tensor) -> Tensor:
        assert self.keys is not None
        distances = torch.cdist(self.embed(x), self.keys)
        found = distances.topk(self.k, dim=1, largest=False)
        weights = (-found.values / self.bandwidth).softmax(dim=1)
        correction = (weights[:, :, None] * self.residuals[found.indices]).sum(dim=1)
        return (self.logits(x) / self.temperature).softmax(dim=1) + correction


class ClassifierOverADatastore:
    """What is stored are examples in a list of batches; the residuals are made when they are asked for."""

    def __init__(self, logits: Function, embed: Function, k: int, bandwidth: float, temperature: float) -> None:
        self.embed, self.k, self.bandwidth = embed, k, bandwidth
        self.probabilities = lambda x: F.softmax(logits(x).div(temperature), dim=-1)
        self.batches: list[Pair] = []

    def memorize(self, x: Tensor, y: Tensor) -> None:
        self.batches.append((x, y))

    def __call__(self, x: Tensor) -> Tensor:
        store = Datastore(self.embed(x).shape[1])
        for held_x, held_y in self.batches:
            residuals = -self.probabilities(held_x)
            residuals[torch.arange(len(held_y)), held_y] += 1
            store.add(self.embed(held_x), residuals)
        found = store.search(self.embed(x), self.k)
        return self.probabilities(x) + correction_by_softmax(found.distances, found.values, self.bandwidth)


class ClassifierByTheLibrary:
    def __init__(self, logits: Function, embed: Function, k: int, bandwidth: float, temperature: float) -> None:
        self.memory = ResMem(lambda x: (logits(x) / temperature).softmax(dim=1), embed, k=k, bandwidth=bandwidth)
        self.memorize = self.memory.memorize

    def __call__(self, x: Tensor) -> Tensor:
        return self.memory(x)


def every_k_by_cumsum(
    prediction: Tensor, distances: Tensor, residuals: Tensor, targets: Tensor, bandwidth: float
) -> Tensor:
    weights = ((distances[:, :1] - distances) / bandwidth).exp()
    corrections = (weights[:, :, None] * residuals).cumsum(1) / weights.cumsum(1)[:, :, None]
    return (prediction[:, None] + corrections - targets[:, None]).square().mean(dim=(0, 2))


def every_k_neighbours_first(
    prediction: Tensor, distances: Tensor, residuals: Tensor, targets: Tensor, bandwidth: float
) -> Tensor:
    """The neighbours along the first axis, the weights' running sums in log space."""
    logs = -distances.T / bandwidth  # (K, Q)
    logs = logs - logs.max(dim=0).values
    weights = logs.exp()[:, :, None]  # (K, Q, 1)
    total = torch.logcumsumexp(logs, dim=0).exp()[:, :, None]
    said = prediction + torch.cumsum(weights * residuals.transpose(0, 1), dim=0) / total  # (K, Q, C)
    return F.mse_loss(said, targets.expand_as(said), reduction="none").flatten(1).mean(dim=1)


def every_k_by_softmax(
    prediction: Tensor, distances: Tensor, residuals: Tensor, targets: Tensor, bandwidth: float
) -> Tensor:
    """The weights of all K, divided by the share that the k nearest have of them."""
    weights = (-distances / bandwidth).softmax(dim=1).unsqueeze(-1)
    corrections = torch.cumsum(weights * residuals, dim=1) / torch.cumsum(weights, dim=1)
    errors = corrections + (prediction - targets).unsqueeze(1)
    return (errors * errors).mean(dim=-1).mean(dim=0)


def three_at_one_setting(
    model: Any, train: Pair, held_out: Pair, test: Pair, ks: Any, bandwidths: Any
) -> dict[str, float]:
    """kNN alone by `nearest`, with ResMem's k and bandwidth."""

    def predict(x: Tensor) -> Tensor:
        return torch.from_numpy(model.predict_proba(x.numpy())).float()

    def error(scores: Tensor) -> float:
        return (scores.argmax(dim=1) != y).float().mean().item()

    memory = ResMem(predict, lambda x: x, k=1, bandwidth=1.0)
    memory.memorize(*train)
    memory.tune(*held_out, ks=ks, bandwidths=bandwidths)
    x, y = test
    return {"base": error(predict(x)), "kNN alone": error(memory.nearest(x)), "ResMem": error(memory(x))}


def three_each_on_its_own(
    model: Any, train: Pair, held_out: Pair, test: Pair, ks: Any, bandwidths: Any
) -> dict[str, float]:
    """kNN alone with a k and bandwidth of its own: ResMem around a model that has learned nothing."""

    def predict(x: Tensor) -> Tensor:
        return torch.from_numpy(model.predict_proba(x.numpy()))

    def nothing(x: Tensor) -> Tensor:
        return torch.full_like(predict(x), 1 / len(model.classes_))

    scores = {"base": predict}
    for name, function in {"kNN alone": nothing, "ResMem": predict}.items():
        memory = ResMem(function, lambda x: x, k=1, bandwidth=1.0)
        memory.memorize(*train)
        memory.tune(*held_out, ks=ks, bandwidths=bandwidths)
        scores[name] = memory
    return {name: (said(test[0]).argmax(dim=1) != test[1]).double().mean().item() for name, said in scores.items()}


def three_by_a_grid(model: Any, train: Pair, held_out: Pair, test: Pair, ks: Any, bandwidths: Any) -> dict[str, float]:
    """In float64, with targets as one-hot vectors, and with a grid of its own over k and bandwidth."""

    def predict(x: Tensor) -> Tensor:
        return torch.as_tensor(model.predict_proba(x.cpu().numpy()), dtype=torch.float64)

    def wrong(scores: Tensor, y: Tensor) -> float:
        return float((scores.argmax(dim=-1) != y).double().mean())

    one_hot = F.one_hot(train[1], predict(train[0]).shape[1]).double()
    memory = ResMem(predict, lambda x: x, k=1, bandwidth=1.0)
    memory.memorize(train[0], one_hot)
    target = F.one_hot(held_out[1], one_hot.shape[1]).double()
    tried = []
    for k in ks:
        for bandwidth in bandwidths:
            memory.k, memory.bandwidth = k, bandwidth
            scores = memory(held_out[0])
            tried.append((wrong(scores, held_out[1]), float((scores - target).square().sum()), k, bandwidth))
    *_, memory.k, memory.bandwidth = min(tried)
    functions = {"base": predict, "kNN alone": memory.nearest, "ResMem": memory}
    return {name: wrong(function(test[0]), test[1]) for name, function in functions.items()}


PREDICTED = {
    "narrow": 16.0,
    "wide": 11.0,
    "halving": 13.0,
    "far_away": 12.25,
    "stored_twice": 14.8,
    "knn_alone": 13.0,
    "interpolates": 10.0,
}
LIMITS = {"clean": 1, "20 %": 8, "20 %, largest": 32, "40 %": 16, "20 %, bandwidth": 0.25}
ENOUGH = {"d = 2": 8, "d = 4": 64, "d = 8": 1024, "d = 4, kNN alone": 1024}

ANSWERS: dict[str, list[Any]] = {
    "5.1": [PREDICTED, PREDICTED | {"narrow": 16, "stored_twice": 10 + 24 / 5}],
    "5.2": [correction_by_softmax, correction_by_loops, correction_in_log_space, correction_by_the_library],
    "5.3": [ClassifierInTheStubsWords, ClassifierOverADatastore, ClassifierByTheLibrary],
    "5.4": [every_k_by_cumsum, every_k_neighbours_first, every_k_by_softmax],
    "5.5": [LIMITS, {"clean": 1.0, "20 %": 4, "20 %, largest": 64, "40 %": 8, "20 %, bandwidth": 1 / 8}],
    "5.6": [ENOUGH, {"d = 2": 16, "d = 4": 32, "d = 8": 2048.0, "d = 4, kNN alone": 512}],
    "5.7": [three_at_one_setting, three_each_on_its_own, three_by_a_grid],
}
