"""The Recurrent Memory Transformer: memory vectors around every segment, carried from its top to the next one's bottom.

[H_mem; tokens; H_mem] -> all layers -> [nobody's; what the logits are made of; H_mem of the next segment]
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from memcourse.attention import rotary_heads, rotate
from memcourse.memory import require, state_dtype
from memcourse.token_model import TokenModel
from memcourse.transformer import FeedForward


class OpenSegment(NamedTuple):
    """One layer's rotated keys and values of the open segment, read rows first; no entries where none is open."""

    key: Float[Tensor, "batch heads n d_head"]
    value: Float[Tensor, "batch heads n d_head"]


class RMTState(NamedTuple):
    """The last token's embedding, for the shift; H_mem; and every layer's part of the open segment."""

    previous: Float[Tensor, "batch d_model"]
    memory: Float[Tensor, "batch n_memory d_model"]
    layers: tuple[OpenSegment, ...]


class RMTLayer(nn.Module):
    """A pre-norm transformer block over the rows of one segment: x + attention(norm(x)), then the feed-forward."""

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model)
        self.attention = rotary_heads(d_model, n_heads)
        self.feed_forward = FeedForward(d_model)

    def forward(
        self, x: Tensor, past: OpenSegment, position: Tensor, mask: Tensor, silent: int
    ) -> tuple[Tensor, OpenSegment, Tensor]:
        """R rows x (B, R, D) after those of `past` -> their outputs, past and x together, and `hidden`.

        The first `silent` rows are looked at and not asked for: outputs and hidden are (B, R - silent, D).
        """
        normed = self.norm(x)
        query, key, value = self.attention.split(normed[:, silent:], normed)  # (B, H, rows, d)
        query, key = rotate(query, position[:, silent:]), rotate(key, position)
        keys, values = key.to(past.key.dtype), value.to(past.value.dtype)
        if past.key.shape[2]:
            keys, values = torch.cat([past.key, keys], dim=2), torch.cat([past.value, values], dim=2)
        # no row is masked as a whole: the kernel may be asked directly
        read = F.scaled_dot_product_attention(
            query.to(value.dtype), keys.to(value.dtype), values.to(value.dtype), mask[silent:]
        )
        x = x[:, silent:] + self.attention.merge(read)
        hidden = self.feed_forward.norm(x)
        return self.feed_forward.residual(x, hidden), OpenSegment(keys, values), hidden


class RecurrentMemoryTransformer(TokenModel):
    """A language model that hands m = n_memory vectors on: (tokens, state=None) -> (logits, state).

    tokens (B, T) of integers below vocab_size -> logits (B, T, vocab_size).  The rows of a segment are

        [H_mem; x_1 ... x_L; H_mem]      m read rows, the tokens (embedded and shifted), m write rows

    and go through all layers together: a read row sees the read rows, a token those and the tokens up to itself, a
    write row everything.  norm(top of the write rows) is the H_mem of the next segment; that of the first is
    learned.  Rotary positions count the rows from the segment's first.  The write rows come with the segment's last
    token, so an unfinished segment has none.  Nothing of a segment can be computed before the one before it is done.
    Token by token, a layer computes the new row alone: the open segment's keys and values are kept.

    Raises ValueError for sizes below 1 and a d_model that n_heads does not divide into even widths.
    Source: Bulatov, Kuratov, Burtsev, Recurrent Memory Transformer, NeurIPS 2022, arXiv:2207.06881, there on
    Transformer-XL with its norm after each sum; here the norm comes before, so the top has one of its own.
    """

    def __init__(
        self, vocab_size: int, d_model: int, n_layers: int, n_heads: int, *, n_memory: int, segment_len: int
    ) -> None:
        super().__init__(vocab_size, d_model, n_layers)
        for name, size in (("n_memory", n_memory), ("segment_len", segment_len)):
            require(size >= 1, name, size, "at least 1")
        self.layers = nn.ModuleList(RMTLayer(d_model, n_heads) for _ in range(n_layers))
        self.norm = nn.RMSNorm(d_model)
        # as large as the rows that follow it, which come out of a norm
        self.initial_memory = nn.Parameter(torch.randn(n_memory, d_model))
        self.config = {
            "vocab_size": vocab_size,
            "d_model": d_model,
            "n_layers": n_layers,
            "n_heads": n_heads,
            "n_memory": n_memory,
            "segment_len": segment_len,
        }

    def initial_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> RMTState:
        d_model, n_heads = self.config["d_model"], self.config["n_heads"]
        memory = self.initial_memory.to(device=device, dtype=state_dtype(dtype)).expand(batch_size, -1, -1)
        empty = memory.new_zeros(batch_size, n_heads, 0, d_model // n_heads)
        layers = tuple(OpenSegment(empty, empty) for _ in self.layers)
        return RMTState(memory.new_zeros(batch_size, d_model), memory, layers)

    def tokens_to_segment_end(self, state: RMTState) -> int:
        entries = state.layers[0].key.shape[2]
        return self.config["segment_len"] + self.config["n_memory"] - entries if entries else 0

    def advance_with_hidden(self, x: Tensor, state: Any) -> tuple[Tensor, RMTState, Tensor]:
        ys, hiddens, done = [], [], 0
        while done < x.shape[1]:
            missing = self.tokens_to_segment_end(state) or self.config["segment_len"]
            y, state, hidden = self._advance_in_segment(x[:, done : done + missing], state, missing)
            ys.append(y)
            hiddens.append(hidden)
            done += y.shape[1]
        return torch.cat(ys, dim=1), state, torch.cat(hiddens, dim=1)

    def _advance_in_segment(self, x: Tensor, state: RMTState, missing: int) -> tuple[Tensor, RMTState, Tensor]:
        """Tokens of one segment that misses `missing`: read rows go before its first, write rows after its last."""
        m, past = self.config["n_memory"], state.layers[0].key.shape[2]
        opens, closes = past == 0, x.shape[1] == missing
        memory = state.memory.to(x.dtype)
        rows = torch.cat([memory] * opens + [x] + [memory] * closes, dim=1)  # (B, R, D)
        R = rows.shape[1]
        mask = torch.ones(R, past + R, dtype=torch.bool, device=x.device).tril(past)
        mask[:, :m] = True
        if closes:
            mask[-m:] = True
        position = (past + torch.arange(R, device=x.device))[None]
        layers = []
        for number, (layer, part) in enumerate(zip(self.layers, state.layers, strict=True), start=1):
            # what comes out of the read rows at the top is nobody's
            silent = m if opens and number == len(self.layers) else 0
            rows, part, hidden = layer(rows, part, position, mask, silent)
            # an empty view would keep the whole segment alive
            layers.append(OpenSegment(*(leaf[:, :, :0].clone() for leaf in part)) if closes else part)
        T = x.shape[1]
        if closes:  # without the norm, what every layer adds would pile up from segment to segment
            state = state._replace(memory=self.norm(rows[:, T:]).to(state.memory.dtype))
        return rows[:, :T], state._replace(layers=tuple(layers)), hidden[:, :T]
