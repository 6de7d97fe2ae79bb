"""Right answers to the exercises of chapter 01 in different styles: by exercise id, at least two for each."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcourse.attention import AdditiveAttention
from memcourse.attention import attend as library_attend


def weights_by_einsum(query: Tensor, key: Tensor) -> Tensor:
    return torch.einsum("td,sd->ts", query, key).div(math.sqrt(query.size(-1))).softmax(-1)


def weights_by_loops(query: Tensor, key: Tensor) -> Tensor:
    rows = []
    for q in query:
        scores = torch.stack([(q * k).sum() / len(q) ** 0.5 for k in key])
        exponentials = torch.exp(scores - scores.max())
        rows.append(exponentials / exponentials.sum())
    return torch.stack(rows)


def weights_by_the_library(query: Tensor, key: Tensor) -> Tensor:
    return library_attend(query, key, key)[1]


def attend_by_filling(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = (query @ key.T / math.sqrt(query.shape[1])).masked_fill(~mask, torch.finfo(query.dtype).min)
    return F.softmax(scores, dim=-1).masked_fill(~mask, 0) @ value


def attend_by_loops(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    reads = []
    for q, visible in zip(query, mask, strict=True):
        if visible.any():
            weights = (key[visible] @ q / len(q) ** 0.5).softmax(dim=0)
            reads.append(weights @ value[visible])
        else:
            reads.append(torch.zeros_like(value[0]))
    return torch.stack(reads)


def attend_by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    scores = query @ key.T / query.shape[1] ** 0.5
    exponentials = torch.exp(scores - scores.amax(dim=1, keepdim=True)) * mask
    return exponentials / exponentials.sum(dim=1, keepdim=True).clamp(min=1e-30) @ value


def attend_by_the_library(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    return library_attend(query, key, value, mask=mask)[0]


class LayerInTheGuidesWords(nn.Module):
    """The guide's lines, changed as little as can be."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.attn = nn.Linear(hidden_size * 2, hidden_size)
        self.v = nn.Parameter(torch.rand(hidden_size))
        stdv = 1.0 / math.sqrt(self.v.size(0))
        self.v.data.uniform_(-stdv, stdv)

    def forward(self, hidden: Tensor, encoder_outputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        timestep = encoder_outputs.size(1)
        h = hidden.repeat(timestep, 1, 1).transpose(0, 1)
        energies = self.score(h, encoder_outputs)
        padding = torch.arange(timestep) >= lengths.unsqueeze(1)
        weights = F.softmax(energies.masked_fill(padding, -1e10), dim=1)
        return torch.bmm(weights.unsqueeze(1), encoder_outputs).squeeze(1), weights

    def score(self, hidden: Tensor, encoder_outputs: Tensor) -> Tensor:
        energy = torch.tanh(self.attn(torch.cat([hidden, encoder_outputs], 2))).transpose(1, 2)
        v = self.v.repeat(encoder_outputs.size(0), 1).unsqueeze(1)
        return torch.bmm(v, energy).squeeze(1)


class LayerSentenceBySentence(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.attn = nn.Linear(2 * hidden_size, hidden_size)
        self.v = nn.Parameter(torch.zeros(hidden_size))

    def forward(self, hidden: Tensor, encoder_outputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        contexts, weights = [], []
        for state, outputs, length in zip(hidden, encoder_outputs, lengths.tolist(), strict=True):
            both = torch.cat([state.expand(length, -1), outputs[:length]], dim=1)
            own = F.softmax(self.attn(both).tanh() @ self.v, dim=0)
            contexts.append(own @ outputs[:length])
            weights.append(F.pad(own, (0, len(outputs) - length)))
        return torch.stack(contexts), torch.stack(weights)


def window_by_mask(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    ones = torch.ones(len(query), len(query), dtype=torch.bool)
    scores = query @ key.T / math.sqrt(query.shape[1])
    return scores.masked_fill(~(ones.tril() & ones.triu(1 - window)), -math.inf).softmax(dim=1) @ value


def window_by_fused_kernel(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    distance = torch.arange(len(query))[:, None] - torch.arange(len(query))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=(distance >= 0) & (distance < window))


def window_by_unfolding(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """O(T window): each query with the `window` keys that end at it, (T, window, d)."""
    before = (0, 0, window - 1, 0)
    keys, values = (F.pad(part, before).unfold(0, window, 1) for part in (key, value))  # (T, d, window), (T, v, window)
    scores = torch.einsum("td,tdw->tw", query, keys) / query.shape[1] ** 0.5
    empty = torch.arange(window) < window - 1 - torch.arange(len(query))[:, None]
    return torch.einsum("tw,tvw->tv", scores.masked_fill(empty, -math.inf).softmax(dim=1), values)


class Parts(nn.Module):
    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.attention = AdditiveAttention(d_model, d_model, d_model)
        self.cell = nn.GRUCell(2 * d_model, d_model)
        self.output = nn.Linear(d_model, vocab_size)


class DecoderWithLists(Parts):
    def forward(self, encoder_outputs: Tensor, hidden: Tensor, targets_in: Tensor, lengths: Tensor) -> Any:
        mask = (torch.arange(encoder_outputs.shape[1]) < lengths[:, None])[:, None]
        states, weights = [], []
        for t in range(targets_in.shape[1]):
            context, w = self.attention(hidden[:, None], encoder_outputs, encoder_outputs, mask)
            word = self.embedding(targets_in[:, t])
            hidden = self.cell(torch.cat([word, context[:, 0]], dim=1), hidden)
            states.append(hidden)
            weights.append(w)
        return self.output(torch.stack(states, dim=1)), torch.cat(weights, dim=1)


class DecoderIntoTables(Parts):
    """Fills tables made beforehand, cuts the batch to its longest sentence, and writes the mask as a loop."""

    def forward(self, encoder_outputs: Tensor, hidden: Tensor, targets_in: Tensor, lengths: Tensor) -> Any:
        (B, S, d), T = encoder_outputs.shape, targets_in.shape[1]
        logits = encoder_outputs.new_zeros(B, T, self.output.out_features)
        weights = encoder_outputs.new_zeros(B, T, S)
        mask = torch.zeros(B, 1, S, dtype=torch.bool)
        for b, length in enumerate(lengths.tolist()):
            mask[b, :, :length] = True
        longest = int(lengths.max())
        memory, mask = encoder_outputs[:, :longest], mask[:, :, :longest]
        state = hidden.view(B, 1, d)
        for t in range(T):
            context, weights[:, t : t + 1, :longest] = self.attention(state, memory, memory, mask)
            both = torch.cat((self.embedding(targets_in[:, t : t + 1]), context), dim=-1)  # (B, 1, 2d)
            state = self.cell(both.flatten(0, 1), state.flatten(0, 1)).unsqueeze(1)
            logits[:, t] = self.output(state).squeeze(1)
        return logits, weights


PREDICTED = {
    "as_given": 1 / 2,
    "plus_ten": 1 / 2,
    "times_two": 3 / 4,
    "times_hundred": 1.0,
    "times_zero": 1 / 4,
    "stored_twice": 1 / 3,
}
LIMITS = {"beta = 1/8": 2, "beta = 2": 64, "beta = 4": 2048, "outer product": 128}

ANSWERS: dict[str, list[Any]] = {
    "1.1": [PREDICTED, PREDICTED | {"times_hundred": 1, "stored_twice": 0.333}],
    "1.2": [weights_by_einsum, weights_by_loops, weights_by_the_library],
    "1.3": [attend_by_filling, attend_by_loops, attend_by_hand, attend_by_the_library],
    "1.4": [LayerInTheGuidesWords, LayerSentenceBySentence],
    "1.5": [window_by_mask, window_by_fused_kernel, window_by_unfolding],
    "1.6": [DecoderWithLists, DecoderIntoTables],
    "1.7": [LIMITS, {"beta = 1/8": 4, "beta = 2": 128.0, "beta = 4": 4096, "outer product": 64}],
}
