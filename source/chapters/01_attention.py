# %% [markdown]
# # 01 Attention as memory
#
# Every memory in this course is an address, a read, a write and a way to forget. This chapter is about the one that
# most models already have: **attention**. Its row of the course's table:
#
# | memory | what is stored | address | read | write | forget | size |
# |---|---|---|---|---|---|---|
# | attention | keys and values of the context | softmax of dot products | weighted sum | append | falls out of the window | grows with T |
#
# At the end you can write attention from its equations, say why it has a scale and a softmax, and say how far a given
# model can look back. Reading takes about half an hour, running less than a minute.

# %%
from memcourse.course import check, figures, hint, setup
device = setup("0.1.0", seed=0)

# %%
import math
import time

import torch
import torch.nn.functional as F
from einops import rearrange

from memcourse import AdditiveAttention, CausalAttention, MultiHeadAttention, attend, hopfield_step
from memcourse import Batch, MemoryTransformer, SequenceMemory, corpora, evaluate, fit
from memcourse.attention import rotate
from memcourse.course import results
from memcourse.memory import n_bytes, stream
from memcourse.tokenizer import tokenizer

torch.set_num_threads(1)  # models this small are no faster on two

# %% [markdown]
# ## A model that forgets what it has just read
#
# The text is the documentation that ships with Python, as words; the 1000 most frequent ones have a number, all others are
# `<unk>`. A **passage** is 96 words of it. We make a span of 8 words recur: the last 8 words of the passage are those that
# stood `distance` words earlier. A model that reads the passage word by word can know the end, if it remembers.

# %% tags=["nbval-ignore-output"]
text = corpora.python_docs()
words = tokenizer(text.train, 1000)
train, held_out = words.encode(text.train), words.encode(text.valid + text.test)
print(text)
print(f"{len(train):,} words to train on, {len(held_out):,} held out")

# %%
LENGTH, SPAN, COMMON = 96, 8, 50  # words in a passage, words that recur, words too common to be asked for


def passages(tokens, n, generator):
    """n passages from random places: (n, LENGTH)."""
    start = torch.randint(len(tokens) - LENGTH, (n, 1), generator=generator)
    return tokens[start + torch.arange(LENGTH)]


def repeat_span(tokens, start, distance):
    """Overwrite the span at `start` with the one `distance` words before it.  tokens (n, LENGTH), distance (n, 1)."""
    source = start - distance + torch.arange(SPAN)  # (n, SPAN)
    tokens[:, start : start + SPAN] = tokens.gather(1, source)

# %% [markdown]
# In training every second span repeats an earlier one, from a random distance, and the model is scored on the words that
# recur. The first word of a span is the cue and is not scored; nor are `<unk>` and the 49 most frequent words, which are
# guessed without any memory. For the first 80 steps the words are drawn at random, so that nothing but looking back helps.

# %%
def training_batch(step, warm_up=80):
    generator = torch.Generator().manual_seed(step)
    random_words = torch.randint(COMMON, words.vocab_size, (16, LENGTH), generator=generator)
    tokens = random_words if step < warm_up else passages(train, 16, generator)
    scored = torch.zeros_like(tokens, dtype=torch.bool)
    for start in range(2 * SPAN, LENGTH - SPAN + 1, 2 * SPAN):
        repeat_span(tokens, start, torch.randint(SPAN, start + 1, (16, 1), generator=generator))
        scored[:, start + 1 : start + SPAN] = True
    scored &= tokens >= COMMON
    return Batch(tokens[:, :-1], tokens.where(scored, -100)[:, 1:])  # -100: not scored


def train_model(window, steps):
    """Two layers whose attention sees `window` words, the present one included (None: all of them)."""
    torch.manual_seed(0)
    model = MemoryTransformer(words.vocab_size, 64, 2, lambda: CausalAttention(64, 4, window=window))
    fit(model.to(device), training_batch, steps=steps, learning_rate=1e-2, progress=False)
    return model

# %% [markdown]
# `MemoryTransformer(vocab_size, d_model, n_layers, memory)` is the library's language model: words in, scores for the next word
# out, with the `memory` that we name in each layer. `Batch` pairs what it reads with what it should say, `fit` trains it and
# `evaluate` measures it. Before its layers it adds to each word a linear map of the word before; this **shift** lets a
# word know its predecessor, and we shall need that later.
#
# Here is such a model that sees 16 words at a time. We ask it, on held-out text, for spans that stood 12 words earlier,
# and for spans that stood 40 words earlier.

# %%
def questions(distance, n=128):
    """Held-out passages whose last span stood `distance` words earlier: (n, LENGTH)."""
    tokens = passages(held_out, n, torch.Generator().manual_seed(7))
    repeat_span(tokens, LENGTH - SPAN, torch.full((n, 1), distance))
    return tokens


def accuracy(model, distance):
    """Share of the recurring words that the model says rightly."""
    tokens = questions(distance)
    scored = torch.zeros_like(tokens, dtype=torch.bool)
    scored[:, 1 - SPAN :] = tokens[:, 1 - SPAN :] >= COMMON
    return evaluate(model, [Batch(tokens[:, :-1], tokens.where(scored, -100)[:, 1:])])["accuracy"]


short_memory = train_model(window=16, steps=200)
near, far = accuracy(short_memory, 12), accuracy(short_memory, 40)
print("right on more than a third of the words from 12 words before:", near > 1 / 3)
print("right on fewer than one in six of the words from 40 words before:", far < 1 / 6)

# %% tags=["nbval-ignore-output"]
def wordiest(tokens):
    """The passage whose recurring span has the most different content words."""
    return max(range(len(tokens)), key=lambda row: len({w for w in tokens[row, -SPAN:].tolist() if w >= COMMON}))


@torch.no_grad()
def ask(model, distance):
    """One question in words: what stood there, and what the model says after each word (the first is the cue)."""
    tokens = questions(distance)[[wordiest(questions(distance))]]  # (1, LENGTH)
    said = model(tokens[:, :-1].to(device))[0][0, 1 - SPAN :].argmax(dim=-1).cpu()
    print(f"{distance} words earlier: {words.decode(tokens[0, -SPAN:])}")
    print(f" the model says: {'.' * len(words.token(tokens[0, -SPAN]))} {words.decode(said)}")


