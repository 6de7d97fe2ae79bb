# %% [markdown]
# # 02 Exercises: key-value memory
#
# Five exercises, from pencil and paper to a store that is full. Each has a stub, three hints and a check that answers in this
# notebook; a check that says "not attempted" costs nothing, so take them in any order. What chapter 02 defines is used here
# without a word: `query`, `keys`, `values`, the weights of an address, the sharpness, and the sizes q (queries), n (slots),
# d (width of a key), v (width of a value).

# %%
from memcourse.course import check, figures, hint, setup
device = setup("0.1.0", seed=0)

# %%
import torch
import torch.nn.functional as F

from memcourse import KeyValueStore

# %% [markdown]
# ## Read and write

# %% exercise="2.1"
predicted_reads = {
    "dot": "b",  # 1 * 3 + 0 * 4 = 3, against 2 and 0: b points elsewhere, but it is long
    "cosine": "a",  # 1, against 3/5 and 0
    "twice_as_sharp": 25,  # the ratio is exp(sharpness * (1 - 3/5)), and doubling the exponent squares it
    "zero_query": 1 / 3,  # all three cosines are 0
    "flat_top_two": 1 / 2,  # two scores of 0 share the weight; the third key has none
    "written": 5,  # 8 * (1 - 1/2 * 1) + 1/2 * 2
}

# %% [markdown] tags=["solution-only"]
# A dot product lets a key shout: whoever writes long keys is found by every query that is not turned away. The cosine takes
# that away, and with it every way to say "nothing here": a query of zeros still hands out a weight of 1, and a sharpness has to come
# from somewhere else, a parameter or the network. The write with weight 1/2 lies between leaving the slot (8) and overwriting it (2).

# %% tags=["solution-only"]
from memcourse.key_value import address, erase_and_add

query, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
for similarity in ("dot", "cosine"):
    print(f"{similarity:15} {'abc'[address(query, keys, similarity=similarity).argmax().item()]}")
sharpness = torch.tensor(5.0).log() / (1 - 3 / 5)  # a weighs 5 times as much as b
a, b, _ = address(query, keys, similarity="cosine", sharpness=2 * sharpness)[0]
print(f"twice_as_sharp  {(a / b).item():.2f}")
print(f"zero_query      {address(0 * query, keys, similarity='cosine', sharpness=3.0)[0, 0].item():.3f}")
print(f"flat_top_two    {address(query, keys[:2], similarity='cosine', sharpness=0.0, top_k=2)[0, 0].item():.3f}")
written = erase_and_add(torch.tensor([[8.0]]), torch.tensor([0.5]), torch.tensor([1.0]), torch.tensor([2.0]))
print(f"written         {written.item():.3f}")

# %% exercise="2.2"
def cosine_address(query, keys, sharpness):
    """Weights of every query over every slot, softmax over the slots of sharpness * cosine(query, key).

    query: (q, d), keys: (n, d), sharpness: a number, 0 or more -> (q, n), rows sum to 1.
    The cosine of a vector of zeros with anything is 0, with no NaN in the value or in any gradient.
    """
    query, keys = (x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12) for x in (query, keys))  # each row of length 1, or 0
    return (sharpness * query @ keys.T).softmax(dim=-1)  # (q, n)

# %% [markdown] tags=["solution-only"]
# Cosines lie between -1 and 1, so the sharpness alone says how firmly a query can look: no key can weigh more than
# $e^{2\beta}$ times as much as another. Below, one key fits exactly and the others are random. A sharpness that is enough for 10 slots
# is not enough for 1000, which together outweigh the one that fits.

# %% tags=["solution-only"]
sharpness_grid = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0]


def weight_of_the_match(n, sharpness, seed):
    """The weight of a key that equals the query, among n random keys of width 32."""
    keys = torch.randn(n, 32, generator=torch.Generator().manual_seed(seed))
    return cosine_address(keys[:1], keys, sharpness)[0, 0].item()


weights = {
    f"{n} slots": torch.tensor([[weight_of_the_match(n, beta, seed) for beta in sharpness_grid] for seed in range(3)])
    for n in (10, 100, 1000)
}
at_five = {name: table[:, sharpness_grid.index(5.0)] for name, table in weights.items()}
print(f"at sharpness 5, the match among 10 slots has more than 0.8 of the weight: {(at_five['10 slots'] > 0.8).all().item()}")
print(f"at sharpness 5, the match among 1000 slots has less than 0.2 of it: {(at_five['1000 slots'] < 0.2).all().item()}")
fig = figures.curves(
    {name: (sharpness_grid, table) for name, table in weights.items()},
    x="sharpness",
    y="weight of the key that fits",
    title="More slots need a sharper query",
    log_x=True,
    levels={"half": 0.5},
)
figures.show(fig, "Weight of the exact match against sharpness, three rising curves: 10 slots reach half first, 1000 slots need a larger sharpness.")

# %% exercise="2.3"
def erase_and_add(values, weights, erase, add):
    """One write of a head: v_i <- v_i * (1 - w_i e) + w_i a, for every slot i.

    values: (n, v), weights: (n,), erase: (v,), add: (v,); weights and erase are between 0 and 1
    -> the new values (n, v).  The caller's values stay as they are.
    """
    weights = weights[:, None]  # (n, 1)
    kept = values * (1 - weights * erase)  # faults 1 and 2: the weight was missing, and what was added was erased, too
    return kept + weights * add  # fault 3: += and *= changed the caller's tensor; this is a new one

