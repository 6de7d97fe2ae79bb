"""What a check does, stage by stage, and how a wrong answer is recognised as a known mistake.

A stage takes an Attempt and returns when the answer passes it; it raises NotAttempted, Crashed or Wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import CodeType
from typing import Any

import numpy as np
import torch

from memcourse.course import compare
from memcourse.course.exercise import Exercise, Wrong
from memcourse.course.runner.traces import error_text, own_line
from memcourse.course.words import describe, expected_found, listed, numbers, place, shapes

GRADIENT_TOLERANCE = 1e-4  # autograd runs in the case's own float32, the oracle in float64


class NotAttempted(Exception):
    """The stub still stands; the message is empty, or names the unwritten function that the answer calls."""


class Crashed(Exception):
    """The answer raised; the message shows the learner's own line.  Its cause is what was raised."""


@dataclass(frozen=True)
class Result:
    """What one use of an answer gave: a value or an error, and the arguments that it changed in place."""

    value: Any = None
    error: BaseException | None = None
    changed: tuple[str, ...] = ()


class Task:
    """An exercise with its cases made and their right results computed, shared by every answer to it."""

    def __init__(self, exercise: Exercise):
        self.exercise = exercise
        self.cases = list(exercise.cases())
        self.expected = [self.right(case) for case in self.cases]
        names = list(inspect.signature(exercise.oracle).parameters)
        longest = max(map(len, self.cases))
        self.names = names if len(names) == longest else [f"argument {i + 1}" for i in range(longest)]
        self.known: dict[int, Attempt] = {}  # the known mistakes, as far as an answer was compared with them

    def right(self, case: Sequence[Any]) -> Any:
        return self.exercise.oracle(*_numpy(case))

    @cached_property
    def floating(self) -> torch.dtype:
        """The dtype of the arguments, which a floating-point result keeps."""
        dtypes = [t.dtype for case in self.cases for _, t in _tensors(self.names, case) if t.is_floating_point()]
        return dtypes[0] if dtypes else torch.float32

    def stages(self) -> list[tuple[str, Callable[[Attempt], None]]]:
        """(name, stage) in the order in which they run."""
        found: list[tuple[str, Callable[[Attempt], None]]] = [
            ("type", check_type),
            ("shape", check_shape),
            ("dtype", check_dtype),
            ("finite", check_finite),
            ("values", check_values),
        ]
        takes_floats = any(tensor.is_floating_point() for _, tensor in _tensors(self.names, self.cases[0]))
        if self.exercise.gradient and takes_floats and _floats(self.expected[0]):
            found.append(("gradient", check_gradient))
        for check in self.exercise.properties:
            found.append((_stage_name(check), partial(check_property, check)))
        return found


