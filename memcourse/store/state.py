"""What is valid in a store's folder, as a value: read from a manifest, written into the next one."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from memcourse.memory import require
from memcourse.store.column import ROWS_PER_BLOCK, Column
from memcourse.store.documents import Documents, Run
from memcourse.store.files import file_checksum


@dataclass
class Header:
    """What a store is, beside its rows."""

    dim: int
    metric: str
    index: str
    made_by: str | None = None

    def agree(self, content: dict[str, Any], path: Path) -> None:
        """Take over the model's name, where only the manifest has one.  Raises ValueError where the two differ."""
        for name, ours in asdict(self).items():
            theirs = content[name]
            agrees = ours == theirs or (name == "made_by" and None in (ours, theirs))
            require(agrees, name, repr(ours), f"{theirs!r}, as in the store at {path.parent}")
        self.made_by = self.made_by or content["made_by"]


class IndexFile(NamedTuple):
    """A FAISS index on disk: it covers the first `rows` rows, and was trained when there were `trained_on`."""

    file: str
    sha256: str
    rows: int
    trained_on: int


@dataclass(frozen=True)
class State:
    """What a manifest says: nothing here changes, every write makes the next one."""

    documents: Documents
    keys: Column
    values: Column | None = None
    index: IndexFile | None = None
    built: str | None = None  # what the last finished build was of

    @property
    def columns(self) -> list[Column]:
        return [self.keys] if self.values is None else [self.keys, self.values]

    def described(self) -> dict[str, Any]:
        """What the manifest says of it."""
        return {
            "count": len(self.documents),
            "documents": self.documents.runs,
            "next_id": self.documents.next_id,
            "rows_per_checksum": ROWS_PER_BLOCK,
            "keys": self.keys.described(),
            "values": self.values and self.values.described(),
            "faiss": self.index and self.index._asdict(),
            "built": self.built,
        }

    @classmethod
    def verified(cls, folder: Path, content: dict[str, Any]) -> "State":
        """The state that a manifest describes, once all of its files have been found to be as they were written.

        Raises ValueError that names the file which is cut short or altered, FileNotFoundError where one is missing.
        """
        count, values, index = content["count"], content["values"], content["faiss"]
        if index is not None and file_checksum(folder / index["file"]) != index["sha256"]:
            raise ValueError(f"{folder / index['file']} is cut short or was altered")
        return cls(
            Documents(tuple(Run(*run) for run in content["documents"]), content["next_id"]),
            Column.verified(folder, content["keys"], count),
            values and Column.verified(folder, values, count),
            index and IndexFile(**index),
            content["built"],
        )
