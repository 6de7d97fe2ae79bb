"""What stands in the grader for an answer: calls of it are carried out in the answer's own process.

A function, a class or an object goes by its number.  A module's parameters live here, where the grader can set,
train and count them; the module there is a function of (parameters, inputs).
"""

from __future__ import annotations

import inspect
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from memcourse.course.exercise import Wrong
from memcourse.course.runner.answering import place
from memcourse.course.runner.errors import LONGEST_TEXT
from memcourse.course.runner.peer import Parcel, Peer
from memcourse.course.runner.portable import Recipe
from memcourse.course.runner.traces import Elsewhere, OwnLine
from memcourse.course.runner.wire import BadMessage
from memcourse.memory import SequenceMemory

DEEPEST = 32  # modules in modules
TWIN = """
from __future__ import annotations
import math
import torch
import torch.nn.functional as F
from torch import nn

{source}

class Twin:
    run = staticmethod({name})

    def keep(self, result):
        self.result = result

    def echo(self, *given):
        return self.result

there = Twin()
"""


class Asking(Peer):
    """The grader's end.  The other side may call what it was given as an argument, and nothing else."""

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        self.known: dict[int, Any] = {}  # number -> what stands for it
        self.clock: Callable[[], float] = time.perf_counter
        self.arguments_stay = False  # while a property is checked, which may look at them again
        self.another: Callable[..., Asking]  # a process of the same kind, with as much memory_bytes
        self.defined: tuple[list[dict[str, Any]], str] = [], ""

    def define(self, definitions: Sequence[dict[str, Any]], name: str) -> Any:
        """Build the answer there; the answer, or what stands for it."""
        self.defined = list(definitions), name
        return self.ask("define", {"definitions": self.defined[0], "name": name}, Parcel())

    def get(self, number: int, attribute: str) -> Any:
        return self.ask("get", {"thing": number, "attribute": attribute}, Parcel())

    def call(self, number: int, *arguments: Any, meter: str | None = None, **more: Any) -> Any:
        """With a seed of this process's random numbers, so that a seed here repeats what is random there."""
        seed = int(torch.randint(1 << 62, ()))
        return super().call(number, *arguments, seed=seed, meter=meter, **more)

    def follow(self, changed: Sequence[tuple[Tensor, Tensor]], refilled: Sequence[Any]) -> None:
        if self.arguments_stay and (changed or refilled):
            raise Wrong("it changes an argument in place: whoever calls it finds the argument spoiled")
        super().follow(changed, refilled)
        for argument in refilled:  # its contents are not sent back: it is enough that they differ
            if isinstance(argument, dict | list):
                argument.clear()

    def error(self, shown: Any) -> Exception:
        """With the answer's own line, and with what Python says of the error where it was raised."""
        error = super().error(shown)
        try:
            own = OwnLine(*(str(part)[:LONGEST_TEXT] for part in shown["own"])) if shown["own"] else None
            error.elsewhere = Elsewhere(own, str(shown["text"])[:LONGEST_TEXT])  # type: ignore[attr-defined]
        except (KeyError, TypeError):
            raise BadMessage("an error that cannot be read") from None
        return error

    def may(self, target: Any, method: str | None) -> bool:
        """A function that it was given, and a method that an object of a check's own class defines."""
        if method is None:
            return isinstance(target, types.FunctionType | types.MethodType)
        ours = type(target).__module__.startswith("memcourse.course.checks.")
        return ours and not method.startswith("_") and inspect.isfunction(vars(type(target)).get(method))

    def number_there(self, value: Any) -> int | None:
        return value._number if isinstance(value, Remote | RemoteParts) and value._peer is self else None

    def show(self, value: Any, parcel: Parcel) -> dict[str, Any]:
        """What an answer is given: a function by its recipe, where it has one; a module by value, for an answer may
        read, group and change its parameters; an object by its public attributes, and its methods by number."""
        shown = super().show(value, parcel)
        if isinstance(recipe := getattr(value, "recipe", None), Recipe):
            shown |= {"kind": "recipe", "recipe": self.encode(tuple(recipe), parcel)}
        elif isinstance(value, nn.Module):
            config = getattr(value, "config", None)
            parameters = [(name, p.detach(), p.requires_grad) for name, p in value.named_parameters()]
            shown |= {
                "kind": "module",
                "name": type(value).__name__,
                "config": self.encode(config if isinstance(config, dict) else None, parcel),
                "parameters": self.encode(parameters, parcel),
                "buffers": self.encode([(name, buffer.detach()) for name, buffer in value.named_buffers()], parcel),
                "training": value.training,
            }
        elif shown["kind"] == "object":
            public = {name: part for name, part in vars(value).items() if not name.startswith("_")}
            shown["attributes"] = self.encode(public, parcel)
        return shown

    def stand_in(self, shown: dict[str, Any], tensors: Sequence[Tensor]) -> Any:
        if "library" in shown:
            return _knn_lm(self.decode(shown["parts"], tensors))
        number, kind, name = shown["thing"], shown["kind"], _name(shown["name"])
        if type(number) is not int:
            raise BadMessage("a thing without a number")
        if number not in self.known:
            if kind in ("module", "memory"):
                self.known[number] = self._module(shown, tensors, name)
            else:
                callable_ = kind in ("function", "class")
                parents = (RemoteFunction if callable_ else Remote,)
                self.known[number] = type(kind if callable_ else name, parents, {})(self, number, name)
        return self.known[number]

    def _module(self, shown: dict[str, Any], tensors: Sequence[Tensor], name: str) -> nn.Module:
        own = shown["own"]
        if shown["kind"] == "memory":
            methods = ["advance", "initial_state", *(["tokens_to_segment_end"] * ("tokens_to_segment_end" in own))]
            parents: tuple[type, ...] = (RemoteParts, SequenceMemory)
        else:
            methods, parents = ["forward"], (RemoteParts,)
        if "forward" in own and "forward" not in methods:
            methods.append("forward")
        attributes = self.decode(shown["attributes"], tensors)
        body: dict[str, Any] = {method: _method(method) for method in methods}
        if "level" in attributes:
            body["level"] = attributes["level"]
        module = type(name, parents, body)(self, shown["thing"], self.decode(shown["parameters"], tensors))
        if "config" in attributes:
            module.config = attributes["config"]
        return module.train(bool(shown["training"]))


