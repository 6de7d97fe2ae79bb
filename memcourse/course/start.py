"""The learner's copy of the course: made, brought up to a new version, found again, opened in JupyterLab.

The copy holds chapters/, exercises/ and solutions/, and a manifest with the hash of every file as it was
copied. A file that still has that hash is the course's and follows new versions; a file that differs is the
learner's and is never written again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import memcourse

PARTS = ("chapters", "exercises", "solutions")
MANIFEST = ".memcourse.json"
COPY = "my_course"


class CannotStart(Exception):
    """There is nothing to copy, or nowhere to copy it to; the message is one sentence (exit code 2)."""


@dataclass(frozen=True)
class Manifest:
    """The course's version that a copy has, and the SHA-256 of each of its files as they were copied."""

    version: str
    files: dict[str, str]


@dataclass(frozen=True)
class Summary:
    """What `start` did; files are named relative to the copy, with forward slashes.

    added, updated: written.   kept: changed by the learner, and left alone.
    superseded: those of `kept` of which the course has a newer version than the one that was copied.
    """

    folder: Path
    version: str
    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    superseded: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = {"added": self.added, "updated": self.updated, "kept as you left them": self.kept}
        said = ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names) or "up to date"
        lines = [f"Your copy of the course is {self.folder} (version {self.version}): {said}."]
        lines += [f"  {name} is yours and was kept; the course has a newer one." for name in self.superseded]
        if self.superseded:
            lines.append("  To get a newer one beside yours, rename yours and run `memcourse start` again.")
        return "\n".join(lines)


def start(folder: str | os.PathLike[str] = COPY) -> Summary:
    """Make the copy, or bring it up to this version, and say what was done.

    Run again after an interruption, it finishes. Raises CannotStart.
    """
    folder, sources = Path(folder).absolute(), _sources()
    root = repository()
    if folder.resolve() == root or any(folder.resolve().is_relative_to(root / part) for part in PARTS):
        raise CannotStart(f"{folder} is the course itself; name another folder for your copy.")
    try:
        return _bring_up_to_date(folder, sources)
    except OSError as error:
        raise CannotStart(f"The copy cannot be written to {folder}: {error}.") from error


def _bring_up_to_date(folder: Path, sources: dict[str, Path]) -> Summary:
    copied = read_manifest(folder).files if (folder / MANIFEST).exists() else {}
    summary = Summary(folder, memcourse.__version__)
    try:
        for name, source in sources.items():
            target, content = folder / name, source.read_bytes()
            new, old = _sha256(content), copied.get(name)
            present = _sha256(target.read_bytes()) if target.exists() else None
            if present not in (None, new, old):
                summary.kept.append(name)
                if old != new:
                    summary.superseded.append(name)
                continue
            if present != new:
                write_atomically(target, content)
                (summary.added if present is None else summary.updated).append(name)
            copied[name] = new
    finally:  # an interrupted run records what it has done
        document = {"version": memcourse.__version__, "files": copied}
        write_atomically(folder / MANIFEST, (json.dumps(document, indent=1) + "\n").encode())
    return summary


def lab(folder: str | os.PathLike[str] = COPY) -> None:
    """Bring the copy up to date and serve it with JupyterLab, at the first chapter, until it is stopped.

    Without a browser the address is printed. Raises CannotStart.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise CannotStart("JupyterLab is not installed; `memcourse doctor` has the command that installs it.")
    summary = start(folder)
    print(summary)
    chapter = min(name for name in _sources() if name.startswith("chapters/"))
    print(f"JupyterLab opens {chapter}; the address is printed below, and Ctrl-C stops it.", flush=True)

    # `memcourse` works in JupyterLab's terminals though the environment is not activated,
    # and kernels, which run in the notebook's folder, find the data.
    commands = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([commands, os.environ.get("PATH", os.defpath)])
    if data := os.environ.get("MEMCOURSE_DATA"):
        os.environ["MEMCOURSE_DATA"] = os.path.abspath(data)

    from jupyterlab.labapp import LabApp

    root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    LabApp.launch_instance(
        [f"--ServerApp.root_dir={summary.folder}", f"--LabApp.default_url=/lab/tree/{chapter}", *root]
    )


def find_copy(start_dir: str | os.PathLike[str] = ".") -> Path | None:
    """The course copy that holds `start_dir`, or else the one in `start_dir`/my_course, or else None."""
    here = Path(start_dir).resolve()
    folders = (here, *here.parents, here / COPY)
    return next((folder for folder in folders if (folder / MANIFEST).is_file()), None)


def read_manifest(copy: Path) -> Manifest:
    """The manifest of a copy. Raises CannotStart where it is not one."""
    try:
        document = json.loads((copy / MANIFEST).read_bytes())
        return Manifest(str(document["version"]), dict(document["files"]))
    except (ValueError, KeyError, TypeError) as error:
        raise CannotStart(
            f"{copy / MANIFEST} is unreadable; remove it and run `memcourse start` again (your work is kept)."
        ) from error


def repository() -> Path:
    """The folder beside the package, which holds the notebooks where the package comes from a clone."""
    return Path(memcourse.__file__).resolve().parents[1]


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its place and rename it, so that nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _sources() -> dict[str, Path]:
    """Name in the copy -> file of the repository. Raises CannotStart where there is no repository."""
    root = repository()
    notebooks = sorted(path for part in PARTS for path in (root / part).glob("*.ipynb"))
    if not any(path.parent.name == "chapters" for path in notebooks):
        raise CannotStart("The notebooks do not come with the package: clone the course and run `make course` there.")
    return {path.relative_to(root).as_posix(): path for path in notebooks}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
