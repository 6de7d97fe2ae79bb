# %% [markdown]
# # 01 Exercises: attention is a soft dictionary
#
# Seven exercises, from pencil and paper to a small sequence-to-sequence model. Each has a stub, three hints and a check that answers
# in this notebook; a check that says "not attempted" costs nothing, so take them in any order. What chapter 01 defines is
# used here without a word: `query`, `key`, `value`, `mask` (True = may look), and the shapes T (queries), S (keys), d (width).

# %%
from memcourse.course import check, figures, hint, setup
device = setup("0.1.0", seed=0)

# %%
import torch
from torch import nn

from memcourse import AdditiveAttention

# %% [markdown]
# ## The address

# %% exercise="1.1"
predicted_weights = {
    "as_given": 3 / 6,  # exp(log 3) = 3, against exp(0) = 1 for each of the others
    "plus_ten": 3 / 6,  # every term is multiplied by exp(10), which cancels
    "times_two": 9 / 12,  # exp(2 log 3) = 9
    "times_hundred": 1.0,  # 3 to the power 100, against 3
    "times_zero": 1 / 4,  # four equal scores
    "stored_twice": 3 / 9,  # 3 + 3 + 1 + 1 + 1
}

# %% [markdown] tags=["solution-only"]
# Only differences between scores matter, and a factor on the scores is a sharpness: at 0 the read is the mean of all values, at
# 100 it is the value of one key. `plus_ten` is why a bias in the key projection would do nothing. `stored_twice` is why
# copies in a memory are not free: they take weight from everything else.

# %% tags=["solution-only"]
log_3 = torch.tensor(3.0).log()
scores = torch.stack([log_3, 0 * log_3, 0 * log_3, 0 * log_3])
for name, changed in {
    "as_given": scores,
    "plus_ten": scores + 10,
    "times_two": scores * 2,
    "times_hundred": scores * 100,
    "times_zero": scores * 0,
    "stored_twice": torch.cat([scores, scores[:1]]),
}.items():
    print(f"{name:14} {changed.softmax(dim=0)[0].item():.3f}")

# %% exercise="1.2"
def attention_weights(query, key):
    """Weights of every query over every key.  query: (T, d), key: (S, d) -> (T, S), rows sum to 1."""
    scores = query @ key.T / query.shape[-1] ** 0.5  # (T, S)
    return scores.softmax(dim=-1)

# %% [markdown]
# ## The read

# %% exercise="1.3"
def attend(query, key, value, mask):
    """Read of every query from the values.  query: (T, d), key: (S, d), value: (S, v), mask: (T, S) -> (T, v).

    The weights are softmax(query key^T / sqrt(d)) over the keys where mask is True (True = may look).
    A row of the mask that is all False reads zeros, with no NaN in the value or in any gradient.
    """
    scores = query @ key.T / query.shape[-1] ** 0.5  # (T, S)
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1).masked_fill(~mask, 0.0)  # an empty row was uniform until here
    return weights @ value  # (T, v)

# %% exercise="1.4"
import math

import torch.nn.functional as F


class AttentionLayer(nn.Module):
    """Additive attention: energy_bs = v . tanh(attn([hidden_b; encoder_outputs_bs])), weights = softmax over s.

    hidden: (B, H), encoder_outputs: (B, S, H), lengths: (B,), each 1 to S -> (context, weights): (B, H), (B, S).
    Sentence b is encoder_outputs[b, :lengths[b]]; what follows is padding and has weight 0.
    context_b = sum_s weights_bs encoder_outputs_bs.
    Parameters: attn.weight (H, 2H), attn.bias (H,), v (H,).
    """

    def __init__(self, hidden_size):
        super().__init__()
        self.attn = nn.Linear(2 * hidden_size, hidden_size)
        self.v = nn.Parameter(torch.empty(hidden_size))
        bound = 1 / math.sqrt(hidden_size)
        nn.init.uniform_(self.v, -bound, bound)

    def forward(self, hidden, encoder_outputs, lengths):
        S = encoder_outputs.shape[1]
        padding = torch.arange(S, device=lengths.device) >= lengths[:, None]  # (B, S)
        energy = self.score(hidden[:, None].expand(-1, S, -1), encoder_outputs)  # (B, S)
        weights = F.softmax(energy.masked_fill(padding, -math.inf), dim=1)
        context = (weights[:, None] @ encoder_outputs).squeeze(1)  # (B, 1, S) @ (B, S, H) -> (B, H)
        return context, weights

    def score(self, hidden, encoder_outputs):
        both = torch.cat([hidden, encoder_outputs], dim=2)  # (B, S, 2H)
        return torch.tanh(self.attn(both)) @ self.v

# %% [markdown]
# ## The same, faster

# %% exercise="1.5"
def windowed_attention(query, key, value, window):
    """Causal attention in a window.  query: (T, d), key: (T, d), value: (T, v), window: int, 1 or more -> (T, v).

    The same numbers as the loop, for all queries at once.
    """
    place = torch.arange(len(query), device=query.device)
    distance = place[:, None] - place  # (T, T): how far key s lies behind query t
    visible = (distance >= 0) & (distance < window)
    scores = query @ key.T / query.shape[-1] ** 0.5
    return scores.masked_fill(~visible, float("-inf")).softmax(dim=-1) @ value

# %% [markdown]
# ## In a model

