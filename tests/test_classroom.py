"""A class is graded: every submission gets its line, and whatever stops a run, the next one goes on."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import pytest
from fake_checks import no_times, report, right_or_wrong, sleep_or
from test_cli import call  # noqa: F401  a fixture
from test_submissions import CHAPTER, notebook, put, zipped

from memcourse.course import engine
from memcourse.course.checks import CHAPTERS, exercises, find
from memcourse.course.classroom import CannotGrade, extra_checks, reference_times, results, run, tables
from memcourse.course.classroom.class_config import ClassConfig
from memcourse.course.classroom.deadlines import LateRule
from memcourse.course.classroom.extra_checks import BadCheck
from memcourse.course.classroom.marking import Rules
from memcourse.course.classroom.pool import Died, Pool
from memcourse.course.classroom.results import Graded, load_all
from memcourse.course.classroom.run import Interrupted, grade_class
from memcourse.course.exercise import Report
from memcourse.course.runner import confine
from memcourse.course.runner.building import build
from memcourse.course.variants import variant

EXERCISE = next(exercise for exercise in exercises(CHAPTER) if exercise.name == "attention_weights")
RIGHT = "def attention_weights(query, key): return 'right'"
WRONG = "def attention_weights(query, key): return 'other'"
GOOD = "def attention_weights(query, key):\n    return (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)"


class Here:
    """In place of the pool: the same, one after the other in this process."""

    def __init__(self, size):
        self.size, self.running = size, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def each(self, work, tasks, seconds=float("inf")):
        for task in tasks:
            try:
                outcome = work(task)
            except Exception as error:
                outcome = error
            yield task, outcome


class Counting:
    """`right_or_wrong`, and which exercises it was asked of."""

    def __init__(self):
        self.asked = []

    def __call__(self, exercise, definitions, **more):
        self.asked.append(exercise.id)
        return right_or_wrong(exercise, definitions, **more)

    @property
    def submissions(self):
        """How often it was asked, without the course's own solution."""
        count, self.asked = len(self.asked) / len(exercises(CHAPTER)), []
        return count


@pytest.fixture
def graded(tmp_path, monkeypatch):
    """Grade tmp_path/submissions into tmp_path/report, without the pages and without timing a solution."""
    monkeypatch.setattr(run.pages, "write", lambda *_: None)  # they have tests of their own
    monkeypatch.setattr(reference_times, "measure", no_times)

    def graded(config=None, **more):
        options = {"level": "limits", "check": right_or_wrong, "pool": Here} | more
        return grade_class(tmp_path / "submissions", tmp_path / "report", config or ClassConfig(), **options)

    return graded


def by_source(found):
    return {one.source: one for one in found.results}


def test_a_class_is_graded_and_every_file_is_whole(tmp_path, monkeypatch, graded):
    put(tmp_path / "submissions" / "ada" / "01_attention.ipynb", notebook(RIGHT))
    put(tmp_path / "submissions" / "ben_01_attention.ipynb", notebook(WRONG))
    zipped(tmp_path / "submissions" / "eve.zip", **{"x.ipynb": notebook("attention_weights = [")})
    found = graded()
    ada, ben, eve = found.results
    assert [one.learner for one in found.results] == ["ada", "ben", "eve"]
    assert ada.points == ada.raw_points == EXERCISE.points and ben.points == eve.points == 0
    assert ada.max_points == sum(exercise.points for exercise in exercises(CHAPTER))
    assert (ada.level, ada.fault, ada.late, ada.chapter) == ("limits", "", "", CHAPTER)
    assert [one.exercise for one in ada.reports] == [exercise.id for exercise in exercises(CHAPTER)]
    assert load_all(tmp_path / "report") == found.results
    written = {path.name for path in (tmp_path / "report").rglob("*") if path.is_file()}
    assert {"results.csv", "exercises.csv", "junit.xml", "reference_times.json"} < written
    for_gradescope = json.loads((tmp_path / "report" / "gradescope" / "ada" / "results.json").read_bytes())
    assert for_gradescope["score"] == EXERCISE.points
    assert not any(name.endswith(".tmp") for name in written)
    with open(tmp_path / "report" / "results.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["learner"], row[EXERCISE.id], row["points"]) for row in rows] == [
        ("ada", str(EXERCISE.points), str(EXERCISE.points)),
        ("ben", "0", "0"),
        ("eve", "0", "0"),
    ]
    with open(tmp_path / "report" / "exercises.csv", encoding="utf-8-sig", newline="") as file:
        answers = [row for row in csv.DictReader(file) if row["exercise"] == EXERCISE.id]
    assert [row["outcome"] for row in answers] == ["passed", "wrong", "not attempted"]


