"""One process, or several that train one model together: what they have to agree on.

Start them with `torchrun --nproc-per-node 2 train.py`; each holds the whole model and reads its share of every batch.
Without torchrun there is one process, and every function here answers at once.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def join(device: torch.device) -> None:
    """Join the processes that torchrun has started, unless the script did so already."""
    if dist.is_available() and dist.is_torchelastic_launched() and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if place()[1] > 1 and device.type == "cuda":
        torch.cuda.set_device(device)


def place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    joined = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if joined else (0, 1)


def total(device: torch.device, *numbers: int | float) -> list[float]:
    """The sum of each number over all processes, in float64."""
    if place()[1] == 1:
        return [float(number) for number in numbers]
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def gather(value: Any) -> list[Any]:
    """The value of every process, in the order of their numbers; no process goes on before all have given theirs."""
    if place()[1] == 1:
        return [value]
    values = [None] * place()[1]
    dist.all_gather_object(values, value)
    return values


def averaging(module: nn.Module) -> nn.Module:
    """The module, with gradients that are the mean over all processes.

    A parameter that the loss does not reach is left alone, as in one process: memories have some when a batch is
    shorter than a segment.
    """
    if place()[1] == 1:
        return module
    return nn.parallel.DistributedDataParallel(module, find_unused_parameters=True)
