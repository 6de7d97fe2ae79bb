"""How the answers of chapter 04 are used, and what is right: cases, probes, oracles, properties.

The oracles are the equations in NumPy float64, one number at a time: no library, no torch, no matrix product.
4.7 asks for an object of the library, and measures what it does.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memcourse import corpora
from memcourse.bundled import docs_model
from memcourse.course.checks.attention_oracles import Array, random
from memcourse.course.checks.timing import times_as_fast
from memcourse.course.exercise import Wrong
from memcourse.course.runner.meters import measured
from memcourse.course.runner.traces import error_text, own_line
from memcourse.course.words import describe
from memcourse.datastore import Datastore
from memcourse.knn_lm import KNNLM
from memcourse.threads import one_thread
from memcourse.token_model import TokenModel
from memcourse.transformer import FeedForward

Integers = NDArray[np.int64]


def integers(seed: int, below: int, *shape: int) -> Tensor:
    return torch.randint(below, shape, generator=torch.Generator().manual_seed(seed))


def no_key_is_missing(answer: Any, expected: dict[str, float]) -> None:
    if isinstance(answer, dict) and (missing := [repr(key) for key in expected if key not in answer]):
        raise Wrong(f"missing: {', '.join(missing)}")


# 4.2 memory_pairs


def pairs_cases() -> list[tuple[Tensor, ...]]:
    """(B, T, d) = (2, 3, 5), (3, 7, 2), and texts of one token, which hold no pair."""
    return [
        (random(seed, B, T, d), integers(seed, 50_000, B, T))
        for seed, (B, T, d) in enumerate([(2, 3, 5), (3, 7, 2), (2, 1, 3)])
    ]


def pairs_oracle(hidden: Array, tokens: Integers) -> tuple[Array, Integers]:
    B, T, d = hidden.shape
    places = [(b, t) for b in range(B) for t in range(T) if t + 1 < T]
    keys, values = np.zeros((len(places), d)), np.zeros(len(places), np.int64)
    for i, (b, t) in enumerate(places):
        keys[i], values[i] = hidden[b, t], tokens[b, t + 1]
    return keys, values


def the_keys_hold_no_graph(answer: Any) -> None:
    hidden, tokens = pairs_cases()[0]
    keys, _ = answer(hidden.requires_grad_(), tokens)
    if keys.requires_grad:
        raise Wrong("a datastore of a million keys would keep the activations of a million tokens")


# 4.3 target_log_prob


def log_prob_cases() -> list[tuple[Any, ...]]:
    """Neighbours (2, 3), (7, 5) with absent targets, (2, 3, 5) very far away, (3, 2) of which some are missing."""
    missing = torch.tensor([[0.5, torch.inf], [3.0, 5.0], [2.0, torch.inf]])
    return [
        (distances(1, 2, 3), torch.tensor([[4, 7, 4], [1, 1, 9]]), torch.tensor([4, 9]), 0.5),
        (distances(2, 7, 5), integers(3, 4, 7, 5), integers(4, 6, 7), 2.0),
        (
            3000 * distances(5, 2, 3, 5),
            torch.tensor([2, 3, 2, 3, 5]).expand(2, 3, 5).clone(),
            integers(6, 2, 2, 3) + 2,
            1.0,
        ),
        (missing, torch.tensor([[2, 3], [5, 5], [7, 11]]), torch.tensor([2, 5, 11]), 1.5),
    ]


def distances(seed: int, *shape: int) -> Tensor:
    """Squared distances as a search gives them: 0 or more, the nearest first."""
    return random(seed, *shape).square().sort(dim=-1).values


def log_prob_oracle(distances: Array, tokens: Integers, targets: Integers, temperature: float) -> Array:
    log_p = np.zeros(targets.shape)
    for place in np.ndindex(targets.shape):
        nearest = distances[place].min()
        alike = total = 0.0
        shift = math.inf  # the nearest neighbour with the target has the weight 1 in `alike`
        for distance, token in zip(distances[place], tokens[place], strict=True):
            total += math.exp(-(distance - nearest) / temperature)
            shift = min(shift, distance) if token == targets[place] else shift
        for distance, token in zip(distances[place], tokens[place], strict=True):
            if token == targets[place] and distance < math.inf:
                alike += math.exp(-(distance - shift) / temperature)
        log_p[place] = math.log(alike / total) - (shift - nearest) / temperature if alike else -math.inf
    return log_p


HUGE = 2**60


def no_tensor_as_large_as_the_vocabulary(answer: Any) -> None:
    """Token ids that are allowed in int64, and that no table has room for."""
    tokens = torch.tensor([[HUGE + 2, HUGE + 3, HUGE + 2], [5, HUGE + 7, HUGE + 7]])
    near, targets = distances(1, 2, 3), torch.tensor([HUGE + 2, 5])
    try:
        found = answer(near, tokens, targets, 1.0)
    except Exception as error:
        raise Wrong(
            f"with token ids near 2**60 it stops with a {type(error).__name__}: something is as large as the "
            "vocabulary. Of a whole distribution only the target's share is asked"
        ) from None
    expected = log_prob_oracle(near.double().numpy(), tokens.numpy(), targets.numpy(), 1.0)
    if not np.allclose(found.detach().double().numpy(), expected, atol=1e-4):
        raise Wrong(
            f"with token ids near 2**60 it gives {found.tolist()}; expected {expected.tolist()}. Ids are integers: as "
            "floating-point numbers, neighbouring ones become equal"
        )


def log_prob_without_the_library(answer: Any) -> None:
    refuse_the_library(answer, log_prob_cases()[0])


def refuse_the_library(answer: Any, case: tuple[Any, ...]) -> None:
    """The answer may call nothing of memcourse/knn_lm.py."""
    library, called = inspect.getfile(KNNLM), []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename == library:
            called.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        answer(*case)
    finally:
        sys.setprofile(before)
    if called:
        raise Wrong(f"it calls `{called[0]}`")


# 4.4 mix


def mix_cases() -> list[tuple[Any, ...]]:
    """(B, T) = (2, 3); (5, 3) with tokens that no neighbour has; very unlikely ones; weights of 0 and of 1."""
    model, knn = logs(1, 5, 3), logs(2, 5, 3)
    knn[torch.tensor([0, 2, 3]), torch.tensor([1, 0, 2])] = -torch.inf
    return [
        (logs(3, 2, 3), logs(4, 2, 3), 0.25),
        (model, knn, 0.3),
        (logs(5, 3, 2) - 150, logs(6, 3, 2) - 200, 0.6),
        (model[:2], knn[:2], 0.0),
        (model[1:], knn[1:], 1.0),
    ]


def logs(seed: int, *shape: int) -> Tensor:
    """Logarithms of probabilities."""
    return -random(seed, *shape).abs() * 3 - 0.1


def mix_oracle(log_p_model: Array, log_p_knn: Array, weight: float) -> Array:
    mixed = np.zeros_like(log_p_model)
    for place in np.ndindex(mixed.shape):
        parts = [(1 - weight, log_p_model[place]), (weight, log_p_knn[place])]
        parts = [(share, log_p) for share, log_p in parts if share > 0 and log_p > -math.inf]
        top = max((log_p for _, log_p in parts), default=0.0)
        total = sum(share * math.exp(log_p - top) for share, log_p in parts)
        mixed[place] = top + math.log(total) if total else -math.inf
    return mixed


def the_gradient_where_no_neighbour_has_the_token(answer: Any) -> None:
    model, knn, weight = mix_cases()[1]
    parts = {"log_p_model": model.requires_grad_(), "log_p_knn": knn.requires_grad_()}
    gradients = torch.autograd.grad(answer(model, knn, weight).sum(), list(parts.values()))
    spoiled = [f"`{name}`" for name, g in zip(parts, gradients, strict=True) if not g.isfinite().all()]
    if spoiled:
        raise Wrong(
            f"a token that no neighbour has is mixed right, but puts NaN into the gradient of {', '.join(spoiled)}, "
            "and from there into every weight of a model that is trained through the mixture: let no NaN arise"
        )


def mixed_without_the_library(answer: Any) -> None:
    refuse_the_library(answer, mix_cases()[0])


# 4.5 nearest_in_blocks

SPEED_UP = 3
TIMED = {"queries": 128, "blocks": 16, "keys": 512, "width": 64, "k": 8}
LARGEST = TIMED["queries"] * TIMED["keys"] * TIMED["blocks"] // 2  # an eighth of the differences of one block


def nearest_cases() -> list[tuple[Any, ...]]:
    """(Q, d, keys of each block, k): two blocks; blocks smaller than k; a single one; all keys, in order."""
    sizes = [(2, 3, (5, 7), 3), (7, 5, (2, 11, 3, 1), 6), (3, 2, (13,), 5), (5, 3, (2, 1, 4), 7)]
    return [
        (random(seed, Q, d), [random(seed + 10 * i, n, d) for i, n in enumerate(blocks, start=1)], k)
        for seed, (Q, d, blocks, k) in enumerate(sizes, start=1)
    ]


def nearest_probe(answer: Callable[..., Any], queries: Tensor, blocks: list[Tensor], k: int) -> Any:
    try:
        return answer(queries, blocks, k)
    except RuntimeError as error:
        error.add_note(f"k is {k}, and the blocks hold {', '.join(str(len(block)) for block in blocks)} keys")
        raise


def nearest_oracle(queries: Array, blocks: list[Array], k: int) -> tuple[Array, Integers]:
    keys = [key for block in blocks for key in block]
    distances, rows = np.zeros((len(queries), k)), np.zeros((len(queries), k), np.int64)
    for i, query in enumerate(queries):
        found = sorted((sum((query - key) ** 2), row) for row, key in enumerate(keys))[:k]
        distances[i], rows[i] = [distance for distance, _ in found], [row for _, row in found]
    return distances, rows


def nearest_loop(queries: Tensor, blocks: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The loop that the stub prints: (Q, d), blocks of (n, d) -> (Q, k), (Q, k)."""
    distances, rows = [], []
    for query in queries:
        to_all = torch.cat([((block - query) ** 2).sum(dim=1) for block in blocks])  # (N,)
        best = to_all.topk(k, largest=False)
        distances.append(best.values)
        rows.append(best.indices)
    return torch.stack(distances), torch.stack(rows)


