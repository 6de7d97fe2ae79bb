"""Chapter 07's claims: a matrix per head keeps a fact, and what that costs beside keeping all.

    python experiments/07_infini_attention.py      about fifteen minutes on one core; a killed run goes on where it was

Small transformers of two layers, alike but for their memory, same data, same steps.  All accuracies are shares of
right answers; a summary is mean, low, high and per_seed.

1. passkey      a value in the first segment, asked for in the last (a guess is right 1 time in 16).  Trained on 2, 3 or
                4 segments; `accuracy` against the segments of the test; "delta, longer": trained twice as long.
                `bytes`: of state for one text.
2. gate         passkey, linear rule.  For each base learning rate, with the gates' own group (ten times the rate, no
                decay) or in the group of norms and biases; gates start at 0, or at SHUT, where the memory's share is a
                hundredth.  `gates`: all gates, (seeds, logs, gates); `travel`: the largest change; accuracy at 4.
3. detached     passkey, linear rule, the state detached after every segment.
4. matrix       no training: one matrix of WIDTH x WIDTH, random keys and values.  `pairs`: recall against the pairs it
                holds, written in one segment or one by one; `segments`: recall of the first 4 pairs against the
                segments of 4 pairs written later; `overlap`: recall of the newer of two values, against the cosine of
                their keys; `told_apart`: keys with one large number each, the others far below 0.  `cosine`: of what
                is read and what was written; `right`: how often the value nearest to what is read is that one.
5. text         perplexity on Python's documentation of the model that ships with the package, its last layer exchanged
                and all of it trained on: `window` (as it was: attention over 128 tokens), `long window` (over 640),
                `infini` (linear rule) or `memorizing` (the 32 nearest of 512 tokens).  `+ logits`: kNN-LM over the text
                itself, the same 512 tokens of finished segments as in memorizing, 32 nearest, temperature and weight
                tuned on validation text; `+ logits, up to now`: the newest 512, up to the token before.  `new`, `seen`:
                of tokens that do not stand, stand, among the last 640; `seconds`: of a forward pass with scores, over
                that of `window`; `training`: seconds of training over those of `window`; `bytes`: what the memory
                beyond the window holds for one text; `setting`: temperature and weight.  "longer": trained three times
                as long.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from memcourse import (
    Batch,
    CausalAttention,
    InfiniAttention,
    MemorizingAttention,
    MemoryTransformer,
    SequenceMemory,
    bundled,
    corpora,
    evaluate,
    fit,
    infini_attention,
    interpolate,
    knn_log_prob,
    tasks,
)
from memcourse.course import results
from memcourse.memory import detach, n_bytes

SLUG = "07_infini_attention"
SEEDS = [0, 1, 2]
SEGMENT, N_HEADS, D_MODEL, N_LAYERS = 16, 4, 64, 2
TRAINING: dict[str, Any] = {"batch_size": 32, "steps": 150}
TRAIN_SEGMENTS = [2, 3, 4]
TEST_SEGMENTS, TEST_ROWS = [4, 8, 16, 32, 64, 128], 64
CAPACITY, NEAREST = 128, 8
RATES, SHUT, LOG_EVERY = [3e-3, 3e-4], math.log(0.01 / 0.99), 10
WIDTH, MATRIX_SEEDS, MATRIX_ROWS = 64, [0, 1, 2, 3, 4], 32
MATRIX_PAIRS, MATRIX_SEGMENTS = [1, 2, 4, 8, 16, 32, 64, 128], [0, 1, 3, 7, 15, 31, 63]
OVERLAP = [0.0, 0.25, 0.5, 0.75, 0.9, 1.0]
TEXT: dict[str, Any] = {"capacity": 512, "k": 32, "rows": 2, "tokens": 640, "steps": 80, "rate": 1e-3, "gate": -1.0}
TEXT_SEGMENT = 128
TEXT_ROWS = {"valid": 5, "test": 10}
TEXT_LENGTH = 1024
LONGER = {"passkey": 300, "text": 240}  # steps
TEMPERATURES = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
WEIGHTS = [i / 20 for i in range(20)]


def memory(name: str) -> SequenceMemory:
    sizes = {"d_model": D_MODEL, "n_heads": N_HEADS}
    if name == "window":
        return CausalAttention(**sizes, window=SEGMENT)
    if name == "memorizing":
        return MemorizingAttention(**sizes, segment_len=SEGMENT, capacity=CAPACITY, k=NEAREST)
    return InfiniAttention(**sizes, segment_len=SEGMENT, rule=name)


def shared(name: str) -> SequenceMemory:
    """The same memory, its gates in the group of norms and biases."""
    made = memory(name)
    made.optimizer_options = {}  # type: ignore[misc]
    return made


def any_of(segments: list[int], seed: int, step: int) -> int:
    generator = torch.Generator().manual_seed(1_000_003 * (seed + 1) + step)
    return segments[int(torch.randint(len(segments), (1,), generator=generator))]


def passkeys(segments: list[int], seed: int) -> Callable[[int], Batch]:
    rows = TRAINING["batch_size"]

    def batch(step: int) -> Batch:
        n = any_of(segments, seed, step)
        return tasks.passkey(batch_size=rows, n_segments=n, segment_len=SEGMENT, seed=1_000_003 * (seed + 1) + step)

    return batch


def recalled(model: nn.Module, segments: list[int]) -> list[float]:
    """Accuracy on texts that training has not seen, for each number of segments."""
    tests = (tasks.passkey(batch_size=TEST_ROWS, n_segments=n, segment_len=SEGMENT, seed=7) for n in segments)
    return [evaluate(model, [test])["accuracy"] for test in tests]


def transformer(make: Callable[[], SequenceMemory], seed: int) -> MemoryTransformer:
    torch.manual_seed(seed)
    return MemoryTransformer(len(tasks.passkey_words()), D_MODEL, N_LAYERS, make)


def passkey(
    name: str,
    segments: list[int],
    seed: int,
    *,
    rate: float,
    own: bool = True,
    start: float = 0.0,
    tests: list[int],
    steps: int = TRAINING["steps"],
) -> dict[str, Any]:
    """Accuracy at each of the tests, and all gates of the model, logged along the training: (logs, gates)."""
    model = transformer(lambda: memory(name) if own else shared(name), seed)
    gates = [parameter for title, parameter in model.named_parameters() if title.endswith("gate")]
    with torch.no_grad():
        for one in gates:
            one.fill_(start)
    logged: list[list[float]] = []
    make = passkeys(segments, seed)

    def log() -> None:
        logged.append([number for one in gates for number in one.tolist()])

    def batch(step: int) -> Batch:
        if step % LOG_EVERY == 0:
            log()
        return make(step)

    fit(model, batch, steps=steps, learning_rate=rate, progress=False)
    log()
    return {"accuracy": recalled(model, tests), "gates": logged}


def state_bytes(name: str) -> int:
    model = transformer(lambda: memory(name), 0)
    return n_bytes(model(torch.zeros(1, SEGMENT, dtype=torch.long))[1])


class Detached(nn.Module):
    """Segment after segment, with the gradient cut between them."""

    def __init__(self, model: MemoryTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> tuple[Tensor, Any]:
        state, logits = None, []
        for piece in tokens.split(SEGMENT, dim=1):
            scores, state = self.model(piece, state)
            state = detach(state)
            logits.append(scores)
        return torch.cat(logits, dim=1), state


def detached(seed: int) -> float:
    model = Detached(transformer(lambda: memory("linear"), seed))
    fit(model, passkeys(TRAIN_SEGMENTS, seed), steps=TRAINING["steps"], learning_rate=RATES[0], progress=False)
    return recalled(model, [4])[0]


def written(keys: Tensor, values: Tensor, at_once: int, rule: str) -> tuple[Tensor, Tensor]:
    """An empty memory after keys and values (rows, n, d), `at_once` of them in a segment."""
    store = torch.zeros(len(keys), 1, WIDTH, WIDTH), torch.zeros(len(keys), 1, WIDTH)
    for key, value in zip(keys.split(at_once, dim=1), values.split(at_once, dim=1), strict=True):
        store = infini_attention.write(key[:, None], value[:, None], *store, rule=rule)
    return store


def recall(keys: Tensor, values: Tensor, store: tuple[Tensor, Tensor], among: Tensor) -> tuple[float, float]:
    """Cosine of what is read with what was written, and how often that is the nearest of `among`."""
    read = infini_attention.read(keys[:, None], *store)[:, 0]  # (rows, n, d)
    cosine = F.cosine_similarity(read, values, dim=-1).mean().item()
    to_all = F.normalize(read, dim=-1) @ F.normalize(among, dim=-1).mT  # (rows, n, all)
    right = (to_all.argmax(dim=-1) == torch.arange(values.shape[1])).float().mean().item()
    return cosine, right


def random_pairs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, MATRIX_ROWS, n, WIDTH, generator=generator)
    return keys, values


def matrix(seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"pairs": {}, "segments": {}, "overlap": {}, "told_apart": {}}
    ways = {"linear": ("linear", 10**6), "delta, one by one": ("delta", 1)}
    for name, (rule, at_once) in ways.items():
        rows = []
        for n in MATRIX_PAIRS:
            keys, values = random_pairs(n, seed)
            rows.append(recall(keys, values, written(keys, values, min(n, at_once), rule), values))
        found["pairs"][name] = {"cosine": [row[0] for row in rows], "right": [row[1] for row in rows]}
    for rule in ("linear", "delta"):
        rows = []
        for n in MATRIX_SEGMENTS:
            keys, values = random_pairs(4 * (n + 1), seed)
            store = written(keys, values, 4, rule)
            rows.append(recall(keys[:, :4], values[:, :4], store, values))
        found["segments"][rule] = {"cosine": [row[0] for row in rows], "right": [row[1] for row in rows]}
        rows = []
        for cosine in OVERLAP:
            keys, values = random_pairs(2, seed)
            older, fresh = F.normalize(keys, dim=-1).unbind(dim=1)
            fresh = F.normalize(fresh - (fresh * older).sum(-1, keepdim=True) * older, dim=-1)
            newer = cosine * older + math.sqrt(1 - cosine**2) * fresh
            both = math.sqrt(WIDTH) * torch.stack([older, newer], dim=1)  # (rows, 2, d)
            read = infini_attention.read(both[:, None, 1:], *written(both, values, 1, rule))[:, 0, 0]
            of_newer = F.cosine_similarity(read, values[:, 1], dim=-1).mean().item()
            rows.append((of_newer, (read.norm(dim=-1) / values[:, 1].norm(dim=-1)).mean().item()))
        found["overlap"][rule] = {"cosine": [row[0] for row in rows], "length": [row[1] for row in rows]}
    rows = []
    for n in [n for n in MATRIX_PAIRS if n <= WIDTH]:
        _, values = random_pairs(n, seed)
        keys = torch.full((MATRIX_ROWS, n, WIDTH), -8.0)
        keys[:, torch.arange(n), torch.arange(n)] = 8.0
        rows.append(recall(keys, values, written(keys, values, n, "linear"), values))
    found["told_apart"] = {"cosine": [row[0] for row in rows], "right": [row[1] for row in rows]}
    return found


def with_second_layer(name: str) -> MemoryTransformer:
    """The model that ships with the package, the memory of its last layer exchanged, its projections kept."""
    model, _ = bundled.docs_model()
    mixer = model.layers[-1].mixer  # type: ignore[union-attr]
    sizes = {name: mixer.config[name] for name in ("d_model", "n_heads")}
    capacity = TEXT["capacity"]
    new: Any
    if name == "infini":
        new = InfiniAttention(**sizes, segment_len=TEXT_SEGMENT)
    elif name == "memorizing":
        new = MemorizingAttention(**sizes, segment_len=TEXT_SEGMENT, capacity=capacity, k=TEXT["k"])
    else:
        new = CausalAttention(**sizes, window=TEXT_SEGMENT + (capacity if name == "long window" else 0))
    if name in ("infini", "memorizing"):
        nn.init.constant_(new.gate, TEXT["gate"])
    new.heads.load_state_dict(mixer.heads.state_dict())
    model.layers[-1].mixer = new  # type: ignore[union-attr]
    return model


def text_rows(part: str) -> Tensor:
    tokens = bundled.docs_model()[1].encode(getattr(corpora.python_docs(), part))
    start = torch.linspace(0, len(tokens) - TEXT_LENGTH - 1, TEXT_ROWS[part]).long()
    return tokens[start[:, None] + torch.arange(TEXT_LENGTH + 1)]  # (rows, length + 1)


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """Of the processor, the fastest run: other programs of the machine do not count."""

    def once() -> float:
        start = time.process_time()
        function()
        return time.process_time() - start

    return min(once() for _ in range(repeats))


def finished(position: Tensor) -> Tensor:
    """May token t use the pair of token i?  Of the last `capacity` tokens of finished segments: (T, T)."""
    start = position[:, None] // TEXT_SEGMENT * TEXT_SEGMENT
    return (position < start) & (position >= start - TEXT["capacity"])


def up_to_now(position: Tensor) -> Tensor:
    return (position < position[:, None]) & (position >= position[:, None] - TEXT["capacity"])


class Read(NamedTuple):
    """What a model makes of some rows of text."""

    hidden: Tensor  # (B, T, D)
    targets: Tensor  # (B, T)
    log_p: Tensor  # (B, T)


@torch.no_grad()
def read(model: MemoryTransformer, rows: Tensor) -> Read:
    parts = []
    for piece in rows.split(2):
        features, _, hidden = model.features(piece[:, :-1])
        scores = model.logits(features).log_softmax(dim=-1)
        parts.append((hidden, piece[:, 1:], scores.gather(-1, piece[:, 1:, None]).squeeze(-1)))
    return Read(*(torch.cat(part) for part in zip(*parts, strict=True)))


def nearest(text: Read, may: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances and next tokens of the k nearest pairs (hidden_i, token_{i+1}) that may be used: (B, T, k)."""
    near, where = [], []
    for hidden in text.hidden:
        distances = torch.cdist(hidden, hidden).square().masked_fill(~may, math.inf)  # (T, T)
        best = distances.topk(TEXT["k"], largest=False)
        near.append(best.values)
        where.append(best.indices)
    found = text.targets[:, None].expand(-1, len(may), -1).gather(2, torch.stack(where))
    return torch.stack(near), found


