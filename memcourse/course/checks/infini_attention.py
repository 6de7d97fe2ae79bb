"""The exercises of chapter 07, a memory of fixed size inside attention: what is asked, the stubs, the hints.

How answers are used and what is right stands in infini_attention_oracles.py, the known wrong answers in
infini_attention_mistakes.py.
"""

from __future__ import annotations

from memcourse.course.checks import infini_attention_mistakes as mistakes
from memcourse.course.checks import infini_attention_oracles as oracles
from memcourse.course.checks import infini_attention_variants as variants
from memcourse.course.checks.attention_oracles import call
from memcourse.course.exercise import Exercise

READ_THEN_WRITE = Exercise(
    id="7.1",
    name="read_then_write",
    title="One segment meets the memory",
    kind="write the equation",
    points=3,
    minutes=12,
    difficulty="easy",
    question="""\
One segment of L tokens comes to a head whose memory is a matrix $M$ and a normalizer $z$. Its queries read what the
segments before have left, $\\sigma(Q)\\,M / (\\sigma(Q)\\,z)$; then its keys and values are written by the linear
rule, $M \\leftarrow M + \\sigma(K)^\\top V$ and $z \\leftarrow z + \\sum_t \\sigma(K_t)$, with
$\\sigma(x) = \\mathrm{ELU}(x) + 1$. An empty memory, all zeros, reads 0, and no gradient through
that read is NaN or infinite. Write it with
torch alone: the library's own functions are not accepted.""",
    stub='''\
def read_then_write(query, key, value, memory, normalizer):
    """What a segment reads, and the memory and the normalizer after it has been written (linear rule).

    query, key: (B, H, L, d), value: (B, H, L, v), memory: (B, H, d, v), normalizer: (B, H, d), without sigma so far
    -> (retrieved, memory, normalizer): (B, H, L, v), (B, H, d, v), (B, H, d).
    Where sigma(query) . normalizer is 0, the memory is empty, and what is read is 0.
    """
    raise NotImplementedError''',
    hints=(
        "`nn.functional.elu(x) + 1` is sigma, of queries and keys alike. Two sums meet in the read: one over d "
        "for each of the v numbers, and one over d for the divisor, which is a single number for each query.",
        "`features @ memory` is (B, H, L, v). The divisor, (B, H, L, 1), is `features @ normalizer[..., None]`. "
        "It is 0 where the memory is empty: hold it above 0, by clamp(min=1e-10), rather than mend NaN afterwards.",
        "With q and k the sigmas of query and key: `retrieved = q @ memory / (q @ normalizer[..., None]).clamp(min="
        "1e-10)`; then memory + k.mT @ value, and normalizer + k.sum(dim=2).",
    ),
    cases=oracles.segment_cases,
    probe=call,
    oracle=oracles.segment_oracle,
    mistakes=mistakes.READ_THEN_WRITE,
    properties=(
        oracles.an_empty_memory_reads_zeros_and_passes_a_gradient,
        oracles.read_and_written_without_the_library,
    ),
)

DELTA_WRITE = Exercise(
    id="7.2",
    name="delta_write",
    title="Write only what is new",
    kind="write the equation",
    points=3,
    minutes=10,
    difficulty="medium",
    question="""\
The delta rule asks the memory first, and writes the difference:
$M \\leftarrow M + \\sigma(K)^\\top \\big(V - \\sigma(K)\\,M / (\\sigma(K)\\,z)\\big)$. All keys of the segment ask
the memory as it was before the segment, and $z$ sums $\\sigma(K)$ as under the linear rule. An empty memory answers 0,
so that the first segment is written whole. With torch alone, not with the library's own function. Before you run it:
what does a memory answer that was empty, after the same pair was written twice?""",
    stub='''\
def delta_write(key, value, memory, normalizer):
    """The memory and the normalizer after one segment was written by the delta rule.

    key: (B, H, L, d), value: (B, H, L, v), memory: (B, H, d, v), normalizer: (B, H, d), without sigma so far
    -> (memory, normalizer): (B, H, d, v), (B, H, d).  sigma(x) = ELU(x) + 1.
    Where sigma(key) . normalizer is 0, the memory is empty, and its answer is 0; gradients are finite there, too.
    """
    raise NotImplementedError''',
    hints=(
        "The answer of the memory to the keys is the read of 7.1, with keys in place of queries: (B, H, L, v), as "
        "large as the values.",
        "Which M and which z does that read take? Those that came in. Only then do both change, M by what is new, and "
        "z by all of sigma(K).",
        "With k = sigma(key): `known = k @ memory / (k @ normalizer[..., None]).clamp(min=1e-10)`; return memory + "
        "k.mT @ (value - known) and normalizer + k.sum(dim=2).",
    ),
    cases=oracles.delta_cases,
    probe=call,
    oracle=oracles.delta_oracle,
    mistakes=mistakes.DELTA_WRITE,
    properties=(oracles.the_first_write_passes_a_gradient, oracles.delta_written_without_the_library),
)

