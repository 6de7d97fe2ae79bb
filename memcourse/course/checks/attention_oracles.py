"""How the answers of chapter 01 are used, and what is right: cases, probes, oracles, properties.

The oracles are the equations in NumPy float64, one number at a time: no library, no torch, no matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from memcourse.course.checks.timing import times_as_fast
from memcourse.course.exercise import Wrong
from memcourse.threads import one_thread

Array = NDArray[np.float64]
Parameters = dict[str, Tensor]


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def softmax(scores: Array) -> Array:
    """(S,) -> (S,), and () of none."""
    exponentials = np.exp(scores - scores.max(initial=-np.inf)) if len(scores) else scores
    return exponentials / exponentials.sum()


def call(answer: Any, *case: Any) -> Any:
    """The probe of a function."""
    return answer(*case)


def itself(answer: Any) -> Any:
    """The probe of a value."""
    return answer


# 1.2 attention_weights


def weights_cases() -> list[tuple[Tensor, Tensor]]:
    """(T, S, d) = (2, 3, 5) and (7, 5, 3); then scores of hundreds, far enough apart for one key to win."""
    large = torch.tensor([[3.0, -5.0], [2.0, 7.0], [-4.0, 6.0]]) * 20  # (3, 2)
    keys = torch.tensor([[1.0, 2.0], [-3.0, 1.0], [4.0, 5.0], [-2.0, -4.0], [6.0, -1.0]])  # (5, 2)
    return [(random(1, 2, 5), random(2, 3, 5)), (random(3, 7, 3), random(4, 5, 3)), (large, keys)]


def weights_oracle(query: Array, key: Array) -> Array:
    scale = 1 / math.sqrt(query.shape[1])
    return np.array([softmax(np.array([sum(q * k) * scale for k in key])) for q in query])


def one_query_and_one_key(answer: Any) -> None:
    shape = tuple(answer(random(1, 1, 3), random(2, 1, 3)).shape)
    if shape != (1, 1):
        raise Wrong(
            f"one query and one key should give weights of shape (1, 1); found {shape}. squeeze() without an axis "
            "drops every axis of length 1"
        )


# 1.3 attend


def attend_cases() -> list[tuple[Tensor, ...]]:
    """(T, S, d, v) = (2, 3, 5, 7); then (5, 7, 3, 2), whose row 3 may look nowhere."""
    small = torch.tensor([[True, False, True], [False, True, True]])
    larger = torch.rand(5, 7, generator=torch.Generator().manual_seed(5)) < 0.5
    larger[3] = False
    return [
        (random(1, 2, 5), random(2, 3, 5), random(3, 3, 7), small),
        (random(4, 5, 3), random(5, 7, 3), random(6, 7, 2), larger),
    ]


def attend_oracle(query: Array, key: Array, value: Array, mask: NDArray[np.bool_]) -> Array:
    read = np.zeros((len(query), value.shape[1]))
    for t, q in enumerate(query):
        visible = [s for s in range(len(key)) if mask[t, s]]
        weights = softmax(np.array([sum(q * key[s]) / math.sqrt(len(q)) for s in visible]))
        for s, weight in zip(visible, weights, strict=True):
            read[t] += weight * value[s]
    return read


def a_masked_key_has_no_say(answer: Any) -> None:
    query, key, value, mask = attend_cases()[0]
    key[1:] = -300 * query[1]  # the keys that row 1 may look at, and they fit it very badly; it may not look at key 0
    other = value.clone()
    other[0] += 1
    if not torch.allclose(answer(query, key, value, mask)[1], answer(query, key, other, mask)[1], atol=1e-5):
        raise Wrong(
            "where the visible keys fit very badly, a masked value is read: the masked score is finite, and higher "
            "than theirs. Give it -inf, or the lowest number of its dtype"
        )


def the_gradient_of_an_empty_row(answer: Any) -> None:
    query, key, value, mask = (part.clone() for part in attend_cases()[1])
    inputs = {"query": query, "key": key, "value": value}
    for part in inputs.values():
        part.requires_grad_()
    gradients = torch.autograd.grad(answer(query, key, value, mask).sum(), list(inputs.values()))
    spoiled = [f"`{name}`" for name, g in zip(inputs, gradients, strict=True) if not g.isfinite().all()]
    if spoiled:
        raise Wrong(
            f"the row that may look nowhere reads zeros, but puts NaN into the gradient of {', '.join(spoiled)}. A "
            "softmax over nothing but -inf is NaN, and replacing the NaN afterwards mends the value alone: let no "
            "NaN arise"
        )


# 1.4 AttentionLayer


def layer_cases() -> list[tuple[Any, ...]]:
    """(H, B, S) = (2, 3, 5) and (5, 2, 7)."""
    return [
        (random(1, 3, 2), random(2, 3, 5, 2), torch.tensor([5, 1, 3]), layer_parameters(2)),
        (random(3, 2, 5), random(4, 2, 7, 5), torch.tensor([4, 7]), layer_parameters(5)),
    ]


def layer_parameters(hidden_size: int) -> Parameters:
    shapes = {"attn.weight": (hidden_size, 2 * hidden_size), "attn.bias": (hidden_size,), "v": (hidden_size,)}
    return {name: random(seed, *shape) for seed, (name, shape) in enumerate(shapes.items(), start=10)}


def with_parameters(module: nn.Module, parameters: Parameters, *arguments: Any) -> Any:
    """module(*arguments) with these parameters in place of its own."""
    if not isinstance(module, nn.Module):
        raise Wrong("the class should inherit from nn.Module")
    found = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    wanted = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if found != wanted:
        differing = [
            f"{name}: expected {wanted.get(name, 'none')}, found {found.get(name, 'none')}"
            for name in wanted | found
            if wanted.get(name) != found.get(name)
        ]
        raise Wrong("the parameters should have the names and shapes that the stub gives them\n" + "\n".join(differing))
    return functional_call(module, parameters, arguments)


def layer_probe(answer: Any, hidden: Tensor, encoder_outputs: Tensor, lengths: Tensor, parameters: Parameters) -> Any:
    return with_parameters(answer(hidden.shape[1]), parameters, hidden, encoder_outputs, lengths)


def layer_oracle(
    hidden: Array, encoder_outputs: Array, lengths: NDArray[np.int64], parameters: dict[str, Array]
) -> tuple[Array, Array]:
    context, weights = np.zeros_like(hidden), np.zeros(encoder_outputs.shape[:2])
    for b, length in enumerate(lengths):
        energies = []
        for s in range(length):
            both = np.concatenate([hidden[b], encoder_outputs[b, s]])
            rows = zip(parameters["attn.weight"], parameters["attn.bias"], strict=True)
            energies.append(sum(parameters["v"] * np.tanh([sum(row * both) + bias for row, bias in rows])))
        weights[b, :length] = softmax(np.array(energies))
        for s in range(length):
            context[b] += weights[b, s] * encoder_outputs[b, s]
    return context, weights


def the_padding_has_no_say(answer: Any) -> None:
    hidden, encoder_outputs, lengths, parameters = layer_cases()[1]
    low = {"attn.weight": 0 * parameters["attn.weight"], "attn.bias": 0 * parameters["attn.bias"] + 9}
    low["v"] = 0 * parameters["v"] - 20  # every energy is -20 H
    weights = layer_probe(answer, hidden, encoder_outputs, lengths, low)[1]
    if not torch.allclose(weights[0, 4:], torch.zeros(3), atol=1e-5):
        raise Wrong(
            "where all energies are very low, padding gets weight: its energy is finite, and higher than theirs. "
            "Give it -inf, or the lowest number of its dtype"
        )


# 1.5 windowed_attention

SPEED_UP = 5
TIMED = {"time": 256, "width": 16, "window": 32}


def windowed_cases() -> list[tuple[Any, ...]]:
    """(T, d, v, window): a window of 2, one larger than T, one of the token alone, one in the middle of a longer T."""
    sizes = [(5, 3, 7, 2), (3, 2, 5, 11), (5, 2, 3, 1), (13, 5, 3, 7)]
    return [
        (random(seed, T, d), random(seed + 10, T, d), random(seed + 20, T, v), window)
        for seed, (T, d, v, window) in enumerate(sizes)
    ]


def windowed_oracle(query: Array, key: Array, value: Array, window: int) -> Array:
    t, s = np.indices((len(query), len(key)))
    return attend_oracle(query, key, value, (s <= t) & (s > t - window))


def windowed_loop(query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
    """The loop that the stub prints: (T, d), (T, d), (T, v) -> (T, v)."""
    reads = []
    for t in range(len(query)):
        seen = slice(max(0, t - window + 1), t + 1)
        weights = (key[seen] @ query[t] / query.shape[1] ** 0.5).softmax(dim=0)
        reads.append(weights @ value[seen])
    return torch.stack(reads)


def at_least_five_times_as_fast_as_the_loop(answer: Any) -> None:
    T, d = TIMED["time"], TIMED["width"]
    case = (random(1, T, d), random(2, T, d), random(3, T, d), TIMED["window"])
    ratio = times_as_fast(answer, windowed_loop, case, asked=SPEED_UP)
    if ratio < SPEED_UP:
        raise Wrong(
            f"the same numbers as the loop, at {ratio:.1f} times its speed; at least {SPEED_UP} times is asked. "
            f"A Python step for each of the {T} tokens is too many"
        )


# 1.6 Decoder


def decoder_cases() -> list[tuple[Any, ...]]:
    """(B, S, T, d, V) = (2, 3, 5, 2, 7) and (3, 7, 2, 5, 11)."""
    cases = []
    for seed, (B, S, T, d, V, lengths) in enumerate([(2, 3, 5, 2, 7, [3, 1]), (3, 7, 2, 5, 11, [4, 7, 2])]):
        targets_in = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))
        case = (random(seed, B, S, d), random(seed + 5, B, d), targets_in, torch.tensor(lengths))
        cases.append((*case, decoder_parameters(V, d)))
    return cases


def decoder_parameters(vocab_size: int, d_model: int) -> Parameters:
    V, d = vocab_size, d_model
    shapes = {
        "embedding.weight": (V, d),
        "attention.query.weight": (d, d),
        "attention.key.weight": (d, d),
        "attention.score.weight": (1, d),
        "cell.weight_ih": (3 * d, 2 * d),
        "cell.weight_hh": (3 * d, d),
        "cell.bias_ih": (3 * d,),
        "cell.bias_hh": (3 * d,),
        "output.weight": (V, d),
        "output.bias": (V,),
    }
    return {name: random(seed, *shape) for seed, (name, shape) in zip(count(30), shapes.items())}


def decoder_probe(
    answer: Any, encoder_outputs: Tensor, hidden: Tensor, targets_in: Tensor, lengths: Tensor, parameters: Parameters
) -> Any:
    decoder = answer(*parameters["embedding.weight"].shape)
    return with_parameters(decoder, parameters, encoder_outputs, hidden, targets_in, lengths)


def decoder_oracle(
    encoder_outputs: Array,
    hidden: Array,
    targets_in: NDArray[np.int64],
    lengths: NDArray[np.int64],
    parameters: dict[str, Array],
) -> tuple[Array, Array]:
    p = parameters
    (B, S, _), T = encoder_outputs.shape, targets_in.shape[1]
    logits, weights = np.zeros((B, T, len(p["output.bias"]))), np.zeros((B, T, S))
    for b in range(B):
        h = hidden[b]
        for t in range(T):
            asked = _times(p["attention.query.weight"], h)
            offered = [_times(p["attention.key.weight"], encoder_outputs[b, s]) for s in range(lengths[b])]
            scores = [sum(p["attention.score.weight"][0] * np.tanh(asked + key)) for key in offered]
            weights[b, t, : lengths[b]] = softmax(np.array(scores))
            context = sum(weights[b, t, s] * encoder_outputs[b, s] for s in range(lengths[b]))
            h = _gru(np.concatenate([p["embedding.weight"][targets_in[b, t]], context]), h, p)
            logits[b, t] = _times(p["output.weight"], h) + p["output.bias"]
    return logits, weights


def _times(matrix: Array, vector: Array) -> Array:
    return np.array([sum(row * vector) for row in matrix])


def _gru(x: Array, h: Array, p: dict[str, Array]) -> Array:
    """h' = (1 - z) n + z h, with the gates in PyTorch's order: reset, update, new."""
    from_x = (_times(p["cell.weight_ih"], x) + p["cell.bias_ih"]).reshape(3, -1)
    from_h = (_times(p["cell.weight_hh"], h) + p["cell.bias_hh"]).reshape(3, -1)
    reset, update = 1 / (1 + np.exp(-from_x[:2] - from_h[:2]))
    new = np.tanh(from_x[2] + reset * from_h[2])
    return (1 - update) * new + update * h


def one_word_of_one_sentence(answer: Any) -> None:
    logits, weights = answer(7, 5)(random(1, 1, 1, 5), random(2, 1, 5), torch.tensor([[3]]), torch.tensor([1]))
    shapes = tuple(logits.shape), tuple(weights.shape)
    if shapes != ((1, 1, 7), (1, 1, 1)):
        raise Wrong(
            "with B = T = S = 1, d = 5 and V = 7, logits and weights should have shapes (1, 1, 7) and (1, 1, 1); "
            f"found {shapes[0]} and {shapes[1]}. squeeze() without an axis drops every axis of length 1"
        )


class Reversal(NamedTuple):
    """Sentences to be said backwards, 0 where they have ended."""

    words: Tensor  # (B, S)
    targets_in: Tensor  # (B, S): the word before, 0 at the start
    targets: Tensor  # (B, S)
    lengths: Tensor  # (B,)


N_WORDS, LONGEST, STEPS = 10, 7, 150
REVERSAL_ACCURACY = 0.8  # over seeds 0, 1, 2: with attention at least 0.98, without it at most 0.53


def reversal(n: int, generator: torch.Generator) -> Reversal:
    lengths = torch.randint(4, LONGEST + 1, (n,), generator=generator)
    place = torch.arange(LONGEST)
    over = place >= lengths[:, None]  # (B, S)
    words = torch.randint(1, N_WORDS + 1, (n, LONGEST), generator=generator).masked_fill(over, 0)
    from_the_end = (lengths[:, None] - 1 - place).clamp(min=0)
    targets = words.gather(1, from_the_end).masked_fill(over, 0)
    return Reversal(words, F.pad(targets, (1, 0))[:, :-1], targets, lengths)


class Reverser(nn.Module):
    """An encoder of words and places, whose mean is the first hidden state, and the decoder: words in, logits out."""

    def __init__(self, decoder: Callable[[int, int], nn.Module], d_model: int = 32) -> None:
        super().__init__()
        self.word = nn.Embedding(N_WORDS + 1, d_model)
        self.place = nn.Embedding(LONGEST, d_model)
        self.decoder = decoder(N_WORDS + 1, d_model)

    def forward(self, batch: Reversal) -> tuple[Tensor, Tensor]:
        encoder_outputs = self.word(batch.words) + self.place.weight  # (B, S, d)
        real = (batch.words != 0)[:, :, None]
        hidden = (encoder_outputs * real).sum(dim=1) / batch.lengths[:, None]  # (B, d)
        return self.decoder(encoder_outputs, hidden, batch.targets_in, batch.lengths)


@one_thread()
def train_to_reverse(decoder: Callable[[int, int], nn.Module], seed: int = 0) -> tuple[Reverser, float]:
    """A sequence-to-sequence model trained for a few seconds, and its accuracy per word on 512 new sentences."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Reverser(decoder)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=STEPS + 1)
    for _ in range(STEPS):
        batch = reversal(32, generator)
        loss = F.cross_entropy(model(batch)[0].flatten(0, 1), batch.targets.flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        batch = reversal(512, generator)
        right = model(batch)[0].argmax(dim=-1) == batch.targets
    return model, right[batch.targets != 0].float().mean().item()


def learns_to_say_a_sentence_backwards(answer: Any) -> None:
    accuracy = train_to_reverse(answer)[1]
    if accuracy < REVERSAL_ACCURACY:
        raise Wrong(
            f"after {STEPS} steps of training, {accuracy:.0%} of the words of reversed sentences are right; at least "
            f"{REVERSAL_ACCURACY:.0%} is asked. The equations hold for given parameters, so look at how __init__ "
            "makes its own"
        )
