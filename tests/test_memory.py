"""What can be done with any state."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memcourse import CausalAttention, MemoryTransformer
from memcourse import memory as state_of


def model() -> MemoryTransformer:
    return MemoryTransformer(11, 12, 2, [lambda: CausalAttention(12, 2, window=5), lambda: CausalAttention(12, 2)])


def test_leaves_are_named_by_their_path() -> None:
    _, state = model()(torch.arange(6).view(2, 3))
    names = ["previous"] + [f"layers.{i}.{field}" for i in range(2) for field in ("key", "value", "position")]
    assert list(state_of.leaves(state)) == names


def test_n_bytes_counts_every_tensor() -> None:
    _, state = CausalAttention(12, 2, window=5)(torch.randn(3, 9, 12))
    assert state_of.n_bytes(state) == 2 * (3 * 2 * 4 * 6) * 4 + 3 * 8


def test_to_changes_floats_and_leaves_counters() -> None:
    state = state_of.to(model()(torch.arange(6).view(2, 3))[1], dtype=torch.float64)
    for name, leaf in state_of.leaves(state).items():
        assert leaf.dtype == (torch.int64 if name.endswith("position") else torch.float64)


def test_stream_yields_chunks_and_cuts_the_gradient_every_bptt_chunks() -> None:
    layer, x = CausalAttention(12, 2), torch.randn(2, 13, 12, requires_grad=True)
    pieces = [(y, state) for y, state in state_of.stream(layer, x, 3)]
    assert [y.shape[1] for y, _ in pieces] == [3, 3, 3, 3, 1]
    for bptt, first_reached in ((1, 9), (2, 6), (None, 0)):
        pieces = [y for y, _ in state_of.stream(layer, x, 3, bptt=bptt)]
        gradient = torch.autograd.grad(pieces[3].sum(), x)[0].abs().sum(dim=(0, 2))  # y of tokens 9 to 11
        assert (gradient.nonzero()[:, 0] == torch.arange(first_reached, 12)).all()


def test_stream_frees_each_window_once_it_is_back_propagated() -> None:
    layer = CausalAttention(12, 2)
    windows = 0
    for y, _ in state_of.stream(layer, torch.randn(2, 12, 12), 3, bptt=1):
        y.sum().backward()  # a graph that reached into the window before would raise here
        windows += 1
    assert windows == 4


def test_reset_starts_rows_afresh_and_keeps_the_gradient_of_the_others() -> None:
    layer = CausalAttention(12, 2, window=5)
    x = torch.randn(3, 9, 12, requires_grad=True)
    state = state_of.reset(layer, layer(x)[1], torch.tensor([0, 2]))
    assert state.position.tolist() == [0, 9, 0]
    gradient = torch.autograd.grad(layer(torch.randn(3, 2, 12), state)[0].sum(), x)[0]
    assert (gradient[[0, 2]] == 0).all() and (gradient[1] != 0).any()


def test_a_save_that_dies_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    old = CausalAttention(12, 2)(torch.randn(1, 3, 12))[1]
    state_of.save(old, path)
    script = (
        "import os, sys, torch, memcourse.memory as m; from memcourse import CausalAttention\n"
        "os.replace = lambda *_: os._exit(9)\n"  # killed after writing, before the rename
        "m.save(CausalAttention(12, 2)(torch.randn(1, 5, 12))[1], sys.argv[1])"
    )
    died = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert died.returncode == 9
    loaded = state_of.load(path, like=old)
    assert all(torch.equal(a, b) for a, b in zip(loaded, old, strict=True))


def test_a_save_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", disk_full)
    with pytest.raises(OSError, match="no space"):
        state_of.save(CausalAttention(12, 2)(torch.randn(1, 3, 12))[1], tmp_path / "state.safetensors")
    assert list(tmp_path.iterdir()) == []
