"""The exercises of chapter 03 whose answers are values: their numbers, and all that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from memcourse.course.checks.family import CARDINALS, Family, Later, told_apart, within_a_step
from memcourse.course.checks.gated_oracles import half_life, kept_after, sigmoid
from memcourse.course.exercise import Mistake

# 3.1 predicted_gates

LOGARITHMS = {3: "1.1", 4: "1.4", 5: "1.6"}
SHARES = {0.2: "a fifth", 0.4: "two fifths", 0.5: "half", 0.6: "three fifths"}


class Gates(NamedTuple):
    """r: a bias is log r.   steps: for which it acts.   percent: what a nearly open gate loses at each step.
    open: the steps of two open gates.   f, i: two gates that let a state settle.
    """

    r: int
    steps: int
    percent: float
    open: int
    f: float
    i: float


def predictions(n: Gates) -> dict[str, float]:
    h_open = h_late = 0.0
    for _ in range(n.open):
        h_open = 1.0 * h_open + 1.0 * 1.0
    for _ in range(1000):
        h_late = n.f * h_late + n.i * 1.0
    f = float(sigmoid(math.log(n.r)))
    return {
        "kept": kept_after(f, n.steps),
        "gradient": (kept_after(f, n.steps) * (1 + 1e-3) - kept_after(f, n.steps) * 1.0) / 1e-3,
        "half_life": half_life(1 - n.percent / 100),
        "plus_log_ten": half_life(float(sigmoid(7 + math.log(10)))) / half_life(float(sigmoid(7))),
        "both_open": h_open,
        "settles": h_late,
    }


def prediction_mistakes(n: Gates) -> tuple[Mistake, ...]:
    right = predictions(n)
    f, lost = n.r / (n.r + 1), n.percent / 100
    stays = f"it is the share that is kept, whatever its name says: sigmoid(log {n.r}) = {n.r}/{n.r + 1} stays"

    def mistake(says: str, **wrong: float) -> Mistake:
        return Mistake(says, right | wrong)

    return (
        mistake(
            f"this reads the forget gate as the share that is forgotten; {stays}",
            kept=(1 - f) ** n.steps,
            gradient=(1 - f) ** n.steps,
        ),
        mistake(
            f"`kept` reads the forget gate as the share that is forgotten; {stays}",
            kept=(1 - f) ** n.steps,
        ),
        mistake(f"`kept` is what one step leaves, and {CARDINALS[n.steps]} are asked", kept=f),
        mistake(
            "`kept` takes the same amount away at each step; a gate multiplies, so each step takes a share of what is "
            "left",
            kept=1 - n.steps * (1 - f),
        ),
        mistake(
            "`kept` is above 1, and no share is: the bias is not the gate yet, sigmoid(bias) is",
            kept=math.log(n.r) ** n.steps,
        ),
        mistake(
            f"`gradient` is not whole: h_{n.steps} is {' '.join('f' * n.steps)} h_0 here, so its derivative is the "
            "share that is kept",
            gradient=1.0,
        ),
        mistake(
            "`gradient` has no factor f (1 - f): this is the derivative by h_0, and not by the gate's bias",
            gradient=(f * (1 - f)) ** n.steps,
        ),
        mistake(
            f"`half_life` takes {n.percent:g} % of the beginning away at each step; a gate takes {n.percent:g} % of "
            "what is left, ever less",
            half_life=0.5 / lost,
        ),
        mistake(
            "`half_life` is the time 1 / (1 - f) after which a share of 1/e = 0.37 is left; half is left earlier, "
            "after ln 2 = 0.69 of it",
            half_life=1 / lost,
        ),
        mistake(
            "`plus_log_ten` is what is added to the bias; the half-life grows with exp(bias), once f is near 1",
            plus_log_ten=math.log(10),
        ),
        mistake(
            "`plus_log_ten` is not 1: f moves little, but the half-life leans on 1 - f, which falls to a tenth",
            plus_log_ten=1.0,
        ),
        mistake(
            "`both_open` takes the state for an average: with f = i = 1 all is kept and all is added, and h has no "
            "bound",
            both_open=1.0,
        ),
        mistake(
            f"`settles` is where {equation(n)}, and this takes 1 - {n.f:g} for the input gate: here the two gates do "
            "not share 1 between them",
            settles=1.0,
        ),
        mistake("`settles` is one step from zero; look for the h that a step does not change", settles=n.i),
        mistake(
            f"`settles` has no input gate: {SHARES[n.i]} of each candidate is let in, so {equation(n)}",
            settles=1 / (1 - n.f),
        ),
    )


def equation(n: Gates) -> str:
    return f"h = {n.f:g} h + {n.i:g}"


def predicted_gates(n: Gates) -> dict[str, Any]:
    last = f"h_{n.steps}"
    question = """\
