"""What an answer does to torch while it runs: how often it calls it, and how large a tensor it makes.

An answer that is graded runs in a process of its own, and is measured there: a stand-in has a `measured` of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class LargestTensor(TorchDispatchMode):
    """How many numbers the largest tensor holds that is made while this is entered; a view counts what lies behind."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.found = max(self.found, tensor.untyped_storage().nbytes() // tensor.element_size())
        return made


class TorchCalls(TorchFunctionMode):
    """How often torch is called while this is entered, apart from what `uncounted` functions do."""

    inside_uncounted = 0

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found += not TorchCalls.inside_uncounted
        return function(*args, **(kwargs or {}))


METERS: dict[str, Callable[[], Any]] = {"largest tensor": LargestTensor, "torch calls": TorchCalls}


def measured(meter: str, answer: Any, *case: Any) -> int:
    """What `meter` finds while answer(*case) runs."""
    if hasattr(type(answer), "measured_there"):
        return answer.measured_there(meter, *case)
    with METERS[meter]() as reading:
        answer(*case)
    return reading.found


def uncounted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose calls of torch are not the answer's."""

    def call(*arguments: Any, **named: Any) -> Any:
        TorchCalls.inside_uncounted += 1
        try:
            return function(*arguments, **named)
        finally:
            TorchCalls.inside_uncounted -= 1

    return call
