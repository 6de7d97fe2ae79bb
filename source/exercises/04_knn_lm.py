# %% [markdown]
# # 04 Exercises: kNN-LM
#
# Seven exercises, from three neighbours on paper to a language model that learns a new domain without training. Each has a
# stub, three hints and a check that answers in this notebook; a check that says "not attempted" costs nothing, so take them in any
# order. What chapter 04 defines is used here without a word: the datastore of keys (what the model makes of a context) and values
# (the token that followed), squared distances, the temperature, the weight of the neighbours, and the sizes B (texts), T (tokens),
# d (width of a key), k (neighbours).

# %%
from memcourse.course import check, figures, hint, setup
device = setup("0.1.0", seed=0)

# %%
import math

import torch
import torch.nn.functional as F

from memcourse import KNNLM, Datastore, corpora
from memcourse.bundled import docs_model

# %% [markdown]
# ## From neighbours to a probability

# %% exercise="4.1"
predicted_shares = {
    "as_given": 3 / 4,  # the votes are 1/2, 1/4 and 1/4, and red has the first and the last
    "all_farther": 3 / 4,  # every vote is multiplied by exp(-10), which cancels
    "half_temperature": 5 / 6,  # the votes are squared: 1/4, 1/16, 1/16
    "very_hot": 2 / 3,  # three equal votes
    "blue_twice": 3 / 5,  # (1/2 + 1/4) / (1/2 + 1/4 + 1/4 + 1/4)
    "mixed": 7 / 20,  # 1/5 of 3/4, and 4/5 of 1/4
    "green": 2 / 5,  # 1/5 of 0, and 4/5 of 1/2
}

# %% [markdown] tags=["solution-only"]
# `all_farther` is the one to remember: only differences of distances count, so that a context which is like nothing in the datastore
# still gets a firm answer, and with the same weight. Exercise 4.7 does something about it. `blue_twice` is why repeated text in a
# corpus is not harmless, and `green` what every token pays that no neighbour has: a factor of 1 - weight.

# %% tags=["solution-only"]
from memcourse import interpolate, knn_probs

RED, BLUE, GREEN = 0, 1, 2
distances, words = torch.tensor([2.0, 4.0, 4.0]).log(), torch.tensor([RED, BLUE, RED])
for name, p in {
    "as_given": knn_probs(distances, words, 3),
    "all_farther": knn_probs(distances + 10, words, 3),
    "half_temperature": knn_probs(distances, words, 3, temperature=0.5),
    "very_hot": knn_probs(distances, words, 3, temperature=1e6),
    "blue_twice": knn_probs(distances[[0, 1, 1, 2]], words[[0, 1, 1, 2]], 3),
    "mixed": interpolate(torch.tensor([0.25, 0.25, 0.5]).log(), knn_probs(distances, words, 3).log(), 0.2).exp(),
}.items():
    print(f"{name:17} red {p[RED].item():.3f}  blue {p[BLUE].item():.3f}  green {p[GREEN].item():.3f}")

# %% exercise="4.2"
def memory_pairs(hidden, tokens):
    """The pairs (context, next token) of a batch of texts.

    hidden: (B, T, d), tokens: (B, T) integers -> (keys, values): (B * (T-1), d), (B * (T-1),) integers.
    hidden[b, t] has seen tokens[b, 0] ... tokens[b, t].  The pairs of text 0 come first, in order, then those of
    text 1, and so on; no pair reaches from one text into another.  The keys are numbers to be stored: no graph.
    """
    keys = hidden[:, :-1].detach()  # (B, T - 1, d): the last context of a text has no next token
    values = tokens[:, 1:]  # (B, T - 1): the first token of a text follows nothing
    return keys.flatten(0, 1), values.flatten()

# %% exercise="4.3"
def target_log_prob(distances, tokens, targets, temperature):
    """log p_kNN(target) = log of  sum over i with tokens_i = target of exp(-distances_i / temperature)
                                 / sum over all i of exp(-distances_i / temperature).

    distances: (..., k), squared, tokens: (..., k) integers, targets: (...) integers, temperature: a number -> (...).
    -inf where no neighbour has the target.  A distance of inf is a neighbour that is missing: it counts nothing (at
    least one distance of every row is finite).  Token ids may be any integers of int64.  Gradients flow to distances.
    """
    scores = -distances / temperature  # (..., k)
    same = tokens == targets[..., None]
    return scores.masked_fill(~same, -torch.inf).logsumexp(dim=-1) - scores.logsumexp(dim=-1)

