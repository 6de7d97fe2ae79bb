"""Memorizing attention against NumPy float64, a list of all that was seen, and a sort."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from memcourse import MemorizingAttention
from memcourse.memorizing import search
from memcourse.memory import n_bytes, reset, stream


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def softmax(scores: list[float]) -> np.ndarray:
    exponentials = np.exp(np.array(scores) - max(scores))
    return exponentials / exponentials.sum()


def turn(x: np.ndarray, place: int) -> np.ndarray:
    half = len(x) // 2
    angle = place * 10_000.0 ** (-np.arange(half) / half)
    first, second = x[:half], x[half:]
    return np.concatenate(
        [first * np.cos(angle) - second * np.sin(angle), second * np.cos(angle) + first * np.sin(angle)]
    )


def layer_by_loops(layer: MemorizingAttention, x: np.ndarray, start_of_memory: int = 0) -> np.ndarray:
    """One row, (T, D) -> (T, D): every token sorts the last `capacity` tokens of finished segments by cosine."""
    n_heads, segment_len, capacity, k = (layer.config[n] for n in ("n_heads", "segment_len", "capacity", "k"))
    d = x.shape[1] // n_heads
    projected = [x @ numbers(part.weight).T for part in (layer.heads.query, layer.heads.key, layer.heads.value)]
    read = np.zeros_like(x)
    for head in range(n_heads):
        own = slice(head * d, (head + 1) * d)
        query, key, value = (part[:, own] for part in projected)
        gate = 1 / (1 + math.exp(-layer.gate[head].item()))
        scale = math.exp(layer.log_scale[head].item())
        for t in range(len(x)):
            start = t // segment_len * segment_len
            local = softmax(
                [turn(query[t], t - start) @ turn(key[s], s - start) / math.sqrt(d) for s in range(start, t + 1)]
            )
            past = range(max(start - capacity, start_of_memory), start)
            cosine = {s: query[t] @ key[s] / np.linalg.norm(query[t]) / np.linalg.norm(key[s]) for s in past}
            nearest = sorted(past, key=lambda s: -cosine[s])[:k]
            remembered = np.zeros(d)
            if nearest:
                remembered = softmax([scale * cosine[s] for s in nearest]) @ value[nearest]
            read[t, own] = gate * remembered + (1 - gate) * (local @ value[start : t + 1])
    return read @ numbers(layer.heads.output.weight).T


def random_layer(segment_len: int = 5, capacity: int = 8, k: int = 3) -> MemorizingAttention:
    layer = MemorizingAttention(12, 3, segment_len=segment_len, capacity=capacity, k=k).double()
    with torch.no_grad():
        layer.gate.normal_()
        layer.log_scale.normal_()
    return layer


@pytest.mark.parametrize(("n_entries", "k"), [(1, 1), (7, 3), (7, 7), (700, 5), (1001, 32), (8192, 32)])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 40)])
def test_the_search_finds_what_a_sort_finds(n_entries: int, k: int, shape: tuple[int, int, int], device: str) -> None:
    query, keys = draw(*shape, 5), draw(*shape[:2], n_entries, 5)
    values, places = search(query.to(device), keys.to(device), None, k)
    scores = numbers(query) @ numbers(keys).swapaxes(-1, -2)
    expected = np.argsort(-scores, axis=-1)[..., :k]
    np.testing.assert_array_equal(np.sort(places.cpu().numpy()), np.sort(expected))  # recall 1
    np.testing.assert_allclose(numbers(values), np.take_along_axis(scores, places.cpu().numpy(), -1), atol=1e-12)


def test_the_search_passes_over_empty_entries_row_by_row(device: str) -> None:
    query, keys = draw(3, 2, 70, 5).abs().to(device), draw(3, 2, 900, 5).to(device)
    keys[:2, :, :600] += 10  # the largest scores of all, where a row has nothing
    filled = torch.arange(900, device=device) >= torch.tensor([[600], [898], [900]], device=device)
    values, places = search(query, keys, filled, 4)
    assert (places[0] >= 600).all() and values[0].isfinite().all()
    assert (values[1].isfinite().sum(dim=-1) == 2).all() and (places[1][values[1].isfinite()] >= 898).all()
    assert (values[2] == -torch.inf).all()


@pytest.mark.parametrize(("segment_len", "capacity", "k"), [(5, 8, 3), (1, 4, 4), (7, 3, 1), (4, 100, 30), (40, 9, 2)])
def test_the_layer_equals_the_loop(segment_len: int, capacity: int, k: int, device: str) -> None:
    """Rings smaller and larger than a segment and than the sequence; sequences of one token, and with a rest."""
    layer = random_layer(segment_len, capacity, k).to(device)
    for time in (1, 23):
        x = draw(2, time, 12).to(device)
        y, state = layer(x)
        for b in range(2):
            np.testing.assert_allclose(numbers(y[b]), layer_by_loops(layer, numbers(x[b])), atol=1e-10)
        assert state.written.tolist() == [time // segment_len * segment_len] * 2
        assert layer.tokens_to_segment_end(state) == -time % segment_len


def test_the_ring_is_in_order_and_keys_stay_with_their_values(device: str) -> None:
    layer, x = random_layer().to(device), draw(2, 30, 12).to(device)
    for chunk in (1, 3, 30):
        *_, (_, state) = stream(layer, x, chunk)
        _, key, value = layer.heads.split(x, x)
        unit = key / key.square().sum(dim=-1, keepdim=True).sqrt()
        torch.testing.assert_close(state.memory_key, unit[:, :, -8:], atol=1e-12, rtol=0)
        torch.testing.assert_close(state.memory_value, value[:, :, -8:], atol=1e-12, rtol=0)


def test_a_reset_row_never_reads_what_was_before_nor_what_is_empty(device: str) -> None:
    layer, x = random_layer(5, 20, 9).to(device), draw(3, 20, 12).to(device)
    y, state = layer(x)
    state = reset(layer, state, [1])
    assert state.written.tolist() == [20, 0, 20]
    again, later = layer(x, state)
    torch.testing.assert_close(again[1], y[1], atol=1e-12, rtol=0)
    both = torch.cat([x, x], dim=1)
    for b, start in ((0, 0), (1, 20), (2, 0)):
        expected = layer_by_loops(layer, numbers(both[b]), start)[20:]
        np.testing.assert_allclose(numbers(again[b]), expected, atol=1e-10)
    assert later.written.tolist() == [40, 20, 40]


def test_finished_segments_are_constants_and_the_open_one_is_not(device: str) -> None:
    layer, x = random_layer().to(device), draw(1, 12, 12).to(device).requires_grad_()
    gradient = torch.autograd.grad(layer(x)[0][:, -1].square().sum(), x)[0]
    assert (gradient[:, :10] == 0).all() and (gradient[:, 10:] != 0).any(dim=-1).all()
    state = layer(x)[1]
    assert not state.memory_key.requires_grad and state.key.requires_grad


def test_the_gradient_of_the_query_goes_through_the_memory(device: str) -> None:
    """With the gate open and one segment in the ring, the scores of the k nearest are all that x enters."""
    layer = random_layer().to(device)
    with torch.no_grad():
        layer.gate.fill_(60.0)
    _, state = layer(draw(1, 5, 12).to(device))
    assert torch.autograd.gradcheck(lambda x: layer(x, state)[0], draw(1, 2, 12).to(device).requires_grad_())


def test_a_stored_key_is_found_by_itself_among_thousands() -> None:
    """With k = 1 and the gate open, a query equal to a stored key reads its value, whatever its length."""
    layer = MemorizingAttention(8, 1, segment_len=8, capacity=4096, k=1).double()
    with torch.no_grad():
        layer.gate.fill_(60.0)
        layer.heads.query.weight.copy_(3 * layer.heads.key.weight)
    x = draw(1, 4096, 8)
    _, state = layer(x)
    asked = x[:, [17, 1000, 4095]]
    found = layer(asked, state)[0]
    torch.testing.assert_close(found, layer.heads.output(layer.heads.value(asked)), atol=1e-12, rtol=0)


def test_a_stream_takes_constant_memory_and_its_ring_is_whole_from_the_start() -> None:
    layer = random_layer()
    sizes = {n_bytes(layer.initial_state(1, dtype=torch.float64))}
    for _, state in stream(layer, draw(1, 200, 12), 5):
        sizes.add(n_bytes(state))
        assert state.memory_key.untyped_storage().nbytes() == state.memory_key.numel() * 8
    assert len(sizes) == 1


def test_bfloat16_keeps_its_ring_in_float32() -> None:
    layer = MemorizingAttention(8, 2, segment_len=4, capacity=16, k=4).bfloat16()
    x = draw(2, 30, 8, dtype=torch.float32).bfloat16()
    y, state = layer(x)
    assert y.dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in state if part.is_floating_point())
    expected = layer.float()(x.float())[0]
    assert (y - expected).abs().mean() <= 0.02 * (1 + expected.abs().max())  # a near tie may go the other way
