"""ResMem against an oracle in NumPy float64, written with loops, and against scikit-learn's neighbours."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsRegressor, NearestNeighbors
from torch import Tensor, nn

import memcourse.resmem
from memcourse.resmem import ResMem, residual_read

INF = float("inf")


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype)


def read_by_loops(distances: np.ndarray, residuals: np.ndarray, bandwidth: float) -> np.ndarray:
    """(k,), (k, C) -> (C,), from the equation: no shift, so only for distances near enough."""
    weights = [0.0 if distance == INF else math.exp(-distance / bandwidth) for distance in distances]
    correction = np.zeros(residuals.shape[1])
    for weight, residual in zip(weights, residuals, strict=True):
        correction += weight / sum(weights) * residual
    return correction


def neighbors_by_loops(query: np.ndarray, keys: np.ndarray, k: int) -> tuple[np.ndarray, list[int]]:
    distances = np.array([math.sqrt(sum((a - b) ** 2 for a, b in zip(query, key, strict=True))) for key in keys])
    rows = sorted(range(len(keys)), key=lambda row: (distances[row], row))[:k]
    return distances[rows], rows


def resmem_by_loops(
    x: Tensor, y: np.ndarray, queries: Tensor, memory: ResMem, k: int, bandwidth: float
) -> tuple[np.ndarray, np.ndarray]:
    """(ResMem, kNN alone), each (n, C); y (n, C) in float64."""
    keys, wanted = memory.embed(x).double().numpy(), memory.embed(queries).double().numpy()
    predicted, base = (memory.predict(part).double().reshape(len(part), -1).numpy() for part in (x, queries))
    corrected, alone = [], []
    for query, prediction in zip(wanted, base, strict=True):
        distances, rows = neighbors_by_loops(query, keys, k)
        corrected.append(prediction + read_by_loops(distances, y[rows] - predicted[rows], bandwidth))
        alone.append(read_by_loops(distances, y[rows], bandwidth))
    return np.array(corrected), np.array(alone)


def linear(d_in: int, d_out: int, *after: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(d_in, d_out), *after).requires_grad_(False)


def classifier(k: int = 3, bandwidth: float = 0.5) -> ResMem:
    return ResMem(linear(5, 7, nn.Softmax(dim=-1)), linear(5, 3, nn.Tanh()), k=k, bandwidth=bandwidth)


def one_hot(labels: Tensor, n_classes: int) -> np.ndarray:
    rows = np.zeros((len(labels), n_classes))
    for row, label in enumerate(labels.tolist()):
        rows[row, label] = 1.0
    return rows


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 7.0])
def test_residual_read_equals_the_loop(bandwidth: float, device: str) -> None:
    distances, residuals = draw(2, 3, 5, dtype=torch.float64).abs(), draw(2, 3, 5, 7, dtype=torch.float64)
    found = residual_read(distances.to(device), residuals.to(device), bandwidth=bandwidth).cpu()
    for b in range(2):
        for q in range(3):
            expected = read_by_loops(distances[b, q].numpy(), residuals[b, q].numpy(), bandwidth)
            np.testing.assert_allclose(found[b, q], expected, atol=1e-12)


def test_a_missing_neighbour_weighs_nothing() -> None:
    distances = torch.tensor([[0.5, 2.0, INF], [INF, INF, INF]], dtype=torch.float64)
    residuals = draw(2, 3, 7, dtype=torch.float64)
    found = residual_read(distances, residuals, bandwidth=0.7)
    expected = read_by_loops(distances[0].numpy(), residuals[0].numpy(), 0.7)
    np.testing.assert_allclose(found[0], expected, atol=1e-12)
    assert torch.equal(found[1], torch.zeros(7, dtype=torch.float64))


def test_no_neighbours_give_no_correction() -> None:
    assert torch.equal(residual_read(torch.zeros(5, 0), torch.zeros(5, 0, 7), bandwidth=1.0), torch.zeros(5, 7))
    assert residual_read(torch.zeros(0, 3), torch.zeros(0, 3, 7), bandwidth=1.0).shape == (0, 7)


@pytest.mark.parametrize("far", [1e3, 1e30])
def test_far_queries_and_small_bandwidths_do_not_divide_zero_by_zero(far: float) -> None:
    residuals = draw(3, 7)
    distances = torch.tensor([far, far, 2 * far])
    found = residual_read(distances, residuals, bandwidth=1e-3)
    torch.testing.assert_close(found, (residuals[0] + residuals[1]) / 2)


def test_the_limits_of_the_bandwidth_are_the_nearest_and_the_mean() -> None:
    distances, residuals = torch.tensor([0.1, 0.2, 0.9]), draw(3, 7)
    torch.testing.assert_close(residual_read(distances, residuals, bandwidth=1e-6), residuals[0])
    torch.testing.assert_close(residual_read(distances, residuals, bandwidth=INF), residuals.mean(dim=0))
    with_one_missing = torch.tensor([0.1, 0.2, INF])
    torch.testing.assert_close(residual_read(with_one_missing, residuals, bandwidth=INF), residuals[:2].mean(dim=0))


def test_residual_read_passes_a_gradient() -> None:
    distances = draw(2, 5, dtype=torch.float64).abs().requires_grad_()
    residuals = draw(2, 5, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda d, r: residual_read(d, r, bandwidth=0.8), (distances, residuals))


@pytest.mark.parametrize("k", [1, 3, 11, 50])
def test_classification_equals_the_loop(k: int, device: str) -> None:
    x, labels, queries = draw(11, 5), torch.randint(7, (11,)), draw(13, 5)
    memory = classifier(k=k)
    corrected, alone = resmem_by_loops(x, one_hot(labels, 7), queries, memory, k, 0.5)
    for part in (memory.predict, memory.embed):
        part.to(device)
    memory.memorize(x.to(device), labels.to(device))
    np.testing.assert_allclose(memory(queries.to(device)).cpu(), corrected, atol=1e-5)
    np.testing.assert_allclose(memory.nearest(queries.to(device)).cpu(), alone, atol=1e-5)


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_regression_equals_the_loop_and_keeps_the_shape_of_y(shape: tuple[int, ...]) -> None:
    x, y, queries = draw(11, 5), draw(11, *shape), draw(13, 5)
    net = linear(5, 2)
    memory = ResMem(lambda x: net(x)[:, : math.prod(shape)].reshape(len(x), *shape), lambda x: x, k=3, bandwidth=0.4)
    memory.memorize(x, y)
    corrected, alone = resmem_by_loops(x, y.reshape(11, -1).double().numpy(), queries, memory, 3, 0.4)
    assert memory(queries).shape == memory.nearest(queries).shape == (13, *shape)
    np.testing.assert_allclose(memory(queries).reshape(13, -1), corrected, atol=1e-5)
    np.testing.assert_allclose(memory.nearest(queries).reshape(13, -1), alone, atol=1e-5)


def test_scikit_learn_agrees() -> None:
    x, y, queries = draw(101, 5), draw(101, 2), draw(31, 5)
    net = linear(5, 2)
    memory = ResMem(net, lambda x: x, k=7, bandwidth=0.4)
    memory.memorize(x, y)

    def weights(distances: np.ndarray) -> np.ndarray:
        return np.exp(-distances / 0.4)

    def regressor(targets: Tensor) -> Any:
        return KNeighborsRegressor(n_neighbors=7, weights=weights).fit(x.double(), targets.double())

    np.testing.assert_allclose(memory.nearest(queries), regressor(y).predict(queries.double()), atol=1e-5)
    residual = regressor(y - net(x)).predict(queries.double())
    np.testing.assert_allclose(memory(queries), net(queries).double().numpy() + residual, atol=1e-5)
    distances, rows = NearestNeighbors(n_neighbors=7).fit(x.double()).kneighbors(queries.double())
    found = residual_read(torch.from_numpy(distances), (y - net(x)).double()[torch.from_numpy(rows)], bandwidth=0.4)
    np.testing.assert_allclose(found, residual, atol=1e-6)


def test_what_was_memorised_comes_back() -> None:
    x, labels = draw(11, 5), torch.randint(7, (11,))
    memory = classifier(k=1)
    memory.memorize(x, labels)
    np.testing.assert_allclose(memory(x), one_hot(labels, 7), atol=1e-6)


def test_memorize_adds() -> None:
    x, labels, queries = draw(11, 5), torch.randint(7, (11,)), draw(13, 5)
    at_once, in_parts = classifier(), classifier()
    in_parts.predict, in_parts.embed = at_once.predict, at_once.embed
    at_once.memorize(x, labels)
    in_parts.memorize(x[:4], labels[:4])
    in_parts.memorize(x[4:4], labels[4:4])
    in_parts.memorize(x[4:], labels[4:])
    assert len(at_once) == len(in_parts) == 11
    torch.testing.assert_close(in_parts(queries), at_once(queries))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels, queries = draw(11, 5), torch.randint(7, (11,)), draw(13, 5)
    grid: dict[str, Any] = {"ks": [1, 3], "bandwidths": [0.1, 0.9]}
    memory = classifier()
    memory.memorize(x, labels)
    whole = [memory(queries), memory.nearest(queries)]
    tuned = memory.tune(queries, torch.arange(13) % 7, **grid)
    sizes = []

    def counted(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return memory.predict(x)

    monkeypatch.setattr(memcourse.resmem, "BLOCK", 4)
    in_blocks = ResMem(counted, memory.embed, k=3, bandwidth=0.5)
    in_blocks.memorize(x, labels)
    assert sizes == [4, 4, 3]
    monkeypatch.setattr(memcourse.resmem, "BLOCK_BYTES", 4 * 3 * 2 * 7 * 2)  # the neighbours of two queries
    sizes.clear()
    torch.testing.assert_close([in_blocks(queries), in_blocks.nearest(queries)], whole)
    assert sizes == [2] * 6 + [1]
    again = in_blocks.tune(queries, torch.arange(13) % 7, **grid)
    assert again == pytest.approx(tuned)


def test_an_empty_memory_corrects_nothing() -> None:
    memory, queries = classifier(), draw(13, 5)
    assert len(memory) == 0
    assert torch.equal(memory(queries), memory.predict(queries))
    memory.memorize(draw(0, 5), torch.zeros(0, dtype=torch.long))
    assert torch.equal(memory(queries), memory.predict(queries))


def test_no_queries_give_no_rows() -> None:
    memory = classifier()
    memory.memorize(draw(11, 5), torch.randint(7, (11,)))
    assert memory(draw(0, 5)).shape == memory.nearest(draw(0, 5)).shape == (0, 7)


def test_duplicates_share_their_weight() -> None:
    """The same input with several labels: a mean of them where all are read, the first where one is."""
    x, labels = draw(1, 5).repeat(4, 1), torch.tensor([2, 5, 5, 6])
    memory = classifier(k=4)
    memory.memorize(x, labels)
    np.testing.assert_allclose(memory(x[:1])[0], [0, 0, 0.25, 0, 0, 0.5, 0.25], atol=1e-6)
    memory.k = 1
    np.testing.assert_allclose(memory(x[:1])[0], [0, 0, 1, 0, 0, 0, 0], atol=1e-6)


def test_a_query_far_from_everything_reads_its_nearest() -> None:
    memory = ResMem(lambda x: torch.zeros(len(x)), lambda x: x, k=3, bandwidth=1e-3)
    memory.memorize(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([5.0, 6.0, 7.0]))
    torch.testing.assert_close(memory(torch.tensor([[1e6]])), torch.tensor([7.0]))


def test_nothing_is_differentiated_and_dtypes_are_predicts() -> None:
    net = nn.Linear(5, 7, dtype=torch.float64)
    memory = ResMem(net, lambda x: x, k=3, bandwidth=0.5)
    memory.memorize(draw(11, 5, dtype=torch.float64), draw(11, 7, dtype=torch.float64))
    found = memory(draw(13, 5, dtype=torch.float64))
    assert found.dtype == torch.float64 and not found.requires_grad
    assert memory.nearest(draw(13, 5)).dtype == torch.float32


def test_probabilities_in_half_precision_are_probabilities() -> None:
    logits = draw(11, 100)
    memory = ResMem(lambda x: logits[x].softmax(-1).bfloat16(), lambda x: x[:, None].float(), k=3, bandwidth=0.5)
    memory.memorize(torch.arange(11), torch.arange(11))
    assert memory(torch.arange(11)).argmax(dim=-1).tolist() == list(range(11))


def test_inputs_need_only_be_sliced() -> None:
    words = ["one", "three", "eleven"]

    def length(x: list[str]) -> Tensor:
        return torch.tensor([[float(len(word))] for word in x])

    memory = ResMem(lambda x: torch.ones(len(x)), length, k=1, bandwidth=1.0)
    memory.memorize(words, torch.tensor([1.0, 3.0, 11.0]))
    assert memory(["six", "twelve"]).tolist() == [1.0, 11.0]


def test_a_document_can_be_named() -> None:
    memory = classifier(k=1)
    x, labels = draw(11, 5), torch.randint(7, (11,))
    memory.memorize(x[:6], labels[:6])
    memory.memorize(x[6:], labels[6:], document="later")
    assert memory.datastore is not None and memory.datastore.delete("later") == 5
    np.testing.assert_allclose(memory(x[:6]), one_hot(labels[:6], 7), atol=1e-6)
    assert len(memory) == 6


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_tune_takes_the_best_of_the_grid(kind: str) -> None:
    x, held = draw(61, 5), draw(31, 5)
    memory = classifier()
    y, held_y = (
        part[:, :3].argmax(dim=-1) + 2 * (part[:, 4] > 0) if kind == "labels" else part @ draw(5, 7)
        for part in (x, held)
    )
    memory.memorize(x, y)
    ks, bandwidths = [1, 2, 5, 20, 90], [0.01, 0.2, 2.0, INF]
    targets = one_hot(held_y, 7) if kind == "labels" else held_y.double().numpy()
    stored = one_hot(y, 7) if kind == "labels" else y.double().numpy()
    scores = {}
    for k in ks:
        for bandwidth in bandwidths:
            corrected, _ = resmem_by_loops(x, stored, held, memory, k, bandwidth)
            squared = ((corrected - targets) ** 2).sum(axis=1).mean()
            wrong = (corrected.argmax(axis=1) != targets.argmax(axis=1)).mean()
            scores[k, bandwidth] = (wrong, squared) if kind == "labels" else (squared, squared)
    expected = min(scores, key=lambda pair: scores[pair])
    found = memory.tune(held, held_y, ks=ks, bandwidths=bandwidths)
    assert (found["k"], found["bandwidth"]) == (memory.k, memory.bandwidth) == expected
    assert (found["error"], found["squared_error"]) == pytest.approx(scores[expected], rel=1e-4)
    assert len(set(scores.values())) > 3  # the grid had something to choose from


def test_of_equal_errors_tune_takes_the_lower_squared_error() -> None:
    memory = ResMem(lambda x: torch.full((len(x), 2), 0.5), lambda x: x, k=1, bandwidth=1.0)
    memory.memorize(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]))
    found = memory.tune(torch.tensor([[0.1]]), torch.tensor([0]), ks=[2, 1], bandwidths=[1.0])  # right with either
    assert (found["k"], found["error"]) == (1, 0.0) and found["squared_error"] == pytest.approx(0, abs=1e-9)


def test_tune_searches_once_a_block() -> None:
    memory = classifier()
    memory.memorize(draw(61, 5), torch.randint(7, (61,)))
    embed, calls = memory.embed, []

    def counted(x: Tensor) -> Tensor:
        calls.append(len(x))
        return embed(x)

    memory.embed = counted
    memory.tune(draw(31, 5), torch.randint(7, (31,)), ks=[1, 2, 5], bandwidths=[0.1, 1.0])
    assert calls == [31]


def test_kNN_alone_is_ResMem_over_a_constant_prediction() -> None:
    """So kNN alone can be tuned like ResMem."""
    x, labels, queries = draw(11, 5), torch.randint(7, (11,)), draw(13, 5)
    memory = classifier()
    memory.memorize(x, labels)
    constant = ResMem(lambda x: torch.full((len(x), 7), 1 / 7), memory.embed, k=3, bandwidth=0.5)
    constant.memorize(x, labels)
    torch.testing.assert_close(constant(queries), memory.nearest(queries), atol=1e-6, rtol=0)
