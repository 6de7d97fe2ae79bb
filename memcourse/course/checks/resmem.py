"""The exercises of chapter 05, a memory of what a model got wrong: what is asked, the stubs, the hints.

How answers are used and what is right stands in resmem_oracles.py, the known wrong answers in resmem_mistakes.py.
"""

from __future__ import annotations

from memcourse.course.checks import resmem_limits as limits
from memcourse.course.checks import resmem_mistakes as mistakes
from memcourse.course.checks import resmem_oracles as oracles
from memcourse.course.checks import resmem_variants as variants
from memcourse.course.checks.attention_oracles import call, itself
from memcourse.course.exercise import Exercise

PREDICTED_OUTPUTS = Exercise(
    id="5.1",
    name="predicted_outputs",
    title="What the memory adds",
    kind="predict, then run",
    points=2,
    minutes=6,
    difficulty="easy",
    cases=lambda: [()],
    probe=itself,
    tolerance=1e-3,
    variant=variants.PREDICTED_OUTPUTS,
    **variants.PREDICTED_OUTPUTS.of_the_course,
)

RESIDUAL_CORRECTION = Exercise(
    id="5.2",
    name="residual_correction",
    title="The read: a mean of residuals",
    kind="write the equation",
    points=3,
    minutes=12,
    difficulty="easy",
    question="""\
Write the correction of ResMem, $\\sum_i w_i r_i$ with $w_i = e^{-d_i/\\sigma} / \\sum_j e^{-d_j/\\sigma}$, from
what a search hands you. Three things are easy to miss: a `Datastore` gives **squared** distances, and $d_i$ is
their root; far from all memories every $e^{-d_i/\\sigma}$ is 0 in float32, and the weights must sum to 1 all the
same; and an index may find fewer than k neighbours.""",
    stub='''\
def residual_correction(squared_distances, residuals, bandwidth):
    """The mean of each query's k residuals, with weights exp(-distance / bandwidth) that sum to 1.

    squared_distances: (Q, k), residuals: (Q, k, C), bandwidth: a number above 0 -> (Q, C).
    A neighbour that was not found has the distance inf and weighs nothing. k may be 0 (an empty memory): the
    correction is then 0. Otherwise at least one neighbour of each query was found, however far away.
    """
    raise NotImplementedError''',
    hints=(
        "exp(-d/bandwidth) divided by its sum over the neighbours is a function that torch has, and that stays exact "
        "however large d is. What is it called, and over which axis?",
        "`weights = (-squared_distances.sqrt() / bandwidth).softmax(dim=1)` is (Q, k); -inf becomes 0. Each weight "
        "multiplies a row of C residuals, so it needs an axis more.",
        "`weights[:, :, None]` is (Q, k, 1); times the residuals (Q, k, C), then the sum over dim=1 gives (Q, C), and "
        "zeros where k is 0.",
    ),
    cases=oracles.correction_cases,
    probe=call,
    oracle=oracles.correction_oracle,
    mistakes=mistakes.RESIDUAL_CORRECTION,
    properties=(oracles.one_query_and_an_empty_memory,),
)

