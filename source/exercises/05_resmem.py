# %% [markdown]
# # 05 Exercises: ResMem
#
# Seven exercises, from pencil and paper to a memory around a model of scikit-learn. Each has a stub, three hints and a check that
# answers in this notebook; a check that says "not attempted" costs nothing, so take them in any order. What chapter 05 defines is used here
# without a word: the model $f$, the residual $r_i = y_i - f(x_i)$, the distance $d_i$ between two embeddings, the bandwidth
# $\sigma$, and the sizes n (examples memorised), Q (queries asked at once), k (neighbours), C (outputs or classes),
# d (numbers of an embedding).

# %%
from memcourse.course import check, figures, hint, setup
device = setup("0.1.0", seed=0)

# %%
import math

import torch
from torch import nn

from memcourse import ResMem, corpora

# %% [markdown]
# ## The correction

# %% exercise="5.1"
predicted_outputs = {
    "narrow": 10 + 6,  # the nearest has all the weight; its residual is 16 - 10
    "wide": 10 + (6 + 0 - 3) / 3,
    "halving": 10 + (4 * 6 + 2 * 0 - 3) / 7,  # 1/2, 1/4 and 1/8 over their sum
    "far_away": 10 + (2 * 6 + 0 - 3) / 4,  # 2 : 1 : 1, for 1000 units more divide all three weights by the same number
    "stored_twice": 10 + (2 * 6 + 2 * 6 + 0) / 5,  # the three nearest are at 1, 1 and 2
    "knn_alone": (4 * 16 + 2 * 10 + 7) / 7,
    "interpolates": 10,  # its residuals are 0
}

# %% [markdown] tags=["solution-only"]
# Three things to keep. `far_away`: the weights sum to 1 at any distance, so a query unlike anything ever seen is corrected as firmly as one
# in the middle of the data. `stored_twice`: copies take places among the k. And `knn_alone` equals `halving`, for
#
# $$f(x) + \sum_i w_i\,(y_i - f(x_i)) = \sum_i w_i\,y_i + \Big(f(x) - \sum_i w_i\,f(x_i)\Big).$$
#
# ResMem is kNN alone, plus what the model says here beyond what it says at the neighbours. A model that says the same at all of them adds
# nothing to kNN.

# %% tags=["solution-only"]
def outputs(bandwidth, predict=lambda x: torch.full((len(x),), 10.0), at=(1.0, 2.0, 3.0), copies=1):
    """ResMem and kNN alone at x = 0, when the training examples lie at these x and have the targets 16, 10 and 7."""
    x, y = torch.tensor(at * copies), torch.tensor([16.0, 10.0, 7.0] * copies)
    memory = ResMem(predict, lambda x: x[:, None], k=3, bandwidth=bandwidth)
    memory.memorize(x, y)
    query = torch.zeros(1)
    return memory(query).item(), memory.nearest(query).item()


def interpolating(x):
    return torch.tensor([{0.0: 10.0, 1.0: 16.0, 2.0: 10.0, 3.0: 7.0}[place] for place in x.tolist()])


halving = 1 / math.log(2)
print(f"narrow        {outputs(1e-3)[0]:.2f}")
print(f"wide          {outputs(math.inf)[0]:.2f}")
print(f"halving       {outputs(halving)[0]:.2f}")
print(f"far_away      {outputs(halving, at=(1001.0, 1002.0, -1002.0))[0]:.2f}")
print(f"stored_twice  {outputs(halving, copies=2)[0]:.2f}")
print(f"knn_alone     {outputs(halving)[1]:.2f}")
print(f"interpolates  {outputs(halving, interpolating)[0]:.2f}")

