"""The exercise of chapter 07 whose answer is values: its numbers, and all that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import product, takewhile
from typing import Any, NamedTuple

import numpy as np

from memcourse.course.checks.family import CARDINALS, PARTS, Family, Later, told_apart, within_a_step
from memcourse.course.checks.infini_attention_oracles import sigma
from memcourse.course.exercise import Mistake

# 7.6 most_pairs

N_PAIRS = [2**i for i in range(1, 8)]
SCALE = 4


class Matrix(NamedTuple):
    """The width of four settings, another width, a smaller scale than 4, and how often all pairs are written."""

    d: int
    other: int
    scale: int
    rounds: int

    @property
    def names(self) -> tuple[str, ...]:
        changed = f"linear, d = {self.other}", f"linear, scale {self.scale}"
        return "linear", "delta", *changed, "linear, rewritten", "delta, rewritten"


def limits(n: Matrix) -> dict[str, int]:
    """The largest number of pairs of which at least half are read right; 0 where two are too many."""
    settings: tuple[dict[str, Any], ...] = (
        {},
        {"delta": True},
        {"d": n.other},
        {"scale": n.scale},
        {"rounds": n.rounds},
        {"rounds": n.rounds, "delta": True},
    )
    return {name: _largest(**{"d": n.d} | setting) for name, setting in zip(n.names, settings, strict=True)}


@cache
def _largest(**setting: Any) -> int:
    return max(takewhile(lambda n: _recall(n, **setting) >= 0.5, N_PAIRS), default=0)


def _recall(n: int, *, d: int, scale: float = SCALE, rounds: int = 1, delta: bool = False) -> float:
    """The share of keys at which, of all values ever stored, the newest of that key is the nearest to what is read."""
    right, trials = 0, max(3, 64 // n)
    for seed in range(trials):
        generator = np.random.default_rng(seed)
        features = sigma(scale * generator.standard_normal((n, d)))
        values = generator.standard_normal((rounds, n, d))
        values /= np.linalg.norm(values, axis=2, keepdims=True)
        memory, normalizer = np.zeros((d, d)), np.zeros(d)
        for round_, i in np.ndindex(rounds, n):
            weight = features[i] @ normalizer
            known = features[i] @ memory / weight if delta and weight > 0 else 0.0
            memory += np.outer(features[i], values[round_, i] - known)
            normalizer += features[i]
        reads = features @ memory / (features @ normalizer)[:, None]
        nearest = (reads @ values.reshape(-1, d).T).argmax(axis=1)
        right += int((nearest == (rounds - 1) * n + np.arange(n)).sum())
    return right / (trials * n)


def next_to_it(number: float, limit: int) -> bool:
    return limit / 2 <= number <= 2 * limit if limit else 0 <= number <= N_PAIRS[0]


def limit_mistakes(n: Matrix) -> Iterator[Mistake]:
    right, (linear, delta, other, scale, linear_rewritten, delta_rewritten) = limits(n), n.names
    times = CARDINALS[n.rounds]
    yield Mistake(
        f"`{linear_rewritten}` is what the linear rule holds when every key is written once: written {times} times, it "
        f"adds all {times} values, and none of them is nearest",
        right | {linear_rewritten: right[linear]},
    )
    yield Mistake(
        f"`{delta_rewritten}` is what the delta rule holds when every key is written once: z counts each rewriting, "
        "so that it takes off too little and old values stay",
        right | {delta_rewritten: 2 * right[delta]},
    )
    yield Mistake(
        f"`{delta_rewritten}` is not 0: the delta rule takes off what it knows before it adds the new value",
        right | {delta_rewritten: 0},
    )
    yield Mistake(
        "d x d numbers do not hold d pairs of these keys: sigma makes all features positive, so that any two of "
        "them overlap",
        right | {linear: n.d, delta: n.d, other: n.other, scale: n.d},
    )
    yield Mistake(
        f"`{scale}` is not that of scale 4: sigma(q) z divides a factor of the features out, but the scale goes "
        "in before sigma, and decides how much two of them overlap",
        right | {scale: right[linear]},
    )


def limit_hints(n: Matrix) -> tuple[str, str, str]:
    right, times = limits(n), CARDINALS[n.rounds]
    part = "a quarter" if 4 * right["linear"] <= n.d else "half"
    less = "less than half" if 2 * right["delta, rewritten"] < right["delta"] else "about half"
    return (
        "Write `recall(n, rule, **setting)`: the memory is zeros of (20, 1, d, d), the normalizer zeros of (20, 1, d). "
        "For every round and every i: write(key[:, :, i : i + 1], value[round][:, :, i : i + 1], memory, normalizer, "
        "rule=rule).",
        "`found = read(key, memory, normalizer)` is (20, 1, n, d). All values of a memory: torch.cat(list(value), "
        "dim=2), (20, 1, rounds * n, d), the newest last. The nearest: (found @ all.mT).argmax(dim=-1), which should "
        "be (rounds - 1) * n + torch.arange(n).",
        f"The linear rule holds about {part} of d pairs here, and less "
        "than that where keys are small, for sigma is then nearly the same for all. Of "
        f"{times} values it reads the mean, so the newest is the nearest for a {PARTS[n.rounds]} of the keys at best. "
        f"The delta rule holds a little more than the linear one, and when it rewrites, {less} of that.",
    )


def most_pairs(n: Matrix) -> dict[str, Any]:
    probe, times = within_a_step(partial(limits, n), next_to_it), CARDINALS[n.rounds]
    linear, delta, other, scale, linear_rewritten, delta_rewritten = n.names
    question = f"""\
`make_pairs` above makes n random keys for each of 20 memories, and values for them. With the library's `read` and
`write`, write the pairs into an empty memory one after the other, each as a segment of one token, then read with the
keys themselves. A key is recalled when, of **all** values that its memory was ever given, the newest of that key has
the largest dot product with what was read. Draw the share recalled for n = 2, 4, 8, ... 128 and write down, for each of
six settings, the largest n at which at least half are recalled (0 where it is less than half even of 2; a step of the
grid more or less is accepted):

- `linear` and `delta`: the two rules, with d = {n.d} and scale 4
- `{other}`, and `{scale}`: the linear rule, with one thing changed
- `{linear_rewritten}` and `{delta_rewritten}`: d = {n.d} and scale 4 with rounds = {n.rounds}, where all pairs are written, and then
  all keys again with new values, {times} times in all"""  # noqa: E501
    stub = f"""\
# Plain numbers, read off your curves: write the six by hand, as 8 and not as a call that finds 8.
# A dict with the six keys "{linear}", "{delta}", "{other}", "{scale}", "{linear_rewritten}",
# "{delta_rewritten}".
most_pairs = None"""
    return {
        "question": question,
        "stub": stub,
        "hints": Later(lambda: limit_hints(n)),
        "probe": probe,
        "oracle": partial(limits, n),
        "mistakes": Later(lambda: told_apart(limit_mistakes(n), limits(n), probe)),
    }


MOST_PAIRS = Family(
    most_pairs,
    usual=Matrix(64, other=16, scale=1, rounds=4),
    others=[
        *(Matrix(16, *changes) for changes in product((32, 64), (1, 2), (3, 4))),
        *(Matrix(128, *changes, rounds=3) for changes in product((16, 32), (1, 2))),
        *(Matrix(256, other, 1, rounds) for other, rounds in product((32, 64), (3, 4))),
    ],
)
