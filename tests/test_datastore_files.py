"""A store on disk is the old one or the new one, whole, whatever happens; and what was altered is never read."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import struct
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from memcourse.datastore import Datastore
from memcourse.store import column as store_column
from memcourse.store import files as store_files

DIM, BUILT, DOCUMENT = 3, 20, 6


def entries(first: int, n: int) -> tuple[Tensor, Tensor]:
    """The entries with ids first, first + 1, ...: an id says what stands there, exactly, also as float16."""
    ids = torch.arange(first, first + n)
    return (ids[:, None] % torch.tensor([31, 37, 41])).float(), ids.to(torch.int32) + 100_000


def contents(store: Datastore) -> list[tuple[int, list[float], int]]:
    """(id, key, value) of all entries, found by a search that returns everything."""
    found = store.search(torch.zeros(DIM), max(1, len(store)))
    keys = dict(zip(sorted(found.ids.tolist()), store.keys.tolist(), strict=True))
    return sorted((i, keys[i], v) for i, v in zip(found.ids.tolist(), found.values.tolist(), strict=True))


def expected(ids: list[int]) -> list[tuple[int, list[float], int]]:
    return [(i, [float(i % 31), float(i % 37), float(i % 41)], i + 100_000) for i in ids]


def filled(path: Path, n: int = 20) -> Datastore:
    store = Datastore(DIM, path=path)
    store.add(*entries(0, n // 2), document="first")
    store.add(*entries(n // 2, n - n // 2), document="second")
    return store


# What stands there ----------------------------------------------------------------------------------------------------


def test_the_files_are_what_the_manifest_says(tmp_path: Path) -> None:
    store = filled(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["format"], manifest["count"], manifest["dim"], manifest["next_id"]) == (1, 20, DIM, 20)
    assert manifest["documents"] == [["first", 0, 10], ["second", 10, 10]]
    keys = np.fromfile(tmp_path / manifest["keys"]["file"], dtype="<f2").reshape(-1, DIM)
    values = np.fromfile(tmp_path / manifest["values"]["file"], dtype="<i4")
    assert keys.tolist() == [key for _, key, _ in expected(list(range(20)))]
    assert values.tolist() == list(range(100_000, 100_020))
    assert store.keys.dtype == torch.float16


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor([32_768, -1, 2**31 - 1], dtype=torch.int32),
        torch.tensor([2**40, -5, 0]),
        torch.randn(3, 2, 5),
        torch.randn(3, 4, dtype=torch.float64),
        torch.randn(3).bfloat16(),
        torch.tensor([[True], [False], [True]]),
    ],
    ids=lambda values: f"{values.dtype}{list(values.shape)}",
)
def test_values_keep_their_dtype_and_shape(tmp_path: Path, values: Tensor) -> None:
    Datastore(DIM, path=tmp_path).add(entries(0, 3)[0], values)
    again = Datastore.load(tmp_path).search(entries(0, 3)[0], 1).values[:, 0]
    assert again.dtype == values.dtype
    assert torch.equal(again, values)


def test_saving_rounds_keys_to_float16_and_nothing_else(tmp_path: Path) -> None:
    keys = torch.randn(50, 7) * 100
    store = Datastore(7, metric="cosine", made_by="a model")
    store.add(keys, torch.arange(50))
    store.save(tmp_path)
    again = Datastore.load(tmp_path, made_by="a model")
    rounded = torch.from_numpy(keys.numpy().astype(np.float16))
    assert torch.equal(again.keys, rounded)
    assert (again.metric, again.made_by, len(again)) == ("cosine", "a model", 50)
    assert store.path is None  # the store in memory stays there


def test_an_empty_store_is_saved_and_loaded(tmp_path: Path) -> None:
    Datastore(DIM).save(tmp_path)
    store = Datastore.load(tmp_path)
    assert store.search(torch.zeros(2, DIM), 4).distances.shape == (2, 0)
    store.add(*entries(0, 4))
    assert contents(Datastore.load(tmp_path)) == expected([0, 1, 2, 3])


def test_a_path_with_a_store_opens_it(tmp_path: Path) -> None:
    filled(tmp_path)
    store = Datastore(DIM, path=tmp_path)
    store.add(*entries(20, 5))
    assert contents(Datastore.load(tmp_path)) == expected(list(range(25)))


def test_blocks_have_checksums_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_column, "ROWS_PER_BLOCK", 8)
    store = Datastore(DIM, path=tmp_path)
    for first, n in ((0, 3), (3, 5), (8, 1), (9, 20)):  # ends inside a block, at its end, over several
        store.add(*entries(first, n))
        assert contents(Datastore.load(tmp_path)) == expected(list(range(first + n)))
    assert len(json.loads((tmp_path / "manifest.json").read_text())["keys"]["sha256"]) == 4
    flip_a_bit(tmp_path / "keys-1.f16", 17 * DIM * 2)
    with pytest.raises(ValueError, match=r"keys-1\.f16 was altered: rows 16 to 23"):
        Datastore.load(tmp_path)


def test_deleting_leaves_the_ids_of_the_others(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.add(*entries(20, 5), document="first")
    assert store.delete("first") == 15
    store.add(*entries(25, 2), document="third")
    for opened in (store, Datastore.load(tmp_path)):
        assert contents(opened) == expected([*range(10, 20), 25, 26])
    assert len(list(tmp_path.glob("keys-*"))) == 1  # the old files are gone


def test_saving_replaces_the_store_that_is_there(tmp_path: Path) -> None:
    filled(tmp_path)
    other = Datastore(2, metric="ip")
    other.add(torch.ones(3, 2), torch.ones(3, 4))
    reader = Datastore.load(tmp_path)
    other.save(tmp_path)
    assert contents(reader) == expected(list(range(20)))  # who reads the old one goes on reading it
    assert (Datastore.load(tmp_path).dim, len(Datastore.load(tmp_path))) == (2, 3)
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["keys", "lock", "manifest.json", "values"]


def test_merging_onto_a_path(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "one"), Datastore(DIM)
    two.add(*entries(20, 6), document="third")
    merged = Datastore.merge([one, two], path=tmp_path / "one")  # even one of those that are merged
    assert contents(merged) == expected(list(range(26)))
    assert merged.delete("third") == 6


# Writers and readers --------------------------------------------------------------------------------------------------


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    store = filled(tmp_path)
    second = Datastore.load(tmp_path)
    with store.building() as _, pytest.raises(RuntimeError, match="another writer is at work"):
        second.add(*entries(20, 1))
    store.add(*entries(20, 1))
    with pytest.raises(RuntimeError, match="another writer has changed the store .* load it again"):
        second.add(*entries(20, 1))
    assert contents(Datastore.load(tmp_path)) == expected(list(range(21)))


def test_readers_see_whole_stores_while_a_writer_replaces_them(tmp_path: Path) -> None:
    filled(tmp_path)
    writer = forked(lambda: replace_for_ever(tmp_path))
    try:
        seen = set()
        until = time.monotonic() + 20
        while len(seen) < 20 and time.monotonic() < until:
            store = Datastore.load(tmp_path)
            ids = [i for i, _, _ in contents(store)]
            assert contents(store) == expected(ids)
            assert ids[0] % 10 == 0 and len(ids) in (20, 30)
            seen.add(ids[-1])
        assert len(seen) >= 3
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def replace_for_ever(path: Path) -> None:
    store = Datastore.load(path)
    names = ["first", "second"]
    while True:
        names.append(f"from {store.next_id}")
        store.add(*entries(store.next_id, 10), document=names[-1])
        store.delete(names.pop(0))


def forked(work: Callable[[], None]) -> int:
    """Do it in a child that knows nothing of pytest; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    finally:
        os._exit(0)


