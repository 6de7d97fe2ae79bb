"""The exercises of chapter 01 whose answers are values: their numbers, and all that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, partial
from itertools import product, takewhile
from typing import Any, NamedTuple

import numpy as np

from memcourse.course.checks.attention_oracles import Array, softmax
from memcourse.course.checks.family import CARDINALS, ORDINALS, Family, Later, told_apart, within_a_step
from memcourse.course.exercise import Mistake

# 1.1 predicted_weights


class Scores(NamedTuple):
    """log `r` on the first key, 0 on `others` more."""

    r: int
    others: int


def predictions(n: Scores) -> dict[str, float]:
    """The weight of the first key, and what becomes of it."""
    scores = np.array([math.log(n.r), *[0.0] * n.others])
    return {
        "as_given": float(softmax(scores)[0]),
        "plus_ten": float(softmax(scores + 10)[0]),
        "times_two": float(softmax(scores * 2)[0]),
        "times_hundred": float(softmax(scores * 100)[0]),
        "times_zero": float(softmax(scores * 0)[0]),
        "stored_twice": float(softmax(np.append(scores, scores[0]))[0]),
    }


def prediction_mistakes(n: Scores) -> tuple[Mistake, ...]:
    right = predictions(n)
    given, log = right["as_given"], math.log(n.r)

    def mistake(says: str, **wrong: float) -> Mistake:
        return Mistake(says, right | wrong)

    return (
        mistake(
            "these are the scores divided by their sum: the softmax divides exp(score) by the sum of exp(score), so "
            "that zero scores have weight too",
            as_given=1.0,
            plus_ten=(log + 10) / (log + 10 + 10 * n.others),
            times_two=1.0,
            stored_twice=0.5,
        ),
        mistake(
            f"times_two is not twice the weight: a score is an exponent, so doubling it squares exp(score), {n.r} "
            f"becomes {n.r**2}, and the weights are divided by their new sum",
            times_two=2 * given,
        ),
        mistake(
            "times_two changes the weights: only what is added to all scores alike cancels, a factor does not",
            times_two=given,
        ),
        mistake(
            f"times_two forgets that the other keys keep exp(0) = 1 each: {n.r**2} against {ones(n)}",
            times_two=n.r**2 / (n.r**2 + 1),
        ),
        mistake(
            "plus_ten changes nothing: exp(10) multiplies every term of the softmax alike, and cancels", plus_ten=1.0
        ),
        mistake(
            "plus_ten changes nothing: the other keys gain the same factor exp(10), so the weights do not move closer "
            "together",
            plus_ten=1 / (1 + n.others),
        ),
        mistake("times_hundred sharpens: the largest score takes everything", times_hundred=given),
        mistake(
            f"times_zero leaves {CARDINALS[1 + n.others]} equal scores, and equal scores share the weight: none of "
            "them gets zero",
            times_zero=0.0,
        ),
        mistake(
            "stored_twice asks for each copy: together they weigh more than the one before, since the sum of "
            f"exp(score) grew by {n.r}",
            stored_twice=given / 2,
        ),
        mistake(
            "stored_twice asks for the weight of each copy, and this is the weight of both",
            stored_twice=2 * right["stored_twice"],
        ),
        mistake(f"a second copy adds {n.r} to the sum of exp(score), so every single weight falls", stored_twice=given),
    )


def ones(n: Scores) -> str:
    return " + ".join(["1"] * n.others)


def predicted_weights(n: Scores) -> dict[str, Any]:
    r, keys, all_ones = n.r, CARDINALS[1 + n.others], ones(n)
    scores = ", ".join([f"log {r}", *["0"] * n.others])
    question = f"""\
A query meets {keys} keys and scores log {r} on the first and 0 on each of the others; the softmax makes weights of the
scores. What is the weight of the **first key** in the six situations below? Predict all six with pencil and paper
before you run anything: each is a simple fraction or 1, and each is something that people get wrong when they later
read attention weights."""
    stub = f"""\
# The weight of the first key when the scores are ({scores}). A dict of six numbers, 0.1 or 1 / 10:
#   "as_given"       the scores as they are
#   "plus_ten"       10 is added to all {keys} scores
#   "times_two"      all {keys} scores are doubled
#   "times_hundred"  all {keys} scores are multiplied by 100
#   "times_zero"     all {keys} scores are multiplied by 0
#   "stored_twice"   a {ORDINALS[2 + n.others]} key, a copy of the first: the weight of each of the two copies
predicted_weights = None  # {{"as_given": ..., "plus_ten": ..., ...}}"""
    hints = (
        "The weight of a key is exp(its score), divided by the sum of exp(score) over all keys. "
        f"exp(log {r}) = {r}, exp(0) = 1.",
        f"As given: {r} / ({r} + {all_ones}). Doubling log {r} gives log {r**2}. Adding 10 multiplies every term by "
        "the same exp(10).",
        f"as_given {r}/{r + n.others}; plus_ten the same; times_two {r**2}/{r**2 + n.others}; times_hundred 1, to "
        f"many digits; times_zero: {keys} equal scores; stored_twice: {r} / ({r} + {r} + {all_ones}).",
    )
    return {
        "question": question,
        "stub": stub,
        "hints": hints,
        "oracle": partial(predictions, n),
        "mistakes": prediction_mistakes(n),
    }


PREDICTED_WEIGHTS = Family(
    predicted_weights,
    usual=Scores(3, 3),
    others=[Scores(r, others) for r, others in product((2, 4, 5, 6, 7), (2, 3, 4, 5))],
)

# 1.7 largest_n

