"""The limits of variants as a learner would read them off: measured with the notebooks' own helpers and the library.

The oracles are NumPy with random numbers of their own; what a learner measures must be accepted all the same.
"""

import math
import re
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from memcourse import corpora
from memcourse.course.checks import find
from memcourse.course.compare import same
from memcourse.datastore import Datastore
from memcourse.infini_attention import read, write
from memcourse.key_value import KeyValueStore
from memcourse.knn_lm import interpolate, knn_log_prob
from memcourse.resmem import ResMem

SOURCE = Path(__file__).parents[1] / "source" / "exercises"
GRID = [2**i for i in range(14)]


def helpers(chapter, *names):
    """Functions as the exercise notebook defines them."""
    text = (SOURCE / f"{chapter}.py").read_text()
    namespace = {"torch": torch, "nn": nn, "F": F, "corpora": corpora}
    for name in names:
        exec(re.search(rf"^def {name}\(.*?(?=^\S|\Z)", text, re.M | re.S).group(), namespace)
    found = [namespace[name] for name in names]
    return found if len(found) > 1 else found[0]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def largest_n(n):
    make_store = helpers("01_attention", "make_store")

    def recall(pairs, read, seed):
        query, key, value, asked = make_store(pairs, seed, width=n.width)
        return ((read(query, key, value) @ value.T).argmax(dim=-1) == asked).float().mean().item()

    def softmax(beta):
        return lambda query, key, value: (beta * query @ key.T).softmax(dim=-1) @ value

    reads = {f"beta = 1/{math.isqrt(n.width)}": softmax(1 / math.sqrt(n.width))}
    reads |= {f"beta = {beta}": softmax(beta) for beta in n.betas}
    reads["outer product"] = lambda query, key, value: query @ (key.T @ value)
    return {
        name: max(takewhile(lambda pairs: mean(recall(pairs, read, s) for s in range(2)) >= 0.95, GRID[1:]))  # noqa: B023
        for name, read in reads.items()
    }


def smallest_capacity(n):
    make_stream = helpers("02_key_value", "make_stream")

    def answered(asked, evict, capacity):
        key, value, question = make_stream(asked, 0, n_facts=n.facts)
        store, right = KeyValueStore(capacity, 16, 16, evict=evict), 0
        for t in range(n.facts):
            store.put(key[t], value[t])
            found = store.get(key[question[t]], similarity="cosine", top_k=1)
            right += (found == value[question[t]]).all(dim=-1).sum().item()
        return right / question.numel()

    return {
        f"{asked}, {evict}": next(size for size in GRID[2:] if answered(asked, evict, size) >= n.percent / 100)
        for asked in ("popular", "recent")
        for evict in ("oldest", "least_used")
    }


def smallest_bias(n):
    make_gates = helpers("03_gated", "make_gates")
    grid = [0.5 * step for step in range(25)]
    found = {
        f"{name}, {tokens}": next(b for b in grid if make_gates(b, s, tokens).prod(dim=0).mean() >= 0.5)
        for name, s in (("quiet", 0.0), ("noisy", n.noise))
        for tokens in (n.tokens, 10 * n.tokens)
    }
    return found | {"bfloat16": next(b for b in grid if torch.tensor(b, dtype=torch.bfloat16).sigmoid() == 1)}


def best_weight(n):
    make_world = helpers("04_knn_lm", "make_world")
    grid = [step / 10 for step in range(10)]

    def losses(entries, own, seed):
        hidden, token, log_p_model = make_world(entries + 512, seed, n_facts=n.facts)
        store = Datastore(16)
        store.add(hidden[:entries], token[:entries])
        asked = slice(0, 512) if own else slice(entries, entries + 512)
        near = store.search(hidden[asked], 32)
        log_p_knn = knn_log_prob(near.distances, near.values, token[asked], temperature=0.1)
        return torch.tensor([-interpolate(log_p_model[asked], log_p_knn, weight).mean() for weight in grid])

    settings = {f"{entries} entries": (entries, False) for entries in (n.few, n.more, n.many)}
    curves = {
        name: mean(losses(*setting, seed) for seed in range(3))
        for name, setting in (settings | {"its own text": (1000, True)}).items()
    }
    few = curves[f"{n.few} entries"]
    best = {name: grid[curve.argmin()] for name, curve in curves.items()}
    return best | {f"harmful, {n.few}": grid[(few > few[0]).nonzero()[0].item()]}