# Builds ---------------------------------------------------------------------------------------------------------------


def test_a_build_is_valid_at_its_end_and_not_before(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with store.building("more", every=0.0) as done:
        assert done == 0
        store.add(*entries(20, 7))
        assert len(store) == 27
        assert len(Datastore.load(tmp_path)) == 20
    assert contents(Datastore.load(tmp_path)) == expected(list(range(27)))
    assert Datastore.load(tmp_path).built == "more"


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_build_goes_on(tmp_path: Path, begun: bool) -> None:
    first = 20 if begun else 0
    store = filled(tmp_path) if begun else Datastore(DIM, path=tmp_path)
    with pytest.raises(KeyError), store.building("more", every=3600.0):
        store.add(*entries(first, 7))
        store.add(*entries(first + 7, 2))
        raise KeyError
    assert len(store) == first
    again = Datastore(DIM, path=tmp_path)
    with again.building("more") as done:
        assert done == 9
        again.add(*entries(first + 9, 3))
    assert contents(Datastore.load(tmp_path)) == expected(list(range(first + 12)))


def test_what_an_interrupted_build_was_of_is_asked_for(tmp_path: Path) -> None:
    store = filled(tmp_path)
    with pytest.raises(KeyError), store.building("this"):
        store.add(*entries(20, 7))
        raise KeyError
    with pytest.raises(RuntimeError, match=r"interrupted: go on with building\('this'\)"):
        store.add(*entries(20, 1))
    with pytest.raises(RuntimeError, match="interrupted"):
        store.delete("first")
    with pytest.raises(ValueError, match=r"must be building\('this'\).*restart=True.*got building\('that'\)"):
        with store.building("that"):
            pass
    with store.building("that", restart=True) as done:
        assert done == 0
        store.add(*entries(20, 1))
    assert contents(Datastore.load(tmp_path)) == expected(list(range(21)))


def test_the_journal_is_written_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, journals = [0.0], list[int]()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    store = filled(tmp_path)
    journal = tmp_path / "manifest.partial.json"
    with store.building(every=10.0):
        for seconds in (4, 8, 12, 16, 23):
            now[0] = seconds
            store.add(*entries(store.next_id, 1))
            journals.append(json.loads(journal.read_text())["count"] if journal.exists() else 0)
    assert journals == [0, 0, 23, 23, 25]


# Kills ----------------------------------------------------------------------------------------------------------------


def write_for_ever(path: Path, report: int, seed: int) -> None:
    """Build, add, delete and replace, on and on; after each, say through the pipe which ids there have been.

    A document holds as many entries as its name says, so that half of one shows.
    """
    os.fsync = lambda file: None  # a kill does not need it, and would mostly fall into its waiting
    draw = random.Random(seed)
    store = Datastore(DIM, path=path)
    os.write(report, struct.pack("<q", store.next_id))
    while True:
        with store.building("twenty", every=0.0) as done:
            while done < BUILT:
                n = min(BUILT - done, draw.randint(1, 9))
                store.add(*entries(store.next_id, n), document=f"{store.next_id - done} {BUILT}")
                done += n
        os.write(report, struct.pack("<q", store.next_id))
        for _ in range(draw.randint(0, 8)):
            store.add(*entries(store.next_id, DOCUMENT), document=f"{store.next_id} {DOCUMENT}")
            os.write(report, struct.pack("<q", store.next_id))
        if len(store) > 40:
            names = [run.document for run in store._rows.documents.runs]
            store.delete(str(names[draw.randrange(len(names))]))
        if draw.random() < 0.5:
            Datastore.merge([store]).save(path)
            store = Datastore.load(path)


def check_whole(path: Path, at_least: int) -> None:
    """Every document is there whole or not at all, each entry is the one of its id, and nothing reported is lost."""
    if not (path / "manifest.json").exists():
        assert at_least == 0
        return
    store = Datastore.load(path)
    assert store.next_id >= at_least
    assert contents(store) == expected([i for i, _, _ in contents(store)])
    for run in store._rows.documents.runs:
        assert f"{run.first_id} {run.entries}" == run.document


def test_killed_at_a_hundred_random_moments(tmp_path: Path) -> None:
    draw = random.Random(0)
    resumed = total = 0
    for kill in range(100):
        partial = tmp_path / "manifest.partial.json"
        reader, writer = os.pipe()
        child = forked(lambda out=writer, seed=kill: write_for_ever(tmp_path, out, seed))  # type: ignore[misc]
        os.close(writer)
        reports = os.read(reader, 8)
        time.sleep(draw.random() * 0.05)
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])  # it was killed, and did not end by an error of its own
        while part := os.read(reader, 1 << 16):
            reports += part
        os.close(reader)
        numbers = struct.unpack(f"<{len(reports) // 8}q", reports)
        total = max((total, *numbers))
        check_whole(tmp_path, total)
        resumed += partial.exists()
    assert total > 100  # it did get somewhere
    print(total, resumed)
    assert resumed > 5  # and was often interrupted in a build