ALL_SEGMENTS = Exercise(
    id="7.3",
    name="all_segments",
    title="All segments at once",
    kind="make it fast",
    points=5,
    minutes=25,
    difficulty="hard",
    question="""\
Under the linear rule, what a segment writes does not depend on what the memory holds. So nothing needs to wait: the
memory that a segment reads is a sum over the segments before it, and sums of that kind have a name, prefix sums. Write
the docstring's loop for all segments at once: the same numbers, the same gradient, and at least four times as fast for
256 segments of 16 tokens. No table of T x T: its cost grows with the square of the length. With torch alone, not with
the library's own functions.""",
    stub='''\
def all_segments(query, key, value, segment_len):
    """What every token reads from the segments before its own, and the memory after the last one (linear rule).

    query, key: (B, H, T, d), value: (B, H, T, v), T a multiple of segment_len
    -> (reads, memory, normalizer): (B, H, T, v), (B, H, d, v), (B, H, d).  The first segment reads zeros.
    The same numbers as this loop, without a step for each segment:

        B, H, T, d = query.shape
        memory, normalizer = query.new_zeros(B, H, d, value.shape[3]), query.new_zeros(B, H, d, 1)
        reads = []
        for q, k, v in zip(*(part.split(segment_len, dim=2) for part in (query, key, value))):
            q, k = nn.functional.elu(q) + 1, nn.functional.elu(k) + 1
            reads.append(q @ memory / (q @ normalizer).clamp(min=1e-10))
            memory = memory + k.mT @ v
            normalizer = normalizer + k.sum(dim=2)[..., None]
        return torch.cat(reads, dim=2), memory, normalizer[..., 0]
    """
    raise NotImplementedError''',
    hints=(
        "Cut time into two axes: `key.unflatten(2, (-1, segment_len))` is (B, H, S, L, d). What each of the S segments "
        "writes is then one product, (B, H, S, d, v). Which sums of these does a segment read?",
        "`written.cumsum(dim=2)` has at each segment the sum up to and with it; the segment reads the sum before "
        "it: the same sums, one segment later, and zeros first. (Taking a segment's own part off again gives the "
        "same values, but the first segment divides by next to 0, and in the gradient the two parts no longer cancel.)",
        "With q, k of sigma, cut into segments: `written = k.mT @ v`, `counted = k.sum(dim=3)`; before = torch.cat(["
        "torch.zeros_like(written[:, :, :1]), written.cumsum(dim=2)[:, :, :-1]], dim=2), and before_z alike; "
        "reads = (q @ before / (q @ before_z[..., None]).clamp(min=1e-10)).flatten(2, 3). The last state: "
        "written.sum(dim=2), counted.sum(dim=2).",
    ),
    cases=oracles.parallel_cases,
    probe=call,
    oracle=oracles.parallel_oracle,
    mistakes=mistakes.ALL_SEGMENTS,
    properties=(
        oracles.the_first_segment_passes_a_gradient,
        oracles.all_segments_without_the_library,
        oracles.at_least_four_times_as_fast_as_the_loop,
    ),
)

