"""`memcourse datastore`: build a datastore from text, see what it is, look something up in it."""

from __future__ import annotations

import json as json_module
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from memcourse.datastore_build import Report

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for a program to read.")]
Store = Annotated[Path, typer.Argument(metavar="STORE", help="The folder of the datastore.", show_default=False)]
Model = Annotated[
    Path | None,
    typer.Option(
        help="A file that MemoryTransformer.save wrote, or a Hugging Face folder. Left out: the small model of "
        "Python's documentation that is part of memcourse.",
        show_default=False,
    ),
]
TokenizerFile = Annotated[
    Path | None,
    typer.Option(help="The JSON of the model's tokenizer. Left out: the model's own.", show_default=False),
]
Device = Annotated[str, typer.Option(help="cpu or cuda: where the model computes.")]


class Refused(Exception):
    """What a person can mend, in one sentence."""


@contextmanager
def one_sentence() -> Iterator[None]:
    from memcourse.store.on_disk import AnotherWriter  # the same command, started twice

    try:
        yield
    except (ValueError, OSError, ModuleNotFoundError, AnotherWriter) as error:
        raise Refused(_words(error)) from error


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


@app.command()
def build(
    store: Store,
    text: Annotated[
        list[str],
        typer.Option(
            help="A text file, a folder of .txt files, or the name of a corpus (python_docs, tinyshakespeare, ...). "
            "May be given several times; each file is a document of its own.",
            show_default=False,
        ),
    ],
    model: Model = None,
    tokenizer: TokenizerFile = None,
    context: Annotated[int, typer.Option(help="Tokens that the model reads at a time.")] = 256,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window to the next. Left out: half the context.")
    ] = None,
    per_batch: Annotated[int, typer.Option(help="Windows that the model reads together.")] = 16,
    index: Annotated[str, typer.Option(help='"exact", "ivfpq", or a FAISS factory string.')] = "exact",
    metric: Annotated[str, typer.Option(help="l2, ip or cosine.")] = "l2",
    device: Device = "cpu",
    merge: Annotated[bool, typer.Option("--merge", help="Make one store of the shards of several processes.")] = False,
    json: Json = False,
) -> None:
    """Encode text into a datastore: what the model makes of each context, and the token that followed it.

    On several cores or GPUs: `torchrun --nproc-per-node 2 -m memcourse datastore build STORE ...`; each process then
    writes a shard of its own. If a build is interrupted, the same command goes on where it stopped.
    """
    from memcourse import datastore_build

    with one_sentence():
        lm, words = _open(model, tokenizer, device)
        options: dict[str, Any] = {"context": context, "stride": stride, "per_batch": per_batch}
        options |= {"index": index, "metric": metric, "merge": merge}
        report = datastore_build.build(store, _texts(text), lm, words, **options)
    if os.environ.get("RANK", "0") == "0":  # under torchrun: only the first tells
        _tell(store, report, json)


@app.command()
def show(store: Store, json: Json = False) -> None:
    """Say what a datastore is: how many keys of which width, of which text, made by which model."""
    from memcourse.datastore_build import built_store
    from memcourse.datastore_build import plan as build_plan

    with one_sentence():
        opened = built_store.open_store(store)
        parts = getattr(opened, "stores", [opened])
        plan = build_plan.load(store)
        described = [part.describe() for part in parts]
        found = described[0] | {"count": len(opened), "bytes": sum(part["bytes"] for part in described)}
        found |= {"path": str(store), "shards": len(parts)}
    if plan is not None:
        found |= {"texts": {part.name: part.n_tokens for part in plan.documents}, "build": plan.request}
    if json:
        print(json_module.dumps(found, indent=2, default=str))
        return
    _table([(name, _short(value)) for name, value in found.items()])


