"""The exercises of chapter 03, a state that decides what to keep: what is asked, the stubs, the hints.

How answers are used and what is right stands in gated_oracles.py, the known wrong answers in gated_mistakes.py.
"""

from __future__ import annotations

from memcourse.course.checks import gated_mistakes as mistakes
from memcourse.course.checks import gated_oracles as oracles
from memcourse.course.checks import gated_variants as variants
from memcourse.course.checks.attention_oracles import call, itself
from memcourse.course.exercise import Exercise

PREDICTED_GATES = Exercise(
    id="3.1",
    name="predicted_gates",
    title="What a gate keeps, and for how long",
    kind="predict, then run",
    points=2,
    minutes=6,
    difficulty="easy",
    cases=lambda: [()],
    probe=itself,
    tolerance=0.02,
    variant=variants.PREDICTED_GATES,
    **variants.PREDICTED_GATES.of_the_course,
)

GATED_STATES = Exercise(
    id="3.2",
    name="gated_states",
    title="Keep a share, let in a share",
    kind="write the equation",
    points=3,
    minutes=8,
    difficulty="easy",
    question="""\
Write $h_t = f_t \\odot h_{t-1} + i_t \\odot c_t$ over a sequence: from the state that is given, one step for each
token, and hand back the state after every token. A plain loop is what is asked. LSTM, GRU, LM2's memory bank and
the state-space models all have this line in the middle.""",
    stub='''\
def gated_states(state, candidate, forget_gate, input_gate):
    """All states of h_t = f_t * h_{t-1} + i_t * c_t, for t = 1 ... T, from h_0 = state.

    state: (B, D); candidate, forget_gate, input_gate: (B, T, D), gates between 0 and 1 -> h_1 ... h_T: (B, T, D).
    """
    raise NotImplementedError''',
    hints=(
        "`candidate[:, t]` is the candidate of one token, (B, D). Which name must hold the new state when the next "
        "token comes?",
        "Append each new state to a list. `state = f * state + i * c` makes a new tensor; `state *= f` would change "
        "the caller's.",
        "`for t in range(candidate.shape[1]):` make the new state of forget_gate[:, t], state, input_gate[:, t] and "
        "candidate[:, t], append it; after the loop, torch.stack(states, dim=1).",
    ),
    cases=oracles.states_cases,
    probe=call,
    oracle=oracles.states_oracle,
    mistakes=mistakes.GATED_STATES,
)

GATED_UNIT = Exercise(
    id="3.3",
    name="GatedUnit",
    title="Repair a unit that forgets",
    kind="repair this",
    points=4,
    minutes=20,
    difficulty="medium",
    question="""\
A gated unit, written after a sentence that calls $f$ "the share that is forgotten". It has four faults, and each of
them is found in published code: it runs, its loss falls a little, and it remembers nothing. Repair it until it does
what the docstring says. Its parameters keep the names and shapes that the docstring gives, so that the check can set
them; the check also looks at what `__init__` makes.""",
    stub='''\
class GatedUnit(nn.Module):
    """h_t = f_t * h_{t-1} + i_t * c_t, whose gates and candidate see the state, for t = 1 ... T.

        f_t = sigmoid(forget([h_{t-1}; x_t]))    i_t = sigmoid(input([h_{t-1}; x_t]))
        c_t = tanh(candidate([h_{t-1}; x_t]))

    x: (B, T, X), state: (B, D) or None, which means zeros -> (states, last): h_1 ... h_T (B, T, D), h_T (B, D).
    What it returns hangs on its arguments and parameters alone.
    A fresh unit remembers: when x and the weights say nothing, its biases keep half of a state for 20 tokens or more.
    It can also learn: 1 - f is then 0.0001 or more.
    Parameters: forget.weight (D, D + X), forget.bias (D,); input and candidate have the same shapes.
    """

    def __init__(self, input_size, hidden_size):
        raise NotImplementedError  # delete this line first; everything below is the broken unit
        super().__init__()
        self.forget = nn.Linear(hidden_size + input_size, hidden_size)
        self.input = nn.Linear(hidden_size + input_size, hidden_size)
        self.candidate = nn.Linear(input_size, hidden_size)
        self.state = None

    def forward(self, x, state=None):
        if state is not None:
            self.state = state
        if self.state is None:
            self.state = x.new_zeros(x.shape[0], self.forget.out_features)
        states = []
        for x_t in x.unbind(dim=1):  # (B, X)
            seen = torch.cat([self.state, x_t], dim=1)  # (B, D + X)
            f = torch.sigmoid(self.forget(seen))
            i = torch.sigmoid(self.input(seen))
            c = torch.tanh(self.candidate(x_t))
            self.state = (1 - f) * self.state + i * c
            states.append(self.state)
        return torch.stack(states, dim=1), self.state''',
    hints=(
        "Compare line by line with the docstring: what does each of the three layers see, and which share of the "
        "state stays? Then call the unit twice with the same x: why do the two results differ?",
        "A state on `self` outlives the batch that it belongs to; a local name does not. As for the bias: with "
        "nn.Linear's, f is about 1/2, and 1/2 to the power 20 is a millionth. You want f**20 of at least 1/2.",
        "candidate is nn.Linear(D + X, D) and sees `seen`; the new state is f * h + i * c; h is a local name that "
        "starts from `state`, or from zeros if that is None; and nn.init.constant_(self.forget.bias, 4.0), for "
        "sigmoid(4)**20 = 0.69.",
    ),
    cases=oracles.unit_cases,
    probe=oracles.unit_probe,
    oracle=oracles.unit_oracle,
    mistakes=mistakes.GATED_UNIT,
    properties=(oracles.a_fresh_unit_remembers_and_can_learn,),
)