# %% exercise="5.2"
def residual_correction(squared_distances, residuals, bandwidth):
    """The mean of each query's k residuals, with weights exp(-distance / bandwidth) that sum to 1.

    squared_distances: (Q, k), residuals: (Q, k, C), bandwidth: a number above 0 -> (Q, C).
    A neighbour that was not found has the distance inf and weighs nothing. k may be 0 (an empty memory): the
    correction is then 0. Otherwise at least one neighbour of each query was found, however far away.
    """
    weights = (-squared_distances.sqrt() / bandwidth).softmax(dim=1)  # (Q, k)
    return (weights[:, :, None] * residuals).sum(dim=1)  # (Q, k, C) -> (Q, C)

# %% [markdown] tags=["solution-only"]
# The softmax subtracts the largest exponent of each row before it takes exp, so the nearest memory has exp(0) = 1 at any distance.
# Written out, the fraction is 0 / 0 in float32 as soon as all neighbours are about 104 bandwidths away:

# %% tags=["solution-only"]
far = torch.tensor([[300.0**2, 301.0**2]])
fraction = (-far.sqrt()).exp()
print("written out:", (fraction / fraction.sum()).tolist())
weights = (-far.sqrt()).softmax(dim=1)
print("softmax:    ", [round(weight, 3) for weight in weights[0].tolist()])

# %% [markdown]
# ## Around a classifier

# %% exercise="5.3"
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
        self.logits, self.embed = logits, embed
        self.k, self.bandwidth, self.temperature = k, bandwidth, temperature
        self.keys = self.residuals = None

    def probabilities(self, x):
        return (self.logits(x) / self.temperature).softmax(dim=1)  # one place for both, so that they cannot differ

    def memorize(self, x, y):
        probabilities = self.probabilities(x)  # fault 1: memorize left the temperature out
        keys = self.embed(x)  # (n, Z)
        residuals = nn.functional.one_hot(y, probabilities.shape[1]) - probabilities  # (n, C)
        if self.keys is not None:  # fault 2: what was there was lost
            keys, residuals = torch.cat([self.keys, keys]), torch.cat([self.residuals, residuals])
        self.keys, self.residuals = keys, residuals

    def __call__(self, x):
        distances = torch.cdist(self.embed(x), self.keys)  # (Q, n)
        found = distances.topk(self.k, dim=1, largest=False)  # fault 3: it took the farthest
        weights = (-found.values / self.bandwidth).softmax(dim=1)  # (Q, k)
        correction = (weights[:, :, None] * self.residuals[found.indices]).sum(dim=1)  # (Q, C)
        return self.probabilities(x) + correction  # fault 4: it mixed the two by a weight

# %% [markdown] tags=["solution-only"]
# The test that finds all four: with k = 1, what was memorised comes back as its one-hot vector, exactly, whatever the temperature.

# %% tags=["solution-only"]
torch.manual_seed(0)
x, y, to_logits = torch.randn(6, 3), torch.tensor([0, 3, 1, 4, 2, 0]), torch.randn(3, 5)
classifier = ResidualClassifier(lambda x: x @ to_logits, lambda x: x, k=1, bandwidth=0.7, temperature=1.9)
classifier.memorize(x[:2], y[:2])
classifier.memorize(x[2:], y[2:])
print("every memory comes back as its one-hot vector:", torch.allclose(classifier(x), nn.functional.one_hot(y, 5).float(), atol=1e-6))

# %% [markdown]
# ## Choosing k

# %% exercise="5.4"
def error_for_every_k(prediction, distances, residuals, targets, bandwidth):
    """The mean squared error of ResMem when it reads the k nearest of K neighbours, for each k = 1 ... K.

    prediction: (Q, C), distances: (Q, K), not squared, nearest first, residuals: (Q, K, C), targets: (Q, C) -> (K,).
    """
    weights = (-(distances - distances[:, :1]) / bandwidth).exp()  # (Q, K); the nearest weighs 1, however far away
    sums = (weights[:, :, None] * residuals).cumsum(dim=1)  # (Q, K, C): entry k - 1 is over the k nearest
    corrections = sums / weights.cumsum(dim=1)[:, :, None]
    return (prediction[:, None] + corrections - targets[:, None]).square().mean(dim=(0, 2))