def test_what_cannot_be_graded_gets_its_line_and_the_run_goes_on(tmp_path, graded, capsys):
    folder = tmp_path / "submissions"
    put(folder / "ada.ipynb", notebook(RIGHT))
    put(folder / "ben" / "a.ipynb", notebook(RIGHT))
    put(folder / "ben" / "b.ipynb", notebook(WRONG))
    put(folder / "Eve" / "a.ipynb", notebook(RIGHT))
    put(folder / "eve.ipynb", notebook(WRONG))
    put(folder / "same" / "a.ipynb", notebook(RIGHT))
    put(folder / "same" / "b.ipynb", notebook(RIGHT))
    put(folder / "other.ipynb", notebook("capacity = 3", chapter="02_key_value") + b" ")
    put(folder / "empty.ipynb", b"")
    put(folder / "fault.ipynb", notebook(RIGHT + " # fault"))
    put(folder / "bug.ipynb", notebook(RIGHT + " # bug"))
    found = by_source(graded(ClassConfig(chapters=(CHAPTER,))))
    faults = {source: one.fault for source, one in found.items() if one.fault}
    assert {"ada.ipynb", "same/a.ipynb"} == found.keys() - faults.keys()
    assert "(ben/a.ipynb and ben/b.ipynb)" in faults["ben/a.ipynb"] and faults["ben/a.ipynb"] == faults["ben/b.ipynb"]
    assert "(Eve/a.ipynb and eve.ipynb)" in faults["eve.ipynb"] and faults["eve.ipynb"] == faults["Eve/a.ipynb"]
    assert faults["empty.ipynb"] == "It is empty."
    assert faults["fault.ipynb"] == "It could not be graded: no process could be started."
    assert "a fault of the course: ZeroDivisionError: a bug of the course" in faults["bug.ipynb"]
    assert all(one.reports == () and one.points == 0 for one in found.values() if one.fault)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_chapter_that_the_class_is_not_graded_on_is_named(tmp_path, graded):
    put(tmp_path / "submissions" / "ada.ipynb", notebook(RIGHT))
    (one,) = graded(ClassConfig(chapters=("02_key_value", "03_gated"))).results
    assert one.fault == "It is of chapter 01_attention, and this class is graded on 02_key_value and 03_gated."


def test_other_chapters_beside_the_right_one_are_one_note(tmp_path, graded):
    folder = tmp_path / "submissions"
    others = {
        f"{chapter}.ipynb": notebook(f"{exercises(chapter)[0].name} = 3", chapter=chapter) for chapter in CHAPTERS
    }
    zipped(folder / "ada.zip", **others | {f"{CHAPTER}.ipynb": notebook(RIGHT)})
    put(folder / "ben" / "a.ipynb", notebook(RIGHT))
    put(folder / "ben" / "b.ipynb", others["02_key_value.ipynb"])
    put(folder / "cleo" / "b.ipynb", others["02_key_value.ipynb"])
    put(folder / "cleo" / "c.ipynb", others["03_gated.ipynb"])
    found = by_source(graded(ClassConfig(chapters=(CHAPTER,))))
    said = "also handed in: notebooks of {}, which this class is not graded on"
    assert {source: one.note or one.fault for source, one in found.items()} == {
        f"ada.zip/{CHAPTER}.ipynb": said.format("8 other chapters"),
        "ben/a.ipynb": said.format("1 other chapter"),
        "cleo/b.ipynb": f"It is of chapter 02_key_value, and this class is graded on {CHAPTER}.",
        "cleo/c.ipynb": f"It is of chapter 03_gated, and this class is graded on {CHAPTER}.",
    }
    two = graded(ClassConfig(chapters=(CHAPTER, "02_key_value"))).results
    notes = {one.chapter: one.note for one in two if one.learner == "ada"}
    assert notes == {CHAPTER: said.format("7 other chapters"), "02_key_value": ""}