def mixed(text: Read, found: tuple[Tensor, Tensor], may: Tensor, temperature: float, weight: float) -> Tensor:
    log_p_knn = knn_log_prob(*found, text.targets, temperature=temperature)
    return interpolate(text.log_p, log_p_knn, weight).where(may.any(dim=-1), text.log_p)


def tuned(text: Read, may: Tensor) -> tuple[float, float]:
    found = nearest(text, may)
    tried = {(t, w): mixed(text, found, may, t, w).double().mean().item() for t in TEMPERATURES for w in WEIGHTS}
    return max(tried, key=tried.__getitem__)


def seen_before(tokens: Tensor) -> Tensor:
    """Does the next token stand among the newest, of memory and window together?  (B, T + 1) -> (B, T)."""
    reach = TEXT["capacity"] + TEXT_SEGMENT
    at = range(1, tokens.shape[1])
    return torch.stack([(tokens[:, max(0, t - reach) : t] == tokens[:, t, None]).any(dim=1) for t in at], dim=1)


def text(name: str, seed: int, steps: int = TEXT["steps"]) -> dict[str, Any]:
    train = bundled.docs_model()[1].encode(corpora.python_docs().train)
    rows, length = TEXT["rows"], TEXT["tokens"]

    def crops(step: int) -> Batch:
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        start = torch.randint(len(train) - length, (rows, 1), generator=generator)
        window = train[start + torch.arange(length + 1)]
        return Batch(window[:, :-1], window[:, 1:])

    torch.manual_seed(seed)
    model = with_second_layer(name)
    began = time.process_time()
    fit(model, crops, steps=steps, learning_rate=TEXT["rate"], progress=False)
    training = time.process_time() - began
    model.eval()
    position, tokens = torch.arange(TEXT_LENGTH), text_rows("test")
    stores = {"+ logits": finished(position), "+ logits, up to now": up_to_now(position)}
    valid, test, seen = read(model, text_rows("valid")), read(model, tokens), seen_before(tokens)
    settings = {store: tuned(valid, may) for store, may in stores.items()}
    log_ps = {"alone": test.log_p}
    log_ps |= {store: mixed(test, nearest(test, may), may, *settings[store]) for store, may in stores.items()}
    few, may = tokens[:2], stores["+ logits"]
    forward = seconds(lambda: read(model, few))
    with_store = seconds(lambda: mixed(one := read(model, few), nearest(one, may), may, *settings["+ logits"]))
    with torch.no_grad():
        held = n_bytes(model(tokens[:1, :TEXT_LENGTH])[1].layers[-1])
    window_bytes = n_bytes(with_second_layer("window").blocks[-1].initial_state(1))
    own_bytes = {"window": 0, "long window": held - window_bytes}.get(name, held)
    pair_bytes = TEXT["capacity"] * (4 * valid.hidden.shape[-1] + 4)
    return {
        store: {
            "perplexity": math.exp(-log_p.double().mean().item()),
            "new": math.exp(-log_p[~seen].double().mean().item()),
            "seen": math.exp(-log_p[seen].double().mean().item()),
            "seconds": forward if store == "alone" else with_store,
            "training": training,
            "bytes": own_bytes + (0 if store == "alone" else pair_bytes),
            "share_seen": seen.float().mean().item(),
            "gates": [] if name.endswith("window") else model.layers[-1].mixer.gate.sigmoid().tolist(),
            "setting": list(settings.get(store, (0.0, 0.0))),
        }
        for store, log_p in log_ps.items()
    }


