"""The exercises of chapter 06, a gated bank of slots beside a block: what is asked, the stubs, the hints.

How answers are used and what is right stands in lm2_oracles.py, the known wrong answers in lm2_mistakes.py.
"""

from __future__ import annotations

from memcourse.course.checks import lm2_mistakes as mistakes
from memcourse.course.checks import lm2_oracles as oracles
from memcourse.course.checks import lm2_variants as variants
from memcourse.course.checks.attention_oracles import call, itself
from memcourse.course.exercise import Exercise

PREDICTED_BANK = Exercise(
    id="6.1",
    name="predicted_bank",
    title="What a bank keeps, and who may read it",
    kind="predict, then run",
    points=3,
    minutes=10,
    difficulty="easy",
    cases=lambda: [()],
    probe=itself,
    tolerance=0.025,  # so that 39, the first whole segment with less than half, is right too
    variant=variants.PREDICTED_BANK,
    **variants.PREDICTED_BANK.of_the_course,
)

UPDATE_BANK = Exercise(
    id="6.2",
    name="update_bank",
    title="The bank's update",
    kind="write the equation",
    points=2,
    minutes=6,
    difficulty="easy",
    question="""\
A segment has ended, and the slots have gathered the candidate $C$ from it. Write both gates and the update:

$$g_{in} = \\sigma(C\\,W_{in}), \\qquad g_f = \\sigma(M\\,W_f + b_f), \\qquad
M \\leftarrow g_f \\odot M + g_{in} \\odot \\tanh(C).$$

Items are rows, so a weight stands on the right: `candidate @ W["in"]`.""",
    stub='''\
def update_bank(memory, candidate, W, b_f):
    """The bank after one segment: g_f * M + g_in * tanh(C).

    memory: M (B, N, D), candidate: C (B, N, D), W: a dict with W["in"] and W["f"], (D, D) each, b_f: (D,)
    -> the new M: (B, N, D).
    """
    raise NotImplementedError''',
    hints=(
        "Three lines, one for each equation. Which gate sees what is new, and which one what is there already?",
        '`torch.sigmoid(memory @ W["f"] + b_f)` is (B, N, D): each slot has gates of its own, one for each number.',
        '`g_in = torch.sigmoid(candidate @ W["in"])`, g_f from memory with the bias; return g_f * memory + g_in * '
        "torch.tanh(candidate).",
    ),
    cases=oracles.update_cases,
    probe=call,
    oracle=oracles.update_oracle,
    mistakes=mistakes.UPDATE_BANK,
)

GATED_READ = Exercise(
    id="6.3",
    name="read_bank",
    title="Tokens read slots, through a gate",
    kind="write the equation",
    points=4,
    minutes=20,
    difficulty="medium",
    question="""\
What the bank adds to the tokens $E$: $g_{out} \\odot R$. $R$ is cross-attention with `n_heads` heads: the queries
$E\\,W_q$ are those of the tokens, the keys $M\\,W_k$ and the values $M\\,W_v$ those of the slots. A head has
$d = D / H$ columns of each (the first head the first d), the scale $1/\\sqrt{d}$ and a softmax of its own; what the
heads read is put side by side again, in order, and nothing is projected after that. The gate looks at what was read:
$g_{out} = \\sigma(R\\,W_{out})$. (As printed, the gate multiplies $M$ instead of $R$, which closes for T = N only.)""",
    stub='''\
def read_bank(tokens, memory, W, n_heads):
    """What the tokens read from the bank, through the output gate: g_out * R.

    tokens: E (B, T, D), memory: M (B, N, D), W: a dict with W["q"], W["k"], W["v"] and W["out"], (D, D) each, used as
    E @ W["q"]; n_heads divides D -> (B, T, D).
    """
    raise NotImplementedError''',
    hints=(
        "Get it right for one head: (B, T, D) @ (B, D, N) gives scores, (B, T, N), and each row of weights sums to 1 "
        "over the slots. What has to change so that the same lines serve (B, H, T, d) and (B, H, N, d)?",
        "`.unflatten(2, (n_heads, -1)).transpose(1, 2)` makes (B, H, T, d) of (B, T, D). Afterwards the way back is "
        "`.transpose(1, 2).flatten(2)`. A direct view to (B, H, T, d) would mix tokens with heads.",
        "With q, k and v so split, R = ((q @ k.transpose(-1, -2) / d ** 0.5).softmax(dim=-1) @ v), brought back to "
        '(B, T, D); return torch.sigmoid(R @ W["out"]) * R.',
    ),
    cases=oracles.read_cases,
    probe=call,
    oracle=oracles.read_oracle,
    mistakes=mistakes.GATED_READ,
)