One unit with constant gates: $h_t = f\\,h_{t-1} + i\\,c_t$, and $f = \\sigma(b)$ where a bias $b$ is given. Predict
the six numbers below with pencil and paper before you run anything. They are what you will need to choose a forget
gate's bias: each is a simple number, or near one (2 % is near enough)."""
    stub = f"""\
# A dict of six numbers; ln {n.r} = {LOGARITHMS[n.r]}, ln 2 = 0.69, ln 10 = 2.3:
#   "kept"          b = log {n.r} and i = 0: the share of h_0 that is left in {last}
#   "gradient"      the same gates: the derivative of {last} with respect to h_0
#   "half_life"     f = {1 - n.percent / 100:g} and i = 0: the number of steps after which half of h_0 is left
#   "plus_log_ten"  f is near 1 already, and its bias grows by log 10: the factor by which the half-life grows
#   "both_open"     f = 1, i = 1, every c_t = 1, h_0 = 0: the state h_{n.open}
#   "settles"       f = {n.f:g}, i = {n.i:g}, every c_t = 1, h_0 = 0: the state after very many steps
predicted_gates = None  # {{"kept": ..., "gradient": ..., ...}}"""
    hints = (
        f"The forget gate is the share that is kept, so k steps keep f**k; sigmoid(log {n.r}) = {n.r} / ({n.r} + 1). "
        'For "settles", which h does a step leave as it is?',
        "Half is left when f**k = 1/2, so k = ln 2 / -ln f, and -ln f is nearly 1 - f when f is near 1. There 1 - f = "
        "sigmoid(-b) is nearly exp(-b).",
        f"kept ({n.r}/{n.r + 1})**{n.steps}, and gradient the same; half_life 0.69 / {n.percent / 100:g}; "
        f"plus_log_ten: 1 - f falls to a tenth; both_open adds 1 {CARDINALS[n.open]} times; settles: {equation(n)}.",
    )
    return {
        "question": question,
        "stub": stub,
        "hints": hints,
        "oracle": partial(predictions, n),
        "mistakes": prediction_mistakes(n),
    }


PREDICTED_GATES = Family(
    predicted_gates,
    usual=Gates(3, 2, 1, 10, 0.9, 0.5),
    others=[
        Gates(*bias, percent, open_, *settles)
        for bias, percent, open_, settles in product(
            ((3, 3), (4, 2), (4, 3), (5, 3)),
            (2, 0.5, 0.2),
            (6, 8, 12),
            ((0.9, 0.2), (0.9, 0.4), (0.8, 0.6), (0.8, 0.5)),
        )
    ],
)

# 3.6 smallest_bias

BIASES = [0.5 * step for step in range(25)]  # 0, 0.5, ... 12
UNITS = 256
COSTS = {1: "about half a point", 1.5: "about 1", 2: "nearly 2", 2.5: "about 3", 3: "nearly 4"}  # of noise, in bias


class Stretch(NamedTuple):
    """How many tokens a state is to be kept, in the first place and then ten times as many, and the noise."""

    tokens: int
    noise: float

    @property
    def names(self) -> tuple[str, str, str, str]:
        few, many = self.tokens, 10 * self.tokens
        return f"quiet, {few}", f"quiet, {many}", f"noisy, {few}", f"noisy, {many}"


def limits(n: Stretch) -> dict[str, float]:
    """The smallest bias of the grid at which at least half of a state is left; or at which a bfloat16 gate is 1."""
    settings = [(noise, tokens) for noise in (0.0, n.noise) for tokens in (n.tokens, 10 * n.tokens)]
    found = {name: smallest(*setting) for name, setting in zip(n.names, settings, strict=True)}
    # bfloat16 keeps 8 binary digits: its largest number below 1 is 1 - 2^-8, and what lies beyond the middle is 1
    return found | {"bfloat16": next(bias for bias in BIASES if float(sigmoid(bias)) > 1 - 2**-9)}


