"""A corpus becomes a datastore: against loops written here, by one process and by two, killed and gone on with."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memcourse import CausalAttention, MemoryTransformer, datastore_build
from memcourse.course import cli
from memcourse.datastore import Datastore
from memcourse.datastore_build import build, token_file
from memcourse.datastore_build.built_store import neighbors, open_store
from memcourse.datastore_build.text_windows import Windows
from memcourse.hf import knn_lm
from memcourse.knn_lm import KNNLM
from memcourse.language_model import TransformerReader
from memcourse.shards import Shards
from memcourse.tokenizer import Tokenizer, tokenizer

WORDS = "the key of a query is a value that the memory reads and writes in its own time".split()


def prose(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice([" ", " ", ". ", ".\n", "\n\n", "\n  "]) for _ in range(words))


# Names, and texts of very different lengths: some shorter than a window, one too short to have a pair, one empty.
# "g" repeats "a", so that there are neighbours at equal distances.
TEXTS = {
    "a": prose(1, 50),
    "b": "t",
    "c": prose(2, 7),
    "d": prose(3, 90),
    "e": "",
    "f": prose(4, 33),
    "g": prose(1, 50),
}
CUTTING = {"context": 12, "stride": 5, "per_batch": 4}


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tokenizer(" ".join(TEXTS.values()), 300, kind="bpe")


@pytest.fixture
def model() -> MemoryTransformer:
    torch.manual_seed(3)
    return MemoryTransformer(300, 8, 2, lambda: CausalAttention(8, 2)).eval()


def expected(model: MemoryTransformer, words: Tokenizer, context: int, stride: int) -> tuple[Tensor, list[int], list]:
    """Every window by itself, without padding and without a batch; token t belongs to the first that reads it."""
    keys, values, documents = [], [], []
    for name, text in TEXTS.items():
        ids, start = words.encode(text), 0
        with torch.no_grad():
            for t in range(len(ids) - 1):
                if t == 0 or t >= start + context:
                    start += stride if t else 0
                    hidden = model.hidden(ids[None, start : start + context])[0]
                keys.append(hidden[t - start])
                values.append(int(ids[t + 1]))
                documents.append(name)
    return torch.stack(keys), values, documents


@pytest.mark.parametrize(("context", "stride", "per_batch"), [(12, 5, 4), (12, 12, 3), (2, 1, 7), (500, 250, 16)])
def test_entries_are_those_of_a_loop_over_the_tokens(
    tmp_path: Path, model: MemoryTransformer, words: Tokenizer, context: int, stride: int, per_batch: int
) -> None:
    cutting = {"context": context, "stride": stride, "per_batch": per_batch}
    report = build(tmp_path / "store", TEXTS, model, words, **cutting)
    store = open_store(tmp_path / "store")
    keys, values, documents = expected(model, words, context, stride)
    assert len(store) == report.keys == report.new_keys == len(keys)
    own = Datastore.load(str(tmp_path / "store"))
    torch.testing.assert_close(own.keys.float(), keys, rtol=2e-3, atol=2e-3)  # float16 on disk
    assert own.values.dtype == torch.int32
    assert own.values.tolist() == values
    found = store.search(keys, 1)
    near_duplicates = (keys[found.ids[:, 0]] - keys).abs().amax(dim=-1) < 5e-3
    assert near_duplicates.all()
    for name in dict.fromkeys(documents):
        assert own.delete(name) == documents.count(name)
    assert len(own) == 0


@pytest.mark.parametrize("context", [2, 3, 7])
@pytest.mark.parametrize("stride", [1, 2, 3, 7])
@pytest.mark.parametrize("per_batch", [1, 4])
def test_windows_cover_each_row_once_in_order_with_enough_context(context: int, stride: int, per_batch: int) -> None:
    if stride > context:
        return
    lengths = [0, 1, 2, 3, 5, 0, 8, 20, 1, 7]
    windows = Windows(lengths, context=context, stride=stride, per_batch=per_batch)
    starts = [sum(lengths[:document]) for document in range(len(lengths))]
    rows = []
    for number in range(len(windows)):
        window = windows[number]
        assert window.rows >= 1
        assert window.stop - window.start <= context
        assert starts[window.document] <= window.start <= window.keep
        if window.start > starts[window.document]:
            assert window.keep - window.start >= context - stride
        rows += [(window.document, place) for place in range(window.keep, window.stop)]
    assert rows == [(d, starts[d] + t) for d, length in enumerate(lengths) for t in range(length - 1)]
    assert windows.rows == len(rows)
    assert [windows.row(number) for number in range(len(rows))] == rows
    done = 0
    for batch in range(windows.n_batches):
        assert windows.rows_before(batch) == done
        assert 1 <= len(windows.batch(batch)) <= per_batch
        done += sum(window.rows for window in windows.batch(batch))
    assert windows.rows_before(windows.n_batches) == done == len(rows)
    for processes in (1, 2, 3):
        shares = [windows.share(number, processes) for number in range(processes)]
        assert [batch for share in shares for batch in share] == list(range(windows.n_batches))


def test_a_long_text_is_tokenised_in_pieces_as_it_is_whole(
    tmp_path: Path, words: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_file, "CHARACTERS", 50)
    text = "\n  a line that is indented\n\n" + TEXTS["d"] + "\r\nits own\r\n"
    assert len(list(token_file.pieces("d", text))) > 5
    assert "".join(token_file.pieces("d", text)) == text
    (tmp_path / "d.txt").write_bytes(text.encode())
    for source in (text, tmp_path / "d.txt"):
        [document] = token_file.write(tmp_path / "tokens", {"d": source}, words)
        tokens = token_file.TokenFile(tmp_path / "tokens")
        assert torch.equal(tokens[0 : len(tokens)].long(), words.encode(text))
        assert document.n_tokens == len(tokens)
        assert document.sha256 == token_file.checksum("d", source)


forks = pytest.mark.skipif(sys.platform != "linux", reason="processes are started by fork, which torch bears on Linux")
MEETINGS: list[torch.distributed.TCPStore] = []
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["datastore", *map(str, arguments)])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return call


def start(work: Callable[[], object], **environment: str) -> int:
    """The id of a process that is a copy of this one, does the work and ends: with 0 where it could."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.environ.update(environment)
            work()
            code = 0
        finally:
            os._exit(code)
    return process


