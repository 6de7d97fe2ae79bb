"""Memorizing attention: the memory that does not compress.  Keys and values of the past are kept as they were.

i_1 ... i_k = the k of the last `capacity` keys nearest to the query, by cosine
V_m = sum_j softmax_j(scale cos(q, k_{i_j})) v_{i_j}       read
V = sigmoid(gate) V_m + (1 - sigmoid(gate)) V_local         V_local: causal attention in the segment
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from memcourse.attention import masked_softmax, rotary_heads
from memcourse.memory import SequenceMemory, require, state_dtype
from memcourse.segments import attend_in_segments, rotate_in_segments

SCORES = {"cpu": 2**19}  # held at once: few enough for a CPU's cache, and for anything else 2**26, a quarter of a GB
GROUP = 16  # entries of which only the best is compared at first


@torch.no_grad()
def search(
    query: Float[Tensor, "batch heads time d_head"],
    keys: Float[Tensor, "batch heads entries d_head"],
    filled: Bool[Tensor, "batch entries"] | None,
    k: int,
) -> tuple[Float[Tensor, "batch heads time k"], Int[Tensor, "batch heads time k"]]:
    """The k filled entries with the largest q . k, exactly: their scores, in no order, and their places.

    `filled` is None where all are.  A row with fewer filled entries than k gets scores of -inf for the rest, whose
    places mean nothing.  Every score is computed, a block of queries at a time, and of equals either may be taken.
    Raises ValueError for k outside 1 ... entries.
    """
    B, H, T, _ = query.shape
    N = keys.shape[2]
    require(1 <= k <= N, "k", k, f"from 1 to the {N} entries")
    blocks = SCORES.get(query.device.type, 2**26) // N
    few = blocks < B * H * T and query.device.type == "cpu"  # a CPU takes one head after the other
    pairs = [(b, h) for b in range(B) for h in range(H)] if few else [(slice(None), slice(None))]
    values: list[Tensor] = []
    places: list[Tensor] = []
    for b, h in pairs:
        own_keys = keys[b, h].mT
        at_once = max(1, blocks if few else blocks // (B * H))
        found = []
        for part in query[b, h].split(at_once, dim=-2):
            scores = part @ own_keys  # (..., t, N)
            if filled is not None:
                scores = scores.masked_fill(~(filled[b] if few else filled[:, None, None]), -torch.inf)
            found.append(_largest(scores, k))
        for into, parts in zip((values, places), zip(*found, strict=True), strict=True):
            into.append(torch.cat(parts, dim=-2))
    shape = (B, H, T, k)
    return torch.stack(values).view(shape), torch.stack(places).view(shape)


def _largest(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row, and where they stand: (..., N) -> 2 x (..., k).

    They lie in the k groups whose own largest are largest, so most of a row is passed over by a maximum, which is many
    times faster than a top-k.
    """
    n_groups, rest = divmod(scores.shape[-1], GROUP)
    if n_groups <= 2 * k:
        return scores.topk(k, dim=-1, sorted=False)
    end, device = n_groups * GROUP, scores.device
    best_of_group = scores[..., :end].unflatten(-1, (GROUP, n_groups)).amax(dim=-2)
    chosen = best_of_group.topk(k, dim=-1, sorted=False).indices  # (..., k)
    places = (chosen[..., None] + torch.arange(0, end, n_groups, device=device)).flatten(-2)  # (..., k * GROUP)
    if rest:
        last = torch.arange(end, end + rest, device=device).expand(*scores.shape[:-1], rest)
        places = torch.cat([places, last], dim=-1)
    values, order = scores.gather(-1, places).topk(k, dim=-1, sorted=False)
    return values, places.gather(-1, order)


class MemorizingState(NamedTuple):
    """A ring of the newest `capacity` tokens of finished segments, oldest first, and the open segment.

    Of the ring, the last min(written, capacity) entries are a row's own; those before them are empty.  Its keys have
    unit length and no position; those of the open segment are as projected.
    """

    memory_key: Float[Tensor, "batch heads capacity d_head"]
    memory_value: Float[Tensor, "batch heads capacity d_head"]
    written: Int[Tensor, " batch"]
    key: Float[Tensor, "batch heads open d_head"]
    value: Float[Tensor, "batch heads open d_head"]


