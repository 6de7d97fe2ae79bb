"""Synthetic tasks that ask for memory and for nothing else.

Each is a pure function of its arguments: the same seed gives the same batch, on every device, so that
`lambda step: flip_flop(..., seed=step)` is what `fit` asks for; test with seeds that training has not seen.  Beside
each stands its vocabulary, the word of every token: its length is the model's vocab_size, and `describe`
shows an example in it.

    words = tasks.flip_flop_words()
    model = MemoryTransformer(len(words), 64, 2, lambda: GatedMemory(64))
    fit(model, lambda step: tasks.flip_flop(batch_size=32, n_instructions=32, seed=step), steps=500)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from memcourse.memory import require
from memcourse.training import NOT_SCORED, Batch


def describe(batch: Batch, words: Sequence[str], row: int = 0) -> list[tuple[str, str]]:
    """One row in words: for each token what is read, and what should be said after it ("" where nothing is scored)."""
    tokens, targets = (part[row].tolist() for part in batch)
    said = ["" if target == NOT_SCORED else words[target] for target in targets]
    return list(zip([words[token] for token in tokens], said, strict=True))


def associative_recall_words(*, n_keys: int = 16, n_values: int = 16) -> list[str]:
    """Keys k0, k1, ..., then values v0, v1, ..., then "." for filler."""
    return [*_numbered("k", n_keys), *_numbered("v", n_values), "."]


def associative_recall(
    *,
    batch_size: int,
    n_pairs: int,
    n_keys: int = 16,
    n_values: int = 16,
    n_queries: int = 1,
    length: int | None = None,
    seed: int,
) -> Batch:
    """Pairs of a key and its value, then keys alone: what was the value?

        k3 v7 . k9 v2 . . k1 v7  k9 k3          scored after the last two: v2 v7

    The keys of a row differ from each other; values are drawn freely.  The pairs lie at random places within the first
    `length` tokens (default: 2 n_pairs, one after the other) with filler between them; then come n_queries different
    keys of theirs, so T = length + n_queries.  Each query's target is its value.
    A guess is right 1 time in n_values.  Saying the value that was shown most often is right 1 time in n_pairs, or a
    little more where values recur (0.34 for 4 pairs of 16 values): the level of a model that cannot bind.
    Raises ValueError for more pairs than keys, more queries than pairs, or a length in which the pairs have no room.
    Source: the task of Ba et al., 2016 (1610.06258), with several queries as in Arora et al., 2024 (2312.04927).
    """
    length = 2 * n_pairs if length is None else length
    _require_sizes(batch_size=batch_size, n_pairs=n_pairs, n_keys=n_keys, n_values=n_values, n_queries=n_queries)
    require(n_pairs <= n_keys, "n_pairs", n_pairs, f"at most n_keys={n_keys}, for the keys of a row differ")
    require(n_queries <= n_pairs, "n_queries", n_queries, f"at most n_pairs={n_pairs}, for only they can be asked")
    require(length >= 2 * n_pairs, "length", length, f"at least {2 * n_pairs}, the room of n_pairs={n_pairs}")
    generator = torch.Generator().manual_seed(seed)
    keys = _choose(batch_size, n_keys, n_pairs, generator)  # (B, n_pairs)
    values = n_keys + torch.randint(n_values, (batch_size, n_pairs), generator=generator)
    # a pair counts as one place among the fillers; each pair before it then moves it on by one more
    places = _choose(batch_size, length - n_pairs, n_pairs, generator).sort(dim=1).values + torch.arange(n_pairs)
    asked = _choose(batch_size, n_pairs, n_queries, generator)  # (B, n_queries)
    tokens = torch.full((batch_size, length + n_queries), n_keys + n_values)  # (B, T)
    tokens.scatter_(1, places, keys).scatter_(1, places + 1, values)
    tokens[:, length:] = keys.gather(1, asked)
    targets = torch.full_like(tokens, NOT_SCORED)
    targets[:, length:] = values.gather(1, asked)
    return Batch(tokens, targets)


def passkey_words(*, n_values: int = 16, n_fillers: int = 12) -> list[str]:
    """Values 0, 1, ..., then fillers f0, f1, ..., then MARK and QUERY."""
    return [*_numbered("", n_values), *_numbered("f", n_fillers), "MARK", "QUERY"]


def passkey(
    *,
    batch_size: int,
    n_segments: int,
    segment_len: int = 16,
    distance: int | None = None,
    n_values: int = 16,
    n_fillers: int = 12,
    seed: int,
) -> Batch:
    """A needle in a haystack: one value behind a MARK, filler everywhere else, and a QUERY as the last token.

        f3 MARK 7 f0 | f1 f1 f9 f4 | f2 f5 f8 QUERY          scored after the last: 7

    T = n_segments * segment_len.  The needle lies at a random place in the first half of a segment, `distance` segments
    before the last (default: in the first one, n_segments - 1).  Segments are a measure of distance here; no token
    marks them.  A guess is right 1 time in n_values.
    Raises ValueError for a distance that reaches before the first segment, or segments too short for a needle.
    Source: the passkey of Mohtashami and Jaggi, 2023 (2305.16300), in a small vocabulary.
    """
    distance = n_segments - 1 if distance is None else distance
    _require_sizes(batch_size=batch_size, n_segments=n_segments, n_values=n_values, n_fillers=n_fillers)
    require(segment_len >= 4, "segment_len", segment_len, "at least 4, so that a needle fits into half a segment")
    require(0 <= distance < n_segments, "distance", distance, f"from 0 to n_segments - 1 = {n_segments - 1}")
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, n_segments * segment_len)
    tokens = n_values + torch.randint(n_fillers, shape, generator=generator)  # (B, T)
    value = torch.randint(n_values, (batch_size, 1), generator=generator)
    start = (n_segments - 1 - distance) * segment_len
    place = start + torch.randint(segment_len // 2 - 1, (batch_size, 1), generator=generator)
    tokens.scatter_(1, place, n_values + n_fillers).scatter_(1, place + 1, value)
    tokens[:, -1] = n_values + n_fillers + 1
    targets = torch.full_like(tokens, NOT_SCORED)
    targets[:, -1:] = value
    return Batch(tokens, targets)


def flip_flop_words() -> list[str]:
    """The bits 0 and 1, then the instructions w (write), r (read), i (ignore)."""
    return ["0", "1", "w", "r", "i"]


def flip_flop(*, batch_size: int, n_instructions: int, p_ignore: float = 0.8, seed: int) -> Batch:
    """One bit of memory: instructions, each followed by a bit; a read is followed by the bit that was written last.

        w 1 i 0 i 0 r 1 w 0 i 1 r 0          scored after each r: 1, 0

    The first instruction is a write and the last a read; the others ignore with probability p_ignore, and write or
    read with half of the rest each.  Bits after w and i are drawn freely.  T = 2 n_instructions.
    The paper trains at 0.8, and tests at 0.98 too (sparse: the write is far back) and at 0.1 (dense: many writes); a
    model that is perfect on the first may fail on either of the others.
    A guess is right 1 time in 2; repeating the bit before the read, in 1 - p_ignore / 2 of the long run.
    Raises ValueError for fewer than 2 instructions or a probability outside [0, 1].
    Source: Liu et al., 2023 (2306.00946), the flip-flop language FFL(p).
    """
    _require_sizes(batch_size=batch_size)
    require(n_instructions >= 2, "n_instructions", n_instructions, "at least 2, a write and a read")
    require(0 <= p_ignore <= 1, "p_ignore", p_ignore, "from 0 to 1")
    generator = torch.Generator().manual_seed(seed)
    write, read, ignore = 2, 3, 4
    shape = (batch_size, n_instructions)
    either = torch.randint(write, read + 1, shape, generator=generator)
    instructions = torch.where(torch.rand(shape, generator=generator) < p_ignore, ignore, either)
    instructions[:, 0], instructions[:, -1] = write, read
    bits = torch.randint(2, shape, generator=generator)
    written_at = torch.where(instructions == write, torch.arange(n_instructions), 0).cummax(dim=1).values
    bits = torch.where(instructions == read, bits.gather(1, written_at), bits)
    targets = torch.where(instructions == read, bits, NOT_SCORED)
    nothing = torch.full_like(bits, NOT_SCORED)
    return Batch(_alternate(instructions, bits), _alternate(targets, nothing))


def selective_copy_words(*, n_symbols: int = 14) -> list[str]:
    """Symbols s0, s1, ..., then "." for noise and COPY."""
    return [*_numbered("s", n_symbols), ".", "COPY"]


def selective_copy(*, batch_size: int, n_items: int, length: int, n_symbols: int = 14, seed: int) -> Batch:
    """Symbols scattered among noise, to be repeated in their order and without the noise.

        . s3 . . s9 s3 . . COPY COPY COPY          scored after each COPY: s3 s9 s3

    n_items symbols lie at random places within the first `length` tokens; then comes COPY n_items times, so
    T = length + n_items.  The moments that matter are known: a gate should open where the token is a symbol
    (tokens < n_symbols) and nowhere else.  Their distances vary, so that no fixed delay will do.
    A guess is right 1 time in n_symbols.
    Raises ValueError for more items than places.
    Source: Gu and Dao, 2023 (2312.00752), after the copy of Arjovsky et al., 2016 (1511.06464).
    """
    _require_sizes(batch_size=batch_size, n_items=n_items, n_symbols=n_symbols)
    require(length >= n_items, "length", length, f"at least n_items={n_items}")
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(n_symbols, (batch_size, n_items), generator=generator)
    places = _choose(batch_size, length, n_items, generator).sort(dim=1).values  # (B, n_items)
    tokens = torch.full((batch_size, length + n_items), n_symbols).scatter_(1, places, items)  # (B, T)
    tokens[:, length:] = n_symbols + 1
    targets = torch.full_like(tokens, NOT_SCORED)
    targets[:, length:] = items
    return Batch(tokens, targets)


def _choose(rows: int, n: int, k: int, generator: torch.Generator) -> Tensor:
    """k different numbers below n, in random order, for every row: (rows, k)."""
    return torch.rand(rows, n, generator=generator).argsort(dim=1)[:, :k]


def _alternate(first: Tensor, second: Tensor) -> Tensor:
    """a0 b0 a1 b1 ...: (B, n), (B, n) -> (B, 2n)."""
    return torch.stack([first, second], dim=2).flatten(1)


def _numbered(prefix: str, n: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(n)]


def _require_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        require(size >= 1, name, size, "at least 1")
