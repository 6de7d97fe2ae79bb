"""A corpus becomes a datastore on disk: by one process, or by several that torchrun has started.

    build("docs.store", {"guide": Path("guide.txt")}, model, tokenizer)
    torchrun --nproc-per-node 2 -m memcourse datastore build docs.store --text guide.txt

Windows are cut and put into batches by their number in the whole corpus (text_windows.py), and each process takes a run
of whole batches.  A key therefore does not depend on how many processes there are, nor on where one of them was
stopped and went on: the shards searched together, the shards merged and the store of a single process have the same
neighbours to the last id.  On a CPU each process computes with one thread; for more cores, start more processes.

What it takes, measured with two layers of width 64, windows of 256 tokens of which 128 are new, on one core:

    a key           132 bytes on disk (64 x float16, one int32), and 4 of text
    a million keys  26 s to encode; 7 ms for a query to search exactly, where 256 are asked together

    ten million     1.3 GB, 4.4 minutes on one core, half of that on two; 70 ms a query
    a billion       132 GB and 4 GB of text, 7.2 hours on one core, 54 minutes on eight; a query takes 7 s, so that one
                    wants index="ivfpq": 24 GB in memory, 16 bytes of code and 8 of id a key, of which a query looks
                    into 32 of 65,536 lists.  Merging needs the 132 GB twice for a while; shards do not
"""

from __future__ import annotations

import os
import shutil
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from memcourse.datastore import Datastore
from memcourse.datastore_build import plan as build_plan
from memcourse.datastore_build.text_windows import Window, Windows
from memcourse.datastore_build.token_file import Texts, TokenFile
from memcourse.distributed import gather, place
from memcourse.language_model import LanguageModel, TransformerReader, frozen
from memcourse.memory import require
from memcourse.store.files import MANIFEST
from memcourse.threads import one_thread
from memcourse.token_model import TokenModel

A_WEEK = timedelta(days=7)  # how long the processes wait for the slowest one


@contextmanager
def _joined() -> Iterator[None]:
    """Inside, the processes that torchrun has started know of each other.  They only send words: gloo is enough."""
    ours = dist.is_available() and dist.is_torchelastic_launched() and not dist.is_initialized()
    if ours:
        dist.init_process_group("gloo", timeout=A_WEEK)
    try:
        yield
    finally:
        if ours:
            dist.destroy_process_group()


class Report(NamedTuple):
    """What a build has made, and what it took."""

    keys: int
    dim: int
    n_bytes: int  # of keys, values and index, on disk
    shards: int  # 1: one store
    new_keys: int  # encoded in this run, not in an earlier one that was interrupted
    seconds: float  # of this run