def test_a_second_run_grades_only_what_has_changed(tmp_path, graded):
    folder, check = tmp_path / "submissions", Counting()
    put(folder / "ada.ipynb", notebook(RIGHT))
    put(folder / "ben.ipynb", notebook(WRONG))
    first = graded(check=check)
    assert check.submissions == 2
    assert graded(check=check).results == first.results and check.submissions == 0
    put(folder / "ben.ipynb", notebook(RIGHT))
    assert [one.points for one in graded(check=check).results] == [EXERCISE.points] * 2 and check.submissions == 1
    (tmp_path / "report" / "results" / "ada.ipynb.json").write_text("{")
    assert len(graded(check=check).results) == 2 and check.submissions == 1
    graded(check=check, level="seccomp")
    assert check.submissions == 2
    (folder / "ada.ipynb").unlink()
    assert [one.learner for one in graded(check=check, level="seccomp").results] == ["ben"] and check.submissions == 0
    assert [one.learner for one in load_all(tmp_path / "report")] == ["ben"]


def test_a_fault_is_tried_again(tmp_path, graded):
    put(tmp_path / "submissions" / "ada.ipynb", notebook(RIGHT + " # fault"))
    assert graded().results[0].fault
    check = Counting()
    assert graded(check=check).results[0].fault and check.asked


def test_points_deadlines_and_names_cost_no_grading(tmp_path, graded):
    path = put(tmp_path / "submissions" / "ada_l.ipynb", notebook(RIGHT))
    deadline = datetime(2026, 10, 12, tzinfo=UTC)
    os.utime(path, (deadline.timestamp() + 1.5 * 86400,) * 2)
    check = Counting()
    plain = graded(check=check).results[0]
    assert check.submissions == 1 and plain.late == ""
    late = ClassConfig(deadlines={CHAPTER: deadline}, late=LateRule(percent_per_day=20), points={EXERCISE.id: 10})
    for config, points, said in [
        (late, 6, "2 days late: 60 %"),
        (replace(late, roster={"ada_l": "ada"}, extra_days={"ada": 1}), 8, "1 day late: 80 %"),
        (replace(late, submitted={CHAPTER: {"ada_l": deadline}}), 10, ""),
        (ClassConfig(points={EXERCISE.id: 0}), 0, ""),
        (ClassConfig(), EXERCISE.points, ""),
    ]:
        (one,) = graded(config, check=check).results
        assert (one.points, one.late) == (points, said)
        assert (one.days_late, one.share) == (int(said[:1] or 0), int(said.split()[-2]) / 100 if said else 1)
        by_id = {report.exercise: report for report in one.reports}
        assert by_id[EXERCISE.id].max_points == config.points.get(EXERCISE.id, EXERCISE.points)
        assert one.max_points == sum(report.max_points for report in one.reports)
    assert check.submissions == 0
    assert graded(ClassConfig(roster={"ada_l": "ada"})).results[0].learner == "ada"


def test_a_name_of_the_classs_file_that_nobody_has_is_noted(tmp_path, graded):
    put(tmp_path / "submissions" / "ada.ipynb", notebook(RIGHT))
    (note,) = [note for note in graded(ClassConfig(extra_days={"adda": 1, "ada": 2})).notes if "file names" in note]
    assert "adda" in note