GATE_GROUPS = Exercise(
    id="7.4",
    name="gate_groups",
    title="Make the gate learn",
    kind="repair this",
    points=4,
    minutes=20,
    difficulty="medium",
    question="""\
`train_student` above trains an `InfiniAttention` whose gates begin at 0.5 to be one whose gates are at 0.95 and 0.05,
with AdamW and the parameter groups of the stub. The loss falls, and the gates stay at 0.5: so it was in a public
reproduction of this method. A gate is $\\mathrm{sigmoid}(\\beta)$, the logistic
function and not this chapter's $\\sigma$, and AdamW moves a number such as $\\beta$ by about its
learning rate at each step, however large its gradient is; to go from 0.5 to 0.95, $\\beta$ must travel 3. How far can
it go here? Repair the groups, so that gates can go as far as 10 in the steps there are, at a constant rate (5 to 20
is accepted), and nothing pulls them back. This is not the `rate: 10.0` of the library, which is ten times the learning
rate, whatever the number of steps.""",
    stub='''\
def gate_groups(model, learning_rate, weight_decay, steps):
    """Parameter groups for AdamW: gates have a rate of their own and no decay, all others learning_rate, weight_decay.

    A gate is a parameter that is called "gate": the part of its name after the last dot, as in "layers.0.mixer.gate".
    The gates' rate follows from steps alone: rate * steps, the way that a gate can go, is about 10.
    model: any nn.Module; learning_rate, weight_decay: numbers above 0; steps: how many are trained, at least 1
    -> a list of dicts with the keys "params", "lr" and "weight_decay"; every parameter is in exactly one of them.
    """
    raise NotImplementedError  # delete this line first; everything below is the broken version
    return [{"params": list(model.parameters()), "lr": learning_rate, "weight_decay": weight_decay}]''',
    hints=(
        "40 steps at 0.001: how far does a number come in all? And where does weight decay, which pulls every number "
        "towards 0, pull a gate of sigmoid(beta)?",
        'Two groups. `model.named_parameters()` gives names with the parameters; `name.split(".")[-1]` is the part '
        "after the last dot. What is in one list must not be in the other.",
        '`gates = [p for name, p in model.named_parameters() if name.split(".")[-1] == "gate"]`, the others alike with '
        '`!=`. The gates\' group has "lr": 10 / steps and "weight_decay": 0.0.',
    ),
    cases=oracles.gate_cases,
    probe=oracles.groups_probe,
    oracle=oracles.groups_oracle,
    mistakes=mistakes.GATE_GROUPS,
    properties=(oracles.the_gates_of_a_layer_arrive,),
)

NEXT_TOKEN = Exercise(
    id="7.5",
    name="next_token",
    title="One token at a time",
    kind="use the library",
    points=5,
    minutes=30,
    difficulty="hard",
    question="""\
A stream comes token by token, and must give the numbers of the whole sequence. Tokens of the open segment wait in two
buffers; a segment closes **with its own last token**: then the whole buffer is written to the memory by the linear
rule, and the buffers are empty again. Until then the memory answers for the segments before, to the segment's last
token too. Write one step with the library's `read` and `write`, imported above (`help(read)`; both apply sigma
themselves and want a time axis). There are no positions here.""",
    stub='''\
def next_token(query, key, value, gate, segment_len, state):
    """One token of Infini-attention: its output, and the state after it.

        local  = attention of the query over the open segment's tokens, its own last: softmax(q . k / sqrt(d))
        output = sigmoid(gate) * read(query from the memory) + (1 - sigmoid(gate)) * local

    query, key: (B, H, d), value: (B, H, v), gate: (H,), one number a head; segment_len: tokens of a segment, 1 or more.
    state: (memory, normalizer, open_key, open_value), of shapes (B, H, d, v), (B, H, d), (B, H, n, d), (B, H, n, v),
    where n, from 0 to segment_len - 1, is the number of tokens in the open segment so far.
    -> (output, state): (B, H, v), and the four tensors after this token; n is 0 after a segment's last token.
    """
    raise NotImplementedError''',
    hints=(
        "Put the token into the buffers first: `torch.cat([open_key, key[:, :, None]], dim=2)`. Is the segment full "
        "now? Whatever the answer is, this token still reads the memory that came in.",
        "`read(query[:, :, None], memory, normalizer)` is (B, H, 1, v). Local scores are keys @ query[..., None] over "
        "sqrt(d), (B, H, n, 1), and their softmax runs over dim=2. The gate's share needs two axes: "
        "gate.sigmoid()[:, None] is (H, 1).",
        "Output first: share * read(...)[:, :, 0] + (1 - share) * (weights * values).sum(dim=2). Then, if "
        "keys.shape[2] == segment_len: memory, normalizer = write(keys, values, memory, normalizer), and "
        "keys[:, :, :0], values[:, :, :0] are the new buffers.",
    ),
    cases=oracles.stream_cases,
    probe=oracles.stream_probe,
    oracle=oracles.stream_oracle,
    mistakes=mistakes.NEXT_TOKEN,
)

