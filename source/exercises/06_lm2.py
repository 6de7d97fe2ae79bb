# %% [markdown]
# # 06 Exercises: LM2
#
# Seven exercises, from pencil and paper to a layer whose segments are all read at once. Each has a stub, three hints and a check that
# answers in this notebook; a check that says "not attempted" costs nothing, so take them in any order. What chapter 06 defines is used here
# without a word: the tokens' embeddings $E$, the bank $M$ with a vector for each slot, what the tokens read $R$, the candidate $C$,
# the tokens $Z$ that are written, the gates $g_{out}$, $g_{in}$ and $g_f$ (the share that is **kept**), and the sizes B (rows of a batch), T (tokens), L
# (tokens of a segment), N (slots), D (width), H (heads).

# %%
from memcourse.course import check, figures, hint, setup
device = setup("0.1.0", seed=0)

# %%
import torch
from torch import nn

from memcourse import lm2

# %% [markdown]
# ## Before any code

# %% exercise="6.1"
predicted_bank = {
    "half_life": 0.69 / 0.018,  # ln 2 / -ln g_f, and -ln sigmoid(4) is nearly 0.018
    "two_later": (1 / 1.37) ** 2,  # sigmoid(1) = 1 / (1 + 0.37), twice
    "bound": 10,  # m = 0.9 m + 1
    "closes_at": 7,  # (T, 5) and (7, 5)
    "different_slots": 1,  # nothing in the update tells one slot from another
    "first_reader": 4,  # segment 3 is written when its last token is there
    "moved": 15,  # all of them
}

# %% [markdown] tags=["solution-only"]
# A bias of 1, which the public code has, halves a slot in little more than two segments; a bias of 4 takes 38. The bank is bounded because tanh is,
# and because something is always forgotten. The last two numbers are one rule: what a segment writes is read by the next.

# %% tags=["solution-only"]
def half_life(bias):
    """Segments after which half of a slot is left; -ln sigmoid(b) = softplus(-b)."""
    return (torch.tensor(2.0).log() / nn.functional.softplus(-torch.tensor(bias))).item()


print(f"half_life  {half_life(4.0):.1f}, and with a bias of 1: {half_life(1.0):.1f}")
print(f"two_later  {torch.tensor(1.0).sigmoid().item() ** 2:.3f}")
bound = 0.0
for _ in range(1000):
    bound = 0.9 * bound + 1.0
print(f"bound      {bound:.1f}")
for T in (5, 6, 7):
    try:
        torch.ones(T, 5) * torch.ones(7, 5)
        print(f"closes_at  {T}")
    except RuntimeError:
        print(f"           (T = {T} does not run)")

# %% [markdown]
# ## Write and read

# %% exercise="6.2"
def update_bank(memory, candidate, W, b_f):
    """The bank after one segment: g_f * M + g_in * tanh(C).

    memory: M (B, N, D), candidate: C (B, N, D), W: a dict with W["in"] and W["f"], (D, D) each, b_f: (D,)
    -> the new M: (B, N, D).
    """
    g_in = torch.sigmoid(candidate @ W["in"])  # (B, N, D)
    g_f = torch.sigmoid(memory @ W["f"] + b_f)  # (B, N, D)
    return g_f * memory + g_in * torch.tanh(candidate)

# %% exercise="6.3"
def attend(asking, asked, weights, n_heads):
    """Attention of the rows `asking` (B, T, D) to the rows `asked` (B, S, D), n_heads heads -> (B, T, D)."""

    def split(rows):
        return rows.unflatten(2, (n_heads, -1)).transpose(1, 2)  # (B, H, T, d)

    q, k, v = split(asking @ weights["q"]), split(asked @ weights["k"]), split(asked @ weights["v"])
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5  # (B, H, T, S)
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)


def read_bank(tokens, memory, W, n_heads):
    """What the tokens read from the bank, through the output gate: g_out * R.

    tokens: E (B, T, D), memory: M (B, N, D), W: a dict with W["q"], W["k"], W["v"] and W["out"], (D, D) each, used as
    E @ W["q"]; n_heads divides D -> (B, T, D).
    """
    R = attend(tokens, memory, W, n_heads)  # (B, T, D)
    return torch.sigmoid(R @ W["out"]) * R

# %% exercise="6.4"
def slots_query_segment(memory, segment, U, n_heads):
    """The candidate: what each slot gathers from the segment.

    memory: M (B, N, D), segment: Z (B, L, D), U: a dict with U["q"], U["k"] and U["v"], (D, D) each, used as
    M @ U["q"]; n_heads divides D -> C: (B, N, D).
    """
    return attend(memory, segment, U, n_heads)

# %% [markdown] tags=["solution-only"]
# With read and write at hand, `different_slots` of 6.1 can be tried. Below, two banks of eight slots live through the same twenty segments. In
# the first all slots begin as one vector, in the second as rows of the identity.

