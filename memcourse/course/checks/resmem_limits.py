"""The exercises of chapter 05 that find a limit: their numbers, and all that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from memcourse.course.checks.attention_oracles import Array
from memcourse.course.checks.family import CARDINALS, Family, Later, told_apart, within_a_step
from memcourse.course.checks.resmem_oracles import Labels
from memcourse.course.exercise import Mistake

# 5.5 noise_limits

NEIGHBORS = [2**i for i in range(9)]  # 1, 2, ... 256
BANDWIDTHS = [2.0**i for i in range(-6, 3)]  # 1/64 ... 4
SEEDS = 3
FEWER, LEFT = {3: "a third", 4: "a quarter"}, {3: "two thirds", 4: "three quarters"}
TIMES = {1: "about as many", 2: "about twice as many", 4: "about four times as many", 8: "about eight times as many"}
INK = {0.125: ("an eighth", "few"), 0.25: ("a quarter", "dozen"), 0.5: ("half", "few dozen")}


class Noise(NamedTuple):
    """Two percentages of wrong labels, and which part of the errors has to go for a memory to help."""

    some: int
    much: int
    part: int

    @property
    def names(self) -> tuple[str, ...]:
        return "clean", f"{self.some} %", f"{self.some} %, largest", f"{self.much} %", f"{self.some} %, bandwidth"


@cache
def noise_limits(n: Noise) -> dict[str, float]:
    """Where a linear model of digits with a memory makes so many fewer errors than without."""
    clean, some, much = (_helpful(_errors_by_k(percent), n.part) for percent in (0, n.some, n.much))
    bandwidths = _helpful(_errors_by_bandwidth(n.some), n.part)
    return dict(zip(n.names, (clean[0], some[0], some[-1], much[0], bandwidths[0]), strict=True))


def _helpful(errors: dict[float, float], part: int) -> list[float]:
    """Of {k or bandwidth: error, 0: the model's own}, those that help, in order."""
    return [value for value, error in errors.items() if value and error <= (1 - 1 / part) * errors[0]]


@cache
def _errors_by_k(percent: int) -> dict[float, float]:
    return _errors(percent / 100, {k: np.full((len(_distances()[0]), k), 1 / k) for k in NEIGHBORS})


@cache
def _errors_by_bandwidth(percent: int) -> dict[float, float]:
    beyond = _distances()[0] - _distances()[0][:, :1]
    weights = {bandwidth: np.exp(-beyond / bandwidth) for bandwidth in BANDWIDTHS}
    return _errors(percent / 100, {bandwidth: w / w.sum(axis=1, keepdims=True) for bandwidth, w in weights.items()})


def _errors(noise: float, weights: dict[float, Array]) -> dict[float, float]:
    """The share of wrong test digits, a mean over seeds, for each of the weights (queries, k); under 0 without any."""
    (x, labels), (queries, truth) = _digits()
    _, rows = _distances()
    found = dict.fromkeys([0.0, *weights], 0.0)
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        wrong = generator.random(len(labels)) < noise
        flipped = np.where(wrong, (labels + generator.integers(1, 10, len(labels))) % 10, labels)
        y = np.eye(10)[flipped]
        with_one, queries_with_one = (np.c_[part, np.ones(len(part))] for part in (x, queries))
        map_ = np.linalg.solve(with_one.T @ with_one + np.eye(65), with_one.T @ y)
        prediction = queries_with_one @ map_  # (queries, 10)
        residuals = (y - with_one @ map_)[rows]  # (queries, 256, 10)
        for value, weight in {0.0: np.zeros((len(rows), 1)), **weights}.items():
            said = prediction + (weight[:, None] @ residuals[:, : weight.shape[1]])[:, 0]
            found[value] += float((said.argmax(axis=1) != truth).mean()) / SEEDS
    return found


@cache
def _digits() -> tuple[tuple[Array, Labels], tuple[Array, Labels]]:
    from memcourse.corpora import digits

    train, test = ((part.images.flatten(1).double().numpy() / 16, part.labels.numpy()) for part in digits())
    return train, test


@cache
def _distances() -> tuple[Array, Labels]:
    """Of every test digit to its 256 nearest training digits, and which they are: (queries, 256), twice."""
    (x, _), (queries, _) = _digits()
    squared = (queries**2).sum(axis=1)[:, None] - 2 * queries @ x.T + (x**2).sum(axis=1)
    rows = squared.argsort(axis=1)[:, :256]
    return np.sqrt(np.take_along_axis(squared, rows, axis=1).clip(min=0)), rows


def noise_mistakes(n: Noise) -> Iterator[Mistake]:
    right, (_, some, largest, much, bandwidth) = noise_limits(n), n.names
    by_k = _errors_by_k(n.some)
    yield Mistake(
        f"with {some} wrong labels, k = 1 cannot help: one memory in {CARDINALS[100 // n.some]} is wrong, and the "
        "nearest alone repeats it. See whether the wrong labels are among those that are memorised",
        right | {some: 1, much: 1},
    )
    yield Mistake(
        "the memory helps at every k: is the bandwidth infinite, so that all k weigh the same? With a narrow one the "
        "nearest is read alone, whatever k",
        right | {some: 1, largest: 256, much: 1},
    )
    yield Mistake(
        f"`{largest}` is where ResMem still makes fewer errors than the linear map: {FEWER[n.part]} fewer are asked",
        right | {largest: 4 * right[largest]},
    )
    yield Mistake(
        f"`{largest}` is the k that is best: it helps beyond that, until the neighbours are too far away",
        right | {largest: min(NEIGHBORS, key=lambda k: by_k[k])},
    )
    yield Mistake(
        f"`{bandwidth}`: at k = 256 a wide bandwidth is too wide, and a narrow one hears the nearest alone. Begin "
        "from the narrow end",
        right | {bandwidth: 4 * right[bandwidth]},
    )


def noise_hints(n: Noise) -> tuple[str, str, str]:
    right, (_, some, largest, much, bandwidth) = noise_limits(n), n.names
    ink, nearest = INK[right[bandwidth]]
    return (
        "Write `error(noise, seed, k, bandwidth)`: make the digits, fit the map, memorise the training set, and count "
        "where `memory(test_x).argmax(dim=1)` differs from the test labels. The map alone is `predict(test_x)`.",
        "`memory = ResMem(predict, lambda x: x, k=k, bandwidth=math.inf)`, then memory.memorize(x, y). Draw the errors "
        f"over k, and {LEFT[n.part]} of the map's own error as a level. With a bandwidth, k = 256 is no longer "
        "too many.",
        "With clean labels the nearest neighbour alone does it. With wrong ones it takes a majority of right ones "
        f"among the k: {right[some]} are enough for {some}, and {much} take {TIMES[int(right[much] // right[some])]}. "
        f"Beyond {right[largest]} the neighbours come from so far that their mean residual is next to nothing. A "
        f"bandwidth of {ink} of a pixel's full ink reads about the nearest {nearest} of 256.",
    )


def wrong_labels(n: Noise) -> dict[str, Any]:
    probe = within_a_step(partial(noise_limits, n))
    _, some, largest, much, bandwidth = n.names
    question = f"""\
`make_digits(noise, seed)` above gives digits, of whose training labels a share is wrong (the test labels are
right), and `linear_model` fits a linear map to them. The map has too few numbers to learn the wrong labels. The
memory learns them all. Put the library's `ResMem` around it, with the pixels as embedding and `bandwidth=math.inf`
(all k weigh the same), and measure the share of wrong test digits for k = 1, 2, 4, ... 256, as a mean over three
seeds, with 0 %, {some} and {much} wrong labels. The memory **helps** where ResMem makes at least {FEWER[n.part]} fewer errors
than the linear map alone (at most {n.part - 1}/{n.part} of them). Write down five numbers (a step of the grid more or less is accepted):

- `clean`: the smallest k at which it helps, with 0 % wrong labels
- `{some}`: the smallest k at which it helps, with {some}
- `{largest}`: the largest k at which it helps, with {some}
- `{much}`: the smallest k at which it helps, with {much}
- `{bandwidth}`: with {some} and k = 256, the smallest bandwidth of 1/64, 1/32, ... 4 at which it helps"""  # noqa: E501
    stub = f"""\
# Plain numbers, read off your curves: what a call computes is not carried to the grader.
# A dict with the keys "clean", "{some}", "{largest}", "{much}" (numbers of neighbours) and "{bandwidth}".
noise_limits = None"""
    return {
        "question": question,
        "stub": stub,
        "hints": Later(lambda: noise_hints(n)),
        "probe": probe,
        "oracle": partial(noise_limits, n),
        "mistakes": Later(lambda: told_apart(noise_mistakes(n), noise_limits(n), probe)),
    }


NOISE_LIMITS = Family(
    wrong_labels,
    usual=Noise(20, 40, part=3),
    others=[
        Noise(some, much, part)
        for part in (3, 4)
        for some, much in ((10, 20), (10, 30), (10, 40), (10, 50), (20, 50), (30, 40), (30, 50))
    ],
)

# 5.6 enough_memories

MEMORIES = [2**i for i in range(2, 14)]  # 4, 8, ... 8192
NORM = 0.5  # of the model; the target's is 1
ABOUT = {4: "about five", 8: "less than ten", 16: "about ten", 32: "a few dozen", 64: "less than a hundred"}
ABOUT |= {128: "more than a hundred", 256: "a few hundred", 512: "about five hundred", 1024: "about a thousand"}
ABOUT |= {2048: "about two thousand", 4096: "a few thousand"}
PART = {2: "a half", 4: "a quarter", 8: "an eighth", 16: "a sixteenth", 32: "a thirty-second part"}


class Ball(NamedTuple):
    """Three dimensions, the one in which the neighbour stands alone, and which part of the risk is to be left."""

    dimensions: tuple[int, int, int]
    alone: int
    part: int

    @property
    def names(self) -> tuple[str, ...]:
        return *(f"d = {d}" for d in self.dimensions), f"d = {self.alone}, kNN alone"


def enough(n: Ball) -> dict[str, int]:
    """The smallest number of memories at which the risk is at most such a part of the model's own."""
    found = [_enough(d, 1 - NORM, NORM, 1 / n.part) for d in n.dimensions]
    return dict(zip(n.names, [*found, _enough(n.alone, 1.0, 0.0, 1 / n.part)], strict=True))


def _enough(d: int, stored: float, model: float, share: float) -> int:
    """For a memory that holds `stored` times the target, beside a model that says `model` times the target."""
    own = (1 - NORM) ** 2
    return next((n for n in MEMORIES if _risk(n, d, stored, model) <= share * own), MEMORIES[-1])


@cache
def _risk(n: int, d: int, stored: float, model: float) -> float:
    """Mean squared error with the nearest memory, over that of saying 0; the target is the first coordinate."""
    risks = []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        x, queries = _ball(generator, n, d), _ball(generator, 512, d)
        squared = (queries**2).sum(axis=1)[:, None] - 2 * queries @ x.T + (x**2).sum(axis=1)
        said = model * queries[:, 0] + stored * x[squared.argmin(axis=1), 0]
        risks.append(((said - queries[:, 0]) ** 2).mean() / (queries[:, 0] ** 2).mean())
    return float(np.mean(risks))


def _ball(generator: np.random.Generator, n: int, d: int) -> Array:
    """n points, uniform in the unit ball of d dimensions."""
    x = generator.standard_normal((n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True) * generator.random((n, 1)) ** (1 / d)


def enough_mistakes(n: Ball) -> Iterator[Mistake]:
    right, part = enough(n), PART[n.part].split()[-1]
    with_model, alone, middle = f"d = {n.alone}", n.names[-1], right[n.names[1]]
    for step in (0.5, 1, 2):
        yield Mistake(
            f"`{alone}` takes more than ResMem in {with_model}: it stores all of y, which is four times the risk at "
            f"the same n, and the {part} is that of the model's risk for both",
            right | {alone: int(step * right[with_model])},
        )
    yield Mistake(
        f"this is where the risk is half of the model's own: {PART[n.part]} is asked",
        enough(n._replace(part=2)),
    )
    yield Mistake(
        f"this is where the root of the risk is {PART[n.part]} of the model's: the risk is the mean of the squares",
        enough(n._replace(part=n.part**2)),
    )
    yield Mistake(
        "the dimension makes no difference here: is x made anew for each d?",
        right | dict.fromkeys(n.names[:3], middle),
    )


def enough_hints(n: Ball) -> tuple[str, str, str]:
    (a, b, c), (few, some, many, _), part = n.dimensions, enough(n).values(), PART[n.part]
    return (
        "Write `risk(n, d, seed)`: `memory = ResMem(predict, lambda x: x, k=1, bandwidth=1.0)`, memorise x and y, and "
        "take the mean of (memory(queries) - targets) squared. Draw it over n on two logarithmic axes.",
        "The residual of the nearest memory is off by half of what the target changes on the way to it. The way "
        "shrinks like n to the power -1/d, so the risk falls like n to the power -2/d: ever more slowly in more "
        "dimensions. kNN alone stores the whole target, not half of it: its risk at the same n is four times as large.",
        f"d = {a} takes {ABOUT[few]} memories, d = {b} {ABOUT[some]}, d = {c} {ABOUT[many]}. For kNN alone in d = "
        f"{n.alone} the risk must fall to {PART[4 * n.part]} of ResMem's beginning instead of {part}, 4 times lower, "
        f"which by n to the power -2/{n.alone} takes about {2**n.alone} times as many.",
    )


def enough_memories(n: Ball) -> dict[str, Any]:
    (a, b, c), probe, part = n.dimensions, within_a_step(partial(enough, n)), PART[n.part]
    question = f"""\
This is the setting of ResMem's theory, and `make_linear(n, d, seed)` above makes it: x is uniform in a ball of d
dimensions, the target is linear, and the model is linear too, but its norm is bounded at half of what it would
need. However much data it sees, its risk (mean squared error) stays where it is. Put `ResMem` with k = 1 around it
and measure the risk for n = 4, 8, 16, ... 8192 memories in d = {a}, {b} and {c} dimensions, as a mean over three seeds.
Write down the smallest n at which the risk is at most {part.replace(" ", " **", 1)}** of the model's own; and, for d = {n.alone}, the same
for the neighbour alone, `memory.nearest(x)`: that one, predict first, from the n of ResMem and what the chapter says
of slope and factor. (A factor of two more or less is accepted.)"""  # noqa: E501
    stub = f"""\
# Plain numbers, read off your curves: what a call computes is not carried to the grader.
enough_memories = None  # {{{", ".join(f'"{name}": ...' for name in n.names)}}}"""
    return {
        "question": question,
        "stub": stub,
        "hints": Later(lambda: enough_hints(n)),
        "probe": probe,
        "oracle": partial(enough, n),
        "mistakes": Later(lambda: told_apart(enough_mistakes(n), enough(n), probe)),
    }


ENOUGH_MEMORIES = Family(
    enough_memories,
    usual=Ball((2, 4, 8), alone=4, part=4),
    others=[
        Ball((2, 3, 6), alone=3, part=4),
        Ball((3, 5, 6), alone=3, part=4),
        Ball((2, 3, 5), alone=5, part=4),
        Ball((3, 4, 6), alone=4, part=4),
        Ball((2, 5, 6), alone=2, part=4),
        Ball((2, 3, 5), alone=2, part=8),
        Ball((2, 3, 4), alone=3, part=8),
        Ball((3, 4, 6), alone=3, part=8),
        Ball((2, 4, 5), alone=2, part=8),
        Ball((2, 4, 6), alone=4, part=2),
        Ball((3, 5, 6), alone=5, part=2),
        Ball((3, 5, 6), alone=3, part=2),
        Ball((2, 3, 5), alone=5, part=2),
    ],
)
