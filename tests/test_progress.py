"""The progress file: what it counts, and that nothing makes it lose anything."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from memcourse.course import progress
from memcourse.course.checks import CHAPTERS, all_exercises
from memcourse.course.exercise import Report

ROOT = Path(__file__).resolve().parents[1]


def report(outcome, id="1.2", points=2):
    return Report(id, "attention_weights", outcome, points if outcome == "passed" else 0, points)


def test_the_best_outcome_stays_and_checks_are_counted(tmp_path):
    for outcome in ("crashed", "wrong", "crashed"):
        progress.record(report(outcome), tmp_path)
    kept = progress.read(tmp_path)["1.2"]
    assert (kept.outcome, kept.points, kept.attempts, kept.passed_at) == ("wrong", 0, 3, None)
    progress.record(report("passed"), tmp_path)
    first = progress.read(tmp_path)["1.2"]
    assert (first.outcome, first.points, first.attempts) == ("passed", 2, 4) and first.passed_at
    progress.record(report("wrong"), tmp_path)
    progress.record(report("passed"), tmp_path)
    kept = progress.read(tmp_path)["1.2"]
    assert (kept.outcome, kept.points, kept.attempts, kept.passed_at) == ("passed", 2, 6, first.passed_at)


def test_a_check_that_was_not_attempted_leaves_no_trace(tmp_path):
    progress.record(report("not attempted"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_hints_are_counted_beside_the_rest(tmp_path):
    progress.record(report("wrong"), tmp_path)
    progress.record_hint("1.2", 2, tmp_path)
    progress.record_hint("1.2", 1, tmp_path)
    progress.record_hint("1.3", 1, tmp_path)
    records = progress.read(tmp_path)
    assert (records["1.2"].hints, records["1.2"].attempts, records["1.3"].hints) == (2, 1, 1)


def test_without_a_copy_it_remembers_until_the_process_ends(monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "_unsaved", {})
    monkeypatch.chdir(tmp_path)
    progress.record(report("passed"), None)
    progress.record_hint("1.2", 1, None)
    kept = progress.read(None)["1.2"]
    assert (kept.outcome, kept.hints) == ("passed", 1)
    assert list(tmp_path.iterdir()) == []


BROKEN = {
    "cut off": b'{"1.2": {"outcome": "pass',
    "empty": b"",
    "not UTF-8": b"\xff\xfe\x00",
    "a list": b"[1, 2]",
    "a list inside": b'{"1.2": []}',
    "an unknown field": b'{"1.2": {"colour": "red"}}',
    "an unknown outcome": b'{"1.2": {"outcome": "great"}}',
    "a count that is none": b'{"1.2": {"attempts": "many"}}',
    "very deep": b"[" * 100_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_an_unreadable_file_is_kept_aside_and_counting_goes_on(tmp_path, content):
    path = tmp_path / progress.FILE
    path.write_bytes(content)
    assert progress.read(tmp_path) == {}
    with pytest.raises(progress.NotRecorded, match="could not be read: it is kept as progress.unreadable-"):
        progress.record(report("passed"), tmp_path)
    (aside,) = tmp_path.glob("progress.unreadable-*.json")
    assert aside.read_bytes() == content
    assert progress.read(tmp_path)["1.2"].attempts == 1
    progress.record(report("passed"), tmp_path)
    assert progress.read(tmp_path)["1.2"].attempts == 2


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    missing = tmp_path / "no" / "such"
    (tmp_path / "no").write_text("a file where a folder should be")
    with pytest.raises(progress.NotRecorded, match="Progress was not recorded"):
        progress.record(report("passed"), missing)


def test_another_writer_that_never_ends_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    with progress.FileLock(tmp_path / f".{progress.FILE}.lock"):
        with pytest.raises(progress.NotRecorded, match="another program holds progress.json"):
            progress.record(report("passed"), tmp_path)
    progress.record(report("passed"), tmp_path)
    assert progress.read(tmp_path)["1.2"].attempts == 1


def test_a_write_that_is_interrupted_loses_nothing(tmp_path, monkeypatch):
    progress.record(report("wrong"), tmp_path)
    before = (tmp_path / progress.FILE).read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            progress.record(report("passed"), tmp_path)
    assert (tmp_path / progress.FILE).read_bytes() == before
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))
    progress.record(report("passed"), tmp_path)  # and the lock is free
    assert progress.read(tmp_path)["1.2"].attempts == 2


WRITER = """
import sys
from pathlib import Path
from memcourse.course import progress
from memcourse.course.exercise import Report
for _ in range(40):
    progress.record(Report(sys.argv[2], "x", "wrong", 0, 1), Path(sys.argv[1]))
    progress.record(Report("1.9", "x", "wrong", 0, 1), Path(sys.argv[1]))
