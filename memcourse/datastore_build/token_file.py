"""The tokens of many documents one behind the other in a file, so that none of them need be in memory whole."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from memcourse.store.files import room_for

CHARACTERS = 1 << 20  # tokenised at a time
Texts = Mapping[str, "str | Path"]  # name of a document -> its text, or the file that holds it


class Document(NamedTuple):
    name: str
    sha256: str  # of the text
    n_tokens: int


def pieces(name: str, text: str | Path) -> Iterator[str]:
    """The text in pieces of about CHARACTERS, cut before a line that starts with a word: there no token is cut.

    (True of byte pairs as GPT-2 has them, and of words.)  Raises ValueError, with the document's name, where a file
    is not UTF-8 or cannot be read.
    """
    held: list[str] = []
    size = 0
    try:
        with io.StringIO(text) if isinstance(text, str) else open(text, encoding="utf-8", newline="") as file:
            for line in file:
                if size >= CHARACTERS and not line[0].isspace():
                    yield "".join(held)
                    held, size = [], 0
                held.append(line)
                size += len(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"text {name} is not UTF-8: {error}") from None
    except OSError as error:
        raise ValueError(f"text {name} cannot be read: {error.strerror}") from None
    yield "".join(held)


def checksum(name: str, text: str | Path) -> str:
    digest = hashlib.sha256()
    for piece in pieces(name, text):
        digest.update(piece.encode())
    return digest.hexdigest()


def write(path: Path, texts: Texts, tokenizer: Any) -> list[Document]:
    """Tokenise every text into `path`, int32, which is whole or is not there.

    Raises OSError with the bytes needed and free where the disk is full.
    """
    documents = []
    partial = path.with_name(f"{path.name}.part")
    try:
        with open(partial, "wb") as file:
            for name, text in texts.items():
                digest, n_tokens = hashlib.sha256(), 0
                for piece in pieces(name, text):
                    digest.update(piece.encode())
                    tokens = tokenizer.encode(piece).to(torch.int32).numpy()
                    n_tokens += len(tokens)
                    with room_for(tokens.nbytes, path.parent):
                        file.write(tokens.astype("<i4").tobytes())
                        file.flush()
                documents.append(Document(name, digest.hexdigest(), n_tokens))
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return documents


class TokenFile:
    """What `write` wrote: slices of it are tensors."""

    def __init__(self, path: Path) -> None:
        self._tokens = np.memmap(path, dtype="<i4", mode="r") if path.stat().st_size else np.zeros(0, "<i4")

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, part: slice) -> Int32[Tensor, "n"]:
        return torch.from_numpy(np.array(self._tokens[part], dtype=np.int32))
