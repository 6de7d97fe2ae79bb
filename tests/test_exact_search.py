"""Exact search against every distance in float64, sorted by (distance, row)."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from memcourse import exact_search
from memcourse.exact_search import METRICS, nearest


def sorted_by_hand(queries: Tensor, keys: Tensor, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    q, rows = queries.numpy().astype(np.float64), keys.numpy().astype(np.float64)
    distances = np.empty((len(q), len(rows)))
    for i, query in enumerate(q):
        for j, key in enumerate(rows):
            if metric == "l2":
                distances[i, j] = np.sum((query - key) ** 2)
            elif metric == "ip":
                distances[i, j] = -np.sum(query * key)
            else:
                norms = np.linalg.norm(query) * np.linalg.norm(key)
                distances[i, j] = 1 - np.sum(query * key) / norms if norms else 1.0
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("n", "dim", "k"), [(1, 3, 1), (7, 2, 3), (131, 5, 17), (2003, 11, 43), (37, 3, 100)])
def test_the_nearest_of_all(metric: str, n: int, dim: int, k: int, device: str) -> None:
    queries, keys = torch.randn(13, dim), torch.randn(n, dim)
    distances, rows = nearest(queries.to(device), keys.to(device), k, metric=metric)
    expected, order = sorted_by_hand(queries, keys, k, metric)
    np.testing.assert_array_equal(rows.cpu(), order)
    np.testing.assert_allclose(distances.cpu(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_of_duplicates_the_lower_row_comes_first(metric: str) -> None:
    """More duplicates than there are candidates to spare, in several blocks."""
    keys = torch.randn(7, 5).repeat(301, 1)  # row r equals row r + 7
    queries = torch.randn(11, 5)
    _, rows = nearest(queries, keys, 50, metric=metric)
    _, one_of_each = nearest(queries, keys[:7], 1, metric=metric)
    np.testing.assert_array_equal(rows, one_of_each.numpy() + 7 * np.arange(50))


@pytest.mark.parametrize("metric", METRICS)
def test_the_answer_does_not_depend_on_how_keys_are_cut(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, queries = torch.randn(1009, 13).round(decimals=1), torch.randn(17, 13).round(decimals=1)  # many ties
    whole = nearest(queries, keys, 29, metric=metric)
    monkeypatch.setattr(exact_search, "BLOCK_BYTES", 4 * 17 * 37)  # 37 keys a block
    monkeypatch.setattr(exact_search, "QUERIES", 5)
    for found, expected in zip(nearest(queries, keys, 29, metric=metric), whole, strict=True):
        assert torch.equal(found, expected)


def test_near_duplicates_far_from_the_origin() -> None:
    """|q|^2 - 2 q k + |k|^2 cancels here: in float32 it is wrong in its first digit."""
    keys = 1000 + 0.01 * torch.randn(1499, 7)
    queries = keys[:19] + 0.001 * torch.randn(19, 7)
    distances, rows = nearest(queries, keys, 5)
    expected, order = sorted_by_hand(queries, keys, 5, "l2")
    np.testing.assert_array_equal(rows, order)
    np.testing.assert_allclose(distances, expected, rtol=1e-3)


def test_a_zero_vector_has_cosine_distance_one_to_everything() -> None:
    keys = torch.cat([torch.zeros(1, 3), torch.tensor([[2.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])])
    distances, rows = nearest(torch.tensor([[5.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), keys, 3, metric="cosine")
    assert rows.tolist() == [[1, 0, 2], [0, 1, 2]]
    assert distances.tolist() == [[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]]


@pytest.mark.parametrize(("n_queries", "n_keys"), [(0, 5), (3, 0), (0, 0)])
def test_nothing_to_search(n_queries: int, n_keys: int) -> None:
    distances, rows = nearest(torch.zeros(n_queries, 4), torch.zeros(n_keys, 4), 2)
    assert distances.shape == rows.shape == (n_queries, min(2, n_keys))


class LargestTensor(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, Tensor) and tensor._base is None:
                self.elements = max(self.elements, tensor.numel())
        return made


def test_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "BLOCK_BYTES", 2**16)
    queries, keys = torch.randn(101, 8), torch.randn(20_011, 8)
    with LargestTensor() as largest:
        nearest(queries, keys, 10)
    assert largest.elements <= 2**16 // 4 + 101 * 2 * (10 + exact_search.MARGIN)
    assert largest.elements < 101 * 20_011 / 50


def test_one_query_does_not_read_all_keys_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "BLOCK_BYTES", 2**16)
    keys = torch.randn(20_011, 8).half()  # as on disk: a block becomes float32
    with LargestTensor() as largest:
        nearest(torch.randn(1, 8), keys, 10)
    assert largest.elements <= 2**16 // 4
