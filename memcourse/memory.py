"""The contract that every memory keeps, and what can be done with any state.

    y, state = layer(x, state=None)        # x, y: (B, T, D); state: a NamedTuple of tensors, batch first

Parameters live on the module, the running state never does.  A state may nest: a model's state holds the
states of its layers.  Every function here works on any of them.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    """Raise a ValueError that names the argument, the value given and what is allowed, unless `holds`."""
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {value}")


def state_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype a state is kept in: at least float32, whatever the input's."""
    return torch.promote_types(dtype or torch.get_default_dtype(), torch.float32)


class SequenceMemory(nn.Module):
    """Base class of every trained memory.

    A subclass says its `level` ("mixer": stands where attention stands; "block": brings its own feed-forward;
    "model": takes tokens), sets `self.config` to its constructor arguments, and defines `initial_state` and
    `advance`.  `forward` checks what comes in, so that all memories refuse a wrong input in the same words.
    """

    level: ClassVar[str]
    differentiable_write: bool = True
    config: dict[str, Any]

    def initial_state(
        self, batch_size: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Any:
        """The state before the first token; `layer(x)` is exactly `layer(x, layer.initial_state(B, ...))`."""
        raise NotImplementedError

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read and write T >= 1 tokens: (B, T, D), state -> (B, T, D), state."""
        raise NotImplementedError

    def tokens_to_segment_end(self, state: Any) -> int:
        """How many tokens are missing until the open segment closes; 0 where there is none."""
        return 0

    def forward(self, x: Float[Tensor, "batch time d_model"], state: Any = None) -> tuple[Tensor, Any]:
        d_model = self.config["d_model"]
        require(x.ndim == 3 and x.shape[-1] == d_model, "x", tuple(x.shape), f"(batch, time, d_model={d_model})")
        state = self.accept(state, len(x), x.device, x.dtype)
        return self.advance(x, state) if x.shape[1] else (x, state)

    def accept(self, state: Any, batch_size: int, device: torch.device, dtype: torch.dtype) -> Any:
        """The initial state for None; otherwise the state itself, once it is known to be this layer's.

        Raises ValueError for the state of another layer, batch size, device or dtype.
        """
        if state is None:
            return self.initial_state(batch_size, device=device, dtype=dtype)
        form = self.initial_state(1, device="meta", dtype=dtype)
        found, expected = leaves(state), leaves(form)
        same_layer = type(state) is type(form) and found.keys() == expected.keys()
        require(same_layer, "state", type(state).__name__, f"a {type(form).__name__} of this layer's own making")
        for name, leaf in found.items():
            like = expected[name]
            # a dimension that is 0 at the start is one that grows with the stream
            fits = leaf.ndim == like.ndim and all(
                b in (0, a) for a, b in zip(leaf.shape[1:], like.shape[1:], strict=True)
            )
            sizes = f"(batch, {', '.join(str(n) if n else '*' for n in like.shape[1:])}) as in this layer"
            require(fits, f"state.{name}.shape", tuple(leaf.shape), sizes)
            require(len(leaf) == batch_size, f"state.{name} batch size", len(leaf), f"that of x, {batch_size}")
            require(leaf.device == device, f"state.{name}.device", leaf.device, f"that of x, {device}")
            require(leaf.dtype == like.dtype, f"state.{name}.dtype", leaf.dtype, str(like.dtype))
        return state


class BlockMemory(SequenceMemory):
    """A memory that brings its own feed-forward, and hands out what that feed-forward reads: the key of a kNN-LM."""

    level: ClassVar[str] = "block"

    def advance_with_hidden(self, x: Tensor, state: Any) -> tuple[Tensor, Any, Tensor]:
        """`advance`, and the feed-forward's input after its norm, one row per token: (B, T, D), state, (B, T, D)."""
        raise NotImplementedError

    def advance(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, state, _ = self.advance_with_hidden(x, state)
        return y, state


def map_state(function: Callable[..., Tensor], state: Any, *others: Any) -> Any:
    """Apply `function` to every tensor of a state (and to the tensors at the same place in `others`)."""
    if isinstance(state, Tensor):
        return function(state, *others)
    parts = [map_state(function, *parts) for parts in zip(state, *others, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)


def leaves(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a state by their path: {"layers.0.key": ..., "previous": ...}."""
    if isinstance(state, Tensor):
        return {prefix.removesuffix("."): state}
    if not isinstance(state, tuple | list):
        raise ValueError(
            f"state must be a (nested) NamedTuple of tensors, got {type(state).__name__} at {prefix or 'the top'}"
        )
    names = getattr(state, "_fields", range(len(state)))
    return {
        path: leaf
        for name, part in zip(names, state, strict=True)
        for path, leaf in leaves(part, f"{prefix}{name}.").items()
    }


def detach(state: Any) -> Any:
    """The same numbers with no gradient: what was written before is now a constant."""
    return map_state(Tensor.detach, state)


def to(state: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Any:
    """Move a state to a device, and its floating-point tensors to a dtype (counters stay integers)."""
    return map_state(lambda leaf: leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None), state)


def n_bytes(state: Any) -> int:
    """How many bytes the state's tensors hold."""
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves(state).values())


def save(state: Any, path: str | os.PathLike[str]) -> None:
    """Write a state as safetensors; the file appears under its name only when it is whole."""
    write_safetensors({name: leaf.detach().contiguous() for name, leaf in leaves(state).items()}, path)


def write_safetensors(tensors: dict[str, Tensor], path: str | os.PathLike[str], config: object = None) -> None:
    """Write tensors and a JSON configuration beside the target, then rename: the old file or the new, never half."""
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        save_file(tensors, partial, metadata={"config": json.dumps(config)})
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """Where two configurations differ, in words: ["memory.0.window: 8 here, 16 in the file"]."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = list(ours | theirs)
        return [d for key in keys for d in differences(ours.get(key), theirs.get(key), f"{name}{key}.")]
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = zip(ours, theirs, strict=True)
        return [d for i, (a, b) in enumerate(pairs) for d in differences(a, b, f"{name}{i}.")]
    return [] if ours == theirs else [f"{name.removesuffix('.')}: {ours} here, {theirs} in the file"]


def load(path: str | os.PathLike[str], like: Any) -> Any:
    """Read a state that has the structure of `like`, onto the devices of `like`.

    Raises ValueError, naming the tensor, where the file holds another layer's state.
    """
    expected = leaves(like)
    with safe_open(path, framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}
    names = sorted(found.keys() ^ expected.keys())
    require(not names, "path", path, f"the state of a layer like this one; these tensors differ: {names}")
    for name, leaf in found.items():
        kind, wanted = (f"{part.dtype} with {part.ndim} dimensions" for part in (leaf, expected[name]))
        require(kind == wanted, f"{name} in {path}", kind, f"{wanted}, as in `like`")
    return _rebuild(like, found)


def _rebuild(like: Any, found: dict[str, Tensor]) -> Any:
    in_order = iter(found[name].to(leaf.device) for name, leaf in leaves(like).items())
    return map_state(lambda _: next(in_order), like)


def reset(layer: SequenceMemory, state: Any, rows: Sequence[int] | Tensor) -> Any:
    """The same state with the named rows of the batch started afresh, as from `layer.initial_state`.

    Raises ValueError inside a segment, where the rows could not stay in step, and for a row that does not exist.
    """
    missing = layer.tokens_to_segment_end(state)
    require(missing == 0, "state", f"a state {missing} tokens before the end of its segment", "at a segment's end")
    some_leaf = next(iter(leaves(state).values()))
    batch_size = len(some_leaf)
    index = torch.as_tensor(rows, dtype=torch.long)
    inside = bool(((index >= 0) & (index < batch_size)).all())
    require(inside, "rows", index.tolist(), f"row numbers from 0 to {batch_size - 1}")
    chosen = torch.zeros(batch_size, dtype=torch.bool).index_fill(0, index, True).to(some_leaf.device)
    fresh = layer.initial_state(batch_size, device=some_leaf.device, dtype=_floating_dtype(state))

    def start_afresh(leaf: Tensor, start: Tensor) -> Tensor:
        if start.shape != leaf.shape:  # a cache that has grown: its count of valid entries starts at 0 again
            start = torch.zeros_like(leaf)
        return torch.where(chosen.view(-1, *[1] * (leaf.ndim - 1)), start, leaf)

    return map_state(start_afresh, state, fresh)


def _floating_dtype(state: Any) -> torch.dtype:
    return next(leaf.dtype for leaf in leaves(state).values() if leaf.is_floating_point())


def stream(
    layer: SequenceMemory, x: Tensor, chunk: int, state: Any = None, bptt: int | None = None
) -> Iterator[tuple[Tensor, Any]]:
    """Feed x to the layer `chunk` tokens at a time, yielding (y, state) after each.

    With `bptt=n` the gradient is cut after every n chunks: back-propagate what the last n chunks yielded
    before asking for the next one, and their graph is freed.
    """
    require(chunk >= 1, "chunk", chunk, "at least 1 token")
    require(bptt is None or bptt >= 1, "bptt", bptt, "None or at least 1 chunk")
    for number, piece in enumerate(x.split(chunk, dim=1), start=1):
        y, state = layer(piece, state)
        yield y, state
        if bptt and number % bptt == 0:
            state = detach(state)
