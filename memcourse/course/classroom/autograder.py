"""What runs on Gradescope: `python -m memcourse.course.classroom.autograder CHAPTER HOME`.

HOME holds submission/, source/ (what was packed) and results/, and submission_metadata.json beside them.
Whatever happens, HOME/results/results.json is written; what only the instructor should see is hidden from learners.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import traceback
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from memcourse.course.classroom.gradescope import CONFIG, EXTRA_CHECKS, not_graded, results_json
from memcourse.course.classroom.results import load_all
from memcourse.course.start import write_atomically

FAILED = "The grader failed, which is not your fault. Please tell your instructor."


class GraderFailed(RuntimeError):
    """`memcourse grade` did not end well; the message is what it said."""


def main(chapter: str, home: Path) -> None:
    try:
        found = grade(chapter, home)
    except Exception:  # a fault of ours costs the learner no mystery, and the instructor no evidence
        traceback.print_exc()
        found = not_graded(FAILED, traceback.format_exc())
    write_atomically(home / "results" / "results.json", f"{json.dumps(found, indent=1)}\n".encode())


def grade(chapter: str, home: Path) -> dict[str, Any]:
    """The content of results.json. Raises GraderFailed, and whatever a broken container may raise."""
    submission, source = home / "submission", home / "source"
    if not any(path.suffix in (".ipynb", ".zip") for path in submission.rglob("*")):
        return not_graded(f"There is no notebook in this submission: hand in exercises/{chapter}.ipynb.")
    learner, submitted = _metadata(home / "submission_metadata.json")
    with TemporaryDirectory(prefix="memcourse-") as folder:
        submissions, report = Path(folder, "submissions"), Path(folder, "report")
        shutil.copytree(submission, submissions / learner, symlinks=True)
        if submitted is not None:
            for path in (submissions / learner).rglob("*"):
                os.utime(path, (submitted, submitted), follow_symlinks=False)
        command = [sys.executable, "-P", "-m", "memcourse", "grade", str(submissions), "--out", str(report)]
        for option, path in (("--config", source / CONFIG), ("--extra-checks", source / EXTRA_CHECKS)):
            command += [option, str(path)] if path.exists() else []
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        print(done.stdout)
        graded = load_all(report)
        if not graded:
            raise GraderFailed(f"exit code {done.returncode}: {done.stdout.strip()}")
    wanted = [one for one in graded if one.fault or one.chapter == chapter]
    if not wanted:
        others = ", ".join(sorted({one.chapter for one in graded}))
        return not_graded(f"This assignment is {chapter}, and what was handed in is {others}.")
    return results_json(wanted)


def _metadata(path: Path) -> tuple[str, float | None]:
    """Who handed in, as a folder may be called, and when (seconds since 1970)."""
    if not path.exists():
        return "learner", None
    said = json.loads(path.read_bytes())
    name = next((user["name"] for user in said.get("users", [])), "learner")
    created = said.get("created_at")
    folder = re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", name).strip(" .") or "learner"
    return folder, datetime.fromisoformat(created).timestamp() if created else None


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