def start_two(work: Callable[[], object]) -> list[int]:
    """Two processes that know of each other as torchrun's do: they meet where the one that started them says."""
    meeting = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    MEETINGS[:] = [meeting]  # kept until the next two
    agent = {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port), "WORLD_SIZE": "2", **agent}
    return [start(work, RANK=str(number), LOCAL_RANK=str(number), **shared) for number in range(2)]


def end_well(processes: list[int]) -> bool:
    """All by themselves, within a minute."""
    codes, patience = dict.fromkeys(processes, -1), time.monotonic() + 60
    while -1 in codes.values() and time.monotonic() < patience:
        for process in [process for process, code in codes.items() if code == -1]:
            ended, code = os.waitpid(process, os.WNOHANG)
            codes[process] = code if ended else -1
        time.sleep(0.01)
    for process in [process for process, code in codes.items() if code == -1]:
        os.kill(process, signal.SIGKILL), os.waitpid(process, 0)
    return set(codes.values()) == {0}


def make(path: Path, model: MemoryTransformer, words: Tokenizer, **options: Any) -> Callable[[], object]:
    return lambda: build(path, TEXTS, model, words, **CUTTING, progress=False, **options)


def content(store: Datastore | Shards) -> tuple[Tensor, Tensor, list]:
    """Keys, values, and which document each belongs to."""
    parts = getattr(store, "stores", [store])
    runs = [(run.document, run.entries) for part in parts for run in part._rows.documents.runs]
    names = [name for document, count in runs for name in [document] * count]
    return torch.cat([part.keys for part in parts]), torch.cat([part.values for part in parts]), names


def same(found: Datastore | Shards, expected: Datastore) -> None:
    (keys, values, names), (own_keys, own_values, own_names) = content(found), content(expected)
    assert torch.equal(keys, own_keys) and torch.equal(values, own_values) and names == own_names
    queries = torch.cat([own_keys[::7].float(), torch.randn(9, expected.dim)])
    for ours, theirs in zip(found.search(queries, 20), expected.search(queries, 20), strict=True):
        assert torch.equal(ours, theirs)


@pytest.fixture
def whole(tmp_path: Path, model: MemoryTransformer, words: Tokenizer) -> Datastore:
    """The store of one process that nobody has interrupted."""
    make(tmp_path / "whole", model, words)()
    store = open_store(tmp_path / "whole")
    assert isinstance(store, Datastore)
    return store


@forks
@pytest.mark.parametrize("merge", [False, True])
def test_two_processes_make_the_store_of_one(
    tmp_path: Path, model: MemoryTransformer, words: Tokenizer, whole: Datastore, merge: bool
) -> None:
    assert end_well(start_two(make(tmp_path / "two", model, words, merge=merge)))
    found = open_store(tmp_path / "two")
    assert isinstance(found, Datastore if merge else Shards)
    assert merge or all(len(part) for part in found.stores)
    assert sorted(path.name for path in (tmp_path / "two").glob("shard-*")) == (
        [] if merge else ["shard-00000-of-00002", "shard-00001-of-00002"]
    )
    same(found, whole)