# %% tags=["solution-only"]
def different_slots(memory, segments=20, seed=0):
    """How many different vectors the slots of a bank (N, D) hold after some segments of noise."""
    generator = torch.Generator().manual_seed(seed)
    N, D = memory.shape
    U, W = ({name: torch.randn(D, D, generator=generator) for name in names} for names in (("q", "k", "v"), ("in", "f")))
    memory = memory[None]
    for _ in range(segments):
        C = slots_query_segment(memory, torch.randn(1, 16, D, generator=generator), U, n_heads=2)
        memory = update_bank(memory, C, W, torch.full((D,), 4.0))
    return len({tuple(slot) for slot in memory[0].mul(1e4).round().tolist()})


print(f"different vectors in the end, of 8 slots that begin as one vector:           {different_slots(torch.ones(8, 16))}")
print(f"different vectors in the end, of 8 slots that begin as rows of the identity: {different_slots(torch.eye(8, 16))}")

# %% [markdown]
# ## A layer that looks ahead

# %% exercise="6.5"
class BankLayer(nn.Module):
    """Each token reads the bank; each segment, once it has ended, is written to it.

    For the tokens E of segment s, (B, L, D), and the bank M that the segments before s have left, (B, N, D):

        y = E + sigmoid(W_out(R)) * R        R = attend(W_q(E), W_k(M), W_v(M))
        C = attend(U_q(M), U_k(E), U_v(E))
        M after segment s = sigmoid(W_f(M)) * M + sigmoid(W_in(C)) * tanh(C)

    x: (B, T, D), the segments one after the other, segment_len tokens each; tokens that do not fill a segment at the
    end of x read, and are not written.  memory: (B, N, D), the bank before x -> (y, memory): (B, T, D), (B, N, D).
    y at token t hangs on memory and on tokens up to t.  The gradient reaches all that the numbers hang on.
    """

    def __init__(self, d_model, segment_len):
        super().__init__()
        self.segment_len = segment_len
        for name in ("W_q", "W_k", "W_v", "W_out", "U_q", "U_k", "U_v", "W_in"):
            setattr(self, name, nn.Linear(d_model, d_model, bias=False))
        self.W_f = nn.Linear(d_model, d_model)

    def attend(self, query, key, value):
        return (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(dim=-1) @ value

    def forward(self, x, memory):
        ys = []
        for E in x.split(self.segment_len, dim=1):  # (B, L, D)
            R = self.attend(self.W_q(E), self.W_k(memory), self.W_v(memory))  # fault 1: it read after the write
            ys.append(E + torch.sigmoid(self.W_out(R)) * R)
            if E.shape[1] == self.segment_len:  # fault 2: an unfinished segment was written
                C = self.attend(self.U_q(memory), self.U_k(E), self.U_v(E))  # (B, N, D)
                g_in = torch.sigmoid(self.W_in(C))  # fault 3: it was made from the mean over all of x
                g_f = torch.sigmoid(self.W_f(memory))
                memory = g_f * memory + g_in * torch.tanh(C)  # fault 4: the bank was detached before every segment
        return torch.cat(ys, dim=1), memory

# %% [markdown] tags=["solution-only"]
# A leak can be seen without reading the code: change one token, and see which outputs before it move; or take the gradient of every output with respect
# to every token. Below is the repaired layer with one of the faults, the pooled gate, put back. The second and the third segment of four read a bank whose
# gate has seen all twelve tokens. Only the first segment is spared: it reads the bank that was there before. The leak is small in a fresh
# layer; nothing keeps training from making it larger.

# %% tags=["solution-only"]
class PooledGate(BankLayer):
    """The input gate is made from the mean over all of x."""

    def forward(self, x, memory):
        ys, g_in = [], torch.sigmoid(self.W_in(x.mean(dim=1, keepdim=True)))
        for E in x.split(self.segment_len, dim=1):
            R = self.attend(self.W_q(E), self.W_k(memory), self.W_v(memory))
            ys.append(E + torch.sigmoid(self.W_out(R)) * R)
            C = self.attend(self.U_q(memory), self.U_k(E), self.U_v(E))
            memory = torch.sigmoid(self.W_f(memory)) * memory + g_in * torch.tanh(C)
        return torch.cat(ys, dim=1), memory


def influence(layer, T=12, D=8):
    """(T, T): the size of the derivative of output t (row) with respect to token s (column)."""
    torch.manual_seed(0)
    layer = layer(D, segment_len=4)
    x, memory = torch.randn(T, D), torch.eye(5, D)
    moved = torch.autograd.functional.jacobian(lambda x: layer(x[None], memory[None])[0][0], x)  # (T, D, T, D)
    return moved.norm(dim=(1, 3))


ahead = torch.ones(12, 12).triu(1).bool()  # tokens after the output
leaky, repaired = influence(PooledGate), influence(BankLayer)
print(f"pooled gate: outputs that move with a later token: {[t + 1 for t in range(12) if leaky[t, ahead[t]].any()]}")
print(f"repaired:    outputs that move with a later token: {[t + 1 for t in range(12) if repaired[t, ahead[t]].any()]}")
words = [str(t + 1) for t in range(12)]
fig = figures.weights(
    leaky,
    words,
    words,
    mask=ahead,
    title="A pooled input gate: tokens 5 to 11 see the future",
    query_label="output (number of the token)",
    key_label="later token that is changed (number)",
    value_label="size of the derivative",
)
figures.show(fig, "Derivatives of 12 outputs by later tokens (own and earlier ones are hatched): 0 in rows 1 to 4, above 0 in rows 5 to 11.")

# %% [markdown]
# ## What to write

# %% exercise="6.6"
def write_segment(memory, inputs, thoughts, U, W, b_f, writes):
    """The bank after a segment.  One pass writes the rows Z to a bank M:

        C = softmax(M U_q (Z U_k)^T / sqrt(D)) Z U_v    g_in = sigmoid(C W_in)    g_f = sigmoid(M W_f + b_f)
        M <- lm2.update of M, C and the two gates

    writes: "input" | "thought" | "both" | "joint".  memory: (B, N, D); inputs, thoughts: (B, L, D) -> (B, N, D).
    """
    joint = torch.cat([inputs, thoughts], dim=1)  # (B, 2L, D)
    Zs = {"input": [inputs], "thought": [thoughts], "both": [inputs, thoughts], "joint": [joint]}[writes]
    for Z in Zs:
        scores = (memory @ U["q"]) @ (Z @ U["k"]).transpose(1, 2) / memory.shape[2] ** 0.5  # (B, N, L or 2L)
        C = scores.softmax(dim=-1) @ (Z @ U["v"])  # (B, N, D)
        g_in, g_f = torch.sigmoid(C @ W["in"]), torch.sigmoid(memory @ W["f"] + b_f)
        memory = lm2.update(memory, C, g_f, g_in)
    return memory

# %% [markdown] tags=["solution-only"]
# "both" forgets twice in each segment, so what was there before is kept by the product of two gates: its half-life in segments is half as
# long at the same bias. A comparison of the four that leaves the bias alone compares two half-lives as well.

# %% tags=["solution-only"]
D = 8
shut = {"in": torch.zeros(D, D), "f": torch.zeros(D, D)}  # g_f is sigmoid(b_f) in every slot
silent = {name: torch.zeros(D, D) for name in "qkv"}  # C is 0: nothing is written
for writes in ("input", "thought", "both", "joint"):
    memory, x, y = torch.ones(1, 3, D), torch.randn(1, 4, D), torch.randn(1, 4, D)
    for _ in range(38):
        memory = write_segment(memory, x, y, silent, shut, torch.full((D,), 4.0), writes)
    print(f"{writes:<8} {memory.mean().item():.2f} of a slot is left after 38 segments, b_f = 4")

# %% [markdown]
# ## The same, faster

# %% exercise="6.7"
def read_segments(x, memory, read, write, segment_len):
    """Read the bank at every token, and write every segment that has ended, with one call of `read` for all of them.

    x: (B, T, D), memory: (B, N, D), the bank before x -> (reads, memory): (B, T, D), (B, N, D).
    """
    B, T, D = x.shape
    S = T // segment_len  # segments that have ended
    whole, rest = x[:, : S * segment_len], x[:, S * segment_len :]
    before, reads = [], []
    for s in range(S):
        before.append(memory)  # the bank that segment s reads
        memory = write(memory, whole[:, s * segment_len : (s + 1) * segment_len])
    if S:
        banks = torch.stack(before, dim=1).flatten(0, 1)  # (B S, N, D), row 0's segments first
        reads.append(read(whole.reshape(B * S, segment_len, D), banks).reshape(B, S * segment_len, D))
    if rest.shape[1]:
        reads.append(read(rest, memory))
    return torch.cat(reads, dim=1), memory

# %% [markdown] tags=["solution-only"]
# What a model that generates does token by token and what one that trains does all at once are two schedules of one computation. The library's
# `LM2Block` keeps the tokens of the open segment in its state, so that a text may be cut anywhere.

# %% tags=["solution-only"]
block = lm2.LM2Block(16, 2, 4, segment_len=5)
x = torch.randn(2, 23, 16)
with torch.no_grad():
    at_once, _ = block(x)
    state, pieces = None, []
    for piece in x.split([1, 1, 9, 5, 3, 4], dim=1):
        y, state = block(piece, state)
        pieces.append(y)
print(f"LM2Block cut into pieces of 1, 1, 9, 5, 3 and 4 tokens gives the same: {torch.allclose(torch.cat(pieces, dim=1), at_once, atol=1e-5)}")
