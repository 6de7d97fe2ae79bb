"""The notebooks in a zip, read into memory and never onto the disk.

Runs in a grading process, for a zip is hostile: its names may lead elsewhere, its entries may be links, and what is
small when packed may be huge.  A zip that tries is refused whole.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from memcourse.course.classroom.reading import CannotRead

MOST_ENTRIES = 500
LARGEST_ENTRY = 20 << 20
LARGEST_TOTAL = 100 << 20
ENCRYPTED = 0x1
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others give up any amount of memory at once


class Member(NamedTuple):
    name: str
    content: bytes
    time: datetime | None  # of the clock on the wall where it was packed: a zip has no time zones
    fault: str = ""


def plain_file(path: Path) -> BinaryIO:
    """Open it to read; neither wait for a pipe nor follow a link that took its place."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return open(os.open(path, os.O_RDONLY | flags), "rb")


def passed_over(name: str) -> bool:
    """Is this a file that systems and editors leave about?  A notebook is none, whatever its name begins with."""
    return name[0] in ".~" and (name.startswith("._") or not name.lower().endswith(".ipynb"))


def folder_passed_over(name: str) -> bool:
    """Is this a folder that systems, editors and the course itself keep for themselves, as .memcourse is?"""
    return name[0] in ".~" or name == "__MACOSX"


def members(path: Path) -> list[Member]:
    """The notebooks of a zip, and the zips inside it with a fault.  Raises CannotRead for the zip as a whole."""
    found: list[Member] = []
    with _opened(path) as archive:
        for entry in archive.infolist():
            name = PurePosixPath(entry.filename)
            if entry.is_dir() or any(map(folder_passed_over, name.parts[:-1])) or passed_over(name.name):
                continue
            if name.suffix.lower() == ".zip":
                found.append(Member(entry.filename, b"", None, "is a zip inside a zip, which is not opened"))
            elif name.suffix.lower() == ".ipynb":
                found.append(_member(entry, _unpacked(archive, entry)))
            if sum(len(member.content) for member in found) > LARGEST_TOTAL:
                raise CannotRead(f"holds more than {LARGEST_TOTAL >> 20} MB of notebooks")
    return found


def content(path: Path, name: str) -> bytes:
    """One member again.  Raises CannotRead."""
    with _opened(path) as archive:
        return _unpacked(archive, archive.getinfo(name))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with plain_file(path) as file, zipfile.ZipFile(file) as archive:
            _refuse(archive.infolist())
            yield archive
    except CannotRead:
        raise
    except OSError as error:
        raise CannotRead(f"cannot be read: {error.strerror or error}") from None
    except Exception as error:  # a malformed zip can fail anywhere inside zipfile, with any exception
        raise CannotRead(f"is not a zip that can be read: {error or type(error).__name__}") from None


def _unpacked(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """An entry as it really unpacks, whatever size it claims, and one byte more than is allowed at most."""
    with archive.open(entry) as file:
        return file.read(LARGEST_ENTRY + 1)


def _member(entry: zipfile.ZipInfo, content: bytes) -> Member:
    time = None
    with suppress(ValueError):  # a zip may claim the 0th of a month
        time = datetime(*entry.date_time)
    if len(content) > LARGEST_ENTRY:
        return Member(entry.filename, b"", time, f"is larger than {LARGEST_ENTRY >> 20} MB")
    return Member(entry.filename, content, time)


def _refuse(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > MOST_ENTRIES:
        raise CannotRead(f"is refused: it has {len(entries)} entries, and {MOST_ENTRIES} are allowed")
    seen = set()
    for entry in entries:
        name = entry.filename.replace("\\", "/")
        if name.startswith("/") or ":" in name.split("/")[0] or ".." in name.split("/"):
            raise CannotRead(f"is refused: its entry {entry.filename!r} leads out of it")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise CannotRead(f"is refused: its entry {entry.filename!r} is a link")
        if entry.flag_bits & ENCRYPTED:
            raise CannotRead("is encrypted: hand it in without a password")
        if entry.compress_type not in PACKED:
            raise CannotRead(f"is packed in a way that is not read (method {entry.compress_type}): use an ordinary zip")
        if entry.filename in seen:
            raise CannotRead(f"is refused: it has two entries {entry.filename!r}")
        seen.add(entry.filename)
