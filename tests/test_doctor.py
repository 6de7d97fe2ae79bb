"""`memcourse doctor` finds each kind of fault and names a command that mends it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import memcourse
from memcourse.course import doctor
from memcourse.course.doctor import Finding, diagnose
from memcourse.course.start import MANIFEST


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory without a course copy, and no data folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MEMCOURSE_DATA", raising=False)
    return folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose package metadata is found before what is really installed."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def declare(site: Path, name: str, version: str, *lines: str) -> None:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    header = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]
    (info / "METADATA").write_text("\n".join(header) + "\n")


def declare_course(site: Path, *requirements: str, version: str = memcourse.__version__) -> None:
    lines = [f"Requires-Dist: {requirement}" for requirement in requirements]
    declare(site, "memcourse", version, "Requires-Python: >=3.11", *lines)


def found(what: str) -> Finding:
    return next(finding for finding in diagnose() if finding.what == what)


def test_what_is_installed_and_in_range_is_fine(site: Path) -> None:
    declare_course(site, "present>=1.2")
    declare(site, "present", "1.10+local")
    assert found("present") == Finding("library", "present", "1.10+local", ">=1.2")
    assert found("memcourse").status == found("Python").status == "fine"


def test_what_is_missing_or_too_old_is_wrong_and_one_command_mends_both(site: Path) -> None:
    declare_course(site, "present", "absent>=3", "old>=2.0")
    declare(site, "present", "1.0")
    declare(site, "old", "1.9")
    absent, old = found("absent"), found("old")
    assert (absent.found, absent.wanted, absent.status) == ("not installed", ">=3", "wrong")
    assert (old.found, old.wanted, old.status) == ("1.9", ">=2.0", "wrong")
    assert absent.remedy == old.remedy
    command = shlex.split(old.remedy)
    assert command[:4] == [sys.executable, "-m", "pip", "install"] and command[-2:] == [
        "absent>=3",
        "old>=2.0",
    ]


def test_what_only_the_course_needs_is_a_note(site: Path) -> None:
    declare_course(site, "absent>=3; extra == 'course'", "never; extra == 'dev'")
    assert found("absent").status == "note" and found("absent").part == "course"
    assert "absent>=3" in found("absent").remedy
    assert not [finding for finding in diagnose() if finding.what == "never"]


def test_code_newer_than_what_was_installed_is_wrong(site: Path) -> None:
    declare_course(site, version="0.0.1")
    assert (found("memcourse").found, found("memcourse").status) == ("0.0.1", "wrong")
    assert "-e" in found("memcourse").remedy


def test_a_python_that_is_not_supported_is_wrong(site: Path) -> None:
    declare(site, "memcourse", memcourse.__version__, "Requires-Python: >=99")
    assert found("Python").status == "wrong" and found("Python").wanted == ">=99"


def test_a_kernel_of_another_python_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jupyter_client", reason="needs Jupyter")
    assert found("kernel").status == "fine"
    kernel = tmp_path / "jupyter/kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["/another/python", "-m", "x"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    assert found("kernel").status == "wrong" and "/another/python" in found("kernel").found
    assert shlex.split(found("kernel").remedy)[:4] == [sys.executable, "-m", "ipykernel", "install"]


def test_a_data_folder_that_is_not_there_is_wrong(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found("MEMCOURSE_DATA").status == "fine"
    monkeypatch.setenv("MEMCOURSE_DATA", str(elsewhere))
    assert found("MEMCOURSE_DATA").status == "fine"
    monkeypatch.setenv("MEMCOURSE_DATA", str(elsewhere / "gone"))
    assert found("MEMCOURSE_DATA").status == "wrong" and found("MEMCOURSE_DATA").remedy == "unset MEMCOURSE_DATA"


def test_the_copy_is_compared_with_the_version(elsewhere: Path) -> None:
    assert found("copy").status == "note"
    manifest = elsewhere / "my_course" / MANIFEST
    manifest.parent.mkdir()
    manifest.write_text(json.dumps({"version": memcourse.__version__, "files": {}}))
    assert found("copy").status == "fine"
    manifest.write_text(json.dumps({"version": "0.0.1", "files": {}}))
    assert found("copy").status == "wrong"
    assert shlex.split(found("copy").remedy)[1:] == ["start", str(manifest.parent)]
    manifest.write_text(json.dumps({"version": "999.0", "files": {}}))  # newer: `start` would refuse it
    assert found("copy").status == "wrong" and shlex.split(found("copy").remedy)[0] == "git"
    manifest.write_text("[]")
    assert found("copy").status == "wrong" and shlex.split(found("copy").remedy)[:2] == ["rm", str(manifest)]


def test_devices_are_named() -> None:
    import torch

    assert found("cpu").found.split()[1].startswith("cores")
    for index in range(torch.cuda.device_count()):
        assert torch.cuda.get_device_name(index) in found(f"cuda:{index}").found


def test_a_torch_that_does_not_load_is_wrong(site: Path) -> None:
    """In a process of its own, since torch is loaded here."""
    (site / "torch.py").write_text("raise OSError('libsomething.so is missing')")
    program = f"""
import sys
sys.path.insert(0, {str(site)!r})
from memcourse.course import doctor
doctor.run(json=True)
"""
    root = Path(memcourse.__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    finding = next(f for f in json.loads(result.stdout)["findings"] if f["what"] == "torch" and f["part"] == "devices")
    assert finding["status"] == "wrong" and "libsomething.so" in finding["found"]
    assert "--force-reinstall torch" in finding["remedy"]


@pytest.mark.parametrize("version, code", [("1.9", 1), ("2.0", 0)])
def test_run_prints_and_returns_the_exit_code(
    site: Path, capsys: pytest.CaptureFixture[str], version: str, code: int
) -> None:
    declare_course(site, "judged>=2.0", "absent; extra == 'course'")
    declare(site, "judged", version)

    assert doctor.run(json=True) == code
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] == (code == 0) and document["version"] == memcourse.__version__
    judged = next(finding for finding in document["findings"] if finding["what"] == "judged")
    assert judged["found"] == version and judged["status"] == ("wrong" if code else "fine")

    assert doctor.run(json=False) == code
    printed = capsys.readouterr().out
    assert ("Nothing is wrong." in printed) == (code == 0)
    assert found("absent").remedy in printed, "commands are printed on one line each, ready to be copied"
    assert (judged["remedy"] in printed) and ("Wrong: judged. This mends it:" in printed) == (code == 1)


def test_what_is_absent_and_optional_is_said_in_a_sentence(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    declare_course(site, "absent; extra == 'course'", "gone; extra == 'course'")
    doctor.run(json=False)
    printed = " ".join(capsys.readouterr().out.split())
    assert "Optional, and absent: absent, gone. This brings them: " in printed
    assert "Optional, and absent: copy. This brings it: " in printed
