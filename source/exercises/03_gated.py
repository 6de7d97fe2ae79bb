# %% [markdown]
# # 03 Exercises: gated memory
#
# Six exercises, from pencil and paper to a scan without a loop. Each has a stub, three hints and a check that answers in this
# notebook; a check that says "not attempted" costs nothing, so take them in any order. What chapter 03 defines is used here
# without a word: the state $h_t$, the candidate $c_t$, the forget gate $f_t$ (the share that is **kept**), the input gate
# $i_t$, and the sizes B (rows of a batch), T (tokens), D (units of the state), X (width of the input).

# %%
from memcourse.course import check, figures, hint, setup
device = setup("0.1.0", seed=0)

# %%
import torch
from torch import nn

from memcourse import gated_update

# %% [markdown]
# ## One unit

# %% exercise="3.1"
predicted_gates = {
    "kept": (3 / 4) ** 2,  # sigmoid(log 3) = 3 / (3 + 1) is kept, twice
    "gradient": (3 / 4) ** 2,  # h_2 = f f h_0
    "half_life": 0.69 / 0.01,  # ln 2 / -ln f, and -ln 0.99 is nearly 0.01
    "plus_log_ten": 10,  # 1 - f is nearly exp(-b), which falls to a tenth
    "both_open": 10,  # nothing goes, and 1 is added ten times
    "settles": 5,  # h = 0.9 h + 0.5
}

# %% [markdown] tags=["solution-only"]
# What is kept of the state is also what is kept of the gradient, which is why a gate that forgets too fast cannot learn to
# remember. The half-life grows exponentially with the bias. And f and i are two gates: where both are open the state has no bound, which
# the units with $i = 1 - f$ (GRU, the library's `ParallelGatedMemory`) do not share.

# %% tags=["solution-only"]
h_0 = torch.ones(1, dtype=torch.float64, requires_grad=True)
f = torch.tensor(3.0, dtype=torch.float64).log().sigmoid()
h_2 = f * (f * h_0)
print(f"kept          {h_2.item():.4f}")
print(f"gradient      {torch.autograd.grad(h_2, h_0)[0].item():.4f}")


def half_life(bias):
    """Steps after which half is left, for a forget gate sigmoid(bias); -ln sigmoid(b) = softplus(-b)."""
    return (torch.tensor(2.0).log() / nn.functional.softplus(-torch.as_tensor(bias))).item()


print(f"half_life     {half_life(torch.tensor(0.99).logit()):.1f}")
print(f"plus_log_ten  {half_life(7 + 2.302585) / half_life(7.0):.1f}")
both_open = settles = 0.0
for t in range(1000):
    both_open = both_open + 1 if t < 10 else both_open
    settles = 0.9 * settles + 0.5
print(f"both_open     {both_open:.1f}")
print(f"settles       {settles:.1f}")

# %% [markdown]
# ## A sequence

# %% exercise="3.2"
def gated_states(state, candidate, forget_gate, input_gate):
    """All states of h_t = f_t * h_{t-1} + i_t * c_t, for t = 1 ... T, from h_0 = state.

    state: (B, D); candidate, forget_gate, input_gate: (B, T, D), gates between 0 and 1 -> h_1 ... h_T: (B, T, D).
    """
    states = []
    for t in range(candidate.shape[1]):
        state = forget_gate[:, t] * state + input_gate[:, t] * candidate[:, t]  # (B, D)
        states.append(state)
    return torch.stack(states, dim=1)  # (B, T, D)

# %% exercise="3.3"
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
        super().__init__()
        self.forget = nn.Linear(hidden_size + input_size, hidden_size)
        self.input = nn.Linear(hidden_size + input_size, hidden_size)
        self.candidate = nn.Linear(hidden_size + input_size, hidden_size)  # fault 1: it saw x_t alone
        nn.init.constant_(self.forget.bias, 4.0)  # fault 2: near 0, so that f was about 1/2

    def forward(self, x, state=None):
        h = x.new_zeros(x.shape[0], self.forget.out_features) if state is None else state  # fault 3: it stood on self
        states = []
        for x_t in x.unbind(dim=1):  # (B, X)
            seen = torch.cat([h, x_t], dim=1)  # (B, D + X)
            f = torch.sigmoid(self.forget(seen))
            i = torch.sigmoid(self.input(seen))
            c = torch.tanh(self.candidate(seen))
            h = f * h + i * c  # fault 4: it kept 1 - f
            states.append(h)
        return torch.stack(states, dim=1), h

