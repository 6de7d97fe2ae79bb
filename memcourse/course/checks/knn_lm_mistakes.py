"""The known wrong answers of chapter 04, each with the sentence that names it.

Each group has one right way in parts, and a mistake is that way with one part replaced.  They stand in the order in
which they should be recognised: the first that gives the learner's numbers is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from memcourse.course.checks.knn_lm_oracles import nearest_loop
from memcourse.course.exercise import Mistake
from memcourse.datastore import Datastore, Neighbors
from memcourse.knn_lm import KNNLM, interpolate, knn_log_prob
from memcourse.transformer import MemoryTransformer

# 4.2 memory_pairs


def pairs(
    keys: Callable[[Tensor], Tensor] = lambda hidden: hidden[:, :-1],
    values: Callable[[Tensor], Tensor] = lambda tokens: tokens[:, 1:],
    result: Callable[[Tensor, Tensor], Any] = lambda keys, values: (keys.flatten(0, 1).detach(), values.flatten()),
) -> Callable[..., Any]:
    return lambda hidden, tokens: result(keys(hidden), values(tokens))


def across_rows(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return hidden.flatten(0, 1)[:-1].detach(), tokens.flatten()[1:]


def along_the_batch(hidden: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    return hidden[:-1].flatten(0, 1).detach(), tokens[1:].flatten()


SAME = (
    "each key is paired with the token that it has just read: hidden[b, t] knows token t already, and should be "
    "paired with token t + 1. Off by one, a memory repeats the last word"
)

MEMORY_PAIRS = (
    Mistake(SAME, pairs(keys=lambda hidden: hidden, values=lambda tokens: tokens)),
    Mistake(SAME, pairs(values=lambda tokens: tokens[:, :-1])),
    Mistake(
        "the key has seen its value: hidden[b, t + 1] is paired with token t + 1. The memory proposes the token just "
        "read; and if the queries make the same mistake, every score, on any text, looks too good",
        pairs(keys=lambda hidden: hidden[:, 1:]),
    ),
    Mistake(
        "the shift goes the wrong way: hidden[b, t] is paired with token t - 1, which lies behind it",
        pairs(keys=lambda hidden: hidden[:, 1:], values=lambda tokens: tokens[:, :-1]),
    ),
    Mistake(
        "the last key of a text is paired with a first token: torch.roll wraps around, and the last key has no next "
        "token",
        pairs(keys=lambda hidden: hidden, values=lambda tokens: tokens.roll(-1, dims=1)),
    ),
    Mistake(
        "the last key of a text is paired with the first token of another text: shift each row before you flatten",
        across_rows,
    ),
    Mistake("the shift runs over the batch, and should run over time, the second axis", along_the_batch),
    Mistake(
        "the two results are the wrong way round: return (keys, values)",
        pairs(result=lambda keys, values: (values.flatten(), keys.flatten(0, 1).detach())),
    ),
    Mistake(
        "the pairs still have the batch as an axis of their own: a datastore holds one list, (B * (T-1), d) and "
        "(B * (T-1),)",
        pairs(result=lambda keys, values: (keys.detach(), values)),
    ),
    Mistake(
        "the values have an axis too many: (B * (T-1),) is asked",
        pairs(result=lambda keys, values: (keys.flatten(0, 1).detach(), values.reshape(-1, 1))),
    ),
    Mistake(
        "time comes first here: the pairs of the first text come first, in order, then those of the second",
        pairs(
            result=lambda keys, values: (keys.transpose(0, 1).flatten(0, 1).detach(), values.T.flatten()),
        ),
    ),
    Mistake(
        "keys and values are flattened in different orders, so that most keys got another's value",
        pairs(result=lambda keys, values: (keys.transpose(0, 1).flatten(0, 1).detach(), values.flatten())),
    ),
    Mistake(
        "the values are floating-point numbers: a token id is an integer, and float16 does not even hold 2049",
        pairs(result=lambda keys, values: (keys.flatten(0, 1).detach(), values.flatten().float())),
    ),
    Mistake(
        "the values are int16, which ends at 32,767: a larger token id becomes another token",
        pairs(result=lambda keys, values: (keys.flatten(0, 1).detach(), values.flatten().to(torch.int16))),
    ),
    Mistake(
        "cut them off with .detach()",
        pairs(result=lambda keys, values: (keys.flatten(0, 1), values.flatten())),
    ),
)

# 4.3 target_log_prob

Parts = Callable[..., Tensor]


def scored(
    score: Callable[[Tensor, float], Tensor] = lambda distances, temperature: -distances / temperature,
    share: Callable[[Tensor, Tensor], Tensor] = lambda scores, alike: right_share(scores, alike),
) -> Parts:
    """target_log_prob, with the step to scores, or from scores and matches to the result, replaced."""

    def log_prob(distances: Tensor, tokens: Tensor, targets: Tensor, temperature: float) -> Tensor:
        return share(score(distances, temperature), tokens == targets[..., None])

    return log_prob


def only(scores: Tensor, alike: Tensor) -> Tensor:
    return scores.masked_fill(~alike, -math.inf)


def right_share(scores: Tensor, alike: Tensor) -> Tensor:
    return only(scores, alike).logsumexp(dim=-1) - scores.logsumexp(dim=-1)


def in_a_table(distances: Tensor, tokens: Tensor, targets: Tensor, temperature: float) -> Tensor:
    log_weights = (-distances / temperature).log_softmax(dim=-1)
    size = 1 + int(torch.maximum(tokens.amax(), targets.amax()))
    table = log_weights.new_full((*targets.shape, size), -math.inf)
    for i in range(tokens.shape[-1]):
        at = tokens[..., i : i + 1]
        table = table.scatter(-1, at, torch.logaddexp(table.gather(-1, at), log_weights[..., i : i + 1]))
    return table.gather(-1, targets[..., None]).squeeze(-1)


def ids_as_floats(distances: Tensor, tokens: Tensor, targets: Tensor, temperature: float) -> Tensor:
    return right_share(-distances / temperature, tokens.float() == targets.float()[..., None])


def exponentials(scores: Tensor, alike: Tensor) -> Tensor:
    return ((scores.exp() * alike).sum(dim=-1) / scores.exp().sum(dim=-1)).log()


LIBRARY = "the library's own function is the one that you are asked to write: use torch alone"
UNDERFLOW = (
    "exp of a large distance is 0 in float32, and its logarithm -inf: stay with logarithms, and sum with logsumexp"
)
ZERO_SCORE = (
    "neighbours with another token are set to 0, and exp(0) = 1 is the weight of a perfect match: set them to -inf"
)
FLOORED = "a token that no neighbour has gets a little: its p_kNN is 0, and the logarithm -inf (the mixture mends it)"

TARGET_LOG_PROB = (
    Mistake(
        "the distances are not negated: the farthest neighbour weighs most",
        scored(score=lambda distances, temperature: distances / temperature),
    ),
    Mistake(
        "the distances are multiplied by the temperature, and should be divided by it",
        scored(score=lambda distances, temperature: -distances * temperature),
    ),
    Mistake("the temperature is not used", scored(score=lambda distances, temperature: -distances)),
    Mistake(
        "the root of the distances is taken: squared distances come in, and kNN-LM leaves them so. Take no root",
        scored(score=lambda distances, temperature: -distances.sqrt() / temperature),
    ),
    Mistake(
        "squared distances come in: take no root; and divide them by the temperature",
        scored(score=lambda distances, temperature: -distances.sqrt() * temperature),
    ),
    Mistake(
        "the distances are squared: they are squared distances already",
        scored(score=lambda distances, temperature: -(distances**2) / temperature),
    ),
    Mistake(
        "this counts neighbours: a nearer one should weigh more, exp(-distance / temperature)",
        scored(score=lambda distances, temperature: torch.where(distances.isinf(), -math.inf, 0.0 * distances.sign())),
    ),
    Mistake(
        "the weights are not normalised: divide by the sum over all k neighbours, which in logarithms is a difference",
        scored(share=lambda scores, alike: only(scores, alike).logsumexp(dim=-1)),
    ),
    Mistake(
        "the neighbours with the target are normalised among themselves: the sum below goes over all k",
        scored(share=lambda scores, alike: only(only(scores, alike).log_softmax(dim=-1), alike).logsumexp(dim=-1)),
    ),
    Mistake(
        "only the nearest neighbour with the target counts: all that have it share in its probability",
        scored(share=lambda scores, alike: only(scores.log_softmax(dim=-1), alike).amax(dim=-1)),
    ),
    Mistake(
        "this is the mean of the neighbours with the target, and their sum is asked",
        scored(share=lambda scores, alike: right_share(scores, alike) - alike.sum(dim=-1).log()),
    ),
    Mistake(
        "logarithms are summed, which multiplies probabilities: add the weights, with logsumexp",
        scored(share=lambda scores, alike: (scores.log_softmax(dim=-1).masked_fill(~alike, 0.0)).sum(dim=-1)),
    ),
    Mistake(
        ZERO_SCORE,
        scored(share=lambda scores, alike: scores.masked_fill(~alike, 0).logsumexp(-1) - scores.logsumexp(-1)),
    ),
    Mistake(
        ZERO_SCORE, scored(share=lambda scores, alike: scores.log_softmax(-1).masked_fill(~alike, 0).logsumexp(-1))
    ),
    Mistake(ZERO_SCORE, scored(share=lambda scores, alike: (scores.log_softmax(-1) * alike).logsumexp(-1))),
    Mistake(
        "these are probabilities: their logarithms are asked",
        scored(share=lambda scores, alike: right_share(scores, alike).exp()),
    ),
    Mistake(
        "these are the shares of all other tokens: sum where the neighbour's token is the target",
        scored(share=lambda scores, alike: right_share(scores, ~alike)),
    ),
    Mistake(
        "the softmax runs over the queries: a query's own k neighbours, the last axis, share its weight",
        scored(share=lambda scores, alike: only(scores.log_softmax(dim=0), alike).logsumexp(dim=-1)),
    ),
    Mistake(UNDERFLOW, scored(share=lambda scores, alike: (scores.softmax(dim=-1) * alike).sum(dim=-1).log())),
    Mistake(f"{UNDERFLOW}. Where all distances are large, 0 is divided by 0", scored(share=exponentials)),
    Mistake(
        FLOORED,
        scored(share=lambda scores, alike: ((scores.softmax(dim=-1) * alike).sum(dim=-1) + 1e-10).log()),
    ),
    Mistake(
        FLOORED,
        scored(share=lambda scores, alike: (scores.softmax(dim=-1) * alike).sum(dim=-1).clamp(min=1e-10).log()),
    ),
    Mistake(
        FLOORED,
        scored(share=lambda scores, alike: scores.masked_fill(~alike, -1e9).logsumexp(-1) - scores.logsumexp(-1)),
    ),
    Mistake(
        "no gradient flows: the result is cut off from the distances",
        scored(share=lambda scores, alike: right_share(scores, alike).detach()),
    ),
    Mistake(LIBRARY, lambda d, tokens, targets, tau: knn_log_prob(d, tokens, targets, temperature=tau)),
    Mistake("this makes a table with a place for each word of the vocabulary", in_a_table),
    Mistake("the ids are compared as floating-point numbers", ids_as_floats),
)

# 4.4 mix


def mixed(total: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """mix, from log p_model, log p_kNN and the weight as a tensor."""
    return lambda model, knn, weight: total(model, knn, torch.as_tensor(weight, dtype=model.dtype))


def right_mix(model: Tensor, knn: Tensor, weight: Tensor) -> Tensor:
    return torch.logaddexp((1 - weight).log() + model, weight.log() + knn)


def as_given(model: Tensor, knn: Tensor, weight: float) -> Tensor:
    return torch.log(weight * model.exp() + (1 - weight) * knn.exp() + 1e-10)


def log_of_a_number(model: Tensor, knn: Tensor, weight: float) -> Tensor:
    return torch.logaddexp(math.log(1 - weight) + model, math.log(weight) + knn)


def log_of_one_number(model: Tensor, knn: Tensor, weight: float) -> Tensor:
    return torch.logaddexp(math.log1p(-weight) + model, math.log(weight) + knn)


def floored(mend: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return mixed(lambda model, knn, weight: mend((1 - weight) * model.exp() + weight * knn.exp()).log())


FLOORS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda p: p + 1e-10,
    lambda p: p.clamp(min=1e-10),
    lambda p: p + 1e-8,
    lambda p: p.clamp(min=1e-8),
    lambda p: p + 1e-9,
    lambda p: p + 1e-12,
    lambda p: p.clamp(min=1e-12),
)


def clamped(low: float) -> Callable[..., Tensor]:
    return mixed(lambda model, knn, weight: right_mix(model, knn.clamp(min=low), weight))


def from_the_larger(model: Tensor, knn: Tensor, weight: Tensor) -> Tensor:
    """Shifted by the larger of the two, which is -inf - -inf where one part is missing."""
    a, b = (1 - weight).log() + model, weight.log() + knn
    return torch.maximum(a, b) + torch.log1p(torch.exp(-(a - b).abs()))


def changed_in_place(model: Tensor, knn: Tensor, weight: float) -> Tensor:
    share = torch.as_tensor(weight)
    with torch.no_grad():
        model += (1 - share).log()
    return torch.logaddexp(model, knn + share.log())


def in_two_branches(model: Tensor, knn: Tensor, weight: Tensor) -> Tensor:
    """The sum of probabilities, and the model's share alone where no neighbour has the token: NaN in the gradient."""
    both = (1 - weight).log() + model + torch.log1p(weight / (1 - weight) * torch.exp(knn - model))
    return torch.where(knn.isinf(), (1 - weight).log() + model, both)


