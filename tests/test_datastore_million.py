"""A million keys of dimension 256, built on disk and searched, in 4 GiB of memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

N, DIM, BLOCK = 1_000_000, 256, 50_000

BUILD_AND_SEARCH = """
import json, resource, sys, time
import torch
from memcourse.datastore import Datastore

index, path, n, dim, block = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
centres = torch.randn(4096, dim)


def keys(first):
    draw = torch.Generator().manual_seed(first)
    near = torch.randint(4096, (block,), generator=draw)
    return centres[near] + 0.5 * torch.randn(block, dim, generator=draw)


seconds = {}
start = time.perf_counter()
store = Datastore(dim, index=index, path=path)
with store.building("a million") as done:
    for first in range(done, n, block):
        store.add(keys(first), torch.arange(first, first + block, dtype=torch.int32))
seconds["build"] = time.perf_counter() - start
if index != "exact":
    start = time.perf_counter()
    store.save()
    seconds["index"] = time.perf_counter() - start
start = time.perf_counter()
store = Datastore.load(path)
seconds["load"] = time.perf_counter() - start
queries = keys(n - block)[:256]
start = time.perf_counter()
found = store.search(queries, 64)
seconds["search of 256"] = time.perf_counter() - start
own = (found.values[:, 0] == torch.arange(n - block, n - block + 256)).float().mean().item()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "found itself": own, "peak bytes": peak}))
"""


@pytest.mark.parametrize("index", ["exact", "ivfpq"])
def test_a_million_keys_in_four_gibibytes(tmp_path: Path, index: str) -> None:
    if index != "exact":
        pytest.importorskip("faiss", reason="FAISS is not installed: pip install faiss-cpu")
    command = [sys.executable, "-c", BUILD_AND_SEARCH, index, str(tmp_path), *map(str, (N, DIM, BLOCK))]
    report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
    print(index, report, f"{on_disk / N:.1f} bytes per key on disk")
    assert report["peak bytes"] < 4 * 2**30
    assert report["found itself"] > (0.999 if index == "exact" else 0.9)
    assert on_disk < N * (2 * DIM + 4 + (0 if index == "exact" else 80)) + 2**22
