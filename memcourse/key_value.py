"""Key-value memory: slots outside the network, found by address.

weights = softmax(sharpness * similarity(query, keys))          read = sum_i weights_i values_i
write:  values_i <- values_i + weights_i delta                  erase and add:  values_i <- values_i (1 - w_i e) + w_i a
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from memcourse.memory import SequenceMemory, require, state_dtype


def address(
    query: Float[Tensor, "... queries d_key"],
    keys: Float[Tensor, "... slots d_key"],
    *,
    similarity: str = "dot",
    sharpness: float | Tensor = 1.0,
    top_k: int | None = None,
) -> Float[Tensor, "... queries slots"]:
    """Where a query looks: w_i = softmax_i(sharpness * similarity(query, key_i)).

    query (..., q, d), keys (..., n, d) -> weights (..., q, n), which sum to 1 over the slots; leading axes broadcast.
    `similarity` is "dot" or "cosine"; the cosine of a vector of zeros with anything is 0 (a vector shorter than the
    dtype's epsilon is not stretched to length 1).  `sharpness` is the whole scale: nothing is divided by sqrt(d); 0
    looks everywhere alike, and a large one at the nearest slot alone.  With `top_k`, only the k best slots of a query
    keep a weight (of equals, any), and their weights sum to 1.
    Raises ValueError for shapes that do not fit, another similarity, a sharpness below 0, a top_k outside 1 ... n.
    Source: Graves, Wayne, Danihelka, Neural Turing Machines, 2014, arXiv:1410.5401, section 3.3.1 (cosine).
    """
    _check_read(query, keys, "query", "keys")
    same_width = keys.shape[-1] == query.shape[-1]
    require(same_width, "keys", tuple(keys.shape), f"as wide as the query, (..., slots, {query.shape[-1]})")
    n_slots = keys.shape[-2]
    require(similarity in ("dot", "cosine"), "similarity", repr(similarity), '"dot" or "cosine"')
    require(top_k is None or 1 <= top_k <= n_slots, "top_k", top_k, f"None or from 1 to the {n_slots} slots")
    finite = isinstance(sharpness, Tensor) or 0 <= sharpness < math.inf
    require(finite, "sharpness", sharpness, "a finite number, at least 0")
    if similarity == "cosine":
        query, keys = (F.normalize(part, dim=-1, eps=torch.finfo(part.dtype).eps) for part in (query, keys))
    scores = sharpness * (query @ keys.mT)  # (..., q, n)
    if top_k is None:
        return scores.softmax(dim=-1)
    best = scores.topk(top_k, dim=-1)
    return torch.zeros_like(scores).scatter(-1, best.indices, best.values.softmax(dim=-1))


def read(
    weights: Float[Tensor, "... queries slots"], values: Float[Tensor, "... slots d_value"]
) -> Float[Tensor, "... queries d_value"]:
    """r = sum_i w_i v_i: (..., q, n), (..., n, v) -> (..., q, v); leading axes broadcast.

    Raises ValueError for shapes that do not fit.
    Source: Graves et al., 2014, arXiv:1410.5401, equation 2.
    """
    _check_read(weights, values, "weights", "values")
    same_slots = weights.shape[-1] == values.shape[-2]
    require(same_slots, "weights", tuple(weights.shape), f"(..., queries, {values.shape[-2]}), a weight for every slot")
    return weights @ values


def write(
    values: Float[Tensor, "... slots d_value"],
    weights: Float[Tensor, "... slots"],
    delta: Float[Tensor, "... d_value"],
) -> Float[Tensor, "... slots d_value"]:
    """v_i <- v_i + w_i delta: (..., n, v), (..., n), (..., v) -> (..., n, v), a new tensor.

    Raises ValueError for shapes that do not fit; no axis broadcasts.
    Source: the additive write of memory networks; Graves et al., 2014, arXiv:1410.5401, equation 4.
    """
    _check_write(values, weights, delta=delta)
    return values + weights[..., :, None] * delta[..., None, :]


def erase_and_add(
    values: Float[Tensor, "... slots d_value"],
    weights: Float[Tensor, "... slots"],
    erase: Float[Tensor, "... d_value"],
    add: Float[Tensor, "... d_value"],
) -> Float[Tensor, "... slots d_value"]:
    """v_i <- v_i * (1 - w_i e) + w_i a: (..., n, v), (..., n), (..., v), (..., v) -> (..., n, v), a new tensor.

    With a weight of 1 and e = 1 the slot is overwritten; with e = 0 it is `write`.
    Raises ValueError for shapes that do not fit (no axis broadcasts) and for an erase outside [0, 1].
    Source: Graves et al., 2014, arXiv:1410.5401, equations 3 and 4.
    """
    _check_write(values, weights, erase=erase, add=add)
    if erase.numel() and not torch.compiler.is_compiling():
        low, high = erase.min().item(), erase.max().item()
        require(0 <= low and high <= 1, "erase", f"{low:.4g} to {high:.4g}", "in [0, 1]")
    return values * (1 - weights[..., :, None] * erase[..., None, :]) + weights[..., :, None] * add[..., None, :]


def _check_read(left: Tensor, right: Tensor, left_name: str, right_name: str) -> None:
    for name, tensor in ((left_name, left), (right_name, right)):
        require(tensor.ndim >= 2, name, tuple(tensor.shape), "at least two-dimensional, (..., length, width)")
    ours, theirs = left.shape[:-2], right.shape[:-2]
    pairs = zip(reversed(ours), reversed(theirs), strict=False)
    broadcast = all(a == b or 1 in (a, b) for a, b in pairs)
    require(broadcast, f"{right_name}'s leading axes", tuple(theirs), f"ones that broadcast with {tuple(ours)}")


def _check_write(values: Tensor, weights: Tensor, **rows: Tensor) -> None:
    require(values.ndim >= 2, "values", tuple(values.shape), "at least two-dimensional, (..., slots, d_value)")
    *batch, n_slots, d_value = values.shape
    for name, tensor, width in (("weights", weights, n_slots), *((name, row, d_value) for name, row in rows.items())):
        require(tensor.shape == (*batch, width), name, tuple(tensor.shape), f"of shape {(*batch, width)}")


class KeyValueStore:
    """An explicit memory of at most `capacity` pairs: put(key, value), get(query); what is full must forget.

    `evict` says which pair makes room: "oldest", the one put first; "least_used", the one on which the reads since it
    was put have laid the least weight in all (of equals, the oldest).  A pair just put has not been used at all: where
    all others have, the next put replaces it.
    Nothing here is learned: pairs are stored without their gradient.  Room for them grows as they come, up to the
    capacity; device and dtype are those of the first put.  `keys` (n, key_dim), `values` (n, value_dim) and `usage`
    (n,) show the n = len(store) pairs, slot by slot.
    Raises ValueError for a capacity or width below 1 and another `evict`.
    Source: usage as in Graves et al., Nature 538, 2016 (DNC), whose allocation this simplifies.
    """

    def __init__(self, capacity: int, key_dim: int, value_dim: int, *, evict: str = "oldest") -> None:
        for name, size in (("capacity", capacity), ("key_dim", key_dim), ("value_dim", value_dim)):
            require(size >= 1, name, size, "at least 1")
        require(evict in ("oldest", "least_used"), "evict", repr(evict), '"oldest" or "least_used"')
        self.capacity, self.key_dim, self.value_dim, self.evict = capacity, key_dim, value_dim, evict
        self._n_pairs = self._n_puts = 0
        self._keys, self._values, self._usage = torch.empty(0, key_dim), torch.empty(0, value_dim), torch.empty(0)
        self._put_at = torch.empty(0, dtype=torch.long)  # the number of the put that filled a slot: its age

    def __len__(self) -> int:
        return self._n_pairs

    @property
    def keys(self) -> Float[Tensor, "pairs key_dim"]:
        return self._keys[: len(self)]

    @property
    def values(self) -> Float[Tensor, "pairs value_dim"]:
        return self._values[: len(self)]

    @property
    def usage(self) -> Float[Tensor, " pairs"]:
        """The weight that reads have laid on each pair since it was put."""
        return self._usage[: len(self)]

    def put(self, keys: Float[Tensor, "..."], values: Float[Tensor, "..."]) -> None:
        """Store one pair, (key_dim,) and (value_dim,), or n of them one after another, (n, key_dim), (n, value_dim).

        Raises ValueError, and stores nothing, for other shapes, devices or dtypes.
        """
        keys, values = (part.detach()[None] if part.ndim == 1 else part.detach() for part in (keys, values))
        self._check("keys", keys, (*keys.shape[:1], self.key_dim))
        self._check("values", values, (*keys.shape[:1], self.value_dim))
        require(values.dtype == keys.dtype, "values.dtype", values.dtype, f"that of the keys, {keys.dtype}")
        require(values.device == keys.device, "values.device", values.device, f"that of the keys, {keys.device}")
        self._make_room(len(keys), keys)
        for key, value in zip(keys, values, strict=True):
            slot = self._next_slot()
            self._keys[slot], self._values[slot], self._usage[slot] = key, value, 0
            self._put_at[slot] = self._n_puts
            self._n_puts += 1
            self._n_pairs = max(self._n_pairs, slot + 1)

    def get(
        self,
        query: Float[Tensor, "... key_dim"],
        *,
        similarity: str = "dot",
        sharpness: float = 1.0,
        top_k: int | None = None,
    ) -> Float[Tensor, "... value_dim"]:
        """What the query reads, (..., key_dim) -> (..., value_dim), by `address` over the pairs; it counts as use.

        An empty store reads zeros.  A top_k larger than the number of pairs looks at all of them.
        Raises ValueError for another width, device or dtype, and what `address` refuses.
        """
        self._check("query", query, (*query.shape[:-1], self.key_dim))
        if len(self) == 0:
            return query.new_zeros(*query.shape[:-1], self.value_dim)
        rows = query.reshape(-1, self.key_dim)
        top_k = None if top_k is None else min(top_k, len(self))
        weights = address(rows, self.keys, similarity=similarity, sharpness=sharpness, top_k=top_k)  # (rows, n)
        self.usage.add_(weights.detach().sum(dim=0))
        return read(weights, self.values).reshape(*query.shape[:-1], self.value_dim)

    def _check(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        require(tensor.shape == shape, name, tuple(tensor.shape), f"of shape {shape}")
        require(tensor.is_floating_point(), f"{name}.dtype", tensor.dtype, "floating-point")
        if len(self):
            found, stored = (f"{part.dtype} on {part.device}" for part in (tensor, self._keys))
            require(found == stored, f"{name}'s dtype and device", found, f"those of the store, {stored}")

    def _make_room(self, more: int, like: Tensor) -> None:
        """Let the tensors hold `more` pairs than now, as far as the capacity goes; at least twice as many as before."""
        size, needed = len(self._keys), min(len(self) + more, self.capacity)
        if size < needed:
            extra = min(max(needed, 2 * size), self.capacity) - size
            self._keys = torch.cat([self._keys.to(like), like.new_zeros(extra, self.key_dim)])
            self._values = torch.cat([self._values.to(like), like.new_zeros(extra, self.value_dim)])
            # sums of many small weights: at least float32
            usage = torch.zeros(extra, dtype=state_dtype(like.dtype), device=like.device)
            self._usage = torch.cat([self._usage.to(usage), usage])
            self._put_at = torch.cat([self._put_at, torch.zeros(extra, dtype=torch.long)])

    def _next_slot(self) -> int:
        if len(self) < self.capacity:
            return len(self)
        if self.evict == "oldest":
            return self._n_puts % self.capacity
        candidates = (self._usage == self._usage.min()).nonzero().flatten().cpu()
        return int(candidates[self._put_at[candidates].argmin()])


class SlotState(NamedTuple):
    """The state of KeyValueMemory: what its slots hold."""

    memory: Float[Tensor, "batch slots d_model"]


class KeyValueMemory(SequenceMemory):
    """n_slots slots in which a layer learns what to write, where, and what to erase.

    x (B, T, D), state -> (B, T, D), state.  With k_i the learned address of slot i, at every token:

        w = address(W_k x, k), cosine          where to write      e = sigmoid(W_e x + b)      what to erase
        u = address(W_q x, k), cosine          where to read       a = e * (W_a x)             what to add
        y = W_o sum_i u_i M_i                  read what the past left, then
        M_i <- M_i * (1 - w_i e) + w_i a       erase and add

    Erasing and adding in the same proportion moves a slot towards W_a x and never beyond, however long the stream.
    The slots start as zeros, and the addresses, drawn at random, tell them apart; slots that start equal and are found
    by their contents would stay equal.  Both sharpnesses are learned, as logarithms, so that they stay positive.
    Addresses depend on x alone: all that the state does not enter is computed for all tokens at once, and what is left
    for the loop is one product to read and one interpolation to write.
    Raises ValueError for d_model or n_slots below 1.
    Source: Graves et al., 2014, arXiv:1410.5401, sections 3.1 to 3.3.1; learned addresses and the coupled add are ours.
    """

    level: ClassVar[str] = "mixer"
    max_key_dim: ClassVar[int] = 8  # cosines of random wide vectors are all near 0: their softmax starts too flat

    def __init__(self, d_model: int, n_slots: int) -> None:
        super().__init__()
        for name, size in (("d_model", d_model), ("n_slots", n_slots)):
            require(size >= 1, name, size, "at least 1")
        self.config = {"d_model": d_model, "n_slots": n_slots}
        key_dim = min(d_model, self.max_key_dim)
        self.addresses = nn.Parameter(torch.randn(n_slots, key_dim))
        self.log_sharpness = nn.Parameter(torch.full((2,), math.log(5.0)))  # of reading, of writing
        self.query = nn.Linear(d_model, key_dim, bias=False)
        self.key = nn.Linear(d_model, key_dim, bias=False)
        self.erase = nn.Linear(d_model, d_model)
        self.add = nn.Linear(d_model, d_model, bias=False)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def initial_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SlotState:
        shape = (batch_size, self.config["n_slots"], self.config["d_model"])
        return SlotState(torch.zeros(shape, device=device, dtype=state_dtype(dtype)))

    def where(self, x: Float[Tensor, "batch time d_model"]) -> tuple[Tensor, Tensor]:
        """The weights with which each token reads and writes: (B, T, D) -> 2 x (B, T, n_slots)."""
        to_read, to_write = self.log_sharpness.exp()
        return (
            address(self.query(x), self.addresses, similarity="cosine", sharpness=to_read),
            address(self.key(x), self.addresses, similarity="cosine", sharpness=to_write),
        )

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, SlotState]:
        memory, reads = state.memory, []
        parts = (*self.where(x), self.erase(x).sigmoid(), self.add(x))
        look, at, share, candidate = (part.to(memory.dtype) for part in parts)  # 2 x (B, T, N), 2 x (B, T, D)
        # as rows (B, 1, n) and columns (B, N, 1) of every token, taken apart once: the loop is all that is left
        rows = (part[:, :, None].unbind(1) for part in (look, share, candidate))
        for look_t, share_t, candidate_t, at_t in zip(*rows, at[..., None].unbind(1), strict=True):
            reads.append(look_t @ memory)  # (B, 1, D)
            memory = torch.lerp(memory, candidate_t, at_t * share_t)  # (B, N, D): M (1 - w e) + w e W_a x
        return self.output(torch.cat(reads, dim=1).to(x.dtype)), SlotState(memory)


class ProductKeys(nn.Module):
    """Exact top-k over n_sub_keys**2 learned keys, of which only 2 n_sub_keys halves are stored and compared.

    Key i * n + j is [c_i ; c'_j], so its score is the sum of two: query[:d/2] . c_i + query[d/2:] . c'_j.  A pair among
    the k best has its first half among the k best first halves (k pairs with a better one would beat it), and its
    second likewise: k * k sums hold the answer.
    query (..., key_dim), k -> scores (..., k), the largest first, and indices (..., k) into the n**2 slots.
    `keys` holds all of them, (n**2, key_dim), for tests and small n.  n = n_sub_keys; k may be anything up to n**2.
    Raises ValueError for n_sub_keys below 1, a key_dim that is odd or below 2, a query of another width, k outside
    1 ... n**2.
    Source: Lample et al., Large Memory Layers with Product Keys, 2019, arXiv:1907.05242, section 3.1.
    """

    def __init__(self, n_sub_keys: int, key_dim: int) -> None:
        super().__init__()
        require(n_sub_keys >= 1, "n_sub_keys", n_sub_keys, "at least 1")
        require(key_dim >= 2 and key_dim % 2 == 0, "key_dim", key_dim, "even and at least 2, to be cut into halves")
        self.config = {"n_sub_keys": n_sub_keys, "key_dim": key_dim}
        bound = 1 / math.sqrt(key_dim // 2)
        self.sub_keys = nn.Parameter(torch.empty(2, n_sub_keys, key_dim // 2).uniform_(-bound, bound))

    @property
    def keys(self) -> Float[Tensor, "slots key_dim"]:
        first, second = self.sub_keys
        n = len(first)
        return torch.cat([first.repeat_interleave(n, dim=0), second.repeat(n, 1)], dim=1)

    def comparisons(self, k: int) -> int:
        """How many scores a search computes, 2 n + min(k, n)**2, where brute force computes n**2."""
        n = self.config["n_sub_keys"]
        return 2 * n + min(k, n) ** 2

    def forward(
        self, query: Float[Tensor, "*batch key_dim"], k: int
    ) -> tuple[Float[Tensor, "*batch k"], Int[Tensor, "*batch k"]]:
        n, key_dim = self.config["n_sub_keys"], self.config["key_dim"]
        fits = query.ndim >= 1 and query.shape[-1] == key_dim
        require(fits, "query", tuple(query.shape), f"(..., key_dim={key_dim})")
        require(1 <= k <= n * n, "k", k, f"from 1 to the {n * n} slots")
        halves = query.unflatten(-1, (2, key_dim // 2))  # (..., 2, d/2)
        scores = torch.einsum("...hd,hnd->...hn", halves, self.sub_keys)  # (..., 2, n)
        best = scores.topk(min(k, n), dim=-1)  # (..., 2, m)
        sums = best.values[..., 0, :, None] + best.values[..., 1, None, :]  # (..., m, m)
        slots = best.indices[..., 0, :, None] * n + best.indices[..., 1, None, :]
        top = sums.flatten(-2).topk(k, dim=-1)  # (..., k)
        return top.values, slots.flatten(-2).gather(-1, top.indices)