def rounds_of_kills(
    rounds: int, path: Path, run: Callable[..., list[int]], make_one: Callable[..., Callable[[], object]]
) -> int:
    """Begin a build, and kill one of its processes at a random moment, again and again; then let it finish.

    Returns how many of the kills left a build that had come some way, and was not done.
    """
    draw, half_way, number = random.Random(rounds), 0, 0
    while number < rounds or (half_way == 0 and number < rounds + 60):
        if number % 4 == 0:  # afresh
            shutil.rmtree(path, ignore_errors=True)
        number += 1
        processes = run(make_one(every=draw.choice([0.0, 0.0, 0.05])))
        time.sleep(draw.uniform(0.0, 0.25 if len(processes) == 1 else 0.5))
        victim = draw.choice(processes)
        for process in (victim, *processes):  # torchrun ends the others
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for process in processes:
            os.waitpid(process, 0)
        half_way += any(path.rglob("manifest.partial.json"))
    assert end_well(run(make_one(every=1.0)))
    return half_way


@forks
@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_a_build_killed_at_any_moment_goes_on_to_the_same_store(
    tmp_path: Path, model: MemoryTransformer, words: Tokenizer, whole: Datastore, rounds: int
) -> None:
    half_way = rounds_of_kills(
        rounds, tmp_path / "one", lambda work: [start(work)], lambda **o: make(tmp_path / "one", model, words, **o)
    )
    assert half_way > 0
    same(open_store(tmp_path / "one"), whole)


@forks
@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("rounds", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_two_processes_of_which_one_is_killed_go_on_to_the_same_store(
    tmp_path: Path, model: MemoryTransformer, words: Tokenizer, whole: Datastore, rounds: int, merge: bool
) -> None:
    rounds_of_kills(
        rounds, tmp_path / "two", start_two, lambda **o: make(tmp_path / "two", model, words, merge=merge, **o)
    )
    same(open_store(tmp_path / "two"), whole)


@pytest.mark.parametrize("rows", [1, 17, 60, 200])
def test_it_goes_on_from_any_row(
    tmp_path: Path,
    model: MemoryTransformer,
    words: Tokenizer,
    whole: Datastore,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
) -> None:
    """Also from one in the middle of a batch, as when a disk was full; and what is done is not done again."""

    class Full(Datastore):
        def add(self, keys: Tensor, values: Tensor, *, document: str | None = None) -> None:
            free = rows - self.next_id
            super().add(keys[:free], values[:free], document=document)
            if free < len(keys):
                raise OSError("the disk is full")

    monkeypatch.setattr(datastore_build, "Datastore", Full)
    with pytest.raises(OSError, match="the disk is full"):
        make(tmp_path / "store", model, words)()
    monkeypatch.undo()
    report = make(tmp_path / "store", model, words)()
    assert report.new_keys == len(whole) - rows
    same(open_store(tmp_path / "store"), whole)
    assert make(tmp_path / "store", model, words)().new_keys == 0  # done is done


@forks
@pytest.mark.parametrize("merge", [True, False])
def test_a_kill_between_the_merge_and_the_removal_of_the_shards(
    tmp_path: Path, model: MemoryTransformer, words: Tokenizer, whole: Datastore, merge: bool
) -> None:
    folder = tmp_path / "two"
    assert end_well(start_two(make(folder, model, words)))
    Datastore.merge([Datastore.load(shard) for shard in sorted(folder.glob("shard-*"))], path=folder)
    shutil.rmtree(folder / "shard-00000-of-00002")
    assert end_well(start_two(make(folder, model, words, merge=merge)))
    assert not list(folder.glob("shard-*"))
    same(open_store(folder), whole)


def test_an_approximate_index_is_trained_once_and_kept(
    tmp_path: Path, model: MemoryTransformer, words: Tokenizer, whole: Datastore
) -> None:
    pytest.importorskip("faiss", reason="approximate indexes need: pip install faiss-cpu")
    make(tmp_path / "store", model, words, index="IVF4,Flat", metric="cosine")()
    assert list((tmp_path / "store").glob("index-*.faiss"))
    store = open_store(tmp_path / "store")
    store.n_probe = 4
    queries = whole.keys[:5].float()
    assert store.search(queries, 1).distances.max() < 1e-3


def test_neighbours_in_words(tmp_path: Path, model: MemoryTransformer, words: Tokenizer, whole: Datastore) -> None:
    lm = TransformerReader(model)
    ids = words.encode(TEXTS["a"])
    [first, *_] = neighbors(tmp_path / "whole", TEXTS["a"][:30], lm, words, k=3, before=4)
    at = len(words.encode(TEXTS["a"][:30])) - 1
    if at < CUTTING["context"]:  # the text's own key is in the store
        assert first.id == at
    assert first.document in TEXTS
    n_before = sum(max(0, len(words.encode(text)) - 1) for name, text in TEXTS.items() if name < first.document)
    ids, place_in_text = words.encode(TEXTS[first.document]), first.id - n_before
    assert first.token == words.decode(ids[place_in_text + 1 : place_in_text + 2])
    assert first.before == words.decode(ids[max(0, place_in_text - 3) : place_in_text + 1])


def test_entries_are_those_that_a_knn_lm_memorizes(tmp_path: Path, model: MemoryTransformer, words: Tokenizer) -> None:
    ids, held_out = words.encode(TEXTS["d"])[None], words.encode(TEXTS["a"])[None]
    build(tmp_path / "store", {"d": TEXTS["d"]}, model, words, context=ids.shape[1], progress=False)
    built, memorized = KNNLM(model, open_store(tmp_path / "store"), k=9), KNNLM(model, Datastore(8), k=9)
    memorized.memorize(ids)
    assert len(built.datastore) == len(memorized.datastore)
    torch.testing.assert_close(built.score(held_out), memorized.score(held_out), rtol=0.02, atol=0.02)


def test_a_hugging_face_model(tmp_path: Path, words: Tokenizer, call: Call) -> None:
    transformers = pytest.importorskip("transformers", reason="Hugging Face models need: pip install transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=8, n_layer=2, n_head=2, n_positions=32, vocab_size=300, bos_token_id=None, eos_token_id=None
    )
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "model")
    words.save(tmp_path / "model" / "tokenizer.json")
    (tmp_path / "c.txt").write_text(TEXTS["c"])
    code, _, err = call(
        "build", tmp_path / "store", "--text", tmp_path / "c.txt", "--model", tmp_path / "model", "--context", 32
    )
    assert code == 0, err
    ids, store = words.encode(TEXTS["c"])[None], Datastore(8)
    assert ids.shape[1] < 32
    lm = knn_lm(model, store)
    lm.memorize(ids)
    found = open_store(tmp_path / "store")
    assert isinstance(found, Datastore)
    torch.testing.assert_close(found.keys.float(), store.keys, rtol=2e-3, atol=2e-3)
    assert torch.equal(found.values, store.values)
    assert knn_lm(model, found).perplexity(ids) > 1  # made by this model: not refused


