"""What a datastore is being built of, written down before its first key, so that only the same build goes on."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from memcourse.datastore_build import token_file
from memcourse.datastore_build.token_file import Document, Texts
from memcourse.memory import differences, require

PLAN, TOKENS, TOKENIZER = "build.json", "tokens.i32", "tokenizer.json"
FORMAT = 1


class Plan(NamedTuple):
    """All that decides a store's keys: model, tokenizer and cutting in `request`, the text in `documents`."""

    request: dict[str, Any]
    documents: list[Document]
    tokens_sha256: str

    @property
    def what(self) -> str:
        """A short name for it: builds of the same name have the same keys."""
        return f"build {hashlib.sha256(json.dumps(self).encode()).hexdigest()[:16]}"

    def save(self, folder: Path) -> None:
        beside = folder / f"{PLAN}.part"
        beside.write_text(json.dumps({"format": FORMAT, **self._asdict(), "name": self.what}, indent=1), "utf-8")
        os.replace(beside, folder / PLAN)


def load(folder: Path) -> Plan | None:
    """None where no build has begun.  Raises ValueError, naming the file, where it is not as it was written."""
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
        require(content["format"] == FORMAT, str(path), f"format {content['format']}", f"of format {FORMAT}")
        plan = Plan(content["request"], [Document(*part) for part in content["documents"]], content["tokens_sha256"])
        whole = plan.what == content["name"]
    except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError):
        whole = False
    if not whole:
        raise ValueError(f"{path} is cut short or was altered")
    return plan


def parts(folder: Path, processes: int) -> list[Path]:
    """Where the store of each process is."""
    if processes == 1:
        return [folder]
    return [folder / f"shard-{number:05d}-of-{processes:05d}" for number in range(processes)]


def prepare(folder: Path, texts: Texts, tokenizer: Any, request: dict[str, Any]) -> Plan:
    """The plan and the tokens in a folder: those of the build that began there, or new ones.

    Raises ValueError where another build began there, naming what differs, where the folder holds something else, and
    where the text has no pair of a context and the token after it.
    """
    require(len(texts) > 0, "texts", "none", "one at least")
    plan = load(folder)
    if plan is None:
        _require_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f"{TOKENIZER}.part"
    try:
        tokenizer.save(beside)
        request = request | {"tokenizer": _file_sha256(beside)[:12]}
        if plan is not None:
            _require_same(folder, plan, texts, request)
        os.replace(beside, folder / TOKENIZER)
    finally:
        beside.unlink(missing_ok=True)
    tokens = folder / TOKENS
    if plan is not None and tokens.exists() and _file_sha256(tokens) == plan.tokens_sha256:
        return plan
    documents = token_file.write(tokens, texts, tokenizer)
    n_tokens, pairs = (sum(max(0, part.n_tokens - less) for part in documents) for less in (0, 1))
    found = f"{n_tokens} in {len(documents)} text{'s' * (len(documents) > 1)}"
    require(pairs > 0, "number of tokens", found, "at least 2 in one text, a context and the token after it")
    plan = Plan(request, documents, _file_sha256(tokens))
    plan.save(folder)
    return plan


def _require_ours(folder: Path) -> None:
    """Nothing here that a build has not made."""
    require(not folder.exists() or folder.is_dir(), "path", folder, "a folder, or nothing yet")
    ours = {name + end for name in (PLAN, TOKENS, TOKENIZER) for end in ("", ".part")}
    others = sorted({part.name for part in folder.iterdir()} - ours) if folder.exists() else []
    allowed = "a new folder, or one in which a build has begun"
    require(not others, "path", f"{folder}, which holds {', '.join(others[:3])}", allowed)


def _require_same(folder: Path, plan: Plan, texts: Texts, request: dict[str, Any]) -> None:
    differing = differences(request, plan.request)
    known = {part.name: part.sha256 for part in plan.documents}
    differing += [f"text {name}: here, not in the file" for name in texts if name not in known]
    differing += [f"text {name}: in the file, not here" for name in known if name not in texts]
    if not differing and list(known) != list(texts):
        differing = ["the order of the texts"]
    if not differing:
        changed = [name for name, text in texts.items() if token_file.checksum(name, text) != known[name]]
        differing = [f"text {name}: changed since" for name in changed]
    allowed = f"the folder of this same build (or a new one); {'; '.join(differing)}"
    require(not differing, "path", folder, allowed)


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
