"""Chapter 04's claims: text that a language model looks things up in, beside text that it was trained on.

    python experiments/04_knn_lm.py      about half an hour on one core; a killed run goes on where it was

Three small language models of Python's documentation (two layers of width 64, short training), and the one that ships
with the package ("bundled": width 96, trained ten times longer).  Their datastores hold the training text, cut into
rows of 512 tokens, in random order: a smaller store holds the first rows of a larger one.  Scored are eight rows of the
test part; temperature and weight are chosen on five rows of the validation part.  All numbers are perplexities unless
they say otherwise; a summary is mean, low, high and per_seed over the three models.

1.  size        against the entries of the datastore: `tuned` (temperature and weight chosen for each size; `weight`),
                `paper` (temperature 1, weight 0.25 for all), `of_largest` (what was chosen for the whole store);
                `model` alone; `cache`: the datastore is the row so far, at most 512 tokens (Grave et al., 2017,
                arXiv:1612.04426); `store_and_cache`: both.  The last size is the whole training text.  `bundled`: the
                same, one model.
2.  k           against the number of neighbours, whole store; tuned for each.  `bundled` too.
3.  domain      models trained on documentation read source code: `tests` are docs and source, `stores` none, docs,
                source and both.  `own`: tuned for each test and store; `one`: one weight and temperature for both
                tests (chosen on validation text of both): (tests, stores).  `weight`: those of `own`, `one_weight`:
                those of `one`.
4.  tokens      `better`, `worse`: share of tokens to which the tuned kNN-LM gives more, less probability than the
                model; `gain`: quantiles (.05, .25, .5, .75, .95) of the change in log-probability; `by_count`: tokens
                by how often the next token stands in the training text, at most COUNTS times or more often than the
                last (share of the tokens, model, knn_lm).  `helped`, `hurt`: examples from the bundled model: the text
                before, the next token, its probability from model, neighbours and mixture, and the nearest neighbours
                of the three tokens with most votes (their text, next token, share of the vote).
5.  cost        time of one search (k = 64, queries 64 at a time) for one token over time of the model's own forward
                with its scores: `exact` and `ivfpq`, each `ratio` against `entries`; `forward_us`: us a token.
6.  quantised   whole store, k = 64: `perplexity`, `recall` (share of the exact 64 nearest that are found) and `bytes`
                per entry of each way to search, tuned for each.
7.  confidence  a weight for each of `buckets` classes, of as many tokens each, by the `distance` to the nearest
                neighbour, or by `agreement`: 1 - the largest share of the vote that a token gets; edges and weights of
                eight classes.  `learned`: the weight is a sigmoid of a linear function of both and of the entropy and
                the highest probability of the model's own prediction; `learned_weight`: its quantiles, as in 4.
8.  bytes       what the same bytes give (float16 parameters and keys, 4 bytes a token): `parameters`, models of more
                width and as many steps; `exact`, the smallest model and stores of more entries; `codes`, the same with
                ivfpq's codes alone; `bundled`, the model trained longer.  Each has `bytes` and `perplexity`.
9.  extractive  corpora, each with models of its own (same recipe; all but source code with a tokenizer of their own)
                and a store of `entries` entries: `model`, `knn_lm`, `weight`, `temperature`, `seen`: share of the test
                part's runs of 8 tokens that stand in the store (`seen_4`: of 4).  Corpora that are not on this machine
                are left out (MEMCOURSE_DATA=folder).
    quotes      the documentation's models and whole store again, made more extractive: a `share` of the stretches of
                STRETCH tokens that are scored stands in the store too, in random order, so that what comes before them
                differs: tuned `weight`, `temperature`, `perplexity`; `model` alone (the same for all).
10. key         whole store, k = 64: keys `hidden` (input of the last feed-forward, after its norm) or `features` (what
                the scores are made of), tuned for each: `perplexity`, `weight`.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from memcourse import Batch, CausalAttention, MemoryTransformer, bundled, corpora, fit
from memcourse.course import results
from memcourse.datastore import Datastore, Neighbors
from memcourse.faiss_index import ivfpq_sizes
from memcourse.knn_lm import BucketWeights, interpolate, knn_log_prob
from memcourse.optional import needs
from memcourse.tokenizer import Tokenizer
from memcourse.transformer import open_model

SLUG = "04_knn_lm"
SEEDS = [0, 1, 2]
VOCABULARY = 2048
MODEL: dict[str, int] = {"d_model": 64, "n_layers": 2}
ATTENTION: dict[str, int] = {"n_heads": 4, "window": 128}
TRAINING: dict[str, Any] = {"steps": 600, "learning_rate": 4e-3, "weight_decay": 0.1}
BATCH: dict[str, int] = {"rows": 4, "tokens": 256}
DOCS, SOURCE = "python_docs", "python_source"
CORPORA = [DOCS, SOURCE, "tinyshakespeare", "frankenstein", "pride_and_prejudice", "wikitext2"]
WIDTHS = [64, 128]
ROW = 512  # tokens that are read in one go, and the longest cache
TEST_ROWS, VALID_ROWS = 8, 5
STORE_ROWS = [4, 20, 100, 400]  # and all
CODES_ROWS = 100  # and all
SOURCE_ROWS, CORPUS_ROWS = 400, 180
KS = [1, 8, 64, 256, 1024]
K = 64
TEMPERATURES = [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
WEIGHTS = [i / 20 for i in range(20)]
CODES = [4]  # bytes
STRETCH, SHARES = 32, [0.0, 0.05, 0.1, 0.2, 0.4]
BUCKETS = [1, 2, 4, 8, 16]
COUNTS = [100, 300, 1000, 3000]
PAPER = (1.0, 0.25)  # temperature and weight
CACHE = Path(__file__).resolve().parents[1] / ".cache" / "experiments" / SLUG


@cache
def text(corpus: str) -> corpora.Text:
    """A corpus in three parts.  WikiText-2 comes without a training part: nine tenths of `valid` serve as one."""
    if corpus in (DOCS, SOURCE):
        return getattr(corpora, corpus)()
    found = corpora.load(corpus)
    assert isinstance(found, corpora.Text)
    if found.train:
        return found
    cut = found.valid.rindex("\n", 0, len(found.valid) * 9 // 10)
    return corpora.Text(found.name, found.valid[:cut], found.valid[cut:], found.test)


@cache
def tokenizer(corpus: str) -> Tokenizer:
    """Python's documentation and source share the tokenizer that ships with the package."""
    if corpus in (DOCS, SOURCE):
        return bundled.docs_model()[1]
    return corpora.tokenizer(text(corpus).train, VOCABULARY, kind="bpe")


