"""The exercises of chapter 08, feedback as working memory, and the arena: what is asked, the stubs, the hints.

How answers are used and what is right stands in transformer_fam_oracles.py, the known wrong answers in
transformer_fam_mistakes.py.
"""

from __future__ import annotations

from memcourse.course.checks import transformer_fam_mistakes as mistakes
from memcourse.course.checks import transformer_fam_oracles as oracles
from memcourse.course.checks import transformer_fam_variants as variants
from memcourse.course.checks.attention_oracles import call, itself
from memcourse.course.exercise import Exercise

PREDICTED_REACH = Exercise(
    id="8.1",
    name="predicted_reach",
    title="How far a stack can see",
    kind="predict, then run",
    points=3,
    minutes=10,
    difficulty="easy",
    cases=lambda: [()],
    probe=itself,
    variant=variants.PREDICTED_REACH,
    **variants.PREDICTED_REACH.of_the_course,
)

WHO_MAY_LOOK = Exercise(
    id="8.2",
    name="who_may_look",
    title="Who may look at whom",
    kind="write the equation",
    points=3,
    minutes=12,
    difficulty="easy",
    question="""\
The picture of the chapter as two boolean masks, True where a query may look. The tokens of a block look at [past
blocks, the oldest first; feedback; own block], in this order of columns; the feedback, once the block has ended, at
[feedback; own block]. Tokens see every past block that exists, all of the feedback, and their own block up to
themselves. Blocks are counted from 0; before block 0 there is nothing, but its columns are there all the same.""",
    stub='''\
def who_may_look(block, block_len, n_feedback, n_past_blocks):
    """Masks for the tokens of a block and for the feedback that sums it up, True where a query may look.

    block: the block's number, counted from 0; block_len L >= 1; n_feedback F >= 0; n_past_blocks m >= 0
    -> (tokens, feedback): two boolean tensors, (L, m L + F + L) and (F, F + L).
    The m past blocks stand in the columns as block - m, ..., block - 1; those of negative number do not exist.
    """
    raise NotImplementedError''',
    hints=(
        "Three pieces side by side, each (L, something): of which of them does the row not matter? `torch.ones(..., "
        "dtype=torch.bool)` is all True.",
        "`torch.ones(L, L, dtype=torch.bool).tril()` is True up to the diagonal, the token itself included. Of the "
        "past "
        "blocks, max(0, m - block) do not exist, and they are the oldest: the first columns.",
        "missing = max(0, m - block) * L; past = torch.ones(L, m * L, dtype=torch.bool); past[:, :missing] = False; "
        "tokens = torch.cat([past, torch.ones(L, F, dtype=torch.bool), own], dim=1). The feedback's mask is all True.",
    ),
    cases=oracles.mask_cases,
    probe=call,
    oracle=oracles.mask_oracle,
    mistakes=mistakes.WHO_MAY_LOOK,
)

