# %% [markdown]
# # 00 What is memory?
#
# Every memory in neural networks is **an address, a read, a write and a way to forget**. This chapter is the map of the course: the words for
# kinds of memory, each pinned to a mechanism that you can point at in a model; three equations; and one table, to which every later chapter adds its row. It
# hardly computes. Read it once in half an hour, and come back when a word is unclear.
#
# | you want | it is in |
# |---|---|
# | to know whether you know enough to start | [Are you ready?](#Are-you-ready?) five minutes, with answers |
# | to see how the exercises work | [How exercises and checks work](#How-exercises-and-checks-work) |
# | a letter or a word, also in Korean or Chinese | [Notation and glossary](#Notation-and-glossary) |
# | to know what comes where | [The table](#The-table) |
# | papers, tools and courses | [Resources](#Resources) |

# %%
from memcourse.course import check, figures, hint, setup
device = setup("0.1.0", seed=0)

# %%
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F

from memcourse import CausalAttention, attend
from memcourse import memory as states

# %% [markdown]
# ## A model that was told, and does not know
#
# Here is a language model in eight lines. It counts, in its training text, which word follows each pair of words, and says the one
# that came most often. The counts are its **weights**; the last two words are all that it sees, its **window**.


# %%
class CountingModel:
    def __init__(self, text):
        self.counts = defaultdict(Counter)  # the weights: pair of words -> how often each word came next
        self.learn(text)

    def learn(self, text):
        words = text.split()
        for first, second, following in zip(words, words[1:], words[2:], strict=False):
            self.counts[first, second][following] += 1

    def next_word(self, words):
        following = self.counts[words[-2], words[-1]]
        return following.most_common(1)[0][0] if following else None


training_text = """grass is green . snow is white . my name is anna . my name is anna . my name is ben .
the cat sat on the mat . the capital of france is paris . the capital of japan is tokyo ."""

model = CountingModel(training_text)
conversation = "hello . my name is min . we walked home , the grass was wet , and my name is".split()
print("grass is ...", model.next_word(["grass", "is"]))
print("... the grass was wet , and my name is ...", model.next_word(conversation))

# %% [markdown]
# It knows what it was taught: grass is green. But it was told a name a few words ago, and calls Min by the name that most people in its training text have.
# A large model does the same as soon as what it was told has left its window, and just as fluently. So it has *a* memory, and lacks *another*. Which one, and
# where would it be put? Three answers are possible, and each is somebody's research programme:


# %%
def look_back(words):
    """Memory 1, the context: what came after these two words when they last stood in this conversation?"""
    for t in range(len(words) - 3, 0, -1):
        if words[t - 1 : t + 1] == words[-2:]:
            return words[t + 1]


print("1 look back in the conversation: my name is", look_back(conversation))

store = {}  # Memory 2, a store beside the model: who -> what
store["this user", "name"] = "min"
print("2 look it up in a store:         my name is", store["this user", "name"])

taught, lessons = CountingModel(training_text), 0  # Memory 3, the weights
while taught.next_word(["name", "is"]) != "min":
    taught.learn("my name is min .")
    lessons += 1
print(f"3 train on it, {lessons} times over:     my name is", taught.next_word(["name", "is"]))

# %% [markdown]
# All three know the name now. They differ in what happens next. Min comes back the next day and starts a new conversation; then somebody else does.

# %%
new_conversation = "good morning . my name is".split()


def show(word):
    return word if word else "(does not know)"


print(f"{'':17}{'the same talk':18}{'Min, next day':18}a stranger, asked for a name")
print(
    f"{'1 the context':17}{show(look_back(conversation)):18}{show(look_back(new_conversation)):18}{show(look_back(new_conversation))}"
)
print(
    f"{'2 a store':17}{store['this user', 'name']:18}{store['this user', 'name']:18}{show(store.get(('a stranger', 'name')))}"
)
print(
    f"{'3 the weights':17}{taught.next_word(conversation):18}{taught.next_word(new_conversation):18}{taught.next_word(new_conversation)}"
)

# %% [markdown]
# The context is right and gone by tomorrow. The store is right tomorrow, for the one whom it concerns, as long as somebody decides what goes into it and under which key. The weights
# learned slowly, and for everybody: each stranger is called Min now, and Anna has lost her name. None of the three is best. They are
# *different memories*, and the words for the difference are old.
#
# ## The map
#
# Psychology sorts memory by three questions. Asked about a model, each has a plain answer.

# %% tags=["hide-input"]
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch, PathPatch
from matplotlib.path import Path as Curve

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#B34700", "#00704F", "#666666"
CONCEPTS = [  # family, color, [(question, [(concept, mechanism, chapters)])]
    (
        "memory",
        BLUE,
        [
            (
                "for how long?",
                [
                    ("short-term", "a state: cache, vector, bank", "01 03 06–08"),
                    ("long-term", "the weights; a datastore on disk", "04 05"),
                ],
            ),
            (
                "can you point at it?",
                [
                    ("explicit", "slots, an address for each item", "01 02 04–06"),
                    ("implicit", "weights; one vector or matrix for all", "03 07"),
                ],
            ),
            (
                "facts or events?",
                [
                    ("semantic", "what examples share: the weights", "00"),
                    ("episodic", "an entry for each event: a datastore", "01 04 05"),
                ],
            ),
        ],
    ),
    (
        "attention",
        ORANGE,
        [
            (
                "over what?",
                [
                    ("self-attention", "the sequence reads itself", "01"),
                    ("cross-attention", "the sequence reads another memory", "01 06"),
                ],
            ),
        ],
    ),
    (
        "knowledge",
        GREEN,
        [
            (
                "in which form?",
                [
                    ("knowledge graph", "a table of (head, relation, tail)", "00"),
                    ("embedding", "a vector for each entity and relation", "00"),
                    ("knowledge-enhanced\nlanguage model", "a store beside the model's own odds", "00 04"),
                ],
            ),
        ],
    ),
]


def box(ax, x, y, width, height, text, color, filled=True, **font):
    face, ink = (color, "white") if filled else ("white", figures.INK)
    ax.add_patch(
        FancyBboxPatch(
            (x, y - height / 2),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.09",
            facecolor=face,
            edgecolor=color,
            linewidth=1.4,
        )
    )
    ax.text(x + width / 2, y, text, color=ink, ha="center", va="center", **font)


