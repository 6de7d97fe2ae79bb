"""Key-value memory against an oracle in NumPy float64, written with loops."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from memcourse import KeyValueMemory, KeyValueStore, MemoryTransformer, ProductKeys, evaluate, fit, tasks
from memcourse.key_value import address, erase_and_add, read, write
from memcourse.memory import stream
from memcourse.training import Batch


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def softmax(scores: list[float]) -> np.ndarray:
    exponentials = np.array([math.exp(score - max(scores)) for score in scores])
    return exponentials / exponentials.sum()


def address_by_loops(query: np.ndarray, keys: np.ndarray, cosine: bool, sharpness: float, top_k: int) -> np.ndarray:
    weights = np.zeros((len(query), len(keys)))
    for q in range(len(query)):
        scores = []
        for key in keys:
            lengths = math.sqrt((query[q] ** 2).sum()) * math.sqrt((key**2).sum()) if cosine else 1.0
            scores.append(sharpness * (query[q] * key).sum() / lengths if lengths else 0.0)
        best = sorted(range(len(keys)), key=lambda i: -scores[i])[:top_k]
        weights[q, best] = softmax([scores[i] for i in best])
    return weights


def erase_and_add_by_loops(values: np.ndarray, weights: np.ndarray, erase: np.ndarray, add: np.ndarray) -> np.ndarray:
    after = np.zeros_like(values)
    for i in range(len(values)):
        for j in range(values.shape[1]):
            after[i, j] = values[i, j] * (1 - weights[i] * erase[j]) + weights[i] * add[j]
    return after


@pytest.mark.parametrize("top_k", [None, 1, 3, 7])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 6.5])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_address_equals_the_loop(similarity: str, sharpness: float, top_k: int | None, device: str) -> None:
    query, keys = draw(2, 3, 5), draw(2, 7, 5)
    weights = address(query.to(device), keys.to(device), similarity=similarity, sharpness=sharpness, top_k=top_k)
    kept = top_k or 7
    if sharpness == 0:  # all slots are equal: which k of them is open, what they weigh is not
        assert ((weights > 0).sum(-1) == kept).all()
        np.testing.assert_allclose(weights[weights > 0].cpu(), 1 / kept, atol=1e-12)
        return
    for b in range(2):
        expected = address_by_loops(query[b].numpy(), keys[b].numpy(), similarity == "cosine", sharpness, kept)
        np.testing.assert_allclose(weights[b].cpu(), expected, atol=1e-12)


def test_keys_are_shared_by_a_batch_of_queries() -> None:
    query, keys = draw(2, 3, 5), draw(7, 5)
    together = address(query, keys, similarity="cosine")
    for b in range(2):
        torch.testing.assert_close(together[b], address(query[b], keys, similarity="cosine"), atol=1e-14, rtol=0)


def test_cosine_ignores_lengths_and_the_dot_product_does_not() -> None:
    query, keys = draw(3, 5), draw(7, 5)
    longer = keys * torch.linspace(1, 9, 7, dtype=torch.float64)[:, None]
    cosine, dot = (
        [address(query, k, similarity=similarity) for k in (keys, longer)] for similarity in ("cosine", "dot")
    )
    torch.testing.assert_close(cosine[0], cosine[1], atol=1e-12, rtol=0)
    assert (dot[0] - dot[1]).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_cosine_of_a_zero_vector_is_zero_and_passes_no_nan(dtype: torch.dtype, device: str) -> None:
    query = torch.zeros(2, 5, dtype=dtype, device=device).requires_grad_()
    keys = draw(4, 5).to(device, dtype)
    keys[1] = 0
    keys.requires_grad_()
    weights = address(query, keys, similarity="cosine", sharpness=3.0)
    assert (weights == 0.25).all()
    for gradient in torch.autograd.grad(weights[:, 0].sum(), (query, keys)):
        assert gradient.isfinite().all()


def test_a_large_sharpness_finds_the_nearest_and_none_of_it_looks_everywhere() -> None:
    query, keys = draw(3, 5), draw(7, 5)
    nearest = (query @ keys.mT).argmax(-1)
    sharp = address(query, keys, sharpness=1e6)
    assert (sharp.argmax(-1) == nearest).all() and (sharp.amax(-1) > 1 - 1e-9).all()
    assert (address(query, keys, sharpness=0.0) == 1 / 7).all()


def test_read_equals_the_loop(device: str) -> None:
    weights, values = draw(2, 3, 7), draw(2, 7, 5)
    found = read(weights.to(device), values.to(device)).cpu()
    for b in range(2):
        for q in range(3):
            expected = sum(weights[b, q, i].item() * values[b, i].numpy() for i in range(7))
            np.testing.assert_allclose(found[b, q], expected, atol=1e-12)


def test_write_and_erase_and_add_equal_the_loop(device: str) -> None:
    values, weights, erase, add = draw(2, 7, 5), draw(2, 7).softmax(-1), draw(2, 5).sigmoid(), draw(2, 5)
    before = values.clone()
    on_device = [part.to(device) for part in (values, weights, erase, add)]
    found = erase_and_add(*on_device).cpu()
    written = write(on_device[0], on_device[1], on_device[3]).cpu()
    for b in range(2):
        v, w, e, a = (part[b].numpy() for part in (values, weights, erase, add))
        np.testing.assert_allclose(found[b], erase_and_add_by_loops(v, w, e, a), atol=1e-12)
        np.testing.assert_allclose(written[b], erase_and_add_by_loops(v, w, 0 * e, a), atol=1e-12)
    assert torch.equal(values, before), "the values given must not change"


def test_a_weight_and_an_erase_of_one_overwrite_the_slot_and_no_other() -> None:
    values, add = draw(4, 5), draw(5)
    at_two = torch.eye(4, dtype=torch.float64)[2]
    after = erase_and_add(values, at_two, torch.ones(5, dtype=torch.float64), add)
    assert torch.equal(after[2], add) and torch.equal(after[[0, 1, 3]], values[[0, 1, 3]])


def test_what_was_written_is_read_back() -> None:
    keys, values = torch.eye(5, dtype=torch.float64), torch.zeros(5, 3, dtype=torch.float64)
    written = draw(4, 3)
    for n in range(4):
        values = write(values, address(keys[n : n + 1], keys, sharpness=50.0)[0], written[n])
    torch.testing.assert_close(read(address(keys[:4], keys, sharpness=50.0), values), written, atol=1e-9, rtol=0)


# the explicit store


def filled(evict: str, capacity: int = 3, pairs: int = 3, device: str = "cpu") -> KeyValueStore:
    """Pair i has the i-th unit vector as its key and (i, i) as its value."""
    store = KeyValueStore(capacity, 7, 2, evict=evict)
    for i in range(pairs):
        put(store, i, device)
    return store


def put(store: KeyValueStore, i: int, device: str = "cpu") -> None:
    store.put(unit(i, device), torch.full((2,), float(i), device=device))


def unit(i: int, device: str = "cpu") -> Tensor:
    return torch.eye(7, device=device)[i]


def held(store: KeyValueStore) -> set[int]:
    assert store.keys.argmax(1).tolist() == store.values[:, 0].tolist() == store.values[:, 1].tolist()
    return set(store.values[:, 0].int().tolist())


def test_the_store_gives_back_what_was_put(device: str) -> None:
    store = filled("oldest", capacity=5, device=device)
    found = store.get(torch.eye(7, device=device)[[2, 0]], sharpness=1e4)
    assert found.tolist() == [[2, 2], [0, 0]] and found.device.type == device
    assert store.get(unit(1, device), sharpness=1e4).tolist() == [1, 1]
    assert len(store) == 3


def test_the_store_reads_as_address_and_read_do() -> None:
    store = KeyValueStore(5, 3, 2)
    keys, values, query = draw(4, 3), draw(4, 2), draw(2, 6, 3)
    store.put(keys, values)
    for kwargs in ({"similarity": "cosine", "sharpness": 3.0}, {"top_k": 2}, {}):
        expected = read(address(query, keys, **kwargs), values)
        torch.testing.assert_close(store.get(query, **kwargs), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(store.get(query, top_k=99), store.get(query), atol=1e-12, rtol=0)


def test_an_empty_store_reads_zeros() -> None:
    store = KeyValueStore(3, 5, 2)
    assert len(store) == 0
    assert torch.equal(store.get(draw(4, 6, 5)), torch.zeros(4, 6, 2, dtype=torch.float64))
    store.put(draw(0, 5), draw(0, 2))
    assert len(store) == 0


def test_the_oldest_makes_room() -> None:
    store = filled("oldest")
    store.get(unit(0), sharpness=1e4)  # being used does not help it
    put(store, 3)
    assert held(store) == {1, 2, 3}
    for i in (4, 5, 6):
        put(store, i)
    assert held(store) == {4, 5, 6} and len(store) == 3


def test_the_least_used_makes_room_and_of_equals_the_oldest() -> None:
    store = filled("least_used")
    for i in (0, 0, 2):
        store.get(unit(i), sharpness=1e4)
    assert store.usage.tolist() == [2, 0, 1]
    put(store, 3)
    assert held(store) == {0, 2, 3}
    put(store, 4)  # 3 has not been used at all
    assert held(store) == {0, 2, 4}
    store.get(unit(4), sharpness=1e4)
    put(store, 5)  # 2 and 4 have been used once each, 2 is older
    assert held(store) == {0, 4, 5}
    equals = filled("least_used")
    put(equals, 3)
    put(equals, 4)
    assert held(equals) == {2, 3, 4}


def test_usage_is_the_weight_that_reads_lay() -> None:
    store = KeyValueStore(4, 5, 2, evict="least_used")
    keys, query = draw(4, 5), draw(3, 5)
    store.put(keys, draw(4, 2))
    store.get(query)
    store.get(query[0])
    expected = sum(address(q, keys).sum(0) for q in (query, query[:1]))
    torch.testing.assert_close(store.usage, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("evict", ["oldest", "least_used"])
def test_many_at_once_are_one_after_another_and_never_beyond_the_capacity(evict: str) -> None:
    keys, values = draw(23, 5), draw(23, 2)
    at_once, singly = (KeyValueStore(7, 5, 2, evict=evict) for _ in range(2))
    at_once.put(keys, values)
    for key, value in zip(keys, values, strict=True):
        singly.put(key, value)
        assert len(singly._keys) <= 7
    assert len(at_once) == len(singly) == 7 and len(at_once._keys) == 7
    assert torch.equal(at_once.keys, singly.keys) and torch.equal(at_once.values, singly.values)
    assert {tuple(key) for key in at_once.keys.tolist()} == {tuple(key) for key in keys[-7:].tolist()}


def test_a_large_capacity_costs_nothing_until_it_is_used() -> None:
    store = KeyValueStore(10**12, 5, 2)
    store.put(draw(3, 5), draw(3, 2))
    assert len(store) == 3 and len(store._keys) < 10


def test_the_store_keeps_dtype_and_drops_gradients() -> None:
    store = KeyValueStore(3, 5, 2)
    keys = draw(2, 5).requires_grad_()
    store.put(keys, draw(2, 2))
    assert store.keys.dtype == store.values.dtype == torch.float64 and not store.keys.requires_grad
    query = draw(5).requires_grad_()
    store.get(query).sum().backward()
    assert query.grad is not None and (query.grad != 0).any()
    assert not store.usage.requires_grad


# the learned memory


@pytest.mark.parametrize("time", [1, 17, 150])
def test_key_value_memory_equals_the_loop(time: int, device: str) -> None:
    layer = KeyValueMemory(6, 5).double().to(device)
    x = draw(1, time, 6)
    weight = {name: parameter.detach().cpu().numpy() for name, parameter in layer.named_parameters()}
    read_sharpness, write_sharpness = np.exp(weight["log_sharpness"])
    memory, expected = np.zeros((5, 6)), np.zeros((time, 6))
    for t, token in enumerate(x[0].numpy()):
        look = address_by_loops((weight["query.weight"] @ token)[None], weight["addresses"], True, read_sharpness, 5)[0]
        expected[t] = weight["output.weight"] @ sum(look[i] * memory[i] for i in range(5))
        at = address_by_loops((weight["key.weight"] @ token)[None], weight["addresses"], True, write_sharpness, 5)[0]
        erase = 1 / (1 + np.exp(-(weight["erase.weight"] @ token + weight["erase.bias"])))
        memory = erase_and_add_by_loops(memory, at, erase, erase * (weight["add.weight"] @ token))
    y, state = layer(x.to(device))
    np.testing.assert_allclose(y[0].detach().cpu(), expected, atol=1e-12)
    np.testing.assert_allclose(state.memory[0].detach().cpu(), memory, atol=1e-12)


def test_its_plain_loop_is_address_read_and_erase_and_add() -> None:
    layer, x = KeyValueMemory(12, 5).double(), draw(3, 70, 12)
    y, state = layer(x)
    memory = layer.initial_state(3, dtype=torch.float64).memory
    look, at = layer.where(x)
    share, candidate = layer.erase(x).sigmoid(), layer.add(x)
    for t in range(70):
        expected = layer.output(read(look[:, t : t + 1], memory))
        torch.testing.assert_close(y[:, t : t + 1], expected, atol=1e-12, rtol=0)
        memory = erase_and_add(memory, at[:, t], share[:, t], share[:, t] * candidate[:, t])
    torch.testing.assert_close(state.memory, memory, atol=1e-12, rtol=0)


def test_a_slot_never_leaves_the_range_of_what_was_written() -> None:
    layer, x = KeyValueMemory(12, 5).double(), draw(2, 500, 12)
    with torch.no_grad():
        bound = layer.add(x).abs().amax(dim=1)  # (B, D)
        for _, state in stream(layer, x, 50):
            assert (state.memory.abs().amax(dim=1) <= bound).all()


def test_the_slots_do_not_stay_equal() -> None:
    layer, x = KeyValueMemory(12, 5).double(), draw(2, 9, 12)
    memory = layer(x)[1].memory
    distance = torch.cdist(memory, memory) + torch.eye(5)
    assert distance.min() > 1e-3
    with torch.no_grad():
        layer.addresses.copy_(layer.addresses[:1].expand(5, -1))  # and without the addresses they would
    memory = layer(x)[1].memory
    torch.testing.assert_close(memory, memory[:, :1].expand(-1, 5, -1), atol=1e-14, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_learns_to_recall_by_association(seed: int) -> None:
    def batch(step: int, n_pairs: int | None = None, batch_size: int = 32) -> Batch:
        pairs = n_pairs or 4 + step % 5
        return tasks.associative_recall(batch_size=batch_size, n_pairs=pairs, n_queries=4, seed=step)

    torch.manual_seed(seed)
    model = MemoryTransformer(len(tasks.associative_recall_words()), 64, 2, lambda: KeyValueMemory(64, 32))
    fit(model, lambda step: batch(step + 100_000 * (seed + 1)), steps=400, progress=False)
    for n_pairs in (4, 8):
        assert evaluate(model, [batch(9_000_000, n_pairs, 256)])["accuracy"] > 0.9


# product keys


@pytest.mark.parametrize("k", [1, 2, 5, 11, 12, 40, 121])
def test_product_keys_equal_brute_force(k: int, device: str) -> None:
    layer, query = ProductKeys(11, 6).double().to(device), draw(2, 3, 6).to(device)
    scores, indices = layer(query, k)
    everything = query @ layer.keys.mT  # (2, 3, 121)
    expected = everything.topk(k, dim=-1)
    torch.testing.assert_close(scores, expected.values, atol=1e-12, rtol=0)
    assert torch.equal(indices, expected.indices)
    torch.testing.assert_close(everything.gather(-1, indices), scores, atol=1e-12, rtol=0)


def test_product_keys_with_ties_have_the_scores_of_brute_force() -> None:
    layer = ProductKeys(13, 6).double()
    with torch.no_grad():
        layer.sub_keys.copy_(torch.randint(-1, 2, layer.sub_keys.shape))
    query = torch.randint(-2, 3, (50, 6)).double()
    everything = query @ layer.keys.mT
    for k in (1, 4, 16, 60):
        scores, indices = layer(query, k)
        assert torch.equal(scores, everything.topk(k).values)
        assert torch.equal(everything.gather(-1, indices), scores)
        assert all(len(set(row)) == k for row in indices.tolist())


def test_product_keys_compare_fewer() -> None:
    layer = ProductKeys(256, 16)
    assert layer.comparisons(16) == 2 * 256 + 16**2 == 768  # of 65,536
    assert ProductKeys(3, 2).comparisons(9) == 2 * 3 + 3**2
    assert layer.sub_keys.numel() == 256 * 16 and layer.keys.shape == (65_536, 16)


def test_a_product_key_is_its_two_halves() -> None:
    layer = ProductKeys(5, 4)
    for i in range(5):
        for j in range(5):
            assert torch.equal(layer.keys[5 * i + j], torch.cat([layer.sub_keys[0, i], layer.sub_keys[1, j]]))


def test_product_keys_learn() -> None:
    layer, query = ProductKeys(5, 4), draw(3, 4, dtype=torch.float32)
    scores, indices = layer(query, 25)
    scores.square().sum().backward()
    assert layer.sub_keys.grad is not None and (layer.sub_keys.grad != 0).all()
    one = layer(query[0], 2)
    assert one[0].shape == one[1].shape == (2,) and torch.equal(one[1], indices[0, :2])
