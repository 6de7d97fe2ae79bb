"""Right answers to the exercises of chapter 03 in different styles: by exercise id, at least two for each."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcourse.gated import gated_update
from memcourse.gated import linear_scan as library_scan


def states_in_a_list(state: Tensor, candidate: Tensor, forget_gate: Tensor, input_gate: Tensor) -> Tensor:
    states = []
    for t in range(candidate.size(1)):
        state = forget_gate[:, t] * state + input_gate[:, t] * candidate[:, t]
        states.append(state)
    return torch.stack(states, 1)


def states_in_a_table(state: Tensor, candidate: Tensor, forget_gate: Tensor, input_gate: Tensor) -> Tensor:
    let_in = input_gate * candidate
    states = torch.empty_like(candidate)
    for t in range(candidate.shape[1]):
        before = states[:, t - 1].clone() if t else state
        states[:, t] = torch.addcmul(let_in[:, t], forget_gate[:, t], before)
    return states


def states_by_the_library(state: Tensor, candidate: Tensor, forget_gate: Tensor, input_gate: Tensor) -> Tensor:
    return library_scan(forget_gate, input_gate * candidate, state)


class UnitInTheStubsWords(nn.Module):
    """The stub's lines, changed as little as can be."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.forget = nn.Linear(hidden_size + input_size, hidden_size)
        self.input = nn.Linear(hidden_size + input_size, hidden_size)
        self.candidate = nn.Linear(hidden_size + input_size, hidden_size)
        self.forget.bias.data.fill_(5)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if state is None:
            state = x.new_zeros(x.shape[0], self.forget.out_features)
        states = []
        for x_t in x.unbind(dim=1):
            seen = torch.cat([state, x_t], dim=1)
            f = torch.sigmoid(self.forget(seen))
            i = torch.sigmoid(self.input(seen))
            c = torch.tanh(self.candidate(seen))
            state = f * state + i * c
            states.append(state)
        return torch.stack(states, dim=1), state


