"""A datastore finds what a loop over all entries finds, in memory and on disk, and says what it is."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from memcourse.datastore import Datastore

METRICS = ["l2", "ip", "cosine"]
Make = Callable[..., Datastore]


@pytest.fixture(params=["memory", "disk"])
def make(request: pytest.FixtureRequest, tmp_path: Path, device: str) -> Make:
    """A maker of stores: the same laws hold for both kinds."""
    where = iter(range(100))

    def new(dim: int, **kwargs: object) -> Datastore:
        path = tmp_path / str(next(where)) if request.param == "disk" else None
        return Datastore(dim, path=path, device=device, **kwargs)  # type: ignore[arg-type]

    return new


def oracle(queries: Tensor, keys: Tensor, k: int, metric: str) -> tuple[list[list[float]], list[list[int]]]:
    """Distances and numbers of the nearest, in float64, by sorting pairs."""
    distances, numbers = [], []
    for q in queries.double().numpy():
        pairs = []
        for number, key in enumerate(keys.double().numpy()):
            if metric == "l2":
                distance = ((q - key) ** 2).sum()
            elif metric == "ip":
                distance = -(q * key).sum()
            else:
                lengths = np.sqrt((q**2).sum()) * np.sqrt((key**2).sum())
                distance = 1.0 if lengths == 0 else 1 - (q * key).sum() / lengths
            pairs.append((round(float(distance), 5), number))
        pairs.sort()
        distances.append([distance for distance, _ in pairs[:k]])
        numbers.append([number for _, number in pairs[:k]])
    return distances, numbers


@pytest.mark.parametrize("metric", METRICS)
def test_search_finds_what_a_loop_finds(make: Make, metric: str, device: str) -> None:
    keys = torch.randint(-9, 10, (61, 5)).float()  # exact in float16, with many equal distances
    keys[[7, 20]] = 0.0
    keys[30] = keys[3]
    values = torch.randint(1 << 20, (61, 2))
    store = make(5, metric=metric)
    for part in (slice(0, 1), slice(1, 40), slice(40, 61)):
        store.add(keys[part], values[part])
    queries = torch.cat([torch.randint(-9, 10, (10, 5)).float(), keys[3:4], torch.zeros(1, 5)]).view(3, 4, 5)
    found = store.search(queries.to(device), 11)
    distances, numbers = oracle(queries.view(12, 5), keys, 11, metric)
    assert found.distances.shape == found.ids.shape == (3, 4, 11)
    assert found.distances.dtype == torch.float32
    np.testing.assert_allclose(found.distances.cpu().view(12, 11), distances, atol=2e-5)
    if metric != "cosine":  # whole numbers: no rounding may decide between equals
        assert found.ids.view(12, 11).tolist() == numbers
    assert torch.equal(found.values.cpu(), values[found.ids.cpu()])


def test_of_equal_distances_the_lower_id_comes_first(make: Make, device: str) -> None:
    store = make(2)
    for number in range(3):
        store.add(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.full((2,), number))
    found = store.search(torch.tensor([1.0, 0.0], device=device), 5)
    assert found.ids.tolist() == [0, 2, 4, 1, 3]
    assert found.values.tolist() == [0, 1, 2, 0, 1]
    assert found.distances.tolist() == [0, 0, 0, 2, 2]


def test_k_beyond_the_store_gives_all_there_is(make: Make, device: str) -> None:
    store = make(3)
    empty = store.search(torch.zeros(2, 4, 3, device=device), 5)
    assert (empty.distances.shape, empty.ids.shape) == ((2, 4, 0), (2, 4, 0))
    assert empty.values.shape[:3] == (2, 4, 0)
    store.add(torch.eye(3), torch.arange(3))
    assert store.search(torch.zeros(3, device=device), 5).ids.tolist() == [0, 1, 2]
    assert store.search(torch.zeros(0, 3, device=device), 5).ids.shape == (0, 3)


def test_adding_nothing_changes_nothing(make: Make) -> None:
    store = make(3)
    store.add(torch.zeros(0, 3), torch.zeros(0, 2))
    assert len(store) == 0
    store.add(torch.eye(3), torch.ones(3, 2), document="a")
    store.add(torch.zeros(0, 3), torch.zeros(0, 2), document="b")
    assert len(store) == store.next_id == 3
    assert store.describe()["documents"] == 1


def test_what_was_added_stays_what_it_was(make: Make, device: str) -> None:
    store = make(3)
    keys, values = torch.eye(3, requires_grad=True), torch.zeros(3)
    store.add(keys, values)
    values += 1
    with torch.no_grad():
        keys += 1
    found = store.search(torch.tensor([1.0, 0, 0], device=device), 1)
    assert (found.distances.item(), found.values.item()) == (0.0, 0.0)
    assert not found.distances.requires_grad


def test_keys_in_memory_are_float32_as_given() -> None:
    keys = torch.randn(9, 4) * 1e6  # beyond float16
    store = Datastore(4)
    store.add(keys, torch.arange(9))
    assert torch.equal(store.keys, keys)
    store.add(keys.double(), torch.arange(9))
    assert store.keys.dtype == torch.float32


def test_a_token_id_above_32767_survives(make: Make, device: str) -> None:
    store = make(1)
    store.add(torch.zeros(2, 1), torch.tensor([50_256, 32_768], dtype=torch.int32))
    found = store.search(torch.zeros(1, device=device), 2).values
    assert (found.tolist(), found.dtype) == ([50_256, 32_768], torch.int32)


def test_deleting_a_document(make: Make, device: str) -> None:
    store = make(1)
    for document, first, n in (("a", 0, 2), (None, 2, 1), ("b", 3, 2), ("a", 5, 3)):
        store.add(torch.arange(first, first + n).float()[:, None], torch.arange(first, first + n), document=document)
    assert store.delete("a") == 5
    found = store.search(torch.zeros(1, device=device), 9)
    assert found.ids.tolist() == found.values.tolist() == [2, 3, 4]
    assert found.distances.tolist() == [4, 9, 16]
    store.add(torch.zeros(1, 1), torch.tensor([8]), document="a")  # ids are not given again
    assert store.search(torch.zeros(1, device=device), 1).ids.tolist() == [8]
    assert (len(store), store.next_id) == (4, 9)
    assert (store.delete("a"), store.delete("b"), len(store)) == (1, 2, 1)


def test_deleting_everything_leaves_an_empty_store(make: Make, device: str) -> None:
    store = make(1)
    store.add(torch.zeros(2, 1), torch.arange(2), document="a")
    assert store.delete("a") == 2
    assert store.search(torch.zeros(1, device=device), 1).ids.shape == (0,)
    store.add(torch.zeros(1, 1), torch.ones(1), document="b")  # values of another kind begin anew
    assert store.search(torch.zeros(1, device=device), 1).ids.tolist() == [2]


def test_merging_is_adding_one_after_the_other(make: Make, device: str) -> None:
    keys, values = torch.randint(0, 4, (40, 3)).float(), torch.arange(40)
    one, parts = make(3), [make(3) for _ in range(3)]
    for part, document, rows in ((0, "a", slice(0, 9)), (2, "b", slice(9, 25)), (2, "a", slice(25, 40))):
        one.add(keys[rows], values[rows], document=document)
        parts[part].add(keys[rows], values[rows], document=document)
    queries = torch.randint(0, 4, (6, 3), device=device).float()
    for deleted in (None, "a"):
        if deleted:
            for store in (one, parts[0], parts[2]):
                store.delete(deleted)
        merged = Datastore.merge(parts)
        for found, expected in zip(merged.search(queries, 50), one.search(queries, 50), strict=True):
            assert torch.equal(found, expected)
    assert merged.delete("b") == 16


def test_search_is_the_same_however_the_keys_were_added(make: Make, device: str) -> None:
    keys, queries = torch.randn(300, 16).half().float(), torch.randn(40, 16, device=device)
    whole, pieces = make(16), make(16)
    whole.add(keys, torch.arange(300))
    for part in keys.split(7):
        pieces.add(part, torch.arange(pieces.next_id, pieces.next_id + len(part)))
    for found, expected in zip(pieces.search(queries, 20), whole.search(queries, 20), strict=True):
        assert torch.equal(found, expected)


def test_a_store_describes_itself(make: Make) -> None:
    store = make(6, metric="ip", made_by="a model")
    store.add(torch.zeros(5, 6), torch.zeros(5, 2, dtype=torch.int16), document="a")
    described = store.describe()
    json.dumps(described)
    on_disk = store.path is not None
    wanted = {
        "count": 5,
        "dim": 6,
        "metric": "ip",
        "index": "exact",
        "keys": "float16" if on_disk else "float32",
        "values": "int16",
        "value_shape": [2],
        "documents": 1,
        "made_by": "a model",
        "bytes": 5 * (6 * (2 if on_disk else 4) + 4),
    }
    assert {name: described[name] for name in wanted} == wanted
    assert (described["checksum"] is not None) == on_disk
    assert repr(store).startswith("Datastore(5 entries of dim 6, ip, exact, in ")


def test_the_checksum_follows_the_content(tmp_path: Path) -> None:
    store = Datastore(2, path=tmp_path)
    seen = set()
    for number in range(3):
        store.add(torch.zeros(1, 2), torch.tensor([number]))
        seen.add(store.describe()["checksum"])
    assert len(seen) == 3
    assert Datastore.load(tmp_path).describe()["checksum"] == store.describe()["checksum"]


def test_exact_search_needs_no_faiss(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['faiss'] = None\n"
        "import torch; from memcourse.datastore import Datastore\n"
        f"store = Datastore(2, path={str(tmp_path)!r}); store.add(torch.eye(2), torch.arange(2))\n"
        f"assert Datastore.load({str(tmp_path)!r}).search(torch.eye(2), 1).ids.tolist() == [[0], [1]]\n"
        "try: Datastore(2, index='ivfpq')\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install faiss-cpu" in done.stdout
