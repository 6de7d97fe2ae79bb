"""LM2: a bank of slots beside a decoder block, read through an output gate, written through input and forget gates.

read    x1 = x + attention(E) + g_out * R       R: what the tokens, E = norm(x), find in the bank M of earlier segments
write   M <- g_f * M + g_in * tanh(C)           C: what the slots find in a segment, once its last token is there
"""

from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from memcourse.attention import Heads, masked_attention, rotary_heads, rotate
from memcourse.memory import BlockMemory, require, state_dtype
from memcourse.segments import attend_in_segments, positions_in_segment
from memcourse.transformer import FeedForward

WRITES = ("input", "thought", "both", "joint")


def update(
    memory: Float[Tensor, "*shape"],
    candidate: Float[Tensor, "*shape"],
    forget_gate: Float[Tensor, "*shape"],
    input_gate: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """M <- g_f * M + g_in * tanh(C), elementwise; all four of one shape, such as (B, N, D).

    Raises ValueError for shapes that differ.
    Source: Kang et al., LM2: Large Memory Models, 2025, arXiv:2502.06049, there with what tokens read in place of C.
    """
    for name, part in (("candidate", candidate), ("forget_gate", forget_gate), ("input_gate", input_gate)):
        require(part.shape == memory.shape, name, tuple(part.shape), f"of the memory's shape, {tuple(memory.shape)}")
    return forget_gate * memory + input_gate * candidate.tanh()


class LM2State(NamedTuple):
    """The bank, and the n tokens of the open segment: rotated keys and values, the block's inputs and outputs.

    Of inputs and outputs, what `writes` never asks for is not kept.
    """

    memory: Float[Tensor, "batch n_slots d_model"]
    key: Float[Tensor, "batch heads n d_head"]
    value: Float[Tensor, "batch heads n d_head"]
    inputs: Float[Tensor, "batch n d_model"]
    outputs: Float[Tensor, "batch n d_model"]


class LM2Block(BlockMemory):
    """A decoder block with a memory bank M of N slots: x (B, T, D), state -> (B, T, D), state.

    E = norm(x)
    R = attend(E W_q, M W_k, M W_v) W_o                  the bank that the segments before have left, (B, T, D)
    x1 = x + attention(E) + sigmoid(R W_out) * R         attention: causal, inside the segment, rotary
    y = x1 + ff(norm(x1))

    and once the segment's last token is there, with Z its rows after a norm of their own:

    C = attend(M U_q, Z U_k, Z U_v) U_o                  slots query the segment, (B, N, D)
    M <- sigmoid(M W_f + b_f) * M + sigmoid(C W_in) * tanh(C)

    `writes` says what Z holds.  "input": the block's inputs x; "thought": its outputs y; "both": first the inputs, then
    the outputs, in a second pass through the same weights, to which the first one's result is M; "joint": one pass
    over inputs and outputs side by side.  With "input" only the update of the bank goes segment by segment; with
    the others y does too.  Attentions have n_heads heads; the bank has no positions.

    This is an adaptation.  The paper declares slots of d x d and goes on with slots of d; it prints
    E_gated = g_out * M, a product of (T, d) and (N, d), and updates a bank of N rows by T rows of what the tokens
    read: both close only where T = N.  Its t counts decoder blocks, from one of which the bank passes to the next.
    Here a slot is a vector, the gate opens for what was read, slots query the tokens (so that N rows come out), and
    the bank stays at its block and passes to the next segment.

    Raises ValueError for d_model that n_heads does not divide into even widths, n_slots or segment_len below 1, and
    another `writes`.  Source: Kang et al., LM2: Large Memory Models, 2025, arXiv:2502.06049; the product of the
    gate and the whole bank is its equation 3.
    """

    def __init__(self, d_model: int, n_heads: int, n_slots: int, *, segment_len: int, writes: str = "input") -> None:
        super().__init__()
        for name, size in (("n_slots", n_slots), ("segment_len", segment_len)):
            require(size >= 1, name, size, "at least 1")
        require(writes in WRITES, "writes", repr(writes), f"one of {', '.join(WRITES)}")
        self.config = {
            "d_model": d_model,
            "n_heads": n_heads,
            "n_slots": n_slots,
            "segment_len": segment_len,
            "writes": writes,
        }
        self.norm = nn.RMSNorm(d_model)
        self.attention = rotary_heads(d_model, n_heads)
        self.read = Heads(d_model, n_heads)
        self.output_gate = nn.Linear(d_model, d_model, bias=False)
        self.feed_forward = FeedForward(d_model)
        self.write_norm = nn.RMSNorm(d_model)
        self.write = Heads(d_model, n_heads)
        self.input_gate = nn.Linear(d_model, d_model, bias=False)
        self.forget_gate = nn.Linear(d_model, d_model)
        # sigmoid(4) = .982: half of a slot is left after 38 segments; with 1 it would be after 2, with -2 after none
        nn.init.constant_(self.forget_gate.bias, 4.0)
        self.initial_memory = nn.Parameter(first_bank(n_slots, d_model))

    def initial_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> LM2State:
        d_model, n_heads = self.config["d_model"], self.config["n_heads"]
        memory = self.initial_memory.to(device=device, dtype=state_dtype(dtype)).expand(batch_size, -1, -1)
        by_head = memory.new_zeros(batch_size, n_heads, 0, d_model // n_heads)
        rows = memory.new_zeros(batch_size, 0, d_model)
        return LM2State(memory, by_head, by_head.clone(), rows, rows.clone())

    def tokens_to_segment_end(self, state: LM2State) -> int:
        n_open = state.key.shape[2]
        return self.config["segment_len"] - n_open if n_open else 0

    def advance_with_hidden(self, x: Tensor, state: Any) -> tuple[Tensor, LM2State, Tensor]:
        embedded = self.norm(x)  # (B, T, D)
        attended, key, value = self._attend(embedded, state)
        lengths = piece_lengths(state.key.shape[2], x.shape[1], self.config["segment_len"])
        state = state._replace(key=key, value=value)
        if self.config["writes"] == "input":
            return self._all_segments(x, embedded, x + attended, lengths, state)
        return self._segment_by_segment(x, embedded, x + attended, lengths, state)

    def _all_segments(
        self, x: Tensor, embedded: Tensor, x1: Tensor, lengths: list[int], state: LM2State
    ) -> tuple[Tensor, LM2State, Tensor]:
        """The banks first, in their order, since they ask for x alone; then every token at once."""
        inputs = torch.cat([state.inputs, x.to(state.inputs.dtype)], dim=1)
        closed = inputs.shape[1] // self.config["segment_len"] * self.config["segment_len"]
        banks = [state.memory]
        if closed:
            for key, value in self._segments_to_write(inputs[:, :closed].to(x.dtype)):
                banks.append(self._write(banks[-1], key, value))
        reads, start = [], 0
        remaining = iter(banks)
        for length, pieces in groupby(lengths):  # at most three groups: the open segment's rest, whole ones, a new one
            memory = torch.stack([next(remaining) for _ in pieces], dim=1)  # (B, S, N, D)
            tokens = slice(start, start := start + memory.shape[1] * length)
            folded = rearrange(embedded[:, tokens], "b (s t) d -> (b s) t d", t=length)
            read = self._read(folded, memory.flatten(0, 1))
            reads.append(rearrange(read, "(b s) t d -> b (s t) d", b=len(x)))
        x1 = x1 + torch.cat(reads, dim=1)
        hidden = self.feed_forward.norm(x1)
        state = state._replace(memory=banks[-1], inputs=inputs[:, closed:].clone())
        return self.feed_forward.residual(x1, hidden), state, hidden

    def _segment_by_segment(
        self, x: Tensor, embedded: Tensor, x1: Tensor, lengths: list[int], state: LM2State
    ) -> tuple[Tensor, LM2State, Tensor]:
        """What is written asks for the outputs, and these for what was written before."""
        memory, inputs, outputs = state.memory, state.inputs, state.outputs
        ys, hiddens = [], []
        parts = (part.split(lengths, dim=1) for part in (x, embedded, x1))
        for x_new, embedded_new, x1_new in zip(*parts, strict=True):
            x1_new = x1_new + self._read(embedded_new, memory)
            hiddens.append(self.feed_forward.norm(x1_new))
            ys.append(self.feed_forward.residual(x1_new, hiddens[-1]))
            outputs = torch.cat([outputs, ys[-1].to(outputs.dtype)], dim=1)
            if self.config["writes"] != "thought":
                inputs = torch.cat([inputs, x_new.to(inputs.dtype)], dim=1)
            if outputs.shape[1] == self.config["segment_len"]:
                sources = (
                    [inputs, outputs] if self.config["writes"] == "both" else [torch.cat([inputs, outputs], dim=1)]
                )
                for source in sources:
                    key, value = self._keys_and_values(source.to(x.dtype))
                    memory = self._write(memory, key, value)
                inputs, outputs = inputs[:, :0].clone(), outputs[:, :0].clone()
        state = state._replace(memory=memory, inputs=inputs, outputs=outputs)
        return torch.cat(ys, dim=1), state, torch.cat(hiddens, dim=1)

    def _attend(self, embedded: Tensor, state: LM2State) -> tuple[Tensor, Tensor, Tensor]:
        """Attention inside the segments; the open one's keys and values: -> (B, T, D), 2 x (B, H, n, d)."""
        n_open, T, segment_len = state.key.shape[2], embedded.shape[1], self.config["segment_len"]
        position = positions_in_segment(n_open, T, segment_len, embedded.device)
        query, key, value = self.attention.split(embedded, embedded)  # (B, H, T, d)
        keys = torch.cat([state.key, rotate(key, position).to(state.key.dtype)], dim=2)
        values = torch.cat([state.value, value.to(state.value.dtype)], dim=2)
        read = attend_in_segments(
            rotate(query, position).to(value.dtype), keys.to(value.dtype), values.to(value.dtype), segment_len
        )
        closed = (n_open + T) // segment_len * segment_len
        # a view would keep the whole chunk alive
        return self.attention.merge(read), keys[:, :, closed:].clone(), values[:, :, closed:].clone()

    def _read(self, embedded: Tensor, memory: Tensor) -> Tensor:
        """g_out * R, what tokens take from a bank: (B, T, D), (B, N, D) -> (B, T, D)."""
        query, key, value = self.read.split(embedded, memory.to(embedded.dtype))
        retrieved = self.read.merge(masked_attention(query, key, value))
        return self.output_gate(retrieved).sigmoid() * retrieved

    def _segments_to_write(self, inputs: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of whole segments, projected all at once: (B, S L, D) -> S times 2 x (B, H, L, d)."""
        both = (part.split(self.config["segment_len"], dim=2) for part in self._keys_and_values(inputs))
        return list(zip(*both, strict=True))

    def _keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """What slots find in a segment: (B, L, D) -> 2 x (B, H, L, d)."""
        normed = self.write_norm(source)
        return self._by_head(self.write.key(normed)), self._by_head(self.write.value(normed))

    def _by_head(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t (h d) -> b h t d", h=self.config["n_heads"])

    def _write(self, memory: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The bank after a segment: (B, N, D), 2 x (B, H, L, d) -> (B, N, D)."""
        slots = memory.to(key.dtype)
        query = self._by_head(self.write.query(slots))
        candidate = self.write.merge(masked_attention(query, key, value))
        forget_gate, input_gate = self.forget_gate(slots).sigmoid(), self.input_gate(candidate).sigmoid()
        return update(memory, *(part.to(memory.dtype) for part in (candidate, forget_gate, input_gate)))


def first_bank(n_slots: int, d_model: int) -> Float[Tensor, "n_slots d_model"]:
    """The bank before the first segment: rows of the identity, and random rows of length 1 beyond d_model slots.

    The identity's rows cannot be repeated: slots that are equal ask the same, are written the same, and stay equal.
    """
    beyond = F.normalize(torch.randn(max(0, n_slots - d_model), d_model), dim=-1)
    return torch.cat([torch.eye(min(n_slots, d_model), d_model), beyond])


def piece_lengths(n_open: int, time: int, segment_len: int) -> list[int]:
    """How the T new tokens fall to segments: those that go on in the open one, whole segments, a new open one."""
    edges = [0, *range(segment_len - n_open, time, segment_len), time]
    return [end - start for start, end in zip(edges, edges[1:], strict=False)]
