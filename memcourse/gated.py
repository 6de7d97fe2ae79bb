"""Gated memory: a state that decides what to keep and what to let in.

h_t = f_t * h_{t-1} + i_t * c_t          f: the share that is kept, i: the share that is let in, c: the candidate
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from memcourse.memory import SequenceMemory, require, state_dtype


def gated_update(
    state: Float[Tensor, "*shape"],
    candidate: Float[Tensor, "*shape"],
    forget_gate: Float[Tensor, "*shape"],
    input_gate: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """h_t = f_t * h_{t-1} + i_t * c_t, elementwise; all four of one shape, gates in [0, 1].

    Raises ValueError for shapes that differ and for gates outside [0, 1].
    Source: Gers, Schmidhuber, Cummins, Learning to Forget, 2000, equation for the cell's state; f_t is the share of
    the old state that stays, whatever the gate's name says.
    """
    for name, tensor in (("candidate", candidate), ("forget_gate", forget_gate), ("input_gate", input_gate)):
        require(tensor.shape == state.shape, name, tuple(tensor.shape), f"of the state's shape, {tuple(state.shape)}")
    check_gate("forget_gate", forget_gate)
    check_gate("input_gate", input_gate)
    return forget_gate * state + input_gate * candidate


def check_gate(name: str, gate: Tensor) -> None:
    """Raise ValueError unless every gate lies in [0, 1] (NaN does not)."""
    if gate.numel() and not torch.compiler.is_compiling():
        low, high = (bound.item() for bound in torch.aminmax(gate.detach()))
        require(0 <= low and high <= 1, name, f"{low:.6g} to {high:.6g}", "in [0, 1]")


def linear_scan(
    forget_gate: Float[Tensor, "batch time dim"],
    update: Float[Tensor, "batch time dim"],
    initial: Float[Tensor, "batch dim"] | None = None,
) -> Float[Tensor, "batch time dim"]:
    """All states of h_t = f_t * h_{t-1} + u_t at once: (B, T, D), (B, T, D), (B, D) -> (B, T, D).

    h_0 is `initial`, zeros unless given.  Equal to the loop, and as exact: it neither divides nor takes logarithms, so
    a gate may be 0.  Half precision is summed in float32.  Its gradient is the same scan run from the end.
    Raises ValueError for shapes that do not fit and for gates outside [0, 1].
    Source: Blelloch, Prefix Sums and Their Applications, 1990; Martin and Cundy, Parallelizing Linear Recurrent
    Neural Nets Over Sequence Length, 2018, arXiv:1709.04057, section 2.
    """
    require(update.ndim == 3, "update", tuple(update.shape), "three-dimensional, (batch, time, dim)")
    same = forget_gate.shape == update.shape
    require(same, "forget_gate", tuple(forget_gate.shape), f"of the update's shape, {tuple(update.shape)}")
    B, _, D = update.shape
    if initial is None:
        initial = update.new_zeros(B, D)
    require(initial.shape == (B, D), "initial", tuple(initial.shape), f"({B}, {D}), one state for each row")
    check_gate("forget_gate", forget_gate)
    dtype = torch.promote_types(torch.promote_types(forget_gate.dtype, update.dtype), initial.dtype)
    return scan(*(part.to(state_dtype(dtype)) for part in (forget_gate, update, initial))).to(dtype)


def scan(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    """`linear_scan` for a caller that knows its gates: nothing is checked, all parts have one dtype."""
    if torch.compiler.is_compiling():  # which cannot trace writing into parts of a tensor
        return _scan_by_doubling(forget_gate, update, initial)
    return _Scan.apply(forget_gate, update, initial) if update.numel() else update


def _scan_by_doubling(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    """The same in log2(T) whole operations: after the n-th, a state holds the 2^n newest updates."""
    kept, states, reach = forget_gate, update, 1
    while reach < update.shape[1]:
        states = torch.cat([states[:, :reach], states[:, reach:] + kept[:, reach:] * states[:, :-reach]], dim=1)
        kept = torch.cat([kept[:, :reach], kept[:, reach:] * kept[:, :-reach]], dim=1)
        reach *= 2
    return states + kept * initial[:, None]


class _Scan(torch.autograd.Function):
    """With g_t = dL/du_t: g_t = dL/dh_t + f_{t+1} g_{t+1}, dL/df_t = g_t h_{t-1}, dL/dh_0 = f_1 g_1."""

    @staticmethod
    def forward(ctx: Any, forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
        states = torch.empty_like(update)
        scan_into(states, forget_gate, update, initial)
        ctx.save_for_backward(forget_gate, initial, states)
        return states

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        forget_gate, initial, states = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient will be asked for: no writing into buffers
            later = torch.cat([forget_gate[:, 1:], torch.zeros_like(forget_gate[:, :1])], dim=1)
            to_update = scan(later.flip(1), gradient.flip(1), torch.zeros_like(initial)).flip(1)
            before = torch.cat([initial[:, None], states[:, :-1]], dim=1)
            return to_update * before, to_update, forget_gate[:, 0] * to_update[:, 0]
        to_update, to_gate = torch.empty_like(states), torch.empty_like(states)
        to_update[:, -1] = gradient[:, -1]
        scan_into(to_update[:, :-1], forget_gate[:, 1:], gradient[:, :-1], gradient[:, -1], from_the_end=True)
        torch.mul(to_update[:, 0], initial, out=to_gate[:, 0])
        torch.mul(to_update[:, 1:], states[:, :-1], out=to_gate[:, 1:])
        return to_gate, to_update, forget_gate[:, 0] * to_update[:, 0]


def scan_into(
    states: Tensor, forget_gate: Tensor, update: Tensor, initial: Tensor, *, from_the_end: bool = False
) -> Tensor:
    """Write h_t = f_t * h_{t-1} + u_t into `states`, (B, T, D), and hand out the last; t falls when from the end.

    Time is cut into spans, and a span into chunks that advance side by side: a step of all chunks is one operation,
    large enough to be worth its call.  Where one step of one chunk already is, this is the plain loop.
    """
    B, T, D = update.shape
    # Chunks longer than 64 save little, and the products of their gates become denormal numbers, which are slow.
    length = max(1, min(64, math.isqrt(T)))
    # An operation of a CPU stays below the 32,768 elements from which torch would wake a second thread for it.
    n_chunks = min((2**20 if update.is_cuda else 2**14) // (B * D), T // length)
    parts = (states, forget_gate, update)
    if n_chunks < 4:  # the second sweep would cost more than the calls it saves
        into, gates, updates = (_in_order(part.unbind(1), from_the_end) for part in parts)
        return _follow(into, gates, updates, initial)
    spans = (_in_order(part.split(n_chunks * length, dim=1), from_the_end) for part in parts)
    state = initial
    for into_span, gate_span, update_span in zip(*spans, strict=True):
        if update_span.shape[1] == n_chunks * length:
            state = _scan_span(into_span, gate_span, update_span, state, n_chunks, from_the_end)
        else:  # what is left over is a shorter scan
            state = scan_into(into_span, gate_span, update_span, state, from_the_end=from_the_end)
    return state


def _scan_span(
    states: Tensor, forget_gate: Tensor, update: Tensor, initial: Tensor, n_chunks: int, from_the_end: bool
) -> Tensor:
    """Two sweeps over the chunks of a span, (B, n_chunks * length, D), side by side.

    The first asks of each chunk only what it does to the state that enters it: h -> kept * h + added.  Then the
    entering states follow one another, and the second sweep runs every chunk from its own.
    """
    chunks = (part.unflatten(1, (n_chunks, -1)).unbind(2) for part in (states, forget_gate, update))
    into, gates, updates = (_in_order(steps, from_the_end) for steps in chunks)  # each step (B, n_chunks, D)
    kept, added = gates[0].clone(), updates[0].clone()
    for gate, new in zip(gates[1:], updates[1:], strict=True):
        torch.mul(kept, gate, out=kept)
        torch.addcmul(new, gate, added, out=added)
    entering = torch.empty_like(added)
    entries, products, sums = (_in_order(part.unbind(1), from_the_end) for part in (entering, kept, added))
    entries[0].copy_(initial)
    _follow(entries[1:], products[:-1], sums[:-1], initial)
    return _in_order(_follow(into, gates, updates, entering).unbind(1), from_the_end)[-1]


def _follow(into: Sequence[Tensor], gates: Sequence[Tensor], updates: Sequence[Tensor], state: Tensor) -> Tensor:
    """The recurrence itself, step by step; the last state."""
    for here, gate, update in zip(into, gates, updates, strict=True):
        state = torch.addcmul(update, gate, state, out=here)
    return state


def _in_order(parts: Sequence[Tensor], from_the_end: bool) -> Sequence[Tensor]:
    return parts[::-1] if from_the_end else parts


class GatedState(NamedTuple):
    """The state of GatedMemory and of ParallelGatedMemory: one vector a row."""

    memory: Float[Tensor, "batch d_model"]


def spread_over_time(n_units: int, longest: float = 1024.0) -> Float[Tensor, " n_units"]:
    """Biases of a forget gate that let units forget at different speeds: b = ln(tau - 1), tau from 2 to `longest`.

    sigmoid(b) = 1 - 1/tau: a unit forgets over about tau steps (half of what it holds is gone after tau ln 2), and the
    taus are spaced evenly on a logarithmic scale.  With b = 1 for all, every unit would have lost half after 2.2 steps,
    and no gradient would tell it of what happened long before: it does not learn to keep a token for 50 steps.
    Source: the chrono initialization, Tallec and Ollivier, Can Recurrent Neural Networks Warp Time?, 2018,
    arXiv:1804.11188, section 2, with the taus spread by rule where the paper draws them.
    """
    tau = torch.logspace(math.log10(2), math.log10(longest), n_units)
    return (tau - 1).log()


class _GatedMixer(SequenceMemory):
    """What the two gated memories share: one vector as state, read through W_o.

    A unit of the state is a thing remembered, not a channel of the residual stream; y_t = W_o h_t puts it where the
    block wants it, as the output projection of attention does.
    """

    level: ClassVar[str] = "mixer"

    def __init__(self, d_model: int) -> None:
        super().__init__()
        require(d_model >= 1, "d_model", d_model, "at least 1")
        self.config = {"d_model": d_model}
        self.output = nn.Linear(d_model, d_model, bias=False)

    def initial_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> GatedState:
        return GatedState(torch.zeros(batch_size, self.config["d_model"], device=device, dtype=state_dtype(dtype)))


class GatedMemory(_GatedMixer):
    """One vector, h_t = f_t * h_{t-1} + i_t * c_t, whose gates and candidate see the state: read as y_t = W_o h_t.

    f_t = sigmoid(W_f [h_{t-1}, x_t] + b_f)    i_t = sigmoid(W_i [h_{t-1}, x_t] + b_i)
    c_t = tanh(W_h [h_{t-1}, x_t] + b_h)

    x (B, T, D), state -> (B, T, D), state.  The part of all three that x has is one product for the whole chunk; what
    h_{t-1} adds to it must wait for h_{t-1}, so this memory goes step by step.  b_f is spread over the units
    (`spread_over_time`) and b_i = -b_f, so that a unit that keeps for long lets in little at a time: as h_t is an
    average then, it starts out bounded, although f_t and i_t may both learn to be 1.
    Raises ValueError for d_model below 1.
    Source: the LSTM's cell (Hochreiter and Schmidhuber, 1997; Gers, Schmidhuber, Cummins, 2000) without an output gate.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.from_x = nn.Linear(d_model, 3 * d_model)  # W_f, W_i, W_h, the columns of x, and the biases
        self.from_state = nn.Linear(d_model, 3 * d_model, bias=False)  # and the columns of h_{t-1}
        bias = spread_over_time(d_model)
        with torch.no_grad():
            self.from_x.bias.copy_(torch.cat([bias, -bias, torch.zeros(d_model)]))

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, GatedState]:
        memory, states = state.memory, []
        for from_x in self.from_x(x).unbind(1):  # T times (B, 3D)
            seen = (from_x + self.from_state(memory.to(from_x.dtype))).to(memory.dtype)
            forget_gate, input_gate, candidate = seen.chunk(3, dim=-1)  # 3 x (B, D)
            memory = forget_gate.sigmoid() * memory + input_gate.sigmoid() * candidate.tanh()
            states.append(memory)
        return self.output(torch.stack(states, dim=1).to(x.dtype)), GatedState(memory)