# Full disks -----------------------------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


def little_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1000, 1000))


def failing_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


def build(store: Datastore) -> None:
    with store.building():
        store.add(*entries(20, 500))


CHANGES: dict[str, Callable[[Datastore], object]] = {
    "add": lambda store: store.add(*entries(20, 500)),
    "build": build,
    "delete": lambda store: store.delete("first"),
    "save": lambda store: Datastore.merge([store, store]).save(store.path),
}


@pytest.mark.parametrize("full", [little_space, failing_sync])
@pytest.mark.parametrize("change", CHANGES)
def test_a_disk_that_fills_leaves_the_old_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, full: Callable[[pytest.MonkeyPatch], None]
) -> None:
    store = filled(tmp_path)
    with monkeypatch.context() as patch:
        full(patch)
        with pytest.raises(OSError, match=r"the disk is full: \d+ bytes needed, \d+ free; .* is intact") as raised:
            CHANGES[change](store)
    assert raised.value.errno == errno.ENOSPC
    assert contents(Datastore.load(tmp_path)) == contents(store) == expected(list(range(20)))
    again = Datastore(DIM, path=tmp_path)
    with again.building():  # goes on, or begins
        again.add(*entries(again.next_id, 1))
    assert contents(again) == expected(list(range(again.next_id)))


def test_the_bytes_named_are_those_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)
    little_space(monkeypatch)
    with pytest.raises(OSError, match=f"{500 * (2 * DIM + 4) + store_files.MANIFEST_ROOM} bytes needed, 1000 free"):
        store.add(*entries(20, 500))


@pytest.mark.parametrize("change", ["add", "build"])
def test_a_write_that_breaks_off_leaves_the_old_store(tmp_path: Path, change: str) -> None:
    """The system itself stops the file from growing, in the middle of a write."""
    store = filled(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            CHANGES[change](store)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "keys-1.f16").stat().st_size == 20 * DIM * 2  # the space is given back
    assert contents(Datastore.load(tmp_path)) == contents(store) == expected(list(range(20)))


def flip_a_bit(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
