"""check, hint, progress and setup as a learner calls them in a notebook."""

import dataclasses
import importlib
import linecache
import random
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

import memcourse
from memcourse.course import notebook, progress
from memcourse.course import variants as course_variants
from memcourse.course.checks import UnknownExercise, find
from memcourse.course.start import MANIFEST

WEIGHTS = find("1.2")
RIGHT = "def attention_weights(query, key):\n    return torch.softmax(query @ key.T / query.shape[1] ** 0.5, dim=-1)"
CHECK = 'check("1.2", attention_weights)'
COPY_OF_NOTHING = '{"version": "0.1.0", "files": {}}'


class Shell:
    """As much of IPython as the check looks at: a history, and names."""

    def __init__(self):
        self.user_ns = {"In": [""], "check": notebook.check, "__name__": "__main__"}

    def run(self, *cells):
        for cell in cells:
            self.user_ns["In"].append(cell)
            name = f"<ipython-input-{len(self.user_ns['In']) - 1}-{id(self)}>"
            linecache.cache[name] = (len(cell), None, cell.splitlines(keepends=True), name)
            exec(compile(cell, name, "exec"), self.user_ns)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the course, with the notebook in its exercises."""
    (tmp_path / MANIFEST).write_text(COPY_OF_NOTHING)
    (tmp_path / "exercises").mkdir()
    (tmp_path / "solutions").mkdir()
    monkeypatch.chdir(tmp_path / "exercises")
    return tmp_path


@pytest.fixture
def shell(copy, monkeypatch):
    shell = Shell()
    monkeypatch.setattr(notebook, "_shell", lambda: shell)
    return shell


def test_a_right_answer_prints_its_report_and_counts(shell, copy, capsys):
    shell.run("import torch", RIGHT, CHECK)
    out, err = capsys.readouterr()
    assert out.startswith("1.2 attention_weights: checks passed (2 of 2 points)\n  passed: type, shape, ")
    assert "Note" not in out and err == ""
    assert progress.read(copy)["1.2"].points == 2


def test_check_returns_nothing(shell, capsys):
    assert notebook.check("1.2", None) is None
    assert capsys.readouterr().out == "1.2 attention_weights: not attempted (0 of 2 points)\n"


def test_a_crash_shows_the_line_of_its_cell(shell, capsys):
    shell.run("import torch", "def attention_weights(query, key):\n    # scores\n    return query @ key", CHECK)
    out = capsys.readouterr().out
    assert "line 3 of its cell, in attention_weights:\n      return query @ key\n" in out
    assert "Note" not in out


@pytest.mark.parametrize("id", ["1.22", "attention_weight", "the adress: weights", 1.2, ""])
def test_an_unknown_exercise_is_a_sentence_with_the_nearest_names(shell, copy, capsys, id):
    notebook.check(id, None)
    notebook.hint(id)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0] == lines[1]
    assert lines[0].startswith(f"There is no exercise {id!r}. ")
    assert '"1.2" attention_weights' in lines[0] if id else "There are 0.1, 1.1, 1.2" in lines[0]
    assert not (copy / progress.FILE).exists()


def test_a_chapters_number_is_answered_with_its_exercises(capsys):
    notebook.question("2")
    said = capsys.readouterr().out
    assert [part.split('"')[1] for part in said.split("The nearest: ")[1].split(", ")] == [
        f"2.{n}" for n in range(1, 6)
    ]


def test_find_raises_what_the_notebook_prints():
    assert find("1.2") is WEIGHTS
    with pytest.raises(UnknownExercise, match="The nearest: "):
        find("1.20")


# hints


def test_hints_come_one_at_a_time_and_are_counted(shell, copy, capsys):
    for number, text in enumerate(WEIGHTS.hints, start=1):
        notebook.hint("1.2")
        free = "  Hints are counted, and cost no points.\n" if number == 1 else ""
        assert capsys.readouterr().out == f"Hint {number} of 3 for 1.2: {text}\n{free}"
        assert progress.read(copy)["1.2"].hints == number
    notebook.hint("1.2")
    out = capsys.readouterr().out
    assert out.startswith("There are no further hints for 1.2. All 3 again:\n")
    assert all(text in out for text in WEIGHTS.hints)


def test_hints_cost_no_points(shell, copy, capsys):
    for _ in range(4):
        notebook.hint("1.2")
    shell.run("import torch", RIGHT, CHECK)
    kept = progress.read(copy)["1.2"]
    assert (kept.hints, kept.points, kept.outcome) == (3, WEIGHTS.points, "passed")


def test_hints_go_on_without_a_copy(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_unsaved", {})
    notebook.hint("1.2"), notebook.hint("1.2")
    out = capsys.readouterr().out
    assert [line[:11] for line in out.splitlines() if line.startswith("Hint ")] == ["Hint 1 of 3", "Hint 2 of 3"]


# notebook and grader never disagree


def notes(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("  Note: ")]


def test_a_name_that_grading_does_not_carry_is_warned_about(shell, capsys):
    leaning = RIGHT.replace("query.shape[1] ** 0.5", "scale")
    shell.run("import torch", "scale = torch.rand(1).item() * 0 + 5 ** 0.5", leaning)
    notebook.check("1.2", shell.user_ns["attention_weights"])
    (about,) = [note for note in notes(capsys) if "`scale`" in note]
    assert "the answer leans on `scale`, which grading does not carry: it carries imports, functions" in about


@pytest.mark.parametrize("line", ["from memcourse.attention import attend", "from memcourse import attend"])
def test_an_answer_that_imports_what_it_should_write_is_told_that_grading_does_not_have_it(shell, capsys, line):
    shell.run(line, "def attention_weights(query, key):\n    return attend(query, key, key)[1]", CHECK)
    said = capsys.readouterr().out
    assert "checks passed" in said and "grading leaves out memcourse.attention, which this chapter teaches" in said


def test_an_answer_that_passes_only_in_the_notebook_is_told_so(shell, capsys):
    """Grading sees definitions, and not what later statements make of them."""
    shell.run("import torch", 'settings = {"power": 2}', RIGHT.replace("0.5", 'settings["power"]'))
    shell.run('settings["power"] = 0.5', CHECK)
    out = capsys.readouterr().out
    assert out.startswith("1.2 attention_weights: checks passed")
    assert "  Note: from its definitions alone, as grading takes it, the answer gives: wrong\n    values: " in out


def test_every_line_of_a_note_is_indented(shell, monkeypatch, capsys):
    monkeypatch.setattr("memcourse.course.runner.traces.error_text", lambda error: "one\ntwo")
    shell.run("import torch", 'settings = {"root": 0}\nsettings["root"] = 2', 'power = 1 / settings["root"]')
    shell.run(RIGHT.replace("0.5", "power"), CHECK)
    assert "the answer gives: crashed\n    one\n    two\n" in capsys.readouterr().out


def test_definitions_that_raise_when_grading_runs_them_are_told_too(shell, capsys):
    shell.run("import torch", 'settings = {"root": 0}\nsettings["root"] = 2', 'power = 1 / settings["root"]')
    shell.run(RIGHT.replace("0.5", "power"), CHECK)
    out = capsys.readouterr().out
    assert out.startswith("1.2 attention_weights: checks passed")
    assert "as grading takes it, the answer gives: crashed\n    ZeroDivisionError: division by zero\n" in out


def test_a_slow_exercise_is_not_checked_twice(shell, monkeypatch, capsys):
    slow = dataclasses.replace(WEIGHTS, time_limit=30.0)
    monkeypatch.setattr(notebook, "find", lambda id: slow)
    shell.run("import torch", 'settings = {"power": 2}', RIGHT.replace("0.5", 'settings["power"]'))
    shell.run('settings["power"] = 0.5', CHECK)
    assert notes(capsys) == []


def test_another_name_is_warned_about(shell, capsys):
    shell.run("import torch", RIGHT.replace("attention_weights", "my_weights"), 'check("1.2", my_weights)')
    (note,) = notes(capsys)
    assert "grading looks for `attention_weights`, and this answer is called `my_weights`" in note


def test_another_name_is_warned_about_beside_the_stub_too(shell, capsys):
    shell.run(
        "import torch", WEIGHTS.stub, RIGHT.replace("attention_weights", "my_weights"), 'check("1.2", my_weights)'
    )
    assert "is called `my_weights`" in notes(capsys)[0]


@pytest.mark.parametrize("answer", ["5", "torch.ones(2)", "'attention_weights'"])
def test_what_is_neither_a_function_nor_a_class_is_not_asked_for_a_name(shell, capsys, answer):
    shell.run("import torch", WEIGHTS.stub, f'check("1.2", {answer})')
    assert notes(capsys) == []


def test_what_passes_and_is_neither_a_function_nor_a_class_is_told_what_grading_looks_for(shell, capsys):
    shell.run("import torch\nfrom functools import partial", RIGHT.replace("attention_weights", "mine"))
    shell.run('check("1.2", partial(mine))')
    (note,) = notes(capsys)
    assert "grading looks for a function or a class `attention_weights`" in note


def test_an_answer_with_a_second_name_is_fine(shell, capsys):
    shell.run("import torch", RIGHT.replace("attention_weights", "my_weights"), "attention_weights = my_weights", CHECK)
    assert notes(capsys) == []


def test_a_prediction_that_was_computed_is_warned_about(shell, capsys):
    shell.run("def look():\n    return {}", "predicted_weights = look()", 'check("1.1", predicted_weights)')
    (note,) = notes(capsys)
    assert "grading does not see `predicted_weights`: it carries" in note


def test_a_prediction_handed_over_without_its_name_is_warned_about(shell, capsys):
    shell.run('check("1.1", {"as_given": 0.5})')
    assert "grading does not see `predicted_weights`" in notes(capsys)[0]


def test_no_notes_about_what_was_not_attempted(shell, capsys):
    shell.run("import torch", WEIGHTS.stub, CHECK)
    assert capsys.readouterr().out == "1.2 attention_weights: not attempted (0 of 2 points)\n"


def test_outside_a_notebook_there_are_no_notes(copy, capsys):
    namespace = {}
    exec("import torch\n" + RIGHT.replace("attention_weights", "mine"), namespace)
    notebook.check("1.2", namespace["mine"])
    assert notes(capsys) == []


# whose progress it is


def test_reading_a_solution_passes_nothing(shell, copy, monkeypatch, capsys):
    monkeypatch.chdir(copy / "solutions")
    shell.run("import torch", RIGHT, CHECK)
    assert "checks passed" in capsys.readouterr().out
    assert not (copy / progress.FILE).exists()


def test_a_notebook_beside_the_copy_passes_nothing_in_it(shell, tmp_path_factory, monkeypatch, capsys):
    repository = tmp_path_factory.mktemp("repository")
    (repository / "my_course").mkdir()
    (repository / "my_course" / MANIFEST).write_text(COPY_OF_NOTHING)
    monkeypatch.chdir(repository)
    shell.run("import torch", RIGHT, CHECK)
    assert not (repository / "my_course" / progress.FILE).exists()
    monkeypatch.setattr(notebook, "_shell", lambda: None)  # from the command line it is the copy that is meant
    notebook.hint("1.2")
    assert progress.read(repository / "my_course")["1.2"].hints == 1


def test_progress_that_cannot_be_recorded_is_a_note(shell, copy, capsys):
    (copy / progress.FILE).write_text("{")
    shell.run("import torch", RIGHT, CHECK)
    (note,) = notes(capsys)
    assert "progress.json could not be read: it is kept as progress.unreadable-" in note


def test_ctrl_c_in_a_check_leaves_progress_as_it_was(shell, copy, capsys):
    shell.run("import torch", RIGHT, CHECK)
    before = (copy / progress.FILE).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        shell.run("def attention_weights(query, key):\n    raise KeyboardInterrupt", CHECK)
    assert (copy / progress.FILE).read_bytes() == before


def test_progress_is_a_table_in_html_and_in_text(shell, copy, monkeypatch):
    shell.run("import torch", RIGHT, CHECK)
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    notebook.show_progress()
    (data,) = shown
    assert "Next: 1.1 " in data["text/html"] and "Next: 1.1 " in data["text/plain"]
    assert '<details open><summary><b><a href="../exercises/01_attention.ipynb">' in data["text/html"]
    assert "The address: weights of every query over every key" in data["text/plain"]
    assert "\x1b" not in data["text/plain"]


def test_progress_outside_a_notebook_is_the_table_of_the_command_line(copy, capsys):
    notebook.show_progress()
    assert "Next: read chapters/00_what_is_memory.ipynb, then do 0.1" in " ".join(capsys.readouterr().out.split())


# pictures


WRONG = RIGHT.replace("dim=-1", "dim=0")


def test_a_wrong_answer_comes_with_its_picture_and_a_line_that_describes_it(shell, capsys):
    shell.run("import torch", WRONG, CHECK)  # outside a kernel, `figures.show` prints the line alone
    assert "\nFigure: attention_weights: 6 of 6 cells are wrong; its rows do not sum to 1" in capsys.readouterr().out


def test_no_picture_outside_a_notebook_nor_without_matplotlib(shell, copy, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(notebook, "find_spec", lambda name: None)
        shell.run("import torch", WRONG, CHECK)
    monkeypatch.setattr(notebook, "_shell", lambda: None)
    notebook.check("1.2", shell.user_ns["attention_weights"])
    out = capsys.readouterr().out
    assert out.count("1.2 attention_weights: wrong") == 2 and "Figure" not in out


# variants


@pytest.fixture
def variants(monkeypatch):
    """Each learner's weights are to be twice as sharp, and their first hint calls them by name."""

    def variant(exercise, learner):
        twice = lambda query, key: exercise.oracle(2 * query, key)  # noqa: E731
        return dataclasses.replace(exercise, oracle=twice, hints=(f"for {learner}", *exercise.hints[1:]))

    def show(exercise, learner):
        return f"{exercise.id} for {learner or 'all'}"

    monkeypatch.setattr(course_variants, "variant", variant)
    monkeypatch.setattr(course_variants, "show", show)


