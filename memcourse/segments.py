"""What memories that work in segments share: attention that stays inside a segment, for all segments at once."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from memcourse.attention import masked_attention


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
