"""What memories that work in segments share: attention that stays inside a segment, for all segments at once."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from memcourse.attention import masked_attention, rotary_turn, turn


def positions_in_segment(n_open: int, time: int, segment_len: int, device: torch.device) -> Int[Tensor, "1 time"]:
    """Place of each new token inside its segment, where n_open tokens of the open one came before: (1, T)."""
    return ((n_open + torch.arange(time, device=device)) % segment_len)[None]


def attend_in_segments(
    query: Float[Tensor, "batch heads time d_head"],
    key: Float[Tensor, "batch heads open_and_time d_head"],
    value: Float[Tensor, "batch heads open_and_time d_value"],
    segment_len: int,
) -> Float[Tensor, "batch heads time d_value"]:
    """Causal attention that never leaves a segment of segment_len tokens.

    The query is that of the T newest tokens; key and value begin with the tokens of the open segment before them, of
    which there are fewer than segment_len.  Whole segments are folded into the batch: one kernel for all of them.
    """
    B, _, T, _ = query.shape
    n_open = key.shape[2] - T
    first = min(T, segment_len - n_open) if n_open else 0  # tokens that go on in the open segment
    whole = (T - first) // segment_len * segment_len
    parts = []
    if first:
        past = torch.ones(first, n_open + first, dtype=torch.bool, device=query.device).tril(n_open)
        own = slice(0, n_open + first)
        parts.append(masked_attention(query[:, :, :first], key[:, :, own], value[:, :, own], past))
    if whole:
        new = slice(n_open + first, n_open + first + whole)
        folded = (
            rearrange(part, "b h (s t) d -> (b s) h t d", t=segment_len)
            for part in (query[:, :, first : first + whole], key[:, :, new], value[:, :, new])
        )
        read = masked_attention(*folded, causal=True)  # (B S, H, L, d)
        parts.append(rearrange(read, "(b s) h t d -> b h (s t) d", b=B))
    if first + whole < T:
        new = slice(n_open + first + whole, None)
        parts.append(masked_attention(query[:, :, first + whole :], key[:, :, new], value[:, :, new], causal=True))
    return torch.cat(parts, dim=2)


def rotate_in_segments(
    x: Float[Tensor, "batch heads time d_head"], n_open: int, segment_len: int
) -> Float[Tensor, "batch heads time d_head"]:
    """`attention.rotate` by the places of `positions_in_segment`, with the angles of one segment computed once."""
    T = x.shape[2]
    places = torch.arange(min(segment_len, n_open + T), device=x.device)
    position = positions_in_segment(n_open, T, segment_len, x.device)[0]
    cos, sin = (part[position] for part in rotary_turn(places, x))  # (T, d/2)
    if torch.compiler.is_compiling():  # which cannot trace writing into halves, and needs no help with their sums
        return turn(x, cos, sin)
    turned: Tensor = _Turn.apply(x, cos, sin)
    return turned


class _Turn(torch.autograd.Function):
    """`attention.turn` without its halves' copies; the gradient is turned back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        turned = torch.empty_like(x)
        (a, b), (to_a, to_b) = x.chunk(2, dim=-1), turned.chunk(2, dim=-1)
        torch.mul(a, cos, out=to_a).addcmul_(b, sin, value=-1)
        torch.mul(b, cos, out=to_b).addcmul_(a, sin)
        return turned

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _Turn.apply(gradient, cos, -sin), None, None
