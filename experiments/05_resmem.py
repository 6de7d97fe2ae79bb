"""Chapter 05's claims: a model's residuals, stored and read from the nearest neighbours, correct what it underfits.

    python experiments/05_resmem.py      about eight minutes on one core; a killed run goes on where it was

Errors are shares of test examples, always of three: the model alone ("base"), k nearest neighbours alone ("knn", the
targets of the same examples in the same embedding) and "resmem".  The memory holds the examples that the base model was
trained on.  Held-out examples choose k and bandwidth of both memories, and the step at which the base's training stops.
Every number is a summary over the seeds (results.summary): "mean", "low" and "high" by point, "per_seed" by seed and
point; each seed has a split, a noise and a network of its own.

digits       scikit-learn's digits, for networks of one hidden layer of `widths` units: "clean"; "noisy", with Gaussian
             noise on the pixels; "overtrained", noisy and trained to the last step, until wide networks make no error
             on what they were trained on.  Under each, "pixels" and "hidden" say by what neighbours are found: the
             image, or the network's hidden layer.  Under either, by width: "base", "knn", "resmem", test errors;
             "k_knn", "k_resmem", the tuned k; "train", the base's error on what it was trained on; "residual", the
             mean length of what is stored.
real         like "clean", for the real images that are here (their names are "present"): fashion_mnist, omniglot.
label_noise  digits whose training and held-out labels are wrong with the probabilities `shares`; test labels are right.
             For a "small" base and a "wide" one trained until it knows the wrong labels by heart: "base" by share;
             "knn" and "resmem" by share and k (`ks`), neighbours by pixels, all with equal weights; under "tuned",
             "knn" and "resmem" by share, with k and bandwidth tuned on the held-out labels.
language     the next of 512 byte pairs in the Python documentation, for transformers of one layer and width `d_models`
             (`n_parameters`); neighbours by the feed-forward's input; k and bandwidth tuned by squared error.
             "error": share of wrong next tokens; "nats": mean log loss, where probabilities below a floor (tuned) are
             raised to it, since ResMem's may be below 0, and divided by their sum.  "mixed": base and kNN with a
             "weight" tuned by log loss, as in kNN-LM.
theory       a linear target of length 1, inputs uniform on the unit ball, least squares under |theta| <= 0.5, one
             neighbour.  "risk": mean squared errors by dimension (`dimensions`) and n; "slope": of log risk over
             log n, by dimension; "predicted": -2 / dimension.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from memcourse import Batch, CausalAttention, MemoryTransformer, corpora, fit
from memcourse.course import results
from memcourse.resmem import ResMem

SLUG = "05_resmem"
SEEDS = [0, 1, 2, 3, 4]
FEW_SEEDS = SEEDS[:3]
KS = [1, 2, 4, 8, 16, 32, 64, 128]
BANDWIDTHS = [0.05, 0.1, 0.2, 0.5, 1.0, 4.0]  # in mean distances from a held-out example to its nearest neighbour
TRAINING: dict[str, Any] = {"steps": 400, "learning_rate": 0.01}  # all examples in each step, Adam
WIDTHS = [2, 4, 8, 16, 32, 128]
DIGITS = {"train": 1000, "held": 300}  # of 1,797; the rest is for testing
KINDS: dict[str, dict[str, Any]] = {  # pixels are in 0 ... 1
    "clean": {"noise": 0.0, "stop": True},
    "noisy": {"noise": 0.5, "stop": True},
    "overtrained": {"noise": 0.5, "stop": False},
}
REAL: dict[str, dict[str, Any]] = {
    "fashion_mnist": {"train": 600, "held": 120, "widths": [2, 4, 8, 16, 32, 128], "seeds": SEEDS},
    "omniglot": {"train": 2900, "held": 970, "widths": [8, 32, 128], "seeds": FEW_SEEDS},
}
SIDE = 28  # larger images are scaled down
SHARES, NOISE_KS = [0.0, 0.1, 0.2, 0.4], [1, 2, 4, 8, 16, 32, 64, 128, 256]
NOISE_BASES: dict[str, dict[str, Any]] = {"small": {"width": 8, "stop": True}, "wide": {"width": 256, "stop": False}}
LANGUAGE: dict[str, Any] = {
    "vocab_size": 512,
    "d_models": [8, 16, 32, 64],
    "n_heads": 2,
    "length": 64,
    "sequences": {"train": 480, "held": 16, "test": 32},
    "training": {"batch_size": 16, "steps": 600, "learning_rate": 0.01},
    "ks": [4, 16, 64, 256],
    "floors": [1e-5, 1e-4, 1e-3],
    "weights": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0],
}
BOUND, DIMENSIONS, N, N_TEST = 0.5, [2, 4, 8], [100, 400, 1600, 6400, 25600], 4000

Examples = tuple[Any, Tensor]  # x, y


def error(outputs: Tensor, labels: Tensor) -> float:
    return (outputs.argmax(dim=-1) != labels).double().mean().item()


def remember(predict: Callable, embed: Callable, train: Examples, held: Examples, ks: Sequence[int] = KS) -> ResMem:
    """A memory of `train`, tuned on `held`: on labels by the share of errors, on numbers by their squared error."""
    memory = ResMem(predict, embed, k=1, bandwidth=1.0)
    memory.memorize(*train)
    assert memory.datastore is not None
    scale = memory.datastore.search(embed(held[0]), 1).distances.sqrt().mean().clamp_min(1e-6).item()
    memory.tune(*held, ks=ks, bandwidths=[scale * bandwidth for bandwidth in BANDWIDTHS])
    return memory


def nothing_learned(n_classes: int) -> Callable[[Any], Tensor]:
    """All classes alike: ResMem over it is kNN alone, and is tuned like ResMem."""
    return lambda x: torch.full((len(x), n_classes), 1 / n_classes)


def split(x: Tensor, y: Tensor, n_train: int, n_held: int, seed: int) -> tuple[Examples, Examples, Examples]:
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = rows.tensor_split([n_train, n_train + n_held])
    train, held, test = ((x[part], y[part]) for part in parts)
    return train, held, test


def train_network(train: Examples, held: Examples, width: int, n_classes: int, stop: bool) -> nn.Sequential:
    """pixels -> tanh of `width` hidden units -> classes; with `stop`, as it was when it did best on held-out."""
    (x, y), (held_x, held_y) = train, held
    net = nn.Sequential(nn.Linear(x.shape[1], width), nn.Tanh(), nn.Linear(width, n_classes))
    optimizer = torch.optim.Adam(net.parameters(), lr=TRAINING["learning_rate"])
    lowest, best = float("inf"), net.state_dict()
    for step in range(TRAINING["steps"]):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        if stop and step % 5 == 0:
            with torch.no_grad():
                loss = F.cross_entropy(net(held_x), held_y).item()
            if loss < lowest:
                lowest, best = loss, {name: weight.clone() for name, weight in net.state_dict().items()}
    net.load_state_dict(best)
    return net.requires_grad_(False)


def images_of(name: str) -> tuple[Tensor, Tensor, int]:
    """Pixels (n, height * width) in 0 ... 1, labels and the number of classes."""
    if name == "digits":
        train, test = corpora.digits()
        pixels, labels = torch.cat([train.images, test.images]).float() / 16, torch.cat([train.labels, test.labels])
        return pixels.flatten(1), labels, 10
    data = corpora.load(name)
    pixels = F.adaptive_avg_pool2d(data.images[:, None].float() / 255, SIDE)
    return pixels.flatten(1), data.labels, len(data.label_names)


def images(name: str, n_train: int, n_held: int, noise: float, stop: bool, width: int, seed: int) -> dict[str, Any]:
    """One network, and both memories by pixels and by its hidden layer."""
    torch.manual_seed(seed)
    pixels, labels, n_classes = images_of(name)
    pixels = pixels + noise * torch.randn_like(pixels)
    train, held, (test_x, test_y) = split(pixels, labels, n_train, n_held, seed)
    net = train_network(train, held, width, n_classes, stop)

    def predict(x: Tensor) -> Tensor:
        return net(x).softmax(dim=-1)

    residual = (F.one_hot(train[1], n_classes) - predict(train[0])).norm(dim=-1).mean().item()
    found: dict[str, Any] = {}
    for kind, embed in {"pixels": lambda x: x, "hidden": net[:2]}.items():
        knn = remember(nothing_learned(n_classes), embed, train, held)
        resmem = remember(predict, embed, train, held)
        found[kind] = {
            "base": error(predict(test_x), test_y),
            "knn": error(knn(test_x), test_y),
            "resmem": error(resmem(test_x), test_y),
            "k_knn": knn.k,
            "k_resmem": resmem.k,
            "train": error(predict(train[0]), train[1]),
            "residual": residual,
        }
    return found


def label_noise(share: float, width: int, stop: bool, seed: int) -> dict[str, Any]:
    """Digits with wrong labels: errors on right ones, by k with equal weights, and tuned."""
    torch.manual_seed(seed)
    pixels, labels, n_classes = images_of("digits")
    wrong = torch.rand(len(labels)) < share
    noisy = torch.where(wrong, (labels + torch.randint(1, n_classes, labels.shape)) % n_classes, labels)
    train, held, _ = split(pixels, noisy, *DIGITS.values(), seed)
    test_x, test_y = split(pixels, labels, *DIGITS.values(), seed)[2]
    net = train_network(train, held, width, n_classes, stop)

    def predict(x: Tensor) -> Tensor:
        return net(x).softmax(dim=-1)

    found: dict[str, Any] = {"base": error(predict(test_x), test_y), "tuned": {}}
    for name, start in {"knn": nothing_learned(n_classes), "resmem": predict}.items():
        memory = remember(start, lambda x: x, train, held)
        found["tuned"][name] = error(memory(test_x), test_y)
        memory.bandwidth = float("inf")  # equal weights
        found[name] = []
        for k in NOISE_KS:
            memory.k = k
            found[name].append(error(memory(test_x), test_y))
    return found


def nats(probabilities: Tensor, targets: Tensor, floor: float) -> float:
    """Mean log loss of what may be below 0: raised to the floor, then divided by its sum."""
    raised = probabilities.clamp_min(floor)
    return -(raised / raised.sum(dim=-1, keepdim=True)).gather(-1, targets[:, None]).log().mean().item()


def test_nats(of_held: Tensor, of_test: Tensor, held: Tensor, test: Tensor) -> float:
    floor = min(LANGUAGE["floors"], key=lambda floor: nats(of_held, held, floor))
    return nats(of_test, test, floor)


def language(d_model: int, seed: int) -> dict[str, Any]:
    """One transformer on the documentation, and both memories of what it was trained on."""
    torch.manual_seed(seed)
    text, length, vocab_size = corpora.python_docs(), LANGUAGE["length"], LANGUAGE["vocab_size"]
    tokenizer = corpora.tokenizer(text.train, vocab_size, kind="bpe")
    texts = {"train": text.train, "held": text.valid, "test": text.test}
    parts = {}
    for name, n in LANGUAGE["sequences"].items():  # n stretches of length + 1 tokens, at random, without overlap
        stretches = tokenizer.encode(texts[name]).unfold(0, length + 1, length + 1)
        parts[name] = stretches[torch.randperm(len(stretches))[:n]]
    batch_size, steps, rate = LANGUAGE["training"].values()

    def batch(step: int) -> Batch:
        rows = torch.randint(len(parts["train"]), (batch_size,), generator=torch.Generator().manual_seed(step))
        return Batch(parts["train"][rows, :-1], parts["train"][rows, 1:])

    heads = LANGUAGE["n_heads"]
    model = MemoryTransformer(vocab_size, d_model, 1, lambda: CausalAttention(d_model, heads))
    fit(model, batch, steps=steps, learning_rate=rate, progress=False)

    # An example is the number of a token: what the model says and keys after each is computed once.
    tokens = torch.cat([parts[name] for name in texts])
    with torch.no_grad():
        features, _, hidden = model.features(tokens[:, :-1])
        probabilities, keys = model.logits(features).softmax(dim=-1).flatten(0, 1), hidden.flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    train, held, test = torch.arange(len(keys)).split([length * n for n in LANGUAGE["sequences"].values()])
    read = {"base": (probabilities[held], probabilities[test])}
    chosen = {}
    for name, base in {"knn": nothing_learned(vocab_size), "resmem": lambda rows: probabilities[rows]}.items():
        one_hot = F.one_hot(targets[held], vocab_size).float()  # not labels: tuned by squared error
        memory = remember(base, lambda rows: keys[rows], (train, targets[train]), (held, one_hot), LANGUAGE["ks"])
        read[name] = memory(held), memory(test)
        chosen[f"k_{name}"] = memory.k
    pairs = list(zip(read["base"], read["knn"], strict=True))  # held-out, test
    mixed = [[(1 - w) * base + w * knn for base, knn in pairs] for w in LANGUAGE["weights"]]
    choose = min(range(len(mixed)), key=lambda i: nats(mixed[i][0], targets[held], 1e-4))
    read["mixed"] = mixed[choose][0], mixed[choose][1]
    return {
        "error": {name: error(of_test, targets[test]) for name, (_, of_test) in read.items()},
        "nats": {name: test_nats(*pair, targets[held], targets[test]) for name, pair in read.items()},
        "weight": LANGUAGE["weights"][choose],
        "train": error(probabilities[train], targets[train]),
        "n_parameters": sum(weight.numel() for weight in model.parameters()),
    } | chosen


def in_ball(n: int, dimension: int) -> Tensor:
    """Points uniform on the unit ball: a direction, and a length whose power of the dimension is uniform."""
    return F.normalize(torch.randn(n, dimension), dim=-1) * torch.rand(n, 1) ** (1 / dimension)


def bounded_least_squares(x: Tensor, y: Tensor) -> Tensor:
    """The theta of at most length BOUND that fits best: ridge regression whose penalty is found by bisection."""
    values, vectors = torch.linalg.eigh(x.T.double() @ x.double())
    turned = vectors.T @ (x.T.double() @ y.double())
    low, high = torch.zeros(()).double(), turned.norm() / BOUND
    if (turned / values).norm() > BOUND:
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if (turned / (values + middle)).norm() > BOUND else (low, middle)
    return (vectors @ (turned / (values + high * (high > low)))).float()


def theory(dimension: int, seed: int) -> dict[str, list[float]]:
    """Risks by n: a bounded linear model, one nearest neighbour, and the model with its neighbour's residual."""
    torch.manual_seed(seed)
    target = F.normalize(torch.randn(dimension), dim=0)
    test = in_ball(N_TEST, dimension)
    risk: dict[str, list[float]] = {"base": [], "knn": [], "resmem": []}
    for n in N:
        x = in_ball(n, dimension)
        theta = bounded_least_squares(x, x @ target)
        memory = ResMem(lambda x, theta=theta: x @ theta, lambda x: x, k=1, bandwidth=1.0)
        memory.memorize(x, x @ target)
        for name, answer in {"base": test @ theta, "knn": memory.nearest(test), "resmem": memory(test)}.items():
            risk[name].append((answer - test @ target).square().mean().item())
    return risk


