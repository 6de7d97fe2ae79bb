"""What kNN-LM refuses, and how it says so: the name, the value, what is allowed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memcourse import CausalAttention, MemoryTransformer
from memcourse.datastore import Datastore
from memcourse.knn_lm import KNNLM, TransformerReader, interpolate, knn_log_prob, knn_probs
from memcourse.shards import Shards

torch.manual_seed(0)
DISTANCES, FOUND, TARGETS = torch.rand(3, 5), torch.randint(7, (3, 5)), torch.randint(7, (3,))
TOKENS = torch.randint(11, (1, 30))
MODEL = MemoryTransformer(11, 12, 1, lambda: CausalAttention(12, 2))
OTHER = MemoryTransformer(11, 12, 1, lambda: CausalAttention(12, 2))


def lm(values: Tensor | None = None, **options: object) -> KNNLM:
    store = Datastore(12)
    if values is not None:
        store.add(torch.randn(len(values), 12), values)
    return KNNLM(MODEL, store, **options)  # type: ignore[arg-type]


def filled() -> KNNLM:
    lm_with_text = lm()
    lm_with_text.memorize(torch.randint(11, (1, 50)))
    return lm_with_text


def with_weight(weight: object) -> KNNLM:
    changed = filled()
    changed.weight = weight  # type: ignore[assignment]
    return changed


class NotAStore:
    dim = 12


REFUSED: dict[str, tuple[Callable[[], object], list[str]]] = {
    "temperature 0": (lambda: knn_probs(DISTANCES, FOUND, 7, temperature=0.0), ["temperature", "0.0", "greater"]),
    "temperature below 0": (
        lambda: knn_log_prob(DISTANCES, FOUND, TARGETS, temperature=-1.0),
        ["temperature", "-1.0", "greater than 0"],
    ),
    "temperature nan": (lambda: knn_probs(DISTANCES, FOUND, 7, temperature=float("nan")), ["temperature", "nan"]),
    "token beyond the vocabulary": (lambda: knn_probs(DISTANCES, FOUND + 7, 7), ["tokens", "13", "0 to 6"]),
    "token below 0": (lambda: knn_probs(DISTANCES, FOUND - 8, 7), ["tokens", "got -", "0 to 6"]),
    "other tokens than distances": (lambda: knn_probs(DISTANCES, FOUND[:, :4], 7), ["tokens", "(3, 4)", "(3, 5)"]),
    "no axis of neighbours": (lambda: knn_probs(DISTANCES.sum(), FOUND.sum(), 7), ["tokens", "()"]),
    "other targets": (lambda: knn_log_prob(DISTANCES, FOUND, TARGETS[:2]), ["targets", "(2,)", "(3,)"]),
    "targets that would broadcast": (
        lambda: knn_log_prob(DISTANCES, FOUND, TARGETS[:1]),
        ["targets", "(1,)", "(3,)"],
    ),
    "weight above 1": (lambda: interpolate(DISTANCES, DISTANCES, 1.5), ["weight", "1.5", "from 0 to 1"]),
    "weight below 0": (lambda: interpolate(DISTANCES, DISTANCES, -0.1), ["weight", "-0.1", "from 0 to 1"]),
    "weight nan": (lambda: interpolate(DISTANCES, DISTANCES, float("nan")), ["weight", "nan"]),
    "one weight of many": (
        lambda: interpolate(DISTANCES[0], DISTANCES[0], torch.tensor([0.0, 0.5, 2.0, 0.1, 1.0])),
        ["weight", "0.0 to 2.0"],
    ),
    "log-probabilities of two shapes": (
        lambda: interpolate(DISTANCES, DISTANCES[:1], 0.5),
        ["log_p_knn", "(1, 5)", "(3, 5)"],
    ),
    "k of 0": (lambda: lm(k=0), ["k", "0", "at least 1"]),
    "a temperature of 0": (lambda: lm(temperature=0.0), ["temperature", "0.0"]),
    "a weight of 2": (lambda: lm(weight=2.0), ["weight", "2.0"]),
    "a store of another width": (lambda: KNNLM(MODEL, Datastore(13)), ["datastore.dim", "13", "12"]),
    "no store": (lambda: KNNLM(MODEL, NotAStore()), ["datastore", "NotAStore"]),  # type: ignore[arg-type]
    "no language model": (
        lambda: KNNLM(torch.nn.Linear(2, 3), Datastore(12)),  # type: ignore[arg-type]
        ["model", "Linear", "LanguageModel protocol"],
    ),
    "another key": (lambda: TransformerReader(MODEL, key="logits"), ["key", "'logits'", '"hidden" or "features"']),
    "adding to what only searches": (
        lambda: KNNLM(MODEL, Shards([Datastore(12)])).memorize(TOKENS),
        ["datastore", "Shards", "added to"],
    ),
    "a corpus of one token": (lambda: lm().memorize(TOKENS[:, :1]), ["tokens", "(1, 1)", "at least 2"]),
    "an empty corpus": (lambda: lm().memorize(TOKENS[:0]), ["tokens", "(0, 30)"]),
    "scoring one token": (lambda: lm().score(TOKENS[:, :1]), ["tokens", "(1, 1)", "at least 2"]),
    "tokens without a batch": (lambda: lm().score(TOKENS[0]), ["tokens", "(30,)", "(batch, time)"]),
    "tokens that are numbers": (lambda: lm().score(TOKENS.float()), ["tokens", "float32", "integers"]),
    "tokens beyond the model's": (lambda: lm().memorize(TOKENS + 11), ["tokens", "0 to 10"]),
    "a prompt of nothing": (lambda: lm().generate(TOKENS[:, :0], 3), ["prompt", "(1, 0)", "at least 1"]),
    "fewer than no tokens": (lambda: lm().generate(TOKENS, -1), ["n", "-1"]),
    "sampling at temperature 0": (lambda: lm().generate(TOKENS, 1, temperature=0.0), ["temperature", "0.0"]),
    "a store of other tokens": (
        lambda: lm(torch.full((20,), 11, dtype=torch.int32)).score(TOKENS),
        ["datastore's tokens", "11", "from 0 to 10"],
    ),
    "a store of residuals": (lambda: lm(torch.randn(20)).score(TOKENS), ["datastore's values", "float32", "token ids"]),
    "a store of rows": (
        lambda: lm(torch.zeros(20, 3, dtype=torch.int32)).score(TOKENS),
        ["datastore's values", "(3,)", "token ids"],
    ),
    "a weight of another shape": (
        lambda: with_weight(lambda neighbors: torch.rand(2, 2)).score(TOKENS),
        ["weight", "(2, 2)", "(1, 29)"],
    ),
    "a function that weighs too much": (
        lambda: with_weight(lambda neighbors: neighbors.distances[..., 0] * 0 + 3).score(TOKENS),
        ["weight", "3.0", "from 0 to 1"],
    ),
    "tuning on an empty store": (lambda: lm().tune(TOKENS), ["datastore", "empty", "memorize"]),
    "an empty grid": (lambda: filled().tune(TOKENS, ks=()), ["ks", "()", "at least one"]),
    "a grid with k of 0": (lambda: filled().tune(TOKENS, ks=(0, 3)), ["ks", "(0, 3)"]),
    "a grid with temperature 0": (lambda: filled().tune(TOKENS, temperatures=(0.0, 1.0)), ["temperatures", "(0.0"]),
    "a grid with weight 2": (lambda: filled().tune(TOKENS, weights=(0.5, 2.0)), ["weights", "2.0"]),
    "no buckets": (lambda: filled().tune(TOKENS, buckets=0), ["buckets", "0"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert message.split(" must be ")[0] == words[0], message
    for word in words:
        assert word in message, f"{word!r} is not in {message!r}"


def test_a_store_made_by_another_model_is_refused_naming_both() -> None:
    store = Datastore(12)
    KNNLM(MODEL, store).memorize(TOKENS)
    for use in (lambda: KNNLM(OTHER, store), lambda: KNNLM(TransformerReader(MODEL, key="features"), store)):
        with pytest.raises(ValueError, match="datastore.made_by must be this model") as error:
            use()
        assert TransformerReader(MODEL).fingerprint() in str(error.value)
    assert len(store) == 29


@pytest.mark.parametrize("use", ["memorize", "score", "neighbors", "generate", "tune"])
def test_keys_of_weights_that_have_changed_are_refused(use: str) -> None:
    model = MemoryTransformer(11, 12, 1, lambda: CausalAttention(12, 2))
    lm = KNNLM(model, Datastore(12))
    lm.memorize(TOKENS)
    before = lm.datastore.made_by
    with torch.no_grad():
        model.shift.weight.mul_(1.1)
    with pytest.raises(ValueError, match=f"datastore.made_by.*{before}"):
        getattr(lm, use)(TOKENS, *([2] if use == "generate" else []))
    assert len(lm.datastore) == 29


def test_nothing_is_added_where_a_text_is_refused() -> None:
    lm = filled()
    before = len(lm.datastore)
    for tokens in (TOKENS[:, :1], TOKENS + 11, TOKENS - 1):
        with pytest.raises(ValueError):
            lm.memorize(tokens)
    assert len(lm.datastore) == before


def test_a_store_of_another_vocabulary_is_refused_before_anything_is_looked_up() -> None:
    store = Datastore(12)
    store.add(torch.randn(1, 12), torch.tensor([11]))
    for datastore in (store, Shards([store])):
        with pytest.raises(ValueError, match="datastore's tokens must be from 0 to 10, got 11"):
            KNNLM(MODEL, datastore)