ask(short_memory, 12)
ask(short_memory, 40)

# %% [markdown]
# The weights of this model are good: at 12 words it answers. At 40 words the answer is not in the model any more, and no
# training will bring it back. What is missing is not skill but memory. So what *is* the memory of such a model, what does it
# hold, and what sets its limit?
#
# ## The idea: a dictionary that answers softly
#
# A Python dictionary is a memory with an address. It stores pairs of a key and a value, and it answers a query if one key
# is equal to it. Ask for anything else, and it has no answer:

# %%
degrees = {"cold": 2.0, "cool": 14.0, "warm": 24.0, "hot": 36.0}
try:
    degrees["mild"]
except KeyError as error:
    print("KeyError:", error)

# %% [markdown]
# A **soft dictionary** compares the query with *every* key, turns the similarities into weights that sum to 1, and answers with
# the weighted mean of the values. Words that are only similar then get an answer that lies between. For this, keys and
# queries must be vectors; here they are directions in a plane, and the similarity of two is their dot product.

# %%
def direction(angle):
    radians = torch.deg2rad(torch.as_tensor(angle))
    return torch.stack([radians.cos(), radians.sin()], dim=-1)


key = direction([0.0, 40.0, 80.0, 120.0])  # (4, 2): cold, cool, warm, hot
value = torch.tensor(list(degrees.values()))[:, None]  # (4, 1)
query = direction(62.0)  # (2,): mild, a little nearer to warm than to cool
similarity = key @ query  # (4,)
weights = (8 * similarity).softmax(dim=0)  # (4,); the 8 is a sharpness, see "Why the softmax"
read = weights @ value  # (1,)
print(f"mild is {read.item():.0f} degrees")

# %% tags=["hide-input"]
from matplotlib.figure import Figure

fig = Figure(figsize=(figures.WIDTH, 2.8))
panels = fig.subplots(1, 4, sharey=True)
columns = {
    "1 compare\nquery · key": ("#777777", similarity, "{:.2f}"),
    "2 weigh\nsoftmax of 8 × score": ("#0072B2", weights, "{:.2f}"),
    "3 look up\nvalue (degrees)": ("#D55E00", value[:, 0], "{:.0f}"),
    "4 add up\nweight × value": ("#222222", weights * value[:, 0], "{:.1f}"),
}
for panel, (label, (color, numbers, form)) in zip(panels, columns.items(), strict=True):
    bars = panel.barh(list(degrees), numbers, color=color, height=0.55)
    panel.bar_label(bars, [form.format(number) for number in numbers.tolist()], padding=3, fontsize=9)
    panel.set(xlabel=label, xlim=(0, 1.45 * numbers.max().item()), xticks=[])
    panel.tick_params(left=False)
    panel.grid(False)
    panel.spines["bottom"].set_visible(False)
panels[0].set_ylabel("key")
panels[0].invert_yaxis()
panels[3].set_xlabel(f"4 add up to {read.item():.0f}\nweight × value")
fig.suptitle("“Mild” is no key. Its neighbours answer for it", x=0.01, ha="left", fontsize=11, weight="bold")
figures.show(fig, "Four bar charts, a row for each key: cold, cool, warm, hot. The query is most similar to warm, then cool; these two get nearly all the weight, and the weighted sum of the values is the answer.")

# %% [markdown]
# Nothing here is more than a comparison, a normalisation and a sum, and all of it has a gradient. So keys, queries and values
# need not be chosen by hand: a network can *learn* what to store under which address, and what to ask for.
#
# ## The equations
#
# | symbol | name | shape |
# |---|---|---|
# | $q$, or $Q$ for several | **query**: what is asked for | $(d)$, $(T, d)$ |
# | $K$ | **key**: the address under which each item is stored | $(S, d)$ |
# | $V$ | **value**: what is stored there | $(S, v)$ |
# | $a$, or $A$ | **weights**: how much of each value is read | $(S)$, $(T, S)$ |
# | $r$, or $R$ | the **read** | $(v)$, $(T, v)$ |
#
# $T$ queries, $S$ stored items, $d$ numbers in a key, $v$ in a value. Attention takes three steps.
#
# **Step 1, the weights.** Each key is scored by its dot product with the query, times the **scale** $1/\sqrt d$. The softmax makes the scores
# positive and lets them sum to 1:
#
# $$a = \mathrm{softmax}\!\left(\frac{K q}{\sqrt d}\right), \qquad a_s = \frac{\exp(k_s \cdot q/\sqrt d)}{\sum_{j} \exp(k_j \cdot q/\sqrt d)}$$
#
# **Step 2, the values.** The read is their weighted sum: $\;r = \sum_s a_s v_s$.
#
# **Step 3, the update.** The memory is written by appending the present word's own key and value, $K \leftarrow [K; k_{t}]$ and
# $V \leftarrow [V; v_{t}]$; nothing that was stored before is changed. In a causal model this comes first, so that a word can read itself;
# the equations here show one read of whatever is stored. And the read goes back into the vector $x$, shape $(D)$, that the model holds at
# this place: $x \leftarrow x + W^O r$, with $W^O$ of shape $(D, v)$.

# %%
S, d, v = 5, 4, 3
torch.manual_seed(0)
query, key, value = torch.randn(d), torch.randn(S, d), torch.randn(S, v)

weights = (key @ query / math.sqrt(d)).softmax(dim=0)  # step 1: (S,)
read = weights @ value  # step 2: (v,)
key = torch.cat([key, torch.randn(1, d)])  # step 3: (S + 1, d)
value = torch.cat([value, torch.randn(1, v)])  # and (S + 1, v)

print("weights:", tuple(weights.shape), " sum:", round(weights.sum().item(), 4))
print("read:", tuple(read.shape), " the memory now holds", len(key), "items")

