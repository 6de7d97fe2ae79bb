"""kNN-LM against loops over (hidden, next token) pairs in float64, and what it must never make or forget."""

import itertools
import math
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from memcourse import CausalAttention, GatedMemory, MemoryTransformer, corpora, evaluate, knn_lm
from memcourse.datastore import Datastore, Neighbors
from memcourse.knn_lm import KNNLM, BucketWeights, TransformerReader, interpolate, knn_log_prob, knn_probs
from memcourse.language_model import Reading, fingerprint
from memcourse.shards import Shards
from memcourse.training import Batch
from memcourse.transformer import open_model

real_data = pytest.mark.skipif(
    "MEMCOURSE_DATA" not in os.environ, reason="MEMCOURSE_DATA is not set; it names the folder of the real data"
)
V, D = 23, 12
SPANS = [(0, 40_000), (40_000, 43_000), (43_000, 47_000)]  # characters: memorized, tuned on, tested on
INF = math.inf


def draw_model(vocab_size: int = V, *, window: int | None = 5) -> MemoryTransformer:
    model = MemoryTransformer(vocab_size, D, 2, lambda: CausalAttention(D, 2, window=window))
    nn.init.normal_(model.embedding.weight, std=0.5)  # logits that differ
    return model


def draw_tokens(*shape: int, vocab_size: int = V) -> Tensor:
    return torch.randint(vocab_size, shape)


