"""Bad input to ResMem is refused with a ValueError: the argument, the value and what is allowed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from memcourse.resmem import ResMem, residual_read

DRAW = torch.zeros
NAN, INF = float("nan"), float("inf")
LABELS = torch.tensor([0, 1, 2])


def memory(output: Tensor | None = None, embedding: Tensor | None = None, **kwargs: Any) -> ResMem:
    """predict and embed give these, whatever comes in; a third each for three classes unless told."""
    output = torch.full((3, 3), 1 / 3) if output is None else output
    embedding = torch.eye(3) if embedding is None else embedding
    return ResMem(lambda x: output, lambda x: embedding, **({"k": 2, "bandwidth": 0.5} | kwargs))


def memorized(y: Tensor, output: Tensor | None = None, embedding: Tensor | None = None, n: int = 3) -> None:
    memory(output, embedding).memorize(DRAW(n, 4), y)


def filled() -> ResMem:
    held = memory()
    held.memorize(DRAW(3, 4), LABELS)
    return held


def tuned(y: Tensor = LABELS, ks: Any = (1,), bandwidths: Any = (1.0,), n: int = 3) -> None:
    filled().tune(DRAW(n, 4), y, ks=ks, bandwidths=bandwidths)


def asked(output: Tensor, embedding: Tensor | None = None) -> None:
    held = filled()
    held.predict = lambda x: output
    if embedding is not None:
        held.embed = lambda x: embedding
    held(DRAW(3, 4))


LOGITS = torch.tensor([[2.0, -1.0, 0.5]]).repeat(3, 1)

REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "residuals of another k": (
        lambda: residual_read(DRAW(2, 3), DRAW(2, 4, 5), bandwidth=1.0),
        ["residuals", "(2, 4, 5)", "(2, 3, 'n_outputs')"],
    ),
    "residuals that are numbers": (
        lambda: residual_read(DRAW(2, 3), DRAW(2, 3), bandwidth=1.0),
        ["residuals", "(2, 3)"],
    ),
    "a bandwidth of 0": (lambda: residual_read(DRAW(3), DRAW(3, 5), bandwidth=0.0), ["bandwidth", "0.0", "above 0"]),
    "a negative bandwidth": (lambda: residual_read(DRAW(3), DRAW(3, 5), bandwidth=-1.0), ["bandwidth", "-1.0"]),
    "a bandwidth of nan": (lambda: residual_read(DRAW(3), DRAW(3, 5), bandwidth=NAN), ["bandwidth", "nan"]),
    "a distance of nan": (
        lambda: residual_read(torch.tensor([0.0, NAN]), DRAW(2, 5), bandwidth=1.0),
        ["distances", "nan", "inf for a neighbour that is missing"],
    ),
    "k of 0": (lambda: memory(k=0), ["k", "0", "at least 1"]),
    "no bandwidth": (lambda: memory(bandwidth=0.0), ["bandwidth", "0.0", "above 0"]),
    "fewer targets than examples": (lambda: memorized(LABELS, n=4), ["y", "3 targets", "4 examples"]),
    "logits": (lambda: memorized(LABELS, LOGITS), ["predict", "logits?", "probabilities", "1.5", "-1"]),
    "logits that are positive": (lambda: memorized(LABELS, DRAW(3, 3) + 1), ["predict", "logits?", "sum to 3"]),
    "log-probabilities": (lambda: memorized(LABELS, LOGITS.log_softmax(-1)), ["predict", "probabilities"]),
    "sums of 1 below 0": (
        lambda: memorized(LABELS, torch.tensor([[1.5, -0.5, 0.0]]).repeat(3, 1)),
        ["predict", "-0.5", "at least 0"],
    ),
    "one row that is not probabilities": (
        lambda: memorized(LABELS, torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 2]])),
        ["predict", "1 ... 2", "summing to 1"],
    ),
    "a prediction of nan": (lambda: memorized(LABELS, DRAW(3, 3) + NAN), ["predict", "finite"]),
    "a target of nan": (lambda: memorized(DRAW(3) + NAN, DRAW(3)), ["y", "nan", "finite"]),
    "an endless number predicted": (lambda: memorized(DRAW(3), DRAW(3) + INF), ["predict", "inf", "finite"]),
    "a label beyond the classes": (lambda: memorized(LABELS + 1), ["y", "1 ... 3", "0 to 2"]),
    "a label below 0": (lambda: memorized(LABELS - 100), ["y", "-100 ... -98", "0 to 2"]),
    "labels in a column": (lambda: memorized(LABELS[:, None]), ["y", "(3, 1)", "(n,)"]),
    "labels that are truth values": (lambda: memorized(LABELS > 0), ["y", "bool", "integer labels"]),
    "one probability for two classes": (lambda: memorized(LABELS, DRAW(3)), ["predict", "(3,)", "(n, C)"]),
    "a column predicted, numbers given": (lambda: memorized(DRAW(3), DRAW(3, 1)), ["y", "(3,)", "(3, 1)"]),
    "targets of another width": (lambda: memorized(DRAW(3, 2), DRAW(3, 3)), ["y", "(3, 2)", "(3, 3)"]),
    "a prediction of maps": (lambda: memorized(DRAW(3, 2, 2), DRAW(3, 2, 2)), ["predict", "(3, 2, 2)"]),
    "fewer predictions": (lambda: memorized(DRAW(3), DRAW(2)), ["predict", "(2,)", "n=3"]),
    "fewer embeddings": (lambda: memorized(LABELS, None, torch.eye(2)), ["embed", "(2, 2)", "n=3"]),
    "embeddings that are numbers": (lambda: memorized(LABELS, None, DRAW(3)), ["embed", "(3,)", "(n, d)"]),
    "an embedding of nan": (lambda: memorized(LABELS, None, DRAW(3, 3) + NAN), ["nan"]),
    "other classes than memorised": (lambda: asked(DRAW(3, 5)), ["predict", "(3, 5)", "memorised"]),
    "queries of another width": (lambda: asked(DRAW(3, 3), DRAW(3, 5)), ["quer", "(3, 5)", "3"]),
    "kNN alone on an empty memory": (lambda: memory().nearest(DRAW(3, 4)), ["memory", "0 examples", "memorize"]),
    "tuned on an empty memory": (
        lambda: memory().tune(DRAW(3, 4), LABELS, ks=[1], bandwidths=[1.0]),
        ["memory", "0 examples", "memorize"],
    ),
    "tuned on nothing": (lambda: tuned(LABELS[:0], n=0), ["x and y", "0 and 0"]),
    "tuned on fewer targets": (lambda: tuned(LABELS[:2]), ["x and y", "3 and 2"]),
    "an empty grid": (lambda: tuned(ks=[]), ["ks", "[]", "at least one"]),
    "a grid with a k of 0": (lambda: tuned(ks=[1, 0]), ["k", "0", "at least 1"]),
    "a grid with a bandwidth of 0": (lambda: tuned(bandwidths=[1.0, 0.0]), ["bandwidth", "0.0", "above 0"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    call, words = REFUSED[name]
    with pytest.raises(ValueError, match="must be .*") as error:
        call()
    missing = [word for word in words if word not in str(error.value)]
    assert not missing, f"{error.value} does not say {missing}"


def test_what_is_refused_in_a_later_block_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memcourse.resmem.BLOCK", 2)
    held = ResMem(lambda x: x, lambda x: x, k=1, bandwidth=1.0)
    held.memorize(torch.eye(3), LABELS)
    with pytest.raises(ValueError, match="logits"):
        held.memorize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [5, 5, 5]]), LABELS)
    assert len(held) == 3


def test_a_refused_tune_changes_nothing() -> None:
    held = filled()
    with pytest.raises(ValueError, match="bandwidth"):
        held.tune(DRAW(3, 4), LABELS, ks=[1], bandwidths=[1.0, -1.0])
    assert (held.k, held.bandwidth) == (2, 0.5)