def test_a_learner_who_gave_a_name_gets_their_variant(shell, copy, variants, capsys):
    shell.run("import torch", RIGHT, CHECK)
    notebook.question("1.2")
    (copy / MANIFEST).write_text('{"version": "0.1.0", "files": {}, "learner": "Ada"}')
    shell.run(CHECK)
    notebook.hint("1.2")
    notebook.question("1.2")
    out = capsys.readouterr().out
    assert "1.2 attention_weights: checks passed" in out and "1.2 attention_weights: wrong" in out
    assert "Hint 1 of 3 for 1.2: for Ada\n" in out
    assert "1.2 for all\n" in out and "1.2 for Ada\n" in out


OWN_NUMBERS = """
  You have numbers of your own here: question("1.1") shows them.
    from memcourse.course import question
"""


@pytest.mark.parametrize(("numbers", "outcome"), [("course", "wrong"), (None, "not attempted"), ("own", "passed")])
def test_who_has_other_numbers_than_the_text_is_told_until_they_pass(shell, copy, capsys, numbers, outcome):
    (copy / MANIFEST).write_text('{"version": "0.1.0", "files": {}, "learner": "Ada"}')
    exercise = find("1.1")
    answers = {"course": exercise.oracle(), "own": course_variants.variant(exercise, "Ada").oracle()}
    notebook.check("1.1", answers.get(numbers))
    out = capsys.readouterr().out
    assert outcome in out and (OWN_NUMBERS in out) == (outcome != "passed")


