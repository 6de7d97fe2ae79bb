"""The learner's copy: nothing of theirs is ever lost, and an interrupted run can be finished."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import memcourse
from memcourse.course import merge
from memcourse.course import start as module
from memcourse.course.checks import all_exercises
from memcourse.course.start import MANIFEST, CannotStart, find_copy, read_manifest, start

NAMES = ["chapters/01_a.ipynb", "chapters/02_b.ipynb", "exercises/01_a.ipynb", "solutions/01_a.ipynb"]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "repository"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{name}, first")
    monkeypatch.setattr(module, "repository", lambda: root)
    return root


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return tmp_path / "my_course"


def contents(folder: Path) -> dict[str, str]:
    """Every notebook that a person sees."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.ipynb")}
    return {name: path.read_text() for name, path in files.items() if not name.startswith(".")}


def notebook(*sources: str) -> str:
    cells = [
        {"cell_type": "code", "id": f"{number}", "metadata": {}, "source": text, "outputs": [], "execution_count": None}
        for number, text in enumerate(sources)
    ]
    about = {"memcourse": {"version": "0.0.9", "kind": "exercises"}}
    return json.dumps({"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5})


def sources(path: Path) -> list[str]:
    return [merge.source(cell) for cell in merge.read(path.read_bytes())["cells"]]


def test_a_first_copy_is_complete_and_recorded(repository: Path, copy: Path) -> None:
    summary = start(copy)
    assert summary.added == NAMES and not summary.updated and not summary.kept
    assert contents(copy) == contents(repository)
    assert read_manifest(copy).version == memcourse.__version__
    assert sorted(read_manifest(copy).files) == NAMES
    assert "4 added" in str(summary)


def test_a_second_run_writes_no_notebook(repository: Path, copy: Path) -> None:
    start(copy)
    before = {name: (copy / name).stat().st_mtime_ns for name in NAMES}
    summary = start(copy)
    assert (summary.added, summary.updated, summary.kept) == ([], [], [])
    assert {name: (copy / name).stat().st_mtime_ns for name in NAMES} == before
    assert "up to date" in str(summary)


def test_a_new_version_updates_what_is_untouched_and_keeps_the_learners_work(repository: Path, copy: Path) -> None:
    start(copy)
    (copy / NAMES[0]).write_text("mine, and the course changes it too")
    (copy / NAMES[2]).write_text("mine, and the course leaves it alone")
    (copy / "notes.ipynb").write_text("my own notebook")
    for name in (NAMES[0], NAMES[1]):
        (repository / name).write_text("second")
    summary = start(copy)
    assert summary.updated == [NAMES[1]]
    assert summary.kept == [NAMES[0], NAMES[2]]
    assert summary.superseded == {NAMES[0]: "is not JSON, or was cut off"}
    assert contents(copy) == {
        NAMES[0]: "mine, and the course changes it too",
        NAMES[1]: "second",
        NAMES[2]: "mine, and the course leaves it alone",
        NAMES[3]: f"{NAMES[3]}, first",
        "notes.ipynb": "my own notebook",
    }
    assert f"{NAMES[0]} is yours and was kept; the course has a newer one, but yours is not JSON" in str(summary)
    assert "rename" in str(summary)

    (repository / NAMES[0]).write_text("third")  # a later version still finds the learner's file theirs
    assert start(copy).kept == [NAMES[0], NAMES[2]]
    assert (copy / NAMES[0]).read_text() == "mine, and the course changes it too"


def test_a_renamed_notebook_stays_and_its_original_comes_back(repository: Path, copy: Path) -> None:
    start(copy)
    (copy / NAMES[2]).write_text("mine")
    (copy / NAMES[2]).rename(copy / "exercises/mine.ipynb")
    assert start(copy).added == [NAMES[2]]
    assert (copy / "exercises/mine.ipynb").read_text() == "mine"


FIRST, SECOND, MINE = notebook("a", "b", "c"), notebook("a", "b2", "c"), notebook("a", "b", "my answer")


def test_a_new_version_is_merged_into_the_learners_notebook(repository: Path, copy: Path) -> None:
    (repository / NAMES[2]).write_text(FIRST)
    start(copy)
    (copy / NAMES[2]).write_text(MINE)
    (repository / NAMES[2]).write_text(SECOND)
    summary = start(copy)
    assert (summary.merged, summary.updated, summary.kept, summary.superseded) == ([NAMES[2]], [], [], {})
    assert sources(copy / NAMES[2]) == ["a", "b2", "my answer"]
    assert (copy / "kept/0.0.9" / NAMES[2]).read_text() == MINE
    assert f"{NAMES[2]} has the new version around your work" in str(summary) and "kept/" in str(summary)

    assert start(copy).kept == [NAMES[2]]  # it is still the learner's
    (repository / NAMES[2]).write_text(notebook("a", "b3", "c"))
    before = (copy / NAMES[2]).read_bytes()
    assert start(copy).merged == [NAMES[2]]
    assert sources(copy / NAMES[2]) == ["a", "b3", "my answer"]
    assert (copy / "kept/0.0.9/exercises/01_a-2.ipynb").read_bytes() == before
    assert (copy / "kept/0.0.9" / NAMES[2]).read_text() == MINE


def test_what_is_kept_is_numbered(repository: Path, copy: Path) -> None:
    (repository / NAMES[2]).write_text(FIRST)
    start(copy)
    (copy / NAMES[2]).write_text(MINE)
    before = []
    for text in ("b2", "b3", "b4", "b5"):
        (repository / NAMES[2]).write_text(notebook("a", text, "c"))
        before.append((copy / NAMES[2]).read_bytes())
        start(copy)
    kept = copy / "kept/0.0.9/exercises"
    names = ["01_a.ipynb", "01_a-2.ipynb", "01_a-3.ipynb", "01_a-4.ipynb"]
    assert [(kept / name).read_bytes() for name in names] == before
    assert sorted(path.name for path in kept.iterdir()) == sorted(names)


@pytest.mark.parametrize("newer", ["0.10.0", "0.4.0", "0.3.1"])
def test_older_software_leaves_a_newer_copy_alone(
    repository: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, newer: str
) -> None:
    monkeypatch.setattr(memcourse, "__version__", newer)
    start(copy, learner="Ada")
    (repository / NAMES[0]).write_text("older")
    monkeypatch.setattr(memcourse, "__version__", "0.3.0")
    before = everything(copy)
    says = f"{copy} was made by version {newer} of the course and you have 0.3.0: update the course first."
    with pytest.raises(CannotStart, match=f"^{re.escape(says)}$"):
        start(copy, learner="Eve")
    assert everything(copy) == before


@pytest.mark.parametrize("older", ["0.9.0", "0.10.0rc1", "0.10.0"])
def test_newer_software_brings_an_older_copy_up(
    repository: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, older: str
) -> None:
    monkeypatch.setattr(memcourse, "__version__", older)
    start(copy)
    (repository / NAMES[0]).write_text("newer")
    monkeypatch.setattr(memcourse, "__version__", "0.10.0")
    assert start(copy).updated == [NAMES[0]]


def test_start_says_whose_copy_it_is_and_where_its_numbers_are_its_own(repository: Path, copy: Path) -> None:
    varied = ", ".join(exercise.id for exercise in all_exercises() if not exercise.asks_for_code)
    shows = f"in {varied}: `memcourse question ID` shows them."
    said = f"This copy is eve's, with numbers of its own, not the notebooks', {shows}"
    assert "This copy is" not in str(start(copy))
    assert str(start(copy, learner="eve")).splitlines()[-1] == said
    assert str(start(copy)).splitlines()[-1] == said
    now = f"This copy was eve's; it is evelyn's now, with other numbers {shows}"
    assert str(start(copy, learner="evelyn")).splitlines()[-1] == now
    assert "This copy is Evelyn's, with" in str(start(copy, learner="Evelyn"))  # the same name, as numbers go


def test_a_second_run_changes_no_file_whatever_the_first_one_did(repository: Path, copy: Path) -> None:
    work(repository, copy)
    start(copy, learner="Ada")
    before = everything(copy)
    start(copy)
    assert everything(copy) == before


def test_a_copy_from_before_there_was_a_base_is_left_as_it_was(repository: Path, copy: Path) -> None:
    (repository / NAMES[2]).write_text(FIRST)
    start(copy)
    shutil.rmtree(copy / ".memcourse")
    (copy / NAMES[2]).write_text(MINE)
    (repository / NAMES[2]).write_text(SECOND)
    summary = start(copy)
    assert (summary.merged, summary.kept, list(summary.superseded)) == ([], [NAMES[2]], [NAMES[2]])
    assert (copy / NAMES[2]).read_text() == MINE and not (copy / "kept").exists()


def test_a_copy_from_before_there_was_a_base_gets_one_while_the_course_stands_still(
    repository: Path, copy: Path
) -> None:
    (repository / NAMES[2]).write_text(FIRST)
    start(copy)
    shutil.rmtree(copy / ".memcourse")
    (copy / NAMES[2]).write_text(MINE)
    start(copy)
    (repository / NAMES[2]).write_text(SECOND)
    assert start(copy).merged == [NAMES[2]]


def test_a_copy_that_lost_its_manifest_goes_by_its_bases(repository: Path, copy: Path) -> None:
    (repository / NAMES[2]).write_text(FIRST)
    start(copy)
    (copy / MANIFEST).unlink()
    (copy / NAMES[2]).write_text(MINE)
    (repository / NAMES[0]).write_text("second")
    (repository / NAMES[2]).write_text(SECOND)
    summary = start(copy)
    assert (summary.updated, summary.merged, summary.kept) == ([NAMES[0]], [NAMES[2]], [])


def work(repository: Path, copy: Path) -> None:
    """A copy in which one notebook is to be added, one updated, one merged, one left alone and one not readable."""
    (repository / NAMES[2]).write_text(FIRST)
    start(copy)
    (copy / NAMES[2]).write_text(MINE)
    (copy / NAMES[3]).write_text("mine")
    (copy / NAMES[1]).unlink()
    (repository / NAMES[0]).write_text("second")
    (repository / NAMES[2]).write_text(SECOND)
    (repository / NAMES[3]).write_text("second")


def everything(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.mark.parametrize("how", ["an exception", "killed"])
@pytest.mark.parametrize("n_written", range(7))  # the three notebooks, two of the bases, what is kept, the manifest
def test_an_interrupted_update_leaves_whole_files_and_the_next_run_finishes(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_written: int, how: str
) -> None:
    copy, twin = tmp_path / "my_course", tmp_path / "twin"
    work(repository, twin)
    shutil.copytree(twin, copy)
    first = contents(copy)
    start(twin)

    replace, calls = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == n_written + 1 or (how == "killed" and len(calls) > n_written):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            start(copy)
    second = contents(twin)
    assert all(text in (first.get(name), second[name]) for name, text in contents(copy).items())
    assert not list(copy.rglob("*.tmp"))

    start(copy)
    assert {name: content for name, (content, _) in everything(copy).items()} == {
        name: content for name, (content, _) in everything(twin).items()
    }


def test_the_learners_name_is_kept_until_another_is_given(repository: Path, copy: Path) -> None:
    start(copy)
    assert read_manifest(copy).learner == ""
    start(copy, learner=" Ada ")
    start(copy)
    assert read_manifest(copy).learner == "Ada"
    start(copy, learner="Grace")
    assert read_manifest(copy).learner == "Grace"
    for name in ("", "  ", "two\nlines"):
        with pytest.raises(CannotStart, match="learner must be a name"):
            start(copy, learner=name)
    assert read_manifest(copy).learner == "Grace"


def test_files_that_were_copied_but_not_recorded_are_recognised(repository: Path, copy: Path) -> None:
    start(copy)
    (copy / MANIFEST).unlink()
    shutil.rmtree(copy / ".memcourse")
    (copy / NAMES[3]).write_text("mine")
    summary = start(copy)
    assert summary.kept == [NAMES[3]] and not summary.added and not summary.updated
    assert (copy / NAMES[3]).read_text() == "mine"


@pytest.mark.parametrize("manifest", ['{"version": ', '{"version": "new", "files": {}}'])
def test_an_unreadable_manifest_changes_nothing(repository: Path, copy: Path, manifest: str) -> None:
    start(copy)
    (copy / MANIFEST).write_text(manifest)
    (repository / NAMES[0]).write_text("second")
    before = contents(copy)
    with pytest.raises(CannotStart, match="unreadable"):
        start(copy)
    assert contents(copy) == before and (copy / MANIFEST).read_text() == manifest


@pytest.mark.parametrize("place", [".", "chapters", "exercises/copy"])
def test_the_course_is_not_copied_onto_itself(repository: Path, place: str) -> None:
    with pytest.raises(CannotStart, match="the course itself"):
        start(repository / place)
    assert not list(repository.rglob(MANIFEST))


def test_a_file_in_the_folders_place_is_named(repository: Path, copy: Path) -> None:
    copy.write_text("not a folder")
    with pytest.raises(CannotStart, match=re.escape(str(copy))):
        start(copy)
    assert copy.read_text() == "not a folder"


def test_without_a_repository_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "repository", lambda: tmp_path)
    with pytest.raises(CannotStart, match="clone the course"):
        start(tmp_path / "copy")
    assert not list(tmp_path.iterdir())


def test_find_copy(repository: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_copy(tmp_path) is None
    start(copy)
    assert find_copy(tmp_path) == find_copy(copy) == find_copy(copy / "exercises") == copy
    monkeypatch.chdir(copy / "chapters")
    assert find_copy() == copy
    (tmp_path / "elsewhere").mkdir()
    assert find_copy(tmp_path / "elsewhere") is None


def first_answer(server: subprocess.Popen[bytes], log: Path) -> tuple[str, str]:
    """The address that the server prints, and the page there once it listens (a moment later)."""
    deadline = time.monotonic() + 120
    while True:
        try:
            address = re.findall(r"http://127\.0\.0\.1:\d+/\S+token=\w+\n", log.read_text())[0].strip()
            with urllib.request.urlopen(address, timeout=30) as page:
                return address, page.read().decode()
        except (IndexError, urllib.error.URLError):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)


def test_lab_serves_the_copy_at_its_first_chapter(repository: Path, copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("jupyterlab", reason="needs JupyterLab")
    program = (
        "import sys, pathlib; from memcourse.course import start\n"
        "start.repository = lambda: pathlib.Path(sys.argv[1])\n"
        "start.lab(sys.argv[2])\n"
    )
    environment = os.environ | {
        "BROWSER": "no-such-browser",
        "MEMCOURSE_DATA": "data",
        "PYTHONPATH": str(Path(memcourse.__file__).parents[1]),
    }
    log = tmp_path / "log"
    with log.open("w") as out:
        command = [sys.executable, "-c", program, str(repository), str(copy)]
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=tmp_path)
    try:
        address, page = first_answer(server, log)
        assert "/lab/tree/chapters/01_a.ipynb?token=" in address and "JupyterLab" in page
        listing = address.replace("/lab/tree/chapters/01_a.ipynb", "/api/contents/")
        with urllib.request.urlopen(listing, timeout=30) as page:
            assert {entry["name"] for entry in json.load(page)["content"]} == set(module.PARTS)
    finally:
        server.terminate()
        server.wait(timeout=30)
