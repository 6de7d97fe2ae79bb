"""What a store is not meant for is refused before anything happens; a damaged one is named, and never read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from memcourse.datastore import Datastore
from memcourse.shards import Shards

NAN, INF = float("nan"), float("inf")


def store(**kwargs: Any) -> Datastore:
    held = Datastore(3, **kwargs)
    held.add(torch.eye(3), torch.arange(3, dtype=torch.int32), document="guide")
    return held


def search(queries: Any, k: Any = 1) -> Any:
    return store().search(queries, k)


def add(keys: Any, values: Any = None) -> None:
    store().add(keys, torch.zeros(len(keys), dtype=torch.int32) if values is None else values)


REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "a width of 0": (lambda: Datastore(0), ["dim", "0", "at least 1"]),
    "half a dimension": (lambda: Datastore(2.5), ["dim", "2.5", "whole"]),  # type: ignore[arg-type]
    "another metric": (lambda: Datastore(3, metric="l1"), ["metric", "'l1'", "'cosine'"]),
    "another index": (lambda: Datastore(3, index="IVFx"), ["index", "'IVFx'", "ivfpq", "factory"]),
    "an index that does not divide the width": (lambda: Datastore(3, index="PQ2"), ["index", "'PQ2'"]),
    "queries of another width": (lambda: search(torch.zeros(2, 4)), ["queries", "(2, 4)", "dim=3"]),
    "a number as a query": (lambda: search(torch.tensor(1.0)), ["queries", "()", "dim=3"]),
    "whole numbers as queries": (lambda: search(torch.zeros(2, 3, dtype=torch.int64)), ["queries", "int64"]),
    "nan in a query": (lambda: search(torch.tensor([[0.0] * 3, [0, NAN, 0]])), ["queries", "nan", "[1, 1]", "finite"]),
    "an endless query": (lambda: search(torch.tensor([-INF, 0, 0])), ["queries", "-inf", "finite"]),
    "k of 0": (lambda: search(torch.zeros(3), 0), ["k", "0", "at least 1"]),
    "k of a half": (lambda: search(torch.zeros(3), 0.5), ["k", "0.5", "whole"]),
    "queries to an empty store": (lambda: Datastore(3).search(torch.zeros(1, 2), 1), ["queries", "(1, 2)"]),
    "keys of another width": (lambda: add(torch.zeros(2, 4)), ["keys", "(2, 4)", "dim=3"]),
    "one key without its axis": (lambda: add(torch.zeros(3)), ["keys", "(3,)", "entries"]),
    "whole numbers as keys": (lambda: add(torch.zeros(2, 3, dtype=torch.int32)), ["keys", "int32", "floating"]),
    "nan in a key": (lambda: add(torch.tensor([[0, 0, NAN]])), ["keys", "nan", "[0, 2]", "finite"]),
    "an endless key": (lambda: add(torch.tensor([[0, 0, INF]])), ["keys", "inf", "finite"]),
    "fewer values than keys": (lambda: add(torch.zeros(2, 3), torch.zeros(1)), ["values", "(1,)", "2 keys"]),
    "one value for all": (lambda: add(torch.zeros(2, 3), torch.tensor(1)), ["values", "()", "2 keys"]),
    "values of another dtype": (lambda: add(torch.zeros(2, 3), torch.zeros(2)), ["values", "float32", "int32"]),
    "values of another shape": (
        lambda: add(torch.zeros(2, 3), torch.zeros(2, 4, dtype=torch.int32)),
        ["values", "(entries, 4)", "(entries)", "store"],
    ),
    "a document that is not there": (lambda: store().delete("guides"), ["document", "'guides'", "nearest: 'guide'"]),
    "a document of a store without any": (lambda: Datastore(3).delete("a"), ["document", "'a'", "no named documents"]),
    "a build in memory": (lambda: store().building(), ["building()", "on disk", "in memory"]),
    "a save to nowhere": (lambda: store().save(), ["path", "None", "folder"]),
    "a merge of nothing": (lambda: Datastore.merge([]), ["stores", "at least one"]),
    "shards of nothing": (lambda: Shards([]), ["stores", "at least one"]),
    "a merge of widths": (lambda: Datastore.merge([store(), Datastore(4)]), ["dim of stores[1]", "4", "3"]),
    "shards of metrics": (lambda: Shards([store(), store(metric="ip")]), ["metric of stores[1]", "'ip'", "'l2'"]),
    "shards of models": (lambda: Shards([store(made_by="a"), store(made_by="b")]), ["made_by of stores[1]", "'b'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises(ValueError) as raised:
        call()
    missing = [word for word in words if word not in str(raised.value)]
    assert not missing, f"{missing} not in: {raised.value}"


def test_shards_whose_values_differ() -> None:
    other = Datastore(3)
    other.add(torch.eye(3), torch.zeros(3))
    with pytest.raises(ValueError, match=r"values must be of one dtype .* float32 .* and int32"):
        Shards([store(), other])


def test_nothing_is_added_where_something_was_refused() -> None:
    held = store()
    with pytest.raises(ValueError):
        held.add(torch.tensor([[0.0, 0, 0], [0, NAN, 0]]), torch.zeros(2, dtype=torch.int32))
    assert (len(held), held.next_id) == (3, 3)


@pytest.mark.parametrize("change", ["add", "save"])
def test_keys_that_float16_cannot_hold(tmp_path: Path, change: str) -> None:
    key, value = torch.tensor([[0, -70_000.0, 1]]), torch.zeros(1, dtype=torch.int32)
    on_disk = store(path=tmp_path)
    with pytest.raises(ValueError, match="keys must be at most 65,504 on disk.*got 70000"):
        if change == "add":
            on_disk.add(key, value)
        else:
            in_memory = store()
            in_memory.add(key, value)
            in_memory.save(tmp_path)
    assert len(Datastore.load(tmp_path)) == 3
    on_disk.add(torch.tensor([[0, -65_504.0, 1]]), value)
    assert on_disk.keys[3].tolist() == [0, -65_504, 1]


# Damaged stores -------------------------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def of_format(number: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": number}))

    return change


def edit(path: Path) -> None:
    """A change that leaves a manifest well formed."""
    path.write_text(path.read_text().replace('"metric": "l2"', '"metric": "ip"'))


DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "keys cut short": ("keys-1.f16", cut, r"keys-1\.f16 is cut short: 17 bytes, where its 3 rows take 18"),
    "values cut short": ("values-1.bin", cut, r"values-1\.bin is cut short: 11 bytes, where its 3 rows take 12"),
    "keys altered": ("keys-1.f16", alter, r"keys-1\.f16 was altered: rows 0 to 2"),
    "values altered": ("values-1.bin", alter, r"values-1\.bin was altered: rows 0 to 2"),
    "keys gone": ("keys-1.f16", Path.unlink, r"keys-1\.f16 is missing"),
    "the manifest cut short": ("manifest.json", cut, r"manifest\.json is cut short or was altered"),
    "the manifest edited": ("manifest.json", edit, r"manifest\.json was altered: its checksum"),
    "the manifest of something else": (
        "manifest.json",
        lambda path: path.write_text('{"name": "an app"}'),
        r"manifest\.json is not the manifest of a datastore",
    ),
    "the manifest binary": (
        "manifest.json",
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        r"altered: it is not text",
    ),
    "a later format": ("manifest.json", of_format(2), r"is of format 2, and this version of memcourse reads 1"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("opened", ["load", "path"])
def test_a_damaged_store_is_named(tmp_path: Path, damage: str, opened: str) -> None:
    store(path=tmp_path)
    name, change, message = DAMAGES[damage]
    change(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        Datastore.load(tmp_path) if opened == "load" else Datastore(3, path=tmp_path)
    store().save(tmp_path)  # the way out: a whole store in its place
    assert len(Datastore.load(tmp_path)) == 3


@pytest.mark.parametrize("change", [cut, alter, Path.unlink])
def test_a_damaged_index_is_named(tmp_path: Path, change: Callable[[Path], None]) -> None:
    pytest.importorskip("faiss", reason="FAISS is not installed")
    held = store(path=tmp_path, index="Flat")
    held.save()
    (index,) = tmp_path.glob("index-*.faiss")
    change(index)
    with pytest.raises(ValueError, match=rf"{index.name} is (cut short or was altered|missing)"):
        Datastore.load(tmp_path)


def test_an_interrupted_build_whose_rows_are_damaged_does_not_go_on(tmp_path: Path) -> None:
    held = store(path=tmp_path)
    with pytest.raises(KeyError), held.building("more"):
        held.add(torch.eye(3), torch.zeros(3, dtype=torch.int32))
        raise KeyError
    alter(tmp_path / "manifest.partial.json")
    again = Datastore.load(tmp_path)  # the valid store does not depend on it
    with pytest.raises(ValueError, match=r"manifest\.partial\.json"), again.building("more"):
        pass
    with again.building("more", restart=True) as done:
        assert done == 0


def test_not_a_store_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="path must be the folder of a datastore, got .*nowhere"):
        Datastore.load(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("text")
    with pytest.raises(ValueError, match="path must be the folder of a datastore"):
        Datastore.load(file)
    with pytest.raises(ValueError, match="path must be a folder"):
        Datastore(3, path=file)


def test_a_first_build_that_was_interrupted_is_no_store(tmp_path: Path) -> None:
    held = Datastore(3, path=tmp_path)
    with pytest.raises(KeyError), held.building():
        held.add(torch.eye(3), torch.zeros(3))
        raise KeyError
    with pytest.raises(ValueError, match="a first build was begun there, and not finished"):
        Datastore.load(tmp_path)


def test_made_by_another_model(tmp_path: Path) -> None:
    store(path=tmp_path, made_by="this model")
    assert Datastore.load(tmp_path, made_by="this model").made_by == "this model"
    assert Datastore.load(tmp_path).made_by == "this model"
    for opened in (Datastore.load, lambda path, made_by: Datastore(3, path=path, made_by=made_by)):
        with pytest.raises(ValueError, match="made_by must be 'this model', as in .*got 'that model'"):
            opened(tmp_path, made_by="that model")  # type: ignore[operator]


@pytest.mark.parametrize("other", [{"dim": 4}, {"metric": "ip"}, {"index": "Flat"}])
def test_opened_as_another_store(tmp_path: Path, other: dict[str, Any]) -> None:
    store(path=tmp_path)
    ((name, value),) = other.items()
    with pytest.raises(ValueError, match=f"{name} must be .* as in the store at .*got {value!r}"):
        Datastore(**{"dim": 3, **other}, path=tmp_path)


def test_a_moved_store_is_still_the_store(tmp_path: Path) -> None:
    store(path=tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert len(Datastore.load(tmp_path / "there")) == 3


def test_a_manifest_alone_is_enough_to_refuse(tmp_path: Path) -> None:
    """The files of one store under the manifest of another."""
    store(path=tmp_path / "one")
    other = Datastore(3, path=tmp_path / "other")
    other.add(torch.ones(3, 3), torch.arange(3, dtype=torch.int32))
    shutil.copy(tmp_path / "other" / "manifest.json", tmp_path / "one" / "manifest.json")
    with pytest.raises(ValueError, match=r"keys-1\.f16 was altered"):
        Datastore.load(tmp_path / "one")