@cache
def smallest(noise: float, tokens: int) -> float:
    return next(bias for bias in BIASES if _left(bias, noise, tokens) >= 0.5)


def _left(bias: float, noise: float, tokens: int) -> float:
    """The share of the state that is left after so many tokens, as a mean over units."""
    seen = bias + noise * np.random.default_rng(0).standard_normal((tokens, UNITS))
    left = np.ones(UNITS)
    for forget_gate in sigmoid(seen):
        left = forget_gate * left
    return float(left.mean())


def next_to_it(bias: float, limit: float) -> bool:
    return abs(bias - limit) <= 0.5


def limit_mistakes(n: Stretch) -> Iterator[Mistake]:
    right, (few, many, noisy_few, noisy_many) = limits(n), n.names
    yield Mistake(
        "the noisy gates need no more bias than the quiet ones here: noise cancels in the bias, but what one shut gate "
        "loses no open gate brings back",
        right | {noisy_few: right[few], noisy_many: right[many]},
    )
    yield Mistake(
        "quiet gates: ten times as many tokens do not need ten times the bias; 1 - f falls like exp(-bias), so "
        "log 10 = 2.3 more are enough",
        right | {many: 10 * right[few]},
    )
    yield Mistake(
        "bfloat16: this is the bias at which a float32 gate is 1; a bfloat16 gate has 8 binary digits, and is 1 much "
        "earlier",
        right | {"bfloat16": 17.0},
    )


def limit_hints(n: Stretch) -> tuple[str, str, str]:
    few, many = n.tokens, 10 * n.tokens
    return (
        "`make_gates(bias, noise, tokens)` is (tokens, 256): `.prod(dim=0).mean()` is the share left. Loop over the "
        "grid, and draw the four curves.",
        f"For quiet gates 3.1 has the answer too: the half-life, ln 2 / -ln f, must be {few} or {many} tokens, and is "
        "nearly 0.69 exp(b). For bfloat16: `torch.tensor(b, dtype=torch.bfloat16).sigmoid() == 1`.",
        f"Quiet gates need {limits(n)[n.names[0]]:g}, and 2.3 more for ten times the tokens. Noise of strength s "
        f"multiplies what is lost by about exp(s**2 / 2), which costs {COSTS[n.noise]} of bias here. bfloat16 rounds "
        "to 1 between the two quiet limits.",
    )


def smallest_bias(n: Stretch) -> dict[str, Any]:
    few, many = n.tokens, 10 * n.tokens
    probe = within_a_step(partial(limits, n), next_to_it)
    question = f"""\
`make_gates` above makes the forget gates $\\sigma(b + s\\,\\xi_t)$ of 256 units that see noise $\\xi_t$ with strength
s. Measure the share of a state that is left after {few} and after {many} tokens (the product of the gates, as a mean over
units) for b = 0, 0.5, 1, ... 12, with quiet gates (s = 0) and noisy ones (s = {n.noise:g}), and write down the smallest b at
which at least half is left. Then find the smallest b of the grid at which $\\sigma(b)$ in bfloat16 is exactly 1: such a
gate can no longer forget. (A step of the grid more or less is accepted.)"""  # noqa: E501
    quoted = ", ".join(f'"{name}"' for name in n.names)
    stub = f"""\
# Plain numbers, read off your curves: what a call computes is not carried to the grader.
# A dict with the keys {quoted}, "bfloat16".
smallest_bias = None"""
    return {
        "question": question,
        "stub": stub,
        "hints": Later(lambda: limit_hints(n)),
        "probe": probe,
        "oracle": partial(limits, n),
        "mistakes": Later(lambda: told_apart(limit_mistakes(n), limits(n), probe)),
    }


SMALLEST_BIAS = Family(
    smallest_bias,
    usual=Stretch(100, 2.0),
    others=[
        *(Stretch(tokens, noise) for tokens, noise in product((50, 60, 150, 200), (1.0, 1.5, 2.5))),
        Stretch(50, 3.0),
        Stretch(60, 3.0),
    ],
)