def test_the_numbers_of_the_course_are_nobodys_own(shell, copy, capsys):
    notebook.check("1.1", None)
    (copy / MANIFEST).write_text('{"version": "0.1.0", "files": {}, "learner": "Ada"}')
    notebook.check("1.2", None)
    assert "numbers of your own" not in capsys.readouterr().out


def test_a_solution_answers_the_exercise_of_the_course(shell, copy, variants, monkeypatch, capsys):
    (copy / MANIFEST).write_text('{"version": "0.1.0", "files": {}, "learner": "Ada"}')
    monkeypatch.chdir(copy / "solutions")
    shell.run("import torch", RIGHT, CHECK)
    assert "1.2 attention_weights: checks passed" in capsys.readouterr().out


def test_a_manifest_that_cannot_be_read_is_a_note(shell, copy, capsys):
    (copy / MANIFEST).write_text("{")
    shell.run("import torch", RIGHT, CHECK)
    out = capsys.readouterr().out
    assert (
        "checks passed" in out
        and out.count("  Note: ") == 1
        and "is unreadable; remove it and run `memcourse start`" in out
    )


# setup


def test_setup_seeds_everything_and_says_nothing(capsys):
    def numbers():
        return random.random(), np.random.rand(), torch.rand(1).item()

    drawn = []
    for seed in (3, 3, 4):
        device = notebook.setup(memcourse.__version__, seed=seed)
        drawn.append(numbers())
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[1], drawn[2], strict=True))
    assert device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert capsys.readouterr() == ("", "")


