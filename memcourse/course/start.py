"""The learner's copy of the course: made, brought up to a new version, found again, opened in JupyterLab.

The copy holds chapters/, exercises/ and solutions/, and in .memcourse/base/ every notebook as it was copied. One that
is still the same is the course's, and follows new versions. One that differs is the learner's: a new version is merged
into it cell by cell (see memcourse.course.merge), and how it was before stays in kept/, byte for byte.

A notebook is written first, then its base, then the manifest: whatever is interrupted, the next run finds out which of
the three has been done.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from itertools import chain, count
from pathlib import Path

from packaging.version import Version

import memcourse
from memcourse.course import merge

PARTS = ("chapters", "exercises", "solutions")
MANIFEST = ".memcourse.json"
BASE = ".memcourse/base"  # notebooks as they were copied
KEPT = "kept"  # the learner's notebooks as they were before a merge
COPY = "my_course"


class CannotStart(Exception):
    """There is nothing to copy, or nowhere to copy it to; the message is one sentence (exit code 2)."""


@dataclass(frozen=True)
class Manifest:
    """The course's version that a copy has, the SHA-256 of each of its files as it was copied, and the learner's name.

    The hashes are for copies from before .memcourse/base.
    """

    version: str
    files: dict[str, str]
    learner: str = ""


@dataclass(frozen=True)
class Summary:
    """What `start` did; files are named relative to the copy, with forward slashes.

    added, updated: written.   merged: the learner's, with the new version in it.   kept: the learner's, left alone.
    superseded: those of `kept` of which the course has a newer version, and why the two could not be merged.
    learner, before: whose copy it is, and whose it was; "" for nobody's.
    """

    folder: Path
    version: str
    learner: str = ""
    before: str = ""
    added: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    merged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    superseded: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = {
            "added": self.added,
            "updated": self.updated,
            "merged with your work": self.merged,
            "kept as you left them": self.kept,
        }
        said = ", ".join(f"{len(names)} {what}" for what, names in counts.items() if names) or "up to date"
        lines = [f"Your copy of the course is {self.folder} (version {self.version}): {said}."]
        lines += [f"  {name} has the new version around your work." for name in self.merged]
        if self.merged:
            lines.append(
                f"  How it was before is in {KEPT}/. Where JupyterLab has it open: File > Reload Notebook from Disk."
            )
        for name, reason in self.superseded.items():
            lines.append(f"  {name} is yours and was kept; the course has a newer one, but yours {reason}.")
        if self.superseded:
            lines.append("  To get a newer one beside yours, rename yours and run `memcourse start` again.")
        if self.learner:
            lines.append(self._whose())
        return "\n".join(lines)

    def _whose(self) -> str:
        """Whose copy it is, and where its numbers are not those of the notebooks."""
        from memcourse.course.checks import all_exercises  # brings in torch

        varied = ", ".join(exercise.id for exercise in all_exercises() if exercise.variant)
        shows = "`memcourse question ID` shows them."
        if self.before and self.before.casefold() != self.learner.casefold():  # as names count in variants.py
            return f"This copy was {self.before}'s; it is {self.learner}'s now, with other numbers in {varied}: {shows}"
        return f"This copy is {self.learner}'s, with numbers of its own, not the notebooks', in {varied}: {shows}"


def start(folder: str | os.PathLike[str] = COPY, *, learner: str | None = None) -> Summary:
    """Make the copy, or bring it up to this version, and say what was done.

    learner: whose copy this is, from now on; some exercises have a variant for each name. Left out: as it was.
    Run again after an interruption, it finishes. Raises CannotStart, also for a copy of a newer version.
    """
    folder, sources = Path(folder).absolute(), _sources()
    root = repository()
    if folder.resolve() == root or any(folder.resolve().is_relative_to(root / part) for part in PARTS):
        raise CannotStart(f"{folder} is the course itself; name another folder for your copy.")
    if learner is not None and not (learner.strip() and learner.isprintable()):
        raise CannotStart(f"learner must be a name, on one line, got {learner!r}.")
    try:
        return _bring_up_to_date(folder, sources, learner)
    except OSError as error:
        raise CannotStart(f"The copy cannot be written to {folder}: {error}.") from error


def _bring_up_to_date(folder: Path, sources: dict[str, Path], learner: str | None) -> Summary:
    before = read_manifest(folder) if (folder / MANIFEST).exists() else Manifest("", {})
    if before.version and is_newer(before.version):
        had, have = before.version, memcourse.__version__
        raise CannotStart(
            f"{folder} was made by version {had} of the course and you have {have}: update the course first."
        )
    whose = before.learner if learner is None else learner.strip()
    summary = Summary(folder, memcourse.__version__, whose, before.learner)
    copied = dict(before.files)
    try:
        for name, source in sources.items():
            content = source.read_bytes()
            if _bring(name, content, copied.get(name), summary):
                _write_once(folder / BASE / name, content)
                copied[name] = _sha256(content)
    finally:  # an interrupted run records what it has done
        manifest = Manifest(memcourse.__version__, copied, whose)
        _write_once(folder / MANIFEST, (json.dumps(asdict(manifest), indent=1) + "\n").encode())
    return summary


def _bring(name: str, content: bytes, recorded: str | None, summary: Summary) -> bool:
    """Bring one notebook up to the course's `content`, and note it in the summary.  Does it stand on it now?"""
    target = summary.folder / name
    present, base = _content(target), _content(summary.folder / BASE / name)
    old = recorded if base is None else _sha256(base)
    if present is None or present == content or _sha256(present) == old:
        if present != content:
            write_atomically(target, content)
            (summary.added if present is None else summary.updated).append(name)
        return True
    if old == _sha256(content):
        summary.kept.append(name)
        return True
    try:
        _merge(name, base, present, content, summary.folder)
    except merge.CannotMerge as reason:
        summary.kept.append(name)
        summary.superseded[name] = str(reason)
        return False
    summary.merged.append(name)
    return True