# %% [markdown]
# For all queries at once this is Vaswani et al.'s equation 1, with the softmax over the keys, so that each *row* of $A$ sums to 1:
#
# $$R = \mathrm{softmax}\!\left(\frac{Q K^\top}{\sqrt d}\right) V$$
#
# The first attention in machine translation scored differently. **Additive attention** (Bahdanau et al.) is a small network with
# one hidden layer of width $m$, with $A_q$ of shape $(m, d_q)$, $A_k$ of shape $(m, d_k)$ and $w$ of shape $(m)$; steps 2 and 3 stay as they are:
#
# $$e_s = w \cdot \tanh(A_q q + A_k k_s), \qquad a = \mathrm{softmax}(e)$$

# %%
A_q, A_k, w = torch.randn(8, d), torch.randn(8, d), torch.randn(8)  # m = 8
scores = torch.tanh(A_q @ query + key @ A_k.T) @ w  # (S,)
print("additive weights:", tuple(scores.softmax(dim=0).shape), " sum:", round(scores.softmax(dim=0).sum().item(), 4))

# %% [markdown]
# It needs $S \times m$ tanh for every query where the dot product needs one matrix product. But query and key may
# have different widths in it, and it has no scale to get wrong. (One matrix $[A_q\; A_k]$ on query and key laid end to end is the same thing; many
# programs write it so.) The exercises repair a layer of this kind and put it into a model that says sentences backwards.
#
# Where queries, keys and values come from gives attention its other names. All three are linear maps of something:
# $Q = X W^Q$, $K = Y W^K$, $V = Y W^V$. In **self-attention** $Y = X$: the memory is the sequence itself. In **cross-attention** $Y$ is
# something else, such as a sentence in another language or the slots of a memory bank. In **causal** attention, word $t$ looks only at
# words $s \le t$; with a **window** of $W$ words, only at $t - W < s \le t$. **Multi-head** attention in a model of width $D$ runs $H$ attentions of width $d = D/H$ side by side,
# each with its own maps, so that one word can look at several places for several reasons:
#
# $$\mathrm{head}_h = \mathrm{attention}(X W^Q_h,\, Y W^K_h,\, Y W^V_h), \qquad \text{output} = [\mathrm{head}_1; \ldots; \mathrm{head}_H]\, W^O$$
#
# (torch keeps each matrix transposed, output by input, so the code multiplies by `W.T`.)
#
# ## The plain version, step by step
#
# ### v1: one query and a loop

# %%
def attention_v1(query, key, value):
    """query (d,), key (S, d), value (S, v) -> read (v,), weights (S,)."""
    scores = torch.stack([query @ k for k in key])  # (S,)
    weights = scores.exp() / scores.exp().sum()  # (S,)
    read = sum(weights[s] * value[s] for s in range(len(key)))  # (v,)
    return read, weights


read, weights = attention_v1(query, key, value)
print("read:", tuple(read.shape), " weights are positive:", bool((weights > 0).all()))

# %% [markdown]
# There is no scale in it yet. What happens as the keys get wider?
#
# ### Why the scale
#
# Let the $2d$ numbers in $q$ and $k$ be independent, with mean 0 and variance 1. Then $q \cdot k$ is a sum of $d$ products, each with variance 1. The
# **variance of the score is $d$**, and dividing the score by $\sqrt d$ brings it back to 1:

# %%
widths = [4, 16, 64, 256, 1024]
for d in widths:
    scores = (torch.randn(20_000, d) * torch.randn(20_000, d)).sum(dim=-1)
    print(f"d = {d:4}   variance of the scores / d = {scores.var().item() / d:.1f}   after the scale: {(scores / d**0.5).var().item():.1f}")

# %% [markdown]
# A softmax over scores with a large variance puts everything on one key. How spread out weights are is measured by their
# **entropy**, $-\sum_s a_s \log_2 a_s$ bits: 0 when one key has all the weight, $\log_2 S$ when all $S$ keys have the same. So without the scale, a wider key
# means a harder lookup, before anything has been learned:

# %%
def entropy(weights):
    """In bits; (..., S) -> (...)."""
    return -(weights * weights.clamp_min(1e-30).log2()).sum(dim=-1)


