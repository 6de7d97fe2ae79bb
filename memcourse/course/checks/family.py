"""Exercises that differ in their numbers alone: those of the course, and those that learners get."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from memcourse.course.exercise import Mistake

Numbers = TypeVar("Numbers")

CARDINALS = "zero one two three four five six seven eight nine ten eleven twelve".split()
ORDINALS = "zeroth first second third fourth fifth sixth seventh eighth ninth tenth".split()
PARTS = {2: "half", 3: "third", 4: "quarter", 5: "fifth", 10: "tenth"}


@dataclass(frozen=True)
class Family(Generic[Numbers]):
    """fields(numbers): whatever of an exercise follows from its numbers (question, stub, hints, oracle, mistakes).

    usual: the numbers of the course.   others: those of the learners' variants.  Who has which depends on their
    number and their order, so a change to them changes the variants of all learners.
    """

    fields: Callable[[Numbers], dict[str, Any]]
    usual: Numbers
    others: Sequence[Numbers]

    @property
    def of_the_course(self) -> dict[str, Any]:
        return self.fields(self.usual)

    def __call__(self, seed: int) -> dict[str, Any]:
        """The fields of one learner's variant."""
        return self.fields(random.Random(seed).choice(self.others))


class Later(Sequence[Any]):
    """A tuple that is made when somebody first looks into it: what leans on measured limits takes a while."""

    def __init__(self, make: Callable[[], Iterable[Any]]):
        self._make = make

    @cached_property
    def _made(self) -> Sequence[Any]:
        return tuple(self._make())

    def __getitem__(self, index: Any) -> Any:
        return self._made[index]

    def __len__(self) -> int:
        return len(self._made)


def within_a_step(
    limits: Callable[[], dict[str, Any]], near: Callable[[float, Any], bool] | None = None
) -> Callable[[Any], Any]:
    """The probe of numbers read off a curve: one that is near its limit counts as the limit.

    near(number, limit): within a factor of two, one step of the grids that double, unless another is given.
    """

    def probe(answer: Any) -> Any:
        if not isinstance(answer, dict):
            return answer
        known = limits()
        return {name: known[name] if counts(number, known.get(name)) else number for name, number in answer.items()}

    def counts(number: Any, limit: Any) -> bool:
        if limit is None or isinstance(number, bool) or not isinstance(number, int | float):
            return False
        return near(number, limit) if near else limit / 2 <= number <= 2 * limit

    return probe


def told_apart(
    mistakes: Iterable[Mistake], limits: Mapping[str, Any], probe: Callable[[Any], Any]
) -> Iterator[Mistake]:
    """Those that the probe takes neither for the right answer nor for a mistake before them."""
    taken: list[Any] = [limits]
    for mistake in mistakes:
        answer = probe(mistake.answer)
        if answer not in taken:
            taken.append(answer)
            yield mistake
