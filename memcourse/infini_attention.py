"""Infini-attention: a compressive memory inside attention, one matrix and one normalizer for every head.

A_mem = sigma(Q) M_{s-1} / (sigma(Q) z_{s-1})              read what the segments before have left, then
M_s = M_{s-1} + sigma(K)^T V        z_s = z_{s-1} + sum_t sigma(K_t)       write the segment (linear rule)
A = sigmoid(gate) A_mem + (1 - sigmoid(gate)) A_local      sigma = ELU + 1; A_local: causal attention in the segment
"""

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from memcourse.attention import rotary_heads
from memcourse.memory import SequenceMemory, require, state_dtype
from memcourse.segments import attend_in_segments, rotate_in_segments

RULES = ("linear", "delta")
SMALLEST = 1e-10  # a normalizer below it counts as this: an empty memory reads 0 / 1e-10, which is 0


def sigma(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """ELU(x) + 1, positive features: x + 1 above 0 and e^x below; in float32 at least."""
    features: Tensor = _Sigma.apply(x.to(state_dtype(x.dtype)).contiguous())
    return features


class _Sigma(torch.autograd.Function):
    """Its slope is min(sigma(x), 1): 1 above 0, e^x below.  torch's own backward of ELU takes e^x once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        features = F.elu(x).add_(1)
        ctx.save_for_backward(features)
        return features

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (features,) = ctx.saved_tensors
        return gradient * features.clamp(max=1)


def read(
    query: Float[Tensor, "batch heads time d_key"],
    memory: Float[Tensor, "batch heads d_key d_value"],
    normalizer: Float[Tensor, "batch heads d_key"],
) -> Float[Tensor, "batch heads time d_value"]:
    """What the memory holds for each query: sigma(Q) M / (sigma(Q) z); an empty memory reads 0.

    query (B, H, T, d), memory (B, H, d, v), normalizer (B, H, d) -> (B, H, T, v), computed in float32 at least.
    Source: Munkhdalai, Faruqui, Gopal, Leave No Context Behind, 2024, arXiv:2404.07143, equation 3.
    """
    return _read(sigma(query), memory, normalizer)


def _read(features: Tensor, memory: Tensor, normalizer: Tensor) -> Tensor:
    """The same from sigma(Q): (..., T, d), (..., d, v), (..., d) -> (..., T, v)."""
    return (features @ memory) * _share(features, normalizer)


def _share(features: Tensor, normalizer: Tensor) -> Tensor:
    """1 / (sigma(Q) z): (..., T, d), (..., d) -> (..., T, 1)."""
    return (features @ normalizer[..., None]).clamp(min=SMALLEST).reciprocal()


def write(
    key: Float[Tensor, "batch heads time d_key"],
    value: Float[Tensor, "batch heads time d_value"],
    memory: Float[Tensor, "batch heads d_key d_value"],
    normalizer: Float[Tensor, "batch heads d_key"],
    *,
    rule: str = "linear",
) -> tuple[Float[Tensor, "batch heads d_key d_value"], Float[Tensor, "batch heads d_key"]]:
    """The memory and its normalizer after one segment: M + sigma(K)^T U, z + sum_t sigma(K_t).

    U is V under the linear rule, and V - sigma(K) M / (sigma(K) z) under the delta rule: only what the memory does not
    yet answer to a key.  key (B, H, T, d), value (B, H, T, v); sums in float32 at least.
    Raises ValueError for a rule that does not exist.
    Source: Munkhdalai et al., 2024, arXiv:2404.07143, equations 4 and 5.
    """
    require(rule in RULES, "rule", repr(rule), f"one of {RULES}")
    features, value = sigma(key), value.to(memory.dtype)
    if rule == "delta":
        value = value - _read(features, memory, normalizer)
    return memory + features.mT @ value, normalizer + features.sum(dim=-2)


def memories_before_segments(
    key: Float[Tensor, "batch heads segments time d_key"],
    value: Float[Tensor, "batch heads segments time d_value"],
    memory: Float[Tensor, "batch heads d_key d_value"],
    normalizer: Float[Tensor, "batch heads d_key"],
    *,
    rule: str,
) -> tuple[Float[Tensor, "batch heads 1+segments d_key d_value"], Float[Tensor, "batch heads 1+segments d_key"]]:
    """What each of S segments reads, and what the last leaves: `write` from segment to segment, (B, H, S + 1, ...).

    What a segment adds under the linear rule does not depend on the one before: all are made at once, and summed.  So
    is the normalizer under both rules.  The delta rule's two small products a segment must wait for the memory.
    """
    features, value = sigma(key), value.to(memory.dtype).contiguous()  # (B, H, S, L, d)
    normalizers: Tensor = _RunningSums.apply(normalizer, features.sum(dim=-2))
    if rule == "linear":
        return _RunningSums.apply(memory, features.mT @ value), normalizers
    shares = features * _share(features, normalizers[:, :, :-1])  # sigma(K) / (sigma(K) z)
    memories = [memory]
    for own_shares, own_features, own_value in zip(
        *(part.unbind(2) for part in (shares, features, value)), strict=True
    ):
        memory = memory + own_features.mT @ (own_value - own_shares @ memory)
        memories.append(memory)
    return torch.stack(memories, dim=2), normalizers


class _RunningSums(torch.autograd.Function):
    """start, (B, H, ...), and updates, (B, H, S, ...) -> start, start + u_1, ... start + u_1 + ... + u_S.

    The gradient of an update is the sum of all gradients after it.  On a CPU, torch's cumsum over an axis that is not
    the last takes twenty times as long as adding one update after the other.
    """

    @staticmethod
    def forward(ctx: Any, start: Tensor, updates: Tensor) -> Tensor:
        return _running_sums(torch.cat([start[:, :, None], updates], dim=2))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        later = _running_sums(gradient, from_the_end=True)
        return later[:, :, 0], later[:, :, 1:]


def _running_sums(x: Tensor, *, from_the_end: bool = False) -> Tensor:
    # neither the gradient of a gradient nor a compiler allows writing into buffers
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return x.flip(2).cumsum(dim=2).flip(2) if from_the_end else x.cumsum(dim=2)
    sums = torch.empty_like(x)
    step = -1 if from_the_end else 1
    steps, into = x.unbind(2)[::step], sums.unbind(2)[::step]
    before = into[0].copy_(steps[0])
    for new, here in zip(steps[1:], into[1:], strict=True):
        before = torch.add(before, new, out=here)
    return sums


class InfiniState(NamedTuple):
    """What finished segments left in every head, and the unrotated keys and values of the open segment."""

    memory: Float[Tensor, "batch heads d_key d_value"]
    normalizer: Float[Tensor, "batch heads d_key"]
    key: Float[Tensor, "batch heads open d_key"]
    value: Float[Tensor, "batch heads open d_value"]


class InfiniAttention(SequenceMemory):
    """Causal attention inside segments, beside a matrix that answers for all segments before.

    x (B, T, D), state -> (B, T, D), state.  The memory is read before the segment is written, so it answers for the
    past alone; it sees queries and keys without positions.  `gate`, one number a head, starts at 0: half and half.
    Raises ValueError for d_model that n_heads does not divide into even widths, segment_len below 1, another rule.
    Source: Munkhdalai, Faruqui, Gopal, Leave No Context Behind, 2024, arXiv:2404.07143, sections 2.1 and 2.2.
    """

    level: ClassVar[str] = "mixer"
    optimizer_options: ClassVar[dict[str, dict[str, float]]] = {"gate": {"rate": 10.0, "weight_decay": 0.0}}

    def __init__(self, d_model: int, n_heads: int, *, segment_len: int, rule: str = "linear") -> None:
        super().__init__()
        require(segment_len >= 1, "segment_len", segment_len, "at least 1 token")
        require(rule in RULES, "rule", repr(rule), f"one of {RULES}")
        self.config = {"d_model": d_model, "n_heads": n_heads, "segment_len": segment_len, "rule": rule}
        self.heads = rotary_heads(d_model, n_heads)
        self.gate = nn.Parameter(torch.zeros(n_heads))

    def initial_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> InfiniState:
        H = self.config["n_heads"]
        d = self.config["d_model"] // H
        shapes = ((d, d), (d,), (0, d), (0, d))
        return InfiniState(
            *(torch.zeros(batch_size, H, *shape, device=device, dtype=state_dtype(dtype)) for shape in shapes)
        )

    def tokens_to_segment_end(self, state: InfiniState) -> int:
        n_open = state.key.shape[2]
        return self.config["segment_len"] - n_open if n_open else 0

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, InfiniState]:
        segment_len, n_open = self.config["segment_len"], state.key.shape[2]
        query, key, value = self.heads.split(x, x)  # (B, H, T, d)
        keys, values = key.to(state.key.dtype), value.to(state.value.dtype)
        if n_open:
            keys = torch.cat([state.key, keys], dim=2)  # (B, H, n_open + T, d)
            values = torch.cat([state.value, values], dim=2)
        local = attend_in_segments(
            rotate_in_segments(query, n_open, segment_len),
            rotate_in_segments(keys, 0, segment_len).to(query.dtype),
            values.to(query.dtype),
            segment_len,
        )
        with torch.autocast(x.device.type, enabled=False):  # sums stay in the state's precision
            remembered, memory, normalizer = self._remember(query, keys, values, state)
            share = self.gate.to(remembered.dtype).sigmoid()[:, None, None]  # (H, 1, 1)
            read = torch.lerp(local.to(remembered.dtype), remembered, share)  # (B, H, T, d)
        closed = keys.shape[2] // segment_len * segment_len
        rest = (part[:, :, closed:].clone() for part in (keys, values))
        return self.heads.merge(read.to(x.dtype)), InfiniState(memory, normalizer, *rest)

    def _remember(
        self, query: Tensor, keys: Tensor, values: Tensor, state: InfiniState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the T newest tokens read, (B, H, T, d), and the memory and normalizer after them.

        The tokens that end an open segment read the memory as it was; those of whole segments, all at once, what each
        of these reads; those that begin the next one, what the last whole segment left.
        """
        segment_len, T = self.config["segment_len"], query.shape[2]
        n_open, n_closed = keys.shape[2] - T, keys.shape[2] // segment_len
        memories, normalizers = state.memory[:, :, None], state.normalizer[:, :, None]
        if n_closed:
            closed, shape = slice(n_closed * segment_len), (n_closed, segment_len)
            own_keys, own_values = (
                part[:, :, closed].unflatten(2, shape) for part in (keys, values)
            )  # (B, H, S, L, d)
            memories, normalizers = memories_before_segments(
                own_keys, own_values, state.memory, state.normalizer, rule=self.config["rule"]
            )
        first = min(T, segment_len - n_open) if n_open else 0
        n_whole = (T - first) // segment_len
        end = first + n_whole * segment_len
        parts = []
        if first:
            parts.append(read(query[:, :, :first], memories[:, :, 0], normalizers[:, :, 0]))
        if n_whole:
            features = sigma(query[:, :, first:end].unflatten(2, (n_whole, segment_len)))  # (B, H, S, L, d)
            own = slice(n_closed - n_whole, n_closed)
            parts.append(_read(features, memories[:, :, own], normalizers[:, :, own]).flatten(2, 3))
        if end < T:
            parts.append(read(query[:, :, end:], memories[:, :, -1], normalizers[:, :, -1]))
        remembered = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        return remembered, memories[:, :, -1].clone(), normalizers[:, :, -1].clone()
