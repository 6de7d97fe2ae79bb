"""What a store's folder holds: one manifest that says what is valid, and files that are valid only by it.

    manifest.json           format, dim, metric, index, made_by, documents, and for each file its rows and checksums
    keys-1.f16              float16 rows, appended to; what lies behind the rows of the manifest is nothing
    values-1.bin            rows of the values' own dtype, likewise
    index-2.faiss           an index of the first so many rows
    manifest.partial.json   how far an unfinished build has come; the manifest's own form
    lock                    held by the one writer

Adding writes behind the valid rows; deleting and replacing write files with the next number beside the old ones.
Either way the change comes into force by one rename of the manifest: a kill leaves what was before or what is after.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FORMAT = 1
MANIFEST, PARTIAL, LOCK = "manifest.json", "manifest.partial.json", "lock"
NUMBERED = re.compile(r"(?:keys|values|index)-(\d+)\.(?:f16|bin|faiss)")
NO_SPACE = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
MANIFEST_ROOM = 1 << 16  # bytes left free for the manifest itself


def write_manifest(path: Path, content: dict[str, Any]) -> str:
    """Put a manifest in the place of the one before by one rename; returns its checksum."""
    content = {"format": FORMAT, **content}
    content["checksum"] = _checksum(content)
    beside = path.with_name(f"{path.name}.part")
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    with suppress(OSError):  # not every system lets a folder be synced
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return content["checksum"]


def read_manifest(path: Path) -> dict[str, Any] | None:
    """What a manifest says, None where there is none.

    Raises ValueError for a file that is no manifest, of another format, cut short or altered.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except UnicodeDecodeError:
        raise ValueError(f"{path} was altered: it is not text") from None
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        raise ValueError(f"{path} is cut short or was altered: it is not JSON") from None
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError(f"{path} is not the manifest of a datastore")
    if content["format"] != FORMAT:
        raise ValueError(f"{path} is of format {content['format']}, and this version of memcourse reads {FORMAT}")
    if content.get("checksum") != _checksum({key: part for key, part in content.items() if key != "checksum"}):
        raise ValueError(f"{path} was altered: its checksum is not that of its content")
    return content


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def next_number(folder: Path) -> int:
    """A number that no file of the folder has had, as far as can be seen."""
    return 1 + max((int(found[1]) for name in os.listdir(folder) if (found := NUMBERED.fullmatch(name))), default=0)


def sweep(folder: Path) -> None:
    """Remove what interrupted writers have left and what has been replaced: all that no manifest names."""
    try:
        manifests = [content for name in (MANIFEST, PARTIAL) if (content := read_manifest(folder / name))]
    except ValueError:
        return  # what a damaged manifest named cannot be told
    columns = ("keys", "values", "faiss")
    valid = {content[part]["file"] for content in manifests for part in columns if content[part]}
    for name in os.listdir(folder):
        if (NUMBERED.fullmatch(name) and name not in valid) or name in (f"{MANIFEST}.part", f"{PARTIAL}.part"):
            with suppress(PermissionError):  # a system where a file that is still mapped stays: the next sweep
                (folder / name).unlink(missing_ok=True)


@contextmanager
def room_for(n_bytes: int, folder: Path) -> Iterator[None]:
    """Inside, n bytes are written.  Raises OSError, with the bytes needed and free, before or when the disk is full."""

    def full() -> OSError:
        free = shutil.disk_usage(folder).free
        message = f"the disk is full: {n_bytes} bytes needed, {free} free; what was in {folder} before is intact"
        return OSError(errno.ENOSPC, message)

    if shutil.disk_usage(folder).free < n_bytes + MANIFEST_ROOM:
        raise full()
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        raise full() from error
