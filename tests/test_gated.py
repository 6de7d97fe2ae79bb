"""Gated memory against loops in NumPy float64, torch's own cells, and the half-life that its biases promise."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memcourse import GatedMemory, ParallelGatedMemory, gated_update, linear_scan
from memcourse.gated import scan_into, spread_over_time
from memcourse.memory import stream


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def draw_gates(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Gates of every kind: open and shut among them."""
    gates = torch.rand(*shape, dtype=dtype)
    return gates.where(torch.rand(*shape) > 0.1, gates.round())


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def scan_by_loops(forget_gate: np.ndarray, update: np.ndarray, initial: np.ndarray) -> np.ndarray:
    states = np.zeros(update.shape)
    for b in range(len(update)):
        state = initial[b]
        for t in range(update.shape[1]):
            state = forget_gate[b, t] * state + update[b, t]
            states[b, t] = state
    return states


def loop(forget_gate: Tensor, update: Tensor, initial: Tensor) -> Tensor:
    states, state = [], initial
    for gate, new in zip(forget_gate.unbind(1), update.unbind(1), strict=True):
        state = gate * state + new
        states.append(state)
    return torch.stack(states, dim=1)


def test_gated_update_keeps_the_share_that_the_forget_gate_says() -> None:
    state, candidate = draw(3, 5), draw(3, 5)
    forget_gate, input_gate = draw_gates(3, 5), draw_gates(3, 5)
    found = gated_update(state, candidate, forget_gate, input_gate)
    for index in np.ndindex(3, 5):
        expected = forget_gate[index] * state[index] + input_gate[index] * candidate[index]
        assert found[index] == expected
    open_gate, shut = torch.ones(3, 5).double(), torch.zeros(3, 5).double()
    assert torch.equal(gated_update(state, candidate, open_gate, shut), state)
    assert torch.equal(gated_update(state, candidate, shut, open_gate), candidate)


def test_the_cell_of_an_lstm_is_a_gated_update(device: str) -> None:
    cell = nn.LSTMCell(5, 7).double().to(device)
    x, hidden, state = draw(3, 5).to(device), draw(3, 7).to(device), draw(3, 7).to(device)
    seen = x @ cell.weight_ih.T + cell.bias_ih + hidden @ cell.weight_hh.T + cell.bias_hh
    input_gate, forget_gate, candidate, output_gate = seen.chunk(4, dim=-1)  # torch's order
    state_after = gated_update(state, candidate.tanh(), forget_gate.sigmoid(), input_gate.sigmoid())
    expected_hidden, expected_state = cell(x, (hidden, state))
    torch.testing.assert_close(state_after, expected_state, atol=1e-12, rtol=0)
    torch.testing.assert_close(output_gate.sigmoid() * state_after.tanh(), expected_hidden, atol=1e-12, rtol=0)


def test_a_gru_is_a_gated_update_whose_gates_sum_to_one(device: str) -> None:
    cell = nn.GRUCell(5, 7).double().to(device)
    x, state = draw(3, 5).to(device), draw(3, 7).to(device)
    from_x = (x @ cell.weight_ih.T + cell.bias_ih).chunk(3, dim=-1)
    from_state = (state @ cell.weight_hh.T + cell.bias_hh).chunk(3, dim=-1)
    reset_gate = (from_x[0] + from_state[0]).sigmoid()
    forget_gate = (from_x[1] + from_state[1]).sigmoid()  # torch puts z on the old state
    candidate = (from_x[2] + reset_gate * from_state[2]).tanh()
    found = gated_update(state, candidate, forget_gate, 1 - forget_gate)
    torch.testing.assert_close(found, cell(x, state), atol=1e-12, rtol=0)


# Shapes that take each path: nothing, one step, the plain loop, whole spans of chunks, spans and a rest, wide states.
SHAPES = [
    (2, 0, 3),
    (2, 1, 3),
    (3, 7, 5),
    (2, 16, 3),
    (2, 23, 5),
    (1, 1000, 2),
    (1, 4099, 1),
    (2, 389, 700),
    (2, 11, 9000),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_scan_equals_the_loop(shape: tuple[int, int, int], device: str) -> None:
    forget_gate, update, initial = draw_gates(*shape), draw(*shape), draw(shape[0], shape[2])
    for start in (initial, None):
        found = linear_scan(*(None if part is None else part.to(device) for part in (forget_gate, update, start)))
        expected = scan_by_loops(*map(numbers, (forget_gate, update, initial * 0 if start is None else start)))
        assert found.shape == shape and found.dtype == torch.float64 and found.device.type == device
        np.testing.assert_allclose(numbers(found), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[1]], ids=str)
