"""Attention is a soft dictionary: the context's keys and values are the memory, a query reads a weighted sum.

weights = softmax(query keys^T / sqrt(d))          read = weights values
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memcourse.memory import SequenceMemory, require, state_dtype


def attend(
    query: Float[Tensor, "... time d_key"],
    key: Float[Tensor, "... source d_key"],
    value: Float[Tensor, "... source d_value"],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    scale: float | None = None,
) -> tuple[Float[Tensor, "... time d_value"], Float[Tensor, "... time source"]]:
    """Scaled dot-product attention: softmax(Q K^T * scale) V, with its weights.

    query (..., T, d), key (..., S, d), value (..., S, v) -> output (..., T, v), weights (..., T, S).
    `mask`, broadcast to (..., T, S), is True where a query may look; a query that may look nowhere reads zeros.
    `scale` is 1/sqrt(d) unless given.  Raises ValueError where shapes do not fit or the mask is not boolean.
    Source: Vaswani et al., Attention Is All You Need, 2017, arXiv:1706.03762, equation 1.
    """
    _check_attend(query, key, value, mask)
    scores = query @ key.mT  # (..., T, S)
    scores = scores * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    weights = masked_softmax(scores, mask)
    return weights @ value, weights


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the last axis of what the mask allows; zeros, and no NaN, where it allows nothing."""
    if mask is None:
        return scores.softmax(dim=-1)
    # the lowest finite number rather than -inf: a row of -inf would be NaN in the softmax and in its gradient
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~mask, 0.0)


def _check_attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> None:
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        require(tensor.ndim >= 2, name, tuple(tensor.shape), "at least two-dimensional, (..., length, width)")
    same_width = key.shape[-1] == query.shape[-1]
    require(same_width, "key", tuple(key.shape), f"as wide as the query, (..., source, {query.shape[-1]})")
    same_length = value.shape[-2] == key.shape[-2]
    require(same_length, "value", tuple(value.shape), f"as long as the key, (..., {key.shape[-2]}, d_value)")
    check_mask(mask, query.shape[-2], key.shape[-2])


def check_mask(mask: Tensor | None, time: int, source: int) -> None:
    """Raise ValueError unless the mask is boolean and its last two axes broadcast to (time, source)."""
    if mask is None:
        return
    require(mask.dtype == torch.bool, "mask", mask.dtype, "boolean, True where a query may look")
    fits = mask.ndim >= 2 and mask.shape[-2] in (1, time) and mask.shape[-1] in (1, source)
    require(fits, "mask", tuple(mask.shape), f"of a shape that broadcasts to (..., {time}, {source})")


def hopfield_step(
    query: Float[Tensor, "... dim"], patterns: Float[Tensor, "... n_patterns dim"], *, beta: float
) -> Float[Tensor, "... dim"]:
    """One update of a modern Hopfield network: xi <- softmax(beta xi X^T) X, patterns X as rows.

    query (d,) or (..., q, d), patterns (..., n, d) -> the shape of query.  It is attention whose values are its keys
    and whose scale is beta.  Raises ValueError for beta <= 0 or widths that differ.
    Source: Ramsauer et al., Hopfield Networks is All You Need, 2021, arXiv:2008.02217, equation 3.
    """
    require(beta > 0, "beta", beta, "greater than 0")
    fits = patterns.ndim >= 2 and query.ndim >= 1 and patterns.shape[-1] == query.shape[-1]
    require(
        fits,
        "patterns",
        tuple(patterns.shape),
        f"(..., n, {query.shape[-1] if query.ndim else 'd'}) as wide as the query",
    )
    return (beta * query @ patterns.mT).softmax(dim=-1) @ patterns


class AdditiveAttention(nn.Module):
    """Attention whose score is a small network: e_ts = v . tanh(W query_t + U key_s).

    query (B, T, query_dim), key (B, S, key_dim), value (B, S, v) -> output (B, T, v), weights (B, T, S).
    Source: Bahdanau, Cho, Bengio, Neural Machine Translation by Jointly Learning to Align and Translate, 2015,
    arXiv:1409.0473, section 3.1.
    """

    def __init__(self, query_dim: int, key_dim: int, hidden_dim: int) -> None:
        super().__init__()
        for name, size in (("query_dim", query_dim), ("key_dim", key_dim), ("hidden_dim", hidden_dim)):
            require(size >= 1, name, size, "at least 1")
        self.query = nn.Linear(query_dim, hidden_dim, bias=False)
        self.key = nn.Linear(key_dim, hidden_dim, bias=False)
        self.score = nn.Linear(hidden_dim, 1, bias=False)

    def forward(
        self,
        query: Float[Tensor, "batch time query_dim"],
        key: Float[Tensor, "batch source key_dim"],
        value: Float[Tensor, "batch source d_value"],
        mask: Bool[Tensor, "..."] | None = None,
    ) -> tuple[Float[Tensor, "batch time d_value"], Float[Tensor, "batch time source"]]:
        for name, tensor, width in (
            ("query", query, self.query.in_features),
            ("key", key, self.key.in_features),
            ("value", value, value.shape[-1]),
        ):
            fits = tensor.ndim == 3 and tensor.shape[-1] == width
            require(fits, name, tuple(tensor.shape), f"(batch, length, {width})")
        same_length = value.shape[:2] == key.shape[:2]
        require(
            same_length,
            "value",
            tuple(value.shape),
            f"({len(key)}, {key.shape[1]}, d_value), as long as the key",
        )
        check_mask(mask, query.shape[1], key.shape[1])
        hidden = torch.tanh(self.query(query)[:, :, None] + self.key(key)[:, None])  # (B, T, S, hidden_dim)
        weights = masked_softmax(self.score(hidden).squeeze(-1), mask)  # (B, T, S)
        return weights @ value, weights