SLOTS_QUERY_SEGMENT = Exercise(
    id="6.4",
    name="slots_query_segment",
    title="Slots query the segment",
    kind="write the equation",
    points=3,
    minutes=10,
    difficulty="medium",
    question="""\
What is to be written? Now it is the slots that ask. The segment has ended, so every slot may look at all of it:

$$C = \\mathrm{softmax}\\big(M\\,U_q\\,(Z\\,U_k)^\\top / \\sqrt{d}\\big)\\; Z\\,U_v,$$

with `n_heads` heads as in 6.3 (d = D / H columns each, in order, side by side again, no projection after that). $Z$
are the segment's L tokens. $C$ is the candidate alone: no gate, no tanh, no M added; those come in the update.""",
    stub='''\
def slots_query_segment(memory, segment, U, n_heads):
    """The candidate: what each slot gathers from the segment.

    memory: M (B, N, D), segment: Z (B, L, D), U: a dict with U["q"], U["k"] and U["v"], (D, D) each, used as
    M @ U["q"]; n_heads divides D -> C: (B, N, D).
    """
    raise NotImplementedError''',
    hints=(
        "It is the read of 6.3 with the parts exchanged and without its gate. One row of the result for each slot: "
        "over what does a row of weights sum to 1?",
        'queries M @ U["q"] are (B, H, N, d) after the split, keys and values of Z (B, H, L, d), scores (B, H, N, L).',
        "Split as in 6.3: q from memory, k and v from segment; C = (q @ k.transpose(-1, -2) / d ** "
        "0.5).softmax(dim=-1) @ v; then `.transpose(1, 2).flatten(2)`.",
    ),
    cases=oracles.slots_cases,
    probe=call,
    oracle=oracles.slots_oracle,
    mistakes=mistakes.SLOTS_QUERY_SEGMENT,
)

BANK_LAYER = Exercise(
    id="6.5",
    name="BankLayer",
    title="Find the future leak",
    kind="repair this",
    points=5,
    minutes=25,
    difficulty="hard",
    question="""\
A plausible LM2 layer (its memory alone, one head, no norm, no self-attention, no feed-forward), with four faults. Two
let a token see what comes after it: the loss falls well in training, and generation fails. One takes an unfinished
segment for a finished one. One leaves every number right, and lets no segment be taught by a later one. Repair it
until it does what the docstring says. The nine layers keep their names and shapes, so that the check can set them;
nothing is wrong in `__init__` or `attend`.""",
    stub='''\
class BankLayer(nn.Module):
    """Each token reads the bank; each segment, once it has ended, is written to it.

    For the tokens E of segment s, (B, L, D), and the bank M that the segments before s have left, (B, N, D):

        y = E + sigmoid(W_out(R)) * R        R = attend(W_q(E), W_k(M), W_v(M))
        C = attend(U_q(M), U_k(E), U_v(E))
        M after segment s = sigmoid(W_f(M)) * M + sigmoid(W_in(C)) * tanh(C)

    x: (B, T, D), the segments one after the other, segment_len tokens each; tokens that do not fill a segment at the
    end of x read, and are not written.  memory: (B, N, D), the bank before x -> (y, memory): (B, T, D), (B, N, D).
    y at token t hangs on memory and on tokens up to t.  The gradient reaches all that the numbers hang on.
    """

    def __init__(self, d_model, segment_len):
        raise NotImplementedError  # delete this line first; everything below is the broken layer
        super().__init__()
        self.segment_len = segment_len
        for name in ("W_q", "W_k", "W_v", "W_out", "U_q", "U_k", "U_v", "W_in"):
            setattr(self, name, nn.Linear(d_model, d_model, bias=False))
        self.W_f = nn.Linear(d_model, d_model)

    def attend(self, query, key, value):
        return (query @ key.transpose(1, 2) / query.shape[2] ** 0.5).softmax(dim=-1) @ value

    def forward(self, x, memory):
        ys = []
        g_in = torch.sigmoid(self.W_in(x.mean(dim=1, keepdim=True)))  # (B, 1, D): how much there is to write
        for E in x.split(self.segment_len, dim=1):  # (B, L, D)
            memory = memory.detach()  # only the bank goes on from segment to segment
            C = self.attend(self.U_q(memory), self.U_k(E), self.U_v(E))  # (B, N, D)
            g_f = torch.sigmoid(self.W_f(memory))
            memory = g_f * memory + g_in * torch.tanh(C)
            R = self.attend(self.W_q(E), self.W_k(memory), self.W_v(memory))  # (B, L, D)
            ys.append(E + torch.sigmoid(self.W_out(R)) * R)
        return torch.cat(ys, dim=1), memory''',
    hints=(
        "Follow one late token: change x[:, -1] and ask of every line which numbers move, and who reads them. Then ask "
        "the same of the gradient: a number of the first segment, by which lines does it reach the third?",
        "The input gate is made from all of x, before the first token has been read. And each segment reads a bank in "
        "which it has just been written. What does x.split give last when T is no multiple of segment_len?",
        "Read first, with the memory from before; then C, and g_in = torch.sigmoid(self.W_in(C)); write only where "
        "E.shape[1] == self.segment_len; no detach.",
    ),
    cases=oracles.bank_layer_cases,
    probe=oracles.bank_layer_probe,
    oracle=oracles.bank_layer_oracle,
    mistakes=mistakes.BANK_LAYER,
)