def link(ax, start, end, color):
    middle = (start[0] + end[0]) / 2
    curve = Curve(
        [start, (middle, start[1]), (middle, end[1]), end], [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    )
    ax.add_patch(PathPatch(curve, facecolor="none", edgecolor=color, linewidth=1.4))


fig = Figure(figsize=(figures.WIDTH, 5.9), layout="none")
ax = fig.add_axes((0.005, 0.0, 0.99, 0.93))
ax.set(xlim=(-0.03, 10.7), ylim=(8.05, -0.75))
ax.set_axis_off()
headings = {0.0: "family", 1.93: "the question", 4.2: "the word", 6.33: "in a model, it is", 10.68: "chapter"}
for x, words in headings.items():
    ax.text(x, -0.5, words, fontsize=8.5, color=GREY, ha="right" if words == "chapter" else "left")
y = 0.0
for family, color, questions in CONCEPTS:
    rows = []
    for question, words in questions:
        places = [y + 0.68 * i for i in range(len(words))]
        rows.append((question, words, places))
        y = places[-1] + 0.76
    every = [place for _, _, places in rows for place in places]
    center = (every[0] + every[-1]) / 2
    box(ax, 0, center, 1.42, 0.62, family, color, fontsize=10, weight="bold")
    for question, words, places in rows:
        height = sum(places) / len(places)
        link(ax, (1.42, center), (1.88, height), color)
        ax.text(1.93, height, question, fontsize=9, style="italic", va="center")
        for place, (word, mechanism, chapters) in zip(places, words, strict=True):
            link(ax, (3.86, height), (4.2, place), color)
            box(
                ax, 4.2, place, 2.0, 0.54, word, color, filled=False, fontsize=7.5 if "\n" in word else 9, weight="bold"
            )
            ax.text(6.33, place, mechanism, fontsize=8.5, va="center")
            ax.text(10.68, place, chapters, fontsize=8.5, va="center", ha="right", color=color, weight="bold")
    y += 0.16
fig.suptitle(
    "Three questions about a memory, and what answers them in a model",
    x=0.005,
    y=0.985,
    ha="left",
    fontsize=11,
    weight="bold",
)
figures.show(
    fig,
    "A tree in three families. Memory: short-term or long-term, explicit or implicit, semantic or episodic. Attention: self or cross. Knowledge: graph, embedding, in a language model. Each of the eleven words has its mechanism and the chapters where it is taught.",
)

# %% [markdown]
# The Chinese guide that this course grew from draws the families and the words of this map; the questions and the mechanisms are the course's. Now each question, with a test that can be run.
#
# ### For how long? Short-term and long-term
#
# **Short-term memory** (also **working memory**) is what is lost when the work is over: a state that begins empty with each sequence. **Long-term memory** is still there for the next sequence. In a
# Transformer, the cache of keys and values is short-term and the weights are long-term. In this library a running state is never kept on the module; it goes in and comes out, and `None` is the empty one:

# %%
layer = CausalAttention(16, 2)
told, asked = torch.randn(1, 5, 16), torch.randn(1, 1, 16)  # five words, then one more
with torch.no_grad():
    _, state = layer(told)
    with_state, _ = layer(asked, state)
    without, _ = layer(asked, None)
    print("the sixth word's output depends on the first five:", not torch.allclose(with_state, without))

    with tempfile.TemporaryDirectory() as folder:
        states.save(state, Path(folder) / "state.safetensors")
        woken = states.load(Path(folder) / "state.safetensors", like=state)
    print("the state, saved to disk and read again, answers the same:", torch.equal(layer(asked, woken)[0], with_state))

# %% [markdown]
# So the difference is not in the mechanism. The same cache is short-term if it is dropped after the sentence and long-term if it is saved and given back. **What decides is when it is emptied.**
#
# This settles a question that one of the course's sources asks. The LM2 paper introduces its memory bank as long-term memory; the Korean reader objects that it is an aid beside the parameters, which are not updated, and that
# *short-term* would be the right word. By the test above the reader is right whenever the bank is emptied between documents: it outlives the attention window, which is what the paper means, and does not outlive the document. It is a
# short-term memory with a longer term. Saved and carried on, the same bank would be long-term. The parameters that decide *how* to write into it are long-term in either case. Here is what each memory of the course survives:

# %% tags=["hide-input"]
SURVIVES = ["the next\nword", "the end of\nthe window", "the end of the\ndocument", "the end of\nthe program"]
MEMORIES = [  # name, how many of SURVIVES, explicit?, chapter
    ("attention with a window", 1, True, "01"),
    ("attention, whole context", 2, True, "01"),
    ("hidden state of a gated unit", 2, False, "03"),
    ("feedback vectors of TransformerFAM", 2, True, "08"),
    ("matrix of Infini-attention", 2, False, "07"),
    ("memory bank of LM2, emptied", 2, True, "06"),
    ("memory bank of LM2, carried on", 3, True, "06"),
    ("datastore of kNN-LM or ResMem", 4, True, "04 05"),
    ("weights", 4, False, "all"),
]
fig = Figure(figsize=(figures.WIDTH, 3.7))
ax = fig.subplots()
for row, (_, survives, explicit, chapter) in enumerate(MEMORIES):
    color = "#0072B2" if explicit else "#E69F00"
    ax.barh(
        row,
        survives,
        height=0.6,
        color=color if explicit else "white",
        edgecolor=color,
        hatch=None if explicit else "////",
        linewidth=1.4,
    )
    ax.text(survives + 0.06, row, chapter, va="center", fontsize=9)
ax.set(yticks=range(len(MEMORIES)), xticks=range(1, 5), xlim=(0, 4.5), xlabel="what it survives")
ax.set_yticklabels([name for name, *_ in MEMORIES])
ax.set_xticklabels(SURVIVES)
ax.set_title("Most memories end with the document")
ax.axvline(2.5, color=figures.INK, linewidth=1.2, linestyle=":")
ax.text(2.44, -0.85, "short-term", ha="right", fontsize=9, style="italic")
ax.text(2.56, -0.85, "long-term", ha="left", fontsize=9, style="italic")
ax.invert_yaxis()
ax.set_ylim(top=-1.2)
ax.grid(False)
ax.tick_params(left=False)
solid = Patch(facecolor="#0072B2", label="explicit")
hatched = Patch(facecolor="white", edgecolor="#E69F00", hatch="////", linewidth=1.4, label="implicit")
ax.legend(handles=[solid, hatched], loc="lower right", bbox_to_anchor=(1.0, 0.3))
figures.show(
    fig,
    "A bar for each of nine memories, as long as what it survives: attention with a window only the next words; caches, hidden states, feedback, Infini-attention's matrix and an emptied bank the window; a bank carried on the document; datastore and weights also the program. The number is the chapter; solid bars are explicit, hatched ones implicit.",
)

# %% [markdown]
# ### Can you point at it? Explicit and implicit
#
# **Explicit memory** has an address for each item: you can list what is stored, change one thing, delete one thing. **Implicit memory** holds everything in the same numbers. Eight facts, stored both ways: as eight rows, and in one
# matrix $M$ that is solved for $k_i M = v_i$. Both answer all eight questions without error. Then one fact has to go:

# %%
key, value = F.normalize(torch.randn(8, 32), dim=-1), torch.randn(8, 16)  # eight facts: (8, 32) -> (8, 16)
matrix = torch.linalg.pinv(key) @ value  # (32, 16): all the facts in one matrix
print("the matrix answers all eight:", torch.allclose(key @ matrix, value, atol=1e-4))

others = torch.tensor([0, 1, 2, 4, 5, 6, 7])  # everything but fact 3
key_left, value_left = key[others], value[others]  # explicit: drop its row
weakened = matrix.clone()
weakened[key[3].abs() > 0.15] = 0  # implicit: drop the rows of M that fact 3 leans on most
for name, answer in {
    "explicit": attend(key_left, key_left, value_left, scale=50.0)[0],
    "implicit": key_left @ weakened,
}.items():
    changed = ((answer - value_left).norm(dim=-1) > 0.1).sum().item()
    print(f"{name}: of the 7 other facts, forgetting this one has changed {changed}")

# %% [markdown]
# This is why it is hard to make a trained network forget one thing, or learn one, and why chapters 04 and 05 keep facts outside. The other side: the matrix has $32 \times 16$ numbers however
# many facts it is given, and the rows grow.
#
# ### Facts or events? Semantic and episodic
#
# **Episodic memory** holds single events: on Saturday there were five cups of coffee. **Semantic memory** holds what events have in common: about two cups a day. A set of episodes contains both, and the
# sharpness of the read decides which one comes out:

# %%
days = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
day = torch.eye(7)  # keys, (7, 7): one direction for each day
cups = torch.tensor([1.0, 2.0, 1.0, 2.0, 2.0, 5.0, 1.0])[:, None]  # values, (7, 1)
saturday = day[5:6]  # the query, (1, 7)
for sharpness, kind in ((20.0, "episodic"), (0.1, "semantic")):
    read, weights = attend(saturday, day, cups, scale=sharpness)
    print(f"sharpness {sharpness:4}: {read.item():.1f} cups ({kind}); weight on Saturday {weights[0, 5].item():.2f}")

# %% [markdown]
# A network's weights are an average over examples, so they hold the semantic part best and lose rare events first. A datastore with an entry for each example holds the episodes. The
# language model of chapter 04 has both, and measures which words gain.
#
# ## What each generation could remember
#
# The same three questions, over the years. A generation did not replace the one before: each new memory was put beside the old ones, and all of them are in use.

# %% tags=["hide-input"]
LANES = [  # lane, color, [(year, name, what it remembers, place of the label)]
    (
        "one state",
        BLUE,
        [
            (1990, "Elman", "one vector", 1),
            (1997, "LSTM", "one vector, gated", -1),
            (2000, "forget gate", "can let go", 1),
            (2024, "Mamba", "gates see the input alone", 1),
        ],
    ),
    (
        "the context",
        ORANGE,
        [
            (2015, "Bahdanau", "each word of a sentence", 1),
            (2017, "Transformer", "reads itself", -1),
            (2019, "GPT-2", "1,024 tokens", 1),
            (2020, "GPT-3", "2,048 tokens", -1),
            (2024, "Llama 3.1", "128K tokens", 1),
        ],
    ),
    (
        "slots written by the model",
        "#56307A",
        [
            (2014, "NTM", "a tape", 1),
            (2015, "Memory networks", "a list of sentences", -1),
            (2022, "RMT", "a few tokens", 1),
            (2024, "TransformerFAM", "feedback vectors", -1),
            (2025, "LM2", "a bank per layer", 1),
        ],
    ),
    (
        "stored examples, looked up",
        GREEN,
        [
            (2017, "Rare events", "one example", 1),
            (2020, "kNN-LM", "103M contexts", 1),
            (2020, "RAG", "texts", -1),
            (2022, "Memorizing Tr.", "262K tokens", -1),
            (2023, "ResMem", "its own errors", 1),
        ],
    ),
    (
        "weights, and matrices used like weights",
        "#5A5A5A",
        [
            (1982, "Hopfield", "patterns", 1),
            (2013, "TransE", "a graph in vectors", -1),
            (2019, "ERNIE", "a graph in an LM", 1),
            (2021, "FFN as memory", "key-value weights", -1),
            (2024, "Infini-attention", "a matrix a head", 1),
        ],
    ),
]


def at(year):
    """Years before 2012 take little room."""
    return (year - 1980) / 32 * 4.4 if year < 2012 else 4.4 + (year - 2012) * 0.645


fig = Figure(figsize=(figures.WIDTH, 6.3), layout="none")
ax = fig.add_axes((0.005, 0.085, 0.99, 0.865))
left, right = -0.6, at(2026) + 0.3
ax.set(xlim=(left, right), ylim=(4.52, -0.5))
for lane, (name, color, entries) in enumerate(LANES):
    ax.axhspan(lane - 0.47, lane + 0.47, color=color, alpha=0.07, linewidth=0)
    ax.plot([left, right], [lane, lane], color=color, linestyle="-", marker="", linewidth=1.2, alpha=0.6)
    ax.text(left + 0.1, lane - 0.44, name, color=color, weight="bold", fontsize=9, va="top")
    for year, who, what, side in entries:
        ax.plot(at(year), lane, "o", color=color, markersize=6, markeredgecolor="white")
        middle = lane - 0.17 if side > 0 else lane + 0.19  # above or below the line
        x = at(year) + {"RAG": -0.2, "Memorizing Tr.": 0.3}.get(who, 0.0)  # neighbours, kept apart
        ax.text(x, middle, who, ha="center", va="bottom", fontsize=7.8, weight="bold")
        ax.text(x, middle + 0.015, what, ha="center", va="top", fontsize=7.4)
ticks = [1980, 1990, 2000, 2012, 2014, 2016, 2018, 2020, 2022, 2024]
ax.set_xticks([at(year) for year in ticks], ticks)
ax.set(yticks=[], xlabel="year of publication (the years before 2012 are drawn closer together)")
ax.spines["left"].set_visible(False)
ax.grid(False)
fig.suptitle(
    "No kind of memory was dropped: each became a lane", x=0.005, y=0.985, ha="left", fontsize=11, weight="bold"
)
figures.show(
    fig,
    "A timeline from 1982 to 2025 in five lanes: one state, the context, slots written by the model, stored examples, and weights. The cell below prints the same entries as text.",
)

# %%
for name, _, entries in LANES:
    print(name)
    for year, who, what, _ in sorted(entries):
        print(f"  {year}  {who}: {what}")

# %% [markdown]
# Two lines meet in this picture. The lane of the context grew by making the same memory larger: from 1,024 tokens to 128 thousand in five years. The other lanes ask what to do when it cannot be made larger, or when what
# matters is not in the context at all. A word on names: the LSTM of 1997 had no forget gate; it was added in 2000, because without one the state can grow over a long stream until the network breaks down.
#
# ## The three equations
#
# | symbol | name | shape |
# |---|---|---|
# | $q$ | query: what is asked for | $(d)$ |
# | $k_i$, $v_i$ | key and value of slot $i$ of $N$ | $(d)$, $(v)$ |
# | $a_i$ | address: the weight of slot $i$ | a number from 0 to 1 |
# | $r_t$ | the read at time $t$ | $(v)$ |
# | $\delta_t$ | what is to be written | $(v)$ |
# | $h_t$, $c_t$ | state and candidate | $(d)$ |
# | $f_t$, $i_t$ | forget gate and input gate, between 0 and 1 | $(d)$ |
#
# **Read.** Address the slots, and take the weighted sum of what they hold: $\;a = \mathrm{address}(q, k), \quad r_t = \sum_i a_i v_i$

# %%
key = torch.eye(3, 4)  # N = 3 slots, d = 4
value = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])  # (3, 2)
query = torch.tensor([0.0, 0.0, 1.0, 0.0])  # asks for slot 2