def draw_lm(tokens: Tensor, **options: Any) -> KNNLM:
    lm = KNNLM(draw_model(), Datastore(D), **options)
    lm.memorize(tokens)
    return lm


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces so small that every text crosses their borders."""
    for name, value in (("TOKENS_AT_ONCE", 7), ("ROW_AT_ONCE", 3), ("LOGITS_AT_ONCE", 3 * V), ("KEYS_AT_ONCE", 8 * D)):
        monkeypatch.setattr(knn_lm, name, value)


# The equations


def probs_by_loops(distances: np.ndarray, tokens: np.ndarray, vocab_size: int, temperature: float) -> np.ndarray:
    probs = np.zeros((*distances.shape[:-1], vocab_size))
    for row in np.ndindex(*distances.shape[:-1]):
        total = sum(math.exp(-d / temperature) for d in distances[row])
        for distance, token in zip(distances[row], tokens[row], strict=True):
            if total:
                probs[(*row, token)] += math.exp(-distance / temperature) / total
    return probs


@pytest.mark.parametrize("shape", [(13,), (3, 13), (2, 3, 1), (3, 0)], ids=str)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
def test_probabilities_of_the_neighbours(shape: tuple[int, ...], temperature: float, device: str) -> None:
    distances = torch.rand(shape, dtype=torch.float64) * 5 - 2  # of inner products too, which are negative when negated
    tokens = torch.randint(7, shape, dtype=torch.int32)
    distances[..., 5:] = INF  # missing: what they hold counts for nothing
    distances[0, ...] = INF if len(shape) == 2 else distances[0, ...]
    expected = probs_by_loops(distances.numpy(), tokens.numpy(), 7, temperature)
    found = knn_probs(distances.to(device), tokens.to(device), 7, temperature=temperature).cpu()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-14)
    for target in range(7):
        targets = torch.full(shape[:-1], target)
        log_prob = knn_log_prob(distances.to(device), tokens.to(device), targets.to(device), temperature=temperature)
        with np.errstate(divide="ignore"):
            np.testing.assert_allclose(log_prob.cpu().numpy(), np.log(expected[..., target]), atol=1e-12)


def test_far_neighbours_and_large_ids_keep_their_numbers() -> None:
    distances = torch.tensor([[1000.0, 3000.0, 2e8]])  # exp(-1000) is 0 in float32
    tokens = torch.tensor([[50_256, 40_000, 7]], dtype=torch.int32)
    for target, expected in ((50_256, 0.0), (40_000, -2000.0), (7, 1000.0 - 2e8), (8, -INF)):
        assert knn_log_prob(distances, tokens, torch.tensor([target])).item() == pytest.approx(expected, rel=1e-7)
    probs = knn_probs(distances, tokens, 50_257)
    assert probs.nonzero().tolist() == [[0, 50_256]] and probs.sum() == 1


def test_the_gradient_of_the_neighbours_probability() -> None:
    distances = (torch.rand(3, 5, dtype=torch.float64) * 3).requires_grad_()
    tokens = torch.tensor([[0, 1, 0, 2, 1]] * 3)
    targets = torch.tensor([0, 1, 2])
    assert torch.autograd.gradcheck(lambda d: knn_log_prob(d, tokens, targets, temperature=2.0), distances)
    distances = torch.tensor([[1.0, INF], [INF, INF], [1.0, 2.0]], requires_grad=True)
    found = knn_log_prob(distances, tokens[:, :2], torch.tensor([0, 0, 9]))
    assert found.tolist() == [0.0, -INF, -INF]
    gradient = torch.autograd.grad(found.clamp(min=-5).sum(), distances)[0]
    assert not gradient.isnan().any()


def test_interpolation_is_a_weighted_mean_of_probabilities() -> None:
    values = [-INF, -1000.0, -80.0, -3.0, -0.5, 0.0]
    for model, knn, weight in itertools.product(values, values, [0.0, 1e-30, 0.1, 0.25, 0.5, 0.9, 1.0]):
        found = interpolate(torch.tensor(model).double(), torch.tensor(knn).double(), weight).item()
        parts = [math.log(w) + p for w, p in ((1 - weight, model), (weight, knn)) if w > 0 and p > -INF]
        expected = max(parts) + math.log(sum(math.exp(p - max(parts)) for p in parts)) if parts else -INF
        assert found == pytest.approx(expected, abs=1e-12, rel=1e-12), (model, knn, weight)


def test_a_weight_of_0_or_1_changes_no_bit() -> None:
    model, knn = torch.randn(50), torch.randn(50) * 300
    model[3], knn[5] = -INF, -INF
    assert torch.equal(interpolate(model, knn, 0.0), model)
    assert torch.equal(interpolate(model, knn, 1.0), knn)
    weight = torch.rand(50).round()
    assert torch.equal(interpolate(model, knn, weight), knn.where(weight == 1, model))


def test_the_gradient_of_the_interpolation() -> None:
    parts = [torch.randn(7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    weight = torch.tensor([0.0, 0.1, 0.2, 0.5, 0.9, 0.99, 0.6], dtype=torch.float64, requires_grad=True)
    found = torch.autograd.grad(interpolate(*parts, weight).sum(), [*parts, weight])
    p_model, p_knn = (part.detach().exp() for part in parts)
    w = weight.detach()
    mixed = w * p_knn + (1 - w) * p_model
    for gradient, expected in zip(found, ((1 - w) * p_model, w * p_knn, p_knn - p_model), strict=True):
        torch.testing.assert_close(gradient, expected / mixed, atol=1e-12, rtol=0)
    values = [-INF, -1e4, -200.0, 0.0]
    for model, knn, weight in itertools.product(values, values, [0.0, 1e-30, 0.5, 1.0]):
        leaves = [torch.tensor([value], requires_grad=True) for value in (model, knn, weight)]
        for gradient in torch.autograd.grad(interpolate(*leaves).clamp(min=-9.0).sum(), leaves):
            assert gradient.isfinite().all(), (model, knn, weight)


# The score, by loops


def score_by_loops(lm: KNNLM, memorized: Tensor, tokens: Tensor) -> np.ndarray:
    """Every pair, every distance, in float64; the model reads each row whole."""
    model = lm.model.module
    with torch.no_grad():
        pairs = [
            (hidden.double().numpy(), int(token))
            for row in memorized
            for hidden, token in zip(model.hidden(row[None])[0], row[1:], strict=False)
        ]
        queries = model.hidden(tokens).double().numpy()
        model_probs = model(tokens)[0].double().softmax(dim=-1).numpy()
    scores = np.zeros((len(tokens), tokens.shape[1] - 1))
    for b, t in np.ndindex(*scores.shape):
        target = int(tokens[b, t + 1])
        nearest = sorted((((key - queries[b, t]) ** 2).sum(), token) for key, token in pairs)[: lm.k]
        weights = [math.exp(-distance / lm.temperature) for distance, _ in nearest]
        p_knn = sum(w for w, (_, token) in zip(weights, nearest, strict=True) if token == target) / sum(weights)
        scores[b, t] = math.log(lm.weight * p_knn + (1 - lm.weight) * model_probs[b, t, target])
    return scores


@pytest.mark.parametrize("pieces", ["whole", "small"])
def test_the_score_is_that_of_the_loops(pieces: str, request: pytest.FixtureRequest) -> None:
    if pieces == "small":
        request.getfixturevalue("small_pieces")
    memorized, tokens = draw_tokens(2, 19), draw_tokens(3, 17)
    tokens[0, :9] = memorized[0, :9]
    lm = draw_lm(memorized, k=6, temperature=3.0, weight=0.4)
    found = lm.score(tokens)
    assert found.shape == (3, 16) and not found.requires_grad
    np.testing.assert_allclose(found.numpy(), score_by_loops(lm, memorized, tokens), atol=1e-4)
    assert lm.perplexity(tokens) == pytest.approx(math.exp(-found.double().mean()))


def test_score_and_next_log_probs_agree(device: str) -> None:
    lm = KNNLM(draw_model().to(device), Datastore(D, device=device), k=5, weight=0.5)
    lm.memorize(draw_tokens(1, 40).to(device))
    tokens = draw_tokens(2, 9).to(device)
    features, hidden, _ = lm.model.read(tokens)
    log_probs = lm.next_log_probs(hidden, lm.model.logits(features))
    torch.testing.assert_close(log_probs.exp().sum(dim=-1), torch.ones(2, 9, device=device))
    expected = log_probs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    torch.testing.assert_close(lm.score(tokens), expected, atol=1e-5, rtol=0)


def test_nothing_found_leaves_the_token_to_the_model() -> None:
    model, tokens = draw_model(), draw_tokens(2, 30)
    alone = evaluate(model, [Batch(tokens[:, :-1], tokens[:, 1:])])["perplexity"]
    lm = KNNLM(model, Datastore(D), weight=0.9)
    assert lm.perplexity(tokens) == pytest.approx(alone, rel=1e-5)
    assert lm.neighbors(tokens).ids.shape == (2, 30, 0)
    assert torch.equal(lm.generate(tokens, 4), model.generate(tokens, 4))
    lm.weight = lambda neighbors: neighbors.distances[..., 0]  # never asked
    assert lm.perplexity(tokens) == pytest.approx(alone, rel=1e-5)


class Sparse(Datastore):
    """A store that finds nothing for every other query, as an approximate index may."""

    def search(self, queries: Tensor, k: int, *, rescore: bool = True) -> Neighbors:
        distances, ids, values = super().search(queries, k)
        nothing = (torch.arange(ids.shape[-2]) % 2 == 1)[:, None]
        return Neighbors(
            distances.masked_fill(nothing, INF), ids.masked_fill(nothing, -1), values.masked_fill(nothing, 0)
        )


def test_missing_neighbours_get_no_probability() -> None:
    model, memorized, tokens = draw_model(), draw_tokens(1, 40), draw_tokens(1, 21)
    scores = []
    for store, weight in ((Sparse(D), 0.5), (Datastore(D), 0.5), (Datastore(D), 0.0)):
        lm = KNNLM(model, store, weight=weight)
        lm.memorize(memorized)
        scores.append(lm.score(tokens)[0])
    sparse, full, alone = scores
    torch.testing.assert_close(sparse[::2], full[::2])
    torch.testing.assert_close(sparse[1::2], alone[1::2])
    assert not torch.allclose(full[1::2], alone[1::2])


def test_a_weight_may_be_a_function_of_the_neighbours() -> None:
    lm, tokens = draw_lm(draw_tokens(1, 40), weight=0.3), draw_tokens(2, 21)
    constant = lm.score(tokens)
    lm.weight = lambda neighbors: torch.full(neighbors.ids.shape[:-1], 0.3)
    torch.testing.assert_close(lm.score(tokens), constant)
    nearest = lm.neighbors(tokens).distances[:, :-1, 0]
    edge = nearest.median().item()
    lm.weight = BucketWeights((edge,), (0.0, 1.0))
    alone = draw_scores(lm, tokens, 0.0).where(nearest <= edge, draw_scores(lm, tokens, 1.0))
    lm.weight = BucketWeights((edge,), (0.0, 1.0))
    assert torch.equal(lm.score(tokens), alone)


def draw_scores(lm: KNNLM, tokens: Tensor, weight: float) -> Tensor:
    lm.weight = weight
    return lm.score(tokens)


def test_shards_are_searched_as_one_store() -> None:
    model, memorized, tokens = draw_model(), draw_tokens(2, 40), draw_tokens(1, 21)
    whole, *parts = (KNNLM(model, Datastore(D), k=7) for _ in range(3))
    whole.memorize(memorized)
    for lm, row in zip(parts, memorized, strict=True):
        lm.memorize(row[None])
    sharded = KNNLM(model, Shards([lm.datastore for lm in parts]), k=7)
    assert torch.equal(sharded.score(tokens), whole.score(tokens))


# What is memorized


class Recorder(Datastore):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.added: list[tuple[Tensor, Tensor, str | None]] = []
        self.searched: list[int] = []

    def add(self, keys: Tensor, values: Tensor, *, document: str | None = None) -> None:
        self.added.append((keys, values, document))
        super().add(keys, values, document=document)

    def search(self, queries: Tensor, k: int, *, rescore: bool = True) -> Neighbors:
        self.searched.append(k)
        return super().search(queries, k)


@pytest.mark.parametrize("pieces", ["whole", "small"])
@pytest.mark.parametrize("shape", [(1, 2), (1, 50), (5, 2), (5, 8), (3, 31)], ids=str)
def test_a_key_is_paired_with_the_token_after_it_row_by_row(
    shape: tuple[int, int], pieces: str, request: pytest.FixtureRequest
) -> None:
    if pieces == "small":
        request.getfixturevalue("small_pieces")
    model, store, tokens = draw_model(), Recorder(D), draw_tokens(*shape)
    KNNLM(model, store).memorize(tokens, document="a text")
    keys = torch.cat([keys for keys, _, _ in store.added])
    values = torch.cat([values for _, values, _ in store.added])
    assert {document for _, _, document in store.added} == {"a text"}
    assert values.dtype == torch.int32 and values.tolist() == [int(t) for row in tokens for t in row[1:]]
    expected = torch.cat([model.hidden(row[None])[0, :-1] for row in tokens])
    torch.testing.assert_close(keys, expected, atol=1e-5, rtol=0)
    assert not keys.requires_grad
    assert len(store) == shape[0] * (shape[1] - 1)


def test_ids_lead_back_to_contexts() -> None:
    tokens = draw_tokens(1, 60)
    lm = draw_lm(tokens, k=3)
    found = lm.neighbors(tokens)
    assert found.ids.shape == (1, 60, 3)
    assert found.ids[0, :-1, 0].tolist() == list(range(59))  # each context finds itself
    assert torch.equal(found.values[0, :-1, 0], tokens[0, 1:])


def test_token_ids_above_32767_survive() -> None:
    model = draw_model(50_257)
    lm = KNNLM(model, Datastore(D), k=1, weight=1.0)
    tokens = torch.tensor([[50_256, 40_000, 32_768, 50_255, 7]])
    lm.memorize(tokens)
    assert lm.neighbors(tokens).values[0, :-1, 0].tolist() == [40_000, 32_768, 50_255, 7]
    assert lm.perplexity(tokens) == pytest.approx(1.0)


def test_what_was_memorized_is_remembered_and_the_rest_kept() -> None:
    model, first, second = draw_model(), draw_tokens(1, 200), draw_tokens(1, 200)
    lm = KNNLM(model, Datastore(D), k=4, temperature=0.1, weight=0.5)
    lm.memorize(first, document="first")
    before = lm.perplexity(first)
    assert before < 2.1 < lm.perplexity(second)
    lm.memorize(second, document="second")
    assert lm.perplexity(second) < 2.1 and lm.perplexity(first) == pytest.approx(before, rel=0.05)


# The model under it


def test_the_store_names_the_model_that_made_its_keys() -> None:
    model = draw_model()
    lm = draw_lm(draw_tokens(1, 9))
    assert lm.datastore.made_by == lm.model.fingerprint()
    assert lm.datastore.made_by.startswith("MemoryTransformer ")
    reader = TransformerReader(model)
    first = reader.fingerprint()
    assert first == reader.fingerprint() != lm.datastore.made_by
    assert TransformerReader(model, key="features").fingerprint() != first
    with torch.no_grad():
        model.embedding.weight[3, 2] += 1e-3
    assert reader.fingerprint() != first
    other = draw_model(window=6)
    other.load_state_dict(model.state_dict())
    assert TransformerReader(other).fingerprint() != reader.fingerprint()  # the same weights, another window
    assert fingerprint(nn.Linear(2, 3).bfloat16()).startswith("Linear ")


def test_the_name_travels_with_the_weights(tmp_path: Any, device: str) -> None:
    model = draw_model()
    model.save(tmp_path / "model.safetensors")
    again = open_model(tmp_path / "model.safetensors").to(device)
    assert TransformerReader(again).fingerprint() == TransformerReader(model).fingerprint()


class Droops:
    """A language model of our own, with dropout: it must be off while we read, and on afterwards."""

    dim, vocab_size = 6, V

    def __init__(self) -> None:
        parts = {"embedding": nn.Embedding(V, 6), "dropout": nn.Dropout(0.5), "head": nn.Linear(6, V)}
        self.module: nn.Module = nn.ModuleDict(parts).train()
        self.parts: dict[str, Any] = parts

    def read(self, tokens: Tensor, state: Any = None) -> Reading:
        assert not torch.is_grad_enabled()
        hidden = self.parts["dropout"](self.parts["embedding"](tokens))
        return Reading(hidden, hidden, (state or 0) + tokens.shape[1])

    def logits(self, features: Tensor) -> Tensor:
        return self.parts["head"](features)

    def fingerprint(self) -> str:
        return fingerprint(self.module)


def test_any_model_that_keeps_the_protocol_reads_in_eval_mode_and_goes_back() -> None:
    model, tokens = Droops(), draw_tokens(1, 30)
    model.parts["head"].eval()  # a part that was frozen stays so
    lm = KNNLM(model, Datastore(6), k=3)
    for use in (lm.memorize, lm.score, lm.neighbors, lambda t: lm.generate(t, 2), lambda t: lm.tune(t, held_out=False)):
        use(tokens)
        assert [part.training for part in model.module.modules()] == [True, True, True, False]
    assert torch.equal(lm.score(tokens), lm.score(tokens))
    bigrams = {(int(a), int(b)) for a, b in itertools.pairwise(tokens[0])}
    found = lm.neighbors(tokens).values[0, :, 0]
    assert all((int(a), int(b)) in bigrams for a, b in zip(tokens[0, :-1], found, strict=False))


def test_a_mode_is_restored_after_an_error() -> None:
    model = Droops()
    lm = KNNLM(model, Datastore(6))
    model.logits = lambda features: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        lm.score(draw_tokens(1, 5))
    assert model.parts["dropout"].training and torch.is_grad_enabled()


def test_a_recurrent_model_and_a_model_in_half_precision(device: str) -> None:
    for model in (MemoryTransformer(V, D, 2, lambda: GatedMemory(D)), draw_model().bfloat16()):
        lm = KNNLM(model.to(device), Datastore(D, device=device), k=3, weight=0.5)
        tokens = draw_tokens(2, 40).to(device)
        lm.memorize(tokens)
        found = lm.score(tokens)
        assert found.dtype == torch.float32 and found.isfinite().all()
        assert lm.perplexity(tokens) < 3


# Memory


class Largest(TorchDispatchMode):
    """The largest tensor that anything inside makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // leaf.element_size() for leaf in tree_leaves(result) if is_new(leaf)]
        self.numel = max([self.numel, *sizes])
        return result