def test_ctrl_c_keeps_what_is_graded_and_the_next_run_goes_on(tmp_path, graded):
    for name in ("ada", "ben", "eve"):
        put(tmp_path / "submissions" / f"{name}.ipynb", notebook(RIGHT))
    with pytest.raises(Interrupted, match=r"What was graded so far \(2\) is kept in .*report.* goes on from there"):
        graded(check=interrupted_at(3))
    assert [one.learner for one in load_all(tmp_path / "report")] == ["ada", "ben"]
    check = Counting()
    assert len(graded(check=check).results) == 3 and check.submissions == 1


def interrupted_at(number):
    """`right_or_wrong`, and Ctrl-C at the submission of that number."""
    asked = []

    def check(exercise, definitions, **more):
        asked.append(exercise.id)
        if asked.count(exercise.id) == number:
            raise KeyboardInterrupt
        return right_or_wrong(exercise, definitions, **more)

    return check


def test_a_full_disk_keeps_what_is_graded_and_the_next_run_goes_on(tmp_path, graded, monkeypatch):
    for name in ("ada", "ben", "eve"):
        put(tmp_path / "submissions" / f"{name}.ipynb", notebook(RIGHT))
    written, whole = [], Path.write_bytes

    def until_full(path, content):
        written.append(path)
        if len(written) == 4:  # the time limits, ada, ben
            whole(path, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(path, content)

    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", until_full)
        with pytest.raises(CannotGrade, match=r"report cannot be written: No space left on device\. .*\(2\) is kept"):
            graded()
    assert [one.learner for one in load_all(tmp_path / "report")] == ["ada", "ben"]
    assert not list((tmp_path / "report").rglob("*.tmp"))
    check = Counting()
    assert len(graded(check=check).results) == 3 and check.submissions == 1


def test_nothing_is_graded_where_something_is_wrong_from_the_start(tmp_path, graded):
    folder = tmp_path / "submissions"
    with pytest.raises(CannotGrade, match="is not a folder of submissions"):
        graded()
    folder.mkdir()
    with pytest.raises(CannotGrade, match="holds no submission"):
        graded()
    put(folder / "ada.pdf", b"x")
    with pytest.raises(CannotGrade, match="holds no submission"):
        graded()
    put(folder / "ada.ipynb", notebook(RIGHT))
    with pytest.raises(CannotGrade, match="hidden checks, .*, must lie outside"):
        graded(extra=folder / "hidden")
    with pytest.raises(CannotGrade, match="is not a folder of hidden checks"):
        graded(extra=tmp_path / "hidden")
    with pytest.raises(CannotGrade, match="The report, .*, must lie outside"):
        grade_class(folder, folder / "report", ClassConfig())
    assert not (tmp_path / "report").exists() and not (folder / "report").exists()


# ---- hidden checks ----

HIDDEN = """
def rows_sum_to_one(answer):
    import torch
    weights = answer(torch.ones(2, 3), torch.ones(5, 3))
    assert torch.allclose(weights.sum(-1), torch.ones(2)), "a secret message"

CHECKS = {"%s": [rows_sum_to_one]}
"""


def hidden_in(folder, text, name="01_attention.py"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder.resolve()


def checked(exercise, source):
    return engine.run(exercise, build(run.marking.collect([source]).closure(exercise.name), exercise.name))


@pytest.mark.parametrize("body", ["assert False, 'secret'", "raise SystemExit('secret')", "answer(secret)", "1 / 0"])
def test_a_hidden_check_says_its_name_and_nothing_else(tmp_path, body):
    text = f"def rows_sum_to_one(answer):\n    {body}\nCHECKS = {{'{EXERCISE.id}': (rows_sum_to_one,)}}"
    exercise = extra_checks.with_hidden(EXERCISE, hidden_in(tmp_path / "hidden", text))
    found = checked(exercise, GOOD)
    assert (found.outcome, found.points, found.mistake) == ("wrong", 0, None)
    assert found.message == "a hidden check: rows sum to one"


def test_a_hidden_check_that_holds_lets_the_answer_pass(tmp_path):
    folder = hidden_in(tmp_path / "hidden", HIDDEN % EXERCISE.id)
    assert checked(extra_checks.with_hidden(EXERCISE, folder), GOOD).outcome == "passed"
    assert extra_checks.with_hidden(find("2.1"), folder).properties == find("2.1").properties
    assert extra_checks.names(folder) == [EXERCISE.id]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HIDDEN % "1.22", "There is no exercise '1.22'. The nearest"),
        ("CHECKS = {'1.2': print}", r"CHECKS\['1.2'\] should be a list of functions"),
        ("CHECKS = {'1.2': [3]}", "should be a list of functions"),
        ("CHECKS = 3", "and defines 3"),
        ("x = 1", "should define CHECKS"),
        ("def f(:", "does not load: SyntaxError"),
        ("1 / 0", "does not load: ZeroDivisionError"),
    ],
)
def test_a_wrong_file_of_hidden_checks_is_named_before_anything_runs(tmp_path, graded, text, said):
    put(tmp_path / "submissions" / "ada.ipynb", notebook(RIGHT))
    folder, check = hidden_in(tmp_path / "hidden", text), Counting()
    with pytest.raises(BadCheck, match=f"01_attention.py.*{said}"):
        graded(extra=folder, check=check)
    assert not check.asked