a = (8 * key @ query).softmax(dim=0)  # (3,): nearly all on slot 2
r = a @ value  # (2,)
print("address:", [round(weight, 2) for weight in a.tolist()], "  read:", [round(number, 1) for number in r.tolist()])
print("the library reads the same:", torch.allclose(attend(query[None], key, value, scale=8.0)[0][0], r))

# %% [markdown]
# **Write.** Add to each slot, in proportion to its address: $\;v_i \leftarrow v_i + a_i\, \delta_t$

# %%
delta = torch.tensor([0.0, -5.0])
value = value + a[:, None] * delta  # (3, 2)
print(
    "slot 2 now holds:",
    [round(number, 1) for number in value[2].tolist()],
    "  slot 0 still:",
    [abs(round(number, 1)) for number in value[0].tolist()],
)

# %% [markdown]
# **Gate.** Keep a share of the old, take in a share of the new: $\;h_t = f_t \odot h_{t-1} + i_t \odot c_t, \quad c_t = \tanh(W [h_{t-1}; x_t] + b)$

# %%
h = torch.tensor([1.0, 1.0])
c = torch.tensor([-1.0, -1.0])
f = torch.tensor([1.0, 0.2])  # first number: keep all; second: keep a fifth
i = torch.tensor([0.0, 0.8])  # first: write nothing; second: write most of it
h = f * h + i * c  # (2,)
print("state:", [round(number, 1) for number in h.tolist()])

