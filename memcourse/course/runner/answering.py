"""The untrusted end: it builds the answer from its definitions and carries out what the grader asks of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from .building import build
from .meters import METERS, uncounted
from .peer import Parcel, Peer
from .portable import Recipe, remake
from .wire import Connection


class Answering(Peer):
    """What it hands out: functions, classes, modules, objects.  What it is given: callbacks, and modules by value."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.questions |= {"define": self.serve_define, "get": self.serve_get}
        self.given: dict[int, tuple[Any, int]] = {}  # id of what stands for a thing of the grader's -> (it, its number)
        self.parameters: dict[int, tuple[Any, Any]] = {}  # id of a parameter of such a module -> (it, what it is)

    def serve_define(self, body: dict[str, Any], tensors: list[Tensor], parcel: Parcel) -> dict[str, Any]:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        answer = build([SimpleNamespace(**fields) for fields in body["definitions"]], body["name"])
        return {"value": self.encode(answer, parcel), "depends": [], "changed": [], "refilled": []}

    def serve_get(self, body: dict[str, Any], tensors: list[Tensor], parcel: Parcel) -> dict[str, Any]:
        value = getattr(self.handed_out[body["thing"]], body["attribute"])
        return {"value": self.encode(value, parcel), "depends": [], "changed": [], "refilled": []}

    @contextmanager
    def around(self, target: Any, given: Mapping[str, Any]) -> Iterator[Any]:
        """With random numbers of the grader's choice, its meter and, for a module, its parameters."""
        torch.manual_seed(given["seed"])
        if "parameters" not in given:
            yield _metered(given["meter"], target) if given["meter"] else target
            return
        target.train(given["training"])
        yield _WithParameters(target, given["parameters"])

    def may(self, target: Any, method: str | None) -> bool:
        return True

    def encode(self, value: Any, parcel: Parcel) -> Any:
        if id(value) in self.parameters:
            return {"parameter": self.parameters[id(value)][1]}
        return super().encode(value, parcel)

    def show(self, value: Any, parcel: Parcel) -> dict[str, Any]:
        shown = super().show(value, parcel)
        if isinstance(value, nn.Module):
            shown |= self._module(value, parcel)
        elif type(value).__module__ == "memcourse.knn_lm" and type(value).__name__ == "KNNLM":
            store = value.datastore
            parts = {name: getattr(value, name) for name in ("model", "k", "temperature", "weight")}
            parts |= {name: getattr(store, name) for name in ("metric", "keys", "values")}
            return {"library": "KNNLM", "parts": self.encode(parts, parcel)}
        return shown

    def _module(self, module: nn.Module, parcel: Parcel) -> dict[str, Any]:
        """What the grader needs to hold the parameters itself; the numbers as they are now."""
        kinds = [f"{kind.__module__}.{kind.__name__}" for kind in type(module).__mro__]
        memory = "memcourse.memory.SequenceMemory" in kinds
        attributes = [name for name in ("level", "config") if memory and hasattr(module, name)]
        parameters = [(name, p.detach(), p.requires_grad) for name, p in module.named_parameters()]
        return {
            "kind": "memory" if memory else "module",
            "own": [name for name in ("forward", "tokens_to_segment_end") if name in type(module).__dict__],
            "parameters": self.encode(parameters, parcel),
            "attributes": self.encode({name: getattr(module, name) for name in attributes}, parcel),
            "training": module.training,
        }

    def stand_in(self, shown: dict[str, Any], tensors: Sequence[Tensor]) -> Any:
        if shown["kind"] == "recipe":
            return remake(Recipe(*self.decode(shown["recipe"], tensors)))
        if shown["kind"] != "module":
            attributes = self.decode(shown["attributes"], tensors) if "attributes" in shown else {}
            return Callback(self, shown["thing"], shown["name"], attributes)
        module = _rebuilt(shown["name"], self.decode(shown["config"], tensors))
        parameters = self.decode(shown["parameters"], tensors)
        for name, tensor, learns in parameters:
            parameter = nn.Parameter(tensor, requires_grad=learns)
            place(module, name, parameter)
            self.parameters[id(parameter)] = parameter, [shown["thing"], name]
        for name, tensor in self.decode(shown["buffers"], tensors):
            place(module, name, tensor)
        module.train(shown["training"])
        self.given[id(module)] = module, shown["thing"]
        return module

    def number_there(self, value: Any) -> int | None:
        if isinstance(value, Callback):
            return value._number
        return self.given[id(value)][1] if id(value) in self.given else None


class Callback:
    """A function, or an object with methods, of the other side's: what an answer is given to call."""

    def __init__(self, peer: Peer, number: int, name: str, attributes: Mapping[str, Any]) -> None:
        self._peer, self._number, self.__name__ = peer, number, name
        vars(self).update(attributes)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return uncounted(self._peer.call)(self._number, *arguments, named=named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments, **named: self._peer.call(self._number, *arguments, method=name, named=named)


def _metered(meter: str, function: Callable[..., Any]) -> Any:
    """The function, which gives the reading of a meter instead of its value."""

    def read(*arguments: Any, **named: Any) -> int:
        with METERS[meter]() as reading:
            function(*arguments, **named)
        return reading.found

    return read


class _WithParameters:
    """A module whose methods run with the parameters that are handed in."""

    def __init__(self, module: nn.Module, parameters: dict[str, Tensor]) -> None:
        self.module, self.tensors = module, {f"module.{name}": tensor for name, tensor in parameters.items()}

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return functional_call(_Method(self.module, "__call__"), self.tensors, arguments, named)

    def __getattr__(self, name: str) -> Any:
        method = _Method(self.module, name)
        return lambda *arguments, **named: functional_call(method, self.tensors, arguments, named)


class _Method(nn.Module):
    """One method of a module, as a module."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.module, self.name = module, name

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return getattr(self.module, self.name)(*arguments, **named)


def _rebuilt(name: str, config: dict[str, Any] | None) -> nn.Module:
    """A module of the library's, where this process has its class; else an empty one of that name."""
    if config is not None:
        try:
            import memcourse

            kind = getattr(memcourse, name)
            return kind.from_config(config) if hasattr(kind, "from_config") else kind(**config)
        except (ImportError, AttributeError):  # what the chapter teaches is left out
            pass
    module = type(name, (nn.Module,), {})()
    module.config = config
    return module


def place(module: nn.Module, path: str, tensor: Tensor) -> None:
    """Put a tensor at its place in a tree of modules, which grows where it has to."""
    *owners, name = path.split(".")
    for part in owners:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)
