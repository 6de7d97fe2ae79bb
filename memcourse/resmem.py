"""ResMem: learn what you can, memorise the rest.

residual    r_i = y_i - f(x_i)                          f the trained model, (x_i, y_i) what it was trained on
weights     w_i = exp(-d_i / bandwidth) / sum_j ...     d_i = |z - z_i|, to the k nearest embeddings
prediction  f(x) + sum_i w_i r_i                        a sum: the correction has no weight of its own
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from memcourse.datastore import Datastore
from memcourse.memory import require

BLOCK = 1024  # examples that are predicted and embedded at once
BLOCK_BYTES = 64 * 2**20  # of neighbours' values that are in memory at once


@runtime_checkable
class Inputs(Protocol):
    """A tensor, or what reads like one: examples by slices."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


def residual_read(
    distances: Float[Tensor, "... k"], residuals: Float[Tensor, "... k n_outputs"], *, bandwidth: float
) -> Float[Tensor, "... n_outputs"]:
    """The neighbours' mean residual: sum_i w_i r_i with w_i = exp(-d_i / bandwidth), divided by their sum.

    distances (..., k), not squared; residuals (..., k, C) -> (..., C).  A neighbour that is missing (distance inf)
    weighs nothing; where all are, or k is 0, the correction is 0.  However far all neighbours are, the weights sum
    to 1.  A bandwidth of inf weighs all alike.
    Raises ValueError for shapes that do not fit, a distance of nan, a bandwidth that is not above 0.
    Source: Yang et al., ResMem, NeurIPS 2023, arXiv:2302.01576.
    """
    fits = residuals.shape[:-1] == distances.shape
    require(fits, "residuals", tuple(residuals.shape), f"a vector for each distance, {(*distances.shape, 'n_outputs')}")
    require(bandwidth > 0, "bandwidth", bandwidth, "above 0")
    require(not distances.isnan().any(), "distances", "nan", "numbers, or inf for a neighbour that is missing")
    if distances.shape[-1] == 0:
        return residuals.sum(dim=-2)  # (..., C) of zeros
    missing = distances == torch.inf
    beyond = distances - distances.amin(dim=-1, keepdim=True)  # the nearest weighs exp(0) = 1: no 0 / 0 far away
    weights = (-beyond / bandwidth).exp().masked_fill(missing, 0.0)  # (..., k)
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp_min(1.0)  # below 1 only where all are missing
    return (weights[..., None, :] @ residuals)[..., 0, :]