UPDATE_FEEDBACK = Exercise(
    id="8.3",
    name="update_feedback",
    title="The feedback's update",
    kind="write the equation",
    points=4,
    minutes=20,
    difficulty="medium",
    question="""\
A block has ended. Its feedback asks itself and the block, with the tokens' own weights, and goes through their
feed-forward, with $G = \\mathrm{norm}(F_{\\tau-1})$:

$$A^F = F_{\\tau-1} + \\mathrm{attend}\\big(G W_q,\\; [G; E]\\,W_k,\\; [G; E]\\,W_v\\big)\\,W_o, \\qquad
F_\\tau = A^F + \\mathrm{ff}(\\mathrm{norm}(A^F)).$$

There is no causal mask, and in this exercise no rotary position. A head has $d = D / H$ columns (the first head the
first d), the scale $1/\\sqrt{d}$ and a softmax of its own; what heads read is put side by side in order. In a row's
first update the residual $F_{\\tau-1}$ is zero; nothing else changes there.""",
    stub='''\
def update_feedback(feedback, E, blocks, W, n_heads, norm, ff):
    """The feedback after a block.

    feedback: F_{tau-1} (B, F, D); E: (B, L, D), the block's tokens, after the norm already
    blocks: (B,) integers, the number of blocks that each row had finished before this one; 0: its first update
    W: a dict with W["q"], W["k"], W["v"] and W["o"], (D, D) each, used as G @ W["q"]; n_heads divides D
    norm, ff: functions that are handed to you, (B, n, D) -> (B, n, D) for any n; ff is the branch without its residual
    -> F_tau: (B, F, D).
    """
    raise NotImplementedError''',
    hints=(
        "Three steps: attention with queries of G over torch.cat([G, E], dim=1), the residual, the feed-forward. Which "
        "of the three sees F_{tau-1} without the norm?",
        "`(blocks > 0)[:, None, None]` is True for the rows that carry their feedback on; False times a number is 0. "
        "Heads: `.unflatten(2, (n_heads, -1)).transpose(1, 2)` makes (B, H, n, d), and `.transpose(1, 2).flatten(2)` "
        "goes back.",
        'seen = torch.cat([G, E], dim=1); q, k, v split from G @ W["q"], seen @ W["k"], seen @ W["v"]; read = ((q @ '
        'k.mT / d ** 0.5).softmax(-1) @ v) brought back; A = feedback * (blocks > 0)[:, None, None] + read @ W["o"]; '
        "return A + ff(norm(A)).",
    ),
    cases=oracles.update_cases,
    probe=oracles.update_probe,
    oracle=oracles.update_oracle,
    mistakes=mistakes.UPDATE_FEEDBACK,
)

FEEDBACK_LAYER = Exercise(
    id="8.4",
    name="FeedbackLayer",
    title="Repair a feedback layer",
    kind="repair this",
    points=5,
    minutes=25,
    difficulty="hard",
    question="""\
A plausible layer with feedback (one head, one past block, no rotary positions), with four faults. One lets tokens see
what comes after them. The other three leave a layer that runs and remembers badly, or not what it should.
Repair it until it does what the docstring says. The layers of `__init__` keep their names and
shapes, so that the check can set them; nothing is wrong in `__init__`, `attend` or `feed_forward`.""",
    stub='''\
class FeedbackLayer(nn.Module):
    """Tokens read the feedback of the block before; a block that has ended rewrites it.

    For the tokens X of a block, E = norm(X), the E' of the block before (none for the first), G = norm(F):

        A   = X + attend(E, [E'; G; E up to t])      y = feed_forward(A)
        A_F = F + attend(G, [G; E])                  F after the block = feed_forward(A_F)

    In the first block the residual F of A_F is left out (zero).
    feed_forward(A) = A + contract(gelu(expand(ff_norm(A)))).
    x: (B, T, D), the blocks one after the other, block_len tokens each; tokens that do not fill a block at the end of x
    are answered as all others, and do not change the feedback.  feedback: (B, n, D), what the first block reads
    -> (y, feedback): (B, T, D), (B, n, D).
    """

    def __init__(self, d_model, block_len):
        raise NotImplementedError  # delete this line first; everything below is the broken layer
        super().__init__()
        self.block_len = block_len
        self.norm, self.ff_norm = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        for name in ("W_q", "W_k", "W_v", "W_o"):
            setattr(self, name, nn.Linear(d_model, d_model, bias=False))
        self.expand = nn.Linear(d_model, 2 * d_model, bias=False)
        self.contract = nn.Linear(2 * d_model, d_model, bias=False)

    def attend(self, asking, asked, may_look=None):
        scores = self.W_q(asking) @ self.W_k(asked).mT / asking.shape[2] ** 0.5
        if may_look is not None:
            scores = scores.masked_fill(~may_look, -torch.inf)
        return self.W_o(scores.softmax(dim=-1) @ self.W_v(asked))

    def feed_forward(self, A):
        return A + self.contract(nn.functional.gelu(self.expand(self.ff_norm(A))))

    def forward(self, x, feedback):
        ys, past = [], x[:, :0]
        for X in x.split(self.block_len, dim=1):  # (B, L, D)
            E, G = self.norm(X), self.norm(feedback)
            if X.shape[1] == self.block_len:
                feedback = self.attend(G, torch.cat([past, G, E], dim=1))  # (B, n, D)
            G = self.norm(feedback)
            before, L = past.shape[1] + G.shape[1], X.shape[1]
            may_look = torch.ones(L, before + L, dtype=torch.bool).tril(before)
            A = X + self.attend(E, torch.cat([past, G, E], dim=1), may_look)
            ys.append(self.feed_forward(A))
            past = E
        return torch.cat(ys, dim=1), feedback''',
    hints=(
        "Follow the last token of a block: which lines see it, and who reads what they make? Then compare the line "
        "that "
        "makes `feedback` with the two equations of the docstring, term by term.",
        "The tokens should read the G from before the update: move the update below them. The update has a residual, "
        "which is zero in the first block alone, and a feed-forward; its keys are [G; E].",
        "After ys.append: `if X.shape[1] == self.block_len:` A_F = self.attend(G, torch.cat([G, E], dim=1)); unless it "
        "is "
        "the first block, A_F = A_F + feedback; feedback = self.feed_forward(A_F). No second G.",
    ),
    cases=oracles.layer_cases,
    probe=oracles.layer_probe,
    oracle=oracles.layer_oracle,
    mistakes=mistakes.FEEDBACK_LAYER,
)

