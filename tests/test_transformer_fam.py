"""FeedbackBlock against the paper's loop in NumPy float64: one row, one block, one token at a time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from memcourse import FeedbackBlock

D, H = 12, 2


def numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().double().numpy()


class Paper:
    """Algorithm 1 of arXiv:2404.09173 with the weights of a FeedbackBlock."""

    def __init__(self, layer: FeedbackBlock) -> None:
        self.weights = {name: numbers(weight) for name, weight in layer.state_dict().items()}
        _, _, self.block_len, self.n_feedback, self.n_past_blocks = layer.config.values()

    def norm(self, x: np.ndarray, scale: str) -> np.ndarray:
        return x / np.sqrt((x**2).mean() + np.finfo(float).eps) * self.weights[scale]

    def feed_forward(self, a: np.ndarray) -> np.ndarray:
        inside = torch.from_numpy(self.weights["feed_forward.expand.weight"] @ self.norm(a, "feed_forward.norm.weight"))
        gelu = numbers(inside * 0.5 * (1 + torch.erf(inside / 2**0.5)))
        return a + self.weights["feed_forward.contract.weight"] @ gelu

    def project(self, x: np.ndarray, which: str, place: int | None) -> list[np.ndarray]:
        """One vector per head of norm(x), turned by its place."""
        heads = np.split(self.weights[f"heads.{which}.weight"] @ self.norm(x, "norm.weight"), H)
        return heads if place is None else [turned(head, place) for head in heads]

    def attend(
        self, query: list[np.ndarray], keys: list[list[np.ndarray]], values: list[list[np.ndarray]]
    ) -> np.ndarray:
        read = []
        for h in range(H):
            weights = np.exp([query[h] @ key[h] / np.sqrt(D / H) for key in keys])
            read.append(sum(w * value[h] for w, value in zip(weights / weights.sum(), values, strict=True)))
        return self.weights["heads.output.weight"] @ np.concatenate(read)

    def __call__(self, x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """One row, (T, D): its outputs, and the feedback after each finished block."""
        L = self.block_len
        feedback = list(self.weights["initial_feedback"]) if self.n_feedback else []
        history, outputs, after = [], [], []
        for start in range(0, len(x), L):  # places are counted from the first token of all
            block = x[start : start + L]
            past = [pair for one in history[max(0, len(history) - self.n_past_blocks) :] for pair in one]
            own = [
                (self.project(token, "key", start + i), self.project(token, "value", None))
                for i, token in enumerate(block)
            ]
            fed = [(self.project(f, "key", start - 1), self.project(f, "value", None)) for f in feedback]
            for i, token in enumerate(block):
                seen = past + fed + own[: i + 1]
                read = self.attend(self.project(token, "query", start + i), *map(list, zip(*seen, strict=True)))
                outputs.append(self.feed_forward(token + read))
            if len(block) < L:
                break
            history.append(own)
            updated = []
            for f in feedback:
                query = self.project(f, "query", start + L - 1)
                read = self.attend(query, *map(list, zip(*(fed + own), strict=True)))
                updated.append(self.feed_forward(read + (f if start else 0)))
            feedback = updated
            after.append(np.stack(feedback) if feedback else np.zeros((0, D)))
        return np.stack(outputs), after


def turned(head: np.ndarray, place: int) -> np.ndarray:
    """Each pair (x_i, x_{i + d/2}) as a complex number, times e^{i place 10000^(-2i/d)}."""
    half = len(head) // 2
    pairs = (head[:half] + 1j * head[half:]) * np.exp(1j * place * 10_000.0 ** (-np.arange(half) / half))
    return np.concatenate([pairs.real, pairs.imag])


def layer_of(n_feedback: int, n_past_blocks: int, device: str = "cpu", block_len: int = 5) -> FeedbackBlock:
    torch.manual_seed(1)
    layer = FeedbackBlock(D, H, block_len=block_len, n_feedback=n_feedback, n_past_blocks=n_past_blocks)
    return layer.double().to(device)


def draw(*shape: int, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7)).to(device)


FORMS = [(3, 0), (3, 2), (0, 0), (0, 2), (1, 1)]
LENGTHS = [1, 4, 5, 6, 13, 15, 22]


@pytest.mark.parametrize(("n_feedback", "n_past_blocks"), FORMS)
def test_it_is_the_loop_of_the_paper(n_feedback: int, n_past_blocks: int, device: str) -> None:
    layer = layer_of(n_feedback, n_past_blocks, device)
    paper, x = Paper(layer), draw(2, max(LENGTHS), D, device=device)
    expected = [paper(numbers(row)) for row in x]
    for time in LENGTHS:
        y, state = layer(x[:, :time])
        for b, (outputs, after) in enumerate(expected):
            np.testing.assert_allclose(numbers(y[b]), outputs[:time], atol=1e-10, rtol=0)
            if time >= layer.config["block_len"]:
                last = after[time // layer.config["block_len"] - 1]
                np.testing.assert_allclose(numbers(state.feedback[b]), last, atol=1e-10, rtol=0)


def test_the_first_feedback_is_all_that_is_added() -> None:
    with_feedback, without = layer_of(3, 2).state_dict(), layer_of(0, 2).state_dict()
    assert with_feedback.keys() - without.keys() == {"initial_feedback"}
    assert with_feedback["initial_feedback"].shape == (3, D)


def test_the_gradient_passes_through_every_block_and_equals_that_of_single_blocks(device: str) -> None:
    layer, x = layer_of(2, 1, device), draw(2, 22, D, device=device)
    found = []
    for sizes in ([22], [5, 5, 5, 5, 2], [3, 12, 7]):
        layer.zero_grad()
        state, total = None, x.new_zeros(())
        for piece in x.split(sizes, dim=1):
            y, state = layer(piece, state)
            total = total + y.square().sum()
        total.backward()
        found.append([parameter.grad.clone() for parameter in layer.parameters()])
    for grads in found[1:]:
        for grad, expected in zip(grads, found[0], strict=True):
            torch.testing.assert_close(grad, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("time", [20, 22])
def test_the_state_keeps_no_more_than_it_shows(time: int) -> None:
    layer = layer_of(3, 1)
    with torch.no_grad():
        _, state = layer(draw(2, time, D))
    for name, leaf in state._asdict().items():
        assert leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size(), name


def test_in_bfloat16_the_state_stays_in_float32() -> None:
    layer, x = layer_of(3, 1).to(torch.bfloat16), draw(2, 13, D).to(torch.bfloat16)
    y, state = layer(x)
    assert y.dtype == torch.bfloat16 and y.isfinite().all()
    assert {leaf.dtype for leaf in state[:-1]} == {torch.float32}
