"""Shards searched together are one store, to the last id."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from memcourse.datastore import Datastore, Neighbors
from memcourse.shards import Shards

CUTS = [0, 0, 17, 18, 60]  # an empty shard, and one with a single entry


def few_numbers(*shape: int) -> Tensor:
    """So few that most distances are shared by many entries."""
    return torch.randint(-1, 3, shape).float()


def stores(keys: Tensor, values: Tensor, metric: str, folder: Path | None = None) -> tuple[Datastore, list[Datastore]]:
    """One store of all entries, and the same entries cut into several."""

    def new(name: str) -> Datastore:
        return Datastore(keys.shape[1], metric=metric, path=None if folder is None else folder / name)

    one, parts = new("one"), [new(str(number)) for number in range(len(CUTS) - 1)]
    for part, first, last in zip(parts, CUTS, CUTS[1:], strict=False):
        for store in (one, part):
            store.add(keys[first:last], values[first:last], document=f"from {first}")
    return one, parts


def same(found: Neighbors, expected: Neighbors) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("metric", ["l2", "ip", "cosine"])
@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("value_shape", [(), (2, 3)])
def test_the_same_as_one_store(tmp_path: Path, metric: str, on_disk: bool, value_shape: tuple[int, ...]) -> None:
    one, parts = stores(few_numbers(60, 3), torch.randn(60, *value_shape), metric, tmp_path if on_disk else None)
    shards = Shards(parts)
    assert (len(shards), shards.dim, shards.metric, shards.made_by) == (60, 3, metric, None)
    for shape in ((3,), (5, 3), (2, 4, 3)):
        queries = few_numbers(*shape)
        for k in (1, 7, 59, 60, 200):
            same(shards.search(queries, k), one.search(queries, k))


def test_the_same_after_deleting(tmp_path: Path) -> None:
    one, parts = stores(few_numbers(60, 3), torch.arange(60), "l2", tmp_path)
    shards, queries = Shards(parts), few_numbers(5, 3)
    assert one.delete("from 0") == parts[1].delete("from 0")
    same(shards.search(queries, 30), one.search(queries, 30))
    parts[-1].add(few_numbers(4, 3) * 0, torch.arange(4))
    one.add(few_numbers(4, 3) * 0, torch.arange(4))
    same(shards.search(queries, 30), one.search(queries, 30))
    same(shards.search(queries, 30), Datastore.merge(parts).search(queries, 30))


def test_empty_shards() -> None:
    found = Shards([Datastore(3), Datastore(3)]).search(torch.zeros(2, 4, 3), 5)
    assert found.distances.shape == found.ids.shape == (2, 4, 0)


def test_each_shard_may_have_an_index_of_its_own() -> None:
    pytest.importorskip("faiss", reason="FAISS is not installed")
    keys, queries = few_numbers(60, 3), few_numbers(5, 3)
    one, parts = stores(keys, torch.arange(60), "l2")
    flat = Datastore(3, index="Flat")
    flat.add(keys[18:], torch.arange(18, 60))
    same(Shards([*parts[:-1], flat]).search(queries, 60), one.search(queries, 60))