N_PAIRS = [2**i for i in range(1, 14)]
NOISE, TRIALS, QUERIES = 0.3, 2, 256
ENOUGH = 0.95


class Store(NamedTuple):
    """The width of keys and values, of which the first beta is 1/sqrt, and two larger betas."""

    width: int
    betas: tuple[int, int]

    @property
    def root(self) -> int:
        return math.isqrt(self.width)


@cache
def limits(n: Store) -> dict[str, int]:
    """The largest N of which at least 95 % of the values are still recalled."""
    a, b = n.betas
    return {
        f"beta = 1/{n.root}": largest(n.width, 1 / n.root),
        f"beta = {a}": largest(n.width, a),
        f"beta = {b}": largest(n.width, b),
        "outer product": largest(n.width, None),
    }


@cache
def largest(width: int, beta: float | None, enough: float = ENOUGH) -> int:
    """Of the grid, for the softmax of beta, or for the outer product where beta is None."""
    return list(takewhile(lambda n: _recall(n, width, beta) >= enough, N_PAIRS))[-1]


def _recall(n: int, width: int, beta: float | None) -> float:
    """The share of noisy queries for which the stored value nearest to what is read is the right one."""
    right = 0
    for seed in range(TRIALS):
        generator = np.random.default_rng(seed)
        keys, values = (_unit(generator.standard_normal((n, width))) for _ in range(2))
        asked = generator.integers(n, size=QUERIES)
        queries = keys[asked] + generator.standard_normal((QUERIES, width)) * NOISE / math.sqrt(width)
        # the softmax's sum is left out: it changes no argmax
        read = queries @ (keys.T @ values) if beta is None else np.exp(beta * queries @ keys.T) @ values
        right += int(((read @ values.T).argmax(axis=1) == asked).sum())
    return right / (TRIALS * QUERIES)


def _unit(rows: Array) -> Array:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def limit_mistakes(n: Store) -> Iterator[Mistake]:
    right, (a, b) = limits(n), n.betas
    flat, one, other = (f"beta = {beta}" for beta in (f"1/{n.root}", a, b))
    same = largest(n.width, 1)
    yield Mistake(
        "beta is the wrong way round: the scores are divided by it, and should be multiplied",
        right | {flat: largest(n.width, n.root), one: largest(n.width, 1 / a), other: largest(n.width, 1 / b)},
    )
    yield Mistake("the three betas give the same: is beta used at all?", right | {flat: same, one: same, other: same})
    yield Mistake(
        f"beta = {a} is read off where about half of the pairs are recalled: at least 95 % is asked",
        right | {one: largest(n.width, a, 0.5)},
    )


def compared(pairs: int, others: int) -> str:
    ratio = pairs / others
    words = {1 / 4: "far fewer than that", 1 / 2: "somewhat fewer than that", 1: "as many", 8: "several times as many"}
    return next((said for most, said in words.items() if ratio <= most), "more than ten times as many")


def limit_hints(n: Store) -> tuple[str, str, str]:
    right, (a, b) = limits(n), n.betas
    outer = right["outer product"]
    flat, one, other = (f"beta = {beta}" for beta in (f"1/{n.root}", a, b))
    return (
        "Write `recall(n, read)`, where read(query, key, value) is one of the four lines, and average it over two or "
        "three seeds. Then loop over N.",
        "`found = (read(query, key, value) @ value.T).argmax(dim=-1)`; recalled is the share of found == asked. The "
        "outer product needs no softmax: query @ (key.T @ value).",
        f"{flat} fails almost at once (unit keys: the weights are nearly equal); the outer product holds about "
        f"{'2 d' if outer > n.width else 'd / 2'} pairs; {one} holds {compared(right[one], outer)}, and {other} "
        f"{compared(right[other], outer)}.",
    )


def largest_n(n: Store) -> dict[str, Any]:
    d, (a, b) = n.root, n.betas
    flat, one, other = (f"beta = {beta}" for beta in (f"1/{d}", a, b))
    width = "" if n.width == 64 else f" (with `width={n.width}`)"
    probe = within_a_step(partial(limits, n))
    question = f"""\
Store N pairs of random unit keys and values of width {n.width}, ask with noisy keys, and count a pair as recalled when its
value is, of all N stored values, the one with the largest dot product with what was read. `make_store` above makes
store and queries{width}. Measure the share recalled for N = 2, 4, 8, ... 8192 for four reads:
$\\mathrm{{softmax}}(\\beta\\,qK^\\top)\\,V$ with $\\beta$ = 1/{d} (which is $1/\\sqrt{{d}}$), {a} and {b}, and the
outer-product memory $q\\,(K^\\top{{}}V)$. Write down the largest N of each at which at least 95 % are recalled. The
limit of the last is where chapter 07 begins. (A step of the grid more or less is accepted.)"""  # noqa: E501
    stub = f"""\
# Plain numbers, read off your curves: what a call computes is not carried to the grader.
largest_n = None  # {{"{flat}": ..., "{one}": ..., "{other}": ..., "outer product": ...}}"""
    return {
        "question": question,
        "stub": stub,
        "hints": Later(lambda: limit_hints(n)),
        "probe": probe,
        "oracle": partial(limits, n),
        "mistakes": Later(lambda: told_apart(limit_mistakes(n), limits(n), probe)),
    }


LARGEST_N = Family(
    largest_n,
    usual=Store(64, (2, 4)),
    others=[
        *(Store(16, betas) for betas in ((2, 4), (2, 5), (2, 6), (2, 8), (3, 5), (3, 6), (3, 8), (4, 6), (4, 8))),
        *(Store(64, betas) for betas in ((1, 2), (1, 3), (2, 3))),
    ],
)
