"""Attention against an oracle in NumPy float64, written with loops."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from memcourse import AdditiveAttention, CausalAttention, MultiHeadAttention, attend, hopfield_step
from memcourse.attention import rotate
from memcourse.memory import stream


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def softmax(scores: np.ndarray) -> np.ndarray:
    exponentials = np.array([math.exp(score - max(scores)) for score in scores])
    return exponentials / exponentials.sum()


def attend_by_loops(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray, scale: float) -> tuple:
    weights = np.zeros((len(query), len(key)))
    output = np.zeros((len(query), value.shape[1]))
    for t in range(len(query)):
        allowed = [s for s in range(len(key)) if mask[t, s]]
        if allowed:
            weights[t, allowed] = softmax(np.array([scale * (query[t] * key[s]).sum() for s in allowed]))
        for s in range(len(key)):
            output[t] += weights[t, s] * value[s]
    return output, weights


@pytest.mark.parametrize("scale", [None, 0.7])
def test_attend_equals_the_loop(scale: float | None, device: str) -> None:
    query, key, value = draw(2, 3, 5), draw(2, 7, 5), draw(2, 7, 11)
    mask = torch.rand(2, 3, 7) < 0.6
    mask[1, 2] = False  # this query may look nowhere
    output, weights = attend(*(part.to(device) for part in (query, key, value)), mask=mask.to(device), scale=scale)
    for b in range(2):
        parts = (part[b].numpy() for part in (query, key, value, mask))
        expected = attend_by_loops(*parts, scale=scale or 1 / math.sqrt(5))
        np.testing.assert_allclose(output[b].cpu(), expected[0], atol=1e-12)
        np.testing.assert_allclose(weights[b].cpu(), expected[1], atol=1e-12)


def test_a_masked_row_reads_zeros_and_passes_no_nan(device: str) -> None:
    query, key, value = (draw(3, 5).to(device).requires_grad_() for _ in range(3))
    mask = torch.tensor([[True, False, True], [False] * 3, [True] * 3], device=device)
    output, weights = attend(query, key, value, mask=mask)
    assert (output[1] == 0).all() and (weights[1] == 0).all()
    for gradient in torch.autograd.grad(output.sum(), (query, key, value)):
        assert gradient.isfinite().all()


def test_the_scale_keeps_the_variance_of_scores_at_one() -> None:
    query, key = draw(2000, 256), draw(2000, 256)
    scores = (query * key).sum(-1) / math.sqrt(256)
    assert 0.9 < scores.var() < 1.1


def test_additive_attention_equals_the_loop(device: str) -> None:
    layer = AdditiveAttention(3, 5, 7).double().to(device)
    query, key, value = draw(2, 4, 3), draw(2, 6, 5), draw(2, 6, 11)
    mask = torch.rand(2, 4, 6) < 0.7
    mask[0, 0] = False
    output, weights = layer(*(part.to(device) for part in (query, key, value)), mask.to(device))
    w, u, v = (p.detach().cpu().numpy() for p in (layer.query.weight, layer.key.weight, layer.score.weight))
    for b in range(2):
        for t in range(4):
            allowed = [s for s in range(6) if mask[b, t, s]]
            expected = np.zeros(6)
            if allowed:
                scores = [(v[0] * np.tanh(w @ query[b, t].numpy() + u @ key[b, s].numpy())).sum() for s in allowed]
                expected[allowed] = softmax(np.array(scores))
            np.testing.assert_allclose(weights[b, t].detach().cpu(), expected, atol=1e-12)
            np.testing.assert_allclose(output[b, t].detach().cpu(), expected @ value[b].numpy(), atol=1e-12)


def test_hopfield_step_is_attention_with_its_keys_as_values() -> None:
    query, patterns = draw(3, 7), draw(5, 7)
    expected = attend_by_loops(query.numpy(), patterns.numpy(), patterns.numpy(), np.ones((3, 5), bool), 2.5)[0]
    np.testing.assert_allclose(hopfield_step(query, patterns, beta=2.5), expected, atol=1e-12)
    np.testing.assert_allclose(hopfield_step(query[0], patterns, beta=2.5), expected[0], atol=1e-12)


def test_hopfield_step_never_raises_the_energy() -> None:
    patterns, beta = draw(20, 7), 1.5

    def energy(query: Tensor) -> Tensor:  # Ramsauer et al. 2021, equation 2, without its constants
        return -(beta * query @ patterns.mT).logsumexp(-1) / beta + query.square().sum(-1) / 2

    query = 3 * draw(50, 7)
    for _ in range(5):
        after = hopfield_step(query, patterns, beta=beta)
        assert (energy(after) <= energy(query) + 1e-12).all()
        query = after


def copy_weights(ours: MultiHeadAttention, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        parts = (ours.heads.query.weight, ours.heads.key.weight, ours.heads.value.weight)
        theirs.in_proj_weight.copy_(torch.cat(parts))
        theirs.out_proj.weight.copy_(ours.heads.output.weight)


@pytest.mark.parametrize("cross", [False, True])
def test_multi_head_equals_torch(cross: bool, device: str) -> None:
    ours = MultiHeadAttention(12, 3).double().to(device)
    theirs = nn.MultiheadAttention(12, 3, bias=False, batch_first=True).double().to(device)
    copy_weights(ours, theirs)
    x, context = draw(2, 5, 12).to(device), draw(2, 7, 12).to(device)
    mask = (torch.rand(2, 5, 7 if cross else 5) < 0.7).to(device)
    mask[..., 0] = True
    memory = context if cross else x
    expected = theirs(x, memory, memory, attn_mask=~mask.repeat_interleave(3, dim=0), need_weights=False)[0]
    torch.testing.assert_close(ours(x, context if cross else None, mask), expected, atol=1e-12, rtol=0)
    unmasked = theirs(x, memory, memory, need_weights=False)[0]
    torch.testing.assert_close(ours(x, context if cross else None), unmasked, atol=1e-12, rtol=0)


def test_multi_head_masks_of_every_shape_agree_and_an_empty_row_reads_zeros() -> None:
    layer, x = MultiHeadAttention(12, 3).double(), draw(2, 5, 12)
    mask = torch.rand(5, 5) < 0.6
    mask[3] = False
    y = layer(x, mask=mask)
    assert (y[:, 3] == 0).all() and y.isfinite().all()
    torch.testing.assert_close(layer(x, mask=mask.expand(2, 5, 5)), y, atol=1e-12, rtol=0)
    torch.testing.assert_close(layer(x, mask=mask.expand(2, 3, 5, 5)), y, atol=1e-12, rtol=0)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_multi_head_is_causal_only_when_asked_and_has_no_order_of_its_own() -> None:
    x, changed = draw(2, 5, 12), draw(2, 5, 12)
    changed[:, :3] = x[:, :3]
    for causal in (True, False):
        layer = MultiHeadAttention(12, 3, causal=causal).double()
        same = torch.allclose(layer(x)[:, :3], layer(changed)[:, :3], atol=1e-12)
        assert same == causal
        everywhere = torch.ones(5, 5, dtype=torch.bool)
        torch.testing.assert_close(layer(x, mask=everywhere), layer(x), atol=1e-12, rtol=0)
    shuffled = x[:, torch.tensor([3, 1, 4, 0, 2])]
    torch.testing.assert_close(layer(x, shuffled), layer(x, x), atol=1e-12, rtol=0)


def test_rotation_depends_on_the_distance_alone_even_after_a_million_tokens() -> None:
    query, key = draw(1, 1, 1, 8), draw(1, 1, 1, 8)

    def score(query_at: int, key_at: int) -> float:
        at = [torch.tensor([[position]]) for position in (query_at, key_at)]
        return (rotate(query, at[0]) * rotate(key, at[1])).sum().item()

    assert score(9, 2) == pytest.approx(score(1_000_009, 1_000_002), abs=1e-8)
    assert score(9, 2) != pytest.approx(score(9, 3), abs=1e-3)
    assert score(5, 5) == pytest.approx((query * key).sum().item(), abs=1e-12)


@pytest.mark.parametrize("window", [None, 1, 2, 5, 40])
def test_causal_attention_equals_the_loop(window: int | None, device: str) -> None:
    layer, x = CausalAttention(12, 2, window=window).double().to(device), draw(1, 17, 12).to(device)
    query, key, value = layer.heads.split(x, x)
    position = torch.arange(17, device=device)[None]
    query, key = rotate(query, position), rotate(key, position)
    distance = np.arange(17)[:, None] - np.arange(17)
    mask = (distance >= 0) & (distance < (window or 17))
    parts = ([part[0, h].detach().cpu().numpy() for part in (query, key, value)] for h in range(2))
    heads = [attend_by_loops(*part, mask=mask, scale=1 / math.sqrt(6))[0] for part in parts]
    expected = np.concatenate(heads, axis=1) @ layer.heads.output.weight.detach().cpu().numpy().T
    np.testing.assert_allclose(layer(x)[0][0].detach().cpu(), expected, atol=1e-12)
    streamed = torch.cat([y for y, _ in stream(layer, x, 3)], dim=1)
    np.testing.assert_allclose(streamed[0].detach().cpu(), expected, atol=1e-12)


def test_a_window_that_holds_everything_is_no_window() -> None:
    wide, free = CausalAttention(12, 2, window=99).double(), CausalAttention(12, 2).double()
    wide.load_state_dict(free.state_dict())
    x = draw(2, 23, 12)
    torch.testing.assert_close(wide(x)[0], free(x)[0], atol=1e-12, rtol=0)


def test_a_window_costs_the_same_however_long_the_sequence() -> None:
    """Its scores are (window, 2 window) per block: no (T, T) tensor is made, which at this length would be 16 GB."""
    layer = CausalAttention(8, 1, window=16)
    with torch.no_grad():
        y, state = layer(draw(1, 65_536, 8, dtype=torch.float32))
    assert y.shape == (1, 65_536, 8) and state.key.shape == (1, 1, 15, 8)