# %% [markdown] tags=["solution-only"]
# On real examples: the error of a linear map of digits for every k from 1 to 128, from one search among the training images.

# %% tags=["solution-only"]
train, test = corpora.digits()
x, test_x = (part.images.flatten(1) / 16 for part in (train, test))
y, test_y = (nn.functional.one_hot(part.labels, 10).float() for part in (train, test))
weight = torch.linalg.lstsq(x.double(), y.double(), driver="gelsd").solution.float()
distances, rows = torch.cdist(test_x, x).topk(128, dim=1, largest=False)
errors = error_for_every_k(test_x @ weight, distances, (y - x @ weight)[rows], test_y, bandwidth=1.0)
alone = (test_x @ weight - test_y).square().mean()
print("the best k lies between 3 and 16:", 3 <= errors.argmin().item() + 1 <= 16)
print("its squared error is less than half of the map's alone:", bool(errors.min() < alone / 2))
fig = figures.curves(
    {"ResMem": (torch.arange(1, 129), errors[None])},
    x="number of neighbours k",
    y="mean squared error",
    title="One neighbour is too few, a hundred are too many",
    log_x=True,
    levels={"the map alone": alone.item()},
)
figures.show(fig, "Squared error over k: it falls to a minimum at a handful of neighbours, rises again, and stays below that of the linear map alone.")

# %% [markdown]
# ## Labels that are wrong
#
# `make_digits(noise, seed)` makes the data that exercise 5.5 asks about, and `linear_model` the model.

# %%
def make_digits(noise, seed):
    """x (1442, 64), y (1442, 10) one-hot, of which a share `noise` is wrong; test_x (355, 64), test_labels (355,), right."""
    train, test = corpora.digits()
    x, test_x = (part.images.flatten(1) / 16 for part in (train, test))  # ink between 0 and 1
    generator = torch.Generator().manual_seed(seed)
    wrong = torch.rand(len(x), generator=generator) < noise
    other = (train.labels + torch.randint(1, 10, (len(x),), generator=generator)) % 10
    return x, nn.functional.one_hot(torch.where(wrong, other, train.labels), 10).float(), test_x, test.labels


def linear_model(x, y):
    """The function that says the best linear map of x, (n, 64) -> (n, 10)."""
    def with_one(x):
        return torch.cat([x, torch.ones(len(x), 1)], dim=1).double()

    a = with_one(x)
    weight = torch.linalg.solve(a.T @ a + torch.eye(65, dtype=torch.float64), a.T @ y.double())
    return lambda x: (with_one(x) @ weight).float()

# %% tags=["solution-only"]
def errors(noise, seed, settings):
    """The share of wrong test digits for each (k, bandwidth), divided by that of the linear map alone."""
    x, y, test_x, test_labels = make_digits(noise, seed)
    predict = linear_model(x, y)
    memory = ResMem(predict, lambda x: x, k=1, bandwidth=math.inf)
    memory.memorize(x, y)
    wrong = [(predict(test_x).argmax(dim=1) != test_labels).float().mean()]
    for memory.k, memory.bandwidth in settings:
        wrong.append((memory(test_x).argmax(dim=1) != test_labels).float().mean())
    return torch.stack(wrong[1:]) / wrong[0]


