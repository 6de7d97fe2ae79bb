"""Wrong arguments of `fit`, and checkpoints of something else: refused by name, and the file stays as it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from memcourse import Batch, CausalAttention, MemoryTransformer, fit

TOKENS = torch.arange(12).view(2, 6) % 7


def model(d_model: int = 8) -> MemoryTransformer:
    return MemoryTransformer(7, d_model, 1, lambda: CausalAttention(d_model, 2))


def wishing(wish: dict[str, dict[str, float]]) -> MemoryTransformer:
    wisher = model()
    wisher.layers[0].optimizer_options = wish  # type: ignore[assignment]
    return wisher


def train(trained: nn.Module, **changed: Any) -> dict[str, list[float]]:
    return fit(trained, lambda _: Batch(TOKENS, TOKENS), **{"steps": 3, "progress": False} | changed)


REFUSED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "decay below 0": (lambda: train(model(), weight_decay=-0.1), ["weight_decay", "-0.1", "0 or greater"]),
    "clip of 0": (lambda: train(model(), clip=0.0), ["clip", "0.0", "greater than 0"]),
    "never saved": (lambda: train(model(), save_every=0), ["save_every", "0", "at least 1"]),
    "a wish about nothing": (
        lambda: train(wishing({"gate": {"rate": 2.0}})),
        ["MixerBlock.optimizer_options", "gate", "norm.weight"],
    ),
    "a wish for something else": (
        lambda: train(wishing({"norm.weight": {"momentum": 2.0}})),
        ["MixerBlock.optimizer_options", "momentum", "rate and weight_decay"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case: str) -> None:
    call, words = REFUSED[case]
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    assert message.startswith(f"{words[0]} must be ")
    assert all(word in message for word in words)


OTHER_RUNS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "more steps": (model, {"steps": 4}, "steps: 4 here, 3 in the file"),
    "another rate": (model, {"learning_rate": 0.01}, "learning_rate: 0.01 here, 0.003 in the file"),
    "another decay": (model, {"weight_decay": 0.0}, "weight_decay: 0.0 here, 0.01 in the file"),
    "another clip": (model, {"clip": 2.0}, "clip: 2.0 here, 1.0 in the file"),
    "another precision": (model, {"bf16": True}, "bf16: True here, False in the file"),
    "another width": (lambda: model(16), {}, "config.d_model: 16 here, 8 in the file"),
    "another dtype": (
        lambda: model().double(),
        {},
        "embedding.weight: float64 (7, 8) here, float32 (7, 8) in the file",
    ),
    "another model": (lambda: nn.Embedding(7, 7), {}, "class: Embedding here, MemoryTransformer in the file"),
    "another group": (lambda: wishing({"norm.weight": {"rate": 9.0}}), {}, "parameter groups: "),
}


@pytest.mark.parametrize("case", OTHER_RUNS)
def test_a_checkpoint_of_another_run_is_refused_and_nothing_changes(case: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    train(model(), checkpoint=checkpoint)
    saved = checkpoint.read_bytes()
    make, changed, words = OTHER_RUNS[case]
    other = make()
    before = {name: weight.clone() for name, weight in other.state_dict().items()}
    with pytest.raises(ValueError) as error:
        train(other, checkpoint=checkpoint, **changed)
    message = str(error.value)
    assert message.startswith("checkpoint must be a file of this same run") and str(checkpoint) in message
    assert words in message
    assert checkpoint.read_bytes() == saved
    assert all(torch.equal(weight, before[name]) for name, weight in other.state_dict().items())


def test_how_often_it_is_saved_is_no_part_of_the_run(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    history = train(model(), checkpoint=checkpoint)
    assert train(model(), checkpoint=checkpoint, save_every=1) == history


def truncated(path: Path) -> None:
    train(model(), checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated": truncated,
    "empty": Path.touch,
    "a text": lambda path: path.write_text("not a checkpoint, but a text that is long enough to look like one"),
    "a folder": Path.mkdir,
    "weights alone": lambda path: model().save(path),
    "a pickle": lambda path: torch.save(model().state_dict(), path),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_file_that_is_no_checkpoint_is_refused_and_stays(case: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.safetensors"
    DAMAGE[case](checkpoint)
    before = checkpoint.read_bytes() if checkpoint.is_file() else None
    with pytest.raises(ValueError, match="^checkpoint must be a file that fit has written.*run.safetensors"):
        train(model(), checkpoint=checkpoint)
    assert before is None or checkpoint.read_bytes() == before
