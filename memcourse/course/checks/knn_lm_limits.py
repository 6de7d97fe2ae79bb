"""The exercise of chapter 04 that finds a limit: its numbers, and all that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from memcourse.course.checks.attention_oracles import Array, softmax
from memcourse.course.checks.family import Family, Later, told_apart, within_a_step
from memcourse.course.checks.knn_lm_oracles import Integers, no_key_is_missing
from memcourse.course.exercise import Mistake

# 4.6 best_weight

WEIGHTS = [step / 10 for step in range(10)]  # 0, 0.1, ... 0.9
VOCABULARY, WIDTH, QUERIES = 64, 16, 512
KNOWN, SURE, SPREAD = 16, 0.9, 0.5
K, TEMPERATURE = 32, 0.1
OWN, ITS_OWN = "its own text", 1000
IN_WORDS = {200: "two hundred", 500: "five hundred", 1000: "a thousand", 2000: "two thousand", 5000: "five thousand"}
IN_WORDS |= {10_000: "ten thousand"}


class World(NamedTuple):
    """How many facts there are, and how many entries three datastores hold."""

    facts: int
    few: int
    more: int
    many: int

    @property
    def names(self) -> tuple[str, ...]:
        return *(f"{entries} entries" for entries in self[1:]), OWN, self.harmful

    @property
    def harmful(self) -> str:
        return f"harmful, {self.few}"


def limits(n: World) -> dict[str, float]:
    """The weight of the grid with the smallest loss, for each datastore; and the smallest that does harm."""
    best = {name: WEIGHTS[int(loss.argmin())] for name, loss in losses(n).items()}
    few = losses(n)[f"{n.few} entries"]
    return best | {n.harmful: next(w for w, loss in zip(WEIGHTS, few, strict=True) if loss > few[0])}


def losses(n: World) -> dict[str, Array]:
    of_others = {f"{entries} entries": _losses(n.facts, entries, own=False) for entries in n[1:]}
    return of_others | {OWN: _losses(n.facts, ITS_OWN, own=True)}


@cache
def _losses(facts: int, n: int, own: bool) -> Array:
    """Mean negative log-likelihood at each weight, summed over 3 worlds.  own: the queries are the first entries."""
    losses = np.zeros(len(WEIGHTS))
    for seed in range(3):
        generator = np.random.default_rng(seed)
        directions = generator.standard_normal((facts, WIDTH))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        told = generator.integers(VOCABULARY, size=facts)
        often = 1 / np.arange(1, facts + 1)
        fact = generator.choice(facts, size=n + QUERIES, p=often / often.sum())
        hidden = directions[fact] + SPREAD * generator.standard_normal((len(fact), WIDTH)) / math.sqrt(WIDTH)
        sure = generator.random(len(fact)) < SURE
        token = np.where(sure, told[fact], generator.integers(VOCABULARY, size=len(fact)))
        asked = slice(0, QUERIES) if own else slice(n, None)
        p_knn = _p_knn(hidden[asked], token[asked], hidden[:n], token[:n])
        rest = (1 - SURE) / VOCABULARY
        right = np.where(token[asked] == told[fact[asked]], SURE + rest, rest)
        p_model = np.where(fact[asked] < KNOWN, right, 1 / VOCABULARY)
        losses += [-np.log(weight * p_knn + (1 - weight) * p_model).mean() for weight in WEIGHTS]
    return losses


def _p_knn(queries: Array, targets: Integers, keys: Array, values: Integers) -> Array:
    squares = (queries**2).sum(axis=1)[:, None] - 2 * queries @ keys.T + (keys**2).sum(axis=1)
    near = np.argpartition(squares, K, axis=1)[:, :K]
    weights = [softmax(-row / TEMPERATURE) for row in np.take_along_axis(squares, near, axis=1)]
    return (np.array(weights) * (values[near] == targets[:, None])).sum(axis=1)


def next_to_it(weight: float, limit: float) -> bool:
    return abs(weight - limit) < 0.1001


def limits_probe(n: World, answer: Any) -> Any:
    if isinstance(answer, dict):
        no_key_is_missing(answer, limits(n))
    return within_a_step(partial(limits, n), next_to_it)(answer)


def limit_mistakes(n: World) -> Iterator[Mistake]:
    right = limits(n)
    few, more, many = (f"{entries} entries" for entries in n[1:])
    yield Mistake(
        "this is one weight for all datastores: the more it covers, the more it may say. Tune it for each",
        dict.fromkeys(right, right[more]),
    )
    yield Mistake(
        "all of them look as good as their own text: are the queries among the entries? Store the first n, and ask "
        "with the last 512",
        dict.fromkeys(right, right[OWN]),
    )
    yield Mistake(
        "these are the weights of the model: the weight is the neighbours' share",
        right | {name: round(1 - right[name], 1) for name in (few, more, many, OWN)},
    )
    yield Mistake(
        "this is the highest loss, and the lowest is asked (a negative log-likelihood is smaller where it is better)",
        right | {name: WEIGHTS[int(loss.argmax())] for name, loss in losses(n).items()},
    )
    for weight in WEIGHTS:
        yield Mistake(
            "on its own text each entry finds itself, at distance 0 with the right token beside it: ask with the first "
            "512 entries of the store itself",
            right | {OWN: weight},
        )
    for weight in WEIGHTS:
        yield Mistake(
            f"`{n.harmful}` is the smallest weight with a higher loss than weight 0, not than the weight below it; and "
            "the temperature is 0.1",
            right | {n.harmful: weight},
        )


def limit_hints(n: World) -> tuple[str, str, str]:
    right = limits(n)
    few, more, many = (right[f"{entries} entries"] for entries in n[1:])
    return (
        "Write `losses(n, own, seed)`: a world of n + 512 entries, a store of the first n, one search, and a list of "
        "ten mean losses. Average it over the seeds before you look for the smallest.",
        "`store = Datastore(16)`, `store.add(hidden[:n], token[:n])`, `near = store.search(hidden[asked], 32)`. Then "
        "knn_log_prob(near.distances, near.values, token[asked], temperature=0.1), and interpolate with "
        "log_p_model[asked] and each weight.",
        f"Few entries deserve about {few:g}, {IN_WORDS[n.more]} of them "
        f"{'more than half' if more == 0.6 else f'about {more:g}'}, and {IN_WORDS[n.many]} {many:g}. On its own text a "
        f"store looks perfect, so that the largest weight wins. With {n.few} entries, "
        f"{'half the weight' if right[n.harmful] == 0.5 else f'a weight of {right[n.harmful]:g}'} is already too much.",
    )


def best_weight(n: World) -> dict[str, Any]:
    probe = partial(limits_probe, n)
    shown = [f"{entries:,}" if entries >= 10_000 else f"{entries}" for entries in n[1:]]
    facts = f"{n.facts} facts" if n.facts == 512 else f"{n.facts} facts (with `n_facts={n.facts}`)"
    question = f"""\