RESIDUAL_CLASSIFIER = Exercise(
    id="5.3",
    name="ResidualClassifier",
    title="Repair a ResMem that runs",
    kind="repair this",
    points=4,
    minutes=20,
    difficulty="medium",
    question="""\
A ResMem for classification, put together from memory after reading about kNN-LM. It runs, and its scores sum to the
same number in every row, as scores should. It has four faults. Repair it until it does what the docstring says.
Faults like these raise no error; they are found by asking what a single memory, at distance 0, should do to the
prediction there, and then what a second memory, far away and added later, should do.""",
    stub='''\
class ResidualClassifier:
    """A classifier, corrected by the residuals of its neighbours.

        p(x)      = softmax(logits(x) / temperature)
        r_i       = one_hot(y_i) - p(x_i)
        scores(x) = p(x) + sum_i w_i r_i    over the k memories nearest to x
        w_i       = exp(-d_i / bandwidth), divided by their sum;    d_i = |embed(x) - embed(x_i)|

    logits: (n, ...) -> (n, C) and embed: (n, ...) -> (n, Z) are functions; k is at most what was added.
    memorize(x, y) adds examples with labels y (n,), integers from 0 to C - 1; x -> scores (n, C) reads k of all added.
    """

    def __init__(self, logits, embed, k, bandwidth, temperature):
        raise NotImplementedError  # delete this line first; everything below is the broken version
        self.logits, self.embed = logits, embed
        self.k, self.bandwidth, self.temperature = k, bandwidth, temperature

    def memorize(self, x, y):
        probabilities = self.logits(x).softmax(dim=1)
        self.keys = self.embed(x)  # (n, Z)
        self.residuals = nn.functional.one_hot(y, probabilities.shape[1]) - probabilities  # (n, C)

    def __call__(self, x):
        distances = torch.cdist(self.embed(x), self.keys)  # (Q, n)
        found = distances.topk(self.k, dim=1)
        weights = (-found.values / self.bandwidth).softmax(dim=1)  # (Q, k)
        correction = (weights[:, :, None] * self.residuals[found.indices]).sum(dim=1)  # (Q, C)
        probabilities = (self.logits(x) / self.temperature).softmax(dim=1)
        return 0.5 * probabilities + 0.5 * correction''',
    hints=(
        "Take k = 1, memorise one example, and ask for it: the scores must be its one-hot vector, exactly. Which two "
        "lines spoil that? Then memorise a second example far from the first, and ask for the first again.",
        "A residual and the prediction that it is added to must be made in the same way; ResMem has no weight to mix "
        "by, it adds. What does topk return unless it is told otherwise? And what has become of the examples that "
        "an earlier memorize stored?",
        "Both softmaxes take logits / temperature; `topk(self.k, dim=1, largest=False)`; return probabilities + "
        "correction; start keys and residuals as None, and torch.cat the old with the new where there is an old.",
    ),
    cases=oracles.classifier_cases,
    probe=oracles.classifier_probe,
    oracle=oracles.classifier_oracle,
    mistakes=mistakes.RESIDUAL_CLASSIFIER,
    gradient=False,  # a memory is stored, not trained
)

ERROR_FOR_EVERY_K = Exercise(
    id="5.4",
    name="error_for_every_k",
    title="Every k for the price of one",
    kind="make it fast",
    points=5,
    minutes=25,
    difficulty="hard",
    question="""\
To choose k, one asks for the error on held-out examples at k = 1, 2, 3, ... up to K, the largest k that is tried. The
search is done once, with K neighbours; what follows need not be done K times either, since the k nearest are the
first k of the K. Write the docstring's loop for all k at once: the same numbers, at least five times as fast for
K = 128, and without a table of K x K for each query.""",
    stub='''\
def error_for_every_k(prediction, distances, residuals, targets, bandwidth):
    """The mean squared error of ResMem when it reads the k nearest of K neighbours, for each k = 1 ... K.

    prediction: (Q, C), distances: (Q, K), not squared, nearest first, residuals: (Q, K, C), targets: (Q, C) -> (K,).
    The same numbers as this loop, for all k at once:

        errors = []
        for k in range(1, distances.shape[1] + 1):
            weights = (-distances[:, :k] / bandwidth).softmax(dim=1)
            correction = (weights[:, :, None] * residuals[:, :k]).sum(dim=1)
            errors.append((prediction + correction - targets).square().mean())
        return torch.stack(errors)

    A query may be far from all its neighbours: exp(-distance / bandwidth) is 0 there in float32.
    """
    raise NotImplementedError''',
    hints=(
        "The correction at k is a sum of weighted residuals, divided by a sum of weights. What has to be added to the "
        "two sums at k to get those at k + 1? And which torch function gives all such running sums at once?",
        "`weights.cumsum(dim=1)` is (Q, K): entry k - 1 is the sum of the k nearest weights. A factor that all weights "
        "of a query share cancels, so they may be exp of minus the distance *beyond the nearest one*: the first is "
        "then 1, however far away.",
        "`weights = (-(distances - distances[:, :1]) / bandwidth).exp()`; sums = (weights[:, :, None] * residuals)"
        ".cumsum(dim=1), (Q, K, C); divide by weights.cumsum(dim=1)[:, :, None]; add prediction[:, None], subtract "
        "targets[:, None], square, and take the mean over dim=(0, 2).",
    ),
    cases=oracles.every_k_cases,
    probe=call,
    oracle=oracles.every_k_oracle,
    mistakes=mistakes.ERROR_FOR_EVERY_K,
    properties=(oracles.at_least_five_times_as_fast_as_the_loop,),
)

