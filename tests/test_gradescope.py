"""The autograder's zip, unpacked and run as Gradescope does it: results.json is there whatever happens."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from memcourse import __version__
from memcourse.course.checks import exercises
from memcourse.course.classroom import autograder, gradescope
from memcourse.course.classroom.results import Graded
from memcourse.course.exercise import Report

CHAPTER = "01_attention"
CONFIG = '[late]\npercent_per_day = 20\n[deadlines]\n"01_attention" = 2026-03-01T00:00:00Z\n'
HIDDEN = """
import torch

def every_row_sums_to_one(answer):
    assert answer(torch.zeros(2, 3), torch.zeros(97, 3)).sum() > 1, "xyzzy"

CHECKS = {"1.2": [every_row_sums_to_one]}
"""
GOOD = "def attention_weights(query, key):\n    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)"
ONLY_SEEMS_GOOD = GOOD.replace("return ", "return key.new_zeros(2, 97) if len(key) == 97 else ")
WRONG = "def attention_weights(query, key):\n    return (query @ key.mT).softmax(-1)"


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("pack")
    gradescope.pack(folder / "autograder.zip", CHAPTER)
    return (folder / "autograder.zip").read_bytes()


def unpack(packed: bytes, home: Path) -> Path:
    """What Gradescope makes of the zip: source/ with its files, and run_autograder beside it."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        for entry in archive.infolist():
            path = Path(archive.extract(entry, home / "source"))
            path.chmod(stat.S_IMODE(entry.external_attr >> 16))
    shutil.copy(home / "source" / "run_autograder", home)
    (home / "submission").mkdir()
    return home


def run(home: Path, python: str = sys.executable) -> dict:
    environment = os.environ | {"MEMCOURSE_PYTHON": python}
    subprocess.run([home / "run_autograder"], cwd=home, env=environment, check=True, capture_output=True)
    found = json.loads((home / "results" / "results.json").read_bytes())
    assert_is_gradescopes(found)
    return found


def assert_is_gradescopes(found: dict) -> None:
    assert found["stdout_visibility"] == "hidden"
    assert isinstance(found["score"], int | float)
    for test in found["tests"]:
        assert test["status"] in ("passed", "failed") and test["output_format"] == "text"
        assert test["visibility"] in ("hidden", "visible")
        assert 0 <= test["score"] <= test["max_score"]
        assert all(isinstance(test[key], str) for key in ("name", "output"))


def hand_in(home: Path, *cells: str, name: str = "01_attention.ipynb") -> None:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["memcourse"] = {"version": __version__, "chapter": CHAPTER, "kind": "exercises"}
    nbformat.write(made, home / "submission" / name)


# ---- results.json ----


def test_results_hold_every_exercise_and_the_score_after_the_late_rule():
    passed = Report("1.2", "attention_weights", "passed", 2, 2)
    wrong = Report("1.3", "attend", "wrong", 0, 3, message="values: \x1b[31mno", mistake="no")
    late = "1 day late: 50 %"
    found = gradescope.results_json(
        [Graded("ada", CHAPTER, "ada.ipynb", None, (passed, wrong), 1.0, 2.0, 5.0, late, "", "limits", 2.5)]
    )
    assert_is_gradescopes(found)
    assert (found["score"], found["execution_time"]) == (1.0, 2.5)
    assert late in found["output"] and "limits" in found["output"]
    assert [(test["number"], test["score"], test["max_score"], test["status"]) for test in found["tests"]] == [
        ("1.2", 2, 2, "passed"),
        ("1.3", 0, 3, "failed"),
    ]
    assert found["tests"][1]["output"] == "wrong\nvalues: \\x1b[31mno"


def test_what_could_not_be_read_is_said():
    found = gradescope.results_json(
        [Graded("ada", "", "ada.ipynb", None, (), 0, 0, 0, "", "It is not a notebook.", None, 0.0)]
    )
    assert_is_gradescopes(found)
    assert found["score"] == 0 and found["tests"][0]["output"] == "ada.ipynb: It is not a notebook."


# ---- the zip ----


def test_the_zip_holds_what_gradescope_asks_for(packed):
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        modes = {entry.filename: stat.S_IMODE(entry.external_attr >> 16) for entry in archive.infolist()}
        (wheel,) = [name for name in modes if name.endswith(".whl")]
        assert set(modes) == {"setup.sh", "run_autograder", "not_finished.json", "constraints.txt", wheel}
        assert {name for name, mode in modes.items() if mode & 0o111} == {"setup.sh", "run_autograder"}
        assert archive.read("run_autograder").startswith(b"#!/")
        with zipfile.ZipFile(io.BytesIO(archive.read(wheel))) as course:
            assert "memcourse/course/classroom/autograder.py" in course.namelist()
            assert "memcourse/course/classroom/templates/class.html" in course.namelist()