@cache
def tokens(corpus: str, part: str) -> torch.Tensor:
    return tokenizer(corpus).encode(getattr(text(corpus), part))


@cache
def model(corpus: str, d_model: int, seed: int) -> MemoryTransformer:
    """Trained on the corpus's training part, or read from the cache where it was before."""
    sizes = MODEL | {"d_model": d_model}
    recipe = [corpus, text(corpus).sha256, VOCABULARY, sizes, ATTENTION, TRAINING, BATCH, seed]
    path = CACHE / f"{hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:24]}.safetensors"
    if not path.exists():
        ids = tokens(corpus, "train")
        rows, length = BATCH.values()

        def crops(step: int) -> Batch:
            generator = torch.Generator().manual_seed(1_000_003 * seed + step)
            start = torch.randint(len(ids) - length, (rows, 1), generator=generator)
            window = ids[start + torch.arange(length + 1)]  # (B, T + 1)
            return Batch(window[:, :-1], window[:, 1:])

        torch.manual_seed(seed)
        new = MemoryTransformer(VOCABULARY, **sizes, memory=lambda: CausalAttention(d_model, **ATTENTION))
        fit(new, crops, **TRAINING, progress=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        new.save(path)
    return open_model(path).eval()


def language_model(corpus: str, seed: int | str, d_model: int = MODEL["d_model"]) -> MemoryTransformer:
    return bundled.docs_model()[0] if seed == "bundled" else model(corpus, d_model, int(seed))


class Reading(NamedTuple):
    """What a model makes of N tokens: the keys of their contexts, and the tokens that come after them."""

    hidden: Tensor  # (N, D)
    features: Tensor  # (N, D)
    targets: Tensor  # (N,)
    log_p: Tensor  # (N,): what the model gives the targets
    entropy: Tensor  # (N,): of the model's prediction, in nats
    highest: Tensor  # (N,): its highest probability


def rows_of(corpus: str, part: str, n: int | None) -> Tensor:
    """n rows of ROW + 1 tokens, (n, ROW + 1): evenly spaced, or (None) all, in random order."""
    ids = tokens(corpus, part)
    whole = ids[: (len(ids) - 1) // ROW * ROW + 1].unfold(0, ROW + 1, ROW)
    if n is None:
        return whole[torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))]
    return whole[torch.linspace(0, len(whole) - 1, n).long()]


