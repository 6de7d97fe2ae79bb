"""Exact nearest neighbours in torch: any device, bounded memory, and the same answer however the keys are cut.

A block of keys is scored by one matrix product; of a block only what could be among the nearest goes on to the running
top-k, so that no (queries, keys) matrix is made.  A product in float32 rounds by where a key stands in its block, and
near-duplicates cancel, so the product only chooses candidates, a few more than k: their distances are computed again,
difference by difference.  Where the candidates turn out too few to be sure (many duplicates), that query alone is
answered by differences over all keys.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

METRICS = ("l2", "ip", "cosine")
MARGIN = 32  # candidates beyond k
QUERIES = 128  # answered together
BLOCK_BYTES = 64 * 2**20  # of scores, of keys, and of differences
GROUP = 16  # keys of which only the nearest is compared at first


@runtime_checkable
class Keys(Protocol):
    """A tensor, or what reads like one: rows in memory or on disk."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor: ...


@torch.no_grad()
def nearest(
    queries: Float[Tensor, "queries dim"], keys: Keys, k: int, *, metric: str = "l2"
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """Distances and rows of the min(k, len(keys)) nearest keys, nearest first; of equals, the lower row first.

    metric: "l2", the squared Euclidean distance; "ip", the inner product negated; "cosine", 1 - cos, which is 1 for a
    zero vector.  Computed in float32 on the queries' device.  Values must be finite; the caller sees to that.
    """
    queries = queries.float()
    k = min(k, len(keys))
    if k == 0 or len(queries) == 0:
        shape = (len(queries), k)
        return queries.new_zeros(shape), torch.zeros(shape, dtype=torch.int64, device=queries.device)
    all_scores = min(QUERIES, len(queries)) * len(keys)
    room = queries.new_empty(min(BLOCK_BYTES // 4, all_scores))  # for the scores of one block after the other
    parts = [_nearest(part, keys, k, metric, room) for part in queries.split(QUERIES)]
    return torch.cat([distances for distances, _ in parts]), torch.cat([rows for _, rows in parts])


def distance(
    queries: Float[Tensor, "queries dim"], keys: Float[Tensor, "queries n dim"], metric: str
) -> Float[Tensor, "queries n"]:
    """Distances of each query to keys of its own, term by term: a pair's number does not depend on its company."""
    if metric == "l2":
        return (queries[:, None] - keys).square_().sum(dim=-1)  # (Q, n)
    products = (queries[:, None] * keys).sum(dim=-1)
    if metric == "ip":
        return -products
    return 1 - products / (_length(queries)[:, None] * _length(keys))


def _length(vectors: Tensor) -> Tensor:
    """Euclidean norms, 1 for a zero vector, which stays zero when it is divided by it."""
    norms = vectors.square().sum(dim=-1).sqrt_()
    return norms.masked_fill_(norms == 0, 1.0)


def _nearest(queries: Tensor, keys: Keys, k: int, metric: str, room: Tensor) -> tuple[Tensor, Tensor]:
    if metric == "cosine":  # only directions count: the candidates' scores and the slack speak of unit vectors
        scored = queries / _length(queries)[:, None]
    else:
        scored = queries
    wanted = min(k + MARGIN, len(keys))
    scores, rows, longest = _candidates(scored, keys, wanted, metric, room)
    distances, order = _sort(distances_to_rows(queries, keys, rows, metric), rows)
    if wanted < len(keys):
        # What was left out scored no less than the worst candidate, up to the rounding of a product of d terms.
        length = scored.norm(dim=-1) + longest
        slack = 4 * torch.finfo(torch.float32).eps * queries.shape[1] ** 0.5 * length.square()
        floor = scores.amax(dim=-1) + (queries.square().sum(dim=-1) if metric == "l2" else float(metric == "cosine"))
        for query in (distances[:, k - 1] + slack >= floor).nonzero().flatten().tolist():
            distances[query, :k], order[query, :k] = _one_by_one(queries[query], keys, k, metric)
    return distances[:, :k].contiguous(), order[:, :k].contiguous()


def _candidates(queries: Tensor, keys: Keys, wanted: int, metric: str, room: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores and rows of the `wanted` best by matrix products, in no order, and the longest key's norm.

    A score is the distance without its term that is the same for all keys of a query.
    """
    scores = queries.new_full((len(queries), wanted), torch.inf)
    rows = torch.zeros(len(queries), wanted, dtype=torch.int64, device=queries.device)
    longest = queries.new_zeros(())
    at_once = min(len(room) // len(queries), BLOCK_BYTES // (4 * queries.shape[1]))
    for start, block in _blocks(keys, max(1, at_once), queries):
        if metric == "cosine":
            block = block / _length(block)[:, None]
        lengths = torch.linalg.vector_norm(block, dim=-1)  # (n,)
        longest = torch.maximum(longest, lengths.amax())
        found = room[: len(queries) * len(block)].view(len(queries), len(block))  # (Q, n)
        if metric == "l2":
            torch.addmm(lengths.square(), queries, block.T, alpha=-2, out=found)
        else:
            torch.mm(-queries, block.T, out=found)
        best, where = _smallest(found, wanted)
        merged = torch.cat([scores, best], dim=-1)
        scores, chosen = merged.topk(wanted, largest=False, sorted=False)
        rows = torch.cat([rows, where + start], dim=-1).gather(-1, chosen)
    return scores, rows, longest


def distances_to_rows(
    queries: Float[Tensor, "queries dim"], keys: Keys, rows: Int[Tensor, "queries n"], metric: str
) -> Float[Tensor, "queries n"]:
    """Distances of each query to the rows chosen for it, from the keys themselves, a few queries at a time."""
    n, d = rows.shape[1], queries.shape[1]
    few = max(1, BLOCK_BYTES // (8 * n * d))
    pairs = zip(queries.split(few), rows.split(few), strict=True)
    return torch.cat([distance(q, keys[r.flatten()].to(q).view(-1, n, d), metric) for q, r in pairs])


def _smallest(scores: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n smallest of each row, and where they stand.

    The n smallest lie in the n groups whose own smallest are smallest, so most of a row is passed over by a minimum,
    which is many times faster than a top-k.
    """
    Q, width = scores.shape
    groups = width // GROUP
    if groups <= 2 * n:
        return scores.topk(min(n, width), largest=False, sorted=False)
    best_of_group = scores[:, : groups * GROUP].unflatten(-1, (GROUP, groups)).amin(dim=1)  # (Q, groups)
    chosen = best_of_group.topk(n, largest=False, sorted=False).indices  # (Q, n)
    members = torch.arange(0, groups * GROUP, groups, device=scores.device)  # of group 0
    where = (chosen[..., None] + members).flatten(1)  # (Q, n * GROUP)
    rest = torch.arange(groups * GROUP, width, device=scores.device).expand(Q, -1)
    where = torch.cat([where, rest], dim=-1)
    best, order = scores.gather(-1, where).topk(n, largest=False, sorted=False)
    return best, where.gather(-1, order)


def _one_by_one(query: Tensor, keys: Keys, k: int, metric: str) -> tuple[Tensor, Tensor]:
    """One query against all keys by differences: slower, and sure."""
    distances = query.new_zeros(1, 0)
    rows = torch.zeros(1, 0, dtype=torch.int64, device=query.device)
    for start, block in _blocks(keys, max(1, BLOCK_BYTES // (4 * len(query))), query):
        found = distance(query[None], block[None], metric)
        where = torch.arange(start, start + len(block), device=query.device)[None]
        distances, rows = _sort(torch.cat([distances, found], dim=-1), torch.cat([rows, where], dim=-1))
        distances, rows = distances[:, :k], rows[:, :k]
    return distances[0], rows[0]


def _sort(distances: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """By distance, then by row."""
    by_row = rows.argsort(dim=-1)
    distances, rows = distances.gather(-1, by_row), rows.gather(-1, by_row)
    distances, order = distances.sort(dim=-1, stable=True)
    return distances, rows.gather(-1, order)


def _blocks(keys: Keys, n: int, like: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, rows) of n keys at a time, as float32 on the queries' device."""
    for start in range(0, len(keys), n):
        yield start, keys[start : start + n].to(like)
