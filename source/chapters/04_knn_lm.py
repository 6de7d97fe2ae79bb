# %% [markdown]
# # 04 A language model with its training text as memory
#
# The memories of chapters 01 to 03 live inside a model and end with its context. This one lies outside: the training text itself, each of its places under an address that the model
# computes, looked up whenever the model speaks. Nothing is trained for it. Its row of the course's table:
#
# | memory | what is stored | address | read | write | forget | size |
# |---|---|---|---|---|---|---|
# | kNN-LM | (context vector, next token) of a corpus | k nearest, exp(-squared distance) | a distribution over next tokens | append | none | corpus |
#
# At the end you can give any language model such a memory, say which tokens it helps and which it harms, tune it honestly, and say what it costs in time and in bytes. Reading takes about
# 40 minutes, running less than a minute.

# %%
from memcourse.course import check, figures, hint, setup
device = setup("0.1.0", seed=0)

# %%
import copy
import math
import tempfile
import time

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from memcourse import KNNLM, Batch, Datastore, corpora, fit, interpolate, knn_log_prob, knn_probs
from memcourse.bundled import docs_model
from memcourse.course import results
from memcourse.shards import Shards

torch.set_num_threads(1)  # models this small are no faster on two

# %% [markdown]
# ## A model that has read it and cannot say it
#
# The course brings a small language model. It was trained on Python's documentation, on the part that is called `train` here. It reads and writes **byte pairs**: a frequent word is one token, a rare
# one is spelled in pieces. We use it as it is, and shall not change one of its weights in this chapter.

# %% tags=["nbval-ignore-output"]
model, tokenizer = docs_model()
model = model.to(device)
text = corpora.python_docs()
train, valid, test = (tokenizer.encode(part) for part in (text.train, text.valid, text.test))
print(text)
print(f"{len(train):,} tokens that it was trained on; {sum(weight.numel() for weight in model.parameters()):,} weights")

# %%
LENGTH = 512  # of a stretch, in tokens


def stretches(tokens, n):
    """n stretches of a text, spread evenly over it: (n, LENGTH)."""
    start = torch.linspace(0, len(tokens) - LENGTH, n).long()
    return tokens[start[:, None] + torch.arange(LENGTH)]


@torch.no_grad()
def model_alone(tokens):
    """What the model says after each token (B, T - 1), and the log-probability it gives to the one that came (B, T - 1)."""
    said, log_p = [], []
    for part in tokens.to(device).split(4):
        logits = model(part[:, :-1])[0]  # (b, T - 1, V)
        said.append(logits.argmax(dim=-1))
        log_p.append(logits.log_softmax(dim=-1).gather(-1, part[:, 1:, None]).squeeze(-1))
    return torch.cat(said).cpu(), torch.cat(log_p).cpu()


def perplexity(log_p):
    return math.exp(-log_p.mean().item())

# %% [markdown]
# How well does it know what it has read? Here is the plainest memory of a text: a table. For every six tokens in a row, it holds what came next. We keep only what is *certain*: six tokens that stand in the text at least
# twice, and always before the same token. Then we go through text that neither the table nor the model has seen, and stop wherever the last six tokens are in the table.
#
# We ask twice: on documentation, with a table of the text that the model was trained on, and on source code of Python's own library, which the model was never shown, with a table of other source code.

# %%
def table_of(tokens, n=6):
    """{n tokens in a row: what always came next}, for those that occur at least twice."""
    followers, tokens = {}, tokens.tolist()
    for place in range(n, len(tokens)):
        followers.setdefault(tuple(tokens[place - n : place]), []).append(tokens[place])
    return {context: seen[0] for context, seen in followers.items() if len(seen) > 1 and len(set(seen)) == 1}


def questions(table, tokens, n=6):
    """(context, what the table says, what the model says, what stands there), wherever the table has an answer."""
    said, _ = model_alone(tokens)
    return [
        (context, table[context], answers[place - 1], row[place])
        for row, answers in zip(tokens.tolist(), said.tolist(), strict=True)
        for place in range(n, len(row))
        if (context := tuple(row[place - n : place])) in table
    ]


source = corpora.python_source()
source_train, source_test = tokenizer.encode(source.train[-800_000:]), tokenizer.encode(source.test)
asked = {
    "documentation": questions(table_of(train), stretches(test, 50)),
    "source code": questions(table_of(source_train), stretches(source_test, 50)),
}
for name, places in asked.items():
    wrong = [place for place in places if place[2] != place[3]]
    by_table, by_model = (sum(place[who] == place[3] for place in places) / len(places) for who in (1, 2))
    corrected = sum(place[1] == place[3] for place in wrong) / len(wrong)
    print(f"{name}: the table is right on more than two thirds: {by_table > 2 / 3};  the model on fewer: {by_model < 2 / 3}")
    print(f"   where the model is wrong, the table is right more often than not: {corrected > 0.5}")