def test_the_gradient_of_the_scan_equals_that_of_the_loop(shape: tuple[int, int, int], device: str) -> None:
    parts = [part.to(device).requires_grad_() for part in (draw_gates(*shape), draw(*shape), draw(shape[0], shape[2]))]
    direction = draw(*shape).to(device)
    ours = torch.autograd.grad(linear_scan(*parts), parts, direction)
    theirs = torch.autograd.grad(loop(*parts), parts, direction)
    for found, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_the_scan_has_a_first_and_a_second_derivative() -> None:
    def parts(time: int) -> list[Tensor]:
        inside = 0.1 + 0.8 * torch.rand(2, time, 3, dtype=torch.float64)  # finite differences must stay in [0, 1]
        return [part.requires_grad_() for part in (inside, draw(2, time, 3), draw(2, 3))]

    assert torch.autograd.gradcheck(linear_scan, parts(19))
    assert torch.autograd.gradgradcheck(linear_scan, parts(5))


def test_the_scan_reads_strided_inputs_and_changes_none() -> None:
    wide, initial = draw_gates(2, 47, 6), draw(2, 3)
    forget_gate, update = wide.chunk(2, dim=-1)
    before = wide.clone()
    expected = scan_by_loops(*map(numbers, (forget_gate, update, initial)))
    np.testing.assert_allclose(numbers(linear_scan(forget_gate, update, initial)), expected, atol=1e-9)
    backwards = torch.empty(2, 47, 3, dtype=torch.float64)
    last = scan_into(backwards, forget_gate.flip(1), update.flip(1), initial, from_the_end=True)
    np.testing.assert_allclose(numbers(backwards.flip(1)), expected, atol=1e-9)
    assert torch.equal(last, backwards[:, 0])
    assert torch.equal(wide, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype, device: str) -> None:
    """1,000 times 1 through an open gate: a sum in bfloat16 would stay at 256, in float16 be rounded from 2048 on."""
    ones = torch.ones(1, 3001, 2, dtype=dtype, device=device)
    states = linear_scan(ones, ones)
    assert states.dtype == dtype
    expected = torch.arange(1, 3002).to(dtype)
    assert torch.equal(states[0, :, 0].cpu(), expected)
    forget_gate, update = draw_gates(2, 99, 3).to(dtype), draw(2, 99, 3).to(dtype)
    exact = scan_by_loops(numbers(forget_gate), numbers(update), np.zeros((2, 3)))
    found = linear_scan(forget_gate.to(device), update.to(device))
    np.testing.assert_allclose(numbers(found), exact, rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_gates_that_are_shut_and_gates_that_never_shut_over_a_long_time() -> None:
    """A product of many gates is 0 in floating point; neither it nor a gate of 0 may become NaN."""
    update = draw(1, 5000, 2, dtype=torch.float32)
    for value in (0.0, 1e-30, 0.5, 1.0):
        forget_gate = torch.full_like(update, value).requires_grad_()
        states = linear_scan(forget_gate, update, torch.full((1, 2), 3.0))
        states.sum().backward()
        assert forget_gate.grad is not None and forget_gate.grad.isfinite().all()
        expected = scan_by_loops(*map(numbers, (forget_gate, update, torch.full((1, 2), 3.0))))
        np.testing.assert_allclose(numbers(states), expected, rtol=1e-4, atol=1e-3)


def gated_by_loops(layer: GatedMemory, x: np.ndarray) -> np.ndarray:
    D = x.shape[1]
    weight = np.concatenate([numbers(layer.from_state.weight), numbers(layer.from_x.weight)], axis=1)  # of [h, x]
    bias = numbers(layer.from_x.bias)
    parts = [(weight[i * D : (i + 1) * D], bias[i * D : (i + 1) * D]) for i in range(3)]
    state, y = np.zeros(D), np.zeros(x.shape)
    for t in range(len(x)):
        both = np.concatenate([state, x[t]])
        forget_gate, input_gate = (sigmoid(w @ both + b) for w, b in parts[:2])
        candidate = np.tanh(parts[2][0] @ both + parts[2][1])
        state = forget_gate * state + input_gate * candidate
        y[t] = numbers(layer.output.weight) @ state
    return y


def parallel_by_loops(layer: ParallelGatedMemory, x: np.ndarray) -> np.ndarray:
    D = x.shape[1]
    weight, bias = numbers(layer.from_x.weight), numbers(layer.from_x.bias)
    state, y = np.zeros(D), np.zeros(x.shape)
    for t in range(len(x)):
        forget_gate = sigmoid(weight[:D] @ x[t] + bias[:D])
        candidate = weight[D:] @ x[t] + bias[D:]
        state = forget_gate * state + (1 - forget_gate) * candidate
        y[t] = numbers(layer.output.weight) @ state
    return y


@pytest.mark.parametrize(("cls", "by_loops"), [(GatedMemory, gated_by_loops), (ParallelGatedMemory, parallel_by_loops)])
def test_layers_equal_the_loop(cls: type, by_loops: Callable, device: str) -> None:
    layer, x = cls(7).double().to(device), draw(2, 41, 7).to(device)
    y, state = layer(x)
    for b in range(2):
        np.testing.assert_allclose(numbers(y[b]), by_loops(layer, numbers(x[b])), atol=1e-12)
    np.testing.assert_allclose(numbers(layer.output(state.memory)), numbers(y[:, -1]), atol=1e-12)


def test_the_parallel_state_is_no_larger_than_its_largest_candidate() -> None:
    layer, x = ParallelGatedMemory(5).double(), 100 * draw(2, 300, 5)
    largest = layer.from_x(x)[..., 5:].abs().amax(dim=1)  # (B, D)
    states = torch.stack([state.memory for _, state in stream(layer, x, 1)], dim=1)
    assert (states.abs().amax(dim=1) <= largest * (1 + 1e-12)).all()


def test_biases_spread_the_half_life_from_one_step_to_hundreds() -> None:
    """A unit whose gate rests at sigmoid(b) halves what it holds in ln 2 / -ln f steps: measured by decay."""
    layer = ParallelGatedMemory(9).double()
    assert torch.allclose(layer.from_x.bias[:9].sigmoid(), 1 - 1 / torch.logspace(1, 10, 9, base=2).double())
    nothing = torch.zeros(1, 1000, 9, dtype=torch.float64)
    rests = layer.from_x(nothing)[..., :9].sigmoid()
    states = linear_scan(rests, nothing, torch.ones(1, 9).double())[0]  # (T, D)
    measured = (states > 0.5).sum(dim=0) + 1  # the first step at which at most half is left
    predicted = [math.ceil(math.log(2) / -math.log(f) - 1e-6) for f in rests[0, 0].tolist()]
    assert measured.tolist() == predicted
    assert predicted[0] == 1 and predicted[-1] > 700
    assert (spread_over_time(9, longest=20.0).sigmoid()[-1] - 0.95).abs() < 1e-6


def test_gated_memory_starts_as_an_average_and_may_learn_not_to_be() -> None:
    """b_i = -b_f: with no input and no state, the two gates of every unit sum to 1."""
    layer = GatedMemory(9)
    forget_gate, input_gate, _ = layer.from_x(torch.zeros(1, 9)).sigmoid().chunk(3, dim=-1)
    torch.testing.assert_close(forget_gate + input_gate, torch.ones(1, 9))


@pytest.mark.parametrize("cls", [GatedMemory, ParallelGatedMemory])
def test_layers_in_bfloat16_keep_their_state_in_float32(cls: type) -> None:
    layer, x = cls(8).bfloat16(), draw(2, 50, 8).bfloat16()
    y, state = layer(x)
    assert y.dtype == torch.bfloat16 and state.memory.dtype == torch.float32
    expected = layer.float()(x.float())[0]
    assert (y - expected).abs().max() <= 0.05 * (1 + expected.abs().max())


def test_a_streamed_state_holds_no_more_than_itself() -> None:
    state = ParallelGatedMemory(4)(draw(2, 500, 4, dtype=torch.float32))[1]
    assert state.memory.untyped_storage().nbytes() == state.memory.numel() * 4


def learn_the_first_token(layer: nn.Module, time: int) -> float:
    """Train on telling the first token, one of 8, after `time` - 1 others; the accuracy after 300 steps."""
    d_model = layer.config["d_model"]
    embedding, head = nn.Embedding(16, d_model), nn.Linear(d_model, 8)
    optimizer = torch.optim.Adam([*embedding.parameters(), *layer.parameters(), *head.parameters()], 3e-3)
    right = []
    for _ in range(300):
        first, tokens = torch.randint(8, (32,)), torch.randint(8, 16, (32, time))
        tokens[:, 0] = first
        logits = head(layer(embedding(tokens))[0][:, -1])
        right.append((logits.argmax(dim=-1) == first).float().mean().item())
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, first).backward()
        optimizer.step()
    return sum(right[-20:]) / 20


@pytest.mark.slow
@pytest.mark.parametrize("cls", [GatedMemory, ParallelGatedMemory])
def test_units_of_many_speeds_learn_what_units_of_one_speed_do_not(cls: type) -> None:
    spread, same = cls(32), cls(32)
    with torch.no_grad():
        same.from_x.bias[:32] = 1.0
    assert learn_the_first_token(spread, 50) > 0.9
    assert learn_the_first_token(same, 50) < 0.6
