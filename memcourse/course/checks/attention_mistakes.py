"""The known wrong answers of chapter 01, each with the sentence that names it.

Each group has one right way in parts, and a mistake is that way with one part replaced.  They stand in the order in
which they should be recognised: the first that gives the learner's numbers is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from memcourse.attention import AdditiveAttention
from memcourse.course.checks.attention_oracles import windowed_loop
from memcourse.course.exercise import Mistake

# 1.2 attention_weights


def scores(query: Tensor, key: Tensor) -> Tensor:
    return query @ key.T / query.shape[1] ** 0.5  # (T, S)


def overflowing(scores: Tensor) -> Tensor:
    return scores.exp() / scores.exp().sum(dim=-1, keepdim=True)


NO_SCALE = "the scale is missing: divide the scores by sqrt(d) before the softmax"
OVER_QUERIES = "this looks like a softmax over the queries: each column sums to 1, and each row should"
BY_D = "this looks like scores divided by d: the scale is 1/sqrt(d), the spread of a dot product of d terms"

ATTENTION_WEIGHTS = (
    Mistake(NO_SCALE, lambda query, key: (query @ key.T).softmax(dim=1)),
    Mistake(OVER_QUERIES, lambda query, key: scores(query, key).softmax(dim=0)),
    Mistake(f"{OVER_QUERIES}; the scale is missing too", lambda query, key: (query @ key.T).softmax(dim=0)),
    Mistake(BY_D, lambda query, key: (query @ key.T / query.shape[1]).softmax(dim=1)),
    Mistake(
        "the scores are multiplied by sqrt(d) where they should be divided by it",
        lambda query, key: (query @ key.T * query.shape[1] ** 0.5).softmax(dim=1),
    ),
    Mistake(
        "the scale takes the number of keys or queries where it should take their width d, the last axis",
        lambda query, key: (query @ key.T / len(key) ** 0.5).softmax(dim=1),
    ),
    Mistake(
        "the scale takes the number of keys or queries where it should take their width d, the last axis",
        lambda query, key: (query @ key.T / len(query) ** 0.5).softmax(dim=1),
    ),
    Mistake(
        "the scale comes after the softmax, so that the rows sum to 1/sqrt(d): scale the scores, not the weights",
        lambda query, key: (query @ key.T).softmax(dim=1) / query.shape[1] ** 0.5,
    ),
    Mistake("these are the scores: the softmax over the keys is missing", scores),
    Mistake(
        "these are logarithms of weights: softmax is asked, not log_softmax",
        lambda query, key: scores(query, key).log_softmax(dim=1),
    ),
    Mistake(
        "this looks like a sigmoid of each score on its own: the keys of a query share a weight of 1",
        lambda query, key: scores(query, key).sigmoid(),
    ),
    Mistake(
        "these are the weights of cosines: divide the dot products by sqrt(d), not by the lengths of query and key",
        lambda query, key: (nn.functional.normalize(query) @ nn.functional.normalize(key).T).softmax(dim=1),
    ),
    Mistake(
        "this reads with the weights, and the weights themselves are asked",
        lambda query, key: scores(query, key).softmax(dim=1) @ key,
    ),
    Mistake(
        "exp is missing: the scores are divided by their sum, which may be zero or negative",
        lambda query, key: scores(query, key) / scores(query, key).sum(dim=1, keepdim=True),
    ),
    Mistake(
        "an axis of length 1 is lost",
        lambda query, key: scores(query, key).softmax(dim=1).squeeze(),
    ),
    Mistake(
        "exp of a score above 88 is infinite in float32: subtract the largest score of each row first, as "
        "torch.softmax does",
        lambda query, key: overflowing(scores(query, key)),
    ),
    Mistake(
        "this is the transpose: a row for each query, a column for each key",
        lambda query, key: scores(query, key).softmax(dim=1).T,
    ),
    Mistake(
        "this is the transpose: a row for each query, a column for each key",
        lambda query, key: scores(key, query).softmax(dim=1),
    ),
)

# 1.3 attend

Mask = Tensor


def kept(scores: Tensor, mask: Mask, fill: float = -math.inf) -> Tensor:
    return scores.masked_fill(~mask, fill)


def right_weights(query: Tensor, key: Tensor, mask: Mask) -> Tensor:
    lowest = torch.finfo(query.dtype).min
    return kept(scores(query, key), mask, lowest).softmax(dim=-1) * mask


def read_with(weigh: Callable[[Tensor, Mask], Tensor]) -> Callable[..., Tensor]:
    """attend, with the step from scores and mask to weights replaced."""
    return lambda query, key, value, mask: weigh(scores(query, key), mask) @ value


def nan_replaced(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    return torch.nan_to_num(kept(scores(query, key), mask).softmax(dim=-1) @ value)


INVERTED = "the mask is the wrong way round: True is where a query may look"
EMPTY_ROW = "a row that may look nowhere"
NOT_RENORMALISED = (
    "the mask comes after the softmax, so that what is left of a row no longer sums to 1: mask the scores before the "
    "softmax"
)
ZERO_SCORE = "a masked score is set to 0, and exp(0) = 1 still has weight: set it to -inf, or the lowest finite number"

ATTEND = (
    Mistake(
        f"{EMPTY_ROW} gives NaN: a softmax over nothing but -inf is 0/0, and that row should read zeros",
        read_with(lambda scores, mask: kept(scores, mask).softmax(dim=-1)),
    ),
    Mistake(
        f"{EMPTY_ROW} reads the mean of all values: equal scores share the weight, however low; that row should read "
        "zeros",
        read_with(lambda scores, mask: kept(scores, mask, -1e9).softmax(dim=-1)),
    ),
    Mistake(INVERTED, read_with(lambda scores, mask: kept(scores, ~mask).softmax(dim=-1))),
    Mistake(INVERTED, lambda query, key, value, mask: right_weights(query, key, ~mask) @ value),
    Mistake(NOT_RENORMALISED, read_with(lambda scores, mask: scores.softmax(dim=-1) * mask)),
    Mistake(ZERO_SCORE, read_with(lambda scores, mask: kept(scores, mask, 0.0).softmax(dim=-1))),
    Mistake(
        ZERO_SCORE,
        read_with(lambda scores, mask: kept(scores, mask, 0.0).softmax(dim=-1) * mask.any(dim=1, keepdim=True)),
    ),
    Mistake("the mask is not used", read_with(lambda scores, mask: scores.softmax(dim=-1))),
    Mistake(
        NO_SCALE,
        lambda query, key, value, mask: right_weights(query * query.shape[1] ** 0.5, key, mask) @ value,
    ),
    Mistake(
        f"{NO_SCALE}; {EMPTY_ROW} gives NaN, too",
        lambda query, key, value, mask: kept(query @ key.T, mask).softmax(dim=-1) @ value,
    ),
    Mistake(BY_D, lambda query, key, value, mask: right_weights(query / query.shape[1] ** 0.5, key, mask) @ value),
    Mistake(OVER_QUERIES, read_with(lambda scores, mask: kept(scores, mask, -1e30).softmax(dim=0) * mask)),
    Mistake(OVER_QUERIES, read_with(lambda scores, mask: kept(scores, mask).softmax(dim=0))),
    Mistake(
        "this returns the weights: multiply them with the values, (T, S) @ (S, v) -> (T, v)",
        lambda query, key, value, mask: right_weights(query, key, mask),
    ),
    Mistake(
        "this returns weights beside the read: the read alone is asked",
        lambda query, key, value, mask: (right_weights(query, key, mask) @ value, right_weights(query, key, mask)),
    ),
    Mistake("the value of an empty row is mended after the NaN arose", nan_replaced),
    Mistake(
        "masked scores are low, but the scores of the visible keys can fall below them",
        read_with(lambda scores, mask: kept(scores, mask, -100.0).softmax(dim=-1) * mask.any(dim=1, keepdim=True)),
    ),
)

# 1.4 AttentionLayer


def instead(right: type[nn.Module], **parts: Any) -> type[nn.Module]:
    """The right class with some of its methods replaced."""
    return type(right.__name__, (right,), parts)


class Additive(nn.Module):
    """The right layer, in parts that a mistake replaces."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.attn = nn.Linear(2 * hidden_size, hidden_size)
        self.v = nn.Parameter(torch.rand(hidden_size))

    def forward(self, hidden: Tensor, encoder_outputs: Tensor, lengths: Tensor) -> Any:
        allowed = self.allowed(torch.arange(encoder_outputs.shape[1]), lengths[:, None])  # (B, S)
        both = self.both(hidden[:, None].expand_as(encoder_outputs), encoder_outputs)  # (B, S, 2H)
        weights = self.weigh(self.squash(self.attn(both)) @ self.v, allowed)  # (B, S)
        return self.result((weights[:, None] @ encoder_outputs).squeeze(1), weights)

    def allowed(self, place: Tensor, length: Tensor) -> Tensor:
        return place < length

    def both(self, hidden: Tensor, outputs: Tensor) -> Tensor:
        return torch.cat([hidden, outputs], dim=2)

    def squash(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def weigh(self, energy: Tensor, allowed: Tensor) -> Tensor:
        return kept(energy, allowed).softmax(dim=1)

    def result(self, context: Tensor, weights: Tensor) -> Any:
        return context, weights


OVER_BATCH = (
    "this looks like a softmax over the batch: the weights of one sentence should sum to 1, over its own places"
)

ATTENTION_LAYER = (
    Mistake(
        "padding gets weight: sentence b ends after lengths[b] outputs, and what follows should weigh 0",
        instead(Additive, weigh=lambda self, energy, allowed: energy.softmax(dim=1)),
    ),
    Mistake(
        "the padding mask is the wrong way round: this looks at the padding, and at nothing else",
        instead(Additive, allowed=lambda self, place, length: place >= length),
    ),
    Mistake(
        "the padding mask is the wrong way round: this looks at the padding, and at nothing else",
        instead(Additive, weigh=lambda self, energy, allowed: kept(energy, ~allowed, -1e9).softmax(dim=1)),
    ),
    Mistake(
        "the first place of padding gets weight: the last word of sentence b is at lengths[b] - 1",
        instead(Additive, allowed=lambda self, place, length: place <= length),
    ),
    Mistake(
        NOT_RENORMALISED.replace("scores", "energies"),
        instead(Additive, weigh=lambda self, energy, allowed: energy.softmax(dim=1) * allowed),
    ),
    Mistake(
        ZERO_SCORE.replace("score", "energy"),
        instead(Additive, weigh=lambda self, energy, allowed: kept(energy, allowed, 0.0).softmax(dim=1)),
    ),
    Mistake(
        "padding gets an energy that is low, but that other energies can fall below",
        instead(Additive, weigh=lambda self, energy, allowed: kept(energy, allowed, -30.0).softmax(dim=1)),
    ),
    Mistake(
        OVER_BATCH,
        instead(Additive, weigh=lambda self, energy, allowed: kept(energy, allowed, -1e30).softmax(dim=0) * allowed),
    ),
    Mistake(
        f"{OVER_BATCH}; padding gets weight, too",
        instead(Additive, weigh=lambda self, energy, allowed: energy.softmax(dim=0)),
    ),
    Mistake(
        "tanh is left out: without it the energy is a part of hidden plus a part of encoder_outputs, and the first "
        "cancels",
        instead(Additive, squash=lambda self, x: x),
    ),
    Mistake(
        "the hidden state comes first in the concatenation, then the encoder's output",
        instead(Additive, both=lambda self, hidden, outputs: torch.cat([outputs, hidden], dim=2)),
    ),
    Mistake(
        "this returns the weights alone: read the encoder's outputs with them, and return (context, weights)",
        instead(Additive, result=lambda self, context, weights: weights),
    ),
    Mistake(
        "this is what the guide's layer returns, weights of shape (B, 1, S), padding included: return (context, "
        "weights)",
        instead(
            Additive,
            weigh=lambda self, energy, allowed: energy.softmax(dim=1),
            result=lambda self, context, weights: weights[:, None],
        ),
    ),
    Mistake(
        "the two results are the wrong way round: return (context, weights)",
        instead(Additive, result=lambda self, context, weights: (weights, context)),
    ),
    Mistake(
        "the weights have an axis too many: (B, S) is asked, without the 1 that the guide's layer leaves for bmm",
        instead(Additive, result=lambda self, context, weights: (context, weights[:, None])),
    ),
    Mistake(
        "the context has an axis too many: bmm gives (B, 1, H), and (B, H) is asked",
        instead(Additive, result=lambda self, context, weights: (context[:, None], weights)),
    ),
)

# 1.5 windowed_attention


def banded(sees: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """windowed_attention, with what query t sees of key s replaced."""

    def attention(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
        t, s = torch.arange(len(query))[:, None], torch.arange(len(key))
        return right_weights(query, key, sees(t, s, window)) @ value

    return attention


def unscaled_window(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    return banded(lambda t, s, window: (s <= t) & (s > t - window))(query * query.shape[1] ** 0.5, key, value, window)


def window_with_nan(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    t, s = torch.arange(len(query))[:, None], torch.arange(len(key))
    return kept(scores(query, key), (s < t) & (s >= t - window)).softmax(dim=-1) @ value


WINDOWED_ATTENTION = (
    Mistake(
        "the window is one too wide: query t sees keys t - window + 1 ... t, which are `window` keys, its own among "
        "them",
        banded(lambda t, s, window: (s <= t) & (s >= t - window)),
    ),
    Mistake(
        "the window is one too narrow: query t sees keys t - window + 1 ... t, which are `window` keys, its own "
        "among them",
        banded(lambda t, s, window: (s <= t) & (s > t - window + 1)),
    ),
    Mistake(
        "the future leaks by one: query t sees key t + 1",
        banded(lambda t, s, window: (s <= t + 1) & (s > t - window)),
    ),
    Mistake(
        "the future leaks: the window reaches to both sides of t, and should end at t",
        banded(lambda t, s, window: (s - t).abs() < window),
    ),
    Mistake(
        "the future leaks: the window has a beginning, t - window + 1, but no end; it ends at t",
        banded(lambda t, s, window: s > t - window),
    ),
    Mistake(
        "the future is hidden, but the window is not used: keys before t - window + 1 are still seen",
        banded(lambda t, s, window: s <= t),
    ),
    Mistake(
        "this looks at the `window` keys before t, and not at key t itself",
        banded(lambda t, s, window: (s < t) & (s >= t - window)),
    ),
    Mistake(
        "this looks at the `window` keys before t, and not at key t itself; the first query sees none", window_with_nan
    ),
    Mistake(
        "these are blocks that do not overlap: each query has a window of its own, that ends at itself",
        banded(lambda t, s, window: (s <= t) & (s // window == t // window)),
    ),
    Mistake(
        "the mask is the wrong way round: this sees everything but the window",
        banded(lambda t, s, window: (s > t) | (s <= t - window)),
    ),
    Mistake(NO_SCALE, unscaled_window),
    Mistake("this is still a loop over the queries", windowed_loop),
)

# 1.6 Decoder


class Decoding(nn.Module):
    """The right decoder, in parts that a mistake replaces.  states: the encoder's, then one for each step."""

    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, d_model)
        self.attention = AdditiveAttention(d_model, d_model, d_model)
        self.cell = nn.GRUCell(2 * d_model, d_model)
        self.output = nn.Linear(d_model, vocab_size)

    def forward(self, encoder_outputs: Tensor, hidden: Tensor, targets_in: Tensor, lengths: Tensor) -> Any:
        mask = self.mask(torch.arange(encoder_outputs.shape[1]), lengths[:, None])  # (B, S)
        states, logits, weights = [hidden], [], []
        for word in self.embedding(targets_in).unbind(dim=1):  # (B, d)
            query = self.query(states, word)[:, None]  # (B, 1, d)
            read, step_weights = self.attention(query, encoder_outputs, encoder_outputs, mask[:, None])
            context = self.context(read.squeeze(1), word, encoder_outputs)
            states.append(self.cell(torch.cat(self.feed(word, context), dim=1), self.carried(states)))
            logits.append(self.output(self.said(states, context)))
            weights.append(step_weights.squeeze(1))
        return self.result(torch.stack(logits, dim=1), torch.stack(weights, dim=1))

    def mask(self, place: Tensor, length: Tensor) -> Tensor:
        return place < length

    def query(self, states: list[Tensor], word: Tensor) -> Tensor:
        return states[-1]

    def context(self, read: Tensor, word: Tensor, outputs: Tensor) -> Tensor:
        return read

    def feed(self, word: Tensor, context: Tensor) -> list[Tensor]:
        return [word, context]

    def carried(self, states: list[Tensor]) -> Tensor:
        return states[-1]

    def said(self, states: list[Tensor], context: Tensor) -> Tensor:
        return states[-1]

    def result(self, logits: Tensor, weights: Tensor) -> Any:
        return logits, weights


class DecodingFromZero(Decoding):
    def __init__(self, vocab_size: int, d_model: int) -> None:
        super().__init__(vocab_size, d_model)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


DECODER = (
    Mistake(
        "the padding gets weight: sentence b ends after lengths[b] outputs; hand a mask to the attention",
        instead(Decoding, mask=lambda self, place, length: (place < length) | True),
    ),
    Mistake(
        "the mask is the wrong way round: True is where the decoder may look, before lengths[b]",
        instead(Decoding, mask=lambda self, place, length: place >= length),
    ),
    Mistake(
        "the first place of padding gets weight: the last word of sentence b is at lengths[b] - 1",
        instead(Decoding, mask=lambda self, place, length: place <= length),
    ),
    Mistake(
        "the query is the encoder's state at every step: ask with the decoder's own, which each step changes",
        instead(Decoding, query=lambda self, states, word: states[0]),
    ),
    Mistake(
        "the query is one step behind: ask with the newest hidden state, the one that the cell is about to change",
        instead(Decoding, query=lambda self, states, word: states[max(0, len(states) - 2)]),
    ),
    Mistake(
        "the query is the embedded word: the hidden state asks, and the word goes into the cell",
        instead(Decoding, query=lambda self, states, word: word),
    ),
    Mistake(
        "the context is the embedded word: it should be what the attention reads from the encoder's outputs",
        instead(Decoding, context=lambda self, read, word, outputs: word),
    ),
    Mistake(
        "the context never reaches the cell: this decoder says the same whatever it looks at",
        instead(Decoding, context=lambda self, read, word, outputs: torch.zeros_like(read)),
    ),
    Mistake(
        "the context is the plain mean of the encoder's outputs, whatever the weights",
        instead(Decoding, context=lambda self, read, word, outputs: outputs.mean(dim=1)),
    ),
    Mistake(
        "the embedded word comes first in the cell's input, then the context",
        instead(Decoding, feed=lambda self, word, context: [context, word]),
    ),
    Mistake(
        "the hidden state is not carried: every step starts again from the encoder's state",
        instead(Decoding, query=lambda self, states, word: states[0], carried=lambda self, states: states[0]),
    ),
    Mistake(
        "the logits come from the context: they should come from the cell's new hidden state",
        instead(Decoding, said=lambda self, states, context: context),
    ),
    Mistake(
        "the logits come from the hidden state before the cell has seen word and context",
        instead(Decoding, said=lambda self, states, context: states[-2]),
    ),
    Mistake(
        "these are probabilities: return the logits, for cross_entropy takes the softmax itself",
        instead(Decoding, result=lambda self, logits, weights: (logits.softmax(dim=-1), weights)),
    ),
    Mistake(
        "time comes first here, and the batch should: stack the steps along dim=1",
        instead(Decoding, result=lambda self, logits, weights: (logits.transpose(0, 1), weights.transpose(0, 1))),
    ),
    Mistake(
        "the weights have an axis too many: a step's weights are (B, S), without the 1 of its single query",
        instead(Decoding, result=lambda self, logits, weights: (logits, weights[:, :, None])),
    ),
    Mistake(
        "this returns the logits alone: return (logits, weights)",
        instead(Decoding, result=lambda self, logits, weights: logits),
    ),
    Mistake(
        "the hidden state is cut off between the steps, so that no step learns from the words after it",
        instead(Decoding, carried=lambda self, states: states[-1].detach()),
    ),
    Mistake(
        "the hidden state is cut off between the steps, so that no step learns from the words after it",
        instead(
            Decoding,
            query=lambda self, states, word: states[-1].detach(),
            carried=lambda self, states: states[-1].detach(),
        ),
    ),
    Mistake(
        "an axis of length 1 is lost",
        instead(Decoding, result=lambda self, logits, weights: (logits.squeeze(), weights.squeeze())),
    ),
    Mistake("parameters that all start at zero stay alike: leave the parts as torch makes them", DecodingFromZero),
)