READ_BLOCKS = Exercise(
    id="8.5",
    name="read_blocks",
    title="Only the feedback waits",
    kind="make it fast",
    points=5,
    minutes=30,
    difficulty="hard",
    question="""\
The loop of the docstring goes token by token: tokens look at the block before, at the feedback and at their own block
up to themselves. The feedback of a block needs the one before it, and stays in a loop, one `update` a block.
Everything else waits for nobody: read for the tokens of all blocks at once. The same numbers and gradients; at most
five calls of torch for each further block, beside those inside `update`; and at least four times as fast on 64 blocks
of 4 tokens.""",
    stub='''\
def read_blocks(E, feedback, W, update, block_len):
    """What all tokens read, and the feedback after the last block.  The same numbers as this loop:

        reads, past = [], E[:, :0]
        for block in E.split(block_len, dim=1):
            for t in range(block_len):
                seen = torch.cat([past, feedback, block[:, : t + 1]], dim=1)
                scores = (block[:, t : t + 1] @ W["q"]) @ (seen @ W["k"]).mT / E.shape[2] ** 0.5
                reads.append(scores.softmax(dim=-1) @ (seen @ W["v"]))
            feedback, past = update(feedback, block), block
        return torch.cat(reads, dim=1), feedback

    E: (B, T, D), T a multiple of block_len, L; feedback: (B, F, D), what the first block reads
    W: a dict with W["q"], W["k"] and W["v"], (D, D) each; update: (B, F, D), (B, L, D) -> (B, F, D), handed to you
    -> (reads, feedback): (B, T, D), (B, F, D).
    """
    raise NotImplementedError''',
    hints=(
        "First the loop that remains: a list of the feedback that each block reads. Then put blocks into an axis of "
        "their own: `E.unflatten(1, (-1, L))` is (B, S, L, D). What does each of the S blocks look at, as (B, S, ?, "
        "D)?",
        "The past of block s is block s - 1, and zeros stand in for the one before the first: torch.cat([zeros, "
        "blocks[:, :-1]], dim=1). Now `seen` is (B, S, L + F + L, D), scores (B, S, L, L + F + L), and a mask of two "
        "parts "
        "remains: own columns causal, and block 0 does not look at its past columns.",
        "mask = torch.ones(L, L + F + L, dtype=torch.bool).tril(L + F).repeat(S, 1, 1); mask[0, :, :L] = False; seen = "
        "torch.cat([past, torch.stack(read_by, dim=1), blocks], dim=2); scores.masked_fill(~mask, -torch.inf).softmax("
        '-1) @ (seen @ W["v"]), and .flatten(1, 2) brings (B, T, D) back.',
    ),
    cases=oracles.blocks_cases,
    probe=oracles.blocks_probe,
    oracle=oracles.blocks_oracle,
    mistakes=mistakes.READ_BLOCKS,
    properties=(
        oracles.the_feedback_is_updated_once_a_block,
        oracles.the_reads_take_no_step_for_each_block,
        oracles.at_least_four_times_as_fast_as_the_loop,
    ),
)

