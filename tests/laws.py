"""The nine laws that every memory keeps (README, "Add a memory").  Each takes a Memory and a device, and asserts."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from memories import Law, Memory
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from memcourse import memory as state_of

T = 23  # tokens: a prime, more than four windows of the small memories


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert found.isfinite().all()
    if found.numel():
        assert (found - expected).abs().max() <= tolerance * (1 + expected.abs().max())


def assert_same_state(found: Any, expected: Any, tolerance: float = 1e-9) -> None:
    ours, theirs = state_of.leaves(found), state_of.leaves(expected)
    assert ours.keys() == theirs.keys()
    for name, leaf in ours.items():
        assert_close(leaf, theirs[name], tolerance)


def in_chunks(layer: nn.Module, x: Tensor, sizes: Sequence[int], state: Any = None) -> tuple[Tensor, Any]:
    pieces = []
    for piece in x.split(list(sizes), dim=1):
        y, state = layer(piece, state)
        pieces.append(y)
    return torch.cat(pieces, dim=1), state


def changed_at(x: Tensor, t: int) -> Tensor:
    """x with another vector, or another token, at time t of every row."""
    x = x.clone()
    x[:, t] = x[:, t] + 1 if x.is_floating_point() else (x[:, t] + 1) % 29
    return x


def law_1_causal(memory: Memory, device: str) -> None:
    """Changing x at t changes no y before t, and does change some y at or after it."""
    layer, x = memory.make(device), memory.inputs(device, T)
    y = layer(x)[0]
    for t in (0, 1, 4, 5, 11, T - 1):
        moved = (layer(changed_at(x, t))[0] - y).abs().amax(dim=-1)  # (B, T)
        assert (moved[:, :t] <= 1e-12).all(), f"x at {t} changed y before it"
        assert (moved[:, t:].amax(dim=1) > 1e-9).all(), f"x at {t} changed nothing"


def law_2_streaming(memory: Memory, device: str) -> None:
    """The whole sequence equals chunks of any sizes: the same y, the same final state."""
    splits = ([1] * T, [3] * 7 + [2], [5, 5, 5, 5, 3], [7, 1, 11, 4], [22, 1], [1, 22])
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        layer, x = memory.make(device, dtype), memory.inputs(device, T, dtype=dtype)
        y, state = layer(x)
        for sizes in splits:
            y_streamed, state_streamed = in_chunks(layer, x, sizes)
            assert_close(y_streamed, y, tolerance)
            assert_same_state(state_streamed, state, tolerance)


def law_3_initial_state(memory: Memory, device: str) -> None:
    """`None` is the initial state; a zero-length chunk changes nothing."""
    layer, x = memory.make(device), memory.inputs(device, T)
    y, state = layer(x)
    start = layer.initial_state(len(x), device=device, dtype=torch.float64)
    y_again, state_again = layer(x, start)
    assert_close(y_again, y, 0)
    assert_same_state(state_again, state, 0)
    for before in (None, start, state):
        nothing, after = layer(x[:, :0], before)
        assert nothing.shape == (len(x), 0, *y.shape[2:])
        assert_same_state(after, start if before is None else before, 0)


def law_4_gradient(memory: Memory, device: str) -> None:
    """The gradient reaches what was written in an earlier chunk, and stops at `detach`."""
    layer = memory.make(device)
    for cut in (False, True):
        written, y = _write_then_read(memory, layer, device, cut)
        gradient = torch.autograd.grad(y.square().sum(), written, allow_unused=True)[0]
        reached = gradient is not None and bool((gradient[_earlier(memory)] != 0).any())
        expected = layer.differentiable_write and not cut
        assert reached == expected, f"gradient {'reaches' if reached else 'does not reach'} the write (detached: {cut})"


def _earlier(memory: Memory) -> Any:
    """Where the earlier chunk stands in the gradient: upper half of the vocabulary for a model, everything else."""
    return slice(15, None) if memory.cls.level == "model" else slice(None)


def _write_then_read(memory: Memory, layer: nn.Module, device: str, cut: bool) -> tuple[Tensor, Tensor]:
    first, second = memory.inputs(device, 7, seed=3), memory.inputs(device, 4, seed=4)
    if not layer.differentiable_write:  # this is said of finished segments: the open one stays differentiable
        first = memory.inputs(device, 7 + layer.tokens_to_segment_end(layer(first)[1]), seed=3)
    if memory.cls.level == "model":  # tokens of the two chunks are disjoint, and only logits of the second are read
        first, second = first % 14 + 15, second % 15
        written = layer.embedding.weight
    else:
        written = first.requires_grad_()
    state = layer(first)[1]
    y = layer(second, state_of.detach(state) if cut else state)[0]
    return written, y[..., :15] if memory.cls.level == "model" else y


def law_5_rows(memory: Memory, device: str) -> None:
    """Rows never touch; a row alone gives what it gives in a batch; padding to the right changes nothing before it."""
    layer, x = memory.make(device), memory.inputs(device, T)
    y, state = layer(x)
    for row in range(len(x)):
        alone = layer(x[row : row + 1])[0]
        assert_close(alone, y[row : row + 1])
    disturbed = x.clone()
    disturbed[1] = changed_at(x.flip(1), 0)[1]
    y_disturbed, _ = in_chunks(layer, disturbed, [9, T - 9])
    assert_close(y_disturbed[[0, 2]], y[[0, 2]])
    padded = torch.cat([x, torch.zeros_like(x[:, :6])], dim=1)
    assert_close(layer(padded)[0][:, :T], y)
    # a row that starts afresh gives what a fresh row gives, whatever its neighbours remember
    whole = layer(x[:, :20])[1]
    if layer.tokens_to_segment_end(whole) == 0:
        after, _ = layer(x[:, :9], state_of.reset(layer, whole, [1]))
        assert_close(after[1], layer(x[:, :9])[0][1])
        assert_close(after[[0, 2]], layer(x[:, :9], whole)[0][[0, 2]])


def law_6_saved(memory: Memory, device: str) -> None:
    """Save, load, continue gives bit-identical results; state and weights travel as safetensors."""
    layer, x = memory.make(device, torch.float32), memory.inputs(device, T, dtype=torch.float32)
    _, state = layer(x[:, :9])
    y, final = layer(x[:, 9:], state)
    with TemporaryDirectory() as folder:
        state_file, weights_file = Path(folder, "state.safetensors"), Path(folder, "weights.safetensors")
        state_of.save(state, state_file)
        save_file(layer.state_dict(), weights_file)
        with safe_open(state_file, framework="pt") as file:
            assert set(file.keys()) == set(state_of.leaves(state))
        torch.manual_seed(9)
        fresh = memory.cls(**memory.arguments).to(device)
        fresh.load_state_dict(load_file(weights_file))
        loaded = state_of.load(state_file, like=fresh.initial_state(len(x), device=device))
        y_again, final_again = fresh(x[:, 9:], loaded)
    assert torch.equal(y_again, y)
    assert_same_state(final_again, final, 0)


def law_7_size(memory: Memory, device: str) -> None:
    """n_bytes of a fixed-size state does not grow with the stream; no state keeps more alive than its numbers."""
    layer = memory.make(device)
    states = {time: layer(memory.inputs(device, time))[1] for time in (20, 40, 160, 163)}
    for time, state in states.items():
        numbers, kept = state_of.n_bytes(state), _bytes_kept_alive(state)
        assert kept <= 1.5 * numbers, f"after {time} tokens {kept} bytes are kept alive by {numbers} of numbers"
    sizes = [state_of.n_bytes(states[time]) for time in (20, 40, 160)]
    if memory.fixed_size:
        assert len(set(sizes)) == 1, f"bytes after 20, 40 and 160 tokens: {sizes}"
        start = layer.initial_state(3, device=device, dtype=torch.float64)
        assert state_of.n_bytes(start) == sizes[0], "rings are allocated whole"
    else:
        assert sizes[0] < sizes[1] < sizes[2], "says that it grows, and does not"


def _bytes_kept_alive(state: Any) -> int:
    """Of the storages under a state's tensors, each counted once: a view of a chunk keeps the whole chunk."""
    storages = (leaf.untyped_storage() for leaf in state_of.leaves(state).values())
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def law_8_numbers(memory: Memory, device: str) -> None:
    """Works under bf16 autocast with its state in float32; no NaN on an empty memory, zeros or large inputs."""
    layer, x = memory.make(device, torch.float32), memory.inputs(device, T, dtype=torch.float32)
    y = layer(x)[0]
    with torch.autocast(device, dtype=torch.bfloat16):
        y_half, state = in_chunks(layer, x, [9, T - 9])
    assert y_half.isfinite().all() and (y_half - y).abs().max() <= 0.1 * (1 + y.abs().max())
    floats = [leaf for leaf in state_of.leaves(state).values() if leaf.is_floating_point()]
    assert all(leaf.dtype == torch.float32 for leaf in floats)
    for extreme in (x * 0, x * 10_000) if x.is_floating_point() else (x * 0,):
        extreme = extreme.clone().requires_grad_(extreme.is_floating_point())
        y, state = layer(extreme)
        layer.zero_grad()
        y.sum().backward()
        gradients = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
        everything = [y, *state_of.leaves(state).values(), *gradients]
        assert all(tensor.isfinite().all() for tensor in everything)