class Remote:
    """An object in the answer's process: its attributes are asked for, its methods are called there."""

    def __init__(self, peer: Asking, number: int, name: str) -> None:
        self._peer, self._number, self.__name__ = peer, number, name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):
            raise AttributeError(attribute)
        return self._peer.get(self._number, attribute)


class RemoteFunction(Remote):
    """A function, a class or whatever else can be called in the answer's process."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._peer.call(self._number, *arguments, named=named)

    def measured_there(self, meter: str, *arguments: Any) -> int:
        """What a meter in the answer's process reads while it is called; see memcourse.course.runner.meters."""
        reading = self._peer.call(self._number, *arguments, meter=meter)
        if type(reading) is not int:
            raise BadMessage("a reading that is no number")
        return reading

    def clock(self) -> float:
        """Seconds that the answer has taken, from some moment on."""
        return self._peer.clock()

    @contextmanager
    def keeping_arguments(self) -> Iterator[None]:
        """A change of an argument in place raises Wrong here, and is not followed."""
        self._peer.arguments_stay = True
        try:
            yield
        finally:
            self._peer.arguments_stay = False

    def with_memory(self, memory_bytes: int) -> RemoteFunction:
        """The same answer in another process that may use less."""
        return self._peer.another(memory_bytes=memory_bytes).define(*self._peer.defined)

    def twin(self, plain: Callable[..., Any]) -> Twin:
        """This function in another process, confined as the answer's is: two that are timed alike."""
        return Twin(self._peer.another(), plain)


class Twin:
    """A function of the course's in a process of its own.

    run    the function
    echo   from a result: a function that takes what `run` takes, does nothing, and gives this result
    """

    def __init__(self, peer: Asking, plain: Callable[..., Any]) -> None:
        source = TWIN.format(source=inspect.getsource(plain), name=plain.__name__)
        self._there = peer.define([{"source": source, "cell": 1, "line": 1, "flags": 0}], "there")
        self.run, self._echo = self._there.run, self._there.echo

    def echo(self, result: Any) -> RemoteFunction:
        self._there.keep(result)
        return self._echo


class RemoteParts(nn.Module):
    """A module of the answer's process, whose parameters are here; they go along with every call."""

    def __init__(self, peer: Asking, number: int, parameters: Any) -> None:
        super().__init__()
        for path, tensor, learns in parameters:
            if path.count(".") > DEEPEST:
                raise BadMessage("a parameter far too deep")
            place(self, path, nn.Parameter(tensor, requires_grad=bool(learns)))
        self._peer, self._number = peer, number

    def __getattr__(self, attribute: str) -> Any:
        try:
            return super().__getattr__(attribute)
        except AttributeError:
            if attribute.startswith("_") or "_peer" not in vars(self):
                raise
        return self._peer.get(self._number, attribute)


def _method(name: str) -> Callable[..., Any]:
    def call(self: RemoteParts, *arguments: Any, **named: Any) -> Any:
        return self._peer.call(
            self._number,
            *arguments,
            method=None if name == "forward" else name,
            named=named,
            parameters=dict(self.named_parameters()),
            training=self.training,
        )

    call.__name__ = name
    return call


def _knn_lm(parts: dict[str, Any]) -> Any:
    """The KNNLM again, from its parts."""
    from memcourse.datastore import Datastore
    from memcourse.knn_lm import KNNLM

    keys = parts["keys"]
    store = Datastore(keys.shape[1], metric=parts["metric"])
    if len(keys):
        store.add(keys, parts["values"])
    return KNNLM(parts["model"], store, **{name: parts[name] for name in ("k", "temperature", "weight")})


def _name(name: Any) -> str:
    return name if isinstance(name, str) and name.isidentifier() else "object"