# %% tags=["nbval-ignore-output"]
for name, places in asked.items():
    print(f"{name}, {len(places)} places: table {sum(p[1] == p[3] for p in places) / len(places):.2f}, model {sum(p[2] == p[3] for p in places) / len(places):.2f}")
    missed = [place for place in places if place[1] == place[3] != place[2] and len(tokenizer.token(place[1]).strip()) > 2]
    for context, right, said, _ in missed[:: len(missed) // 4 + 1]:
        print(f"   ...{tokenizer.decode(context)!r:34} table {tokenizer.token(right)!r:14} model {tokenizer.token(said)!r}")

# %% [markdown]
# The table took a second to make, and knows no English. The model has read the same documentation eighteen times over, and is corrected by it. Training keeps what is frequent; a name that was met twice is often not in the weights, though the text that holds it lies on the disk
# beside them. And what was written after training is not in the weights at all.
#
# The table is no answer either. It is silent wherever the last six tokens do not stand, to the letter, in its text:

# %%
silent = [1 - len(places) / (50 * (LENGTH - 6)) for places in asked.values()]
print("the table says nothing at more than nine places in ten:", min(silent) > 0.9)

# %% [markdown]
# It is a Python dictionary again, with the fault that chapter 01 began with: a context that is merely *similar* finds nothing. We know the remedy. What we need is a table whose keys are vectors.
#
# ## The idea: ask the places that look like this one
#
# The model turns a context into a vector, and it was trained to give similar vectors to contexts that go on similarly. So let it read a text once, and store for every place the vector of the context *and the token that came
# next*. To say the next token of a new context, find the stored vectors nearest to its own, let each vote for its token, and mix the vote into what the model says.

# %% tags=["hide-input"]
places = {  # a context: the token after it, and where its vector lies (two numbers, so that it can be drawn)
    "the next line is returned by f.": ("readline", (0.50, 0.42), "left"),
    "a single line is taken with f.": ("readline", (-0.45, 0.45), "right"),
    "to read the whole file, call f.": ("read", (0.70, -0.30), "left"),
    "the line is put there by f.": ("write", (-0.70, -0.52), "right"),
    "when you are done, call f.": ("close", (1.45, 0.95), "left"),
    "an error if the file does not": ("exist", (-1.35, 0.95), "right"),
    "the names in the given": ("directory", (1.30, -0.85), "left"),
}
keys = torch.tensor([key for _, key, _ in places.values()])  # (7, 2)
names = [token for token, _, _ in places.values()]
distances = keys.square().sum(dim=-1)  # (7,): the query lies at (0, 0)
nearest = distances.argsort()[:4]
votes = (-distances[nearest]).softmax(dim=0)  # (4,): exp(-distance), made to sum to 1
candidates = ["readline", "read", "write", "close"]
p_knn = torch.zeros(4).index_add(0, torch.tensor([candidates.index(names[i]) for i in nearest.tolist()]), votes)
p_model = torch.tensor([0.15, 0.40, 0.25, 0.20])
p = 0.5 * p_knn + 0.5 * p_model

fig = Figure(figsize=(figures.WIDTH, 5.0))
above, below = fig.subfigures(2, 1, height_ratios=[1.75, 1])
plane = above.subplots()
color = {"readline": "#0072B2", "read": "#D55E00", "write": "#009E73"}
plane.add_patch(Circle((0, 0), distances[nearest[-1]].sqrt().item(), facecolor="#F0E442", alpha=0.3, edgecolor="#777777"))
plane.plot(0, 0, "*", color="#222222", markersize=14)
plane.annotate("“to read one more line,\ncall f.”  →  ?", (0, 0), (0, -9), textcoords="offset points", ha="center", va="top", fontsize=8.5, weight="bold")
for context, (token, place, side) in places.items():
    shade = color.get(token, "#777777")
    plane.plot(*place, "o", color=shade)
    plane.annotate(f"{context}\n→ {token}", place, (8 if side == "left" else -8, 0), textcoords="offset points", ha=side, va="center", fontsize=8.5, color=shade)
plane.set(xlim=(-2.9, 2.9), ylim=(-1.2, 1.2), xlabel="first number of the context's vector", ylabel="second number", aspect="equal", xticks=[], yticks=[])
plane.grid(False)
panels = below.subplots(1, 3, sharey=True)
parts = {"the model alone": (p_model, "#777777"), "its 4 neighbours": (p_knn, "#0072B2"), "half of each": (p, "#222222")}
for panel, (label, (shares, shade)) in zip(panels, parts.items(), strict=True):
    bars = panel.barh(candidates, shares, color=shade, height=0.6)
    panel.bar_label(bars, [f"{share:.2f}" for share in shares.tolist()], padding=3, fontsize=9)
    panel.set(xlabel=f"{label}\n(probability)", xlim=(0, 0.8), xticks=[])
    panel.tick_params(left=False)
    panel.grid(False)
    panel.spines["bottom"].set_visible(False)
panels[0].set_ylabel("next token")
panels[0].invert_yaxis()
fig.suptitle("What came next at the places most like this one?", x=0.01, ha="left", fontsize=11, weight="bold")
figures.show(fig, "Above, seven stored contexts as points in a plane, each with the token that followed it, and a query; a circle holds its four nearest, two of which go on with readline. Below, the model alone prefers read; its neighbours prefer readline, and so does the mixture.")
print("the model says", candidates[p_model.argmax()], "- with its neighbours it says", candidates[p.argmax()])

# %% [markdown]
# The model did not become cleverer. It was shown four places of a text, and what they said.
#
# ## The equations
#
# | symbol | name | shape |
# |---|---|---|
# | $c_i$, $w_i$ | a context of the stored text, and the token that follows it | |
# | $f(c)$ | what the model makes of a context: its **context vector** | $(d)$ |
# | $k_i = f(c_i)$, $v_i = w_i$ | **key** and **value** of entry $i$; $K$ and $v$ for all | $(N, d)$, $(N)$ |
# | $q = f(x)$ | the **query**: the same function of the context $x$ to be continued | $(d)$ |
# | $\mathcal N$ | the $k$ entries whose keys are nearest to $q$, the **neighbours** | $k$ of them |
# | $D_i$ | squared distance of key $i$ from the query | $(k)$ |
# | $\tau$ | **temperature**: from what distance on a neighbour hardly counts | a number |
# | $\lambda$ | **weight** of the neighbours | a number in [0, 1] |
#
# **Write.** The **datastore** holds one entry for every token of the text that has something before it:
#
# $$(K, v) = \{(f(c_i),\, w_i)\}$$
#
# **Read.** The neighbours vote, the nearer the more; $\mathbb 1[y = v_i]$ is 1 where neighbour $i$ holds the token $y$, and 0 elsewhere:
#
# $$D_i = \lVert k_i - q\rVert_2^2, \qquad p_{kNN}(y \mid x) = \frac{\sum_{i \in \mathcal N} \mathbb 1[y = v_i]\, e^{-D_i/\tau}}{\sum_{i \in \mathcal N} e^{-D_i/\tau}}$$
#
# **Mix.**
#
# $$p(y \mid x) = \lambda\, p_{kNN}(y \mid x) + (1 - \lambda)\, p_{model}(y \mid x)$$
#
# These are equations 2 and 3 of Khandelwal et al. The paper has no temperature, which is $\tau = 1$; later work added it, and we shall need it. In code, for one query:

# %%
N, d, k, vocab_size = 6, 4, 3, 5
torch.manual_seed(0)
keys, values = torch.randn(N, d), torch.tensor([3, 1, 3, 0, 1, 3])  # written: (N, d), (N)
query, temperature, weight = torch.randn(d), 1.0, 0.25

distances = (keys - query).square().sum(dim=-1)  # (N)
neighbors = distances.argsort()[:k]  # the k nearest
votes = torch.exp(-distances[neighbors] / temperature)  # (k)
p_knn = torch.zeros(vocab_size).index_add(0, values[neighbors], votes / votes.sum())  # (V)
p_model = torch.randn(vocab_size).softmax(dim=0)  # (V)
p = weight * p_knn + (1 - weight) * p_model  # (V)
print("neighbours hold the tokens", sorted(set(values[neighbors].tolist())), " sum of p:", round(p.sum().item(), 4))
print("a token that no neighbour holds keeps the share 1 - λ:", torch.allclose(p[4], (1 - weight) * p_model[4]))

# %% [markdown]
# The last line is worth a pause. Whatever the neighbours say, no token can lose more than the share $\lambda$ of its probability. It can gain by any factor.
#
# **It is attention.** Since $-\lVert k - q\rVert^2 = 2\, q \cdot k - \lVert k \rVert^2 - \lVert q \rVert^2$, and $\lVert q \rVert^2$ is the same for all entries, the votes are the softmax of a dot product with a bonus for short keys. The values are
# tokens (vectors with a single 1), and all entries but the $k$ best are left out. Chapter 01's memory was the text of one context, and it was gone afterwards; this one is a whole corpus, and stays.

# %%
scores = (2 * keys @ query - keys.square().sum(dim=-1)) / temperature  # (N)
as_attention = scores[neighbors].softmax(dim=0) @ torch.eye(vocab_size)[values[neighbors]]  # (k) x (k, V)
print("attention over the k nearest:", torch.allclose(as_attention, p_knn, atol=1e-6))

# %% [markdown]
# **What is** $f(c)$**?** Any vector inside the model would do as long as it is the same one for keys and queries. The paper takes the input of the last layer's feed-forward network, after its norm, and found it best among those that it tried. In this library:
# `model.hidden(tokens)`, one vector for each token, which has seen the tokens up to and including that one. "The claim" tries the alternative.
#
# ## The plain version
#
# ### What goes in
#
# `hidden[t]` has read token $t$. So it is the key of what comes *after*: token $t + 1$.

# %%
@torch.no_grad()
def pairs(tokens):
    """tokens (B, T) -> keys (B (T - 1), d), values (B (T - 1)): each context, and the token after it."""
    hidden = model.hidden(tokens.to(device)).cpu()  # (B, T, d)
    return hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()


keys, values = pairs(stretches(train, 4))
print("keys:", tuple(keys.shape), " values:", tuple(values.shape))

held_out = stretches(test, 8)  # what we measure on
changed = held_out[:1].clone()
changed[0, 10] = (changed[0, 10] + 1) % tokenizer.vocab_size
before, after = pairs(held_out[:1])[0], pairs(changed)[0]
print("the key whose value is token 10 knows nothing of token 10:", torch.allclose(before[9], after[9], atol=1e-5))
print("the next key does:", not torch.allclose(before[10], after[10], atol=1e-2))

# %% [markdown]
# ### v1: one query and a loop
#
# The equation with nothing but numbers, over the 2,044 entries that we have just made:

# %%
def p_knn_v1(query, keys, values, k, vocab_size, temperature):
    """query (d,), keys (N, d), values (N,) -> a list of V probabilities."""
    distances = [sum((a - b) ** 2 for a, b in zip(key, query, strict=True)) for key in keys.tolist()]
    nearest = sorted(range(len(distances)), key=distances.__getitem__)[:k]
    p = [0.0] * vocab_size
    for i in nearest:
        p[int(values[i])] += math.exp(-distances[i] / temperature)
    return [share / sum(p) for share in p]


queries, targets = pairs(held_out[:1])  # (511, d), (511,)
TAU = 10.0
p_v1 = p_knn_v1(queries[0].tolist(), keys, values, k=8, vocab_size=tokenizer.vocab_size, temperature=TAU)
print("sums to 1:", round(sum(p_v1), 4), "  tokens that got anything: at most 8:", sum(share > 0 for share in p_v1) <= 8)

# %% [markdown]
# ### v2: all queries at once
#
# The distances of $T$ queries from $N$ keys are one matrix product and two sums; `topk` finds the neighbours; `scatter_add` collects the votes of one token.

# %%
def search(queries, keys, k):
    """queries (T, d), keys (N, d) -> squared distances (T, k) and rows (T, k), nearest first."""
    distances = queries.square().sum(dim=-1, keepdim=True) - 2 * queries @ keys.T + keys.square().sum(dim=-1)  # (T, N)
    return distances.topk(k, largest=False)


def p_knn_v2(queries, keys, values, k, vocab_size, temperature):
    """-> (T, V), each row a distribution."""
    distances, rows = search(queries, keys, k)  # (T, k)
    votes = torch.exp(-distances / temperature)  # (T, k)
    p = torch.zeros(len(queries), vocab_size).scatter_add(1, values[rows], votes)  # (T, V)
    return p / p.sum(dim=-1, keepdim=True)


p_v2 = p_knn_v2(queries, keys, values, 8, tokenizer.vocab_size, TAU)
print("v2 gives v1's numbers:", torch.allclose(p_v2[0], torch.tensor(p_v1), atol=1e-4), "  all rows:", tuple(p_v2.shape))

# %% [markdown]
# ### v3: logarithms, and only the token that came
#
# v2 has two faults, and real numbers show the first at once. Here are vectors as wide as those of a larger model, where squared distances are near two thousand:

# %%
torch.manual_seed(0)
wide, wide_keys = torch.randn(2, 1024), torch.randn(50, 1024)
nothing = p_knn_v2(wide, wide_keys, torch.arange(50), 8, 50, temperature=1.0)
print("v2, width 1024:", "NaN" if nothing.isnan().all() else "numbers")

# %% [markdown]
# Every vote is $e^{-1800}$ or so, which is 0 in float32, and $0/0$ is not a number. The cure is to stay with logarithms: a softmax subtracts the smallest distance first. The second fault is waste. To measure perplexity we need the probability of *one* token at each place, the one that came, and v2
# makes 2048 for each of them (50,257 for GPT-2). Only neighbours that hold the target matter:
#
# $$\log p_{kNN}(w) = \operatorname{logsumexp}_{i:\, v_i = w}\big(-D_i/\tau\big) - \operatorname{logsumexp}_{i}\big(-D_i/\tau\big)$$

# %%
def log_p_knn_v3(distances, tokens, targets, temperature):
    """distances (T, k), tokens (T, k), targets (T) -> log p of each target (T); -inf where no neighbour holds it."""
    scores = -distances / temperature  # (T, k)
    of_target = scores.masked_fill(tokens != targets[:, None], -math.inf).logsumexp(dim=-1)  # (T)
    return of_target - scores.logsumexp(dim=-1)


def mix_v3(log_p_model, log_p_knn, weight):
    """log(λ p_kNN + (1 - λ) p_model), all (T).  0 < weight < 1: exercise 4.4 mends the edges."""
    return torch.logaddexp(log_p_model + math.log(1 - weight), log_p_knn + math.log(weight))


distances, rows = search(queries, keys, 8)
log_p = log_p_knn_v3(distances, values[rows], targets, TAU)  # (T)
of_v2 = p_v2.gather(1, targets[:, None])[:, 0]  # (T)
print("v3 gives the logarithm of v2's numbers:", torch.allclose(log_p.exp(), of_v2, atol=1e-4))

distances, rows = search(wide, wide_keys, 8)
print("width 1024, finite:", bool(log_p_knn_v3(distances, rows, rows[:, 0], 1.0).isfinite().all()))
print("no neighbour holds the target: log p is", round(mix_v3(torch.tensor(-2.0), torch.tensor(-math.inf), 0.25).item(), 3), "= -2 + log 0.75")

# %% [markdown]
# The last line is where careless code breaks: most places have no neighbour that holds the right token, and $\log 0 = -\infty$ must pass through the mixture unharmed. It does, and costs the place no more than $\log(1-\lambda)$.
#
# ### A look at the neighbours
#
# Now for real: an eighth of the training text as memory, 51,100 entries, and 64 neighbours for each of 4,088 held-out tokens.

# %%
memory_text = stretches(train, 100)
keys, values = pairs(memory_text)  # (N, d), (N)
queries, targets = pairs(held_out)  # (T, d), (T)
found = [search(part, keys, 64) for part in queries.split(128)]  # 128 queries at a time: all of them would need 800 MB
distances, rows = (torch.cat(part) for part in zip(*found, strict=True))  # (T, 64)
log_p_model = model_alone(held_out)[1].flatten()  # (T)
print("entries:", len(keys), "  queries:", len(queries), "  nearest first:", bool((distances[:, 1:] >= distances[:, :-1]).all()))

# %% [markdown]
# How well a text is predicted is measured by its **perplexity**, the exponential of the mean of $-\log p$: 50 means as unsure as among 50 tokens that are all alike. Temperature and weight are still to be chosen, and never on the text that we measure on. The validation part is there for that:

# %%
for_tuning = stretches(valid, 4)
tuning_queries, tuning_targets = pairs(for_tuning)
found = [search(part, keys, 64) for part in tuning_queries.split(128)]
tuning_distances, tuning_rows = (torch.cat(part) for part in zip(*found, strict=True))
tuning_model = model_alone(for_tuning)[1].flatten()

weights = [0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5]
tried = {}
for temperature in (1.0, 3.0, 10.0, 30.0):
    log_p_knn = log_p_knn_v3(tuning_distances, values[tuning_rows], tuning_targets, temperature)
    tried[temperature] = [perplexity(mix_v3(tuning_model, log_p_knn, weight)) for weight in weights]
fig = figures.curves(
    {f"τ = {temperature:g}": (weights, [row]) for temperature, row in tried.items()},
    x="weight of the neighbours, λ", y="perplexity on validation text",
    title="Too much weight is worse than none, and τ = 1 trusts too few",
    levels={"model alone": perplexity(tuning_model)},
)
figures.show(fig, "Perplexity on validation text against the weight, a line for each temperature: all fall at first and rise later; the lines of temperature 10 and 30 go lowest, that of temperature 1 hardly gets below the model alone and ends far above it.")
TAU = min(tried, key=lambda temperature: min(tried[temperature]))
LAMBDA = weights[tried[TAU].index(min(tried[TAU]))]
print("the best temperature is above 1:", TAU > 1, "  the best weight lies strictly inside the range:", weights[0] < LAMBDA < weights[-1])

# %% [markdown]
# At $\tau = 1$ a neighbour that is farther by 5 has $e^{-5}$ of the vote, less than a hundredth. Here distances of neighbours differ by tens, so one neighbour decides alone, right or wrong. The paper has no temperature, and on the vectors of its model that served; so it will on those of the small models below. It is a question of scale, and
# cheap to tune: nothing has to be searched again.

# %%
log_p_knn = log_p_knn_v3(distances, values[rows], targets, TAU)  # (T)
log_p = mix_v3(log_p_model, log_p_knn, LAMBDA)  # (T)
print("held-out text: lower perplexity with the memory:", perplexity(log_p) < perplexity(log_p_model))
better, worse = (log_p > log_p_model).float().mean().item(), (log_p < log_p_model).float().mean().item()
print("more tokens get worse than better:", worse > better)

# %% tags=["nbval-ignore-output"]
print(f"model {perplexity(log_p_model):.1f}, with memory {perplexity(log_p):.1f} (τ = {TAU:g}, λ = {LAMBDA:g}); tokens better {better:.2f}, worse {worse:.2f}")

# %% [markdown]
# Both lines are true, and we come back to the second. First look at the places where the memory added most probability to the token that came: the held-out text, the token that came, what the model and the neighbours gave it, and what the neighbours had read.

# %%
def show_place(place):
    """One held-out place, and for the three tokens with most votes the nearest neighbour that holds it."""
    row, t = divmod(place, LENGTH - 1)
    came = tokenizer.token(targets[place])
    print(f"...{tokenizer.decode(held_out[row, max(0, t - 19) : t + 1])!r} -> {came!r}")
    print(f"   model {log_p_model[place].exp().item():.3f}   neighbours {log_p_knn[place].exp().item():.3f}   mixed {log_p[place].exp().item():.3f}")
    votes = (-distances[place] / TAU).softmax(dim=0)  # (64)
    of_token = torch.zeros(tokenizer.vocab_size).index_add(0, values[rows[place]], votes)  # (V)
    for share, token in zip(*of_token.topk(3), strict=True):
        holder = rows[place][values[rows[place]] == token]
        if len(holder):
            r, s = divmod(int(holder[0]), LENGTH - 1)
            print(f"     {share.item():.2f} of the votes for {tokenizer.token(token)!r:10} as in ...{tokenizer.decode(memory_text[r, max(0, s - 11) : s + 1])!r}")


def some(order, n=3):
    """The first n places of an order, no two of them within 40 tokens, none near the start of a stretch."""
    chosen = []
    for place in order.tolist():
        if place % (LENGTH - 1) > 20 and all(abs(place - other) > 40 for other in chosen):
            chosen.append(place)
        if len(chosen) == n:
            return chosen


gained = log_p.exp() - log_p_model.exp()
helped = some(gained.argsort(descending=True))
print("where it helped most, the probability gained is at least half of λ:", bool((gained[helped] > LAMBDA / 2).all()))

# %% tags=["nbval-ignore-output"]
for place in helped:
    show_place(place)

# %% [markdown]
# What the neighbours have in common with the query is a phrase, a format, the first half of a name: what was said at just these places, and what no grammar foretells. And where it took away most:

# %%
hurt = some(gained.argsort())
print("where it hurt most, no probability fell below 1 - λ times what it was:", bool((log_p[hurt] > log_p_model[hurt] + math.log(1 - LAMBDA) - 1e-4).all()))

# %% tags=["nbval-ignore-output"]
for place in hurt:
    show_place(place)

# %% [markdown]
# The model was nearly sure and right; its neighbours agreed on something else, or on nothing. There are many such places, and each loses little.
#
# ## The library's version
#
# `Datastore` keeps keys and values and finds neighbours; `KNNLM` puts a model and a datastore together. `knn_probs`, `knn_log_prob` and `interpolate` are v2's vote, v3 and the mixture, with their arguments checked, for any leading axes, and right at the edges (no neighbour at all, $\lambda = 0$ or 1).

# %%
store = Datastore(keys.shape[1])
knn_lm = KNNLM(model, store, k=64, temperature=TAU, weight=LAMBDA)
knn_lm.memorize(memory_text)  # row by row, so that entry i is our row i
by_library = store.search(queries[:500], 64)
print("entries:", len(store), "  the same keys:", torch.allclose(store.keys, keys, atol=1e-4))
print("the same nearest neighbour on at least 99 of 100 queries:", (by_library.ids[:, 0] == rows[:500, 0]).float().mean().item() >= 0.99)
print("the same distances:", torch.allclose(by_library.distances, distances[:500], rtol=1e-3, atol=1e-2))
scores = knn_lm.score(held_out)  # (12, LENGTH - 1)
print("KNNLM.score == v3:", torch.allclose(scores.flatten(), log_p, atol=1e-2), "  shape:", tuple(scores.shape))
whole = knn_probs(distances[:9], values[rows[:9]], tokenizer.vocab_size, temperature=TAU)
print("knn_probs == v2:", torch.allclose(whole, p_knn_v2(queries[:9], keys, values, 64, tokenizer.vocab_size, TAU), atol=1e-4))
same = torch.allclose(knn_log_prob(distances, values[rows], targets, temperature=TAU), log_p_knn, atol=1e-4)
print("knn_log_prob == v3:", same, "  interpolate == v3:", torch.allclose(interpolate(log_p_model, log_p_knn, LAMBDA), log_p, atol=1e-4))

# %% [markdown]
# (Neighbours at nearly the same distance may change places: v2 subtracts large numbers from each other, and the library computes the distances of what it has found once more, difference by difference, and breaks ties by age.)
#
# It never makes the $(T, N)$ matrix of v2, and nothing that is as large as tokens times vocabulary. With the vocabulary of GPT-2 the second is most of the work:

# %%
def seconds(function, repeats=3):
    def once():
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    return min(once() for _ in range(repeats))


torch.manual_seed(0)
far, tokens, came = 100 * torch.rand(256, 1024), torch.randint(50_257, (256, 1024)), torch.randint(50_257, (256,))
whole = seconds(lambda: knn_probs(far, tokens, 50_257, temperature=TAU).gather(1, came[:, None]).log())
target_only = seconds(lambda: knn_log_prob(far, tokens, came, temperature=TAU), repeats=10)
print("for the target alone, at least 3 times as fast:", whole > 3 * target_only)

# %% tags=["nbval-ignore-output"]
print(f"measured here: {whole / target_only:.0f} times as fast")

# %% [markdown]
# `tune` does what we did by hand, on text that must not be in the store, and sets what it has chosen. `generate` continues a prompt, with the memory or without:

# %%
best = knn_lm.tune(for_tuning, ks=(64,), temperatures=tuple(tried), weights=weights)
print("tune agrees with the curves above:", best["temperature"] == TAU, best["weight"] == LAMBDA)

# %% tags=["nbval-ignore-output"]
prompt = tokenizer.encode("Raises a ValueError if the")[None].to(device)
print("model alone:", repr(tokenizer.decode(model.generate(prompt, 16)[0])))
print("with memory:", repr(tokenizer.decode(knn_lm.generate(prompt, 16)[0])))

# %% [markdown]
# ### On a laptop, on a GPU, on more than one machine
#
# A store may live in a folder. Its keys are then float16, in a file that is mapped and not read into memory, and a store that is opened again knows which model made it. Two stores are searched as one through `Shards`:

# %%
half = len(memory_text) // 2
with tempfile.TemporaryDirectory() as folder:
    shards = []
    for name, part in (("first", memory_text[:half]), ("second", memory_text[half:])):
        KNNLM(model, Datastore(store.dim, path=f"{folder}/{name}")).memorize(part)  # on disk from here on
        shards.append(Datastore.load(f"{folder}/{name}"))
    together = Shards(shards).search(queries[:500], 64)
    per_entry = shards[0].describe()["bytes"] // len(shards[0])
print("two stores on disk, searched as one: the same nearest neighbour on at least 99 of 100:", (together.ids[:, 0] == by_library.ids[:, 0]).float().mean().item() >= 0.99)
print(f"bytes per entry: {per_entry} ({store.dim} numbers of 2 bytes and a token of 4);  the paper's 103,225,485 entries of 1024 float32: {103_225_485 * 1024 * 4 / 1e9:.0f} GB of keys")

# %% [markdown]
# On disk nothing else changes, `device="cuda"` puts the search on a GPU (a store in memory lives there), and `index="ivfpq"` replaces the exact search by the paper's approximate one; what that saves and costs is measured below.
#
# A large corpus is encoded from the command line, by one process or by several, each of which writes a shard of its own. A build that is interrupted goes on where it was:
#
# ```
# memcourse datastore build store --text python_docs                                # the course's model, one process
# torchrun --nproc-per-node 2 -m memcourse datastore build store --text my_texts/   # two, a shard each
# memcourse datastore search store "Raises a ValueError if the"                     # what lies nearest?
# ```
#
# And no model has to be patched to get such a memory. `hf.knn_lm` overhears the input of the last feed-forward network of a causal language model of the `transformers` library (`pip install "memcourse[hf]"`), and generates through the model's own `generate()`:
#
# ```python
# from transformers import AutoModelForCausalLM, AutoTokenizer
# from memcourse import Datastore, hf
#
# gpt2, words = AutoModelForCausalLM.from_pretrained("gpt2"), AutoTokenizer.from_pretrained("gpt2")
# lm = hf.knn_lm(gpt2, Datastore(gpt2.config.hidden_size, path="my_store"), k=64)
# lm.memorize(words(open("my_text.txt").read(), return_tensors="pt").input_ids)
# lm.tune(words(open("other_text.txt").read(), return_tensors="pt").input_ids)
# print(words.decode(lm.generate(words("It was a dark and", return_tensors="pt").input_ids, 20)[0]))
# ```

# %% [markdown]
# ## The claim
#
# Khandelwal et al. claim that a language model predicts better, with no training at all, once it can look up the text that it was trained on; that a datastore of more text serves better than
# training on that text; and that another domain is learned by exchanging the datastore. Their model has 247 million weights; a datastore of WikiText-103 has 103 million entries:
#
# | the paper's test perplexities | model | with the datastore |
# |---|---|---|
# | WikiText-103; datastore: its own training text | 18.65 | **16.12** (15.79 with a cache of recent tokens too; the cache alone: 18.27) |
# | trained on 100 million tokens of Wikipedia; datastore: 3 billion | 19.59 | **13.73** (a model trained on the 3 billion: 15.17) |
# | trained on Wikipedia, tested on books; datastore: books | 34.84 | **20.47** |
#
# (The caption of the paper's table 4 calls the last row a gain of 23 points. By its own numbers it is 14.)
#
# Ours are transformers of two layers on Python's documentation: three small ones of width 64 with a short training, one for each seed, and the bundled one of width 96, trained on thirteen times as many tokens. All are scored on held-out documentation,
# with $k = 64$ unless said otherwise, and every setting is tuned on other held-out text.
#
# ### More text, and how far to trust it

# %%
found = results.read("04_knn_lm")["results"]
size = found["size"]
entries = size["entries"]


def draw(panel, x, curve, number, label):
    """A line in the course's looks: the mean over the seeds, with a band from the lowest to the highest."""
    color, dash, marker = figures.LINES[number]
    curve = curve if isinstance(curve, dict) else {"mean": curve, "low": curve, "high": curve}
    panel.plot(x, curve["mean"], color=color, linestyle=dash, marker=marker, label=label)
    panel.fill_between(x, curve["low"], curve["high"], color=color, alpha=0.2, linewidth=0)


fig = Figure(figsize=(figures.WIDTH, 3.8))
left, right = fig.subplots(1, 2, width_ratios=[1.5, 1])
draw(left, entries, size["tuned"], 0, "weight tuned for each size")
draw(left, entries, size["of_largest"], 1, "weight of the largest store")
left.axhline(size["model"]["mean"], color="#777777", linestyle=":", label="model alone")
left.axhline(size["cache"]["mean"], color="#777777", linestyle="--", label="cache alone")
left.set(xscale="log", xlabel="entries in the datastore", ylabel="perplexity (three small models)", ylim=(100, None))
draw(right, entries, size["weight"], 0, "small models")
draw(right, entries, size["bundled"]["weight"], 3, "bundled model")
right.set(xscale="log", xlabel="entries in the datastore", ylabel="best weight, λ", ylim=(0, 0.45))
for panel in (left, right):
    panel.legend(fontsize=8.5)
fig.suptitle("More text helps, if the weight is chosen anew for it", x=0.01, ha="left", fontsize=11, weight="bold")
figures.show(fig, "Left, perplexity against the size of the datastore: tuned for each size it falls from the model's own by nearly a third; with the weight of the largest store, small stores are worse than no memory. Right, the best weight grows with the size, from 0.05 to about a third.")

for name, part, mean in (("small models ", size, lambda curve: curve["mean"]), ("bundled model", size["bundled"], lambda number: number)):
    alone, whole, cache, both = mean(part["model"]), mean(part["tuned"])[-1], mean(part["cache"]), mean(part["store_and_cache"])
    print(f"{name}: alone {alone:5.1f}   whole training text {whole:5.1f}   cache {cache:5.1f}   both {both:5.1f}")
alone, stored = (size[name]["per_seed"] for name in ("model", "tuned"))
print("in every seed, the whole training text takes off at least a fifth:", all(s[-1] < 0.8 * a for s, a in zip(stored, alone, strict=True)))

# %% [markdown]
# The claim holds, and a good model gains less than a poor one: it already knows more of what the store would tell it. An end to what size brings is not in sight in this figure.
#
# The **cache** is the same memory with another text in it: the last 512 tokens of the very text that is being read. (With the library: an empty store, which memorizes each passage after it was scored.) It is the humbling baseline. In the paper it takes off 2%; here it does as much as the whole training text for the small models, and more for the bundled one. Documentation says the same names over and over within a page, and each layer of our models sees no farther back than 128 tokens, where the cache keeps 512.
# Both together are best: one remembers what was read long ago, the other what was read just now.
#
# ### How many neighbours

# %%
near = found["k"]
fig = figures.curves(
    {
        "three small models": (near["k"], [[p / alone for p in row] for row, alone in zip(near["perplexity"]["per_seed"], near["model"]["per_seed"], strict=True)]),
        "bundled model": (near["k"], [[p / near["bundled"]["model"] for p in near["bundled"]["perplexity"]]]),
    },
    x="neighbours, k", y="perplexity, as a share of the model's own", log_x=True,
    title="More neighbours are better, and eight already help",
    levels={"model alone": 1.0},
)
figures.show(fig, "Perplexity relative to the model alone against the number of neighbours from 1 to 1024: it falls all the way, below 0.7 for the small models and to about 0.8 for the bundled one.")
print("falls with every k, in every seed:", all(a > b for row in near["perplexity"]["per_seed"] for a, b in zip(row, row[1:])))

# %% [markdown]
# The paper finds the same up to its $k = 1024$. The temperature makes it safe: far neighbours have hardly a vote, and where none is near, many weak votes are a better guess than one.
#
# ### Which tokens gain

# %%
counts = found["tokens"]["by_count"]
labels = ["up to 100", "to 300", "to 1000", "to 3000", "over 3000"]
fig = Figure(figsize=(figures.WIDTH, 3.2))
panel = fig.subplots()
at = range(len(labels))
for number, (name, part) in enumerate({"three small models": counts, "bundled model": found["tokens"]["bundled"]["by_count"]}.items()):
    with_memory, alone = (part[which]["per_seed"] if isinstance(part[which], dict) else [part[which]] for which in ("knn_lm", "model"))
    shares = [[100 * (k / m - 1) for k, m in zip(*rows, strict=True)] for rows in zip(with_memory, alone, strict=True)]
    draw(panel, at, results.summary(shares), 3 * number, name)
panel.axhline(0, color="#777777", linestyle=":")
panel.set_xticks(at, labels)
panel.set_xlim(-0.3, len(labels) - 0.6)
panel.set(xlabel="how often the next token stands in the training text", ylabel="change of perplexity (%)")
panel.set_title("Every class of tokens gains; rare ones gain most")
panel.legend(fontsize=9)
figures.show(fig, "Change of perplexity in percent for tokens in five classes of frequency: in every class the memory lowers it; for the small models by about half for the rarest and a tenth for the most frequent, for the bundled model by about 15 and 6 percent.")
for name, part in {"three small models": found["tokens"], "bundled model": found["tokens"]["bundled"]}.items():
    better, worse = (part[which]["mean"] if isinstance(part[which], dict) else part[which] for which in ("better", "worse"))
    print(f"{name}: {better:.0%} of the tokens get better, {worse:.0%} get worse")

# %% [markdown]
# Read the two lines together with the figure: *most tokens get worse*, and every class gets better. A frequent token that the model had right loses a little to neighbours that say something else, at most the share $\lambda$; a rare one that the model had
# given up on gains by a factor of ten or a hundred. Perplexity is a mean of logarithms, and there a few large gains outweigh many small losses. Whoever asks for facts wants this trade; whoever asks for fluent text may not. (Wang et al. report that text *generated* with such a memory is no better. We could not verify their
# numbers in the paper's own text.)
#
# ### Better outside than in the weights?
#
# A byte can hold half a parameter, or it can hold a bit of datastore. Here the small model grows in either direction: made wider and trained for as many steps, or given more entries, with keys of float16 or with the 20 bytes an entry of a product quantiser (below).

# %%
spent = found["bytes"]
fig = Figure(figsize=(figures.WIDTH, 3.6))
panel = fig.subplots()
for number, (name, label) in enumerate({"parameters": "wider model", "exact": "entries, float16 keys", "codes": "entries, quantised keys"}.items()):
    draw(panel, [n / 1e6 for n in spent[name]["bytes"]], spent[name]["perplexity"], number, label)
panel.plot(spent["bundled"]["bytes"] / 1e6, spent["bundled"]["perplexity"], "D", color="#000000", markersize=7, label="bundled model:\n13 times the training")
panel.set(xscale="log", xlabel="megabytes of model and memory together", ylabel="perplexity (held-out text)", ylim=(0, None))
panel.set_title("Quantised entries beat width; more training beats both")
fig.legend(loc="outside right center")
figures.show(fig, "Perplexity against bytes: the wider model falls little, quantised entries fall further at the same bytes, float16 entries need several times as many bytes; far below all of them lies the bundled model, which is small and was trained longer.")
wider, wider_bytes = spent["parameters"]["perplexity"]["mean"][-1], spent["parameters"]["bytes"][-1]
(fewer, more), (without, with_codes) = spent["codes"]["bytes"][:2], spent["codes"]["perplexity"]["mean"][:2]
code = without + math.log(wider_bytes / fewer) / math.log(more / fewer) * (with_codes - without)  # on the line between two points
print(f"{wider_bytes / 1e6:.1f} MB in all: a wider model, perplexity {wider:.0f};  quantised entries (read off their line), perplexity {code:.0f}")
print(f"bundled model, alone: {spent['bundled']['bytes'] / 1e6:.1f} MB, perplexity {spent['bundled']['perplexity']:.0f}")

# %% [markdown]
# So *is it better to keep facts outside than in the weights?* For the same bytes and the same few training steps, yes: quantised entries take off more than the same bytes spent on width. With float16 keys, 132 bytes an entry (width 64), width is a little ahead. But the
# lowest point in the figure is a model that was merely trained longer, at no bytes at all. Storing is cheap in *training* and dear in bytes and in searching; training is the reverse. A store is the better place for what is new, what is rare and what must be removable, and not for what everyone needs in every sentence.
#
# ### What a search costs, and what quantised keys save
#
# **Product quantisation** cuts what is left of a key, after its nearest cluster centre is taken off, into pieces, and replaces each piece by the nearest of 256 prototypes: one byte a piece. `index="ivfpq"` does this, and searches only the clusters around the query. Distances may then be taken from the codes, or computed anew from the stored keys for what was found (*rescored*).

# %%
for row in zip(*(found["quantised"][name] if name in ("search", "bytes") else found["quantised"][name]["mean"] for name in ("search", "bytes", "recall", "perplexity")), strict=True):
    print("{:17} {:4} bytes an entry   finds {:4.0%} of the 64 nearest   perplexity {:.1f}".format(*row))
cost = found["cost"]
for index in ("exact", "ivfpq"):
    for n, ratio in zip(cost[index]["entries"], cost[index]["ratio"]["mean"], strict=True):
        print(f"{index:6} {n:7,} entries: a search takes {ratio:5.1f} times as long as the model's own forward pass for the token")

# %% [markdown]
# Quantised to a sixth of the bytes, a seventh of the true neighbours is missed and perplexity hardly moves: what is missed lies mostly far out in the list, where one neighbour is probably as good as the next. At 4 bytes of code (8 with the token) that is over. The paper lost more with distances from its codes, 16.5 against 16.06 on validation text.
# The search, not the model, is the price of this memory: exact search grows with the store, and costs more than the model itself from the smallest store on. Our models are tiny, so the ratio looks worse than it would for a large one; the paper's index, with 32 of 4096 clusters searched, is what made 103 million entries possible at all.
# That is the answer of this chapter to *how storage capacity is used well*: round the keys, not the number of entries.
#
# ### Does an extractive corpus want a larger weight?
#
# A review among this course's sources says so: Wikipedia, from which one can copy, wanted $\lambda = 0.5$, and books 0.2. These are not the paper's numbers: it has 0.25 in its own domain and 0.65 for a new one, each tuned on validation text. So we measure: how much of a corpus's test text can be copied from its store, as the share of its four-token runs that stand in the store word for word; and which weight is best. Every
# corpus has models of its own, with the same recipe, and a store of the same size.

# %%
corpora_found = found["extractive"]
fig = Figure(figsize=(figures.WIDTH, 3.6))
panel = fig.subplots()
for (name, part), (color, _, marker) in zip(corpora_found.items(), figures.LINES, strict=False):
    panel.plot([100 * share for share in part["seen_4"]["per_seed"]], part["weight"]["per_seed"], marker, color=color, markersize=7, alpha=0.8, label=name.replace("_", " "))
panel.set(xlabel="four-token runs of the test text that stand in the store (%)", ylabel="best weight, λ", ylim=(0, 0.5))
panel.set_title("What can be copied does not tell the weight")
fig.legend(loc="outside right center")
figures.show(fig, "The best weight of each corpus against the share of its test text that stands in its store, a point for each seed: the weights lie between 0.2 and 0.3, and do not rise with the share.")
for name, part in corpora_found.items():
    print(f"{name:20} model {part['model']['mean']:5.0f}   with memory {part['knn_lm']['mean']:5.0f}   λ {part['weight']['low']:.2f} to {part['weight']['high']:.2f}   seen {part['seen_4']['mean']:.0%}")

# %% [markdown]
# Between corpora the review's rule is not in the data: here both novels want a little more weight than Wikipedia, from which more can be copied. (Those named after Python are bundled; the others were on the machine that ran the experiment.) But corpora differ in much else. So change one thing alone: the documentation again, of which a growing share of the stretches that are scored is put into the store, 32 tokens each, in random order.

# %%
quotes = found["quotes"]
fig = figures.curves(
    {"three small models": ([100 * share for share in quotes["share"]], quotes["weight"]["per_seed"])},
    x="share of the scored text that is quoted in the store (%)", y="best weight, λ",
    title="The same text, more and more of it quoted: the weight follows",
)
figures.show(fig, "The best weight against the share of the scored text that stands in the store: it rises with the share in every seed.")
print("the best weight rises from nothing quoted to 40% quoted, in every seed:", all(row[-1] > row[0] for row in quotes["weight"]["per_seed"]))

# %% [markdown]
# With all else equal, the review is right about the direction: the more can be copied, the larger the weight. Between corpora other things weigh as much: the size of the store, the number of neighbours, and how good the model is without it, on *this* text. A new domain is a text on which the model is poor; there the paper's weight is large, and ours too:

# %%
domain = found["domain"]
docs, code = 0, 1
for test_name, test_row in (("documentation", docs), ("source code", code)):
    row = [f"{store_name} {domain['own']['mean'][test_row][i]:.0f}" for i, store_name in enumerate(("model alone", "docs", "code", "both"))]
    print(f"{test_name:14} {',  '.join(row)};  best λ, docs stored: {domain['weight']['mean'][test_row][1]:.2f}, code stored: {domain['weight']['mean'][test_row][2]:.2f}")
own = domain["own"]["per_seed"]
print("documentation, both stored: within 2% of documentation alone stored, in every seed:", all(abs(seed[docs][3] / seed[docs][1] - 1) < 0.02 for seed in own))
print("source code, code stored: at least a third less than the model alone, in every seed:", all(seed[code][2] < 2 / 3 * seed[code][0] for seed in own))

# %% [markdown]
# ### A weight that follows confidence
#
# If the best weight depends on the place, let it. Drozdov et al. give each class of the nearest distance its own weight (`tune(..., buckets=8)` does it, and the weight that it sets is a `BucketWeights`). We tried this, classes of the neighbours' *agreement*, and a small learned function of both and of the model's own certainty:

# %%
sure = found["confidence"]
for name, part in {"three small models": sure, "bundled model": sure["bundled"]}.items():
    mean = (lambda curve: curve["mean"]) if part is sure else (lambda number: number)
    eight = sure["buckets"].index(8)
    print(f"{name:18}: one weight {mean(part['distance'])[0]:.1f}   8 by distance {mean(part['distance'])[eight]:.1f}   8 by agreement {mean(part['agreement'])[eight]:.1f}   learned {mean(part['learned']):.1f}")
gains = [1 - learned / row[0] for learned, row in zip(sure["learned"]["per_seed"], sure["distance"]["per_seed"], strict=True)]
print("the learned weight gains less than 5% over a constant one, in every seed:", max(gains) < 0.05)

# %% [markdown]
# Little, within one domain, and by distance hardly anything; across two domains it decides (exercise 4.7). (Drozdov et al. are reported to gain about 4%; we could not verify it in the paper itself.) `KNNLM(weight=...)` takes any function of the neighbours, so that other ideas are easy to try.
#
# ### Which vector is the key?
#
# The paper's choice, the input of the last feed-forward network after its norm, beat the model's final output by 16.06 to 17.07 on validation text. Ours:

# %%
for name, part in {"three small models": found["key"], "bundled model": found["key"]["bundled"]}.items():
    per_seed = part["perplexity"]["per_seed"] if isinstance(part["perplexity"], dict) else [part["perplexity"]]
    print(f"{name:18}: " + ";  ".join(f"feed-forward's input {hidden:.1f}, final output {output:.1f}" for hidden, output in per_seed))

# %% [markdown]
# For the small models it makes no difference beyond that between seeds. The bundled model, which has learned more, sides with the paper, by 1 to 2%.
#
# ### One seed, live: a new domain, and nothing lost
#
# The bundled model was never shown source code. We give its memory a second document, as much code as documentation, and for comparison we *train* a copy of the model on the same code, once through. Then we look at the code, and at what has become of the documentation.

# %%
code_text, code_held_out = stretches(source_train, len(memory_text)), stretches(source_test, 4)


def alone(lm, tokens):
    return KNNLM(lm, Datastore(store.dim)).perplexity(tokens)  # an empty store: the model alone


trained = copy.deepcopy(model)
fit(
    trained,
    lambda step: Batch(code_text[4 * step : 4 * step + 4, :-1], code_text[4 * step : 4 * step + 4, 1:]),
    steps=len(code_text) // 4,
    learning_rate=2e-3,
    progress=False,
)
measured = {"model alone": (alone(model, held_out), alone(model, code_held_out))}
measured["trained on the code"] = (alone(trained, held_out), alone(trained, code_held_out))
measured["documentation as memory"] = (knn_lm.perplexity(held_out), knn_lm.perplexity(code_held_out))
knn_lm.memorize(code_text, document="source code")
measured["documentation and code"] = (knn_lm.perplexity(held_out), knn_lm.perplexity(code_held_out))
(docs_before, code_before), (docs_trained, code_trained) = measured["model alone"], measured["trained on the code"]
docs_with, code_with = measured["documentation and code"]
print("code in memory: at least 10% lower perplexity on code:", code_with < 0.9 * code_before)
print("code trained on: at least 10% lower too:", code_trained < 0.9 * code_before)
print("documentation, after training on code: at least 3% worse:", docs_trained > 1.03 * docs_before)
print("documentation, with code in memory: not even 1% worse than without it:", docs_with < 1.01 * measured["documentation as memory"][0])

# %% tags=["nbval-ignore-output"]
for name, (docs, code) in measured.items():
    print(f"{name:24} documentation {docs:5.1f}   source code {code:5.1f}")

# %% [markdown]
# Training took in more of the code than the memory did, and paid with the documentation. This is an answer to the question how a model can *keep learning without forgetting*. Weights are shared by everything that they know, so what is written for the one overwrites the other. Entries are not: a new one
# cannot change an old one; at worst it stands nearer to a query and takes its place among the $k$. And a store can do what weights cannot, take something back:

# %%
n_deleted = store.delete("source code")
print("deleted:", n_deleted, "entries;  documentation is back to the last digit:", knn_lm.perplexity(held_out) == measured["documentation as memory"][0])

# %% [markdown]
# (The row of the table says "forget: none", which is the paper's method. Deleting is the library's.)

# %% [markdown]
# ## When it breaks
#
# **Off by one.** If the key at $t$ is paired with token $t$, which it has just read, and not with the one after it, nothing crashes. The memory then proposes the token that was just said:

# %%
shifted = Datastore(store.dim)
with torch.no_grad():
    for part in memory_text.split(4):
        shifted.add(model.hidden(part.to(device)).cpu().flatten(0, 1), part.flatten().int())  # token t, not t + 1
off_by_one = KNNLM(model, shifted, k=64, temperature=TAU, weight=LAMBDA)
print("off by one: worse than no memory:", off_by_one.perplexity(held_out) > docs_before)
chosen = off_by_one.tune(for_tuning, ks=(64,), temperatures=(TAU,), weights=weights)["weight"]
print("tuned, its weight is the smallest on offer:", chosen == min(weights))

# %% [markdown]
# A tuned weight near 0 is the symptom: tuning hides the mistake by switching the memory off. Look at the neighbours before you look at perplexities.
#
# **Measuring on text that is in the datastore.** Every context then finds itself, at distance 0, with the right answer beside it. Perplexity looks wonderful and means nothing. `tune` refuses such a text; `score` cannot know what you want:

# %%
leak = memory_text[:4]
print("text that is in the store: perplexity less than half of the model's:", knn_lm.perplexity(leak) < alone(model, leak) / 2)
try:
    knn_lm.tune(leak, ks=(64,))
except ValueError as error:
    print("ValueError:", str(error)[:57], "...")

# %% [markdown]
# The same happens more quietly when a corpus repeats itself. The documentation does, which is why this course's corpora drop repeated paragraphs *before* they are split.
#
# **A weight that was tuned for another store.** With few entries the neighbours are far away and vote for anything. With the weight that suits a large store, a small one is worse than none:

# %%
few = KNNLM(model, Datastore(store.dim), k=64, temperature=TAU, weight=0.4)
few.memorize(memory_text[::20])
print("5% of the entries, weight 0.4: worse than the model alone:", few.perplexity(held_out) > docs_before)
few.tune(for_tuning, ks=(64,), temperatures=(TAU,), weights=weights)
print("its own best weight is at most 0.1:", few.weight <= 0.1, "  and it is then no more than 1% worse than the model:", few.perplexity(held_out) < 1.01 * docs_before)

# %% [markdown]
# **Confident and wrong.** Look once more at the places where it hurt: a few neighbours share a surface (the same half of a word) and nothing else, and agree with each other. The distance does not say so; `f(c)` is only as good as the model that computes it. A memory of this kind is as
# blind as its model: what the model does not tell apart, the datastore cannot either.
#
# **It remembers words, not conclusions.** Every answer is a token that once followed a similar context. What must be put together from two places of the text is in no entry. And all of it acts on the last step, the distribution over the next token, when the model has done its thinking: chapter 07 puts such a lookup into the middle of the network.
#
# ## What this memory is
#
# | memory | what is stored | address | read | write | forget | size |
# |---|---|---|---|---|---|---|
# | attention | keys and values of the context | softmax of dot products | weighted sum | append | falls out of the window | grows with T |
# | key-value | N slots | softmax of dot product or cosine | weighted sum | add at the address; erase, then add | eviction | N |
# | gated | one vector | none | the state itself | input gate x candidate | forget gate | 1 |
# | kNN-LM | (context vector, next token) of a corpus | k nearest, exp(-squared distance) | a distribution over next tokens | append | none | corpus |
#
# Nothing in it was learned by gradient descent, and it may be larger than its model by any factor:

# %%
model_bytes = sum(weight.numel() * weight.element_size() for weight in model.parameters())
whole_bytes = len(train) * (store.dim * 2 + 4)
print("the whole training text, with keys of float16, is at least 30 times as large as the model that made them:", whole_bytes > 30 * model_bytes)

# %% [markdown]
# **The next chapter** stores something smaller. If a model is right nearly everywhere, why keep what it knows already? Keep what it got *wrong*, and look up the correction. And that works for any prediction, not for words alone.
#
# ### Three questions to think about
#
# 1. All distances of a query grow by 10, since the query is an odd one. What happens to $p_{kNN}$? Should it? What would you change?
# 2. The paper's datastore holds its model's own training text, which the model has read many times. Why can it help at all, and why does it help less the longer the model is trained?
# 3. You may store each frequent entry once, with a count, and drop those that the model predicts well. Which of the results above would you check before you shipped that store?
#
# The exercises of this chapter are in `exercises/04_knn_lm.ipynb`.
#
# ### Sources
#
# - U. Khandelwal, O. Levy, D. Jurafsky, L. Zettlemoyer, M. Lewis. *Generalization through Memorization: Nearest Neighbor Language Models.* ICLR 2020. arXiv:1911.00172. Equations 2 and 3; tables 1, 3, 4 and 5; figure 2.
# - E. Grave, A. Joulin, N. Usunier. *Improving Neural Language Models with a Continuous Cache.* ICLR 2017. arXiv:1612.04426. The cache.
# - A. Drozdov et al. *You can't pick your neighbors, or can you? When and how to rely on retrieval in the kNN-LM.* Findings of EMNLP 2022. arXiv:2210.15859. Weights that follow the distance.
# - F. F. Xu, U. Alon, G. Neubig. *Why do Nearest Neighbor Language Models Work?* ICML 2023. arXiv:2301.02828. Where the gain comes from.
# - S. Wang et al. *kNN-LM Does Not Improve Open-ended Text Generation.* 2023. arXiv:2305.14625. Who pays for it.
# - H. Jégou, M. Douze, C. Schmid. *Product Quantization for Nearest Neighbor Search.* IEEE TPAMI 33, 2011. The codes.
# - Experiment behind the figures: `experiments/04_knn_lm.py`, results in `experiments/results/04_knn_lm.json`.
