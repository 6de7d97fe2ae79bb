"""The known wrong answers of chapter 03, each with the sentence that names it.

Each group has one right way in parts, and a mistake is that way with one part replaced.  They stand in the order in
which they should be recognised: the first that gives the learner's numbers is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from memcourse.course.checks.attention_mistakes import instead
from memcourse.course.checks.gated_oracles import scan_loop
from memcourse.course.exercise import Mistake

# 3.2 gated_states

Step = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def right_step(h: Tensor, c: Tensor, f: Tensor, i: Tensor) -> Tensor:
    return f * h + i * c


def stacked(states: list[Tensor]) -> Tensor:
    return torch.stack(states[1:], dim=1)


def unrolled(
    step: Step = right_step,
    result: Callable[[list[Tensor]], Any] = stacked,
    carried: Callable[[list[Tensor]], Tensor] = lambda states: states[-1],
    order: int = 1,
) -> Callable[..., Any]:
    """gated_states, with a part replaced.  states: the one that is given, then one for each token."""

    def states_of(state: Tensor, candidate: Tensor, forget_gate: Tensor, input_gate: Tensor) -> Any:
        states = [state]
        tokens = zip(*(part.unbind(1)[::order] for part in (candidate, forget_gate, input_gate)), strict=True)
        for c, f, i in tokens:
            states.append(step(carried(states), c, f, i))
        return result(states)

    return states_of


def in_place(state: Tensor, candidate: Tensor, forget_gate: Tensor, input_gate: Tensor) -> Tensor:
    states = []
    for c, f, i in zip(candidate.unbind(1), forget_gate.unbind(1), input_gate.unbind(1), strict=True):
        state *= f
        state += i * c
        states.append(state)
    return torch.stack(states, dim=1)


def in_place_copied(state: Tensor, candidate: Tensor, forget_gate: Tensor, input_gate: Tensor) -> Tensor:
    states = []
    for c, f, i in zip(candidate.unbind(1), forget_gate.unbind(1), input_gate.unbind(1), strict=True):
        state *= f
        state += i * c
        states.append(state.clone())
    return torch.stack(states, dim=1)


FORGOTTEN = (
    "the forget gate is the wrong way round: f is the share of the old state that is kept, and this keeps 1 - f; the "
    "guide's text has it so too"
)
SWAPPED = "the gates are swapped: the forget gate belongs to the old state, the input gate to the candidate"
DETACHED = "the state is cut off between the tokens, so that no gradient reaches what was written before"
TIME_FIRST = "time comes first here, and the batch should: stack the states along dim=1"

GATED_STATES = (
    Mistake(FORGOTTEN, unrolled(lambda h, c, f, i: (1 - f) * h + i * c)),
    Mistake(SWAPPED, unrolled(lambda h, c, f, i: i * h + f * c)),
    Mistake(
        "the candidate gets what the forget gate leaves, 1 - f, and the input gate is not used: here the two gates are "
        "independent",
        unrolled(lambda h, c, f, i: f * h + (1 - f) * c),
    ),
    Mistake(
        "the old state gets what the input gate leaves, 1 - i, and the forget gate is not used: here the two gates are "
        "independent",
        unrolled(lambda h, c, f, i: (1 - i) * h + i * c),
    ),
    Mistake("the input gate is not used: the whole candidate is let in", unrolled(lambda h, c, f, i: f * h + c)),
    Mistake("the forget gate is not used: the whole state is kept", unrolled(lambda h, c, f, i: h + i * c)),
    Mistake(
        "the sum goes through tanh: the state itself is f h + i c, with nothing around it",
        unrolled(lambda h, c, f, i: (f * h + i * c).tanh()),
    ),
    Mistake(
        "the candidate goes through tanh: it is given ready to be let in",
        unrolled(lambda h, c, f, i: f * h + i * c.tanh()),
    ),
    Mistake(
        "the gates go through sigmoid: they are given as gates, between 0 and 1",
        unrolled(lambda h, c, f, i: f.sigmoid() * h + i.sigmoid() * c),
    ),
    Mistake(
        "the state is not carried: every token starts again from the state that is given",
        unrolled(carried=lambda states: states[0]),
    ),
    Mistake(
        "the state that is given is not used: the first token starts from zeros",
        unrolled(carried=lambda states: states[-1] if len(states) > 1 else torch.zeros_like(states[0])),
    ),
    Mistake(
        "each token's state is the one before it: return h_1 ... h_T",
        unrolled(result=lambda s: stacked(s[:1] + s[:-1])),
    ),
    Mistake(
        "the state that is given is among the results: return h_1 ... h_T, one for each token",
        unrolled(result=lambda states: torch.stack(states, dim=1)),
    ),
    Mistake(
        "this is the last state alone: the states after every token are asked, (B, T, D)",
        unrolled(result=lambda states: states[-1]),
    ),
    Mistake("this goes through the tokens from the last to the first", unrolled(order=-1)),
    Mistake(TIME_FIRST, unrolled(result=lambda states: torch.stack(states[1:]))),
    Mistake(
        "the states stand along the last axis: stack them along dim=1",
        unrolled(result=lambda s: torch.stack(s[1:], dim=-1)),
    ),
    Mistake(
        "these are the states in a list: torch.stack(..., dim=1) makes one tensor of them",
        unrolled(result=lambda s: s[1:]),
    ),
    Mistake(
        "all states are the last one: `*=` and `+=` change one tensor in place, and the list holds that tensor T times",
        in_place,
    ),
    Mistake("`*=` and `+=` on the state change the caller's tensor: write state = f * state + i * c", in_place_copied),
    Mistake(DETACHED, unrolled(carried=lambda states: states[-1].detach() if len(states) > 1 else states[-1])),
    Mistake(DETACHED, unrolled(carried=lambda states: states[-1].detach())),
)

# 3.3 GatedUnit


class Unit(nn.Module):
    """The right unit, in parts that a mistake replaces."""

    first_bias = 4.0

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.forget = nn.Linear(hidden_size + input_size, hidden_size)
        self.input = nn.Linear(hidden_size + input_size, hidden_size)
        self.candidate = nn.Linear(hidden_size + input_size, hidden_size)
        nn.init.constant_(self.forget.bias, self.first_bias)
        self.prepare(input_size, hidden_size)

    def prepare(self, input_size: int, hidden_size: int) -> None:
        self.kept: Tensor | None = None

    def forward(self, x: Tensor, state: Tensor | None = None) -> Any:
        h = self.begin(x, state)
        states = []
        for x_t in x.unbind(dim=1):  # (B, X)
            seen = self.seen(h, x_t)  # (B, D + X)
            f, i = self.forget(seen).sigmoid(), self.input(seen).sigmoid()
            h = self.step(h, self.squash(self.candidate(self.seen_by_candidate(seen, h))), f, i)
            states.append(h)
        self.kept = h
        return self.result(torch.stack(states, dim=1), h)

    def begin(self, x: Tensor, state: Tensor | None) -> Tensor:
        return x.new_zeros(len(x), self.forget.out_features) if state is None else state

    def seen(self, h: Tensor, x_t: Tensor) -> Tensor:
        return torch.cat([h, x_t], dim=1)

    def seen_by_candidate(self, seen: Tensor, h: Tensor) -> Tensor:
        return seen

    def squash(self, candidate: Tensor) -> Tensor:
        return candidate.tanh()

    def step(self, h: Tensor, c: Tensor, f: Tensor, i: Tensor) -> Tensor:
        return right_step(h, c, f, i)

    def result(self, states: Tensor, last: Tensor) -> Any:
        return states, last


def forgotten(self: Any, h: Tensor, c: Tensor, f: Tensor, i: Tensor) -> Tensor:
    return (1 - f) * h + i * c


def kept_on_the_module(self: Any, x: Tensor, state: Tensor | None) -> Tensor:
    before = self.kept if state is None else state
    return Unit.begin(self, x, before)


def without_state(self: Any, seen: Tensor, h: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(h), seen[:, h.shape[1] :]], dim=1)


def candidate_of_x(self: Any, input_size: int, hidden_size: int) -> None:
    self.candidate = nn.Linear(input_size, hidden_size)


NO_STATE = "the candidate sees x_t alone: it should see h_{t-1} too, so candidate.weight is (D, D + X)"
LEAK = (
    "what the unit saw in an unrelated batch is still in its state: keep no state on the module, for None means zeros"
)

GATED_UNIT = (
    Mistake(NO_STATE, instead(Unit, prepare=candidate_of_x)),
    Mistake(NO_STATE, instead(Unit, seen_by_candidate=without_state)),
    Mistake(FORGOTTEN, instead(Unit, step=forgotten)),
    Mistake(LEAK, instead(Unit, begin=kept_on_the_module)),
    Mistake(
        f"{LEAK}. The forget gate is the wrong way round, too", instead(Unit, begin=kept_on_the_module, step=forgotten)
    ),
    Mistake(
        "the state that is given is not used: start from it, and from zeros only where it is None",
        instead(Unit, begin=lambda self, x, state: Unit.begin(self, x, None)),
    ),
    Mistake(
        "the gates and the candidate see [h_{t-1}; x_t], the state first",
        instead(Unit, seen=lambda self, h, x_t: torch.cat([x_t, h], dim=1)),
    ),
    Mistake(SWAPPED, instead(Unit, step=lambda self, h, c, f, i: right_step(h, c, i, f))),
    Mistake(
        "the input gate is not used: the whole candidate is let in",
        instead(Unit, step=lambda self, h, c, f, i: f * h + c),
    ),
    Mistake("the candidate lacks its tanh", instead(Unit, squash=lambda self, candidate: candidate)),
    Mistake(
        "the new state goes through tanh: the state itself is f h + i c, with nothing around it",
        instead(Unit, step=lambda self, h, c, f, i: right_step(h, c, f, i).tanh()),
    ),
    Mistake(
        "this returns the states alone: return (states, last state)",
        instead(Unit, result=lambda self, states, last: states),
    ),
    Mistake(
        "the two results are the wrong way round: return (states, last state)",
        instead(Unit, result=lambda self, states, last: (last, states)),
    ),
    Mistake(TIME_FIRST, instead(Unit, result=lambda self, states, last: (states.transpose(0, 1), last))),
    Mistake(
        "the last state is cut off from the graph: a caller that goes on from it can detach it, and nobody can join it "
        "again",
        instead(Unit, result=lambda self, states, last: (states, last.detach())),
    ),
    Mistake(
        "the forget gate begins too far shut: with a bias near 0 or 1, a fresh unit forgets before any gradient could "
        "tell it what to keep",
        instead(Unit, first_bias=0.0),
    ),
    Mistake(
        "the forget gate begins too far open: a fresh unit never forgets, and hardly learns to",
        instead(Unit, first_bias=20.0),
    ),
)

# 3.4 linear_scan


def entered(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    """The updates, with what the first gate keeps of the initial state in the first."""
    return torch.cat([update[:, :1] + forget_gate[:, :1] * initial[:, None], update[:, 1:]], dim=1)


def doubling(
    spans: Callable[[int], int] = lambda T: (T - 1).bit_length(), enter: Callable[..., Tensor] = entered
) -> Callable[..., Tensor]:
    """linear_scan by spans of 1, 2, 4, ... tokens, each put behind the one before it."""

    def scan(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
        kept, states = forget_gate, enter(forget_gate, update, initial)
        for span in (2**n for n in range(spans(update.shape[1]))):
            states = torch.cat([states[:, :span], states[:, span:] + kept[:, span:] * states[:, :-span]], dim=1)
            kept = torch.cat([kept[:, :span], kept[:, span:] * kept[:, :-span]], dim=1)
        return states

    return scan


right_scan = doubling()


def gate_already_doubled(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    kept, states = forget_gate, entered(forget_gate, update, initial)
    for span in (2**n for n in range((update.shape[1] - 1).bit_length())):
        kept = torch.cat([kept[:, :span], kept[:, span:] * kept[:, :-span]], dim=1)
        states = torch.cat([states[:, :span], states[:, span:] + kept[:, span:] * states[:, :-span]], dim=1)
    return states


def doubled_in_place(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    kept, states = forget_gate, update
    states[:, 0] += kept[:, 0] * initial
    for span in (2**n for n in range((update.shape[1] - 1).bit_length())):
        states[:, span:] += kept[:, span:] * states[:, :-span].clone()
        kept[:, span:] *= kept[:, :-span].clone()
    return states


def divided(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    kept = forget_gate.cumprod(dim=1)
    return kept * (initial[:, None] + (update / kept).cumsum(dim=1))


def divided_by_at_least(smallest: float) -> Callable[..., Tensor]:
    def scan(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
        kept = forget_gate.cumprod(dim=1)
        return kept * (initial[:, None] + (update / kept.clamp(min=smallest)).cumsum(dim=1))

    return scan


def in_logarithms(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    log_kept = forget_gate.log().cumsum(dim=1)
    return log_kept.exp() * (initial[:, None] + (update * (-log_kept).exp()).cumsum(dim=1))


def gates_of_the_token_before(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    return right_scan(torch.cat([torch.ones_like(forget_gate[:, :1]), forget_gate[:, :-1]], dim=1), update, initial)


def over_the_batch(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    kept, states = forget_gate.transpose(0, 1), entered(forget_gate, update, initial).transpose(0, 1)
    return right_scan(kept, states, torch.zeros_like(states[:, 0])).transpose(0, 1)


def without_gradient(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    with torch.no_grad():
        return right_scan(forget_gate, update, initial)


def floor_of_log2(T: int) -> int:
    return int(math.log2(T))


DIVISION = (
    "this divides by a running product of gates: one gate of 0, or enough small ones, and the product is 0 for good. "
    "Put spans of tokens together by multiplying alone"
)

LINEAR_SCAN = (
    Mistake(DIVISION, divided),
    Mistake(f"{DIVISION}; a logarithm of the product is the same division", in_logarithms),
    *(
        Mistake(
            "a product of gates is held above a smallest number so that it can be divided by: it does not cancel there",
            divided_by_at_least(smallest),
        )
        for smallest in (1e-6, 1e-8, 1e-10, 1e-12, 1e-20, 1e-30)
    ),
    Mistake(
        "the initial state is not used",
        doubling(enter=lambda forget_gate, update, initial: update),
    ),
    Mistake(
        "the initial state enters without its gate: h_1 = f_1 h_0 + u_1, so h_0 has a forget gate in front of it",
        doubling(
            enter=lambda forget_gate, update, initial: torch.cat([update[:, :1] + initial[:, None], update[:, 1:]], 1)
        ),
    ),
    Mistake(
        "the initial state is added to every token as it is: each gate on the way takes its share of it",
        lambda forget_gate, update, initial: right_scan(forget_gate, update, 0 * initial) + initial[:, None],
    ),
    Mistake(
        "the gates are one token late: f_t multiplies h_{t-1}, and not its own update",
        gates_of_the_token_before,
    ),
    Mistake(
        "each update is multiplied by its own gate: f_t takes its share of h_{t-1}, and u_t comes in whole",
        lambda forget_gate, update, initial: right_scan(forget_gate, forget_gate * update, initial),
    ),
    Mistake(
        "this is a plain cumulative sum: the gates are not used",
        lambda forget_gate, update, initial: initial[:, None] + update.cumsum(dim=1),
    ),
    Mistake(
        "the gate is the wrong way round: f is the share of h_{t-1} that is kept, and this keeps 1 - f",
        lambda forget_gate, update, initial: right_scan(1 - forget_gate, update, initial),
    ),
    Mistake(
        "the gates of a span are multiplied together before its updates have used them: a span's old product carries "
        "the span before it, so update the sums first, then the products",
        gate_already_doubled,
    ),
    Mistake(
        "the last doubling is missing: spans must reach at least T tokens, and this rounds log2(T) down",
        doubling(floor_of_log2),
    ),
    Mistake("spans are put together once: double them until they reach T tokens", doubling(lambda T: min(1, T - 1))),
    Mistake("this runs along the batch: time is dim=1", over_the_batch),
    Mistake(
        "this runs from the last token to the first",
        lambda forget_gate, update, initial: right_scan(forget_gate.flip(1), update.flip(1), initial).flip(1),
    ),
    Mistake(
        "this is the last state alone: the states after every token are asked, (B, T, D)",
        lambda forget_gate, update, initial: right_scan(forget_gate, update, initial)[:, -1],
    ),
    Mistake(
        "the initial state is among the results: return h_1 ... h_T, one for each token",
        lambda forget_gate, update, initial: torch.cat(
            [initial[:, None], right_scan(forget_gate, update, initial)], dim=1
        ),
    ),
    Mistake("an axis of length 1 is lost", lambda *case: right_scan(*case).squeeze()),
    Mistake("the caller's gates and updates are overwritten: begin with clones of them", doubled_in_place),
    Mistake("no gradient flows under torch.no_grad(): a scan is trained through", without_gradient),
    Mistake("this costs as much as the loop over the tokens, or more", scan_loop),
)

# 3.5 lstm_cell

Parts = tuple[Tensor, Tensor, Tensor, Tensor]


def lstm(
    seen: Callable[..., Tensor] = lambda x, h, w_ih, w_hh, b_ih, b_hh: x @ w_ih.T + h @ w_hh.T + b_ih + b_hh,
    gates: Callable[[Tensor], Parts] = lambda seen: seen.chunk(4, dim=1),  # type: ignore[assignment, return-value]
    candidate: Callable[[Tensor], Tensor] = torch.tanh,
    update: Step = right_step,
    read: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda o, new, old: o * new.tanh(),
    result: Callable[[Tensor, Tensor], Any] = lambda hidden, cell: (hidden, cell),
) -> Callable[..., Any]:
    """lstm_cell, with a part replaced.  gates: (B, 4H) -> i, f, g, o."""

    def step(x: Tensor, hidden: Tensor, cell: Tensor, *weights: Tensor) -> Any:
        i, f, g, o = gates(seen(x, hidden, *weights))
        new = update(cell, candidate(g), f.sigmoid(), i.sigmoid())
        return result(read(o.sigmoid(), new, cell), new)

    return step


def in_the_order(*order: int) -> Callable[..., Any]:
    """lstm_cell that finds i, f, g, o at these places."""
    return lstm(gates=lambda seen: tuple(seen.chunk(4, dim=1)[place] for place in order))  # type: ignore[arg-type, return-value]


ORDER = "the four blocks of rows are in another order: PyTorch's is i, f, g, o (input, forget, candidate, output)"

LSTM_CELL = (
    Mistake(f"{ORDER}, and this takes f, i, g, o, or uses the one gate for the other", in_the_order(1, 0, 2, 3)),
    Mistake(f"{ORDER}, and this takes i, f, o, g", in_the_order(0, 1, 3, 2)),
    Mistake(f"{ORDER}, and this takes f, i, o, g", in_the_order(1, 0, 3, 2)),
    Mistake(f"{ORDER}, and this takes i, g, f, o", in_the_order(0, 2, 1, 3)),
    Mistake(
        "the rows of the gates are interleaved: the first H rows are the input gate's, the next H the forget gate's",
        lstm(gates=lambda seen: seen.unflatten(1, (-1, 4)).unbind(dim=2)),
    ),
    Mistake(FORGOTTEN, lstm(update=lambda c, g, f, i: (1 - f) * c + i * g)),
    Mistake(
        "the hidden state is o times the cell state: it should be o times tanh of it",
        lstm(read=lambda o, new, old: o * new),
    ),
    Mistake(
        "the hidden state reads the old cell state: it should read the new one",
        lstm(read=lambda o, new, old: o * old.tanh()),
    ),
    Mistake(
        "the output gate is not used: the hidden state is o tanh(c)",
        lstm(read=lambda o, new, old: new.tanh()),
    ),
    Mistake(
        "the candidate goes through sigmoid: it should go through tanh, and may be negative",
        lstm(candidate=torch.sigmoid),
    ),
    Mistake("the candidate lacks its tanh", lstm(candidate=lambda g: g)),
    Mistake(
        "only one of the two biases is added: PyTorch adds bias_ih and bias_hh",
        lstm(seen=lambda x, h, w_ih, w_hh, b_ih, b_hh: x @ w_ih.T + h @ w_hh.T + b_ih),
    ),
    Mistake(
        "only one of the two biases is added: PyTorch adds bias_ih and bias_hh",
        lstm(seen=lambda x, h, w_ih, w_hh, b_ih, b_hh: x @ w_ih.T + h @ w_hh.T + b_hh),
    ),
    Mistake("the biases are not added", lstm(seen=lambda x, h, w_ih, w_hh, b_ih, b_hh: x @ w_ih.T + h @ w_hh.T)),
    Mistake(
        "the gates do not see the hidden state of before",
        lstm(seen=lambda x, h, w_ih, w_hh, b_ih, b_hh: x @ w_ih.T + b_ih + b_hh),
    ),
    Mistake(
        "the two states are the wrong way round: return (hidden, cell), as torch does",
        lstm(result=lambda hidden, cell: (cell, hidden)),
    ),
    Mistake("this returns the hidden state alone: return (hidden, cell)", lstm(result=lambda hidden, cell: hidden)),
    Mistake(
        "the cell state is cut off from the graph: it is the path along which the gradient lives long",
        lstm(result=lambda hidden, cell: (hidden, cell.detach())),
    ),
)