"""


def test_two_kernels_that_write_at_once_lose_nothing(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    writers = [subprocess.Popen([*command, id], env=environment) for id in ("1.1", "1.2")]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert {id: kept.attempts for id, kept in progress.read(tmp_path).items()} == {"1.1": 40, "1.2": 40, "1.9": 80}


def test_rows_are_json_and_in_the_order_of_the_course(tmp_path):
    progress.record(report("passed"), tmp_path)
    rows = json.loads(json.dumps(progress.rows(tmp_path)))
    assert [row["exercise"] for row in rows] == [exercise.id for exercise in all_exercises()]
    assert {row["chapter"] for row in rows} == set(CHAPTERS)
    (done,) = [row for row in rows if row["outcome"] == "passed"]
    assert (done["exercise"], done["points"], done["max_points"], done["attempts"]) == ("1.2", 2, 2, 1)


def shown(folder):
    console = Console(width=120, record=True, file=open(os.devnull, "w"))
    console.print(progress.table(progress.rows(folder)))
    return console.export_text()


def test_the_table_says_what_is_done(tmp_path):
    exercises = all_exercises()
    first = [exercise for exercise in exercises if exercise.id[0] == exercises[0].id[0]]  # of the first chapter
    points = sum(exercise.points for exercise in first)
    text = shown(tmp_path)
    assert all(exercise.title in text for exercise in exercises)
    assert f"0 of {points}" in text and f"0 of {len(first)} passed" in text
    progress.record(report("passed", exercises[0].id, exercises[0].points), tmp_path)
    text = shown(tmp_path)
    assert f"{exercises[0].points} of {points}" in text and f"1 of {len(first)} passed" in text
    for exercise in exercises:
        progress.record(report("passed", exercise.id, exercise.points), tmp_path)
    assert "The best outcome of each exercise counts." in text
    assert "All done." in shown(tmp_path) and "Next:" not in shown(tmp_path)
    assert not any(row["next"] for row in progress.rows(tmp_path))


# what is next


@pytest.fixture
def clock(monkeypatch):
    """Every check and hint is a second later than the one before."""
    seconds = iter(range(60))
    monkeypatch.setattr(progress, "_now", lambda: f"2026-01-01T00:00:{next(seconds):02}+00:00")


def following(folder):
    rows = progress.rows(folder)
    (one,) = [row["exercise"] for row in rows if row["next"]]
    return one, progress.what_next(rows)


def passed(ids, folder):
    for id in ids:
        progress.record(report("passed", id), folder)


def test_at_first_it_is_the_first_chapter(tmp_path):
    id, says = following(tmp_path)
    assert id == "0.1" and says.startswith("Next: read chapters/00_what_is_memory.ipynb, then do 0.1 ")
    assert says.endswith(" (1 minute), in exercises/00_what_is_memory.ipynb.")


def test_next_is_the_first_that_is_left_of_the_chapter_that_the_learner_is_in(tmp_path, clock):
    passed(["2.1", "1.2"], tmp_path)
    id, says = following(tmp_path)
    assert id == "1.1" and says.startswith("Next: 1.1 ") and "chapters/" not in says
    progress.record_hint("2.2", 1, tmp_path)
    assert following(tmp_path)[0] == "2.2"


@pytest.mark.parametrize("outcome", ["wrong", "crashed"])
def test_an_answer_that_is_not_right_yet_is_said_to_be_none(tmp_path, outcome):
    passed(["1.1"], tmp_path)
    progress.record(report(outcome), tmp_path)
    id, says = following(tmp_path)
    assert id == "1.2" and f'{outcome} so far: `memcourse hint 1.2`, or hint("1.2") in the notebook, helps.' in says


def test_after_a_chapter_comes_the_next_and_after_the_last_what_was_left_out(tmp_path, clock):
    ids = [exercise.id for exercise in all_exercises()]
    passed([id for id in ids if id[0] == "1"], tmp_path)
    id, says = following(tmp_path)
    assert id == "2.1" and says.startswith("Next: read chapters/02_key_value.ipynb, then do 2.1 ")
    passed([id for id in ids if id[0] == ids[-1][0]], tmp_path)
    assert following(tmp_path)[0] == "0.1"


def test_records_from_before_there_were_times_count_as_one(tmp_path):
    (tmp_path / progress.FILE).write_text('{"2.1": {"outcome": "passed", "points": 2, "attempts": 1}}')
    assert following(tmp_path)[0] == "2.2"


def test_the_cells_form_has_every_exercise_and_unfolds_the_chapter_of_the_next(tmp_path):
    passed(["1.1"], tmp_path)
    html = progress.html(progress.rows(tmp_path))
    for exercise in all_exercises():
        assert f"<td>{exercise.id}</td>" in html
    assert html.count("<details open>") == 1
    assert html.index("<details open>") < html.index("<td>1.2</td>") < html.index("<td>2.1</td>")
    assert "1 of 7 passed, 2 of 20 points" in html
    assert "The best outcome of each exercise counts." in html
    assert "Repair the guide&#x27;s attention layer" in html