@dataclass
class Attempt:
    """One answer to a task, used once on each case."""

    task: Task
    answer: Any
    failure: tuple[str, Exception | None] | None = None  # where it fails, and how, once somebody has looked
    _results: dict[int, Result] = field(default_factory=dict)

    def result(self, i: int) -> Result:
        if i not in self._results:
            self._results[i] = self._use(self.task.cases[i])
        return self._results[i]

    def _use(self, case: Sequence[Any]) -> Result:
        given = deepcopy(case)
        before = deepcopy(given)
        try:
            value = use(self.task.exercise, self.answer, given)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: whatever an answer raises is about that answer
            return Result(error=error)
        changed = [n for n, a, b in zip(self.task.names, given, before, strict=False) if not compare.same(a, b, 0.0)]
        return Result(value, changed=tuple(changed))

    def over_cases(self, check: Callable[[Any, Any], None], show: Callable[..., str] = numbers) -> None:
        """Compare on every case, smallest first; a Wrong shows the arguments."""
        for i, expected in enumerate(self.task.expected):
            result = self.result(i)
            if isinstance(result.error, Wrong):  # the probe's own word, on how the answer can be used
                raise result.error
            if result.error is not None:
                raise self.stopped(result.error, i) from result.error
            try:
                check(result.value, expected)
            except Wrong as wrong:
                if self.task.exercise.asks_for_code:
                    said = str(wrong).replace(f"{compare.THE_RESULT}[", "result[")  # a part goes by its place in code
                    raise Wrong(f"{said}\n{show(self.task.names, self.task.cases[i])}") from None
                raise Wrong(str(wrong).replace(compare.THE_RESULT, self.task.exercise.name)) from None

    def stopped(self, error: BaseException, i: int | None = None, when: str = "") -> NotAttempted | Crashed:
        """What an error that an answer raised on case i (or in the property `when`) means."""
        exercise = self.task.exercise
        own = own_line(error, _code(exercise.probe, *exercise.properties))
        stub = own and type(error) is NotImplementedError and (not own.text or "NotImplementedError" in own.text)
        if own and stub and i in (0, None):
            known = (exercise.name, getattr(self.answer, "__name__", exercise.name))
            function = own.function.split(".")[0]
            calls = f"it calls {function}, which still raises NotImplementedError"
            return NotAttempted("" if function in known else calls)
        lines = [f"{own.where}, in {own.function}:", f"    {own.text}"] if own else ["before any line of yours ran:"]
        lines.append(error_text(error))
        if i is not None and exercise.asks_for_code:
            lines.append(shapes(self.task.names, self.task.cases[i]))
        if when:
            lines.append(f"While checking: {when}")
        if own is None and isinstance(error, TypeError):
            lines.append("Does it take the arguments that the stub takes, in the same order?")
        return Crashed("\n".join(lines))


