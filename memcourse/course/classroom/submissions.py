"""The submissions in a folder: notebooks, zips of notebooks, or one folder of these for each learner.

`walk` looks at names alone.  `look` and `fetch` read the files and run in a grading process.

A submission counts as handed in at the time of its entry in a zip, else at the file's time of modification; what
the class's file says under [submitted] counts before both.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path, PurePath, PurePosixPath

from memcourse.course.classroom import reading, zips
from memcourse.course.classroom.reading import CannotRead
from memcourse.course.start import KEPT

LARGEST_NOTEBOOK = zips.LARGEST_ENTRY
LARGEST_ZIP = 50 << 20
NOTEBOOK, ZIP = ".ipynb", ".zip"
COPY_OF_A_FILE = re.compile(r"( ?\(\d+\)| - Copy)+$")  # as browsers and systems end a name that is taken


@dataclass(frozen=True)
class Submission:
    """One file that a learner handed in, or one notebook of a zip.

    learner:  as the folder or the file's name says
    source:   its place among the submissions, in characters that can be printed; no two are the same
    member:   its name inside the zip;   sha256: of the notebook
    """

    learner: str
    source: str
    path: Path
    member: str | None = None
    sha256: str = ""
    submitted: datetime | None = None
    chapter: str = ""
    fault: str = ""
    note: str = ""


def walk(folder: Path) -> list[Submission]:
    """Every notebook and zip under `folder`, and a fault for whatever else a learner may have meant to hand in."""
    found: list[Submission] = []
    for entry in _entries(folder):
        name = entry.name
        if entry.is_dir(follow_symlinks=False) and not name.lower().endswith(NOTEBOOK):
            own = list(_files(Path(entry.path), folder))
            rest = _rest_of_a_copy([file.path for file in own])
            files = [replace(file, learner=display(name)) for file in own if file.path not in rest]
            nothing = Submission(display(name), display(name), Path(entry.path), fault="holds no notebook and no zip")
            found += files or [nothing]
        else:
            found.append(_file(entry, folder))
    return found


def look(submission: Submission, zone: tzinfo) -> list[Submission]:
    """What a file holds: itself with its chapter, or each notebook of a zip; with a fault where it cannot be graded."""
    try:
        time = _modified(submission.path)
        if submission.path.suffix.lower() == NOTEBOOK:
            whole = replace(submission, submitted=time)
            return [_with_chapter(whole, _content(submission.path), submission.path.stem)]
        if submission.path.stat().st_size > LARGEST_ZIP:
            raise CannotRead(f"is larger than {LARGEST_ZIP >> 20} MB")
        members = zips.members(submission.path)
        rest = _rest_of_a_copy([PurePosixPath(member.name) for member in members])
        members = [member for member in members if PurePosixPath(member.name) not in rest]
        if not members:
            raise CannotRead("holds no notebook")
    except CannotRead as error:
        return [replace(submission, fault=str(error))]
    except OSError as error:
        return [replace(submission, fault=f"cannot be read: {error.strerror}")]
    found = []
    for member in members:
        one = replace(
            submission,
            source=f"{submission.source}/{display(member.name)}",
            member=member.name,
            submitted=member.time.replace(tzinfo=zone) if member.time else time,
            fault=member.fault,
        )
        found.append(one if one.fault else _with_chapter(one, member.content, Path(member.name).stem))
    return found


def _rest_of_a_copy(paths: Sequence[PurePath]) -> set[PurePath]:
    """Where a learner hands in the whole of my_course: what lies there beside the exercises."""
    copies = {path.parent.parent for path in paths if path.parent.name == "exercises"}
    return {
        path
        for path in paths
        for copy in copies
        if path.is_relative_to(copy) and path.relative_to(copy).parts[0] in ("chapters", "solutions", KEPT)
    }


def fetch(submission: Submission) -> bytes:
    """The notebook itself, the same that `look` saw.  Raises CannotRead."""
    if submission.member is None:
        content = _content(submission.path)
    else:
        content = zips.content(submission.path, submission.member)
    if hashlib.sha256(content).hexdigest() != submission.sha256:
        raise CannotRead("changed while the submissions were graded")
    return content


def display(name: str) -> str:
    """A file's name in characters that can be shown and written; different names stay different."""
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in name)


def _with_chapter(submission: Submission, content: bytes, name: str) -> Submission:
    known = replace(submission, sha256=hashlib.sha256(content).hexdigest())
    try:
        read = reading.read(content, name)
    except CannotRead as error:
        return replace(known, fault=str(error))
    return replace(known, chapter=read.chapter, note=read.note)


def _modified(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
    except (ValueError, OverflowError):  # a file may claim any year
        return None


def _content(path: Path) -> bytes:
    try:
        with zips.plain_file(path) as file:
            content = file.read(LARGEST_NOTEBOOK + 1)
    except OSError as error:
        raise CannotRead(f"cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_NOTEBOOK:
        raise CannotRead(f"is larger than {LARGEST_NOTEBOOK >> 20} MB")
    return content


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not zips.passed_over(entry.name)), key=lambda entry: entry.name)


def _files(folder: Path, root: Path) -> Iterator[Submission]:
    """The notebooks and zips of one learner, in folders of any depth."""
    try:
        entries = _entries(folder)
    except OSError as error:
        place = display(folder.relative_to(root).as_posix())
        yield Submission(place, place, folder, fault=f"cannot be read: {error.strerror}")
        return
    for entry in entries:
        suffix = Path(entry.name).suffix.lower()
        if entry.is_dir(follow_symlinks=False) and suffix != NOTEBOOK:
            if entry.name != "__MACOSX":
                yield from _files(Path(entry.path), root)
        elif suffix in (NOTEBOOK, ZIP) or entry.is_symlink():
            yield _file(entry, root)


def _file(entry: os.DirEntry[str], root: Path) -> Submission:
    path = Path(entry.path)
    source = "/".join(display(part) for part in path.relative_to(root).parts)
    return Submission(_learner(path), source, path, fault=_not_a_submission(entry))


def _not_a_submission(entry: os.DirEntry[str]) -> str:
    suffix = Path(entry.name).suffix.lower()
    if entry.is_symlink():
        return "is a link, and links are not followed"
    if entry.is_dir():
        return "is a folder with the name of a notebook"
    if suffix not in (NOTEBOOK, ZIP):
        return "is neither a notebook nor a zip"
    return "" if stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode) else "is not a plain file"


def _learner(path: Path) -> str:
    """The file's name without the chapter's; the whole of it where nothing else is left."""
    name = COPY_OF_A_FILE.sub("", path.stem) or path.stem
    slug = reading.slug_in(name)
    parts = re.split(rf"[\W_]*{re.escape(slug)}[\W_]*", name) if slug else [name]
    return display("_".join(filter(None, parts)) or name)