def test_an_empty_folder_of_hidden_checks_is_named(tmp_path, graded):
    put(tmp_path / "submissions" / "ada.ipynb", notebook(RIGHT))
    (tmp_path / "hidden").mkdir()
    with pytest.raises(BadCheck, match="has no .*py"):
        graded(extra=tmp_path / "hidden")


def test_other_hidden_checks_are_graded_anew(tmp_path, graded):
    put(tmp_path / "submissions" / "ada.ipynb", notebook(RIGHT))
    folder, check = hidden_in(tmp_path / "hidden", HIDDEN % EXERCISE.id), Counting()
    for expected in (1, 0):
        graded(extra=folder, check=check)
        assert check.submissions == expected
    (folder / "data.txt").write_text("which a check may read")
    graded(extra=folder, check=check)
    assert check.submissions == 1


# ---- variants and time limits ----


def test_each_learner_gets_their_own_variant_where_the_class_has_them(tmp_path, graded, monkeypatch):
    asked = []
    fake = SimpleNamespace(variant=lambda exercise, learner: asked.append(learner) or exercise)
    monkeypatch.setitem(sys.modules, "memcourse.course.variants", fake)
    put(tmp_path / "submissions" / "ada_l.ipynb", notebook(RIGHT))
    graded()
    assert asked == []
    config = ClassConfig(variants=True, roster={"ada_l": "ada"})
    graded(config)
    assert asked == ["ada"] * len(exercises(CHAPTER))
    graded(config)
    assert len(asked) == len(exercises(CHAPTER))
    graded(replace(config, roster={"ada_l": "grace"}))
    assert set(asked) == {"ada", "grace"}


def test_a_class_with_variants_is_graded_on_the_learners_own_numbers(tmp_path, monkeypatch):
    """The solutions, which have the course's numbers, are timed as they are."""
    monkeypatch.setattr(run.pages, "write", lambda *_: None)
    plain = find("1.1")
    own = {learner: variant(plain, learner).oracle() for learner in ("ada", "ben")}
    assert own["ada"] != own["ben"] and plain.oracle() not in own.values()
    for learner, value in {"ada": own["ada"], "ben": own["ada"], "cleo": plain.oracle()}.items():
        put(tmp_path / "submissions" / f"{learner}.ipynb", notebook(f"{plain.name} = {value!r}"))
    config = ClassConfig(variants=True)
    found = grade_class(tmp_path / "submissions", tmp_path / "report", config, level="limits", check=equal, pool=Here)
    outcomes = [report.outcome for one in found.results for report in one.reports if report.exercise == plain.id]
    assert outcomes == ["passed", "wrong", "wrong"] and [one.fault for one in found.results] == [""] * 3
    assert reference_times.load(tmp_path / "report", found.key)[CHAPTER][plain.id] == 0.5


