"""Corpora: what is in them, and what is not in two parts of them."""

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from memcourse import corpora, downloads, named_corpora

real_data = pytest.mark.skipif(
    "MEMCOURSE_DATA" not in os.environ,
    reason="MEMCOURSE_DATA is not set; it names the folder of the real data",
)


def paragraphs(text: str) -> set[str]:
    return {" ".join(paragraph.split()) for paragraph in text.split("\n\n")}


def python(program: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    ).stdout


# Bundled text


@pytest.mark.parametrize(
    ("corpus", "least", "most"),
    [(corpora.python_docs, 1_200_000, 3_000_000), (corpora.python_source, 2_000_000, 6_000_000)],
)
def test_parts_of_a_bundled_text_share_no_paragraph(corpus: Callable, least: int, most: int) -> None:
    text = corpus()
    size = len(text.train) + len(text.valid) + len(text.test)
    assert least < size < most
    train, valid, test = paragraphs(text.train), paragraphs(text.valid), paragraphs(text.test)
    assert not train & test and not train & valid and not valid & test
    assert len(test) > 200 and len(valid) > 200
    assert "" not in train
    for part in (text.valid, text.test):
        assert 0.03 * size < len(part) < 0.2 * size
    assert len(repr(text)) < 120
    assert corpus() is text


def test_a_paragraph_that_repeats_across_documents_is_kept_once() -> None:
    names = [f"document {n}" for n in range(40)]
    assert {corpora.part_of(name) for name in names} == {"train", "valid", "test"}
    documents = [(name, f"Only in {name}.\n \nShared   by\nall.\n\n\n") for name in names]
    text = corpora.split_documents("planted", documents)
    whole = "\n\n".join(text[1:])
    assert whole.count("by\nall.") == 1
    assert all(whole.count(f"Only in {name}.") == 1 for name in names)
    assert all(f"Only in {name}." in getattr(text, corpora.part_of(name)) for name in names)


def test_a_document_stays_in_its_part_when_others_are_added() -> None:
    few = corpora.split_documents("few", [(f"document {n}", f"Text of {n}.") for n in range(20)])
    many = corpora.split_documents("many", [(f"document {n}", f"Text of {n}.") for n in range(60)])
    for small, large in zip(few[1:], many[1:], strict=True):
        assert paragraphs(small) - {""} <= paragraphs(large)


def test_source_keeps_its_indentation() -> None:
    text = corpora.split_documents("code", [("document 0", "def f():\n    a = 1\n\n    return a\n")])
    assert "\n\n".join(part for part in text[1:] if part) == "def f():\n    a = 1\n\n    return a"


def test_python_docs_is_the_same_in_another_process_and_imports_nothing() -> None:
    program = """if True:
        import sys, sysconfig
        from memcourse import corpora
        sysconfig.get_path("stdlib")
        before = set(sys.modules)
        print(corpora.python_docs().sha256)
        print(set(sys.modules) - before, {"tokenizers", "sklearn", "matplotlib", "PIL"} & set(sys.modules))
    """
    assert python(program) == f"{corpora.python_docs().sha256}\nset() set()\n"


def test_sha256_tells_texts_apart() -> None:
    text = corpora.Text("a", "train", "valid", "test")
    assert text.sha256 == corpora.Text("b", "train", "valid", "test").sha256
    assert text.sha256 != corpora.Text("a", "trai", "nvalid", "test").sha256


