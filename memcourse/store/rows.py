"""The rows of a store in memory, and what any rows must offer."""

from collections.abc import Iterable, Iterator
from math import prod
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from memcourse.store.column import ROWS_PER_BLOCK
from memcourse.store.documents import Documents

Pieces = Iterable[tuple[Tensor, Tensor]]


class ValueKind(NamedTuple):
    """What the values of a store are like, one by one."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} of shape (entries{''.join(f', {n}' for n in self.shape)})"


class Rows(Protocol):
    """What a datastore asks of its rows.  There are no `values` until the first add says of what kind they are."""

    @property
    def documents(self) -> Documents: ...

    @property
    def keys(self) -> Tensor: ...

    @property
    def values(self) -> Tensor | None: ...

    @property
    def value_kind(self) -> ValueKind | None: ...

    def append(self, keys: Tensor, values: Tensor, document: str | None) -> None: ...

    def replace(self, parts: Pieces, documents: Documents) -> None: ...


def pieces(keys: Tensor, values: Tensor, rows: Iterable[slice]) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows of some slices, a block at a time, so that none of them need be in memory whole."""
    for part in rows:
        for start in range(part.start, part.stop, ROWS_PER_BLOCK):
            block = slice(start, min(start + ROWS_PER_BLOCK, part.stop))
            yield keys[block], values[block]


class Mapped:
    """Keys for a search on any device: rows are named there, and looked up where the keys are."""

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        return self.keys[rows if isinstance(rows, slice) else rows.to(self.keys.device)]


class RowsInMemory:
    """float32 keys as given.  What is added waits in a list and is joined to the rest when somebody looks."""

    def __init__(self, dim: int, device: str | torch.device) -> None:
        self.documents, self._device = Documents(), device
        self._keys, self._values = [torch.zeros(0, dim, device=device)], list[Tensor]()

    @property
    def keys(self) -> Tensor:
        return _joined(self._keys)

    @property
    def values(self) -> Tensor | None:
        return _joined(self._values) if self._values else None

    @property
    def value_kind(self) -> ValueKind | None:
        return ValueKind(self._values[0].dtype, tuple(self._values[0].shape[1:])) if self._values else None

    def append(self, keys: Tensor, values: Tensor, document: str | None) -> None:
        # copied: what the caller does with its tensors afterwards must not reach the store
        self._keys.append(keys.detach().to(self._device, torch.float32, copy=True))
        self._values.append(values.detach().to(self._device, copy=True))
        self.documents = self.documents.with_entries(document, len(keys))

    def replace(self, parts: Pieces, documents: Documents) -> None:
        self._keys, self._values = [self._keys[0][:0].clone()], []
        for keys, values in parts:
            self.append(keys, values, None)
        self.documents = documents


def _joined(parts: list[Tensor]) -> Tensor:
    if len(parts) > 1:
        parts[:] = [torch.cat(parts)]
    return parts[0]
