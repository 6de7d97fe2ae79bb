"""The memory search of MemorizingAttention against the KNN memory of memorizing-transformers-pytorch 0.4.1.

Both get the same keys and values of unit length and the same queries, and hand out the k keys and values found for
each query.  Ours compares every key: its recall is 1, which is asserted.  The peer asks an HNSW graph of FAISS, built
before the clock starts, and its recall, the share of the k best keys that it finds, stands beside its time: once as it
comes, once with the graph searched so widely that it finds as much as ours does.  The keys are clusters of 16, as the
tokens of a text are: of random directions the graph finds far fewer.
benchmarks/peers.txt names what it needs; where it is missing, its rows are left out.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.timing import Row, ratio
from memcourse.memorizing import pick, search
from memcourse.threads import one_thread

HEADS, TIME, DIM, K = 8, 64, 64, 32
SAME_RECALL = 0.99
NEEDED = ("memorizing_transformers_pytorch", "einops_exts", "faiss")


def rows() -> Iterator[Row]:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        what = "Memorizing attention's search against memorizing-transformers-pytorch 0.4.1"
        yield Row(what, f"not installed: {', '.join(missing)}", "left out", True)
        return
    for n_memories, limit in ((8192, 1.5), (65_536, None)):
        with one_thread():  # both: on a machine that does something else too, a second one is waited for
            found = list(against_the_peer(n_memories, limit))
        yield from found


def drawn(n: int) -> Tensor:
    return normalize(torch.randn(n // 16, 1, DIM) + 0.5 * torch.randn(n // 16, 16, DIM), dim=-1).flatten(0, 1)


def against_the_peer(n_memories: int, limit: float | None) -> Iterator[Row]:
    import faiss
    from memorizing_transformers_pytorch.knn_memory import KNNMemory

    faiss.omp_set_num_threads(torch.get_num_threads())
    keys, values = drawn(n_memories), drawn(n_memories)
    query = normalize(keys[torch.randint(n_memories, (HEADS * TIME,))] + 0.1 * torch.randn(HEADS * TIME, DIM), dim=-1)
    query = query.view(1, HEADS, TIME, DIM)
    of_heads = [part.expand(1, HEADS, -1, -1) for part in (keys, values)]  # the peer's heads share one memory
    worst = (query.double() @ keys.double().T).topk(K, dim=-1).values[..., -1:]  # of the k best

    def ours() -> tuple[Tensor, ...]:
        _, places = search(query, of_heads[0], None, K)
        return tuple(pick(part, places) for part in of_heads)

    def recall(found: Tensor) -> float:
        return ((query[..., None, :].double() * found.double()).sum(dim=-1) >= worst - 1e-6).double().mean().item()

    with torch.no_grad(), TemporaryDirectory() as folder:
        file = str(Path(folder, "memory"))
        peer = KNNMemory(dim=DIM, max_memories=n_memories, num_indices=1, memmap_filename=file, multiprocessing=False)
        peer.add(torch.stack([keys, values], dim=-2)[None])
        graph = peer.knns[0].index.hnsw

        def of_peer() -> float:
            return recall(peer.search(query, K)[0][..., 0, :])

        assert recall(ours()[0]) == 1
        own = graph.efSearch
        yield _row(n_memories, of_peer(), own, ratio(lambda: peer.search(query, K), ours, rounds=9), None)
        while of_peer() < SAME_RECALL and graph.efSearch < n_memories:
            graph.efSearch *= 2
        yield _row(n_memories, of_peer(), graph.efSearch, ratio(lambda: peer.search(query, K), ours, rounds=9), limit)
        del peer


def _row(n_memories: int, recall: float, width: int, faster: float, limit: float | None) -> Row:
    what = (
        f"Memorizing attention's search, one thread, {K} of {n_memories:,} memories for {HEADS * TIME} queries: "
        f"time of memorizing-transformers-pytorch, its graph searched at width {width}, recall {recall:.2f} / ours"
    )
    return Row(what, f"{faster:.2f}x", f"at least {limit}x" if limit else "reported", not limit or faster >= limit)
