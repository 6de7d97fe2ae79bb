"""The command line: what it prints, what it returns, what it never touches."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from test_grade import CHAPTER, EXERCISE, GOOD, write

from memcourse import __version__
from memcourse.course import cli, sandbox
from memcourse.course.checks import all_exercises, exercises, find
from memcourse.course.exercise import Report
from memcourse.course.start import MANIFEST
from memcourse.course.variants import variant

COMMANDS = (
    *("start", "lab", "check", "hint", "question", "progress", "grade", "doctor", "data", "datastore"),
    *("gradescope", "classroom-workflow", "classroom-points"),  # for a class
)


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command line in this process; returns its exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return call


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A learner's copy with an empty exercise notebook, and the current folder above it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my_course"
    write(folder / "exercises" / f"{CHAPTER}.ipynb", *(exercise.stub for exercise in exercises(CHAPTER)))
    (folder / MANIFEST).write_text(json.dumps({"version": __version__, "files": {}}))
    return folder


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def answered(copy, *cells):
    return write(copy / "exercises" / f"{CHAPTER}.ipynb", *cells)


def test_alone_it_says_what_to_do_first_and_names_every_command(call):
    code, out, err = call()
    assert (code, err) == (0, "")
    assert "memcourse lab" in out
    for command in COMMANDS:
        assert command in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0 and f"Usage: memcourse {command}" in out


def test_version(call):
    assert call("--version") == (0, f"memcourse {__version__}\n", "")


def test_help_is_quick_and_loads_no_torch():
    code = (
        "import sys\nfrom memcourse.course.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert time.monotonic() - started < 3
    assert "Usage" in done.stdout
    loaded = set(done.stderr.split())
    assert "memcourse.course.cli" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "pytest", "nbformat", "matplotlib", "IPython", "_pytest"})


def test_check_passes(call, copy):
    answered(copy, GOOD)
    code, out, err = call("check", EXERCISE.id)
    assert (code, err) == (0, "")
    assert "checks passed" in out and f"{EXERCISE.points} of {EXERCISE.points} points" in out


def test_check_fails_and_says_why_in_the_terminals_words(call, copy):
    answered(copy, GOOD.replace("softmax(-1)", "softmax(-2)"))
    code, out, err = call("check", EXERCISE.id)
    assert (code, err) == (1, "")
    assert "wrong" in out and f"memcourse hint {EXERCISE.id}" in out


def test_check_of_an_untouched_stub_is_not_attempted(call, copy):
    code, out, _ = call("check", EXERCISE.id)
    assert code == 1 and "not attempted" in out


def test_check_grades_that_exercise_only(call, copy, monkeypatch):
    checked = []
    monkeypatch.setattr(
        sandbox,
        "run",
        lambda exercise, *_, **__: checked.append(exercise.id) or Report(exercise.id, "", "passed", 1, 1),
    )
    call("check", EXERCISE.id)
    assert checked == [EXERCISE.id]


def test_check_of_a_named_notebook_as_json(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "elsewhere" / "mine.ipynb", GOOD)
    before = files(tmp_path)
    code, out, err = call("check", EXERCISE.id, "--notebook", path, "--json")
    report = Report.from_json(out)
    assert (code, err, report.outcome, report.points) == (0, "", "passed", EXERCISE.points)
    assert files(tmp_path) == before  # a notebook from elsewhere is nobody's progress


def test_grade_prints_tables_and_records_progress(call, copy):
    answered(copy, GOOD)
    code, out, err = call("grade")
    assert (code, err) == (0, "")
    for exercise in exercises(CHAPTER):
        assert f"{exercise.id} {exercise.name}" in out
    code, out, _ = call("progress", "--json")
    assert code == 0 and "passed" in out
    assert (copy / "progress.json").exists()


def named(copy, learner):
    (copy / MANIFEST).write_text(json.dumps({"version": __version__, "files": {}, "learner": learner}))


PREDICTED = find("1.1")


@pytest.mark.parametrize(
    ("learner", "answer", "outcome", "told"),
    [
        ("", None, "not attempted", False),
        ("", PREDICTED, "checks passed", False),
        ("ada", None, "not attempted", True),
        ("ada", PREDICTED, "wrong", True),
        ("ada", variant(PREDICTED, "ada"), "checks passed", False),
    ],
)
def test_check_says_where_a_learners_own_numbers_are_until_they_pass(call, copy, learner, answer, outcome, told):
    named(copy, learner)
    if answer:
        answered(copy, f"{PREDICTED.name} = { {key: float(value) for key, value in answer.oracle().items()} }")
    _, out, err = call("check", "1.1")
    assert err == "" and outcome in out
    assert ("\n  You have numbers of your own here: `memcourse question 1.1` shows them.\n" in out) == told


def test_the_json_of_a_check_is_the_report_alone(call, copy):
    named(copy, "ada")
    assert Report.from_json(call("check", "1.1", "--json")[1]).outcome == "not attempted"


def test_grade_says_where_a_learners_own_numbers_are(call, copy):
    named(copy, "ada")
    _, out, err = call("grade")
    said = [line for line in out.splitlines() if "numbers of your own" in line]
    assert err == "" and said == [
        f"{id}: You have numbers of your own here: `memcourse question {id}` shows them." for id in ("1.1", "1.7")
    ]
    named(copy, "")
    assert "numbers of your own" not in call("grade")[1]


def test_a_solution_is_graded_and_does_not_count(call, copy):
    code, out, _ = call("grade", write(copy / "solutions" / f"{CHAPTER}.ipynb", GOOD))
    assert code == 0 and "checks passed" in out
    assert not (copy / "progress.json").exists()


def test_grade_of_failing_answers_is_done_all_the_same(call, copy):
    code, out, _ = call("grade")
    assert code == 0 and "not attempted" in out


def test_grade_as_json(call, copy):
    path = answered(copy, GOOD)
    code, out, err = call("grade", path, "--json")
    (document,) = json.loads(out)
    assert (code, err) == (0, "") and document["points"] == EXERCISE.points
    assert [report["exercise"] for report in document["reports"]] == [exercise.id for exercise in exercises(CHAPTER)]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not a notebook"),
        ("{}", "is not a notebook"),
        ('{"cells": [], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "has no answers in it"),
        (
            '{"cells": [], "nbformat": 4, "nbformat_minor": 5, "metadata": {"memcourse": {"version": "0.0.1"}}}',
            "was made by version 0.0.1",
        ),
        (
            '{"cells": [], "nbformat": 4, "nbformat_minor": 5, "metadata": {"memcourse": {"kind": "chapter"}}}',
            "a chapter",
        ),
    ],
)
def test_a_notebook_that_cannot_be_graded_is_one_sentence_and_writes_nothing(call, copy, content, sentence):
    answered(copy, GOOD)
    bad = copy / "bad.ipynb"
    bad.write_text(content)
    before = files(copy)
    for command in (
        ("grade", copy / "exercises" / f"{CHAPTER}.ipynb", bad),
        ("check", EXERCISE.id, "--notebook", bad),
    ):
        code, out, err = call(*command)
        assert (code, out) == (2, "")
        assert sentence in err and err.count("\n") == 1
        assert files(copy) == before


@pytest.mark.parametrize("command", ["check", "hint"])
def test_an_unknown_exercise_is_answered_with_the_nearest(call, copy, command):
    before = files(copy)
    code, out, err = call(command, EXERCISE.name + "s")
    assert (code, out) == (2, "")
    assert EXERCISE.id in err and err.count("\n") == 1
    assert files(copy) == before


def test_without_a_copy_there_is_a_sentence(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (("grade",), ("check", EXERCISE.id)):
        code, out, err = call(*command)
        assert (code, out) == (2, "") and "memcourse start" in err
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_cannot_start_is_one_sentence(call, copy, monkeypatch):
    def run(*_, **__):
        raise sandbox.SandboxFault("No process could be started for the answer: none left.")

    monkeypatch.setattr(sandbox, "run", run)
    assert call("check", EXERCISE.id) == (2, "", "No process could be started for the answer: none left.\n")
    assert not (copy / "progress.json").exists()


def test_ctrl_c_ends_with_130_and_no_traceback(call, copy, monkeypatch):
    def run(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sandbox, "run", run)
    code, out, err = call("check", EXERCISE.id)
    assert code == 130 and "Traceback" not in err + out
    assert not (copy / "progress.json").exists()


def test_a_fault_of_ours_is_not_hidden(copy, monkeypatch):
    def run(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(sandbox, "run", run)
    with pytest.raises(ZeroDivisionError):
        cli.main(["check", EXERCISE.id])


def test_an_unknown_command_and_a_missing_argument_exit_with_2(call):
    assert call("chek")[0] == 2
    assert call("check")[0] == 2


def test_hints_come_one_after_the_other(call, copy):
    shown = [call("hint", EXERCISE.id) for _ in range(3)]
    for hint, (code, out, err) in zip(EXERCISE.hints, shown, strict=True):
        assert (code, err) == (0, "")
        assert " ".join(hint.split()[:3]) in " ".join(out.split())


def test_progress_as_a_table(call, copy):
    code, out, err = call("progress")
    assert (code, err) == (0, "")
    assert all(exercise.id in out for exercise in all_exercises())


def test_start_makes_a_copy(call, tmp_path, monkeypatch):
    from memcourse.course import start

    root = tmp_path / "repository"
    for part in start.PARTS:
        write(root / part / f"{CHAPTER}.ipynb", GOOD)
    monkeypatch.setattr(start, "repository", lambda: root)
    monkeypatch.chdir(tmp_path)
    code, out, err = call("start", "mine")
    assert (code, err) == (0, "") and "3 added" in out
    assert (tmp_path / "mine" / "chapters" / f"{CHAPTER}.ipynb").exists()


def test_start_of_a_copy_that_newer_software_made_is_one_sentence(call, copy, tmp_path, monkeypatch):
    from memcourse.course import start

    write(tmp_path / "repository/chapters" / f"{CHAPTER}.ipynb", GOOD)
    monkeypatch.setattr(start, "repository", lambda: tmp_path / "repository")
    (copy / MANIFEST).write_text(json.dumps({"version": "999.0", "files": {}}))
    before = files(copy)
    code, out, err = call("start")
    assert (code, out) == (2, "") and err.count("\n") == 1 and "update the course first" in err
    assert files(copy) == before


def test_start_where_there_is_nothing_to_copy_is_one_sentence(call, tmp_path, monkeypatch):
    from memcourse.course import start

    monkeypatch.setattr(start, "repository", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    code, out, err = call("start")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_doctor_returns_what_it_found(call, monkeypatch):
    from memcourse.course import doctor

    for expected in (0, 1):
        monkeypatch.setattr(doctor, "run", lambda json, code=expected: print(f"json={json}") or code)
        assert call("doctor", "--json") == (expected, "json=True\n", "")
        assert call("doctor") == (expected, "json=False\n", "")


def test_data_is_listed(call, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMCOURSE_DATA", str(tmp_path))
    code, out, err = call("data")
    assert (code, err) == (0, "") and "tinyshakespeare" in out
    code, out, err = call("data", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0 and rows["tinyshakespeare"]["megabytes"] == pytest.approx(1.1, abs=0.1)
    assert list(tmp_path.iterdir()) == []


def test_data_downloads_by_name(call, monkeypatch, tmp_path):
    from memcourse import corpora

    monkeypatch.setattr(corpora, "download", lambda name: tmp_path / name)
    assert call("data", "babi") == (0, f"babi is ready in {tmp_path / 'babi'}.\n", "")
    code, out, _ = call("data", "babi", "--json")
    assert code == 0 and json.loads(out) == {"name": "babi", "folder": str(tmp_path / "babi")}


def test_unknown_data_is_one_sentence(call, tmp_path, monkeypatch):
    monkeypatch.setenv("MEMCOURSE_DATA", str(tmp_path))
    code, out, err = call("data", "tinyshakespear")
    assert (code, out) == (2, "") and "tinyshakespeare" in err and err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