# %% tags=["solution-only"]
values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
one_slot, add = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([8.0, 9.0])
print("erase 1, weight 1 is an overwrite: ", erase_and_add(values, one_slot, torch.ones(2), add).tolist())
print("with erase 0, it is added on top:  ", erase_and_add(values, one_slot, torch.zeros(2), add).tolist())
print("erase and add the first part alone:", erase_and_add(values, one_slot, torch.tensor([1.0, 0.0]), torch.tensor([8.0, 0.0])).tolist())
print("a write at no slot changes nothing:", torch.equal(erase_and_add(values, 0 * one_slot, torch.ones(2), add), values))

# %% [markdown]
# ## Many slots

# %% exercise="2.4"
def top_k_of_sums(scores_1, scores_2, k):
    """The k largest of all sums scores_1[i] + scores_2[j], the largest first, and their slots i * m + j.

    scores_1: (n,), scores_2: (m,), k: 1 to n * m -> (sums, slots): (k,), (k,) integers.
    A sum among the k best has its parts among the k best of their lists: k better parts would make k better sums.
    """
    n, m = len(scores_1), len(scores_2)
    first, second = scores_1.topk(min(k, n)), scores_2.topk(min(k, m))
    sums = first.values[:, None] + second.values  # (k, k), or fewer
    slots = first.indices[:, None] * m + second.indices
    best = sums.flatten().topk(k)
    return best.values, slots.flatten()[best.indices]

# %% tags=["solution-only"]
n, k = 256, 16
halves = torch.randn(2, n)
sums, slots = top_k_of_sums(*halves, k)
everything = (halves[0][:, None] + halves[1]).flatten().topk(k)
print(f"the same slots as brute force: {torch.equal(slots, everything.indices)}")
print(f"numbers looked at: {2 * n + k * k} instead of {n * n}")
rank_1 = 1 + (halves[0] > halves[0][slots // n, None]).sum(dim=1)  # (k,), counted from 1
rank_2 = 1 + (halves[1] > halves[1][slots % n, None]).sum(dim=1)
print(f"the product of the two ranks is at most {k} for each of them: {(rank_1 * rank_2 <= k).all().item()}")

# %% [markdown] tags=["solution-only"]
# The last line says that even k * k sums are more than it takes: where the ranks are r and s, there are r s sums at
# least as large, so r s cannot be more than k. That leaves about k ln k. The table of k * k is faster all the same, for it is one call.

# %% [markdown]
# ## The limit
#
# `make_stream` makes the streams that exercise 2.5 asks about.

# %%
def make_stream(asked, seed, n_facts=256, width=16):
    """key, value: (256, 16) each, and question: (256, 2), the facts that are asked for after fact t has come in."""
    generator = torch.Generator().manual_seed(seed)
    key, value = F.normalize(torch.randn(2, n_facts, width, generator=generator), dim=-1)
    chance, newest = torch.rand(n_facts, 2, generator=generator), torch.arange(n_facts)[:, None]
    if asked == "popular":
        question = 8 * (chance * (newest // 8 + 1)).long()  # facts 0, 8, 16, ... as far as they are known
    else:
        question = (newest - (chance * 12).long()).clamp(min=0)  # one of the last 12
    return key, value, question

# %% tags=["solution-only"]
def answered(asked, evict, capacity, seed):
    """The share of questions to which the store gives the right value."""
    key, value, question = make_stream(asked, seed)
    store = KeyValueStore(capacity, 16, 16, evict=evict)
    right = 0
    for t in range(256):
        store.put(key[t], value[t])
        found = store.get(key[question[t]], similarity="cosine", top_k=1)  # (2, 16)
        right += (found == value[question[t]]).all(dim=-1).sum().item()
    return right / question.numel()


grid = [4, 8, 16, 32, 64, 128, 256]
shares = {
    f"{asked}, {evict}": torch.tensor([[answered(asked, evict, size, seed) for size in grid] for seed in range(3)])
    for asked in ("popular", "recent")
    for evict in ("oldest", "least_used")
}
for name, table in shares.items():
    enough = (table.mean(dim=0) >= 0.9).tolist().index(True)
    print(f"{name:20} 90 % from a capacity of {grid[enough]}")
fig = figures.curves(
    {name: (grid, table) for name, table in shares.items()},
    x="capacity of the store",
    y="share of questions answered",
    title="What is asked for decides who may go",
    log_x=True,
    levels={"90 %": 0.9},
)
figures.show(fig, "Share answered against capacity: recent questions need 16 slots with oldest and 256 with least used; popular ones the reverse, 256 and 32.")

# %% exercise="2.5"
smallest_capacity = {"popular, oldest": 256, "popular, least_used": 32, "recent, oldest": 16, "recent, least_used": 256}

# %% [markdown] tags=["solution-only"]
# An eviction is a guess at what will be asked next. Oldest guesses that only the recent matters; least used, that what was
# asked for before is asked for again, so that yesterday's favourites never leave, and newcomers push each other out. Each needs
# nearly all slots where its guess is wrong. Later chapters learn what to keep (LM2's gates), or keep everything and search fast (kNN-LM).
