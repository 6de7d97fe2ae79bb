"""One end of a conversation in which each side calls what the other has handed out; gradients pass through.

Plain values travel: numbers, strings, containers, tensors, arrays.  Whatever else is handed over stays where it is
and goes by a number; a call of it is a question, which the owner answers, perhaps after asking back (an answer that
calls a function which it was given).  Each side keeps the graph of the calls that it has served, and back-propagates
through it when the other side asks: see `Bridge`.
"""

from __future__ import annotations

import types
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import errors
from .wire import BadMessage, Connection, HungUp, Late

LONGEST_INT = 1 << 12  # bits
MOST_NAMED_TUPLES, MOST_FIELDS = 100, 64
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, StopIteration)
Graph = tuple[list[Tensor], list[Tensor]]  # what was given to a call, and what of its results depends on something


class Parcel:
    """The tensors of one message: each once, with how its sender differentiates it."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.places: dict[int, int] = {}

    def add(self, tensor: Tensor) -> int:
        if id(tensor) not in self.places:
            self.places[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
        return self.places[id(tensor)]

    def kinds(self) -> list[str]:
        """ "" for a constant, "leaf" for a parameter or the like, "node" for what was computed from one."""
        return [("leaf" if t.is_leaf else "node") if t.requires_grad else "" for t in self.tensors]


class Peer:
    """What both ends have in common; an end says what it makes of a thing of the other side's (`stand_in`)."""

    passing: tuple[type[BaseException], ...] = (HungUp, Late)  # what ends a conversation, and is no error in it

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.handed_out: dict[int, Any] = {}
        self.numbers: dict[int, int] = {}  # id of what was handed out -> its number
        self.graphs: dict[int, Graph] = {}
        self.released: list[int] = []
        self.named_tuples: dict[int, type] = {}  # number there -> what stands here for a named tuple's class
        self.tuple_numbers: dict[type, int] = {}  # the other way round
        self.questions = {"call": self.serve_call, "back": self.serve_back}
        self.calls = 0

    # ---- to be said by each end

    def stand_in(self, shown: dict[str, Any], tensors: Sequence[Tensor]) -> Any:
        """What stands here for a thing of the other side's."""
        raise NotImplementedError

    def number_there(self, value: Any) -> int | None:
        """The number of a thing of the other side's, where `value` stands for one."""
        raise NotImplementedError

    def may(self, target: Any, method: str | None) -> bool:
        """May the other side call this?"""
        raise NotImplementedError

    # ---- values

    def encode(self, value: Any, parcel: Parcel) -> Any:
        """JSON for a value, its tensors put into the parcel."""
        kind = type(value)
        if value is None or kind is bool or kind is float:
            return value
        if isinstance(value, int):
            if value.bit_length() > LONGEST_INT:
                raise ValueError("an integer of more than a thousand digits is too long to be sent")
            return int(value)
        if isinstance(value, str):
            return str(value)
        if kind in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_quantized:
            return {"tensor": parcel.add(value)}
        if kind is np.ndarray and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
            return {"array": parcel.add(torch.from_numpy(np.array(value)))}
        if isinstance(value, np.bool_ | np.integer | np.floating):
            return {"scalar": parcel.add(torch.from_numpy(np.array(value)))}
        if (number := self.number_there(value)) is not None:
            return {"yours": number}
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            items = [self.encode(item, parcel) for item in value]
            of = {"yours": self.tuple_numbers[kind]} if kind in self.tuple_numbers else {"mine": self.hand_out(kind)}
            return {"named": kind.__name__, **of, "fields": list(kind._fields), "items": items}
        if isinstance(value, list | tuple):
            return {"list" if isinstance(value, list) else "tuple": [self.encode(item, parcel) for item in value]}
        if isinstance(value, dict | types.MappingProxyType):
            return {"dict": [[self.encode(k, parcel), self.encode(v, parcel)] for k, v in value.items()]}
        if isinstance(value, slice):
            return {"slice": [self.encode(part, parcel) for part in (value.start, value.stop, value.step)]}
        if isinstance(value, torch.dtype | torch.device):
            return {kind.__name__: str(value).removeprefix("torch.")}
        if value is ...:
            return {"dots": 3}
        return self.show(value, parcel)

    def show(self, value: Any, parcel: Parcel) -> dict[str, Any]:
        """What the other side learns of a thing that stays here."""
        kind = "class" if isinstance(value, type) else "function" if callable(value) else "object"
        name = getattr(value, "__name__", None) if kind != "object" else None
        return {"thing": self.hand_out(value), "kind": kind, "name": str(name or type(value).__name__)[:100]}

    def hand_out(self, value: Any) -> int:
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.handed_out) + 1
            self.handed_out[self.numbers[id(value)]] = value
        return self.numbers[id(value)]

    def decode(self, node: Any, tensors: Sequence[Tensor]) -> Any:
        """The value again.  Raises BadMessage for what `encode` does not make."""
        try:
            return self._decode(node, tensors)
        except UNREADABLE as error:
            raise BadMessage(f"a value cannot be read: {type(error).__name__}") from None

    def _decode(self, node: Any, tensors: Sequence[Tensor]) -> Any:
        if node is None or isinstance(node, bool | int | float | str):
            return node
        tag, content = next(iter(node.items()))
        match tag:
            case "tensor":
                return tensors[content]
            case "array":
                return tensors[content].numpy()
            case "scalar":
                return tensors[content].numpy()[()]
            case "list":
                return [self._decode(item, tensors) for item in content]
            case "tuple":
                return tuple(self._decode(item, tensors) for item in content)
            case "dict":
                return {_key(self._decode(key, tensors)): self._decode(item, tensors) for key, item in content}
            case "slice":
                return slice(*(self._decode(part, tensors) for part in content))
            case "dtype":
                return _dtype(content)
            case "device":
                return torch.device("meta" if content == "meta" else "cpu")
            case "dots":
                return ...
            case "named":
                items = [self._decode(item, tensors) for item in node["items"]]
                return self.named_tuple(content, node, tuple(node["fields"]))(*items)
            case "yours":
                return self.handed_out[content]
            case "parameter":
                return self.handed_out[content[0]].get_parameter(content[1])
            case "thing" | "library":
                return self.stand_in(node, tensors)
        raise BadMessage(f"a value of the unknown kind {str(tag)[:40]!r}")

    def named_tuple(self, name: str, node: dict[str, Any], fields: tuple[str, ...]) -> Any:
        """The class of a named tuple: one of this side's, or what stands for the other side's, always the same."""
        if "yours" in node:
            own = self.handed_out[node["yours"]]
            if not (isinstance(own, type) and issubclass(own, tuple)):
                raise BadMessage("a named tuple of a kind that is none")
            return own
        if node["mine"] not in self.named_tuples:
            if len(self.named_tuples) >= MOST_NAMED_TUPLES or len(fields) > MOST_FIELDS:
                raise BadMessage("more named tuples, or larger ones, than make sense")
            made = self.named_tuples[node["mine"]] = namedtuple(name, fields)
            self.tuple_numbers[made] = node["mine"]
        return self.named_tuples[node["mine"]]

    # ---- questions and replies

    def call(self, number: int, *arguments: Any, method: str | None = None, **more: Any) -> Any:
        """Call the other side's thing of this number.  Raises what it raises."""
        named = more.pop("named", {})
        parcel = Parcel()
        body = {
            "thing": number,
            "method": method,
            "args": self.encode(list(arguments), parcel),
            "named": self.encode(named, parcel),
            "given": {key: self.encode(value, parcel) for key, value in more.items()},
        }
        return self.ask("call", body, parcel, arguments)

    def follow(self, changed: Sequence[tuple[Tensor, Tensor]], refilled: Sequence[Any]) -> None:
        """What the callee changed in place: tensors, with their numbers now, and arguments with other contents."""
        for here, now in changed:
            here.data.copy_(now)

    def ask(self, do: str, body: dict[str, Any], parcel: Parcel, arguments: Sequence[Any] = ()) -> Any:
        """The value that a question gives; what the callee changed in place is changed here too."""
        self.calls += 1
        call = self.calls
        how = {"do": do, "id": call, "kinds": parcel.kinds(), "gradient": torch.is_grad_enabled()}
        reply, tensors = self.exchange(body | how, parcel.tensors)
        try:
            depends = [i for i in reply["depends"] if torch.is_grad_enabled() and _differentiable(tensors[i])]
            changed = [(parcel.tensors[place], tensors[now]) for place, now in reply["changed"]]
            refilled = [arguments[place] for place in reply["refilled"]]
            self.follow(changed, refilled)
        except (KeyError, IndexError, TypeError, RuntimeError):
            raise BadMessage("a reply cannot be read") from None
        if depends:
            inputs = [tensor for tensor in parcel.tensors if tensor.requires_grad]
            token = torch.zeros((), requires_grad=True)  # a result may depend on what only the other side has
            bridged = Bridge.apply(self, call, [tensors[i] for i in depends], token, *inputs)
            for i, tensor in zip(depends, bridged, strict=True):
                tensors[i] = tensor
        return self.decode(reply["value"], tensors)

    def exchange(self, body: dict[str, Any], sent: Sequence[Tensor]) -> tuple[dict[str, Any], list[Tensor]]:
        """Ask, and answer what the other side asks meanwhile, until the reply comes.  Raises what it raised there."""
        released, self.released = self.released, []
        self.connection.send(body | {"released": released}, sent)
        while True:
            reply, tensors = self.connection.receive()
            if not isinstance(reply, dict):
                raise BadMessage("a message that is neither a question nor a reply")
            if "error" in reply:
                raise self.error(reply["error"])
            if "do" not in reply:
                return reply, tensors
            self.serve(reply, tensors)

    def back(self, call: int, gradients: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients of what was given to an earlier call, from those of its results."""
        parcel = Parcel()
        body = {"do": "back", "call": call, "gradients": self.encode(list(gradients), parcel)}
        reply, tensors = self.exchange(body, parcel.tensors)
        return self.decode(reply.get("value"), tensors)

    # ---- serving

    def serve(self, body: dict[str, Any], tensors: list[Tensor]) -> None:
        """Answer one question: with a value, or with the error that the called thing raised."""
        parcel = Parcel()
        try:
            for call in body["released"]:
                self.graphs.pop(call, None)
            reply = self.questions[body["do"]](body, tensors, parcel)
            self.connection.send(reply, parcel.tensors)
        except self.passing:
            raise
        except BaseException as error:  # an answer may raise anything, SystemExit and KeyboardInterrupt included
            self.connection.send({"error": errors.shown(error)}, [])

    def serve_back(self, body: dict[str, Any], tensors: list[Tensor], parcel: Parcel) -> dict[str, Any]:
        given, results = self.graphs[body["call"]]
        gradients = self.decode(body["gradients"], tensors)
        for leaf in given:
            leaf.grad = None
        # not autograd.grad: it would pass by what a called function depends on beside its arguments
        torch.autograd.backward(results, gradients, retain_graph=True)
        return {"value": self.encode([leaf.grad for leaf in given], parcel)}

    def serve_call(self, body: dict[str, Any], tensors: list[Tensor], parcel: Parcel) -> dict[str, Any]:
        before = [tensor.clone() for tensor in tensors]
        leaves = [t.requires_grad_(bool(kind)) for t, kind in zip(tensors, body["kinds"], strict=True)]
        with torch.set_grad_enabled(bool(body["gradient"])):
            # what was computed may be changed in place, a leaf may not: the same here as where it came from
            handed = [t.clone() if k == "node" else t for t, k in zip(leaves, body["kinds"], strict=True)]
            arguments = self.decode(body["args"], handed)
            contents = [_contents(argument) for argument in arguments]
            value = self.carry_out(body, arguments, handed)
            shown = self.encode(value, parcel)
        refilled = [i for i, (now, was) in enumerate(zip(arguments, contents, strict=True)) if _contents(now) != was]
        depends = [i for i, tensor in enumerate(parcel.tensors) if tensor.requires_grad]
        if depends and body["gradient"]:
            given = [leaf for leaf, kind in zip(leaves, body["kinds"], strict=True) if kind]
            self.graphs[body["id"]] = given, [parcel.tensors[i] for i in depends]
        changed = [
            [place, parcel.add(now.detach())]
            for place, (now, was) in enumerate(zip(handed, before, strict=True))
            if not _same_bytes(now, was)
        ]
        return {"value": shown, "depends": depends, "changed": changed, "refilled": refilled}

    def carry_out(self, body: dict[str, Any], arguments: Sequence[Any], tensors: Sequence[Tensor]) -> Any:
        target, method = self.handed_out[body["thing"]], body["method"]
        if not self.may(target, method):
            raise BadMessage("a call of what was not handed out")
        named = self.decode(body["named"], tensors)
        with self.around(target, {key: self.decode(node, tensors) for key, node in body["given"].items()}) as ready:
            function = getattr(ready, method) if method else ready
            return function(*arguments, **named)

    @contextmanager
    def around(self, target: Any, given: Mapping[str, Any]) -> Iterator[Any]:
        """What has to hold while a thing is called; it may be called in another form."""
        yield target

    def error(self, shown: Any) -> Exception:
        """The other side's error.  Raises BadMessage for what is none."""
        try:
            return errors.again(shown)
        except (KeyError, TypeError):
            raise BadMessage("an error that cannot be read") from None


class Bridge(torch.autograd.Function):
    """The results of a call of the other side, joined to what it was given: backward asks the other side."""

    @staticmethod
    def forward(ctx: Any, peer: Peer, call: int, results: list[Tensor], token: Tensor, *given: Tensor) -> Any:
        ctx.peer, ctx.call, ctx.release = peer, call, _Release(peer, call)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, None, None, *ctx.peer.back(ctx.call, gradients)


class _Release:
    """Lives as long as the graph here, and then lets the other side's go."""

    def __init__(self, peer: Peer, call: int) -> None:
        self.peer, self.call = peer, call

    def __del__(self) -> None:
        self.peer.released.append(self.call)


def _key(key: Any) -> Any:
    """A key whose hash nobody can choose."""
    if isinstance(key, str | bool | float | None) or (isinstance(key, int) and abs(key) < 1 << 60):
        return key
    raise BadMessage("a dict whose keys are neither names nor numbers")


def _dtype(name: Any) -> torch.dtype:
    found = getattr(torch, str(name), None)
    if not isinstance(found, torch.dtype):
        raise BadMessage("a dtype that does not exist")
    return found


def _differentiable(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _contents(value: Any) -> Any:
    """Which things a list or a dict holds, at every depth; not what is in them."""
    if isinstance(value, dict):
        return {key: _contents(part) for key, part in value.items()}
    return [_contents(part) for part in value] if isinstance(value, list | tuple) else id(value)


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    if one.device.type == "meta" or one.shape != other.shape or one.dtype != other.dtype:
        return one.device.type == "meta"  # resized: the sender's keeps its shape, and cannot follow
    one, other = one.detach().contiguous().flatten(), other.detach().contiguous().flatten()
    return not len(one) or bool(torch.equal(one.view(torch.uint8), other.view(torch.uint8)))
