"""The exercise of chapter 06 whose answer is values: its numbers, and all that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache, partial
from itertools import combinations, product
from typing import Any, NamedTuple

import numpy as np

from memcourse.course.checks.family import PARTS, Family
from memcourse.course.checks.gated_oracles import half_life, sigmoid
from memcourse.course.checks.lm2_oracles import gathered, read_row, updated
from memcourse.course.exercise import Mistake

# 6.1 predicted_bank

LOST = {4: 0.018, 5: 0.0067}  # 1 - sigmoid(bias), which is nearly exp(-bias)
OPEN = {4: (0.98, "0.982"), 5: (0.99, "0.993")}  # sigmoid(bias) with two digits, and with three
KEPT = {10: "nine tenths", 5: "four fifths", 4: "three quarters"}
FIRST_DIGITS = {4: "1.8", 5: "0.67"}  # percent


class Bank(NamedTuple):
    """bias: of a forget gate.   bound: of a gate of 1 - 1/bound.   n_slots, width: of the bank.
    fact: the segment in which it stands.   length: of the faulty LM2's segment.
    """

    bias: int
    bound: int
    n_slots: int
    width: int
    fact: int
    length: int


@cache
def _predictions(n: Bank) -> dict[str, float]:
    gate, bound = 1 - 1 / n.bound, 0.0
    for _ in range(1000):
        bound = gate * bound + 1.0 * 1.0  # tanh never reaches 1
    closes = [T for T in range(2, 30) if (T, n.width) == (n.n_slots, n.width)]
    return {
        "half_life": half_life(float(sigmoid(float(n.bias)))),
        "two_later": float(sigmoid(1.0)) ** 2,
        "bound": bound,
        "closes_at": float(closes[0]),
        "different_slots": float(_different_slots()),
        "first_reader": float(n.fact + 1),
        "moved": float(_moved(n.length)),
    }


def predictions(n: Bank) -> dict[str, float]:
    return dict(_predictions(n))


@cache
def _different_slots(n_slots: int = 8, width: int = 5, segments: int = 20) -> int:
    """How many of the slots differ, when all begin as the same vector."""
    generator = np.random.default_rng(0)
    U = {name: generator.standard_normal((width, width)) for name in "qkv"}
    W = {name: generator.standard_normal((width, width)) for name in ("in", "f")}
    memory = np.tile(generator.standard_normal(width), (n_slots, 1))
    for _ in range(segments):
        segment = generator.standard_normal((3, width))
        memory = updated(memory, gathered(memory, segment, U), W, np.full(width, 4.0))
    return len(np.unique(memory.round(9), axis=0))


@cache
def _moved(length: int, width: int = 3) -> int:
    """How many outputs before the last move with the last token, where an input gate is its segment's mean."""
    generator = np.random.default_rng(0)
    W = {name: generator.standard_normal((width, width)) for name in ("q", "k", "v", "out")}
    memory = generator.standard_normal((2, width))
    tokens = generator.standard_normal((length, width))
    changed = tokens.copy()
    changed[-1] += 1
    reads = [read_row(each, memory + sigmoid(each.mean(axis=0)), W) for each in (tokens, changed)]
    return int((np.abs(reads[0] - reads[1])[:-1].max(axis=1) > 1e-9).sum())


def one_by_one(n: Bank) -> tuple[tuple[str, float, str], ...]:
    """(question, wrong answer, what is wrong): one at a time, and two together."""
    lost, (two_digits, three_digits), percent = LOST[n.bias], OPEN[n.bias], FIRST_DIGITS[n.bias]
    gate, part = f"{1 - 1 / n.bound:g}", PARTS[n.bound]
    return (
        (
            "half_life",
            1 / lost,
            "`half_life` is the number of segments after which a share of 1/e = 0.37 is left; half is left earlier, "
            "after ln 2 = 0.69 of it",
        ),
        (
            "half_life",
            0.5 / lost,
            f"`half_life` takes {percent} % of the beginning away in each segment; a gate takes {percent} % of what is "
            "left, ever less",
        ),
        (
            "half_life",
            math.log(2) / n.bias,
            "`half_life` takes the bias for the rate of forgetting: what goes in each segment is "
            f"1 - sigmoid({n.bias}) = {lost}",
        ),
        (
            "half_life",
            math.log(2) / -math.log(two_digits),
            f"`half_life` takes {two_digits} for sigmoid({n.bias}): it is {three_digits}, and so near to 1 the third "
            f"digit counts. What goes in each segment is {lost}",
        ),
        ("two_later", 1 / 1.37, "`two_later` is what one segment leaves, and two are asked"),
        (
            "two_later",
            (0.37 / 1.37) ** 2,
            "`two_later` reads the forget gate as the share that is forgotten; it is the share that is kept, and "
            "sigmoid(1) = 0.73 stays",
        ),
        (
            "two_later",
            1 - 2 * 0.37 / 1.37,
            "`two_later` takes the same amount away in each segment; a gate takes a share of what is left",
        ),
        ("two_later", 0.37**2, "`two_later` takes exp(-1) for the gate; sigmoid(1) is 1 / (1 + exp(-1))"),
        (
            "bound",
            1.0,
            f"`bound` holds for what is added, for tanh stays below 1; {KEPT[n.bound]} of what was there stay too, and "
            f"h = {gate} h + 1 is where it ends",
        ),
        ("bound", 2 - 1 / n.bound, "`bound` is that of M_2: look for the size that one more update does not change"),
        (
            "bound",
            math.inf,
            f"`bound` is finite: as M grows, so does what the forget gate takes, a {part} of M, until it takes what is "
            "added",
        ),
        (
            "closes_at",
            float(n.width),
            "`closes_at` compares T with the width: both products end in an axis of d, it is T and N that have to "
            "agree",
        ),
        (
            "different_slots",
            8.0,
            "`different_slots`: equal slots send equal queries, gather equal candidates and have equal gates; nothing "
            "in the update knows one from the other, so that they stay equal however different the segments are",
        ),
        (
            "different_slots",
            0.0,
            "`different_slots` counts the vectors: eight equal ones are one",
        ),
        (
            "first_reader",
            float(n.fact),
            "`first_reader` would read what its own segment writes: that is the leak, for the last token's "
            "part of it would reach the first",
        ),
        (
            "first_reader",
            float(n.fact + 2),
            f"`first_reader` waits a segment too long: the bank is written as soon as segment {n.fact} has ended",
        ),
        (
            "moved",
            0.0,
            f"`moved`: a mean over the {n.length} tokens has the last one in it, and it is part of the bank that "
            f"tokens 1 to {n.length - 1} read: that attention is causal does not help",
        ),
        (
            "moved",
            1.0,
            f"`moved` does not count token {n.length} itself, whose output may move; those before it move, and should "
            "not",
        ),
        (
            "moved",
            float(n.length),
            f"`moved` asks about tokens 1 to {n.length - 1}; the output of token {n.length} may move",
        ),
    )


