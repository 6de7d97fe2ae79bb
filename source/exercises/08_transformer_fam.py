# %% [markdown]
# # 08 Exercises: TransformerFAM, and the arena
#
# Seven exercises, from pencil and paper to a memory of your own. Each has a stub, three hints and a check that answers in this notebook; a
# check that says "not attempted" costs nothing, so take them in any order. What chapter 08 defines is used here without a word: blocks, past
# blocks, the feedback $F_\tau$ that block $\tau$ leaves, $E$ and $G$ (tokens and feedback after the norm), and the sizes B (rows of a batch),
# T (tokens), L (tokens of a block), F (feedback vectors), m (past blocks), D (width), H (heads).

# %%
from memcourse.course import check, figures, hint, setup
device = setup("0.1.0", seed=0)

# %%
import torch
from torch import nn

from memcourse import FeedbackBlock, SequenceMemory
from memcourse.course.arena import CONTESTANTS, compete, n_parameters, stack

# %% [markdown]
# ## Who sees whom

# %% exercise="8.1"
predicted_reach = {
    "keys": 5 + 2 + 3,  # one past block, two feedback vectors, the own block up to the third token
    "first_keys": 0 + 2 + 3,  # no block before the first; its feedback is the layer's parameter
    "feedback_keys": 2 + 5,  # itself and the block that has ended
    "state": 2 * 12 + 2 * 5 * 12,  # feedback; keys and values of one past block; the open block is empty
    "window_reach": 3 * 15,
    "earliest": 20 - 4 * 2,
    "earliest_with_feedback": 1,  # from block to block, in one and the same layer
}

# %% [markdown] tags=["solution-only"]
# The library's block says the same: below, the sizes of its state after seven blocks, and which of 20 blocks reach the last one through a stack of four.

# %% tags=["solution-only"]
block = FeedbackBlock(12, 2, block_len=5, n_feedback=2, n_past_blocks=1)
_, state = block(torch.randn(1, 35, 12))
print(f"state    {sum(part.numel() for part in state if part.is_floating_point())} numbers")


def earliest(n_past_blocks, n_feedback):
    """The first of 20 blocks of 2 tokens that reaches the last token through four layers (counted from 1)."""
    layers = [FeedbackBlock(8, 2, block_len=2, n_feedback=n_feedback, n_past_blocks=n_past_blocks).double() for _ in range(4)]
    x = torch.randn(1, 40, 8, dtype=torch.float64, requires_grad=True)
    y = x
    for layer in layers:
        y, _ = layer(y)
    moved = torch.autograd.grad(y[0, -1].sum(), x)[0].abs().sum(dim=2)[0]  # (T,)
    return moved.nonzero()[0].item() // 2 + 1


print(f"earliest {earliest(2, 0)}, with feedback {earliest(0, 1)}")

# %% exercise="8.2"
def who_may_look(block, block_len, n_feedback, n_past_blocks):
    """Masks for the tokens of a block and for the feedback that sums it up, True where a query may look.

    block: the block's number, counted from 0 -> (tokens, feedback): (L, m L + F + L) and (F, F + L).
    """
    L = block_len
    past = torch.ones(L, n_past_blocks * L, dtype=torch.bool)
    past[:, : max(0, n_past_blocks - block) * L] = False  # the oldest stand first, and are those that do not exist
    own = torch.ones(L, L, dtype=torch.bool).tril()
    tokens = torch.cat([past, torch.ones(L, n_feedback, dtype=torch.bool), own], dim=1)
    return tokens, torch.ones(n_feedback, n_feedback + L, dtype=torch.bool)

# %% tags=["solution-only"]
tokens, _ = who_may_look(block=1, block_len=4, n_feedback=2, n_past_blocks=2)
columns = [f"past {i}" for i in range(8)] + ["F 0", "F 1"] + [f"own {i}" for i in range(4)]
fig = figures.weights(
    tokens.double() / tokens.sum(dim=1, keepdim=True),
    [f"own {i}" for i in range(4)],
    columns,
    mask=tokens,
    title="Block 1 of two past blocks: the older one does not exist",
    query_label="token that looks",
    key_label="past blocks, feedback, own block",
)
figures.show(fig, "Who a token of block 1 may look at: not at the first four columns (hatched), at the rest of the past and the feedback, at its own block up to itself.")

# %% [markdown]
# ## The feedback

