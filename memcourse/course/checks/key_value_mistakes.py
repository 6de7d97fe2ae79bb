"""The known wrong answers of chapter 02, each with the sentence that names it.

Each group has one right way in parts, and a mistake is that way with one part replaced.  They stand in the order in
which they should be recognised: the first that gives the learner's numbers is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memcourse.course.checks.key_value_oracles import brute_force
from memcourse.course.exercise import Mistake

# 2.2 cosine_address


def by_division(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def as_given(rows: Tensor) -> Tensor:
    return rows


def weighed(scores: Tensor) -> Tensor:
    return scores.softmax(dim=-1)


def clamped(smallest: float) -> Callable[[Tensor], Tensor]:
    return lambda rows: rows / rows.norm(dim=-1, keepdim=True).clamp(min=smallest)


def with_addend(addend: float) -> Callable[[Tensor], Tensor]:
    return lambda rows: rows / (rows.norm(dim=-1, keepdim=True) + addend)


unit = clamped(1e-12)


def addressed(
    query_part: Callable[[Tensor], Tensor] = unit,
    keys_part: Callable[[Tensor], Tensor] = unit,
    sharpen: Callable[[Tensor, float], Tensor] = lambda cosine, sharpness: sharpness * cosine,
    weigh: Callable[[Tensor], Tensor] = weighed,
) -> Callable[..., Tensor]:
    """cosine_address, with a part replaced."""
    return lambda query, keys, sharpness: weigh(sharpen(query_part(query) @ keys_part(keys).T, sharpness))


def both(part: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return addressed(part, part)


DOT = "these are weights of dot products: a cosine divides them by the lengths of query and key"
TOO_LARGE = (
    "what guards against a length of 0 is too large: it also changes vectors that are short, but not zeros. Take "
    "a number like 1e-12"
)
NO_NAN_LEFT = (
    "a NaN is replaced after the softmax, when one key of zeros has spoiled the whole row: its cosine is 0, and the "
    "others keep their weights"
)
PICKED = (
    "0 / 0 is made, and then replaced (nan_to_num, torch.where): the value is right, but its gradient is 0 times NaN, "
    "which is NaN. Make the divisor safe before you divide"
)

COSINE_ADDRESS = (
    Mistake(DOT, addressed(as_given, as_given)),
    Mistake("the keys are not divided by their lengths, so a long key wins", addressed(keys_part=as_given)),
    Mistake("the query is not divided by its length, so a long query is a sharp one", addressed(query_part=as_given)),
    Mistake("the sharpness is not used", addressed(sharpen=lambda cosine, sharpness: cosine)),
    Mistake(
        "the cosines are divided by the sharpness: that is a temperature, and a sharpness multiplies",
        addressed(sharpen=lambda cosine, sharpness: cosine / sharpness),
    ),
    Mistake(
        "the sharpness comes after the softmax: the rows no longer sum to 1",
        lambda query, keys, sharpness: sharpness * weighed(unit(query) @ unit(keys).T),
    ),
    Mistake(
        "the cosines are divided by sqrt(d), too: the sharpness is the whole scale",
        lambda query, keys, sharpness: weighed(sharpness * (unit(query) @ unit(keys).T) / query.shape[1] ** 0.5),
    ),
    Mistake(
        "these are the scores: the softmax over the slots is missing",
        addressed(weigh=as_given),
    ),
    Mistake(
        "this looks like a softmax over the queries: each column sums to 1, and each row should",
        addressed(weigh=lambda scores: scores.softmax(dim=0)),
    ),
    Mistake(
        "the lengths are taken down the columns: a length is a sum over the last axis, d",
        both(lambda rows: rows / rows.norm(dim=0, keepdim=True).clamp(min=1e-12)),
    ),
    Mistake(
        "all rows are divided by one length, that of the whole table: give norm() an axis, dim=-1",
        both(lambda rows: rows / rows.norm().clamp(min=1e-12)),
    ),
    Mistake(
        "the vectors are divided by their squared lengths: take the root",
        both(lambda rows: rows / rows.square().sum(dim=-1, keepdim=True).clamp(min=1e-30)),
    ),
    Mistake(
        "the vectors are divided by the sum of their absolute entries: a length is the root of the sum of squares",
        both(lambda rows: F.normalize(rows, p=1.0, dim=-1)),
    ),
    Mistake(
        "the sign of the cosine is lost: a key that points the other way should have the least weight",
        addressed(sharpen=lambda cosine, sharpness: sharpness * cosine.abs()),
    ),
    Mistake("a vector of zeros gives 0 / 0 = NaN, and its row or every row with it", both(by_division)),
    Mistake(NO_NAN_LEFT, addressed(by_division, by_division, weigh=lambda scores: weighed(scores).nan_to_num())),
    *(Mistake(TOO_LARGE, both(clamped(smallest))) for smallest in (1.0, 0.1)),
    *(Mistake(TOO_LARGE, both(with_addend(addend))) for addend in (1.0, 0.1, 1e-2, 1e-3, 1e-4)),
    Mistake(PICKED, both(lambda rows: by_division(rows).nan_to_num())),
    Mistake(PICKED, both(lambda rows: torch.where(rows.norm(dim=-1, keepdim=True) > 0, by_division(rows), 0.0))),
    Mistake(
        "the lengths are cut off from the graph: the gradient of a cosine also goes through them",
        both(lambda rows: rows / rows.detach().norm(dim=-1, keepdim=True).clamp(min=1e-12)),
    ),
)

# 2.3 erase_and_add

Part = Callable[[Tensor, Tensor], Tensor]  # of the weights (n, 1) and a row (v,): (n, v)


def share(weights: Tensor, row: Tensor) -> Tensor:
    return weights * row


def whole(weights: Tensor, row: Tensor) -> Tensor:
    return row.expand(len(weights), -1)


def write(kept: Part = lambda w, e: 1 - w * e, added: Part = share) -> Callable[..., Tensor]:
    """erase_and_add, with a part replaced."""
    return lambda values, weights, erase, add: values * kept(weights[:, None], erase) + added(weights[:, None], add)


def add_then_erase(erased: Part) -> Callable[..., Tensor]:
    return lambda values, weights, erase, add: (values + weights[:, None] * add) * (1 - erased(weights[:, None], erase))


def in_place(right: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda values, *rest: values.copy_(right(values, *rest))


NO_WEIGHT = (
    "every slot is erased, whatever its weight: slot i loses the share w_i e, and one without weight stays as it is"
)
TOO_EARLY = "the new part is added first, and then erased with the old: erase first, then add"
AND_IN_PLACE = ". The caller's values are changed in place, too"

ERASE_AND_ADD = (
    Mistake(
        "this is the stub's version, with all three faults: it adds before it erases, it erases every slot whatever "
        "its weight, and it changes the caller's values",
        in_place(add_then_erase(whole)),
    ),
    Mistake(f"{NO_WEIGHT}. And {TOO_EARLY}", add_then_erase(whole)),
    Mistake(f"{TOO_EARLY}{AND_IN_PLACE}", in_place(add_then_erase(share))),
    Mistake(TOO_EARLY, add_then_erase(share)),
    Mistake(f"{NO_WEIGHT}{AND_IN_PLACE}", in_place(write(lambda w, e: 1 - whole(w, e)))),
    Mistake(NO_WEIGHT, write(lambda w, e: 1 - whole(w, e))),
    Mistake(
        "the caller's values are changed in place: `values = values * ...` makes a new tensor, `*=` and `+=` do not",
        in_place(write()),
    ),
    Mistake("everything is added to every slot: slot i gets the share w_i of a", write(added=whole)),
    Mistake(
        "the slots are cleared by their weight alone: e says which parts of a slot are erased",
        write(lambda w, e: 1 - w * torch.ones_like(e)),
    ),
    Mistake("this keeps what should go: e is the share that is erased, so 1 - w e stays", write(share)),
    Mistake(
        "(1 - w)(1 - e) is not 1 - w e: by it, any weight clears parts whose e is 0",
        write(lambda w, e: (1 - w) * (1 - e)),
    ),
    Mistake(
        "w (1 - e) is not 1 - w e: by it, a slot without weight loses everything",
        write(lambda w, e: w * (1 - e)),
    ),
    Mistake(
        "1 - e + w is not 1 - w e: the weight multiplies what is erased",
        write(lambda w, e: 1 - e + w),
    ),
    Mistake("nothing is erased: this is the additive write alone", write(lambda w, e: torch.ones_like(w * e))),
    Mistake("nothing is added: this is the erasing alone", write(added=lambda w, a: 0 * w * a)),
    Mistake(
        "what is added has the factor e: in this equation, what is erased does not limit what is added",
        lambda values, weights, erase, add: write()(values, weights, erase, erase * add),
    ),
    Mistake(
        "w e is subtracted from the values: the erasing multiplies, by 1 - w e",
        lambda values, weights, erase, add: values + weights[:, None] * (add - erase),
    ),
    Mistake("these are the slots as columns, (v, n): return (n, v)", lambda *case: write()(*case).T),
    Mistake(
        "the old values are cut off from the graph: what was written earlier gets no gradient",
        lambda values, *rest: write()(values.detach(), *rest),
    ),
)

# 2.4 top_k_of_sums


def candidates(
    how_many: Callable[[int, int], int] = min,
    slots: Callable[[Tensor, Tensor, int, int], Tensor] = lambda i, j, n, m: i * m + j,
    result: Callable[[Tensor, Tensor], Any] = lambda sums, slots: (sums, slots),
    largest: bool = True,
) -> Callable[..., Any]:
    """top_k_of_sums from the best of either list, with a part replaced.  how_many: (k, length) -> candidates."""

    def search(scores_1: Tensor, scores_2: Tensor, k: int) -> Any:
        n, m = len(scores_1), len(scores_2)
        first, second = scores_1.topk(how_many(k, n), largest=largest), scores_2.topk(how_many(k, m), largest=largest)
        best = (first.values[:, None] + second.values).flatten().topk(k, largest=largest)
        where = slots(first.indices[:, None], second.indices, n, m).flatten()
        return result(best.values, where[best.indices])

    return search


right_search = candidates()


def places_among_the_candidates(scores_1: Tensor, scores_2: Tensor, k: int) -> tuple[Tensor, Tensor]:
    first, second = scores_1.topk(min(k, len(scores_1))), scores_2.topk(min(k, len(scores_2)))
    best = (first.values[:, None] + second.values).flatten().topk(k)
    return best.values, best.indices


def slots_of_the_ranks(scores_1: Tensor, scores_2: Tensor, k: int) -> tuple[Tensor, Tensor]:
    m = len(scores_2)
    first, second = scores_1.topk(min(k, len(scores_1))), scores_2.topk(min(k, m))
    best = (first.values[:, None] + second.values).flatten().topk(k)
    width = len(second.values)
    return best.values, best.indices // width * m + best.indices % width


def rank_by_rank(scores_1: Tensor, scores_2: Tensor, k: int) -> tuple[Tensor, Tensor]:
    first, second = scores_1.sort(descending=True), scores_2.sort(descending=True)
    both = min(k, len(scores_1), len(scores_2))
    return (first.values[:both] + second.values[:both]), (first.indices * len(scores_2))[:both] + second.indices[:both]


def one_by_one(scores_1: Tensor, scores_2: Tensor, k: int) -> tuple[Tensor, Tensor]:
    m = len(scores_2)
    sums = [(a.item() + b.item(), i * m + j) for i, a in enumerate(scores_1) for j, b in enumerate(scores_2)]
    best = sorted(sums, reverse=True)[:k]
    slots = torch.tensor([slot for _, slot in best])
    return scores_1[slots // m] + scores_2[slots % m], slots


TOO_SLOW = "this makes all n * m sums: only the k best of either list can be part of the k best sums"

TOP_K_OF_SUMS = (
    Mistake(
        "the two lists are the wrong way round: slot i * m + j is the sum of scores_1[i] and scores_2[j]",
        candidates(slots=lambda i, j, n, m: j * n + i),
    ),
    Mistake(
        "the slots take the length of the wrong list: i * m + j, where m is the length of scores_2",
        candidates(slots=lambda i, j, n, m: i * n + j),
    ),
    Mistake(
        "these are places among the candidates: look up which i and j of the lists they stand for",
        places_among_the_candidates,
    ),
    Mistake(
        "the slots are made of ranks: topk's indices say which i and j of the lists have these ranks",
        slots_of_the_ranks,
    ),
    Mistake(
        "the best of one list is added only to the best of the other, rank by rank: the k best sums may share their "
        "first score",
        rank_by_rank,
    ),
    Mistake(
        "about sqrt(k) candidates of either list make k sums, but not the k best: the k best sums may all share their "
        "first score",
        candidates(how_many=lambda k, length: min(length, math.isqrt(k - 1) + 1)),
    ),
    Mistake(
        "k may be larger than a list is long: take min(k, length) candidates of it",
        candidates(how_many=lambda k, length: k),
    ),
    Mistake("these are the k smallest sums: the largest are asked", candidates(largest=False)),
    Mistake(
        "the sums are not in order: the largest comes first",
        candidates(result=lambda sums, slots: (sums.flip(0), slots.flip(0))),
    ),
    Mistake("this returns the sums alone: return (sums, slots)", candidates(result=lambda sums, slots: sums)),
    Mistake(
        "the two results are the wrong way round: return (sums, slots)",
        candidates(result=lambda sums, slots: (slots, sums)),
    ),
    Mistake(
        "no gradient flows: the sums are cut off from the graph",
        candidates(result=lambda sums, slots: (sums.detach(), slots)),
    ),
    Mistake(TOO_SLOW, brute_force),
    Mistake(TOO_SLOW, one_by_one),
)
