"""RecurrentMemoryTransformer against recurrent-memory-transformer-pytorch, forward and backward, at the same sizes.

The two do not compute the same thing, so no outputs are compared; ours has its loops in tests/test_rmt.py.  The peer
adds to every attention a learned key and value for "nothing", mixes the values of all layers but the first with the
first's, has a gated feed-forward of three matrices (two thirds as wide: as many products), logits with weights of their
own, one rotary position for all memory rows with the tokens 10,000 places on, and write rows after an unfinished
segment too.  Ours has the shift.
What the peer does otherwise by choice is chosen as we have it: no hyper-connections, no cache of the segment before,
write rows that start from the last ones, a gradient through all of it.  Its attention is taken as it comes and with
torch's fused kernel; the faster one counts.
"""

from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Row, ratio
from memcourse import RecurrentMemoryTransformer

PEER = "recurrent-memory-transformer-pytorch"
VOCAB, D, LAYERS, HEADS, MEMORY = 256, 256, 2, 4, 16


def rows() -> Iterator[Row]:
    try:
        name = f"{PEER} {version(PEER)}"
    except PackageNotFoundError:
        yield Row(f"RMT against {PEER}", "skipped: it is not installed", "at most 1x (no slower)", True)
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    B = 32 if device == "cuda" else 2
    for segment_len, T in ((64, 512), (128, 512)):
        tokens = torch.randint(VOCAB, (B, T), device=device)
        ours = RecurrentMemoryTransformer(VOCAB, D, LAYERS, HEADS, n_memory=MEMORY, segment_len=segment_len).to(device)
        sizes = f"B={B} T={T} D={D}, {LAYERS} layers, {MEMORY} memory vectors, segments of {segment_len}, on {device}"
        slowest = max(
            ratio(both_ways(ours, tokens), both_ways(peer(segment_len, fused).to(device), tokens), rounds=9)
            for fused in (False, True)
        )
        what = f"RMT, forward and backward, {sizes}: time / {name}"
        yield Row(what, f"{slowest:.2f}x", "at most 1x (no slower)", slowest <= 1)


def peer(segment_len: int, fused: bool) -> nn.Module:
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer as Peer
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformerWrapper as ManySegments

    return ManySegments(
        Peer(
            dim=D,
            num_tokens=VOCAB,
            depth=LAYERS,
            num_memory_tokens=MEMORY,
            seq_len=segment_len,
            heads=HEADS,
            dim_head=D // HEADS,
            use_flash_attn=fused,
            abs_pos_emb=False,
            rotary_pos_emb=True,
            use_xl_memories=False,
            emb_gradient_frac=1.0,
            add_write_to_next_write_mem=True,
            next_write_mem_stop_grad=False,
            num_residual_streams=1,
        )
    )


def both_ways(model: nn.Module, tokens: Tensor) -> Callable[[], None]:
    """One step of training, but for the optimizer's."""

    def run() -> None:
        model.zero_grad()
        logits = model(tokens)[0]
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()

    return run