@torch.no_grad()
def read(lm: MemoryTransformer, rows: Tensor, *, score: bool = True) -> Reading:
    parts = []
    for piece in rows.split(4):
        features, _, hidden = lm.features(piece[:, :-1])
        targets = piece[:, 1:]
        log_p = entropy = highest = torch.zeros(targets.shape)
        if score:
            of_all = lm.logits(features).log_softmax(-1)  # (B, T, V)
            log_p = of_all.gather(-1, targets[..., None]).squeeze(-1)
            entropy, highest = -(of_all.exp() * of_all).sum(-1), of_all.amax(-1).exp()
        parts.append([part.flatten(0, 1) for part in (hidden, features, targets, log_p, entropy, highest)])
    return Reading(*(torch.cat(part) for part in zip(*parts, strict=True)))


@cache
def reading(seed: int | str, corpus: str, part: str) -> Reading:
    """Documentation's models read a corpus: all of it where it is a store, some rows where it is scored."""
    rows = {"train": None, "valid": VALID_ROWS, "test": TEST_ROWS}[part]
    text_rows = rows_of(corpus, part, rows)
    if (corpus, part) == (SOURCE, "train"):
        text_rows = text_rows[:SOURCE_ROWS]
    return read(language_model(DOCS, seed), text_rows, score=part != "train")


def filled(keys: Tensor, values: Tensor, *, index: str = "exact") -> Datastore:
    store = Datastore(keys.shape[1], index=index)
    store.add(keys, values.int())
    return store


@cache
def codes(seed: int | str, n: int) -> Datastore:
    """The first n entries of the documentation's store, to be searched by FAISS."""
    keys = reading(seed, DOCS, "train")
    store = filled(keys.hidden[:n], keys.targets[:n], index="ivfpq")
    store.search(keys.hidden[:1], 1)  # an index is trained at the first search
    return store


def search(store: Datastore, queries: Tensor, k: int, *, rescore: bool = True) -> Neighbors:
    """64 queries at a time: their scores of a block of keys stay in the processor's cache."""
    found = [store.search(part, k, rescore=rescore) for part in queries.split(64)]
    return Neighbors(*(torch.cat(part) for part in zip(*found, strict=True)))


@cache
def whole_store(seed: int | str, corpus: str, part: str, k: int, key: str = "hidden") -> Neighbors:
    """Neighbours that a part of a corpus has in the whole of the documentation's training text."""
    keys = reading(seed, DOCS, "train")
    return search(filled(getattr(keys, key), keys.targets), getattr(reading(seed, corpus, part), key), k)


def first(found: Neighbors, k: int) -> Neighbors:
    return Neighbors(*(part[:, :k] for part in found))


class Setting(NamedTuple):
    temperature: float
    weight: float


def log_p_knn(text: Reading, found: Neighbors, temperature: float) -> Tensor:
    return knn_log_prob(found.distances, found.values.long(), text.targets, temperature=temperature)


def mixed(text: Reading, found: Neighbors, setting: Setting | tuple[float, float]) -> Tensor:
    """log p of every target: (N,)."""
    return interpolate(text.log_p, log_p_knn(text, found, setting[0]), setting[1])


def tune(*held_out: tuple[Reading, Neighbors]) -> Setting:
    """The temperature and weight that give held-out text the highest mean log-probability."""
    weights = torch.tensor(WEIGHTS)[:, None]  # (W, 1)

    def of(temperature: float) -> Tensor:  # (W,): the mean over tokens, of several texts the mean of theirs
        parts = [interpolate(t.log_p, log_p_knn(t, f, temperature), weights) for t, f in held_out]
        return torch.stack([part.double().mean(-1) for part in parts]).mean(0)

    means = torch.stack([of(temperature) for temperature in TEMPERATURES])  # (temperatures, W)
    row, column = divmod(int(means.argmax()), len(WEIGHTS))
    return Setting(TEMPERATURES[row], WEIGHTS[column])


def perplexity(log_p: Tensor) -> float:
    return math.exp(-log_p.double().mean().item())