def equal(exercise, definitions, **_):
    """Like `right_or_wrong`: is a value that stands in the notebook what the exercise asks for?"""
    if exercise.asks_for_code or exercise.name not in definitions:
        return report(exercise, "not attempted")
    namespace = {}
    for definition in definitions.closure(exercise.name):
        exec(definition.source, namespace)
    expected = pytest.approx(exercise.oracle())
    return report(exercise, "passed" if namespace[exercise.name] == expected else "wrong", seconds=0.5)


def test_the_time_limit_is_ten_times_what_the_solution_takes(tmp_path):
    def timed(exercise, definitions, *, seconds, level):
        assert level == "limits" and seconds is None and exercise.name in definitions
        outcome = "wrong" if exercise.id == "1.3" else "passed"
        return report(exercise, outcome, seconds=0.05 if exercise.id == "1.1" else 3)

    times = reference_times.measure(Rules("limits", check=timed), CHAPTER)
    assert times == {exercise.id: 3 for exercise in exercises(CHAPTER) if exercise.id not in ("1.1", "1.3")} | {
        "1.1": 0.05
    }
    limits = reference_times.limits(CHAPTER, times)
    assert (limits["1.1"], limits["1.2"], limits["1.3"]) == (2, 30, find("1.3").time_limit)
    assert reference_times.limits(CHAPTER, {"1.2": 0.668836})["1.2"] == 6.7
    reference_times.save(tmp_path, "key", {CHAPTER: times})
    assert reference_times.load(tmp_path, "key") == {CHAPTER: times} and reference_times.load(tmp_path, "other") == {}


def test_answers_get_that_limit_and_where_there_is_none_the_run_says_so(tmp_path, graded, monkeypatch):
    put(tmp_path / "submissions" / "ada.ipynb", notebook(RIGHT))
    found = graded()
    assert any(note.startswith("No solution was timed for 1.1, ") for note in found.notes)
    (tmp_path / "report" / "reference_times.json").unlink()
    (tmp_path / "report" / "results" / "ada.ipynb.json").unlink()
    monkeypatch.setattr(reference_times, "measure", lambda *_: {exercise.id: 1.5 for exercise in exercises(CHAPTER)})
    found = graded()
    assert found.notes == [f"At the level 'limits' here: {note}" for note in confine.notes("limits")]
    assert {one.exercise: one.message for one in found.results[0].reports}[EXERCISE.id] == "limit 15.0"


def test_a_hidden_check_that_the_solution_does_not_pass_is_named(tmp_path):
    def strict(exercise, definitions, **_):
        return report(exercise, "wrong", message="a hidden check: rows sum to two")

    with pytest.raises(
        BadCheck, match="The course's own solution of 1.1 does not pass a hidden check: rows sum to two"
    ):
        reference_times.measure(Rules("limits", check=strict), CHAPTER)


# ---- results and tables ----


def one_result(**more):
    reports = (Report("1.2", "attention_weights", "passed", 2, 2, ("type",), mistake=None, level="limits"),)
    fields = {"learner": "ada", "chapter": CHAPTER, "source": "ada.ipynb", "submitted": None, "reports": reports}
    rest = {"points": 1.6, "raw_points": 2, "max_points": 2, "late": "", "fault": "", "level": "limits", "seconds": 0.1}
    return Graded(**(fields | rest | more))


def test_a_result_comes_back_as_it_was(tmp_path):
    found = one_result(fingerprints={"1.2": "9-ab"}, note="odd")
    results.save(found, tmp_path, "print")
    assert results.load("ada.ipynb", tmp_path, "print") == found and load_all(tmp_path) == [found]
    assert results.load("ada.ipynb", tmp_path, "other") is None
    (tmp_path / "results" / "x.json").write_text("{}")
    with pytest.raises(ValueError, match="x.json is not a result"):
        load_all(tmp_path)


