"""Exact search against FAISS's and torch's own; the paper's IVF-PQ recipe, scaled, against exact search."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.timing import Row, ratio, seconds
from memcourse.datastore import Datastore
from memcourse.optional import needs

N, DIM, QUERIES, K = 100_000, 256, 128, 64


def hidden_like(n: int, seed: int) -> Tensor:
    """Clusters of unequal size and directions of unequal variance, as hidden states have: (n, DIM)."""
    scale = torch.arange(1, DIM + 1) ** -0.5
    centres = torch.randn(4096, DIM, generator=torch.Generator().manual_seed(1)) * scale
    draw = torch.Generator().manual_seed(seed)
    which = torch.multinomial(1 / torch.arange(1.0, 4097), n, replacement=True, generator=draw)
    return centres[which] + 0.5 * torch.randn(n, DIM, generator=draw) * scale


def rows() -> Iterator[Row]:
    faiss = needs("faiss", "faiss-cpu")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keys, queries = hidden_like(N, seed=0), hidden_like(QUERIES, seed=7).to(device)
    shape = f"{N:,} keys of {DIM}, {QUERIES} queries, k={K} on {device}"

    store = Datastore(DIM, device=device)
    store.add(keys, torch.arange(N))
    peer = faiss.IndexFlatL2(DIM)
    peer.add(keys.numpy())
    on_device, as_numpy = store.keys, queries.cpu().numpy()

    def by_cdist() -> Tensor:
        return torch.cdist(queries, on_device).topk(K, largest=False).indices

    exact = store.search(queries, K)
    assert recall(by_cdist(), exact.ids) > 0.99

    found = ratio(lambda: store.search(queries, K), by_cdist, rounds=9)
    yield Row(
        f"exact search, {shape}: time / torch.cdist().topk()", f"{found:.2f}x", "at most 1x (as fast)", found <= 1
    )
    found = ratio(lambda: store.search(queries, K), lambda: peer.search(as_numpy, K), rounds=9)
    yield Row(f"exact search, {shape}: time / faiss.IndexFlatL2 on cpu", f"{found:.2f}x", "at most 2x", found <= 2)

    approximate = Datastore(DIM, index="ivfpq", device=device)
    approximate.add(keys, torch.arange(N))
    training = seconds(lambda: approximate.search(queries[:1], 1))
    sizes = approximate.describe()["index_sizes"]
    what = f"ivfpq ({', '.join(f'{name} {size}' for name, size in sizes.items())}), {shape}"
    for rescore, limit in ((True, 0.85), (False, 0.5)):
        found = recall(approximate.search(queries, K, rescore=rescore).ids, exact.ids)
        kind = "distances computed again" if rescore else "the index's own distances"
        yield Row(f"{what}: recall@{K}, {kind}", f"{found:.3f}", f"at least {limit}", found >= limit)
    found = ratio(lambda: store.search(queries, K), lambda: approximate.search(queries, K, rescore=False), rounds=6)
    per_second = QUERIES / seconds(lambda: approximate.search(queries, K, rescore=False))
    figure = f"{found:.2f}x ({per_second:.0f} queries a second)"
    yield Row(f"{what}: queries per second / exact", figure, "reported", True)
    n_bytes = sizes["code_bytes"] + 8
    figure = f"{n_bytes} (trained and filled in {training:.0f} s)"
    yield Row(f"{what}: bytes per key of the index, where exact takes {4 * DIM}", figure, "at most 80", n_bytes <= 80)


def recall(found: Tensor, truth: Tensor) -> float:
    """The share of the true neighbours that were found."""
    return (found[:, :, None] == truth[:, None, :]).any(-1).float().mean().item()
