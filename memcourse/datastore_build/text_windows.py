"""A long text cut into windows, so that every token is encoded with enough text before it.

    window w reads tokens [w * stride, w * stride + context) and answers for those that no window before it answered for

Each token but those of a document's first window then has at least context - stride tokens before it.  A document of
n tokens has n - 1 pairs (what was read, next token).  Windows are numbered through all documents, and a batch holds
`per_batch` of them in a row: what is computed together depends on the text alone, not on who computes it.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from memcourse.memory import require


class Window(NamedTuple):
    """Tokens [start, stop) of the whole text; the rows from `keep` on are its own, and each has a next token."""

    document: int
    start: int
    keep: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.keep


class Windows:
    """The windows of documents that lie one behind the other, `lengths` tokens each."""

    def __init__(self, lengths: Sequence[int], *, context: int, stride: int, per_batch: int) -> None:
        require(context >= 2, "context", context, "at least 2 tokens")
        require(1 <= stride <= context, "stride", stride, f"from 1 to context={context}")
        require(per_batch >= 1, "per_batch", per_batch, "at least 1 window")
        self.context, self.stride, self.per_batch = context, stride, per_batch
        pairs = [max(0, length - 1) for length in lengths]
        self._pairs = pairs
        self._starts = [0, *accumulate(lengths)]  # of each document, in tokens
        self._windows = [0, *accumulate(self._count(n) for n in pairs)]  # before each document
        self._rows = [0, *accumulate(pairs)]

    def __len__(self) -> int:
        return self._windows[-1]

    @property
    def rows(self) -> int:
        return self._rows[-1]

    @property
    def n_batches(self) -> int:
        return -(-len(self) // self.per_batch)

    def __getitem__(self, number: int) -> Window:
        document = bisect_right(self._windows, number) - 1
        within = number - self._windows[document]
        start = within * self.stride
        keep = start + self.context - self.stride if within else 0
        stop = min(start + self.context, self._pairs[document])
        offset = self._starts[document]
        return Window(document, offset + start, offset + keep, offset + stop)

    def batch(self, number: int) -> list[Window]:
        first = number * self.per_batch
        return [self[window] for window in range(first, min(first + self.per_batch, len(self)))]

    def rows_before(self, batch: int) -> int:
        """How many rows the batches before this one have."""
        window = batch * self.per_batch
        if window >= len(self):
            return self.rows
        found = self[window]
        return self._rows[found.document] + found.keep - self._starts[found.document]

    def row(self, number: int) -> tuple[int, int]:
        """The document of a row, and the place in the whole text of the token that the row's key comes after."""
        document = bisect_right(self._rows, number) - 1
        return document, self._starts[document] + number - self._rows[document]

    def document_start(self, document: int) -> int:
        return self._starts[document]

    def share(self, process: int, processes: int) -> range:
        """The batches of one process: a run of whole batches, of nearly equal length for all."""
        n = self.n_batches
        return range(n * process // processes, n * (process + 1) // processes)

    def _count(self, pairs: int) -> int:
        return 0 if pairs == 0 else 1 + max(0, -(-(pairs - self.context) // self.stride))
