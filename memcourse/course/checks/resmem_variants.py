"""The exercise of chapter 05 that asks for predictions: its numbers, and all that follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from memcourse.course.checks.family import Family
from memcourse.course.checks.resmem_oracles import read
from memcourse.course.exercise import Mistake

# 5.1 predicted_outputs

DISTANCES = (1.0, 2.0, 3.0)


class Memories(NamedTuple):
    """What the model says, and the residuals of three memories, at distances 1, 2 and 3; the third is negative."""

    model: int
    near: int
    middle: int
    far: int

    @property
    def residuals(self) -> tuple[int, int, int]:
        return self[1:]

    @property
    def targets(self) -> tuple[int, int, int]:
        return self.model + self.near, self.model + self.middle, self.model + self.far


def predictions(n: Memories) -> dict[str, float]:
    """A model that says the same everywhere, and three memories."""
    halving = 1 / math.log(2)  # the bandwidth at which a weight halves with each unit of distance

    def said(
        distances: Sequence[float] = DISTANCES,
        held: Sequence[float] = n.residuals,
        bandwidth: float = halving,
        model: float = n.model,
    ) -> float:
        return model + float(read(np.array(distances), np.array(held, float)[:, None], bandwidth)[0])

    twice = sorted(2 * list(zip(DISTANCES, n.residuals, strict=True)))[:3]
    return {
        "narrow": said(bandwidth=1e-3),
        "wide": said(bandwidth=1e9),
        "halving": said(),
        "far_away": said([1001.0, 1002.0, 1002.0]),
        "stored_twice": said([distance for distance, _ in twice], [residual for _, residual in twice]),
        "knn_alone": said(held=n.targets, model=0.0),
        "interpolates": said(held=[0.0, 0.0, 0.0]),
    }


def prediction_mistakes(n: Memories) -> tuple[Mistake, ...]:
    right, (model, a, b, c), (t_a, t_b, t_c) = predictions(n), n, n.targets
    halving, wide = model + (4 * a + 2 * b + c) / 7, model + (a + b + c) / 3
    squared = model + (256 * a + 32 * b + c) / 289  # 1/2, 1/16 and 1/512
    corrected = ("narrow", "wide", "halving", "far_away", "stored_twice")

    def mistake(says: str, **wrong: float) -> Mistake:
        return Mistake(says, right | wrong)

    return (
        mistake(
            f"this is the correction alone: ResMem adds it to the {model} that the model says",
            **{question: right[question] - model for question in (*corrected, "interpolates")},
        ),
        mistake(
            "the sign is turned: a residual is target minus prediction, so a model that said too little is corrected "
            "upwards",
            **{question: 2 * model - right[question] for question in corrected},
        ),
        mistake(
            "this is the exponent of kNN-LM, squared distances: ResMem takes the distance itself",
            halving=squared,
            far_away=model + a,
            stored_twice=model + (8 * a + 8 * a + b) / 17,
            knn_alone=(256 * t_a + 32 * t_b + t_c) / 289,
        ),
        mistake(
            "`narrow` and `wide` are the wrong way round: a narrow bandwidth hears the nearest memory alone, a wide "
            "one all alike",
            narrow=wide,
            wide=model + a,
        ),
        mistake("`narrow` is not no correction: the weights always sum to 1, and the nearest takes all", narrow=model),
        mistake(
            "`wide` is the sum of the residuals: the weights sum to 1, so it is their mean", wide=model + a + b + c
        ),
        mistake("`wide` is not no correction: it is the plain mean of the three residuals", wide=model),
        mistake(
            "`halving` is not normalised: 1/2, 1/4 and 1/8 are divided by their sum before they weigh anything",
            halving=model + a / 2 + b / 4 + c / 8,
        ),
        mistake(
            "`halving` takes 1, 1/2 and 1/4 as weights: they are divided by their sum, 7/4",
            halving=model + a + b / 2 + c / 4,
        ),
        mistake(
            "`halving` gives the far memory the largest weight: exp(-distance) falls with distance",
            halving=model + (a + 2 * b + 4 * c) / 7,
        ),
        mistake(
            "`halving` takes squared distances, weights of 1/2, 1/16 and 1/512: ResMem takes the distance itself",
            halving=squared,
        ),
        mistake(
            "`far_away` is corrected in full: 1000 units more multiply all three weights by the same factor, which "
            "cancels. ResMem does not know that it is far from home",
            far_away=model,
        ),
        mistake(
            "`far_away` has the ratios 2 : 1 : 1: what counts is how much farther one memory is than another",
            far_away=wide,
        ),
        mistake(
            "`far_away` has distances of its own: the second and the third are both one unit farther than the nearest",
            far_away=halving,
        ),
        mistake(
            "`stored_twice` reads k = 3 memories, and they are copies now: the two at distance 1, and one at distance "
            "2",
            stored_twice=halving,
        ),
        mistake(
            "`stored_twice` has its three nearest at distances 1, 1 and 2, and the one at 2 weighs half of each of the "
            "others",
            stored_twice=model + (a + a + b) / 3,
        ),
        mistake(
            "`stored_twice` changes nothing about a correction's size: weights sum to 1",
            stored_twice=2 * halving - model,
        ),
        mistake(
            f"`knn_alone` leaves the model out: the targets {t_a}, {t_b} and {t_c} are weighed, and nothing is added "
            "to them",
            knn_alone=model + halving,
        ),
        mistake("`knn_alone` reads targets, not residuals", knn_alone=halving - model),
        mistake("`knn_alone` has the weights of `halving`: this is the plain mean of the targets", knn_alone=wide),
        mistake("`knn_alone` has k = 3: this is the target of the nearest alone", knn_alone=t_a),
        mistake(
            "`interpolates` has nothing to add: a model that met every training target left residuals of 0, so ResMem "
            "says what the model says",
            interpolates=halving,
        ),
    )


def predicted_outputs(n: Memories) -> dict[str, Any]:
    model, a, b, c = n
    t_a, t_b, t_c = n.targets
    question = f"""\
