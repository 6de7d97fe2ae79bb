"""The kit: a folder with the runner and the library, all that an answer's process gets to see of memcourse.

The course is not in it, and neither is the module that the chapter teaches: whoever imports it reads why.
"""

from __future__ import annotations

import shutil
import site
import sys
import sysconfig
import tempfile
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path

import numpy
import torch

import memcourse
from memcourse.course.start import repository

HERE = Path(__file__).parent
CLONE = ("memcourse", "chapters", "exercises", "solutions", "source", "tests")  # what an environment may lie beside
LEFT_OUT = """\
raise ImportError(
    "memcourse.{module} is what this chapter teaches, and grading leaves it out: write the answer without it"
)
"""


@cache
def make(without: tuple[str, ...]) -> Path:
    """A new kit in a temporary folder, which goes when this process ends; the same one for the same modules."""
    folder = _temporary() / ("-".join(without) or "whole")
    library = Path(memcourse.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__", "course", "*.pyc")
    shutil.copytree(library, folder / "memcourse", ignore=ignored)
    for module in without:
        (folder / "memcourse" / f"{module}.py").write_text(LEFT_OUT.format(module=module))
    shutil.copytree(HERE.parent / "runner", folder / "runner", ignore=ignored)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


@cache
def _temporary() -> Path:
    made = Path(tempfile.mkdtemp(prefix="memcourse-kit-"))
    made.chmod(0o755)
    Finalize(None, shutil.rmtree, args=(made, True), exitpriority=0)  # at the end of a child of multiprocessing too
    return made


@cache
def libraries() -> list[str]:
    """The folders that torch, NumPy and the rest are imported from."""
    folders = {Path(module.__file__).parents[1] for module in (torch, numpy) if module.__file__}
    folders |= {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    folders |= {Path(folder) for folder in site.getsitepackages() if Path(folder).is_dir()}
    return sorted(str(folder) for folder in folders)


@cache
def readable() -> list[str]:
    """Python, the libraries and what both lean on, for a level at which an answer sees nothing else."""
    folders = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, *libraries()]
    return list(dict.fromkeys([*folders, *(str(Path(folder).resolve()) for folder in folders)]))


@cache
def hidden() -> list[str]:
    """What of memcourse may lie among the libraries."""
    installed = [path for folder in libraries() for path in Path(folder).glob("memcourse*")]
    clone = repository()
    seen = [Path(folder).resolve() for folder in readable()]
    if any(clone != folder and clone.is_relative_to(folder) for folder in seen):
        installed.append(clone)
    if clone in seen:
        installed += [clone / part for part in CLONE if (clone / part).exists()]
    return [str(path) for path in installed]
