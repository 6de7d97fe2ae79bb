"""What `datastore_build.build` has made: opened, and looked up in words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from memcourse.datastore import Datastore
from memcourse.datastore_build import plan as build_plan
from memcourse.datastore_build.text_windows import Windows
from memcourse.datastore_build.token_file import TokenFile
from memcourse.language_model import LanguageModel, frozen
from memcourse.memory import require
from memcourse.shards import Shards
from memcourse.store.files import MANIFEST


def open_store(path: str | os.PathLike[str], *, device: str = "cpu") -> Datastore | Shards:
    """The store, whole or in the shards of several processes.

    Raises ValueError where there is none, where it is not finished, and where a file of it is damaged.
    """
    folder = Path(path)
    if (folder / MANIFEST).exists():
        return Datastore.load(folder, device=device)
    plan = build_plan.load(folder)
    if plan is None:
        raise ValueError(f"path must be a datastore, got {folder}")
    parts = build_plan.parts(folder, plan.request["processes"])
    unfinished = sum(not (part / MANIFEST).exists() for part in parts)
    allowed = "a finished build: the same command, given again, goes on"
    require(unfinished == 0, "path", f"{folder}, of which {unfinished} of {len(parts)} parts are unfinished", allowed)
    return Shards([Datastore.load(part, device=device) for part in parts])


class Found(NamedTuple):
    """A neighbour in words."""

    id: int
    distance: float
    before: str  # the text that its key stands for, or the end of it
    token: str  # what followed
    document: str


def neighbors(
    path: str | os.PathLike[str], text: str, lm: LanguageModel, tokenizer: Any, *, k: int = 8, before: int = 16
) -> list[Found]:
    """The k entries nearest to the end of `text`, with `before` tokens each.

    Raises ValueError for an empty text, a store of another model and one that was not built from text.
    """
    folder, tokens = Path(path), tokenizer.encode(text)
    require(len(tokens) > 0, "text", repr(text), "of one token at least")
    require(k >= 1, "k", k, "at least 1")
    store, plan, ours = open_store(folder), build_plan.load(folder), lm.fingerprint()
    require(store.made_by == ours, "model", ours, f"the one that made the keys, {store.made_by}")
    if plan is None:
        raise ValueError(f"path must be a store that memcourse datastore build made, got {folder}")
    with frozen(lm.module):
        hidden = lm.read(tokens[None].to(next(lm.module.parameters()).device)).hidden[0, -1:]  # (1, D)
    found = store.search(hidden.float(), k)
    corpus, cutting = TokenFile(folder / build_plan.TOKENS), ("context", "stride", "per_batch")
    windows = Windows([part.n_tokens for part in plan.documents], **{name: plan.request[name] for name in cutting})
    rows = []
    for distance, entry in zip(found.distances[0].tolist(), found.ids[0].tolist(), strict=True):
        if entry >= 0:
            document, place = windows.row(entry)
            start = max(place + 1 - before, windows.document_start(document))
            read, next_token = corpus[start : place + 1].long(), corpus[place + 1 : place + 2].long()
            name = plan.documents[document].name
            rows.append(Found(entry, distance, tokenizer.decode(read), tokenizer.decode(next_token), name))
    return rows
