"""Chapter 01's claims: how much a softmax memory holds, and how far a window lets a model look back on real text.

    python experiments/01_attention.py      about five minutes on one core; a killed run goes on where it was

1. Capacity.  N random keys with N random values, asked with noisy keys: attention with a sharp softmax, with the scale
   1/sqrt(d), and without a softmax (the outer-product memory).
2. Reach.  Passages of the Python documentation in which a span of words recurs D words later.  Transformers of two
   layers, alike but for the window of their attention, same data and steps, are asked for the words that recur.
"""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from memcourse import Batch, CausalAttention, MemoryTransformer, attend, corpora, fit
from memcourse.course import results
from memcourse.tokenizer import tokenizer

SLUG = "01_attention"
SEEDS = [0, 1, 2]
CAPACITY = {"noise": 0.3, "beta": 32.0, "questions": 512, "d": 64, "recall": 0.9}
STORED = [2**k for k in range(2, 14)]
WIDTHS = [4, 6, 8, 10, 12]
MEMORIES = ["softmax", "softmax, scale 1/sqrt(d)", "outer product"]
TEXT = {"vocab_size": 1000, "common": 50, "length": 96, "span": 8, "asked": 192}
MODEL = {"d_model": 64, "n_layers": 2, "n_heads": 4}
TRAINING = {"steps": 300, "warm_up": 100, "batch": 16, "learning_rate": 1e-2}
WINDOWS = [1, 16, 32, None]
DISTANCES = [8, 10, 12, 14, 16, 17, 18, 20, 24, 28, 32, 33, 34, 36, 40, 48, 64, 80]


def read_back(memory: str, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What each memory answers: query (Q, d), key (N, d), value (N, d) -> (Q, d)."""
    if memory == "outer product":
        return query @ (key.T @ value)  # one (d, d) matrix, however many were stored
    scale = CAPACITY["beta"] if memory == "softmax" else None
    return attend(query, key, value, scale=scale)[0]


def recall(memory: str, d: int, n_stored: int, seed: int) -> float:
    """Share of questions whose answer is nearest to the right one of all the stored values."""
    generator = torch.Generator().manual_seed(seed)

    def sphere(n: int) -> Tensor:
        return F.normalize(torch.randn(n, d, generator=generator), dim=-1)

    key, value = sphere(n_stored), sphere(n_stored)  # (N, d)
    asked = torch.randint(n_stored, (CAPACITY["questions"],), generator=generator)
    query = key[asked] + CAPACITY["noise"] * sphere(len(asked))
    read = read_back(memory, query, key, value)
    return ((read @ value.T).argmax(dim=-1) == asked).float().mean().item()


def capacity(memory: str, d: int, seed: int) -> int:
    """The largest N, in steps of sqrt(2), up to which recall stays at 0.9 or above."""
    sizes = (round(2 ** (k / 2)) for k in itertools.count(2))
    return max(itertools.takewhile(lambda n: recall(memory, d, n, seed) >= CAPACITY["recall"], sizes), default=1)


@cache
def words() -> tuple[Tensor, Tensor]:
    """Training and held-out words, as the numbers of the most frequent ones; 0 is any other word."""
    text = corpora.python_docs()
    numbers = tokenizer(text.train, TEXT["vocab_size"])
    return numbers.encode(text.train), numbers.encode(text.valid + text.test)


def passages(tokens: Tensor, n: int, generator: torch.Generator) -> Tensor:
    start = torch.randint(len(tokens) - TEXT["length"], (n, 1), generator=generator)
    return tokens[start + torch.arange(TEXT["length"])]  # (n, length)


def repeat_span(tokens: Tensor, start: int, distance: Tensor) -> None:
    """Overwrite the span at `start` with the one `distance` words before it.  tokens (n, length), distance (n, 1)."""
    source = start - distance + torch.arange(TEXT["span"])  # (n, span)
    tokens[:, start : start + TEXT["span"]] = tokens.gather(1, source)


def training_batch(step: int, seed: int) -> Batch:
    """Passages in which every second span of 8 words repeats one from a random distance; what recurs is scored.

    During the warm-up the passages are words drawn at random, where nothing but looking back helps.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + step)
    span, length, n = TEXT["span"], TEXT["length"], TRAINING["batch"]
    if step < TRAINING["warm_up"]:
        tokens = torch.randint(TEXT["common"], TEXT["vocab_size"], (n, length), generator=generator)
    else:
        tokens = passages(words()[0], n, generator)
    scored = torch.zeros_like(tokens, dtype=torch.bool)
    for start in range(2 * span, length - span + 1, 2 * span):
        repeat_span(tokens, start, torch.randint(span, start + 1, (n, 1), generator=generator))
        scored[:, start + 1 : start + span] = True  # the span's first word is the cue
    scored &= tokens >= TEXT["common"]  # content words: neither unknown nor among the 49 most frequent
    return Batch(tokens[:, :-1], tokens.where(scored, -100)[:, 1:])


