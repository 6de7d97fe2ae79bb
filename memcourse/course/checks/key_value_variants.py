"""The exercises of chapter 02 whose answers are values: their numbers, and all that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, partial
from itertools import permutations, product
from typing import Any, NamedTuple

import numpy as np

from memcourse.course.checks.attention_oracles import softmax
from memcourse.course.checks.family import Family, Later, told_apart, within_a_step
from memcourse.course.checks.key_value_oracles import cosine_of, cosine_oracle, erase_oracle
from memcourse.course.exercise import Mistake

# 2.1 predicted_reads


class Keys(NamedTuple):
    """Three keys, asked with (1, 0), and a write to a slot.

    names: of the key that points where the query points, of the one that is long and points off, of the one of zeros.
    short: the length of the first.   long, length: the second, and its length.
    ratio: how many times as much as the second the first weighs.   held, added: what the slot holds, what comes.
    """

    names: tuple[str, str, str]
    short: int
    long: tuple[int, int]
    length: int
    ratio: int
    held: int
    added: int

    @property
    def keys(self) -> dict[str, tuple[int, int]]:
        return dict(sorted(zip(self.names, ((self.short, 0), self.long, (0, 0)), strict=True)))


def predictions(n: Keys) -> dict[str, float | str]:
    """What the query (1, 0) finds among the three keys; and one write."""
    keys = {name: np.array(key, float) for name, key in n.keys.items()}
    query, rows = np.array([1.0, 0.0]), np.array(list(keys.values()))
    cosine = {name: cosine_of(query, key) for name, key in keys.items()}
    near, off, _ = n.names
    sharpness = math.log(n.ratio) / (cosine[near] - cosine[off])
    doubled = dict(zip(cosine, softmax(np.array([2 * sharpness * c for c in cosine.values()])), strict=True))
    written = erase_oracle(np.array([[n.held]], float), np.array([0.5]), np.array([1.0]), np.array([n.added], float))
    return {
        "dot": max(keys, key=lambda name: sum(query * keys[name])),
        "cosine": max(cosine, key=lambda name: cosine[name]),
        "twice_as_sharp": float(doubled[near] / doubled[off]),
        "zero_query": float(cosine_oracle(np.zeros((1, 2)), rows, 3.0)[0, 0]),
        "flat_top_two": float(softmax(np.zeros(2))[0]),
        "written": float(written[0, 0]),
    }


def prediction_mistakes(n: Keys) -> tuple[Mistake, ...]:
    right = predictions(n)
    near, off, _ = n.names

    def mistake(says: str, **wrong: float | str) -> Mistake:
        return Mistake(says, right | wrong)

    return (
        mistake(
            "`dot` and `cosine` are the wrong way round: the cosine is the one that is blind to lengths",
            dot=near,
            cosine=off,
        ),
        mistake(
            f"`dot` is not blind to lengths: (1, 0) . {n.long} = {n.long[0]} is more than (1, 0) . {(n.short, 0)} = "
            f"{n.short}, though {off} points off",
            dot=near,
        ),
        mistake(f"`cosine` is blind to lengths: {off} is longer, but {near} points where the query points", cosine=off),
        mistake(
            f"`twice_as_sharp` is not twice {n.ratio}: a score is an exponent, so twice the sharpness squares the "
            "ratio",
            twice_as_sharp=2.0 * n.ratio,
        ),
        mistake(
            "`twice_as_sharp` changes the ratio: what is added to all scores cancels, a factor does not",
            twice_as_sharp=float(n.ratio),
        ),
        mistake(
            "`zero_query` is not zero: three equal cosines of 0 share the weight, which always sums to 1",
            zero_query=0.0,
        ),
        mistake(
            "`zero_query` finds no key nearer than another: the query points nowhere, and all three cosines are 0",
            zero_query=1.0,
        ),
        mistake(
            "`flat_top_two` shares the weight between the two keys that are kept, not between all three",
            flat_top_two=1 / 3,
        ),
        mistake(
            "`flat_top_two` has sharpness 0: both keys that are kept weigh the same, however near they are",
            flat_top_two=1.0,
        ),
        mistake(
            f"`written` forgets to add: half of {n.held} is erased, and half of {n.added} comes in",
            written=n.held / 2,
        ),
        mistake(
            f"`written` adds all of {n.added}: the weight 1/2 takes its share of what is added, too",
            written=n.held / 2 + n.added,
        ),
        mistake(
            "`written` erases nothing: with e = 1 and a weight of 1/2, half of the slot goes",
            written=n.held + n.added / 2,
        ),
        mistake(
            "`written` erases all of the slot: how much goes is the weight times e, one half here",
            written=n.added / 2,
        ),
        mistake("`written` is an overwrite, which a weight of 1 would be; this weight is 1/2", written=float(n.added)),
        mistake(
            f"`written` erases what it adds: the old {n.held} is erased first, then the new part is added",
            written=(n.held + n.added / 2) / 2,
        ),
    )


def predicted_reads(n: Keys) -> dict[str, Any]:
    near, off, zero = n.names
    (a, _), (b, _), (c, _) = products = list(n.keys.items())
    where = [f"{name} = {key}" for name, key in products]
    best = " and ".join(sorted((near, off)))
    dots = {near: n.short, off: n.long[0], zero: 0}
    cosines = {near: "1", off: f"{n.long[0]}/{n.length}", zero: "0"}
    decimals = cosines | {off: f"{n.long[0] / n.length:g}"}
    question = f"""\
