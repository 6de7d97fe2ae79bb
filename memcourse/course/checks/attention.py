"""The exercises of chapter 01, attention as a soft dictionary: what is asked, the stubs, the hints.

How answers are used and what is right stands in attention_oracles.py, the known wrong answers in attention_mistakes.py.
"""

from __future__ import annotations

from memcourse.course.checks import attention_mistakes as mistakes
from memcourse.course.checks import attention_oracles as oracles
from memcourse.course.checks import attention_variants as variants
from memcourse.course.exercise import Exercise

PREDICTED_WEIGHTS = Exercise(
    id="1.1",
    name="predicted_weights",
    title="What the softmax does to a score",
    kind="predict, then run",
    points=1,
    minutes=4,
    difficulty="easy",
    cases=lambda: [()],
    probe=oracles.itself,
    tolerance=5e-3,
    variant=variants.PREDICTED_WEIGHTS,
    **variants.PREDICTED_WEIGHTS.of_the_course,
)

ATTENTION_WEIGHTS = Exercise(
    id="1.2",
    name="attention_weights",
    title="The address: weights of every query over every key",
    kind="write the equation",
    points=2,
    minutes=10,
    difficulty="easy",
    question="""\
Write $\\mathrm{softmax}(QK^\\top/\\sqrt{d})$, the address of the soft dictionary: one row of weights for each query,
which sums to 1 over the keys. Every memory of this course that is looked up by content begins with this line.""",
    stub='''\
def attention_weights(query, key):
    """Weights of every query over every key.  query: (T, d), key: (S, d) -> (T, S), rows sum to 1."""
    raise NotImplementedError''',
    hints=(
        "Two steps: a score for each pair of a query and a key, then a softmax. Over which axis do the weights sum "
        "to 1?",
        "All scores at once are a matrix product, (T, d) @ (d, S) -> (T, S); d is `query.shape[-1]`, and sqrt(d) "
        "divides the scores.",
        "`scores = query @ key.T / query.shape[-1] ** 0.5`, then a softmax of the scores over their last axis.",
    ),
    cases=oracles.weights_cases,
    probe=oracles.call,
    oracle=oracles.weights_oracle,
    mistakes=mistakes.ATTENTION_WEIGHTS,
    properties=(oracles.one_query_and_one_key,),
)

ATTEND = Exercise(
    id="1.3",
    name="attend",
    title="The read, with a mask",
    kind="write the equation",
    points=3,
    minutes=15,
    difficulty="medium",
    question="""\
Read from the dictionary: each query gets the sum of the values, weighted by its attention weights over the keys that
`mask` lets it see. A query that may see nothing reads zeros. In a real batch such rows happen (an empty memory, a
sentence that is all padding), and one NaN in a row spoils the gradient of the whole model.""",
    stub='''\
def attend(query, key, value, mask):
    """Read of every query from the values.  query: (T, d), key: (S, d), value: (S, v), mask: (T, S) -> (T, v).

    The weights are softmax(query key^T / sqrt(d)) over the keys where mask is True (True = may look).
    A row of the mask that is all False reads zeros, with no NaN in the value or in any gradient.
    """
    raise NotImplementedError''',
    hints=(
        "Mask the scores, before the softmax: then what is left shares the whole weight. What does a softmax give "
        "when every score of a row is -inf?",
        "`scores.masked_fill(~mask, x)` puts x where a query may not look. With x = -inf an empty row is 0/0; with "
        "the lowest finite number, torch.finfo(scores.dtype).min, it shares the weight equally. Neither is zero yet.",
        "Fill with torch.finfo(scores.dtype).min, take the softmax over the last axis, then set the weights to 0 "
        "wherever the mask is False: this changes nothing but empty rows. Then weights @ value.",
    ),
    cases=oracles.attend_cases,
    probe=oracles.call,
    oracle=oracles.attend_oracle,
    mistakes=mistakes.ATTEND,
    properties=(oracles.a_masked_key_has_no_say, oracles.the_gradient_of_an_empty_row),
)

