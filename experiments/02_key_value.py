"""Chapter 02's claims: slots with learned addresses recall what a window has lost, as far as the slots go.

    python experiments/02_key_value.py      about four minutes on one core; a killed run goes on where it was

Associative recall: pairs of a key and its value, then all keys again in another order; say their values.  Transformers
of one layer, alike but for their memory, same data, same steps.

1. Pairs.  16 slots against attention over the newest 8 tokens, whose keys and values fill as many bytes.
2. Slots.  8 pairs, more and fewer slots.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from memcourse import Batch, CausalAttention, KeyValueMemory, MemoryTransformer, SequenceMemory, evaluate, fit, tasks
from memcourse.course import results

SLUG = "02_key_value"
SEEDS = [0, 1, 2]
WORDS: dict[str, Any] = {"n_keys": 16, "n_values": 16}
MODEL: dict[str, Any] = {"d_model": 32, "n_layers": 1}
PAIRS = [2, 4, 8, 16]
N_SLOTS, WINDOW, N_HEADS = 16, 8, 4  # 16 slots of 32 numbers; 8 keys and 8 values of 32 numbers
SLOTS, PAIRS_FOR_SLOTS = [4, 8, 16, 32, 64], 8
TRAINING: dict[str, Any] = {"batch_size": 32, "steps": 250, "learning_rate": 5e-3}
TEST: dict[str, Any] = {"batch_size": 512, "seed": 7}


def train(maker: Callable[[], SequenceMemory], n_pairs: int, seed: int) -> float:
    """Train on associative recall; the share of values said rightly for pairs that training has not seen."""
    torch.manual_seed(seed)
    task: dict[str, Any] = WORDS | {"n_pairs": n_pairs, "n_queries": n_pairs}
    batch_size, steps, rate = TRAINING.values()

    def batch(step: int) -> Batch:
        return tasks.associative_recall(**task, batch_size=batch_size, seed=1_000_003 * (seed + 1) + step)

    n_words = len(tasks.associative_recall_words(**WORDS))
    model = MemoryTransformer(n_words, MODEL["d_model"], MODEL["n_layers"], maker)
    fit(model, batch, steps=steps, learning_rate=rate, progress=False)
    return evaluate(model, [tasks.associative_recall(**task, **TEST)])["accuracy"]


def with_slots(n_slots: int, n_pairs: int, seed: int) -> float:
    return train(lambda: KeyValueMemory(MODEL["d_model"], n_slots), n_pairs, seed)


def with_window(window: int, n_pairs: int, seed: int) -> float:
    return train(lambda: CausalAttention(MODEL["d_model"], N_HEADS, window=window), n_pairs, seed)


def main() -> None:
    torch.set_num_threads(1)
    points: list[tuple[Callable[..., float], dict[str, Any]]]
    points = [(with_slots, {"n_slots": N_SLOTS, "n_pairs": n_pairs}) for n_pairs in PAIRS]
    points += [(with_window, {"window": WINDOW, "n_pairs": n_pairs}) for n_pairs in PAIRS]
    points += [(with_slots, {"n_slots": n_slots, "n_pairs": PAIRS_FOR_SLOTS}) for n_slots in SLOTS]
    settings = {"words": WORDS, "model": MODEL, "training": TRAINING, "test": TEST}
    bar = tqdm(total=len(points) * len(SEEDS), desc="models trained", unit="model")

    def run(compute: Callable[..., float], given: dict[str, Any], seed: int) -> float:
        key = {"run": compute.__name__, "seed": seed} | settings | given
        found = results.cached_run(SLUG, key, lambda: compute(seed=seed, **given), experiment_file=__file__)
        bar.update()
        return found

    per_point = [[run(compute, given, seed) for seed in SEEDS] for compute, given in points]
    bar.close()
    n = len(PAIRS)

    def curve(rows: list[list[float]]) -> dict[str, Any]:  # (points, seeds) -> a summary over (seeds, points)
        return results.summary(np.transpose(rows))

    found = {
        "pairs": {"n_pairs": PAIRS, "slots": curve(per_point[:n]), "window": curve(per_point[n : 2 * n])},
        "slots": {"n_slots": SLOTS} | curve(per_point[2 * n :]),
    }
    sizes = {"n_slots": N_SLOTS, "window": WINDOW, "n_heads": N_HEADS, "pairs": PAIRS, "slots": SLOTS}
    config = settings | sizes | {"pairs_for_slots": PAIRS_FOR_SLOTS}
    print("wrote", results.write(SLUG, found, config=config, seeds=SEEDS, experiment_file=__file__).name)


if __name__ == "__main__":
    main()