LINEAR_SCAN = Exercise(
    id="3.4",
    name="linear_scan",
    title="The same states without the loop",
    kind="make it fast",
    points=5,
    minutes=30,
    difficulty="hard",
    question="""\
When gates see the input alone, $h_t = f_t \\odot h_{t-1} + u_t$ is linear in the state, and tokens need not wait
for each other: a span of tokens does to the state before it no more than $h \\mapsto a\\,h + b$, and two such spans
make one. Write the loop of the docstring without a Python step for each token: the same numbers, gates of exactly 0
included, a gradient, and at least five times as fast on 1024 tokens.""",
    stub='''\
def linear_scan(forget_gate, update, initial):
    """All states of h_t = f_t * h_{t-1} + u_t, from h_0 = initial.  (B, T, D), (B, T, D), (B, D) -> (B, T, D).

    Gates are between 0 and 1, and may be 0 or 1.  The same numbers as this loop, in far fewer steps than T:

        state, states = initial, []
        for f, u in zip(forget_gate.unbind(1), update.unbind(1)):
            state = f * state + u
            states.append(state)
        return torch.stack(states, dim=1)
    """
    raise NotImplementedError''',
    hints=(
        "A span that does h -> a1 h + b1, and after it one that does h -> a2 h + b2, together do h -> (a2 a1) h + "
        "(a2 b1 + b2). With spans of 1, 2, 4, ... tokens that end at every token, about log2(T) doublings reach the "
        "beginning. cumprod and a division would do it in one, until a product is 0.",
        "Begin with a = forget_gate and b = update, with forget_gate[:, 0] * initial added to b's first token. One "
        "doubling from spans of n tokens: b[:, n:] becomes b[:, n:] + a[:, n:] * b[:, :-n], and a[:, n:] becomes "
        "a[:, n:] * a[:, :-n]; the first n tokens stay.",
        "`n = 1`, then `while n < T:` b = torch.cat([b[:, :n], b[:, n:] + a[:, n:] * b[:, :-n]], dim=1), then a in "
        "the same manner (after b, which needs the old a), then n *= 2. In the end b holds the states.",
    ),
    cases=oracles.scan_cases,
    probe=call,
    oracle=oracles.scan_oracle,
    mistakes=mistakes.LINEAR_SCAN,
    properties=(oracles.a_long_memory_is_exact, oracles.at_least_five_times_as_fast_as_the_loop),
)

LSTM_CELL = Exercise(
    id="3.5",
    name="lstm_cell",
    title="An LSTM around the library's gate",
    kind="use the library",
    points=4,
    minutes=15,
    difficulty="medium",
    question="""\
The cell state of an LSTM is the library's `gated_update`. Write the rest of the cell around it, so that it gives the
numbers of `torch.nn.LSTMCell` for its own weights. Those stand in four blocks of H rows, in the order i, f, g, o:
input gate, forget gate, candidate, output gate. Code that moves weights from one framework to another stands or
falls by such an order, and a wrong one raises no error.""",
    stub='''\
def lstm_cell(x, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh):
    """One step of an LSTM: the new hidden state and the new cell state.

        i, f, g, o = the four blocks of weight_ih x + bias_ih + weight_hh hidden + bias_hh
        new cell   = sigmoid(f) * cell + sigmoid(i) * tanh(g)
        new hidden = sigmoid(o) * tanh(new cell)

    x: (B, X), hidden and cell: (B, H), weight_ih: (4H, X), weight_hh: (4H, H), bias_ih and bias_hh: (4H,)
    -> (new hidden, new cell): (B, H), (B, H).
    """
    raise NotImplementedError''',
    hints=(
        "Begin with all four blocks at once: two matrix products and two biases give (B, 4H). `help(gated_update)` "
        "says which of its arguments is which.",
        "A layer's weight is (out, in), so the product is `x @ weight_ih.T`. `.chunk(4, dim=1)` cuts (B, 4H) into "
        "four of (B, H), in PyTorch's order.",
        "`i, f, g, o = (x @ weight_ih.T + bias_ih + hidden @ weight_hh.T + bias_hh).chunk(4, dim=1)`; the new cell "
        "is gated_update(cell, g.tanh(), f.sigmoid(), i.sigmoid()); the new hidden state reads it.",
    ),
    cases=oracles.lstm_cases,
    probe=call,
    oracle=oracles.lstm_oracle,
    mistakes=mistakes.LSTM_CELL,
)

SMALLEST_BIAS = Exercise(
    id="3.6",
    name="smallest_bias",
    title="How far open is far enough?",
    kind="find the limit",
    points=2,
    minutes=15,
    difficulty="medium",
    cases=lambda: [()],
    variant=variants.SMALLEST_BIAS,
    **variants.SMALLEST_BIAS.of_the_course,
)

EXERCISES = (
    PREDICTED_GATES,
    GATED_STATES,
    GATED_UNIT,
    LINEAR_SCAN,
    LSTM_CELL,
    SMALLEST_BIAS,
)