# %% exercise="8.3"
def update_feedback(feedback, E, blocks, W, n_heads, norm, ff):
    """The feedback after a block: attention over itself and the block, the residual, the feed-forward.

    feedback: F_{tau-1} (B, F, D); E: (B, L, D), after the norm; blocks: (B,), finished before this one -> (B, F, D).
    """

    def split(rows):
        return rows.unflatten(2, (n_heads, -1)).transpose(1, 2)  # (B, H, n, d)

    G = norm(feedback)
    seen = torch.cat([G, E], dim=1)  # (B, F + L, D)
    q, k, v = split(G @ W["q"]), split(seen @ W["k"]), split(seen @ W["v"])
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1)  # (B, H, F, F + L)
    read = (weights @ v).transpose(1, 2).flatten(2)  # (B, F, D)
    carried = feedback * (blocks > 0)[:, None, None]  # nothing in a row's first update
    A = carried + read @ W["o"]
    return A + ff(norm(A))

# %% exercise="8.4"
class FeedbackLayer(nn.Module):
    """Tokens read the feedback of the block before; a block that has ended rewrites it.

        A   = X + attend(E, [E'; G; E up to t])      y = feed_forward(A)
        A_F = F + attend(G, [G; E])                  F after the block = feed_forward(A_F)

    x: (B, T, D), feedback: (B, n, D) -> (y, feedback): (B, T, D), (B, n, D).
    """

    def __init__(self, d_model, block_len):
        super().__init__()
        self.block_len = block_len
        self.norm, self.ff_norm = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        for name in ("W_q", "W_k", "W_v", "W_o"):
            setattr(self, name, nn.Linear(d_model, d_model, bias=False))
        self.expand = nn.Linear(d_model, 2 * d_model, bias=False)
        self.contract = nn.Linear(2 * d_model, d_model, bias=False)

    def attend(self, asking, asked, may_look=None):
        scores = self.W_q(asking) @ self.W_k(asked).mT / asking.shape[2] ** 0.5
        if may_look is not None:
            scores = scores.masked_fill(~may_look, -torch.inf)
        return self.W_o(scores.softmax(dim=-1) @ self.W_v(asked))

    def feed_forward(self, A):
        return A + self.contract(nn.functional.gelu(self.expand(self.ff_norm(A))))

    def forward(self, x, feedback):
        ys, past = [], x[:, :0]
        for number, X in enumerate(x.split(self.block_len, dim=1)):  # (B, L, D)
            E, G = self.norm(X), self.norm(feedback)
            before, L = past.shape[1] + G.shape[1], X.shape[1]
            may_look = torch.ones(L, before + L, dtype=torch.bool).tril(before)
            A = X + self.attend(E, torch.cat([past, G, E], dim=1), may_look)
            ys.append(self.feed_forward(A))
            if L == self.block_len:  # fault 1: this came before the tokens had read
                A_F = self.attend(G, torch.cat([G, E], dim=1))  # fault 2: `past` was asked, too
                if number:
                    A_F = A_F + feedback  # fault 3: the residual copy was missing
                feedback = self.feed_forward(A_F)  # fault 4: and the feed-forward
            past = E
        return torch.cat(ys, dim=1), feedback

# %% [markdown]
# ## The same, faster

# %% exercise="8.5"
def read_blocks(E, feedback, W, update, block_len):
    """What all tokens read, and the feedback after the last block, with a loop over the feedback alone.

    E: (B, T, D), T a multiple of block_len; feedback: (B, F, D) -> (reads, feedback): (B, T, D), (B, F, D).
    """
    L, n = block_len, feedback.shape[1]
    blocks = E.unflatten(1, (-1, L))  # (B, S, L, D)
    read_by = []
    for block in blocks.unbind(dim=1):
        read_by.append(feedback)  # what this block reads
        feedback = update(feedback, block)
    past = torch.cat([torch.zeros_like(blocks[:, :1]), blocks[:, :-1]], dim=1)  # (B, S, L, D)
    seen = torch.cat([past, torch.stack(read_by, dim=1), blocks], dim=2)  # (B, S, L + F + L, D)
    mask = torch.ones(L, L + n + L, dtype=torch.bool).tril(L + n).repeat(blocks.shape[1], 1, 1)
    mask[0, :, :L] = False  # before the first block there is none
    scores = (blocks @ W["q"]) @ (seen @ W["k"]).mT / E.shape[2] ** 0.5  # (B, S, L, L + F + L)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    return (weights @ (seen @ W["v"])).flatten(1, 2), feedback