WRITE_SEGMENT = Exercise(
    id="6.6",
    name="write_segment",
    title="A second pass for thoughts",
    kind="use the library",
    points=4,
    minutes=15,
    difficulty="medium",
    question="""\
A bank that answers to the input alone remembers what it was told, not what it made of it. Chapter 06 measures four ways
to write a finished segment, whose inputs are $x$ and whose outputs, the *thoughts*, are $y$. Write all four, with one
head and with the library's `lm2.update` as the last line of each pass (`help(lm2.update)` says what it does itself).
All passes share the same weights.""",
    stub='''\
def write_segment(memory, inputs, thoughts, U, W, b_f, writes):
    """The bank after a segment.  One pass writes the rows Z to a bank M:

        C = softmax(M U_q (Z U_k)^T / sqrt(D)) Z U_v    g_in = sigmoid(C W_in)    g_f = sigmoid(M W_f + b_f)
        M <- lm2.update of M, C and the two gates

    writes: "input"    one pass with Z = inputs
            "thought"  one pass with Z = thoughts
            "both"     a pass with Z = inputs, then a second with Z = thoughts, whose M is what the first has left
            "joint"    one pass, Z = inputs and thoughts, one after the other: 2L rows
    memory: (B, N, D); inputs, thoughts: (B, L, D); U["q"], U["k"], U["v"], W["in"], W["f"]: (D, D); b_f: (D,)
    -> the new bank: (B, N, D).
    """
    raise NotImplementedError''',
    hints=(
        "Write one pass as a function of a bank and of rows Z. Then the four ways are a list of passes for each name "
        "of `writes`: of one, or of two.",
        "`lm2.update(memory, candidate, forget_gate, input_gate)` applies tanh to the candidate itself. In the second "
        "pass everything that sees M sees the new M: the slots' queries and the forget gate, too.",
        '`Zs = {"input": [inputs], "thought": [thoughts], "both": [inputs, thoughts], "joint": [torch.cat([inputs, '
        "thoughts], dim=1)]}[writes]`, then `for Z in Zs:` compute C, g_in and g_f from memory and Z, and let memory = "
        "lm2.update(memory, C, g_f, g_in).",
    ),
    cases=oracles.write_cases,
    probe=call,
    oracle=oracles.write_oracle,
    mistakes=mistakes.WRITE_SEGMENT,
)

ALL_SEGMENTS = Exercise(
    id="6.7",
    name="read_segments",
    title="Only the bank has to wait",
    kind="make it fast",
    points=5,
    minutes=25,
    difficulty="hard",
    question="""\
The loop of the docstring reads the bank token by token, as a model does that generates. In training the whole text is
there. A bank waits for the segment before it, so the writes stay in a loop; the reads wait for nobody once all banks
are known. Give the same numbers and gradients for any T, with at most three calls of `read`, however many segments
there are, and at least five times as fast on 256 tokens. `read` and `write` are handed to you; they treat each row of
a batch on its own, and take any batch size.""",
    stub='''\
def read_segments(x, memory, read, write, segment_len):
    """Read the bank at every token, and write every segment that has ended.  The same numbers as this loop:

        reads = []
        for t in range(x.shape[1]):
            reads.append(read(x[:, t : t + 1], memory))
            if (t + 1) % segment_len == 0:
                memory = write(memory, x[:, t + 1 - segment_len : t + 1])
        return torch.cat(reads, dim=1), memory

    x: (B, T, D), memory: (B, N, D), the bank before x; T may be any number from 1, also one below segment_len.
    read:  (rows, any number of tokens, D), (rows, N, D) -> (rows, the same number of tokens, D)
    write: (rows, N, D), (rows, segment_len, D) -> (rows, N, D)
    -> (reads, memory): (B, T, D), (B, N, D).
    """
    raise NotImplementedError''',
    hints=(
        "First make the list of banks: the one that is given, and one more after each whole segment. Which of them "
        "does segment s read? `read` takes any number of rows: what could be a row here?",
        "Put segments and their banks into the batch: x[:, : S * L] as (B * S, L, D) beside banks as (B * S, N, D), "
        "in the same order of rows. The tokens left over read the last bank, in a call of their own.",
        "With S = T // L: banks = torch.stack(list[:-1], dim=1).flatten(0, 1), segments = x[:, : S * L].reshape(B * "
        "S, L, D), and read(segments, banks).reshape(B, S * L, D). Leave it out where S is 0, and the rest where "
        "nothing is left; torch.cat joins them.",
    ),
    cases=oracles.segments_cases,
    probe=oracles.segments_probe,
    oracle=oracles.segments_oracle,
    mistakes=mistakes.ALL_SEGMENTS,
    properties=(oracles.all_segments_are_read_at_once, oracles.at_least_five_times_as_fast_as_the_loop),
)

EXERCISES = (
    PREDICTED_BANK,
    UPDATE_BANK,
    GATED_READ,
    SLOTS_QUERY_SEGMENT,
    BANK_LAYER,
    WRITE_SEGMENT,
    ALL_SEGMENTS,
)