def tuned(valid: tuple[Reading, Neighbors], test: tuple[Reading, Neighbors]) -> dict[str, float]:
    setting = tune(valid)
    return {"perplexity": perplexity(mixed(*test, setting)), **setting._asdict()}


def columns(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """[{"a": 1}, {"a": 2}] -> {"a": [1, 2]}"""
    return {name: [row[name] for row in rows] for name in rows[0]}


def in_the_text(text: Reading, n_rows: int) -> Neighbors:
    """The row so far as a datastore: token t finds the pairs of the tokens before it, at most ROW of them."""
    keys, values = text.hidden.view(n_rows, ROW, -1), text.targets.view(n_rows, ROW)
    later = torch.ones(ROW, ROW, dtype=torch.bool).triu()  # the pair of t itself holds the answer
    distances = torch.cdist(keys, keys).square().masked_fill(later, math.inf).flatten(0, 1)  # (N, ROW)
    ids = torch.arange(ROW).expand(len(distances), -1)
    return Neighbors(distances, ids, values[:, None].expand(-1, ROW, -1).flatten(0, 1))


def with_cache(text: Reading, cache: Neighbors, setting: Setting | tuple[float, float]) -> Tensor:
    """A row's first token has an empty cache: there the model stands alone."""
    return mixed(text, cache, setting).where(cache.distances.amin(-1) < math.inf, text.log_p)


@cache
def size(seed: int | str) -> dict[str, Any]:
    """Part 1."""
    keys = reading(seed, DOCS, "train")
    valid, test = (reading(seed, DOCS, part) for part in ("valid", "test"))
    found = {}
    for n in [rows * ROW for rows in STORE_ROWS]:
        store = filled(keys.hidden[:n], keys.targets[:n])
        found[n] = [search(store, part.hidden, K) for part in (valid, test)]
    found[len(keys.targets)] = [first(whole_store(seed, DOCS, part, max(KS)), K) for part in ("valid", "test")]
    settings = {n: tune((valid, in_valid)) for n, (in_valid, _) in found.items()}
    largest = settings[len(keys.targets)]

    caches = in_the_text(valid, VALID_ROWS), in_the_text(test, TEST_ROWS)
    of_cache = tune((valid, caches[0]))
    after_store = [
        part._replace(log_p=mixed(part, near, largest))
        for part, near in zip((valid, test), found[len(keys.targets)], strict=True)
    ]
    both = tune((after_store[0], caches[0]))
    return {
        "entries": list(found),
        "model": perplexity(test.log_p),
        "tuned": [perplexity(mixed(test, near, settings[n])) for n, (_, near) in found.items()],
        "weight": [settings[n].weight for n in found],
        "temperature": [settings[n].temperature for n in found],
        "paper": [perplexity(mixed(test, near, PAPER)) for _, near in found.values()],
        "of_largest": [perplexity(mixed(test, near, largest)) for _, near in found.values()],
        "cache": perplexity(with_cache(test, caches[1], of_cache)),
        "cache_weight": of_cache.weight,
        "store_and_cache": perplexity(with_cache(after_store[1], caches[1], both)),
        "store_and_cache_weight": both.weight,
    }


def neighbors(seed: int | str) -> dict[str, Any]:
    """Part 2."""
    valid, test = (reading(seed, DOCS, part) for part in ("valid", "test"))
    near, test_near = (whole_store(seed, DOCS, part, max(KS)) for part in ("valid", "test"))
    rows = [tuned((valid, first(near, k)), (test, first(test_near, k))) for k in KS]
    return {"k": KS, "model": perplexity(test.log_p), **columns(rows)}


def merged(a: Neighbors, b: Neighbors) -> Neighbors:
    """The nearest of two stores that are searched together."""
    distances = torch.cat([a.distances, b.distances], dim=1)
    distances, order = distances.sort(dim=1, stable=True)
    ids, values = (torch.cat(parts, dim=1).gather(1, order) for parts in ((a.ids, b.ids), (a.values, b.values)))
    return first(Neighbors(distances, ids, values), a.distances.shape[1])


def domain(seed: int) -> dict[str, Any]:
    """Part 3."""
    source = reading(seed, SOURCE, "train")
    store = filled(source.hidden, source.targets)
    tests, stores = [DOCS, SOURCE], ["docs", "source", "both"]
    found: dict[tuple[str, str, str], tuple[Reading, Neighbors]] = {}
    for corpus in tests:
        for part in ("valid", "test"):
            text = reading(seed, corpus, part)
            of_docs = first(whole_store(seed, corpus, part, max(KS) if corpus == DOCS else K), K)
            of_source = search(store, text.hidden, K)
            for name, near in zip(stores, (of_docs, of_source, merged(of_docs, of_source)), strict=True):
                found[corpus, part, name] = text, near
    own = {(c, s): tune(found[c, "valid", s]) for c in tests for s in stores}
    one = {s: tune(*(found[c, "valid", s] for c in tests)) for s in stores}
    none = [perplexity(reading(seed, corpus, "test").log_p) for corpus in tests]
    return {
        "own": [
            [n, *(perplexity(mixed(*found[c, "test", s], own[c, s])) for s in stores)]
            for c, n in zip(tests, none, strict=True)
        ],
        "one": [
            [n, *(perplexity(mixed(*found[c, "test", s], one[s])) for s in stores)]
            for c, n in zip(tests, none, strict=True)
        ],
        "weight": [[0.0, *(own[c, s].weight for s in stores)] for c in tests],
        "one_weight": [0.0, *(one[s].weight for s in stores)],
        "entries": [len(reading(seed, DOCS, "train").targets), len(source.targets)],
    }


def whole(seed: int | str, part: str, k: int = K) -> tuple[Reading, Neighbors]:
    return reading(seed, DOCS, part), first(whole_store(seed, DOCS, part, max(KS)), k)


def shares(seed: int | str) -> dict[str, Any]:
    """Part 4, without the examples."""
    text, near = whole(seed, "test")
    log_p = mixed(text, near, tune(whole(seed, "valid")))
    counts = torch.bincount(tokens(DOCS, "train"), minlength=VOCABULARY)[text.targets]
    bucket = torch.bucketize(counts, torch.tensor(COUNTS))
    classes = [bucket == i for i in range(len(COUNTS) + 1)]
    return {
        "better": (log_p > text.log_p).double().mean().item(),
        "worse": (log_p < text.log_p).double().mean().item(),
        "gain": (log_p - text.log_p).quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist(),
        "by_count": {
            "share": [c.double().mean().item() for c in classes],
            "model": [perplexity(text.log_p[c]) for c in classes],
            "knn_lm": [perplexity(log_p[c]) for c in classes],
        },
    }


def examples(seed: int | str, n: int = 6) -> dict[str, Any]:
    """Part 4: the n tokens that gain most log-probability, and the n that lose most probability.

    (No token loses more log-probability than log(1 - weight), and many lose just that.)
    """
    text, near = whole(seed, "test")
    setting = tune(whole(seed, "valid"))
    knn = log_p_knn(text, near, setting.temperature)
    log_p = mixed(text, near, setting)
    votes = (-near.distances / setting.temperature).softmax(-1)
    test_rows, store_rows = rows_of(DOCS, "test", TEST_ROWS), rows_of(DOCS, "train", None)
    words = tokenizer(DOCS)

    def before(rows: Tensor, place: int, n_tokens: int) -> str:
        row, t = divmod(place, ROW)
        return words.decode(rows[row, max(0, t + 1 - n_tokens) : t + 1])

    def describe(i: int) -> dict[str, Any]:
        # of the neighbours with one next token the nearest, the three tokens with most votes
        by_token = torch.zeros(VOCABULARY).index_add(0, near.values[i].long(), votes[i])
        voted = by_token.topk(3)
        shown = [int((near.values[i] == token).nonzero()[0]) for vote, token in zip(*voted, strict=True) if vote > 0]
        return {
            "context": before(test_rows, i, 30),
            "next": words.token(int(text.targets[i])),
            "p_model": text.log_p[i].exp().item(),
            "p_knn": knn[i].exp().item(),
            "p": log_p[i].exp().item(),
            "neighbors": [
                {
                    "context": before(store_rows, int(near.ids[i, j]), 16),
                    "next": words.token(int(near.values[i, j])),
                    "vote": by_token[near.values[i, j].long()].item(),
                    "distance": near.distances[i, j].item(),
                }
                for j in shown
            ],
        }

    def apart(order: list[int]) -> list[dict[str, Any]]:
        """No two within 40 tokens; texts with an @ are passed over: it may be somebody's address."""
        chosen: dict[int, dict[str, Any]] = {}
        for i in order:
            if i % ROW > 16 and all(abs(i - other) > 40 for other in chosen):
                described = describe(i)
                if "@" not in json.dumps(described):
                    chosen[i] = described
            if len(chosen) == n:
                break
        return list(chosen.values())

    gain, fall = log_p - text.log_p, text.log_p.exp() - log_p.exp()
    return {name: apart(by.argsort(descending=True).tolist()) for name, by in (("helped", gain), ("hurt", fall))}


def seconds(run: Callable[[], Any], repeats: int = 5) -> float:
    """The shortest of several runs: what else the machine does only adds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def cost(seed: int | str) -> dict[str, Any]:
    """Part 5."""
    keys, text = reading(seed, DOCS, "train"), reading(seed, DOCS, "test")
    lm, rows = language_model(DOCS, seed), rows_of(DOCS, "test", TEST_ROWS)[:4]
    forward = seconds(lambda: read(lm, rows)) / (4 * ROW)
    queries = text.hidden[:128]
    whole_text = len(keys.targets)
    sizes = [n * ROW for n in STORE_ROWS] + [whole_text]
    stores = {"exact": [filled(keys.hidden[:n], keys.targets[:n]) for n in sizes]}
    stores["ivfpq"] = [codes(seed, n) for n in (CODES_ROWS * ROW, whole_text)]
    found: dict[str, Any] = {"forward_us": forward * 1e6}
    for index, of_index in stores.items():
        runs = [partial(search, store, queries, K) for store in of_index]
        ratios = [seconds(run, 3) / len(queries) / forward for run in runs]
        found[index] = {"entries": [len(store) for store in of_index], "ratio": ratios}
    return found


def confidence(seed: int | str) -> dict[str, Any]:
    """Part 7."""
    valid, test = whole(seed, "valid"), whole(seed, "test")
    temperature = tune(valid).temperature
    log_p_valid, log_p_test = (log_p_knn(*pair, temperature) for pair in (valid, test))
    grid = torch.tensor(WEIGHTS)[:, None]
    tried = interpolate(valid[0].log_p, log_p_valid, grid)  # (W, N)
    found: dict[str, Any] = {"buckets": BUCKETS}
    for name, measure in (("distance", nearest_distance), ("agreement", disagreement)):
        on_valid, on_test = measure(valid[1], temperature), measure(test[1], temperature)
        perplexities = []
        for n in BUCKETS:
            edges = tuple(on_valid.quantile(torch.linspace(0, 1, n + 1)[1:-1]).tolist())
            sums = torch.zeros(len(grid), n).index_add_(1, BucketWeights(edges, ()).bucket(on_valid), tried)
            weights = tuple(WEIGHTS[i] for i in sums.argmax(0).tolist())
            weight = torch.tensor(weights)[BucketWeights(edges, weights).bucket(on_test)]
            perplexities.append(perplexity(interpolate(test[0].log_p, log_p_test, weight)))
            if n == 8:
                found[f"{name}_edges"], found[f"{name}_weights"] = list(edges), list(weights)
        found[name] = perplexities
    weight = learned(confidence_of(*valid, temperature), valid[0].log_p, log_p_valid)
    learned_weight = weight(confidence_of(*test, temperature))
    found["learned"] = perplexity(interpolate(test[0].log_p, log_p_test, learned_weight))
    found["learned_weight"] = learned_weight.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])).tolist()
    return found


def confidence_of(text: Reading, near: Neighbors, temperature: float) -> Tensor:
    """What is known before the next token is: (N, 4)."""
    columns = (nearest_distance(near, temperature), disagreement(near, temperature), text.entropy, text.highest)
    return torch.stack(columns, dim=1)


def learned(given: Tensor, log_p_model: Tensor, log_p_near: Tensor) -> Callable[[Tensor], Tensor]:
    """weight = sigmoid(a standardised(given) + b), with a and b of the highest log-probability."""
    mean, std = given.mean(0), given.std(0)
    a, b = torch.zeros(given.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([a, b], max_iter=100, line_search_fn="strong_wolfe")

    def weight(given: Tensor) -> Tensor:
        return torch.sigmoid((given - mean) / std @ a + b)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = -interpolate(log_p_model, log_p_near, weight(given)).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return lambda given: weight(given).detach()


def nearest_distance(near: Neighbors, temperature: float) -> Tensor:
    return near.distances[:, 0].contiguous()


def disagreement(near: Neighbors, temperature: float) -> Tensor:
    """1 - the largest share of the vote that one token gets: 0 where all neighbours say the same."""
    votes = (-near.distances / temperature).softmax(-1)  # (N, k)
    same = near.values[:, :, None] == near.values[:, None]  # (N, k, k)
    return 1 - (same * votes[:, None]).sum(-1).amax(-1)


def key(seed: int | str) -> dict[str, Any]:
    """Part 10."""
    rows = []
    for name in ("hidden", "features"):
        near = [
            first(whole_store(seed, DOCS, part, max(KS) if name == "hidden" else K, name), K)
            for part in ("valid", "test")
        ]
        valid, test = (reading(seed, DOCS, part) for part in ("valid", "test"))
        rows.append({"key": name} | tuned((valid, near[0]), (test, near[1])))
    return columns(rows)


def quantised(seed: int | str) -> dict[str, Any]:
    """Part 6."""
    keys, d = reading(seed, DOCS, "train"), reading(seed, DOCS, "train").hidden.shape[1]
    texts = [reading(seed, DOCS, part) for part in ("valid", "test")]
    exact = [whole(seed, part)[1] for part in ("valid", "test")]
    rows = [{"search": "exact", "recall": 1.0, "bytes": 2 * d + 4} | tuned(*zip(texts, exact, strict=True))]
    for index, rescore in (("ivfpq", True), ("ivfpq", False), *((f"IVF256,PQ{n}", False) for n in CODES)):
        whole_text = len(keys.targets)
        store = codes(seed, whole_text) if index == "ivfpq" else filled(keys.hidden, keys.targets, index=index)
        near = [search(store, text.hidden, K, rescore=rescore) for text in texts]
        hits = (near[1].ids[:, :, None] == exact[1].ids[:, None]).any(-1)
        code_bytes = ivfpq_sizes(len(store), d).code_bytes if index == "ivfpq" else int(index.split("PQ")[1])
        n_bytes = code_bytes + 4 + 2 * d * rescore
        row = {"search": f"{index}{', rescored' * rescore}", "recall": hits.double().mean().item(), "bytes": n_bytes}
        rows.append(row | tuned(*zip(texts, near, strict=True)))
    return columns(rows)


def same_bytes(seed: int) -> dict[str, Any]:
    """Part 8."""
    valid, test = (reading(seed, DOCS, part) for part in ("valid", "test"))
    d = MODEL["d_model"]
    models = [(2 * n_parameters(language_model(DOCS, seed, w)), w) for w in WIDTHS]
    base = models[0][0]
    parameters = [
        {"bytes": n, "perplexity": perplexity(read(language_model(DOCS, seed, w), scored()).log_p)} for n, w in models
    ]
    of_size = size(seed)
    exact = [{"bytes": base, "perplexity": of_size["model"]}]
    exact += [
        {"bytes": base + n * (2 * d + 4), "perplexity": p}
        for n, p in zip(of_size["entries"], of_size["tuned"], strict=True)
    ]
    of_codes = [exact[0]]
    for n in (CODES_ROWS * ROW, len(reading(seed, DOCS, "train").targets)):
        near = [search(codes(seed, n), text.hidden, K, rescore=False) for text in (valid, test)]
        found = tuned((valid, near[0]), (test, near[1]))
        n_bytes = base + n * (ivfpq_sizes(n, d).code_bytes + 4)
        of_codes.append({"bytes": n_bytes, "perplexity": found["perplexity"]})
    return {"parameters": columns(parameters), "exact": columns(exact), "codes": columns(of_codes)}


def n_parameters(lm: MemoryTransformer) -> int:
    return sum(parameter.numel() for parameter in lm.parameters())


def scored() -> Tensor:
    return rows_of(DOCS, "test", TEST_ROWS)


def extractive(seed: int, corpus: str) -> dict[str, float]:
    """Part 9."""
    lm, store_rows = model(corpus, MODEL["d_model"], seed), rows_of(corpus, "train", None)[:CORPUS_ROWS]
    keys = read(lm, store_rows, score=False)
    valid, test = (read(lm, rows_of(corpus, *part)) for part in (("valid", VALID_ROWS), ("test", TEST_ROWS)))
    store = filled(keys.hidden, keys.targets)
    found = tuned(*((text, search(store, text.hidden, K)) for text in (valid, test)))
    return {
        "model": perplexity(test.log_p),
        "knn_lm": found["perplexity"],
        "weight": found["weight"],
        "temperature": found["temperature"],
        "seen": seen(store_rows, rows_of(corpus, "test", TEST_ROWS), 8),
        "seen_4": seen(store_rows, rows_of(corpus, "test", TEST_ROWS), 4),
        "entries": len(store),
    }


def seen(store_rows: Tensor, rows: Tensor, n: int) -> float:
    """Share of the runs of n tokens in `rows` that stand in the store."""
    known, runs = ({run.tobytes() for run in part.unfold(1, n, 1).flatten(0, 1).numpy()} for part in (store_rows, rows))
    return len(runs & known) / len(runs)


def quotes(seed: int) -> dict[str, Any]:
    """Part 9: the same text, quoted more and more."""
    parts = {"valid": VALID_ROWS, "test": TEST_ROWS}
    stretches = torch.cat([rows_of(DOCS, *part)[:, :ROW].reshape(-1, STRETCH) for part in parts.items()])
    stretches = stretches[torch.randperm(len(stretches), generator=torch.Generator().manual_seed(seed))]
    rows = []
    for share in SHARES:
        near = {part: whole(seed, part) for part in parts}
        if share > 0:
            quoted = stretches[: round(share * len(stretches))].reshape(1, -1)
            keys = read(language_model(DOCS, seed), quoted, score=False)
            store = filled(keys.hidden, keys.targets)
            near = {part: (text, merged(old, search(store, text.hidden, K))) for part, (text, old) in near.items()}
        rows.append({"share": share} | tuned(near["valid"], near["test"]))
    return {"model": perplexity(reading(seed, DOCS, "test").log_p), **columns(rows)}


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "size": size, "k": neighbors, "domain": domain, "tokens": shares, "cost": cost, "quantised": quantised,
    "confidence": confidence, "bytes": same_bytes, "key": key, "quotes": quotes,
}  # fmt: skip
GIVEN = ["entries", "share", "k", "buckets", "search", "bytes", "key"]
OF_BUNDLED = ["size", "k", "tokens", "confidence", "key"]


def summed_up(per_seed: list[Any], name: str = "") -> Any:
    """Dictionaries stay, what is GIVEN stays, and what is measured becomes a summary over the seeds."""
    if isinstance(per_seed[0], dict):
        return {name: summed_up([found[name] for found in per_seed], name) for name in per_seed[0]}
    return per_seed[0] if name in GIVEN else results.summary(per_seed)


def main() -> None:
    torch.set_num_threads(1)
    needs("faiss", "faiss-cpu").omp_set_num_threads(1)
    here = [corpus for corpus in CORPORA if available(corpus)]
    constants = {name: value for name, value in globals().items() if name.isupper() and name not in ("PARTS", "CACHE")}
    config = constants | {"CORPORA": here, "texts": {corpus: text(corpus).sha256 for corpus in here}}
    bar = tqdm(total=len(SEEDS) * (len(PARTS) + len(here)) + len(OF_BUNDLED) + 1, desc="parts measured", unit="part")

    def run(part: str, compute: Callable[[], Any], seed: int | str) -> Any:
        found = results.cached_run(SLUG, {"part": part, "seed": seed} | config, compute, experiment_file=__file__)
        bar.update()
        return found

    per_seed = []
    for seed in SEEDS:
        parts = {name: run(name, partial(part, seed), seed) for name, part in PARTS.items()}
        parts["extractive"] = {c: run(f"extractive {c}", partial(extractive, seed, c), seed) for c in here}
        per_seed.append(parts)
        reading.cache_clear()  # gigabytes
        whole_store.cache_clear()
        codes.cache_clear()
    found = summed_up(per_seed)
    for name in OF_BUNDLED:
        found[name]["bundled"] = run(name, partial(PARTS[name], "bundled"), "bundled")
    shipped = n_parameters(language_model(DOCS, "bundled"))
    found["bytes"]["bundled"] = {"bytes": 2 * shipped, "perplexity": found["size"]["bundled"]["model"]}
    found["tokens"] |= run("examples", partial(examples, "bundled"), "bundled")
    bar.close()
    print("wrote", results.write(SLUG, found, config=config, seeds=SEEDS, experiment_file=__file__).name)


def available(corpus: str) -> bool:
    try:
        text(corpus)
    except corpora.DataError:
        return False
    return True


if __name__ == "__main__":
    main()