# %% [markdown]
# ## A patient
#
# The task of 8.6: three pairs of a key (tokens 0 to 4) and a value (5 to 9) in the first segment, fillers (10), and one of the three keys as the last
# token of the text. What is its value? Chance is 0.2. All that you need for measurements is here.

# %%
N_WORDS, SEGMENT, STEPS = 11, 8, 200


def recall_batch(n_segments, seed, rows=32):
    """Tokens (rows, n_segments * 8), and the value that belongs to the last token of each (rows,)."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(rows, 5, generator=generator).argsort(dim=1)[:, :3]
    values = 5 + torch.randint(5, (rows, 3), generator=generator)
    tokens = torch.full((rows, n_segments * SEGMENT), 10)
    tokens[:, 0:6:2], tokens[:, 1:6:2] = keys, values
    asked, row = torch.randint(3, (rows,), generator=generator), torch.arange(rows)
    tokens[:, -1] = keys[row, asked]
    return tokens, values[row, asked]


def train_patient(Patient, seed=0):
    """A model trained for 200 steps, on batches of Patient.n_segments(step) segments: a second or two."""
    torch.manual_seed(seed)
    model = Patient(N_WORDS, 16, SEGMENT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=STEPS + 1)
    for step in range(STEPS):
        tokens, value = recall_batch(Patient.n_segments(step), 100_003 * (seed + 1) + step)
        loss = nn.functional.cross_entropy(model(tokens)[:, -1], value)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def patient_accuracy(model, n_segments):
    tokens, value = recall_batch(n_segments, 10**9 + n_segments, rows=256)
    return (model(tokens)[:, -1].argmax(dim=-1) == value).double().mean().item()


def memory_after(model, tokens):
    """The memory (B, D, D) after whole segments, from an empty one."""
    x = model.embed(tokens)  # (B, T, D)
    memory = x.new_zeros(len(x), x.shape[2], x.shape[2])
    for segment in x.split(model.segment_len, dim=1):
        memory = model.remember(memory, segment)
    return memory

# %% exercise="8.6"
class Patient(nn.Module):
    """A language model whose memory M, (B, D, D), is read by every token and written at the end of every segment.

        x_t = e_t + shift(e_{t-1})            r_t = query(x_t) M
        M after a segment = g * M + sum_t i_t key(x_t)^T value(x_t)    g = sigmoid(forget_bias), one for each row of M
        logits_t = embedding.weight r_t       i_t = sigmoid(write(x_t))

    tokens: (B, T) -> logits (B, T, V).
    """

    findings = {"cut": True, "forgets": True, "unbound": True, "one_length": True, "leaks": False, "shut": False}

    def __init__(self, n_words, d_model, segment_len):
        super().__init__()
        self.segment_len = segment_len
        self.embedding = nn.Embedding(n_words, d_model)
        for name in ("shift", "query", "key", "value"):
            setattr(self, name, nn.Linear(d_model, d_model, bias=False))
        self.write = nn.Linear(d_model, 1)
        self.forget_bias = nn.Parameter(torch.full((d_model,), 4.0))  # "forgets": it was -2

    def embed(self, tokens):
        e = self.embedding(tokens)
        before = nn.functional.pad(e, (0, 0, 1, 0))[:, :-1]  # "unbound": it was e itself
        return e + self.shift(before)  # (B, T, D)

    def remember(self, memory, x):
        """The memory after a segment, and nothing but it: (B, D, D), (B, L, D) -> (B, D, D)."""
        written = (torch.sigmoid(self.write(x)) * self.key(x)).mT @ self.value(x)
        return torch.sigmoid(self.forget_bias)[:, None] * memory + written

    def forward(self, tokens):
        x = self.embed(tokens)
        memory, reads = x.new_zeros(len(x), x.shape[2], x.shape[2]), []
        for segment in x.split(self.segment_len, dim=1):
            reads.append(self.query(segment) @ memory)
            if segment.shape[1] == self.segment_len:
                memory = self.remember(memory, segment)  # "cut": it was detached here
        return torch.cat(reads, dim=1) @ self.embedding.weight.T

    @staticmethod
    def n_segments(step):
        return 2 + step % 5  # "one_length": it was always 2

# %% [markdown] tags=["solution-only"]
# The measurements, each of a fresh model, with one fault put back at a time. None of them needs training, and each has an answer in a
# fraction of a second. Training shows only that something is wrong: a loss that falls a little looks much the same in all four.

# %% tags=["solution-only"]
class Cut(Patient):
    def forward(self, tokens):
        x = self.embed(tokens)
        memory, reads = x.new_zeros(len(x), x.shape[2], x.shape[2]), []
        for segment in x.split(self.segment_len, dim=1):
            reads.append(self.query(segment) @ memory)
            memory = self.remember(memory, segment).detach()
        return torch.cat(reads, dim=1) @ self.embedding.weight.T


class Unbound(Patient):
    def embed(self, tokens):
        e = self.embedding(tokens)
        return e + self.shift(e)


class Forgets(Patient):
    def __init__(self, n_words, d_model, segment_len):
        super().__init__(n_words, d_model, segment_len)
        nn.init.constant_(self.forget_bias, -2.0)


class OneLength(Patient):
    @staticmethod
    def n_segments(step):
        return 2


def measure(kind):
    """The six findings, measured."""
    torch.manual_seed(0)
    model = kind(N_WORDS, 16, SEGMENT)
    tokens, _ = recall_batch(3, seed=0)
    model(tokens)[:, -1].sum().backward()  # the last tokens read the memory, and write nothing that is read
    exchanged = tokens[:, :SEGMENT].clone()
    exchanged[:, 1], exchanged[:, 3] = tokens[:, 3], tokens[:, 1]  # two keys exchange their values
    after = memory_after(model, tokens[:, :SEGMENT])
    moved = (memory_after(model, exchanged) - after).abs().max() / after.abs().max()
    changed = tokens.clone()
    changed[:, -1] = 10 - changed[:, -1]
    return {
        "cut": model.key.weight.grad is None or not model.key.weight.grad.any().item(),
        "forgets": model.forget_bias.sigmoid().min().item() < 0.5,
        "unbound": moved.item() < 1e-5,
        "one_length": len({kind.n_segments(step) for step in range(STEPS)}) == 1,
        "leaks": not torch.allclose(model(changed)[:, :-1], model(tokens)[:, :-1], atol=1e-6),
        "shut": not after.any().item(),
    }


for kind in (Patient, Cut, Unbound, Forgets, OneLength):
    print(f"{kind.__name__:<10} {[name for name, ill in measure(kind).items() if ill]}")
for kind in (Patient, OneLength):
    model = train_patient(kind)
    near, far = patient_accuracy(model, 2), patient_accuracy(model, 16)
    print(f"{kind.__name__:<10} trained: at least 0.9 over 2 segments: {near >= 0.9}; at least 0.8 over 16: {far >= 0.8}")

# %% [markdown] tags=["solution-only"]
# The last line is the one to remember. `OneLength` solves what it was trained on, and nothing in its loss says that it will fail on longer texts: what its
# second segment writes is never read, so it has not learned to leave it unwritten.

# %% [markdown]
# ## The arena

# %% exercise="8.7"
class MyMemory(SequenceMemory):
    """A vector of D numbers; each keeps a share of itself and takes in a share of what is new."""

    level = "mixer"
    width = 48

    def __init__(self, d_model):
        super().__init__()
        self.config = {"d_model": d_model}
        self.new, self.gate, self.out = (nn.Linear(d_model, d_model) for _ in range(3))

    def initial_state(self, batch_size, *, device=None, dtype=None):
        return (torch.zeros(batch_size, self.config["d_model"], device=device, dtype=dtype),)

    def advance(self, x, state):
        (h,), hs = state, []
        for x_t in x.unbind(dim=1):  # (B, D)
            g = self.gate(x_t).sigmoid()
            h = g * h + (1 - g) * self.new(x_t)
            hs.append(h)
        return self.out(torch.stack(hs, dim=1)), (h,)

# %% [markdown] tags=["solution-only"]
# One line, and it is in. Ten steps of training are far too few to say anything about a memory, but enough to see that it competes by the same rules; a task's own
# number of steps takes a minute, and chapter 08 runs every contestant with several seeds.

# %% tags=["solution-only"]
CONTESTANTS["mine"] = stack(MyMemory.width, MyMemory)
near = all(0.9 < n_parameters("mine") / n_parameters(name) < 1.1 for name in ("window", "FAM"))
print(f"within a tenth of the parameters of window and FAM: {near}")
result = compete("mine", "passkey", seed=0, steps=10, places=(2,))
print(f"after {result['steps']} steps it has an accuracy at {result['places']} segments: {0 <= result['accuracy'][0] <= 1}")