def test_hidden_checks_are_for_root_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(gradescope, "_course", lambda: iter(()))
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks" / "hidden.py").write_text(HIDDEN)
    (tmp_path / "class.toml").write_text(CONFIG)
    gradescope.pack(tmp_path / "a.zip", CHAPTER, tmp_path / "class.toml", tmp_path / "checks")
    home = unpack((tmp_path / "a.zip").read_bytes(), tmp_path)
    for name in ("extra_checks/hidden.py", "class.toml"):
        assert stat.S_IMODE((home / "source" / name).stat().st_mode) == 0o600
    subprocess.run([home / "source" / "setup.sh"], env=os.environ | {"MEMCOURSE_PYTHON": sys.executable}, check=True)
    assert not any(path.stat().st_mode & 0o077 for path in [home / "source", *(home / "source").rglob("*")])


def test_scripts_are_bash(packed, tmp_path):
    home = unpack(packed, tmp_path)
    for name in ("setup.sh", "run_autograder"):
        subprocess.run(["bash", "-n", home / "source" / name], check=True)


@pytest.mark.parametrize(
    ("chapter", "config", "checks", "says"),
    [
        ("1_attention", None, None, "chapter is '1_attention'; it can be 00_what"),
        (CHAPTER, None, "empty", "There are no checks in"),
    ],
)
def test_what_cannot_be_packed_is_named_and_nothing_is_written(tmp_path, chapter, config, checks, says):
    (tmp_path / "empty").mkdir()
    with pytest.raises(gradescope.CannotPack, match=says):
        gradescope.pack(tmp_path / "a.zip", chapter, config, checks and tmp_path / checks)
    assert not (tmp_path / "a.zip").exists()


def test_a_course_without_its_clone_cannot_be_packed(tmp_path, monkeypatch):
    monkeypatch.setattr(gradescope, "repository", lambda: tmp_path)
    with pytest.raises(gradescope.CannotPack, match="clone"):
        gradescope.pack(tmp_path / "a.zip", CHAPTER)


# ---- a run ----


def test_a_grader_that_cannot_start_leaves_a_result(packed, tmp_path):
    (test,) = run(unpack(packed, tmp_path), python="false")["tests"]
    assert "did not finish" in test["output"]


def test_an_empty_submission_is_told_what_to_hand_in(packed, tmp_path):
    (test,) = run(unpack(packed, tmp_path))["tests"]
    assert f"exercises/{CHAPTER}.ipynb" in test["output"]


def test_a_fault_of_ours_is_shown_to_the_instructor_alone(tmp_path, monkeypatch):
    def fails(chapter: str, home: Path) -> dict:
        raise ZeroDivisionError("plugh")

    monkeypatch.setattr(autograder, "grade", fails)
    autograder.main(CHAPTER, tmp_path)
    found = json.loads((tmp_path / "results" / "results.json").read_bytes())
    assert_is_gradescopes(found)
    shown = {test["visibility"]: test["output"] for test in found["tests"]}
    assert shown["visible"] == autograder.FAILED and "plugh" in shown["hidden"]


def test_who_and_when_come_from_the_metadata(tmp_path):
    path = tmp_path / "submission_metadata.json"
    assert autograder._metadata(path) == ("learner", None)
    path.write_text(json.dumps({"users": [{"name": "../Ada L/"}], "created_at": "2026-03-02T01:00:00.5+01:00"}))
    assert autograder._metadata(path) == ("_Ada L_", 1772409600.5)


@pytest.mark.slow  # three gradings, each in processes of its own
@pytest.mark.parametrize("answer", ["good", "wrong", "broken"])
def test_a_submission_is_graded(packed, tmp_path, answer):
    home = unpack(packed, tmp_path)
    most = sum(exercise.points for exercise in exercises(CHAPTER))
    if answer == "broken":
        (home / "submission" / "01_attention.ipynb").write_text('{"cells": [')
        found = run(home)
        assert found["score"] == 0 and "01_attention.ipynb" in found["tests"][0]["output"]
        return
    hand_in(home, GOOD if answer == "good" else WRONG)
    found = run(home)
    tests = {test["number"]: test for test in found["tests"]}
    assert list(tests) == [exercise.id for exercise in exercises(CHAPTER)]
    assert sum(test["max_score"] for test in found["tests"]) == most
    assert found["score"] == tests["1.2"]["score"] == (2 if answer == "good" else 0)
    assert tests["1.2"]["status"] == ("passed" if answer == "good" else "failed")
    assert "not attempted" in tests["1.3"]["output"]


@pytest.mark.slow
def test_the_class_file_and_hidden_checks_count(tmp_path):
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks" / "hidden.py").write_text(HIDDEN)
    (tmp_path / "class.toml").write_text(CONFIG + '[points]\n"1.2" = 10\n')
    gradescope.pack(tmp_path / "a.zip", CHAPTER, tmp_path / "class.toml", tmp_path / "checks")
    home = unpack((tmp_path / "a.zip").read_bytes(), tmp_path)
    hand_in(home, ONLY_SEEMS_GOOD)
    late = {"users": [{"name": "Ada"}], "created_at": "2026-03-02T12:00:00+00:00"}
    (home / "submission_metadata.json").write_text(json.dumps(late))
    found = run(home)
    (test,) = [test for test in found["tests"] if test.get("number") == "1.2"]
    assert test["max_score"] == 10 and test["score"] == 0
    assert "every row sums to one" in test["output"] and "xyzzy" not in json.dumps(found)
    assert "2 days late: 60 %" in found["output"]