A query (1, 0) meets three keys, {where[0]}, {where[1]} and {where[2]}. Its weights are softmax(sharpness times
similarity), and the cosine of a vector of zeros with anything is 0. Predict the six answers below with pencil and
paper before you run anything: two are names of keys, four are simple numbers."""
    stub = f"""\
# A dict of two names, "a", "b" or "c", and four numbers:
#   "dot"             the key with the most weight, when similarity is the dot product
#   "cosine"          the key with the most weight, when similarity is the cosine
#   "twice_as_sharp"  cosine, at a sharpness where {near} weighs {n.ratio} times as much as {off}; then the sharpness doubles:
#                     how many times as much as {off} does {near} weigh now?
#   "zero_query"      cosine, sharpness 3, and the query is (0, 0) instead: the weight of {near}
#   "flat_top_two"    cosine, sharpness 0, and only the two best keys, {best}, keep a weight: the weight of {near}
#   "written"         a slot holds {n.held}; a head writes there with weight 1/2, erase 1 and add {n.added}: what it holds then
predicted_reads = None  # {{"dot": "...", "cosine": "...", "twice_as_sharp": ..., ...}}"""  # noqa: E501
    hints = (
        "A dot product grows with the length of a key, a cosine does not. The weights of the keys that keep one always "
        "sum to 1.",
        f"The dot products are {dots[a]}, {dots[b]} and {dots[c]}; the cosines {cosines[a]}, {cosines[b]} and "
        f"{cosines[c]}. The ratio of two weights is exp(sharpness times the difference of their cosines). A write is "
        "v (1 - w e) + w a.",
        f"dot: the largest of {dots[a]}, {dots[b]}, {dots[c]}; cosine: the largest of {decimals[a]}, {decimals[b]}, "
        f"{decimals[c]}; twice_as_sharp: {n.ratio} squared; zero_query: three equal scores; flat_top_two: two equal "
        f"scores; written: {n.held} (1 - 1/2) + {n.added}/2.",
    )
    return {
        "question": question,
        "stub": stub,
        "hints": hints,
        "oracle": partial(predictions, n),
        "mistakes": prediction_mistakes(n),
    }


PREDICTED_READS = Family(
    predicted_reads,
    usual=Keys(("a", "b", "c"), 2, (3, 4), 5, ratio=5, held=8, added=2),
    others=[
        Keys((near, off, zero), *shapes, ratio, held, added)
        for (near, off, zero), shapes, ratio, (held, added) in product(
            permutations("abc"),
            ((2, (3, 4), 5), (3, (4, 3), 5), (4, (6, 8), 10), (5, (8, 6), 10)),
            (3, 4, 6, 7),
            ((10, 4), (12, 2), (16, 6), (20, 4)),
        )
    ],
)

# 2.5 smallest_capacity

WIDTH, QUESTIONS = 16, 2
POPULAR, RECENT = 8, 12  # every 8th fact is popular; the last 12 are recent
SETTINGS = [(asked, evict) for asked in ("popular", "recent") for evict in ("oldest", "least_used")]


class Stream(NamedTuple):
    """How many facts come in, and the percentage of questions that are to be answered."""

    facts: int
    percent: int


def limits(n: Stream) -> dict[str, int]:
    """The smallest capacity of the grid at which at least so many of the questions are answered."""
    return {f"{asked}, {evict}": smallest(asked, evict, n.facts, n.percent) for asked, evict in SETTINGS}


@cache
def smallest(asked: str, evict: str, facts: int, percent: int) -> int:
    capacity = 4
    while _answered(asked, evict, capacity, facts) < percent / 100:
        capacity *= 2
    return capacity