class ResMem:
    """A model's predictions, corrected by what it got wrong nearby.

    predict(x) -> (n,) or (n, C) and embed(x) -> (n, d) are modules or functions of n examples; modules in the mode the
    caller put them in (`.eval()` where they hold dropout or batch norm).  They are called on blocks of examples,
    without gradient.  With integer y, predict must give probabilities (n, C), made the same way for memorising and
    for predicting; the corrected ones may leave [0, 1], and their argmax is the prediction.

    `datastore` holds, for each example, its embedding and, as float32, its residual and its target; `k` and
    `bandwidth` may be changed at any time, by `tune` or by hand.  With fewer than k examples, all are read.  Before
    the first `memorize` there is nothing to correct by: the prediction is predict's.  `index` as in `Datastore`.
    Raises ValueError for a k below 1 and a bandwidth that is not above 0.
    Source: Yang, Lukasik, Nagarajan, Li, Rawat, Zaheer, Menon, Kumar, ResMem: Learn what you can and memorize the
    rest, NeurIPS 2023, arXiv:2302.01576.
    """

    def __init__(
        self,
        predict: Callable[[Any], Tensor],
        embed: Callable[[Any], Tensor],
        *,
        k: int,
        bandwidth: float,
        index: str = "exact",
    ) -> None:
        _check(k, bandwidth)
        self.predict, self.embed, self.k, self.bandwidth, self.index = predict, embed, k, bandwidth, index
        self.datastore: Datastore | None = None  # made by the first memorize, which knows the embedding's width

    def __len__(self) -> int:
        return 0 if self.datastore is None else len(self.datastore)

    @torch.no_grad()
    def memorize(self, x: Inputs, y: Tensor, *, document: str | None = None) -> None:
        """Add examples: x (n, ...); y float (n,) or (n, C) to be met, or integer labels (n,).

        All are added or, where a ValueError is raised, none: for shapes that do not fit, labels outside the classes,
        predictions that are not finite, or with labels not probabilities (logits, mostly).  `document` names them,
        for `datastore.delete`.
        """
        require(len(x) == len(y), "y", f"{len(y)} targets", f"one for each of the {len(x)} examples of x")
        if len(x) == 0:
            return
        keys, values = [], []
        for rows in _blocks(len(x), BLOCK):
            prediction, key = _rows(self.predict, x[rows], "predict"), _rows(self.embed, x[rows], "embed")
            require(key.ndim == 2, "embed's output", tuple(key.shape), "of shape (n, d)")
            target = _target(y[rows].to(prediction.device), prediction)
            value = torch.stack([target - prediction, target], dim=1).float()  # (n, 2) or (n, 2, C)
            require(bool(value.isfinite().all()), "predict's output and y", "inf or nan", "finite")
            keys.append(key.float())
            values.append(value)
        made, stored = torch.cat(keys), torch.cat(values)
        if self.datastore is None:
            self.datastore = Datastore(made.shape[1], index=self.index, device=str(made.device))
        self.datastore.add(made, stored, document=document)

    @torch.no_grad()
    def __call__(self, x: Inputs) -> Tensor:
        """predict(x) plus the residuals of its neighbours: (n,) or (n, C).  Raises ValueError as `memorize` does."""
        if len(self) == 0:
            return self.predict(x)
        parts = []
        for rows in _blocks(len(x), self._block(self.k)):
            prediction = _rows(self.predict, x[rows], "predict")
            correction = self._read(x[rows])[:, 0].to(prediction.dtype)
            require(prediction.shape == correction.shape, "predict's output", tuple(prediction.shape), "as memorised")
            parts.append(prediction + correction)
        return torch.cat(parts)

    @torch.no_grad()
    def nearest(self, x: Inputs) -> Tensor:
        """k nearest neighbours alone, without the model: the same weights, over targets.  (n,) or (n, C).

        What ResMem must be compared with: this may do all the work.  Raises ValueError on an empty memory.
        """
        require(len(self) > 0, "the memory", "0 examples", "filled by memorize first")
        return torch.cat([self._read(x[rows])[:, 1] for rows in _blocks(len(x), self._block(self.k))])

    @torch.no_grad()
    def tune(self, x: Inputs, y: Tensor, *, ks: Sequence[int], bandwidths: Sequence[float]) -> dict[str, Any]:
        """Choose k and bandwidth on held-out examples, which must not be in the memory: they would find themselves.

        Every pair of the grid is tried on one search with the largest k.  For float y the lowest mean squared error
        wins; for labels the lowest share of errors, of equals the lowest squared error.  Sets `k` and `bandwidth` and
        returns them with that "error" and "squared_error".
        Raises ValueError on an empty memory, an empty grid or no examples, and as `memorize` does.
        """
        require(len(self) > 0, "the memory", "0 examples", "filled by memorize first")
        require(len(x) == len(y) > 0, "x and y", f"of lengths {len(x)} and {len(y)}", "of one length, not empty")
        grid = [(k, bandwidth) for k in ks for bandwidth in bandwidths]
        require(bool(grid), "ks and bandwidths", f"{list(ks)} and {list(bandwidths)}", "at least one of each")
        for pair in grid:
            _check(*pair)
        classes = not y.is_floating_point()
        sums = torch.zeros(len(grid), 2, dtype=torch.float64)  # errors, squared errors
        for rows in _blocks(len(x), self._block(max(ks))):
            prediction = _rows(self.predict, x[rows], "predict")
            target = _target(y[rows].to(prediction.device), prediction)
            distances, values = self._neighbors(x[rows], max(ks))
            residuals = values[:, :, 0].reshape(*distances.shape, -1)  # (n, k, C)
            for row, (k, bandwidth) in enumerate(grid):
                correction = residual_read(distances[:, :k], residuals[:, :k], bandwidth=bandwidth)
                corrected = prediction + correction.reshape(prediction.shape).to(prediction.dtype)
                squared = (corrected - target).square().sum().double()
                wrong = (corrected.argmax(dim=-1) != target.argmax(dim=-1)).sum().double() if classes else squared
                sums[row] += torch.stack([wrong, squared]).cpu()
        means = (sums / len(x)).tolist()
        best = min(range(len(grid)), key=lambda row: means[row])
        self.k, self.bandwidth = grid[best]
        error, squared_error = means[best]
        return {"k": self.k, "bandwidth": self.bandwidth, "error": error, "squared_error": squared_error}

    def _neighbors(self, x: Any, k: int) -> tuple[Tensor, Tensor]:
        """Distances (n, k), and residuals and targets (n, k, 2) or (n, k, 2, C)."""
        assert self.datastore is not None
        found = self.datastore.search(_rows(self.embed, x, "embed"), k)
        return found.distances.sqrt(), found.values  # the datastore's are squared

    def _read(self, x: Any) -> Tensor:
        """Mean residual and mean target of the neighbours: (n, 2) or (n, 2, C)."""
        distances, values = self._neighbors(x, self.k)
        mean = residual_read(distances, values.flatten(2), bandwidth=self.bandwidth)  # (n, 2C)
        return mean.reshape(len(values), *values.shape[2:])

    def _block(self, k: int) -> int:
        """How many queries' neighbours fit into BLOCK_BYTES."""
        assert self.datastore is not None
        n_numbers = math.prod(self.datastore.describe()["value_shape"])  # float32, residual and target
        return max(1, min(BLOCK, BLOCK_BYTES // (4 * n_numbers * min(k, len(self)))))


def _check(k: int, bandwidth: float) -> None:
    require(k >= 1, "k", k, "at least 1")
    require(bandwidth > 0, "bandwidth", bandwidth, "above 0")


def _blocks(n: int, block: int) -> Iterator[slice]:
    """Slices that cover n examples; one that is empty where there are none."""
    return (slice(start, start + block) for start in range(0, max(n, 1), block))


def _rows(function: Callable[[Any], Tensor], x: Any, name: str) -> Tensor:
    output = function(x)
    fits = output.ndim in (1, 2) and len(output) == len(x)
    require(fits, f"{name}'s output", tuple(output.shape), f"(n,) or (n, width) for the n={len(x)} examples")
    return output


def _target(y: Tensor, prediction: Tensor) -> Tensor:
    """What the prediction should have been, in its shape: y itself, or the one-hot vectors of labels."""
    if y.is_floating_point():
        same = y.shape == prediction.shape  # (n, 1) - (n,) would be (n, n)
        require(same, "y", f"of shape {tuple(y.shape)}", f"of the shape of predict's output, {tuple(prediction.shape)}")
        return y
    labels = y.ndim == 1 and y.dtype != torch.bool
    require(labels, "y", f"{y.dtype} of shape {tuple(y.shape)}", "float targets, or integer labels of shape (n,)")
    require(prediction.ndim == 2, "predict's output", tuple(prediction.shape), "probabilities (n, C) for integer y")
    require(bool(prediction.isfinite().all()), "predict's output", "inf or nan", "finite")
    low, sums = prediction.min().item(), prediction.float().sum(dim=-1)
    probabilities = low >= 0 and bool(((sums - 1).abs() < 0.01).all())  # 0.01: softmax in bfloat16
    found = f"rows from {low:.4g} up that sum to {sums.min().item():.4g} ... {sums.max().item():.4g} (logits?)"
    require(probabilities, "predict's output", found, "probabilities for integer y, at least 0, rows summing to 1")
    n_classes = prediction.shape[1]
    inside = bool(((y >= 0) & (y < n_classes)).all())
    require(inside, "y", f"{int(y.min())} ... {int(y.max())}", f"labels of predict's classes, 0 to {n_classes - 1}")
    return F.one_hot(y.long(), n_classes).to(prediction.dtype)
