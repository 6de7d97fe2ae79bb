"""Wrong arguments to memcourse.corpora: a ValueError names the argument, the value and what is allowed."""

from pathlib import Path

import pytest
import torch

from memcourse import corpora


@pytest.mark.parametrize("function", [corpora.load, corpora.download])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinyshakespear", "name is 'tinyshakespear', and there is no such data; allowed: tinyshakespeare"),
        ("imagenet", "name is 'imagenet', .* allowed: tinyshakespeare, .*swadesh"),
        ("../babi", "name is '../babi'"),
    ],
)
def test_a_name_that_does_not_exist(function: object, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(name)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "char"}, 'kind is \'char\'; allowed are "word" and "bpe"'),
        ({"vocab_size": 1}, "vocab_size is 1; kind='word' needs 2 or more"),
        ({"vocab_size": 256, "kind": "bpe"}, "vocab_size is 256; kind='bpe' needs 257 or more"),
        ({"text": " \n"}, "text is empty"),
    ],
)
def test_a_tokenizer_that_cannot_be_trained(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corpora.tokenizer(**{"text": "some text", "vocab_size": 1000, **arguments})


@pytest.mark.parametrize("id", [-1, 3, 2**40])
def test_an_id_outside_the_vocabulary(id: int) -> None:
    pytest.importorskip("tokenizers")
    words = corpora.tokenizer("some text", 10)
    message = f"ids holds {id}, and the vocabulary goes from 0 to 2"
    with pytest.raises(ValueError, match=message):
        words.decode(torch.tensor([0, id]))
    with pytest.raises(ValueError, match=message):
        words.token(id)


@pytest.mark.parametrize("content", [b"", b"{}", b"not a tokenizer", b"\xff\xfe"])
def test_a_file_that_holds_no_tokenizer(content: bytes, tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="path is .*tokenizer.json.* does not hold a tokenizer"):
        corpora.Tokenizer.load(path)
