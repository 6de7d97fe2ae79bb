"""Which entry has which id, and which document it came from: runs of ids that follow one another.

Row r of a store (its place among the keys) and id i (its name for ever) differ once a document has been deleted: rows
close up, ids do not.  Both grow together, so that of two entries the lower row has the lower id.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Run(NamedTuple):
    """So many entries of one document, with the ids first_id, first_id + 1, ..."""

    document: str | None
    first_id: int
    entries: int


@dataclass(frozen=True)
class Documents:
    """The runs of a store in the order of its rows, and the id that its next entry gets (ids are never used again)."""

    runs: tuple[Run, ...] = ()
    next_id: int = 0

    def __len__(self) -> int:
        return sum(run.entries for run in self.runs)

    def with_entries(self, document: str | None, count: int) -> "Documents":
        """With `count` entries more, of the document named."""
        return self.followed_by(type(self)((Run(document, 0, count),), count))

    def followed_by(self, other: "Documents") -> "Documents":
        """With the entries of another store behind, as if what was done to that one had been done to this one."""
        runs = list(self.runs)
        for run in other.runs:
            run = run._replace(first_id=run.first_id + self.next_id)
            if runs and runs[-1].document == run.document and sum(runs[-1][1:]) == run.first_id:
                runs[-1] = runs[-1]._replace(entries=runs[-1].entries + run.entries)
            elif run.entries:
                runs.append(run)
        return type(self)(tuple(runs), self.next_id + other.next_id)

    def without(self, document: str) -> "tuple[Documents, list[slice]]":
        """What is left without a document, and the rows where that stands now.

        Raises ValueError for a document that has no entries here, with the names nearest to it.
        """
        names = {run.document for run in self.runs if run.document is not None}
        if document not in names:
            close = get_close_matches(str(document), names) or sorted(names)[:3]
            known = f"; nearest: {', '.join(map(repr, close))}" if close else "; the store has no named documents"
            raise ValueError(f"document must be one whose entries are in the store, got {document!r}{known}")
        ends = accumulate(run.entries for run in self.runs)
        placed = [(run, slice(end - run.entries, end)) for run, end in zip(self.runs, ends, strict=True)]
        kept = [(run, rows) for run, rows in placed if run.document != document]
        return type(self)(tuple(run for run, _ in kept), self.next_id), [rows for _, rows in kept]

    def ids(self, rows: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """The ids of rows, elementwise; -1 (no row) stays -1."""
        if len(self.runs) <= 1:
            return rows + self.runs[0].first_id * (rows >= 0) if self.runs else rows
        counts = torch.tensor([run.entries for run in self.runs], device=rows.device)
        shift = torch.tensor([run.first_id for run in self.runs], device=rows.device) - (counts.cumsum(0) - counts)
        run_of = torch.searchsorted(counts.cumsum(0), rows.clamp(min=0), right=True)
        return torch.where(rows < 0, rows, rows + shift[run_of])
