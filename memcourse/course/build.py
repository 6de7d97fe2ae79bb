"""source/ -> chapters/, exercises/, solutions/: `python -m memcourse.course.build`, or `make notebooks`.

`render` turns a master (jupytext percent Python) into a notebook without outputs. The build executes it,
holds it to the rules and writes it; `--check` and the tests compare committed notebooks with `render`:
sources with sources, never fresh outputs with committed ones.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jupytext
import nbformat
import typer
from ipykernel.kernelspec import RESOURCES, get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from rich.console import Console
from rich.status import Status
from rich.text import Text

from memcourse import __version__
from memcourse.course import checks, rules
from memcourse.course.exercise import Exercise

ROOT = Path(__file__).resolve().parents[2]
SECONDS_A_CELL = 120
FIRST_CELL = f"""\
from memcourse.course import check, figures, hint, setup
device = setup("{__version__}", seed=0)"""

Kind = Literal["chapter", "exercises", "solutions"]
FOLDERS: dict[Kind, tuple[str, str]] = {  # kind -> folder of the masters, folder of the notebooks
    "chapter": ("source/chapters", "chapters"),
    "exercises": ("source/exercises", "exercises"),
    "solutions": ("source/exercises", "solutions"),
}


class BuildError(Exception):
    """A master or a notebook that cannot go into the course; the message names file, cell and fault."""


@dataclass(frozen=True)
class Target:
    """One notebook, and the master it comes from."""

    master: Path
    notebook: Path
    kind: Kind

    @property
    def name(self) -> str:
        return f"{self.notebook.parent.name}/{self.notebook.name}"

    def is_fresh(self) -> bool:
        """Whether the committed notebook, its outputs aside, is what the master renders to."""
        rendered = render(self.master, self.kind)
        return self.notebook.exists() and without_outputs(read(self.notebook)) == rendered


def targets(root: Path = ROOT, only: str | None = None) -> list[Target]:
    """Every notebook that the masters ask for, of all chapters or of one (BuildError if it is unknown)."""
    found = [
        Target(master, root / notebooks / f"{master.stem}.ipynb", kind)
        for kind, (masters, notebooks) in FOLDERS.items()
        for master in sorted((root / masters).glob("*.py"))
    ]
    if only is not None:
        names = sorted({target.master.stem for target in found})
        if only not in names:
            raise BuildError(f"there is no source named {only!r}; there are {', '.join(names) or 'none'}")
        found = [target for target in found if target.master.stem == only]
    return sorted(found, key=lambda target: target.master.stem)


def orphans(root: Path = ROOT) -> list[Path]:
    """Notebooks whose master is gone."""
    return [
        notebook
        for masters, notebooks in FOLDERS.values()
        for notebook in sorted((root / notebooks).glob("*.ipynb"))
        if not (root / masters / f"{notebook.stem}.py").exists()
    ]


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def without_outputs(notebook: NotebookNode) -> NotebookNode:
    """A copy of the notebook as it was before it ran."""
    bare = nbformat.from_dict(notebook)
    for cell in bare.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    return bare


def render(master: Path, kind: Kind) -> NotebookNode:
    """The notebook of this kind that a master asks for, with exercises written out and without outputs.

    Raises BuildError for a wrong first code cell, an empty cell, and exercises that are not the chapter's.
    """
    cells: list[NotebookNode] = []
    asked: list[str] = []
    for cell in jupytext.read(master, fmt="py:percent").cells:
        tags = cell.metadata.get("tags", [])
        if not cell.source.strip():
            before = cells[-1].source if cells else "the start"
            raise BuildError(f"{master.name}: an empty cell follows\n{before}")
        if "exercise" in cell.metadata:
            exercise = checks.find(cell.metadata["exercise"])
            asked.append(exercise.id)
            cells += _exercise_cells(exercise, cell.source, kind)
        elif kind == "exercises" and "solution-only" in tags:
            continue
        else:
            new = new_code_cell if cell.cell_type == "code" else new_markdown_cell
            cells.append(new(cell.source, metadata={"tags": tags} if tags else {}))
    expected = [] if kind == "chapter" else [exercise.id for exercise in checks.exercises(master.stem)]
    if asked != expected:
        raise BuildError(f"{master.name}: the exercises must be {expected}, in this order, and are {asked}")
    first = next((cell.source for cell in cells if cell.cell_type == "code"), None)
    if first != FIRST_CELL:
        raise BuildError(f"{master.name}: the first code cell must be\n{FIRST_CELL}\nand is\n{first}")
    _name_cells(cells)
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "memcourse": {"version": __version__, "chapter": master.stem, "kind": kind},
    }
    return new_notebook(cells=cells, metadata=metadata)


def _exercise_cells(exercise: Exercise, solution: str, kind: Kind) -> Iterator[NotebookNode]:
    """The question, the stub or the solution, and the check."""
    facts = [
        exercise.kind,
        f"{exercise.points} point{'s' * (exercise.points != 1)}",
        f"about {exercise.minutes} minute{'s' * (exercise.minutes != 1)}",
        exercise.difficulty,
    ]
    yield new_markdown_cell(
        f"### {exercise.id} {exercise.title}\n\n*{' · '.join(facts)}*\n\n{exercise.question.strip()}\n\n"
        f'Stuck? `hint("{exercise.id}")` gives the next of three hints.'
    )
    yield new_code_cell((exercise.stub if kind == "exercises" else solution).strip())
    compared = {"tags": ["nbval-check-output"]} if kind == "exercises" else {}
    yield new_code_cell(f'check("{exercise.id}", {exercise.name})', metadata=compared)


def _name_cells(cells: list[NotebookNode]) -> None:
    """Ids that follow from the text alone, so that a rebuild changes only what has changed."""
    seen: dict[str, int] = {}
    for cell in cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell.id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"


class _ThisInterpreter(KernelSpecManager):
    """The kernel of the Python that runs the build, whatever `python3` is called elsewhere on the machine."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())


