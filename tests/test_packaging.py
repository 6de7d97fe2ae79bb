"""What is shipped: the wheel, the pinned versions, conda's environment and the Makefile's set-up."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import memcourse

ROOT = Path(memcourse.__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
COMPANIONS = {"cycler", "ipython", "jupyter-client", "jupyter-core", "pillow"}  # of matplotlib and ipykernel
HEAVY = (
    "faiss",
    "matplotlib",
    "sklearn",
    "tokenizers",
    "transformers",
    "pytest",
    "typer",
    "IPython",
    "jupyter",
    "jupyterlab",
    "ipykernel",
)


def declared(*extras: str) -> dict[str, Requirement]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    requirements = {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}
    requirements.pop("memcourse", None)
    return requirements


def run(*command: object, **options: object) -> str:
    """The output of a command, which must succeed; PYTHONPATH and the like do not reach it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_the_licence(wheel: Path) -> None:
    info = f"memcourse-{memcourse.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"memcourse", info}
    assert f"{info}/licenses/LICENSE" in names
    shipped = {name for name in names if name.startswith("memcourse/")}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "memcourse").rglob("*.*")}
    assert shipped == {name for name in files if "__pycache__" not in name}
    assert not [name for name in shipped if re.search(r"\.ipynb$|/test_", name)]


def test_the_library_alone_is_light(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        metadata = HeaderParser().parsestr(
            archive.read(f"memcourse-{memcourse.__version__}.dist-info/METADATA").decode()
        )
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    always = {canonicalize_name(r.name) for r in requirements if r.marker is None}
    assert always == set(declared())
    assert not always & {
        "faiss-cpu",
        "matplotlib",
        "scikit-learn",
        "jupyterlab",
        "ipykernel",
        "nbval",
        "jupytext",
    }


def test_import_brings_in_nothing_heavy() -> None:
    program = f"import memcourse, sys; print(sorted(set({HEAVY}) & set(sys.modules)))"
    assert run(sys.executable, "-c", program, cwd=ROOT).strip() == "[]"


def test_what_is_imported_is_declared() -> None:
    """By us, and not only by a package that happens to need it too."""
    homes = packages_distributions()
    ours = {*declared("course", "hf"), *COMPANIONS}
    for path in (ROOT / "memcourse").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [str(node.module)]
            for name in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {"memcourse"}:
                found = {canonicalize_name(home) for home in homes.get(name, [])}
                assert found & ours, f"{path.name} imports {name}, which pyproject.toml does not declare"


def test_constraints_pin_all_that_is_declared_inside_its_range() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pins.values()), "no local versions"
    for name, requirement in declared("course", "hf", "dev").items():
        assert requirement.specifier.contains(pins[name]), f"{requirement} is pinned to {pins[name]}"


def test_conda_gets_the_same_packages() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, from_pip = environment["dependencies"]
    *names, constraints, course = from_pip["pip"]
    assert set(names) == set(declared("course", "hf", "dev"))
    assert (constraints, course) == ("-c constraints.txt", "-e .[dev]")
    assert "pip" in conda and any(f"python {PROJECT['requires-python']}" in line for line in conda)


def test_citation_and_package_have_one_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == memcourse.__version__


# The Makefile's set-up, with a pretended Python whose pip takes no time

PRETENDED = """#!/bin/sh
echo "$*" >> "{log}"
case "$*" in
  *version_info*) {version} ;;
  *ensurepip*) {ensurepip} ;;
  *find_spec*) echo "{origin}" ;;
  -V) echo "Python 3.x" ;;
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python; cp "$0" .venv/bin/pip ;;
  "-m pip install"*) test ! -e "{fail}" ;;
esac
"""


class Setup:
    """`make environment` in a folder that holds nothing but the Makefile and what it depends on."""

    def __init__(self, folder: Path, **pretended: str) -> None:
        self.folder, self.log, self.fail = folder / "the course", folder / "log", folder / "fail"
        self.folder.mkdir()
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.folder)
        texts = {
            "log": self.log,
            "fail": self.fail,
            "origin": self.folder / "memcourse/__init__.py",
            "version": "exit 0",
            "ensurepip": "exit 0",
        }
        self.python = folder / "python"
        self.python.write_text(PRETENDED.format(**texts | pretended))
        self.python.chmod(0o755)

    def make(self) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        command = ["make", f"PYTHON={self.python}", "environment"]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True)

    @property
    def installed(self) -> bool:
        return "pip install -c constraints.txt -e .[dev]" in self.log.read_text()


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
def test_make_installs_once_and_again_when_the_requirements_change(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    first = setup.make()
    assert first.returncode == 0 and setup.installed
    assert "minutes" in first.stdout and "GB" in first.stdout
    assert setup.make().returncode == 0 and not setup.installed
    later = (setup.folder / ".venv/installed").stat().st_mtime + 10
    os.utime(setup.folder / "constraints.txt", (later, later))
    assert setup.make().returncode == 0 and setup.installed


@needs_make
def test_an_installation_that_stopped_is_not_taken_for_done(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.fail.touch()
    stopped = setup.make()
    assert stopped.returncode != 0 and "Run make again" in stopped.stderr
    assert not (setup.folder / ".venv/installed").exists()
    setup.fail.unlink()
    assert setup.make().returncode == 0 and setup.installed


@needs_make
@pytest.mark.parametrize(
    "pretended, sentence",
    [
        ({"version": "exit 1"}, "needs Python 3.11 or newer, and this is Python 3.x"),
        ({"ensurepip": "exit 1"}, "apt install python3-venv"),
        ({"origin": "/moved/memcourse/__init__.py"}, "rm -rf .venv"),
    ],
)
def test_make_says_what_is_wrong_with_this_python(tmp_path: Path, pretended: dict[str, str], sentence: str) -> None:
    result = Setup(tmp_path, **pretended).make()
    assert result.returncode != 0 and sentence in result.stderr


# A project that uses the library alone

PROGRAM = """
import torch
from memcourse import Batch, CausalAttention, MemoryTransformer, fit
from memcourse.course import check

tokens = torch.arange(22).view(2, 11) % 5
model = MemoryTransformer(5, 8, 1, memory=lambda: CausalAttention(8, 2))
history = fit(model, lambda step: Batch(tokens[:, :-1], tokens[:, 1:]), steps=20, progress=False)
assert history["loss"][-1] < history["loss"][0], history["loss"]

def attention_weights(query, key):
    return torch.softmax(query @ key.T / key.shape[-1] ** 0.5, dim=-1)

check("1.2", attention_weights)
"""


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    environment, empty = tmp_path / "environment", tmp_path / "empty"
    empty.mkdir()
    run(sys.executable, "-m", "venv", environment)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", "-c", ROOT / "constraints.txt", wheel)
    (tmp_path / "program.py").write_text(PROGRAM)
    assert "checks passed" in run(scripts / "python", "-P", tmp_path / "program.py", cwd=empty)
    assert "Nothing is wrong." in run(scripts / "memcourse", "doctor", cwd=empty)
    assert not list(empty.iterdir())
