"""Two processes train one model: the loss curve is that of one process with the same global batch.

The two are this file, started by torchrun; what each of them found comes back as JSON.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memcourse import Batch, CausalAttention, MemoryTransformer, fit
from memcourse.distributed import place

STEPS = 12


def batch(step: int) -> Batch:
    """Five rows, so that the shares differ; what is scored is spread unevenly, in some steps all in one share."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(7, (5, 6), generator=generator)
    scored = torch.rand(5, 6, generator=generator) < torch.linspace(0, 1, 5)[:, None]
    scored[:3] &= step % 3 > 0
    return Batch(tokens, tokens.cumsum(dim=1).remainder(7).where(scored, -100))


class Idle(nn.Module):
    """A model with a part that the loss does not always reach, as a memory has before its first segment is full."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = MemoryTransformer(7, 8, 1, lambda: CausalAttention(8, 2))
        self.sometimes = nn.Linear(7, 7, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Any]:
        logits, state = self.model(tokens)
        extra = self.sometimes(logits)  # in the state, as a write that no later token reads
        rows = tokens[:, 0] == 3
        return logits + extra * rows[:, None, None] if rows.any() else logits, (state, extra)


def transformer(dtype: torch.dtype) -> MemoryTransformer:
    torch.manual_seed(place()[0])  # the weights of the first process count
    return MemoryTransformer(7, 8, 2, lambda: CausalAttention(8, 2)).to(dtype)


def train(model: nn.Module, batches: Callable[[int], Batch] = batch, **options: Any) -> dict[str, list[float]]:
    return fit(model, batches, steps=STEPS, progress=False, **options)


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except (Exception, KeyboardInterrupt) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def once(step: int, action: Callable[[], object], number: int = 1) -> Callable[[int], Batch]:
    """The batches, with something that happens at a step in one of the processes."""

    def batches(now: int) -> Batch:
        if now == step and place()[0] == number:
            action()
        return batch(now)

    return batches


def curves() -> dict[str, Any]:
    """What one process and two should agree on."""
    model = transformer(torch.float64)
    return {
        "float64": train(model),
        "float64, trained on": train(model),
        "float32": train(transformer(torch.float32)),
        "a part that is not always reached": train(Idle().double()),
        "weights": {name: weight.tolist() for name, weight in model.state_dict().items()},
    }


def stops(folder: Path) -> dict[str, Any]:
    """What only two can show."""
    checkpoint = folder / "run.safetensors"
    model = transformer(torch.float64)

    def poison() -> None:
        nn.init.constant_(model.embedding.weight, torch.nan)

    return {
        "not finite in one": error_of(lambda: train(model, once(3, poison))),
        "too few rows": error_of(lambda: train(model, lambda step: Batch(*(part[:1] for part in batch(step))))),
        "nothing scored": error_of(lambda: train(model, lambda _: Batch(batch(0).tokens, batch(0).tokens * 0 - 100))),
        "ctrl-c in one": error_of(
            lambda: train(
                transformer(torch.float64),
                once(5, lambda: os.kill(os.getpid(), signal.SIGINT)),
                checkpoint=checkpoint,
                save_every=4,
            )
        ),
        "resumed": train(transformer(torch.float64), checkpoint=checkpoint, save_every=4),
        "a checkpoint that one cannot see": error_of(
            lambda: train(model, checkpoint=checkpoint if place()[0] else folder / "elsewhere")
        ),
    }


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    torch.set_num_threads(1)
    return curves()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    done = subprocess.run(
        [*command, str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(2)]


Two = list[dict[str, Any]]


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [
        ("float64", 1e-9),
        ("float64, trained on", 1e-9),
        ("float32", 1e-5),
        ("a part that is not always reached", 1e-9),
    ],
)
def test_the_curve_is_that_of_one_process(one: dict[str, Any], two: Two, case: str, tolerance: float) -> None:
    for found in two:
        for name, numbers in one[case].items():
            assert found[case][name] == pytest.approx(numbers, rel=tolerance, abs=tolerance)
    assert len(one[case]["loss"]) == STEPS


def test_both_hold_the_same_weights(one: dict[str, Any], two: Two) -> None:
    assert two[0]["weights"] == two[1]["weights"]
    for name, weight in one["weights"].items():
        torch.testing.assert_close(torch.tensor(two[0]["weights"][name]), torch.tensor(weight), rtol=1e-6, atol=1e-6)


def test_a_loss_that_is_not_finite_in_one_stops_both(two: Two) -> None:
    assert all(found["not finite in one"].startswith("FloatingPointError: the loss is nan at step 3") for found in two)


def test_bad_batches_are_refused_by_both(two: Two) -> None:
    for found in two:
        assert "batches must be of one row per process at least, 2, got 1 rows" in found["too few rows"]
        assert "ValueError: targets must be scored in one place at least" in found["nothing scored"]
        assert "checkpoint must be where every process can see it" in found["a checkpoint that one cannot see"]


def test_ctrl_c_in_one_stops_both_after_the_same_step_and_loses_nothing(one: dict[str, Any], two: Two) -> None:
    for found in two:
        assert found["ctrl-c in one"].startswith("KeyboardInterrupt: stopped after 6 of 12 steps")
        assert found["resumed"] == found["float64"]  # to the last bit


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = curves() | stops(Path(sys.argv[1]))
    (Path(sys.argv[1]) / f"{place()[0]}.json").write_text(json.dumps(found))