class Heads(nn.Module):
    """The four projections of multi-head attention: into n_heads queries, keys and values, and back.

    No biases: a key's bias adds the same number to every score of a query, and the softmax ignores it.
    """

    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        require(n_heads >= 1, "n_heads", n_heads, "at least 1")
        divides = d_model >= 1 and d_model % n_heads == 0
        require(divides, "d_model", d_model, f"a positive multiple of n_heads={n_heads}")
        self.n_heads = n_heads
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def split(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of x, keys and values of the context: (B, T, D), (B, S, D) -> (B, H, T, d), 2 x (B, H, S, d)."""
        query, key, value = (
            rearrange(part, "b t (h d) -> b h t d", h=self.n_heads)
            for part in (self.query(x), self.key(context), self.value(context))
        )
        return query, key, value

    def merge(self, read: Tensor) -> Tensor:
        """What the heads read, side by side and projected: (B, H, T, d) -> (B, T, D)."""
        return self.output(rearrange(read, "b h t d -> b t (h d)"))


def rotary_heads(d_model: int, n_heads: int) -> Heads:
    """`Heads` of an even width, which rotary positions need.  Raises ValueError for any other."""
    heads = Heads(d_model, n_heads)
    even = (d_model // n_heads) % 2 == 0
    require(even, "d_model", d_model, f"n_heads={n_heads} times an even width, which rotary positions need")
    return heads


class MultiHeadAttention(nn.Module):
    """n_heads attentions side by side: head_h = attend(x Wq_h, y Wk_h, y Wv_h), output [head_1 ... head_H] Wo.

    x (B, T, D) -> (B, T, D).  Without a context the memory y is x itself (self-attention); with one, (B, S, D), it is
    the context (cross-attention).  It has no order of its own: shuffle the context, and the output is the same.
    `mask`, boolean, is (T, S), (B, T, S) or (B, H, T, S).  Raises ValueError for causal=True with a context.
    Source: Vaswani et al., 2017, arXiv:1706.03762, section 3.2.2.
    """

    def __init__(self, d_model: int, n_heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.config = {"d_model": d_model, "n_heads": n_heads, "causal": causal}
        self.heads = Heads(d_model, n_heads)

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        context: Float[Tensor, "batch source d_model"] | None = None,
        mask: Bool[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        causal, d_model = self.config["causal"], self.config["d_model"]
        require(not (causal and context is not None), "context", "a tensor", "None where causal=True")
        memory = x if context is None else context
        for name, tensor in (("x", x), ("context", memory)):
            fits = tensor.ndim == 3 and tensor.shape[-1] == d_model
            require(fits, name, tuple(tensor.shape), f"(batch, length, d_model={d_model})")
        T, S = x.shape[1], memory.shape[1]
        check_mask(mask, T, S)
        if mask is not None and causal:
            mask = mask & torch.ones(T, S, dtype=torch.bool, device=x.device).tril()
        if mask is not None and mask.ndim == 3:
            mask = mask[:, None]  # (B, 1, T, S): the same for every head
        query, key, value = self.heads.split(x, memory)
        return self.heads.merge(masked_attention(query, key, value, mask, causal=bool(causal) and mask is None))


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, causal: bool = False
) -> Tensor:
    """What `attend` reads, by torch's fused kernel, which keeps no weights: (B, H, T, d) ... -> (B, H, T, v)."""
    read = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    if mask is None:
        return read
    return read.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)


def rotate(x: Float[Tensor, "batch heads time d_head"], position: Int[Tensor, "#batch time"]) -> Tensor:
    """Rotary position: turn each pair (x_i, x_{i + d/2}) by the angle position * 10000^(-2i/d).

    The score of a rotated query and a rotated key depends on the distance between them alone.  Angles are taken in
    float64 from an integer position, so that a stream may be as long as it likes.
    Source: Su et al., RoFormer, 2021, arXiv:2104.09864, section 3.2.2.
    """
    cos, sin = rotary_turn(position[:, None], x)  # (B, 1, T, d/2)
    return turn(x, cos, sin)