ks = [2**i for i in range(9)]
by_k = {f"{noise:.0%} wrong": torch.stack([errors(noise, seed, [(k, math.inf) for k in ks]) for seed in range(3)]) for noise in (0.0, 0.2, 0.4)}
fig = figures.curves(
    {name: (ks, table.log2()) for name, table in by_k.items()},
    x="number of neighbours k",
    y="log2 of the errors, as a share of the map's",
    title="The more labels are wrong, the more neighbours it takes",
    log_x=True,
    levels={"the map alone": 0.0, "a third fewer": math.log2(2 / 3)},
)
figures.show(fig, "Log of the errors over k: clean labels are below the map's own from k = 1; wrong ones begin far above it, and go below it between 4 and 16; all meet it near 256.")
bandwidths = [2.0**i for i in range(-6, 3)]
by_bandwidth = torch.stack([errors(0.2, seed, [(256, bandwidth) for bandwidth in bandwidths]) for seed in range(3)])
helps = {name: [k for k, share in zip(ks, table.mean(dim=0)) if share <= 2 / 3] for name, table in by_k.items()}
print("with clean labels k = 1 helps:", 1 in helps["0% wrong"])
print("with 20 % wrong, k = 1 and 2 do not help, and 8 to 32 do:", helps["20% wrong"][0] in (4, 8) and helps["20% wrong"][-1] in (32, 64))
print("with 40 % wrong it takes 8 or 16:", helps["40% wrong"][0] in (8, 16))
print("at k = 256 a bandwidth of 1/8 or 1/4 is the smallest:", bandwidths[(by_bandwidth.mean(dim=0) <= 2 / 3).int().argmax()] in (1 / 8, 1 / 4))

# %% exercise="5.5"
noise_limits = {"clean": 1, "20 %": 8, "20 %, largest": 32, "40 %": 16, "20 %, bandwidth": 0.25}

# %% [markdown] tags=["solution-only"]
# A memory of residuals is a memory of noise too: where the model is right and the label is not, what is stored is the label's error. k and
# bandwidth both decide how many examples have to agree before anything is corrected, and either of them does it alone. With clean
# labels the same rule costs: from 32 neighbours on, most of what the memory knew is averaged away.

# %% [markdown]
# ## Memories and dimensions
#
# `make_linear(n, d, seed)` makes the task that exercise 5.6 asks about. The target is the first coordinate; the best
# linear model whose norm is at most 1/2 says half of it.

# %%
def make_linear(n, d, seed):
    """x (n, d), y (n,), queries (512, d), targets (512,): points of the unit ball, and their first coordinates."""
    generator = torch.Generator().manual_seed(seed)
    directions = nn.functional.normalize(torch.randn(n + 512, d, generator=generator), dim=1)
    points = directions * torch.rand(n + 512, 1, generator=generator) ** (1 / d)
    return points[:n], points[:n, 0], points[n:], points[n:, 0]


def bounded_model(x):
    """(n, d) -> (n,)"""
    return 0.5 * x[:, 0]

# %% tags=["solution-only"]
def risks(n, d, seed):
    """Of ResMem and of its nearest neighbour alone, divided by that of the model alone."""
    x, y, queries, targets = make_linear(n, d, seed)
    memory = ResMem(bounded_model, lambda x: x, k=1, bandwidth=1.0)
    memory.memorize(x, y)
    own = (bounded_model(queries) - targets).square().mean()
    return [((said - targets).square().mean() / own).item() for said in (memory(queries), memory.nearest(queries))]


grid = [2**i for i in range(2, 14)]
measured = {d: torch.tensor([[risks(n, d, seed) for n in grid] for seed in range(3)]) for d in (2, 4, 8)}  # (seeds, grid, 2)
fig = figures.curves(
    {f"d = {d}": (grid, table[:, :, 0].log2()) for d, table in measured.items()} | {"d = 4, kNN alone": (grid, measured[4][:, :, 1].log2())},
    x="number of memories n",
    y="log2 of the risk, as a share of the model's",
    title="Twice the dimensions, half the slope",
    log_x=True,
    levels={"a quarter": -2.0},
)
figures.show(fig, "Log risk over log n: straight lines down whose slope halves from d = 2 to 4 to 8; kNN alone in d = 4 runs parallel to ResMem, two units above.")
for d, table in measured.items():
    # from 64 memories on: the slope of a straight line through the logarithms
    places, heights = torch.tensor(grid[4:]).log2(), table[:, 4:, 0].mean(dim=0).log2()
    slope = ((places - places.mean()) * (heights - heights.mean())).sum() / (places - places.mean()).square().sum()
    print(f"d = {d}: the slope lies within a third of -2/d: {abs(slope + 2 / d) < 2 / d / 3}")
