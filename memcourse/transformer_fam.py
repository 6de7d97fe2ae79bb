"""Feedback attention as working memory: a few vectors that every block of tokens reads, and rewrites at its end.

E = norm(X_tau)         the tokens of block tau          G = norm(F_{tau-1})      the feedback of the block before
A   = X_tau + attend(E Wq, [past blocks; G; E up to t] Wk, [...] Wv) Wo             Y_tau = A + ff(norm(A))
A^F = F_{tau-1} + attend(G Wq, [G; E] Wk, [...] Wv) Wo                              F_tau = A^F + ff(norm(A^F))

The feedback goes through the weights of the tokens; its first value F_0 is all that is added.
Source: Hwang et al., TransformerFAM: Feedback attention is working memory, 2024, arXiv:2404.09173, algorithm 1.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor, nn

from memcourse.attention import rotary_heads, rotate
from memcourse.memory import BlockMemory, require, state_dtype
from memcourse.segments import positions_in_segment
from memcourse.transformer import FeedForward


class FeedbackState(NamedTuple):
    """The feedback of the block before, the finished blocks still in the window, and the open block.

    Keys are rotated to their place in their own block.  The open block's key and value are empty until it has a token;
    then they hold those of the feedback that it reads, and those of its tokens.  `blocks` counts what each row has
    finished: of the past blocks, which are allocated whole, newest last, only so many are a row's own.
    """

    feedback: Float[Tensor, "batch n_feedback d_model"]
    past_key: Float[Tensor, "batch heads past_tokens d_head"]
    past_value: Float[Tensor, "batch heads past_tokens d_head"]
    key: Float[Tensor, "batch heads open d_head"]
    value: Float[Tensor, "batch heads open d_head"]
    blocks: Int[Tensor, " batch"]


class FeedbackBlock(BlockMemory):
    """A transformer block with sliding-window attention and feedback: x (B, T, D), state -> (B, T, D), state.

    A token looks at its own block of block_len tokens up to itself, at the n_past_blocks blocks before it that exist,
    and at the n_feedback vectors of feedback that the block before left: one softmax over all.  When a block's last
    token has come, its feedback is computed from the feedback before and from the block's keys and values, without
    the past blocks; the first one has no residual.  n_feedback=0 is plain attention in a block sliding window.

    Rotary positions: to the tokens of a block, the feedback stands at the last token of the block before; when it
    asks, at the last token of the block that it sums up.
    Raises ValueError for d_model that n_heads does not divide into even widths, block_len below 1, n_feedback or
    n_past_blocks below 0.
    Source: Hwang et al., 2024, arXiv:2404.09173, section 3.  There F_0 is a prompt put before the first block's
    embeddings, which the layers below carry up to each layer; here it is a parameter of the layer.
    """

    def __init__(self, d_model: int, n_heads: int, *, block_len: int, n_feedback: int, n_past_blocks: int = 0) -> None:
        super().__init__()
        require(block_len >= 1, "block_len", block_len, "at least 1 token")
        require(n_feedback >= 0, "n_feedback", n_feedback, "0 vectors or more")
        require(n_past_blocks >= 0, "n_past_blocks", n_past_blocks, "0 blocks or more")
        self.config = {
            "d_model": d_model,
            "n_heads": n_heads,
            "block_len": block_len,
            "n_feedback": n_feedback,
            "n_past_blocks": n_past_blocks,
        }
        self.norm = nn.RMSNorm(d_model)
        self.heads = rotary_heads(d_model, n_heads)
        self.feed_forward = FeedForward(d_model)
        first = nn.Parameter(torch.randn(n_feedback, d_model))
        self.initial_feedback = first if n_feedback else None  # an empty parameter would never get a gradient

    def initial_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> FeedbackState:
        d_model, n_heads, block_len, n_feedback, n_past_blocks = self.config.values()
        dtype = state_dtype(dtype)

        def empty(*shape: int) -> Tensor:
            return torch.zeros(batch_size, *shape, device=device, dtype=dtype)

        if self.initial_feedback is None:
            feedback = empty(0, d_model)
        else:
            feedback = self.initial_feedback.to(device, dtype).expand(batch_size, -1, -1)
        d_head, past = d_model // n_heads, n_past_blocks * block_len
        return FeedbackState(
            feedback,
            empty(n_heads, past, d_head),
            empty(n_heads, past, d_head),
            empty(n_heads, 0, d_head),
            empty(n_heads, 0, d_head),
            torch.zeros(batch_size, dtype=torch.long, device=device),
        )

    def tokens_to_segment_end(self, state: FeedbackState) -> int:
        n_open = self._n_open(state)
        return self.config["block_len"] - n_open if n_open else 0

    def _n_open(self, state: FeedbackState) -> int:
        entries = state.key.shape[2]
        return entries - self.config["n_feedback"] if entries else 0

    def advance_with_hidden(self, x: Tensor, state: Any) -> tuple[Tensor, FeedbackState, Tensor]:
        T, L, n_open = x.shape[1], self.config["block_len"], self._n_open(state)
        past_len, closed = state.past_key.shape[2], (n_open + T) // L
        E = self.norm(x)
        query, key, value = self.heads.split(E, E)  # (B, H, T, d)
        place = positions_in_segment(n_open, T, L, x.device)
        query, key = rotate(torch.cat([query, key], dim=1), place).chunk(2, dim=1)
        # past blocks, the open one and the new tokens in a row: the window of block i begins at i * L
        open_key, open_value = (part[:, :, part.shape[2] - n_open :] for part in (state.key, state.value))
        keys = torch.cat([state.past_key.to(key.dtype), open_key.to(key.dtype), key], dim=2)
        values = torch.cat([state.past_value.to(key.dtype), open_value.to(key.dtype), value], dim=2)
        feedback, *fed = self._feedback(x, keys[:, :, past_len:], values[:, :, past_len:], state)
        read = [
            self._attend(query[:, :, start - n_open : stop - n_open], keys, values, fed, state, start)
            for start, stop in _pieces(n_open, T, L)
        ]
        x = x + self.heads.merge(torch.cat(read, dim=2))
        hidden = self.feed_forward.norm(x)  # (B, T, D)
        y = self.feed_forward.residual(x, hidden)

        end, dtype = past_len + closed * L, state.key.dtype
        own_key, own_value = (part[:, :, end:].to(dtype, copy=True) for part in (keys, values))
        if own_key.shape[2]:  # the open block keeps the keys and values of its feedback with those of its tokens
            own_key, own_value = (
                torch.cat([blocks[-1].to(dtype), part], dim=2)
                for blocks, part in zip(fed, (own_key, own_value), strict=True)
            )
        past_key, past_value = state.past_key, state.past_value
        if closed:  # a view would keep the whole chunk alive
            past_key, past_value = (part[:, :, end - past_len : end].to(dtype, copy=True) for part in (keys, values))
        return y, FeedbackState(feedback, past_key, past_value, own_key, own_value, state.blocks + closed), hidden

    def _feedback(
        self, x: Tensor, keys: Tensor, values: Tensor, state: FeedbackState
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """The feedback after the last finished block, and for each block the keys and values of what its tokens read.

        keys, values: (B, H, N, d) of the open block and the new tokens -> (B, F, D), 2 x n_blocks (B, H, F, d).
        """
        L, n_feedback = self.config["block_len"], self.config["n_feedback"]
        # split once: the gradient of each slice would be as long as the whole
        blocks = list(zip(keys.split(L, dim=2), values.split(L, dim=2), strict=True))
        if not n_feedback:
            nothing = [keys[:, :, :0]] * len(blocks)
            return state.feedback, nothing, nothing
        # an open block has computed these when it began
        begun = [(state.key[:, :, :n_feedback], state.value[:, :, :n_feedback])] if state.key.shape[2] else []
        fed = [(key.to(keys.dtype), value.to(keys.dtype)) for key, value in begun]
        feedback, before, last = state.feedback, self._turn(-1, keys), self._turn(L - 1, keys)
        for i, (block_keys, block_values) in enumerate(blocks):
            closes = block_keys.shape[2] == L
            if closes or i == len(fed):
                G = self.norm(feedback.to(x.dtype))
                query, key, value = self.heads.split(G, G)  # (B, H, F, d)
            if i == len(fed):
                fed.append((key @ before, value))
            if closes:
                seen_keys, seen_values = (
                    torch.cat(pair, dim=2) for pair in zip(fed[i], (block_keys, block_values), strict=True)
                )  # 2 x (B, H, F + L, d)
                read = F.scaled_dot_product_attention(query @ last, seen_keys, seen_values)
                # what a row starts with is no feedback yet: it is read, and not carried on
                carried = feedback if i else feedback * (state.blocks > 0)[:, None, None]
                feedback = carried + self.heads.merge(read)
                feedback = self.feed_forward.residual(feedback, self.feed_forward.norm(feedback.to(x.dtype)))
        fed_keys, fed_values = map(list, zip(*fed, strict=True))
        return feedback, fed_keys, fed_values

    def _turn(self, position: int, like: Tensor) -> Tensor:
        """The rotation to a position as a (d, d) matrix, to be multiplied from the right."""
        identity = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
        return rotate(identity[None, None], torch.full((1, len(identity)), position, device=like.device))[0, 0]

    def _attend(
        self, query: Tensor, keys: Tensor, values: Tensor, fed: list[list[Tensor]], state: Any, start: int
    ) -> Tensor:
        """What new tokens read that stand in one block, or fill whole blocks, which are folded into the batch.

        query (B, H, t, d) from place `start` on, counted from the open block's first token; keys and values of the
        past blocks, the open one and all new tokens; fed: those of the feedback, block by block -> (B, H, t, d).
        """
        L, n_past = self.config["block_len"], self.config["n_past_blocks"]
        first, n = start // L, max(1, query.shape[2] // L)  # the first block and how many
        folded = rearrange(query, "b h (n t) d -> (b n) h t d", n=n)
        width = start % L + folded.shape[2]  # tokens of each block so far
        seen = []
        for part, of_feedback in ((keys, fed[0]), (values, fed[1])):
            window = part[:, :, first * L : (first + n - 1 + n_past) * L + width].unfold(2, n_past * L + width, L)
            past, own = rearrange(window, "b h n d s -> (b n) h s d").split([n_past * L, width], dim=2)
            if n_past and part is keys:
                past = self._move_back(past)
            own_feedback = torch.stack(of_feedback[first : first + n], dim=1).flatten(0, 1)  # (B n, H, F, d)
            seen.append(torch.cat([past, own_feedback, own], dim=2))
        mask = self._mask(state.blocks + first, n, folded.shape[2], width)
        read = F.scaled_dot_product_attention(folded, seen[0], seen[1], attn_mask=mask)
        return rearrange(read, "(b n) h t d -> b h (n t) d", n=n)

    def _move_back(self, past: Tensor) -> Tensor:
        """Keys of the past blocks, each from its place in its own block to its place before the block that looks."""
        L, n_past = self.config["block_len"], self.config["n_past_blocks"]
        by_block = rearrange(past, "b h (n l) d -> b (h l) n d", l=L)
        moved = rotate(by_block, torch.arange(-n_past, 0, device=past.device)[None] * L)
        return rearrange(moved, "b (h l) n d -> b h (n l) d", l=L)

    def _mask(self, finished: Tensor, n: int, time: int, width: int) -> Tensor | None:
        """True where a token may look, (B n, 1, t, past + F + own), or (t, F + own) where there are no past blocks."""
        L, n_feedback, n_past = self.config["block_len"], self.config["n_feedback"], self.config["n_past_blocks"]
        device = finished.device
        if time == 1 and not n_past:
            return None
        own = torch.ones(time, n_feedback + width, dtype=torch.bool, device=device).tril(n_feedback + width - time)
        if not n_past:
            return own
        distance = torch.arange(n_past, 0, -1, device=device)  # of a past block, in blocks
        exists = (finished[:, None] + torch.arange(n, device=device))[:, :, None] >= distance  # (B, n, n_past)
        past = repeat(exists, "b n p -> (b n) 1 t (p l)", t=time, l=L)
        return torch.cat([past, own.expand(len(past), 1, -1, -1)], dim=3)


def _pieces(n_open: int, time: int, block_len: int) -> list[tuple[int, int]]:
    """The new tokens, counted from the open block's first: what goes on in it, whole blocks, what begins a new one."""
    end = n_open + time
    first = min(end, block_len) if n_open else 0
    whole = max(first, end // block_len * block_len)
    return [(start, stop) for start, stop in ((n_open, first), (first, whole), (whole, end)) if start < stop]
