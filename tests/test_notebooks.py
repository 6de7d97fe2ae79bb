"""The committed notebooks: what their sources say, run in order, and nothing of the machine in them.

The rules themselves are shown to fail in test_build.py. Outputs are compared with a fresh run by nbval alone.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from nbformat import NotebookNode

pytest.importorskip("jupytext")

from memcourse.course import build, rules

TARGETS = build.targets()
NAMES = [target.name for target in TARGETS]


@cache
def committed(path: Path) -> NotebookNode:
    return build.read(path)


@pytest.mark.parametrize("folder", ["chapters", "exercises", "solutions"])
def test_there_is_a_first_chapter(folder: str) -> None:
    assert f"{folder}/01_attention.ipynb" in NAMES


def test_every_chapter_has_its_exercises() -> None:
    chapters, exercises = ({t.master.stem for t in TARGETS if t.kind == kind} for kind in ("chapter", "exercises"))
    assert exercises == set(build.checks.CHAPTERS)
    assert exercises <= chapters


def test_no_notebook_has_lost_its_source() -> None:
    assert build.orphans() == []


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_the_notebook_is_what_its_source_says(target: build.Target) -> None:
    assert target.is_fresh(), "run `make notebooks`"


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_the_notebook_keeps_the_rule(target: build.Target, rule) -> None:
    assert list(rule(committed(target.notebook))) == []
