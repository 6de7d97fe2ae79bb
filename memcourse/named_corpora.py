"""Corpora that are loaded by name: bytes, once verified, become texts, pairs, images or questions."""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
import zipfile
from collections.abc import Callable
from gzip import decompress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from memcourse.downloads import find, read
from memcourse.optional import needs

LANGUAGES = ("deu", "eng", "fra", "ita", "por", "spa")
GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip


class Text(NamedTuple):
    """A text in three parts."""

    name: str
    train: str
    valid: str
    test: str

    @property
    def sha256(self) -> str:
        """Checksum of the three parts: tells one Python version's corpus from another's."""
        return hashlib.sha256("\0".join((self.train, self.valid, self.test)).encode()).hexdigest()

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(getattr(self, part)):,}" for part in ("train", "valid", "test"))
        return f"Text({self.name}: {sizes} characters, sha256 {self.sha256[:12]})"


class Pairs(NamedTuple):
    """Sentences with their translations, (English, French), in three parts that share no English sentence."""

    name: str
    train: list[tuple[str, str]]
    valid: list[tuple[str, str]]
    test: list[tuple[str, str]]

    def __repr__(self) -> str:
        sizes = ", ".join(f"{part} {len(getattr(self, part)):,}" for part in ("train", "valid", "test"))
        return f"Pairs({self.name}: {sizes} pairs)"


class Images(NamedTuple):
    """Images with a label and a domain each: a glyph's font, a character's alphabet.  Ink is bright."""

    images: UInt8[Tensor, "n height width"]
    labels: Int64[Tensor, "n"]  # row of label_names
    domains: Int64[Tensor, "n"]  # row of domain_names
    label_names: tuple[str, ...]
    domain_names: tuple[str, ...]

    def __repr__(self) -> str:
        shape, n_labels, n_domains = tuple(self.images.shape), len(self.label_names), len(self.domain_names)
        return f"Images({shape}, {n_labels} labels, {n_domains} domain{'s' * (n_domains > 1)})"


class Question(NamedTuple):
    """One question of bAbI; `facts` are the rows of `story` that the answer follows from."""

    story: tuple[str, ...]
    question: str
    answer: str
    facts: tuple[int, ...]


class BabiTask(NamedTuple):
    number: int
    name: str
    train: list[Question]
    test: list[Question]

    def __repr__(self) -> str:
        sizes = f"train {len(self.train):,}, test {len(self.test):,} questions"
        return f"BabiTask({self.number} {self.name}: {sizes})"


def load(name: str) -> Any:
    """Real data by name, read from `data_folder()` once its checksum has been verified.

    tinyshakespeare, frankenstein, pride_and_prejudice -> Text, split 90/5/5 by position
    wikitext2 -> Text; train is empty: only the validation and test parts are here, so that numbers on it
                 cannot be compared with published ones
    babi -> {task number: BabiTask}                   tatoeba, python_docs_en_fr -> Pairs, shuffled
    omniglot, fashion_mnist -> Images                 swadesh -> {language: 207 tuples of synonyms}

    Raises DataError where a file is missing, truncated or altered; ValueError where there is no such name.
    """
    find(name)
    parsers: dict[str, Callable[..., Any]] = {
        "wikitext2": wikitext2,
        "babi": babi,
        "tatoeba": tatoeba,
        "python_docs_en_fr": python_docs_en_fr,
        "omniglot": omniglot,
        "fashion_mnist": fashion_mnist,
        "swadesh": swadesh,
    }
    return parsers.get(name, book)(name, *read(name))


def book(name: str, *parts: bytes) -> Text:
    [text] = (text_of(part) for part in parts)
    train, test = int(0.9 * len(text)), int(0.95 * len(text))
    return Text(name, text[:train], text[train:test], text[test:])


def wikitext2(name: str, valid: bytes, test: bytes) -> Text:
    return Text(name, "", text_of(valid), text_of(test))


def babi(name: str, archive: bytes) -> dict[int, BabiTask]:
    files = {}
    for path, content in members(archive).items():
        task, title, part = Path(path).stem.split("_")  # qa1_single-supporting-fact_train
        files[int(task.removeprefix("qa")), part] = title, babi_questions(content.decode())
    numbers = sorted({number for number, _ in files})
    return {n: BabiTask(n, files[n, "train"][0], files[n, "train"][1], files[n, "test"][1]) for n in numbers}


