"""The exercises of chapter 04, a language model with its training text as memory: what is asked, the stubs, the hints.

How answers are used and what is right stands in knn_lm_oracles.py, the known wrong answers in knn_lm_mistakes.py.
"""

from __future__ import annotations

from memcourse.course.checks import knn_lm_limits as limits
from memcourse.course.checks import knn_lm_mistakes as mistakes
from memcourse.course.checks import knn_lm_oracles as oracles
from memcourse.course.checks import knn_lm_variants as variants
from memcourse.course.checks.attention_oracles import call
from memcourse.course.exercise import Exercise

PREDICTED_SHARES = Exercise(
    id="4.1",
    name="predicted_shares",
    title="What three neighbours say",
    kind="predict, then run",
    points=2,
    minutes=6,
    difficulty="easy",
    cases=lambda: [()],
    tolerance=2e-3,
    variant=variants.PREDICTED_SHARES,
    **variants.PREDICTED_SHARES.of_the_course,
)

MEMORY_PAIRS = Exercise(
    id="4.2",
    name="memory_pairs",
    title="What goes into the datastore",
    kind="write the equation",
    points=2,
    minutes=8,
    difficulty="easy",
    question="""\
The datastore holds a pair for every place of the text that has a next token: what the model makes of the context up to
there, and the token that follows. `hidden[b, t]` has read tokens 0 to t of text b. Write the pairs of a whole batch as
one list. In published code this is where most kNN-LMs go wrong: off by one, it runs, and does harm.""",
    stub='''\
def memory_pairs(hidden, tokens):
    """The pairs (context, next token) of a batch of texts.

    hidden: (B, T, d), tokens: (B, T) integers -> (keys, values): (B * (T-1), d), (B * (T-1),) integers.
    hidden[b, t] has seen tokens[b, 0] ... tokens[b, t].  The pairs of text 0 come first, in order, then those of
    text 1, and so on; no pair reaches from one text into another.  The keys are numbers to be stored: no graph.
    """
    raise NotImplementedError''',
    hints=(
        "Write the pairs of one text with T = 3 on paper: which two of its three hidden vectors have a next token, and "
        "which tokens are these?",
        "Of the keys, the last place in time is left out; of the values, the first. Cut before you flatten: in the "
        "flat list, the last place of text 0 stands beside the first of text 1.",
        "`keys = hidden[:, :-1]`, `values = tokens[:, 1:]`; then .flatten(0, 1) and .flatten(), and .detach() for the "
        "keys.",
    ),
    cases=oracles.pairs_cases,
    probe=call,
    oracle=oracles.pairs_oracle,
    mistakes=mistakes.MEMORY_PAIRS,
    properties=(oracles.the_keys_hold_no_graph,),
    gradient=False,
)

TARGET_LOG_PROB = Exercise(
    id="4.3",
    name="target_log_prob",
    title="What the neighbours give the token that came",
    kind="write the equation",
    points=3,
    minutes=12,
    difficulty="easy",
    question="""\
To score a text, only the probability of the token that came is needed, not that of the whole vocabulary. Write
$\\log p_{kNN}(y)$ for it alone: the share of the neighbours whose token is $y$ in
$\\sum_i e^{-d_i/\\tau}$, as a logarithm. Squared distances are often in the hundreds or thousands, and
$e^{-1000}$ is 0 in float32. Nothing in it may be as large as the vocabulary. Write it with torch alone: the library's
own function is not accepted.""",
    stub='''\
def target_log_prob(distances, tokens, targets, temperature):
    """log p_kNN(target) = log of  sum over i with tokens_i = target of exp(-distances_i / temperature)
                                 / sum over all i of exp(-distances_i / temperature).

    distances: (..., k), squared, tokens: (..., k) integers, targets: (...) integers, temperature: a number -> (...).
    -inf where no neighbour has the target.  A distance of inf is a neighbour that is missing: it counts nothing (at
    least one distance of every row is finite).  Token ids may be any integers of int64.  Gradients flow to distances.
    """
    raise NotImplementedError''',
    hints=(
        "A quotient is a difference of logarithms, and torch.logsumexp takes the logarithm of a sum of exponentials "
        "without ever making the exponentials.",
        "The scores are -distances / temperature. Below: logsumexp of all scores of a row. Above: the same, where only "
        "neighbours with tokens == targets[..., None] count; a score that should count nothing is -inf.",
        "`scores = -distances / temperature`; `same = tokens == targets[..., None]`; "
        "`scores.masked_fill(~same, -torch.inf).logsumexp(dim=-1) - scores.logsumexp(dim=-1)`.",
    ),
    cases=oracles.log_prob_cases,
    probe=call,
    oracle=oracles.log_prob_oracle,
    mistakes=mistakes.TARGET_LOG_PROB,
    properties=(oracles.no_tensor_as_large_as_the_vocabulary, oracles.log_prob_without_the_library),
)