def test_setup_says_when_the_notebook_is_of_another_version(capsys):
    notebook.setup("0.0.7")
    out = capsys.readouterr().out
    assert out.startswith(
        f"This notebook was made by version 0.0.7 of the course; you have {memcourse.__version__}. Run "
    )
    assert out.count("\n") == 1 and "`memcourse start`" in out


def test_setup_says_to_update_the_course_when_the_notebook_is_newer(capsys):
    notebook.setup("999.0")
    out = capsys.readouterr().out
    assert out.startswith(
        f"This notebook was made by version 999.0 of the course; you have {memcourse.__version__}. Update the course"
    )
    assert out.count("\n") == 1 and "memcourse start" not in out


def test_setup_needs_no_matplotlib_and_uses_the_style_where_it_is(monkeypatch):
    used = []
    monkeypatch.setitem(sys.modules, "memcourse.course.figures", SimpleNamespace(use_style=lambda: used.append(1)))
    notebook.setup(memcourse.__version__)
    assert used == [1]
    monkeypatch.setattr(notebook, "find_spec", lambda name: None)
    notebook.setup(memcourse.__version__)
    assert used == [1]


def test_the_package_exports_what_the_first_cell_imports():
    from memcourse.course import check, figures, hint, setup

    assert (check, hint, setup) == (notebook.check, notebook.hint, notebook.setup)
    assert figures is importlib.import_module("memcourse.course.figures")
    with pytest.raises(ImportError):
        from memcourse.course import no_such_name  # noqa: F401


