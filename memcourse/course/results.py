"""What an experiment found: numbers with their seeds, configuration and machine, and whether they still hold.

`experiments/NN_slug.py` calls `cached_run` for each run and `write` at the end; its chapter calls `read`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from memcourse.course.start import write_atomically

PACKAGE = Path(__file__).resolve().parents[1]


def summary(per_seed: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean, lowest and highest over the seeds, which are the first axis, and the values: (seeds, ...)."""
    values = np.asarray(per_seed, dtype=np.float64)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"per_seed must hold one value (or array) per seed, got {per_seed!r}")
    return {
        "mean": values.mean(axis=0).tolist(),
        "low": values.min(axis=0).tolist(),
        "high": values.max(axis=0).tolist(),
        "per_seed": values.tolist(),
    }


def write(
    slug: str,
    results: Mapping[str, Any],
    *,
    config: Mapping[str, Any],
    seeds: Sequence[int],
    experiment_file: str | os.PathLike[str],
) -> Path:
    """Write `results/{slug}.json` beside the experiment, and return its path.

    Raises ValueError where the slug is not the experiment's name, a number is not finite, or there are fewer
    than three seeds.
    """
    experiment = Path(experiment_file).resolve()
    if experiment.stem != _checked(slug):
        raise ValueError(f"slug must be the experiment's name, {experiment.stem!r}, got {slug!r}")
    if len(set(seeds)) < 3:
        raise ValueError(f"seeds must be at least three, so that there is a spread, got {list(seeds)}")
    document = {
        "experiment": slug,
        "config": config,
        "seeds": list(seeds),
        "results": results,
        "hash": _fingerprint(config, experiment),
        "machine": _machine(),
    }
    return _write_json(experiment.parent / "results" / f"{slug}.json", document)


def read(slug: str) -> dict[str, Any]:
    """The document that `write` wrote: experiment, config, seeds, results, hash, machine.

    It is looked for in the clone that the package lies in, then upwards from the working directory (a course
    copy lies inside its clone). Raises FileNotFoundError with the command that makes it.
    """
    return json.loads(_find(slug).read_text(encoding="utf-8"))


def is_stale(slug: str) -> bool:
    """Whether the experiment file has changed since its results were written."""
    path = _find(slug)
    document = json.loads(path.read_text(encoding="utf-8"))
    return document["hash"] != _fingerprint(document["config"], path.parents[1] / f"{slug}.py")


def cached_run(
    slug: str, key: Mapping[str, Any], run: Callable[[], Any], *, experiment_file: str | os.PathLike[str]
) -> Any:
    """`run()`, or what it gave before, so that a killed experiment goes on where it was.

    `key` names everything the run depends on (seed, sizes, steps); a change to it, to the experiment file or
    to the library means a new run. The result must be plain JSON, and comes back as JSON in either case.
    It is kept in `.cache/experiments/`, beside `experiments/`.
    """
    experiment = Path(experiment_file).resolve()
    course = PACKAGE / "course"
    sources = sorted(source for source in PACKAGE.rglob("*.py") if course not in source.parents)
    library = [source.read_text(encoding="utf-8") for source in sources]
    name = _fingerprint({"key": key, "library": library}, experiment)[:24]
    path = experiment.parents[1] / ".cache" / "experiments" / _checked(slug) / f"{name}.json"
    if not path.exists():
        _write_json(path, {"key": key, "result": run()})
    return json.loads(path.read_text(encoding="utf-8"))["result"]


def _checked(slug: str) -> str:
    if not re.fullmatch(r"\d\d_[a-z0-9_]+", slug):
        raise ValueError(f"slug must look like '01_attention', got {slug!r}")
    return slug


def _find(slug: str) -> Path:
    relative = Path("experiments") / "results" / f"{_checked(slug)}.json"
    for folder in (PACKAGE.parent, Path.cwd(), *Path.cwd().parents):
        if (folder / relative).is_file():
            return folder / relative
    raise FileNotFoundError(
        f"{relative.as_posix()} is not here; in a clone of the course, python experiments/{slug}.py makes it"
    )


def _fingerprint(config: Mapping[str, Any], experiment: Path) -> str:
    """One hash of the configuration and of the experiment's text (whatever its line ends)."""
    as_read_back = json.loads(json.dumps(config, allow_nan=False))
    text = json.dumps(as_read_back, sort_keys=True) + "\n" + experiment.read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def _machine() -> dict[str, Any]:
    """Words about the machine that say how fast it is, and none that say whose it is."""
    import torch

    linux = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.+)", linux.read_text(encoding="utf-8") if linux.is_file() else "")
    return {
        "cpu": named[1].strip() if named else platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _write_json(path: Path, document: Mapping[str, Any]) -> Path:
    """Write beside and rename, so that a half-written file is never read."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode())
    return path