def kernel_environment() -> dict[str, str]:
    """Figures inline, and the memcourse of this tree, whichever is installed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONPATH": path}


def execute(notebook: NotebookNode, folder: Path, on_cell: Callable[[int, int], None]) -> NotebookNode:
    """A copy of the notebook with outputs, run in `folder`; `on_cell(i, n)` is called before cell i of n.

    Raises BuildError naming the cell that fails, with its traceback.
    """
    executed = nbformat.from_dict(notebook)
    running, fault = 0, ""

    def started(cell: NotebookNode, cell_index: int) -> None:
        nonlocal running
        running = cell_index
        on_cell(cell_index + 1, len(executed.cells))

    client = NotebookClient(
        executed,
        km=AsyncKernelManager(kernel_name="python3", kernel_spec_manager=_ThisInterpreter()),
        timeout=SECONDS_A_CELL,
        shutdown_kernel="immediate",  # one that loops hears no request
        resources={"metadata": {"path": str(folder)}},
        record_timing=False,
        coalesce_streams=True,
        on_cell_execute=started,
    )
    try:
        # The kernel's own warnings go nowhere; what a cell writes on stderr is one of its outputs.
        client.execute(cleanup_kc=True, env=kernel_environment(), stderr=subprocess.DEVNULL)
    except CellExecutionError as error:
        fault = f"failed:\n{Text.from_ansi(error.traceback).plain}"
    except CellTimeoutError:
        fault = f"took longer than {SECONDS_A_CELL} seconds"
    except DeadKernelError:
        fault = "ended its Python process, or the build was interrupted"
    if fault:
        raise BuildError(f"{rules.place(executed, running)} {fault}")
    executed.metadata = nbformat.from_dict(notebook.metadata)  # without what the kernel says about itself
    return executed


def build(target: Target, on_cell: Callable[[int, int], None] = lambda i, n: None) -> int:
    """Make one notebook and return its size in bytes.  A BuildError leaves the old one as it is."""
    bare = render(target.master, target.kind)
    target.notebook.parent.mkdir(parents=True, exist_ok=True)
    try:
        notebook = execute(bare, target.notebook.parent, on_cell)
    except BuildError as error:
        raise BuildError(f"{target.name}, {error}") from None
    if faults := rules.faults(notebook):
        raise BuildError("\n".join(f"{target.name}, {fault}" for fault in faults))
    text = nbformat.writes(notebook) + "\n"
    beside = target.notebook.with_name(f".{target.notebook.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(target.notebook)
    return len(text.encode())


def main(
    only: Annotated[str | None, typer.Option(help="One chapter, such as 01_attention.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Build nothing; say what is wrong.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Build what is up to date too.")] = False,
) -> None:
    """Make the notebooks whose source has changed."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        _check(console, only) if check else _build(console, only, force)
    except BuildError as error:
        console.print(str(error), markup=False, style="red")
        raise typer.Exit(1) from None


def _check(console: Console, only: str | None) -> None:
    faults = [f"{path.parent.name}/{path.name} has no source any more" for path in orphans()]
    for target in targets(only=only):
        if not target.is_fresh():
            faults.append(f"{target.name} differs from its source; run `make notebooks`")
        if target.notebook.exists():
            faults += [f"{target.name}, {fault}" for fault in rules.faults(read(target.notebook))]
    if faults:
        raise BuildError("\n".join(faults))
    console.print("The notebooks are what their sources say, and keep the rules.")


def _build(console: Console, only: str | None, force: bool) -> None:
    for target in targets(only=only):
        if target.is_fresh() and not force:
            console.print(f"{target.name:<32} up to date")
            continue
        start = time.perf_counter()
        with console.status(target.name) as status:
            size = build(target, partial(_show_progress, status, target.name))
        console.print(f"{target.name:<32} built in {time.perf_counter() - start:.1f} s, {size / 1000:.0f} kB")
    for path in orphans():
        raise BuildError(f"{path.parent.name}/{path.name} has no source any more; delete it")


def _show_progress(status: Status, name: str, cell: int, of: int) -> None:
    status.update(f"{name}  cell {cell} of {of}")


if __name__ == "__main__":
    typer.run(main)