def mean_entropy(d, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(200, 1, d, generator=generator), torch.randn(200, 64, d, generator=generator)
    return entropy((query @ key.mT * scale).softmax(dim=-1)).mean().item()

# %%
unscaled = [[mean_entropy(d, 1.0, seed) for d in widths] for seed in range(3)]
scaled = [[mean_entropy(d, d**-0.5, seed) for d in widths] for seed in range(3)]
fig = figures.curves(
    {"with the scale": (widths, scaled), "without": (widths, unscaled)},
    x="width of a key, d (numbers)", y="entropy of the weights (bits)", log_x=True,
    title="Without the scale, wide keys make attention hard",
    levels={"all 64 alike": 6.0},
)
figures.show(fig, "Entropy of the weights over 64 random keys against their width: with the scale it stays above 5 bits at every width, without it it falls towards 0.")
print("with the scale, never below 5 bits:", min(map(min, scaled)) > 5, "  without it, below 1 bit at d = 1024:", max(row[-1] for row in unscaled) < 1)

# %% [markdown]
# Hard is bad for learning. The derivative of the weights by the scores is $\partial a_i/\partial s_j = a_i(\mathbb 1[i{=}j] - a_j)$, where $\mathbb 1[i{=}j]$ is 1 if $i = j$ and 0 otherwise, which is 0 when one weight
# is 1 and the rest are 0: a model that starts out hard, and wrong, gets no gradient that says so.

# %%
def softmax_gradient(d, scale):
    query, key = torch.randn(200, 1, d), torch.randn(200, 64, d)
    a = (query @ key.mT * scale).softmax(dim=-1)  # (200, 1, 64)
    return (a * (1 - a)).sum(dim=-1).mean().item()


with_scale, without = softmax_gradient(1024, 1024**-0.5), softmax_gradient(1024, 1.0)
print("at d = 1024 the gradient that passes the softmax is at least 5 times smaller without the scale:", without < with_scale / 5)

# %% [markdown]
# ### Why the softmax
#
# Two simpler memories were possible. A **hard lookup** reads the value of the nearest key alone. **Linear weights** use the scores as they
# are, and normalise nothing. Back to the four temperatures:

# %%
key = direction([0.0, 40.0, 80.0, 120.0])
value = torch.tensor(list(degrees.values()))[:, None]
query = direction(62.0).requires_grad_()

hard = value[(key @ query).argmax()]  # (1,)
linear = (key @ query) @ value  # (1,)
soft = (8.0 * key @ query).softmax(dim=0) @ value  # (1,)
for name, read in {"hard lookup": hard, "linear weights": linear, "softmax": soft}.items():
    gradient = torch.autograd.grad(read, query)[0].norm() if read.requires_grad else None
    print(f"{name:15} reads {read.item():3.0f} degrees; gradient for the query: {'none' if gradient is None else 'yes'}")

# %% [markdown]
# The hard lookup has no gradient for the query, so nobody could learn what to ask. The linear read says more than 50 degrees, hotter than anything stored:
# every key that is at all similar adds its share, however many keys there are. And a scale does not help it: ten times the scores is ten
# times the read, in the same proportions. The softmax sharpens with the scale, and goes over into the hard lookup. The inverse
# of this scale is called the **temperature**; in this course the scale itself is the **sharpness** $\beta$.

# %%
sharpness = [2.0**k for k in range(-2, 9)]
weights = torch.stack([(beta * key @ query.detach()).softmax(dim=0) for beta in sharpness])  # (11, 4)
fig = figures.curves(
    {name: (sharpness, weights[None, :, i]) for i, name in enumerate(degrees)},
    x="sharpness β", y="weight", log_x=True,
    title="Blunt: the mean of everything. Sharp: one key alone",
)
figures.show(fig, "Weight of the four keys against sharpness: all near one quarter at 1/4; warm and cool share the weight at 8; warm has all of it at 256.")
bits = entropy(weights)
print(f"entropy at sharpness 1/4: {bits[0].item():.1f} bits of 2; at 256: {bits[-1].abs().item():.1f}")

# %% [markdown]
# ### v2: all queries at once, with the scale
#
# The loop over keys becomes a matrix product, and so does the loop over queries. The largest score is subtracted
# before the exponential: the weights do not change, and $\exp$ cannot overflow.

# %%
def attention_v2(query, key, value):
    """query (T, d), key (S, d), value (S, v) -> read (T, v), weights (T, S)."""
    scores = query @ key.T / math.sqrt(query.shape[-1])  # (T, S)
    scores = scores - scores.max(dim=-1, keepdim=True).values
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)  # (T, S), rows sum to 1
    return weights @ value, weights


T, S, d, v = 8, 8, 16, 5
torch.manual_seed(1)
query, key, value = torch.randn(T, d), torch.randn(S, d), torch.randn(S, v)
row_by_row = torch.stack([attention_v1(q / math.sqrt(d), key, value)[0] for q in query])  # (T, v)
print("v2 reads what v1 reads, with the scale:", torch.allclose(attention_v2(query, key, value)[0], row_by_row, atol=1e-6))

# %% [markdown]
# ### v3: where a query may look
#
# The **mask** is True where a query may look. A forbidden score becomes $-\infty$ *before* the softmax, so that its weight is 0 and the other weights still
# sum to 1. A model that predicts the next word needs the causal mask; the window is one more condition.

# %%
def may_look(T, window=None):
    """Causal, and within the window if there is one: (T, T), True where row t may look at column s."""
    t, s = torch.arange(T)[:, None], torch.arange(T)
    return (s <= t) if window is None else (s <= t) & (s > t - window)


def attention_v3(query, key, value, mask):
    scores = query @ key.T / math.sqrt(query.shape[-1])  # (T, S)
    weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1)
    return weights @ value, weights

# %%
mask = may_look(8, window=4)
_, weights = attention_v3(query, key, value, mask)
sentence = "return the first item of the given sequence".split()
fig = figures.weights(weights, sentence, sentence, mask=mask, title="A word sees itself and three words before it (random vectors)")
figures.show(fig, "Eight by eight weights: the cells above the diagonal are hatched, because they are the future, and so are those more than three words back, which have left the window of 4.")
print("each row sums to 1:", torch.allclose(weights.sum(dim=-1), torch.ones(8)), "  weight on the future:", weights.triu(1).sum().item())

# %% [markdown]
# Read a row of the figure from left to right: what is hatched on the left was in the memory once, and is not any more. This is how attention forgets, and the only
# way it does: an item is there with full precision until it falls out of the window, and gone after.
#
# ### v4: heads
#
# Several heads need no new mathematics: split the width into $H$ parts, run v3 on each, put the parts side by side again.

# %%
def multi_head_v4(x, Wq, Wk, Wv, Wo, n_heads, mask):
    """x (T, D), the four weights (D, D) -> (T, D)."""
    query, key, value = (rearrange(x @ W.T, "t (h d) -> h t d", h=n_heads) for W in (Wq, Wk, Wv))  # (H, T, D / H)
    read = [attention_v3(query[h], key[h], value[h], mask)[0] for h in range(n_heads)]  # H times (T, D / H)
    return torch.cat(read, dim=-1) @ Wo.T


T, D, H = 8, 32, 4
x = torch.randn(T, D)
Wq, Wk, Wv, Wo = (torch.randn(D, D) / math.sqrt(D) for _ in range(4))
y = multi_head_v4(x, Wq, Wk, Wv, Wo, H, may_look(T))
changed = x.clone()
changed[5] += 1.0
y_changed = multi_head_v4(changed, Wq, Wk, Wv, Wo, H, may_look(T))
print("shape:", tuple(y.shape), "  words that notice a change at word 5:", torch.where(~torch.isclose(y, y_changed, atol=1e-6).all(dim=-1))[0].tolist())

# %% [markdown]
# The last line is the test of a causal mask: change one word, and see that nothing before it moves.
#
# ## The library's version
#
# `attend` is v3 for any number of leading axes; `MultiHeadAttention` is v4 for a batch, with the heads folded into one matrix product and read by
# torch's fused kernel, which does not hand out the $(T, S)$ weights. They give the same numbers as ours, but for one case: where a query may look nowhere, v3 divides
# zero by zero, and the library reads zeros.

