"""A thing in another process does what it would do here: values, gradients, random numbers, parameters, errors."""

from __future__ import annotations

import json
import math
import socket
import struct
import time
from typing import NamedTuple

import numpy as np
import pytest
import torch
from beside import beside, session_with
from memories import MEMORIES
from torch import nn

from memcourse.course.exercise import Wrong
from memcourse.course.runner.portable import portable
from memcourse.course.runner.traces import error_text, own_line
from memcourse.course.runner.wire import LENGTHS
from memcourse.course.sandbox.session import Ended
from memcourse.memory import SequenceMemory, detach, leaves, n_bytes

torch.set_num_threads(1)


class Pair(NamedTuple):
    first: torch.Tensor
    second: float


VALUES = {
    "numbers": [None, True, 3, -(2**200), 0.25, math.inf, "text \ud800 \x1b"],
    "containers": {"a": (1, [2, {"b": (3,)}]), 4: slice(None, 3), 0.5: ...},
    "tensors": [torch.arange(6).reshape(2, 3), torch.tensor(True), torch.zeros(0, 3), torch.randn(2, 3).T],
    "dtypes": [torch.ones(2, dtype=dtype) for dtype in (torch.bfloat16, torch.float16, torch.complex64, torch.uint8)],
    "arrays": [np.arange(4.0), np.float32(0.5), np.int64(3), np.array([[True]])],
    "torch's own": [torch.float64, torch.device("cpu")],
    "a named tuple": Pair(torch.ones(2), 0.5),
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_comes_back_as_it_was(kind):
    with beside(lambda value: value) as echo:
        assert alike(echo(VALUES[kind]), VALUES[kind])


def alike(one, other):
    if isinstance(one, torch.Tensor | np.ndarray):
        return type(one) is type(other) and one.dtype == other.dtype and bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and not isinstance(one, Pair):
        return type(one) is type(other) and len(one) == len(other) and all(map(alike, one, other))
    return type(one) is type(other) and (alike(tuple(one), tuple(other)) if isinstance(one, Pair) else one == other)


def test_a_named_tuple_of_the_answers_own_keeps_its_kind():
    class Own(NamedTuple):
        memory: torch.Tensor
        count: int

    def advance(state):
        state = state or Own(torch.zeros(2), 0)
        assert isinstance(state, Own)
        return Own(state.memory + 1, state.count + 1)

    with beside(advance) as there:
        first = there(None)
        second = there(first)
    assert type(first) is type(second) and type(second).__name__ == "Own" and second._fields == ("memory", "count")
    assert second.memory.tolist() == [2, 2] and second.count == 2


def test_gradients_are_those_of_a_call_here():
    def score(x, weights, *, power):
        parts = {"high": (x @ weights["w"]) ** power, "low": (x.sum(), torch.ones(2))}
        return parts

    def gradients(function):
        torch.manual_seed(1)
        x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
        weights = {"w": torch.randn(2, 5, dtype=torch.float64, requires_grad=True)}
        found = function((x * 2).tanh(), weights, power=3)
        assert not found["low"][1].requires_grad
        (found["high"].sum() * found["low"][0]).backward()
        return x.grad, weights["w"].grad

    with beside(score) as there:
        for found, expected in zip(gradients(there), gradients(score), strict=True):
            assert torch.equal(found, expected)


def test_gradients_pass_through_a_function_that_is_called_back_and_reach_what_it_holds():
    def apply_twice(x, function):
        return function(function(x).sin())

    def gradients(twice):
        torch.manual_seed(2)
        held = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
        x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
        (twice(x, lambda y: y @ held) ** 2).sum().backward()
        return x.grad, held.grad

    with beside(apply_twice) as there:
        for found, expected in zip(gradients(there), gradients(apply_twice), strict=True):
            assert torch.allclose(found, expected, rtol=1e-12, atol=0)


def shift(values):
    return values + 1


@portable(shift)
def made_with(weights):
    return lambda x: shift(x) @ weights["w"]


def test_a_function_with_a_recipe_runs_over_there():
    weights = {"w": torch.randn(3, 3, requires_grad=True)}
    with beside(lambda x, function: (function(x), type(function).__name__)) as there:
        found, kind = there(torch.ones(1, 3), made_with(weights))
        found.sum().backward()
    assert kind == "function" and torch.equal(found, 2 * weights["w"].sum(0, keepdim=True))
    assert torch.equal(weights["w"].grad, torch.full((3, 3), 2.0))


def test_without_gradients_nothing_is_kept():
    with beside(lambda x: x * 2) as there, torch.no_grad():
        assert not there(torch.ones(2, requires_grad=True)).requires_grad


def test_what_is_changed_in_place_there_is_changed_here():
    def spoil(x, others):
        x += 1
        others[0].numpy()[:] = 7
        return x

    x, other = torch.zeros(3), torch.zeros(2)
    with beside(spoil) as there:
        there(x, [other])
    assert x.tolist() == [1, 1, 1] and other.tolist() == [7, 7]


def test_a_seed_here_repeats_what_is_random_there():
    with beside(lambda n: torch.rand(n)) as there:
        torch.manual_seed(5)
        first, second = there(3), there(3)
        torch.manual_seed(5)
        assert torch.equal(there(3), first) and torch.equal(there(3), second) and not torch.equal(first, second)


def test_the_random_numbers_of_this_process_are_not_the_answers_to_set():
    def draws(function):
        torch.manual_seed(5)
        function()
        return torch.rand(3)

    with beside(lambda: [torch.manual_seed(0)] and None) as sets, beside(lambda: None) as does_nothing:
        assert torch.equal(draws(sets), draws(does_nothing))


def test_a_list_or_a_dict_that_is_changed_there_is_spoiled_here():
    def spoil(weights, values):
        weights["q"] = weights["q"] * 2
        values[0].append(3)

    weights, values, kept = {"q": torch.ones(2)}, [[1, 2]], {"q": torch.ones(2)}
    with beside(spoil) as there, beside(lambda weights: weights["q"] * 2) as keeps:
        keeps(kept)
        there(weights, values)
    assert weights == {} and values == [] and kept.keys() == {"q"}


@pytest.mark.parametrize("change", [lambda x: x[0].zero_(), lambda x: x.clear()])
def test_while_a_property_is_checked_no_argument_may_change(change):
    """Else a check would compare with what the answer made of its numbers."""
    given = [torch.ones(2)]
    with beside(lambda x: [change(x)] and None) as there:
        with there.keeping_arguments(), pytest.raises(Wrong, match="changes an argument in place"):
            there(given)
        assert len(given) == 1 and given[0].tolist() == [1, 1]


class Net(nn.Module):
    findings = {"leaks": True}

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, 1))
        self.scale = nn.Parameter(torch.ones(1))
        self.tied = self.body[2].weight

    def forward(self, x):
        return self.body(x) * self.scale + self.tied.sum()

    @staticmethod
    def steps(n):
        return n + 1


