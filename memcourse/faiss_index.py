"""Approximate search with FAISS: which index for how many keys, trained and filled from a store's own keys.

"ivfpq", the paper's kind of index: keys are divided among `lists` cells by k-means (IVF), and what a key differs from
its cell's centre is cut into `code_bytes` parts, each rounded to one of 256 (product quantisation, PQ).  A query
looks into the `n_probe` nearest cells only, and compares with the rounded keys.
Sizes for n keys of dimension d (`ivfpq_sizes`):

    width       of a part: d / 64, at least 4                              (keys are filled up with zeros to a multiple)
    code_bytes  d / width                                                  64 for d = 256 ... 1024 and more
    lists       the power of two nearest to 2 sqrt(n)
    n_probe     32

Measured on 100,000 clustered keys of d = 256 (512 lists, 64 bytes, one core), k = 64: of the true neighbours the codes
alone find about 0.68; with 4 k candidates, whose distances are computed from the stored keys, 0.90.  Half as many
probes find some 0.06 less, twice as many 0.04 more; time per query grows almost as the probes do.

Bytes for n keys: on disk n (2 d + value), in memory n (code_bytes + 8).  Ten million keys of d = 64 with int32 tokens:
1.3 GB on disk, 0.24 GB of index.  A billion of d = 1024: 2.05 TB on disk, 72 GB of index, which one machine may hold;
in 16 shards, 128 GB and 4.5 GB each.

Source: Khandelwal et al., ICLR 2020, arXiv:1911.00172, section 3: 4096 lists, 64 bytes, 32 probes for 103 million keys.
"""

import math
import re
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memcourse.exact_search import Keys, distances_to_rows
from memcourse.memory import require
from memcourse.optional import needs
from memcourse.store.state import IndexFile

MIN_TRAINING = 39 * 256  # keys that FAISS wants for the 256 codes of a byte
KEYS_PER_LIST = 64  # in the training sample, of 39 to 256 that FAISS asks for
N_PROBE = 32
PQ_ROUNDS = 10  # of k-means; FAISS's own 25 take 2.5 times as long
GROWTH = 4  # an index is trained again when the store has grown by more than this
CANDIDATES = 4  # for each neighbour asked for, where distances are computed again
BLOCK = 65_536  # keys added at a time
GPU_MAX_K = 2048


class Sizes(NamedTuple):
    lists: int
    code_bytes: int
    width: int  # dimensions that share a byte


def ivfpq_sizes(n_keys: int, dim: int) -> Sizes:
    """The rule above."""
    width = max(4, math.ceil(dim / 64))
    return Sizes(2 ** round(math.log2(2 * math.sqrt(n_keys))), math.ceil(dim / width), width)


def check_factory(index: str, dim: int) -> None:
    """Raises ValueError for a string that FAISS cannot make an index from, ModuleNotFoundError without FAISS."""
    if index == "exact":
        return
    faiss = needs("faiss", "faiss-cpu")
    if index == "ivfpq":
        return
    try:
        faiss.index_factory(dim, index)
    except (RuntimeError, TypeError) as error:
        reason = _reason(error)
        allowed = f'"exact", "ivfpq" or a string that faiss.index_factory({dim}, ...) takes ({reason})'
        require(False, "index", repr(index), allowed)


def _reason(error: Exception) -> str:
    """What FAISS says, without the place in its source."""
    return re.split(r"\.(?:cpp|h):\d+: ", str(error))[-1].strip()