ATTENTION_LAYER = Exercise(
    id="1.4",
    name="AttentionLayer",
    title="Repair the guide's attention layer",
    kind="repair this",
    points=4,
    minutes=20,
    difficulty="medium",
    question="""\
This is additive attention as the guide that this course began from prints it, and it does not run: two imports are
missing. One linear layer on `[hidden; encoder_outputs]` does the work of the chapter's two matrices. It
also pays attention to padding, returns the weights without reading anything, and wants `encoder_outputs` with time
first while the rest of this course puts the batch first. Repair it until it does what the docstring says; keep the
names and shapes of its three parameters, so that the check can set them. Code that you take from elsewhere usually
needs just this.""",
    stub='''\
class AttentionLayer(nn.Module):
    """Additive attention: energy_bs = v . tanh(attn([hidden_b; encoder_outputs_bs])), weights = softmax over s.

    hidden: (B, H), encoder_outputs: (B, S, H), lengths: (B,), each 1 to S -> (context, weights): (B, H), (B, S).
    Sentence b is encoder_outputs[b, :lengths[b]]; what follows is padding and has weight 0.
    context_b = sum_s weights_bs encoder_outputs_bs.
    Parameters: attn.weight (H, 2H), attn.bias (H,), v (H,).
    """

    def __init__(self, hidden_size):
        raise NotImplementedError  # delete this line first; everything below is the source's code as printed
        super(AttentionLayer, self).__init__()
        self.hidden_size = hidden_size
        self.attn = nn.Linear(self.hidden_size * 2, hidden_size)
        self.v = nn.Parameter(torch.rand(hidden_size))
        stdv = 1. / math.sqrt(self.v.size(0))
        self.v.data.uniform_(-stdv, stdv)

    def forward(self, hidden, encoder_outputs):
        timestep = encoder_outputs.size(0)
        h = hidden.repeat(timestep, 1, 1).transpose(0, 1)
        encoder_outputs = encoder_outputs.transpose(0, 1)
        attn_energies = self.score(h, encoder_outputs)
        return F.softmax(attn_energies, dim=1).unsqueeze(1)

    def score(self, hidden, encoder_outputs):
        energy = torch.tanh(self.attn(torch.cat([hidden, encoder_outputs], 2)))
        energy = energy.transpose(1, 2)
        v = self.v.repeat(encoder_outputs.size(0), 1).unsqueeze(1)
        energy = torch.bmm(v, energy)
        return energy.squeeze(1)''',
    hints=(
        "Begin with `import math` and `import torch.nn.functional as F` above the class. Then write the shape of "
        "every line beside it: where does time come first?",
        "With the batch first, both transposes of forward go: S is encoder_outputs.size(1), and hidden[:, "
        "None].expand(-1, S, -1) is (B, S, H). Padding is where torch.arange(S) >= lengths[:, None], a (B, S) mask.",
        "Fill the energies of padding with -inf (no sentence is empty), softmax over dim=1, then context = "
        "torch.bmm(weights.unsqueeze(1), encoder_outputs).squeeze(1); return context, weights. `score` may stay as "
        "it is.",
    ),
    cases=oracles.layer_cases,
    probe=oracles.layer_probe,
    oracle=oracles.layer_oracle,
    mistakes=mistakes.ATTENTION_LAYER,
    properties=(oracles.the_padding_has_no_say,),
)

WINDOWED_ATTENTION = Exercise(
    id="1.5",
    name="windowed_attention",
    title="A window without a loop",
    kind="make it fast",
    points=3,
    minutes=20,
    difficulty="medium",
    question="""\
Causal attention in a window: query t sees the `window` keys t - window + 1 ... t, its own among them (fewer at the
beginning). The stub's docstring has it as a loop. Write it for all queries at once: the same numbers, and at least
five times as fast on 256 tokens. A memory that is trained in a loop over tokens is one that nobody trains for long.""",
    stub='''\
def windowed_attention(query, key, value, window):
    """Causal attention in a window.  query: (T, d), key: (T, d), value: (T, v), window: int, 1 or more -> (T, v).

    The same numbers as this loop, for all queries at once:

        reads = []
        for t in range(len(query)):
            seen = slice(max(0, t - window + 1), t + 1)
            weights = (key[seen] @ query[t] / query.shape[1] ** 0.5).softmax(dim=0)
            reads.append(weights @ value[seen])
        return torch.stack(reads)
    """
    raise NotImplementedError''',
    hints=(
        "The loop only says which keys a query may see. Exercise 1.3 reads with a mask for all queries at once.",
        "Compare a column of query places, torch.arange(T)[:, None], with a row of key places, torch.arange(T): two "
        "conditions, joined by &, make the (T, T) mask.",
        "Seen are keys with s <= t and s > t - window. Fill all other scores with -inf (no row is empty), softmax, @ "
        "value.",
    ),
    cases=oracles.windowed_cases,
    probe=oracles.call,
    oracle=oracles.windowed_oracle,
    mistakes=mistakes.WINDOWED_ATTENTION,
    properties=(oracles.at_least_five_times_as_fast_as_the_loop,),
)