# %%
same = torch.allclose(attend(query, key, value, mask=mask)[0], attention_v3(query, key, value, mask)[0], atol=1e-6)
print("attend == v3:", same)
nowhere = torch.zeros(T, S, dtype=torch.bool)
print("nowhere to look: v3 reads", attention_v3(query, key, value, nowhere)[0][0, 0].item(), " attend reads", attend(query, key, value, mask=nowhere)[0][0, 0].item())

library = MultiHeadAttention(D, H, causal=True)
library.load_state_dict(
    {f"heads.{name}.weight": W for name, W in [("query", Wq), ("key", Wk), ("value", Wv), ("output", Wo)]}
)
with torch.no_grad():
    print("MultiHeadAttention == v4:", torch.allclose(library(x[None])[0], y, atol=1e-5))

additive = AdditiveAttention(query_dim=16, key_dim=16, hidden_dim=8)
with torch.no_grad():
    read, weights = additive(query[None], key[None], value[None])
    hidden = torch.tanh(query[2] @ additive.query.weight.T + key @ additive.key.weight.T)  # (S, 8): the query of word 2
    by_hand = (hidden @ additive.score.weight[0]).softmax(dim=0)  # (S,)
print("AdditiveAttention == the equation:", torch.allclose(weights[0, 2], by_hand, atol=1e-6))

# %% [markdown]
# Cross-attention is the same layer with a context. Attention has no order of its own: the memory is a *set* of pairs, and shuffling it changes nothing.
# Where order matters it must be written into the keys, as the rotary positions of `CausalAttention` do.

# %%
cross = MultiHeadAttention(D, H)
context = torch.randn(1, 11, D)  # any other memory of 11 items
with torch.no_grad():
    output, output_shuffled = cross(x[None], context), cross(x[None], context[:, torch.randperm(11)])
print("8 words read 11 items:", tuple(output.shape), "  the same from a shuffled memory:", torch.allclose(output, output_shuffled, atol=1e-5))

# %% [markdown]
# ### The key-value cache is the memory's state
#
# A causal model reads one word after another. The keys and values of old words never change, so they are kept: the **key-value cache**. In this library it
# is the layer's *state*, handed in and out, and never kept on the module: `y, state = layer(x, state)`. Feeding a sequence in pieces gives what feeding it whole gives:

# %%
layer = CausalAttention(D, H)
x = torch.randn(1, 40, D)
with torch.no_grad():
    whole, state = layer(x)
    pieces = [y for y, _ in stream(layer, x, chunk=7)]  # 7 words at a time, the state carried along
print("in pieces == whole:", torch.allclose(torch.cat(pieces, dim=1), whole, atol=1e-5))

for window in (None, 16):
    layer = CausalAttention(D, H, window=window)
    with torch.no_grad():
        sizes = [n_bytes(state) for y, state in stream(layer, torch.randn(1, 120, D), chunk=40)]
    name = "no window" if window is None else f"window {window}"
    print(f"{name:9}: bytes of state after 40, 80 and 120 words: {sizes}")

# %% [markdown]
# Here is the answer to the first section's question. The memory of an attention layer is its cache. Without a window it grows with every word; with one, it
# has a fixed size, and whatever is older is not in it. (Per word: a key and a value of 32 numbers of 4 bytes. The window of 16 keeps 15, since the 16th is the present word. 8 bytes are the counter of words seen.)
#
# ### Why it is faster
#
# The loop of v1 makes $T \times S$ small calls; `attend` makes two large ones. And with a cache, the newest word computes its scores only, where a model
# without a cache computes all of them again for every word:

# %%
def seconds(function, repeats=3):
    def once():
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return min(once() for _ in range(repeats))


query, key, value = torch.randn(64, 32), torch.randn(256, 32), torch.randn(256, 32)
loop = seconds(lambda: [attention_v1(q, key, value) for q in query], repeats=1)
parallel = seconds(lambda: attend(query, key, value), repeats=20)
print("attend is at least 20 times as fast as the loop:", loop > 20 * parallel)

n_words = 1000
again = sum(t * t for t in range(1, n_words + 1))  # scores, when every word starts from the first again
cached = sum(range(1, n_words + 1))
print(f"scores for {n_words} words: at least {again // cached // 100 * 100} times fewer with a cache")

# %% tags=["nbval-ignore-output"]
print(f"measured here: {loop / parallel:.0f} times as fast")

# %% [markdown]
# ## The claim
#
# ### How much does it hold?
#
# Linear weights have one virtue: the memory can be added up *before* it is asked. $\sum_s (q \cdot k_s)\, v_s = q^\top \big(\sum_s k_s v_s^\top\big)$, and the sum in brackets is one
# matrix of $d \times v$ numbers, however many pairs were stored: an **outer-product memory**. Attention without its softmax *is* this memory. What does the softmax buy?

# %%
key, value, query = torch.randn(6, 4), torch.randn(6, 3), torch.randn(4)
one_by_one = (key @ query) @ value  # six pairs kept
added_up = query @ (key.T @ value)  # one matrix kept
print("attention without a softmax is an outer-product memory:", torch.allclose(one_by_one, added_up, atol=1e-5))

# %% [markdown]
# The test: store $N$ random pairs of unit vectors with $d = 64$, ask with a key plus noise of length 0.3, and count an answer as right if the right value is the
# nearest of all those stored. Both memories get the same pairs and the same questions; the softmax has sharpness $\beta = 32$.

# %%
def sphere(n, d, generator):
    return F.normalize(torch.randn(n, d, generator=generator), dim=-1)


def recall(memory, n_stored, seed=0, d=64):
    generator = torch.Generator().manual_seed(seed)
    key, value = sphere(n_stored, d, generator), sphere(n_stored, d, generator)
    asked = torch.randint(n_stored, (512,), generator=generator)
    query = key[asked] + 0.3 * sphere(512, d, generator)
    read = query @ (key.T @ value) if memory == "outer product" else attend(query, key, value, scale=32.0)[0]
    return ((read @ value.T).argmax(dim=-1) == asked).float().mean().item()