def prediction_mistakes(n: Bank) -> Iterator[Mistake]:
    """Each wrong answer alone, and each two of them, to different questions."""
    for how_many in (1, 2):
        for some in combinations(one_by_one(n), how_many):
            if len({question for question, _, _ in some}) == how_many:
                says = "; ".join(sentence for _, _, sentence in some)
                yield Mistake(says, predictions(n) | {question: number for question, number, _ in some})


def predicted_bank(n: Bank) -> dict[str, Any]:
    gate, lost = f"{1 - 1 / n.bound:g}", LOST[n.bias]
    question = """\
Seven numbers about a bank of slots, $M_s = g_f \\odot M_{s-1} + g_{in} \\odot \\tanh(C)$, with one update at the end of
each segment $s$. Predict them with pencil and paper before you run anything (2.5 % is near enough)."""
    stub = f"""\
# A dict of seven numbers; sigmoid(x) = 1 / (1 + exp(-x)), exp(-1) = 0.37, exp(-{n.bias}) = {lost}, ln 2 = 0.69:
#   "half_life"        g_f = sigmoid({n.bias}), g_in = 0: the number of segments after which half of a slot is left
#                      (a whole number or not: near enough is enough; take 1 - g_f = {lost})
#   "two_later"        g_f = sigmoid(1), g_in = 0: the share of a slot that is left after two segments
#   "bound"            g_f = {gate} and g_in = 1 in every segment: the size that no entry of M exceeds, if M_0 = 0
#   "closes_at"        as printed, the read is g_out * M; g_out is (T, {n.width}), M is {n.n_slots, n.width}: the T > 1 at which that runs
#   "different_slots"  8 slots begin as one and the same vector: the number of different vectors among those of M_20
#   "first_reader"     a fact stands in segment {n.fact}: the first segment whose tokens can read it in the bank
#   "moved"            a faulty LM2: its input gate is the mean over the segment's {n.length} tokens, and the segment reads what
#                      was written with it. Only token {n.length} is changed: how many of the outputs of tokens 1 to {n.length - 1} move?
predicted_bank = None  # {{"half_life": ..., "two_later": ..., ...}}"""  # noqa: E501
    hints = (
        "A gate multiplies, once a segment. Where g_f is near 1, -ln g_f is nearly 1 - g_f, and half is left after "
        "ln 2 / (1 - g_f) segments. For the slots: is there any line of the update in which the number of a slot "
        "occurs?",
        f"bound: look for the size m that the largest update leaves as it is, m = {gate} m + 1. closes_at: with two "
        "axes of different sizes, an elementwise product runs only where they agree. first_reader: when does the write "
        "come?",
        f"half_life 0.69 / {lost}; two_later (1 / (1 + 0.37)) squared; bound 1 / (1 - {gate}); closes_at N; equal "
        "slots send equal queries, get equal answers and stay one; the bank is written after a segment and read by the "
        "next; a mean leans on every token, and every token reads what it wrote.",
    )
    return {
        "question": question,
        "stub": stub,
        "hints": hints,
        "oracle": partial(predictions, n),
        "mistakes": tuple(prediction_mistakes(n)),
    }


PREDICTED_BANK = Family(
    predicted_bank,
    usual=Bank(bias=4, bound=10, n_slots=7, width=5, fact=3, length=16),
    others=[
        Bank(bias, bound, *shape, fact, length)
        for bias, bound, shape, fact, length in product(
            (4, 5), (4, 5), ((6, 4), (9, 5), (5, 8), (11, 6)), (2, 5, 6), (12, 20, 24)
        )
    ],
)