WRONG_SIDE = "the weight is on the wrong side: it is the share of the neighbours, and 1 - weight that of the model"
INSIDE = (
    "a small number is added inside the logarithm: a token that is less likely than it gets its probability for free, "
    "so that the worst predictions look better than they are"
)
GEOMETRIC = (
    "logarithms are averaged, which mixes by multiplying: one source that rules a token out rules it out for both. "
    "Mix the probabilities"
)

MIX = (
    Mistake(f"{WRONG_SIDE}; and a small number is added inside the logarithm", as_given),
    Mistake(WRONG_SIDE, mixed(lambda model, knn, weight: right_mix(knn, model, weight))),
    Mistake(
        f"{WRONG_SIDE}; and exp of a very small logarithm is 0, whose own is -inf",
        mixed(lambda model, knn, weight: (weight * model.exp() + (1 - weight) * knn.exp()).log()),
    ),
    *(Mistake(INSIDE, floored(mend)) for mend in FLOORS),
    Mistake(
        "exp of a very small logarithm is 0 in float32, whose own logarithm is -inf: torch.logaddexp adds "
        "probabilities without leaving their logarithms",
        mixed(lambda model, knn, weight: ((1 - weight) * model.exp() + weight * knn.exp()).log()),
    ),
    *(
        Mistake(
            "-inf must stay -inf at a weight of 1: torch.logaddexp takes it as it is",
            clamped(low),
        )
        for low in (-1e3, -1e4, -1e5, -1e6, -1e8, -1e9, -1e10, -1e30, torch.finfo(torch.float32).min)
    ),
    Mistake(LIBRARY, interpolate),
    Mistake(GEOMETRIC, mixed(lambda model, knn, weight: (1 - weight) * model + weight * knn)),
    Mistake(
        "the weights are factors of the logarithms: as factors of the probabilities they are added to the logarithms, "
        "as log(weight)",
        mixed(lambda model, knn, weight: torch.logaddexp((1 - weight) * model, weight * knn)),
    ),
    Mistake(
        "the weights are missing: the two probabilities are added as they are",
        mixed(lambda model, knn, weight: torch.logaddexp(model, knn)),
    ),
    Mistake(
        "the model keeps its whole probability: its share is 1 - weight",
        mixed(lambda model, knn, weight: torch.logaddexp(model, weight.log() + knn)),
    ),
    Mistake(
        "this takes the larger of the two parts: their sum is asked",
        mixed(lambda model, knn, weight: torch.maximum((1 - weight).log() + model, weight.log() + knn)),
    ),
    Mistake(
        "these are probabilities: logarithms are asked",
        mixed(lambda model, knn, weight: right_mix(model, knn, weight).exp()),
    ),
    Mistake(
        "where no neighbour has the token, the model's probability is left whole: p_kNN is 0 there, and 1 - weight "
        "still holds",
        mixed(lambda model, knn, weight: torch.where(knn.isinf(), model, right_mix(model, knn, weight))),
    ),
    Mistake(
        "math.log(0) raises: a weight of 0 or 1 is allowed. The logarithm of a tensor that holds 0 is -inf, which "
        "torch.logaddexp takes well",
        log_of_a_number,
    ),
    Mistake(
        "math.log(0) raises: a weight of 0 or 1 is allowed. The logarithm of a tensor that holds 0 is -inf, which "
        "torch.logaddexp takes well",
        log_of_one_number,
    ),
    Mistake(
        "the weights are kept away from 0: with a weight of 1 the model has no say, and a token that no neighbour has "
        "is impossible, -inf",
        mixed(lambda model, knn, weight: right_mix(model, knn, weight.clamp(1e-10, 1 - 1e-7))),
    ),
    Mistake(
        "the weights are kept away from 0: with a weight of 1 the model has no say, and a token that no neighbour has "
        "is impossible, -inf",
        mixed(
            lambda model, knn, weight: torch.logaddexp((1 - weight + 1e-12).log() + model, (weight + 1e-12).log() + knn)
        ),
    ),
    Mistake(
        "-inf minus -inf is NaN: where both parts are impossible, the largest cannot be taken out of the sum",
        mixed(from_the_larger),
    ),
    Mistake(
        "an argument is changed in place: a caller who mixes again with another weight mixes something else",
        changed_in_place,
    ),
    Mistake(
        "no gradient flows to the model: the mixture is cut off from it",
        mixed(lambda model, knn, weight: right_mix(model, knn, weight).detach()),
    ),
    Mistake("a NaN of the branch that torch.where does not take reaches the gradient", mixed(in_two_branches)),
)