# %% [markdown] tags=["solution-only"]
# The whole distribution has a place for each word of the vocabulary, and all of them but at most k are 0. For 512 tokens and GPT-2's
# vocabulary of 50,257 that is a table of 100 MB, of which one column a row is read.

# %% tags=["solution-only"]
from timeit import repeat

distances = torch.rand(512, 16) * 100
words, targets = torch.randint(50_257, (512, 16)), torch.randint(50_257, (512,))
targets[:256] = words[:256, 3]  # half of the targets are among the neighbours
whole = knn_probs(distances, words, 50_257, temperature=10.0).gather(1, targets[:, None])[:, 0].log()
alone = target_log_prob(distances, words, targets, 10.0)
print(f"the same as from the whole distribution: {torch.allclose(whole, alone, atol=1e-4)}")
slow = min(repeat(lambda: knn_probs(distances, words, 50_257, temperature=10.0).gather(1, targets[:, None]), number=1, repeat=5))
fast = min(repeat(lambda: target_log_prob(distances, words, targets, 10.0), number=1, repeat=5))
print(f"at least five times as fast: {slow > 5 * fast}")

# %% exercise="4.4"
def mix(log_p_model, log_p_knn, weight):
    """log p, where p = weight * p_knn + (1 - weight) * p_model.

    log_p_model, log_p_knn: (...), each 0 or less, -inf allowed in log_p_knn; weight: a number from 0 to 1 -> (...).
    Gradients flow to both, and are finite also where log_p_knn is -inf.
    """
    weight = torch.as_tensor(weight)  # faults: weight on the wrong side, exp of small logarithms, a floor of 1e-10
    return torch.logaddexp(weight.log() + log_p_knn, (1 - weight).log() + log_p_model)

# %% tags=["solution-only"]
def broken_mix(log_p_model, log_p_knn, weight):
    p = (1 - weight) * log_p_model.exp() + weight * log_p_knn.exp()  # the right side by now, but with the floor
    return torch.log(p + 1e-10)


log_p_model = torch.tensor([-1.0, -2.0, -3.0, -60.0])  # the last token came as a surprise
log_p_knn = torch.tensor([-0.1, -0.1, -torch.inf, -torch.inf])
for name, rule in {"with a floor of 1e-10": broken_mix, "as it should be": mix}.items():
    print(f"{name:22} {-rule(log_p_model, log_p_knn, 0.25).mean().item():.2f} nats a token")

# %% [markdown]
# ## The search

# %% exercise="4.5"
def nearest_in_blocks(queries, blocks, k):
    """Squared distances of the k nearest keys of every query, the nearest first, and their rows.

    queries: (Q, d), blocks: a list of (n_i, d), k: 1 to n_1 + n_2 + ... = N.  A block may hold fewer than k keys.
    -> (distances, rows): (Q, k), (Q, k) integers.  Rows count through all blocks: the first key of block 2 is row n_1.
    The same numbers as the loop, without a (Q, N) tensor and without a Python step for each query.
    """
    Q, start = len(queries), 0
    distances = queries.new_zeros(Q, 0)  # of the best so far
    rows = torch.zeros(Q, 0, dtype=torch.int64, device=queries.device)
    lengths = (queries**2).sum(dim=1, keepdim=True)  # (Q, 1)
    for block in blocks:
        n = len(block)
        squares = lengths - 2 * queries @ block.T + (block**2).sum(dim=1)  # (Q, n)
        here = torch.arange(start, start + n, device=queries.device).expand(Q, n)
        distances = torch.cat([distances, squares], dim=1)  # (Q, k + n)
        best = distances.topk(min(k, distances.shape[1]), largest=False)
        distances, rows = best.values, torch.cat([rows, here], dim=1).gather(1, best.indices)
        start += n
    return distances, rows

# %% [markdown] tags=["solution-only"]
# The matrix product has a price: where a query and a key are long and close together, $|q|^2 - 2qk + |k|^2$ is a small difference of
# large numbers. Below, keys lie far from the origin. The library takes the product to choose a few more candidates than k, and computes
# their distances again, difference by difference.

# %% tags=["solution-only"]
from memcourse.exact_search import nearest