def slope(risks: list[float]) -> float:
    return float(np.polyfit(np.log(N), np.log(risks), deg=1)[0])


def gather(runs: list[list[Any]]) -> Any:
    """runs[point][seed], dicts of one structure -> that structure over summaries of (seeds, points, ...)."""
    if isinstance(runs[0][0], dict):
        return {name: gather([[run[name] for run in seeds] for seeds in runs]) for name in runs[0][0]}
    return results.summary(np.swapaxes(np.asarray(runs, dtype=np.float64), 0, 1))


def real_images() -> list[str]:
    present = []
    for name in REAL:
        try:
            corpora.load(name)
        except corpora.DataError:
            print(f"without {name}, which is not here: MEMCOURSE_DATA says where data is")
        else:
            present.append(name)
    return present


def main() -> None:
    torch.set_num_threads(1)
    bar = tqdm(desc="runs", unit="run")

    def run(compute: Callable[..., Any], points: list[dict[str, Any]], settings: Any, seeds: list[int]) -> Any:
        """A summary over the seeds of `compute` at every point; each run is kept, and not computed again."""

        def one(point: dict[str, Any], seed: int) -> Any:
            key = {"run": compute.__name__, "settings": settings, "seed": seed} | point
            bar.update()
            return results.cached_run(SLUG, key, lambda: compute(**point, seed=seed), experiment_file=__file__)

        return gather([[one(point, seed) for seed in seeds] for point in points])

    memories = {"ks": KS, "bandwidths": BANDWIDTHS}
    of_images = memories | {"training": TRAINING}
    digits: dict[str, Any] = {"widths": WIDTHS}
    for name, kind in KINDS.items():
        given = {"name": "digits", "n_train": DIGITS["train"], "n_held": DIGITS["held"]} | kind
        digits[name] = run(images, [given | {"width": width} for width in WIDTHS], of_images, SEEDS)
    present = real_images()
    real: dict[str, Any] = {"present": present}
    for name in present:
        size = REAL[name]
        given = {"name": name, "noise": 0.0, "stop": True, "n_train": size["train"], "n_held": size["held"]}
        found = run(images, [given | {"width": width} for width in size["widths"]], of_images, size["seeds"])
        real[name] = {"widths": size["widths"]} | found
    noise = {"shares": SHARES, "ks": NOISE_KS}
    for name, base in NOISE_BASES.items():
        points = [base | {"share": share} for share in SHARES]
        noise[name] = run(label_noise, points, of_images | {"digits": DIGITS, "noise_ks": NOISE_KS}, SEEDS)
    points = [{"d_model": d_model} for d_model in LANGUAGE["d_models"]]
    spoken = run(language, points, memories | LANGUAGE, FEW_SEEDS)
    risk = run(theory, [{"dimension": dimension} for dimension in DIMENSIONS], {"bound": BOUND, "n": N}, SEEDS)
    slopes = {
        name: results.summary([[slope(risks) for risks in dimensions] for dimensions in found["per_seed"]])
        for name, found in risk.items()
    }
    bar.close()

    predicted = [-2 / dimension for dimension in DIMENSIONS]
    found = {
        "digits": digits,
        "real": real,
        "label_noise": noise,
        "language": {"d_models": LANGUAGE["d_models"]} | spoken,
        "theory": {"dimensions": DIMENSIONS, "n": N, "risk": risk, "slope": slopes | {"predicted": predicted}},
    }
    config = of_images | {
        "digits": DIGITS | {"widths": WIDTHS, "kinds": KINDS},
        "real": {name: REAL[name] for name in present},
        "label_noise": {"shares": SHARES, "ks": NOISE_KS, "bases": NOISE_BASES},
        "language": LANGUAGE | {"seeds": FEW_SEEDS},
        "theory": {"bound": BOUND, "dimensions": DIMENSIONS, "n": N, "n_test": N_TEST},
    }
    print("wrote", results.write(SLUG, found, config=config, seeds=SEEDS, experiment_file=__file__).name)


if __name__ == "__main__":
    main()
