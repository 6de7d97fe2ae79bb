"""LM2 against its equations, written as loops over segments, tokens, heads and slots in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from memcourse import LM2Block, MemoryTransformer, open_model
from memcourse.lm2 import first_bank, update

Array = NDArray[np.float64]
erf = np.vectorize(math.erf)
D, H, L = 8, 2, 4
ALL_WRITES = ["input", "thought", "both", "joint"]


def block(writes: str = "input", n_slots: int = 3) -> LM2Block:
    made = LM2Block(D, H, n_slots, segment_len=L, writes=writes).double()
    with torch.no_grad():  # norms that do something, and gates that differ from slot to slot
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made


def rms_norm(x: Array, weight: Array) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + np.finfo(np.float64).eps) * weight


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def rotated(x: Array, position: int) -> Array:
    """Pairs (x_i, x_{i + d/2}) turned by position / 10000^(2 i / d)."""
    out, half = x.copy(), len(x) // 2
    for i in range(half):
        angle = position / 10_000 ** (i / half)
        out[i] = x[i] * np.cos(angle) - x[i + half] * np.sin(angle)
        out[i + half] = x[i + half] * np.cos(angle) + x[i] * np.sin(angle)
    return out


def attention(w: dict[str, Array], name: str, queries: Array, source: Array, local: bool = False) -> Array:
    """Row by row, head by head; `local`: causal and with rotary positions."""
    q, k, v = queries @ w[f"{name}.query"].T, source @ w[f"{name}.key"].T, source @ w[f"{name}.value"].T
    d = D // H
    out = np.zeros_like(queries)
    for i in range(len(queries)):
        for h in range(H):
            own = slice(h * d, (h + 1) * d)
            seen = i + 1 if local else len(source)
            turn = rotated if local else lambda x, _: x
            scores = np.array([turn(q[i, own], i) @ turn(k[j, own], j) / np.sqrt(d) for j in range(seen)])
            out[i, own] = softmax(scores) @ v[:seen, own]
    return out @ w[f"{name}.output"].T


def in_loops(layer: LM2Block, x: Array) -> tuple[Array, Array, Array]:
    """One row, (T, D): its outputs, its hidden rows, and the bank after the last whole segment."""
    w = {name.removesuffix(".weight"): p.detach().numpy() for name, p in layer.named_parameters()}
    M, ys, hiddens = w["initial_memory"], [], []
    for start in range(0, len(x), L):
        X = x[start : start + L]
        E = rms_norm(X, w["norm"])
        R = attention(w, "read", E, M)
        X1 = X + attention(w, "attention", E, E, local=True) + sigmoid(R @ w["output_gate"].T) * R
        hidden = rms_norm(X1, w["feed_forward.norm"])
        inside = hidden @ w["feed_forward.expand"].T
        Y = X1 + (inside * (1 + erf(inside / np.sqrt(2))) / 2) @ w["feed_forward.contract"].T
        ys.append(Y)
        hiddens.append(hidden)
        if len(X) < L:
            break
        passes = {"input": [X], "thought": [Y], "both": [X, Y], "joint": [np.concatenate([X, Y])]}
        for Z in passes[layer.config["writes"]]:
            C = attention(w, "write", M, rms_norm(Z, w["write_norm"]))
            g_in = sigmoid(C @ w["input_gate"].T)
            g_f = sigmoid(M @ w["forget_gate"].T + w["forget_gate.bias"])
            M = g_f * M + g_in * np.tanh(C)
    return np.concatenate(ys), np.concatenate(hiddens), M


@pytest.mark.parametrize("time", [1, 3, L, 2 * L, 3 * L + 2])
@pytest.mark.parametrize("writes", ALL_WRITES)
def test_equations(writes: str, time: int) -> None:
    layer, x = block(writes), torch.randn(2, time, D, dtype=torch.float64)
    state = layer.initial_state(2, dtype=torch.float64)
    y, state, hidden = layer.advance_with_hidden(x, state)
    for row in range(2):
        expected = in_loops(layer, x[row].numpy())
        for found, wanted in zip((y, hidden, state.memory), expected, strict=True):
            np.testing.assert_allclose(found[row].detach().numpy(), wanted, atol=1e-10)


@pytest.mark.parametrize("writes", ALL_WRITES)
def test_equations_in_a_stream_of_odd_pieces(writes: str) -> None:
    layer, x = block(writes, n_slots=D + 3), torch.randn(1, 15, D, dtype=torch.float64)
    state, ys = None, []
    for piece in x.split([1, 2, 6, 1, 0, 2, 3], dim=1):
        y, state = layer(piece, state)
        ys.append(y)
    expected, _, bank = in_loops(layer, x[0].numpy())
    np.testing.assert_allclose(torch.cat(ys, dim=1)[0].detach().numpy(), expected, atol=1e-10)
    np.testing.assert_allclose(state.memory[0].detach().numpy(), bank, atol=1e-10)


def test_update_of_numbers_worked_by_hand() -> None:
    memory, candidate = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.0, 0.5]])
    found = update(memory, candidate, torch.tensor([[0.5, 1.0]]), torch.tensor([[1.0, 0.2]]))
    torch.testing.assert_close(found, torch.tensor([[1.0, -1.0 + 0.2 * 0.46211716]]))


def test_the_open_segment_is_kept_and_is_gone_with_its_last_token() -> None:
    for writes, kept in (("input", (1, 0)), ("thought", (0, 1)), ("both", (1, 1)), ("joint", (1, 1))):
        layer, state = block(writes), None
        for n in (1, 2, 3, 0, 1):
            _, state = layer(torch.randn(2, 1, D, dtype=torch.float64), state)
            assert state.key.shape == state.value.shape == (2, H, n, D // H)
            assert (state.inputs.shape[1], state.outputs.shape[1]) == (n * kept[0], n * kept[1])
            assert layer.tokens_to_segment_end(state) == (L - n if n else 0)


def test_a_segment_is_read_by_the_next_and_not_by_itself() -> None:
    layer, x = block(), torch.randn(1, 3 * L, D, dtype=torch.float64)
    reads = []
    merge = layer.read.merge
    layer.read.merge = lambda read: reads.append(merge(read)) or reads[-1]  # type: ignore[method-assign]
    other = x.clone()
    other[:, L : 2 * L - 1] += 1  # the second segment, but for its last token
    layer(x), layer(other)
    moved = (reads[0] - reads[1]).abs().amax(-1).view(3, L)  # what each token read, segment by segment
    assert moved[0].max() == 0 and moved[1, -1] == 0 and moved[2].min() > 1e-9


def test_outputs_are_written_only_where_they_are_asked_for() -> None:
    for writes in ALL_WRITES:
        layer, x = block(writes), torch.randn(1, L, D, dtype=torch.float64)
        before = layer(x)[1].memory
        with torch.no_grad():
            layer.feed_forward.contract.weight.mul_(2)
        assert torch.equal(layer(x)[1].memory, before) == (writes == "input")


def test_with_inputs_only_the_bank_goes_segment_by_segment() -> None:
    for writes, calls in (("input", 1), ("thought", 6)):
        layer, seen = block(writes), []
        layer.feed_forward.norm.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        layer(torch.randn(1, 6 * L, D, dtype=torch.float64))
        assert len(seen) == calls


@pytest.mark.parametrize("n_slots", [1, 5, D, D + 1, 3 * D])
def test_no_two_slots_of_the_first_bank_are_equal(n_slots: int) -> None:
    bank = first_bank(n_slots, D)
    assert torch.equal(bank[:D], torch.eye(D)[:n_slots])
    distance = torch.cdist(bank, bank) + torch.eye(n_slots)
    assert bank.shape == (n_slots, D) and distance.min() > 0.1


def test_equal_slots_stay_equal() -> None:
    layer = block(n_slots=4)
    with torch.no_grad():
        layer.initial_memory[1] = layer.initial_memory[0]
    memory = layer(torch.randn(1, 5 * L, D, dtype=torch.float64))[1].memory[0]
    torch.testing.assert_close(memory[1], memory[0], atol=1e-12, rtol=0)
    assert (memory[2] - memory[0]).abs().max() > 1e-3


def test_a_block_in_half_precision_keeps_its_bank_in_float32() -> None:
    layer, x = LM2Block(16, 2, 3, segment_len=4).bfloat16(), torch.randn(2, 10, 16)
    y, state = layer(x.bfloat16())
    exact = layer.float()(x.bfloat16().float())[0]
    assert y.dtype == torch.bfloat16 and state.memory.dtype == state.key.dtype == torch.float32
    assert (y.float() - exact).abs().max() < 0.1 * (1 + exact.abs().max())


def test_a_model_with_banks_is_opened_from_its_file(tmp_path: Any) -> None:
    model = MemoryTransformer(11, D, 2, lambda: LM2Block(D, H, 3, segment_len=L, writes="joint"))
    model.save(tmp_path / "model.safetensors")
    tokens: Tensor = torch.arange(10)[None]
    assert torch.equal(open_model(tmp_path / "model.safetensors")(tokens)[0], model(tokens)[0])