MIX = Exercise(
    id="4.4",
    name="mix",
    title="Repair a mixture that flatters itself",
    kind="repair this",
    points=3,
    minutes=12,
    difficulty="medium",
    question="""\
The last line of every kNN-LM: mix the two probabilities. The version below has the faults of several public ones: it
runs, it never gives an infinite loss, and its perplexity is too good to be true. Repair it until it does what the
docstring says, for very unlikely tokens, for tokens that no neighbour has (`log_p_knn` is -inf), and for weights of 0
and 1; with torch alone, not with the library's own function.""",
    stub='''\
def mix(log_p_model, log_p_knn, weight):
    """log p, where p = weight * p_knn + (1 - weight) * p_model.

    log_p_model, log_p_knn: (...), each 0 or less, -inf allowed in log_p_knn; weight: a number from 0 to 1 -> (...).
    Gradients flow to both, and are finite also where log_p_knn is -inf.
    """
    raise NotImplementedError  # delete this line first; everything below is the broken version
    p = weight * log_p_model.exp() + (1 - weight) * log_p_knn.exp()
    return torch.log(p + 1e-10)''',
    hints=(
        "Whose share is `weight`? What does the 1e-10 give a token of probability 1e-30? And what is torch.tensor("
        "-150.0).exp()?",
        "log(a p + b q) is logaddexp(log a + log p, log b + log q): torch.logaddexp takes the sum without leaving the "
        "logarithms, and -inf as one of the two does no harm.",
        "math.log(0) raises, and the logarithm of a tensor does not: `weight = torch.as_tensor(weight)`, then "
        "`torch.logaddexp(weight.log() + log_p_knn, (1 - weight).log() + log_p_model)`.",
    ),
    cases=oracles.mix_cases,
    probe=call,
    oracle=oracles.mix_oracle,
    mistakes=mistakes.MIX,
    properties=(oracles.the_gradient_where_no_neighbour_has_the_token, oracles.mixed_without_the_library),
)

NEAREST_IN_BLOCKS = Exercise(
    id="4.5",
    name="nearest_in_blocks",
    title="The nearest keys of a store that does not fit",
    kind="make it fast",
    points=6,
    minutes=30,
    difficulty="hard",
    question="""\
The keys of a large datastore come from disk, block by block. The loop in the docstring goes through all blocks once
for each query. Write it for all queries at once: the same numbers, and at least three times as fast. For 128 queries
and 16 blocks of 512 keys, with d = 64, it may make no tensor of 524,288 numbers or more: that is half of all
distances, 128 x 8192, and just as many as all keys hold together.""",
    stub='''\
def nearest_in_blocks(queries, blocks, k):
    """Squared distances of the k nearest keys of every query, the nearest first, and their rows.

    queries: (Q, d), blocks: a list of (n_i, d), k: 1 to n_1 + n_2 + ... = N.  A block may hold fewer than k keys.
    -> (distances, rows): (Q, k), (Q, k) integers.  Rows count through all blocks: the first key of block 2 is row n_1.
    The same numbers as this loop, without a (Q, N) tensor and without a Python step for each query:

        distances, rows = [], []
        for query in queries:
            to_all = torch.cat([((block - query) ** 2).sum(dim=1) for block in blocks])  # (N,)
            best = to_all.topk(k, largest=False)
            distances.append(best.values)
            rows.append(best.indices)
        return torch.stack(distances), torch.stack(rows)
    """
    raise NotImplementedError''',
    hints=(
        "Loop over the blocks, not over the queries. After each block, keep for every query the k best keys so far, "
        "and forget the rest: a key that is not among them now never comes back.",
        "|q - k|^2 = |q|^2 - 2 q.k + |k|^2 needs one matrix product for a block, (Q, n). Put its distances beside the "
        "best so far, (Q, k + n), and take topk again. Of the rows, put torch.arange(start, start + n) beside those "
        "that you have, and `gather` with topk's indices.",
        "Begin with distances = queries.new_zeros(Q, 0), rows likewise as integers, start = 0. For each block: squares "
        "= (queries**2).sum(1, keepdim=True) - 2 * queries @ block.T + (block**2).sum(1); cat both pairs along dim=1; "
        "best = distances.topk(min(k, distances.shape[1]), largest=False); distances = best.values; rows = "
        "rows.gather(1, best.indices); start += len(block).",
    ),
    cases=oracles.nearest_cases,
    probe=oracles.nearest_probe,
    oracle=oracles.nearest_oracle,
    mistakes=mistakes.NEAREST_IN_BLOCKS,
    properties=(
        oracles.nothing_as_large_as_half_of_all_distances,
        oracles.at_least_three_times_as_fast_as_the_loop,
    ),
    gradient=False,
)

