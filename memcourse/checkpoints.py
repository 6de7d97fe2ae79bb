"""A training run on disk: everything that its next step depends on, in one file.

One safetensors file (no pickle) holds weights, buffers and the optimizer's moments as tensors, and as JSON in its
header the history, the state of every random generator and the settings.  It is written beside the old one
and renamed, so that a kill at any moment leaves the one or the other, whole, and never a mixture of two steps.
"""

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from memcourse.distributed import gather, place
from memcourse.memory import differences, require, write_safetensors

History = dict[str, list[float]]


class Checkpoint:
    """The file of one run: `save` writes model, optimizer, history and random generators, `load` puts them back.

    `settings` is whatever else decides the numbers (learning rate, number of steps ...), in a form that JSON holds;
    a file whose settings or model differ is refused.  With several processes all call, and the first one writes.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        history: History,
        settings: dict[str, Any],
    ) -> None:
        self.path = Path(path)
        self.model, self.optimizer, self.history = model, optimizer, history
        self.device = next(model.parameters()).device
        described = {
            "model": {"class": type(model).__name__, "config": getattr(model, "config", None)},
            "training": settings,
            "tensors": {name: f"{str(t.dtype)[6:]} {tuple(t.shape)}" for name, t in self._weights().items()},
        }
        self.description = json.loads(json.dumps(described, default=str))

    def save(self) -> None:
        """Write the run as it stands between two steps; the file before stays until this one is whole."""
        moments = {
            f"optimizer/{index}/{key}": moment
            for index, moments in self.optimizer.state_dict()["state"].items()
            for key, moment in moments.items()
        }
        weights = {f"model/{name}": weight.detach() for name, weight in self._weights().items()}
        tensors = {name: tensor.contiguous() for name, tensor in (weights | moments).items()}
        randomness = gather(_random_states(self.device))
        if place()[0] == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(
                tensors, self.path, self.description | {"history": self.history, "randomness": randomness}
            )

    def load(self) -> None:
        """Go on from the file, where there is one: afterwards the next step is what it would have been.

        Raises ValueError, naming what differs, for a run of another configuration, and for a file that is damaged
        or holds something else; nothing is changed then.
        """
        if place()[0] == 0:
            self._remove_leftovers()
        found: list[bool] = gather(self.path.exists())
        require(len(set(found)) == 1, "checkpoint", self.path, "where every process can see it")
        if not found[0]:
            return
        saved, tensors = self._read()
        self.history.update(saved["history"])
        with torch.no_grad():
            for name, weight in self._weights().items():
                weight.copy_(tensors[f"model/{name}"])
        state = self.optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, index, key = name.split("/")
                state["state"].setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(state)
        _set_random_states(saved["randomness"][place()[0]], self.device)

    def _weights(self) -> dict[str, Tensor]:
        """Parameters and buffers, each once even where two modules share it."""
        kept = self.model.state_dict()
        named = chain(self.model.named_parameters(), self.model.named_buffers())
        return {name: tensor for name, tensor in named if name in kept}

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            with safe_open(self.path, framework="pt") as file:
                saved = json.loads((file.metadata() or {}).get("config", "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise ValueError(
                f"checkpoint must be a file that fit has written, whole, got {self.path}: {error}"
            ) from None
        ours = isinstance(saved, dict) and self.description.keys() <= saved.keys()
        require(ours, "checkpoint", self.path, "a file that fit has written")
        for part, description in self.description.items():  # sizes are compared last: they follow from the rest
            differing = differences(description, saved[part])
            allowed = f"a file of this same run (or a new path); {'; '.join(differing)}"
            require(not differing, "checkpoint", self.path, allowed)
        return saved, tensors

    def _remove_leftovers(self) -> None:
        """What a kill in the middle of a write left beside the file."""
        for part in self.path.parent.glob("*.part"):
            if part.name.startswith(f"{self.path.name}."):
                part.unlink(missing_ok=True)


def _random_states(device: torch.device) -> dict[str, Any]:
    """The state of every generator that a model or its batches may draw from, in a form that JSON holds."""
    numpy_state: Any = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": [numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]],
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None,
    }


def _set_random_states(states: dict[str, Any], device: torch.device) -> None:
    version, key, gauss = states["python"]
    random.setstate((version, tuple(key), gauss))
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(torch.tensor(states["torch"], dtype=torch.uint8))
    if states["cuda"] is not None:
        torch.cuda.set_rng_state(torch.tensor(states["cuda"], dtype=torch.uint8), device)


@contextmanager
def finishing_the_step() -> Iterator[Callable[[], bool]]:
    """Inside, the first Ctrl-C is only noted (the function given says whether), so that a step is never cut in half.

    The second Ctrl-C interrupts at once.  Outside the main thread, where no signal arrives, nothing changes.
    """
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def note(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    listening = threading.current_thread() is threading.main_thread() and callable(before)
    if listening:
        signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        if listening:
            signal.signal(signal.SIGINT, before)
