"""The exercises of every chapter, found by chapter or by id.  A chapter's checks are imported when first asked for."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module

from memcourse.course.exercise import Exercise

CHAPTERS: dict[str, str] = {  # NN_slug -> the module here that holds EXERCISES
    "00_what_is_memory": "what_is_memory",
    "01_attention": "attention",
    "02_key_value": "key_value",
    "03_gated": "gated",
    "04_knn_lm": "knn_lm",
    "05_resmem": "resmem",
    "06_lm2": "lm2",
    "07_infini_attention": "infini_attention",
    "08_transformer_fam": "transformer_fam",
}


class UnknownExercise(LookupError):
    """There is no exercise of that id; the message names the nearest ones."""


def exercises(chapter: str) -> tuple[Exercise, ...]:
    """The exercises of one chapter, such as "01_attention", in order.  KeyError when there is no such chapter."""
    if chapter not in CHAPTERS:
        raise KeyError(f"there is no chapter {chapter!r}; there are {', '.join(CHAPTERS)}")
    return import_module(f"{__name__}.{CHAPTERS[chapter]}").EXERCISES


def all_exercises() -> tuple[Exercise, ...]:
    return tuple(exercise for chapter in CHAPTERS for exercise in exercises(chapter))


def chapter_of(exercise: Exercise) -> str:
    """The chapter that asks this exercise, or the one that it is a variant of, such as "01_attention"."""
    return next(chapter for chapter in CHAPTERS if any(other.id == exercise.id for other in exercises(chapter)))


def find(id: str) -> Exercise:
    """The exercise with this id, such as "1.2".  UnknownExercise names those that begin so, or the nearest."""
    by_id = {exercise.id: exercise for exercise in all_exercises()}
    if id in by_id:
        return by_id[id]
    asked = str(id).strip().lower()
    keys = {key.lower(): e for e in by_id.values() for key in (e.title, e.name, e.id)}
    begin = [key for key in by_id if asked and key.startswith(asked)]
    near = begin or get_close_matches(asked, keys, n=3, cutoff=0.5)
    shown = dict.fromkeys(f'"{keys[key].id}" {keys[key].name}' for key in near)
    rest = f"The nearest: {', '.join(shown)}." if shown else f"There are {', '.join(by_id)}."
    raise UnknownExercise(f"There is no exercise {id!r}. {rest}")