# %% [markdown] tags=["solution-only"]
# How far back does a fresh unit hear? Below is the size of the gradient of $h_{100}$ with respect to the token that lies some steps
# before it, as a share of the gradient with respect to the last token. Nothing has been trained; the units differ in two biases
# alone. A forget gate that begins open is half of the matter: while it keeps nearly all and the input gate stays half open, the state grows,
# feeds itself through the candidate, and the gradient grows with the distance. An input gate that begins as far shut as the forget
# gate is open, $b_i = -b_f$ as in the library's `GatedMemory`, makes the state an average again.

# %% tags=["solution-only"]
def gradient_over_time(forget_bias, input_bias, seed, T=100):
    """(T,): the gradient's norm at each distance from the last token, as a share of the norm at distance 0."""
    torch.manual_seed(seed)
    unit = GatedUnit(8, 32)
    nn.init.constant_(unit.forget.bias, forget_bias)
    nn.init.constant_(unit.input.bias, input_bias)
    x = torch.randn(16, T, 8, requires_grad=True)
    gradient = torch.autograd.grad(unit(x)[1].sum(), x)[0].norm(dim=(0, 2)).flip(0)  # (T,)
    return gradient / gradient[0]


reach = {
    f"forget {f:g}, input {i:g}": torch.stack([gradient_over_time(f, i, seed) for seed in range(3)])
    for f, i in ((0.0, 0.0), (4.0, 0.0), (4.0, -4.0))
}
shut, half_open, balanced = reach.values()
print(f"forget 0, input 0: less than a millionth is left after 50 tokens: {(shut[:, 50] < 1e-6).all().item()}")
print(f"forget 4, input 0: more than tenfold after 99 tokens: {(half_open[:, 99] > 10).all().item()}")
print(f"forget 4, input -4: between a tenth and all of it after 50 tokens: {((balanced[:, 50] > 0.1) & (balanced[:, 50] < 1)).all().item()}")
fig = figures.curves(
    {name: (torch.arange(100), table.log10()) for name, table in reach.items()},
    x="tokens between input and state",
    y="log10 of the gradient's share",
    title="Two biases decide how far back a fresh unit can learn",
)
figures.show(fig, "Log of the gradient against distance: a straight fall to 1e-14 for biases 0 and 0, a rise for 4 and 0, nearly level for 4 and -4.")

# %% [markdown]
# ## The same, faster

# %% exercise="3.4"
def linear_scan(forget_gate, update, initial):
    """All states of h_t = f_t * h_{t-1} + u_t, from h_0 = initial.  (B, T, D), (B, T, D), (B, D) -> (B, T, D).

    After the doubling of n, entry t of a and b is what the last 2n tokens up to t do to the state before: a h + b.
    """
    a = forget_gate
    b = torch.cat([update[:, :1] + forget_gate[:, :1] * initial[:, None], update[:, 1:]], dim=1)
    n = 1
    while n < update.shape[1]:
        b = torch.cat([b[:, :n], b[:, n:] + a[:, n:] * b[:, :-n]], dim=1)  # the span before, carried through this one
        a = torch.cat([a[:, :n], a[:, n:] * a[:, :-n]], dim=1)
        n *= 2
    return b

# %% [markdown] tags=["solution-only"]
# Each doubling touches all T tokens, so this does about log T times the arithmetic of the loop, and is faster all the same: a
# loop over tokens spends its time on calling torch, not on multiplying. The library's `linear_scan` does each number about twice
# only: it cuts time into chunks that advance side by side, and has a backward of its own. Below is the one-line attempt with a
# running product, at a single gate of 0.