BEST_WEIGHT = Exercise(
    id="4.6",
    name="best_weight",
    title="How much may the neighbours say?",
    kind="find the limit",
    points=4,
    minutes=20,
    difficulty="medium",
    cases=lambda: [()],
    variant=limits.BEST_WEIGHT,
    **limits.BEST_WEIGHT.of_the_course,
)

LEARN_DOMAIN = Exercise(
    id="4.7",
    name="learn_domain",
    title="A new domain, and nothing forgotten",
    kind="use the library",
    points=6,
    minutes=25,
    difficulty="hard",
    question="""\
The course's small language model has read Python's documentation, and nothing else. Teach it a catalogue that it has
never seen, with `KNNLM`, without touching one of its weights. On unseen sentences of the catalogue its perplexity
should fall to a 40th or less, which is the easier part; on unseen documentation it may rise by 5 % at most. A constant
weight cannot do both, for the catalogue's neighbours are no help to the documentation, so `weight` is a function here:
it gets the neighbours that were found, and says for each token how much they may say. The first token of a row has no
context, so that its vector is the same in every text: a distance of 0 says nothing there.""",
    stub='''\
def learn_domain(model, new, old):
    """A KNNLM around `model` that knows the text `new`, and is no worse on text like `old`.

    model: a MemoryTransformer, whose weights stay as they are; its vectors are model.config["d_model"] wide.
    new: (rows, T) tokens to be memorised, a text in each row.
    old: (rows, T) tokens of what the model is good at; it has not read them, so they can be used to choose.
    -> a KNNLM, whose `weight` may be a function: (near: Neighbors) -> a weight for each query, (...), from 0 to 1.
    near.distances is (..., k), the nearest first.
    """
    raise NotImplementedError''',
    hints=(
        '`KNNLM(model, Datastore(model.config["d_model"]))`, then `memorize`. How far away is the nearest neighbour of '
        "a context of the new text, and how far that of an old one? `knn.neighbors(old).distances[..., 0]` says.",
        "Let the neighbours speak only where the nearest of them is nearer than it nearly ever is for old text: the "
        "3 % quantile of its distances there is such a limit. With a weight of 1/2, a token loses log 2 at most.",
        "`limit = knn.neighbors(old).distances[..., 0].flatten().quantile(0.03)`, then `knn.weight = lambda near: 0.5 "
        "* (near.distances[..., 0] < limit)`, and return knn. With k = 8 it is fast.",
    ),
    cases=oracles.domain_cases,
    probe=oracles.domain_probe,
    oracle=oracles.domain_oracle,
    mistakes=mistakes.LEARN_DOMAIN,
    properties=(oracles.the_new_text_is_learned_and_nothing_of_the_old_is_lost,),
    time_limit=30.0,
)

EXERCISES = (
    PREDICTED_SHARES,
    MEMORY_PAIRS,
    TARGET_LOG_PROB,
    MIX,
    NEAREST_IN_BLOCKS,
    BEST_WEIGHT,
    LEARN_DOMAIN,
)