def test_python_without_its_source_gets_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(corpora.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(corpora.DataError, match="source is not in"):
        list(corpora.standard_library())


# Bundled images


def test_digits() -> None:
    pytest.importorskip("sklearn")
    train, test = corpora.digits()
    assert len(train.images) + len(test.images) == 1797
    assert train.images.shape[1:] == test.images.shape[1:] == (8, 8)
    assert train.images.dtype == torch.uint8 and train.images.max() == 16
    for label in range(10):
        n_train, n_test = (train.labels == label).sum(), (test.labels == label).sum()
        assert n_test == (n_train + n_test) // 5
    assert not rows(train.images) & rows(test.images)


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_glyphs() -> None:
    pytest.importorskip("matplotlib")
    glyphs = corpora.glyphs()
    n_fonts = len(glyphs.domain_names)
    assert n_fonts >= 15 and {"DejaVuSans", "STIXGeneral", "cmr10"} <= set(glyphs.domain_names)
    assert glyphs.images.shape == (62 * n_fonts, 28, 28) and glyphs.images.dtype == torch.uint8
    assert len(glyphs.label_names) == 62
    for names, numbers in ((glyphs.label_names, glyphs.labels), (glyphs.domain_names, glyphs.domains)):
        assert torch.bincount(numbers).tolist() == [len(numbers) // len(names)] * len(names)
    border = torch.cat([glyphs.images[:, [0, -1]].flatten(1), glyphs.images[:, :, [0, -1]].flatten(1)], dim=1)
    assert border.max() == 0, "a glyph is cut at the border"
    assert len(rows(glyphs.images)) == len(glyphs.images), "two characters of one font look the same"


# Real data


@real_data
def test_everything_is_here() -> None:
    assert {entry.state for entry in corpora.catalog()} == {"ready"}


@real_data
@pytest.mark.parametrize(
    ("name", "size", "start"),
    [
        ("tinyshakespeare", 1_115_394, "First Citizen:\nBefore we proceed any further, hear me speak."),
        ("frankenstein", 436_319, "Introduction\n\nThe Publishers of the Standard Novels"),
        ("pride_and_prejudice", 683_594, "I\n\nIt is a truth universally acknowledged"),
    ],
)
def test_books(name: str, size: int, start: str) -> None:
    text = corpora.load(name)
    whole = text.train + text.valid + text.test
    assert len(whole) == size and whole.startswith(start)
    assert [round(len(part) / size, 3) for part in text[1:]] == [0.9, 0.05, 0.05]


@real_data
def test_wikitext2() -> None:
    text = corpora.load("wikitext2")
    assert text.train == "" and "Homarus gammarus" in text.valid[:50] and "Robert <unk>" in text.test[:50]
    assert (len(text.valid.encode()), len(text.test.encode())) == (1_121_681, 1_256_449)


@real_data
def test_babi() -> None:
    tasks = corpora.load("babi")
    assert list(tasks) == list(range(1, 21))
    for task in tasks.values():
        assert len(task.train) == len(task.test) == 1000
        for question in (*task.train, *task.test):
            assert question.question.endswith("?") and question.answer and question.facts
            assert all(0 <= fact < len(question.story) for fact in question.facts)
            assert all(sentence.endswith(".") for sentence in question.story)
    first = tasks[1].train[0]
    assert tasks[1].name == "single-supporting-fact"
    assert first == (
        ("Mary moved to the bathroom.", "John went to the hallway."),
        "Where is Mary?",
        "bathroom",
        (0,),
    )
    for question in tasks[1].test:  # one supporting fact holds both who is asked about and the answer
        [fact] = question.facts
        assert question.answer in question.story[fact] and question.question.split()[2][:-1] in question.story[fact]


@real_data
@pytest.mark.parametrize(
    ("name", "size", "n_english", "n_french"),
    [("tatoeba", 142_787, 98_659, 136_067), ("python_docs_en_fr", 25_272, 25_084, 25_146)],
)
def test_pairs(name: str, size: int, n_english: int, n_french: int) -> None:
    pairs = corpora.load(name)
    assert len(pairs.train) + len(pairs.valid) + len(pairs.test) == size
    train, valid, test = ({english for english, _ in part} for part in pairs[1:])
    assert len(train | valid | test) == n_english
    assert len({french for part in pairs[1:] for _, french in part}) == n_french
    assert not train & test and not train & valid and not valid & test
    assert all(english and french for part in pairs[1:] for english, french in part)
    assert 0.09 < len(pairs.test) / size < 0.11 and 0.09 < len(pairs.valid) / size < 0.11
    halves = pairs.train[: len(pairs.train) // 2], pairs.train[len(pairs.train) // 2 :]
    first, second = (sum(len(english) for english, _ in half) / len(half) for half in halves)
    assert abs(first - second) < 0.05 * first, "the file is sorted by length, the corpus is not"
    assert len(repr(pairs)) < 100


@real_data
def test_pairs_are_shuffled_the_same_way_every_time() -> None:
    assert corpora.load("python_docs_en_fr") == corpora.load("python_docs_en_fr")


@real_data
def test_omniglot() -> None:
    pytest.importorskip("PIL")
    omniglot = corpora.load("omniglot")
    assert omniglot.images.shape == (4840, 105, 105) and len(rows(omniglot.images)) == 4840
    assert torch.bincount(omniglot.labels).tolist() == [20] * 242
    assert len(omniglot.label_names) == 242 and len(omniglot.domain_names) == 8
    assert "Greek" in omniglot.domain_names and "Greek/character01" in omniglot.label_names
    assert omniglot.images.unique().tolist() == [0, 255]
    assert omniglot.images.float().mean() < 64, "ink is bright, and there is little of it"
    alphabets = [omniglot.label_names[label].split("/")[0] for label in omniglot.labels]
    assert alphabets == [omniglot.domain_names[domain] for domain in omniglot.domains]


@real_data
def test_fashion_mnist() -> None:
    pytest.importorskip("PIL")
    fashion = corpora.load("fashion_mnist")
    assert fashion.images.shape == (900, 28, 28) and len(rows(fashion.images)) == 900
    assert torch.bincount(fashion.labels).tolist() == [90] * 10
    ink = fashion.images.float().flatten(1).mean(1)
    by_class = {name: ink[fashion.labels == row].mean().item() for row, name in enumerate(fashion.label_names)}
    assert by_class["Sandal"] == min(by_class.values()) and by_class["Pullover"] > 2 * by_class["Sandal"]
    middle = fashion.images[fashion.labels == 1][:, 20:, 13:15].float().mean()
    assert middle < fashion.images[fashion.labels == 3][:, 20:, 13:15].float().mean(), "trousers have a gap"


@real_data
def test_swadesh() -> None:
    lists = corpora.load("swadesh")
    assert sorted(lists) == ["deu", "eng", "fra", "ita", "por", "spa"]
    assert {len(concepts) for concepts in lists.values()} == {207}
    assert all(words and all(words) for concepts in lists.values() for words in concepts)
    row = next(row for row, words in enumerate(lists["eng"]) if "water" in words)
    assert [lists[language][row][0] for language in ("fra", "deu", "spa")] == ["eau", "Wasser", "agua"]


@real_data
def test_swadesh_from_the_zip_that_the_public_address_offers() -> None:
    [tar] = downloads.read("swadesh")
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        for path, content in named_corpora.members(tar).items():
            archive.writestr(path, content)
    assert named_corpora.swadesh("swadesh", zipped.getvalue()) == corpora.load("swadesh")
