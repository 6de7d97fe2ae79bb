"""Infini-attention against NumPy float64, one segment, one head, one token after the other, as the paper writes it."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from memcourse import InfiniAttention, MemoryTransformer
from memcourse.infini_attention import memories_before_segments, read, sigma, write
from memcourse.memory import n_bytes, reset, stream
from memcourse.training import parameter_groups


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


def features(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def answer(query: np.ndarray, memory: np.ndarray, normalizer: np.ndarray) -> np.ndarray:
    weight = features(query) @ normalizer
    return features(query) @ memory / weight if weight else np.zeros(memory.shape[1])


def write_by_loops(
    key: np.ndarray, value: np.ndarray, memory: np.ndarray, normalizer: np.ndarray, rule: str
) -> tuple[np.ndarray, np.ndarray]:
    """One head's matrix after one segment: every token's outer product, made against the memory before the segment."""
    after, normalizer_after = memory.copy(), normalizer.copy()
    for t in range(len(key)):
        new = value[t] - answer(key[t], memory, normalizer) if rule == "delta" else value[t]
        after += np.outer(features(key[t]), new)
        normalizer_after += features(key[t])
    return after, normalizer_after


def turn(x: np.ndarray, place: int) -> np.ndarray:
    half = len(x) // 2
    turned = np.empty_like(x)
    for i in range(half):
        angle = place * 10_000 ** (-i / half)
        turned[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        turned[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return turned


def layer_by_loops(layer: InfiniAttention, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row, (T, D) -> (T, D), and the memory and normalizer of every head after it."""
    n_heads, segment_len, rule = (layer.config[name] for name in ("n_heads", "segment_len", "rule"))
    d = x.shape[1] // n_heads
    projected = [x @ numbers(part.weight).T for part in (layer.heads.query, layer.heads.key, layer.heads.value)]
    read_by_heads = np.zeros_like(x)
    memories, normalizers = np.zeros((n_heads, d, d)), np.zeros((n_heads, d))
    for head in range(n_heads):
        own = slice(head * d, (head + 1) * d)
        query, key, value = (part[:, own] for part in projected)
        gate = 1 / (1 + math.exp(-layer.gate[head].item()))
        for start in range(0, len(x), segment_len):
            end = min(start + segment_len, len(x))
            for t in range(start, end):
                scores = [
                    turn(query[t], t - start) @ turn(key[s], s - start) / math.sqrt(d) for s in range(start, t + 1)
                ]
                weights = np.exp(np.array(scores) - max(scores))
                local = weights / weights.sum() @ value[start : t + 1]
                remembered = answer(query[t], memories[head], normalizers[head])
                read_by_heads[t, own] = gate * remembered + (1 - gate) * local
            if end == start + segment_len:
                segment = key[start:end], value[start:end]
                memories[head], normalizers[head] = write_by_loops(*segment, memories[head], normalizers[head], rule)
    return read_by_heads @ numbers(layer.heads.output.weight).T, memories, normalizers


def random_layer(rule: str, segment_len: int = 5, d_model: int = 12, n_heads: int = 3) -> InfiniAttention:
    layer = InfiniAttention(d_model, n_heads, segment_len=segment_len, rule=rule).double()
    with torch.no_grad():
        layer.gate.normal_()
        layer.heads.key.weight.mul_(3)  # keys on both sides of the kink
    return layer


