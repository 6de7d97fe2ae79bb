"""The build: masters become notebooks, faults are named, and each rule fails on a notebook planted for it."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

pytest.importorskip("jupytext")

from matplotlib.figure import Figure

from memcourse.course import build, checks, figures, rules
from memcourse.course.exercise import Exercise

SANITIZE = Path(__file__).parent / "nbval_sanitize.cfg"
PNG = base64.b64encode(figures.to_png(Figure(figsize=(figures.WIDTH, 2)))[0]).decode()
HEAD = f"# %% [markdown]\n# # Toy\n\n# %%\n{build.FIRST_CELL}\n"
CHAPTER = HEAD + '\n# %% [markdown]\n# ## One\n\n# %% tags=["keep"]\nprint(1 + 1)\n'
EXERCISES = (
    HEAD
    + '\n# %% [markdown]\n# ## One\n\n# %% exercise="9.1"\ndef double(x):\n    return 2 * x\n'
    + '\n# %% tags=["solution-only"]\nprint(double(4))\n'
)
DOUBLE = Exercise(
    id="9.1",
    name="double",
    title="Twice as much",
    kind="write the equation",
    points=1,
    minutes=5,
    difficulty="easy",
    question="What is twice `x`?\n",
    stub="def double(x):\n    raise NotImplementedError\n",
    hints=("Add.", "Add x.", "x + x"),
    cases=lambda: [(2,)],
    probe=lambda answer, x: answer(x),
    oracle=lambda x: 2 * x,
)


@pytest.fixture(autouse=True)
def one_exercise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "exercises", lambda chapter: (DOUBLE,))
    monkeypatch.setattr(checks, "find", {"9.1": DOUBLE}.__getitem__)


def plant(root: Path, kind: build.Kind = "chapter", text: str = CHAPTER) -> build.Target:
    """A course of one master, and the notebook that it asks for."""
    master = root / build.FOLDERS[kind][0] / "77_toy.py"
    master.parent.mkdir(parents=True, exist_ok=True)
    master.write_text(text)
    return next(target for target in build.targets(root) if target.kind == kind)


def sources(notebook: NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells]


# Masters to notebooks


def test_a_chapter_is_its_master_and_nothing_of_the_machine(tmp_path: Path) -> None:
    notebook = build.render(plant(tmp_path).master, "chapter")
    assert sources(notebook) == ["# Toy", build.FIRST_CELL, "## One", "print(1 + 1)"]
    assert [cell.metadata for cell in notebook.cells] == [{}, {}, {}, {"tags": ["keep"]}]
    assert notebook.metadata.memcourse == {
        "version": build.__version__,
        "chapter": "77_toy",
        "kind": "chapter",
    }
    assert notebook == build.render(plant(tmp_path).master, "chapter")  # ids too
    nbformat.validate(notebook)


def test_cells_keep_their_ids_when_others_come_and_go(tmp_path: Path) -> None:
    before = build.render(plant(tmp_path).master, "chapter")
    text = CHAPTER.replace("# %% [markdown]\n# ## One", "# %%\n3\n\n# %% [markdown]\n# ## One") + "\n# %%\n3\n"
    after = build.render(plant(tmp_path, text=text).master, "chapter")
    ids = [cell.id for cell in after.cells]
    assert len(set(ids)) == len(ids)
    assert {cell.id for cell in before.cells} <= set(ids)


def test_an_exercise_is_asked_stubbed_and_checked(tmp_path: Path) -> None:
    notebook = build.render(plant(tmp_path, "exercises", EXERCISES).master, "exercises")
    question, stub, check = notebook.cells[3:]
    assert question.source.splitlines() == [
        "### 9.1 Twice as much",
        "",
        "*write the equation · 1 point · about 5 minutes · easy*",
        "",
        "What is twice `x`?",
        "",
        'Stuck? `hint("9.1")` gives the next of three hints.',
    ]
    assert stub.source == "def double(x):\n    raise NotImplementedError"
    assert check.source == 'check("9.1", double)'
    assert check.metadata == {"tags": ["nbval-check-output"]}


def test_a_solution_holds_the_masters_code(tmp_path: Path) -> None:
    notebook = build.render(plant(tmp_path, "solutions", EXERCISES).master, "solutions")
    assert sources(notebook)[4:] == [
        "def double(x):\n    return 2 * x",
        'check("9.1", double)',
        "print(double(4))",
    ]


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("chapter", CHAPTER.replace("seed=0", "seed=1"), "first code cell must be"),
        ("chapter", "# %% [markdown]\n# # Toy\n", "first code cell must be"),
        ("chapter", CHAPTER + "\n# %%\n\n# %%\n1\n", r"an empty cell follows\nprint\(1 \+ 1\)"),
        ("exercises", HEAD, r"exercises must be \['9.1'\], in this order, and are \[\]"),
        ("solutions", EXERCISES + '\n# %% exercise="9.1"\n1\n', r"and are \['9.1', '9.1'\]"),
    ],
)
def test_a_bad_master_is_refused(tmp_path: Path, kind: build.Kind, text: str, message: str) -> None:
    with pytest.raises(build.BuildError, match=f"77_toy.py: .*{message}"):
        build.render(plant(tmp_path, kind, text).master, kind)


def test_a_chapter_that_does_not_exist_is_named(tmp_path: Path) -> None:
    plant(tmp_path)
    with pytest.raises(build.BuildError, match="no source named '78_toy'; there are 77_toy"):
        build.targets(tmp_path, only="78_toy")


def test_a_notebook_is_fresh_until_its_source_changes(tmp_path: Path) -> None:
    target = plant(tmp_path)
    assert not target.is_fresh()
    notebook = build.render(target.master, "chapter")
    notebook.cells[3].update(outputs=[new_output("stream", text="2\n")], execution_count=2)
    target.notebook.parent.mkdir()
    nbformat.write(notebook, target.notebook)
    assert target.is_fresh()
    target.master.write_text(CHAPTER.replace("1 + 1", "1 + 2"))
    assert not target.is_fresh()
    target.master.unlink()
    assert build.orphans(tmp_path) == [target.notebook]


# Execution


def test_the_build_runs_and_nbval_compares(tmp_path: Path) -> None:
    """The whole way once, with a figure; then nbval passes, and fails when a number is changed."""
    show = "from matplotlib.figure import Figure\nfigures.show(Figure(figsize=(7, 1)), 'Nothing yet.')\n"
    target = plant(tmp_path, text=CHAPTER + "\n# %%\n" + show)
    seen: list[tuple[int, int]] = []
    size = build.build(target, lambda cell, of: seen.append((cell, of)))
    assert size == target.notebook.stat().st_size
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert [path.name for path in target.notebook.parent.iterdir()] == ["77_toy.ipynb"]
    notebook = build.read(target.notebook)
    assert target.is_fresh() and rules.faults(notebook) == []
    figure, description = notebook.cells[4].outputs
    assert figure.metadata["image/png"] == {"width": 672, "alt": "Nothing yet."}
    assert description.data["text/plain"] == "Nothing yet."

    notebook.cells[3].outputs[0].text = "3\n"
    nbformat.write(notebook, target.notebook.with_name("77_wrong.ipynb"))
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "--nbval-cell-timeout=120"]
    command += [f"--nbval-sanitize-with={SANITIZE}", "-c", os.devnull, "-p", "no:cacheprovider", "--color=no"]
    command.append(str(target.notebook.parent))
    env = build.kernel_environment()
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert "1 failed, 5 passed" in ran.stdout, ran.stdout + ran.stderr
    assert "77_wrong.ipynb::Cell 1" in ran.stdout


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("print(1)\n1 / 0", r"cell \[1\] `print\(1\)` failed:\n(.|\n)*1 / 0\n(.|\n)*ZeroDivisionError"),
        ("import os\nos._exit(3)", r"cell \[1\] `import os` ended its Python process"),
        ("while True:\n    pass", r"cell \[1\] `while True:` took longer than 2 seconds"),
    ],
    ids=["raises", "exits", "loops"],
)
def test_a_cell_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: str, message: str) -> None:
    monkeypatch.setattr(build, "SECONDS_A_CELL", 2)
    notebook = new_notebook(cells=[new_markdown_cell("# Toy"), new_code_cell(cell)])
    with pytest.raises(build.BuildError, match=message):
        build.execute(notebook, tmp_path, lambda cell, of: None)


@pytest.mark.parametrize("ending", ["pass", "1 / 0", "while True:\n    pass"], ids=["ends", "raises", "loops"])
def test_no_kernel_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    monkeypatch.setattr(build, "SECONDS_A_CELL", 2)
    cell = f"import os, pathlib\npathlib.Path('number').write_text(str(os.getpid()))\n{ending}"
    with nullcontext() if ending == "pass" else pytest.raises(build.BuildError):
        build.execute(new_notebook(cells=[new_code_cell(cell)]), tmp_path, lambda cell, of: None)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "number").read_text()), 0)


def test_a_notebook_runs_in_its_folder_with_this_python_and_gains_no_metadata(tmp_path: Path) -> None:
    cell = "import os, sys\nprint(os.getcwd(), sys.executable)"
    notebook = new_notebook(cells=[new_code_cell(cell)], metadata={"language_info": {"name": "python"}})
    executed = build.execute(notebook, tmp_path, lambda cell, of: None)
    assert executed.cells[0].outputs[0].text.split() == [str(tmp_path), sys.executable]
    assert executed.metadata == notebook.metadata
    assert executed.cells[0].metadata == {}
    assert notebook.cells[0].outputs == []


def test_a_notebook_that_breaks_a_rule_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = plant(tmp_path)
    target.notebook.parent.mkdir()
    target.notebook.write_text("the old one")
    monkeypatch.setattr(build, "execute", lambda bare, folder, on_cell: bare)
    with pytest.raises(build.BuildError, match=r"chapters/77_toy.ipynb, cell \[1\] .* count None"):
        build.build(target)
    assert target.notebook.read_text() == "the old one"
    assert [path.name for path in target.notebook.parent.iterdir()] == ["77_toy.ipynb"]


def test_the_command_builds_what_changed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def execute(bare: NotebookNode, folder: Path, on_cell: Callable[[int, int], None]) -> NotebookNode:
        for count, cell in enumerate((cell for cell in bare.cells if cell.cell_type == "code"), start=1):
            cell.update(outputs=[new_output("stream", text="2\n")], execution_count=count)
            on_cell(count, 2)
        return bare

    target = plant(tmp_path)
    monkeypatch.setattr(build, "targets", lambda only: [target])
    monkeypatch.setattr(build, "orphans", lambda: [])
    monkeypatch.setattr(build, "execute", execute)

    def says(check: bool = False, force: bool = False) -> str:
        build.main(check=check, force=force)
        return " ".join(capsys.readouterr().out.split())

    with pytest.raises(build.typer.Exit) as stopped:
        says(check=True)
    assert stopped.value.exit_code == 1
    assert "chapters/77_toy.ipynb differs from its source" in capsys.readouterr().out
    assert re.fullmatch(r"chapters/77_toy.ipynb built in \d+\.\d s, [12] kB", says())
    assert says() == "chapters/77_toy.ipynb up to date"
    assert "built in" in says(force=True)
    assert says(check=True) == "The notebooks are what their sources say, and keep the rules."
    target.notebook.write_text(target.notebook.read_text().replace("2\\n", "/home/ada/x"))
    with pytest.raises(build.typer.Exit):
        says(check=True)
    assert "chapters/77_toy.ipynb, cell [1]" in capsys.readouterr().out
    monkeypatch.setattr(build, "orphans", lambda: [target.notebook])
    with pytest.raises(build.typer.Exit):
        says()
    assert "chapters/77_toy.ipynb has no source any more" in capsys.readouterr().out


# Rules


def good(kind: str = "chapter") -> NotebookNode:
    """A notebook that breaks no rule: two sections, a figure with its description, a check."""
    figure = new_output("display_data", {"image/png": PNG, "text/plain": "<Figure>"})
    words = new_output("display_data", {"text/plain": "Nothing yet."}, metadata={"description": True})
    report = "9.1 double: " + ("checks passed" if kind == "solutions" else "not attempted")
    tags = {"tags": ["nbval-check-output"]}
    cells = [
        new_code_cell("setup()"),
        new_markdown_cell("## One"),
        new_code_cell("1 + 1", outputs=[figure, words, new_output("stream", text="2\n")], metadata=tags),
        new_markdown_cell("## Two"),
        new_code_cell('check("9.1", double)', outputs=[new_output("stream", text=report)], metadata=tags),
    ]
    for count, index in enumerate((0, 2, 4), start=1):
        cells[index].execution_count = count
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "memcourse": {"version": "0.1.0", "chapter": "77_toy", "kind": kind},
    }
    return new_notebook(cells=cells, metadata=metadata)


def outputs(*planted: NotebookNode) -> Callable[[NotebookNode], None]:
    """Plant these outputs in the first section's cell, before a line that is compared."""
    line = new_output("stream", text="2\n")
    return lambda notebook: notebook.cells[2].update(outputs=[*planted, line])


