"""kNN-LM: a language model with its training text as memory.

store      {(f(c_i), w_i)}: what the model makes of each context, and the token that followed it
p_knn(y)   proportional to  sum over the k nearest i with w_i = y  of  exp(-distance_i / temperature)
p          weight p_knn + (1 - weight) p_model

Source: Khandelwal, Levy, Jurafsky, Zettlemoyer, Lewis, Generalization through Memorization: Nearest Neighbor Language
Models, ICLR 2020, arXiv:1911.00172.  The paper's temperature is 1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memcourse.datastore import Neighbors
from memcourse.language_model import LanguageModel, Reading, TransformerReader, fingerprint, frozen
from memcourse.memory import require
from memcourse.token_model import TokenModel

__all__ = [
    "KNNLM", "BucketWeights", "LanguageModel", "Reading", "Store", "TransformerReader", "fingerprint", "frozen",
    "interpolate", "knn_log_prob", "knn_probs",
]  # fmt: skip

TOKENS_AT_ONCE = 2048  # in one pass of the model and one search
ROW_AT_ONCE = 256  # tokens of a row that are read together, where there are several rows
LOGITS_AT_ONCE = 2**22  # 16 MiB of float32
KEYS_AT_ONCE = 2**24  # numbers handed to the datastore together: 64 MiB


def knn_probs(
    distances: Float[Tensor, "... k"], tokens: Int[Tensor, "... k"], vocab_size: int, *, temperature: float = 1.0
) -> Float[Tensor, "... vocab"]:
    """p(y) = sum_i [tokens_i = y] exp(-distances_i / temperature) / sum_i exp(-distances_i / temperature).

    (..., k), (..., k) -> (..., V).  A row sums to 1; one without a neighbour, k = 0 or all distances infinite, is 0.
    Raises ValueError for shapes that differ, a temperature of 0 or less, a token outside the vocabulary.
    Source: Khandelwal et al., 2020, equation 2.
    """
    scores = _scores(distances, tokens, temperature)
    _require_tokens(tokens, vocab_size, "tokens")
    probs = scores.new_zeros(*distances.shape[:-1], vocab_size)
    return probs.scatter_add(-1, tokens.long(), (scores - _total(scores)[..., None]).exp())


def knn_log_prob(
    distances: Float[Tensor, "... k"],
    tokens: Int[Tensor, "... k"],
    targets: Int[Tensor, "..."],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "..."]:
    """log p(target), with p as in `knn_probs`, from the neighbours alone: nothing of the vocabulary's size is made.

    (..., k), (..., k), (...) -> (...).  -inf where no neighbour holds the target.
    Raises ValueError for shapes that do not fit and a temperature of 0 or less.
    """
    scores = _scores(distances, tokens, temperature)
    same = targets.shape == distances.shape[:-1]
    require(same, "targets", tuple(targets.shape), f"of shape {tuple(distances.shape[:-1])}, one for each row")
    # few neighbours hold the target: their scores are picked out, and logsumexp runs over those of each row
    n, k = targets.numel(), tokens.shape[-1]
    row, column = (tokens == targets[..., None]).reshape(n, k).nonzero(as_tuple=True)
    hits = scores.reshape(n, k)[row, column]
    real = hits > -math.inf
    hits, rows = hits[real], row[real]
    none = scores.new_full((n,), -math.inf)
    highest = none.scatter_reduce(0, rows, hits.detach(), "amax")
    sums = torch.zeros_like(none).index_add(0, rows, (hits - highest[rows]).exp())
    return (sums.log() + highest).reshape(targets.shape) - _total(scores)


def interpolate(
    log_p_model: Float[Tensor, "..."], log_p_knn: Float[Tensor, "..."], weight: float | Tensor
) -> Float[Tensor, "..."]:
    """log(weight p_knn + (1 - weight) p_model): (...), (...), a number or a tensor that broadcasts -> (...).

    Either side may be -inf.  A weight of 0 gives log_p_model itself, and 1 gives log_p_knn; gradients are finite.
    Raises ValueError for shapes that differ and a weight outside [0, 1].
    Source: Khandelwal et al., 2020, equation 3.
    """
    same = log_p_model.shape == log_p_knn.shape
    require(same, "log_p_knn", tuple(log_p_knn.shape), f"of the shape of log_p_model, {tuple(log_p_model.shape)}")
    weight = torch.as_tensor(weight, dtype=log_p_model.dtype, device=log_p_model.device)
    _require_weights(weight)
    with torch.no_grad():  # the larger part, which the result is divided by: the sum lies between 1 and 2
        shift = torch.maximum(log_p_model + torch.log1p(-weight), log_p_knn + weight.log())
        shift = shift.where(shift > -math.inf, 0.0)
    # a part that exceeds e^80 times the larger one has a weight of (almost) 0, and must not make it 0 * inf
    model, knn = ((part - shift).clamp(max=80.0).exp() for part in (log_p_model, log_p_knn))
    total = (1 - weight) * model + weight * knn
    some = total > 0
    return (shift + total.where(some, 1.0).log()).where(some, -math.inf)


def _scores(distances: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    same = tokens.shape == distances.shape and tokens.ndim >= 1
    require(same, "tokens", tuple(tokens.shape), f"of the shape of distances, {tuple(distances.shape)}")
    require(0 < temperature < math.inf, "temperature", temperature, "a number greater than 0")
    return distances * (-1 / temperature)


def _total(scores: Tensor) -> Tensor:
    """log sum_i exp(score_i), by which a row is divided; a row without a neighbour is divided by 1."""
    total = _logsumexp(scores)
    return total.where(total > -math.inf, 0.0)


def _logsumexp(scores: Tensor) -> Tensor:
    """torch's over the last axis; where a row is -inf throughout, the gradient is 0 and not torch's NaN."""
    if not scores.requires_grad:
        return scores.logsumexp(dim=-1)
    none = (scores == -math.inf).all(dim=-1)
    return scores.masked_fill(none[..., None], 0.0).logsumexp(dim=-1).masked_fill(none, -math.inf)


def _require_tokens(tokens: Tensor, vocab_size: int, name: str) -> None:
    if tokens.numel() and not torch.compiler.is_compiling():
        low, high = int(tokens.min()), int(tokens.max())
        require(0 <= low and high < vocab_size, name, f"{low} to {high}", f"from 0 to {vocab_size - 1}")


def _require_weights(weight: Tensor) -> None:
    if weight.numel() and not torch.compiler.is_compiling():
        low, high = weight.min().item(), weight.max().item()
        require(0 <= low and high <= 1, "weight", low if low == high else f"{low} to {high}", "from 0 to 1")


@runtime_checkable
class Store(Protocol):
    """What `KNNLM` needs of a datastore: a `Datastore`, or several shards searched together."""

    @property
    def dim(self) -> int: ...

    @property
    def metric(self) -> str: ...

    @property
    def made_by(self) -> str | None: ...

    def __len__(self) -> int: ...

    def search(self, queries: Tensor, k: int) -> Neighbors: ...


@dataclass(frozen=True)
class BucketWeights:
    """A weight that follows confidence: each bucket of the distance to the nearest neighbour has its own.

    Bucket i holds the queries with edges[i - 1] < distance <= edges[i].
    Source: Drozdov et al., You can't pick your neighbors, or can you?, Findings of EMNLP 2022, arXiv:2210.15859.
    """

    edges: tuple[float, ...]
    weights: tuple[float, ...]

    def bucket(self, nearest: Float[Tensor, "*queries"]) -> Int[Tensor, "*queries"]:
        """The bucket of each distance."""
        edges = torch.tensor(self.edges, dtype=nearest.dtype, device=nearest.device)
        return torch.bucketize(nearest.contiguous(), edges)

    def __call__(self, neighbors: Neighbors) -> Float[Tensor, "*queries"]:
        nearest = neighbors.distances[..., 0].contiguous()
        return torch.tensor(self.weights, dtype=nearest.dtype, device=nearest.device)[self.bucket(nearest)]


class Piece(NamedTuple):
    """What `KNNLM` reads at a time: a stretch of some rows, and what the model makes of it."""

    rows: slice
    times: slice
    reading: Reading


class KNNLM:
    """A language model whose next token is also looked up in a datastore of (context, next token).

    `model` is a MemoryTransformer or any `LanguageModel`; `datastore` a Datastore of the width of its keys, or several
    searched together.  `weight` is a number, or a function of the Neighbors that gives each query its own,
    (..., k) -> (...).  A token for which nothing is found is left to the model alone.
    `k`, `temperature` and `weight` may be set at any time; `tune` chooses them on held-out text.
    Raises ValueError for a datastore of another width, another vocabulary or another model, and numbers out of range.
    Source: Khandelwal et al., 2020.
    """

    def __init__(
        self,
        model: TokenModel | LanguageModel,
        datastore: Store,
        *,
        k: int = 64,
        temperature: float = 1.0,
        weight: float | Callable[[Neighbors], Tensor] = 0.25,
    ) -> None:
        self.model: LanguageModel = TransformerReader(model) if isinstance(model, TokenModel) else model
        known = isinstance(self.model, LanguageModel)
        require(known, "model", type(model).__name__, "a MemoryTransformer, or what keeps the LanguageModel protocol")
        require(isinstance(datastore, Store), "datastore", type(datastore).__name__, "a Datastore")
        require(k >= 1, "k", k, "at least 1")
        require(0 < temperature < math.inf, "temperature", temperature, "a number greater than 0")
        in_range = callable(weight) or 0 <= weight <= 1
        require(in_range, "weight", weight, "from 0 to 1, or a function of the neighbours")
        self.datastore, self.k, self.temperature, self.weight = datastore, k, temperature, weight
        self._check_store()
        for store in getattr(datastore, "stores", [datastore]):  # of shards, each
            if len(store) and (values := getattr(store, "values", None)) is not None:
                self._check_values(values)

    def memorize(self, tokens: Int[Tensor, "batch time"], *, document: str | None = None) -> None:
        """Add the pairs (hidden_t, token_{t+1}), t = 0 ... T-2, of every row: a row is one text.

        Entries go in row by row: the pair of row b and time t is number b (T - 1) + t of those added here.
        Text of any length is read in bounded memory.  The store notes the model that made its keys.
        Raises ValueError for fewer than two tokens, tokens outside the vocabulary, a store of another model.
        """
        self._check_tokens(tokens)
        self._check_store()
        store: Any = self.datastore
        require(hasattr(store, "add"), "datastore", type(store).__name__, "one that can be added to")
        store.made_by = self.model.fingerprint()
        rows: list[tuple[Tensor, ...]] = []  # stretches of the rows that are being read
        ready: list[tuple[Tensor, ...]] = []  # in the order of the entries
        for piece in self._pieces(tokens[:, :-1]):
            rows.append((piece.reading.hidden.float(), self._targets(tokens, piece).int()))
            finished = piece.times.stop == tokens.shape[1] - 1
            if finished or len(piece.reading.hidden) == 1:
                ready.append(_joined(rows, dim=1))
                rows = []
            last = finished and piece.rows.stop == len(tokens)
            if last or sum(keys.numel() for keys, _ in ready) >= KEYS_AT_ONCE:
                keys, values = _joined([(keys.flatten(0, 1), values.flatten()) for keys, values in ready])
                store.add(keys, values, document=document)
                ready = []

    def neighbors(self, tokens: Int[Tensor, "batch time"]) -> Neighbors:
        """What each token's context finds, (B, T) -> Neighbors of (B, T, k): candidates for the token after it.

        Ids are those of `memorize`: with one row memorized and nothing else, id t is the text up to its token t.
        """
        self._check_tokens(tokens, least=1)
        self._check_store()
        rows: dict[int, list[Neighbors]] = {}
        for piece in self._pieces(tokens):
            rows.setdefault(piece.rows.start, []).append(self._search(piece.reading.hidden, self.k))
        return Neighbors(*_joined([_joined(parts, dim=1) for parts in rows.values()]))

    def score(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch scored"]:
        """log p(token_{t+1} | tokens up to t) of every row, (B, T) -> (B, T - 1).

        Nothing of the size tokens x vocabulary is made, and memory is bounded for text of any length.
        Raises ValueError for fewer than two tokens, tokens outside the vocabulary, a store of another model.
        """
        self._check_tokens(tokens)
        self._check_store()
        scores = torch.empty(len(tokens), tokens.shape[1] - 1, device=tokens.device)
        for piece in self._pieces(tokens[:, :-1]):
            targets = self._targets(tokens, piece)
            found = self._search(piece.reading.hidden, self.k)
            log_p_knn = knn_log_prob(found.distances, found.values, targets, temperature=self.temperature)
            log_p = interpolate(self._log_p_model(piece.reading.features, targets), log_p_knn, self._weights(found))
            scores[piece.rows, piece.times] = log_p.to(scores)
        return scores

    def perplexity(self, tokens: Int[Tensor, "batch time"]) -> float:
        """exp of the mean negative log-probability, in nats, over all tokens but the first of each row."""
        return _perplexity(self.score(tokens).double().mean().item())

    def next_log_probs(
        self, hidden: Float[Tensor, "... dim"], logits: Float[Tensor, "... vocab"]
    ) -> Float[Tensor, "... vocab"]:
        """log p of every next token, from a key and the model's own scores: (..., dim), (..., V) -> (..., V)."""
        found = self._search(hidden, self.k)
        log_p_model = logits.float().log_softmax(dim=-1)
        probs = knn_probs(found.distances, found.values, self.model.vocab_size, temperature=self.temperature)
        return interpolate(log_p_model, probs.log(), self._weights(found)[..., None])

    def generate(
        self, prompt: Int[Tensor, "batch time"], n: int, *, temperature: float | None = None
    ) -> Int[Tensor, "batch longer"]:
        """The prompt and n more tokens, (B, T) -> (B, T + n): the likeliest, or sampled where a temperature is given.

        This temperature sharpens the mixed distribution; the neighbours' is `self.temperature`.
        """
        self._check_tokens(prompt, least=1, name="prompt")
        require(n >= 0, "n", n, "0 tokens or more")
        require(temperature is None or temperature > 0, "temperature", temperature, "None or greater than 0")
        self._check_store()
        tokens, newest, state = [prompt], prompt, None
        with frozen(self.model.module):
            for _ in range(n):
                for piece in newest.split(max(1, TOKENS_AT_ONCE // len(prompt)), dim=1):
                    features, hidden, state = self.model.read(piece.to(self._device), state)
                log_p = self.next_log_probs(hidden[:, -1], self.model.logits(features[:, -1]))  # (B, V)
                if temperature is None:
                    newest = log_p.argmax(dim=-1, keepdim=True)  # (B, 1)
                else:
                    newest = torch.multinomial((log_p / temperature).softmax(dim=-1), 1)
                tokens.append(newest.to(prompt))
        return torch.cat(tokens, dim=1)

    def tune(
        self,
        tokens: Int[Tensor, "batch time"],
        *,
        ks: Sequence[int] = (8, 64, 256, 1024),
        temperatures: Sequence[float] = (1.0, 3.0, 10.0, 30.0, 100.0),
        weights: Sequence[float] = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.65, 0.8),
        buckets: int = 1,
        held_out: bool = True,
    ) -> dict[str, Any]:
        """Choose k, temperature and weight by the perplexity of held-out text, and set them.

        The text is read and searched once, with the largest k; all combinations are scored from what was found.
        The temperatures suit squared distances of hidden states; cosine distances, at most 2, want far smaller ones.
        More than one bucket: a weight for each, by the distance to the nearest neighbour (`BucketWeights`).
        Returns {"k", "temperature", "weight", "perplexity", "model_perplexity"}: the choice, and the model alone.
        Raises ValueError for an empty store, and for a text that is in it, where each token finds itself and memory
        looks perfect: more than half of the tokens have a neighbour at distance (almost) 0 with the same next token.
        `held_out=False` tunes on it all the same.
        """
        for name, values in (("ks", ks), ("temperatures", temperatures), ("weights", weights)):
            require(len(values) > 0, name, values, "at least one value")
        require(min(ks) >= 1, "ks", ks, "at least 1 each")
        require(0 < min(temperatures), "temperatures", temperatures, "greater than 0 each")
        require(0 <= min(weights) and max(weights) <= 1, "weights", weights, "from 0 to 1 each")
        require(buckets >= 1, "buckets", buckets, "at least 1")
        self._check_tokens(tokens)
        self._check_store()
        require(len(self.datastore) > 0, "datastore", "an empty one", "filled first, by memorize")
        settings = list(product(ks, temperatures))
        model, knn, nearest, share = self._try(tokens, settings)
        leak = f"a text of which {share:.0%} of the tokens find themselves in the datastore"
        require(not held_out or share <= 0.5, "tokens", leak, "held-out text (held_out=False tunes on it all the same)")

        in_order = nearest[nearest < math.inf].sort().values
        edges = tuple(in_order[len(in_order) * i // buckets].item() for i in range(1, buckets) if len(in_order))
        bucket = BucketWeights(edges, ()).bucket(nearest)
        grid = torch.tensor(weights, dtype=model.dtype, device=model.device)
        tried = []
        for (k, temperature), log_p_knn in zip(settings, knn, strict=True):
            log_p = interpolate(model, log_p_knn, grid[:, None] * (nearest < math.inf))  # (weights, tokens)
            sums = log_p.new_zeros(len(grid), len(edges) + 1, dtype=torch.float64).index_add_(1, bucket, log_p.double())
            highest, of_weight = sums.max(dim=0)  # in each bucket
            tried.append((highest.sum().item(), k, temperature, [weights[i] for i in of_weight.tolist()]))
        total, self.k, self.temperature, chosen = max(tried, key=itemgetter(0))
        self.weight = chosen[0] if buckets == 1 else BucketWeights(edges, tuple(chosen))
        return {
            "k": self.k,
            "temperature": self.temperature,
            "weight": self.weight,
            "perplexity": _perplexity(total / len(model)),
            "model_perplexity": _perplexity(model.double().mean().item()),
        }

    def _try(
        self, tokens: Tensor, settings: Sequence[tuple[int, float]]
    ) -> tuple[Tensor, Sequence[Tensor], Tensor, float]:
        """Of all tokens log p_model, log p_knn by setting, distance to the nearest; the share that finds itself."""
        parts = []
        for piece in self._pieces(tokens[:, :-1]):
            targets = self._targets(tokens, piece)
            found = self._search(piece.reading.hidden, max(k for k, _ in settings))
            log_p_knn = [
                knn_log_prob(found.distances[..., :k], found.values[..., :k], targets, temperature=temperature)
                for k, temperature in settings
            ]
            nearest, followed = found.distances[..., 0], found.values[..., 0] == targets
            itself = followed & self._is_itself(piece.reading.hidden, nearest)
            columns = (self._log_p_model(piece.reading.features, targets), *log_p_knn, nearest, itself)
            parts.append(tuple(column.flatten() for column in columns))
        model, *knn, nearest, itself = _joined(parts)
        return model, knn, nearest, itself.double().mean().item()

    @property
    def _device(self) -> torch.device:
        return next(self.model.module.parameters()).device

    def _check_store(self) -> None:
        """At every use: the store, or the model's weights, may have changed since the last."""
        dim, made_by, ours = self.datastore.dim, self.datastore.made_by, self.model.fingerprint()
        require(dim == self.model.dim, "datastore.dim", dim, f"the width of the model's keys, {self.model.dim}")
        require(made_by in (None, ours), "datastore.made_by", repr(made_by), f"this model, {ours!r}")

    def _check_tokens(self, tokens: Tensor, *, least: int = 2, name: str = "tokens") -> None:
        integers = tokens.ndim == 2 and not tokens.is_floating_point() and tokens.dtype != torch.bool
        require(integers, name, f"{tokens.dtype} {tuple(tokens.shape)}", "integers of shape (batch, time)")
        need = "a context and the token after it" if least == 2 else "one token"
        long_enough = len(tokens) >= 1 and tokens.shape[1] >= least
        require(long_enough, name, f"shape {tuple(tokens.shape)}", f"at least {least} long in every row: {need}")
        _require_tokens(tokens, self.model.vocab_size, name)

    def _pieces(self, tokens: Tensor) -> Iterator[Piece]:
        """Read some rows at a time, as many as fit, each group from its first token to its last."""
        n_rows, length = tokens.shape
        at_once = max(1, min(TOKENS_AT_ONCE // min(length, ROW_AT_ONCE), KEYS_AT_ONCE // (length * self.model.dim)))
        with frozen(self.model.module):
            for first in range(0, n_rows, at_once):
                rows, state = slice(first, min(first + at_once, n_rows)), None
                step = max(1, TOKENS_AT_ONCE // (rows.stop - rows.start))
                for start in range(0, length, step):
                    times = slice(start, min(start + step, length))
                    reading = self.model.read(tokens[rows, times].to(self._device), state)
                    state = reading.state
                    yield Piece(rows, times, reading)

    def _targets(self, tokens: Tensor, piece: Piece) -> Tensor:
        """The token after each that the piece holds."""
        return tokens[:, 1:][piece.rows, piece.times].to(piece.reading.hidden.device)

    def _search(self, hidden: Tensor, k: int) -> Neighbors:
        """The neighbours.  A store of anything but this vocabulary's tokens is refused."""
        distances, ids, values = self.datastore.search(hidden.float(), k)
        if ids.numel() == 0:
            return Neighbors(distances, ids, ids)
        self._check_values(values.flatten(0, ids.ndim - 1))
        return Neighbors(distances, ids, values.long())

    def _check_values(self, values: Tensor) -> None:
        """Raises ValueError for entries (n, ...) whose values are not this vocabulary's tokens."""
        kind = f"{values.dtype} of shape {tuple(values.shape[1:])}"
        require(values.ndim == 1 and not values.is_floating_point(), "datastore's values", kind, "token ids")
        _require_tokens(values, self.model.vocab_size, "datastore's tokens")

    def _weights(self, found: Neighbors) -> Tensor:
        """The weight of each query, (...); 0 where nothing was found."""
        any_found = (found.distances < math.inf).any(dim=-1)
        if not any_found.any():
            return torch.zeros_like(any_found, dtype=found.distances.dtype)
        weight = self.weight(found) if callable(self.weight) else self.weight
        weights = torch.as_tensor(weight, dtype=found.distances.dtype, device=found.distances.device)
        fits = weights.ndim == 0 or weights.shape == any_found.shape
        require(fits, "weight", f"a tensor of shape {tuple(weights.shape)}", f"of shape {tuple(any_found.shape)}")
        return weights.where(any_found, 0.0)

    def _log_p_model(self, features: Tensor, targets: Tensor) -> Tensor:
        """log softmax(logits) at the targets, (B, T, width), (B, T) -> (B, T), a few rows of logits at a time."""
        few = max(1, LOGITS_AT_ONCE // self.model.vocab_size)
        parts = []
        for rows, wanted in zip(features.flatten(0, 1).split(few), targets.flatten().split(few), strict=True):
            logits = self.model.logits(rows).float()  # (few, V)
            parts.append(logits.gather(-1, wanted[:, None].long()).squeeze(-1) - logits.logsumexp(dim=-1))
        return torch.cat(parts).view(targets.shape)

    def _is_itself(self, hidden: Tensor, nearest: Tensor) -> Tensor:
        """Whether the nearest key is the query itself, but for rounding."""
        length = hidden.float().square().sum(dim=-1)
        apart = {"l2": nearest / length, "ip": nearest / length + 1, "cosine": nearest}[self.datastore.metric]
        return apart < 1e-3


def _joined(parts: Sequence[Sequence[Tensor]], dim: int = 0) -> tuple[Tensor, ...]:
    """[(a, b), (c, d)] -> (a and c, b and d), concatenated."""
    return tuple(torch.cat(column, dim=dim) for column in zip(*parts, strict=True))


def _perplexity(mean_log_prob: float) -> float:
    return math.exp(min(-mean_log_prob, 700.0))