# %% [markdown]
# Forgetting is in the second and the third: $\delta_t$ can be negative, and $f_t$ can be small.
#
# **A sentence to correct.** The guide explains $f_t$ as controlling how much of the previous state *is forgotten* (有多少被遗忘). It is the other way round: $f_t$ multiplies what is **kept**, so a forget gate of 1 forgets nothing. The name
# misleads everybody once. The difference is not small:

# %%
steps = torch.arange(0, 31)
as_equation = 0.9**steps  # h_t = f h_{t-1}, with f = 0.9 and nothing written
as_sentence = (1 - 0.9) ** steps  # what it would be if f were the share that is forgotten
fig = figures.curves(
    {
        "0.9 is kept": (steps, as_equation[None]),
        "0.9 is forgotten": (steps, as_sentence[None]),
    },
    x="steps since it was written",
    y="share still in the state",
    title="Read the wrong way round, the memory is gone at once",
)
fig.set_size_inches(figures.WIDTH, 2.9)
figures.show(
    fig,
    "Share of a stored value against steps: with a forget gate of 0.9 as in the equation it halves about every seven steps; read as the share forgotten it is near zero after two.",
)
print(
    "steps until less than half is left:",
    (as_equation >= 0.5).sum().item(),
    "by the equation,",
    (as_sentence >= 0.5).sum().item(),
    "by the sentence",
)

# %% [markdown]
# ## Memory and attention, memory networks and RNNs
#
# **What is the difference between memory and attention?** Attention is a way to *read*: an address by similarity, and a weighted sum. Memory is what there is to be read, with a *write* and a way to *forget*. Attention over the present sequence needs no write of its own, since the
# sequence is simply there; that is why the two words are often mixed up. The same function reads a sequence and a store that was written long before:

# %%
sentence = torch.randn(4, 8)
from_itself, _ = attend(sentence, sentence, sentence)  # self-attention: the memory is the sequence
archive_key, archive_value = torch.randn(100, 8), torch.randn(100, 8)  # written some other day
from_archive, _ = attend(sentence, archive_key, archive_value)  # cross-attention: the memory is the archive
print("one function, two memories:", tuple(from_itself.shape), tuple(from_archive.shape))

# %% [markdown]
# A test to tell them apart: take the input away. What can still be asked was in memory.
#
# **What is the difference between a memory network and an RNN?** An RNN (a recurrent neural network) keeps its past in one state of fixed size, and all of it is rewritten at every step: there is no address, and reading is free. A memory network keeps a list of items and addresses them when a question comes. So the RNN
# must decide what matters *before* it knows the question, and the memory network pays by keeping everything. Here are both, reduced to the bone: facts (who, what) summed into one vector of 64 numbers, each $v$ multiplied by its own key of signs so that it can be taken out again; or kept as rows.


# %%
def answered(n_facts, d=64):
    """Share of n facts that each memory gives back: (one state, slots)."""
    generator = torch.Generator().manual_seed(n_facts)
    key, value = torch.randn(2, n_facts, d, generator=generator).sign()  # (n, d) of -1 and 1
    state = (key * value).sum(dim=0)  # (d,): one vector, h_t = h_{t-1} + k_t * v_t
    from_state = key * state  # (n, d): the question takes its fact out, with the noise of all others
    from_slots = attend(key, key, value, scale=1.0)[0]  # (n, d)
    return [
        ((read @ value.T).argmax(dim=-1) == torch.arange(n_facts)).float().mean().item()
        for read in (from_state, from_slots)
    ]


for n_facts in (2, 8, 32, 128):
    in_state, in_slots = answered(n_facts)
    print(f"{n_facts:4} facts: one state of 64 numbers {in_state:4.0%}   {n_facts} slots {in_slots:4.0%}")

# %% [markdown]
# A memory network can also ask twice. In **several hops**, what was read becomes the next question. Where is the ball? The first hop finds who has it; the second finds where she is.

# %%
names = ["ball", "Mary", "kitchen", "book", "John", "garden"]
word = dict(zip(names, torch.eye(6), strict=True))
facts = [("ball", "Mary"), ("book", "John"), ("Mary", "kitchen"), ("John", "garden")]
key, value = (torch.stack([word[fact[side]] for fact in facts]) for side in (0, 1))  # (4, 6)

u = word["ball"][None]  # (1, 6)
for hop in (1, 2):
    u = attend(u, key, value, scale=8.0)[0]  # the read is the next query
    print(f"hop {hop}:", names[u.argmax()])

# %% [markdown]
# This is the skeleton of an End-to-End Memory Network (Sukhbaatar et al., 2015), which learns keys, values and queries from questions and answers alone. Chapter 02 builds slots that are written as well as read; chapter 03 builds the single state, with gates that
# decide what matters; from chapter 06 on, models have both.
#
# ## Knowledge as memory
#
# A **knowledge graph** stores facts as triples (head, relation, tail). As a memory it is a dictionary: explicit, exact, and silent about everything that nobody wrote down.

# %%
pairs = [
    ("France", "Paris"),
    ("Japan", "Tokyo"),
    ("Italy", "Rome"),
    ("Kenya", "Nairobi"),
    ("Peru", "Lima"),
    ("Korea", "Seoul"),
]
graph = {(country, "capital"): city for country, city in pairs} | {(city, "is in"): country for country, city in pairs}
del graph["Italy", "capital"]  # nobody wrote this one down
print("France, capital:", graph["France", "capital"])
print("Rome, is in:", graph["Rome", "is in"])
try:
    graph["Italy", "capital"]
