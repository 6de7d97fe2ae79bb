"""What the mutation run found: report.json, and the survivors that equivalent.toml explains."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memcourse.course.start import write_atomically

from .mutation import Mutant
from .run import HERE, Outcome, chapter_of, code_exercises

REPORT = HERE / "report.json"
EQUIVALENT = HERE / "equivalent.toml"


@dataclass(frozen=True)
class Survivor:
    """A mutant with the right numbers.  slow: its speed is all that a check noticed.  why: it is equivalent."""

    kind: str
    was: str
    now: str
    slow: bool = False
    why: str | None = None

    def __str__(self) -> str:
        return "\n".join(
            [*(f"- {line}" for line in self.was.splitlines()), *(f"+ {line}" for line in self.now.splitlines())]
        )


@dataclass(frozen=True)
class Found:
    """What came of the mutants of one exercise."""

    depends_on: str
    tried: int
    survivors: tuple[Survivor, ...]

    @property
    def equivalent(self) -> int:
        return sum(survivor.why is not None for survivor in self.survivors)

    @property
    def unexplained(self) -> list[Survivor]:
        return [survivor for survivor in self.survivors if survivor.why is None and not survivor.slow]

    @property
    def caught(self) -> int:
        return self.tried - self.equivalent - len(self.unexplained)


Report = dict[str, Found]  # by the exercise's id


@dataclass(frozen=True)
class Explanation:
    """Why the mutant of an exercise with these lines computes the same."""

    exercise: str
    was: str
    now: str
    why: str


def found(outcomes: Iterable[tuple[Mutant, Outcome]], depends_on: str) -> Found:
    """Raises ValueError for a mutant on which the grader itself fails."""
    pairs = list(outcomes)
    for mutant, outcome in pairs:
        if outcome == "fault":
            raise ValueError(f"the check raises an error of its own for\n{mutant.source}")
    survivors = [Survivor(m.kind, m.was, m.now, o == "slow") for m, o in pairs if o in ("survived", "slow")]
    return Found(depends_on, len(pairs), tuple(survivors))


def load(text: str | None = None) -> Report:
    """The report in this text, or else in report.json; an empty one where there is none."""
    if text is None:
        text = REPORT.read_text(encoding="utf-8") if REPORT.exists() else "{}"
    return {
        id: Found(of["depends_on"], of["tried"], tuple(Survivor(**survivor) for survivor in of["survivors"]))
        for id, of in json.loads(text).get("exercises", {}).items()
    }


def dump(report: Report) -> str:
    """The report as report.json has it: figures for every chapter, and for every exercise its survivors."""
    content = {
        "chapters": {chapter: figures(of.values()) for chapter, of in by_chapter(report).items()},
        "exercises": {
            id: {"depends_on": of.depends_on, **figures([of]), "survivors": [asdict(s) for s in of.survivors]}
            for id, of in report.items()
        },
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def save(report: Report) -> None:
    write_atomically(REPORT, dump(report).encode())


def figures(of: Iterable[Found]) -> dict[str, Any]:
    """tried, caught, equivalent, and the share: caught of those that are not equivalent."""
    several = list(of)
    tried, caught, equivalent = (
        sum(getattr(one, name) for one in several) for name in ("tried", "caught", "equivalent")
    )
    share = round(caught / (tried - equivalent), 4) if tried > equivalent else 1.0
    return {"tried": tried, "caught": caught, "equivalent": equivalent, "share": share}


def by_chapter(report: Report) -> dict[str, Report]:
    """In the course's order; what the course no longer has is left out."""
    chapters: dict[str, Report] = {}
    for exercise in code_exercises():
        if exercise.id in report:
            chapters.setdefault(chapter_of(exercise), {})[exercise.id] = report[exercise.id]
    return chapters


def explanations(path: Path = EQUIVALENT) -> list[Explanation]:
    """Raises ValueError for an entry without its three parts, naming it."""
    entries = []
    for exercise, tables in tomllib.loads(path.read_text(encoding="utf-8")).items():
        for table in tables:
            if set(table) != {"was", "now", "why"} or not table["why"].strip():
                raise ValueError(f"{path.name}: an entry of {exercise} needs `was`, `now` and `why`, and has {table}")
            entries.append(Explanation(exercise, **table))
    return entries


def explained(report: Report, given: Iterable[Explanation]) -> Report:
    """The report with the explanations that stand now, and no others."""
    why = {(e.exercise, e.was, e.now): e.why for e in given}
    return {
        id: Found(
            of.depends_on,
            of.tried,
            tuple(Survivor(s.kind, s.was, s.now, s.slow, why.get((id, s.was, s.now))) for s in of.survivors),
        )
        for id, of in report.items()
    }


def problems(report: Report, given: Iterable[Explanation]) -> Iterator[str]:
    """Survivors that nothing explains, and explanations of what does not survive."""
    for id, of in report.items():
        for survivor in of.unexplained:
            yield f"{id}: no check notices this mutant, and equivalent.toml does not explain it\n{survivor}"
    exercises = {exercise.id for exercise in code_exercises()}
    for e in given:
        untried = e.exercise in exercises and e.exercise not in report
        survivors = report[e.exercise].survivors if e.exercise in report else ()
        if not untried and (e.was, e.now) not in {(s.was, s.now) for s in survivors}:
            yield f"{e.exercise}: equivalent.toml explains a mutant that does not survive\n- {e.was}\n+ {e.now}"
