"""Right answers to the exercises of chapter 06 in different styles: by exercise id, at least two for each."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcourse import lm2

Weights = dict[str, Tensor]


def update_in_three_lines(memory: Tensor, candidate: Tensor, W: Weights, b_f: Tensor) -> Tensor:
    g_in = torch.sigmoid(candidate @ W["in"])
    g_f = torch.sigmoid(memory @ W["f"] + b_f)
    return g_f * memory + g_in * torch.tanh(candidate)


def update_by_the_library(memory: Tensor, candidate: Tensor, W: Weights, b_f: Tensor) -> Tensor:
    forget_gate = F.linear(memory, W["f"].T, b_f).sigmoid()
    return lm2.update(memory, candidate, forget_gate, F.linear(candidate, W["in"].T).sigmoid())


def update_slot_by_slot(memory: Tensor, candidate: Tensor, W: Weights, b_f: Tensor) -> Tensor:
    slots = []
    for m, c in zip(memory.unbind(1), candidate.unbind(1), strict=True):
        kept = m / (1 + torch.exp(-torch.einsum("bi,ij->bj", m, W["f"]) - b_f))
        slots.append(kept + c.tanh() / (1 + torch.exp(-torch.einsum("bi,ij->bj", c, W["in"]))))
    return torch.stack(slots, dim=1)


def attention_by_transposing(asking: Tensor, asked: Tensor, W: Weights, n_heads: int) -> Tensor:
    q, k, v = (
        (rows @ W[name]).unflatten(2, (n_heads, -1)).transpose(1, 2)
        for rows, name in ((asking, "q"), (asked, "k"), (asked, "v"))
    )
    weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def attention_head_by_head(asking: Tensor, asked: Tensor, W: Weights, n_heads: int) -> Tensor:
    reads = []
    for q, k, v in zip(
        (asking @ W["q"]).chunk(n_heads, -1),
        (asked @ W["k"]).chunk(n_heads, -1),
        (asked @ W["v"]).chunk(n_heads, -1),
        strict=True,
    ):
        scores = torch.einsum("btd,bnd->btn", q, k) * q.shape[-1] ** -0.5
        reads.append(scores.exp() / scores.exp().sum(dim=-1, keepdim=True) @ v)
    return torch.cat(reads, dim=-1)


def attention_by_torch(asking: Tensor, asked: Tensor, W: Weights, n_heads: int) -> Tensor:
    def split(rows: Tensor) -> Tensor:
        B, T, D = rows.shape
        return rows.view(B, T, n_heads, D // n_heads).permute(0, 2, 1, 3)

    read = F.scaled_dot_product_attention(split(asking @ W["q"]), split(asked @ W["k"]), split(asked @ W["v"]))
    return read.permute(0, 2, 1, 3).reshape(asking.shape)


def read_by_transposing(tokens: Tensor, memory: Tensor, W: Weights, n_heads: int) -> Tensor:
    R = attention_by_transposing(tokens, memory, W, n_heads)
    return torch.sigmoid(R @ W["out"]) * R


def read_head_by_head(tokens: Tensor, memory: Tensor, W: Weights, n_heads: int) -> Tensor:
    R = attention_head_by_head(tokens, memory, W, n_heads)
    return R / (1 + (-R @ W["out"]).exp())


def read_by_torch(tokens: Tensor, memory: Tensor, W: Weights, n_heads: int) -> Tensor:
    R = attention_by_torch(tokens, memory, W, n_heads)
    return F.linear(R, W["out"].T).sigmoid().mul(R)


class LayerInTheStubsWords(nn.Module):
    """The stub's lines, changed as little as can be."""

    def __init__(self, d_model: int, segment_len: int) -> None:
        super().__init__()
        self.segment_len = segment_len
        for name in ("W_q", "W_k", "W_v", "W_out", "U_q", "U_k", "U_v", "W_in"):
            setattr(self, name, nn.Linear(d_model, d_model, bias=False))
        self.W_f = nn.Linear(d_model, d_model)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(dim=-1) @ value

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        ys = []
        for E in x.split(self.segment_len, dim=1):
            R = self.attend(self.W_q(E), self.W_k(memory), self.W_v(memory))
            ys.append(E + torch.sigmoid(self.W_out(R)) * R)
            if E.shape[1] == self.segment_len:
                C = self.attend(self.U_q(memory), self.U_k(E), self.U_v(E))
                g_in = torch.sigmoid(self.W_in(C))
                g_f = torch.sigmoid(self.W_f(memory))
                memory = g_f * memory + g_in * torch.tanh(C)
        return torch.cat(ys, dim=1), memory


class LayerTokenByToken(LayerInTheStubsWords):
    """It reads as a stream does, and writes when a segment is whole."""

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        y, open_segment = [], []
        for E in x.split(1, dim=1):
            R = F.scaled_dot_product_attention(self.W_q(E), self.W_k(memory), self.W_v(memory))
            y.append(E + R * self.W_out(R).sigmoid())
            open_segment.append(E)
            if len(open_segment) == self.segment_len:
                Z = torch.cat(open_segment, dim=1)
                C = F.scaled_dot_product_attention(self.U_q(memory), self.U_k(Z), self.U_v(Z))
                memory = memory * self.W_f(memory).sigmoid() + C.tanh() * self.W_in(C).sigmoid()
                open_segment = []
        return torch.cat(y, dim=1), memory