# 4.5 nearest_in_blocks


def running(
    squares: Callable[[Tensor, Tensor], Tensor] = lambda queries, block: expanded(queries, block),
    offset: Callable[[int, int, int], int] = lambda start, i, n: start,
    best_of_block: Callable[[Tensor, int], Any] = lambda squares, k: squares.topk(
        min(k, squares.shape[1]), largest=False
    ),
    result: Callable[[Tensor, Tensor], Any] = lambda distances, rows: (distances, rows),
) -> Callable[..., Any]:
    """nearest_in_blocks by a running top-k, a part replaced.  offset: (keys before, block, its size) -> first row."""

    def search(queries: Tensor, blocks: list[Tensor], k: int) -> Any:
        distances = queries.new_zeros(len(queries), 0)
        rows = torch.zeros(len(queries), 0, dtype=torch.int64)
        start = 0
        for i, block in enumerate(blocks):
            found, where = best_of_block(squares(queries, block), k)
            distances = torch.cat([distances, found], dim=1)
            rows = torch.cat([rows, where + offset(start, i, len(block))], dim=1)
            distances, order = distances.topk(min(k, distances.shape[1]), largest=False)
            rows = rows.gather(1, order)
            start += len(block)
        return result(distances, rows)

    return search


def expanded(queries: Tensor, block: Tensor) -> Tensor:
    """|q - k|^2 of every query and key: (Q, d), (n, d) -> (Q, n)."""
    return (queries**2).sum(dim=1, keepdim=True) - 2 * queries @ block.T + (block**2).sum(dim=1)