# %%
found = results.read("01_attention")["results"]
stored = found["recall"]["n_stored"]
fig = figures.curves(
    {label: (stored, found["recall"][name]["per_seed"]) for name, label in {"softmax": "softmax, β = 32", "outer product": "outer product"}.items()},
    x="pairs stored, N", y="share of questions answered rightly", log_x=True,
    title="With 8192 pairs stored a sharp softmax still answers; the sum fails past 128",
)
figures.show(fig, "Recall against the number of pairs stored, d = 64, three seeds: the softmax stays at 1 up to 8192 pairs; the outer product begins to fail at 128 and is near 0 at 2048.")
print("live, 2048 pairs: softmax right on more than 99%:", recall("softmax", 2048) > 0.99, "  outer product on fewer than 10%:", recall("outer product", 2048) < 0.1)

# %% [markdown]
# The comparison is not one of equal bytes: the softmax keeps all $N$ pairs, the outer product keeps $d^2$ numbers. That is the trade that the rest of this course is
# about, and chapter 07 puts such a matrix into a language model. But size is not the whole story: even a memory that keeps every pair confuses them if its weights
# are blunt. What counts is how many keys fit into $d$ dimensions before the weights cannot tell them apart.
#
# ### One step of a modern Hopfield network
#
# A **Hopfield network** stores patterns and, from a damaged one, finds its way back to the whole. In the modern form (Ramsauer et al.), with $N$ patterns as rows
# of $X$, shape $(N, d)$, a state $\xi$ of shape $(d)$ and sharpness $\beta$, one update is
#
# $$\xi \leftarrow X^\top \mathrm{softmax}(\beta X \xi)$$
#
# This is attention whose values are its keys. The update never increases the energy $E = -\beta^{-1}\log\sum_i e^{\beta x_i\cdot\xi} + \tfrac12 \xi\cdot\xi$ (and constants).

# %%
def energy(state, patterns, beta):
    return -torch.logsumexp(beta * patterns @ state, dim=0) / beta + state @ state / 2


generator = torch.Generator().manual_seed(0)
patterns = sphere(1000, 64, generator)
state = patterns[0] + 0.5 * sphere(1, 64, generator)[0]
before = energy(state, patterns, 16.0)
recovered = hopfield_step(state, patterns, beta=16.0)
print("it is attention:", torch.allclose(recovered, attend(state[None], patterns, patterns, scale=16.0)[0][0], atol=1e-6))
print("energy has not risen:", bool(energy(recovered, patterns, 16.0) <= before), "  distance to the pattern, from 0.5 to below 0.05:", bool((recovered - patterns[0]).norm() < 0.05))

# %% [markdown]
# **The paper's claim:** the number of patterns such a network can store grows exponentially with $d$. For an outer product it grows linearly. Ours: for
# each width, the largest $N$ at which 90% of the questions are still answered, with the same noise and the same $\beta = 32$. (A blunter softmax holds
# less: exercise 1.7 finds the sharpness at which it holds no more than the outer product.)

# %%
width = found["capacity"]["d"]
fig = figures.curves(
    {name: (width, found["capacity"][name]["per_seed"]) for name in ("softmax", "outer product")},
    x="width of a key, d (numbers)", y="pairs held (90% right)",
    title="Two more dimensions: the softmax holds about seven times as many pairs",
)
fig.axes[0].set_yscale("log", base=10)
figures.show(fig, "Capacity on a logarithmic axis against width, three seeds: a straight line from about 20 pairs at d = 4 to over 30,000 at d = 12 for the softmax; fewer than 12 at every width for the outer product.")

held = found["capacity"]["softmax"]["mean"]
growth = (held[-1] / held[0]) ** (1 / (width[-1] - width[0]))
print(f"the softmax's capacity is multiplied by about {growth:.1f} with every dimension")
print("the outer product holds fewer than 12 pairs at every width:", max(found["capacity"]["outer product"]["mean"]) < 12)

# %% [markdown]
# A straight line on a logarithmic axis is exponential growth. The paper's theorem 3 is a *lower bound* for random patterns on a sphere of radius $3\sqrt{d-1}$ with $\beta = 1$: with probability 0.999,
# at least $\sqrt{0.001}\; c^{(d-1)/4}$ are stored, with a constant $c \ge 3.15$ that the paper computes for $d = 20$. That is 7 patterns. Here is the paper's own setting, live:

# %%
generator = torch.Generator().manual_seed(0)
promised = math.floor(math.sqrt(0.001) * 3.15 ** (19 / 4))
radius = 3 * math.sqrt(19)
patterns = radius * sphere(4096, 20, generator)
moved = (hopfield_step(patterns, patterns, beta=1.0) - patterns).norm(dim=-1)  # (4096,)
held = (moved < 0.01 * radius).float().mean().item()
print(f"promised: {promised} patterns;  of 4096 stored, more than 99% stay where they are: {held > 0.99}")

# %% [markdown]
# The bound holds, and is far from tight here, for the one draw that we tried. Our curve and the theorem do not count the same thing: ours asks with noise and
# counts the nearest value, at 90%; the theorem asks for a fixed point near each pattern. And patterns that are not random, such as the words of a text, are far
# easier to confuse (see "When it breaks").
#
# Bahdanau et al. and Vaswani et al. made their case with translation scores; we could not verify those numbers in the papers' own text, so none is printed here.
#
# ### How far does it see, on real text?
#
# Now the first section's question, measured. Models that differ in their window alone, the same data and 300 steps for each, three seeds. Two
# models to beat: one with a window of 1, which sees the present word and, through the shift of the first section, the one before; and a
# counting model, which says the content word that followed the present one most often in the training text.

