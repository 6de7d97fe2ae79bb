"""Chapter 08's arena: every memory of the course on the same tasks, with the same parameters, steps and seeds.

    python experiments/08_transformer_fam.py      about 80 minutes on one core; a killed run goes on

Who competes, on what and for how long stands in memcourse/course/arena.py.  The synthetic tasks come first, and what
they found is written before four of the contestants meet real text (bAbI's facts scattered in books, and books).
"""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from memcourse.course import arena, arena_text, results

SLUG = "08_transformer_fam"
SEEDS = [0, 1, 2]
REAL_TEXT = ("babi", "books")  # tasks for the four below
FINALISTS = ("window", "full attention", "RMT", "Infini delta")
SECOND_TRIES: tuple[dict[str, Any], ...] = (  # who did badly at a task's learning rate: a rate for them alone
    {"task": "recall", "contestant": "RMT", "learning_rate": 2e-3},
    {"task": "copy", "contestant": "RMT", "learning_rate": 2e-3},
    {"task": "copy", "contestant": "FAM", "learning_rate": 2e-3},
)
ROUNDS = 15  # of the measurement of costs


def run(task: str, contestant: str, seed: int, **changed: Any) -> dict[str, Any]:
    """One competition, or what it found before; a change to the arena's text makes it run anew."""
    texts = "".join(Path(module.__file__ or "").read_text(encoding="utf-8") for module in (arena, arena_text))
    arena_is = hashlib.sha256(texts.encode()).hexdigest()
    key = {"task": task, "contestant": contestant, "seed": seed, "arena": arena_is} | changed
    compete = partial(arena.compete, contestant, task, seed, **changed)
    return results.cached_run(SLUG, key, compete, experiment_file=__file__)


def summary(per_seed: list[dict[str, Any]]) -> dict[str, Any]:
    """What one contestant reached on one task: (seeds, places) of accuracy and nats, and the course of training."""
    parts = {name: np.array([found[name] for found in per_seed]) for name in ("accuracy", "nats", "loss")}
    means = {"loss": parts["loss"].mean(axis=0).round(4).tolist(), "seconds": round(seconds_of(per_seed), 1)}
    return {name: results.summary(parts[name].round(4)) for name in ("accuracy", "nats")} | means


def seconds_of(per_seed: list[dict[str, Any]]) -> float:
    return float(np.mean([found["seconds"] for found in per_seed]))


def write(found: dict[str, Any]) -> None:
    config = {
        "segment": arena.SEGMENT,
        "layers": arena.LAYERS,
        "heads": arena.HEADS,
        "batch_size": arena.BATCH_SIZE,
        "second_tries": list(SECOND_TRIES),
        "contestants": list(arena.CONTESTANTS),
        "finalists": list(FINALISTS),
        "steps": {name: task.steps for name, task in arena.TASKS.items()},
        "learning_rate": {name: task.learning_rate for name, task in arena.TASKS.items()},
    }
    print("wrote", results.write(SLUG, found, config=config, seeds=SEEDS, experiment_file=__file__).name)


def collect(name: str) -> dict[str, Any]:
    """Everybody who competes on a task, with all seeds."""
    contestants = FINALISTS if name in REAL_TEXT else list(arena.CONTESTANTS)
    bar = tqdm(contestants, desc=name, unit="contestant")
    table = {contestant: summary([run(name, contestant, seed) for seed in SEEDS]) for contestant in bar}
    task = arena.TASKS[name]
    rules = {"places": task.places, "axis": task.axis, "trained": task.trained, "chance": task.chance}
    return rules | {"contestants": table}


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"parameters": {name: arena.n_parameters(name) for name in arena.CONTESTANTS}}
    found["tasks"] = {name: collect(name) for name in arena.TASKS if name not in REAL_TEXT}
    found["second_tries"] = [
        changed | summary([run(seed=seed, **changed) for seed in SEEDS]) for changed in SECOND_TRIES
    ]
    measured = arena.costs(list(arena.CONTESTANTS), rounds=ROUNDS)
    found["costs"] = dict(zip(arena.CONTESTANTS, measured, strict=True))
    write(found)
    found["tasks"] |= {name: collect(name) for name in REAL_TEXT}
    write(found)


if __name__ == "__main__":
    main()