except KeyError as error:
    print("Italy, capital: KeyError", error)

# %% [markdown]
# A **knowledge embedding** gives each entity and each relation a vector. In **TransE** (Bordes et al., 2013) a relation is a step in space: $h + \ell \approx t$, with $h$, $\ell$, $t$ of shape $(d)$. Asking is then a soft lookup, with the negative squared distance as score. Here it is with $d = 2$, so that it
# can be drawn, trained on the eleven triples that the graph holds (the paper's margin loss is replaced by a softmax over all tails):

# %%
entities = [name for pair in pairs for name in pair]
number = {name: index for index, name in enumerate(entities)}
relations = {"capital": 0, "is in": 1}
head, relation, tail = torch.tensor(
    [(number[h], relations[name], number[t]) for (h, name), t in graph.items()]
).T  # (11,) each


def embed(d, seed):
    torch.manual_seed(seed)
    entity = torch.randn(12, d, requires_grad=True)  # (12, d)
    step = torch.zeros(2, d, requires_grad=True)  # (2, d): a vector for each relation
    optimizer = torch.optim.Adam([entity, step], lr=0.05)
    for _ in range(600):
        arrived = entity[head] + step[relation]  # (11, d): h + l
        scores = -(torch.cdist(arrived, entity) ** 2)  # (11, 12): how near each entity is
        loss = F.cross_entropy(scores, tail)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return entity.detach(), step.detach()


def ask(name, relation, embedding):
    """The entity nearest to h + l, and its weight."""
    entity, step = embedding
    distance = torch.cdist(entity[number[name]][None] + step[relations[relation]], entity)[0] ** 2
    weights = (-distance).softmax(dim=0)
    return entities[weights.argmax()], weights.max().item()


plane = embed(d=2, seed=1)
right = sum(ask(h, name, plane)[0] == t for (h, name), t in graph.items())
print(f"triples of the graph answered rightly: {right} of {len(graph)}")
print("Italy, capital:", ask("Italy", "capital", plane)[0], " (never written down)")
print("with d = 8, from three other starts:", [ask("Italy", "capital", embed(8, seed))[0] for seed in (0, 3, 5)])

# %% tags=["hide-input"]
fig = Figure(figsize=(figures.WIDTH, 3.9))
ax = fig.subplots()
points = plane[0]  # (12, 2)
for country, city in pairs:
    start, end = points[number[country]], points[number[city]]
    missing = country == "Italy"
    ax.annotate(
        "",
        end.tolist(),
        start.tolist(),
        arrowprops={
            "arrowstyle": "-|>",
            "color": "#D55E00" if missing else "#777777",
            "linewidth": 2 if missing else 1.4,
            "linestyle": "--" if missing else "-",
            "shrinkA": 5,
            "shrinkB": 5,
        },
    )
for side, (marker, color, label) in enumerate((("o", "#0072B2", "country"), ("s", "#009E73", "city"))):
    places = points[side::2]
    ax.plot(*places.T, marker, color=color, markersize=7, linestyle="", label=label)
    for name, place in zip(entities[side::2], places, strict=True):
        ax.annotate(name, place.tolist(), xytext=(7, 5), textcoords="offset points", fontsize=9)
ax.set(xlabel="first number of the embedding", ylabel="second number of the embedding")
ax.margins(0.14)
ax.grid(False)
ax.plot([], [], color="#777777", linestyle="-", marker="", linewidth=1.4, label="capital, taught")
ax.plot([], [], color="#D55E00", linestyle="--", marker="", label="capital, not taught")
fig.legend(loc="outside right center")
ax.set_title("Each capital is about one step away, the untaught one too")
figures.show(
    fig,
    "Twelve points in the plane, six countries and six cities. Arrows from each country to its capital are nearly parallel and equally long; the dashed one from Italy to Rome was never taught.",
)

# %% [markdown]
# Rome could be found because the graph said that Rome is in Italy, and one relation turned out to be the other one backwards. In two dimensions this needs some luck: from two of eight starts that we tried, Italy ended up elsewhere; with eight dimensions, from none. This is what an embedding adds to a graph: near things have near vectors, so it can answer what was not stored. The price is on the same page:

# %%
print("graph,     Paris, capital:", graph.get(("Paris", "capital"), "(not stored)"))
answer, weight = ask("Paris", "capital", plane)
print("embedding, Paris, capital: more than a third of the weight on one answer:", weight > 1 / 3)

# %% tags=["nbval-ignore-output"]
print("the answer:", answer)

# %% [markdown]
# A city has no capital. The dictionary is silent, and the soft lookup always answers: its weights sum to 1, whatever was asked.
#
# A **knowledge-enhanced language model** joins a store to the language model. There are three ways to do it:
#
# - *In the input*: look up text and put it before the question. RAG (Lewis et al., 2020) does this with passages of Wikipedia.
# - *In the middle*: mix the vectors of entities into the layers. ERNIE (Zhang et al., 2019) does this with embeddings of a knowledge graph.
# - *At the output*: mix the store's answer with the model's probabilities, $p = \lambda\, p_{\text{store}} + (1 - \lambda)\, p_{\text{LM}}$. kNN-LM (Khandelwal et al., 2020) does this, and chapter 04 builds it.
#
# And there is knowledge that nobody put in by hand: a Transformer's feed-forward layers can themselves be read as key-value memories (Geva et al., 2021). The third way, with the counting model of the first section:


# %%
def mixed(model, words, said, weight):
    """Odds of the next word: the counting model's, mixed with what the store says."""
    counts = model.counts[words[-2], words[-1]]
    odds = Counter({name: (1 - weight) * count / counts.total() for name, count in counts.items()})
    odds[said] += weight
    return odds


model.learn("italy is lovely .")  # all that the text says about italy
said = ask("Italy", "capital", plane)[0].lower()
for weight in (0.0, 0.6):
    best, odds = mixed(model, "the capital of italy is".split(), said, weight).most_common(1)[0]
    print(f"weight of the store {weight}: the capital of italy is {best} ({odds:.0%})")

# %% [markdown]
# ## Four tasks that ask for memory and nothing else
#
# How well a memory works is measured on tasks in which everything but memory is easy. Four of them run through the course. Below, each box is a token
# that the model reads, from left to right; a marked box is one after which it must say the token that stands beneath it.
#
# - **Associative recall**: pairs of a key and a value, then keys again: say their values. It asks for an *address*.
# - **Passkey**: one value behind a mark, far back among filler. It asks for *retention*.
# - **Flip-flop**: write a bit, ignore bits, read the last bit written. It asks for *overwriting*.
# - **Selective copy**: symbols scattered among noise, to be said in order. It asks for a *choice of what to keep*.

# %%
from memcourse import tasks
from memcourse.course.examples import examples