def test_importing_the_course_brings_in_no_pytest_and_no_matplotlib():
    heavy = {"pytest", "matplotlib", "typer", "IPython", "nbformat", "faiss"}
    code = f"import sys; from memcourse.course import check, hint, setup; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# in a real kernel


def _whole(texts):
    """The texts of a cell as one: a busy kernel sends a line and its end apart."""
    return ["".join(texts)] if texts and all(isinstance(text, str) for text in texts) else texts


def test_in_a_jupyter_kernel(copy):
    cells = [
        "from memcourse.course import check, hint, setup\ndevice = setup('0.1.0', seed=0)",
        f"import torch\n{RIGHT}",
        CHECK,
        "def attention_weights(query, key):\n    scores = query @ key\n    return scores",
        CHECK,
        WEIGHTS.stub,
        CHECK,
        'hint("1.2")',
        "def attention_weights(query, key):\n    raise KeyboardInterrupt",
        f"try:\n    {CHECK}\nexcept KeyboardInterrupt:\n    print('interrupted')",
        f"{RIGHT}\n{CHECK}",
        f"{WRONG}\n{CHECK}",
    ]
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(
        document, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(copy / "exercises")}}
    )
    client.execute()
    texts = [_whole([output.get("text", output) for output in cell.outputs]) for cell in document.cells]
    passed = (
        "1.2 attention_weights: checks passed (2 of 2 points)\n  passed: type, shape, dtype, finite, values, gradient, "
    )
    assert [texts[i] for i in (0, 1, 3, 5, 8)] == [[]] * 5
    assert len(texts[2]) == 1 and texts[2][0].startswith(passed)
    crashed = "1.2 attention_weights: crashed (0 of 2 points)\n  line 2 of its cell, in attention_weights:\n"
    assert texts[4][0].startswith(f"{crashed}      scores = query @ key\n")
    assert texts[6] == ["1.2 attention_weights: not attempted (0 of 2 points)\n"]
    assert texts[7][0].startswith("Hint 1 of 3 for 1.2: ")
    assert texts[9] == ["interrupted\n"]
    assert len(texts[10]) == 1 and texts[10][0].startswith(passed) and "Note" not in texts[10][0]
    report, picture, description = document.cells[11].outputs
    assert "values: this looks like a softmax over the queries" in report["text"]
    assert picture["data"]["image/png"] and picture["metadata"]["image/png"]["alt"] == description["data"]["text/plain"]
    kept = progress.read(copy)["1.2"]
    assert (kept.outcome, kept.attempts, kept.hints) == ("passed", 4, 1)
    assert sorted(path.name for path in (copy / "exercises").iterdir()) == []