def _merge(name: str, base: bytes | None, present: bytes, content: bytes, folder: Path) -> None:
    """Merge `content` into the learner's notebook, once it is kept as it was.  Raises CannotMerge."""
    mine, new = merge.read(present), merge.read(content)
    stamp = {"merged": _sha256(content)}  # in the notebook itself: the base is written after it
    if stamp.items() <= merge.about(mine).items():
        return
    if base is None:
        raise merge.CannotMerge("comes from a copy that did not keep what it began from")
    was = merge.read(base)
    merged = merge.merge(was, mine, new)
    merged["metadata"]["memcourse"] |= stamp
    place = folder / KEPT / str(merge.about(was).get("version", "earlier")) / name
    numbered = (place.with_stem(f"{place.stem}-{number}") for number in count(2))
    _write_once(next(path for path in chain([place], numbered) if _content(path) in (None, present)), present)
    write_atomically(folder / name, merge.write(merged))


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
        return Manifest(
            str(Version(document["version"])), dict(document["files"]), str(document.get("learner", "")).strip()
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CannotStart(
            f"{copy / MANIFEST} is unreadable; remove it and run `memcourse start` again (your work is kept)."
        ) from error


def learner_of(copy: Path | None) -> str:
    """Whose copy it is, as `start` was told; "" where it was not. Raises CannotStart for an unreadable manifest."""
    return read_manifest(copy).learner if copy else ""


def is_newer(version: str) -> bool:
    """Is this version of the course newer than the one that runs?  Raises ValueError where it is no version."""
    return Version(version) > Version(memcourse.__version__)


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


def _write_once(path: Path, content: bytes) -> None:
    """Leave a file alone that holds this already."""
    if _content(path) != content:
        write_atomically(path, content)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _sources() -> dict[str, Path]:
    """Name in the copy -> file of the repository. Raises CannotStart where there is no repository."""
    root = repository()
    notebooks = sorted(path for part in PARTS for path in (root / part).glob("*.ipynb"))
    if not any(path.parent.name == "chapters" for path in notebooks):
        raise CannotStart("The notebooks do not come with the package: clone the course and run `make course` there.")
    return {path.relative_to(root).as_posix(): path for path in notebooks}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
