"""The tokenizer: the same text, the same numbers; no number lost."""

import sys
from pathlib import Path

import pytest
import torch

from memcourse import corpora


@pytest.fixture
def tokenizers() -> None:
    pytest.importorskip("tokenizers")


@pytest.mark.usefixtures("tokenizers")
def test_words() -> None:
    words = corpora.tokenizer("the cat saw the dog. The end... the dog", 5)
    assert [words.token(id) for id in range(words.vocab_size)][:3] == ["<unk>", "the", "dog"]
    assert words.vocab_size == 5
    ids = words.encode("the dog barked")
    assert ids.dtype == torch.int64 and ids.tolist() == [1, 2, 0]
    assert words.decode(ids) == words.decode([1, 2, 0]) == "the dog <unk>"
    assert words.encode("").shape == (0,)


@pytest.mark.usefixtures("tokenizers")
def test_words_are_split_from_punctuation_and_keep_their_case() -> None:
    words = corpora.tokenizer("Don't print(f_1)!! it", 100)
    assert words.vocab_size == 9
    assert words.decode(words.encode("Don't print(f_1)!! it")) == "Don ' t print ( f_1 )!! it"
    assert words.encode("don").tolist() == [0]


@pytest.mark.usefixtures("tokenizers")
def test_byte_pairs_lose_nothing() -> None:
    pairs = corpora.tokenizer("low lower lowest " * 50, 270, kind="bpe")
    assert 257 <= pairs.vocab_size <= 270
    for text in ("lowest\n\n\tlow  ", "naïve 漢字 <unk> \N{GRINNING FACE}", ""):
        assert pairs.decode(pairs.encode(text)) == text
    assert len(pairs.encode("lower")) < len("lower")


@pytest.mark.usefixtures("tokenizers")
def test_ids_above_int16_are_not_truncated() -> None:
    vocabulary = [f"w{n}" for n in range(40_000)]
    words = corpora.tokenizer(" ".join(vocabulary), 50_000)
    ids = words.encode(" ".join(vocabulary))
    assert words.vocab_size == 40_001 and ids.max() == 40_000 and ids.min() == 1
    assert words.decode(ids[-3:]) == "w39997 w39998 w39999"


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize(("kind", "size"), [("word", 3000), ("bpe", 600)])
def test_a_tokenizer_is_the_same_when_trained_again_and_when_loaded(kind: str, size: int, tmp_path: Path) -> None:
    text = corpora.python_docs().valid
    first, second = corpora.tokenizer(text, size, kind=kind), corpora.tokenizer(text, size, kind=kind)
    first.save(tmp_path / "first.json")
    second.save(tmp_path / "second.json")
    assert (tmp_path / "first.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.json", "second.json"]
    loaded = corpora.Tokenizer.load(tmp_path / "first.json")
    assert loaded.vocab_size == first.vocab_size == size
    assert torch.equal(loaded.encode(text), first.encode(text))


def test_a_missing_library_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match="tokenizers is not installed; run: pip install tokenizers"):
        corpora.tokenizer("some text", 10)
