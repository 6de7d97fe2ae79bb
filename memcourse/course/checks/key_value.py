"""The exercises of chapter 02, a memory of slots outside the network: what is asked, the stubs, the hints.

How answers are used and what is right stands in key_value_oracles.py, the known wrong answers in
key_value_mistakes.py.
"""

from __future__ import annotations

from memcourse.course.checks import key_value_mistakes as mistakes
from memcourse.course.checks import key_value_oracles as oracles
from memcourse.course.checks import key_value_variants as variants
from memcourse.course.checks.attention_oracles import call, itself
from memcourse.course.exercise import Exercise

PREDICTED_READS = Exercise(
    id="2.1",
    name="predicted_reads",
    title="What a query finds, and what a write leaves",
    kind="predict, then run",
    points=2,
    minutes=5,
    difficulty="easy",
    cases=lambda: [()],
    probe=itself,
    tolerance=5e-3,
    variant=variants.PREDICTED_READS,
    **variants.PREDICTED_READS.of_the_course,
)

COSINE_ADDRESS = Exercise(
    id="2.2",
    name="cosine_address",
    title="Where to look, whatever the length",
    kind="write the equation",
    points=4,
    minutes=12,
    difficulty="easy",
    question="""\
Write $w_{ij} = \\mathrm{softmax}_j(\\beta \\cos(q_i, k_j))$, the content address of the Neural Turing Machine: the
angle decides where a query looks, and the sharpness $\\beta$ how firmly. A fresh memory is full of zeros, and a
vector of zeros has no angle: its cosine with anything is 0, with no NaN in the weights or in any gradient.""",
    stub='''\
def cosine_address(query, keys, sharpness):
    """Weights of every query over every slot, softmax over the slots of sharpness * cosine(query, key).

    query: (q, d), keys: (n, d), sharpness: a number, 0 or more -> (q, n), rows sum to 1.
    The cosine of a vector of zeros with anything is 0, with no NaN in the value or in any gradient.
    """
    raise NotImplementedError''',
    hints=(
        "A cosine is the dot product of two vectors of length 1. Which axis does a length sum over, and what does "
        "the division do to a vector of zeros?",
        "`x.norm(dim=-1, keepdim=True)` is (rows, 1). Do not mend a NaN afterwards, for its gradient stays: make the "
        "divisor at least a very small number before you divide.",
        "`unit = x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)` for query and keys (or F.normalize(x, dim=-1)); "
        "then sharpness * unit query @ unit keys.T, and a softmax over the last axis.",
    ),
    cases=oracles.cosine_cases,
    probe=call,
    oracle=oracles.cosine_oracle,
    mistakes=mistakes.COSINE_ADDRESS,
    properties=(oracles.the_gradient_at_a_vector_of_zeros,),
)

ERASE_AND_ADD = Exercise(
    id="2.3",
    name="erase_and_add",
    title="Repair a write that wipes its memory",
    kind="repair this",
    points=4,
    minutes=12,
    difficulty="medium",
    question="""\
A write head erases and adds, slot by slot, with the weights of its address. The version below runs, and every write
wipes slots that nobody addressed. It has three faults; repair it until it does what the docstring says. (The third
shows only when somebody else still needs the old memory: backpropagation does.)""",
    stub='''\
def erase_and_add(values, weights, erase, add):
    """One write of a head: v_i <- v_i * (1 - w_i e) + w_i a, for every slot i.

    values: (n, v), weights: (n,), erase: (v,), add: (v,); weights and erase are between 0 and 1
    -> the new values (n, v).  The caller's values stay as they are.
    """
    raise NotImplementedError  # delete this line first; everything below is the broken version
    for slot, weight in enumerate(weights):
        values[slot] += weight * add
        values[slot] *= 1 - erase
    return values''',
    hints=(
        "Give a slot the weight 0: what should happen to it, and what does? Then weight 1, erase 1: the slot should "
        "hold `add`. At last, print `values` before and after a call.",
        "What is erased of slot i is the share weight * erase, and it is erased before anything is added. `+=` and "
        "`*=` on a row change the tensor that the caller holds.",
        "All slots at once need no loop: weights[:, None] is (n, 1), and (n, 1) * (v,) is (n, v). "
        "`values * (1 - weights[:, None] * erase)` is a new tensor; add weights[:, None] * add to it.",
    ),
    cases=oracles.erase_cases,
    probe=call,
    oracle=oracles.erase_oracle,
    mistakes=mistakes.ERASE_AND_ADD,
)

TOP_K_OF_SUMS = Exercise(
    id="2.4",
    name="top_k_of_sums",
    title="Product keys: the best of all sums, without making them",
    kind="make it fast",
    points=6,
    minutes=25,
    difficulty="medium",
    question="""\
A product key is two halves put together, so its score is a sum of two: n first and m second half-scores make n * m
slots. Find the k best slots exactly, without making all sums: the same numbers as the docstring's brute force, and
at least five times as fast for a million slots and k = 16. This is how a layer gets a million slots for the
price of some two thousand comparisons.""",
    stub='''\
def top_k_of_sums(scores_1, scores_2, k):
    """The k largest of all sums scores_1[i] + scores_2[j], the largest first, and their slots i * m + j.

    scores_1: (n,), scores_2: (m,), k: 1 to n * m -> (sums, slots): (k,), (k,) integers.
    The same as this, in far fewer than n * m sums when k is small:

        best = (scores_1[:, None] + scores_2).flatten().topk(k)
        return best.values, best.indices
    """
    raise NotImplementedError''',
    hints=(
        "Say that scores_1[i] is not among the k best of scores_1. How many sums with the same j are then at least as "
        "large as scores_1[i] + scores_2[j]? Can it be among the k best?",
        "So take topk of either list (never more than the list is long), make the table of their sums, and take topk "
        "of that. Its indices are places in the table; `.indices` of the first two say which i and j these are.",
        "`first = scores_1.topk(min(k, n))`, `second` likewise. sums = first.values[:, None] + second.values; slots = "
        "first.indices[:, None] * m + second.indices. best = sums.flatten().topk(k); return best.values and "
        "slots.flatten()[best.indices].",
    ),
    cases=oracles.sums_cases,
    probe=call,
    oracle=oracles.sums_oracle,
    mistakes=mistakes.TOP_K_OF_SUMS,
    properties=(oracles.at_least_five_times_as_fast_as_all_sums,),
)

SMALLEST_CAPACITY = Exercise(
    id="2.5",
    name="smallest_capacity",
    title="Who has to go?",
    kind="find the limit",
    points=4,
    minutes=20,
    difficulty="medium",
    cases=lambda: [()],
    variant=variants.SMALLEST_CAPACITY,
    **variants.SMALLEST_CAPACITY.of_the_course,
)

EXERCISES = (
    PREDICTED_READS,
    COSINE_ADDRESS,
    ERASE_AND_ADD,
    TOP_K_OF_SUMS,
    SMALLEST_CAPACITY,
)