print("the risk of kNN alone is four times as large, everywhere:", torch.allclose(measured[4][:, :, 1], 4 * measured[4][:, :, 0], rtol=1e-3))

# %% exercise="5.6"
enough_memories = {"d = 2": 16, "d = 4": 64, "d = 8": 1024, "d = 4, kNN alone": 1024}

# %% [markdown] tags=["solution-only"]
# The memory takes the risk below a floor that no amount of training data could, and the model makes the memory cheaper: what it has learned
# need not be stored, so in d = 4 ResMem needs a sixteenth of the memories of kNN alone. But each halving of the risk costs $2^{d/2}$ times as
# many memories, 2, 4 and 16 times here. That d is the dimension of the embedding in which neighbours are looked for, or rather of the part of
# it that the data fills: why embeddings of a trained network, and not pixels, address a large memory.

# %% [markdown]
# ## In a project

# %% exercise="5.7"
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
    def predict(x):
        return torch.from_numpy(model.predict_proba(x.numpy())).float()

    def nothing_learned(x):  # ResMem around it is kNN alone
        return torch.full_like(predict(x), 1 / predict(x).shape[1])

    def tuned(predict):
        memory = ResMem(predict, lambda x: x, k=1, bandwidth=1.0)
        memory.memorize(*train)
        memory.tune(*held_out, ks=ks, bandwidths=bandwidths)
        return memory

    def error(scores):
        return (scores.argmax(dim=1) != y).float().mean().item()

    x, y = test
    return {"base": error(predict(x)), "kNN alone": error(tuned(nothing_learned)(x)), "ResMem": error(tuned(predict)(x))}

# %% [markdown] tags=["solution-only"]
# Two models around which it makes a difference: a decision tree of depth 5 on the digits as they are, and a random forest on digits with noise
# of standard deviation 0.5 on ink between 0 and 1. Each is the mean over three splits into what is memorised and what is held out.

# %% tags=["solution-only"]
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier


def mean_errors(model, noise, seeds=3):
    found = []
    for seed in range(seeds):
        generator = torch.Generator().manual_seed(seed)
        (x, y), (test_x, test_y) = (
            ((part.images / 16 + noise * torch.randn(part.images.shape, generator=generator)).flatten(1), part.labels)
            for part in corpora.digits()
        )
        held = torch.rand(len(x), generator=generator) < 0.2
        model.fit(x[~held].numpy(), y[~held].numpy())
        parts = (x[~held], y[~held]), (x[held], y[held]), (test_x, test_y)
        found.append(three_errors(model, *parts, ks=(1, 2, 4, 8, 16, 32), bandwidths=(0.1, 0.3, 1.0, 3.0)))
    return {name: sum(errors[name] for errors in found) / seeds for name in found[0]}


tree = mean_errors(DecisionTreeClassifier(max_depth=5, random_state=0), noise=0.0)
print("around the tree, ResMem makes at most half of the tree's errors:", tree["ResMem"] <= tree["base"] / 2)
print("kNN alone makes at most half of those:", tree["kNN alone"] <= tree["ResMem"] / 2)
forest = mean_errors(RandomForestClassifier(100, random_state=0), noise=0.5)
print("around the forest, on noisy digits, ResMem makes fewer errors than the forest and than kNN alone:", forest["ResMem"] < min(forest["base"], forest["kNN alone"]))

# %% [markdown] tags=["solution-only"]
# The first result looks splendid until kNN alone stands beside it: the memory did all the work, and the tree was in its way. By the
# identity of 5.1, ResMem adds to kNN what the model says here beyond what it says at the neighbours; what a tree says jumps where it splits, and the jumps
# are noise to the memory. On the noisy digits neither parent is good, and each knows something that the other does not. Only the three
# numbers side by side tell the two cases apart.