def law_9_arguments(memory: Memory, device: str) -> None:
    """Every argument changes something, every parameter gets a gradient, a wrong argument is named."""
    layer, x = memory.make(device), memory.inputs(device, T)
    y, state = layer(x)
    y.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).any(), f"{name} gets no gradient"
    names = [name for name in inspect.signature(memory.cls).parameters if name != "self"]
    assert set(names) == set(memory.arguments) == set(memory.other) == set(memory.wrong) == set(layer.config)
    for name in names:
        if memory.cls.level == "model" and name == "d_model":
            continue  # a model's width is that of its memory: the two change together
        other = memory.make(device, **{name: memory.other[name]} | _along(memory, name))
        assert not _equal(other, layer, memory, device), f"{name} changes nothing"
    for name in names:
        with pytest.raises(ValueError, match=name) as error:
            memory.make(device, **{name: memory.wrong[name]})
        assert "must be" in str(error.value) and "got" in str(error.value)


def _along(memory: Memory, name: str) -> dict[str, Any]:
    """What must change together with an argument: a model's makers, counted by n_layers."""
    makers = memory.arguments.get("memory")
    return {"memory": makers[:1]} if name == "n_layers" and isinstance(makers, list) else {}


def _equal(other: Any, layer: Any, memory: Memory, device: str) -> bool:
    shapes = [{name: p.shape for name, p in each.named_parameters()} for each in (other, layer)]
    if shapes[0] != shapes[1]:
        return False
    other.load_state_dict(layer.state_dict())
    x = memory.inputs(device, T)
    return torch.equal(other(x)[0], layer(x)[0])


LAWS: dict[str, Law] = {
    "causal": law_1_causal,
    "streaming": law_2_streaming,
    "initial state": law_3_initial_state,
    "gradient": law_4_gradient,
    "rows": law_5_rows,
    "saved": law_6_saved,
    "size": law_7_size,
    "numbers": law_8_numbers,
    "arguments": law_9_arguments,
}
