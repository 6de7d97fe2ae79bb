"""KNNLM.score against a bare forward pass and a bare search; one target's probability against a whole vocabulary's."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Row, ratio
from memcourse import CausalAttention, MemoryTransformer
from memcourse.datastore import Datastore
from memcourse.exact_search import nearest
from memcourse.knn_lm import KNNLM, knn_log_prob
from memcourse.language_model import frozen
from memcourse.optional import needs
from memcourse.threads import one_thread

N_KEYS, N_TOKENS, D_MODEL, VOCAB_SIZE = 50_000, 2048, 128, 8192
N_LISTS = 256
ROUNDS = 9
N_TARGETS, K, WIDE_VOCAB_SIZE = 512, 1024, 50_257


def scattered(distances: Tensor, tokens: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The plain way: a distribution over the vocabulary for every row, of which one number is read."""
    probs = torch.zeros(len(distances), vocab_size, device=distances.device)
    probs.scatter_add_(-1, tokens, (-distances).softmax(dim=-1))
    return probs.gather(-1, targets[:, None]).squeeze(-1).log()


def peak_mib(call: Callable[[], object]) -> float:
    """The most memory that the call holds at once, in MiB, beyond what was there before."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    held = most = 0
    for event in seen.profiler.kineto_results.events():  # allocations and releases, in order
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most / 2**20


def aggregation() -> Iterator[Row]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    distances = torch.rand(N_TARGETS, K, device=device) * 20
    tokens = torch.randint(WIDE_VOCAB_SIZE, (N_TARGETS, K), device=device)
    targets = tokens[:, 0].clone()

    def ours() -> Tensor:
        return knn_log_prob(distances, tokens, targets)

    def peer() -> Tensor:
        return scattered(distances, tokens, targets, WIDE_VOCAB_SIZE)

    torch.testing.assert_close(ours(), peer(), atol=1e-4, rtol=1e-4)
    with one_thread():  # a call of a millisecond must not wait for a second core that is busy elsewhere
        found = ratio(peer, ours)
    what = (
        f"knn_log_prob, {N_TARGETS} targets of {WIDE_VOCAB_SIZE:,} tokens, k={K} on {device}, one thread, at most "
        f"{peak_mib(ours):.0f} MiB against {peak_mib(peer):.0f} MiB: time of scattering into the vocabulary / ours"
    )
    yield Row(what, f"{found:.0f}x", "at least 10x", found >= 10)


def rows() -> Iterator[Row]:
    yield from aggregation()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = MemoryTransformer(VOCAB_SIZE, D_MODEL, 4, lambda: CausalAttention(D_MODEL, 4, window=256)).to(device)
    tokens = torch.randint(VOCAB_SIZE, (1, N_TOKENS + 1), device=device)
    memorized = torch.randint(VOCAB_SIZE, (1, N_KEYS + 1), device=device)
    exact = KNNLM(model, Datastore(D_MODEL, device=device))
    exact.memorize(memorized)
    keys = exact.datastore.keys.float()

    def forward() -> Tensor:
        """Log-probabilities of all next tokens, and the keys: what the model alone costs."""
        with frozen(model):
            features, _, hidden = model.features(tokens[:, :-1])
            model.logits(features).log_softmax(dim=-1)
        return hidden[0]

    faiss = needs("faiss", "faiss-cpu")
    flat = faiss.IndexFlatL2(D_MODEL)
    flat.add(keys.cpu().numpy())
    shape = f"KNNLM.score, {N_TOKENS} tokens, {N_KEYS:,} keys x {D_MODEL}, k={exact.k} on {device}"
    peers = {
        "torch": lambda: nearest(forward(), keys, exact.k),
        "faiss.IndexFlatL2": lambda: flat.search(forward().cpu().numpy(), exact.k),
    }
    for name, peer in peers.items():
        found = ratio(lambda: exact.score(tokens), peer, rounds=ROUNDS)
        what = f"{shape}, exact: time / model forward and bare exact search ({name})"
        yield Row(what, f"{found:.2f}x", "at most 1.3x", found <= 1.3)

    factory = f"IVF{N_LISTS},Flat"
    lists = KNNLM(model, Datastore(D_MODEL, index=factory, device=device))
    lists.datastore.add(keys, exact.datastore.values)
    lists.score(tokens)  # trains the index
    bare = faiss.index_factory(D_MODEL, factory)
    bare.train(keys.cpu().numpy())
    bare.add(keys.cpu().numpy())
    bare.nprobe = lists.datastore.n_probe
    kind = f"{factory}, {bare.nprobe} probes"
    what = f"{shape}, {kind}: time / model forward and bare FAISS search"

    def peer() -> object:
        return bare.search(forward().cpu().numpy(), lists.k)

    found = ratio(lambda: lists.score(tokens), peer, rounds=ROUNDS)
    yield Row(what, f"{found:.2f}x", "at most 1.3x", found <= 1.3)