`make_world` above makes a small world of {facts}, some told often and most of them rarely, and a model that knows
only the 16 most frequent. Put the first n entries of it into a `Datastore`, search for the 512 that come after them
(k = 32, temperature 0.1), and draw the mean loss, $-\\log p$, over the weights 0, 0.1, ... 0.9, as a mean over the
worlds of three seeds. Write down the best weight for n = {shown[0]}, {shown[1]} and {shown[2]}; for the own text of the datastore
(n = 1000, and the queries are its first 512 entries); and the smallest weight at which the loss with {n.few} entries is
higher than at weight 0. (A step of the grid more or less is accepted.)"""  # noqa: E501
    quoted = ", ".join(f'"{name}"' for name in n.names)
    stub = f"""\
# Plain numbers, read off your curves: what a call computes is not carried to the grader.
# A dict with the keys {quoted}.
best_weight = None"""
    return {
        "question": question,
        "stub": stub,
        "hints": Later(lambda: limit_hints(n)),
        "probe": probe,
        "oracle": partial(limits, n),
        "mistakes": Later(lambda: told_apart(limit_mistakes(n), limits(n), probe)),
    }


BEST_WEIGHT = Family(
    best_weight,
    usual=World(512, 100, 1000, 10_000),
    others=[
        World(64, 50, 200, 2000),
        World(64, 50, 500, 2000),
        World(128, 50, 200, 5000),
        World(128, 50, 500, 5000),
        World(128, 100, 200, 2000),
        World(128, 100, 500, 2000),
        World(256, 50, 200, 2000),
        World(256, 50, 500, 2000),
        World(256, 100, 200, 5000),
        World(512, 50, 500, 2000),
        World(512, 50, 500, 5000),
        World(512, 200, 500, 5000),
        World(1024, 100, 500, 5000),
        World(1024, 200, 1000, 5000),
    ],
)