DECODER = Exercise(
    id="1.6",
    name="Decoder",
    title="Attention in a sequence-to-sequence model",
    kind="use the library",
    points=5,
    minutes=30,
    difficulty="hard",
    question="""\
Plug the library's `AdditiveAttention` into the decoder of a sequence-to-sequence model
(`help(AdditiveAttention.forward)` says what it takes). `__init__` is given: write `forward`, where the hidden state
asks at every step, the context that it reads goes into the GRU cell beside the embedded word, and the new hidden state
says the next word. The check then trains your decoder for a few seconds to say sentences backwards, which the same
decoder without attention does not learn: its memory is one vector, yours is
the whole sentence.""",
    stub='''\
class Decoder(nn.Module):
    """Attention at every step of a decoder, for t = 0 ... T-1, from h = hidden:

        context, weights_t = attention(query=h, key=encoder_outputs, value=encoder_outputs)
        h                  = cell([embedding(targets_in_t); context], h)
        logits_t           = output(h)

    encoder_outputs: (B, S, d), hidden: (B, d), targets_in: (B, T) integers, lengths: (B,), each 1 to S
    -> (logits, weights): (B, T, V), (B, T, S).  Places from lengths[b] on are padding and have weight 0.
    """

    def __init__(self, vocab_size, d_model):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.attention = AdditiveAttention(d_model, d_model, d_model)
        self.cell = nn.GRUCell(2 * d_model, d_model)
        self.output = nn.Linear(d_model, vocab_size)

    def forward(self, encoder_outputs, hidden, targets_in, lengths):
        raise NotImplementedError''',
    hints=(
        "`help(AdditiveAttention.forward)` shows what it takes and gives: (query, key, value, mask) -> (output, "
        "weights). Here the query is one hidden state a sentence: (B, d) needs an axis to become (B, 1, d).",
        "The mask is (torch.arange(S) < lengths[:, None])[:, None], of shape (B, 1, S). In the loop over t, keep "
        "logits and weights in two lists, and overwrite `hidden` with what the cell returns: the next step asks with "
        "it.",
        "A step: `context, w = self.attention(hidden[:, None], encoder_outputs, encoder_outputs, mask)`; `hidden = "
        "self.cell(torch.cat([word, context[:, 0]], dim=1), hidden)`; then self.output(hidden) and w[:, 0] go into "
        "the lists. At the end torch.stack each along dim=1.",
    ),
    cases=oracles.decoder_cases,
    probe=oracles.decoder_probe,
    oracle=oracles.decoder_oracle,
    mistakes=mistakes.DECODER,
    properties=(oracles.one_word_of_one_sentence, oracles.learns_to_say_a_sentence_backwards),
    time_limit=30.0,
)

LARGEST_N = Exercise(
    id="1.7",
    name="largest_n",
    title="How many pairs fit?",
    kind="find the limit",
    points=2,
    minutes=15,
    difficulty="medium",
    cases=lambda: [()],
    variant=variants.LARGEST_N,
    **variants.LARGEST_N.of_the_course,
)

EXERCISES = (
    PREDICTED_WEIGHTS,
    ATTENTION_WEIGHTS,
    ATTEND,
    ATTENTION_LAYER,
    WINDOWED_ATTENTION,
    DECODER,
    LARGEST_N,
)