batches = {
    "associative recall": (tasks.associative_recall(batch_size=1, n_pairs=5, n_queries=4, seed=0), tasks.associative_recall_words()),
    "passkey": (tasks.passkey(batch_size=1, n_segments=4, segment_len=4, seed=0), tasks.passkey_words()),
    "flip-flop": (tasks.flip_flop(batch_size=1, n_instructions=8, p_ignore=0.5, seed=1), tasks.flip_flop_words()),
    "selective copy": (tasks.selective_copy(batch_size=1, n_items=4, length=12, n_symbols=8, seed=1), tasks.selective_copy_words(n_symbols=8)),
}
drawn = {name: tasks.describe(batch, words) for name, (batch, words) in batches.items()}
figures.show(examples(drawn, title="What is read, and beneath it what must be said"), "Four strips of tokens, one for each task; the marked tokens have beneath them the token to be said.")
for name, (batch, words) in batches.items():
    print(f"{name:18} {batch.tokens.shape[1]:2} tokens read, {(batch.targets != -100).sum().item()} to be said, {len(words)} words known")

# %% [markdown]
# ## When it breaks
#
# Three faults that return in every chapter, in their smallest form.
#
# **The memory is stale.** The world changes, the store is told, and the weights still hold the old answer. Whether the new one is heard depends on the mixing weight alone:

# %%
last_year = CountingModel("the office is upstairs . the office is upstairs . the lift is broken .")
for weight in (0.3, 0.7):
    best, odds = mixed(last_year, "where is it ? the office is".split(), "downstairs", weight).most_common(1)[0]
    print(f"weight of the store {weight}: the office is {best} ({odds:.0%})")

# %% [markdown]
# **The memory leaks.** A state that is kept on the module and not handed in goes from one user's sequence into the next:


# %%
class Leaky:
    """A running mean that remembers on itself what it should have been handed."""

    def __init__(self):
        self.state = torch.zeros(2)

    def __call__(self, x):
        self.state = 0.5 * self.state + 0.5 * x
        return self.state


leaky = Leaky()
alone = Leaky()(torch.tensor([0.0, 1.0]))  # Bea's sequence, in a fresh module
leaky(torch.tensor([9.0, 0.0]))  # first Ann's ...
after_ann = leaky(torch.tensor([0.0, 1.0]))  # ... then Bea's
print("Bea alone:", alone.tolist(), "  Bea after Ann:", after_ann.tolist())

# %% [markdown]
# **The memory is full.** Whatever has a fixed size forgets something when it is written to; the only question is whether anyone chose what. You have seen one run full already: a state of 64 numbers that was given 128 facts. That is the
# subject of chapters 02 and 03.
#
# ## How exercises and checks work
#
# Each chapter has an exercise notebook, `exercises/NN_slug.ipynb`, with a stub for each question, and a solution notebook to compare with afterwards. A check runs where you work. Take the one exercise of this chapter, the gate equation, and answer it as
# the guide's sentence would have it:


# %%
def remember(state, candidate, forget_gate, input_gate):
    return (1 - forget_gate) * state + input_gate * candidate


check("0.1", remember)

# %% [markdown]
# A check has four outcomes: **not attempted** (the stub still raises `NotImplementedError`), **crashed** (it shows your line), **wrong** (it shows the smallest input that goes wrong, what it expected and what it found, and names the mistake where it knows it), and **checks passed**, with points. It looks at
# one thing after another: type, shape, dtype, finite, values, gradient, and what else must hold. Nothing is deducted for trying, nor for a `hint("0.1")`, of which there are three.
#
# Now do it rightly: open `exercises/00_what_is_memory.ipynb`. It takes a minute. Work in the copy that `memcourse start` makes, `my_course/`: an update of the course leaves your answers as they are. In a terminal, `memcourse progress` shows what is done, and `memcourse grade` checks all your notebooks at once.
#
# ## Are you ready?
#
# Five minutes, pencil and paper. The course builds on these six things and explains everything else. The answers are at the very end of this chapter.
#
# 1. **Shapes.** `x` has shape `(2, 7, 5)` and `w` has shape `(5, 3)`. What is the shape of `x @ w`?
# 2. **Broadcasting.** `a` has shape `(4, 1)` and `b` has shape `(3,)`. What is the shape of `a * b`?
# 3. **Softmax.** The scores are $\log 2$ and $0$. What are the two weights?
# 4. **Dot product.** Two unit vectors are orthogonal. What is their dot product? And of a unit vector with itself?
# 5. **Gradient.** $y = 3x^2$. What does autograd put into `x.grad` at $x = 2$ after `y.backward()`?
# 6. **Cross-entropy.** A model gives each of 8 words the same probability. What is its loss in nats, and its perplexity?
#
# Five or six right: go on to chapter 01. Three or four: keep the [resources](#Resources) at hand. Fewer: the first chapters of *Dive into Deep Learning* (linear algebra, automatic differentiation, softmax regression) take an evening and are enough.

# %%
your_answers = [None, None, None, None, None, None]  # write them here, if you like to have them in one place
print("questions:", len(your_answers), "  answered:", sum(answer is not None for answer in your_answers))

# %% [markdown]
# ## Notation and glossary
#
# Vectors are rows. One letter has one meaning throughout, in prose, equations and code.
#
# | letter | meaning | | letter | meaning |
# |---|---|---|---|---|
# | $B$ | batch: sequences side by side | | $q, k, v$ | query, key, value |
# | $T$ | time: tokens in a sequence, or queries | | $a$, $A$ | address or attention weights, one query or all |
# | $S$ | stored items that a query may look at | | $r$ | what was read |
# | $d$, $D$ | width of a head or key; width of the model (`d_model`) | | $h$, $c$ | state, candidate |
# | $H$ | heads | | $f$, $i$, $g$ | forget, input, other gates; between 0 and 1 |
# | $N$ | slots, or stored pairs | | $M$, $z$ | memory (matrix or bank), normalizer |
# | $V$ | values, as a matrix; as a size: the vocabulary | | $\lambda$ | weight of the store in a mixture |
# | $W$ | a learned matrix; as a number: the window | | $\beta$ | sharpness: what scores are multiplied by; $1/\beta$ is the temperature |
# | $\odot$ | element by element | | $\sigma$ | logistic function, 1 / (1 + exp(-x)) |
#
# Shapes stand in comments on the lines that change them, `# (B, H, T, d)`; a mask is True where a query may look; logarithms are natural; a loss is in nats per token, and perplexity is its exponential.

# %%
B, T, H, d = 2, 7, 4, 8
x = torch.zeros(B, T, H * d)  # (B, T, D)
heads = x.view(B, T, H, d).transpose(1, 2)  # (B, H, T, d)
print("x:", tuple(x.shape), "  split into heads:", tuple(heads.shape))