MOST_PAIRS = Exercise(
    id="7.6",
    name="most_pairs",
    title="How many pairs does a matrix hold?",
    kind="find the limit",
    points=3,
    minutes=20,
    difficulty="medium",
    cases=lambda: [()],
    variant=variants.MOST_PAIRS,
    **variants.MOST_PAIRS.of_the_course,
)

MEMORIZING_READ = Exercise(
    id="7.7",
    name="memorizing_read",
    title="The memory that does not compress",
    kind="write the equation",
    points=4,
    minutes=20,
    difficulty="medium",
    question="""\
Memorizing attention keeps keys and values as they were, and each query attends to the k of them with the largest
scores. Write its read: exact top-k attention over a memory of C entries, of which some are empty, and the gate that
mixes it with the local read. Entries are constants: no gradient flows into `key` and `value`, which were made many
steps ago. The scores are $q \\cdot k$ as they come, for the query has its scale already. With torch alone, not with
the library's own module.""",
    stub='''\
def memorizing_read(query, key, value, valid, k, local, gate):
    """sigmoid(gate) * top-k attention over the memory + (1 - sigmoid(gate)) * local.

    query: (B, H, T, d), key: (B, H, C, d), value: (B, H, C, v), local: (B, H, T, v), gate: (H,), one number a head.
    valid: (B, C), True where a row's entry holds something.  The others hold what was left over, finite numbers that
    count nothing.
    k: how many entries each query attends to, 1 or more: those with the largest q . k, by a softmax over them alone.
    Where fewer than k are valid (k may be above C), all valid ones; where none is, the memory reads 0.
    -> (B, H, T, v).  Gradients flow to query, local and gate, and not to key and value.
    """
    raise NotImplementedError''',
    hints=(
        "Mask before you choose: an empty entry with the score -inf comes after every valid one. "
        "`valid[:, None, None]` is (B, 1, 1, C). `key.detach()` is the same numbers without the gradient.",
        "`best = scores.topk(min(k, C), dim=-1)` has values and indices, (B, H, T, k). What is not chosen can go back "
        "to -inf: then one softmax over C and one product do the read. A row of nothing but -inf gives NaN; make it 0.",
        "`kept = torch.full_like(scores, -torch.inf).scatter(-1, best.indices, best.values)`; weights = torch.where("
        "valid.any(dim=1)[:, None, None, None], kept, 0.0).softmax(dim=-1), then .masked_fill(kept == -torch.inf, "
        "0.0); weights @ value.detach() is the read, and gate.sigmoid()[:, None, None] its share.",
    ),
    cases=oracles.memorizing_cases,
    probe=call,
    oracle=oracles.memorizing_oracle,
    mistakes=mistakes.MEMORIZING_READ,
    properties=(oracles.the_gradient_stops_at_the_memory, oracles.memorizing_without_the_library),
    gradient=False,  # none should reach key and value, which the oracle cannot know
)

EXERCISES = (
    READ_THEN_WRITE,
    DELTA_WRITE,
    ALL_SEGMENTS,
    GATE_GROUPS,
    NEXT_TOKEN,
    MOST_PAIRS,
    MEMORIZING_READ,
)