@pytest.mark.parametrize("name", ["=cmd()", "+1", "-1", "@x", "\tx", "\r=x"])
def test_a_name_is_never_a_formula(tmp_path, name):
    tables.write([one_result(learner=name)], tmp_path, UTC)
    for table in ("results.csv", "exercises.csv"):
        with open(tmp_path / table, encoding="utf-8-sig", newline="") as file:
            (row,) = csv.DictReader(file)
        assert row["learner"] == f"'{name}" and row["points"] in ("1.6", "2")


def test_lateness_stands_in_numbers_and_the_time_in_the_classs_zone(tmp_path):
    late = {"late": "2 days late: 80 %", "days_late": 2, "share": 0.8, "submitted": "2026-10-12T23:30:00+00:00"}
    faulty = one_result(learner="eve", source="eve.ipynb", reports=(), fault="It is empty.")
    tables.write([one_result(**late), one_result(learner="ben"), faulty], tmp_path, ZoneInfo("Europe/Berlin"))
    with open(tmp_path / "results.csv", encoding="utf-8-sig", newline="") as file:
        rows = [(row["days_late"], row["share"], row["submitted"]) for row in csv.DictReader(file)]
    assert rows == [("2", "0.8", "2026-10-13T01:30:00+02:00"), ("0", "1", ""), ("", "", "")]


# ---- real processes ----


def test_a_process_that_dies_or_hangs_costs_its_own_task_alone():
    with Pool(2) as pool:
        outcomes = dict(pool.each(sleep_or, ["a", "die", "exit", "raise", "b", "c"]))
        late = dict(pool.each(sleep_or, ["sleep", "d"], seconds=3.0))
        processes = [worker.process for worker in pool._idle]
    assert [outcomes[name][1] for name in "abc"] == ["a", "b", "c"]
    assert isinstance(outcomes["die"], Died) and "signal 9 (killed)" in str(outcomes["die"])
    assert isinstance(outcomes["exit"], Died) and "exit code 3" in str(outcomes["exit"])
    assert isinstance(outcomes["raise"], KeyError) and "sleep_or" in outcomes["raise"].__notes__[0]
    assert isinstance(late["sleep"], Died) and "longer than 3 s" in str(late["sleep"])
    assert late["d"][1] == "d" and late["d"][0] != os.getpid()
    assert processes and not any(process.is_alive() for process in processes)


def test_a_submission_that_kills_its_grading_process_gets_its_line(tmp_path, graded):
    folder = tmp_path / "submissions"
    put(folder / "ada.ipynb", notebook(RIGHT))
    put(folder / "ben.ipynb", notebook(RIGHT + " # kill"))
    deep = notebook(RIGHT, "x = " + "(" * 5_000 + ")" * 5_000, "y = " + "-" * 20_000 + "1")
    put(folder / "deep.ipynb", deep)
    put(folder / "eve.ipynb", notebook(RIGHT))
    found = by_source(graded(pool=Pool, workers=2))
    assert found["ben.ipynb"].fault == "It could not be graded: it ended the grading process by signal 9 (killed)."
    assert found["ada.ipynb"].points == found["eve.ipynb"].points == EXERCISE.points
    assert found["deep.ipynb"].points == EXERCISE.points


SHORTEST = "00_what_is_memory"  # one exercise
REMEMBER = """\
def remember(state, candidate, forget_gate, input_gate):
    return forget_gate * state + input_gate * candidate"""
REMEMBERS_ALL = """
def remembers_all(answer):
    import torch
    assert torch.equal(answer(*torch.ones(4, 2, 3)), torch.full((2, 3), 2.0)), "a secret"

CHECKS = {"0.1": [remembers_all]}
"""