# %% [markdown]
# ### Glossary
#
# The course's sources are a Chinese guide and two Korean reviews, so each term has its name in all three languages. Where the sources use the word, it stands as they write it. A small ° marks a usual translation
# that the sources do not use themselves; the Korean reviews leave many terms in English.
#
# | term | Korean | Chinese | meaning |
# |---|---|---|---|
# | memory | 메모리, 기억 | 记忆 | what was stored and can be read later |
# | short-term memory | 단기기억 | 短期记忆 | emptied when the sequence ends |
# | long-term memory | 장기기억 | 长期记忆 | still there for the next sequence |
# | working memory | 작업 기억° | 工作记忆° | short-term memory that is being used |
# | explicit memory | 명시적 기억° | 显式记忆 | one address, one item |
# | implicit memory | 암묵적 기억° | 隐式记忆 | everything in the same numbers |
# | semantic memory | 의미 기억° | 语义记忆 | what many events have in common |
# | episodic memory | 일화 기억° | 情景记忆 | single events |
# | memory-augmented | 메모리 증강° | 记忆增强 | a model with a memory beside its weights |
# | external memory, external store | 외부 메모리° | 外部存储 | slots outside the network, read and written by address |
# | memory bank | memory bank | 记忆库° | the slots of one layer |
# | memory slot | 메모리 슬롯 | 存储单元 | one place, with a key and a value |
# | capacity | 용량° | 存储容量 | how much can be stored and still be read |
# | read, write | 읽기, 쓰기° | 读操作, 写操作 | take out, put in |
# | address | 주소° | 寻址° | how much each slot is meant |
# | key-value store | key-value memory | 键值存储 | pairs; found by the key, answered by the value |
# | query, key, value | 쿼리, 키, 값° | 查询, 键, 值 | what is asked, where it is stored, what is stored |
# | attention | 어텐션° | 注意力机制 | a read, weighted by similarity |
# | attention weights | 어텐션 가중치° | 注意力权重 | the address that attention computes; sums to 1 |
# | self-attention | 셀프 어텐션° | 自注意力机制 | the sequence reads itself |
# | cross-attention | 크로스 어텐션° | 交叉注意力机制 | the sequence reads something else |
# | context | 컨텍스트° | 上下文° | the words that the model sees |
# | context vector | 컨텍스트 벡터° | 上下文向量 | what attention reads for one query |
# | window | 윈도우° | 窗口° | how many words back attention reaches |
# | segment | 세그먼트° | 片段 | a piece of a sequence that is handled at once |
# | key-value cache | KV 캐시° | 键值缓存° | keys and values of the words so far: the state of attention |
# | state, hidden state | 은닉 상태° | 隐藏状态 | what goes on to the next step |
# | candidate | 후보 상태° | 候选隐藏状态 | what could be written next |
# | gate, gating | 게이트°, 게이팅 메커니즘 | 门控机制 | a factor between 0 and 1 on what passes |
# | forget gate | 망각 게이트° (forget gate) | 遗忘门 | the share of the old state that is **kept** |
# | input gate | 입력 게이트° (input gate) | 输入门 | the share of the candidate that is written |
# | output gate | 출력 게이트° (output gate) | 输出门° | the share of the state that is shown |
# | forgetting, eviction | 망각, 축출° | 遗忘, 淘汰° | losing a stored item, by a gate or by a rule |
# | element-wise product | 원소별 곱° | 按元素相乘 | number times number at the same place |
# | recurrent network (RNN) | RNN | 循环神经网络° | a network with a state |
# | memory network | 메모리 네트워크° | 记忆网络 | a network that addresses a list of items |
# | feedback | 피드백° | 反馈° | an output that becomes a later input |
# | nearest neighbours (kNN) | kNN | 最近邻° | the stored items most similar to the query |
# | datastore | 데이터스토어° | 数据存储° | keys and values of a whole corpus |
# | retrieval | 검색 | 检索 | finding stored items by similarity |
# | representation, embedding | 표현, 임베딩 | 表示, 嵌入 | the vector that stands for a thing |
# | residual | residual | 残差° | what a model's prediction is short of the truth |
# | memorization | 암기 | 记忆° | storing examples and not a rule |
# | interpolation | linear interpolation | 插值° | a mixture of two predictions |
# | knowledge graph | 지식 그래프° | 知识图谱 | facts as triples |
# | knowledge embedding | 지식 임베딩° | 知识嵌入 | facts as vectors |
# | knowledge-enhanced LM | 지식 강화 언어 모델° | 知识增强的语言模型 | a language model joined to a store of facts |
# | continual learning | 지속 학습° | 持续学习 | learning new things without losing old ones |
# | interpretability | 해석 가능성° (설명, 해석) | 可解释性 | knowing what a model does, and why |
#
# ## The table
#
# Every memory of the course, in one line each. Each chapter opens with its row and ends by having earned it.
#
# | memory | what is stored | address | read | write | forget | size |
# |---|---|---|---|---|---|---|
# | attention | keys and values of the context | softmax of dot products | weighted sum | append | falls out of the window | grows with T |
# | key-value | N slots | softmax of dot product or cosine | weighted sum | add at the address; erase, then add | eviction | N |
# | gated | one vector | none | the state itself | input gate x candidate | forget gate | 1 |
# | kNN-LM | (context vector, next token) of a corpus | k nearest, exp(-squared distance) | a distribution over next tokens | append | none | corpus |
# | ResMem | (embedding, residual of the model) | k nearest, exp(-distance/sigma) | a correction to the prediction | append | none | training set |
# | LM2 | a bank of slots per layer | cross-attention | output gate x retrieved | input gate x tanh(candidate) | forget gate | N slots |
# | Infini-attention | one matrix and one normalizer per head | sigma(q) | sigma(q)M / sigma(q)z | outer products; delta rule | delta rule overwrites | d x d |
# | TransformerFAM | a few feedback vectors | attention | extra keys of the next block | attention over block and itself | overwritten every block | F vectors |
#
# The chapters stand in this order, 01 to 08. The last column in numbers, for one layer of width 1024 (8 heads of 128) that has read a text of $T$ tokens:

# %%
D, heads_of, width, slots, feedback, corpus = (
    1024,
    8,
    128,
    64,
    64,
    103_225_485,
)  # corpus: the tokens of WikiText-103, as kNN-LM stores them
print(f"{'numbers held':34}{'T = 1,000':>16}{'T = 1,000,000':>16}")
for name, held in {
    "01 attention, window of 2,048": lambda T: 2 * D * min(T, 2048),
    "01 attention, whole context": lambda T: 2 * D * T,
    "02 key-value, 64 slots": lambda T: 2 * D * slots,
    "03 gated": lambda T: D,
    "04 kNN-LM, corpus of 103 million": lambda T: (D + 1) * corpus,
    "06 LM2, 64 slots": lambda T: D * slots,
    "07 Infini-attention": lambda T: heads_of * (width * width + width),
    "08 TransformerFAM, 64 vectors": lambda T: D * feedback,
}.items():
    print(f"{name:34}{held(1_000):16,}{held(1_000_000):16,}")

