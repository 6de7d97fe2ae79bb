"""Approximate indexes: sizes by the rule, most of the true neighbours, exact distances, files believed where right."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from memcourse.datastore import Datastore
from memcourse.faiss_index import MIN_TRAINING, ivfpq_sizes

faiss = pytest.importorskip("faiss", reason="FAISS is not installed: pip install faiss-cpu")

METRICS = ["l2", "ip", "cosine"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine FAISS's threads wait for one another longer than they work."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def clustered(n: int, dim: int, seed: int = 0) -> Tensor:
    """As hidden states are: clusters of unequal size, directions of unequal variance."""
    scale = torch.arange(1, dim + 1) ** -0.5
    centres = torch.randn(300, dim, generator=torch.Generator().manual_seed(1)) * scale
    draw = torch.Generator().manual_seed(seed)
    which = torch.multinomial(1 / torch.arange(1.0, 301), n, replacement=True, generator=draw)
    return centres[which] + 0.5 * torch.randn(n, dim, generator=draw) * scale


def filled(n: int = 12_000, dim: int = 17, **kwargs: object) -> Datastore:
    store = Datastore(dim, **kwargs)  # type: ignore[arg-type]
    store.add(clustered(n, dim), torch.arange(n))
    return store


def recall(found: Tensor, truth: Tensor) -> float:
    return (found[:, :, None] == truth[:, None, :]).any(-1).float().mean().item()


def distances_to(queries: Tensor, keys: Tensor, metric: str) -> np.ndarray:
    """(Q, d), (Q, k, d) -> (Q, k) in float64."""
    q, x = queries.double().numpy()[:, None], keys.double().numpy()
    if metric == "l2":
        return ((q - x) ** 2).sum(-1)
    products = (q * x).sum(-1)
    return -products if metric == "ip" else 1 - products / np.sqrt((q**2).sum(-1) * (x**2).sum(-1))


@pytest.mark.parametrize(
    ("n_keys", "dim", "lists", "code_bytes", "width"),
    [
        (10_000, 64, 256, 16, 4),
        (100_000, 256, 512, 64, 4),
        (1_000_000, 256, 2048, 64, 4),
        (103_225_485, 1024, 16_384, 64, 16),
        (20_000, 17, 256, 5, 4),
        (20_000, 3, 256, 1, 4),
    ],
)
def test_sizes_follow_the_rule(n_keys: int, dim: int, lists: int, code_bytes: int, width: int) -> None:
    assert ivfpq_sizes(n_keys, dim) == (lists, code_bytes, width)
    assert n_keys >= 39 * lists  # FAISS asks for so many


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("index", ["ivfpq", "HNSW32", "IVF64,Flat", "Flat"])
def test_most_neighbours_are_found_and_their_distances_are_exact(index: str, metric: str) -> None:
    store, queries = filled(index=index, metric=metric), clustered(100, 17, seed=5)
    truth = filled(metric=metric).search(queries, 10)
    found = store.search(queries, 10)
    assert recall(found.ids, truth.ids) > (0.999 if index == "Flat" else 0.8)
    np.testing.assert_allclose(found.distances, distances_to(queries, store.keys[found.ids], metric), atol=2e-5)
    assert (found.distances.diff(dim=-1) >= 0).all()
    assert torch.equal(found.values, found.ids)


@pytest.mark.parametrize("metric", METRICS)
def test_without_rescoring_the_distances_are_the_indexes_own(metric: str) -> None:
    store, queries = filled(index="ivfpq", metric=metric), clustered(100, 17, seed=5)
    own, exact = store.search(queries, 10, rescore=False), store.search(queries, 10)
    error = np.abs(own.distances - distances_to(queries, store.keys[own.ids], metric))
    assert 1e-4 < error.mean() < 0.5 * np.abs(exact.distances).mean()  # quantised: near, and not the same
    assert (own.distances.diff(dim=-1) >= 0).all()
    assert recall(own.ids, exact.ids) > 0.3


def test_few_keys_are_searched_exactly() -> None:
    keys, queries = clustered(MIN_TRAINING, 4), clustered(9, 4, seed=5)
    store, exact = Datastore(4, index="ivfpq"), Datastore(4)
    for part in (slice(0, MIN_TRAINING - 1), slice(MIN_TRAINING - 1, MIN_TRAINING)):
        for held in (store, exact):
            held.add(keys[part], torch.arange(len(held), len(held) + len(keys[part])))
        own = store.search(queries, 50, rescore=False).distances
        same = torch.equal(own, exact.search(queries, 50).distances)
        assert same == (len(store) < MIN_TRAINING)
    assert store.describe()["index_sizes"] == {"lists": 256, "code_bytes": 1, "n_probe": 32}


def test_more_probes_find_more() -> None:
    store, queries = filled(index="IVF256,Flat"), clustered(100, 17, seed=5)
    truth = filled().search(queries, 10).ids
    found = []
    for store.n_probe in (1, 8, 256):
        found.append(recall(store.search(queries, 10).ids, truth))
    assert found[0] < found[1] < found[2] == 1.0


def test_what_is_not_found_stands_at_the_end() -> None:
    """One probe looks into one list of two, where there are fewer than k."""
    store = Datastore(2, index="IVF2,Flat")
    keys = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [90.0, 90.0], [91.0, 90.0]])
    store.add(keys, torch.arange(5) + 7)
    store.n_probe = 1
    for rescore in (True, False):
        found = store.search(torch.tensor([[91.0, 90.0], [0.0, 0.0]]), 4, rescore=rescore)
        assert found.ids.tolist() == [[4, 3, -1, -1], [0, 1, 2, -1]]
        assert found.distances.tolist() == [[0, 1, torch.inf, torch.inf], [0, 1, 4, torch.inf]]
        assert found.values.tolist() == [[11, 10, 0, 0], [7, 8, 9, 0]]


def test_duplicates_come_in_the_order_of_their_ids() -> None:
    store = Datastore(2, index="HNSW8")
    store.add(torch.eye(2).repeat(10, 1), torch.arange(20))
    assert store.search(torch.tensor([0.0, 1.0]), 10).ids.tolist() == list(range(1, 20, 2))


def test_a_zero_vector_has_cosine_distance_one() -> None:
    store = Datastore(3, index="Flat", metric="cosine")
    store.add(torch.tensor([[0.0, 0, 0], [-1, 0, 0], [2, 0, 0]]), torch.arange(3))
    for rescore in (True, False):
        assert store.search(torch.tensor([3.0, 0, 0]), 3, rescore=rescore).distances.tolist() == [0, 1, 2]
        assert store.search(torch.zeros(3), 3, rescore=rescore).distances.tolist() == [1, 1, 1]


def trainings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys there were each time an index was trained."""
    from memcourse.faiss_index import FaissIndex

    seen, train = list[int](), FaissIndex._train
    monkeypatch.setattr(FaissIndex, "_train", lambda self, keys: (seen.append(len(keys)), train(self, keys)))
    return seen