# %%
reach = found["reach"]
names = {"all": "all words", "32": "window 32", "16": "window 16", "1": "window 1"}
fig = figures.curves(
    {name: (reach["distance"], reach["window"][window]["per_seed"]) for window, name in names.items()},
    x="distance to where the span stood before (words)", y="share of recurring words said rightly",
    title="Past its window, a model says hardly more than a count of words",
    levels={"counting words": sum(reach["counting"]) / len(reach["counting"])},
)
figures.show(fig, "Accuracy on recurring words of held-out text against distance, three seeds: windows 16 and 32 fall off a cliff right after 16 and 32 words, down to the counting model; the model without a window stays up.")

at = {window: dict(zip(reach["distance"], curve["mean"], strict=True)) for window, curve in reach["window"].items()}
print("window 16, from 16 to 17 words: falls by more than half of all words:", at["16"][16] - at["16"][17] > 0.5)
print("window 32, from 32 to 33 words: falls by more than half of all words:", at["32"][32] - at["32"][33] > 0.5)
print("no window, at 80 words: still right on more than half:", at["all"][80] > 0.5)

# %% [markdown]
# The claim holds, and the edge is sharp: one word past the window, the answers are gone. (At distance 16 the word to be said stands 15 places before the
# present one, which is the last place that a window of 16 still sees.) The models were trained on spans from up to 80 words back, so they had every reason to reach further. Three
# things in this figure deserve a second look.
#
# *Why at* $W$*, and not at* $2W$*?* With two layers of 16 words, a word can be reached by way of a word in between: layer 1 carries it 15 places, layer 2
# another 15, so that in principle 31 words are in sight. These models do not use it. The word in between would have to pass on what it saw *before it is known what will be asked*, and a few
# numbers cannot carry 15 words on the chance that one is wanted. A cache can: it keeps everything, and lets the query choose. Window times layers is an upper bound on what a model
# can know, and not what it remembers word for word.
#
# *Why does counting beat the small models past their window?* Probably because 300 steps, scored on recurring words alone, teach little of which word follows which. The window-1 model is the baseline with the same budget; the counting
# model is the stronger one, and the one to beat.
#
# *Why is the model with the whole memory worse at short distances?* It has more to confuse. "When it breaks" tests this.
#
# One seed, live, with fewer steps: the model without a window.

# %%
long_memory = train_model(window=None, steps=160)
print("40 words before: at least three times as often right as with a window of 16:", accuracy(long_memory, 40) > 3 * far)

# %% tags=["nbval-ignore-output"]
ask(long_memory, 12)
ask(long_memory, 40)

# %% [markdown]
# ### Where it looks
#
# The layer keeps no weights, but its projections are public, so we can compute them: the same three lines, with the model's own queries and keys.

# %%
@torch.no_grad()
def weights_of(model, tokens, layer):
    """The weights of every head of a layer: tokens (1, T) -> (H, T, T)."""
    inputs = []
    mixer = model.blocks[layer].mixer
    handle = mixer.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    model(tokens.to(device))
    handle.remove()
    query, key, value = mixer.heads.split(inputs[0], inputs[0])  # (1, H, T, d)
    position = torch.arange(tokens.shape[1], device=device)[None]
    mask = may_look(tokens.shape[1]).to(device)
    return attend(rotate(query, position), rotate(key, position), value, mask=mask)[1][0].cpu()


DISTANCE = 40
tokens = questions(DISTANCE)[[wordiest(questions(DISTANCE))]]  # (1, LENGTH)
asking = torch.arange(LENGTH - SPAN, LENGTH - 1)  # the words of the last span; each is asked for the next one
all_weights = torch.cat([weights_of(long_memory, tokens, layer) for layer in (0, 1)])  # (2 H, T, T)
on_answer = all_weights[:, asking, asking + 1 - DISTANCE]  # (2 H, 7): weight on the word that should be said
best = int(on_answer.mean(dim=-1).argmax())
print("some head gives the word to be said at least 10 times its fair share:", bool(on_answer[best].mean() > 10 / LENGTH))

# %% tags=["nbval-ignore-output"]
content = (tokens[0, asking] >= COMMON) & (tokens[0, asking + 1] >= COMMON)
where = int(asking[(on_answer[best] * content).argmax()])  # where the look back between two content words is clearest
shown = slice(where - 60, where + 1)
fig = figures.text_weights(
    [words.token(token) for token in tokens[0, shown]],
    all_weights[best, where, shown],
    query=60,
    title=f"At “{words.token(tokens[0, where])}”, the head looks at the word that came after it last time",
)
figures.show(fig, "A passage of documentation, shaded by where the last word looks: most of the weight is on the word that followed its earlier occurrence, 40 words back.")

# %% [markdown]
# The framed word's query says: *who came after a word like me?* The key of each word holds the word before it, which the shift has put there, and the value holds the word itself. So the head finds the place
# and reads out what stood there. Such a head is called an **induction head**. Nobody wrote this dictionary: the model has learned what to use as key, query and value.
#
# ## When it breaks
#
# **The answer slides out of the window.** A window has no weights of its own, so the trained model can be given a shorter one. Same weights, smaller cache. We ask again, for spans from 40 words before and from 12:

# %%
slid = MemoryTransformer(words.vocab_size, 64, 2, lambda: CausalAttention(64, 4, window=16)).to(device)
slid.load_state_dict(long_memory.state_dict())
print("40 words before, the short window loses at least two thirds of the answers:", accuracy(slid, 40) < accuracy(long_memory, 40) / 3)
print("12 words before, the short window is right more often:", accuracy(slid, 12) > accuracy(long_memory, 12))

# %% tags=["nbval-ignore-output"]
for distance in (12, 40):
    print(f"{distance} words before: all words {accuracy(long_memory, distance):.2f}, window 16 {accuracy(slid, distance):.2f}")

# %% [markdown]
# The first line is what had to happen. The second is a price of a long memory that is easily overlooked: everything in it competes for the weight, above all the other places where the
# cue has stood, each followed by something else. The weights are the same in both models, so what helps with the near answers is forgetting alone. It explains the figure above, where the model that sees everything lies below those that see less.
#
# **Keys of length 1 with the scale $1/\sqrt d$.** The scale assumes scores with variance $d$. If keys and queries are normalised, all scores lie between $-1$ and $1$ already; dividing by 8 makes the weights
# nearly equal, and the read is the mean of everything stored. Normalised keys need a sharpness *above* 1.