PASSKEY_MEMORIES = ["window", "linear", "delta", "memorizing"]
TEXT_MEMORIES = ["window", "long window", "infini", "memorizing"]


def main() -> None:
    torch.set_num_threads(1)
    points: list[tuple[str, Callable[..., Any], dict[str, Any], list[int]]] = []
    varying = {"segments": TRAIN_SEGMENTS, "rate": RATES[0], "tests": TEST_SEGMENTS}
    points += [("passkey", passkey, {"name": name} | varying, SEEDS) for name in PASSKEY_MEMORIES]
    points += [("matrix", matrix, {}, MATRIX_SEEDS), ("detached", detached, {}, SEEDS)]
    gates = [{"rate": rate, "own": own, "start": 0.0} for rate in RATES for own in (True, False)][1:]
    gates += [{"rate": RATES[0], "own": own, "start": SHUT} for own in (True, False)]
    few = {"name": "linear", "segments": TRAIN_SEGMENTS, "tests": TEST_SEGMENTS[:1]}
    points += [("gate", passkey, few | given, SEEDS) for given in gates]
    points += [("text", text, {"name": name}, SEEDS) for name in TEXT_MEMORIES]
    points += [("passkey", passkey, varying | {"name": "delta", "steps": LONGER["passkey"]}, SEEDS)]
    points += [("text", text, {"name": name, "steps": LONGER["text"]}, SEEDS) for name in ("window", "memorizing")]
    left_out = ("F", "SLUG", "SEEDS")
    config = {name.lower(): value for name, value in globals().items() if name.isupper() and name not in left_out}
    bar = tqdm(total=sum(len(seeds) for *_, seeds in points), desc="runs", unit="run")

    def run(name: str, compute: Callable[..., Any], given: dict[str, Any], seed: int) -> Any:
        key = {"run": name, "seed": seed, "config": config} | given
        found = results.cached_run(SLUG, key, lambda: compute(seed=seed, **given), experiment_file=__file__)
        bar.update()
        return found

    per_point = [[run(name, compute, given, seed) for seed in seeds] for name, compute, given, seeds in points]
    bar.close()
    of = iter(per_point)
    found: dict[str, Any] = {"passkey": {"segments": TEST_SEGMENTS, "accuracy": {}, "bytes": {}}}
    for name in PASSKEY_MEMORIES:
        rows = next(of)
        found["passkey"]["accuracy"][name] = accuracy(rows)
        found["passkey"]["bytes"][name] = state_bytes(name)
        if name == "linear":
            found["gate"] = [gate_rows({"rate": RATES[0], "own": True, "start": 0.0}, rows)]
    sizes = {"pairs": MATRIX_PAIRS, "segments": MATRIX_SEGMENTS, "overlap": OVERLAP}
    found["matrix"] = {"sizes": sizes, "found": summarised(next(of))}
    found["detached"] = results.summary(next(of))
    found["gate"] += [gate_rows(given, next(of)) for given in gates]
    found["text"] = {name: summarised(next(of)) for name in TEXT_MEMORIES}
    found["passkey"]["accuracy"]["delta, longer"] = accuracy(next(of))
    found["text"] |= {f"{name}, longer": summarised(next(of)) for name in ("window", "memorizing")}
    base = {part: found["text"]["window"]["alone"][part]["per_seed"] for part in ("seconds", "training")}
    for rows in found["text"].values():
        for row in rows.values():
            for part, of_window in base.items():
                row[part] = results.summary(np.divide(row[part]["per_seed"], of_window))
    print("wrote", results.write(SLUG, found, config=config, seeds=SEEDS, experiment_file=__file__).name)


def accuracy(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return results.summary([row["accuracy"] for row in rows])


def gate_rows(given: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    logged = np.asarray([row["gates"] for row in rows])  # (seeds, logs, gates)
    travel = results.summary(np.abs(logged - given["start"]).max(axis=(1, 2)))
    at_4 = results.summary([row["accuracy"][0] for row in rows])
    return given | {"accuracy": at_4, "travel": travel, "gates": np.round(logged, 4).tolist()}


def summarised(runs: list[Any]) -> Any:
    """The same nested dictionary, each list or number in it a summary over the runs."""
    if isinstance(runs[0], dict):
        return {name: summarised([run[name] for run in runs]) for name in runs[0]}
    return results.summary(runs)


if __name__ == "__main__":
    main()
