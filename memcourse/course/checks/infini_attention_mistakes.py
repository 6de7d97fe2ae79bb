"""The known wrong answers of chapter 07, each with the sentence that names it.

Each group has one right way in parts, and a mistake is that way with one part replaced.  They stand in the order in
which they should be recognised: the first that gives the learner's numbers is named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memcourse.course.checks.infini_attention_oracles import is_gate, segment_loop
from memcourse.course.exercise import Mistake
from memcourse.infini_attention import read, write
from memcourse.memorizing import MemorizingAttention

Map = Callable[[Tensor], Tensor]
Two = tuple[Tensor, Tensor]


def right_sigma(x: Tensor) -> Tensor:
    return F.elu(x) + 1


def right_read(features: Tensor, memory: Tensor, normalizer: Tensor) -> Tensor:
    """(..., L, d), (..., d, v), (..., d) -> (..., L, v)."""
    return features @ memory / (features @ normalizer[..., None]).clamp(min=1e-10)


def unguarded(features: Tensor, memory: Tensor, normalizer: Tensor) -> Tensor:
    return features @ memory / (features @ normalizer[..., None])


def hidden_afterwards(features: Tensor, memory: Tensor, normalizer: Tensor) -> Tensor:
    weight = features @ normalizer[..., None]
    return torch.where(weight > 0, features @ memory / weight, 0.0)


def nan_to_num(features: Tensor, memory: Tensor, normalizer: Tensor) -> Tensor:
    return unguarded(features, memory, normalizer).nan_to_num()


def with_a_guard(size: float) -> Callable[..., Tensor]:
    return lambda features, memory, normalizer: features @ memory / (features @ normalizer[..., None] + size)


def clamped(least: float) -> Callable[..., Tensor]:
    return lambda features, memory, normalizer: features @ memory / (features @ normalizer[..., None]).clamp(min=least)


def not_normalised(features: Tensor, memory: Tensor, normalizer: Tensor) -> Tensor:
    return features @ memory


def one_sum_for_all(features: Tensor, memory: Tensor, normalizer: Tensor) -> Tensor:
    return features @ memory / normalizer.sum(dim=-1)[..., None, None].clamp(min=1e-10)


def over_the_queries(features: Tensor, memory: Tensor, normalizer: Tensor) -> Tensor:
    weight = (features * normalizer[..., None, :]).sum(dim=-2).sum(dim=-1)[..., None, None]
    return features @ memory / weight.clamp(min=1e-10)


LIBRARY = "the library's own function does what you are asked to write: use torch alone"
RELU = "sigma is ReLU here: sigma(x) = ELU(x) + 1 is e^x below 0, never 0, and x + 1 above"
SIGMOID = "sigma is the logistic function here, torch.sigmoid: in this chapter sigma(x) = ELU(x) + 1"
ELU = "sigma lacks its + 1: ELU alone is negative below 0, and sigma(q) z can then be 0 or negative"
NO_SIGMA = "sigma is missing: queries and keys go through ELU + 1 before they meet the memory"
EXP = "sigma is exp here: ELU(x) + 1 is e^x below 0, and x + 1 above"
SOFTMAX = "sigma is a softmax here: it is ELU + 1, number by number"
NO_NORMALIZER = "the normalizer is forgotten: what is read is divided by sigma(q) z, one number for each query"
ONE_SUM = (
    "the normalizer is summed over the wrong axis: divide by sigma(q) z, a number of each query's own, not by sum(z)"
)
EMPTY = "an empty memory reads 0 / 0: where nothing has been written, the read is 0"
HIDDEN = (
    "0 / 0 is made and then hidden: the values are right, but the gradient of the part that was hidden is NaN. Divide "
    "by something above 0, such as clamp(min=1e-10)"
)
GUARD = "the number that guards the division is so large that it shows in the reads: 1e-6 is more than enough"
IN_PLACE = "the caller's memory is overwritten: write memory = memory + ..., which makes a new tensor"
DETACHED = "the memory is cut off from the graph, so that nobody learns what to write: no detach, no no_grad"
FORGETS = "what the memory held before is lost: the segment is added to it"
Z_OF_BEFORE = "the normalizer is not updated: z grows by the sum of sigma(key) over the segment's tokens"
Z_MEAN = "the normalizer takes the mean of sigma(key) over the tokens: the sum is asked"
Z_OVER_D = "the normalizer sums over the width: z has d numbers, each a sum over the segment's tokens"

# 7.1 read_then_write


def segment(
    sigma: Map = right_sigma,
    read: Callable[..., Tensor] = right_read,
    sigma_of_key: Map | None = None,
    write: Callable[..., Tensor] = lambda memory, features, value: memory + features.mT @ value,
    count: Callable[..., Tensor] = lambda normalizer, features: normalizer + features.sum(dim=-2),
    result: Callable[..., Any] = lambda reads, memory, normalizer: (reads, memory, normalizer),
    write_first: bool = False,
) -> Callable[..., Any]:
    """read_then_write, with a part replaced."""

    def step(query: Tensor, key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> Any:
        features = (sigma_of_key or sigma)(key)
        after = write(memory, features, value), count(normalizer, features)
        reads = read(sigma(query), *(after if write_first else (memory, normalizer)))
        return result(reads, *after)

    return step


def written_in_place(query: Tensor, key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> Any:
    reads = right_read(right_sigma(query), memory, normalizer)
    memory += right_sigma(key).mT @ value
    normalizer += right_sigma(key).sum(dim=-2)
    return reads, memory, normalizer


def by_the_library(query: Tensor, key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> Any:
    return read(query, memory, normalizer), *write(key, value, memory, normalizer)


READ_THEN_WRITE = (
    Mistake(
        "the memory is read after it is written: a query must not meet its own segment, where it would see the future",
        segment(write_first=True),
    ),
    Mistake(
        "the normalizer that divides has this segment in it already: read with z as it was before",
        lambda query, key, value, memory, normalizer: (
            right_read(right_sigma(query), memory, normalizer + right_sigma(key).sum(dim=-2)),
            *segment()(query, key, value, memory, normalizer)[1:],
        ),
    ),
    Mistake(RELU, segment(sigma=torch.relu)),
    Mistake(ELU, segment(sigma=F.elu)),
    Mistake(SIGMOID, segment(sigma=torch.sigmoid)),
    Mistake(NO_SIGMA, segment(sigma=lambda x: x)),
    Mistake("sigma is missing on the keys: they need it as the queries do", segment(sigma_of_key=lambda x: x)),
    Mistake(EXP, segment(sigma=torch.exp)),
    Mistake(SOFTMAX, segment(sigma=lambda x: x.softmax(dim=-1))),
    Mistake(NO_NORMALIZER, segment(read=not_normalised)),
    Mistake(ONE_SUM, segment(read=one_sum_for_all)),
    Mistake(
        "one normalizer serves all queries of the segment: sigma(q) z is a number of each query's own",
        segment(read=over_the_queries),
    ),
    Mistake(EMPTY, segment(read=unguarded)),
    Mistake(HIDDEN, segment(read=hidden_afterwards)),
    Mistake(HIDDEN, segment(read=nan_to_num)),
    *(Mistake(GUARD, segment(read=with_a_guard(size))) for size in (1.0, 0.1, 1e-2, 1e-3)),
    Mistake(FORGETS, segment(write=lambda memory, features, value: features.mT @ value)),
    Mistake(Z_OF_BEFORE, segment(count=lambda normalizer, features: normalizer)),
    Mistake(
        "what the normalizer held before is lost: the segment's sum is added to it",
        segment(count=lambda normalizer, features: features.sum(dim=-2)),
    ),
    Mistake(Z_MEAN, segment(count=lambda normalizer, features: normalizer + features.mean(dim=-2))),
    Mistake(
        Z_OVER_D,
        segment(count=lambda normalizer, features: normalizer + features.sum(dim=-1).sum(dim=-1, keepdim=True)),
    ),
    Mistake(
        "the memory takes the mean over the segment's tokens: the sum of their outer products is asked",
        segment(write=lambda memory, features, value: memory + features.mT @ value / value.shape[-2]),
    ),
    Mistake(
        "this is the read alone: return (retrieved, memory, normalizer)",
        segment(result=lambda reads, memory, normalizer: reads),
    ),
    Mistake(
        "the memory and the normalizer that come back are those of before: return them with the segment in them",
        lambda query, key, value, memory, normalizer: (
            right_read(right_sigma(query), memory, normalizer),
            memory,
            normalizer,
        ),
    ),
    Mistake(IN_PLACE, written_in_place),
    Mistake(
        DETACHED,
        segment(result=lambda reads, memory, normalizer: (reads, memory.detach(), normalizer.detach())),
    ),
    Mistake(LIBRARY, by_the_library),
)

# 7.2 delta_write


def delta(
    sigma: Map = right_sigma,
    known: Callable[..., Tensor] = right_read,
    new: Callable[[Tensor, Tensor], Tensor] = lambda value, known: value - known,
    write: Callable[..., Tensor] = lambda memory, features, new: memory + features.mT @ new,
    count: Callable[..., Tensor] = lambda normalizer, features: normalizer + features.sum(dim=-2),
    result: Callable[..., Any] = lambda memory, normalizer: (memory, normalizer),
) -> Callable[..., Any]:
    """delta_write, with a part replaced."""

    def step(key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> Any:
        features = sigma(key)
        written = new(value, known(features, memory, normalizer))
        return result(write(memory, features, written), count(normalizer, features))

    return step


def token_by_token(key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> Any:
    for k, v in zip(key.split(1, dim=-2), value.split(1, dim=-2), strict=True):
        memory, normalizer = delta()(k, v, memory, normalizer)
    return memory, normalizer


def normalizer_first(key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> Any:
    features = right_sigma(key)
    normalizer = normalizer + features.sum(dim=-2)
    return memory + features.mT @ (value - right_read(features, memory, normalizer)), normalizer


def delta_in_place(key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> Any:
    features = right_sigma(key)
    memory += features.mT @ (value - right_read(features, memory, normalizer))
    normalizer += features.sum(dim=-2)
    return memory, normalizer


def counted_only_where_empty(normalizer: Tensor, features: Tensor) -> Tensor:
    return torch.where(normalizer > 0, normalizer, features.sum(dim=-2))


DELTA_WRITE = (
    Mistake(
        "this is the linear rule: of the value, write only what the memory does not yet answer to its key",
        delta(new=lambda value, known: value),
    ),
    Mistake(
        "what the memory answers lacks its normalizer: sigma(K) M is divided by sigma(K) z, as in every read",
        delta(known=not_normalised),
    ),
    Mistake("the sign is turned: the memory's answer is taken off the value", delta(new=lambda v, known: v + known)),
    Mistake("the difference is turned: value minus what is known", delta(new=lambda value, known: known - value)),
    Mistake(
        "tokens are written one after the other: all keys of a segment ask the memory as it was before the segment",
        token_by_token,
    ),
    Mistake(
        "the answer is divided by a z that has this segment in it already: ask first, then let z grow",
        normalizer_first,
    ),
    Mistake(ONE_SUM, delta(known=one_sum_for_all)),
    Mistake(RELU, delta(sigma=torch.relu)),
    Mistake(ELU, delta(sigma=F.elu)),
    Mistake(SIGMOID, delta(sigma=torch.sigmoid)),
    Mistake(NO_SIGMA, delta(sigma=lambda x: x)),
    Mistake(EXP, delta(sigma=torch.exp)),
    Mistake(SOFTMAX, delta(sigma=lambda x: x.softmax(dim=-1))),
    Mistake(EMPTY, delta(known=unguarded)),
    Mistake(HIDDEN, delta(known=hidden_afterwards)),
    Mistake(HIDDEN, delta(known=nan_to_num)),
    *(Mistake(GUARD, delta(known=with_a_guard(size))) for size in (1.0, 0.1, 1e-2, 1e-3)),
    Mistake(FORGETS, delta(write=lambda memory, features, new: features.mT @ new)),
    Mistake(
        "the normalizer stays as it was: z sums sigma(K) under both rules, also where the memory knew the value",
        delta(count=lambda normalizer, features: normalizer),
    ),
    Mistake(
        "what the normalizer held before is lost: the segment's sum is added to it",
        delta(count=lambda normalizer, features: features.sum(dim=-2)),
    ),
    Mistake(Z_MEAN, delta(count=lambda normalizer, features: normalizer + features.mean(dim=-2))),
    Mistake("this is the memory alone: return (memory, normalizer)", delta(result=lambda memory, normalizer: memory)),
    Mistake(
        "the two results are the wrong way round: return (memory, normalizer)",
        delta(result=lambda memory, normalizer: (normalizer, memory)),
    ),
    Mistake(IN_PLACE, delta_in_place),
    Mistake(
        "what is known is cut off from the graph: the memory learns through what it answers, too",
        lambda key, value, memory, normalizer: delta(
            known=lambda *state: right_read(*state).detach(),
        )(key, value, memory, normalizer),
    ),
    Mistake(DETACHED, delta(result=lambda memory, normalizer: (memory.detach(), normalizer.detach()))),
    Mistake(LIBRARY, lambda key, value, memory, normalizer: write(key, value, memory, normalizer, rule="delta")),
)

# 7.3 all_segments


def moved_on(sums: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(sums[:, :, :1]), sums[:, :, :-1]], dim=2)


def earlier(written: Tensor) -> Tensor:
    """What all segments before have written: (B, H, S, ...) -> the same, zeros for the first."""
    return moved_on(written.cumsum(dim=2))


def taken_off(written: Tensor) -> Tensor:
    return written.cumsum(dim=2) - written


def parallel(
    before: Map = earlier,
    before_z: Map | None = None,
    read: Callable[..., Tensor] = right_read,
    sigma: Map = right_sigma,
    result: Callable[..., Any] = lambda reads, memory, normalizer: (reads, memory, normalizer),
) -> Callable[..., Any]:
    """all_segments, with a part replaced."""

    def run(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Any:
        cut = (-1, segment_len)
        q, k = sigma(query).unflatten(2, cut), sigma(key).unflatten(2, cut)  # (B, H, S, L, d)
        written, counted = k.mT @ value.unflatten(2, cut), k.sum(dim=3)  # (B, H, S, d, v), (B, H, S, d)
        reads = read(q, before(written), (before_z or before)(counted)).flatten(2, 3)
        return result(reads, written.sum(dim=2), counted.sum(dim=2))

    return run


def own_is_seen(written: Tensor) -> Tensor:
    return written.cumsum(dim=2)


def everything(written: Tensor) -> Tensor:
    return written.sum(dim=2, keepdim=True).expand_as(written)


def along_the_heads(written: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(written[:, :1]), written.cumsum(dim=1)[:, :-1]], dim=1)


def rolled(written: Tensor) -> Tensor:
    return written.cumsum(dim=2).roll(1, dims=2)


def by_tokens(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Any:
    """Every token reads all tokens before it, those of its own segment included."""
    q, k = right_sigma(query), right_sigma(key)
    scores = (q @ k.mT).tril(-1)
    reads = scores @ value / scores.sum(dim=-1, keepdim=True).clamp(min=1e-10)
    return reads, k.mT @ value, k.sum(dim=2)


def in_one_table(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Any:
    q, k = right_sigma(query), right_sigma(key)
    segment = torch.arange(query.shape[2]) // segment_len
    scores = (q @ k.mT) * (segment[:, None] > segment)
    reads = scores @ value / scores.sum(dim=-1, keepdim=True).clamp(min=1e-10)
    return reads, k.mT @ value, k.sum(dim=2)


def cut_into_n(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Any:
    """Every n-th token in the same segment: the axes of the split are the wrong way round."""
    cut = (segment_len, -1)
    q, k = right_sigma(query).unflatten(2, cut).mT.mT, right_sigma(key).unflatten(2, cut)
    q, k, v = (part.transpose(2, 3) for part in (q, k, value.unflatten(2, cut)))
    written, counted = k.mT @ v, k.sum(dim=3)
    reads = right_read(q, earlier(written), earlier(counted)).transpose(2, 3).flatten(2, 3)
    return reads, written.sum(dim=2), counted.sum(dim=2)


def parallel_by_the_library(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Any:
    parts = (part.unflatten(2, (-1, segment_len)).transpose(1, 2).flatten(0, 1) for part in (query, key, value))
    (B, H, _, d), (q, k, v) = query.shape, parts
    zeros = query.new_zeros(len(k), H, d, v.shape[-1]), query.new_zeros(len(k), H, d)
    written, counted = (part.unflatten(0, (B, -1)) for part in write(k, v, *zeros))  # (B, S, H, ...)
    before = (earlier(part.transpose(1, 2)).transpose(1, 2).flatten(0, 1) for part in (written, counted))
    reads = read(q, *before).unflatten(0, (B, -1)).transpose(1, 2).flatten(2, 3)
    return reads, written.sum(dim=1), counted.sum(dim=1)


def without_gradient(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Any:
    with torch.no_grad():
        return parallel()(query, key, value, segment_len)


ALL_SEGMENTS = (
    Mistake(
        "each segment reads a memory that holds it already: cumsum includes the segment itself, so move the sums on by "
        "one segment, with zeros for the first",
        parallel(own_is_seen),
    ),
    Mistake(
        "the normalizer holds the segment itself already, and the memory does not: both are those of the segments "
        "before",
        parallel(before_z=own_is_seen),
    ),
    Mistake(
        "the memory holds the segment itself already, and the normalizer does not: both are those of the segments "
        "before",
        parallel(own_is_seen, before_z=earlier),
    ),
    Mistake("each segment reads what the one before it wrote alone: the sums run over all before", parallel(moved_on)),
    Mistake(
        "the memory is summed over the segments before, and the normalizer is that of one segment: both run",
        parallel(before_z=moved_on),
    ),
    Mistake(
        "each segment reads the sum over all segments, the later ones too: that is the future", parallel(everything)
    ),
    Mistake("the sums run along the heads: segments are dim=2 once time is cut in two", parallel(along_the_heads)),
    Mistake(
        "roll moves the last sum to the front, and the first segment reads the end: put zeros there", parallel(rolled)
    ),
    Mistake(
        "every token reads the tokens before it, those of its own segment too: the memory is read as it was before the "
        "segment",
        by_tokens,
    ),
    Mistake(
        "time is cut the wrong way: (-1, segment_len) gives segments of neighbours, (segment_len, -1) takes every "
        "n-th token",
        cut_into_n,
    ),
    Mistake(EMPTY, parallel(read=unguarded)),
    Mistake(HIDDEN, parallel(read=hidden_afterwards)),
    Mistake(HIDDEN, parallel(read=nan_to_num)),
    Mistake(NO_NORMALIZER, parallel(read=not_normalised)),
    Mistake(RELU, parallel(sigma=torch.relu)),
    Mistake(ELU, parallel(sigma=F.elu)),
    Mistake(NO_SIGMA, parallel(sigma=lambda x: x)),
    Mistake(
        "these are the reads alone: return (reads, memory, normalizer), the state after the last segment too",
        parallel(result=lambda reads, memory, normalizer: reads),
    ),
    *(
        Mistake(
            "the values are right, and the gradient is lost in rounding: a segment's own part is added by cumsum and "
            "taken off again, and the first segment, which divides by next to 0, sends a gradient of 1e10 along both "
            "ways, beside which float32 keeps nothing else. Move the sums on by one segment, with zeros for the first",
            parallel(taken_off, read=guarded),
        )
        for guarded in (right_read, *map(with_a_guard, (1e-10, 1e-8, 1e-6)), *map(clamped, (1e-12, 1e-8, 1e-6)))
    ),
    Mistake(DETACHED, without_gradient),
    *(
        Mistake(
            "this costs as much as the loop over the segments, or more: a step for each segment, or a table of T x T "
            "scores, which grows with the square of the length that this memory was to avoid",
            slow,
        )
        for slow in (segment_loop, in_one_table)
    ),
    Mistake(LIBRARY, parallel_by_the_library),
)

# 7.4 gate_groups

Chosen = Callable[[str], bool]


def groups(
    chosen: Chosen = is_gate,
    rate: Callable[[float, int], float] = lambda learning_rate, steps: 10 / steps,
    gate_decay: Callable[[float], float] = lambda weight_decay: 0.0,
    rest_of: Callable[[nn.Module, list[nn.Parameter]], list[nn.Parameter]] | None = None,
    rest_rate: Callable[[float, int], float] = lambda learning_rate, steps: learning_rate,
    rest_decay: Callable[[float], float] = lambda weight_decay: weight_decay,
    result: Callable[[list[dict[str, Any]]], Any] = lambda found: found,
) -> Callable[..., Any]:
    """gate_groups, with a part replaced."""

    def make(model: nn.Module, learning_rate: float, weight_decay: float, steps: int) -> Any:
        gates = [parameter for name, parameter in model.named_parameters() if chosen(name)]
        rest = [parameter for name, parameter in model.named_parameters() if not chosen(name)]
        rest = rest_of(model, rest) if rest_of else rest
        own = {"lr": rate(learning_rate, steps), "weight_decay": gate_decay(weight_decay)}
        others = {"lr": rest_rate(learning_rate, steps), "weight_decay": rest_decay(weight_decay)}
        return result([{"params": rest} | others, {"params": gates} | own])

    return make


def one_group(model: nn.Module, learning_rate: float, weight_decay: float, steps: int) -> Any:
    return [{"params": list(model.parameters()), "lr": learning_rate, "weight_decay": weight_decay}]


def no_decay_alone(model: nn.Module, learning_rate: float, weight_decay: float, steps: int) -> Any:
    return groups(rate=lambda learning_rate, steps: learning_rate)(model, learning_rate, weight_decay, steps)


def of_the_layer_alone(name: str) -> bool:
    return name == "gate"


SHORT = (
    "the gates still move too little: AdamW moves a number by about its learning rate at each step, so rate times "
    "steps is the whole way"
)

FIXED = (
    "AdamW moves a number by about its learning rate at each step, so rate times steps is the whole way. A fixed rate, "
    "or a fixed multiple of learning_rate, suits one number of steps; with others the gates go too little or too far"
)

GATE_GROUPS = (
    Mistake(
        "the gates stand in the group of all others: at that rate they go nowhere, and decay pulls them back to 0.5",
        one_group,
    ),
    Mistake(
        "the gates do not decay now, but their rate is still that of the others: they cannot travel", no_decay_alone
    ),
    *(
        Mistake(FIXED, groups(rate=rate))
        for rate in (
            lambda learning_rate, steps: 10 * learning_rate,
            lambda learning_rate, steps: 100 * learning_rate,
            lambda learning_rate, steps: 1000 * learning_rate,
            lambda learning_rate, steps: 0.01,
            lambda learning_rate, steps: 0.1,
            lambda learning_rate, steps: 0.25,
        )
    ),
    *(Mistake(SHORT, groups(rate=lambda rate, steps, way=way: way / steps)) for way in (1.0, 2.0, 3.0)),  # type: ignore[misc]
    Mistake(
        "the gates travel too far: beyond 10 or so sigmoid is flat, and a gate that was sent there early does not come "
        "back",
        groups(rate=lambda learning_rate, steps: 1.0),
    ),
    Mistake(
        "the gates decay: decay pulls their logits to 0, which is a gate of 0.5",
        groups(gate_decay=lambda weight_decay: weight_decay),
    ),
    Mistake(
        "the decay is gone from all parameters: only the gates are free of it",
        groups(rest_decay=lambda weight_decay: 0.0),
    ),
    Mistake(
        "all parameters have the gates' rate: the others keep learning_rate",
        groups(rest_rate=lambda learning_rate, steps: 10 / steps),
    ),
    Mistake(
        "the gates are in two groups: AdamW refuses a parameter that it has already. Leave them out of the others",
        groups(rest_of=lambda model, rest: list(model.parameters())),
    ),
    Mistake("the others are in no group: what no group holds is never trained", groups(result=lambda found: found[1:])),
    Mistake("the gates are in no group: what no group holds is never trained", groups(result=lambda found: found[:1])),
    Mistake(
        'a name that only ends in "gate", such as aggregate, is no gate: look at the part after the last dot',
        groups(chosen=lambda name: name.endswith("gate")),
    ),
    Mistake(
        'whatever has "gate" somewhere in its name is taken for a gate: look at the part after the last dot',
        groups(chosen=lambda name: "gate" in name),
    ),
    Mistake(
        'the gate of a layer inside a model is called "layers.0.mixer.gate": this finds only that of a layer alone',
        groups(chosen=of_the_layer_alone),
    ),
    Mistake(
        "every vector is taken for a gate: norms and biases are vectors, too. Go by the name",
        lambda model, learning_rate, weight_decay, steps: groups(
            chosen=lambda name: model.get_parameter(name).ndim < 2
        )(model, learning_rate, weight_decay, steps),
    ),
    Mistake(
        "this is the optimizer: return the groups that it is made of",
        groups(result=lambda found: torch.optim.AdamW(found)),
    ),
)

# 7.5 next_token

State = tuple[Tensor, Tensor, Tensor, Tensor]


def right_local(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    weights = (keys @ query[..., None] / query.shape[-1] ** 0.5).softmax(dim=2)  # (B, H, n, 1)
    return (weights * values).sum(dim=2)


def streaming(
    local: Callable[..., Tensor] = right_local,
    mix: Callable[..., Tensor] = lambda share, remembered, local: share * remembered + (1 - share) * local,
    share: Callable[[Tensor], Tensor] = lambda gate: gate.sigmoid()[:, None],
    closes: Callable[[int, int], bool] = lambda n_open, segment_len: n_open == segment_len,
    before: Callable[..., State] = lambda state, key, value, segment_len: state,
    seen: Callable[..., Two] = lambda keys, values: (keys, values),
    kept: Callable[..., Two] = lambda keys, values: (keys[:, :, :0], values[:, :, :0]),
    read_after: bool = False,
    result: Callable[..., Any] = lambda output, state: (output, state),
    write: Callable[..., Two] = write,
) -> Callable[..., Any]:
    """next_token, with a part replaced.  before: what becomes of the state before the token comes in."""

    def step(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, segment_len: int, state: State) -> Any:
        memory, normalizer, keys, values = before(state, key, value, segment_len)
        keys, values = torch.cat([keys, key[:, :, None]], dim=2), torch.cat([values, value[:, :, None]], dim=2)
        attended = local(query, *seen(keys, values))
        state_before = memory, normalizer
        if closes(keys.shape[2], segment_len):
            memory, normalizer = write(keys, values, memory, normalizer)
            keys, values = kept(keys, values)
        looked_up = (memory, normalizer) if read_after else state_before
        remembered = read(query[:, :, None], *looked_up)[:, :, 0]
        return result(mix(share(gate), remembered, attended), (memory, normalizer, keys, values))

    return step


def closed_by_the_next(state: State, key: Tensor, value: Tensor, segment_len: int) -> State:
    memory, normalizer, keys, values = state
    if keys.shape[2] == segment_len:
        memory, normalizer = write(keys, values, memory, normalizer)
        keys, values = keys[:, :, :0], values[:, :, :0]
    return memory, normalizer, keys, values


def without_oneself(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    if keys.shape[2] == 1:
        return torch.zeros_like(values[:, :, 0])
    return right_local(query, keys[:, :, :-1], values[:, :, :-1])


def unscaled(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return ((keys @ query[..., None]).softmax(dim=2) * values).sum(dim=2)


def over_the_width(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return ((keys @ query[..., None] / query.shape[-1] ** 0.5).softmax(dim=1) * values).sum(dim=2)


def each_token_written(query: Tensor, key: Tensor, value: Tensor, gate: Tensor, segment_len: int, state: State) -> Any:
    """The memory takes in every token at once, so that it answers for the open segment, too."""
    memory, normalizer, keys, values = state
    keys, values = torch.cat([keys, key[:, :, None]], dim=2), torch.cat([values, value[:, :, None]], dim=2)
    share = gate.sigmoid()[:, None]
    output = share * read(query[:, :, None], memory, normalizer)[:, :, 0] + (1 - share) * right_local(
        query, keys, values
    )
    memory, normalizer = write(key[:, :, None], value[:, :, None], memory, normalizer)
    if keys.shape[2] == segment_len:
        keys, values = keys[:, :, :0], values[:, :, :0]
    return output, (memory, normalizer, keys, values)


def last_token_unwritten(keys: Tensor, values: Tensor, memory: Tensor, normalizer: Tensor) -> Two:
    return write(keys[:, :, :-1], values[:, :, :-1], memory, normalizer)


def newest_written(keys: Tensor, values: Tensor, memory: Tensor, normalizer: Tensor) -> Two:
    return write(keys[:, :, -1:], values[:, :, -1:], memory, normalizer)


def written_by_delta(keys: Tensor, values: Tensor, memory: Tensor, normalizer: Tensor) -> Two:
    return write(keys, values, memory, normalizer, rule="delta")


def written_over(keys: Tensor, values: Tensor, memory: Tensor, normalizer: Tensor) -> Two:
    return write(keys, values, torch.zeros_like(memory), torch.zeros_like(normalizer))


def sigma_twice(keys: Tensor, values: Tensor, memory: Tensor, normalizer: Tensor) -> Two:
    return write(right_sigma(keys), values, memory, normalizer)


NEXT_TOKEN = (
    Mistake(
        "the segment is closed by the token after it: it is closed by its own last token, so that after k segments "
        "the memory holds k and nothing is open",
        streaming(before=closed_by_the_next, closes=lambda n_open, segment_len: False),
    ),
    Mistake(
        "the last token of a segment reads a memory that holds its own segment: read first, then write",
        streaming(read_after=True),
    ),
    Mistake(
        "every token is written as it comes: the memory is written once a segment, by its last token",
        each_token_written,
    ),
    Mistake(
        "the memory is never written: a segment closes with its last token", streaming(closes=lambda n, length: False)
    ),
    Mistake(
        "what a closed segment held stays in the buffers: the next segment begins with empty ones",
        streaming(kept=lambda keys, values: (keys, values)),
    ),
    Mistake(
        "a closed segment leaves its last token in the buffers: the next segment begins with empty ones",
        streaming(kept=lambda keys, values: (keys[:, :, -1:], values[:, :, -1:])),
    ),
    Mistake(
        "the buffers slide, and keep the newest tokens of the segment before: they are empty after its last token",
        streaming(kept=lambda keys, values: (keys[:, :, 1:], values[:, :, 1:])),
    ),
    Mistake(
        "the segment closes one token late: it closes when the token that has just come fills it to segment_len",
        streaming(closes=lambda n_open, segment_len: n_open > segment_len),
    ),
    Mistake(
        "the segment closes one token early: n_open == segment_len once the token is in the buffer",
        streaming(closes=lambda n_open, segment_len: n_open >= max(1, segment_len - 1)),
    ),
    Mistake(
        "the last token is missing from what is written: put the token into the buffer first, then write the buffer",
        streaming(write=last_token_unwritten),
    ),
    Mistake("only the last token of a segment is written: write the whole buffer", streaming(write=newest_written)),
    Mistake("this writes by the delta rule: the linear one is asked", streaming(write=written_by_delta)),
    Mistake(FORGETS, streaming(write=written_over)),
    Mistake("sigma is applied twice: the library's read and write apply it themselves", streaming(write=sigma_twice)),
    Mistake(
        "the gates are swapped: sigmoid(gate) is the memory's share, and the rest that of the local attention",
        streaming(mix=lambda share, remembered, local: (1 - share) * remembered + share * local),
    ),
    Mistake(
        "memory and local attention are added whole: the gate shares 1 between them",
        streaming(mix=lambda share, remembered, local: remembered + local),
    ),
    Mistake(
        "only the memory is gated: the local attention has the share 1 - sigmoid(gate)",
        streaming(mix=lambda share, remembered, local: share * remembered + local),
    ),
    Mistake("the gate is a logit: its share is sigmoid(gate)", streaming(share=lambda gate: gate[:, None])),
    Mistake("the memory is not read", streaming(mix=lambda share, remembered, local: (1 - share) * local)),
    Mistake("this is the local attention alone", streaming(mix=lambda share, remembered, local: local)),
    Mistake("this is the memory alone", streaming(mix=lambda share, remembered, local: remembered)),
    Mistake(
        "a token does not see itself: its own key and value are among those that it attends to",
        streaming(local=without_oneself),
    ),
    Mistake(
        "the token sees itself alone: it attends to all tokens of the open segment",
        streaming(seen=lambda keys, values: (keys[:, :, -1:], values[:, :, -1:])),
    ),
    Mistake("the scale is missing: divide the scores by sqrt(d) before the softmax", streaming(local=unscaled)),
    Mistake(
        "the softmax runs over the heads: it runs over the tokens of the open segment", streaming(local=over_the_width)
    ),
    Mistake(
        "this returns the output alone: return (output, state)",
        streaming(result=lambda output, state: output),
    ),
    Mistake(
        "the two results are the wrong way round: return (output, state)",
        streaming(result=lambda output, state: (state, output)),
    ),
    Mistake(
        "the output keeps an axis for the one token: (B, H, v) is asked",
        streaming(result=lambda output, state: (output[:, :, None], state)),
    ),
    Mistake(
        "the state is cut off from the graph between the tokens, so that nobody learns what to write",
        streaming(result=lambda output, state: (output, tuple(part.detach() for part in state))),
    ),
)


# 7.7 memorizing_read


def memorizing(
    scores_of: Callable[[Tensor, Tensor], Tensor] = lambda query, key: query @ key.mT,
    mask: Callable[[Tensor, Tensor], Tensor] = lambda scores, valid: scores.masked_fill(
        ~valid[:, None, None], -torch.inf
    ),
    chosen: Callable[[Tensor, int], Two] = lambda scores, k: scores.topk(min(k, scores.shape[-1]), dim=-1),
    weigh: Map = lambda best: best.softmax(dim=-1).masked_fill(best == -torch.inf, 0.0),
    share: Map = lambda gate: gate.sigmoid()[:, None, None],
    mix: Callable[..., Tensor] = lambda share, remembered, local: share * remembered + (1 - share) * local,
    stored: Map = lambda part: part.detach(),
    asked: Map = lambda query: query,
) -> Callable[..., Any]:
    """memorizing_read, with a part replaced."""

    def step(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, k: int, local: Tensor, gate: Tensor) -> Any:
        scores = mask(scores_of(asked(query), stored(key)), valid)  # (B, H, T, C)
        best, entries = chosen(scores, k)  # (B, H, T, k)
        heads = torch.arange(key.shape[1])[:, None, None]
        found = stored(value)[torch.arange(len(key))[:, None, None, None], heads, entries]  # (B, H, T, k, v)
        remembered = (weigh(best).nan_to_num()[..., None] * found).sum(dim=3)
        return mix(share(gate), remembered, local)

    return step


def over_all(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, k: int, local: Tensor, gate: Tensor) -> Tensor:
    weights = weights_of_all(query, key, valid)
    share = gate.sigmoid()[:, None, None]
    return share * (weights @ value.detach()) + (1 - share) * local


def weights_of_all(query: Tensor, key: Tensor, valid: Tensor) -> Tensor:
    scores = (query @ key.detach().mT).masked_fill(~valid[:, None, None], -torch.inf)
    return scores.softmax(dim=-1).nan_to_num()


def not_renormalised(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor, k: int, local: Tensor, gate: Tensor
) -> Tensor:
    weights = weights_of_all(query, key, valid)
    best = weights.topk(min(k, key.shape[2]), dim=-1)
    kept = torch.zeros_like(weights).scatter(-1, best.indices, best.values)
    share = gate.sigmoid()[:, None, None]
    return share * (kept @ value.detach()) + (1 - share) * local


def masked_too_late(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor, k: int, local: Tensor, gate: Tensor
) -> Tensor:
    scores = query @ key.detach().mT
    best = scores.topk(min(k, key.shape[2]), dim=-1)
    allowed = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best.indices, True) & valid[:, None, None]
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1).nan_to_num()
    share = gate.sigmoid()[:, None, None]
    return share * (weights @ value.detach()) + (1 - share) * local


def empty_rows_alone(mask: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A row whose memory is empty reads 0; empty entries of other rows are treated as `mask` does."""

    def step(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, *rest: Any) -> Any:
        some = valid.any(dim=1)[:, None, None, None]
        return memorizing(mask=mask)(query, key, value * some, valid, *rest)

    return step