def is_new(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.numel() > 0


def largest(call: Callable[[], object]) -> int:
    with Largest() as seen:
        call()
    return seen.numel


def test_no_tensor_of_tokens_times_vocabulary_is_made() -> None:
    vocab_size, n = 30_011, 500
    model, tokens = draw_model(vocab_size), draw_tokens(1, n, vocab_size=vocab_size)
    lm = KNNLM(model, Datastore(D), k=16)
    lm.memorize(tokens)
    with torch.no_grad():
        assert largest(lambda: model(tokens)) >= n * vocab_size  # what is looked for can be seen
    assert largest(lambda: lm.score(tokens)) <= knn_lm.LOGITS_AT_ONCE < n * vocab_size / 3
    held_out = draw_tokens(1, n, vocab_size=vocab_size)
    assert largest(lambda: lm.tune(held_out)) <= knn_lm.LOGITS_AT_ONCE
    distances, targets = torch.rand(n, 16), tokens[0]
    found = draw_tokens(n, 16, vocab_size=vocab_size)
    assert largest(lambda: knn_log_prob(distances, found, targets)) <= n * 16
    assert largest(lambda: knn_probs(distances, found, vocab_size)) >= n * vocab_size


def test_memory_does_not_grow_with_the_text() -> None:
    lm = draw_lm(draw_tokens(1, 50), k=8)
    short, long = (largest(lambda: lm.score(draw_tokens(1, n))) for n in (2 * knn_lm.TOKENS_AT_ONCE, 20_000))  # noqa: B023
    assert long <= max(short, 2 * 20_000)  # the text itself


# Tuning


def test_tune_finds_what_trying_every_setting_finds_in_one_search() -> None:
    model, held_out = draw_model(), draw_tokens(2, 40)
    store = Recorder(D)
    lm = KNNLM(model, store)
    lm.memorize(torch.cat([draw_tokens(1, 60), held_out[:1, :20]], dim=1))
    grid = {"ks": (2, 5, 30), "temperatures": (0.5, 4.0), "weights": (0.1, 0.5, 0.9)}
    best = lm.tune(held_out, **grid)
    assert store.searched == [30]
    assert (lm.k, lm.temperature, lm.weight) == (best["k"], best["temperature"], best["weight"])
    tried = {}
    for k, temperature, weight in itertools.product(*grid.values()):
        lm.k, lm.temperature, lm.weight = k, temperature, weight
        tried[k, temperature, weight] = lm.perplexity(held_out)
    assert (best["k"], best["temperature"], best["weight"]) == min(tried, key=tried.__getitem__)
    assert best["perplexity"] == pytest.approx(min(tried.values()), rel=1e-5)
    lm.weight = 0.0
    assert best["model_perplexity"] == pytest.approx(lm.perplexity(held_out), rel=1e-5)


def test_a_weight_for_each_bucket_is_at_least_as_good_and_keeps_its_word() -> None:
    text = draw_tokens(1, 300)
    held_out = torch.cat([text[:, 50:120], draw_tokens(1, 300)], dim=1)  # some of it can be found, most of it not
    lm = draw_lm(text)
    grid = {"ks": (4,), "temperatures": (0.1,), "weights": (0.1, 0.3, 0.5, 0.7, 0.9)}
    constant = lm.tune(held_out, **grid)
    best = lm.tune(held_out, **grid, buckets=4)
    assert isinstance(lm.weight, BucketWeights) and len(lm.weight.weights) == 4 and len(lm.weight.edges) == 3
    assert list(lm.weight.edges) == sorted(lm.weight.edges)
    assert lm.weight.weights[0] > lm.weight.weights[-1]  # a near neighbour is trusted more
    assert best["perplexity"] < constant["perplexity"]
    assert lm.perplexity(held_out) == pytest.approx(best["perplexity"], rel=1e-5)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
def test_text_that_is_in_the_datastore_is_not_for_tuning(metric: str) -> None:
    text, fresh = draw_tokens(1, 200), draw_tokens(1, 200)
    lm = KNNLM(draw_model(), Datastore(D, metric=metric))
    lm.memorize(text)
    lm.tune(fresh)
    before = (lm.k, lm.temperature, lm.weight)
    with pytest.raises(ValueError, match="tokens must be held-out text"):
        lm.tune(text)
    assert (lm.k, lm.temperature, lm.weight) == before
    best = lm.tune(text, temperatures=(0.01, 1.0), held_out=False)
    assert best["perplexity"] < 3 < best["model_perplexity"]
    lm.tune(torch.cat([text[:, :90], fresh[:, :110]], dim=1))  # less than half of it


def test_a_store_of_half_precision_is_recognised_too() -> None:
    text = draw_tokens(1, 200)
    lm = draw_lm(text)
    rounded = Datastore(D, made_by=lm.model.fingerprint())
    with torch.no_grad():
        rounded.add(lm.model.module.hidden(text)[0, :-1].half().float(), text[0, 1:].int())
    with pytest.raises(ValueError, match="held-out"):
        KNNLM(lm.model, rounded).tune(text)


# Generation


@pytest.mark.parametrize("pieces", ["whole", "small"])
def test_generation_takes_the_likeliest_token_of_the_mixture(pieces: str, request: pytest.FixtureRequest) -> None:
    text, prompt = draw_tokens(1, 60), draw_tokens(2, 23)
    lm = draw_lm(text, k=5, weight=0.6, temperature=2.0)
    expected = prompt
    for _ in range(6):  # from the start each time, in one piece
        features, hidden, _ = lm.model.read(expected)
        log_probs = lm.next_log_probs(hidden[:, -1], lm.model.logits(features[:, -1]))
        expected = torch.cat([expected, log_probs.argmax(dim=-1, keepdim=True)], dim=1)
    if pieces == "small":
        request.getfixturevalue("small_pieces")
    found = lm.generate(prompt, 6)
    assert torch.equal(found, expected)
    assert not torch.equal(found, lm.model.module.generate(prompt, 6))
    assert torch.equal(lm.generate(prompt, 0), prompt)


def test_memorized_text_is_recited() -> None:
    text = draw_tokens(1, 300)
    lm = draw_lm(text, k=1, weight=0.99)
    assert torch.equal(lm.generate(text[:, :150], 140), text[:, :290])


def test_sampling_follows_the_mixture() -> None:
    lm = draw_lm(draw_tokens(1, 60), k=5, weight=0.6, temperature=2.0)
    prompt = draw_tokens(1, 8)
    features, hidden, _ = lm.model.read(prompt)
    expected = lm.next_log_probs(hidden[0, -1], lm.model.logits(features[0, -1])).exp()
    drawn = lm.generate(prompt.expand(4000, -1), 1, temperature=1.0)[:, -1]
    shares = torch.bincount(drawn, minlength=V) / 4000
    assert (shares - expected).abs().max() < 0.04  # five standard deviations
    assert torch.equal(lm.generate(prompt, 5, temperature=1e-4), lm.generate(prompt, 5))


# Real text


def bundled() -> SimpleNamespace:
    from memcourse.bundled import docs_model

    pytest.importorskip("tokenizers")
    model, tokenizer = docs_model()
    return SimpleNamespace(model=model, encode=tokenizer.encode)


@real_data
@pytest.mark.parametrize("name", ["tinyshakespeare", "wikitext2", "frankenstein"])
def test_a_text_the_model_never_read_is_learned_by_adding_it(name: str) -> None:
    """Model, kNN-LM of a growing store, of one neighbour, and a cache of the text just read; each tuned for itself."""
    docs, text = bundled(), corpora.load(name)
    parts = [part for part in text[1:] if part]
    whole = "".join(parts) if len(parts) < 3 else text.train
    train, valid, test = (docs.encode(whole[start:stop])[None] for start, stop in SPANS)

    def tuned(n: int, k: int) -> float:
        lm = KNNLM(docs.model, Datastore(docs.model.config["d_model"]))
        lm.memorize(train[:, :n])
        lm.tune(valid, ks=(k,), temperatures=(10.0,))
        return lm.perplexity(test)

    alone = KNNLM(docs.model, Datastore(docs.model.config["d_model"])).perplexity(test)
    few, all_entries = train.shape[1] // 10, train.shape[1]
    best = tuned(all_entries, 64)
    assert best < 0.9 * alone
    assert best < tuned(few, 64) < 1.01 * alone
    assert best < tuned(all_entries, 1)
    assert cached(docs.model, valid, test) < 0.98 * alone


def cached(model: MemoryTransformer, valid: Tensor, test: Tensor, recent: int = 512) -> float:
    """Perplexity with the newest tokens of the text itself as memory, in stretches; its weight is chosen on `valid`."""

    def log_probs(tokens: Tensor) -> tuple[Tensor, Tensor]:
        own, from_cache = [], []
        for piece in tokens.split(recent, dim=1):
            if piece.shape[1] == recent:
                features, _, hidden = model.features(piece)
                own.append(model.logits(features)[0, :-1].log_softmax(-1).gather(-1, piece[0, 1:, None])[:, 0])
                apart = torch.cdist(hidden[0, :-1], hidden[0, :-1]).square()  # (T, T): query t, entry (s, token s + 1)
                seen = torch.ones_like(apart).tril(-1).bool()  # token s + 1 is there at t only where s < t
                after = piece[:, 1:].expand(recent - 1, -1)
                apart = apart.masked_fill(~seen, math.inf)
                from_cache.append(knn_log_prob(apart, after, piece[0, 1:], temperature=10.0))
        return torch.cat(own), torch.cat(from_cache)

    with torch.no_grad():
        weights = (0.05, 0.1, 0.15, 0.2, 0.3)
        best = max(weights, key=lambda weight: interpolate(*log_probs(valid), weight).mean().item())
        return math.exp(-interpolate(*log_probs(test), best).mean().item())
