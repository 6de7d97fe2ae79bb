"""One file of equal rows that only grows at its end, and the checksums of what of it is valid."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROWS_PER_BLOCK = 65_536  # rows that share a checksum
CHUNK = 1 << 20  # bytes read at a time


@dataclass(frozen=True)
class Column:
    """The first `count` rows of a file, each of `shape` and `dtype` (little-endian); what lies behind them is nothing.

    A column is never changed: `append` writes behind its rows and returns the longer column, so that whoever fails
    afterwards still holds one that is true.
    """

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    count: int = 0
    full_blocks: tuple[str, ...] = ()  # their sha256
    open_block: Any = field(default_factory=hashlib.sha256, compare=False)  # of the rows after them

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def append(self, folder: Path, rows: Tensor) -> Column:
        """Write rows behind those there are: (n, *shape) -> the column of count + n rows, not yet synced."""
        path, column = folder / self.file, self
        with open(path, "r+b" if path.exists() else "w+b", buffering=0) as file:
            file.seek(self.count * self.row_bytes)
            for part in rows.detach().split(CHUNK // self.row_bytes + 1):
                data = memoryview(part.cpu().to(self.dtype).contiguous().reshape(-1).view(torch.uint8).numpy())
                column = column._hashed(data, len(part))
                while data:
                    data = data[file.write(data) :]
        return column

    def sync(self, folder: Path) -> None:
        """Return when the rows are on the disk itself."""
        with open(folder / self.file, "r+b") as file:
            os.fsync(file.fileno())

    def cut(self, folder: Path) -> None:
        """Give back the space of whatever lies behind the valid rows."""
        path = folder / self.file
        if path.exists():
            os.truncate(path, self.count * self.row_bytes)

    def map(self, folder: Path) -> Tensor:
        """(count, *shape), read from the file where and when it is looked at."""
        path, n = folder / self.file, self.count * math.prod(self.shape)
        if n == 0:
            return torch.empty(self.count, *self.shape, dtype=self.dtype)
        try:
            rows = torch.from_file(str(path), shared=False, size=n, dtype=self.dtype)
        except RuntimeError:
            path.stat()  # a file that a writer has taken away: the error that says so
            raise
        return rows.view(-1, *self.shape)

    def described(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "file": self.file,
            "dtype": str(self.dtype).removeprefix("torch."),
            "shape": list(self.shape),
            "sha256": [*self.full_blocks, self.open_block.hexdigest()],
        }

    @classmethod
    def verified(cls, folder: Path, described: dict[str, Any], count: int) -> Column:
        """The column that a manifest describes, once every block of it has been read and found to be so.

        Raises ValueError that names the file and the rows, where it is cut short or altered.
        """
        column = cls(described["file"], getattr(torch, described["dtype"]), tuple(described["shape"]))
        path = folder / column.file
        needed, there = count * column.row_bytes, path.stat().st_size if count else 0
        if there < needed:
            raise ValueError(f"{path} is cut short: {there} bytes, where its {count} rows take {needed}")
        with open(path, "rb") if count else open(os.devnull, "rb") as file:
            rows_per_chunk = CHUNK // max(column.row_bytes, 1) + 1
            while column.count < count:
                n = min(rows_per_chunk, count - column.count)
                column = column._hashed(memoryview(file.read(n * column.row_bytes)), n)
        found, expected = column.described()["sha256"], described["sha256"]
        for block, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
            if ours != theirs:
                first = block * ROWS_PER_BLOCK
                last = min(first + ROWS_PER_BLOCK, count) - 1
                raise ValueError(f"{path} was altered: rows {first} to {last} are not those that were written")
        return column

    def _hashed(self, data: memoryview, n_rows: int) -> Column:
        """With the bytes of n rows more taken into the checksums."""
        full, block, count = list(self.full_blocks), self.open_block.copy(), self.count
        while n_rows:
            n = min(n_rows, ROWS_PER_BLOCK - count % ROWS_PER_BLOCK)
            block.update(data[: n * self.row_bytes])
            data, n_rows, count = data[n * self.row_bytes :], n_rows - n, count + n
            if count % ROWS_PER_BLOCK == 0:
                full.append(block.hexdigest())
                block = hashlib.sha256()
        return replace(self, count=count, full_blocks=tuple(full), open_block=block)
