"""Right answers to the exercises of chapter 08 in different styles: by exercise id, at least two for each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcourse import SequenceMemory

Weights = dict[str, Tensor]
Norm = Callable[[Tensor], Tensor]


def masks_in_pieces(block: int, block_len: int, n_feedback: int, n_past_blocks: int) -> tuple[Tensor, Tensor]:
    L = block_len
    past = torch.ones(L, n_past_blocks * L, dtype=torch.bool)
    past[:, : max(0, n_past_blocks - block) * L] = False
    own = torch.ones(L, L, dtype=torch.bool).tril()
    tokens = torch.cat([past, torch.ones(L, n_feedback, dtype=torch.bool), own], dim=1)
    return tokens, torch.ones(n_feedback, n_feedback + L, dtype=torch.bool)


def masks_by_positions(block: int, block_len: int, n_feedback: int, n_past_blocks: int) -> tuple[Tensor, Tensor]:
    """Every column has a place in the text; that of the feedback is always in sight."""
    start = block * block_len
    columns = [start - n_past_blocks * block_len + i for i in range(n_past_blocks * block_len)]
    columns += [0] * n_feedback + [start + i for i in range(block_len)]
    tokens = [[0 <= c <= start + i for c in columns] for i in range(block_len)]
    feedback = [[True] * (n_feedback + block_len) for _ in range(n_feedback)]
    return (
        torch.tensor(tokens, dtype=torch.bool).reshape(block_len, len(columns)),
        torch.tensor(feedback, dtype=torch.bool).reshape(n_feedback, n_feedback + block_len),
    )


def update_by_transposing(
    feedback: Tensor, E: Tensor, blocks: Tensor, W: Weights, n_heads: int, norm: Norm, ff: Norm
) -> Tensor:
    def split(rows: Tensor) -> Tensor:
        return rows.unflatten(2, (n_heads, -1)).transpose(1, 2)

    G = norm(feedback)
    seen = torch.cat([G, E], dim=1)
    q, k, v = split(G @ W["q"]), split(seen @ W["k"]), split(seen @ W["v"])
    read = ((q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    A = feedback * (blocks > 0)[:, None, None] + read @ W["o"]
    return A + ff(norm(A))


def update_by_torch(
    feedback: Tensor, E: Tensor, blocks: Tensor, W: Weights, n_heads: int, norm: Norm, ff: Norm
) -> Tensor:
    B, n, D = feedback.shape
    G = norm(feedback)
    seen = torch.cat((G, E), 1)
    q = (G @ W["q"]).view(B, n, n_heads, D // n_heads).permute(0, 2, 1, 3)
    k, v = ((seen @ W[name]).view(B, -1, n_heads, D // n_heads).permute(0, 2, 1, 3) for name in "kv")
    read = F.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3).reshape(B, n, D)
    carried = torch.where(blocks.view(-1, 1, 1) == 0, torch.zeros_like(feedback), feedback)
    A = carried + F.linear(read, W["o"].T)
    return A.add(ff(norm(A)))


def update_row_by_row(
    feedback: Tensor, E: Tensor, blocks: Tensor, W: Weights, n_heads: int, norm: Norm, ff: Norm
) -> Tensor:
    rows = []
    for f, e, n in zip(feedback, E, blocks.tolist(), strict=True):
        g = norm(f[None])[0]
        seen, heads = torch.cat([g, e]), []
        for q, k, v in zip(
            *((x @ W[name]).chunk(n_heads, dim=1) for x, name in ((g, "q"), (seen, "k"), (seen, "v"))), strict=True
        ):
            weights = (q @ k.T * k.shape[1] ** -0.5).exp()
            heads.append(weights @ v / weights.sum(dim=1, keepdim=True))
        a = torch.cat(heads, dim=1) @ W["o"]
        a = a + f if n else a
        rows.append(a + ff(norm(a[None]))[0])
    return torch.stack(rows)


class LayerInTheStubsWords(nn.Module):
    """The stub's lines, changed as little as can be."""

    def __init__(self, d_model: int, block_len: int) -> None:
        super().__init__()
        self.block_len = block_len
        self.norm, self.ff_norm = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        for name in ("W_q", "W_k", "W_v", "W_o"):
            setattr(self, name, nn.Linear(d_model, d_model, bias=False))
        self.expand = nn.Linear(d_model, 2 * d_model, bias=False)
        self.contract = nn.Linear(2 * d_model, d_model, bias=False)

    def attend(self, asking: Tensor, asked: Tensor, may_look: Tensor | None = None) -> Tensor:
        scores = self.W_q(asking) @ self.W_k(asked).mT / asking.shape[2] ** 0.5
        if may_look is not None:
            scores = scores.masked_fill(~may_look, -torch.inf)
        return self.W_o(scores.softmax(dim=-1) @ self.W_v(asked))

    def feed_forward(self, A: Tensor) -> Tensor:
        return A + self.contract(nn.functional.gelu(self.expand(self.ff_norm(A))))

    def forward(self, x: Tensor, feedback: Tensor) -> tuple[Tensor, Tensor]:
        ys, past = [], x[:, :0]
        for number, X in enumerate(x.split(self.block_len, dim=1)):
            E, G = self.norm(X), self.norm(feedback)
            before, L = past.shape[1] + G.shape[1], X.shape[1]
            may_look = torch.ones(L, before + L, dtype=torch.bool).tril(before)
            A = X + self.attend(E, torch.cat([past, G, E], dim=1), may_look)
            ys.append(self.feed_forward(A))
            if X.shape[1] == self.block_len:
                A_F = self.attend(G, torch.cat([G, E], dim=1))
                feedback = self.feed_forward(A_F + feedback if number else A_F)
            past = E
        return torch.cat(ys, dim=1), feedback