def printed(text: str) -> Callable[[NotebookNode], None]:
    return outputs(new_output("stream", text=text))


def a_figure(inches: float = figures.WIDTH, dpi: float = figures.DPI, mime: str = "image/png") -> NotebookNode:
    drawn = io.BytesIO()
    Figure(figsize=(inches, 1)).savefig(drawn, format="png", dpi=dpi)
    return new_output("display_data", {mime: base64.b64encode(drawn.getvalue()).decode()})


DESCRIBED = new_output("display_data", {"text/plain": "A line."}, metadata={"description": True})
PLANTED: list[tuple[str, str, Callable[[NotebookNode], object], str]] = [  # rule, kind, what is planted, what is said
    (
        "cells_ran_once_in_order",
        "chapter",
        lambda n: n.cells[2].update(execution_count=None),
        "count None, and should",
    ),
    (
        "cells_ran_once_in_order",
        "chapter",
        lambda n: n.cells[4].update(execution_count=4),
        "count 4, and should have 3",
    ),
    (
        "no_errors",
        "chapter",
        outputs(new_output("error", ename="KeyError", evalue="'k'", traceback=[])),
        "KeyError: 'k'",
    ),
    (
        "nothing_on_stderr",
        "chapter",
        outputs(new_output("stream", name="stderr", text="50%|##")),
        r"stderr: 50%\|##",
    ),
    ("no_path_of_a_machine", "chapter", printed("saved in /home/ada/model.pt"), "shows a path .*/home/"),
    ("no_path_of_a_machine", "chapter", printed("File '/Users/ada/x.py'"), "/Users/"),
    ("no_path_of_a_machine", "chapter", printed(r"C:\Users\ada"), r"C:\\Users"),
    ("no_path_of_a_machine", "chapter", printed("in lib/site-packages/torch"), "site-packages"),
    ("no_path_of_a_machine", "chapter", printed("/tmp/ipykernel_12/3.py:1: warning"), "/tmp"),
    ("no_path_of_a_machine", "chapter", printed(f"read {build.ROOT}"), "shows a path"),
    ("no_path_of_a_machine", "chapter", printed(f"in {Path.home()}"), "shows a path"),
    ("sections_are_compared", "chapter", lambda n: n.cells[4].update(outputs=[]), "'Two' has no output"),
    ("sections_are_compared", "chapter", lambda n: n.cells[2].outputs.pop(), "'One' has no output"),
    (
        "sections_are_compared",
        "chapter",
        lambda n: n.cells[2].metadata.tags.append("nbval-ignore-output"),
        "'One'",
    ),
    ("sections_are_compared", "exercises", lambda n: n.cells[4].metadata.tags.clear(), "'Two'"),
    (
        "sections_are_compared",
        "chapter",
        lambda n: n.cells.append(new_markdown_cell("text\n\n## Three")),
        "'Three'",
    ),
    ("sections_are_compared", "chapter", lambda n: [n.cells.pop(3), n.cells.pop(1)], "no section"),
    (
        "markers_are_tags",
        "chapter",
        lambda n: n.cells[2].update(source="# NBVAL_SKIP\n1"),
        "holds an nbval comment",
    ),
    ("figures_are_uniform", "chapter", outputs(a_figure(dpi=72), DESCRIBED), "72 dpi and 504 pixels"),
    ("figures_are_uniform", "chapter", outputs(a_figure(inches=8), DESCRIBED), "144 dpi and 1152 pixels"),
    ("figures_are_uniform", "chapter", outputs(a_figure(mime="image/svg+xml")), r"shows image/svg\+xml"),
    ("figures_are_described", "chapter", lambda n: n.cells[2].outputs.pop(1), "figure without a description"),
    ("figures_are_described", "chapter", outputs(a_figure(), a_figure(), DESCRIBED), "figure without"),
    ("metadata_is_ours", "chapter", lambda n: n.metadata.language_info.update(version="3.11.2"), "3.11.2"),
    ("metadata_is_ours", "chapter", lambda n: n.metadata.update(widgets={}), "widgets"),
    (
        "metadata_is_ours",
        "chapter",
        lambda n: n.cells[1].metadata.update(execution="now"),
        "markdown cell `## One`",
    ),
    (
        "checks_say_what_they_should",
        "solutions",
        lambda n: n.cells[4].outputs[0].update(text="wrong"),
        "did not pass",
    ),
    (
        "checks_say_what_they_should",
        "exercises",
        lambda n: n.cells[4].outputs[0].update(text="checks passed"),
        "passed, unanswered",
    ),
    ("small_enough", "chapter", printed("x" * rules.MAX_BYTES), r"has 4\d\d kB, and must be under 400 kB"),
]


@pytest.mark.parametrize("kind", ["chapter", "exercises", "solutions"])
def test_a_good_notebook_breaks_no_rule(kind: str) -> None:
    notebook = good(kind)
    nbformat.validate(notebook)
    assert rules.faults(notebook) == []


@pytest.mark.parametrize(("rule", "kind", "spoil", "message"), PLANTED)
def test_a_planted_fault_breaks_its_rule_and_no_other(rule: str, kind: str, spoil, message: str) -> None:
    notebook = good(kind)
    spoil(notebook)
    broken = {each.__name__: list(each(notebook)) for each in rules.RULES}
    assert [name for name, found in broken.items() if found] == [rule]
    assert len(broken[rule]) == 1
    assert re.search(message, broken[rule][0])


def test_every_rule_is_shown_to_fail() -> None:
    assert {rule.__name__ for rule in rules.RULES} == {planted[0] for planted in PLANTED}


@pytest.mark.parametrize("text", ["and/or", "n/a/home/b", "https://docs.org/home/x", "see ~/tmp/x", "1/work/2"])
def test_words_that_look_like_paths_are_let_through(text: str) -> None:
    notebook = good()
    printed(text)(notebook)
    assert rules.faults(notebook) == []
