"""Files by name: where they come from, whether they are whole, and how they get here.

Every file has a recorded size and sha256: it is used only when both agree, and gets its name only when whole.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tomllib
from difflib import get_close_matches
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

CHUNK = 1 << 16  # bytes


class DataError(RuntimeError):
    """Data that is missing, altered, or cannot be fetched.  The message says what mends it."""


class AlteredError(DataError):
    """A file that is there, truncated or with other content than recorded."""


class File(NamedTuple):
    """One file below the data folder."""

    path: str
    n_bytes: int
    sha256: str
    url: str | None = None  # None: no public address offers this very file


class Source(NamedTuple):
    """A data set: its parts, each in one or two forms of which either will do."""

    licence: str
    origin: str
    parts: tuple[tuple[File, ...], ...]


class Entry(NamedTuple):
    """A row of `catalog`."""

    name: str
    megabytes: float
    licence: str
    source: str
    state: str  # "ready" | "not here" | "altered" | "place it by hand: ..."


def recorded_sources() -> dict[str, Source]:
    table = tomllib.loads(Path(__file__).with_name("sources.toml").read_text("utf-8"))
    return {
        name: Source(
            licence=row["licence"],
            origin=row["origin"],
            parts=tuple(tuple(File(**form) for form in forms) for forms in row["parts"].values()),
        )
        for name, row in table.items()
    }


SOURCES = recorded_sources()


def data_folder() -> Path:
    """`MEMCOURSE_DATA` where it is set, else the user's cache folder."""
    if chosen := os.environ.get("MEMCOURSE_DATA"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        cache = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        cache = Path.home() / "Library" / "Caches"
    else:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "memcourse"


def find(name: str) -> Source:
    """The source of that name.  Raises ValueError with the nearest names."""
    if name not in SOURCES:
        near = get_close_matches(name, SOURCES) or SOURCES
        raise ValueError(f"name is {name!r}, and there is no such data; allowed: {', '.join(near)}")
    return SOURCES[name]


def read(name: str, folder: Path | None = None) -> list[bytes]:
    """The content of each part of the data set: the very bytes that were checked.

    Raises DataError, naming the file, what was expected and what was found, where one is missing or altered.
    """
    return [read_part(name, forms, folder or data_folder()) for forms in find(name).parts]


def read_part(name: str, forms: tuple[File, ...], folder: Path) -> bytes:
    can_be_fetched = any(file.url for file in forms)
    command = f"run: memcourse data {name}"
    remedy = command if can_be_fetched else f"{by_hand(name)}; then {command}"
    expected = f"expected {forms[0].n_bytes} bytes with sha256 {forms[0].sha256}"
    problem = DataError(f"{folder / forms[0].path} is not there: {expected}, found no file; {remedy}")
    for file in forms:
        path = folder / file.path
        if path.is_file():
            data = path.read_bytes()
            if is_whole(file, data):
                return data
            problem = AlteredError(f"{path} is not the file it should be: {difference(file, data)}; {remedy}")
    raise problem


def is_whole(file: File, data: bytes) -> bool:
    return len(data) == file.n_bytes and hashlib.sha256(data).hexdigest() == file.sha256


def difference(file: File, data: bytes) -> str:
    found = f"found {len(data)} bytes with sha256 {hashlib.sha256(data).hexdigest()}"
    return f"expected {file.n_bytes} bytes with sha256 {file.sha256}, {found}"


def by_hand(name: str) -> str:
    """What to do about data whose public address offers it in another form only."""
    source = find(name)
    files = ", ".join(forms[0].path for forms in source.parts)
    return f"place it by hand: {files}, made from {source.origin}"


def catalog(folder: Path | None = None) -> list[Entry]:
    """Every data set by name, with its size, licence, public source and whether it is here, whole."""
    return [
        Entry(name, sum(forms[-1].n_bytes for forms in parts) / 1e6, licence, origin, state(name, folder))
        for name, (licence, origin, parts) in SOURCES.items()
    ]


def state(name: str, folder: Path | None) -> str:
    try:
        read(name, folder)
        return "ready"
    except AlteredError:
        return "altered"
    except DataError:
        fetchable = all(any(file.url for file in forms) for forms in find(name).parts)
        return "not here" if fetchable else by_hand(name)


def download(name: str, folder: Path | None = None) -> Path:
    """Fetch what is not here yet; returns the folder.  A whole file is left alone, an altered one replaced.

    What arrives is kept as `FILE.part` until it is whole, and the next call goes on from there.  Raises
    DataError where no public address offers the file, the connection breaks, or the file received is not the
    one recorded.
    """
    folder = folder or data_folder()
    for forms in find(name).parts:
        try:
            read_part(name, forms, folder)
        except DataError:
            file = next((file for file in forms if file.url), None)
            if file is None:
                raise DataError(f"{name} cannot be fetched; {by_hand(name)}") from None
            try:
                fetch(file, folder / file.path)
            except (OSError, HTTPException) as error:
                again = f"what has arrived is kept, and  memcourse data {name}  goes on from there"
                raise DataError(f"{file.path} did not arrive from {file.url}: {error}; {again}") from error
    return folder


def fetch(file: File, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    receive(file, part)
    data = part.read_bytes()
    if len(data) < file.n_bytes:
        raise OSError(f"the connection closed after {len(data)} of {file.n_bytes} bytes")
    if not is_whole(file, data):
        part.unlink()
        raise DataError(f"{file.url} gave another file: {difference(file, data)}; nothing of it was kept")
    os.replace(part, path)


def receive(file: File, part: Path) -> None:
    """Append to `part` what the server has beyond it, and never more than one byte too much."""
    from tqdm import tqdm

    start = part.stat().st_size if part.is_file() else 0
    if start >= file.n_bytes:
        return
    request = Request(str(file.url), headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urlopen(request, timeout=30)
    except HTTPError as error:
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # longer than the server's file: of no use
        raise
    with response:
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        start = start if resumed else 0
        offered = start + int(response.headers.get("Content-Length", file.n_bytes - start))
        if offered != file.n_bytes:
            part.unlink(missing_ok=True)
            raise DataError(f"{file.url} gave another file: expected {file.n_bytes} bytes, found {offered}")
        bar = tqdm(total=file.n_bytes, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None)
        with bar, part.open("ab" if resumed else "wb") as out:
            while chunk := response.read(min(CHUNK, file.n_bytes + 1 - out.tell())):
                out.write(chunk)
                bar.update(len(chunk))
