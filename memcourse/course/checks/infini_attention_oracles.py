"""How the answers of chapter 07 are used, and what is right: cases, probes, oracles, properties.

The oracles are the equations in NumPy float64, one token at a time: no library, no torch, no matrix product.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import memcourse
from memcourse.course.checks.attention_oracles import Array, random, softmax
from memcourse.course.checks.gated_oracles import gates, sigmoid
from memcourse.course.checks.timing import times_as_fast
from memcourse.course.exercise import Wrong
from memcourse.infini_attention import InfiniAttention
from memcourse.threads import one_thread


def sigma(x: Array) -> Array:
    """ELU + 1: e^x up to 0, and x + 1 from there on."""
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def read_one(query: Array, memory: Array, normalizer: Array) -> Array:
    """(d,), (d, v), (d,) -> (v,): zeros where nothing has been written."""
    features = sigma(query)
    weight = sum(features * normalizer)
    total = sum(f * row for f, row in zip(features, memory, strict=True))
    return np.asarray(total / weight if weight > 0 else 0 * memory[0])


LIBRARY = {str(Path(memcourse.__file__).with_name(name)) for name in ("infini_attention.py", "memorizing.py")}


def refuse_the_library(answer: Any, case: tuple[Any, ...]) -> None:
    """The answer may call nothing of the two modules that this chapter teaches."""
    called = []

    def watch(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename in LIBRARY:
            called.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        answer(*case)
    finally:
        sys.setprofile(before)
    if called:
        raise Wrong("it calls a function of the library's module on this memory")


# 7.1 read_then_write


def segment_cases() -> list[tuple[Tensor, ...]]:
    """(B, H, L, d, v) = (1, 2, 3, 5, 2) and (2, 3, 5, 7, 11) into a memory, (3, 2, 1, 5, 7) into an empty one."""
    return [segment_case(1, 1, 2, 3, 5, 2), segment_case(2, 2, 3, 5, 7, 11), segment_case(3, 3, 2, 1, 5, 7, 0.0)]


def segment_case(seed: int, B: int, H: int, L: int, d: int, v: int, filled: float = 1.0) -> tuple[Tensor, ...]:
    memory, normalizer = filled * random(seed + 3, B, H, d, v), filled * gates(seed + 4, B, H, d, low=0.5, high=2.0)
    return random(seed, B, H, L, d), random(seed + 1, B, H, L, d), random(seed + 2, B, H, L, v), memory, normalizer


def segment_oracle(
    query: Array, key: Array, value: Array, memory: Array, normalizer: Array
) -> tuple[Array, Array, Array]:
    reads, memory_after, normalizer_after = np.zeros_like(value), memory.copy(), normalizer.copy()
    for b, h, t in np.ndindex(query.shape[:3]):
        reads[b, h, t] = read_one(query[b, h, t], memory[b, h], normalizer[b, h])
        features = sigma(key[b, h, t])
        for i, f in enumerate(features):
            memory_after[b, h, i] += f * value[b, h, t]
        normalizer_after[b, h] += features
    return reads, memory_after, normalizer_after


def an_empty_memory_reads_zeros_and_passes_a_gradient(answer: Any) -> None:
    case = [part.requires_grad_() for part in segment_case(5, 1, 2, 3, 5, 7, 0.0)]
    reads = answer(*case)[0]
    gradients = torch.autograd.grad(reads.sum(), case, allow_unused=True)
    if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
        raise Wrong(
            "an empty memory reads zeros, but puts NaN into the gradient, and from there into every weight: 0 / 0 has "
            "been made and then hidden. Let no division by 0 arise"
        )


def read_and_written_without_the_library(answer: Any) -> None:
    refuse_the_library(answer, segment_cases()[0])


# 7.2 delta_write


def delta_cases() -> list[tuple[Tensor, ...]]:
    return [case[1:] for case in segment_cases()]


def delta_oracle(key: Array, value: Array, memory: Array, normalizer: Array) -> tuple[Array, Array]:
    memory_after, normalizer_after = memory.copy(), normalizer.copy()
    for b, h, t in np.ndindex(key.shape[:3]):
        new = value[b, h, t] - read_one(key[b, h, t], memory[b, h], normalizer[b, h])
        features = sigma(key[b, h, t])
        for i, f in enumerate(features):
            memory_after[b, h, i] += f * new
        normalizer_after[b, h] += features
    return memory_after, normalizer_after


def the_first_write_passes_a_gradient(answer: Any) -> None:
    case = [part.requires_grad_() for part in segment_case(5, 1, 2, 3, 5, 7, 0.0)[1:]]
    gradients = torch.autograd.grad(answer(*case)[0].sum(), case, allow_unused=True)
    if not all(gradient is None or gradient.isfinite().all() for gradient in gradients):
        raise Wrong(
            "an empty memory answers zeros, but puts NaN into the gradient, and from there into every weight: 0 / 0 "
            "has been made and then hidden. Let no division by 0 arise"
        )


def delta_written_without_the_library(answer: Any) -> None:
    refuse_the_library(answer, delta_cases()[0])


# 7.3 all_segments

SPEED_UP = 4
TIMED = {"batch": 1, "heads": 2, "time": 4096, "width": 8, "segment": 16}


def parallel_cases() -> list[tuple[Any, ...]]:
    """(B, H, T, d, v, segment_len) = (1, 2, 6, 3, 5, 2), (2, 3, 35, 5, 7, 7), one segment, segments of one token."""
    sizes = [(1, 2, 6, 3, 5, 2), (2, 3, 35, 5, 7, 7), (3, 2, 5, 7, 3, 5), (2, 3, 11, 5, 7, 1)]
    return [
        (random(s, B, H, T, d), random(s + 5, B, H, T, d), random(s + 9, B, H, T, v), segment_len)
        for s, (B, H, T, d, v, segment_len) in enumerate(sizes)
    ]


def parallel_oracle(query: Array, key: Array, value: Array, segment_len: int) -> tuple[Array, Array, Array]:
    B, H, T, d = query.shape
    memory, normalizer = np.zeros((B, H, d, value.shape[3])), np.zeros((B, H, d))
    parts = []
    for start in range(0, T, segment_len):
        own = slice(start, start + segment_len)
        part, memory, normalizer = segment_oracle(
            query[:, :, own], key[:, :, own], value[:, :, own], memory, normalizer
        )
        parts.append(part)
    return np.concatenate(parts, axis=2), memory, normalizer


def segment_loop(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> tuple[Tensor, Tensor, Tensor]:
    """The loop that the stub prints: (B, H, T, d), (B, H, T, d), (B, H, T, v) -> (B, H, T, v), and the last state."""
    B, H, _, d = query.shape
    memory, normalizer = query.new_zeros(B, H, d, value.shape[3]), query.new_zeros(B, H, d, 1)
    reads = []
    for q, k, v in zip(*(part.split(segment_len, dim=2) for part in (query, key, value)), strict=True):
        q, k = nn.functional.elu(q) + 1, nn.functional.elu(k) + 1
        reads.append(q @ memory / (q @ normalizer).clamp(min=1e-10))
        memory = memory + k.mT @ v
        normalizer = normalizer + k.sum(dim=2)[..., None]
    return torch.cat(reads, dim=2), memory, normalizer[..., 0]


def timed_case() -> tuple[Any, ...]:
    B, H, T, d, segment_len = TIMED.values()
    return (*(random(seed, B, H, T, d) for seed in range(3)), segment_len)


def the_first_segment_passes_a_gradient(answer: Any) -> None:
    case = [part.requires_grad_() for part in parallel_cases()[0][:3]]
    gradients = torch.autograd.grad(answer(*case, 2)[0].sum(), case)
    if not all(gradient.isfinite().all() for gradient in gradients):
        raise Wrong(
            "the first segment reads an empty memory: zeros, but with NaN in the gradient. 0 / 0 has been made and "
            "then hidden; let no division by 0 arise"
        )


def at_least_four_times_as_fast_as_the_loop(answer: Any) -> None:
    ratio = times_as_fast(answer, segment_loop, timed_case(), asked=SPEED_UP)
    if ratio < SPEED_UP:
        T, segment_len = TIMED["time"], TIMED["segment"]
        raise Wrong(
            f"the same numbers as the loop, at {ratio:.1f} times its speed; at least {SPEED_UP} times is asked. "
            f"A Python step for each of {T // segment_len} segments is too many, and so is a table of {T} x {T}"
        )


def all_segments_without_the_library(answer: Any) -> None:
    refuse_the_library(answer, parallel_cases()[0])


# 7.4 gate_groups

Shapes = dict[str, tuple[int, ...]]
LEAST_TRAVEL, MOST_TRAVEL = 5.0, 20.0
FAR_ENOUGH = "5 to 20 in all"


def gate_cases() -> list[tuple[Any, ...]]:
    """Parameters by name, learning rate, weight decay, steps: a layer, a model of two, names that only look alike."""
    layer: Shapes = {"gate": (3,), "heads.query.weight": (5, 7), "norm.weight": (7,)}
    model: Shapes = {f"layers.{n}.mixer.{name}": shape for n in range(2) for name, shape in layer.items()}
    alike: Shapes = {"aggregate": (2,), "gate_norm.weight": (5,), "gate.bias": (3,), "memory.gate": (2,)}
    return [
        (layer, 1e-3, 0.1, 60),
        (model | {"embedding.weight": (11, 7)}, 3e-4, 0.01, 2000),
        (alike, 1e-2, 0.05, 20),
    ]


def make_module(shapes: Shapes) -> nn.Module:
    """A module whose parameters have these names and shapes."""
    root = nn.Module()
    for name, shape in shapes.items():
        *path, last = name.split(".")
        owner = root
        for part in path:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(last, nn.Parameter(torch.zeros(shape)))
    return root


def is_gate(name: str) -> bool:
    return name.split(".")[-1] == "gate"


def groups_probe(answer: Any, parameters: Shapes, learning_rate: float, weight_decay: float, steps: int) -> Any:
    """What AdamW would do with each parameter under these groups, by its name."""
    module = make_module(parameters)
    groups = answer(module, learning_rate, weight_decay, steps)
    if hasattr(groups, "param_groups"):
        raise Wrong("the groups are asked, a list of dicts, and not the optimizer that is made of them")
    groups = list(groups) if isinstance(groups, list | tuple) else groups
    if not (isinstance(groups, list) and all(isinstance(group, Mapping) for group in groups)):
        raise Wrong('the groups should be a list of dicts, each with the keys "params", "lr" and "weight_decay"')
    for number, group in enumerate(groups):
        if missing := [key for key in ("params", "lr", "weight_decay") if key not in group]:
            raise Wrong(
                f'group {number} lacks {" and ".join(missing)}: each group should have the keys "params", "lr" and '
                '"weight_decay"'
            )
    found: dict[str, str] = {}
    for name, parameter in module.named_parameters():
        own = [group for group in groups if any(p is parameter for p in list(group["params"]))]
        if len(own) != 1:
            found[name] = "in no group: it will not be trained" if not own else f"in {len(own)} groups"
            continue
        rate, decay = float(own[0]["lr"]), float(own[0]["weight_decay"])
        found[name] = said(is_gate(name), rate, decay, learning_rate, weight_decay, steps)
    return found


def said(gate: bool, rate: float, decay: float, learning_rate: float, weight_decay: float, steps: int) -> str:
    """What a group does to a parameter, in words that are the same for all right answers."""
    if not gate:
        rates = "learning_rate" if math.isclose(rate, learning_rate) else f"the rate {rate:.3g}"
        return f"{rates}, {'weight_decay' if math.isclose(decay, weight_decay) else f'decay {decay:.3g}'}"
    travel = rate * steps * (1 + 1e-9)
    if travel < LEAST_TRAVEL:
        far = f"about {travel:.2g} in all, too little"
    else:
        far = FAR_ENOUGH if travel <= MOST_TRAVEL * (1 + 1e-6) else f"about {travel:.4g} in all, too far"
    return f"can travel {far}, {'no decay' if decay == 0 else f'decay {decay:.3g}'}"


def groups_oracle(parameters: Shapes, learning_rate: float, weight_decay: float, steps: int) -> dict[str, str]:
    plain, gate = "learning_rate, weight_decay", f"can travel {FAR_ENOUGH}, no decay"
    return {name: gate if is_gate(name) else plain for name in make_parameter_names(parameters)}


def make_parameter_names(shapes: Shapes) -> list[str]:
    return [name for name, _ in make_module(shapes).named_parameters()]


STUDENT: dict[str, Any] = {"d_model": 8, "n_heads": 2, "segment_len": 3}
STEPS, RATE, ROWS = 40, 1e-3, 8


@one_thread()
def train_a_student(groups: Any, seed: int = 0) -> list[float]:
    """How far open the gates of a layer are that learns to be one with gates of 0.95 and 0.05; they start at 0.5."""
    torch.manual_seed(seed)
    teacher, student = InfiniAttention(**STUDENT), InfiniAttention(**STUDENT)
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        teacher.gate.copy_(torch.tensor([3.0, -3.0]))
    optimizer = torch.optim.AdamW(groups(student, RATE, 0.1, STEPS))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        x = torch.randn(ROWS, 2 * STUDENT["segment_len"], STUDENT["d_model"], generator=generator)
        with torch.no_grad():
            target = teacher(x)[0]
        loss = (student(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student.gate.detach().sigmoid().tolist()


def the_gates_of_a_layer_arrive(answer: Any) -> None:
    memory, local = train_a_student(answer)
    if memory < 0.8 or local > 0.2:
        raise Wrong(
            f"after {STEPS} steps at {RATE}, two gates that should be at 0.95 and 0.05 are at {memory:.2f} and "
            f"{local:.2f}; at least 0.80 and at most 0.20 is asked"
        )


# 7.5 next_token

STATE = ("memory", "normalizer", "open_key", "open_value")


def stream_cases() -> list[tuple[Any, ...]]:
    """(B, H, T, d, v, segment_len) = (1, 2, 5, 3, 2, 2), (2, 3, 13, 5, 7, 4), ending with a segment, of one token."""
    sizes = [(1, 2, 5, 3, 2, 2), (2, 3, 13, 5, 7, 4), (3, 2, 6, 5, 7, 3), (2, 3, 5, 7, 11, 1)]
    return [
        (random(s, B, H, T, d), random(s + 5, B, H, T, d), random(s + 9, B, H, T, v), random(s + 13, H), segment_len)
        for s, (B, H, T, d, v, segment_len) in enumerate(sizes)
    ]


def stream_probe(answer: Any, query: Tensor, key: Tensor, value: Tensor, gate: Tensor, segment_len: int) -> Any:
    """All tokens, one call each, from an empty memory: outputs (B, H, T, v), and the four parts of the last state."""
    B, H, T, d = query.shape
    v = value.shape[3]
    state: Any = tuple(query.new_zeros(B, H, *shape) for shape in ((d, v), (d,), (0, d), (0, v)))
    outputs = []
    for t in range(T):
        given = query[:, :, t], key[:, :, t], value[:, :, t], gate, segment_len, state
        result = answer(*given)
        if result is None:
            return None
        if not (isinstance(result, tuple) and len(result) == 2):
            raise Wrong("each call should return two things: the output of the token, and the state after it")
        output, state = result
        if not (isinstance(state, tuple | list) and len(state) == 4):
            raise Wrong("the state should be four tensors, as it came: (memory, normalizer, open_key, open_value)")
        if not isinstance(output, Tensor) or output.shape != (B, H, v):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise Wrong(f"the output of one token should have shape (B, H, v) = {(B, H, v)}; found {shape}")
        outputs.append(output)
    return {"outputs": torch.stack(outputs, dim=2)} | dict(zip(STATE, state, strict=True))


def stream_oracle(query: Array, key: Array, value: Array, gate: Array, segment_len: int) -> dict[str, Array]:
    (B, H, T, d), v = query.shape, value.shape[3]
    outputs, memory, normalizer = np.zeros((B, H, T, v)), np.zeros((B, H, d, v)), np.zeros((B, H, d))
    for start in range(0, T, segment_len):
        end = min(start + segment_len, T)
        own = slice(start, end)
        for b, h in np.ndindex(B, H):
            share = sigmoid(gate[h])
            for t in range(start, end):
                scores = np.array([sum(query[b, h, t] * key[b, h, s]) / math.sqrt(d) for s in range(start, t + 1)])
                weights = softmax(scores)
                local = sum(w * value[b, h, start + i] for i, w in enumerate(weights))
                remembered = read_one(query[b, h, t], memory[b, h], normalizer[b, h])
                outputs[b, h, t] = share * remembered + (1 - share) * local
        if end - start == segment_len:
            _, memory, normalizer = segment_oracle(
                query[:, :, own], key[:, :, own], value[:, :, own], memory, normalizer
            )
    unfinished = slice(T - T % segment_len, T)
    state = memory, normalizer, key[:, :, unfinished], value[:, :, unfinished]
    return {"outputs": outputs} | dict(zip(STATE, state, strict=True))


# 7.7 memorizing_read

FULL = 11


def memorizing_cases() -> list[tuple[Any, ...]]:
    """(B, H, T, C, d, v, k) = (1, 2, 3, 5, 7, 2, 2), then rows with holes, fewer than k, none; k above C."""
    holes = torch.tensor([[True, False, True, True, False, True, True, True, False, True, True]] * 3)
    holes[1] = torch.arange(FULL) == 6
    holes[2] = False
    sizes = [(1, 2, 3, 5, 7, 2, 2), (3, 2, 5, FULL, 7, 13, 3), (2, 3, 5, 7, 3, 11, 13)]
    masks = [torch.ones(1, 5, dtype=torch.bool), holes, torch.arange(7) < torch.tensor([[7], [2]])]
    cases = []
    for s, ((B, H, T, C, d, v, k), valid) in enumerate(zip(sizes, masks, strict=True)):
        stale = torch.where(valid, 1.0, 9.0)[:, None, :, None]  # an empty entry holds what was there before, and loudly
        key, value = stale * random(s + 5, B, H, C, d), stale * random(s + 9, B, H, C, v)
        cases.append((random(s, B, H, T, d), key, value, valid, k, random(s + 13, B, H, T, v), random(s + 17, H)))
    return cases


def memorizing_oracle(
    query: Array, key: Array, value: Array, valid: NDArray[np.bool_], k: int, local: Array, gate: Array
) -> Array:
    output = np.zeros_like(local)
    for b, h, t in np.ndindex(query.shape[:3]):
        entries = [c for c in range(key.shape[2]) if valid[b, c]]
        scores = {c: sum(query[b, h, t] * key[b, h, c]) for c in entries}
        best = sorted(entries, key=lambda c: -scores[c])[:k]
        weights = softmax(np.array([scores[c] for c in best]))
        remembered = sum((w * value[b, h, c] for w, c in zip(weights, best, strict=True)), np.zeros(value.shape[3]))
        share = sigmoid(gate[h])
        output[b, h, t] = share * remembered + (1 - share) * local[b, h, t]
    return output


def the_gradient_stops_at_the_memory(answer: Any) -> None:
    """It reaches query, local and gate, with the right numbers, and neither key nor value."""
    query, key, value, valid, k, local, gate = memorizing_cases()[0]
    learned, stored = [query, local, gate], [key, value]
    for part in (*learned, *stored):
        part.requires_grad_()
    projection = random(40, *local.shape)
    result = (answer(query, key, value, valid, k, local, gate) * projection).sum()
    if not result.requires_grad:
        raise Wrong("no gradient flows at all: the query, the local read and the gate are to learn")
    into_memory = torch.autograd.grad(result, stored, allow_unused=True, retain_graph=True)
    if any(gradient is not None and gradient.any() for gradient in into_memory):
        raise Wrong(
            "a gradient flows into the memory: a hundred thousand keys and values of many steps ago would drag their "
            "graphs along, or raise once those are freed"
        )
    found = torch.autograd.grad(result, learned, allow_unused=True)
    for name, part, gradient in zip(("query", "local", "gate"), learned, found, strict=True):
        if gradient is None or not np.allclose(gradient.numpy(), _slopes(name, part, projection), atol=1e-3):
            raise Wrong(f"the gradient of `{name}` is not right: it is to learn, and the memory alone is constant")


def _slopes(name: str, part: Tensor, projection: Tensor, step: float = 1e-5) -> Array:
    """Central differences of the oracle with respect to one argument of the first case."""
    names = ("query", "key", "value", "valid", "k", "local", "gate")
    pairs = zip(names, memorizing_cases()[0], strict=True)
    case: dict[str, Any] = {n: c.double().numpy() if isinstance(c, Tensor) else c for n, c in pairs}
    argument, slopes = case[name], np.zeros(tuple(part.shape))
    for index in np.ndindex(slopes.shape):
        ends = []
        for sign in (1, -1):
            argument[index] += sign * step
            ends.append(float((memorizing_oracle(**case) * projection.double().numpy()).sum()))
            argument[index] -= sign * step
        slopes[index] = (ends[0] - ends[1]) / (2 * step)
    return slopes


def memorizing_without_the_library(answer: Any) -> None:
    refuse_the_library(answer, memorizing_cases()[0])