@contextmanager
def _repeatable() -> Iterator[None]:
    """Always the same random numbers, and autograd on, whatever an answer sets."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.default_generator.manual_seed(0)
        yield


def use(exercise: Exercise, answer: Any, case: Sequence[Any]) -> Any:
    """probe(answer, *case)."""
    with _repeatable():
        return exercise.probe(answer, *case)


def check_type(attempt: Attempt) -> None:
    exercise = attempt.task.exercise
    if exercise.asks_for_code and not callable(attempt.answer):
        raise Wrong(
            f"{exercise.name} should be a function or a class; found {describe(attempt.answer)}. "
            f'Hand it over without calling it: check("{exercise.id}", {exercise.name})'
        )
    attempt.over_cases(compare.check_type, shapes)


def check_shape(attempt: Attempt) -> None:
    attempt.over_cases(compare.check_shape, shapes)


def check_dtype(attempt: Attempt) -> None:
    attempt.over_cases(partial(compare.check_dtype, floating=attempt.task.floating), shapes)


def check_finite(attempt: Attempt) -> None:
    attempt.over_cases(partial(compare.check_finite, secret=not attempt.task.exercise.asks_for_code))


def check_values(attempt: Attempt) -> None:
    exercise = attempt.task.exercise
    secret = not exercise.asks_for_code  # a prediction: the learner finds it out alone
    which_way = exercise.kind == "find the limit"  # read off a curve, and not guessed
    attempt.over_cases(partial(compare.check_values, tolerance=exercise.tolerance, secret=secret, which_way=which_way))
    for i in range(len(attempt.task.cases)):
        if changed := attempt.result(i).changed:
            raise Wrong(
                f"your answer changes its argument {listed([f'`{name}`' for name in changed])} in place: "
                "the values are right, and whoever calls it finds the argument spoiled"
            )


def check_gradient(attempt: Attempt) -> None:
    """d/dx of sum(projection * result), by autograd and by central differences of the oracle, on the smallest case."""
    task = attempt.task
    case = deepcopy(task.cases[0])
    inputs = {name: t.requires_grad_() for name, t in _tensors(task.names, case) if t.is_floating_point()}
    random = np.random.default_rng(0)
    projections = [np.asarray(random.standard_normal(array.shape)) for array in _floats(task.expected[0])]
    try:
        result = use(task.exercise, attempt.answer, case)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if "requires grad" not in str(error):
            raise attempt.stopped(error, 0, "gradient") from error
        own = own_line(error, _code(task.exercise.probe))
        line = f"\n{own.where}: {own.text}" if own else ""
        reach = listed([f"`{name}`" for name in inputs])
        raise Wrong(f"the gradient does not reach {reach}: stay in torch, without NumPy{line}") from None
    projected = _project(result, task.expected[0], projections)
    if projected.requires_grad:
        try:
            projected.backward()  # and not autograd.grad, which sees nothing that another process back-propagates
        except Exception as error:
            raise attempt.stopped(error, 0, "gradient") from error

    for name, tensor in inputs.items():
        expected = _central_differences(task, projections, name)
        scale = GRADIENT_TOLERANCE * (1 + np.abs(expected).max(initial=0))
        gradient = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
        off = np.argwhere(~(np.abs(gradient.double().numpy() - expected) <= scale))
        if len(off) and not gradient.any():
            raise Wrong(
                f"the gradient does not reach `{name}`: detach, .data, .item(), torch.tensor(...) and no_grad "
                "each cut a result off from its arguments"
            )
        if len(off):
            at = tuple(off[0].tolist())
            pair = expected_found(expected.item(*at), gradient[at].item())
            where = ", ".join(filter(None, [f"with respect to `{name}`", place(at)]))
            raise Wrong(f"{where}: {pair}\n{numbers(task.names, task.cases[0])}")


def _project(result: Any, expected: Any, projections: Sequence[np.ndarray]) -> torch.Tensor:
    """sum(projection * result) over the floating-point leaves, in float64, where the expected result is finite."""
    pairs = [(leaf, array) for _, leaf, array in compare.tensors(result, expected) if array.dtype.kind == "f"]
    terms = [
        (leaf.double() * torch.as_tensor(p))[torch.as_tensor(np.isfinite(array))].sum()
        for (leaf, array), p in zip(pairs, projections, strict=True)
    ]
    return torch.stack(terms).sum()


def _central_differences(task: Task, projections: Sequence[np.ndarray], name: str, step: float = 1e-5) -> np.ndarray:
    """The gradient of the oracle's projected result with respect to the argument `name`, one number at a time."""
    case = _numpy(task.cases[0])
    argument = dict(_tensors(task.names, case))[name]
    gradient = np.empty_like(argument)
    finite = [np.isfinite(array) for array in _floats(task.expected[0])]

    def projected() -> float:
        arrays = _floats(task.exercise.oracle(*case))
        return sum(
            float(np.where(at, array * p, 0.0).sum()) for array, p, at in zip(arrays, projections, finite, strict=True)
        )

    for index in np.ndindex(argument.shape):
        kept = argument[index]
        argument[index] = kept + step
        above = projected()
        argument[index] = kept - step
        gradient[index] = (above - projected()) / (2 * step)
        argument[index] = kept
    return gradient


def check_property(check: Callable[[Any], None], attempt: Attempt) -> None:
    try:
        with _repeatable(), getattr(attempt.answer, "keeping_arguments", nullcontext)():
            check(attempt.answer)
    except (Wrong, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise attempt.stopped(error, when=_stage_name(check)) from error


def _stage_name(check: Callable[[Any], None]) -> str:
    return check.__name__.replace("_", " ").strip()


def _code(*functions: Any) -> frozenset[CodeType]:
    return frozenset(f.__code__ for f in functions if hasattr(f, "__code__"))


def _numpy(value: Any) -> Any:
    """The same structure with each tensor as a NumPy array of its own, floating point as float64."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return np.array((value.double() if value.is_floating_point() else value).numpy())
    if isinstance(value, Mapping):
        return {key: _numpy(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_numpy, value))
    return value


def _tensors(names: Sequence[str], case: Sequence[Any]) -> list[tuple[str, Any]]:
    """(name, tensor or array) for every one among the arguments, also inside lists."""
    found = [leaf for name, value in zip(names, case, strict=False) for leaf in compare.leaves(value, value, name)]
    return [(name, value) for name, value, _ in found if isinstance(value, torch.Tensor | np.ndarray)]


def _floats(expected: Any) -> list[np.ndarray]:
    """The floating-point arrays of an oracle's result."""
    return [array for _, _, array in compare.tensors(expected, expected) if array.dtype.kind == "f"]