@app.command()
def search(
    store: Store,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The beginning of a sentence.", show_default=False)],
    k: Annotated[int, typer.Option("-k", help="How many neighbours.")] = 8,
    model: Model = None,
    tokenizer: TokenizerFile = None,
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Show the contexts in a datastore that are nearest to a text, and the token that followed each."""
    from memcourse.datastore_build import built_store

    with one_sentence():
        lm, words = _open(model, tokenizer, device)
        found = built_store.neighbors(store, text, lm, words, k=k)
    if json:
        print(json_module.dumps([row._asdict() for row in found], indent=2))
        return
    rows = [(f"{row.distance:.2f}", f"...{row.before!r}"[:70], repr(row.token), row.document) for row in found]
    _table(rows, ("distance", "context", "next token", "document"))


def _open(model: Path | None, tokenizer: Path | None, device: str) -> tuple[Any, Any]:
    """The language model, on its device, and its tokenizer."""
    import torch

    from memcourse.bundled import docs_model
    from memcourse.language_model import TransformerReader
    from memcourse.tokenizer import Tokenizer
    from memcourse.transformer import open_model

    own = None
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("--device must be cpu, as torch sees no GPU here, got cuda")
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    if model is None:
        opened, own = docs_model()
    elif model.is_dir():
        from memcourse import hf

        opened = hf.open_model(str(model))
        own = Tokenizer.load(model / "tokenizer.json") if tokenizer is None else None
    else:
        opened = open_model(model)
        if tokenizer is None:
            raise ValueError(f"--tokenizer must be the JSON of the tokenizer of {model}, got none")
    words = own if tokenizer is None else Tokenizer.load(tokenizer)
    opened = opened.to(device).eval()
    if model is not None and model.is_dir():
        return hf.HuggingFaceReader(opened), words
    return TransformerReader(opened), words


def _texts(given: list[str]) -> dict[str, str | Path]:
    """{name of a document: its file, or its text}."""
    texts: dict[str, str | Path] = {}
    for name in given:
        path = Path(name)
        files = sorted(path.rglob("*.txt")) if path.is_dir() else [path] if path.exists() else []
        found = {file.as_posix(): file for file in files} if path.exists() else {name: _corpus(name)}
        if not found:
            raise ValueError(f"--text must be a folder with .txt files in it, got {name}")
        twice = sorted(found.keys() & texts.keys())
        if twice:
            raise ValueError(f"--text must name each document once, got {twice[0]} twice")
        texts |= found
    return texts


def _corpus(name: str) -> str:
    """What a language model may be trained on, of a corpus."""
    from memcourse import corpora

    bundled = {"python_docs": corpora.python_docs, "python_source": corpora.python_source}
    names = [*bundled, *(row.name for row in corpora.catalog())]
    if name not in names:
        raise ValueError(f"--text must be a file, a folder or a corpus ({', '.join(names)}), got {name}")
    text = bundled[name]() if name in bundled else corpora.load(name)
    if not isinstance(text, corpora.Text) or not text.train:
        raise ValueError(f"--text must be a corpus with text to train on, got {name}")
    return text.train


def _tell(store: Path, report: Report, json: bool) -> None:
    """The table at the end of a build."""
    per_key = report.n_bytes / report.keys
    per_million = report.seconds / report.new_keys * 1e6 if report.new_keys else None
    if json:
        rates = {"bytes_per_key": per_key, "seconds_per_million_keys": per_million}
        print(json_module.dumps(report._asdict() | rates, indent=2))
        return
    rows = [
        ("keys", f"{report.keys:,}" + (f", in {report.shards} shards" if report.shards > 1 else "")),
        ("dimension", str(report.dim)),
        ("bytes per key", f"{per_key:,.1f}"),
        ("seconds", f"{report.seconds:,.1f} for {report.new_keys:,} new keys"),
    ]
    ten_million = f"{per_key * 1e7 / 1e9:,.1f} GB"
    if per_million is not None:
        rows.append(("seconds per million keys", f"{per_million:,.0f}"))
        minutes = per_million * 10 / 60
        ten_million += f", {minutes:,.0f} minutes" if minutes < 120 else f", {minutes / 60:,.0f} hours"
    rows.append(("ten million such keys", ten_million))
    _table(rows)
    print(f"The store is ready in {store}.")


def _short(value: Any) -> str:
    if isinstance(value, dict):
        shown = [f"{name}: {_short(part)}" for name, part in list(value.items())[:12]]
        return "\n".join([*shown, f"and {len(value) - 12} more"] if len(value) > 12 else shown)
    if isinstance(value, list) and len(value) > 12:
        return f"{len(value)} entries"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _table(rows: Sequence[tuple[str, ...]], headings: tuple[str, ...] = ()) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=bool(headings))
    for heading in headings or ("", ""):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(file=sys.stdout, markup=False).print(table)
