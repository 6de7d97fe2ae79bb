"""A learner's own variant of an exercise whose answer is values: the same question with other numbers.

The numbers follow from the learner's name alone, so that they are the same on every machine and every day, and an
instructor needs no list.  Without a name everybody has the numbers of the course.
"""

from __future__ import annotations

import dataclasses
import hashlib
from difflib import get_close_matches

from memcourse.course.exercise import Exercise, Outcome
from memcourse.course.start import find_copy, learner_of


def seed_of(exercise: Exercise, learner: str) -> int:
    """Case and blanks at the ends of a name do not count.  Raises ValueError for an empty name."""
    name = learner.strip().casefold()
    if not name:
        raise ValueError(f"learner is {learner!r}, and should be a name: an empty one has no variant")
    return int.from_bytes(hashlib.sha256(f"{exercise.id}:{name}".encode()).digest()[:8], "big")


def variant(exercise: Exercise, learner: str) -> Exercise:
    """The exercise with this learner's numbers; the same exercise where it has no variants."""
    seed = seed_of(exercise, learner)
    return dataclasses.replace(exercise, **exercise.variant(seed)) if exercise.variant else exercise


def name_of_learner() -> str:
    """The name that `memcourse start --learner NAME` was given; "" where there is none.  Raises CannotStart."""
    return learner_of(find_copy())


def show(exercise: Exercise, learner: str) -> str:
    """The question and the stub as this learner has them, or as the course has them where the name is ""."""
    own = variant(exercise, learner) if learner else exercise
    whose = f" (the numbers of {learner.strip()})" if learner and exercise.variant else ""
    return f"{own.id} {own.title}{whose}\n\n{own.question}\n\n{own.stub}"


def reminder(exercise: Exercise, outcome: Outcome, learner: str, asking: str) -> str:
    """A sentence for a learner whose numbers are not those of the notebook's text, until they pass; else "".

    asking: what shows them, such as 'question("2.1")'.
    """
    if outcome == "passed" or not (learner and exercise.variant):
        return ""
    return f"You have numbers of your own here: {asking} shows them."


def usual_sentence(exercise: Exercise, says: str) -> str:
    """How the course names the mistake that a variant of this exercise names with other numbers."""
    known = [mistake.says for mistake in exercise.mistakes]
    return get_close_matches(says, known, n=1, cutoff=0.0)[0] if known else says
