"""A notebook of exercises, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHAPTER = "01_attention"


def write_notebook(path: Path, *cells: Any, **more: Any) -> None:
    """A notebook of exercises with these code cells; `more` replaces fields of the document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(*cells, **more)))


def document(*cells: Any, **more: Any) -> dict[str, Any]:
    written = [
        {
            "cell_type": "code",
            "id": f"cell-{n}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": source,
        }
        for n, source in enumerate(cells)
    ]
    metadata = {"memcourse": {"chapter": CHAPTER, "kind": "exercises"}}
    return {"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5} | more
