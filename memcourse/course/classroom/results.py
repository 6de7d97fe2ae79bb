"""What grading found in each submission, kept as one file for each, so that a run can stop and go on."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from memcourse.course.exercise import Report
from memcourse.course.start import write_atomically

FOLDER = "results"
PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")
MARKED = re.compile(r".*-[0-9a-f]{12}")


@dataclass(frozen=True)
class Graded:
    """One submission.

    source:     its place in the folder of submissions; inside a zip, "ada.zip/01_attention.ipynb"
    submitted:  when it was handed in (ISO 8601), where that is known
    points:     after the late rule; raw_points are before it
    late:       "" or "2 days late: 60 %"; days_late (begun) and share (what is kept of the points, 0.6) are the same
    fault:      "" or why it could not be graded, a sentence that begins with It
    level:      how the answers were confined
    note:       "" or what was odd about a submission that was graded all the same
    fingerprints: exercise id -> that of the answer's syntax tree, see memcourse.course.classroom.similarity
    """

    learner: str
    chapter: str
    source: str
    submitted: str | None
    reports: tuple[Report, ...]
    points: float
    raw_points: float
    max_points: float
    late: str
    fault: str
    level: str | None
    seconds: float
    note: str = ""
    fingerprints: dict[str, str] = field(default_factory=dict)
    days_late: int = 0
    share: float = 1.0

    @property
    def refusal(self) -> str:
        """Which submission was not graded, and why: "ada.zip: It is empty." """
        return f"{self.source}: {self.fault}"


def to_dict(graded: Graded) -> dict[str, Any]:
    return asdict(graded)


def from_dict(fields: Mapping[str, Any]) -> Graded:
    """Raises KeyError, TypeError or ValueError for what `to_dict` did not make."""
    reports = tuple(Report(**report | {"stages": tuple(report["stages"])}) for report in fields["reports"])
    return Graded(**dict(fields) | {"reports": reports})


def save(graded: Graded, folder: Path, fingerprint: str = "") -> Path:
    """Write one result into `folder`/results, whole or not at all.

    fingerprint: of all that the result came from.  While it stays the same, the result can be used again.
    """
    path = folder / FOLDER / f"{safe_name(graded.source)}.json"
    text = json.dumps({"fingerprint": fingerprint, **to_dict(graded)}, indent=1, ensure_ascii=True)
    write_atomically(path, f"{text}\n".encode())
    return path


def load(source: str, folder: Path, fingerprint: str) -> Graded | None:
    """The result of this submission, where there is one that came from the very same things."""
    try:
        fields = json.loads((folder / FOLDER / f"{safe_name(source)}.json").read_bytes())
        kept = fields.pop("fingerprint")
        return from_dict(fields) if kept == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none yet, or not of our making
        return None


def load_all(folder: Path) -> list[Graded]:
    """Every result in `folder`/results, by learner and chapter.  Raises ValueError for a file that is none."""
    found = []
    for path in (folder / FOLDER).glob("*.json"):
        try:
            fields = json.loads(path.read_bytes())
            del fields["fingerprint"]
            found.append(from_dict(fields))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a result of `memcourse grade`: {error}") from error
    return sorted(found, key=order)


def order(graded: Graded) -> tuple[str, str, str]:
    return graded.learner.casefold(), graded.chapter, graded.source


def safe_name(text: str) -> str:
    """A file name for any text: its plain letters, and a hash where that is not the whole of it.

    No two texts share a name, not even where the file system takes `A` for `a`.
    """
    if PLAIN.fullmatch(text) and not MARKED.fullmatch(text):
        return text
    plain = re.sub(r"[^a-z0-9._-]+", "_", text.casefold()).strip("._-")[:60]
    return f"{plain or 'x'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
