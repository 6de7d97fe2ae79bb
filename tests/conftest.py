"""Shared fixtures.  Shape annotations are checked at run time, except in tests of bad input.

There our own ValueError must come: MEMCOURSE_SHAPE_CHECKS=0 pytest tests/bad_input, a process of its own.
"""

import os
from pathlib import Path

import pytest

SHAPE_CHECKS = os.environ.get("MEMCOURSE_SHAPE_CHECKS", "1") != "0"
ROOT = Path(__file__).resolve().parents[1]

collect_ignore = ["bad_input"] if SHAPE_CHECKS else []

if SHAPE_CHECKS:
    from jaxtyping import install_import_hook

    names = [path.stem for path in (ROOT / "memcourse").iterdir() if path.suffix == ".py" or path.is_dir()]
    modules = [f"memcourse.{name}" for name in names if name not in ("__init__", "course")]
    install_import_hook(modules, "beartype.beartype")


def devices() -> list[str]:
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=devices())
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def one_thread_and_a_seed() -> None:
    import torch

    torch.set_num_threads(1)  # the tensors of the tests are too small to be worth a second thread
    torch.manual_seed(0)