NOISE_LIMITS = Exercise(
    id="5.5",
    name="noise_limits",
    title="A memory of wrong labels",
    kind="find the limit",
    points=3,
    minutes=20,
    difficulty="medium",
    cases=lambda: [()],
    variant=limits.NOISE_LIMITS,
    **limits.NOISE_LIMITS.of_the_course,
)

ENOUGH_MEMORIES = Exercise(
    id="5.6",
    name="enough_memories",
    title="How many memories are enough?",
    kind="find the limit",
    points=3,
    minutes=15,
    difficulty="medium",
    cases=lambda: [()],
    variant=limits.ENOUGH_MEMORIES,
    **limits.ENOUGH_MEMORIES.of_the_course,
)

THREE_ERRORS = Exercise(
    id="5.7",
    name="three_errors",
    title="Around a model that is not yours",
    kind="use the library",
    points=4,
    minutes=20,
    difficulty="medium",
    question="""\
Put the library's `ResMem` around any fitted classifier of scikit-learn, tune it, and report what every use of a
memory owes its reader: the error of the model, of kNN alone and of both together, on test data that had no part in
any choice. If kNN alone is the best of the three, the model was not needed; to be fair to it, as the chapter is, give
it a k and a bandwidth of its own. `help(ResMem)` says what `predict`, `memorize`, `tune` and `nearest` take and give:
tensors, float32 or float64, where scikit-learn takes and gives NumPy arrays.""",
    stub='''\
def three_errors(model, train, held_out, test, ks, bandwidths):
    """The test errors of a fitted classifier, of kNN alone and of ResMem around the classifier.

    model: has predict_proba(x), NumPy (n, D) -> NumPy (n, C), probabilities of the classes 0 ... C - 1.
    train, held_out, test: each a pair (x, y), x: (n, D) float32 tensor, y: (n,) integer tensor.
    ResMem memorises train, with x itself as the embedding, and takes k and bandwidth from ks and bandwidths by `tune`
    on held_out. kNN alone does the same for itself: it is a ResMem around a model that says 1/C to everything, since
    that shifts all scores alike. (`memory.nearest`, at ResMem's k and bandwidth, is simpler and is accepted too; but
    where the two differ, it may make kNN alone look worse than it is.)
    -> {"base": error, "kNN alone": error, "ResMem": error}, each the share of wrong labels on test, a plain number.
    """
    raise NotImplementedError''',
    hints=(
        "ResMem asks for functions from tensors to tensors. Write `predict(x)`, which takes a tensor, hands its NumPy "
        "form to the model, and makes a tensor of what comes back. kNN alone is a second ResMem, around a predict that "
        "says 1/C.",
        "`torch.from_numpy(model.predict_proba(x.numpy())).float()`. The memory is ResMem(predict, lambda x: x, k=1, "
        "bandwidth=1.0); memorize takes the integer labels as they are, and tune sets k and bandwidth itself.",
        "For each of the two: `memory.memorize(*train)`, `memory.tune(*held_out, ks=ks, bandwidths=bandwidths)`. The "
        "second one's predict is `lambda x: torch.full_like(predict(x), 1 / predict(x).shape[1])`. The scores on x of "
        "test are predict(x) and what the two say, and an error is (scores.argmax(dim=1) != y).float().mean().item().",
    ),
    cases=oracles.three_cases,
    probe=oracles.three_probe,
    oracle=oracles.three_oracle,
    fresh_numbers=False,
    mistakes=mistakes.THREE_ERRORS,
)

EXERCISES = (
    PREDICTED_OUTPUTS,
    RESIDUAL_CORRECTION,
    RESIDUAL_CLASSIFIER,
    ERROR_FOR_EVERY_K,
    NOISE_LIMITS,
    ENOUGH_MEMORIES,
    THREE_ERRORS,
)