def test_the_command_line_builds_shows_and_searches(
    tmp_path: Path, call: Call, model: MemoryTransformer, words: Tokenizer
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text, "utf-8")
    model.save(tmp_path / "model.safetensors")
    words.save(tmp_path / "words.json")
    own = ("--model", tmp_path / "model.safetensors", "--tokenizer", tmp_path / "words.json")
    command = ("build", tmp_path / "store", "--text", folder, *own, "--context", 12, "--stride", 5)
    code, out, err = call(*command, "--json")
    assert (code, err) == (0, "")
    told, n = json.loads(out), len(open_store(tmp_path / "store"))
    assert told["keys"] == told["new_keys"] == n
    assert told["bytes_per_key"] == 8 * 2 + 4
    code, out, _ = call(*command)
    assert code == 0 and f"{n:,}" in out and "20.0" in out and "for 0 new keys" in out and "0.2 GB" in out
    code, out, _ = call("show", tmp_path / "store", "--json")
    shown = json.loads(out)
    assert (shown["count"], shown["dim"], shown["shards"]) == (n, 8, 1)
    assert shown["texts"][f"{folder}/a.txt"] == len(words.encode(TEXTS["a"]))
    assert call("show", tmp_path / "store")[1].count(shown["made_by"]) == 2
    code, out, _ = call("search", tmp_path / "store", "the key of", "-k", 3, *own, "--json")
    assert code == 0 and len(json.loads(out)) == 3
    assert "a.txt" in call("search", tmp_path / "store", "the key of", *own)[1]


def test_torchrun_and_the_model_that_ships(tmp_path: Path, call: Call) -> None:
    (tmp_path / "a.txt").write_text(Path(os.__file__).read_text("utf-8")[:20_000], "utf-8")
    options = ["--text", str(tmp_path / "a.txt"), "--context", "64", "--per-batch", "8"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "memcourse",
    ]
    done = subprocess.run(
        [*torchrun, "datastore", "build", str(tmp_path / "two"), *options, "--json"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["shards"] == 2  # told once
    assert call("build", tmp_path / "one", *options)[0] == 0
    one = open_store(tmp_path / "one")
    assert isinstance(one, Datastore) and len(one) == json.loads(done.stdout)["keys"] > 5_000
    same(open_store(tmp_path / "two"), one)
