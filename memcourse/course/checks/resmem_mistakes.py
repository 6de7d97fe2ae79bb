"""The known wrong answers of chapter 05, each with the sentence that names it.

Each group has one right way in parts, and a mistake is that way with one part replaced.  They stand in the order in
which they should be recognised: the first that gives the learner's numbers is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from memcourse.course.checks.resmem_oracles import LinearClassifier, every_k_loop
from memcourse.course.exercise import Mistake
from memcourse.resmem import ResMem

# 5.2 residual_correction

Weigh = Callable[[Tensor, float], Tensor]  # of distances (Q, k) and the bandwidth: weights (Q, k)


def root(squared: Tensor) -> Tensor:
    return squared.sqrt()


def by_softmax(distances: Tensor, bandwidth: float) -> Tensor:
    return (-distances / bandwidth).softmax(dim=1)


def by_hand(distances: Tensor, bandwidth: float) -> Tensor:
    """Not yet divided by their sum."""
    return (-distances / bandwidth).exp()


def weighted(weights: Tensor, residuals: Tensor) -> Tensor:
    return (weights[:, :, None] * residuals).sum(dim=1)


def shares(weights: Tensor, least: float = 0.0) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True).clamp(min=least)


def corrected(
    distance: Callable[[Tensor], Tensor] = root,
    weigh: Weigh = by_softmax,
    mix: Callable[[Tensor, Tensor], Tensor] = weighted,
) -> Callable[..., Tensor]:
    """residual_correction, with a part replaced."""
    return lambda squared, residuals, bandwidth: mix(weigh(distance(squared), bandwidth), residuals)


SQUARED = "the distances are squared, as a Datastore returns them: take their root before they are divided"
FAR = (
    "a query that is far from all memories has weights of 0, and gets no correction: subtract the distance of the "
    "nearest from all of a row, which cancels, or take a softmax, which does so itself"
)
EMPTY = "the smallest of no distances does not exist: an empty memory, k = 0, should give zeros"

RESIDUAL_CORRECTION = (
    Mistake(SQUARED, corrected(distance=lambda squared: squared)),
    Mistake(
        "the distances are not negated: this gives the farthest memory the largest weight",
        corrected(weigh=lambda d, bandwidth: (d / bandwidth).softmax(dim=1)),
    ),
    Mistake(
        "the weights are not divided by their sum",
        corrected(weigh=by_hand),
    ),
    Mistake(
        "the weights are not divided by their sum: to subtract the nearest distance does not make them sum to 1",
        corrected(weigh=lambda d, bandwidth: by_hand(d - d[:, :1], bandwidth)),
    ),
    Mistake(
        "the weights are divided by k: divide them by their sum, so that they sum to 1 at any distance",
        corrected(weigh=lambda d, bandwidth: by_hand(d, bandwidth) / d.shape[1]),
    ),
    Mistake(
        "the distances are multiplied by the bandwidth: a wide bandwidth hears far memories, so it divides",
        corrected(weigh=lambda d, bandwidth: by_softmax(d, 1 / bandwidth)),
    ),
    Mistake("the bandwidth is not used", corrected(weigh=lambda d, bandwidth: by_softmax(d, 1.0))),
    Mistake(
        "the root is taken after the division by the bandwidth: first the distance, then distance / bandwidth",
        lambda squared, residuals, bandwidth: weighted(by_softmax((squared / bandwidth).sqrt(), 1.0), residuals),
    ),
    Mistake(
        "these are the weights of a Gaussian, exp(-distance^2 / (2 bandwidth^2)): ResMem takes exp(-distance / "
        "bandwidth), whose tail is longer",
        corrected(weigh=lambda d, bandwidth: (-d.square() / (2 * bandwidth**2)).softmax(dim=1)),
    ),
    Mistake(
        "these are the weights of a Gaussian, exp(-distance^2 / bandwidth^2): ResMem takes exp(-distance / bandwidth), "
        "whose tail is longer",
        corrected(weigh=lambda d, bandwidth: (-d.square() / bandwidth**2).softmax(dim=1)),
    ),
    Mistake(
        "this looks like a softmax over the queries: each column of weights sums to 1, and each row should",
        corrected(weigh=lambda d, bandwidth: (-d / bandwidth).softmax(dim=0)),
    ),
    Mistake(
        "one sum for all queries: each query divides by the sum of its own weights",
        corrected(weigh=lambda d, bandwidth: by_hand(d, bandwidth) / by_hand(d, bandwidth).sum()),
    ),
    Mistake(
        "this is the plain mean of the residuals, whatever the distances",
        lambda squared, residuals, bandwidth: residuals.mean(dim=1),
    ),
    Mistake(
        "this is the residual of the nearest alone: the others have their share",
        lambda squared, residuals, bandwidth: residuals[:, 0],
    ),
    Mistake(
        "far from all memories the weights are 0 / 0 = NaN: exp(-distance / bandwidth) underflows. Subtract the "
        "distance of the nearest from all of a row, which cancels, or take a softmax, which does so itself",
        corrected(weigh=lambda d, bandwidth: shares(by_hand(d, bandwidth))),
    ),
    Mistake(FAR, corrected(weigh=lambda d, bandwidth: shares(by_hand(d, bandwidth), least=1e-12))),
    Mistake(
        FAR, corrected(weigh=lambda d, bandwidth: by_hand(d, bandwidth) / (by_hand(d, bandwidth).sum(1, True) + 1e-8))
    ),
    Mistake(
        "these are the logarithms of the weights: softmax is asked, not log_softmax",
        corrected(weigh=lambda d, bandwidth: (-d / bandwidth).log_softmax(dim=1)),
    ),
    Mistake(
        "the weights alone are returned: read the residuals with them",
        corrected(mix=lambda weights, residuals: weights),
    ),
    Mistake(
        "the residuals are weighed, but not summed over the k neighbours",
        corrected(mix=lambda weights, residuals: weights[:, :, None] * residuals),
    ),
    Mistake(
        "(Q, k) @ (Q, k, C) reads every query's residuals with every query's weights, and gives (Q, Q, C): a query's "
        "weights go with its own residuals, which takes another axis or an einsum",
        corrected(mix=lambda weights, residuals: weights @ residuals),
    ),
    Mistake(
        "an axis too many: a (Q, 1, k) times (Q, k, C) product leaves (Q, 1, C)",
        corrected(mix=lambda weights, residuals: weights[:, None] @ residuals),
    ),
    Mistake("an axis of length 1 is lost", corrected(mix=lambda w, residuals: weighted(w, residuals).squeeze())),
    Mistake(
        EMPTY, corrected(weigh=lambda d, bandwidth: shares(by_hand(d - d.min(dim=1, keepdim=True).values, bandwidth)))
    ),
    Mistake(EMPTY, corrected(weigh=lambda d, bandwidth: shares(by_hand(d - d.amin(dim=1, keepdim=True), bandwidth)))),
    Mistake(
        "an empty memory gives 0 / 0 = NaN: its correction is zeros",
        corrected(
            weigh=lambda d, bandwidth: by_softmax(d, bandwidth),
            mix=lambda weights, residuals: weighted(weights, residuals) / weights.sum(1, True),
        ),
    ),
    Mistake(
        "the weights are cut off from the graph: the correction also depends on the distances",
        corrected(mix=lambda weights, residuals: weighted(weights.detach(), residuals)),
    ),
)

# 5.3 ResidualClassifier

Parts = dict[str, Callable[..., Any]]


class Remembering:
    """The right classifier, in parts that a mistake replaces."""

    def __init__(
        self,
        logits: Callable[[Tensor], Tensor],
        embed: Callable[[Tensor], Tensor],
        k: int,
        bandwidth: float,
        temperature: float,
    ) -> None:
        self.logits, self.embed, self.k, self.bandwidth, self.temperature = logits, embed, k, bandwidth, temperature
        self.keys, self.held = torch.zeros(0), torch.zeros(0)

    def memorize(self, x: Tensor, y: Tensor) -> None:
        predicted = self.predicted_when_memorised(x)
        held = self.residual(nn.functional.one_hot(y, predicted.shape[1]).float(), predicted)
        keys = self.key(x)
        self.keys, self.held = (keys, held) if not len(self.keys) else self.joined(keys, held)

    def __call__(self, x: Tensor) -> Tensor:
        found = self.found(self.distances(self.query(x), self.keys))
        weights = self.weights(found.values)
        correction = (weights[:, :, None] * self.held[found.indices]).sum(dim=1)
        return self.result(self.predicted(x), correction)

    def predicted(self, x: Tensor) -> Tensor:
        return (self.logits(x) / self.temperature).softmax(dim=1)

    def predicted_when_memorised(self, x: Tensor) -> Tensor:
        return (self.logits(x) / self.temperature).softmax(dim=1)

    def residual(self, one_hot: Tensor, predicted: Tensor) -> Tensor:
        return one_hot - predicted

    def key(self, x: Tensor) -> Tensor:
        return self.embed(x)

    def query(self, x: Tensor) -> Tensor:
        return self.embed(x)

    def joined(self, keys: Tensor, held: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat([self.keys, keys]), torch.cat([self.held, held])

    def distances(self, queries: Tensor, keys: Tensor) -> Tensor:
        return (queries[:, None] - keys).norm(dim=2)

    def found(self, distances: Tensor) -> Any:
        return distances.topk(self.k, dim=1, largest=False)

    def weights(self, distances: Tensor) -> Tensor:
        return (-distances / self.bandwidth).softmax(dim=1)

    def result(self, predicted: Tensor, correction: Tensor) -> Any:
        return predicted + correction


def remembering(**parts: Callable[..., Any]) -> type[Remembering]:
    """The right classifier with some of its methods replaced."""
    return type("Remembering", (Remembering,), parts)


FAULTS: dict[str, Parts] = {
    "the correction has a weight: kNN-LM mixes two distributions by one, ResMem adds a residual as it is": {
        "result": lambda self, predicted, correction: 0.5 * predicted + 0.5 * correction
    },
    "this reads the k farthest memories: topk takes the largest unless it is told otherwise": {
        "found": lambda self, distances: distances.topk(self.k, dim=1)
    },
    "what was memorised earlier is lost: memorize adds to what is there": {
        "joined": lambda self, keys, held: (keys, held)
    },
    "a residual is made of other probabilities than those it is added to: memorize leaves the temperature out": {
        "predicted_when_memorised": lambda self, x: self.logits(x).softmax(dim=1)
    },
}


MORE_FAULTS = ("", ". One more fault is left", ". Two more faults are left")
UNTOUCHED = "four faults are left: memorise one example, and ask for it with k = 1, at distance 0"


def what_is_left_of_the_stub() -> Iterator[Mistake]:
    """A mistake for every set of faults that is left: it names the first, and says how many more there are."""
    for how_many in range(1, len(FAULTS) + 1):
        for left in combinations(FAULTS, how_many):
            says = left[0] + MORE_FAULTS[how_many - 1] if how_many < len(FAULTS) else UNTOUCHED
            parts = {name: part for fault in left for name, part in FAULTS[fault].items()}
            yield Mistake(says, remembering(**parts))


OTHER_TEMPERATURE = "a residual and the prediction that it is added to must be made with the same temperature"

RESIDUAL_CLASSIFIER = (
    *what_is_left_of_the_stub(),
    Mistake(
        f"{OTHER_TEMPERATURE}: here the residual has it, and the prediction does not",
        remembering(predicted=lambda self, x: self.logits(x).softmax(dim=1)),
    ),
    Mistake(
        "the temperature is not used at all: logits / temperature goes into both softmaxes",
        remembering(
            predicted=lambda self, x: self.logits(x).softmax(dim=1),
            predicted_when_memorised=lambda self, x: self.logits(x).softmax(dim=1),
        ),
    ),
    Mistake(
        "the logits are multiplied by the temperature: they are divided by it",
        remembering(
            predicted=lambda self, x: (self.logits(x) * self.temperature).softmax(dim=1),
            predicted_when_memorised=lambda self, x: (self.logits(x) * self.temperature).softmax(dim=1),
        ),
    ),
    *(
        Mistake(
            "the residual is that of the logits: subtract probabilities from the one-hot vector",
            remembering(predicted_when_memorised=predicted),
        )
        for predicted in (lambda self, x: self.logits(x), lambda self, x: self.logits(x) / self.temperature)
    ),
    Mistake(
        "these are corrected logits: p(x) + correction, where p(x) is a softmax",
        remembering(predicted=lambda self, x: self.logits(x) / self.temperature),
    ),
    Mistake(
        "the sign is turned: a residual is one_hot - p, what the model should have said more",
        remembering(residual=lambda self, one_hot, predicted: predicted - one_hot),
    ),
    Mistake(
        "this stores the labels, not what the model got wrong about them: a residual is one_hot - p",
        remembering(residual=lambda self, one_hot, predicted: one_hot),
    ),
    Mistake(
        "this is kNN alone: the model's own p(x) is missing, and the memory holds labels",
        remembering(
            residual=lambda self, one_hot, predicted: one_hot, result=lambda self, predicted, correction: correction
        ),
    ),
    Mistake(
        "this is the correction alone: p(x) is added to it",
        remembering(result=lambda self, predicted, correction: correction),
    ),
    Mistake(
        "the correction has a weight: ResMem adds it as it is",
        remembering(result=lambda self, predicted, correction: predicted + 0.5 * correction),
    ),
    Mistake(
        "the scores go through a softmax again: p + correction is the answer, though it may leave [0, 1]",
        remembering(result=lambda self, predicted, correction: (predicted + correction).softmax(dim=1)),
    ),
    Mistake(
        "the scores are cut at 0 and 1: scores may leave [0, 1]; leave them as they are",
        remembering(result=lambda self, predicted, correction: (predicted + correction).clamp(0, 1)),
    ),
    *(
        Mistake(
            "the scores are cut, and divided by their sum: scores may leave [0, 1]; leave them as they are",
            remembering(
                result=lambda self, predicted, correction, most=most: shares((predicted + correction).clamp(0, most))
            ),
        )
        for most in (1.0, None)
    ),
    Mistake(
        "these are the predicted classes: the scores are asked, (n, C)",
        remembering(result=lambda self, predicted, correction: (predicted + correction).argmax(dim=1)),
    ),
    Mistake(
        "the distances are squared: d_i is not, it is the root of the sum of squares",
        remembering(distances=lambda self, queries, keys: (queries[:, None] - keys).square().sum(dim=2)),
    ),
    *(
        Mistake(
            "these are the weights of a Gaussian: d_i is not squared, and neither is the bandwidth",
            remembering(weights=lambda self, d, half=half: (-half * (d / self.bandwidth).square()).softmax(dim=1)),
        )
        for half in (1.0, 0.5)
    ),
    Mistake(
        "the weights are not divided by their sum",
        remembering(weights=lambda self, distances: (-distances / self.bandwidth).exp()),
    ),
    Mistake(
        "the distances are not negated: among the k, this gives the farthest the largest weight",
        remembering(weights=lambda self, distances: (distances / self.bandwidth).softmax(dim=1)),
    ),
    Mistake(
        "all k weigh the same: exp(-d_i / bandwidth) is missing",
        remembering(weights=lambda self, distances: torch.full_like(distances, 1 / self.k)),
    ),
    Mistake(
        "the memory is addressed by x itself: distances are between embeddings",
        remembering(key=lambda self, x: x, query=lambda self, x: x),
    ),
    Mistake(
        "the memory is addressed by the logits: distances are between embeddings",
        remembering(key=lambda self, x: self.logits(x), query=lambda self, x: self.logits(x)),
    ),
    Mistake(
        "all memories are read: the k nearest are asked",
        remembering(found=lambda self, distances: distances.topk(distances.shape[1], dim=1, largest=False)),
    ),
    Mistake(
        "an axis of length 1 is lost",
        remembering(result=lambda self, predicted, correction: (predicted + correction).squeeze()),
    ),
)

# 5.4 error_for_every_k


def beyond_the_nearest(distances: Tensor, bandwidth: float) -> Tensor:
    return (-(distances - distances[:, :1]) / bandwidth).exp()


def running(weights: Tensor, residuals: Tensor) -> Tensor:
    """(Q, K), (Q, K, C) -> (Q, K, C): the correction of the k nearest, for every k."""
    return (weights[:, :, None] * residuals).cumsum(dim=1) / weights.cumsum(dim=1)[:, :, None]


def over_queries_and_outputs(squared: Tensor) -> Tensor:
    return squared.mean(dim=(0, 2))


def every_k(
    weigh: Weigh = beyond_the_nearest,
    correct: Callable[[Tensor, Tensor], Tensor] = running,
    error: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda said, corrections, targets: said + corrections - targets,
    mean: Callable[[Tensor], Tensor] = over_queries_and_outputs,
) -> Callable[..., Tensor]:
    """error_for_every_k, with a part replaced."""

    def errors(prediction: Tensor, distances: Tensor, residuals: Tensor, targets: Tensor, bandwidth: float) -> Tensor:
        corrections = correct(weigh(distances, bandwidth), residuals)
        return mean(error(prediction[:, None], corrections, targets[:, None]).square())

    return errors


def from_zero(prediction: Tensor, distances: Tensor, residuals: Tensor, targets: Tensor, bandwidth: float) -> Tensor:
    base = (prediction - targets).square().mean()[None]
    return torch.cat([base, every_k()(prediction, distances, residuals, targets, bandwidth)[:-1]])


def table_of_masks(
    prediction: Tensor, distances: Tensor, residuals: Tensor, targets: Tensor, bandwidth: float
) -> Tensor:
    K = distances.shape[1]
    hidden = torch.ones(K, K, dtype=torch.bool).triu(1)
    weights = (-distances[:, None] / bandwidth).masked_fill(hidden, -math.inf).softmax(dim=2)  # (Q, K, K)
    return (prediction[:, None] + weights @ residuals - targets[:, None]).square().mean(dim=(0, 2))


UNDERFLOW = (
    "a query that is far from all its neighbours gives 0 / 0 = NaN: subtract the distance of its nearest from all its "
    "distances, which cancels in the weights"
)

K_READS = (
    "this still makes a mean of its own for each k, in a loop or in a table of K x K weights: the sums of the k "
    "nearest are those of the k - 1 nearest and one term more"
)

ERROR_FOR_EVERY_K = (
    Mistake(UNDERFLOW, every_k(weigh=by_hand)),
    Mistake(
        "a query that is far from all its neighbours has weights of 0, and gets no correction: subtract the distance "
        "of its nearest from all its distances, which cancels in the weights",
        every_k(weigh=by_hand, correct=lambda w, r: (w[:, :, None] * r).cumsum(1) / (w.cumsum(1)[:, :, None] + 1e-12)),
    ),
    Mistake(
        "the weights are those of all K neighbours: when k are read, the weights of these k sum to 1",
        every_k(weigh=by_softmax, correct=lambda weights, residuals: (weights[:, :, None] * residuals).cumsum(dim=1)),
    ),
    Mistake(
        "the weights are not divided by their sum",
        every_k(correct=lambda weights, residuals: (weights[:, :, None] * residuals).cumsum(dim=1)),
    ),
    Mistake(
        "all k weigh the same: exp(-distance / bandwidth) is missing",
        every_k(weigh=lambda distances, bandwidth: torch.ones_like(distances)),
    ),
    Mistake(
        "the weighted residuals are divided by k: divide them by the running sum of the weights",
        every_k(correct=lambda w, r: (w[:, :, None] * r).cumsum(1) / torch.arange(1, w.shape[1] + 1)[:, None]),
    ),
    Mistake(
        "no running sum: this is the error of reading neighbour k alone, not the k nearest",
        every_k(correct=lambda weights, residuals: residuals),
    ),
    Mistake(
        "the distances are not negated: this gives the farthest the largest weight",
        every_k(weigh=lambda distances, bandwidth: beyond_the_nearest(distances, -bandwidth)),
    ),
    Mistake(
        "the bandwidth is not used", every_k(weigh=lambda distances, bandwidth: beyond_the_nearest(distances, 1.0))
    ),
    Mistake(
        "these distances are no longer squared: no root is taken",
        every_k(weigh=lambda distances, bandwidth: beyond_the_nearest(distances.sqrt(), bandwidth)),
    ),
    Mistake(
        "the running sums run over the queries: they run over the neighbours, dim=1",
        every_k(correct=lambda w, r: (w[:, :, None] * r).cumsum(dim=0) / w.cumsum(dim=0)[:, :, None]),
    ),
    Mistake(
        "the neighbours are read from the far end: the k nearest are the first k",
        every_k(correct=lambda w, r: running(w.flip(1), r.flip(1))),
    ),
    Mistake(
        "the errors stand in the wrong order: k = 1 comes first",
        every_k(mean=lambda squared: over_queries_and_outputs(squared).flip(0)),
    ),
    Mistake(
        "the prediction is left out: this is the error of the correction alone",
        every_k(error=lambda said, corrections, targets: corrections - targets),
    ),
    Mistake(
        "the correction is subtracted: a residual is added to what the model says",
        every_k(error=lambda said, corrections, targets: said - corrections - targets),
    ),
    Mistake(
        "the errors are summed over the outputs: the loop takes the mean over queries and outputs",
        every_k(mean=lambda squared: squared.sum(dim=2).mean(dim=0)),
    ),
    Mistake(
        "the errors are summed: the loop takes the mean over queries and outputs",
        every_k(mean=lambda squared: squared.sum(dim=(0, 2))),
    ),
    Mistake(
        "these are the errors of every query: take the mean over queries and outputs, dim=(0, 2)",
        every_k(mean=lambda squared: squared.mean(dim=2)),
    ),
    Mistake(
        "this is the mean over all k: one error for each k is asked, so the mean is over dim=(0, 2)",
        every_k(mean=lambda squared: squared.mean()),
    ),
    Mistake(
        "this is the best k: the error of every k is asked",
        every_k(mean=lambda squared: over_queries_and_outputs(squared).argmin() + 1),
    ),
    Mistake(
        "these are roots of mean squared errors: the loop takes no root",
        every_k(mean=lambda squared: over_queries_and_outputs(squared).sqrt()),
    ),
    Mistake(
        "no gradient flows: the result is cut off from the graph",
        every_k(mean=lambda squared: over_queries_and_outputs(squared).detach()),
    ),
    Mistake(
        "this begins at k = 0, where nothing is read: the first error is that of reading the nearest alone",
        from_zero,
    ),
    Mistake(K_READS, every_k_loop),
    Mistake(K_READS, table_of_masks),
)


# 5.7 three_errors

Pair = tuple[Tensor, Tensor]
Three = tuple[Pair, Pair, Pair]


def probabilities_of(model: LinearClassifier) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.from_numpy(model.predict_proba(x.numpy())).float()


def labels_of(model: LinearClassifier) -> Callable[[Tensor], Tensor]:
    def predict(x: Tensor) -> Tensor:
        return nn.functional.one_hot(torch.from_numpy(model.predict(x.numpy())), len(model.classes_)).float()

    return predict


def share_wrong(scores: Tensor, y: Tensor) -> Any:
    return (scores.argmax(dim=1) != y).float().mean().item()


def joined(*pairs: Pair) -> Pair:
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


def reported(
    predict_with: Callable[[LinearClassifier], Callable[[Tensor], Any]] = probabilities_of,
    memorised: Callable[..., Pair] = lambda train, held_out, test: train,
    tuned_on: Callable[..., Pair | None] = lambda train, held_out, test: held_out,
    then_memorised: Callable[..., Pair | None] = lambda train, held_out, test: None,
    tested_on: Callable[..., Pair] = lambda train, held_out, test: test,
    share: Callable[[Tensor, Tensor], Any] = share_wrong,
    scores: Callable[[ResMem, Tensor], tuple[Any, Any, Any]] = lambda memory, x: (
        memory.predict(x),
        memory.nearest(x),
        memory(x),
    ),
    embed_with: Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]] = lambda predict: lambda x: x,
    result: Callable[[dict[str, Any]], Any] = lambda errors: errors,
) -> Callable[..., Any]:
    """three_errors, with a part replaced."""

    def three(model: LinearClassifier, train: Pair, held_out: Pair, test: Pair, ks: Any, bandwidths: Any) -> Any:
        predict, parts = predict_with(model), (train, held_out, test)
        memory = ResMem(predict, embed_with(predict), k=ks[0], bandwidth=bandwidths[0])
        memory.memorize(*memorised(*parts))
        if tuning := tuned_on(*parts):
            memory.tune(*tuning, ks=ks, bandwidths=bandwidths)
        if more := then_memorised(*parts):
            memory.memorize(*more)
        x, y = tested_on(*parts)
        names = ("base", "kNN alone", "ResMem")
        return result({name: share(said, y) for name, said in zip(names, scores(memory, x), strict=True)})

    return three


THREE_ERRORS = (
    Mistake(
        "k and bandwidth are chosen on the test set: what is measured there is then no longer an error on new data",
        reported(tuned_on=lambda train, held_out, test: test),
    ),
    Mistake(
        "this reads the nearest memory alone: either tune was not called, or it was given what is memorised, where "
        "every example finds itself at distance 0, so that k = 1 looks perfect",
        reported(tuned_on=lambda train, held_out, test: train),
    ),
    Mistake(
        "the held-out examples are memorised before tune, and find themselves at distance 0 there",
        reported(memorised=lambda train, held_out, test: joined(train, held_out)),
    ),
    Mistake(
        "the memory was never tuned: it reads with the first k and the first bandwidth",
        reported(tuned_on=lambda train, held_out, test: None),
    ),
    Mistake(
        "the held-out examples are memorised, too: train alone is asked for",
        reported(then_memorised=lambda train, held_out, test: held_out),
    ),
    Mistake(
        "the memory holds the test set, and each test example finds itself there",
        reported(memorised=lambda train, held_out, test: joined(train, test)),
    ),
    Mistake(
        "the memory holds the test set, and each test example finds itself there",
        reported(then_memorised=lambda train, held_out, test: test),
    ),
    Mistake(
        "the memory holds the held-out examples in place of train, and finds them again when it is tuned",
        reported(memorised=lambda train, held_out, test: held_out),
    ),
    Mistake(
        "the errors are those on held_out, on which k and bandwidth were chosen: take test",
        reported(tested_on=lambda train, held_out, test: held_out),
    ),
    Mistake(
        "the errors are those on train, which the memory holds: take test",
        reported(tested_on=lambda train, held_out, test: train),
    ),
    Mistake(
        "these are shares of right labels: the shares of wrong ones are asked",
        reported(share=lambda scores, y: 1 - share_wrong(scores, y)),
    ),
    Mistake(
        "these are percentages: shares between 0 and 1 are asked",
        reported(share=lambda scores, y: 100 * share_wrong(scores, y)),
    ),
    Mistake(
        "these are numbers of wrong labels: divide by how many there are",
        reported(share=lambda scores, y: share_wrong(scores, y) * len(y)),
    ),
    Mistake(
        "`kNN alone` and `ResMem` are the wrong way round: memory.nearest(x) leaves the model out, memory(x) does not",
        reported(scores=lambda memory, x: (memory.predict(x), memory(x), memory.nearest(x))),
    ),
    Mistake(
        "`base` is the model with its memory: predict(x) alone is asked",
        reported(scores=lambda memory, x: (memory(x), memory.nearest(x), memory(x))),
    ),
    Mistake(
        "`kNN alone` has the model in it: memory.nearest(x) leaves it out",
        reported(scores=lambda memory, x: (memory.predict(x), memory(x), memory(x))),
    ),
    Mistake(
        "`ResMem` adds what the neighbours' targets are: memory(x) adds their residuals",
        reported(
            scores=lambda memory, x: (memory.predict(x), memory.nearest(x), memory.predict(x) + memory.nearest(x))
        ),
    ),
    Mistake(
        "predict says labels where it should say probabilities: the residuals are then 0 wherever the model is right, "
        "however unsure; take predict_proba",
        reported(predict_with=labels_of),
    ),
    Mistake(
        "the memory is addressed by the model's probabilities: the embedding asked for is x itself",
        reported(embed_with=lambda predict: predict),
    ),
    Mistake(
        "the errors are tensors: .item() takes a number out of its tensor",
        reported(share=lambda scores, y: (scores.argmax(dim=1) != y).float().mean()),
    ),
    Mistake(
        "these are three numbers without their names: a dict with the keys base, kNN alone and ResMem is asked",
        reported(result=lambda errors: tuple(errors.values())),
    ),
    Mistake(
        "the scores are NumPy's, and torch is asked for: torch.from_numpy(...).float()",
        reported(predict_with=lambda model: lambda x: model.predict_proba(x.numpy())),
    ),
)