def write_by_a_list(
    memory: Tensor, inputs: Tensor, thoughts: Tensor, U: Weights, W: Weights, b_f: Tensor, writes: str
) -> Tensor:
    joint = torch.cat([inputs, thoughts], dim=1)
    passes = {"input": [inputs], "thought": [thoughts], "both": [inputs, thoughts], "joint": [joint]}
    for Z in passes[writes]:
        scores = memory @ U["q"] @ (Z @ U["k"]).transpose(1, 2) / memory.shape[-1] ** 0.5
        C = scores.softmax(dim=-1) @ (Z @ U["v"])
        memory = lm2.update(memory, C, torch.sigmoid(memory @ W["f"] + b_f), torch.sigmoid(C @ W["in"]))
    return memory


def write_by_calling_itself(
    memory: Tensor, inputs: Tensor, thoughts: Tensor, U: Weights, W: Weights, b_f: Tensor, writes: str
) -> Tensor:
    rest = (U, W, b_f, "input")
    if writes == "thought":
        return write_by_calling_itself(memory, thoughts, inputs, *rest)
    if writes == "both":
        after_inputs = write_by_calling_itself(memory, inputs, thoughts, *rest)
        return write_by_calling_itself(after_inputs, thoughts, inputs, *rest)
    Z = inputs if writes == "input" else torch.cat((inputs, thoughts), 1)
    C = F.scaled_dot_product_attention(memory @ U["q"], Z @ U["k"], Z @ U["v"])
    g_f, g_in = (memory @ W["f"]).add(b_f).sigmoid(), (C @ W["in"]).sigmoid()
    return lm2.update(memory=memory, candidate=C, input_gate=g_in, forget_gate=g_f)


def segments_folded(x: Tensor, memory: Tensor, read: Any, write: Any, segment_len: int) -> tuple[Tensor, Tensor]:
    """Whole segments in one call, the rest in another."""
    B, T, D = x.shape
    S = T // segment_len
    end = S * segment_len
    banks = [memory]
    for s in range(S):
        banks.append(write(banks[-1], x[:, s * segment_len : (s + 1) * segment_len]))
    reads = []
    if S:
        folded = x[:, :end].reshape(B * S, segment_len, D)
        reads.append(read(folded, torch.stack(banks[:-1], dim=1).flatten(0, 1)).reshape(B, end, D))
    if end < T:
        reads.append(read(x[:, end:], banks[-1]))
    return torch.cat(reads, dim=1), banks[-1]


def segments_filled_up(x: Tensor, memory: Tensor, read: Any, write: Any, segment_len: int) -> tuple[Tensor, Tensor]:
    """The last segment filled up with zeros for the read, segments before rows in the batch."""
    B, T, D = x.shape
    pieces = F.pad(x, (0, 0, 0, -T % segment_len)).split(segment_len, dim=1)
    banks = [memory]
    for piece in pieces[: T // segment_len]:
        banks.append(write(banks[-1], piece))
    reads = read(torch.cat(pieces), torch.cat(banks[: len(pieces)]))  # (S B, L, D)
    return torch.cat(reads.split(B), dim=1)[:, :T], banks[-1]


def segments_as_tokens(x: Tensor, memory: Tensor, read: Any, write: Any, segment_len: int) -> tuple[Tensor, Tensor]:
    """Every token a row of its own beside its bank: one call, at the price of a copied bank for each token."""
    B, T, D = x.shape
    banks = [memory]
    for segment in x.split(segment_len, dim=1):
        if segment.shape[1] == segment_len:
            banks.append(write(banks[-1], segment))
    own = torch.stack(banks, dim=1)[:, torch.arange(T) // segment_len]  # (B, T, N, D)
    return read(x.reshape(B * T, 1, D), own.flatten(0, 1)).reshape(B, T, D), banks[-1]


PREDICTED = {
    "half_life": 0.69 / 0.018,
    "two_later": (1 / 1.37) ** 2,
    "bound": 10,
    "closes_at": 7,
    "different_slots": 1,
    "first_reader": 4,
    "moved": 15,
}

ANSWERS: dict[str, list[Any]] = {
    "6.1": [PREDICTED, PREDICTED | {"half_life": 38.2, "two_later": 0.534, "bound": 10.0}],
    "6.2": [update_in_three_lines, update_by_the_library, update_slot_by_slot],
    "6.3": [read_by_transposing, read_head_by_head, read_by_torch],
    "6.4": [attention_by_transposing, attention_head_by_head, attention_by_torch],
    "6.5": [LayerInTheStubsWords, LayerTokenByToken],
    "6.6": [write_by_a_list, write_by_calling_itself],
    "6.7": [segments_folded, segments_filled_up, segments_as_tokens],
}
