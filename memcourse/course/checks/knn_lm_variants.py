"""The exercise of chapter 04 that asks for predictions: its numbers, and all that follows from them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from itertools import combinations, product
from typing import Any, NamedTuple

from memcourse.course.checks.family import PARTS, Family
from memcourse.course.checks.knn_lm_oracles import no_key_is_missing
from memcourse.course.exercise import Mistake

# 4.1 predicted_shares


class Neighbors(NamedTuple):
    """red at squared distance log near, blue and red at log far; the neighbours' weight is 1/parts.

    red, green: what the model gives the two words.
    """

    near: int
    far: int
    parts: int
    red: Fraction
    green: Fraction


def share_of_red(n: Neighbors, farther: float = 0.0, temperature: float = 1.0, copies_of_blue: int = 1) -> float:
    """p_kNN(red), from the distances and next tokens of the three neighbours, changed."""
    weight = {"red": 0.0, "blue": 0.0}
    for distance, token in ((math.log(n.near), "red"), (math.log(n.far), "blue"), (math.log(n.far), "red")):
        weight[token] += (copies_of_blue if token == "blue" else 1) * math.exp(-(distance + farther) / temperature)
    return weight["red"] / (weight["red"] + weight["blue"])


def predictions(n: Neighbors) -> dict[str, float]:
    return {
        "as_given": share_of_red(n),
        "all_farther": share_of_red(n, farther=10),
        "half_temperature": share_of_red(n, temperature=0.5),
        "very_hot": share_of_red(n, temperature=1e6),
        "blue_twice": share_of_red(n, copies_of_blue=2),
        "mixed": mixed(n, share_of_red(n)),
        "green": mixed(n, 0.0, model=n.green),
    }


def mixed(n: Neighbors, p_knn: float, model: Fraction | None = None) -> float:
    weight = 1 / n.parts
    return weight * p_knn + (1 - weight) * float(n.red if model is None else model)


def predictions_probe(n: Neighbors, answer: Any) -> Any:
    no_key_is_missing(answer, predictions(n))
    return answer


def one_by_one(n: Neighbors) -> tuple[tuple[str, float, str], ...]:
    """(question, wrong answer, what is wrong): one at a time, and two or three together."""
    cancels = (
        "`all_farther` changes nothing: exp(-10) multiplies all votes alike, and cancels. kNN-LM does not notice that "
        "all its neighbours are far away"
    )
    ours, theirs = f"{n.parts - 1}/{n.parts}", f"1/{n.parts}"
    wrong_side = f"the weight is on the wrong side: {theirs} is the neighbours' share, {ours} the model's"
    weight, given, near, far = 1 / n.parts, share_of_red(n), 1 / n.near, 1 / n.far
    return (
        ("all_farther", 2 / 3, cancels),
        ("all_farther", 0.0, cancels),
        (
            "half_temperature",
            (near**0.5 + far**0.5) / (near**0.5 + 2 * far**0.5),
            "`half_temperature` divides the distances by 1/2, so the votes are squared: this takes their roots",
        ),
        (
            "half_temperature",
            given,
            "`half_temperature` changes the shares: what is added to all distances cancels, a factor does not",
        ),
        (
            "very_hot",
            1.0,
            "`very_hot` flattens: all distances are 0 after the division, and equal neighbours count alike",
        ),
        ("very_hot", 1 / 2, "`very_hot` gives the three neighbours equal votes, and not the two words"),
        (
            "blue_twice",
            given,
            f"`blue_twice` adds a vote of 1/{n.far} for blue: copies in a corpus vote once each",
        ),
        (
            "blue_twice",
            near / (near + 2 * far),
            f"`blue_twice` gives blue 1/{n.far} + 1/{n.far}; of red there is still 1/{n.near} + 1/{n.far}",
        ),
        ("mixed", (1 - weight) * given + weight * float(n.red), wrong_side),
        ("green", weight * float(n.green), wrong_side),
        (
            "green",
            0.0,
            f"`green` is not lost: no neighbour says it, but the model's share of {ours} is left, whatever is "
            "retrieved",
        ),
        (
            "green",
            float(n.green),
            f"`green` does not keep all of {n.green}: the neighbours' {PARTS[n.parts]} goes to other words, and each "
            "word that they do not say pays for it",
        ),
    )


def prediction_mistakes(n: Neighbors) -> Iterator[Mistake]:
    """The two that change everything; each wrong answer alone, and each two and three, to different questions."""
    right, near, far, wrong = predictions(n), n.near, n.far, one_by_one(n)
    yield Mistake(
        "these are counts, two of three: a neighbour votes with exp(-distance / temperature), a nearer one with more",
        right
        | dict.fromkeys(("as_given", "all_farther", "half_temperature"), 2 / 3)
        | {"blue_twice": 1 / 2, "mixed": mixed(n, 2 / 3)},
    )
    upside_down = (near + far) / (near + 2 * far)
    yield Mistake(
        f"the distances are not negated: exp(-log {near}) is 1/{near} and exp(-log {far}) is 1/{far}, so the nearest "
        "has the largest vote",
        right
        | dict.fromkeys(("as_given", "all_farther"), upside_down)
        | {
            "half_temperature": (near**2 + far**2) / (near**2 + 2 * far**2),
            "blue_twice": (near + far) / (near + 3 * far),
            "mixed": mixed(n, upside_down),
        },
    )
    for how_many in (1, 2, 3):
        for some in combinations(wrong, how_many):
            if len({question for question, _, _ in some}) == how_many:
                says = "; ".join(dict.fromkeys(sentence for _, _, sentence in some))
                yield Mistake(says, right | {question: number for question, number, _ in some})


def predicted_shares(n: Neighbors) -> dict[str, Any]:
    near, far, ours, theirs = n.near, n.far, f"{n.parts - 1}/{n.parts}", f"1/{n.parts}"
    u, v = Fraction(1, near), Fraction(1, far)
    question = f"""\