PATIENT = Exercise(
    id="8.6",
    name="Patient",
    title="A memory that does not learn",
    kind="repair this",
    points=6,
    minutes=30,
    difficulty="hard",
    question="""\
A model with a matrix for a memory is asked for one of three pairs, some segments later (`recall_batch`), and fails. In
chapters 03, 06, 07 and 08 you have met what can be wrong; here it is a list of six suspects, of which several are
guilty. Do not guess: **measure**, each suspect by itself, with the functions above, on the broken model (delete its
first line). Write your findings into the class, then repair it until it does what its docstring says.
`train_patient(Patient)` and `patient_accuracy(model, n)` show whether it has recovered: trained on 2 to 6 segments, it
should recall over 16.""",
    stub='''\
class Patient(nn.Module):
    """A language model whose memory M, (B, D, D), is read by every token and written at the end of every segment.

        x_t = e_t + shift(e_{t-1})            e: embeddings of the tokens; before the first of all stands a zero
        r_t = query(x_t) M                    M: what the segments before have left, zeros at first
        M after a segment = g * M + sum_t i_t key(x_t)^T value(x_t)    g = sigmoid(forget_bias), one for each row of M
        logits_t = embedding.weight r_t       i_t = sigmoid(write(x_t))

    tokens: (B, T) -> logits (B, T, V); tokens that do not fill a segment at the end are read for, and not written.
    A fresh model keeps half of its memory, or more, for 16 segments, and its gates can still learn (1 - g > 0.0001).
    n_segments(step): the number of segments of the batch of a training step, a whole number from 2 to 6; all five occur
    within 200 steps.  findings: for each suspect, True if the broken model has this fault, False if not:
        "cut"         no gradient comes from the last segment's loss to what the first segment writes
        "forgets"     less than half of the memory is left after one segment
        "unbound"     the memory does not change when two keys exchange their values
        "one_length"  training sees one number of segments only
        "leaks"       logits change when a later token does
        "shut"        nothing is written: the memory is 0 after a segment
    """

    findings = None  # {"cut": ..., "forgets": ..., "unbound": ..., "one_length": ..., "leaks": ..., "shut": ...}

    def __init__(self, n_words, d_model, segment_len):
        raise NotImplementedError  # delete this line first; everything below is the broken model
        super().__init__()
        self.segment_len = segment_len
        self.embedding = nn.Embedding(n_words, d_model)
        for name in ("shift", "query", "key", "value"):
            setattr(self, name, nn.Linear(d_model, d_model, bias=False))
        self.write = nn.Linear(d_model, 1)
        self.forget_bias = nn.Parameter(torch.full((d_model,), -2.0))

    def embed(self, tokens):
        e = self.embedding(tokens)
        return e + self.shift(e)  # (B, T, D)

    def remember(self, memory, x):
        """The memory after a segment, and nothing but it: (B, D, D), (B, L, D) -> (B, D, D)."""
        written = (torch.sigmoid(self.write(x)) * self.key(x)).mT @ self.value(x)
        return torch.sigmoid(self.forget_bias)[:, None] * memory + written

    def forward(self, tokens):
        x = self.embed(tokens)
        memory, reads = x.new_zeros(len(x), x.shape[2], x.shape[2]), []
        for segment in x.split(self.segment_len, dim=1):
            reads.append(self.query(segment) @ memory)
            if segment.shape[1] == self.segment_len:
                memory = self.remember(memory, segment).detach()  # only the numbers go on
        return torch.cat(reads, dim=1) @ self.embedding.weight.T

    @staticmethod
    def n_segments(step):
        return 2''',
    hints=(
        "One measurement a suspect. `memory_after(model, tokens)` is the memory after whole segments. For `cut`, take "
        "a "
        "gradient of the last logits; for `unbound`, compare the memories of two texts. Training itself tells you "
        "least.",
        "Four are guilty. A gradient has to pass every line between a loss and what it is to teach; one word in "
        "`forward` stops it. e + shift(e) binds a token to itself. What is sigmoid(-2)? What has a model to learn that "
        "never meets a segment in between?",
        "findings: the first four True, the last two False. embed: e + shift of nn.functional.pad(e, (0, 0, 1, 0))[:, "
        ":-1]; no detach; forget_bias 4.0; n_segments: 2 + step % 5.",
    ),
    cases=oracles.patient_cases,
    probe=oracles.patient_probe,
    oracle=oracles.patient_oracle,
    mistakes=mistakes.PATIENT,
    properties=(
        oracles.a_fresh_memory_keeps_half_for_sixteen_segments,
        oracles.training_sees_several_numbers_of_segments,
        oracles.a_trained_patient_recalls_over_sixteen_segments,
    ),
    time_limit=30.0,
)