def test_adding_trains_again_only_when_the_store_has_grown_much(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, keys = trainings(monkeypatch), clustered(4500, 8)
    store = Datastore(8, index="IVF16,Flat")
    store.n_probe = 16
    for n in (1000, 2000, 1000, 500):
        store.add(keys[len(store) : len(store) + n], torch.arange(n))
        new = store.search(keys[len(store) - 1], 1)  # the entry added last is found
        assert new.ids.item() == len(store) - 1
    assert trained == [1000, 4500]


def test_deleted_entries_are_not_found() -> None:
    store = Datastore(8, index="HNSW8")
    store.add(clustered(50, 8), torch.arange(50), document="a")
    store.add(clustered(50, 8), torch.arange(50), document="b")
    assert store.search(clustered(50, 8)[3], 2).ids.tolist() == [3, 53]
    store.delete("a")
    assert store.search(clustered(50, 8)[3], 1).ids.tolist() == [53]


def test_training_is_the_same_each_time() -> None:
    queries = clustered(50, 17, seed=5)
    first, second = (filled(index="ivfpq").search(queries, 10, rescore=False) for _ in range(2))
    assert all(map(torch.equal, first, second))


# On disk --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", ["ivfpq", "HNSW16", "IVF16,Flat"])
def test_a_saved_index_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    store, queries = filled(index=index), clustered(50, 17, seed=5)
    store.save(tmp_path)
    trained = trainings(monkeypatch)
    again = Datastore.load(tmp_path)
    own = again.search(queries, 10, rescore=False)
    assert recall(own.ids, store.search(queries, 10, rescore=False).ids) > 0.99  # keys were rounded to float16
    again.add(far := 9 + queries, torch.arange(50))  # the index on disk is of fewer rows now
    assert (Datastore.load(tmp_path).search(far, 1).ids >= 12_000).all()
    assert trained == []


def test_saving_a_store_on_disk_writes_its_index(tmp_path: Path) -> None:
    store = filled(index="ivfpq", path=tmp_path)
    store.save()
    store.add(clustered(10, 17), torch.arange(10))
    store.save()
    (file,) = tmp_path.glob("index-*")  # the one before is gone
    described = json.loads((tmp_path / "manifest.json").read_text())["faiss"]
    assert (described["file"], described["rows"], described["trained_on"]) == (file.name, 12_010, 12_000)
    assert faiss.read_index(str(file)).ntotal == 12_010


def test_an_index_of_other_rows_is_not_believed(tmp_path: Path) -> None:
    store = Datastore(2, index="Flat", path=tmp_path)
    store.add(torch.eye(2), torch.arange(2))
    wrong = faiss.IndexFlatL2(2)
    wrong.add(np.full((1, 2), 9, dtype=np.float32))
    assert store._on_disk is not None
    store._on_disk.write_index(lambda file: faiss.write_index(wrong, faiss.PyCallbackIOWriter(file.write)), 0, 2, 0)
    assert Datastore.load(tmp_path).search(torch.eye(2), 1).ids.tolist() == [[0], [1]]


def test_deleting_leaves_the_index_behind(tmp_path: Path) -> None:
    store = Datastore(2, index="Flat", path=tmp_path)
    store.add(torch.eye(2), torch.arange(2), document="a")
    store.add(torch.eye(2) * 3, torch.arange(2))
    store.save()
    store.delete("a")
    assert list(tmp_path.glob("index-*")) == []
    assert Datastore.load(tmp_path).search(torch.eye(2), 1).ids.tolist() == [[2], [3]]


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or not faiss.get_num_gpus(), reason="needs a CUDA device and FAISS built for it"
)
@pytest.mark.parametrize("index", ["ivfpq", "IVF64,Flat", "HNSW32"])  # the last one FAISS has on the CPU only
def test_on_a_gpu_the_same_neighbours(index: str) -> None:
    on_cpu, on_gpu = filled(index=index), filled(index=index, device="cuda")
    queries = clustered(100, 17, seed=5)
    found = on_gpu.search(queries.cuda(), 10)
    assert found.ids.is_cuda
    assert recall(found.ids.cpu(), on_cpu.search(queries, 10).ids) > 0.95
