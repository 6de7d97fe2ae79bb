"""Keys, each with a value, and the search for the nearest of them: what a memory outside the network is made of.

    add         append (key_i, value_i)
    search      the k entries i with the smallest distance(query, key_i)

    metric      distance, always smaller is nearer
    "l2"        ||q - k||^2, squared as in FAISS
    "ip"        -q . k
    "cosine"    1 - q . k / (||q|| ||k||); a zero vector has distance 1 to everything

In memory, or in a folder (`path`), where keys are float16 in a memory map and values keep their dtype;
store/files.py says what stands there.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from memcourse.exact_search import METRICS, nearest
from memcourse.faiss_index import MIN_TRAINING, N_PROBE, FaissIndex, check_factory
from memcourse.memory import require
from memcourse.store.documents import Documents
from memcourse.store.files import MANIFEST, PARTIAL, read_manifest
from memcourse.store.on_disk import RowsOnDisk
from memcourse.store.rows import Mapped, Pieces, Rows, RowsInMemory, ValueKind, pieces
from memcourse.store.state import Header

FLOAT16_MAX = torch.finfo(torch.float16).max  # 65,504
PathLike = str | os.PathLike[str]


class Neighbors(NamedTuple):
    """The nearest entries of each query, nearest first; of equal distances, the lower id first.

    Only an approximate index may find fewer than k: then distance inf, id -1 and value 0 stand at the end of the row.
    """

    distances: Float[Tensor, "*queries k"]
    ids: Int[Tensor, "*queries k"]
    values: Tensor  # (*queries, k, *value_shape)


class Datastore:
    """Entries (key, value) with ids 0, 1, 2, ... in the order of adding, and their nearest-neighbour search.

    dim      width of a key
    index    "exact" (torch, on any device); "ivfpq" (FAISS; sizes from the number of keys, see faiss_index.py; below
             9,984 keys, too few to train it, the search is exact); or a FAISS factory string ("HNSW32", "IVF100,Flat")
    metric   "l2", "ip" or "cosine"
    path     a folder: the store that is there is opened (it must be of the same dim, metric, index and model), or a new
             one begun; None: in memory, keys as float32
    device   where keys are compared; results come back on the queries' device
    made_by  the name of the model whose keys these are, if any

    Raises ValueError for an argument that is none of these and for a store on disk that is cut short, altered, of
    another format or another model's; ModuleNotFoundError where the index needs FAISS and it is not installed.
    """

    def __init__(
        self,
        dim: int,
        *,
        index: str = "exact",
        metric: str = "l2",
        path: PathLike | None = None,
        device: str | torch.device = "cpu",
        made_by: str | None = None,
    ) -> None:
        require(isinstance(dim, int) and dim >= 1, "dim", dim, "a whole number, at least 1")
        require(metric in METRICS, "metric", repr(metric), " or ".join(map(repr, METRICS)))
        check_factory(index, dim)
        self.device = torch.device(device)
        self._header = Header(dim, metric, index, made_by)
        self._on_disk = None if path is None else RowsOnDisk(Path(path), self._header)
        self._rows: Rows = RowsInMemory(dim, self.device) if self._on_disk is None else self._on_disk
        self._index: FaissIndex | None = None
        self.n_probe = N_PROBE  # lists of an IVF index that a search looks into: more find more, and take longer

    def __len__(self) -> int:
        return len(self._rows.documents)

    @property
    def dim(self) -> int:
        return self._header.dim

    @property
    def metric(self) -> str:
        return self._header.metric

    @property
    def index(self) -> str:
        return self._header.index

    @property
    def made_by(self) -> str | None:
        return self._header.made_by

    @made_by.setter
    def made_by(self, name: str | None) -> None:
        self._header.made_by = name  # on disk with the next write

    @property
    def path(self) -> Path | None:
        return None if self._on_disk is None else self._on_disk.folder

    @property
    def next_id(self) -> int:
        """The id that the next entry gets: how many there have ever been."""
        return self._rows.documents.next_id

    @property
    def built(self) -> str | None:
        """What the last finished `building` was of."""
        return None if self._on_disk is None else self._on_disk.built

    @property
    def keys(self) -> Float[Tensor, "entries dim"]:
        """All keys in the order of adding; on disk, read where they are looked at."""
        return self._rows.keys

    @property
    def values(self) -> Tensor | None:
        """All values, (entries, *value_shape); None before the first add."""
        return self._rows.values

    def add(self, keys: Float[Tensor, "entries dim"], values: Tensor, *, document: str | None = None) -> None:
        """Append entries: keys (n, dim), values (n, ...) of any dtype and shape, the same in every add.

        `document` names where they come from, so that `delete` can find them again.  On disk each add comes into force
        by itself (inside `building`, with the others), and space is asked for before anything is written.
        Raises ValueError for NaN or infinite keys, keys over 65,504 on disk (float16 ends there), and shapes or a dtype
        that do not fit; OSError with the bytes needed and free where the disk is full; RuntimeError for a second writer
        and where a build was interrupted.
        """
        self._check_keys(keys, values)
        self._rows.append(keys, values, document)

    def building(self, what: str = "", *, every: float = 1.0, restart: bool = False) -> AbstractContextManager[int]:
        """Many adds as one commit:  with store.building("this corpus") as done: ...

        The old store stays valid until the end of the block, where the new one takes its place by one rename.  Progress
        is written down every so many seconds: after a kill or an exception, the next building(what) goes on, and `done`
        is the number of its rows that are already there.  Raises ValueError where what was interrupted was the build of
        something else, unless `restart` throws that away; and for a store in memory.
        """
        if self._on_disk is None:
            raise ValueError("building() must be called on a store on disk (path=...), got one in memory")
        return self._on_disk.building(what, every, restart)

    def search(self, queries: Float[Tensor, "*queries dim"], k: int, *, rescore: bool = True) -> Neighbors:
        """The k = min(k, entries) nearest entries: (..., dim) -> distances and ids (..., k), values (..., k, ...).

        With an approximate index, `rescore` computes distances again from the stored keys; False leaves the index's.
        An empty store has zero columns.  Results are on the queries' device.
        Raises ValueError for queries of another width, not floating or not finite, and for k below 1.
        """
        self._check_queries(queries, k)
        flat = queries.detach().reshape(-1, self.dim).to(self.device, torch.float32)
        k, keys = min(k, len(self)), Mapped(self.keys)
        if index := self._trained_index():
            distances, rows = index.search(flat, keys, k, n_probe=self.n_probe, rescore=rescore)
        else:
            distances, rows = nearest(flat, keys, k, metric=self.metric)
        shape = (*queries.shape[:-1], k)
        found = distances, self._rows.documents.ids(rows), self._values_of(rows)
        return Neighbors(*(part.to(queries.device).reshape(*shape, *part.shape[2:]) for part in found))

    def delete(self, document: str) -> int:
        """Remove a document's entries, and say how many.  The other entries keep their ids; no id is given again.

        On disk the others are written anew, and replace the old ones by one rename.
        Raises ValueError for a document that has no entries here.
        """
        before = len(self)
        documents, rows = self._rows.documents.without(document)
        self._rows.replace(self._pieces(rows), documents)
        self._index = None
        return before - len(self)

    def save(self, path: PathLike | None = None) -> None:
        """Write the store into a folder, in the place of the one that may be there; its index too, trained if need be.

        Without a path, a store on disk is written where it is: that is, its index.
        Raises ValueError for keys over 65,504, which float16 cannot hold, and OSError where the disk is full.
        """
        require(path is not None or self._on_disk is not None, "path", path, "the folder to save a store in memory in")
        here = self._on_disk
        if path is not None and (here is None or Path(path).resolve() != here.folder.resolve()):
            here = RowsOnDisk(Path(path), self._header, overwrites=True)
            _check_range(self.keys)
            here.replace(self._pieces([slice(0, len(self))]), self._rows.documents)
        index = self._trained_index()
        if here is not None and index is not None:
            here.write_index(index.write, index.n_bytes, index.rows, index.trained_on)

    @classmethod
    def load(cls, path: PathLike, *, device: str | torch.device = "cpu", made_by: str | None = None) -> "Datastore":
        """Open the store in a folder.  Everything is read once and compared with its checksums.

        Raises ValueError for what is no store, and for one that is cut short, altered, of another format, or not made
        by the model `made_by`.
        """
        header = read_manifest(Path(path) / MANIFEST)
        if header is None:
            unfinished = (Path(path) / PARTIAL).exists()
            allowed = "the folder of a datastore" + (" (a first build was begun there, and not finished)" * unfinished)
            raise ValueError(f"path must be {allowed}, got {path}")
        made = {name: header[name] for name in ("dim", "index", "metric", "made_by")}
        require(made_by in (None, header["made_by"]), "made_by", repr(made_by), f"{header['made_by']!r}, as in {path}")
        return cls(**made, path=path, device=device)

    @classmethod
    def merge(cls, stores: Sequence["Datastore"], *, path: PathLike | None = None) -> "Datastore":
        """One store with the entries of all, in order; ids as if they had been added to one store one after the other.

        Raises ValueError for no stores, and where they differ in dim, metric, values or model.
        """
        check_alike(stores)
        header = asdict(stores[0]._header)
        documents = Documents()
        for store in stores:
            documents = documents.followed_by(store._rows.documents)
        parts = chain.from_iterable(store._pieces([slice(0, len(store))]) for store in stores)
        if path is None:
            merged = cls(**header, device=stores[0].device)
            merged._rows.replace(parts, documents)
            return merged
        for store in stores:
            _check_range(store.keys)
        RowsOnDisk(Path(path), Header(**header), overwrites=True).replace(parts, documents)
        return cls.load(path, device=stores[0].device)

    def describe(self) -> dict[str, Any]:
        """What the store is and holds, in a form that JSON holds."""
        kind, runs = self._rows.value_kind, self._rows.documents.runs
        return {
            "count": len(self),
            "dim": self.dim,
            "metric": self.metric,
            "index": self.index,
            "index_sizes": self._index.sizes() if self._index else {},
            "keys": str(self.keys.dtype).removeprefix("torch."),
            "values": kind and str(kind.dtype).removeprefix("torch."),
            "value_shape": kind and list(kind.shape),
            "documents": len({run.document for run in runs if run.document is not None}),
            "made_by": self.made_by,
            "path": None if self.path is None else str(self.path),
            "bytes": len(self) * (self.dim * self.keys.element_size() + (kind.n_bytes if kind else 0)),
            "checksum": None if self._on_disk is None else self._on_disk.checksum,
            "built": self.built,
        }

    def __repr__(self) -> str:
        where = f"in {self.path}" if self.path else "in memory"
        return f"Datastore({len(self)} entries of dim {self.dim}, {self.metric}, {self.index}, {where})"

    def _trained_index(self) -> FaissIndex | None:
        """The approximate index over all entries; None where the search is exact."""
        if self.index == "exact" or len(self) < (MIN_TRAINING if self.index == "ivfpq" else 1):
            return None
        if self._index is None:
            self._index = FaissIndex(self.index, self.dim, self.metric, self.device)
            if self._on_disk and (saved := self._on_disk.index_file):
                self._index.read(*saved)
        self._index.cover(Mapped(self.keys))
        return self._index

    def _pieces(self, rows: Iterable[slice]) -> Pieces:
        return [] if self.values is None else pieces(self.keys, self.values, rows)

    def _values_of(self, rows: Tensor) -> Tensor:
        """(Q, k) -> (Q, k, *value_shape); zeros where there is no row."""
        values = self.values
        if values is None:
            return torch.zeros(rows.shape, dtype=torch.int64)
        found = values[rows.clamp(min=0).to(values.device)]
        found[(rows < 0).to(values.device)] = 0
        return found

    def _check_keys(self, keys: Tensor, values: Tensor) -> None:
        width = keys.ndim == 2 and keys.shape[-1] == self.dim
        require(width, "keys", tuple(keys.shape), f"of shape (entries, dim={self.dim})")
        require(keys.is_floating_point(), "keys", keys.dtype, "floating-point")
        _check_finite(keys, "keys")
        if self._on_disk is not None:
            _check_range(keys)
        one_each = values.ndim >= 1 and len(values) == len(keys)
        require(one_each, "values", tuple(values.shape), f"(entries, ...), one for each of the {len(keys)} keys")
        kind, held = ValueKind(values.dtype, tuple(values.shape[1:])), self._rows.value_kind
        require(held in (None, kind), "values", kind, f"{held}, as in the store")

    def _check_queries(self, queries: Tensor, k: int) -> None:
        width = queries.ndim >= 1 and queries.shape[-1] == self.dim
        require(width, "queries", tuple(queries.shape), f"of shape (..., dim={self.dim})")
        require(queries.is_floating_point(), "queries", queries.dtype, "floating-point")
        _check_finite(queries, "queries")
        require(isinstance(k, int) and k >= 1, "k", k, "a whole number, at least 1")


def check_alike(stores: Sequence[Datastore]) -> None:
    """Raises ValueError where stores cannot be taken for parts of one: another dim, metric, model or kind of values."""
    require(len(stores) >= 1, "stores", "none", "at least one store")
    for number, store in enumerate(stores):
        for name in ("dim", "metric", "made_by"):
            ours, theirs = getattr(store, name), getattr(stores[0], name)
            require(ours == theirs, f"{name} of stores[{number}]", repr(ours), f"{theirs!r}, as in the first store")
    kinds = {str(kind) for store in stores if (kind := store._rows.value_kind)}
    require(len(kinds) <= 1, "values", " and ".join(sorted(kinds)), "of one dtype and shape in all stores")


def _check_finite(vectors: Tensor, name: str) -> None:
    finite = torch.isfinite(vectors)
    if not finite.all():
        where = (~finite).nonzero()[0].tolist()
        require(False, name, f"{vectors[tuple(where)].item()} at {where}", "finite")


def _check_range(keys: Tensor) -> None:
    if keys.numel() and keys.dtype != torch.float16:
        largest = keys.abs().amax().item()
        require(largest <= FLOAT16_MAX, "keys", largest, "at most 65,504 on disk, where they are float16")
