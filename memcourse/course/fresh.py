"""Cases that nobody has seen before: the same ones, with other numbers."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from memcourse.course.exercise import Exercise

MOST = 0.1  # by how much a number shrinks
ROUNDER = 20  # times the tolerance: the numbers of a check are round, and these are not


def on_fresh_numbers(exercise: Exercise) -> Exercise:
    """The same exercise asked with other numbers, values alone.

    The cases of a check are public: an answer may hold a table of their results, and no table holds these.
    """
    cases = [shrunk(case) for case in exercise.cases()]
    tolerance = ROUNDER * exercise.tolerance
    return replace(exercise, cases=lambda: cases, tolerance=tolerance, gradient=False, properties=(), mistakes=())


def shrunk(value: Any) -> Any:
    """The same case, each of its floating-point numbers a little nearer to 0, by chance that nobody can foresee."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value * (1 - MOST * torch.rand(value.shape, generator=_chance())).to(value.dtype)
    if isinstance(value, dict):
        return {name: shrunk(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(shrunk, value))
    return value.clone() if isinstance(value, torch.Tensor) else value


def _chance() -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(os.urandom(7)))