def a_low_number(scores: Tensor, valid: Tensor) -> Tensor:
    return scores.masked_fill(~valid[:, None, None], -1e9)


def with_nan(query: Tensor, key: Tensor, value: Tensor, valid: Tensor, k: int, local: Tensor, gate: Tensor) -> Tensor:
    scores = (query @ key.detach().mT).masked_fill(~valid[:, None, None], -torch.inf)
    best = scores.topk(min(k, key.shape[2]), dim=-1)
    weights = torch.zeros_like(scores).scatter(-1, best.indices, best.values.softmax(dim=-1))
    share = gate.sigmoid()[:, None, None]
    return share * (weights @ value.detach()) + (1 - share) * local


def silent_where_empty(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor, k: int, local: Tensor, gate: Tensor
) -> Tensor:
    output = memorizing()(query, key, value, valid, k, local, gate)
    return torch.where(valid.any(dim=1)[:, None, None, None], output, local)


def by_the_library_too(
    query: Tensor, key: Tensor, value: Tensor, valid: Tensor, k: int, local: Tensor, gate: Tensor
) -> Tensor:
    MemorizingAttention(4, 2, segment_len=3, capacity=5, k=2).initial_state(1)
    return memorizing()(query, key, value, valid, k, local, gate)


MEMORIZING_READ = (
    Mistake("the softmax is over the whole memory: it is over the k best entries alone", over_all),
    Mistake(
        "the weights of the k best are those of a softmax over all: they should sum to 1 among themselves",
        not_renormalised,
    ),
    Mistake(
        "empty entries are read: what stands there is left over from before, so their scores are -inf",
        memorizing(mask=lambda scores, valid: scores),
    ),
    Mistake(
        "empty entries are read: what stands there is left over from before, so their scores are -inf",
        empty_rows_alone(lambda scores, valid: scores),
    ),
    Mistake(
        "empty entries take places among the k best, and are only then left out: mask first, then choose",
        masked_too_late,
    ),
    Mistake(
        "empty entries have the score 0, and 0 is better than any negative score: they need -inf",
        memorizing(mask=lambda scores, valid: scores * valid[:, None, None]),
    ),
    Mistake(
        "empty entries have the score 0, and 0 is better than any negative score: they need -inf",
        empty_rows_alone(lambda scores, valid: scores * valid[:, None, None]),
    ),
    Mistake(
        "a row whose memory is empty reads the mean of what stands there: an empty memory reads 0",
        memorizing(mask=a_low_number),
    ),
    Mistake("a row whose memory is empty gives NaN: a softmax over nothing but -inf. It reads 0", with_nan),
    Mistake(
        "a row whose memory is empty gives the local read whole: the memory reads 0 there, and its share stays",
        silent_where_empty,
    ),
    Mistake(
        "these are the k worst entries: the largest scores are asked",
        memorizing(
            mask=lambda scores, valid: scores.masked_fill(~valid[:, None, None], torch.inf),
            chosen=lambda scores, k: scores.topk(min(k, scores.shape[-1]), dim=-1, largest=False),
            weigh=lambda best: best.masked_fill(best == torch.inf, -torch.inf).softmax(dim=-1),
        ),
    ),
    Mistake(
        "k is larger than the memory, and topk refuses: take min(k, C)",
        memorizing(chosen=lambda scores, k: scores.topk(k, dim=-1)),
    ),
    Mistake(
        "the k best weigh the same: their weights are a softmax of their scores",
        memorizing(weigh=lambda best: (best > -torch.inf) / (best > -torch.inf).sum(dim=-1, keepdim=True)),
    ),
    Mistake("only the best entry is read: k of them are", memorizing(chosen=lambda s, k: s.topk(1, dim=-1))),
    Mistake(
        "the scores are divided by sqrt(d): they come as they are, for the query has its scale already",
        memorizing(lambda query, key: query @ key.mT / query.shape[-1] ** 0.5),
    ),
    Mistake(
        "queries and keys are normalised again: they come as they are, for the query has its scale already",
        memorizing(lambda query, key: F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT),
    ),
    Mistake(
        "the gates are swapped: sigmoid(gate) is the memory's share, and the rest that of the local read",
        memorizing(mix=lambda share, remembered, local: (1 - share) * remembered + share * local),
    ),
    Mistake("the gate is a logit: its share is sigmoid(gate)", memorizing(share=lambda gate: gate[:, None, None])),
    Mistake(
        "memory and local read are added whole: the gate shares 1 between them",
        memorizing(mix=lambda share, remembered, local: remembered + local),
    ),
    Mistake(
        "only the memory is gated: the local read has the share 1 - sigmoid(gate)",
        memorizing(mix=lambda share, remembered, local: share * remembered + local),
    ),
    Mistake("this is the memory's read alone", memorizing(mix=lambda share, remembered, local: remembered)),
    Mistake(
        "a gradient flows into the memory: keys and values are constants here, so detach both",
        memorizing(stored=lambda part: part),
    ),
    Mistake("no gradient reaches the query: only keys and values are constants", memorizing(asked=Tensor.detach)),
    Mistake(
        "no gradient reaches the gate: only keys and values are constants",
        memorizing(share=lambda gate: gate.detach().sigmoid()[:, None, None]),
    ),
    Mistake(
        "no gradient flows at all under torch.no_grad(): detach keys and values, and nothing else",
        torch.no_grad()(memorizing()),
    ),
    Mistake(LIBRARY, by_the_library_too),
)
