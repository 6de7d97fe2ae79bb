"""The arena: every memory of the course meets the same tasks, with as many parameters, steps and seeds as the others.

    compete("RMT", "passkey", seed=0)                      train one contestant on one task, and test it
    compete("FAM", "recall", 0, steps=150, places=(1, 4))   a short competition, about ten seconds
    costs(["window", "RMT"])                               what they cost: state, tokens per second

To add a memory, give it a name and a maker, and let it compete:

    CONTESTANTS["mine"] = stack(48, lambda d_model: MyMemory(d_model))

A contestant is a model of two layers with about 60,000 parameters (`n_parameters`); its width is chosen so that it has
as many as the others.  Windows, segments and blocks are 16 tokens long, so that only a memory carries anything further.
Training is the same for all: batches of 32 rows, AdamW, one cycle of the learning rate, `Task.steps` steps.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memcourse import tasks
from memcourse.attention import CausalAttention
from memcourse.course import arena_text
from memcourse.gated import GatedMemory, ParallelGatedMemory
from memcourse.infini_attention import InfiniAttention
from memcourse.key_value import KeyValueMemory
from memcourse.lm2 import LM2Block
from memcourse.memorizing import MemorizingAttention
from memcourse.memory import SequenceMemory, n_bytes, require, stream
from memcourse.rmt import RecurrentMemoryTransformer
from memcourse.training import NOT_SCORED, Batch, evaluate, fit
from memcourse.transformer import MemoryTransformer
from memcourse.transformer_fam import FeedbackBlock

SEGMENT = 16  # tokens in a window, a segment or a block
LAYERS, HEADS = 2, 2
BATCH_SIZE = 32

Maker = Callable[[int], SequenceMemory]  # vocab_size -> a model: (tokens, state=None) -> (logits, state)


def stack(d_model: int, *memories: Callable[[int], SequenceMemory]) -> Maker:
    """The maker of a MemoryTransformer whose layers take the `memories` in turn; each is made of a width."""
    makers = [partial(memories[layer % len(memories)], d_model) for layer in range(LAYERS)]
    return lambda vocab_size: MemoryTransformer(vocab_size, d_model, LAYERS, makers)


def window(d_model: int) -> SequenceMemory:
    return CausalAttention(d_model, HEADS, window=SEGMENT)


CONTESTANTS: dict[str, Maker] = {
    "window": stack(48, window),
    "full attention": stack(48, lambda d: CausalAttention(d, HEADS)),
    "gated": stack(44, GatedMemory),
    "key-value": stack(50, lambda d: KeyValueMemory(d, n_slots=16)),
    "RMT": lambda words: RecurrentMemoryTransformer(words, 48, LAYERS, HEADS, n_memory=8, segment_len=SEGMENT),
    "LM2": stack(36, lambda d: LM2Block(d, HEADS, n_slots=16, segment_len=SEGMENT)),
    "Infini linear": stack(48, lambda d: InfiniAttention(d, HEADS, segment_len=SEGMENT)),
    "Infini delta": stack(48, lambda d: InfiniAttention(d, HEADS, segment_len=SEGMENT, rule="delta")),
    "Memorizing": stack(48, lambda d: MemorizingAttention(d, HEADS, segment_len=SEGMENT, capacity=512, k=8)),
    "FAM": stack(48, lambda d: FeedbackBlock(d, HEADS, block_len=SEGMENT, n_feedback=8)),
    "hybrid": stack(48, ParallelGatedMemory, window),
}


class Task(NamedTuple):
    """A task: how to train on it, and the places on its axis where it is tested."""

    n_words: Callable[[], int]  # vocab_size of the model
    train: Callable[[int], Batch]  # seed -> one batch
    test: Callable[[Any], list[Batch]]  # place -> batches that no training sees
    places: tuple[Any, ...]
    axis: str  # what the places are
    trained: tuple[float, ...]  # from where to where training goes on that axis
    chance: float  # accuracy of a guess
    steps: int
    learning_rate: float = 3e-3


PAIRS_IN, GAP, MOST_QUERIES = 2 * SEGMENT, 2 * SEGMENT, 8
RECALL_WORDS: dict[str, Any] = {"n_keys": 8, "n_values": 8}


def recall(n_pairs: int, batch_size: int, seed: int, length: int = PAIRS_IN, gap: int = GAP) -> Batch:
    """Associative recall: n_pairs spread over two segments, two segments of filler, then up to 8 of their keys."""
    n_queries = min(n_pairs, MOST_QUERIES)
    sizes: dict[str, Any] = {"n_pairs": n_pairs, "n_queries": n_queries, "length": length}
    batch = tasks.associative_recall(batch_size=batch_size, seed=seed, **RECALL_WORDS, **sizes)
    filler = len(tasks.associative_recall_words(**RECALL_WORDS)) - 1
    return Batch(*(_insert(part, length, gap, new) for part, new in zip(batch, (filler, NOT_SCORED), strict=True)))


def train_recall(seed: int) -> Batch:
    """The same for one to eight pairs, over two segments at most, with two segments of filler at most."""
    generator = random.Random(seed)
    n_pairs = generator.choice((1, 2, 3, 4, 6, 8))
    length, gap = generator.randint(2 * n_pairs, PAIRS_IN), generator.randint(0, GAP)
    return recall(n_pairs, BATCH_SIZE, seed, length, gap)


PASSKEY_WORDS: dict[str, Any] = {"n_values": 8, "n_fillers": 8}


def passkey(n_segments: int, batch_size: int, seed: int) -> Batch:
    """A value in the first segment, asked for by the last token of the last one."""
    return tasks.passkey(batch_size=batch_size, n_segments=n_segments, segment_len=SEGMENT, seed=seed, **PASSKEY_WORDS)


def train_passkey(seed: int) -> Batch:
    """The same, one to eight segments long, asked for at the ends of some segments on the way too."""
    generator = random.Random(seed)
    n_segments = generator.randint(1, 8)
    tokens, targets = passkey(n_segments, BATCH_SIZE, seed)
    for end in range(SEGMENT - 1, n_segments * SEGMENT - 1, SEGMENT):
        if generator.random() < 0.5:
            tokens[:, end], targets[:, end] = tokens[:, -1], targets[:, -1]
    return Batch(tokens, targets)


def flip_flop(p_ignore: float, batch_size: int, seed: int) -> Batch:
    return tasks.flip_flop(batch_size=batch_size, n_instructions=64, p_ignore=p_ignore, seed=seed)


ITEMS_IN = 2 * SEGMENT
COPY_WORDS: dict[str, Any] = {"n_symbols": 8}


def copy(n_items: int, batch_size: int, seed: int, gap: int = GAP) -> Batch:
    """Selective copying: n_items among the noise of two segments, two segments of noise alone, then say the items."""
    sizes: dict[str, Any] = {"n_items": n_items, "length": ITEMS_IN}
    batch = tasks.selective_copy(batch_size=batch_size, seed=seed, **COPY_WORDS, **sizes)
    noise = len(tasks.selective_copy_words(**COPY_WORDS)) - 2
    return Batch(*(_insert(part, ITEMS_IN, gap, new) for part, new in zip(batch, (noise, NOT_SCORED), strict=True)))


def train_copy(seed: int) -> Batch:
    """The same for one to four items, with two segments of noise alone at most."""
    generator = random.Random(seed)
    return copy(generator.randint(1, 4), BATCH_SIZE, seed, generator.randint(0, GAP))


def babi_test(place: tuple[int, int], batch_size: int, seed: int) -> Batch:
    n_segments, n_facts = place
    return arena_text.babi_in_prose(n_segments * SEGMENT, batch_size, seed, n_facts=n_facts, part="test")


BOOK_PLACES = (16, 64, 256, 512, 1024)  # a passage is scored up to each of them from the one before


def start_of(end: int) -> int:
    return ([0] + [place for place in BOOK_PLACES if place < end])[-1]


TASKS: dict[str, Task] = {
    "recall": Task(
        lambda: len(tasks.associative_recall_words(**RECALL_WORDS)),
        train_recall,
        lambda n: tests(partial(recall, n)),
        places=(1, 2, 3, 4, 6, 8),
        axis="pairs to remember",
        trained=(1, 8),
        chance=1 / 8,
        steps=1000,
        learning_rate=5e-3,
    ),
    "passkey": Task(
        lambda: len(tasks.passkey_words(**PASSKEY_WORDS)),
        train_passkey,
        lambda n: tests(partial(passkey, n)),
        places=(2, 8, 16, 32, 64, 128, 256),
        axis="segments of 16 tokens",
        trained=(1, 8),
        chance=1 / 8,
        steps=500,
    ),
    "flip-flop": Task(
        lambda: len(tasks.flip_flop_words()),
        lambda seed: flip_flop(0.8, BATCH_SIZE, seed),
        lambda p: tests(partial(flip_flop, p)),
        places=(0.8, 0.98, 0.1),
        axis="share of instructions to ignore",
        trained=(0.8, 0.8),
        chance=1 / 2,
        steps=200,
    ),
    "copy": Task(
        lambda: len(tasks.selective_copy_words(**COPY_WORDS)),
        train_copy,
        lambda n: tests(partial(copy, n)),
        places=(1, 2, 4),
        axis="symbols among 32 tokens",
        trained=(1, 4),
        chance=1 / 8,
        steps=500,
        learning_rate=5e-3,
    ),
    "babi": Task(
        lambda: len(arena_text.babi_words()),
        lambda seed: arena_text.babi_in_prose(random.Random(seed).randint(3, 6) * SEGMENT, BATCH_SIZE, seed),
        lambda place: tests(partial(babi_test, place)),
        places=(*((n, 1) for n in (3, 6, 12, 24, 48, 96)), (6, 2), (6, 3)),
        axis="segments of 16 words, and facts among them",
        trained=(3, 6),
        chance=1 / 6,
        steps=500,
    ),
    "books": Task(
        lambda: arena_text.book_tokens()[0].vocab_size,
        lambda seed: arena_text.books(16 * SEGMENT, BATCH_SIZE // 2, seed),
        lambda end: arena_text.held_out_books(BOOK_PLACES[-1], start_of(end), end),
        places=BOOK_PLACES,
        axis="place in the passage, in tokens",
        trained=(1, 256),
        chance=1 / 512,
        steps=200,
    ),
}


def tests(make: Callable[[int, int], Batch], tokens: int = 2**17) -> list[Batch]:
    """Batches (batch_size, seed) of about as many tokens in all: 32 to 256 rows, with seeds of tests alone."""
    length = make(1, TEST_SEED).tokens.shape[1]
    rows = min(256, max(32, tokens // length))
    at_once = max(1, min(rows, 2**15 // length))
    return [make(at_once, TEST_SEED + first) for first in range(0, rows, at_once)]


TEST_SEED = 10**9  # training uses smaller ones


def n_parameters(contestant: str | Maker, vocab_size: int = 32) -> int:
    """Weights of a contestant with a vocabulary of the arena's usual size."""
    return sum(parameter.numel() for parameter in _maker(contestant)(vocab_size).parameters())