def test_sigma_is_elu_plus_one_and_so_is_its_gradient(device: str) -> None:
    x = torch.tensor([-30.0, -2.0, -1e-9, 0.0, 1e-9, 2.0, 30.0], dtype=torch.float64, device=device).requires_grad_()
    np.testing.assert_allclose(numbers(sigma(x)), features(numbers(x)), atol=1e-15)
    slope = torch.autograd.grad(sigma(x).sum(), x)[0]
    np.testing.assert_allclose(
        numbers(slope), np.where(numbers(x) > 0, 1, np.exp(np.minimum(numbers(x), 0))), atol=1e-15
    )
    smooth = draw(7).requires_grad_()
    assert torch.autograd.gradcheck(sigma, smooth) and torch.autograd.gradgradcheck(sigma, smooth)
    assert sigma(x.half()).dtype == torch.float32


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_read_and_write_equal_the_loop(rule: str, device: str) -> None:
    B, H, T, d, v = 2, 3, 7, 5, 11
    query, key, value = draw(B, H, T, d), draw(B, H, T, d), draw(B, H, T, v)
    memory, normalizer = torch.zeros(B, H, d, v).double(), torch.zeros(B, H, d).double()
    for _ in range(3):
        parts = (key, value, memory, normalizer)
        after, normalizer_after = write(*(part.to(device) for part in parts), rule=rule)
        for b, h in np.ndindex(B, H):
            expected = write_by_loops(*(numbers(part[b, h]) for part in parts), rule)
            np.testing.assert_allclose(numbers(after[b, h]), expected[0], atol=1e-12)
            np.testing.assert_allclose(numbers(normalizer_after[b, h]), expected[1], atol=1e-12)
        memory, normalizer, key, value = after.cpu(), normalizer_after.cpu(), draw(B, H, T, d), draw(B, H, T, v)
    found = read(query.to(device), memory.to(device), normalizer.to(device))
    for b, h, t in np.ndindex(B, H, T):
        expected = answer(*(numbers(part) for part in (query[b, h, t], memory[b, h], normalizer[b, h])))
        np.testing.assert_allclose(numbers(found[b, h, t]), expected, atol=1e-12)


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_all_segments_at_once_equal_write_after_write(rule: str, device: str) -> None:
    key, value = draw(2, 3, 4, 7, 5).to(device), draw(2, 3, 4, 7, 5).to(device)
    start = write(draw(2, 3, 7, 5).to(device), draw(2, 3, 7, 5).to(device), *zeros(2, 3, 5, device), rule=rule)
    parts = [part.requires_grad_() for part in (key, value, *start)]
    memories, normalizers = memories_before_segments(*parts, rule=rule)
    memory, normalizer = parts[2:]
    one_by_one = [(memory, normalizer)]
    for s in range(4):
        memory, normalizer = write(parts[0][:, :, s], parts[1][:, :, s], memory, normalizer, rule=rule)
        one_by_one.append((memory, normalizer))
    expected = [torch.stack(each, dim=2) for each in zip(*one_by_one, strict=True)]
    torch.testing.assert_close([memories, normalizers], expected, atol=1e-12, rtol=1e-12)
    directions = [torch.randn_like(each) for each in expected]
    ours = torch.autograd.grad([memories, normalizers], parts, directions)
    theirs = torch.autograd.grad(expected, parts, directions)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)


def zeros(B: int, H: int, d: int, device: str) -> tuple[Tensor, Tensor]:
    nothing = torch.zeros(B, H, d, d, dtype=torch.float64, device=device)
    return nothing, nothing[..., 0].clone()


def test_an_empty_memory_reads_zero_and_has_a_finite_gradient() -> None:
    query = draw(1, 2, 3, 4).requires_grad_()
    found = read(query, *zeros(1, 2, 4, "cpu"))
    assert (found == 0).all()
    assert torch.autograd.grad(found.sum(), query)[0].isfinite().all()


@pytest.mark.parametrize("segment_len", [1, 5, 23, 40])
@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_the_layer_equals_the_loop(rule: str, segment_len: int, device: str) -> None:
    """Sequences of one token, shorter than a segment, of whole segments, and with a rest."""
    layer = random_layer(rule, segment_len).to(device)
    for time in (1, 4, 20, 23):
        x = draw(2, time, 12).to(device)
        y, state = layer(x)
        for b in range(2):
            expected, memory, normalizer = layer_by_loops(layer, numbers(x[b]))
            np.testing.assert_allclose(numbers(y[b]), expected, atol=1e-10)
            np.testing.assert_allclose(numbers(state.memory[b]), memory, atol=1e-10)
            np.testing.assert_allclose(numbers(state.normalizer[b]), normalizer, atol=1e-10)
        assert state.key.shape[2] == time % segment_len
        assert layer.tokens_to_segment_end(state) == -time % segment_len


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_one_segment_forgets_nothing_of_the_gradient(rule: str) -> None:
    """The gradient of the whole against finite differences; the second for the prefix sums and the features."""
    layer = random_layer(rule, 3, 4, 2)
    assert torch.autograd.gradcheck(lambda x: layer(x)[0], draw(1, 7, 4).requires_grad_(), atol=1e-6)


def test_the_second_derivative_of_the_running_sums() -> None:
    def squares(key: Tensor, value: Tensor, memory: Tensor, normalizer: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.square() for part in memories_before_segments(key, value, memory, normalizer, rule="linear"))

    parts = [draw(1, 1, 3, 2, 2), draw(1, 1, 3, 2, 2), draw(1, 1, 2, 2), draw(1, 1, 2)]
    assert torch.autograd.gradgradcheck(squares, [part.requires_grad_() for part in parts])


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_token_by_token_and_a_reset_row(rule: str, device: str) -> None:
    layer, x = random_layer(rule).to(device), draw(3, 30, 12).to(device)
    y, state = layer(x)
    pieces = list(stream(layer, x, 1))
    torch.testing.assert_close(torch.cat([piece for piece, _ in pieces], dim=1), y, atol=1e-10, rtol=0)
    torch.testing.assert_close(tuple(pieces[-1][1]), tuple(state), atol=1e-10, rtol=0)
    again = layer(x, reset(layer, state, [1]))[0]
    torch.testing.assert_close(again[1], y[1], atol=1e-12, rtol=0)
    assert (again[0] - y[0]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="3 tokens before the end"):
        reset(layer, layer(x[:, :7])[1], [1])