class LayerTokenByToken(LayerInTheStubsWords):
    """It answers as a stream does, and makes the feedback new when a block is whole."""

    def forward(self, x: Tensor, feedback: Tensor) -> tuple[Tensor, Tensor]:
        E, ys, L = self.norm(x), [], self.block_len
        residual = torch.zeros_like(feedback)
        for t in range(x.shape[1]):
            start = t // L * L
            G = self.norm(feedback)
            seen = torch.cat([E[:, max(0, start - L) : start], G, E[:, start : t + 1]], dim=1)
            ys.append(self.feed_forward(x[:, t : t + 1] + self.attend(E[:, t : t + 1], seen)))
            if (t + 1) % L == 0:
                read = self.attend(G, torch.cat([E[:, start : t + 1], G], dim=1))
                feedback = residual = self.feed_forward(residual + read)
        return torch.cat(ys, dim=1), feedback


def blocks_with_a_mask(E: Tensor, feedback: Tensor, W: Weights, update: Any, block_len: int) -> tuple[Tensor, Tensor]:
    L, n = block_len, feedback.shape[1]
    blocks = E.unflatten(1, (-1, L))  # (B, S, L, D)
    read_by = [feedback]
    for block in blocks.unbind(dim=1):
        read_by.append(update(read_by[-1], block))
    past = torch.cat([torch.zeros_like(blocks[:, :1]), blocks[:, :-1]], dim=1)
    seen = torch.cat([past, torch.stack(read_by[:-1], dim=1), blocks], dim=2)
    mask = torch.ones(L, L + n + L, dtype=torch.bool).tril(L + n).repeat(blocks.shape[1], 1, 1)
    mask[0, :, :L] = False
    scores = (blocks @ W["q"]) @ (seen @ W["k"]).mT / E.shape[2] ** 0.5
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return (weights @ (seen @ W["v"])).flatten(1, 2), read_by[-1]


def blocks_by_unfold(E: Tensor, feedback: Tensor, W: Weights, update: Any, block_len: int) -> tuple[Tensor, Tensor]:
    """Projected once, windows as views, one call of torch's kernel with blocks in the batch."""
    (B, T, D), L, n = E.shape, block_len, feedback.shape[1]
    S = T // L
    F_s, all_of_them = feedback, []
    for s in range(S):
        all_of_them.append(F_s)
        F_s = update(F_s, E[:, s * L : (s + 1) * L])
    fed = torch.cat(all_of_them, dim=1).reshape(B * S, n, D)

    def windows(weight: Tensor) -> Tensor:
        padded = F.pad(E @ weight, (0, 0, L, 0))
        own = padded.unfold(1, 2 * L, L).transpose(2, 3).reshape(B * S, 2 * L, D)
        return torch.cat([fed @ weight, own], dim=1)  # feedback, past, own

    may_look = torch.ones(L, n + 2 * L, dtype=torch.bool).tril(n + L).expand(B, S, L, n + 2 * L).clone()
    may_look[:, 0, :, n : n + L] = False
    query = (E @ W["q"]).reshape(B * S, L, D)
    read = F.scaled_dot_product_attention(query, windows(W["k"]), windows(W["v"]), attn_mask=may_look.flatten(0, 1))
    return read.reshape(B, T, D), F_s


