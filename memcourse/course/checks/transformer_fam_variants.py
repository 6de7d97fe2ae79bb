"""The exercise of chapter 08 whose answer is values: its numbers, and all that follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from itertools import combinations, product
from typing import Any, NamedTuple

from memcourse.course.checks.family import CARDINALS, ORDINALS, Family
from memcourse.course.exercise import Mistake

# 8.1 predicted_reach


class Block(NamedTuple):
    """One FeedbackBlock with one past block, and the place of a token in its block."""

    length: int
    n_feedback: int
    place: int
    d_model: int


class Windows(NamedTuple):
    layers: int
    size: int


class Stack(NamedTuple):
    """The block that is asked about, in a stack of layers that look at n_past blocks."""

    layers: int
    n_past: int
    block: int


class Reach(NamedTuple):
    block: Block
    windows: Windows
    stack: Stack


@cache
def _predictions(n: Reach) -> dict[str, float]:
    block, stack = n.block, n.stack
    return {
        "keys": float(sum(_sees(block, number=7, n_past=1))),
        "first_keys": float(sum(_sees(block, number=1, n_past=1))),
        "feedback_keys": float(block.n_feedback + block.length),
        "window_reach": float(_window_reach(*n.windows)),
        "earliest": float(_earliest_block(stack.layers, stack.block, stack.n_past, n_feedback=0)),
        "earliest_with_feedback": float(_earliest_block(stack.layers, stack.block, n_past=0, n_feedback=1)),
        "state": float(block.n_feedback * block.d_model + 2 * (1 * block.length) * block.d_model),
    }


def predictions(n: Reach) -> dict[str, float]:
    return dict(_predictions(n))


def _sees(block: Block, number: int, n_past: int) -> tuple[int, int, int]:
    """How many keys of past blocks, feedback and own block a token looks at; blocks and places from 1."""
    past = [other for other in range(1, number) if other >= number - n_past]
    own = [other for other in range(1, block.length + 1) if other <= block.place]
    return len(past) * block.length, block.n_feedback, len(own)


def _window_reach(layers: int, window: int, length: int = 100) -> int:
    """From how many tokens back something comes, through windows of the token itself and those before it."""
    reached = {length}
    for _ in range(layers):
        reached = {s for t in reached for s in range(t - window + 1, t + 1)}
    return length - min(reached)


def _earliest_block(layers: int, block: int, n_past: int, n_feedback: int) -> int:
    """The first block that reaches a token of `block` at the top: what each block knows, layer by layer."""
    knows = {b: {b} for b in range(1, block + 1)}
    for _ in range(layers):
        above: dict[int, set[int]] = {}
        feedback: set[int] = set()
        for b in knows:
            above[b] = set().union(*(knows[o] for o in range(max(1, b - n_past), b + 1)), feedback)
            if n_feedback:
                feedback = feedback | knows[b]
        knows = above
    return min(knows[block])


def one_by_one(n: Reach) -> tuple[tuple[str, float, str], ...]:
    """(question, wrong answer, what is wrong): one at a time, and two together."""
    (B, F, place, d), (layers, window), (deep, past, last) = n
    vectors, tokens, blocks = CARDINALS[F], CARDINALS[B], CARDINALS[past]
    return (
        ("keys", B + place, f"`keys` leaves the feedback out: its {vectors} vectors are keys as all others"),
        ("keys", F + place, f"`keys` leaves the past block out: one is kept, with {tokens} tokens"),
        ("keys", 2 * B + F, "`keys` counts the whole own block: a token looks at its own block up to itself"),
        ("keys", B + F + place - 1, "`keys` leaves the token itself out: it looks at itself too"),
        ("first_keys", B + F + place, "`first_keys` counts a block before the first: there is none"),
        (
            "first_keys",
            place,
            "`first_keys` leaves the feedback out: block 1 reads the first value that every layer has as a parameter",
        ),
        (
            "feedback_keys",
            B,
            "`feedback_keys` leaves the feedback out: it looks at itself, or it could not be carried on",
        ),
        (
            "feedback_keys",
            F + 2 * B,
            "`feedback_keys` counts the past block: the feedback looks at itself and at the block that has ended",
        ),
        ("feedback_keys", 2 * B, "`feedback_keys` counts past block or tokens twice: it is the feedback and one block"),
        (
            "state",
            (F + B) * d,
            "`state` counts one tensor of the past block: the library keeps its keys and its values",
        ),
        ("state", F * d, "`state` leaves the past block out: its keys and values are kept for the next block"),
        ("state", 2 * B * d, "`state` leaves the feedback out"),
        (
            "state",
            (F + 4 * B) * d,
            "`state` counts the block that has ended twice: its keys and values move to the past, and the open block "
            "is empty",
        ),
        ("window_reach", window - 1, "`window_reach` is what one layer sees: each layer adds as much again"),
        (
            "window_reach",
            layers * window,
            f"`window_reach` counts the token itself in each layer: a window of {window} goes back by {window - 1}",
        ),
        (
            "earliest",
            last - past,
            f"`earliest` is what one layer sees: each of the {CARDINALS[deep]} goes {blocks} blocks further back",
        ),
        (
            "earliest",
            last - deep * (past + 1),
            "`earliest` counts the own block as a step back: a layer goes back by the past blocks it looks at, and no "
            "further",
        ),
        (
            "earliest",
            last - deep * past - 1,
            f"`earliest` goes one block too far: block {last} minus {CARDINALS[deep]} times {blocks}",
        ),
        (
            "earliest_with_feedback",
            last,
            f"`earliest_with_feedback` forgets the feedback: block {last} reads what block {last - 1} left, which had "
            f"read what block {last - 2} left, and so on",
        ),
        (
            "earliest_with_feedback",
            last - deep,
            "`earliest_with_feedback` goes back one block a layer: in one and the same layer the feedback is handed "
            "from block to block, as far as the text goes",
        ),
        (
            "earliest_with_feedback",
            last - 1,
            "`earliest_with_feedback` stops at the block before: its feedback has that of the block before it in it",
        ),
    )


def prediction_mistakes(n: Reach) -> Iterator[Mistake]:
    """Each wrong answer alone, and each two of the first of them, to different questions."""
    wrong = one_by_one(n)
    first = {question: (question, number, says) for question, number, says in reversed(wrong)}
    for some in (*((one,) for one in wrong), *combinations(first.values(), 2)):
        says = "; ".join(sentence for _, _, sentence in some)
        yield Mistake(says, predictions(n) | {question: float(number) for question, number, _ in some})


def predicted_reach(n: Reach) -> dict[str, Any]:
    (B, F, place, d), (layers, window), (deep, past, last) = n
    question = """\