class UnitSpreadOverTime(nn.Module):
    """Weights in columns for the state and columns for x, whose part is one product; biases from 4 to 7."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        for name in ("forget", "input", "candidate"):
            self.add_module(name, nn.Linear(hidden_size + input_size, hidden_size))
        with torch.no_grad():
            self.forget.bias.copy_(torch.linspace(4, 7, hidden_size))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        layers = (self.forget, self.input, self.candidate)
        weight = torch.cat([layer.weight for layer in layers])  # (3D, D + X)
        from_x = F.linear(x, weight[:, self.hidden_size :], torch.cat([layer.bias for layer in layers]))
        h = torch.zeros(len(x), self.hidden_size, dtype=x.dtype) if state is None else state
        states = torch.empty(*x.shape[:2], self.hidden_size, dtype=x.dtype)
        for t in range(x.shape[1]):
            f, i, c = (from_x[:, t] + h @ weight[:, : self.hidden_size].T).chunk(3, dim=1)
            h = torch.addcmul(f.sigmoid() * h, i.sigmoid(), c.tanh())
            states[:, t] = h
        return states, h


def scan_by_doubling(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    """Spans padded at the beginning with gates of 1 and updates of 0, the initial state as a token of its own."""
    kept = F.pad(forget_gate, (0, 0, 1, 0), value=1.0)
    states = torch.cat([initial[:, None], update], dim=1)
    span = 1
    while span < states.shape[1]:
        states = states + kept * F.pad(states, (0, 0, span, 0))[:, :-span]
        kept = kept * F.pad(kept, (0, 0, span, 0), value=1.0)[:, :-span]
        span *= 2
    return states[:, 1:]


def scan_by_halving(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    """Pairs of tokens make a sequence of half the length, whose states are every second state of this one."""
    T = update.shape[1]
    if T == 1:
        return forget_gate * initial[:, None] + update
    even, odd = slice(0, T - 1, 2), slice(1, T, 2)
    kept = forget_gate[:, odd] * forget_gate[:, even]
    added = forget_gate[:, odd] * update[:, even] + update[:, odd]
    at_odd = scan_by_halving(kept, added, initial)  # h_2, h_4, ...
    before_even = torch.cat([initial[:, None], at_odd], dim=1)[:, : (T + 1) // 2]
    at_even = forget_gate[:, ::2] * before_even + update[:, ::2]
    both = torch.stack([at_even[:, : T // 2], at_odd], dim=2).flatten(1, 2)
    return both if T % 2 == 0 else torch.cat([both, at_even[:, -1:]], dim=1)


def scan_by_chunks(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    """About sqrt(T) chunks side by side, then from chunk to chunk."""
    B, T, D = update.shape
    length = math.isqrt(T - 1) + 1
    n = -(-T // length)
    rest = (0, 0, 0, n * length - T)
    gates = F.pad(forget_gate, rest).reshape(B, n, length, D)
    updates = F.pad(update, rest).reshape(B, n, length, D)
    kept, state, states = gates.cumprod(dim=2), torch.zeros(B, n, D), []
    for t in range(length):
        state = gates[:, :, t] * state + updates[:, :, t]
        states.append(state)
    alone = torch.stack(states, dim=2)  # (B, n, length, D)
    entering = [initial]
    for chunk in range(n - 1):
        entering.append(kept[:, chunk, -1] * entering[-1] + alone[:, chunk, -1])
    return (alone + kept * torch.stack(entering, dim=1)[:, :, None]).reshape(B, n * length, D)[:, :T]


def lstm_by_the_library(
    x: Tensor, hidden: Tensor, cell: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> tuple[Tensor, Tensor]:
    seen = F.linear(x, weight_ih, bias_ih) + F.linear(hidden, weight_hh, bias_hh)
    i, f, g, o = seen.chunk(4, dim=-1)
    cell = gated_update(cell, g.tanh(), f.sigmoid(), i.sigmoid())
    return o.sigmoid() * cell.tanh(), cell


def lstm_by_hand(x: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
    """One joined matrix, rows picked by name."""
    both = torch.cat([x, hidden], dim=1) @ torch.cat(weights[:2], dim=1).T + sum(weights[2:])
    H = hidden.shape[1]
    gates = {name: both[:, n * H : (n + 1) * H] for n, name in enumerate("ifgo")}
    i, f, o = (1 / (1 + torch.exp(-gates[name])) for name in "ifo")
    new = f * cell + i * torch.tanh(gates["g"])
    return o * torch.tanh(new), new


def lstm_by_torch(x: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> Any:
    module = nn.LSTMCell(x.shape[1], hidden.shape[1])
    names = [name for name, _ in module.named_parameters()]
    return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), (x, (hidden, cell)))


PREDICTED = {
    "kept": 9 / 16,
    "gradient": 9 / 16,
    "half_life": 69,
    "plus_log_ten": 10,
    "both_open": 10,
    "settles": 5,
}
LIMITS = {"quiet, 100": 5.0, "quiet, 1000": 7.5, "noisy, 100": 7.0, "noisy, 1000": 9.5, "bfloat16": 6.5}

ANSWERS: dict[str, list[Any]] = {
    "3.1": [PREDICTED, PREDICTED | {"half_life": 70.0, "plus_log_ten": 9.996}],
    "3.2": [states_in_a_list, states_in_a_table, states_by_the_library],
    "3.3": [UnitInTheStubsWords, UnitSpreadOverTime],
    "3.4": [scan_by_doubling, scan_by_halving, scan_by_chunks],
    "3.5": [lstm_by_the_library, lstm_by_hand, lstm_by_torch],
    "3.6": [LIMITS, {"quiet, 100": 5, "quiet, 1000": 7.0, "noisy, 100": 6.5, "noisy, 1000": 10, "bfloat16": 6.5}],
}
