"""How the answers of chapter 08 are used, and what is right: cases, probes, oracles, properties.

The oracles are the equations in NumPy float64, one row at a time: no library, no torch, no matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from memcourse.course.checks.attention_oracles import Array, Parameters, random, with_parameters
from memcourse.course.checks.gated_oracles import sigmoid
from memcourse.course.checks.lm2_oracles import attended, matrices, times
from memcourse.course.checks.timing import times_as_fast
from memcourse.course.exercise import Wrong
from memcourse.course.runner.meters import measured, uncounted
from memcourse.course.runner.portable import portable
from memcourse.memory import SequenceMemory, detach, leaves, n_bytes
from memcourse.threads import one_thread

Weights = dict[str, Array]
Bools = NDArray[np.bool_]
EPSILON = float(torch.finfo(torch.float32).eps)  # that of a norm without one of its own


def normed(rows: Array, weight: Array | float = 1.0) -> Array:
    return np.array([row / math.sqrt((row * row).mean() + EPSILON) * weight for row in rows]).reshape(rows.shape)


# 8.2 who_may_look


def mask_cases() -> list[tuple[int, int, int, int]]:
    """(block, block_len, n_feedback, n_past_blocks): in the middle, at the start, one past block of five, none kept.

    In (4, 2, 5, 3) one block more lies behind than is kept: a slice up to 3 - 4 blocks would hide two of them.
    """
    return [(3, 3, 2, 1), (0, 3, 2, 1), (1, 3, 2, 5), (4, 2, 5, 3), (2, 3, 5, 0), (2, 3, 0, 1)]


def mask_oracle(block: int, block_len: int, n_feedback: int, n_past_blocks: int) -> tuple[Bools, Bools]:
    width = n_past_blocks * block_len + n_feedback + block_len
    tokens = np.zeros((block_len, width), dtype=bool)
    for i in range(block_len):
        column = 0
        for other in range(block - n_past_blocks, block):  # the oldest first
            for _ in range(block_len):
                tokens[i, column] = other >= 0
                column += 1
        for _ in range(n_feedback):
            tokens[i, column] = True
            column += 1
        for j in range(block_len):
            tokens[i, column + j] = j <= i
    return tokens, np.ones((n_feedback, n_feedback + block_len), dtype=bool)


# 8.3 update_feedback

Sizes = tuple[int, int, int, int, int]


def update_cases() -> list[tuple[Any, ...]]:
    """(B, F, L, D) = (2, 3, 5, 4) with 2 heads, (3, 7, 2, 10) with 5, (2, 5, 3, 7) with one."""
    sizes: tuple[tuple[Sizes, list[int]], ...] = (
        ((2, 3, 5, 4, 2), [0, 3]),
        ((3, 7, 2, 10, 5), [2, 0, 1]),
        ((2, 5, 3, 7, 1), [4, 1]),
    )
    return [
        (
            random(seed, B, n_feedback, D),
            random(seed + 1, B, L, D),
            torch.tensor(blocks),
            matrices(seed + 2, "q k v o", D),
            H,
            matrices(seed + 6, "inner outer", D),
        )
        for seed, ((B, n_feedback, L, D, H), blocks) in zip((1, 21, 41), sizes, strict=True)
    ]


def norm(rows: Tensor) -> Tensor:
    """What 8.3 hands over as `norm`: RMS norm without a weight."""
    return F.rms_norm(rows, rows.shape[-1:])


def feed_forward(p: Parameters) -> Callable[[Tensor], Tensor]:
    """What 8.3 hands over as `ff`: the branch alone."""
    return lambda hidden: F.gelu(hidden @ p["inner"]) @ p["outer"]


def gelu(x: Array) -> Array:
    return np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.flat]).reshape(x.shape)


def update_probe(
    answer: Any, feedback: Tensor, E: Tensor, blocks: Tensor, W: Parameters, n_heads: int, of_ff: Parameters
) -> Any:
    return answer(feedback, E, blocks, W, n_heads, norm, feed_forward(of_ff))


def update_oracle(
    feedback: Array, E: Array, blocks: NDArray[np.int64], W: Weights, n_heads: int, of_ff: Weights
) -> Array:
    after = np.zeros_like(feedback)
    for b in range(len(feedback)):
        G = normed(feedback[b])
        seen = np.concatenate([G, E[b]])
        read = attended(times(G, W["q"]), times(seen, W["k"]), times(seen, W["v"]), n_heads)
        A = times(read, W["o"]) + (feedback[b] if blocks[b] else 0.0)
        after[b] = A + times(gelu(times(normed(A), of_ff["inner"])), of_ff["outer"])
    return after


# 8.4 FeedbackLayer

INNER = 2  # times as wide inside the feed-forward


def layer_cases() -> list[tuple[Any, ...]]:
    """(B, T, F, D), L = (1, 7, 5, 2), 3: two blocks and a token; (3, 11, 2, 5), 7: one; (2, 3, 5, 7), 11: none."""
    return [
        (random(seed, B, T, D), random(seed + 1, B, n_feedback, D), block_len, layer_parameters(seed + 2, D))
        for seed, (B, T, n_feedback, D), block_len in (
            (1, (1, 7, 5, 2), 3),
            (21, (3, 11, 2, 5), 7),
            (41, (2, 3, 5, 7), 11),
        )
    ]


def layer_parameters(seed: int, width: int) -> Parameters:
    drawn = {f"{name}.weight": matrix for name, matrix in matrices(seed, "W_q W_k W_v W_o", width).items()}
    drawn |= {f"{name}.weight": 1 + random(seed + n, width) / 5 for n, name in ((5, "norm"), (6, "ff_norm"))}
    inner = INNER * width
    drawn["expand.weight"] = random(seed + 7, inner, width) / width**0.5
    drawn["contract.weight"] = random(seed + 8, width, inner) / inner**0.5
    return drawn


def layer_probe(answer: Any, x: Tensor, feedback: Tensor, block_len: int, parameters: Parameters) -> Any:
    return with_parameters(answer(x.shape[2], block_len), parameters, x, feedback)


def layer_oracle(x: Array, feedback: Array, block_len: int, parameters: Weights) -> tuple[Array, Array]:
    W = {name[2:-7]: matrix.T for name, matrix in parameters.items() if name.startswith("W_")}  # weights are (out, in)
    y, after = np.zeros_like(x), feedback.copy()

    def asked(query: Array, seen: Array) -> Array:
        return times(attended(times(query, W["q"]), times(seen, W["k"]), times(seen, W["v"])), W["o"])

    def fed_forward(A: Array) -> Array:
        hidden = times(normed(A, parameters["ff_norm.weight"]), parameters["expand.weight"].T)
        return np.asarray(A + times(gelu(hidden), parameters["contract.weight"].T))

    for b in range(len(x)):
        past = x[b, :0]
        for start in range(0, x.shape[1], block_len):
            X = x[b, start : start + block_len]
            E, G = (normed(rows, parameters["norm.weight"]) for rows in (X, after[b]))
            A = [X[t] + asked(E[t : t + 1], np.concatenate([past, G, E[: t + 1]]))[0] for t in range(len(X))]
            y[b, start : start + block_len] = fed_forward(np.array(A))
            if len(X) == block_len:
                after[b] = fed_forward(asked(G, np.concatenate([G, E])) + (after[b] if start else 0.0))
            past = E
    return y, after


# 8.5 read_blocks

SPEED_UP = 4
CALLS = 5  # of torch for one block more, beside those of `update`: to cut it out, to keep what came
TIMED = {"batch": 2, "time": 256, "feedback": 3, "width": 8, "block_len": 4}

Update = Callable[[Tensor, Tensor], Tensor]


def blocks_cases() -> list[tuple[Any, ...]]:
    """(B, T, F, D), L = (1, 9, 2, 5), 3: three blocks; (2, 7, 3, 5), 7: one; (3, 10, 7, 2), 5; (2, 5, 3, 7), 1."""
    return [
        (
            random(seed, B, T, D),
            random(seed + 1, B, n_feedback, D),
            matrices(seed + 2, "q k v", D),
            matrices(seed + 6, "keep let", D),
            block_len,
        )
        for seed, (B, T, n_feedback, D), block_len in (
            (1, (1, 9, 2, 5), 3),
            (21, (2, 7, 3, 5), 7),
            (41, (3, 10, 7, 2), 5),
            (61, (2, 5, 3, 7), 1),
        )
    ]


@portable()
def updater(p: Parameters) -> Update:
    """What 8.5 hands over as `update`: (B, F, D), (B, L, D) -> (B, F, D)."""

    def update(feedback: Tensor, block: Tensor) -> Tensor:
        if not (feedback.ndim == block.ndim == 3 and len(feedback) == len(block)):
            raise ValueError(
                f"update takes (B, F, D) and (B, L, D) with the same B, got {tuple(feedback.shape)} and "
                f"{tuple(block.shape)}"
            )
        return torch.tanh(feedback @ p["keep"] + (block @ p["let"]).mean(dim=1, keepdim=True))

    return update


def blocks_probe(
    answer: Any, E: Tensor, feedback: Tensor, W: Parameters, weights_of_update: Parameters, block_len: int
) -> Any:
    return answer(E, feedback, W, updater(weights_of_update), block_len)


def blocks_oracle(
    E: Array, feedback: Array, W: Weights, weights_of_update: Weights, block_len: int
) -> tuple[Array, Array]:
    reads, after = np.zeros_like(E), feedback.copy()
    for b in range(len(E)):
        past = E[b, :0]
        for start in range(0, E.shape[1], block_len):
            block = E[b, start : start + block_len]
            for t in range(len(block)):
                seen = np.concatenate([past, after[b], block[: t + 1]])
                query = times(block[t : t + 1], W["q"])
                reads[b, start + t] = attended(query, times(seen, W["k"]), times(seen, W["v"]))[0]
            let_in = times(block, weights_of_update["let"]).mean(axis=0)
            after[b] = np.tanh(times(after[b], weights_of_update["keep"]) + let_in)
            past = block
    return reads, after


def token_loop(E: Tensor, feedback: Tensor, W: Parameters, update: Update, block_len: int) -> tuple[Tensor, Tensor]:
    """The loop that the stub prints."""
    reads, past = [], E[:, :0]
    for block in E.split(block_len, dim=1):
        for t in range(block_len):
            seen = torch.cat([past, feedback, block[:, : t + 1]], dim=1)
            scores = (block[:, t : t + 1] @ W["q"]) @ (seen @ W["k"]).mT / E.shape[2] ** 0.5
            reads.append(scores.softmax(dim=-1) @ (seen @ W["v"]))
        feedback, past = update(feedback, block), block
    return torch.cat(reads, dim=1), feedback


def _timed_case() -> tuple[Any, ...]:
    B, T, n_feedback, D, block_len = TIMED.values()
    update = updater(matrices(9, "keep let", D))
    return random(1, B, T, D), random(2, B, n_feedback, D), matrices(3, "q k v", D), update, block_len


def the_feedback_is_updated_once_a_block(answer: Any) -> None:
    E, feedback, W, update, block_len = _timed_case()
    called: list[int] = []

    def counted(before: Tensor, block: Tensor) -> Tensor:
        called.append(block.shape[1])
        return update(before, block)

    answer(E, feedback, W, counted, block_len)
    blocks = E.shape[1] // block_len
    if len(called) > blocks:
        raise Wrong(
            f"for {blocks} blocks `update` is called {len(called)} times; once for each is enough, for every feedback "
            "follows from the one before it"
        )


def _calls(answer: Any, blocks: int) -> int:
    E, feedback, W, update, block_len = _timed_case()
    with torch.no_grad():
        return measured("torch calls", answer, E[:, : blocks * block_len], feedback, W, uncounted(update), block_len)


def the_reads_take_no_step_for_each_block(answer: Any) -> None:
    more = (_calls(answer, 48) - _calls(answer, 16)) / 32
    if more > CALLS:
        step = "token" if more > 6 * TIMED["block_len"] else "block"
        raise Wrong(
            f"each further block of {TIMED['block_len']} tokens costs {more:.0f} more calls of torch, beside its "
            f"`update`: "
            f"there is a step of Python for each {step}. At most {CALLS} are asked; the tokens of all blocks can read "
            f"at "
            "once"
        )


def at_least_four_times_as_fast_as_the_loop(answer: Any) -> None:
    with torch.no_grad():
        ratio = times_as_fast(answer, token_loop, _timed_case(), asked=SPEED_UP)
    if ratio < SPEED_UP:
        raise Wrong(
            f"the same numbers as the loop, at {ratio:.1f} times its speed; at least {SPEED_UP} times is asked. One "
            "`update` for each block is needed, and a few products for all tokens together"
        )


# 8.6 Patient

N_KEYS, N_VALUES, N_PAIRS, SEGMENT = 5, 5, 3, 8
FILLER = N_KEYS + N_VALUES
N_WORDS = FILLER + 1
PATIENT_WIDTH, PATIENT_STEPS, PATIENT_RATE = 16, 200, 2e-2
SEGMENTS = range(2, 7)  # what training may see
FAR = 16  # segments in the last test
FAR_ACCURACY = 0.8  # chance is 0.2

SUSPECTS = {
    "cut": "does a gradient from the last segment's loss reach what the first segment writes?",
    "forgets": "is half of the memory or more left after one segment?",
    "unbound": "does the memory change when two keys exchange their values?",
    "one_length": "does training see more than one number of segments?",
    "leaks": "do logits stay as they are when a later token changes?",
    "shut": "is anything written: is the memory after one segment different from 0?",
}
ILL = {"cut": True, "forgets": True, "unbound": True, "one_length": True, "leaks": False, "shut": False}


def patient_cases() -> list[tuple[Any, ...]]:
    """Tokens (B, T) of V words, width D, segments of L tokens: (2, 7), 5, 3, L = 3; (3, 11), 7, 5, L = 4."""
    cases = []
    for seed, (B, T, n_words, D, segment_len) in ((1, (2, 7, 5, 3, 3)), (31, (3, 11, 7, 5, 4))):
        tokens = torch.randint(n_words, (B, T), generator=torch.Generator().manual_seed(seed))
        cases.append((tokens, segment_len, patient_parameters(seed + 1, n_words, D)))
    return cases


def patient_parameters(seed: int, n_words: int, width: int) -> Parameters:
    drawn = {f"{name}.weight": matrix for name, matrix in matrices(seed, "shift query key value", width).items()}
    return drawn | {
        "embedding.weight": random(seed + 5, n_words, width),
        "write.weight": random(seed + 6, 1, width) / width**0.5,
        "write.bias": random(seed + 7, 1),
        "forget_bias": random(seed + 8, width),
    }


def patient_probe(answer: Any, tokens: Tensor, segment_len: int, parameters: Parameters) -> Any:
    """The logits, once the findings are right."""
    n_words, d_model = parameters["embedding.weight"].shape
    model = answer(n_words, d_model, segment_len)
    _check_findings(getattr(answer, "findings", None))
    return with_parameters(model, parameters, tokens)


def _check_findings(findings: Any) -> None:
    if not (isinstance(findings, dict) and findings.keys() == ILL.keys()):
        raise Wrong(f"`findings` should be a dict with the keys {', '.join(ILL)}; found {findings!r:.80}")
    if not all(isinstance(found, bool) for found in findings.values()):
        raise Wrong("each of the `findings` should be True, the broken model has this fault, or False")
    for name, ill in ILL.items():
        if findings[name] != ill:
            raise Wrong(f"findings[{name!r}] is not what the broken model's measurements say: {SUSPECTS[name]}")


def patient_oracle(tokens: NDArray[np.int64], segment_len: int, parameters: Weights) -> Array:
    p, (B, T) = parameters, tokens.shape
    E = p["embedding.weight"]
    logits, width = np.zeros((B, T, len(E))), E.shape[1]
    kept = sigmoid(p["forget_bias"])
    for b in range(B):
        memory, written = np.zeros((width, width)), np.zeros((width, width))
        for t in range(T):
            before = E[tokens[b, t - 1]] if t else np.zeros(width)
            x = E[tokens[b, t]] + (p["shift.weight"] * before).sum(axis=1)
            q, k, v = ((p[f"{name}.weight"] * x).sum(axis=1) for name in ("query", "key", "value"))
            read = (q[:, None] * memory).sum(axis=0)
            logits[b, t] = (E * read).sum(axis=1)
            share = sigmoid((p["write.weight"][0] * x).sum() + p["write.bias"][0])
            written += share * k[:, None] * v[None, :]
            if (t + 1) % segment_len == 0:
                memory, written = kept[:, None] * memory + written, np.zeros((width, width))
    return logits


def recall_batch(n_segments: int, seed: int, rows: int = 32) -> tuple[Tensor, Tensor]:
    """Three pairs of key and value in the first segment, a filler, and one of the keys as the last token of all.

    -> tokens (rows, n_segments * 8), and the value that belongs to the last token (rows,).
    """
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(rows, N_KEYS, generator=generator).argsort(dim=1)[:, :N_PAIRS]
    values = N_KEYS + torch.randint(N_VALUES, (rows, N_PAIRS), generator=generator)
    tokens = torch.full((rows, n_segments * SEGMENT), FILLER)
    tokens[:, 0 : 2 * N_PAIRS : 2], tokens[:, 1 : 2 * N_PAIRS : 2] = keys, values
    asked, row = torch.randint(N_PAIRS, (rows,), generator=generator), torch.arange(rows)
    tokens[:, -1] = keys[row, asked]
    return tokens, values[row, asked]


@one_thread()
def train_patient(patient: Any, seed: int = 0, steps: int = PATIENT_STEPS) -> nn.Module:
    """The model after a short training, whose batches have patient.n_segments(step) segments."""
    torch.manual_seed(seed)
    model: nn.Module = patient(N_WORDS, PATIENT_WIDTH, SEGMENT)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PATIENT_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PATIENT_RATE, total_steps=steps + 1)
    for step in range(steps):
        tokens, value = recall_batch(patient.n_segments(step), 100_003 * (seed + 1) + step)
        loss = F.cross_entropy(model(tokens)[:, -1], value)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def patient_accuracy(model: nn.Module, n_segments: int) -> float:
    tokens, value = recall_batch(n_segments, 10**9 + n_segments, rows=256)
    return (model(tokens)[:, -1].argmax(dim=-1) == value).double().mean().item()


def a_fresh_memory_keeps_half_for_sixteen_segments(answer: Any) -> None:
    kept = answer(N_WORDS, PATIENT_WIDTH, SEGMENT).forget_bias.detach().double().sigmoid()
    left = (kept**FAR).min().item()
    if left < 0.5:
        raise Wrong(
            f"a fresh model keeps {left:.0%} of its memory for {FAR} segments, and at least half is asked: no gradient "
            "comes from what was forgotten. sigmoid(2) ** 16 is 0.13, sigmoid(4) ** 16 is 0.75"
        )
    if (1 - kept).min().item() < 1e-4:
        raise Wrong("a fresh forget gate is so far open that it can no longer learn: 1 - sigmoid is below 0.0001")


def training_sees_several_numbers_of_segments(answer: Any) -> None:
    seen = [answer.n_segments(step) for step in range(PATIENT_STEPS)]
    if not all(isinstance(n, int) and n in SEGMENTS for n in seen):
        raise Wrong("n_segments(step) should be a whole number from 2 to 6")
    if len(set(seen)) < len(SEGMENTS):
        raise Wrong(
            f"of the numbers of segments from 2 to 6, training sees {len(set(seen))}; all five are asked. A model that "
            "always meets the same number need not learn to leave alone what comes in between"
        )


def a_trained_patient_recalls_over_sixteen_segments(answer: Any) -> None:
    model = train_patient(answer)
    near, far = patient_accuracy(model, 2), patient_accuracy(model, FAR)
    if min(near, far) < FAR_ACCURACY:
        raise Wrong(
            f"after {PATIENT_STEPS} steps it recalls {near:.0%} over 2 segments and {far:.0%} over {FAR}; at least "
            f"{FAR_ACCURACY:.0%} is asked of both, and chance is 20%"
        )


# 8.7 MyMemory

BUDGET = (54_000, 66_000)
B_MINE, T_MINE, D_MINE = 3, 23, 8
STREAM_TOLERANCE = 1e-4


def mine_cases() -> list[tuple[Any, ...]]:
    """x of (B, T, D) = (2, 5, 8) and (3, 7, 8): the width has a factor of 2, for memories with heads."""
    return [(random(1, 2, 5, D_MINE),), (random(2, 3, 7, D_MINE),)]


def mine_probe(answer: Any, x: Tensor) -> dict[str, Any]:
    """What can be said of any memory: its level, its width, and the shape of what it gives."""
    layer = _made(answer, x.shape[2])
    y, state = _given(layer(x))
    leaves(state)
    return {
        "level": str(layer.level),
        'config["d_model"]': int(layer.config["d_model"]),
        "shape of y": list(y.shape),
        "finite": bool(y.isfinite().all()),
        "batch first in every part of the state": all(len(leaf) == len(x) for leaf in leaves(state).values()),
    }


def mine_oracle(x: Array) -> dict[str, Any]:
    return {
        "level": "mixer",
        'config["d_model"]': x.shape[2],
        "shape of y": list(x.shape),
        "finite": True,
        "batch first in every part of the state": True,
    }


def _made(answer: Any, width: int = D_MINE) -> SequenceMemory:
    torch.manual_seed(0)
    layer = answer(width)
    if not isinstance(layer, SequenceMemory):
        raise Wrong("the class should inherit from SequenceMemory")
    if not (hasattr(layer, "level") and isinstance(getattr(layer, "config", None), dict)):
        raise Wrong('a memory says what it is: level = "mixer" on the class, and self.config, a dict of its arguments')
    if "d_model" not in layer.config:
        raise Wrong('self.config should hold every argument of __init__ by name, {"d_model": d_model}')
    if "forward" in type(layer).__dict__:
        raise Wrong("define initial_state and advance; forward is inherited, and checks what comes in")
    return layer


def _given(result: Any) -> tuple[Tensor, Any]:
    pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], Tensor)
    if not pair:
        raise Wrong("advance should return two things, y and the state")
    return result


def _in_chunks(layer: SequenceMemory, x: Tensor, *sizes: int) -> tuple[Tensor, Any]:
    state, ys = None, []
    for piece in x.split(list(sizes), dim=1):
        y, state = _given(layer(piece, state))
        ys.append(y)
    return torch.cat(ys, dim=1), state


def _far_apart(found: Tensor, expected: Tensor) -> bool:
    return found.shape != expected.shape or bool(
        (found - expected).abs().max() > STREAM_TOLERANCE * (1 + expected.abs().max())
    )


def no_token_sees_a_later_one(answer: Any) -> None:
    layer, x = _made(answer), random(3, B_MINE, T_MINE, D_MINE)
    y = layer(x)[0]
    for t in (1, 7, T_MINE - 1):
        changed = x.clone()
        changed[:, t:] += 1
        if _far_apart(layer(changed)[0][:, :t], y[:, :t]):
            raise Wrong(
                f"tokens from number {t + 1} on were changed, and outputs before them moved: it sees the future"
            )


def None_is_the_initial_state(answer: Any) -> None:
    layer, x = _made(answer), random(4, B_MINE, T_MINE, D_MINE)
    first = layer(x)[0]
    layer(x + 1)
    start = layer.initial_state(B_MINE, device=x.device, dtype=x.dtype)
    for state in (None, start):
        if _far_apart(layer(x, state)[0], first):
            raise Wrong(
                "called again with the same x and with no state, or with initial_state(batch_size), it gives other "
                "numbers than the first time: the running state belongs into the state, never on self"
            )


def the_state_has_the_dtype_that_is_asked_for(answer: Any) -> None:
    start = _made(answer).initial_state(B_MINE, dtype=torch.float64)
    others = {leaf.dtype for leaf in leaves(start).values() if leaf.is_floating_point()} - {torch.float64}
    if others:
        raise Wrong(
            f"initial_state({B_MINE}, dtype=torch.float64) gives {others.pop()}: in any precision but float32, the "
            "second chunk refuses the state that the first one gave"
        )


def chunks_give_what_the_whole_gives(answer: Any) -> None:
    layer, x = _made(answer), random(5, B_MINE, T_MINE, D_MINE)
    y, state = _given(layer(x))
    for sizes in ((11, 12), (1,) * T_MINE, (7, 3, 13)):
        y_chunked, state_chunked = _in_chunks(layer, x, *sizes)
        shown = ", ".join(map(str, sizes[:3])) + (", ..." if len(sizes) > 3 else "")
        if _far_apart(y_chunked, y):
            at = int((y_chunked - y).abs().amax(dim=(0, 2)).gt(STREAM_TOLERANCE).int().argmax())
            alone = layer(x[:, sizes[0] : sizes[0] + sizes[1]])[0]
            forgets = not _far_apart(y_chunked[:, sizes[0] : sizes[0] + sizes[1]], alone)
            why = "the second chunk gives what it would give alone" if forgets else "a cut must not matter"
            raise Wrong(
                f"cut into chunks of {shown} tokens, {T_MINE} tokens give other outputs than in one piece, from token "
                f"{at + 1} on: {why}. All that the next token needs has to be in the state"
            )
        pairs = zip(leaves(state_chunked).values(), leaves(state).values(), strict=True)
        if any(_far_apart(one.double(), other.double()) for one, other in pairs):
            raise Wrong(f"after chunks of {shown} tokens, the state is another than after one piece of {T_MINE}")


def what_was_early_can_still_be_read_late(answer: Any) -> None:
    layer, x = _made(answer), random(6, B_MINE, 16, D_MINE)
    changed = x.clone()
    changed[:, :8] += random(7, B_MINE, 8, D_MINE)
    moved = (layer(changed)[0][:, -1] - layer(x)[0][:, -1]).abs().max()
    if moved <= 1e-7:
        raise Wrong(
            "the first 8 of 16 tokens were changed, and the last output did not move: this forgets within 8 tokens"
        )


def the_gradient_reaches_an_earlier_chunk(answer: Any) -> None:
    layer = _made(answer)
    early, late = random(8, B_MINE, 7, D_MINE).requires_grad_(), random(9, B_MINE, 5, D_MINE)
    state = layer(early)[1]
    for cut in (False, True):
        y = layer(late, detach(state) if cut else state)[0]
        gradient = torch.autograd.grad(y.square().sum(), early, allow_unused=True, retain_graph=True)[0]
        reached = gradient is not None and bool((gradient != 0).any())
        if reached == cut:
            raise Wrong(
                "a loss on the second chunk sends no gradient to the first: what to write cannot be learned"
                if not reached
                else "after detach(state) a gradient still comes to the first chunk: something is carried beside the "
                "state"
            )


def the_state_does_not_grow(answer: Any) -> None:
    layer = _made(answer)
    with torch.no_grad():
        sizes = [n_bytes(layer(random(10, 1, T, D_MINE))[1]) for T in (16, 64, 256)]
    if len(set(sizes)) > 1:
        raise Wrong(
            f"after 16, 64 and 256 tokens the state holds {sizes[0]}, {sizes[1]} and {sizes[2]} bytes: it grows"
        )


def rows_never_touch(answer: Any) -> None:
    layer, x = _made(answer), random(11, B_MINE, T_MINE, D_MINE)
    if _far_apart(layer(x[:1])[0], layer(x)[0][:1]):
        raise Wrong("a row alone gives other outputs than in a batch: rows of a batch are strangers to each other")


def it_joins_the_arena(answer: Any) -> None:
    from memcourse.course import arena  # it brings text with it, which no other check needs

    width = getattr(answer, "width", None)
    if not isinstance(width, int):
        raise Wrong(f"`width`, on the class, should be a whole number of features, such as 48; found {width!r}")
    model = arena.stack(width, answer)(32)
    n = sum(parameter.numel() for parameter in model.parameters())
    if not BUDGET[0] <= n <= BUDGET[1]:
        off = "few" if n < BUDGET[0] else "many"
        raise Wrong(
            f"stack({width}, {answer.__name__}) has {n:,} parameters with 32 words, too {off}: contestants have about "
            f"60,000, from {BUDGET[0]:,} to {BUDGET[1]:,}. Choose another width"
        )
    tokens = torch.randint(32, (2, 37), generator=torch.Generator().manual_seed(0))
    model(tokens)[0].square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    if idle:
        raise Wrong(f"the parameter `{idle[0]}` gets no gradient: it changes nothing")
