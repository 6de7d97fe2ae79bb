"""What is installed, which devices are seen, and what is wrong, with the command that mends it."""

from __future__ import annotations

import importlib.util
import json as json_module
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import memcourse
from memcourse.course.start import MANIFEST, CannotStart, find_copy, is_newer, read_manifest, repository


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    status: "fine"; "note" where something optional is absent; "wrong" where something will fail.
    remedy: the command that mends it, ready to be pasted, or "".
    """

    part: str
    what: str
    found: str
    wanted: str = ""
    status: Literal["fine", "note", "wrong"] = "fine"
    remedy: str = ""


def diagnose() -> list[Finding]:
    """Look at the packages, the devices, Jupyter's kernel, the data and the learner's copy."""
    try:
        installed = distribution("memcourse")
    except PackageNotFoundError:
        found, remedy = "here, but not installed", _pip(f"-e{repository()}")
        findings = [Finding("memcourse", "memcourse", found, memcourse.__version__, "wrong", remedy)]
    else:
        findings = [
            *_versions(installed),
            *_packages(installed, "library", extra=""),
            *_packages(installed, "course", extra="course"),
        ]
    return [*findings, *_devices(), *_kernel(), *_data(), *_copy()]


def run(json: bool) -> int:
    """Print the findings, as a table or as JSON, and return the exit code: 1 where something is wrong."""
    findings = diagnose()
    wrong = any(finding.status == "wrong" for finding in findings)
    if json:
        document = {
            "version": memcourse.__version__,
            "ok": not wrong,
            "findings": [asdict(finding) for finding in findings],
        }
        print(json_module.dumps(document, indent=2))
    else:
        _print_table(findings)
    return int(wrong)


def _print_table(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    style = {"fine": "green", "note": "yellow", "wrong": "bold red"}
    console = Console()
    table = Table(title=f"memcourse {memcourse.__version__}", title_justify="left")
    for heading in ("", "what", "found", "wanted", ""):
        table.add_column(heading, overflow="fold")
    part = None
    for finding in findings:
        if part not in (None, finding.part):
            table.add_section()
        name = "" if finding.part == part else finding.part
        table.add_row(
            *map(Text, (name, finding.what, finding.found, finding.wanted)),
            Text(finding.status, style[finding.status]),
        )
        part = finding.part
    console.print(table)

    for status, heading, does in (("wrong", "Wrong", "mends"), ("note", "Optional, and absent", "brings")):
        remedies: dict[str, list[str]] = {}
        for finding in findings:
            if finding.status == status and finding.remedy:
                remedies.setdefault(finding.remedy, []).append(finding.what)
        for remedy, names in remedies.items():
            them = "it" if len(names) == 1 else "them"
            console.print(Text(f"\n{heading}: {', '.join(names)}. This {does} {them}:", style[status]))
            print(f"  {remedy}")  # never wrapped, so that it can be copied
    if all(finding.status != "wrong" for finding in findings):
        console.print("\nNothing is wrong.")


def _versions(installed: Distribution) -> Iterator[Finding]:
    wanted = installed.metadata["Requires-Python"]
    python = platform.python_version()
    supported = SpecifierSet(wanted).contains(python, prereleases=True)
    yield _judged(supported, Finding("memcourse", "Python", python, wanted))

    code = Finding("memcourse", "memcourse", installed.version, memcourse.__version__)
    yield _judged(code.found == code.wanted, code, _pip(f"-e{repository()}"))


def _packages(installed: Distribution, part: str, *, extra: str) -> Iterator[Finding]:
    """The packages that the library needs, or those that an extra adds: only the first can be wrong."""
    declared = [Requirement(line) for line in installed.requires or []]
    library = [r for r in declared if _applies(r, "")]
    requirements = [r for r in declared if _applies(r, extra) and r not in library] if extra else library
    versions = {r.name: _version(r.name) for r in requirements}
    failing = [r for r in requirements if not _satisfies(versions[r.name], r)]
    remedy = _pip(*(f"{r.name}{r.specifier}" for r in failing))
    for r in requirements:
        found, wanted = versions[r.name] or "not installed", str(r.specifier)
        if r in failing:
            yield Finding(part, r.name, found, wanted, "note" if extra else "wrong", remedy)
        else:
            yield Finding(part, r.name, found, wanted)


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _version(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def _satisfies(version: str | None, requirement: Requirement) -> bool:
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def _devices() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = ""
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        memory = f", {_gigabytes(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))}"
    yield Finding("devices", "cpu", f"{cores} cores{memory}")

    if importlib.util.find_spec("torch") is None:
        return
    try:
        import torch
    except (ImportError, OSError) as error:
        reinstall = _pip("--force-reinstall", "torch")
        yield Finding("devices", "torch", f"cannot be loaded: {error}", "", "wrong", reinstall)
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        yield Finding("devices", f"cuda:{index}", f"{card.name}, {_gigabytes(card.total_memory)}")
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "Apple GPU")
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        said = f"torch {torch.__version__} sees no card of the NVIDIA driver; see pytorch.org/get-started"
        yield Finding("devices", "cuda", said, status="note")


def _gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.0f} GiB"


def _kernel() -> Iterator[Finding]:
    """Does a notebook run in this Python?"""
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
        from jupyter_core.paths import prefer_environment_over_user
    except ImportError:
        return  # Jupyter is among the packages that are not installed
    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        yield Finding("Jupyter", "kernel", "none for Python", "", "note", _pip("ipykernel"))
        return
    bare = os.path.dirname(program) == ""  # for "python", Jupyter fills in the Python that it runs in
    if bare or Path(program) == Path(sys.executable):
        yield Finding("Jupyter", "kernel", "python3, in this environment")
        return
    place = "--sys-prefix" if prefer_environment_over_user() else "--user"
    remedy = shlex.join([sys.executable, "-m", "ipykernel", "install", place])
    yield Finding("Jupyter", "kernel", f"python3, which is {program}", sys.executable, "wrong", remedy)


def _data() -> Iterator[Finding]:
    folder = os.environ.get("MEMCOURSE_DATA")
    if not folder:
        yield Finding("yours", "MEMCOURSE_DATA", "not set; chapters use the bundled texts")
    elif Path(folder).is_dir():
        yield Finding("yours", "MEMCOURSE_DATA", folder)
    else:
        remedy = "unset MEMCOURSE_DATA"
        yield Finding("yours", "MEMCOURSE_DATA", f"{folder}, which is not there", "a folder", "wrong", remedy)


def _copy() -> Iterator[Finding]:
    command = [str(Path(sys.executable).with_name("memcourse")), "start"]
    copy = find_copy()
    if copy is None:
        yield Finding("yours", "copy", "none here", "", "note", shlex.join(command))
        return
    remedy = shlex.join([*command, str(copy)])
    try:
        version = read_manifest(copy).version
    except CannotStart:
        remedy = f"{shlex.join(['rm', str(copy / MANIFEST)])} && {remedy}"
        yield Finding("yours", "copy", f"{copy}, with an unreadable manifest", "", "wrong", remedy)
        return
    if is_newer(version):
        remedy = f"{shlex.join(['git', '-C', str(repository()), 'pull'])} && {_pip(f'-e{repository()}')}"
    same = version == memcourse.__version__
    yield _judged(same, Finding("yours", "copy", f"{copy}, version {version}", memcourse.__version__), remedy)


def _judged(fine: bool, finding: Finding, remedy: str = "") -> Finding:
    return finding if fine else replace(finding, status="wrong", remedy=remedy)


def _pip(*arguments: str) -> str:
    """The command that installs with this Python, in tested versions where constraints.txt is beside us."""
    constraints = repository() / "constraints.txt"
    pinned = ["-c", str(constraints)] if constraints.is_file() else []
    return shlex.join([sys.executable, "-m", "pip", "install", *pinned, *arguments])