def questions(distance: int) -> Tensor:
    """Held-out passages whose last span repeats the one from `distance` words before: (asked, length)."""
    tokens = passages(words()[1], TEXT["asked"], torch.Generator().manual_seed(7))
    repeat_span(tokens, TEXT["length"] - TEXT["span"], torch.full((len(tokens), 1), distance))
    return tokens


def share_right(said: Tensor, tokens: Tensor) -> float:
    """Share of the content words of the last span, its cue aside, that were said rightly.  said (n, span - 1)."""
    target = tokens[:, 1 - TEXT["span"] :]
    return (said == target)[target >= TEXT["common"]].float().mean().item()


@torch.no_grad()
def accuracy(model: MemoryTransformer, distance: int) -> float:
    tokens = questions(distance)
    logits, _ = model(tokens[:, :-1])  # (n, length - 1, vocab)
    return share_right(logits[:, 1 - TEXT["span"] :].argmax(dim=-1), tokens)


def counting() -> list[float]:
    """The model to beat: after each word, the content word that followed it most often in the training text."""
    train, _ = words()
    follows = torch.zeros(TEXT["vocab_size"], TEXT["vocab_size"])
    follows.index_put_((train[:-1], train[1:]), torch.ones(len(train) - 1), accumulate=True)
    follows[:, : TEXT["common"]] = -1
    asked = [questions(distance) for distance in DISTANCES]
    return [share_right(follows[tokens[:, -TEXT["span"] : -1]].argmax(dim=-1), tokens) for tokens in asked]


def reach(window: int | None, seed: int) -> list[float]:
    torch.manual_seed(seed)
    d_model, n_layers, n_heads = MODEL.values()
    model = MemoryTransformer(
        TEXT["vocab_size"], d_model, n_layers, lambda: CausalAttention(d_model, n_heads, window=window)
    )
    steps, rate = TRAINING["steps"], TRAINING["learning_rate"]
    fit(model, lambda step: training_batch(step, seed), steps=steps, learning_rate=rate, progress=False)
    return [accuracy(model, distance) for distance in DISTANCES]


def main() -> None:
    torch.set_num_threads(1)
    settings = {"capacity": CAPACITY, "text": TEXT, "model": MODEL, "training": TRAINING}
    corpus = corpora.python_docs()

    def run(name: str, seed: int, compute: Callable[..., Any], **arguments: Any) -> Any:
        key = {"run": name, "seed": seed, "corpus": corpus.sha256} | arguments
        return results.cached_run(SLUG, key, lambda: compute(seed=seed, **arguments), experiment_file=__file__)

    def curve(name: str, points: list[dict[str, Any]], compute: Callable[..., Any]) -> dict[str, Any]:
        return results.summary([[run(name, seed, compute, **point) for point in points] for seed in SEEDS])

    found: dict[str, Any] = {
        "recall": {"n_stored": STORED},
        "capacity": {"d": WIDTHS},
        "reach": {"distance": DISTANCES, "counting": counting(), "window": {}},
    }
    for memory in MEMORIES:
        points = [{"memory": memory, "d": CAPACITY["d"], "n_stored": n} for n in STORED]
        found["recall"][memory] = curve("recall", points, recall)
    for memory in ("softmax", "outer product"):
        found["capacity"][memory] = curve("capacity", [{"memory": memory, "d": d} for d in WIDTHS], capacity)
    bar = tqdm(total=len(WINDOWS) * len(SEEDS), desc="models trained", unit="model")
    for window in WINDOWS:
        rows = []
        for seed in SEEDS:
            rows.append(run("reach", seed, reach, window=window))
            bar.update()
        found["reach"]["window"]["all" if window is None else str(window)] = results.summary(rows)
    bar.close()
    config = settings | {"windows": WINDOWS, "corpus_sha256": corpus.sha256}
    print("wrote", results.write(SLUG, found, config=config, seeds=SEEDS, experiment_file=__file__).name)


if __name__ == "__main__":
    main()
