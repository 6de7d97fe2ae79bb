"""Chapter 03's claims: gates that see the input can choose what to keep, and their bias says how long they try.

    python experiments/03_gated.py      about five minutes on one core; a killed run goes on where it was

1. Selective copying.  Four symbols lie at random places in a text of noise; say them in order.  Transformers of two
   layers, alike but for their memory, same data and steps: one whose gate sees the input, one with constant gates.
   Without noise the places are known, and both should do.  At the longest text, constant gates get twice the steps too.
2. The bias.  One symbol in 64 tokens.  One layer, whose gate starts at the same bias in every unit, or spread.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from memcourse import Batch, MemoryTransformer, ParallelGatedMemory, SequenceMemory, evaluate, fit, linear_scan, tasks
from memcourse.course import results
from memcourse.gated import GatedState, spread_over_time

SLUG = "03_gated"
SEEDS = [0, 1, 2]
COPY: dict[str, Any] = {"n_items": 4, "n_symbols": 8, "d_model": 64, "n_layers": 2, "steps": 300}
LENGTHS = [4, 8, 16, 32]
BIAS: dict[str, Any] = {"n_items": 1, "n_symbols": 8, "length": 64, "d_model": 32, "n_layers": 1, "steps": 150}
BIASES: list[float | str] = [-2.0, 0.0, 2.0, 4.0, 6.0, "spread"]
TRAINING: dict[str, Any] = {"batch_size": 32, "learning_rate": 1e-2}
TEST: dict[str, Any] = {"batch_size": 512, "seed": 7}


class ConstantGates(SequenceMemory):
    """ParallelGatedMemory with W_f = 0: h_t = f * h_{t-1} + (1 - f) * c_t, and f = sigmoid(b_f), learned, for all t."""

    level: ClassVar[str] = "mixer"

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.config = {"d_model": d_model}
        self.bias = nn.Parameter(spread_over_time(d_model))
        self.from_x = nn.Linear(d_model, d_model)
        self.output = nn.Linear(d_model, d_model, bias=False)

    def initial_state(self, batch_size: int, *, device: Any = None, dtype: Any = None) -> GatedState:
        return GatedState(torch.zeros(batch_size, self.config["d_model"], device=device, dtype=dtype))

    def advance(self, x: Tensor, state: GatedState) -> tuple[Tensor, GatedState]:
        candidate = self.from_x(x)  # (B, T, D)
        forget_gate = self.bias.sigmoid().expand_as(candidate)
        states = linear_scan(forget_gate, (1 - forget_gate) * candidate, state.memory)
        return self.output(states), GatedState(states[:, -1])


def with_bias(d_model: int, bias: float | str) -> ParallelGatedMemory:
    """The library's memory, whose forget gates start at `bias` in every unit ("spread": as the library has them)."""
    memory = ParallelGatedMemory(d_model)
    if not isinstance(bias, str):
        nn.init.constant_(memory.from_x.bias[:d_model], bias)
    return memory


def train(maker: Callable[[], SequenceMemory], setting: dict[str, Any], length: int, steps: int, seed: int) -> float:
    """Train on selective copying; the share of symbols said rightly on texts that training has not seen."""
    torch.manual_seed(seed)
    task = {"n_items": setting["n_items"], "n_symbols": setting["n_symbols"], "length": length}

    def batch(step: int) -> Batch:
        return tasks.selective_copy(**task, batch_size=TRAINING["batch_size"], seed=1_000_003 * (seed + 1) + step)

    n_words = len(tasks.selective_copy_words(n_symbols=setting["n_symbols"]))
    model = MemoryTransformer(n_words, setting["d_model"], setting["n_layers"], maker)
    fit(model, batch, steps=steps, learning_rate=TRAINING["learning_rate"], progress=False)
    return evaluate(model, [tasks.selective_copy(**task, **TEST)])["accuracy"]


def copy(memory: str, length: int, steps: int, seed: int) -> float:
    kind: Any = {"gates see the input": ParallelGatedMemory, "constant gates": ConstantGates}[memory]
    return train(lambda: kind(COPY["d_model"]), COPY, length, steps, seed)


def remember(bias: float | str, seed: int) -> float:
    return train(lambda: with_bias(BIAS["d_model"], bias), BIAS, BIAS["length"], BIAS["steps"], seed)


def main() -> None:
    torch.set_num_threads(1)
    arguments = [{"memory": m, "length": n} for m in ("gates see the input", "constant gates") for n in LENGTHS]
    points: list[tuple[str, Callable[..., float], dict[str, Any]]]
    points = [("copy", copy, argument | {"steps": COPY["steps"]}) for argument in arguments]
    longer = {"memory": "constant gates", "length": LENGTHS[-1], "steps": 2 * COPY["steps"]}
    points += [("copy", copy, longer)] + [("bias", remember, {"bias": bias}) for bias in BIASES]
    bar = tqdm(total=len(points) * len(SEEDS), desc="models trained", unit="model")

    def run(name: str, compute: Callable[..., float], given: dict[str, Any], seed: int) -> float:
        key = {"run": name, "seed": seed, "copy": COPY, "bias": BIAS, "training": TRAINING, "test": TEST} | given
        found = results.cached_run(SLUG, key, lambda: compute(seed=seed, **given), experiment_file=__file__)
        bar.update()
        return found

    per_point = [[run(*point, seed) for seed in SEEDS] for point in points]
    bar.close()
    n = len(LENGTHS)

    def curve(rows: list[list[float]]) -> dict[str, Any]:  # (points, seeds) -> a summary over (seeds, points)
        return results.summary(np.transpose(rows))

    found = {
        "copy": {
            "length": LENGTHS,
            "gates see the input": curve(per_point[:n]),
            "constant gates": curve(per_point[n : 2 * n]),
            "constant gates, twice the steps": results.summary(per_point[2 * n]),
        },
        "bias": {"bias": BIASES} | curve(per_point[2 * n + 1 :]),
    }
    config = {"copy": COPY, "lengths": LENGTHS, "bias": BIAS, "biases": BIASES, "training": TRAINING, "test": TEST}
    print("wrote", results.write(SLUG, found, config=config, seeds=SEEDS, experiment_file=__file__).name)


if __name__ == "__main__":
    main()