def babi_questions(text: str) -> list[Question]:
    """Lines are "id sentence" or "id question<tab>answer<tab>ids of its facts"; at id 1 a story begins."""
    questions: list[Question] = []
    for line in text.splitlines():
        number, rest = line.split(" ", 1)
        if number == "1":
            story: list[str] = []
            rows: dict[str, int] = {}  # ids also count the questions in between
        if "\t" in rest:
            question, answer, facts = rest.split("\t")
            asked = Question(tuple(story), question.strip(), answer, tuple(rows[fact] for fact in facts.split()))
            questions.append(asked)
        else:
            rows[number] = len(story)
            story.append(rest.strip())
    return questions


def tatoeba(name: str, archive: bytes) -> Pairs:
    return pairs(name, [line.split("\t")[:2] for line in members(archive)["fra.txt"].decode().strip().split("\n")])


def python_docs_en_fr(name: str, packed: bytes) -> Pairs:
    return pairs(name, [line.split("\t")[1:3] for line in text_of(packed).strip().split("\n")])


def pairs(name: str, rows: list[list[str]]) -> Pairs:
    """Shuffled with a fixed seed (one corpus is sorted by length), split by the English sentence."""
    random.Random(0).shuffle(rows)
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "valid": [], "test": []}
    for english, french in rows:
        parts[part_of(english)].append((english, french))
    return Pairs(name, **parts)


def part_of(key: str) -> str:
    """train, valid or test (80/10/10) by the hash of `key`: the same whatever else is in the corpus."""
    tenth = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % 10
    return {0: "test", 1: "valid"}.get(tenth, "train")


def omniglot(name: str, *archives: bytes) -> Images:
    """4,840 drawings of 242 characters, 105 x 105; two alphabets are in both archives, and count once."""
    drawings: dict[tuple[str, str, str], bytes] = {}  # (alphabet, character, file) -> PNG
    for archive in archives:
        for path, content in members(archive).items():
            if path.endswith(".png"):
                alphabet, character, file = path.split("/")[-3:]
                drawings[alphabet, character, file] = content
    order = sorted(drawings)
    characters = sorted({f"{alphabet}/{character}" for alphabet, character, _ in order})
    alphabets = sorted({alphabet for alphabet, _, _ in order})
    return Images(
        torch.from_numpy(np.stack([255 - gray(drawings[key]) for key in order])),  # (4840, 105, 105)
        torch.tensor([characters.index(f"{alphabet}/{character}") for alphabet, character, _ in order]),
        torch.tensor([alphabets.index(alphabet) for alphabet, _, _ in order]),
        tuple(characters),
        tuple(alphabets),
    )


def fashion_mnist(name: str, sprite: bytes) -> Images:
    """900 garments, 28 x 28, cut from a sheet of 30 x 30 on which three rows hold one class."""
    sheet = torch.from_numpy(gray(sprite))  # (840, 840)
    images = sheet.reshape(30, 28, 30, 28).transpose(1, 2).reshape(900, 28, 28)
    labels = torch.arange(900) // 90
    return Images(images, labels, torch.zeros_like(labels), GARMENTS, ("fashion",))


def swadesh(name: str, archive: bytes) -> dict[str, list[tuple[str, ...]]]:
    """Row n of every list is concept n."""
    files = members(archive)
    lists = {language: files[f"panlex_swadesh/swadesh207/{language}-000.txt"].decode() for language in LANGUAGES}
    return {language: [tuple(line.split("\t")) for line in text.splitlines()] for language, text in lists.items()}


def text_of(content: bytes) -> str:
    return (decompress(content) if content.startswith(b"\x1f\x8b") else content).decode()


def members(archive: bytes) -> dict[str, bytes]:
    """The files in a zip or a tar, by path."""
    if archive.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
            return {path: zipped.read(path) for path in zipped.namelist() if not path.endswith("/")}
    with tarfile.open(fileobj=io.BytesIO(archive)) as tarred:
        files = {member.name: tarred.extractfile(member) for member in tarred if member.isfile()}
        return {path: file.read() for path, file in files.items() if file}


def gray(png: bytes) -> np.ndarray:
    return np.array(needs("PIL.Image", "matplotlib").open(io.BytesIO(png)).convert("L"))