class ParallelGatedMemory(_GatedMixer):
    """One vector whose gate and candidate see x_t alone, so that all its states come from one `linear_scan`.

    h_t = f_t * h_{t-1} + (1 - f_t) * c_t    f_t = sigmoid(W_f x_t + b_f)    c_t = W_h x_t + b_h    y_t = W_o h_t

    x (B, T, D), state -> (B, T, D), state.  The input gate is what the forget gate leaves: h_t is an average of
    candidates, no larger than the largest, and a candidate needs no tanh to keep it bounded.  b_f is spread over the
    units (`spread_over_time`).  Raises ValueError for d_model below 1.
    Source: minGRU; Feng et al., Were RNNs All We Needed?, 2024, arXiv:2410.01201, section 3.1 (its z_t is 1 - f_t).
    """

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.from_x = nn.Linear(d_model, 2 * d_model)  # W_f, W_h and their biases
        with torch.no_grad():
            self.from_x.bias.copy_(torch.cat([spread_over_time(d_model), torch.zeros(d_model)]))

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, GatedState]:
        seen, candidate = self.from_x(x).to(state.memory.dtype).chunk(2, dim=-1)  # 2 x (B, T, D)
        states = scan(seen.sigmoid(), (-seen).sigmoid() * candidate, state.memory)  # 1 - f_t, exact where f_t is near 1
        return self.output(states.to(x.dtype)), GatedState(states[:, -1].clone())