# %% exercise="1.6"
class Decoder(nn.Module):
    """Attention at every step of a decoder, for t = 0 ... T-1, from h = hidden:

        context, weights_t = attention(query=h, key=encoder_outputs, value=encoder_outputs)
        h                  = cell([embedding(targets_in_t); context], h)
        logits_t           = output(h)

    encoder_outputs: (B, S, d), hidden: (B, d), targets_in: (B, T) integers, lengths: (B,), each 1 to S
    -> (logits, weights): (B, T, V), (B, T, S).  Places from lengths[b] on are padding and have weight 0.
    """

    def __init__(self, vocab_size, d_model):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.attention = AdditiveAttention(d_model, d_model, d_model)
        self.cell = nn.GRUCell(2 * d_model, d_model)
        self.output = nn.Linear(d_model, vocab_size)

    def forward(self, encoder_outputs, hidden, targets_in, lengths):
        place = torch.arange(encoder_outputs.shape[1], device=lengths.device)
        mask = (place < lengths[:, None])[:, None]  # (B, 1, S)
        logits, weights = [], []
        for word in self.embedding(targets_in).unbind(dim=1):  # (B, d)
            context, step_weights = self.attention(hidden[:, None], encoder_outputs, encoder_outputs, mask)  # (B, 1, d), (B, 1, S)
            hidden = self.cell(torch.cat([word, context[:, 0]], dim=1), hidden)
            logits.append(self.output(hidden))
            weights.append(step_weights[:, 0])
        return torch.stack(logits, dim=1), torch.stack(weights, dim=1)

# %% [markdown] tags=["solution-only"]
# The check trains this decoder behind an encoder that knows each word and its place, and hands over their mean as the first hidden
# state. Here is where the trained decoder looks while it says six words backwards: nobody told it to go from right to left.

# %% tags=["solution-only"]
from memcourse.course.checks.attention_oracles import Reversal, train_to_reverse

model, accuracy = train_to_reverse(Decoder)
print(f"with attention, at least 80 % of the words are right: {accuracy >= 0.8}")
words = torch.tensor([[7, 3, 9, 1, 4, 8, 0]])  # six words, and a place of padding
backwards = torch.tensor([[8, 4, 1, 9, 3, 7, 0]])
before = torch.tensor([[0, 8, 4, 1, 9, 3, 7]])
with torch.no_grad():
    logits, weights = model(Reversal(words, before, backwards, torch.tensor([6])))
right = logits[0].argmax(dim=-1)[:6] == backwards[0, :6]
print(f"of the six words below, at least four are right: {right.sum().item() >= 4}")
fig = figures.weights(
    weights[0, :6],
    [str(word) for word in backwards[0, :6].tolist()],
    [str(word) for word in words[0, :6].tolist()] + ["padding"],
    title="To speak backwards, the decoder looks from right to left",
    query_label="word to say",
    key_label="word of the sentence",
)
figures.show(fig, "Weights of the decoder: the words to say look at or beside their own places in the sentence, last to first, and never at padding.")

# %% [markdown]
# ## The limit
#
# `make_store(n, seed)` makes the store that exercise 1.7 asks about. Its unit keys are as far apart as random directions are; a noisy
# query is its key plus noise of length about 0.3.

# %%
def make_store(n, seed, n_queries=256, width=64):
    """(query, key, value, asked): (256, 64), (n, 64), (n, 64), and the (256,) indices of the pairs asked for."""
    generator = torch.Generator().manual_seed(seed)
    key, value = nn.functional.normalize(torch.randn(2, n, width, generator=generator), dim=-1)
    asked = torch.randint(n, (n_queries,), generator=generator)
    query = key[asked] + 0.3 * torch.randn(n_queries, width, generator=generator) / width**0.5
    return query, key, value, asked

# %% tags=["solution-only"]
def recall(n, read, seed):
    """The share of queries for which the stored value nearest to what is read is the right one."""
    query, key, value, asked = make_store(n, seed)
    found = (read(query, key, value) @ value.T).argmax(dim=-1)  # (256,)
    return (found == asked).float().mean().item()


def softmax_read(beta):
    return lambda query, key, value: (beta * query @ key.T).softmax(dim=-1) @ value


reads = {
    "beta = 1/8": softmax_read(1 / 8),
    "beta = 2": softmax_read(2),
    "beta = 4": softmax_read(4),
    "outer product": lambda query, key, value: query @ (key.T @ value),
}
grid = [2**i for i in range(1, 14)]
shares = {name: torch.tensor([[recall(n, read, seed) for n in grid] for seed in range(3)]) for name, read in reads.items()}
fig = figures.curves(
    {name: (grid, table) for name, table in shares.items()},
    x="number of stored pairs N",
    y="share recalled",
    title="Doubling beta multiplies what fits",
    log_x=True,
    levels={"95 %": 0.95},
)
figures.show(fig, "Share of pairs recalled against N: beta = 1/8 fails at once, beta = 2 and the outer product near 100, beta = 4 in the thousands.")

# %% exercise="1.7"
largest_n = {"beta = 1/8": 2, "beta = 2": 64, "beta = 4": 2048, "outer product": 128}

# %% [markdown] tags=["solution-only"]
# The scale $1/\sqrt{d}$ is meant for keys whose length is about $\sqrt{d}$; with unit keys it makes the weights nearly equal. The
# outer product has no softmax to suppress the other N - 1 pairs, so their noise grows with $\sqrt{N}$ and the limit with d. With the
# softmax, the limit grows exponentially in beta. At beta = 8 it lies far beyond this grid.
