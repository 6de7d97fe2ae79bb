"""What a build is refused for: one sentence that names what is wrong, and what was there before stays."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from memcourse import CausalAttention, MemoryTransformer
from memcourse.course import cli
from memcourse.datastore import Datastore
from memcourse.datastore_build import build
from memcourse.datastore_build import plan as build_plan
from memcourse.datastore_build.built_store import neighbors, open_store
from memcourse.language_model import TransformerReader
from memcourse.store import files as store_files
from memcourse.tokenizer import Tokenizer, tokenizer

TEXT = "a key and a value and a query and a memory. " * 9
WORDS = tokenizer(TEXT, 260, kind="bpe")


def model(seed: int = 0, vocab_size: int = 260) -> MemoryTransformer:
    torch.manual_seed(seed)
    return MemoryTransformer(vocab_size, 8, 1, lambda: CausalAttention(8, 2)).eval()


def refused(*words: str) -> Any:
    return pytest.raises(ValueError, match="(?s)" + "".join(f"(?=.*{word})" for word in words))


def make(path: Path, texts: Any = None, *, lm: Any = None, words: Tokenizer = WORDS, **options: Any) -> Any:
    texts = {"a": TEXT, "b": TEXT} if texts is None else texts
    return build(path, texts, lm or model(), words, progress=False, **{"context": 16} | options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"context": 1}, ["context", "at least 2", "1"]),
        ({"stride": 0}, ["stride", "0"]),
        ({"stride": 17}, ["stride", "17", "context=16"]),
        ({"per_batch": 0}, ["per_batch", "0"]),
        ({"metric": "l1"}, ["metric", "l1"]),
        ({"index": "no such index"}, ["no such index"]),
        ({"texts": {}}, ["texts", "none"]),
        ({"texts": {"a": "", "b": ""}}, ["at least 2", "a context and the token after it", "got 0 in 2 texts"]),
        ({"texts": {"a": "a"}}, ["at least 2", "got 1 in 1 text"]),
        ({"texts": {"a": Path("no/such/file")}}, ["text a", "cannot be read"]),
        ({"lm": model(vocab_size=100)}, ["tokenizer.vocab_size", "100", str(WORDS.vocab_size)]),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_arguments(tmp_path: Path, options: dict[str, Any], words: list[str]) -> None:
    with refused(*words):
        make(tmp_path / "store", **options)
    assert not (tmp_path / "store" / "manifest.json").exists()
    make(tmp_path / "store")  # the folder is not spoilt


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\xff\xfe\x00")
    with refused("text a is not UTF-8"):
        make(tmp_path / "store", {"a": tmp_path / "a.bin"})


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lm": model(1)}, ["model: MemoryTransformer .* here, MemoryTransformer .* in the file"]),
        ({"words": tokenizer(TEXT, 257, kind="bpe")}, ["tokenizer: "]),
        ({"texts": {"a": TEXT, "b": TEXT + "!"}}, ["text b: changed since"]),
        ({"texts": {"a": TEXT}}, ["text b: in the file, not here"]),
        ({"texts": {"a": TEXT, "b": TEXT, "c": TEXT}}, ["text c: here, not in the file"]),
        ({"texts": {"b": TEXT, "a": TEXT}}, ["the order of the texts"]),
        ({"context": 8}, ["context: 8 here, 16 in the file"]),
        ({"stride": 3}, ["stride: 3 here, 8 in the file"]),
        ({"metric": "ip"}, ["metric: ip here, l2 in the file"]),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, dict) else "",
)
def test_going_on_with_another_build(tmp_path: Path, options: dict[str, Any], words: list[str], finished: bool) -> None:
    folder = tmp_path / "store"
    make(folder)
    before = open_store(folder).describe()
    if not finished:
        (folder / "manifest.json").rename(tmp_path / "manifest.json")
    with refused("the folder of this same build", *words):
        make(folder, **options)
    if not finished:
        (tmp_path / "manifest.json").rename(folder / "manifest.json")
    assert make(folder).new_keys == 0
    assert open_store(folder).describe() == before


def test_going_on_with_another_number_of_processes(tmp_path: Path) -> None:
    make(tmp_path / "store")
    plan = build_plan.load(tmp_path / "store")
    plan._replace(request=plan.request | {"processes": 2}).save(tmp_path / "store")
    with refused("processes: 1 here, 2 in the file"):
        make(tmp_path / "store")


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with refused("a new folder", "thesis.tex"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with refused("a folder, or nothing yet"):
        make(tmp_path / "thesis.tex")
    store = Datastore(8, path=tmp_path / "other")
    store.add(torch.zeros(1, 8), torch.zeros(1))
    with refused("a new folder", "keys-1.f16"):
        make(tmp_path / "other")


@pytest.mark.parametrize("name", ["build.json", "manifest.json", "keys-1.f16", "values-1.bin"])
@pytest.mark.parametrize("damage", ["cut short", "altered"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    make(tmp_path / "store")
    file = tmp_path / "store" / name
    data = bytearray(file.read_bytes())
    if damage == "altered":
        data[len(data) // 2] ^= 1
    file.write_bytes(data[: len(data) // 2] if damage == "cut short" else data)
    with refused(name):
        make(tmp_path / "store")


def test_tokens_that_were_altered_are_made_again(tmp_path: Path) -> None:
    """They follow from the text, which is there; a store of other tokens would not be."""
    make(tmp_path / "whole")
    make(tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    (tmp_path / "store" / "tokens.i32").write_bytes(b"1234" * 50)
    make(tmp_path / "store")
    ours, expected = open_store(tmp_path / "store"), open_store(tmp_path / "whole")
    assert torch.equal(ours.keys, expected.keys) and torch.equal(ours.values, expected.values)


def test_a_store_that_is_not_there_or_not_finished(tmp_path: Path) -> None:
    with refused("path must be a datastore", "nowhere"):
        open_store(tmp_path / "nowhere")
    make(tmp_path / "store")
    (tmp_path / "store" / "manifest.json").unlink()
    with refused("a finished build: the same command, given again, goes on", "1 of 1 parts"):
        open_store(tmp_path / "store")


def test_neighbours_of_nothing_and_of_another_model(tmp_path: Path) -> None:
    make(tmp_path / "store")
    with refused("text", "one token"):
        neighbors(tmp_path / "store", "", TransformerReader(model()), WORDS)
    with refused("k must be", "0"):
        neighbors(tmp_path / "store", "a", TransformerReader(model()), WORDS, k=0)
    with refused("model must be the one that made the keys"):
        neighbors(tmp_path / "store", "a", TransformerReader(model(1)), WORDS)
    Datastore(8, path=tmp_path / "other", made_by=TransformerReader(model()).fingerprint()).save(tmp_path / "other")
    store = Datastore(8, made_by=TransformerReader(model()).fingerprint())
    store.save(tmp_path / "another")
    with refused("a store that memcourse datastore build made"):
        neighbors(tmp_path / "another", "a", TransformerReader(model()), WORDS)


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_disk_that_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], room: int
) -> None:
    """One sentence with bytes needed and free; when there is room again, the same command goes on."""
    (tmp_path / "a.txt").write_text(TEXT * 20)
    arguments = ["datastore", "build", str(tmp_path / "store"), "--text", str(tmp_path / "a.txt"), "--context", "16"]

    def free(folder: Any) -> Usage:
        taken = sum(file.stat().st_size for file in (tmp_path / "store").rglob("*.f16"))
        return Usage(10**9, 10**9 - room, max(0, room - taken))

    monkeypatch.setattr(store_files.shutil, "disk_usage", free)
    assert code(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1
    assert "the disk is full" in shown.err and "bytes needed" in shown.err and "free" in shown.err
    monkeypatch.undo()
    assert code(arguments) == 0
    assert code([*arguments[:2], str(tmp_path / "whole"), *arguments[3:]]) == 0
    assert torch.equal(open_store(tmp_path / "store").keys, open_store(tmp_path / "whole").keys)


def code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0)


def test_the_same_command_started_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    arguments = ["datastore", "build", str(tmp_path / "store"), "--text", str(tmp_path / "a.txt")]
    assert code(arguments) == 0
    (tmp_path / "store" / "manifest.json").unlink()
    capsys.readouterr()
    with Datastore(96, path=tmp_path / "store").building("what the first is at"):
        assert code(arguments) == 2
    assert "another writer is at work" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "S", "--text", "no-such-text"], ["--text", "no-such-text", "python_docs"]),
        (["build", "S", "--text", "empty"], ["--text", "empty", ".txt"]),
        (["build", "S", "--text", "digits"], ["--text", "digits"]),
        (["build", "S", "--text", "a.txt", "--text", "a.txt"], ["a.txt twice"]),
        (["build", "S", "--text", "a.txt", "--model", "model"], ["--tokenizer", "model"]),
        (["build", "S", "--text", "a.txt", "--model", "a.txt", "--tokenizer", "words.json"], ["a.txt"]),
        (["build", "S", "--text", "a.txt", "--model", "empty"], ["save_pretrained", "empty"]),
        (["build", "S", "--text", "a.txt", "--tokenizer", "a.txt"], ["a.txt", "tokenizer"]),
        (["build", "S", "--text", "a.txt", "--tokenizer", "nowhere"], ["nowhere"]),
        (["build", "S", "--text", "short.txt"], ["at least 2"]),
        (["build", "S", "--text", "a.txt", "--context", "1"], ["context"]),
        (["show", "nowhere"], ["nowhere"]),
        (["search", "nowhere", "text"], ["nowhere"]),
    ],
    ids=lambda value: " ".join(value)[:50] if value and isinstance(value, list) else "",
)
def test_the_command_line_says_it_in_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "short.txt").write_text("")
    WORDS.save(tmp_path / "words.json")
    model().save(tmp_path / "model")
    assert code(["datastore", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and "Traceback" not in shown.err
    assert all(word in shown.err for word in words), shown.err


def test_a_build_leaves_no_parts_behind(tmp_path: Path) -> None:
    make(tmp_path / "store")
    assert not list((tmp_path / "store").glob("*.part"))
    shutil.rmtree(tmp_path / "store")