A context has three neighbours in the datastore, at squared distances log {near}, log {far} and log {far}. The words that followed
them are red, blue and red. A neighbour votes with exp(-distance / temperature), the temperature is 1 unless another is
named, and p_kNN is the share of a word in all votes. Predict the seven answers below with pencil and paper before you
run anything: each is a simple fraction."""  # noqa: E501
    stub = f"""\
# A dict of seven numbers, 0.1 or 1 / 10:
#   "as_given"          p_kNN(red)
#   "all_farther"       p_kNN(red), when all three distances are larger by 10
#   "half_temperature"  p_kNN(red), when the temperature is 1/2
#   "very_hot"          p_kNN(red), when the temperature is a million (to three digits)
#   "blue_twice"        p_kNN(red), when the blue neighbour stands in the datastore twice, so that k is 4
#   "mixed"             the final p(red), when the model gives red {n.red} and the weight of the neighbours is {theirs}
#   "green"             the final p(green), with the same weight, when the model gives green {n.green}
predicted_shares = None  # {{"as_given": ..., "all_farther": ..., ...}}"""
    hints = (
        f"exp(-log {near}) = {u} and exp(-log {far}) = {v}: write the three votes down, then what red has of their "
        "sum. The final p is weight * p_kNN + (1 - weight) * p_model.",
        "Adding 10 to the distances multiplies all votes by the same exp(-10). A temperature of 1/2 doubles the "
        "distances, which squares the votes; a very large one makes them all 1. No neighbour says green.",
        f"as_given ({u} + {v}) / {over(u + 2 * v)}; all_farther the same; half_temperature ({u**2} + {v**2}) / "
        f"({u**2} + 2/{far**2}); very_hot: three equal votes; blue_twice ({u + v}) / ({u + 3 * v}); mixed {theirs} * "
        f"{(u + v) / (u + 2 * v)} + {ours} * {n.red}; green {theirs} * 0 + {ours} * {n.green}.",
    )
    return {
        "question": question,
        "stub": stub,
        "hints": hints,
        "probe": partial(predictions_probe, n),
        "oracle": partial(predictions, n),
        "mistakes": tuple(prediction_mistakes(n)),
    }


def over(number: Fraction) -> str:
    return f"{number}" if number.denominator == 1 else f"({number})"


QUARTER, HALF = Fraction(1, 4), Fraction(1, 2)

PREDICTED_SHARES = Family(
    predicted_shares,
    usual=Neighbors(2, 4, parts=5, red=QUARTER, green=HALF),
    others=[
        Neighbors(*distances, parts, *model)
        for distances, parts, model in product(
            ((2, 3), (2, 6), (2, 8), (3, 12), (2, 10)), (3, 4, 10), ((HALF, QUARTER), (QUARTER, HALF), (HALF, HALF))
        )
    ],
)