class MemorizingAttention(SequenceMemory):
    """Causal attention inside segments, beside exact top-k attention over the last `capacity` tokens before them.

    x (B, T, D), state -> (B, T, D), state.  The ring is a constant to the gradient (`differentiable_write` is False):
    it holds the finished segments as they were, and only the query learns what to look for in it.  Queries and keys
    have unit length there, so that old keys do not go stale as the weights move, and no position.  `log_scale` (H,) and
    `gate` (H,) are learned for every head.
    Raises ValueError for d_model that n_heads does not divide into even widths, segment_len or capacity below 1, k
    outside 1 ... capacity.
    Source: Wu, Rabe, Hutchins, Szegedy, Memorizing Transformers, ICLR 2022, arXiv:2203.08913, section 3.1.
    """

    level: ClassVar[str] = "mixer"
    differentiable_write = False
    optimizer_options: ClassVar[dict[str, dict[str, float]]] = {"gate": {"rate": 10.0, "weight_decay": 0.0}}

    def __init__(self, d_model: int, n_heads: int, *, segment_len: int, capacity: int, k: int) -> None:
        super().__init__()
        require(segment_len >= 1, "segment_len", segment_len, "at least 1 token")
        require(capacity >= 1, "capacity", capacity, "at least 1 token")
        require(1 <= k <= capacity, "k", k, f"from 1 to capacity={capacity}")
        self.config = {
            "d_model": d_model,
            "n_heads": n_heads,
            "segment_len": segment_len,
            "capacity": capacity,
            "k": k,
        }
        self.heads = rotary_heads(d_model, n_heads)
        self.gate = nn.Parameter(torch.zeros(n_heads))
        self.log_scale = nn.Parameter(torch.full((n_heads,), math.log(20.0)))

    def initial_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> MemorizingState:
        H, capacity = self.config["n_heads"], self.config["capacity"]
        d = self.config["d_model"] // H
        ring, ring_values, key, value = (
            torch.zeros(batch_size, H, entries, d, device=device, dtype=state_dtype(dtype))
            for entries in (capacity, capacity, 0, 0)
        )
        count = torch.zeros(batch_size, dtype=torch.long, device=device)
        return MemorizingState(ring, ring_values, count, key, value)

    def tokens_to_segment_end(self, state: MemorizingState) -> int:
        n_open = state.key.shape[2]
        return self.config["segment_len"] - n_open if n_open else 0

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, MemorizingState]:
        segment_len, n_open = self.config["segment_len"], state.key.shape[2]
        query, key, value = self.heads.split(x, x)  # (B, H, T, d)
        keys = torch.cat([state.key, key.to(state.key.dtype)], dim=2)  # (B, H, n_open + T, d)
        values = torch.cat([state.value, value.to(state.value.dtype)], dim=2)
        local = attend_in_segments(
            rotate_in_segments(query, n_open, segment_len),
            rotate_in_segments(keys, 0, segment_len).to(query.dtype),
            values.to(query.dtype),
            segment_len,
        )
        closed = keys.shape[2] // segment_len * segment_len
        past_keys = torch.cat([state.memory_key, _unit(keys[:, :, :closed].detach())], dim=2)
        past_values = torch.cat([state.memory_value, values[:, :, :closed].detach()], dim=2)
        with torch.autocast(x.device.type, enabled=False):
            remembered = self._remember(_unit(query.to(keys.dtype)), past_keys, past_values, state.written, n_open)
            share = self.gate.to(remembered.dtype).sigmoid()[:, None, None]  # (H, 1, 1)
            read = torch.lerp(local.to(remembered.dtype), remembered, share)  # (B, H, T, d)
        state = MemorizingState(
            past_keys[:, :, closed:].clone(),
            past_values[:, :, closed:].clone(),
            state.written + closed,
            keys[:, :, closed:].clone(),
            values[:, :, closed:].clone(),
        )
        return self.heads.merge(read.to(x.dtype)), state

    def _remember(self, query: Tensor, keys: Tensor, values: Tensor, count: Tensor, n_open: int) -> Tensor:
        """What every token reads from the `capacity` tokens before its segment: (B, H, T, d).

        Entries that are empty in all rows are not searched, which a compiled program cannot know.
        """
        segment_len, capacity, k = self.config["segment_len"], self.config["capacity"], self.config["k"]
        query = query * self.log_scale.to(query.dtype).exp()[:, None, None]
        fewest, most = (0, capacity) if torch.compiler.is_compiling() else (int(n) for n in count.aminmax())
        total, parts = n_open + query.shape[2], []
        for start in range(0, total, segment_len):
            end = min(start + segment_len, total)
            own = query[:, :, max(start - n_open, 0) : end - n_open]
            n = min(most + start, capacity)  # entries that some row has
            if n == 0:
                parts.append(own * 0)  # an empty memory reads zeros
                continue
            past = slice(start + capacity - n, start + capacity)
            filled = None
            if fewest + start < n:
                filled = torch.arange(n, 0, -1, device=count.device) <= count[:, None] + start  # (B, n)
            near, where = search(own, keys[:, :, past], filled, min(k, n))
            near_keys, near_values = (pick(part[:, :, past], where) for part in (keys, values))  # (B, H, t, k, d)
            scores = (near_keys @ own[..., None]).squeeze(-1)  # (B, H, t, k), and now with a gradient to the query
            weights = masked_softmax(scores, None if filled is None else near.isfinite())
            parts.append((weights[..., None, :] @ near_values).squeeze(-2))
        return torch.cat(parts, dim=2)


def _unit(x: Tensor) -> Tensor:
    """Of length 1; of what is shorter than 1e-6, a millionfold: a vector of zeros stays one, with a finite gradient."""
    return F.normalize(x, dim=-1, eps=1e-6)


def pick(entries: Tensor, where: Tensor) -> Tensor:
    """Entries of the ring by their places: (B, H, N, d), (B, H, T, k) -> (B, H, T, k, d)."""
    B, H, device = *where.shape[:2], where.device
    row, head = torch.arange(B, device=device)[:, None, None, None], torch.arange(H, device=device)[:, None, None]
    return entries[row, head, where]
