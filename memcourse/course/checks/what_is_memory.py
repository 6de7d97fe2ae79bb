"""The exercise of chapter 00, the gate equation: what is asked, what is right, and the known wrong answers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memcourse.course.exercise import Exercise, Mistake

Array = NDArray[np.float64]


def steps() -> list[tuple[Tensor, ...]]:
    """State, candidate and gates of shape (2, 3); then of (5, 7), with gates that are shut, ajar and open."""
    generator = torch.Generator().manual_seed(0)

    def step(batch_size: int, width: int) -> tuple[Tensor, ...]:
        state, candidate = torch.randn(2, batch_size, width, generator=generator)
        forget_gate, input_gate = torch.rand(2, batch_size, width, generator=generator)
        return state, candidate, forget_gate, input_gate

    state, candidate, forget_gate, input_gate = step(5, 7)
    forget_gate[0], input_gate[0] = 1.0, 0.0  # keep everything
    forget_gate[1], input_gate[1] = 0.0, 1.0  # replace everything
    return [step(2, 3), (state, candidate, forget_gate, input_gate)]


def one_number_at_a_time(state: Array, candidate: Array, forget_gate: Array, input_gate: Array) -> Array:
    new_state = np.zeros_like(state)
    for place in np.ndindex(*state.shape):
        new_state[place] = forget_gate[place] * state[place] + input_gate[place] * candidate[place]
    return new_state


MISTAKES = (
    Mistake(
        "this takes the forget gate for the share that is forgotten, as the guide's sentence does: in the equation it "
        "is the share of the old state that is kept",
        lambda state, candidate, forget_gate, input_gate: (1 - forget_gate) * state + input_gate * candidate,
    ),
    Mistake(
        "the gates are swapped: the forget gate belongs to the old state, the input gate to the candidate",
        lambda state, candidate, forget_gate, input_gate: input_gate * state + forget_gate * candidate,
    ),
    Mistake(
        "one gate is applied to both: the old state has the forget gate, the candidate has a gate of its own",
        lambda state, candidate, forget_gate, input_gate: forget_gate * (state + candidate),
    ),
    Mistake(
        "one gate is applied to both: the old state has the forget gate, the candidate has a gate of its own",
        lambda state, candidate, forget_gate, input_gate: input_gate * (state + candidate),
    ),
    Mistake(
        "the input gate has no say here: what is written is input_gate * candidate, and not the share that the forget "
        "gate leaves over (that is a GRU, which has one gate for both)",
        lambda state, candidate, forget_gate, input_gate: forget_gate * state + (1 - forget_gate) * candidate,
    ),
    Mistake(
        "the candidate is written whole: the input gate says how much of it",
        lambda state, candidate, forget_gate, input_gate: forget_gate * state + candidate,
    ),
    Mistake(
        "nothing is ever forgotten here: the old state is kept whole, and the forget gate is not used",
        lambda state, candidate, forget_gate, input_gate: state + input_gate * candidate,
    ),
    Mistake(
        "the candidate gets a tanh too many: it arrives ready to be written",
        lambda state, candidate, forget_gate, input_gate: forget_gate * state + input_gate * candidate.tanh(),
    ),
    Mistake(
        "the gates get a sigmoid too many: they arrive between 0 and 1",
        lambda state, candidate, forget_gate, input_gate: (
            forget_gate.sigmoid() * state + input_gate.sigmoid() * candidate
        ),
    ),
)

REMEMBER = Exercise(
    id="0.1",
    name="remember",
    title="Keep some of the old, write some of the new",
    kind="write the equation",
    points=1,
    minutes=1,
    difficulty="easy",
    question="""\
Write one step of a gated memory, $h_t = f_t \\odot h_{t-1} + i_t \\odot c_t$, where $\\odot$ multiplies element by
element. It is one line, and with it you have seen how an exercise works: write, run the check, ask for a hint if you
are stuck.""",
    stub='''\
def remember(state, candidate, forget_gate, input_gate):
    """The state after one step.  All four (B, d), the gates between 0 and 1 -> (B, d)."""
    raise NotImplementedError''',
    hints=(
        "Each of the two terms is a gate times what it lets through. `*` multiplies tensors element by element.",
        "The forget gate stands before the old state: at 1 everything is kept, at 0 nothing is. The input gate stands "
        "before the candidate.",
        "return forget_gate * state + input_gate * ...: one name is missing.",
    ),
    cases=steps,
    probe=lambda answer, *case: answer(*case),
    oracle=one_number_at_a_time,
    mistakes=MISTAKES,
)

EXERCISES = (REMEMBER,)
