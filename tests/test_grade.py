"""What a learner did to the cells costs nothing; what an answer does costs that answer."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import nbformat
import pytest
from fake_checks import impatient, leave_a_mark, no_process
from rich.console import Console

from memcourse import __version__
from memcourse.course import engine, grade, sandbox
from memcourse.course.answers import NotACourseNotebook, collect
from memcourse.course.checks import all_exercises, exercises
from memcourse.course.exercise import Report
from memcourse.course.runner.building import build
from memcourse.course.start import MANIFEST
from memcourse.course.variants import variant

CHAPTER = "01_attention"
EXERCISE = next(exercise for exercise in all_exercises() if exercise.name == "attention_weights")
OTHER = next(exercise for exercise in exercises(CHAPTER) if exercise != EXERCISE and exercise.asks_for_code)
GOOD = "def attention_weights(query, key):\n    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)"
SETUP = f'from memcourse.course import check, figures, hint, setup\ndevice = setup("{__version__}", seed=0)'


def write(path, *cells, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["memcourse"] = {"version": __version__, "chapter": CHAPTER, "kind": "exercises"} | metadata
    nbformat.write(made, path)
    return path


def check(*cells, exercise=EXERCISE):
    return grade.check_answer(exercise, collect(cells))


def test_every_exercise_of_the_chapter_is_graded_in_order(tmp_path):
    path = write(
        tmp_path / "a.ipynb",
        SETUP,
        "raise SystemExit",
        GOOD,
        f"check({EXERCISE.id!r}, attention_weights)",
        GOOD,
    )
    (found,) = grade.grade([path])
    assert [report.exercise for report in found.reports] == [exercise.id for exercise in exercises(CHAPTER)]
    assert {r.name: r.outcome for r in found.reports} == {
        e.name: "passed" if e == EXERCISE else "not attempted" for e in exercises(CHAPTER)
    }
    assert (found.points, found.max_points) == (EXERCISE.points, sum(e.points for e in exercises(CHAPTER)))


def test_a_hostile_answer_costs_its_neighbours_nothing(tmp_path):
    hostile = f"import no_such_module\ndef {OTHER.name}(*_, **__):\n    while True: print('x' * 1000)"
    check = partial(impatient, OTHER.id)
    (found,) = grade.grade([write(tmp_path / "a.ipynb", hostile, GOOD)], check=check)
    by_name = {report.name: report for report in found.reports}
    assert by_name["attention_weights"].outcome == "passed"
    assert "longer than 1 s" in by_name[OTHER.name].message
    assert found.points == EXERCISE.points


@pytest.mark.parametrize("chapter", [None, "99_unknown"])
def test_a_notebook_that_names_no_chapter_is_known_by_its_answers(tmp_path, chapter):
    (found,) = grade.grade([write(tmp_path / "a.ipynb", GOOD, chapter=chapter)])
    assert found.chapter == CHAPTER and found.points == EXERCISE.points


def test_the_notebook_and_the_grader_agree():
    wrong = GOOD.replace("softmax(-1)", "softmax(-2)")
    for cell in (
        GOOD,
        EXERCISE.stub,
        wrong,
        GOOD.replace("query @", "undefined @"),
        "attention_weights = 3",
        GOOD.replace("softmax(-1)", "sum()"),
    ):
        in_the_notebook = engine.run(EXERCISE, build(collect([cell]).closure(EXERCISE.name), EXERCISE.name))
        graded = sandbox.run(EXERCISE, collect([cell]).closure(EXERCISE.name))
        assert replace(graded, seconds=0.0, level=None) == in_the_notebook


def test_a_cell_that_does_not_parse_is_named():
    report = check("x = 1", "y = 2\n" + GOOD.replace(":\n", "\n", 1))
    assert report.outcome == "crashed" and report.points == 0
    assert report.message == "Cell 2 does not parse. Line 2: expected ':'\n    def attention_weights(query, key)"


def test_an_answer_that_leans_on_what_does_not_parse_is_told_so():
    report = check("def helper(:\n    pass", "def attention_weights(query, key): return helper(query, key)")
    assert report.outcome == "crashed" and "Cell 1 does not parse" in report.message


def test_an_answer_that_a_call_computed_is_not_carried():
    report = check("attention_weights = compute()")
    assert report.outcome == "crashed"
    assert "`attention_weights` is not carried into grading: cell 1, line 1 is\n    atten" in report.message


def test_a_stub_that_a_call_replaced_counts_as_attempted():
    report = check("attention_weights = None", "attention_weights = compute()")
    assert report.outcome == "crashed" and "cell 2, line 1" in report.message


def test_a_name_that_is_not_carried_is_explained():
    report = check("scale = measure()", GOOD.replace("0.5", "scale"))
    assert report.outcome == "crashed" and "NameError" in report.message
    assert "`scale` is not carried into grading: cell 1, line 1 is\n    scale = measure()" in report.message
    report = check(GOOD.replace("0.5", "scale"))
    assert report.message.endswith("`scale` is not defined in the notebook.")


def test_an_untouched_stub_is_not_told_what_it_lacks():
    report = check(EXERCISE.stub.replace("raise", "unknown\n    raise").replace("    unknown", "    lambda: unknown"))
    assert (report.outcome, report.message) == ("not attempted", "")


def test_all_notebooks_are_read_before_any_answer_runs(tmp_path):
    good, bad = write(tmp_path / "a.ipynb", GOOD), tmp_path / "b.ipynb"
    bad.write_text("{")
    with pytest.raises(NotACourseNotebook, match="b.ipynb"):
        grade.grade([good, bad], check=leave_a_mark)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ipynb", "b.ipynb"]


def test_two_answers_at_a_time_each_in_its_own_grading_process(tmp_path):
    cells = [exercise.stub for exercise in exercises(CHAPTER)]
    (found,) = grade.grade([write(tmp_path / "a.ipynb", *cells)], check=leave_a_mark)
    assert found.points == found.max_points
    marks = [path.read_text().split() for path in tmp_path.glob("*.mark")]
    spans = [(float(began), float(ended)) for began, ended, _ in marks]
    assert len(spans) == len(exercises(CHAPTER))
    assert max(sum(began <= at < ended for began, ended in spans) for at, _ in spans) == 2
    processes = {int(process) for *_, process in marks}
    assert len(processes) == 2 and os.getpid() not in processes


def test_ctrl_c_ends_the_answers_that_run_and_starts_no_more(tmp_path):
    sleeping = [f"import time\ndef {exercise.name}(*_, **__): time.sleep(60)" for exercise in exercises(CHAPTER)]
    path = write(tmp_path / "a.ipynb", *sleeping)
    sandbox.run(EXERCISE, collect([GOOD]).closure(EXERCISE.name))  # the server is up
    started = time.monotonic()
    threading.Timer(0.5, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        grade.grade([path])
    assert time.monotonic() - started < 4  # one answer alone would take 10 s
    assert [p.name for p in tmp_path.iterdir()] == ["a.ipynb"]


def test_a_process_that_cannot_start_stops_the_grading(tmp_path):
    with pytest.raises(sandbox.SandboxFault, match="no processes left"):
        grade.grade([write(tmp_path / "a.ipynb", GOOD)], check=no_process)


def test_the_table_shows_outcomes_points_and_messages(capsys):
    reports = (
        Report("1.1", "first", "passed", 2, 2, ("type", "shape")),
        Report("1.2", "second", "wrong", 0, 3, ("type",), "the axis [red] is wrong\nexpected 1, found 2"),
        Report("1.3", "third", "not attempted", 0, 4, (), "The notebook does not define `third`."),
    )
    Console(width=80).print(grade.NotebookReport(Path("a.ipynb"), CHAPTER, reports))
    shown = capsys.readouterr().out
    for words in (
        "a.ipynb",
        "1.1 first",
        "checks passed",
        "0 of 3",
        "2 of 9",
        "not attempted",
        "memcourse hint 1.2",
    ):
        assert words in shown
    assert shown.count("the axis [red] is wrong") == shown.count("expected 1, found 2") == 1  # below the table


def test_a_report_is_plain_data(tmp_path):
    (found,) = grade.grade([write(tmp_path / "a.ipynb", GOOD)])
    document = json.loads(json.dumps(found.to_dict()))
    assert document["points"] == EXERCISE.points and document["notebook"].endswith("a.ipynb")
    assert {r["name"] for r in document["reports"]} == {e.name for e in exercises(CHAPTER)}


def test_the_default_is_the_copys_exercises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotACourseNotebook, match="memcourse start"):
        grade.default_notebooks()
    copy = tmp_path / "my_course"
    path = write(copy / "exercises" / f"{CHAPTER}.ipynb", GOOD)
    (copy / MANIFEST).write_text(json.dumps({"version": __version__, "files": {}}))
    assert grade.default_notebooks() == [path]
    assert grade.notebook_of(EXERCISE) == path
    path.rename(path.with_name("renamed.ipynb"))
    with pytest.raises(NotACourseNotebook, match=f"no exercises/{CHAPTER}.ipynb"):
        grade.notebook_of(EXERCISE)


def test_a_copy_with_a_name_is_graded_in_that_learners_variant(tmp_path):
    varied = next(exercise for exercise in all_exercises() if exercise.variant is not None)
    manifest = {"version": __version__, "files": {}}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert grade.own(varied, tmp_path / "exercises" / "a.ipynb") is varied
    questions = set()
    for learner in ("ada", "ben", "eve", "grace"):
        (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"learner": learner}))
        found = grade.own(varied, tmp_path / "exercises" / "a.ipynb")
        assert found.question == variant(varied, learner).question
        questions.add((found.question, found.stub))
    assert len(questions) > 1