# %%
generator = torch.Generator().manual_seed(0)
key = sphere(64, 64, generator)
for name, scale in (("1/sqrt(d)", None), ("32", 32.0)):
    _, weights = attend(key, key, key, scale=scale)  # every key asks for itself
    own = weights.diagonal().mean().item()
    print(f"scale {name:9}: entropy above 5.9 of 6 bits: {entropy(weights).mean().item() > 5.9!s:5}  own key gets more than 99%: {own > 0.99}")

blunt = found["recall"]["softmax, scale 1/sqrt(d)"]["mean"]
print("with the scale 1/sqrt(d), recall at 64 pairs is below a quarter:", blunt[stored.index(64)] < 0.25)

# %% [markdown]
# **The causal mask is forgotten.** Nothing crashes, and the training loss looks wonderful. Here is a test that needs no held-out data: train on words drawn at random. On average no honest model can get
# below $\ln 32$ nats for 32 words; one that does has seen the answer.

# %%
class Leaky(SequenceMemory):
    """Self-attention without a mask."""

    level = "mixer"

    def __init__(self):
        super().__init__()
        self.config = {"d_model": 32}
        self.attention = MultiHeadAttention(32, 4)

    def initial_state(self, batch_size, *, device=None, dtype=None):
        return torch.zeros(batch_size, 0, device=device)

    def advance(self, x, state):
        return self.attention(x), state

# %%
def noise(step):
    tokens = torch.randint(32, (32, 17), generator=torch.Generator().manual_seed(step))
    return Batch(tokens[:, :-1], tokens[:, 1:])


for name, maker in {"causal": lambda: CausalAttention(32, 4), "no mask": Leaky}.items():
    torch.manual_seed(0)
    model = MemoryTransformer(32, 32, 2, maker).to(device)
    loss = sum(fit(model, noise, steps=60, learning_rate=1e-2, progress=False)["loss"][-10:]) / 10
    print(f"{name:8} the loss is below half of ln 32: {loss < math.log(32) / 2}")

# %% [markdown]
# **Patterns that resemble each other.** A sharpness that tells random keys apart cannot tell near neighbours apart: the update then stops at the mean of a whole cluster, a **metastable state**. Here are twelve
# patterns in three clusters; from the first pattern we update until nothing changes.

# %%
generator = torch.Generator().manual_seed(0)
centers = sphere(3, 64, generator).repeat_interleave(4, dim=0)  # (12, d)
patterns = F.normalize(centers + 0.4 * sphere(12, 64, generator), dim=-1)

betas, rows = [0.5, 8.0, 64.0], []
for beta in betas:
    state = patterns[0]
    for _ in range(50):
        state = hopfield_step(state, patterns, beta=beta)
    rows.append((beta * patterns @ state).softmax(dim=0))
labels = [f"{cluster}{number}" for cluster in "abc" for number in "1234"]
fig = figures.weights(
    torch.stack(rows),
    [f"β = {beta:g}" for beta in betas],
    labels,
    title="Asked for a1: everything, its cluster, or a1",
    query_label="sharpness",
    key_label="pattern (the letter is its cluster)",
)
figures.show(fig, "Weights over twelve patterns after 50 updates from pattern a1: at sharpness 0.5 all are alike, at 8 the four of cluster a share the weight, at 64 a1 has nearly all of it.")
for beta, row in zip(betas, rows, strict=True):
    print(f"sharpness {beta:4g}: weight on a1 {row[0].item():.1f}, on its cluster {row[:4].sum().item():.1f}")

# %% [markdown]
# The middle row is not always a failure: a mean over a cluster is what a model wants that asks for a kind of thing and not for one thing. It is a failure when the question was a1.
#
# ## What this memory is
#
# | memory | what is stored | address | read | write | forget | size |
# |---|---|---|---|---|---|---|
# | attention | keys and values of the context | softmax of dot products | weighted sum | append | falls out of the window | grows with T |
#
# Attention never decides what to keep. It stores every word, at full precision, until the window drops it, whether it mattered or not. And it pays for that: here is the cache of a model of a
# usual size, 32 layers of width 4096 in 16-bit numbers:

# %%
for n_words in (4_096, 131_072, 1_048_576):
    gigabytes = 32 * 2 * 4096 * 2 * n_words / 2**30  # layers x (key and value) x width x bytes
    print(f"{n_words:9,} words: {gigabytes:5.0f} GiB of cache")

# %% [markdown]
# **The next chapter** stops appending. It gives the memory a fixed number of slots, and with them a question that attention never had to ask: *where* to write, and what to overwrite.
#
# ### Three questions to think about
#
# 1. A key's bias adds the same number to all scores of a query. What does the softmax make of it? And a query's bias?
# 2. You may double the width of the keys or double the window, at the same cost. When is the one better, when the other?
# 3. The windowed model failed one word past its window, although two layers could reach further. Describe a text, or a task, in which the second layer would learn to use the reach of the first.
#
# The exercises of this chapter are in `exercises/01_attention.ipynb`.
#
# ### Sources
#
# - D. Bahdanau, K. Cho, Y. Bengio. *Neural Machine Translation by Jointly Learning to Align and Translate.* ICLR 2015. arXiv:1409.0473. Additive attention.
# - A. Vaswani, N. Shazeer, N. Parmar, J. Uszkoreit, L. Jones, A. N. Gomez, Ł. Kaiser, I. Polosukhin. *Attention Is All You Need.* NeurIPS 2017. arXiv:1706.03762. Equation 1, multi-head attention.
# - H. Ramsauer et al. *Hopfield Networks is All You Need.* ICLR 2021. arXiv:2008.02217. Equation 3, theorem 3, the kinds of fixed points.
# - J. Su et al. *RoFormer: Enhanced Transformer with Rotary Position Embedding.* 2021. arXiv:2104.09864. The positions in `CausalAttention`.
# - Experiment behind the figures: `experiments/01_attention.py`, results in `experiments/results/01_attention.json`.
