"""The rows of a store in a folder: appended to, replaced and read, by any number of readers and one writer."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from memcourse.memory import require
from memcourse.store.column import Column
from memcourse.store.documents import Documents
from memcourse.store.files import (
    LOCK,
    MANIFEST,
    MANIFEST_ROOM,
    PARTIAL,
    file_checksum,
    next_number,
    read_manifest,
    room_for,
    sweep,
    write_manifest,
)
from memcourse.store.rows import Pieces, ValueKind
from memcourse.store.state import Header, IndexFile, State


class Build(NamedTuple):
    """A build under way: what it is of, the seconds between two entries of its journal, and when the last one was."""

    what: str
    every: float
    journaled_at: float


class AnotherWriter(RuntimeError):
    """A store has one writer at a time, and this is not the one."""


class RowsOnDisk:
    """float16 keys in a folder, read through a memory map; store/files.py says what stands there.

    Raises ValueError for a folder whose store is damaged, or is not the one that `header` describes.
    """

    def __init__(self, folder: Path, header: Header, *, overwrites: bool = False) -> None:
        require(not folder.exists() or folder.is_dir(), "path", folder, "a folder, or nothing yet")
        self.folder, self.header, self._overwrites = folder, header, overwrites
        self._lock = FileLock(folder / LOCK)
        self._build: Build | None = None
        self._mapped: tuple[State, Tensor, Tensor | None] | None = None
        self._state, self._checksum = (self._empty(), None) if overwrites else self._read()

    @property
    def documents(self) -> Documents:
        return self._state.documents

    @property
    def keys(self) -> Tensor:
        return self._map(self._state)[0]

    @property
    def values(self) -> Tensor | None:
        return self._map(self._state)[1]

    @property
    def value_kind(self) -> ValueKind | None:
        values = self._state.values
        return None if values is None else ValueKind(values.dtype, values.shape)

    @property
    def checksum(self) -> str | None:
        """Of the manifest, which holds the checksums of all the rest; None before there is one."""
        return self._checksum

    @property
    def built(self) -> str | None:
        return self._state.built

    def append(self, keys: Tensor, values: Tensor, document: str | None) -> None:
        """A commit of its own; inside `building`, part of one."""
        with self._writing():
            before = self._state
            try:
                with room_for(len(keys) * self._row_bytes(values) + MANIFEST_ROOM, self.folder):
                    longer = self._extended(before, keys, values)
                    self._state = replace(longer, documents=before.documents.with_entries(document, len(keys)))
                    self._commit()
            except BaseException:
                self._state = before
                with suppress(OSError):
                    for column in before.columns:
                        column.cut(self.folder)
                raise

    def replace(self, parts: Pieces, documents: Documents) -> None:
        """Put other rows in the place of these: new files beside the old ones, then one rename; no index yet."""
        with self._changing():
            self._state = self._empty()
            for keys, values in parts:
                with room_for(len(keys) * self._row_bytes(values), self.folder):
                    self._state = self._extended(self._state, keys, values)
                    self._sync()
            self._state = replace(self._state, documents=documents)
            self._commit()
            (self.folder / PARTIAL).unlink(missing_ok=True)

    @contextmanager
    def building(self, what: str, every: float, restart: bool) -> Iterator[int]:
        """Many appends as one commit; yields the number of rows that an interrupted build has left done."""
        require(self._build is None, "building()", "inside another", "entered once")
        with self._writing(resuming=True):
            base = self._state
            self._state = self._resumed(what, restart) or base
            sweep(self.folder)
            self._build = build = Build(what, every, time.monotonic())
            try:
                yield len(self._state.documents) - len(base.documents)
                self._build, self._state = None, replace(self._state, built=what)
                self._commit()
                (self.folder / PARTIAL).unlink(missing_ok=True)
            except BaseException:
                with suppress(OSError):  # what is done is not lost; where the disk is full, the journal before stands
                    self._journal(build)
                self._state = base
                raise
            finally:
                self._build = None

    def write_index(self, write: Callable[[BinaryIO], None], n_bytes: int, rows: int, trained_on: int) -> None:
        """Put an index of the first `rows` rows beside them, of about so many bytes."""
        with self._changing():
            path = self.folder / f"index-{next_number(self.folder)}.faiss"
            with room_for(n_bytes, self.folder), open(path, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            self._state = replace(self._state, index=IndexFile(path.name, file_checksum(path), rows, trained_on))
            self._commit()

    @property
    def index_file(self) -> tuple[Path, IndexFile] | None:
        index = self._state.index
        return None if index is None else (self.folder / index.file, index)

    def _row_bytes(self, values: Tensor) -> int:
        return self._state.keys.row_bytes + values[:1].numel() * values.element_size()

    def _extended(self, state: State, keys: Tensor, values: Tensor) -> State:
        number = state.keys.file.removeprefix("keys-").removesuffix(".f16")
        column = state.values or Column(f"values-{number}.bin", values.dtype, tuple(values.shape[1:]))
        longer = state.keys.append(self.folder, keys), column.append(self.folder, values)
        return replace(state, keys=longer[0], values=longer[1])

    def _empty(self) -> State:
        number = next_number(self.folder) if self.folder.exists() else 1
        return State(Documents(), Column(f"keys-{number}.f16", torch.float16, (self.header.dim,)))

    def _map(self, state: State) -> tuple[Tensor, Tensor | None]:
        if self._mapped is None or self._mapped[0] is not state:
            values = None if state.values is None else state.values.map(self.folder)
            self._mapped = state, state.keys.map(self.folder), values
        return self._mapped[1], self._mapped[2]

    def _commit(self) -> None:
        """Bring the state into force; inside a build, write it down for the next one now and then."""
        if self._build is None:
            with room_for(MANIFEST_ROOM, self.folder):
                self._sync()
                self._checksum = write_manifest(self.folder / MANIFEST, self._content())
        elif time.monotonic() - self._build.journaled_at >= self._build.every:
            self._journal(self._build)
            self._build = self._build._replace(journaled_at=time.monotonic())

    def _journal(self, build: Build) -> None:
        self._sync()
        about = {"what": build.what, "base": self._checksum}
        write_manifest(self.folder / PARTIAL, self._content() | {"building": about})

    def _sync(self) -> None:
        for column in self._state.columns:
            if column.count:
                column.sync(self.folder)

    def _content(self) -> dict[str, Any]:
        return asdict(self.header) | self._state.described()

    def _read(self) -> tuple[State, str | None]:
        """The valid state and its manifest's checksum; a writer may replace both while they are being read."""
        path = self.folder / MANIFEST
        while content := read_manifest(path):
            self.header.agree(content, path)
            try:
                state = State.verified(self.folder, content)
                self._map(state)
                return state, content["checksum"]
            except FileNotFoundError as error:
                if (read_manifest(path) or content)["checksum"] == content["checksum"]:
                    raise ValueError(f"{error.filename or 'a file'} is missing from the store") from None
        return self._empty(), None

    def _unfinished(self) -> dict[str, Any] | None:
        """The journal of an interrupted build of this very store."""
        content = read_manifest(self.folder / PARTIAL)
        return content if content and content["building"]["base"] == self._checksum else None

    def _resumed(self, what: str, restart: bool) -> State | None:
        content = None if restart else self._unfinished()
        if content is None:
            (self.folder / PARTIAL).unlink(missing_ok=True)
            return None
        was = content["building"]["what"]
        allowed = f"building({was!r}), which was interrupted here (restart=True throws away what it has done)"
        require(was == what, "the build", f"building({what!r})", allowed)
        self.header.agree(content, self.folder / PARTIAL)
        return State.verified(self.folder, content)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Inside, files are written beside those that are valid; afterwards only the valid ones are there."""
        require(self._build is None, "the store", "inside building()", "finished with what it builds first")
        with self._writing():
            before = self._state
            try:
                yield
            except BaseException:
                self._state = before
                raise
            finally:
                sweep(self.folder)

    @contextmanager
    def _writing(self, *, resuming: bool = False) -> Iterator[None]:
        """Inside, this is the only writer, and the store is as this object knows it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            one = "a store has any number of readers and one writer"
            raise AnotherWriter(f"another writer is at work on the store at {self.folder}; {one}") from None
        try:
            if self._build is None and not self._overwrites:
                manifest = read_manifest(self.folder / MANIFEST)
                if (manifest and manifest["checksum"]) != self._checksum:
                    raise AnotherWriter(
                        f"another writer has changed the store at {self.folder} since it was opened here; load it again"
                    )
                if not resuming and (unfinished := self._unfinished()):
                    what = unfinished["building"]["what"]
                    raise RuntimeError(
                        f"a build of the store at {self.folder} was interrupted: go on with building({what!r}), "
                        f"or throw away what it has done with building({what!r}, restart=True)"
                    )
            yield
        finally:
            self._lock.release()