Seven whole numbers about blocks, windows and feedback. Predict them with pencil and paper. Blocks, and the tokens of a
block, are counted from 1. A token looks at itself too."""
    stub = f"""\
# A dict of seven numbers.  Of one FeedbackBlock with block_len={B}, n_feedback={F}, n_past_blocks=1, d_model={d}:
#   "keys"           the number of keys that the {ORDINALS[place]} token of block 7 looks at
#   "first_keys"     the same for the {ORDINALS[place]} token of block 1
#   "feedback_keys"  the number of keys that a feedback vector looks at, when block 7 has ended
#   "state"          the numbers in the state of one row when block 7 has ended: feedback, past keys and past values
# Of a stack of layers:
#   "window_reach"   {layers} layers, each a window of {window} tokens (a token and the {window - 1} before it), no memory: how many tokens
#                    back the farthest token stands that can reach an output (1: the token before the output's own)
#   "earliest"       {deep} layers with n_past_blocks={past} and n_feedback=0: the number of the first block that can reach a
#                    token of block {last}
#   "earliest_with_feedback"   the same with n_past_blocks=0 and n_feedback=1
predicted_reach = None  # {{"keys": ..., "first_keys": ..., ...}}"""  # noqa: E501
    hints = (
        "Write the columns down: past blocks that exist, feedback, the own block up to the token. Which of the three "
        "does the feedback itself look at? For a stack, go one layer down at a time: who was seen by those who are "
        "seen?",
        "At a block's end the open block is empty: the state is the feedback, and keys and values (two numbers for "
        "each feature) of the past blocks. A layer adds the same distance each time, however far one has come.",
        f"keys {B} + {F} + {place}; first_keys lacks the past block, for there is none; feedback_keys {F} + {B}; state "
        f"{F} * {d} + 2 * {B} * {d}; window_reach {layers} * {window - 1}; earliest {last} - {deep} * {past}; feedback "
        "hands on what it has, block after block, to the end.",
    )
    return {
        "question": question,
        "stub": stub,
        "hints": hints,
        "oracle": partial(predictions, n),
        "mistakes": tuple(prediction_mistakes(n)),
    }


PREDICTED_REACH = Family(
    predicted_reach,
    usual=Reach(Block(5, 2, 3, 12), Windows(3, 16), Stack(4, 2, 20)),
    others=[
        Reach(Block(*block), Windows(*windows), Stack(*stack))
        for block, windows, stack in product(
            ((4, 3, 2, 10), (6, 2, 4, 8), (6, 4, 5, 10), (7, 3, 5, 8), (8, 3, 6, 10), (6, 3, 2, 12)),
            ((4, 11), (3, 21), (5, 9), (2, 31)),
            ((3, 3, 25), (5, 2, 30), (3, 4, 30), (4, 3, 26)),
        )
    ],
)
