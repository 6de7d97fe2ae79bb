"""Real text and images: what every Python already brings, and data by name.

Bundled (no download): `python_docs`, `python_source`, `digits`, `glyphs`.
By name (`load`): tinyshakespeare, wikitext2, frankenstein, pride_and_prejudice, babi, tatoeba,
python_docs_en_fr, omniglot, fashion_mnist, swadesh.  `catalog` lists them, `download` fetches one.

The bundled corpora differ between versions of Python and matplotlib: print `text.sha256`.
"""

from __future__ import annotations

import ast
import re
import string
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from memcourse.downloads import DataError, Entry, catalog, data_folder, download
from memcourse.named_corpora import BabiTask, Images, Pairs, Question, Text, load, part_of
from memcourse.optional import needs
from memcourse.tokenizer import Tokenizer, tokenizer

__all__ = [
    "BabiTask", "DataError", "Entry", "Images", "Pairs", "Question", "Split", "Text", "Tokenizer", "catalog",
    "data_folder", "digits", "download", "glyphs", "load", "python_docs", "python_source", "tokenizer",
]  # fmt: skip

BLANK_LINES = re.compile(r"\n\s*\n")
# Generated tables, programs of their own, and packages that only some versions or systems have.
LEFT_OUT = {
    "distutils", "encodings", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "tkinter", "turtledemo"
}  # fmt: skip
TEXT_FONT = re.compile(r"(DejaVu(Sans|SansMono|Serif)|STIXGeneral|cm(b|r|ss|ti|tt)10)(-?(Bold?|Ita(lic)?|Oblique)+)?")


class Split(NamedTuple):
    train: Images
    test: Images


@cache
def python_docs() -> Text:
    """The Python documentation (`pydoc_data.topics`) and the standard library's docstrings: 1.7 MB.

    The parts share no paragraph.  Raises DataError where Python was installed without its source.
    """
    return split_documents("python_docs", [*topics(), *docstrings()])


@cache
def python_source() -> Text:
    """The source of the standard library's public one-file modules: 4 MB of code, docstrings included.

    The parts share no paragraph, and a module falls into the same part as in `python_docs`.  Raises DataError
    where Python was installed without its source.
    """
    modules = ((name, path) for name, path in standard_library() if name == path.stem and name[0] != "_")
    return split_documents("python_source", ((name, path.read_text("utf-8")) for name, path in modules))


def split_documents(name: str, documents: Iterable[tuple[str, str]]) -> Text:
    """Drop repeated paragraphs, then give each document whole to one part by the hash of its name (80/10/10).

    Paragraphs are compared with whitespace squeezed.  Left in, they would leak from test into train.
    """
    seen: set[str] = set()
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for document, text in documents:
        part = part_of(document)
        for paragraph in BLANK_LINES.split(text):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                parts[part].append(paragraph.strip("\n").rstrip())
    return Text(name, *("\n\n".join(paragraphs) for paragraphs in parts.values()))


def standard_library() -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every module of the standard library, tests left out; nothing is imported."""
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "pydoc_data" / "topics.py").is_file():
        raise DataError(f"the standard library's source is not in {root}: install a Python that brings it")
    for top in sorted(sys.stdlib_module_names - LEFT_OUT):
        package = sorted((root / top).rglob("*.py"), key=Path.as_posix)
        for path in package or [path for path in [root / f"{top}.py"] if path.is_file()]:
            parts = path.relative_to(root).with_suffix("").parts
            if not {"test", "tests", "__pycache__"} & set(parts):
                yield ".".join(parts), path


def topics() -> Iterator[tuple[str, str]]:
    """(name, text) of the documentation's chapters on the language, as `help("assert")` shows them."""
    tree = ast.parse((Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py").read_bytes())
    table = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    return ((f"topic {name}", table[name]) for name in sorted(table))


def docstrings() -> Iterator[tuple[str, str]]:
    """(module name, its docstrings in order), read from the syntax tree."""
    for name, path in standard_library():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(path.read_bytes())
        yield name, "\n\n".join(ast.get_docstring(node) or "" for node in definitions(tree))


Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(node: Definition) -> Iterator[Definition]:
    """The module, class or function itself, then those defined directly inside it."""
    yield node
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from definitions(child)


@cache
def digits() -> Split:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, ink from 0 to 16; a fifth of each is for testing."""
    bunch = needs("sklearn.datasets", "scikit-learn").load_digits()
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    images = torch.tensor(bunch.images, dtype=torch.uint8)
    rank = torch.stack([(labels == label).cumsum(0) for label in range(10)])[labels, torch.arange(len(labels))]
    names = tuple(string.digits)
    train, test = (
        Images(images[rows], labels[rows], torch.zeros_like(labels[rows]), names, ("digits",))
        for rows in (rank % 5 != 0, rank % 5 == 0)
    )
    return Split(train, test)


@cache
def glyphs() -> Images:
    """Letters and digits, 28 x 28, in each text font that ships with matplotlib; the domain is the font."""
    draw, fonts = needs("PIL.ImageDraw", "matplotlib"), needs("PIL.ImageFont", "matplotlib")
    image = needs("PIL.Image", "matplotlib")
    folder = Path(needs("matplotlib", "matplotlib").get_data_path()) / "fonts" / "ttf"
    paths = [path for path in sorted(folder.glob("*.ttf")) if TEXT_FONT.fullmatch(path.stem)]
    characters = tuple(string.ascii_letters + string.digits)
    canvases = []
    for path in paths:
        font = fonts.truetype(path, size=18)
        for character in characters:
            canvas = image.new("L", (28, 28))
            draw.Draw(canvas).text((14, 21), character, fill=255, font=font, anchor="ms")  # middle, on the baseline
            canvases.append(np.array(canvas))
    labels = torch.arange(len(characters)).repeat(len(paths))
    domains = torch.arange(len(paths)).repeat_interleave(len(characters))
    return Images(torch.from_numpy(np.stack(canvases)), labels, domains, characters, tuple(path.stem for path in paths))