class PatientInTheStubsWords(nn.Module):
    """The stub's lines, changed as little as can be."""

    findings = {"cut": True, "forgets": True, "unbound": True, "one_length": True, "leaks": False, "shut": False}

    def __init__(self, n_words: int, d_model: int, segment_len: int) -> None:
        super().__init__()
        self.segment_len = segment_len
        self.embedding = nn.Embedding(n_words, d_model)
        for name in ("shift", "query", "key", "value"):
            setattr(self, name, nn.Linear(d_model, d_model, bias=False))
        self.write = nn.Linear(d_model, 1)
        self.forget_bias = nn.Parameter(torch.full((d_model,), 4.0))

    def embed(self, tokens: Tensor) -> Tensor:
        e = self.embedding(tokens)
        return e + self.shift(nn.functional.pad(e, (0, 0, 1, 0))[:, :-1])

    def remember(self, memory: Tensor, x: Tensor) -> Tensor:
        written = (torch.sigmoid(self.write(x)) * self.key(x)).mT @ self.value(x)
        return torch.sigmoid(self.forget_bias)[:, None] * memory + written

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        memory, reads = x.new_zeros(len(x), x.shape[2], x.shape[2]), []
        for segment in x.split(self.segment_len, dim=1):
            reads.append(self.query(segment) @ memory)
            if segment.shape[1] == self.segment_len:
                memory = self.remember(memory, segment)
        return torch.cat(reads, dim=1) @ self.embedding.weight.T

    @staticmethod
    def n_segments(step: int) -> int:
        return 2 + step % 5


class PatientWithSums(PatientInTheStubsWords):
    """All writes at once; lengths drawn by chance; a gate that is farther open."""

    def __init__(self, n_words: int, d_model: int, segment_len: int) -> None:
        super().__init__(n_words, d_model, segment_len)
        self.forget_bias = nn.Parameter(5.0 * torch.ones(d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        e = self.embedding(tokens)
        x = e + torch.cat([torch.zeros_like(e[:, :1]), self.shift(e[:, :-1])], dim=1)
        L, g = self.segment_len, self.forget_bias.sigmoid()
        S = x.shape[1] // L
        whole = x[:, : S * L].unflatten(1, (S, L))
        written = torch.einsum(
            "bsl,bsli,bslj->bsij", self.write(whole)[..., 0].sigmoid(), self.key(whole), self.value(whole)
        )
        memories = [torch.zeros_like(written[:, 0])]
        for s in range(S):
            memories.append(g[:, None] * memories[-1] + written[:, s])
        own = torch.stack(memories, dim=1)[:, torch.arange(x.shape[1]) // L]  # (B, T, D, D)
        return F.linear(torch.einsum("bti,btij->btj", self.query(x), own), self.embedding.weight)

    @staticmethod
    def n_segments(step: int) -> int:
        return random.Random(step).randint(2, 6)


class Kept(NamedTuple):
    h: Tensor


class MyVector(SequenceMemory):
    """A vector that keeps a share of itself."""

    level = "mixer"
    width = 48

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.config = {"d_model": d_model}
        self.new, self.gate, self.out = (nn.Linear(d_model, d_model) for _ in range(3))

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> Kept:
        return Kept(torch.zeros(batch_size, self.config["d_model"], device=device, dtype=dtype))

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Kept]:
        h, hs = state.h, []
        for x_t in x.unbind(dim=1):
            g = self.gate(x_t).sigmoid()
            h = g * h + (1 - g) * self.new(x_t)
            hs.append(h)
        return self.out(torch.stack(hs, dim=1)), Kept(h)


class MyMatrix(SequenceMemory):
    """Outer products of keys and values that fade, for a whole chunk at once."""

    level = "mixer"
    width = 47

    def __init__(self, d_model: int, fade: float = 0.99) -> None:
        super().__init__()
        self.config = {"d_model": d_model, "fade": fade}
        self.project = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model)

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> tuple[Tensor]:
        d_model = self.config["d_model"]
        return (torch.zeros(batch_size, d_model, d_model, device=device, dtype=dtype),)

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, tuple[Tensor]]:
        T, fade = x.shape[1], self.config["fade"]
        q, k, v = self.project(x).chunk(3, dim=-1)
        k = k.softmax(dim=-1)
        age = torch.arange(T)[:, None] - torch.arange(T)
        share = torch.where(age >= 0, fade ** age.clamp(min=0), 0.0)  # (T, T)
        before = fade ** torch.arange(1, T + 1)[:, None]
        read = before * (q @ state[0]) + (q @ k.mT * share) @ v
        after = fade**T * state[0] + (share[-1][:, None] * k).mT @ v
        return self.out(read), (after,)


PREDICTED = {
    "keys": 10,
    "first_keys": 5,
    "feedback_keys": 7,
    "state": 144,
    "window_reach": 45,
    "earliest": 12,
    "earliest_with_feedback": 1,
}

ANSWERS: dict[str, list[Any]] = {
    "8.1": [PREDICTED, {name: float(number) for name, number in PREDICTED.items()}],
    "8.2": [masks_in_pieces, masks_by_positions],
    "8.3": [update_by_transposing, update_by_torch, update_row_by_row],
    "8.4": [LayerInTheStubsWords, LayerTokenByToken],
    "8.5": [blocks_with_a_mask, blocks_by_unfold],
    "8.6": [PatientInTheStubsWords, PatientWithSums],
    "8.7": [MyVector, MyMatrix],
}