def compete(
    contestant: str | Maker,
    task: str,
    seed: int,
    *,
    steps: int | None = None,
    learning_rate: float | None = None,
    places: Sequence[Any] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Train a contestant (its name, or a maker) on a task, and test it at the task's places, or at those given.

    `steps` and `learning_rate` are the task's own unless given.
    Returns "steps", "seconds" of training, "loss" (nats per scored token, means over twenty equal parts of training),
    "places" and, for each of them, "accuracy" and "nats".  Raises ValueError for a name that is not in the table.
    """
    maker = _maker(contestant)
    require(task in TASKS, "task", repr(task), f"one of {', '.join(TASKS)}")
    rules = TASKS[task]
    steps = rules.steps if steps is None else steps
    learning_rate = rules.learning_rate if learning_rate is None else learning_rate
    places = rules.places if places is None else places
    torch.manual_seed(seed)
    model = maker(rules.n_words())
    start = time.perf_counter()
    first = 1_000_003 * (seed + 1)
    history = fit(
        model,
        lambda step: rules.train(first + step),
        steps=steps,
        learning_rate=learning_rate,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    scores = [evaluate(model, rules.test(place)) for place in places]
    return {
        "steps": steps,
        "seconds": seconds,
        "loss": [part.mean().item() for part in torch.tensor(history["loss"]).tensor_split(min(20, steps))],
        "places": list(places),
        "accuracy": [score["accuracy"] for score in scores],
        "nats": [score["loss"] for score in scores],
    }


def _maker(contestant: str | Maker) -> Maker:
    if not isinstance(contestant, str):
        return contestant
    require(contestant in CONTESTANTS, "contestant", repr(contestant), f"one of {', '.join(CONTESTANTS)}")
    return CONTESTANTS[contestant]


def _insert(part: Tensor, place: int, n: int, new: int) -> Tensor:
    """n columns of one number before column `place`: (B, T) -> (B, T + n)."""
    return torch.cat([part[:, :place], torch.full((len(part), n), new), part[:, place:]], dim=1)


DECODED = SEGMENT  # tokens, one by one: a whole segment, its end included
SHORT, LONG = 128, 4096  # tokens after which state and decoding are measured: what training sees, and 32 times that


def costs(contestants: Sequence[str | Maker], *, rounds: int = 5, vocab_size: int = 32) -> list[dict[str, float]]:
    """What each contestant costs, all measured in turn in the same rounds, so that their ratios mean something.

    "state_bytes" and "state_bytes_long" (one row, after 128 and 4,096 tokens); "forward" and "training", tokens per
    second of 32 rows of 128 tokens, without and with gradients; "decode" and "decode_long", seconds for one more token
    of one row, after 128 and 4,096 tokens.  Medians over the rounds.
    """
    models = [_maker(contestant)(vocab_size) for contestant in contestants]
    prompt, tokens = (torch.randint(vocab_size, shape) for shape in ((1, LONG), (BATCH_SIZE, SHORT)))
    with torch.no_grad():
        states = [[_state_after(model, prompt[:, :n]) for n in (SHORT, LONG)] for model in models]

    def training(model: Any) -> None:
        model(tokens)[0].sum().backward()

    def forward(model: Any) -> None:
        with torch.no_grad():
            model(tokens)

    def decode(model: Any, state: Any) -> None:
        with torch.no_grad():
            for at in range(DECODED):
                _, state = model(prompt[:, at : at + 1], state)

    measured: list[dict[str, list[float]]] = [{} for _ in models]
    for number in range(rounds + 1):
        for model, ready, times in zip(models, states, measured, strict=True):
            runs: dict[str, Callable[[], None]] = {
                "forward": partial(forward, model),
                "training": partial(training, model),
                "decode": partial(decode, model, ready[0]),
                "decode_long": partial(decode, model, ready[1]),
            }
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if number:  # the first round warms up
                    times.setdefault(name, []).append(time.perf_counter() - start)
    found = []
    for ready, times in zip(states, measured, strict=True):
        seconds = {name: torch.tensor(values).median().item() for name, values in times.items()}
        found.append(
            {
                "state_bytes": n_bytes(ready[0]),
                "state_bytes_long": n_bytes(ready[1]),
                "forward": tokens.numel() / seconds["forward"],
                "training": tokens.numel() / seconds["training"],
                "decode": seconds["decode"] / DECODED,
                "decode_long": seconds["decode_long"] / DECODED,
            }
        )
    return found


def _state_after(model: Any, tokens: Tensor) -> Any:
    for _, state in stream(model, tokens, chunk=1024):  # noqa: B007 (the last one is what we need)
        pass
    return state