@_joined()
def build(
    path: str | os.PathLike[str],
    texts: Texts,
    model: TokenModel | LanguageModel,
    tokenizer: Any,
    *,
    context: int = 256,
    stride: int | None = None,
    per_batch: int = 16,
    index: str = "exact",
    metric: str = "l2",
    merge: bool = False,
    progress: bool = True,
    every: float = 2.0,
) -> Report:
    """Encode `texts` ({name: the text itself, or the Path of its file}) into the store at `path`.

    A text of n tokens gives n - 1 entries in the order of the text: what `model` makes of the text up to a token, and
    the token after it as int32; the text's name is their document.  A key has at least context - stride tokens before
    it, where its text does (stride: half the context, unless given).

    Under torchrun process r of n writes path/shard-0000r-of-0000n, and with `merge` the first one then joins them into
    one store; without, `built_store.open_store` searches them together.
    A build that was interrupted in any way goes on when it is called again, from the last note of how far it had come
    (one every `every` seconds); one that is finished is left as it is.
    tokenizer: anything with encode(text) -> integers (T,), vocab_size, and save(path).

    Raises ValueError for a text of fewer than two tokens, a vocabulary that does not fit the model, a folder that holds
    something else, or a build begun with another model, tokenizer, text or number of processes, naming which; OSError,
    with the bytes needed and free, where the disk is full, and what is done is kept.
    """
    started = time.monotonic()
    folder = Path(path)
    lm = TransformerReader(model) if isinstance(model, TokenModel) else model
    stride = max(1, context // 2) if stride is None else stride
    cutting = {"context": context, "stride": stride, "per_batch": per_batch}
    Windows([], **cutting), Datastore(lm.dim, index=index, metric=metric)  # they know what is wrong with these
    fits = tokenizer.vocab_size <= lm.vocab_size
    require(fits, "tokenizer.vocab_size", tokenizer.vocab_size, f"at most the model's, {lm.vocab_size}")
    number, processes = place()
    made_by = lm.fingerprint()
    request = {"model": made_by, **cutting, "index": index, "metric": metric, "processes": processes}
    plan = _first_alone(lambda: build_plan.prepare(folder, texts, tokenizer, request))
    require(made_by == plan.request["model"], "model", made_by, f"the first process's, {plan.request['model']}")
    windows = Windows([part.n_tokens for part in plan.documents], **cutting)
    enough = windows.n_batches >= processes
    what = f"{windows.n_batches} batches of {per_batch} windows"
    require(enough, "texts", what, f"one batch for each of the {processes} processes (or use fewer of them)")
    new, merge = 0, merge and processes > 1
    if processes > 1 and (folder / MANIFEST).exists():
        merge = True  # in an earlier run, whose shards may still be there
    else:
        part = build_plan.parts(folder, processes)[number]
        store = Datastore(lm.dim, index=index, metric=metric, path=part, made_by=made_by)
        if store.built != plan.what:
            bar = tqdm(
                desc="encoding", unit=" keys", unit_scale=True, disable=None if progress and not number else True
            )
            with store.building(plan.what, every=every) as before, frozen(lm.module), one_thread(), bar:
                share = windows.share(number, processes)
                bar.total = windows.rows_before(share.stop) - windows.rows_before(share.start)
                bar.initial = bar.n = before
                for document, keys, values in _entries(
                    lm, TokenFile(folder / build_plan.TOKENS), windows, share, before
                ):
                    store.add(keys, values, document=plan.documents[document].name)
                    bar.update(len(keys))
                    new += len(keys)
        if index != "exact" and not merge:
            store.save()  # its index
    new = sum(gather(new))
    if merge:
        _first_alone(lambda: _merge(folder, processes))
    n_bytes = _first_alone(lambda: _n_bytes(folder))
    return Report(windows.rows, lm.dim, n_bytes, 1 if merge else processes, new, time.monotonic() - started)


def _entries(
    lm: LanguageModel, tokens: TokenFile, windows: Windows, share: range, before: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Document, keys and values of a share of the batches, a few at a time, but for its first `before` entries."""
    at = windows.rows_before(share.start) + before
    for batch in share[bisect_right(share, at, key=windows.rows_before) - 1 :]:
        skip = max(0, at - windows.rows_before(batch))
        for document, group in groupby(list(_rows(lm, tokens, windows.batch(batch))), key=lambda row: row[0]):
            keys, values = (torch.cat(parts) for parts in zip(*(row[1:] for row in group), strict=True))
            if skip < len(keys):
                yield document, keys[skip:], values[skip:]
            skip = max(0, skip - len(keys))


def _rows(lm: LanguageModel, tokens: TokenFile, batch: list[Window]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Document, keys and values of each window, all read by the model in one pass."""
    device = next(lm.module.parameters()).device
    texts = torch.zeros(len(batch), max(window.stop - window.start for window in batch), dtype=torch.long)
    for row, window in zip(texts, batch, strict=True):  # padded on the right, where nothing looks
        row[: window.stop - window.start] = tokens[window.start : window.stop]
    hidden = lm.read(texts.to(device)).hidden.float().cpu()  # (windows, T, D)
    for keys, window in zip(hidden, batch, strict=True):
        own = keys[window.keep - window.start : window.stop - window.start]
        yield window.document, own, tokens[window.keep + 1 : window.stop + 1]


def _merge(folder: Path, processes: int) -> None:
    """One store of all shards.  It is there, whole, from one moment to the next; only then do the shards go."""
    shards = build_plan.parts(folder, processes)
    if (folder / MANIFEST).exists():
        merged = Datastore.load(folder)
    else:
        merged = Datastore.merge([Datastore.load(shard) for shard in shards], path=folder)
    if merged.index != "exact":
        merged.save()  # its index
    for shard in shards:
        shutil.rmtree(shard, ignore_errors=True)


def _n_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for end in ("f16", "bin", "faiss") for file in folder.rglob(f"*.{end}"))


def _first_alone(work: Callable[[], Any]) -> Any:
    """Have the first process do something while the others wait; all get its result, or its error."""
    result, fault = None, None
    if place()[0] == 0:
        try:
            result = work()
        except Exception as error:
            fault = error
    result, fault = gather((result, fault))[0]
    if fault is not None:
        raise fault
    return result
