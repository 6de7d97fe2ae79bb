"""The language model that ships with the package: it is whole, it is small, and it has learned its text."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from memcourse import Batch, bundled, corpora, evaluate
from memcourse.bundled import CHECKSUMS, FOLDER, WEIGHTS, WORDS, docs_model


def perplexity(text: str) -> float:
    model, tokenizer = docs_model()
    ids = tokenizer.encode(text)[: 16 * 256 + 1]
    tokens, targets = ids[:-1].view(16, 256), ids[1:].view(16, 256)
    return evaluate(model, [Batch(tokens, targets)])["perplexity"]


def of_counts(train: str, test: str) -> float:
    """Perplexity of the tokens' frequencies in `train`, one added to each: what a model without a context reaches."""
    _, tokenizer = docs_model()
    counts = 1 + np.bincount(tokenizer.encode(train).numpy(), minlength=tokenizer.vocab_size)
    log_p = np.log(counts / counts.sum())
    return float(np.exp(-log_p[tokenizer.encode(test).numpy()].mean()))


def test_model_and_tokenizer_belong_together_and_are_small() -> None:
    model, tokenizer = docs_model()
    assert model.config["vocab_size"] == tokenizer.vocab_size == 2048
    assert not model.training
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in model.parameters())
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 2_000_000


def test_any_text_comes_back_from_the_tokenizer() -> None:
    _, tokenizer = docs_model()
    text = 'def naïve(x):\n\treturn "기억 记忆" * x  # 🙂\n'
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_held_out_documentation_is_far_more_likely_than_by_counting_words() -> None:
    """The corpus differs by the version of Python, so no exact number: 48 where the model was made."""
    docs = corpora.python_docs()
    assert perplexity(docs.test) < 75 < of_counts(docs.train, docs.test) / 3
    assert perplexity(docs.train) < perplexity(docs.test)


def test_each_call_gives_a_model_of_its_own() -> None:
    one, other = docs_model()[0], docs_model()[0]
    with torch.no_grad():
        one.embedding.weight.zero_()
    assert other.embedding.weight.abs().sum() > 0


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FOLDER, tmp_path / "models")
    monkeypatch.setattr(bundled, "FOLDER", tmp_path / "models")
    return tmp_path / "models"


@pytest.mark.parametrize("name", [WEIGHTS, WORDS])
def test_an_altered_file_is_named(copy: Path, name: str) -> None:
    docs_model()  # the copy is whole
    data = bytearray((copy / name).read_bytes())
    data[-100] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ValueError, match=name):
        docs_model()


@pytest.mark.parametrize("name", [WEIGHTS, WORDS])
def test_a_file_cut_short_or_missing_is_named(copy: Path, name: str) -> None:
    whole = (copy / name).read_bytes()
    (copy / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=name):
        docs_model()
    (copy / name).unlink()
    with pytest.raises(ValueError, match=f"{name}.*no such file"):
        docs_model()


def test_without_the_list_of_checksums_nothing_is_trusted(copy: Path) -> None:
    (copy / CHECKSUMS).unlink()
    with pytest.raises(ValueError, match=WEIGHTS):
        docs_model()