class FaissIndex:
    """A FAISS index over the rows of a store, from the first one on; row r of the store is FAISS's entry r.

    `factory` is "ivfpq" or a factory string, `metric` the store's: inner products are FAISS's, negated; cosine is the
    inner product of keys and queries of length 1.  Raises ValueError for a string that FAISS does not know.
    """

    def __init__(self, factory: str, dim: int, metric: str, device: torch.device) -> None:
        self.factory, self.dim, self.metric, self.device = factory, dim, metric, device
        self.trained_on = 0  # keys in the store when it was trained
        self._index: Any = None
        self._gpu: Any = None
        self._on_gpu: tuple[Any, Any] | None = None  # of which rows and probes, and the copy

    @property
    def rows(self) -> int:
        """How many rows it covers."""
        return 0 if self._index is None else self._index.ntotal

    def cover(self, keys: Keys) -> None:
        """Take in the keys that are not yet covered; train first, where it is new or the store has outgrown it.

        Raises ValueError where the keys are too few to train such an index.
        """
        if self.rows == len(keys):
            return
        if self._index is None or (self.trained_on and len(keys) > GROWTH * self.trained_on):
            self._train(keys)
        for start in range(self.rows, len(keys), BLOCK):
            self._index.add(self._prepared(keys[start : start + BLOCK]))

    def search(self, queries: Tensor, keys: Keys, k: int, *, n_probe: int, rescore: bool) -> tuple[Tensor, Tensor]:
        """Distances and rows, (Q, k) each, of the nearest that the index finds; where it finds fewer, inf and -1 last.

        With `rescore`, it is asked for CANDIDATES times as many, whose distances are computed from the keys; not where
        it holds the keys themselves ("IVF256,Flat"), so that its own distances are those.
        """
        rescore = rescore and self.factory.split(",")[-1] != "Flat"
        wanted = min(k * CANDIDATES, len(keys)) if rescore else k
        scores, rows = (torch.from_numpy(part) for part in self._searched(self._prepared(queries), wanted, n_probe))
        scores, rows = scores.to(queries.device), rows.to(queries.device)
        if rescore:
            distances = distances_to_rows(queries, keys, rows.clamp(min=0), self.metric)
        elif self.metric == "l2":
            distances = scores
        else:
            distances = float(self.metric == "cosine") - scores
        return _sorted(distances.masked_fill(rows < 0, math.inf), rows, k)

    @property
    def n_bytes(self) -> int:
        """What it takes, nearly."""
        ivf = self._ivf()
        return self.rows * (4 * self.dim if ivf is None else ivf.code_size + 8)

    def sizes(self) -> dict[str, int]:
        """Lists, bytes of a code and probes of an index that has them."""
        ivf = self._ivf()
        return {} if ivf is None else {"lists": ivf.nlist, "code_bytes": ivf.code_size, "n_probe": ivf.nprobe}

    def write(self, file: BinaryIO) -> None:
        faiss = needs("faiss", "faiss-cpu")
        faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))

    def read(self, path: Path, file: IndexFile) -> None:
        """Go on from what `write` has written; an index that is not the one described is left alone, and made anew."""
        index = needs("faiss", "faiss-cpu").read_index(str(path))
        if index.ntotal == file.rows:
            self._index, self.trained_on = index, file.trained_on

    def _train(self, keys: Keys) -> None:
        faiss = needs("faiss", "faiss-cpu")
        metric = faiss.METRIC_L2 if self.metric == "l2" else faiss.METRIC_INNER_PRODUCT
        if self.factory == "ivfpq":
            lists, code_bytes, width = ivfpq_sizes(len(keys), self.dim)
            # np: no polysemous codes, which FAISS would anneal for minutes and nothing here uses
            self._index = faiss.index_factory(code_bytes * width, f"IVF{lists},PQ{code_bytes}np", metric)
            self._index.pq.cp.niter = PQ_ROUNDS
            n_samples = max(KEYS_PER_LIST * lists, 65_536)
        else:
            self._index = faiss.index_factory(self.dim, self.factory, metric)
            n_samples = 1 << 18
        if self._index.is_trained:  # kinds that need no training never outgrow it
            self.trained_on = 0
            return
        self.trained_on = len(keys)
        every = torch.linspace(0, len(keys) - 1, min(n_samples, len(keys)), dtype=torch.float64).long()
        try:
            self._index.train(self._prepared(keys[every]))
        except RuntimeError as error:
            self._index = None
            reason = _reason(error)
            require(False, "index", repr(self.factory), f"one that {len(keys)} keys can train ({reason})")

    def _prepared(self, vectors: Tensor) -> np.ndarray:
        """As FAISS wants them: float32 in main memory, of length 1 for cosine, filled up with zeros where need be."""
        vectors = vectors.float()
        if self.metric == "cosine":
            vectors = torch.nn.functional.normalize(vectors, dim=-1)
        missing = self._index.d - vectors.shape[-1]
        return torch.nn.functional.pad(vectors, (0, missing)).cpu().contiguous().numpy()

    def _ivf(self) -> Any:
        """The part that divides the keys into lists, None where there is none."""
        return self._index and needs("faiss", "faiss-cpu").try_extract_index_ivf(self._index)

    def _searched(self, queries: np.ndarray, k: int, n_probe: int) -> tuple[np.ndarray, np.ndarray]:
        if (ivf := self._ivf()) is not None:
            ivf.nprobe = min(n_probe, ivf.nlist)
        return (self._gpu_copy(k) or self._index).search(queries, k)

    def _gpu_copy(self, k: int) -> Any:
        """The index on the store's GPU; None without one, and for kinds and k that FAISS has on the CPU only."""
        faiss = needs("faiss", "faiss-cpu")
        if self.device.type != "cuda" or not faiss.get_num_gpus() or k > GPU_MAX_K:
            return None
        ivf = self._ivf()
        key = (self.rows, ivf and ivf.nprobe)
        if self._on_gpu is None or self._on_gpu[0] != key:
            options = faiss.GpuClonerOptions()
            options.useFloat16LookupTables = True  # the tables of 64-byte codes fit a GPU's shared memory only so
            self._gpu = self._gpu or faiss.StandardGpuResources()
            try:
                copy = faiss.index_cpu_to_gpu(self._gpu, self.device.index or 0, self._index, options)
            except RuntimeError:
                copy = None
            self._on_gpu = key, copy
        return self._on_gpu[1]


def _sorted(distances: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k by distance, of equals the lower row; what was not found comes last, as row -1."""
    order = rows.masked_fill(rows < 0, torch.iinfo(rows.dtype).max).argsort(dim=-1)
    distances, rows = distances.gather(-1, order), rows.gather(-1, order)
    distances, order = distances.sort(dim=-1, stable=True)
    return distances[:, :k].contiguous(), rows.gather(-1, order)[:, :k].contiguous()