def noise_limits(n):
    make_digits, linear_model = helpers("05_resmem", "make_digits", "linear_model")

    def helps(noise, settings):
        ratios = []
        for seed in range(3):
            x, y, test_x, labels = make_digits(noise / 100, seed)
            predict = linear_model(x, y)
            memory = ResMem(predict, lambda x: x, k=1, bandwidth=math.inf)
            memory.memorize(x, y)
            wrong = [(predict(test_x).argmax(dim=1) != labels).float().mean()]
            for memory.k, memory.bandwidth in settings:
                wrong.append((memory(test_x).argmax(dim=1) != labels).float().mean())
            ratios.append(torch.stack(wrong))
        errors = mean(ratios)
        return [s for s, error in zip(settings, errors[1:], strict=True) if error <= (1 - 1 / n.part) * errors[0]]

    by_k = [(k, math.inf) for k in GRID[:9]]
    some = helps(n.some, by_k)
    return {
        "clean": helps(0, by_k)[0][0],
        f"{n.some} %": some[0][0],
        f"{n.some} %, largest": some[-1][0],
        f"{n.much} %": helps(n.much, by_k)[0][0],
        f"{n.some} %, bandwidth": helps(n.some, [(256, 2.0**i) for i in range(-6, 3)])[0][1],
    }


def enough_memories(n):
    make_linear, bounded_model = helpers("05_resmem", "make_linear", "bounded_model")

    def risks(memories, d, seed):
        x, y, queries, targets = make_linear(memories, d, seed)
        memory = ResMem(bounded_model, lambda x: x, k=1, bandwidth=1.0)
        memory.memorize(x, y)
        own = (bounded_model(queries) - targets).square().mean()
        return [((said - targets).square().mean() / own).item() for said in (memory(queries), memory.nearest(queries))]

    def enough(d, which):
        return next(m for m in GRID[2:] if mean(risks(m, d, seed)[which] for seed in range(3)) <= 1 / n.part)

    return {f"d = {d}": enough(d, 0) for d in n.dimensions} | {f"d = {n.alone}, kNN alone": enough(n.alone, 1)}


def most_pairs(n):
    make_pairs = helpers("07_infini_attention", "make_pairs")

    def recall(pairs, rule="linear", d=n.d, rounds=1, **setting):
        key, value = make_pairs(pairs, d, rounds=rounds, **setting)
        memory, normalizer = torch.zeros(20, 1, d, d), torch.zeros(20, 1, d)
        for values in value:
            for i in range(pairs):
                one = slice(i, i + 1)
                memory, normalizer = write(key[:, :, one], values[:, :, one], memory, normalizer, rule=rule)
        nearest = (read(key, memory, normalizer) @ torch.cat(list(value), dim=2).mT).argmax(dim=-1)
        return (nearest == (rounds - 1) * pairs + torch.arange(pairs)).float().mean()

    settings = {
        "linear": {},
        "delta": {"rule": "delta"},
        f"linear, d = {n.other}": {"d": n.other},
        f"linear, scale {n.scale}": {"scale": n.scale},
        "linear, rewritten": {"rounds": n.rounds},
        "delta, rewritten": {"rounds": n.rounds, "rule": "delta"},
    }
    with torch.no_grad():
        return {
            name: max(takewhile(lambda pairs: recall(pairs, **setting) >= 0.5, GRID[1:8]), default=0)  # noqa: B023
            for name, setting in settings.items()
        }


MEASURED = {
    "1.7": largest_n,
    "2.5": smallest_capacity,
    "3.6": smallest_bias,
    "4.6": best_weight,
    "5.5": noise_limits,
    "5.6": enough_memories,
    "7.6": most_pairs,
}
QUICK = ("1.7", "3.6")
CASES = [(id, numbers) for id in MEASURED for numbers in find(id).variant.others]


def case(id, numbers, slow):
    return pytest.param(id, numbers, id=f"{id}-{numbers}", marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(
    ("id", "numbers"), [case(*each, each[0] not in QUICK or i % 5 > 0) for i, each in enumerate(CASES)]
)
def test_what_a_learner_measures_is_accepted(id, numbers):
    fields = find(id).variant.fields(numbers)
    found, expected = MEASURED[id](numbers), fields["oracle"]()
    assert found.keys() == expected.keys()
    assert same(fields["probe"](found), expected, 1e-5), f"measured {found}, expected {expected}"
