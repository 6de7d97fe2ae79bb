"""Text to integers and back, by the `tokenizers` library."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Int64
from torch import Tensor

from memcourse.optional import needs

UNKNOWN = "<unk>"


class Tokenizer:
    """Words or byte pairs, numbered.  Made by `tokenizer`; kept as the `tokenizers` library's own JSON."""

    def __init__(self, json: str) -> None:
        self._library = needs("tokenizers", "tokenizers").Tokenizer.from_str(json)

    @property
    def vocab_size(self) -> int:
        return self._library.get_vocab_size()

    def encode(self, text: str) -> Int64[Tensor, "time"]:
        """The text's tokens; a word that is not in the vocabulary becomes `<unk>`."""
        [encoding] = self._library.encode_batch_fast([text], add_special_tokens=False)
        return torch.tensor(encoding.ids, dtype=torch.int64)

    def decode(self, ids: Sequence[int] | Int64[Tensor, "time"]) -> str:
        """The tokens' text: exact for byte pairs; words come back with one blank between them.

        Raises ValueError on an id outside the vocabulary.
        """
        numbers = [int(i) for i in ids]
        for i in numbers:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"ids holds {i}, and the vocabulary goes from 0 to {self.vocab_size - 1}")
        return self._library.decode(numbers, skip_special_tokens=False)

    def token(self, id: int) -> str:
        """What one id stands for, to label a figure with."""
        return self.decode([id])

    def save(self, path: str | Path) -> None:
        """Write the library's JSON beside `path`, then rename: `path` is whole or untouched."""
        beside = Path(f"{path}.part")
        beside.write_text(self._library.to_str(pretty=True), "utf-8")
        os.replace(beside, path)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read what `save` wrote.  Raises ValueError where `path` holds something else."""
        data = Path(path).read_bytes()
        needs("tokenizers", "tokenizers")
        try:
            return cls(data.decode())
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"path is {str(path)!r}, which does not hold a tokenizer: {error}") from None

    def __repr__(self) -> str:
        return f"Tokenizer({type(self._library.model).__name__}, vocab_size={self.vocab_size})"


def tokenizer(text: str, vocab_size: int, *, kind: str = "word") -> Tokenizer:
    r"""A tokenizer trained on `text`: the same text gives the same numbers.

    kind="word": `<unk>`, then the most frequent words (`\w+|[^\w\s]+`, case kept); blanks are lost.
    kind="bpe": the 256 bytes, then merges of the most frequent pairs (Sennrich et al., 2016, "Neural Machine
    Translation of Rare Words with Subword Units"); nothing is unknown, and decode(encode(text)) == text.

    The vocabulary is smaller than `vocab_size` where the text does not hold as many.
    Raises ValueError on an empty text, another kind, or a vocabulary below 2 (words) or 257 (byte pairs).
    """
    smallest = {"word": 2, "bpe": 257}
    if kind not in smallest:
        raise ValueError(f'kind is {kind!r}; allowed are "word" and "bpe"')
    if vocab_size < smallest[kind]:
        raise ValueError(f"vocab_size is {vocab_size}; kind={kind!r} needs {smallest[kind]} or more")
    if not text.strip():
        raise ValueError("text is empty: there is nothing to count words in")
    empty, trainer = (words if kind == "word" else byte_pairs)(needs("tokenizers", "tokenizers"), vocab_size)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else the library warns at every later fork
    empty.train_from_iterator([text], trainer)
    return Tokenizer(empty.to_str())


def words(tokenizers: ModuleType, vocab_size: int) -> tuple:
    empty = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token=UNKNOWN))
    empty.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()  # \w+|[^\w\s]+
    options = {"vocab_size": vocab_size, "special_tokens": [UNKNOWN], "show_progress": False}
    return empty, tokenizers.trainers.WordLevelTrainer(**options)


def byte_pairs(tokenizers: ModuleType, vocab_size: int) -> tuple:
    empty = tokenizers.Tokenizer(tokenizers.models.BPE())
    empty.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    empty.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())  # all 256 bytes
    options = {"vocab_size": vocab_size, "initial_alphabet": alphabet, "show_progress": False}
    return empty, tokenizers.trainers.BpeTrainer(**options)