keys, queries = torch.randn(1000, 8) + 300, torch.randn(5, 8) + 300
exact = ((queries[:, None].double() - keys.double()) ** 2).sum(dim=-1).sort(dim=1).values[:, :3]  # (5, 3)
ours, library = nearest_in_blocks(queries, keys.split(100), 3)[0], nearest(queries, keys, 3)[0]
print(f"the product is off by more than 0.01:           {((ours - exact).abs().max() > 0.01).item()}")
print(f"the library is off by less than a thousandth:   {((library - exact).abs().max() < 1e-3).item()}")

# %% [markdown]
# ## The limit
#
# `make_world(n, seed)` makes the world that exercise 4.6 asks about. A context is a fact's direction and some noise; the next token is
# the fact's own nine times of ten. The model knows the 16 most frequent facts, and gives every token 1/64 where another fact comes.

# %%
from memcourse import interpolate, knn_log_prob


def make_world(n, seed, width=16, n_facts=512, n_tokens=64):
    """hidden (n, 16), token (n,) that follows, and log_p_model (n,) that the model gives to it."""
    generator = torch.Generator().manual_seed(seed)
    direction = F.normalize(torch.randn(n_facts, width, generator=generator), dim=-1)
    told = torch.randint(n_tokens, (n_facts,), generator=generator)
    often = 1 / torch.arange(1, n_facts + 1)  # fact i comes 1/i as often as the first
    fact = often.multinomial(n, replacement=True, generator=generator)
    hidden = direction[fact] + 0.5 * torch.randn(n, width, generator=generator) / width**0.5
    other = torch.randint(n_tokens, (n,), generator=generator)
    token = torch.where(torch.rand(n, generator=generator) < 0.9, told[fact], other)
    right = 0.9 * (token == told[fact]) + 0.1 / n_tokens
    return hidden, token, torch.where(fact < 16, right, 1 / n_tokens).log()

# %% tags=["solution-only"]
grid = [step / 10 for step in range(10)]


def losses(n, own, seed):
    """The mean loss at every weight, with n entries in the datastore."""
    hidden, token, log_p_model = make_world(n + 512, seed)
    store = Datastore(16)
    store.add(hidden[:n], token[:n])
    asked = slice(0, 512) if own else slice(n, n + 512)
    near = store.search(hidden[asked], 32)
    log_p_knn = knn_log_prob(near.distances, near.values, token[asked], temperature=0.1)
    return [-interpolate(log_p_model[asked], log_p_knn, weight).mean().item() for weight in grid]


settings = {"100 entries": (100, False), "1000 entries": (1000, False), "10000 entries": (10_000, False), "its own text": (1000, True)}
curves = {name: torch.tensor([losses(n, own, seed) for seed in range(3)]) for name, (n, own) in settings.items()}
for name, table in curves.items():
    print(f"{name:14} the best weight is {grid[table.mean(dim=0).argmin()]}")
few = curves["100 entries"].mean(dim=0)
print(f"harmful, 100   from a weight of {grid[(few > few[0]).nonzero()[0].item()]}")
fig = figures.curves(
    {name: (grid, table) for name, table in curves.items()},
    x="weight of the neighbours",
    y="loss (nats a token)",
    title="The more the datastore covers, the more it may say",
)
figures.show(fig, "Loss against weight: with 100 entries lowest near 0.2, with 1000 near 0.6, with 10000 near 0.8; on its own text it falls to the end.")

# %% exercise="4.6"
best_weight = {"100 entries": 0.2, "1000 entries": 0.6, "10000 entries": 0.8, "its own text": 0.9, "harmful, 100": 0.5}

# %% [markdown] tags=["solution-only"]
# A weight that was tuned for one datastore is wrong for another: 0.8, the best for ten thousand entries, makes a hundred of them worse
# than none. A curve of kNN-LM against the size of its datastore that keeps one weight shows this mistake, and not the method. And a
# weight tuned on the stored text itself says that the model can be thrown away.

# %% [markdown]
# ## A new domain
#
# The course's small model of Python's documentation, and two kinds of text for exercise 4.7: documentation that it has not read, and a
# catalogue of plants which do not exist. The check asks about another invented text, and a model whose vectors are twice as long, so that
# what you write must choose its own limits.