A model says {model} whatever it is shown. ResMem stands around it with k = 3, and the three memories nearest to a query
lie at distances 1, 2 and 3; their targets were {t_a}, {t_b} and {t_c}. What does ResMem say? Predict the answers to the seven
situations below with pencil and paper before you run anything: each is a simple number, and two of them are the same,
not by chance."""  # noqa: E501
    stub = f"""\
# A dict of seven numbers. "halving" is a bandwidth at which a weight halves with each unit of distance.
#   "narrow"        the bandwidth is almost 0
#   "wide"          the bandwidth is almost infinite
#   "halving"       the bandwidth is halving
#   "far_away"      halving; another query, far from everything: the same three, at distances 1001, 1002 and 1002
#   "stored_twice"  halving; the whole training set was memorised twice, and k is still 3
#   "knn_alone"     halving; what the neighbours say alone, without the model: the same weights, over targets
#   "interpolates"  halving; the model is another one, which met every training target exactly, and says {model} here
predicted_outputs = None  # {{"narrow": ..., "wide": ..., ...}}"""
    hints = (
        f"A memory holds a residual, target minus prediction: {a}, {b} and {c}. ResMem adds their weighted mean to "
        f"{model}, and the weights sum to 1 whatever the bandwidth and however far the neighbours are.",
        "narrow: the nearest has all the weight. wide: all three weigh the same. halving: 1/2, 1/4 and 1/8 over their "
        "sum, which is 4/7, 2/7 and 1/7. What do 1000 units more, for all three, do to such ratios?",
        f"narrow {model} + {a}; wide {model} + ({a} + {b} - {-c})/3; halving {model} + (4*{a} + 2*{b} - {-c})/7; "
        f"far_away: 2 : 1 : 1, so {model} + (2*{a} + {b} - {-c})/4; stored_twice: the three nearest are at 1, 1 and 2, "
        f"so {model} + (2*{a} + 2*{a} + {b})/5; knn_alone (4*{t_a} + 2*{t_b} + {t_c})/7; interpolates: every residual "
        "is 0.",
    )
    return {
        "question": question,
        "stub": stub,
        "hints": hints,
        "oracle": partial(predictions, n),
        "mistakes": prediction_mistakes(n),
    }


PREDICTED_OUTPUTS = Family(
    predicted_outputs,
    usual=Memories(10, 6, 0, -3),
    others=[
        Memories(model, *residuals)
        for model, residuals in product(
            (15, 20, 24, 30),
            ((12, 0, -6), (9, 6, -6), (12, 3, -12), (12, 9, -3), (15, 3, -3)),
        )
    ],
)