def test_the_whole_way_from_the_command_line(tmp_path, call):  # noqa: F811
    folder, out = tmp_path / "submissions", tmp_path / "report"
    put(folder / "ada.ipynb", notebook(REMEMBER, chapter=SHORTEST))
    put(folder / "ben.ipynb", notebook(REMEMBER.replace("forget_gate *", "(1 - forget_gate) *"), chapter=SHORTEST))
    put(folder / "eve.ipynb", b"")
    (tmp_path / "class.toml").write_text('title = "Memory"\n[points]\n"0.1" = 7')
    hidden = hidden_in(tmp_path / "hidden", REMEMBERS_ALL)
    options = ("--config", tmp_path / "class.toml", "--extra-checks", hidden, "--workers", "2")
    code, said, err = call("grade", folder, "--out", out, *options, "--json")
    document = json.loads(said)
    ada, ben, eve = document["results"]
    assert (code, err, document["title"], document["notes"]) == (0, "", "Memory", [])
    assert (ada["points"], ben["points"]) == (7, 0) and ada["level"] == document["level"]
    assert "a hidden check" in ada["reports"][0]["stages"]
    assert ben["reports"][0]["mistake"].startswith("this takes the forget gate for the share that is forgotten")
    assert eve["fault"] == "It is empty."
    code, said, err = call("grade", folder, "--out", out, *options)
    assert code == 0 and "7 of 7" in said and "eve.ipynb: It is empty." in said
    assert f"level '{document['level']}'" in said and "report/index.html" in said
    for page in ("index.html", "learners/ada.html", "junit.xml", "results.csv"):
        assert (out / page).stat().st_size


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("empty", "--out", "report"), "holds no submission"),
        (("nowhere", "--out", "report"), "is not a folder of submissions"),
        (("submissions", "--out", "submissions/report"), "must lie outside"),
        (("submissions", "--out", "report", "--level", "iron"), "iron"),
        (("submissions", "--out", "report", "--config", "class.toml"), "The nearest is 'title'"),
        (("submissions", "--out", "report", "--config", "none.toml"), "cannot be read"),
        (("submissions",), "--out"),
        (("submissions", "empty", "--out", "report"), "name one folder"),
        (("submissions/ada.ipynb", "--level", "limits"), "--out"),
        (("submissions", "--out", "report", "--workers", "0"), "workers"),
    ],
)
def test_what_cannot_be_done_is_said_with_exit_code_2(tmp_path, call, monkeypatch, options, said):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "class.toml").write_text("titel = 'x'")
    put(tmp_path / "submissions" / "ada.ipynb", notebook(RIGHT))
    code, out, err = call("grade", *options)
    assert (code, out) == (2, "") and said in err
    assert not (tmp_path / "report").exists()


def test_ctrl_c_is_one_sentence_and_130(tmp_path, call, monkeypatch):  # noqa: F811
    put(tmp_path / "submissions" / "ada.ipynb", notebook(RIGHT))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "_found", interrupted)
    code, out, err = call("grade", tmp_path / "submissions", "--out", tmp_path / "report")
    assert (code, out, err.count("\n")) == (130, "", 1) and "goes on from there" in err


@pytest.mark.slow
def test_ctrl_c_in_the_terminal_leaves_nothing_running(tmp_path):
    asleep = "import time\ndef remember(*_): time.sleep(60)"
    for name in ("ada", "ben", "eve"):
        put(tmp_path / "submissions" / f"{name}.ipynb", notebook(asleep, chapter=SHORTEST))
    folders = [str(tmp_path / "submissions"), "--out", str(tmp_path / "report")]
    command = [sys.executable, "-m", "memcourse", "grade", *folders]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 120
    while not (tmp_path / "report" / "reference_times.json").exists() and time.monotonic() < until:
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGINT)  # as the terminal does
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130 and "goes on from there" in said and "Traceback" not in said
    time.sleep(0.5)
    assert [alive for alive in Path("/proc").glob("[0-9]*") if group_of(alive) == running.pid] == []


def group_of(process):
    """None for one that has ended; one that nobody has asked about since then has no command left."""
    try:
        return os.getpgid(int(process.name)) if (process / "cmdline").read_bytes() else None
    except OSError:
        return None
