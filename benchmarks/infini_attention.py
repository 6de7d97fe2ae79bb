"""Infini-attention against infini-transformer-pytorch 0.2.1, and against local attention alone, which is the limit.

The peer computes one segment: its CausalAttention class takes one, and the memory that the segments before have left.
Its wrapper trains a whole language model and detaches the memory every second segment, so the loop over segments is
written here, without it.  Where the peer differs from the paper or from us, it is led to the same numbers, which are
asserted before anything is timed:
- its gate weighs the local path, ours the memory: its logit is ours negated;
- without a memory it leaves the gate out, so that its first segment gets a memory of zeros;
- its rotary positions pair neighbouring channels, ours the two halves: rows of W_q and W_k are put in its order;
- it normalises its input, so that ours stands behind an RMSNorm here.
benchmarks/peers.txt names what it needs; where it is missing its rows are left out.
"""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import Row, ratio
from memcourse import InfiniAttention
from memcourse.segments import attend_in_segments, rotate_in_segments
from memcourse.threads import one_thread

RULES = ("linear", "delta")
WIDTH, HEADS = 256, 4
SIZES = ((64, 1024), (64, 4096), (256, 4096), (2048, 4096))  # segment, T; and once, under the linear rule, (64, 32_768)
AT_LEAST = {("linear", 64): 1.6, ("delta", 64): 1.25}  # 0.9 anywhere else
AT_MOST = {"linear": 1.4, "delta": 1.6}


def rows() -> Iterator[Row]:
    with one_thread():  # a second one is waited for, where the machine does something else too
        found = list(measured())
    yield from found


def measured() -> Iterator[Row]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if find_spec("infini_transformer_pytorch") is None:
        yield Row("Infini-attention against infini-transformer-pytorch 0.2.1", "not installed", "left out", True)
    else:
        for rule in RULES:
            for segment_len, time in SIZES:
                yield against_the_peer(rule, segment_len, time, device, rounds=9)
        yield against_the_peer("linear", 64, 32_768, device, rounds=3)
    for rule in RULES:
        yield against_the_limit(rule, device)


def both_ways(call: Callable[[], Tensor], inputs: list[Tensor], direction: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(call(), inputs, direction)


def against_the_peer(rule: str, segment_len: int, time: int, device: str, *, rounds: int) -> Row:
    from infini_transformer_pytorch.infini_transformer import CausalAttention

    layer = InfiniAttention(WIDTH, HEADS, segment_len=segment_len, rule=rule).to(device)
    nn.init.normal_(layer.gate)
    norm = nn.RMSNorm(WIDTH, eps=1e-20, device=device)
    delta = rule == "delta"
    peer = CausalAttention(WIDTH, dim_head=WIDTH // HEADS, heads=HEADS, use_mem_delta_rule=delta).to(device)
    give_weights(layer, peer)
    x, direction = (torch.randn(1, time, WIDTH, device=device) for _ in range(2))
    with torch.no_grad():
        (ours, state), (theirs, left) = layer(norm(x)), peer_in_segments(peer, x, segment_len)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        if time % segment_len == 0:  # the peer writes a segment that is not whole, too; its channels are in other order
            torch.testing.assert_close(state.normalizer.sum(dim=-1), left.k_norm.sum(dim=-1), atol=1e-2, rtol=1e-4)
    parts = [x.requires_grad_(), *layer.parameters(), *norm.parameters()]
    peer_parts = [x, *(part for part in peer.parameters() if part.requires_grad)]
    if time <= segment_len:  # one segment: its gate is never asked, for its memory is left out
        peer_parts = [part for part in peer_parts if part is not peer.fastweight_mem.head_gates]

    found = ratio(
        both_ways(lambda: peer_in_segments(peer, x, segment_len)[0], peer_parts, direction),
        both_ways(lambda: layer(norm(x))[0], parts, direction),
        rounds=rounds,
    )
    limit = AT_LEAST.get((rule, segment_len), 0.9)
    what = (
        f"InfiniAttention, {rule}, segments of {segment_len}, T={time}, width {WIDTH} on {device}, "
        "forward and backward: time of infini-transformer-pytorch / ours"
    )
    stretch = " (stretch: 2x)" if limit > 1 else ""
    return Row(what, f"{found:.2f}x", f"at least {limit}x{stretch}", found >= limit)


def give_weights(layer: InfiniAttention, peer: Any) -> None:
    H, d = HEADS, WIDTH // HEADS
    in_pairs = torch.arange(d).view(2, d // 2).T.flatten()  # 0, d/2, 1, d/2 + 1, ...
    query, key = (
        part.weight.detach().view(H, d, -1)[:, in_pairs].flatten(0, 1) for part in (layer.heads.query, layer.heads.key)
    )
    with torch.no_grad():
        peer.to_qkv.weight.copy_(torch.cat([query, key, layer.heads.value.weight]))
        peer.to_out.weight.copy_(layer.heads.output.weight)
        peer.fastweight_mem.head_gates.copy_(-layer.gate)


def peer_in_segments(peer: Any, x: Tensor, segment_len: int) -> tuple[Tensor, Any]:
    from infini_transformer_pytorch.infini_transformer import Memories

    B, d = len(x), WIDTH // HEADS
    memory, outputs = Memories(x.new_zeros(B, HEADS, d, d), x.new_zeros(B, HEADS, d)), []
    for segment in x.split(segment_len, dim=1):
        output, _, memory = peer(segment, past_memories=memory, return_new_memories=True)
        outputs.append(output)
    return torch.cat(outputs, dim=1), memory


def against_the_limit(rule: str, device: str) -> Row:
    """The same projections and the same attention inside segments, and no memory."""
    width, n_heads, segment_len, time = 512, 8, 256, 2048
    layer = InfiniAttention(width, n_heads, segment_len=segment_len, rule=rule).to(device)
    x, direction = (torch.randn(1, time, width, device=device) for _ in range(2))
    x.requires_grad_()

    def alone() -> Tensor:
        query, key, value = layer.heads.split(x, x)
        query, key = (rotate_in_segments(part, 0, segment_len) for part in (query, key))
        return layer.heads.merge(attend_in_segments(query, key, value, segment_len))

    with torch.no_grad():  # a gate that is shut leaves just that
        layer.gate.fill_(-50.0)
        torch.testing.assert_close(layer(x)[0], alone(), atol=1e-5, rtol=1e-5)
        layer.gate.fill_(0.0)
    found = ratio(
        both_ways(lambda: layer(x)[0], [x, *layer.parameters()], direction),
        both_ways(alone, [x, *layer.heads.parameters()], direction),
        rounds=12,
    )
    what = (
        f"InfiniAttention, {rule}, segments of {segment_len}, T={time}, width {width}, {n_heads} heads on {device}, "
        "forward and backward: time / local attention alone"
    )
    limit = AT_MOST[rule]
    return Row(what, f"{found:.2f}x", f"at most {limit}x", found <= limit)
