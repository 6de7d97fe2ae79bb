"""How the answers of chapter 03 are used, and what is right: cases, probes, oracles, properties.

The oracles are the equations in NumPy float64, one number at a time: no library, no torch, no matrix product.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memcourse.course.checks.attention_oracles import Array, Parameters, random, with_parameters
from memcourse.course.checks.timing import times_as_fast
from memcourse.course.exercise import Wrong


def gates(seed: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def kept_after(forget_gate: float, steps: int) -> float:
    """The share of h_0 in h_steps: the recurrence from h_0 = 1, with nothing let in."""
    state = 1.0
    for _ in range(steps):
        state = forget_gate * state
    return state


def half_life(forget_gate: float) -> float:
    return math.log(2) / -math.log(forget_gate)


# 3.2 gated_states


def states_cases() -> list[tuple[Tensor, ...]]:
    """(B, T, D) = (2, 3, 5) and (3, 7, 2)."""
    return [
        (random(seed, B, D), random(seed + 1, B, T, D), gates(seed + 2, B, T, D), gates(seed + 3, B, T, D))
        for seed, (B, T, D) in ((1, (2, 3, 5)), (5, (3, 7, 2)))
    ]


def states_oracle(state: Array, candidate: Array, forget_gate: Array, input_gate: Array) -> Array:
    return scan_oracle(forget_gate, input_gate * candidate, state)


# 3.3 GatedUnit

FRESH_TOKENS = 20
LOWEST_LOSS = 1e-4  # of a gate that can still learn: its gradient has the factor f (1 - f)


def unit_cases() -> list[tuple[Any, ...]]:
    """(B, T, X, D) = (2, 5, 3, 2) from a state that is given, and (3, 7, 2, 5) from none."""
    return [
        (random(1, 2, 5, 3), random(2, 2, 2), unit_parameters(3, 2)),
        (random(3, 3, 7, 2), None, unit_parameters(2, 5)),
    ]


def unit_parameters(input_size: int, hidden_size: int) -> Parameters:
    parameters = {}
    for seed, name in enumerate(("forget", "input", "candidate"), start=20):
        parameters[f"{name}.weight"] = random(seed, hidden_size, hidden_size + input_size)
        parameters[f"{name}.bias"] = random(seed + 5, hidden_size)
    return parameters


def unit_probe(answer: Any, x: Tensor, state: Tensor | None, parameters: Parameters) -> Any:
    """The unit has seen another, unrelated batch before this one."""
    unit = answer(x.shape[2], parameters["forget.bias"].shape[0])
    with_parameters(unit, parameters, x.detach().flip(1))
    return with_parameters(unit, parameters, x, state)


def unit_oracle(x: Array, state: Array | None, parameters: dict[str, Array]) -> tuple[Array, Array]:
    (B, T, _), D = x.shape, len(parameters["forget.bias"])
    h = np.zeros((B, D)) if state is None else state
    states = np.zeros((B, T, D))
    for t in range(T):
        for b in range(B):
            seen = np.concatenate([h[b], x[b, t]])
            for d in range(D):
                f, i, c = (
                    sum(parameters[f"{part}.weight"][d] * seen) + parameters[f"{part}.bias"][d]
                    for part in ("forget", "input", "candidate")
                )
                states[b, t, d] = sigmoid(f) * h[b, d] + sigmoid(i) * np.tanh(c)
        h = states[:, t]
    return states, h


def a_fresh_unit_remembers_and_can_learn(answer: Any) -> None:
    """With weights of 0 and its own biases, two states that differ by 1 differ by f**T after T tokens."""
    unit = answer(3, 5)
    own = {name: p.detach() * (not name.endswith("weight")) for name, p in unit.named_parameters()}
    x = torch.zeros(1, FRESH_TOKENS, 3)
    with torch.no_grad():
        last = [with_parameters(unit, own, x, state)[1] for state in (torch.zeros(1, 5), torch.ones(1, 5))]
    left = (last[1] - last[0]).mean().item()
    loss = torch.sigmoid(-own["forget.bias"]).mean().item()
    if left < 0.5:
        raise Wrong(
            f"of what a fresh unit holds, {left:.2%} is left after {FRESH_TOKENS} tokens; at least half is asked. See "
            "which forget gate __init__ begins with: sigmoid(bias), and how often it is multiplied by itself"
        )
    if loss < LOWEST_LOSS:
        raise Wrong(
            f"a fresh unit keeps all but {loss:.0e} at each token; at least {LOWEST_LOSS:.0e} should go. The gradient "
            "of a gate has the factor f (1 - f), so that a gate which begins so far open learns next to nothing"
        )


# 3.4 linear_scan

SPEED_UP = 5
TIMED = {"batch": 2, "time": 1024, "width": 8}


def scan_cases() -> list[tuple[Tensor, ...]]:
    """(B, T, D) = (2, 5, 3); one token; gates of exactly 0 and 1; small gates, 211 of them; three tokens."""
    exact = gates(3, 3, 7, 2).round(decimals=1)
    exact[0, 2], exact[1, 4:6], exact[2, 3] = 0.0, 1.0, torch.tensor([0.0, 1.0])
    given = [gates(1, 2, 5, 3), gates(2, 3, 1, 2), exact, gates(4, 2, 211, 3, high=0.5), gates(5, 5, 3, 2)]
    return [
        (forget_gate, random(seed, *forget_gate.shape), random(seed + 5, len(forget_gate), forget_gate.shape[2]))
        for seed, forget_gate in enumerate(given, start=10)
    ]


def scan_oracle(forget_gate: Array, update: Array, initial: Array) -> Array:
    states = np.zeros_like(update)
    for b, t, d in np.ndindex(update.shape):
        before = states[b, t - 1, d] if t else initial[b, d]
        states[b, t, d] = forget_gate[b, t, d] * before + update[b, t, d]
    return states


def scan_loop(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    """The loop that the stub prints: (B, T, D), (B, T, D), (B, D) -> (B, T, D)."""
    state, states = initial, []
    for f, u in zip(forget_gate.unbind(1), update.unbind(1), strict=True):
        state = f * state + u
        states.append(state)
    return torch.stack(states, dim=1)


def a_long_memory_is_exact(answer: Any) -> None:
    """Gates next to 1 over 1000 tokens: the sum of all updates, and of what was there before."""
    forget_gate, update, initial = torch.ones(1, 1000, 2), torch.ones(1, 1000, 2), torch.full((1, 2), 24.0)
    found = answer(forget_gate, update, initial)[0, -1].tolist()
    if not np.allclose(found, 1024.0, rtol=1e-4):
        raise Wrong(
            "with gates of 1, updates of 1 and an initial state of 24, the state after 1000 tokens is their sum: "
            f"expected 1024, found {found[0]:.6g}"
        )


def at_least_five_times_as_fast_as_the_loop(answer: Any) -> None:
    B, T, D = TIMED.values()
    case = (gates(1, B, T, D), random(2, B, T, D), random(3, B, D))
    ratio = times_as_fast(answer, scan_loop, case, asked=SPEED_UP)
    if ratio < SPEED_UP:
        raise Wrong(
            f"the same numbers as the loop, at {ratio:.1f} times its speed; at least {SPEED_UP} times is asked. "
            f"A Python step for each of the {T} tokens is too many, and so is a table of {T} x {T}"
        )


# 3.5 lstm_cell


def lstm_cases() -> list[tuple[Tensor, ...]]:
    """(B, X, H) = (3, 5, 2) and (2, 3, 7)."""
    return [
        (random(seed, B, X), random(seed + 1, B, H), random(seed + 2, B, H), *lstm_parameters(X, H))
        for seed, (B, X, H) in ((1, (3, 5, 2)), (4, (2, 3, 7)))
    ]


def lstm_parameters(input_size: int, hidden_size: int) -> list[Tensor]:
    rows = 4 * hidden_size
    shapes = [(rows, input_size), (rows, hidden_size), (rows,), (rows,)]
    return [random(seed, *shape) for seed, shape in enumerate(shapes, start=40)]


def lstm_oracle(
    x: Array, hidden: Array, cell: Array, weight_ih: Array, weight_hh: Array, bias_ih: Array, bias_hh: Array
) -> tuple[Array, Array]:
    new_hidden, new_cell = np.zeros_like(hidden), np.zeros_like(cell)
    B, H = hidden.shape
    for b, d in np.ndindex(B, H):
        i, f, g, o = (
            sum(weight_ih[row] * x[b]) + sum(weight_hh[row] * hidden[b]) + bias_ih[row] + bias_hh[row]
            for row in (d, H + d, 2 * H + d, 3 * H + d)
        )
        new_cell[b, d] = sigmoid(f) * cell[b, d] + sigmoid(i) * np.tanh(g)
        new_hidden[b, d] = sigmoid(o) * np.tanh(new_cell[b, d])
    return new_hidden, new_cell