def test_the_memory_has_no_positions_and_the_segment_has() -> None:
    """A segment whose tokens are shuffled leaves the same memory, and reads otherwise."""
    layer, x = random_layer("linear"), draw(1, 5, 12)
    shuffled = x[:, [3, 0, 4, 1, 2]]
    (y, state), (y_shuffled, state_shuffled) = layer(x), layer(shuffled)
    torch.testing.assert_close(state.memory, state_shuffled.memory, atol=1e-12, rtol=0)
    assert (y[:, [3, 0, 4, 1, 2]] - y_shuffled).abs().max() > 1e-3


def test_the_delta_rule_does_not_write_twice_what_it_knows_and_the_linear_rule_does() -> None:
    key, value = draw(1, 1, 1, 8), draw(1, 1, 1, 8)
    for rule, growth in (("linear", 2.0), ("delta", 1.0)):
        once = write(key, value, *zeros(1, 1, 8, "cpu"), rule=rule)
        twice = write(key, value, *once, rule=rule)
        torch.testing.assert_close(twice[0], growth * once[0])
        torch.testing.assert_close(twice[1], 2 * once[1])  # the normalizer counts every key under both rules


def test_a_key_alone_in_the_memory_is_answered_with_its_value() -> None:
    key, value = draw(1, 2, 1, 8), draw(1, 2, 1, 8)
    memory = write(key, value, *zeros(1, 2, 8, "cpu"), rule="linear")
    torch.testing.assert_close(read(draw(1, 2, 3, 8), *memory), value.expand(-1, -1, 3, -1))


@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_half_precision_sums_in_float32(rule: str) -> None:
    """bfloat16 counts no further than 256, float16 no further than 65,504: sums in either would stop or overflow."""
    layer = InfiniAttention(8, 2, segment_len=16, rule=rule).bfloat16()
    y, state = layer(draw(1, 1024, 8, dtype=torch.float32).bfloat16())
    assert y.dtype == torch.bfloat16 and all(part.dtype == torch.float32 for part in state)
    ones = torch.ones(1, 1, 1, 4, dtype=torch.float16)
    memory = torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4), 100_000.0)
    assert (write(ones, ones, *memory)[1] == 100_002.0).all()
    exact = layer.float()(draw(1, 64, 8, dtype=torch.float32))[0]
    assert exact.isfinite().all()


def test_a_long_stream_takes_constant_memory_and_stays_finite() -> None:
    """As many segments as a million tokens have of 256 each; the state, storage included, keeps its size."""
    layer = InfiniAttention(8, 2, segment_len=4, rule="delta")
    x = draw(1, 4096, 8, dtype=torch.float32)
    state, sizes = None, set()
    with torch.no_grad():
        for _ in range(4):
            y, state = layer(x, state)
            sizes.add(n_bytes(state))
            assert state.memory.untyped_storage().nbytes() == state.memory.numel() * 4
    assert len(sizes) == 1 and y.isfinite().all()
    assert (state.normalizer > 4096).any()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["linear", "delta"])
def test_a_million_tokens_stream_in_constant_memory(rule: str, device: str) -> None:
    layer = InfiniAttention(32, 4, segment_len=256, rule=rule).to(device)
    state, sizes = None, set()
    with torch.no_grad():
        for seed in range(2**20 // 8192):
            torch.manual_seed(seed)
            y, state = layer(torch.randn(1, 8192, 32).to(device), state)
            sizes.add(n_bytes(state))
    assert len(sizes) == 1 and y.isfinite().all()
    counted = state.normalizer / 2**20  # an average of sigma: what it is after a thousand tokens
    x = torch.randn(1, 2048, 32, device=device)
    expected = sigma(layer.heads.split(x, x)[1]).mean(dim=2)
    torch.testing.assert_close(counted, expected, atol=0.05, rtol=0.05)


def test_the_gate_has_its_own_rate_and_no_decay() -> None:
    model = MemoryTransformer(11, 8, 2, lambda: InfiniAttention(8, 2, segment_len=4))
    for layer in model.layers:
        gate = layer.mixer.gate
        assert gate.shape == (2,) and (gate == 0).all()
        groups = [group for group in parameter_groups(model, 0.1) if any(p is gate for p in group["params"])]
        assert [(group["rate"], group["weight_decay"]) for group in groups] == [(10.0, 0.0)]


def test_a_shut_gate_is_local_attention_and_an_open_one_the_memory() -> None:
    layer, x = random_layer("linear"), draw(1, 15, 12)
    with torch.no_grad():
        layer.gate.fill_(-50.0)
        alone = torch.cat([layer(part)[0] for part in x.split(5, dim=1)], dim=1)  # every segment from an empty memory
        torch.testing.assert_close(layer(x)[0], alone, atol=1e-12, rtol=0)
        layer.gate.fill_(50.0)
        assert (layer(x)[0][:, :5]).abs().max() < 1e-12  # the first segment remembers nothing
        assert (layer(x)[0][:, 5:]).abs().max() > 1e-3