def test_a_module_is_trained_here_to_the_same_numbers():
    first = {name: torch.randn_like(p) for name, p in Net(4).named_parameters()}

    def train(kind):
        net = kind(4)
        net.load_state_dict(first, strict=False)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
        losses = []
        for _ in range(5):
            loss = net(torch.linspace(-1, 1, 16).reshape(8, 2)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        net.eval()
        return losses, {name: p.detach() for name, p in net.named_parameters()}, net(torch.ones(1, 2)).item()

    with beside(Net) as there:
        found, expected = train(there), train(Net)
        assert there.findings == {"leaks": True} and there.steps(2) == 3 and there.__name__ == "Net"
        assert isinstance(there(4), nn.Module) and not hasattr(there(4), "nothing")
    assert found[0] == pytest.approx(expected[0], rel=1e-5) and found[2] == pytest.approx(expected[2], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    assert all(torch.allclose(found[1][name], expected[1][name], rtol=1e-4, atol=1e-6) for name in found[1])


@pytest.mark.parametrize("name", [n for n, memory in MEMORIES.items() if memory.cls.level == "mixer"])
def test_a_memory_keeps_its_contract(name):
    here = MEMORIES[name].make("cpu")
    x = torch.randn(2, 11, here.config["d_model"], dtype=torch.float64)
    with beside(lambda: here) as there:
        layer = there()
        assert isinstance(layer, SequenceMemory) and layer.level == here.level and layer.config == here.config
        for network in (layer, here):
            network.zero_grad()
        early = [x[:, :7].clone().requires_grad_() for _ in range(2)]
        ys, states = zip(*(network(part) for network, part in zip((layer, here), early, strict=True)), strict=True)
        late = [network(x[:, 7:], state)[0] for network, state in zip((layer, here), states, strict=True)]
        for found, expected in (ys, late):
            assert torch.allclose(found, expected, rtol=1e-12, atol=1e-15)
        assert n_bytes(states[0]) == n_bytes(states[1]) and leaves(states[0]).keys() == leaves(states[1]).keys()
        for y in late:
            y.square().sum().backward()
        for found, expected in zip(layer.parameters(), here.parameters(), strict=True):
            assert torch.allclose(found.grad, expected.grad, rtol=1e-9, atol=1e-12)
        assert torch.allclose(early[0].grad, early[1].grad, rtol=1e-9, atol=1e-12)
        assert torch.allclose(layer(x[:, 7:], detach(states[0]))[0], late[1], rtol=1e-12, atol=1e-15)


def test_a_module_that_is_given_can_be_read_grouped_and_changed():
    net = Net(3)

    def look(module):
        with torch.no_grad():
            module.scale += 1
        return [{"params": [p for _, p in module.named_parameters()]}], type(module).__name__

    with beside(look) as there:
        (group,), name = there(net)
    assert name == "Net" and net.scale.item() == 2
    assert [id(p) for p in group["params"]] == [id(p) for p in net.parameters()]


class OwnError(ValueError):
    pass


def raises(kind):
    errors = {
        "stub": lambda: NotImplementedError,
        "key": lambda: KeyError("a"),
        "own": lambda: OwnError("mine"),
        "exit": lambda: SystemExit(4),
        "ctrl-c": lambda: KeyboardInterrupt(),
        "unicode": lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
    }
    raise errors[kind]()


@pytest.mark.parametrize(
    ("kind", "type_", "text"),
    [
        ("stub", NotImplementedError, "NotImplementedError"),
        ("key", KeyError, "KeyError: 'a'"),
        ("own", ValueError, "OwnError: mine"),
        ("exit", Exception, "SystemExit: 4"),
        ("ctrl-c", Exception, "KeyboardInterrupt"),
        ("unicode", Exception, "UnicodeDecodeError: 'utf-8' codec"),
    ],
)
def test_an_error_comes_with_its_kind_its_text_and_its_line(kind, type_, text):
    with beside(raises) as there, pytest.raises(type_) as caught:
        there(kind)
    assert text in error_text(caught.value)
    assert "raise errors[kind]()" in own_line(caught.value, frozenset()).text
    if kind == "stub":
        assert type(caught.value) is NotImplementedError


def strict(x, y):
    return x + y


def test_an_error_of_a_function_that_is_called_back_has_the_answers_line():
    def careless(function):
        return function(torch.ones(2))

    with beside(careless) as there, pytest.raises(TypeError, match="strict.* missing 1 required") as caught:
        there(lambda x: strict(x))
    assert own_line(caught.value, frozenset()).text == "return function(torch.ones(2))"


# ---- what a hostile process may send


def frame(header, *runs, count=None, size=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    n = len(header) if size is None else size
    return LENGTHS.pack(n, len(runs) if count is None else count) + header + b"".join(runs)


def value(node, tensors=(), **more):
    return {"body": {"value": node, "depends": [], "changed": [], "refilled": [], **more}, "tensors": list(tensors)}


END = b'}, "tensors": []}'
BAD = {
    "rubbish": b"passed\n" * 99,
    "an endless header": frame(b"", size=2**32 - 1),
    "endless tensors": frame({"body": {}, "tensors": []}, count=2**32 - 1),
    "not JSON": frame(b"{'body'"),
    "not UTF-8": frame(b"\xff\xfe\xfd"),
    "too deep": frame(b"[" * 100_000 + b"]" * 100_000),
    "a value that is too deep": frame(
        b'{"body": {"value": ' + b'{"list": [' * 900 + b"]}" * 900 + b'}, "tensors": []}'
    ),
    "no reply": frame({"body": [1], "tensors": []}),
    "a tensor too large": frame(value({"tensor": 0}, [["float32", [2**40], False]]), b"", count=1),
    "a shape that overflows": frame(value({"tensor": 0}, [["float32", [0, 2**47, 2**47], False]]), b"", count=1),
    "a negative shape": frame(value({"tensor": 0}, [["float32", [-1], False]]), b"", count=1),
    "a shape of floats": frame(value({"tensor": 0}, [["float32", [2.5], False]]), b"", count=1),
    "a dtype that is none": frame(value({"tensor": 0}, [["object", [1], False]]), b"12345678", count=1),
    "a tensor that is not there": frame(value({"tensor": 7})),
    "an unknown kind": frame(value({"pickle": "x"})),
    "what was never handed out": frame(value({"yours": 99})),
    "a named tuple of a function": frame(value({"named": "x", "yours": 1, "fields": [], "items": []})),
    "a thing without a number": frame(value({"thing": "x", "kind": "function", "name": "f"})),
    "a module without parameters": frame(value({"thing": 1, "kind": "module", "name": "f"})),
    "a key that cannot be one": frame(value({"dict": [[{"list": []}, 1]]})),
    "a key whose hash is chosen": frame(value({"dict": [[2**61 - 1, 1]]})),
    "an integer of a million digits": frame(b'{"body": {"value": ' + b"9" * 100_000 + b'}, "tensors": []}'),
    "other contents of what was not given": frame(value(1, refilled=[5])),
    "a dict of nothing": frame(value({})),
    "a change of what was not given": frame(value(1, changed=[[5, 5]])),
    "a gradient of nothing": frame(value(1, depends=[5])),
    "an error that is none": frame({"body": {"error": 3}, "tensors": []}),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_message_that_makes_no_sense_ends_the_conversation(kind):
    def serve(link):
        link.recv(1 << 20)
        link.sendall(BAD[kind])
        link.recv(1 << 20)

    with session_with(serve, seconds=10) as session, pytest.raises(Ended, match="could not be read"):
        session.define([], "f")


@pytest.mark.parametrize(
    ("thing", "method"),
    [(1, "save"), (1, "load_state_dict"), (1, "forward"), (1, None), (2, "__init__"), (2, "put"), (9, None)],
)
def test_the_other_side_may_call_a_function_it_was_given_and_nothing_else(thing, method, tmp_path):
    """1: a module; 2: an object of a class that is no check's."""
    question = {"do": "call", "id": 1, "thing": thing, "method": method, "kinds": [], "gradient": False, "released": []}
    question |= {"args": {"list": []}, "named": {"dict": []}, "given": {}}
    heard = []

    def serve(link):
        link.recv(1 << 20)
        link.sendall(frame({"body": question, "tensors": []}))
        size, _ = LENGTHS.unpack(link.recv(LENGTHS.size))
        said = json.loads(link.recv(size))["body"]
        link.sendall(frame(value(json.dumps(said))))
        link.recv(1 << 20)

    class Other:
        def put(self):
            heard.append("put")

    with session_with(serve) as session:
        session.handed_out = {1: nn.Linear(1, 1), 2: Other()}
        said = json.loads(session.define([], "f"))
    assert "error" in said and not heard


def test_questions_without_end_are_late():
    def serve(link: socket.socket) -> None:
        link.recv(1 << 20)
        while True:
            link.sendall(frame({"body": {"do": "nothing", "released": []}, "tensors": []}))

    started = time.monotonic()
    with session_with(serve, seconds=0.5) as session, pytest.raises(Ended, match="longer than 0.5 s"):
        session.define([], "f")
    assert time.monotonic() - started < 5
    assert struct.calcsize("<II") == LENGTHS.size
