"""Run every benchmark and print one table; exit with 1 where a limit is not kept.  --json prints the rows as JSON."""

import json
import sys
from dataclasses import asdict
from importlib import import_module

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.timing import Row

# knn_lm early: what runs before leaves warm memory, in which a large tensor costs a fifth of its first time
MODULES = (
    "course",
    "knn_lm",
    "datastore",
    "attention",
    "gated",
    "key_value",
    "infini_attention",
    "memorizing",
    "rmt",
    "streaming",
)


def main() -> int:
    torch.manual_seed(0)
    rows: list[Row] = []
    for module in track(MODULES, description="measuring", console=Console(stderr=True)):
        rows.extend(import_module(f"benchmarks.{module}").rows())
    if "--json" in sys.argv[1:]:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        table = Table(
            "measured",
            "figure",
            "limit",
            "kept",
            title=f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        )
        for row in rows:
            table.add_row(row.what, row.figure, row.limit, "yes" if row.kept else "NO")
        Console().print(table)
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