# %% tags=["solution-only"]
gate, u = torch.tensor([[[0.5], [0.0], [0.5]]]), torch.ones(1, 3, 1)
product = gate.cumprod(dim=1)
print("divided by a running product:", (product * (u / product).cumsum(dim=1)).flatten().tolist())
print("spans put together:          ", linear_scan(gate, u, torch.zeros(1, 1)).flatten().tolist())

# %% [markdown]
# ## A relative

# %% exercise="3.5"
def lstm_cell(x, hidden, cell, weight_ih, weight_hh, bias_ih, bias_hh):
    """One step of an LSTM: the new hidden state and the new cell state.

    x: (B, X), hidden and cell: (B, H), weight_ih: (4H, X), weight_hh: (4H, H), bias_ih and bias_hh: (4H,)
    -> (new hidden, new cell): (B, H), (B, H).
    """
    i, f, g, o = (x @ weight_ih.T + bias_ih + hidden @ weight_hh.T + bias_hh).chunk(4, dim=1)  # each (B, H)
    cell = gated_update(cell, g.tanh(), f.sigmoid(), i.sigmoid())
    return o.sigmoid() * cell.tanh(), cell

# %% tags=["solution-only"]
theirs = nn.LSTMCell(5, 7)
x, hidden, cell = torch.randn(3, 5), torch.randn(3, 7), torch.randn(3, 7)
with torch.no_grad():
    ours = lstm_cell(x, hidden, cell, *theirs.parameters())
    same = [torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, theirs(x, (hidden, cell)), strict=True)]
print(f"the same hidden and cell state as torch.nn.LSTMCell: {same}")
f = (theirs.bias_ih + theirs.bias_hh)[7:14].sigmoid()
print(f"its forget gates begin between 0.3 and 0.7, a half-life of two steps at most: {bool((f > 0.3).all() and (f < 0.7).all())}")

# %% [markdown]
# ## The limit
#
# `make_gates` makes the gates that exercise 3.6 asks about: each of 256 units has the same bias and sees noise of its own.

# %%
def make_gates(bias, noise, tokens, seed=0):
    """Forget gates sigmoid(bias + noise * xi) of 256 units over a number of tokens: (tokens, 256)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.sigmoid(bias + noise * torch.randn(tokens, 256, generator=generator))

# %% tags=["solution-only"]
grid = [0.5 * step for step in range(25)]
share_left = {
    f"{name}, {tokens}": torch.tensor(
        [[make_gates(b, s, tokens, seed).prod(dim=0).mean().item() for b in grid] for seed in range(3)]
    )
    for name, s in (("quiet", 0.0), ("noisy", 2.0))
    for tokens in (100, 1000)
}
fig = figures.curves(
    {name: (grid, table) for name, table in share_left.items()},
    x="bias of the forget gate",
    y="share of the state left",
    title="Ten times as long costs 2.3 of bias; so, nearly, does noise",
    levels={"half": 0.5},
)
figures.show(fig, "Share left against bias, four S-shaped curves: quiet gates reach half near 5 (100 tokens) and 7.5 (1000), noisy ones about 2 later.")
largest = max(b for b in grid if torch.tensor(b, dtype=torch.bfloat16).sigmoid() < 1)
print(f"the largest bias of the grid at which a bfloat16 gate is below 1: {largest}")

# %% exercise="3.6"
smallest_bias = {"quiet, 100": 5.0, "quiet, 1000": 7.5, "noisy, 100": 7.0, "noisy, 1000": 9.5, "bfloat16": 6.5}

# %% [markdown] tags=["solution-only"]
# Near 1, $-\ln\sigma(b)$ is nearly $e^{-b}$: what goes at each token. Noise of strength s multiplies its mean by $e^{s^2/2}$, so a gate that
# is to remember over a long noisy stretch must not only be open, but learn not to look at the noise. A bfloat16 gate below 1 is at
# most 1 - 1/256, a half-life of 177 tokens, and the next number above it never forgets: gates and states are kept in float32.