def many_keys() -> tuple[Any, ...]:
    Q, n_blocks, n, d, k = TIMED.values()
    return random(1, Q, d), [random(i, n, d) for i in range(2, 2 + n_blocks)], k


def nothing_as_large_as_half_of_all_distances(answer: Any) -> None:
    queries, blocks, k = many_keys()
    with torch.no_grad():
        largest = measured("largest tensor", answer, queries, blocks, k)
    if largest >= LARGEST:
        Q, n, N = len(queries), len(blocks[0]), sum(map(len, blocks))
        raise Wrong(
            f"for {Q} queries and {N} keys in blocks of {n}, it makes a tensor of {largest} numbers; it should "
            f"be less than {LARGEST}, half of {Q} x {N}. Neither all keys, nor all distances, nor the differences of a "
            "block with all queries fit: keep the k best so far, and no more, from block to block"
        )


MANY = {"queries": 2048, "blocks": 64, "keys": 512, "width": 64, "k": 8}
LITTLE = 192 << 20  # bytes; all distances of so many take 256 MB, and so do the differences of a block with all queries


def _in_little_memory(answer: Any) -> None:
    Q, n_blocks, n, d, k = MANY.values()
    case = random(1, Q, d), [random(i, n, d) for i in range(2, 2 + n_blocks)], k
    try:
        answer.with_memory(LITTLE)(*case)
    except Exception as error:
        raise Wrong(
            f"for {Q} queries and {n_blocks * n} keys in blocks of {n}, it needs more than {LITTLE >> 20} MB of memory "
            f"({error_text(error)})"
        ) from None


