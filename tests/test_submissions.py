"""Whatever lies in a folder of submissions is found, or named with the reason; nothing of it is believed."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import zipfile
from datetime import UTC, datetime

import pytest

from memcourse import __version__
from memcourse.course.checks import CHAPTERS, exercises
from memcourse.course.classroom import reading, submissions, zips
from memcourse.course.classroom.reading import CannotRead
from memcourse.course.classroom.results import safe_name
from memcourse.course.classroom.submissions import display, fetch, look, walk
from memcourse.course.start import start

CHAPTER = "01_attention"
ANSWER = "def attention_weights(query, key):\n    return key"

OTHER_CHAPTERS = next(exercise.name for exercise in exercises("02_key_value") if exercise.asks_for_code)


def notebook(*cells, chapter=CHAPTER, **more):
    ours = {"version": __version__, "chapter": chapter, "kind": "exercises"} | more.pop("ours", {})
    made = [{"cell_type": "code", "source": cell, "metadata": {}, "outputs": []} for cell in cells or (ANSWER,)]
    document = {"cells": made, "metadata": {"memcourse": ours}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(document | more).encode()


def put(path, content=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(notebook() if content is None else content)
    return path


def zipped(path, **members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def seen(folder):
    """{source: (learner, chapter, fault)} of all that lies in the folder."""
    found = [one for file in walk(folder) for one in ([file] if file.fault else look(file, UTC))]
    assert len({one.source for one in found}) == len(found)
    return {one.source: (one.learner, one.chapter, one.fault) for one in found}


def test_the_learners_name_is_the_folders_or_the_files_without_the_chapters(tmp_path):
    for name in (
        "ada_01_attention",
        "01_attention_ben",
        "eve",
        "01_attention",
        "Zoë Ng-01_attention",
        "x01_attentiony",
    ):
        put(tmp_path / f"{name}.ipynb")
    put(tmp_path / "grace" / "week 1" / "01_attention.ipynb")
    zipped(tmp_path / "hal_01_attention.zip", **{"a/b.ipynb": notebook(), "notes.txt": b"x", "__MACOSX/b.ipynb": b""})
    found = seen(tmp_path)
    learners = {source: learner for source, (learner, _, _) in found.items()}
    assert learners == {
        "ada_01_attention.ipynb": "ada",
        "01_attention_ben.ipynb": "ben",
        "eve.ipynb": "eve",
        "01_attention.ipynb": "01_attention",
        "Zoë Ng-01_attention.ipynb": "Zoë Ng",
        "x01_attentiony.ipynb": "x_y",
        "grace/week 1/01_attention.ipynb": "grace",
        "hal_01_attention.zip/a/b.ipynb": "hal",
    }
    assert {(chapter, fault) for _, chapter, fault in found.values()} == {(CHAPTER, "")}


def test_what_is_no_submission_is_named_and_what_nobody_handed_in_is_not(tmp_path):
    (tmp_path / "folder.ipynb").mkdir(parents=True)
    (tmp_path / "nothing").mkdir()
    put(tmp_path / "ada.pdf", b"x")
    os.mkfifo(tmp_path / "pipe.ipynb")
    put(tmp_path / ".ipynb_checkpoints" / "a.ipynb")
    put(tmp_path / "ben" / ".ipynb_checkpoints" / "a.ipynb")
    put(tmp_path / "ben" / "notes.txt")
    faults = {source: fault for source, (_, _, fault) in seen(tmp_path).items()}
    assert faults == {
        "folder.ipynb": "is a folder with the name of a notebook",
        "nothing": "holds no notebook and no zip",
        "ada.pdf": "is neither a notebook nor a zip",
        "pipe.ipynb": "is not a plain file",
        "ben": "holds no notebook and no zip",
    }


def test_links_are_not_followed(tmp_path):
    secret = put(tmp_path / "elsewhere" / "secret.ipynb")
    folder = tmp_path / "submissions"
    (folder / "ada").mkdir(parents=True)
    (folder / "ada" / "a.ipynb").symlink_to(secret)
    (folder / "ada" / "all").symlink_to(secret.parent)
    (folder / "ben").symlink_to(secret.parent)
    faults = {source: fault for source, (_, _, fault) in seen(folder).items()}
    link = "is a link, and links are not followed"
    assert faults == {"ada/a.ipynb": link, "ada/all": link, "ben": link}


def test_a_link_that_takes_a_files_place_later_is_not_followed_either(tmp_path):
    path = put(tmp_path / "submissions" / "ada.ipynb")
    (one,) = look(walk(path.parent)[0], UTC)
    assert fetch(one) == notebook()
    other = put(tmp_path / "other.ipynb")
    path.unlink()
    path.symlink_to(other)
    with pytest.raises(CannotRead, match="cannot be read"):
        fetch(one)


def test_a_submission_that_changes_before_it_is_graded_is_not_graded(tmp_path):
    path = put(tmp_path / "ada.ipynb")
    (one,) = look(walk(tmp_path)[0], UTC)
    path.write_bytes(notebook("attention_weights = 3"))
    with pytest.raises(CannotRead, match="changed while"):
        fetch(one)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    put(tmp_path / "ada.ipynb")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root reads everything
    assert seen(tmp_path)["ada.ipynb"][2] == "cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\0" * 4096, "is empty"),
        (notebook()[:-40], "cut short"),
        (b"<html>", "is not JSON"),
        (b"[1, 2]", "JSON without cells"),
        (b"[" * 100_000, "nested too deeply"),
        (notebook("x = 'é'").decode().replace("\\u00e9", "é").encode("latin-1"), "Latin-1"),
        (notebook(nbformat=5), "notebook format 5"),
        (notebook(nbformat="4"), "notebook format '4'"),
        (notebook(cells=[1]), "cells are malformed"),
        (notebook(cells={"a": 1}), "cells are malformed"),
        (notebook(cells=[{"cell_type": "code", "source": [1]}]), "cells are malformed"),
        (notebook(metadata=[]), "cells are malformed"),
        (notebook("x = 1"), "has no answers in it"),
        (notebook(ours={"kind": "chapter"}), "is a chapter"),
        (notebook("x = 1\n" * 60_000), "more than 300000 characters of code"),
        (notebook(ANSWER, f"def {OTHER_CHAPTERS}(): pass", metadata={}), "several (01_attention, 02_key_value)"),
    ],
)
def test_a_notebook_that_cannot_be_read_says_why(tmp_path, content, said):
    put(tmp_path / "ada.ipynb", content)
    learner, chapter, fault = seen(tmp_path)["ada.ipynb"]
    assert (learner, chapter) == ("ada", "") and said in fault


def test_a_notebook_too_large_is_refused_and_one_with_large_outputs_is_not(tmp_path):
    document = json.loads(notebook())
    document["cells"][0]["outputs"] = ["x" * 10_000_000]
    put(tmp_path / "ada.ipynb", json.dumps(document).encode())
    put(tmp_path / "ben.ipynb", notebook() + b" " * submissions.LARGEST_NOTEBOOK)
    found = seen(tmp_path)
    assert found["ada.ipynb"] == ("ada", CHAPTER, "")
    assert found["ben.ipynb"][2] == "is larger than 20 MB"


def test_odd_notebooks_are_graded_with_a_note(tmp_path):
    old = {"cell_type": "code", "input": ANSWER.splitlines(True), "language": "python", "outputs": []}
    sheets = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [old]}]}
    expected = {
        json.dumps(sheets).encode(): "it was in notebook format 3",
        json.dumps(sheets | {"nbformat": 2}).encode(): "it was in notebook format 2",
        notebook().decode().encode("utf-16"): "it was in UTF-16",
        b"\xef\xbb\xbf" + notebook(): "",
        notebook(ours={"version": "0.0.1"}): "it was made by version 0.0.1 of the course",
    }
    for content, note in expected.items():
        read = reading.read(content, "ada")
        assert (read.chapter, read.note, read.cells) == (CHAPTER, note, (ANSWER,))


def test_the_chapter_is_the_notebooks_word_then_the_files_then_the_answers():
    assert reading.read(notebook(chapter="01_attention"), "ada_02_key_value").chapter == "01_attention"
    assert reading.read(notebook(chapter="99_unknown"), "ada_02_key_value").chapter == "02_key_value"
    assert reading.read(notebook(chapter=["x"]), "ada").chapter == "01_attention"


def test_halves_of_characters_are_replaced():
    (cell,) = reading.read(notebook(ANSWER + "\n# \ud800"), "ada").cells
    assert cell == ANSWER + "\n# ?"


def hostile_zip(path, change):
    """A zip with one notebook, whose entry `change` has changed before it is written."""
    entry = zipfile.ZipInfo("a.ipynb", (2026, 10, 12, 18, 0, 0))
    entry.external_attr = 0o100644 << 16
    change(entry)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, notebook())
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda entry: setattr(entry, "filename", "../a.ipynb"), "leads out of it"),
        (lambda entry: setattr(entry, "filename", "/etc/a.ipynb"), "leads out of it"),
        (lambda entry: setattr(entry, "filename", "x/../../a.ipynb"), "leads out of it"),
        (lambda entry: setattr(entry, "filename", "C:/a.ipynb"), "leads out of it"),
        (lambda entry: setattr(entry, "external_attr", (stat.S_IFLNK | 0o777) << 16), "is a link"),
        (lambda entry: setattr(entry, "compress_type", zipfile.ZIP_BZIP2), "packed in a way that is not read"),
    ],
)
def test_a_zip_that_leads_elsewhere_is_refused_whole(tmp_path, change, said):
    hostile_zip(tmp_path / "ada.zip", change)
    assert list(seen(tmp_path)) == ["ada.zip"]
    learner, _, fault = seen(tmp_path)["ada.zip"]
    assert learner == "ada" and said in fault
    assert [path.name for path in tmp_path.iterdir()] == ["ada.zip"]


def test_an_encrypted_zip_is_named(tmp_path):
    path = hostile_zip(tmp_path / "ada.zip", lambda entry: None)
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.index(mark) + at
        content[place : place + 2] = struct.pack("<H", zips.ENCRYPTED)
    path.write_bytes(content)
    assert "is encrypted" in seen(tmp_path)["ada.zip"][2]


def test_a_bomb_is_measured_as_it_unpacks(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "LARGEST_ENTRY", 10_000)
    monkeypatch.setattr(zips, "LARGEST_TOTAL", 25_000)
    path = zipped(tmp_path / "ada.zip", **{"a.ipynb": b"0" * 1_000_000, "b.ipynb": notebook()})
    content = bytearray(path.read_bytes())
    lie = content.index(struct.pack("<I", 1_000_000))
    while lie >= 0:  # it claims to unpack to a hundred bytes
        content[lie : lie + 4] = struct.pack("<I", 100)
        lie = content.find(struct.pack("<I", 1_000_000))
    path.write_bytes(content)
    zipped(tmp_path / "ben.zip", **{"a.ipynb": b"0" * 1_000_000, "b.ipynb": notebook()})
    zipped(tmp_path / "eve.zip", **{f"{i}.ipynb": b"0" * 9_000 for i in range(3)})
    found = seen(tmp_path)
    assert found["ben.zip/a.ipynb"][2].startswith("is larger than") and found["ben.zip/b.ipynb"] == ("ben", CHAPTER, "")
    assert "MB of notebooks" in found["eve.zip"][2]
    assert all(fault for source, (_, _, fault) in found.items() if source in ("ada.zip", "ada.zip/a.ipynb"))


def test_other_faults_of_zips(tmp_path, monkeypatch):
    monkeypatch.setattr(zips, "MOST_ENTRIES", 3)
    monkeypatch.setattr(submissions, "LARGEST_ZIP", 100_000)
    zipped(tmp_path / "inner.zip", **{"a.ipynb": notebook()})
    inside = (tmp_path / "inner.zip").read_bytes()
    zipped(tmp_path / "nested.zip", **{"all.zip": inside, "a.ipynb": notebook()})
    zipped(tmp_path / "many.zip", **{f"{i}.txt": b"" for i in range(4)})
    zipped(tmp_path / "other.zip", **{"a.txt": b"x"})
    put(tmp_path / "cut.zip", inside[:-30])
    put(tmp_path / "none.zip", b"PK\5\6")
    put(tmp_path / "large.zip", b"x" * 100_001)
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive:
        archive.writestr("a.ipynb", notebook())
        archive.writestr("a.ipynb", notebook("attention_weights = 3"))
    faults = {source: fault for source, (_, _, fault) in seen(tmp_path).items()}
    assert faults.pop("inner.zip/a.ipynb") == faults.pop("nested.zip/a.ipynb") == ""
    expected = {
        "nested.zip/all.zip": "is a zip inside a zip, which is not opened",
        "many.zip": "it has 4 entries, and 3 are allowed",
        "other.zip": "holds no notebook",
        "cut.zip": "is not a zip that can be read",
        "none.zip": "is not a zip that can be read",
        "large.zip": "is larger than",
        "twice.zip": "two entries 'a.ipynb'",
    }
    assert faults.keys() == expected.keys()
    for source, said in expected.items():
        assert said in faults[source]


def test_when_it_was_handed_in(tmp_path):
    path = put(tmp_path / "ada.ipynb")
    os.utime(path, (1_790_000_000, 1_790_000_000))
    hostile_zip(tmp_path / "ben.zip", lambda entry: None)
    hostile_zip(tmp_path / "eve.zip", lambda entry: setattr(entry, "date_time", (2026, 0, 0, 0, 0, 0)))
    os.utime(tmp_path / "eve.zip", (1_790_000_001, 1_790_000_001))
    times = {one.learner: one.submitted for file in walk(tmp_path) for one in look(file, UTC)}
    assert times["ada"] == datetime.fromtimestamp(1_790_000_000, UTC)
    assert times["ben"] == datetime(2026, 10, 12, 18, tzinfo=UTC)
    assert times["eve"] == datetime.fromtimestamp(1_790_000_001, UTC)


NAMES = ["ada", "Ada", "ada\n", "ada\\n", "a/b", "a_b", "..", ".", "", "=1+1", "아다", "a" * 300, os.fsdecode(b"a\xff")]


def test_no_two_names_become_one():
    made = [safe_name(name).lower() for name in NAMES]
    assert len(set(made)) == len(NAMES)
    again = [safe_name(name) for name in made]  # nor can a learner call themselves what another one's name became
    assert not set(again) & (set(made) - {"ada", "a_b"})
    for name in made:
        assert 0 < len(name) <= 80 and name.isascii() and "/" not in name and not name.startswith(".")


def test_names_can_be_shown_and_stay_different(tmp_path):
    odd = [name for name in NAMES if name and "/" not in name and name not in (".", "..") and len(name) < 200]
    for name in odd:
        (tmp_path / name).mkdir()
        put(tmp_path / name / "a\x1b[2J\u202e.ipynb")
    found = seen(tmp_path)
    assert len({learner for learner, _, _ in found.values()}) == len(odd)
    for source in found:
        assert source.isprintable() and source.encode()
    assert display("a\u202eb\\") == "a\\u202eb\\\\"


def test_of_a_whole_copy_the_exercises_alone_are_handed_in(tmp_path):
    parts = ("chapters", "exercises", "solutions", "kept/0.1.0/exercises")
    names = [f"{part}/{CHAPTER}.ipynb" for part in parts]
    zipped(tmp_path / "ada.zip", **{f"my_course/{name}": notebook() for name in names})
    for name in names:
        put(tmp_path / "ben" / name)
    put(tmp_path / "cleo" / "solutions" / f"{CHAPTER}.ipynb")  # no copy: a folder that bears this name
    assert {source: learner for source, (learner, _, fault) in seen(tmp_path).items() if not fault} == {
        f"ada.zip/my_course/exercises/{CHAPTER}.ipynb": "ada",
        f"ben/exercises/{CHAPTER}.ipynb": "ben",
        f"cleo/solutions/{CHAPTER}.ipynb": "cleo",
    }


def test_of_a_real_copy_the_exercises_alone_are_handed_in(tmp_path):
    start(tmp_path / "my_course", learner="Cleo")
    (tmp_path / "submissions").mkdir()
    shutil.make_archive(str(tmp_path / "submissions" / "cleo"), "zip", tmp_path, "my_course")
    shutil.copytree(tmp_path / "my_course", tmp_path / "submissions" / "dora")
    found = seen(tmp_path / "submissions")
    assert {fault for _, _, fault in found.values()} == {""}
    places = [f"cleo.zip/my_course/exercises/{chapter}.ipynb" for chapter in CHAPTERS]
    assert sorted(found) == places + [f"dora/exercises/{chapter}.ipynb" for chapter in CHAPTERS]


def test_a_folder_that_begins_with_a_dot_is_passed_over_in_zips_as_in_folders(tmp_path):
    for name in (".memcourse/base/exercises", ".ipynb_checkpoints", "x/.old/y", "__MACOSX/x"):
        zipped(tmp_path / "ada.zip", **{f"{name}/a.ipynb": notebook()})
        put(tmp_path / "ben" / name / "a.ipynb")
        assert seen(tmp_path)["ada.zip"][2] == "holds no notebook"
        assert seen(tmp_path)["ben"][2] == "holds no notebook and no zip"


@pytest.mark.parametrize(
    ("name", "learner"),
    [
        ("ada_01_attention (1).ipynb", "ada"),
        ("ada_01_attention(12).ipynb", "ada"),
        ("ada - Copy.ipynb", "ada"),
        ("ada - Copy (2).ipynb", "ada"),
        ("ada (1).zip", "ada"),
        ("01_attention (1).ipynb", "01_attention"),
        ("ada (b).ipynb", "ada (b)"),
        ("(1).ipynb", "(1)"),
    ],
)
def test_what_browsers_add_to_a_name_is_not_the_learners(tmp_path, name, learner):
    content = tmp_path / name
    zipped(content, **{"a.ipynb": notebook()}) if name.endswith(".zip") else put(content)
    assert [found for found, _, _ in seen(tmp_path).values()] == [learner]


def test_a_notebook_whose_name_begins_with_a_dot_is_seen(tmp_path):
    put(tmp_path / f"..%2fx_{CHAPTER}.ipynb")
    put(tmp_path / f"._ada_{CHAPTER}.ipynb", b"left by a file system")
    put(tmp_path / ".ipynb_checkpoints" / f"ada_{CHAPTER}.ipynb")
    zipped(tmp_path / "ben.zip", **{f".ben_{CHAPTER}.ipynb": notebook(), f"__MACOSX/._{CHAPTER}.ipynb": b"x"})
    assert set(seen(tmp_path)) == {f"..%2fx_{CHAPTER}.ipynb", f"ben.zip/.ben_{CHAPTER}.ipynb"}