MY_MEMORY = Exercise(
    id="8.7",
    name="MyMemory",
    title="Your own memory joins the arena",
    kind="use the library",
    points=6,
    minutes=30,
    difficulty="hard",
    question="""\
Invent a memory of your own, and let it compete. Any rule will do, as long as it keeps the laws of the course: causal;
a text in chunks gives what the whole gives; no state is the initial state; the state has a fixed size; the gradient
reaches an earlier chunk; rows do not touch; and something early can still be read late. Then one line is enough,
`CONTESTANTS["mine"] = stack(MyMemory.width, MyMemory)`: choose `width` so that this model has from 54,000 to 66,000
parameters with 32 words (`arena.n_parameters(stack(width, MyMemory))`).""",
    stub='''\
class MyMemory(SequenceMemory):
    """A mixer with a memory of a fixed size.

    initial_state(batch_size): the state before the first token: a NamedTuple (or a tuple) of tensors, batch first
    advance(x, state): x (B, T, D) with T >= 1, state -> (y, state): y (B, T, D), and all that the next token needs
    y at token t hangs on the state that came in and on tokens up to t.  Every parameter gets a gradient.
    `forward` is inherited: it checks x, makes the initial state where none is given, and calls advance.
    """

    level = "mixer"
    width = 48  # of the model in the arena

    def __init__(self, d_model):
        super().__init__()
        self.config = {"d_model": d_model}
        raise NotImplementedError

    def initial_state(self, batch_size, *, device=None, dtype=None):
        raise NotImplementedError

    def advance(self, x, state):
        raise NotImplementedError''',
    hints=(
        "Begin with the smallest thing that remembers: a vector that keeps a share of itself and takes in a share of "
        "what "
        "is new (chapter 03), or a matrix of keys and values (chapter 07). What is its state, and of what shape?",
        "`initial_state` returns e.g. (torch.zeros(batch_size, d_model, device=device, dtype=dtype),). advance: a loop "
        "over "
        "`x.unbind(dim=1)` that makes one new vector a token from the one before, and appends it. The last one is the "
        "new state. Nothing is kept on self.",
        "In __init__: self.new, self.gate and self.out, three nn.Linear(d_model, d_model). A step: g = self.gate(x_t)."
        "sigmoid(); h = g * h + (1 - g) * self.new(x_t). y = self.out(torch.stack(hs, dim=1)); return y, (h,). Then "
        "count "
        "parameters for some widths.",
    ),
    cases=oracles.mine_cases,
    probe=oracles.mine_probe,
    oracle=oracles.mine_oracle,
    mistakes=mistakes.MY_MEMORY,
    properties=(
        oracles.None_is_the_initial_state,
        oracles.the_state_has_the_dtype_that_is_asked_for,
        oracles.no_token_sees_a_later_one,
        oracles.chunks_give_what_the_whole_gives,
        oracles.what_was_early_can_still_be_read_late,
        oracles.the_gradient_reaches_an_earlier_chunk,
        oracles.the_state_does_not_grow,
        oracles.rows_never_touch,
        oracles.it_joins_the_arena,
    ),
    gradient=False,
)

EXERCISES = (
    PREDICTED_REACH,
    WHO_MAY_LOOK,
    UPDATE_FEEDBACK,
    FEEDBACK_LAYER,
    READ_BLOCKS,
    PATIENT,
    MY_MEMORY,
)