def at_least_three_times_as_fast_as_the_loop(answer: Any) -> None:
    ratio = times_as_fast(answer, nearest_loop, many_keys(), asked=SPEED_UP)
    if ratio < SPEED_UP:
        raise Wrong(
            f"the same numbers as the loop, at {ratio:.1f} times its speed; at least {SPEED_UP} times is asked. "
            "|q - k|^2 = |q|^2 - 2 q.k + |k|^2, and all q.k of a block are one matrix product"
        )
    if hasattr(type(answer), "with_memory"):  # it has read the meter itself, and may have lied
        with torch.no_grad():
            _in_little_memory(answer)


# 4.7 learn_domain

ROW = 32  # tokens of a text
LEARNED, LOST = 1 / 40, 1.05  # perplexity, as a share of the model's own
UNCHANGED = 1 / 2
LONGER = 2  # the keys of the check's model, against those of the notebook's: squared distances are four times as large


class Domains(NamedTuple):
    """Rows of tokens: a manual of a machine hall that nobody built, and Python's documentation."""

    new: Tensor  # (n, 32), to be learned
    old: Tensor  # (n, 32), of documents that the model has not read
    new_test: Tensor  # the same facts in another order
    old_test: Tensor  # other documents


@cache
def domains() -> Domains:
    tokenizer = docs_model()[1]
    documents = {
        part: "\n\n".join(text for name, text in corpora.topics() if corpora.part_of(name) == part)
        for part in ("valid", "test")
    }
    new, new_test = (in_rows(tokenizer.encode(manual(seed, 800))) for seed in (1, 2))
    old, old_test = (in_rows(tokenizer.encode(documents[part])) for part in ("valid", "test"))
    return Domains(new[:127], old[:89], new_test[:23], old_test[:41])


