"""An exercise, the mistakes that people make in it, and the report of a check: plain data, no torch, no pytest."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import indent
from typing import Any, Literal, Self

Outcome = Literal["not attempted", "crashed", "wrong", "passed"]


class Wrong(AssertionError):
    """Raised by a check or a property when an answer is wrong; the message is in the learner's terms."""


@dataclass(frozen=True)
class Mistake:
    """A known wrong answer and the sentence that names it.

    says:   what the learner reads, without a capital or a full stop:
            "this looks like a softmax over the queries: each column sums to 1, and each row should"
    answer: the wrong answer itself, of the same kind as the right one (a function, a class, a value)
    """

    says: str
    answer: Any


@dataclass(frozen=True)
class Exercise:
    """One exercise: what is asked, how it is checked, and the wrong answers that are known.

    cases()              argument tuples, smallest first; where a value is asked for (a prediction), the one case `()`.
    probe(answer, *case) how the answer is used; every call gets its own copy of the case.
    oracle(*case)        the right result, independent of the library. Each tensor of the case arrives as a NumPy array,
                         floating point as float64; everything else arrives as it is. Its parameter names are the
                         names by which messages call the arguments.

    What the oracle returns also says what the probe should return. A NumPy array or NumPy scalar stands for a
    `torch.Tensor` (floating point: the dtype of the case's tensors, float32 where it has none; integers: int64;
    bool: bool). A plain bool, int, float or str stands for itself. Tuples, lists and dicts hold any of these.

    properties           each takes the answer and raises Wrong(message); its name, with blanks, names its stage.
    gradient             compare autograd's gradient of a fixed random projection of the result, on the smallest case,
                         with central differences of the oracle.
    fresh_numbers        grading asks again with other numbers in the cases; not where only chosen ones have one answer.
    variant(seed)        the fields that differ in the variant of one learner (question, stub, oracle, mistakes, ...).
    """

    id: str
    name: str
    title: str
    kind: str
    points: int
    minutes: int
    difficulty: str
    question: str
    stub: str
    hints: tuple[str, str, str]
    cases: Callable[[], Sequence[tuple[Any, ...]]]
    probe: Callable[..., Any]
    oracle: Callable[..., Any]
    mistakes: tuple[Mistake, ...] = ()
    properties: tuple[Callable[[Any], None], ...] = ()
    gradient: bool = True
    tolerance: float = 1e-5
    time_limit: float = 10.0
    fresh_numbers: bool = True
    variant: Callable[[int], Mapping[str, Any]] | None = None

    @property
    def asks_for_code(self) -> bool:
        """Is the answer a function or a class (and not a value)?  The stub says."""
        return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(self.stub).body)


@dataclass(frozen=True)
class Report:
    """What a check found.

    stages:  those that passed, in order.   mistake: `says` of the mistake it recognised.
    picture: what looking shows quicker than reading, where there is such a thing: see memcourse.course.pictures.
    seconds: how long the answer took, measured outside its process.   level: how it was confined, if it was.
    """

    exercise: str
    name: str
    outcome: Outcome
    points: float
    max_points: float
    stages: tuple[str, ...] = ()
    message: str = ""
    mistake: str | None = None
    picture: dict[str, Any] | None = None
    seconds: float = 0.0
    level: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        return cls(**fields | {"stages": tuple(fields["stages"])})

    def __str__(self) -> str:
        outcome = "checks passed" if self.outcome == "passed" else self.outcome
        lines = [f"{self.exercise} {self.name}: {outcome} ({self.points} of {self.max_points} points)"]
        if self.stages:
            lines.append(f"  passed: {', '.join(self.stages)}")
        if self.message:
            lines.append(indent(self.message, "  "))
        if self.outcome in ("crashed", "wrong"):
            lines.append(f'  Stuck? hint("{self.exercise}")')
        return "\n".join(lines)