# %% [markdown]
# One of them grows with the text, one stops growing when its window is full, one is a hundred billion numbers from the beginning, and the others never change. All that have a fixed size must forget while they read, and how well they choose what to forget is what the course is about.
#
# **The next chapter** takes the first row apart, and shows why a window of $W$ words remembers $W$ words and not one more.
#
# ### Three questions to think about
#
# 1. Your favourite chat model has weights, a context, and perhaps a file of notes about you. Which of its mistakes come from which of the three?
# 2. A memory bank could be emptied after each document, after each day, or never. What would you have to test before you chose *never*?
# 3. People forget the event and keep the fact. Which of the memories in the table could do that, and which cannot?
#
# ### Resources
#
# What the guide recommends, what each is good for today, and what has taken its place where we could find that out (looked up in public records in 2026; projects move on).
#
# | tool | good for today | superseded by |
# |---|---|---|
# | [Hugging Face Transformers](https://github.com/huggingface/transformers) | loading pretrained models; the usual base for fine-tuning and for grafting a memory onto one | nothing. Since version 5 (first candidate: December 2025) it is for PyTorch alone: TensorFlow and JAX have been removed |
# | [Fairseq](https://github.com/facebookresearch/fairseq) | reading and reproducing papers of 2017 to 2022; kNN-LM was written on it | [fairseq2](https://github.com/facebookresearch/fairseq2), a new code base. In January 2024 its maintainer wrote that fairseq got major bug fixes at most and was to be retired. Do not start on it |
# | [OpenNMT-py](https://github.com/OpenNMT/OpenNMT-py) | readable sequence-to-sequence models with attention | [Eole](https://github.com/eole-nlp/eole), its spin-off; the project's own page says that OpenNMT-py is no longer actively supported |
#
# | paper | good for today | superseded by |
# |---|---|---|
# | *Attention Is All You Need* (2017) | the one paper to have read before chapter 01 | the attention is unchanged; positions, norms and masks have been replaced since |
# | *End-To-End Memory Networks* (2015) | the clearest account of reading in several hops | as a model: by Transformers, whose layers are its hops with learned writes |
# | "Augmenting Neural Networks with External Memory" | we found no paper of this title. The phrase is used for Neural Turing Machines, and patents on external memory for neural networks by the same group read alike; take *Neural Turing Machines* (2014) and its successor, the Differentiable Neural Computer (2016) | both are hard to train; their erase-and-add lives on in chapter 02 |
#
# | course or list | good for today | note |
# |---|---|---|
# | [Sequence Models](https://www.coursera.org/learn/nlp-sequence-models), Andrew Ng and others, Coursera | RNN, GRU, LSTM and attention from the beginning; since its revision, a week on Transformers | the guide calls it an NLP course; it is the fifth course of the Deep Learning Specialization |
# | [Dive into Deep Learning](https://d2l.ai) ([Chinese](https://zh.d2l.ai/)) | the background that this course assumes, with code in PyTorch | it is the book to open when the self-test went badly |
# | [NLP-progress](http://nlpprogress.com/) | which tasks and data sets there are, and how they were scored | as a leaderboard it belongs to its time. Papers with Code, the larger one, was shut down in July 2025 |
#
# ### Sources
#
# - The guide: *大语言模型应用指南：什么是记忆* (A guide to applying large language models: what is memory). Its concept map is redrawn above; its sections 3 and 4 are the course's three equations.
# - B. Park. *Literature Reviews: Neural Memory, kNN augmentation and some other recent trends.* 30 April 2024, in Korean. The reading list of the later chapters.
# - *LM2: Large Memory Models*, a reader's notes in Korean, 18 February 2025. The question about long-term and short-term.
# - J. J. Hopfield. *Neural networks and physical systems with emergent collective computational abilities.* PNAS 79, 1982.
# - J. L. Elman. *Finding Structure in Time.* Cognitive Science 14, 1990.
# - S. Hochreiter, J. Schmidhuber. *Long Short-Term Memory.* Neural Computation, 1997.
# - F. A. Gers, J. Schmidhuber, F. Cummins. *Learning to Forget: Continual Prediction with LSTM.* Neural Computation 12, 2000. The forget gate.
# - A. Bordes et al. *Translating Embeddings for Modeling Multi-relational Data.* NIPS 2013. TransE.
# - A. Graves, G. Wayne, I. Danihelka. *Neural Turing Machines.* 2014. arXiv:1410.5401. A. Graves et al., Nature 538, 2016: the Differentiable Neural Computer.
# - J. Weston, S. Chopra, A. Bordes. *Memory Networks.* ICLR 2015. arXiv:1410.3916. S. Sukhbaatar, A. Szlam, J. Weston, R. Fergus. *End-To-End Memory Networks.* NeurIPS 2015. arXiv:1503.08895.
# - D. Bahdanau, K. Cho, Y. Bengio. ICLR 2015. arXiv:1409.0473. A. Vaswani et al. *Attention Is All You Need.* NeurIPS 2017. arXiv:1706.03762.
# - Ł. Kaiser, O. Nachum, A. Roy, S. Bengio. *Learning to Remember Rare Events.* ICLR 2017. arXiv:1703.03129.
# - Z. Zhang et al. *ERNIE: Enhanced Language Representation with Informative Entities.* ACL 2019. arXiv:1905.07129.
# - U. Khandelwal et al. *Generalization through Memorization: Nearest Neighbor Language Models.* ICLR 2020. arXiv:1911.00172. P. Lewis et al. *Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks.* NeurIPS 2020. arXiv:2005.11401.
# - M. Geva et al. EMNLP 2021. arXiv:2012.14913. Feed-forward layers as key-value memories.
# - Y. Wu, M. N. Rabe, D. Hutchins, C. Szegedy. *Memorizing Transformers.* ICLR 2022. arXiv:2203.08913. A. Bulatov, Y. Kuratov, M. Burtsev. Recurrent Memory Transformer. NeurIPS 2022. arXiv:2207.06881.
# - Z. Yang et al. *ResMem: Learn What You Can and Memorize the Rest.* NeurIPS 2023. arXiv:2302.01576.
# - A. Gu, T. Dao. Mamba. COLM 2024. arXiv:2312.00752.
# - T. Munkhdalai, M. Faruqui, S. Gopal. *Leave No Context Behind.* 2024. arXiv:2404.07143. Infini-attention. D. Hwang et al. *TransformerFAM.* 2024. arXiv:2404.09173.
# - J. Kang et al. *LM2: Large Memory Models.* 2025. arXiv:2502.06049.
#
# The lengths of context in the timeline (GPT-2, GPT-3, Llama 3.1) are from public descriptions of these models, not from their papers.
#
# ### Answers to the self-test

# %%
x = torch.tensor(2.0, requires_grad=True)
(3 * x**2).backward()
uniform = torch.full((8,), 1 / 8)
unit = torch.tensor([1.0, 0.0])
print("1", tuple((torch.zeros(2, 7, 5) @ torch.zeros(5, 3)).shape))
print("2", tuple((torch.zeros(4, 1) * torch.zeros(3)).shape))
print(
    "3",
    [round(weight, 2) for weight in torch.tensor([2.0, 1.0]).log().softmax(dim=0).tolist()],
    "two thirds and one third",
)
print("4", (unit @ torch.tensor([0.0, 1.0])).item(), "and", (unit @ unit).item())
print("5", x.grad.item(), "because the derivative is 6x")
print(
    "6",
    round(-uniform.log().mean().item(), 2),
    "nats, which is log 8, and a perplexity of",
    round(uniform.log().mean().neg().exp().item()),
)
