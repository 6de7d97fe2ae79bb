"""A language model with any memory of the library: it learns, generates, is saved and opened, compiles, trains in bf16.

With two processes (slow) it has the curve of one.  The two are this file, started by torchrun.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from memcourse import (
    Batch,
    CausalAttention,
    FeedbackBlock,
    GatedMemory,
    InfiniAttention,
    KeyValueMemory,
    LM2Block,
    MemorizingAttention,
    MemoryTransformer,
    ParallelGatedMemory,
    RecurrentMemoryTransformer,
    fit,
    open_model,
)
from memcourse.distributed import place
from memcourse.memory import stream

VOCAB, D, SEGMENT = 13, 12, 4
STEPS = 8

MEMORIES: dict[str, Any] = {
    "window": lambda: CausalAttention(D, 2, window=5),
    "gated": lambda: GatedMemory(D),
    "gated by the input alone": lambda: ParallelGatedMemory(D),
    "key-value": lambda: KeyValueMemory(D, 5),
    "LM2": lambda: LM2Block(D, 2, 3, segment_len=SEGMENT, writes="both"),
    "infini, linear": lambda: InfiniAttention(D, 2, segment_len=SEGMENT),
    "infini, delta": lambda: InfiniAttention(D, 2, segment_len=SEGMENT, rule="delta"),
    "memorizing": lambda: MemorizingAttention(D, 2, segment_len=SEGMENT, capacity=6, k=2),
    "feedback": lambda: FeedbackBlock(D, 2, block_len=SEGMENT, n_feedback=2, n_past_blocks=1),
    "hybrid": [lambda: ParallelGatedMemory(D), lambda: CausalAttention(D, 2)],
}
MODELS = [*MEMORIES, "recurrent memory"]


def make(name: str) -> Any:
    torch.manual_seed(3)
    if name == "recurrent memory":
        return RecurrentMemoryTransformer(VOCAB, D, 2, 2, n_memory=2, segment_len=SEGMENT)
    return MemoryTransformer(VOCAB, D, 2, MEMORIES[name])


def tokens(rows: int, time: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(VOCAB, (rows, time), generator=torch.Generator().manual_seed(seed))


def batch(step: int) -> Batch:
    """Four segments less one token, the same few rows again and again."""
    text = tokens(5, 4 * SEGMENT, seed=step % 2)
    return Batch(text[:, :-1], text[:, 1:])


def train(model: Any, **options: Any) -> list[float]:
    return fit(model, batch, steps=STEPS, learning_rate=1e-2, progress=False, **options)["loss"]


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_it_trains(name: str, bf16: bool) -> None:
    model = make(name)
    losses = train(model, bf16=bf16)
    assert sum(losses[-2:]) < sum(losses[:2]) - 0.02
    assert all(weight.dtype == torch.float32 and weight.isfinite().all() for weight in model.state_dict().values())


@pytest.mark.parametrize("name", MODELS)
def test_it_generates_from_prompts_of_any_length_what_whole_forwards_say(name: str) -> None:
    model = make(name).double()
    with torch.no_grad():
        for parameter in model.parameters():  # a new model says nearly the same after every context
            parameter.mul_(3.0) if parameter.ndim == 2 else None
        for length in (1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 3 * SEGMENT + 2):
            prompt = tokens(2, length)
            expected = prompt
            for _ in range(3):
                expected = torch.cat([expected, model(expected)[0][:, -1:].argmax(-1)], dim=1)
            assert torch.equal(model.generate(prompt, 3), expected)


@pytest.mark.parametrize("name", MODELS)
def test_it_streams_after_training(name: str) -> None:
    model, text = make(name), tokens(2, 3 * SEGMENT + 2)
    train(model)
    with torch.no_grad():
        streamed = torch.cat([logits for logits, _ in stream(model, text, 3)], dim=1)
        torch.testing.assert_close(streamed, model(text)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_saved_and_opened(name: str, tmp_path: Path) -> None:
    model, text = make(name), tokens(2, 3 * SEGMENT + 2)
    model.save(tmp_path / "model.safetensors")
    opened = open_model(tmp_path / "model.safetensors")
    assert type(opened) is type(model) and opened.config == model.config
    assert torch.equal(opened(text)[0], model(text)[0])


def compile_and_compare(name: str) -> dict[str, Any]:
    """How far a model that dynamo has traced is from itself, whole and token by token, and into how many graphs."""
    from torch._dynamo.testing import CompileCounter  # runs the graphs as they are: no C++ compiler is needed

    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64  # a graph for each place in a segment, at most: told by "later graphs"
    counter, model, text = CompileCounter(), make(name).double(), tokens(2, 3 * SEGMENT + 2)
    fast = torch.compile(model, backend=counter, fullgraph=True)
    expected = model(text)[0]
    logits = fast(text)[0]
    logits.square().sum().backward()
    state, streamed = None, []
    for token in text.split(1, dim=1):
        piece, state = fast(token, state)
        streamed.append(piece)
    graphs = []
    for _ in range(2):  # the same places in later segments
        graphs.append(counter.frame_count)
        for token in text.split(1, dim=1):
            _, state = fast(token, state)
    return {
        "whole": (logits - expected).abs().max().item(),
        "streamed": (torch.cat(streamed, dim=1) - expected).abs().max().item(),
        "graphs": counter.frame_count,
        "later graphs": counter.frame_count - graphs[-1],
        "without gradient": [weight for weight, parameter in model.named_parameters() if parameter.grad is None],
    }


def compile_all() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in MODELS:
        try:
            found[name] = compile_and_compare(name)
        except Exception as error:  # told by the test of this model
            found[name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In a process of its own: dynamo cannot trace the shape checks that the tests run under."""
    path = tmp_path_factory.mktemp("compiled") / "found.json"
    command = [sys.executable, __file__, "compile", str(path)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_it_compiles_to_whole_graphs_with_the_same_numbers(name: str, compiled: dict[str, Any]) -> None:
    found = compiled[name]
    assert "error" not in found, found["error"]
    assert found["whole"] <= 1e-9 and found["streamed"] <= 1e-9 and not found["without gradient"]
    # of 43 chunks
    assert found["graphs"] <= 4 * SEGMENT, "a few graphs for each place in a segment, not one for each token"
    assert found["later graphs"] <= 2, "a stream that goes on needs few new ones"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_have_the_curve_of_one(name: str, two: list[dict[str, Any]]) -> None:
    expected = train(make(name).double())
    for found in two:
        assert found[name] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The curves of all models as two processes found them."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, __file__, "train", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(2)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "compile":
        Path(sys.argv[2]).write_text(json.dumps(compile_all()))
    else:
        curves = {name: train(make(name).double()) for name in MODELS}
        (Path(sys.argv[2]) / f"{place()[0]}.json").write_text(json.dumps(curves))
