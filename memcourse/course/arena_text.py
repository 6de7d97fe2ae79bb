"""The arena's real text: facts of bAbI scattered in books, and books alone.

Both need data that `memcourse data` downloads (babi, frankenstein, pride_and_prejudice); without it, DataError says so.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from functools import cache

import torch
from torch import Tensor

from memcourse import corpora
from memcourse.corpora import Tokenizer
from memcourse.training import NOT_SCORED, Batch

BOOKS = ("frankenstein", "pride_and_prejudice")
UNKNOWN = "<unk>"
MOST_FACTS = 3
PROSE_WORDS = 200  # in the vocabulary beside bAbI's own


def split_words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)


@cache
def sentences(part: str) -> list[list[str]]:
    """The words of every sentence of the books' train or test part, in order."""
    text = " ".join(getattr(corpora.load(name), part) for name in BOOKS)
    return [words for sentence in re.split(r"(?<=[.!?])\s+", text) if (words := split_words(sentence))]


@cache
def facts(part: str) -> list[list[str]]:
    """The words of every sentence in the stories of bAbI's first task: "Mary moved to the office ."."""
    questions = getattr(corpora.load("babi")[1], part)
    return [split_words(fact) for question in questions if len(question.story) == 10 for fact in question.story]


@cache
def babi_words() -> dict[str, int]:
    """The vocabulary: every word of bAbI's first task, the most frequent ones of the books, and one for the rest."""
    asked = corpora.load("babi")[1].train
    own = sorted({word for q in asked for text in (*q.story, q.question, q.answer) for word in split_words(text)})
    counts = Counter(word for words in sentences("train") for word in words if word not in own)
    frequent = [word for word, _ in counts.most_common(PROSE_WORDS)]
    return {word: number for number, word in enumerate([UNKNOWN, *own, *frequent])}


def babi_in_prose(
    n_tokens: int, batch_size: int, seed: int, *, n_facts: int | None = None, part: str = "train"
) -> Batch:
    """Where is everybody?  Facts between the sentences of a book, in order, and at the end a question for each person.

        The sun rose . Mary moved to the office . I was alone . Where is Mary ?      scored after the ?: office

    Everyone whom the facts name is asked for, in random order; the answer is the place of their last fact.  There are
    n_facts in a row of (B, n_tokens), or one to three where it is None, for which 48 tokens are enough.  They are
    drawn one by one from the stories of `part`, for two hundred whole stories are soon known by heart; the prose is
    that of `part`, and no training sees that of "test".
    A guess is right 1 time in 6; any of the places that were named, 1 time in n_facts or a little more.
    Source: Kuratov et al., BABILong, 2024, arXiv:2406.10149, with one question for each person.
    """
    generator = random.Random(seed)
    vocabulary = babi_words()
    tokens = torch.zeros(batch_size, n_tokens, dtype=torch.long)
    targets = torch.full_like(tokens, NOT_SCORED)
    for row in range(batch_size):
        told = generator.sample(facts(part), n_facts or generator.randint(1, MOST_FACTS))
        places = {fact[0]: fact[-2] for fact in told}  # the last place of each person
        asked = generator.sample(sorted(places), len(places))
        questions = [word for person in asked for word in ("Where", "is", person, "?")]
        prose = _prose(n_tokens - sum(map(len, told)) - len(questions), generator, part)
        before = sorted(generator.choices(range(len(prose) + 1), k=len(told)))  # which sentence a fact comes before
        for place, fact in zip(reversed(before), reversed(told), strict=True):
            prose.insert(place, fact)
        words = [word for sentence in prose for word in sentence] + questions
        tokens[row] = torch.tensor([vocabulary.get(word, 0) for word in words])
        targets[row, n_tokens - len(questions) + 3 :: 4] = torch.tensor([vocabulary[places[p]] for p in asked])
    return Batch(tokens, targets)


def _prose(n_words: int, generator: random.Random, part: str) -> list[list[str]]:
    """Sentences in a row with n_words words in all; the last one is cut where they are full."""
    text, found = sentences(part), []
    at = generator.randrange(len(text))
    while n_words > 0:
        found.append(text[at % len(text)][:n_words])
        n_words -= len(found[-1])
        at += 1
    return found


@cache
def book_tokens() -> tuple[Tokenizer, Tensor, list[Tensor]]:
    """512 byte pairs of the training text; that text, and the books' parts for validation and for the test."""
    books = [corpora.load(name) for name in BOOKS]
    tokenizer = corpora.tokenizer(books[0].train + books[1].train, 512, kind="bpe")
    held_out = [tokenizer.encode(text) for book in books for text in (book.valid, book.test)]
    return tokenizer, tokenizer.encode(books[0].train + books[1].train), held_out


def books(n_tokens: int, batch_size: int, seed: int) -> Batch:
    """Passages of the books' training part: every next token is scored.  (B, n_tokens)."""
    text = book_tokens()[1]
    starts = torch.randint(len(text) - n_tokens, (batch_size, 1), generator=torch.Generator().manual_seed(seed))
    passages = text[starts + torch.arange(n_tokens + 1)]  # (B, n_tokens + 1)
    return Batch(passages[:, :-1], passages[:, 1:])


def held_out_books(n_tokens: int, start: int, end: int) -> list[Batch]:
    """Passages that no training sees, without overlap; scored from token `start` up to `end` alone."""
    passages = torch.cat([text[: len(text) // (n_tokens + 1) * (n_tokens + 1)] for text in book_tokens()[2]])
    tokens = passages.view(-1, n_tokens + 1)
    targets = torch.full_like(tokens[:, 1:], NOT_SCORED)
    targets[:, start:end] = tokens[:, 1 + start : 1 + end]
    return [Batch(*parts) for parts in zip(tokens[:, :-1].split(16), targets.split(16), strict=True)]