def rotary_turn(position: Int[Tensor, "*places"], x: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every position's angles, for vectors like those of x: (...) -> 2 x (..., d/2)."""
    half = x.shape[-1] // 2
    where = torch.device("cpu") if x.device.type == "mps" else x.device  # mps has no float64
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64, device=where) / half)
    angle = position.to(where, torch.float64)[..., None] * frequency
    return angle.cos().to(x), angle.sin().to(x)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin) of the two halves of x."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class KeyValueCache(NamedTuple):
    """The state of CausalAttention: rotated keys and values, newest last, and how many tokens each row has seen.

    Of the S entries, the last min(position, S) are a row's own; those before them are empty and never attended to.
    """

    key: Float[Tensor, "batch heads entries d_head"]
    value: Float[Tensor, "batch heads entries d_head"]
    position: Int[Tensor, " batch"]


class CausalAttention(SequenceMemory):
    """Self-attention over the past, with rotary positions; the key-value cache is its memory.

    x (B, T, D), state -> (B, T, D), state.  Token t looks at tokens s <= t; with a window of W tokens, at
    t - W < s <= t, and the state has a fixed size of W - 1 entries.  Without one, it grows with every token.
    Raises ValueError for d_model that n_heads does not divide into even widths, and for a window below 1.
    """

    level: ClassVar[str] = "mixer"

    def __init__(self, d_model: int, n_heads: int, *, window: int | None = None) -> None:
        super().__init__()
        require(window is None or window >= 1, "window", window, "None or at least 1 token")
        self.config = {"d_model": d_model, "n_heads": n_heads, "window": window}
        self.heads = rotary_heads(d_model, n_heads)

    def initial_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> KeyValueCache:
        d_model, n_heads, window = self.config.values()
        entries = 0 if window is None else window - 1
        empty = torch.zeros(batch_size, n_heads, entries, d_model // n_heads, device=device, dtype=state_dtype(dtype))
        return KeyValueCache(empty, empty.clone(), torch.zeros(batch_size, dtype=torch.long, device=device))

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, KeyValueCache]:
        T, S = x.shape[1], state.key.shape[2]
        position = state.position[:, None] + torch.arange(T, device=x.device)  # (B, T)
        query, key, value = self.heads.split(x, x)  # (B, H, T, d)
        keys = torch.cat([state.key, rotate(key, position).to(state.key.dtype)], dim=2)  # (B, H, S + T, d)
        values = torch.cat([state.value, value.to(state.value.dtype)], dim=2)
        filled = torch.arange(S + T, device=x.device) >= S - state.position[:, None]  # (B, S + T)
        look = _look_back if self.config["window"] is None else _look_in_window
        read = look(rotate(query, position).to(value.dtype), keys.to(value.dtype), values.to(value.dtype), filled)
        if self.config["window"]:  # a view would keep the whole chunk alive
            keys, values = keys[:, :, T:].clone(), values[:, :, T:].clone()
        return self.heads.merge(read), KeyValueCache(keys, values, state.position + T)


def _look_back(query: Tensor, keys: Tensor, values: Tensor, filled: Tensor) -> Tensor:
    """Every query at all filled entries up to its own: (B, H, T, d), 2 x (B, H, S + T, d), (B, S + T)."""
    T, total = query.shape[2], keys.shape[2]
    if T == total:  # nothing came before: the kernel's own causal mask is the fastest
        return masked_attention(query, keys, values, causal=True)
    past = torch.ones(T, total, dtype=torch.bool, device=query.device).tril(total - T)
    return masked_attention(query, keys, values, past & filled[:, None, None])


def _look_in_window(query: Tensor, keys: Tensor, values: Tensor, filled: Tensor) -> Tensor:
    """Every query at its own entry and the S before it, in blocks folded into the batch: O(T * window)."""
    B, H, T, _ = query.shape
    S = keys.shape[2] - T
    block = min(T, S + 1)
    n_blocks = -(-T // block)
    padding = n_blocks * block - T
    query, keys, values = (F.pad(part, (0, 0, 0, padding)) for part in (query, keys, values))
    filled = F.pad(filled, (0, padding), value=True).unfold(1, S + block, block)  # (B, n, S + block)
    keys, values = (rearrange(part.unfold(2, S + block, block), "b h n d s -> (b n) h s d") for part in (keys, values))
    ones = torch.ones(block, S + block, dtype=torch.bool, device=query.device)
    band = ones.triu() & ones.tril(S)  # query i sees entries i ... i + S of its block's keys
    mask = rearrange(band & filled[:, :, None], "b n t s -> (b n) 1 t s")
    query = rearrange(query, "b h (n t) d -> (b n) h t d", n=n_blocks)
    read = masked_attention(query, keys, values, mask)  # (B n, H, block, d)
    return rearrange(read, "(b n) h t d -> b h (n t) d", b=B)[:, :, :T]