def places_of_the_merge(queries: Tensor, blocks: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    distances = queries.new_zeros(len(queries), 0)
    for block in blocks:
        found = expanded(queries, block).topk(min(k, len(block)), largest=False).values
        distances, where = torch.cat([distances, found], dim=1).topk(
            min(k, distances.shape[1] + found.shape[1]), largest=False
        )
    return distances, where


def last_block_alone(queries: Tensor, blocks: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    found = expanded(queries, blocks[-1]).topk(min(k, len(blocks[-1])), largest=False)
    return found.values, found.indices + sum(map(len, blocks[:-1]))


def rows_left_behind(queries: Tensor, blocks: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    distances, rows, start = queries.new_zeros(len(queries), 0), torch.zeros(len(queries), 0, dtype=torch.int64), 0
    for block in blocks:
        found, where = expanded(queries, block).topk(min(k, len(block)), largest=False)
        distances = torch.cat([distances, found], dim=1).sort(dim=1).values[:, :k]
        rows = torch.cat([rows, where + start], dim=1)[:, :k]
        start += len(block)
    return distances, rows


def all_distances(queries: Tensor, blocks: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    best = torch.cat([expanded(queries, block) for block in blocks], dim=1).topk(k, largest=False)
    return best.values, best.indices


OFFSET = "the rows count from the beginning of their block: add the number of keys in the blocks before it"
MATRIX = (
    "all keys or all distances at once, or all differences of a block: the k best so far, or the k best of each, "
    "should be all that a block leaves"
)

NEAREST_IN_BLOCKS = (
    Mistake(OFFSET, running(offset=lambda start, i, n: 0)),
    Mistake(
        "the rows take every block to be as long as this one: add up the lengths of the blocks before it",
        running(offset=lambda start, i, n: i * n),
    ),
    Mistake("these are places among the candidates: gather the rows with the indices of topk", places_of_the_merge),
    Mistake(
        "the distances are sorted and their rows are left behind: gather the rows with the same indices",
        rows_left_behind,
    ),
    Mistake("only the last block counts: keep the best of the blocks before it", last_block_alone),
    Mistake(
        "a block may hold fewer than k keys: take min(k, its length) of it",
        running(best_of_block=lambda squares, k: squares.topk(k, largest=False)),
    ),
    Mistake(
        "these are the farthest keys: topk takes the largest unless largest=False",
        lambda queries, blocks, k: torch.cat([expanded(queries, block) for block in blocks], dim=1).topk(k)[:],
    ),
    Mistake(
        "these are distances: squared distances are asked, as the loop has them",
        running(result=lambda distances, rows: (distances.clamp(min=0).sqrt(), rows)),
    ),
    Mistake(
        "|q|^2 is left out: it changes no order, but the distances are asked too",
        running(squares=lambda queries, block: expanded(queries, block) - (queries**2).sum(dim=1, keepdim=True)),
    ),
    Mistake(
        "|k|^2 is left out, and so long keys look near: -2 q.k alone is a dot product",
        running(squares=lambda queries, block: expanded(queries, block) - (block**2).sum(dim=1)),
    ),
    Mistake(
        "the factor 2 of the mixed term is missing: |q - k|^2 = |q|^2 - 2 q.k + |k|^2",
        running(squares=lambda queries, block: expanded(queries, block) + queries @ block.T),
    ),
    Mistake(
        "the farthest comes first: the nearest should",
        running(result=lambda distances, rows: (distances.flip(1), rows.flip(1))),
    ),
    Mistake(
        "the two results are the wrong way round: return (distances, rows)",
        running(result=lambda distances, rows: (rows, distances)),
    ),
    Mistake("this returns the rows alone: return (distances, rows)", running(result=lambda distances, rows: rows)),
    Mistake(MATRIX, all_distances),
    Mistake(MATRIX, running(squares=lambda queries, block: (queries[:, None] - block).square().sum(dim=-1))),
    Mistake(
        "this is hardly faster than the loop: there is a Python step for each query, or work that one matrix product a "
        "block would save",
        nearest_loop,
    ),
)


# 4.7 learn_domain


def learned(
    stored: Callable[[Tensor, Tensor], list[Tensor]] = lambda new, old: [new],
    weight: Callable[[float], Any] = lambda usual: lambda near: 0.5 * (near.distances[..., 0] < usual),
    result: Callable[[KNNLM], Any] = lambda knn: knn,
) -> Callable[..., Any]:
    """learn_domain, with a part replaced.  weight: made of the distance that few old contexts are nearer than."""

    def learn(model: MemoryTransformer, new: Tensor, old: Tensor) -> Any:
        knn = KNNLM(model, Datastore(model.config["d_model"]), k=8)
        for text in stored(new, old):
            knn.memorize(text)
        nearest = knn.neighbors(old).distances[..., :1].flatten()
        usual = nearest.quantile(0.03).item() if len(nearest) else 0.0
        knn.weight = weight(usual)
        return result(knn)

    return learn


def trained(model: MemoryTransformer, new: Tensor, old: Tensor) -> KNNLM:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(new[:8, :-1])[0].flatten(0, 1).log_softmax(dim=-1).gather(1, new[:8, 1:].reshape(-1, 1)).mean().backward()
    optimizer.step()
    knn = KNNLM(model, Datastore(model.config["d_model"]))
    knn.memorize(new)
    return knn


def shifted(model: MemoryTransformer, new: Tensor, old: Tensor) -> KNNLM:
    store = Datastore(model.config["d_model"])
    store.add(model.hidden(new).flatten(0, 1), new.flatten())
    return KNNLM(model, store, k=8)


def far_alone(usual: float) -> Callable[[Neighbors], Tensor]:
    return lambda near: 0.5 * (near.distances[..., 0] > usual)


LEARN_DOMAIN = (
    Mistake(
        "one weight for every token, or one that is large for too many: half of the probability is taken from the "
        "model even where nothing near was found. Make the weight a function of the distance to the nearest neighbour",
        learned(weight=lambda usual: 0.5),
    ),
    Mistake("nothing was put into the datastore", learned(stored=lambda new, old: [])),
    Mistake(
        "is your limit 0? The first token of a row has no context, and finds an equal at distance 0 in any text: the "
        "smallest distance says nothing",
        learned(weight=lambda usual: lambda near: 0.5 * (near.distances[..., 0] < 0.0)),
    ),
    Mistake(
        "the weight is too small where new text finds a near neighbour: let it be large below a limit that you find in "
        "the distances of `old`, for this model (a number of your own, or `tune` on `old` alone, knows nothing of it)",
        learned(weight=lambda usual: lambda near: 0.5 * (near.distances[..., 0] < 20.0)),
    ),
    Mistake(
        "the new text does not reach the score: see whether it is memorised, and whether the weight is more than 0 "
        "where its neighbours are near",
        learned(stored=lambda new, old: [old[: len(old) // 2]], weight=lambda usual: 0.02),
    ),
    Mistake(
        "a weight this small for every token is too careful for the new text: let the weight be large where a near "
        "neighbour is found, and 0 where none is",
        learned(weight=lambda usual: 0.02),
    ),
    Mistake(
        "the weight follows the distance the wrong way round: it should be large where the nearest neighbour is near",
        learned(weight=far_alone),
    ),
    Mistake("each context is stored with the token that it has just read: `memorize` pairs it with the next", shifted),
    Mistake("a weight of 1 leaves nothing of the model", learned(weight=lambda usual: 1.0)),
    Mistake(
        "the datastore alone cannot score a text: return the KNNLM that holds it",
        learned(result=lambda knn: knn.datastore),
    ),
    Mistake("the weights of the model were changed: nothing is to be trained here, only stored", trained),
)