# %% tags=["nbval-check-output"]
def make_catalogue(seed, n):
    """n sentences on the same 60 plants, the plants in an order of their own."""
    names = [f"{name} {kind}" for name in "Abra Bosk Cirra Dalm Etta Fyrn Grell Hask Ilva Jorn".split() for kind in "fern lily moss reed sedge vine".split()]
    color, month, soil = "red white yellow blue".split(), "April May June July".split(), "sand clay chalk peat".split()
    facts = torch.randint(4, (60, 3), generator=torch.Generator().manual_seed(0))
    generator, sentences = torch.Generator().manual_seed(seed), []
    for plant, kind in zip(torch.randint(60, (n,), generator=generator), torch.randint(3, (n,), generator=generator)):
        a, b, c = facts[plant]
        says = [f"blooms in {month[a]}.", f"has {color[b]} petals.", f"grows on {soil[c]}."]
        sentences.append(f"The {names[plant]} {says[kind]}")
    return " ".join(sentences)


def in_rows(text, n):
    """The first n rows of 32 tokens, in random order: (n, 32)."""
    ids = tokenizer.encode(text)
    rows = ids[: len(ids) // 32 * 32].view(-1, 32)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))][:n]


model, tokenizer = docs_model()
documentation = {
    part: "\n\n".join(text for name, text in corpora.topics() if corpora.part_of(name) == part) for part in ("valid", "test")
}
new, new_test = in_rows(make_catalogue(1, 900), 120), in_rows(make_catalogue(2, 300), 24)  # (120, 32), (24, 32)
old, old_test = in_rows(documentation["valid"], 90), in_rows(documentation["test"], 40)  # (90, 32), (40, 32)
print(make_catalogue(1, 3))

# %% exercise="4.7"
def learn_domain(model, new, old):
    """A KNNLM around `model` that knows the text `new`, and is no worse on text like `old`.

    model: a MemoryTransformer, whose weights stay as they are; its vectors are model.config["d_model"] wide.
    new: (rows, T) tokens to be memorised, a text in each row.
    old: (rows, T) tokens of what the model is good at; it has not read them, so they can be used to choose.
    -> a KNNLM, whose `weight` may be a function: (near: Neighbors) -> a weight for each query, (...), from 0 to 1.
    near.distances is (..., k), the nearest first.
    """
    knn = KNNLM(model, Datastore(model.config["d_model"]), k=8)
    knn.memorize(new)
    limit = knn.neighbors(old).distances[..., 0].flatten().quantile(0.03)  # few old contexts come nearer than this
    knn.weight = lambda near: 0.5 * (near.distances[..., 0] < limit)
    return knn

# %% tags=["solution-only"]
knn = learn_domain(model, new, old)
alone = KNNLM(model, Datastore(model.config["d_model"]))
for name, text in {"catalogue": new_test, "documentation": old_test}.items():
    share = knn.perplexity(text) / alone.perplexity(text)
    print(f"unseen {name:14} at most a 40th of the model's perplexity: {share <= 1 / 40!s:5}  at most 5 % above it: {share <= 1.05}")
knn.weight = 0.5
share = knn.perplexity(old_test) / alone.perplexity(old_test)
print(f"with a constant weight of 0.5, unseen documentation is at least a third worse: {share > 4 / 3}")

# %% [markdown] tags=["solution-only"]
# A weight of 1/2 costs a token log 2 at most, and 3 % of the old tokens are near enough to pay it: about 2 %, at worst.
# `knn.tune(held_out, buckets=8)` finds a weight for each of eight ranges of distances by itself; but it minimises the mean loss of what it
# is given, and may pay with one domain for another.
#
# The model has never heard of these plants, and not one of its weights has changed. Below, both end sentences that the catalogue knows.
# The nearest neighbour is near in such a context, and says how the sentence went on; the model alone goes on about Python.

# %% tags=["solution-only"]
knn = learn_domain(model, new, old)
facts = set(make_catalogue(1, 900).split(". "))
right = {"the model": 0, "with the datastore": 0}
for plant in ("Bosk lily", "Abra fern", "Hask vine", "Cirra moss", "Grell sedge", "Etta reed"):
    prompt = tokenizer.encode(f"The Ilva vine blooms in May. The {plant}")[None]  # (1, T)
    for name, reader in zip(right, (model, knn)):
        sentence = tokenizer.decode(reader.generate(prompt, 12)[0]).split(". ")[1]
        right[name] += sentence in facts
print(f"the model ends none of 6 sentences as the catalogue does: {right['the model'] == 0}")
print(f"with the datastore, at least 3 of 6 are in the catalogue: {right['with the datastore'] >= 3}")