def in_rows(ids: Tensor) -> Tensor:
    """A text's tokens cut into rows of 32, in random order."""
    rows = ids[: len(ids) // ROW * ROW].view(-1, ROW)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def manual(seed: int, n: int) -> str:
    """n sentences on the same 72 parts, the parts in an order of their own."""
    names = "Arvo Belin Corda Dremel Elvix Forn Gasko Hilda Ivor Jarne Kolb Lumen".split()
    parts = [f"{name} {kind}" for name in names for kind in "pump valve boiler turbine gauge hatch".split()]
    places = ("north hall", "engine room", "lower deck", "tank yard", "control desk", "east tunnel")
    colors = "red green yellow black white blue".split()
    facts = np.random.default_rng(0).integers((6, 6, 90), size=(len(parts), 3)).tolist()
    order = np.random.default_rng(seed)
    sentences = []
    for part, kind in order.integers((len(parts), 3), size=(n, 2)).tolist():
        place, color, bar = facts[part]
        says = (
            f"The {parts[part]} stands in the {places[place]}.",
            f"The {parts[part]} is painted {colors[color]}.",
            f"Open the {parts[part]} at {10 + bar} bar.",
        )
        sentences.append(says[kind])
    return " ".join(sentences)


def model_with_longer_keys() -> TokenModel:
    """The course's model, which says the same from another scale of keys."""
    model, _ = docs_model()
    last = [part for part in model.modules() if isinstance(part, FeedForward)][-1]
    with torch.no_grad():
        last.norm.weight.mul_(LONGER)
        last.expand.weight.div_(LONGER)
    return model


@cache
def alone() -> tuple[float, float]:
    """The model's own perplexity on unseen text, new and old."""
    model = model_with_longer_keys()
    knn = KNNLM(model, Datastore(model.config["d_model"]))
    return knn.perplexity(domains().new_test), knn.perplexity(domains().old_test)


class Measured(NamedTuple):
    """Perplexities on unseen text, as shares of the model's own, the number of entries, and the weight on new text."""

    new: float
    old: float
    entries: int
    weight: Tensor  # a number, or (rows, tokens)


_measured: dict[Any, Measured] = {}  # of the answer that the probe used last: it takes a second


def domain_cases() -> list[tuple[Tensor, Tensor]]:
    return [(domains().new, domains().old)]


@one_thread()
def domain_probe(answer: Any, new: Tensor, old: Tensor) -> dict[str, str]:
    model = model_with_longer_keys()
    before = {name: part.clone() for name, part in model.state_dict().items()}
    knn = answer(model, new, old)
    if not isinstance(knn, KNNLM):
        raise Wrong(f"a KNNLM should be returned; found {describe(knn)}")
    same = all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    if same:
        try:
            new_share = knn.perplexity(domains().new_test) / alone()[0]
            old_share = knn.perplexity(domains().old_test) / alone()[1]
            near = knn.neighbors(domains().new_test)
        except Exception as error:
            if own_line(error, frozenset()):
                raise
            raise Wrong(
                f"your function returned a KNNLM, but to score a text with it raises {error_text(error)}\n"
                "The weight is a number, or a function that gives one number for each query, (...)"
            ) from error
        weight = knn.weight(near) if callable(knn.weight) else torch.tensor(knn.weight)
        _measured.clear()
        _measured[answer] = Measured(new_share, old_share, len(knn.datastore), weight)
    return {"the model's weights": "as they were" if same else "changed"}


def domain_oracle(new: Array, old: Array) -> dict[str, str]:
    return {"the model's weights": "as they were"}


def the_new_text_is_learned_and_nothing_of_the_old_is_lost(answer: Any) -> None:
    if answer not in _measured:
        domain_probe(answer, *domain_cases()[0])
    new, old, entries, weight = _measured[answer]
    found = f"Perplexity on unseen text, as a share of the model's own: new {new:.3f}, old {old:.3f}"
    if entries == 0:
        raise Wrong("the datastore is empty: `memorize` puts the pairs of a text into it")
    if max(new, old) > 1e6:
        raise Wrong(
            "some tokens of unseen text are impossible: where the weight is 1 and no neighbour has the token, nothing "
            "is left of what the model knows"
        )
    if new > 1.1:
        raise Wrong(f"the new text is less likely than without the datastore. {found}")
    if new > UNCHANGED and old <= LOST and (weight > 0).float().mean() < 0.2:
        raise Wrong(f"the weight is 0 at more than four fifths of unseen new text, which is hardly learned. {found}")
    if new > UNCHANGED and old > LOST:
        raise Wrong(f"the new text is hardly learned, and the old one suffers. {found}")
    if new > UNCHANGED:
        raise Wrong(f"the new text is hardly learned. {found}")
    if new > LEARNED:
        spread = "a number, the same for every token" if weight.ndim == 0 else "a function of the neighbours"
        raise Wrong(
            f"the new text is not learned well enough: at most {LEARNED} times is asked. {found}. "
            f"The weight is {spread}"
        )
    if old > LOST:
        raise Wrong(f"the new text is learned, but something is lost: at most {LOST} times is asked. {found}")