@cache
def _answered(asked: str, evict: str, capacity: int, facts: int) -> float:
    """The share of questions whose fact is still held.  A question for one that is not uses the nearest instead."""
    generator = np.random.default_rng(0)
    keys = generator.standard_normal((facts, WIDTH))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    held: list[int] = []  # in the order of their puts
    used, answered = np.zeros(facts), 0
    for t in range(facts):
        if len(held) == capacity:
            held.remove(held[0] if evict == "oldest" else min(held, key=lambda fact: used[fact]))
        held.append(t)
        for chance in generator.random(QUESTIONS):
            popular, recent = POPULAR * int(chance * (t // POPULAR + 1)), max(0, t - int(chance * RECENT))
            fact = popular if asked == "popular" else recent
            nearest = fact if fact in held else held[int((keys[held] @ keys[fact]).argmax())]
            used[nearest] += 1
            answered += nearest == fact
    return answered / (facts * QUESTIONS)


def limit_mistakes(n: Stream) -> Iterator[Mistake]:
    popular_oldest, popular_least, recent_oldest, recent_least = limits(n).values()

    def mistake(says: str, *sizes: int) -> Mistake:
        return Mistake(says, dict(zip(limits(n), sizes, strict=True)))

    yield mistake(
        "the two evictions give the same: does the store that you ask get `evict`, and is it asked after every put? A "
        "store that nobody has asked has nothing to tell its pairs apart by",
        *(popular_oldest, popular_oldest, recent_oldest, recent_oldest),
    )
    yield mistake(
        "the two evictions are the wrong way round: the oldest goes, or the least used goes, and the others stay",
        *(popular_least, popular_oldest, recent_least, recent_oldest),
    )
    yield mistake(
        "recent facts, least_used: this is how many are asked for, but old facts that were once asked for often do not "
        "make room",
        *(popular_oldest, popular_least, recent_oldest, recent_oldest),
    )
    yield mistake(
        "popular facts, oldest: room for the popular ones alone is not enough, for the others push them out",
        *(popular_least, popular_least, recent_oldest, recent_least),
    )
    yield mistake(
        f"this is the smallest capacity at which half is answered: at least {n.percent} % is asked",
        *limits(Stream(n.facts, 50)).values(),
    )


def limit_hints(n: Stream) -> tuple[str, str, str]:
    popular_oldest, popular_least, recent_oldest, recent_least = limits(n).values()
    nearly_all = (
        "Where the last 12 are asked for, the oldest may go: a little more than 12 slots do, a step of the grid, and "
        f"least_used needs nearly all {n.facts}. Where the popular {popular_least} are asked for it is the other way "
        f"round: {popular_least} slots for least_used, and nearly all for oldest."
    )
    some = (
        f"Where the last 12 are asked for, the oldest may go: about {recent_oldest} slots do, and least_used needs "
        f"{recent_least // recent_oldest} times as many. Where the popular ones are asked for it is the other way "
        f"round: about {popular_least} slots for least_used, and {popular_oldest // popular_least} times as many for "
        "oldest."
    )
    return (
        f"Write `answered(asked, evict, capacity, seed)`: a fresh store, a loop over t = 0 ... {n.facts - 1}, and a "
        "count. Then draw it over the capacities, a line for each of the four.",
        "In the loop: `store.put(key[t], value[t])`, then `found = store.get(key[question[t]], "
        'similarity="cosine", top_k=1)`, which is (2, 16); right where found equals value[question[t]] in every place.',
        nearly_all if n.percent == 90 else some,
    )


def smallest_capacity(n: Stream) -> dict[str, Any]:
    probe = within_a_step(partial(limits, n))
    facts = "" if n.facts == 256 else f" (with `n_facts={n.facts}`)"
    question = f"""\
{n.facts} facts come in one by one, and after each, two questions about facts seen so far. In one stream all questions are
about popular facts (every eighth fact is one); in the other, about one of the 12 most recent. `make_stream` above makes
both{facts}. Run them through a `KeyValueStore` (put a fact, then `get` its two questions by cosine with `top_k=1`), with
`evict="oldest"` and `"least_used"` and capacities of 4, 8, 16, ... {n.facts}. Write down for each of the four the smallest
capacity at which at least {n.percent} % of the questions are answered with the right value. (A step of the grid
more or less is accepted.)"""  # noqa: E501
    stub = """\
# Plain numbers, read off your curves: what a call computes is not carried to the grader.
# A dict with the keys "popular, oldest", "popular, least_used", "recent, oldest", "recent, least_used".
smallest_capacity = None"""
    return {
        "question": question,
        "stub": stub,
        "hints": Later(lambda: limit_hints(n)),
        "probe": probe,
        "oracle": partial(limits, n),
        "mistakes": Later(lambda: told_apart(limit_mistakes(n), limits(n), probe)),
    }


SMALLEST_CAPACITY = Family(
    smallest_capacity,
    usual=Stream(256, 90),
    others=[
        *(Stream(32, percent) for percent in (90, 50)),
        *(Stream(64, percent) for percent in (90, 75, 50)),
        *(Stream(128, percent) for percent in (75, 60)),
        *(Stream(256, percent) for percent in (65, 50)),
    ],
)
