"""What must be true of every notebook of the course, as functions that yield a sentence for each fault.

The build refuses a notebook that breaks a rule, and the tests hold the committed notebooks to the same rules.
"""

from __future__ import annotations

import base64
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from memcourse.course.figures import DPI, WIDTH

MAX_BYTES = 400_000
UNCHECKED = {"nbval-ignore-output", "nbval-skip"}  # cell tags under which nbval compares nothing
# A path at a word's start: "n/a/home/b" and base64 hold such letters too.
SOMEONES_PATH = r"(?<![\w.~])/(home|Users|root|work|tmp|var/folders)/|[A-Z]:\\+Users\\+|site-packages"


def faults(notebook: NotebookNode) -> list[str]:
    """Every fault of an executed notebook, each naming its cell."""
    return [fault for rule in RULES for fault in rule(notebook)]


def place(notebook: NotebookNode, index: int) -> str:
    """How a person finds a cell: its number among the code cells, as Jupyter shows it, and its first line."""
    cell = notebook.cells[index]
    first_line = cell.source.strip().partition("\n")[0]
    if cell.cell_type != "code":
        return f"markdown cell `{first_line}`"
    number = sum(before.cell_type == "code" for before in notebook.cells[: index + 1])
    return f"cell [{number}] `{first_line}`"


def cells_ran_once_in_order(notebook: NotebookNode) -> Iterator[str]:
    """nbval passes a cell without a count unchecked."""
    for number, index in enumerate(_code(notebook), start=1):
        count = notebook.cells[index].execution_count
        if count != number:
            yield f"{place(notebook, index)} has the execution count {count}, and should have {number}"


def no_errors(notebook: NotebookNode) -> Iterator[str]:
    for index in _code(notebook):
        for output in notebook.cells[index].outputs:
            if output.output_type == "error":
                yield f"{place(notebook, index)} ended in {output.ename}: {output.evalue}"


def nothing_on_stderr(notebook: NotebookNode) -> Iterator[str]:
    """Warnings and progress bars differ from machine to machine, and nbval compares them."""
    for index in _code(notebook):
        for output in notebook.cells[index].outputs:
            if output.output_type == "stream" and output.name == "stderr":
                yield f"{place(notebook, index)} wrote on stderr: {output.text.strip()[:200]}"


def no_path_of_a_machine(notebook: NotebookNode) -> Iterator[str]:
    """Neither a path that looks like somebody's, nor one of the machine that runs this."""
    here = {str(Path.home()), str(Path(__file__).resolve().parents[2]), sys.prefix, tempfile.gettempdir()}
    ours = [rf"(?<![\w.~]){re.escape(path)}(?![\w-])" for path in sorted(here) if len(Path(path).parts) > 1]
    pattern = re.compile("|".join([*ours, SOMEONES_PATH]))
    for index in _code(notebook):
        for output in notebook.cells[index].outputs:
            if found := pattern.search(_words(output)):
                yield f"{place(notebook, index)} shows a path of the machine that ran it: {found[0]}"


def sections_are_compared(notebook: NotebookNode) -> Iterator[str]:
    """Each `## ` section has an output that nbval compares: more than a figure and its description."""
    kind = notebook.metadata.get("memcourse", {}).get("kind")
    compared: dict[str, bool] = {}
    section = None
    for cell in notebook.cells:
        tags = set(cell.metadata.get("tags", []))
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^## (.+)$", cell.source, re.MULTILINE):
                section = heading
                compared[section] = False
        elif section is not None and cell.cell_type == "code":
            # Exercises run under --nbval-lax, which compares what is tagged, and nothing else.
            checked = "nbval-check-output" in tags if kind == "exercises" else not tags & UNCHECKED
            compared[section] |= checked and any(_says_something(output) for output in cell.outputs)
    if not compared:
        yield "the notebook has no section (a line that begins with '## ')"
    for section, so in compared.items():
        if not so:
            yield f"section {section!r} has no output that nbval compares: let a cell print what it shows"


def markers_are_tags(notebook: NotebookNode) -> Iterator[str]:
    """nbval's comments work only alone on their line; a tag always does."""
    for index in _code(notebook):
        if re.search(r"#\s*(NBVAL|PYTEST_VALIDATE)_", notebook.cells[index].source):
            yield f"{place(notebook, index)} holds an nbval comment; use a cell tag, which always works"


def figures_are_uniform(notebook: NotebookNode) -> Iterator[str]:
    """PNG alone, at the course's dpi, and no wider than the page."""
    from PIL import Image

    for index in _code(notebook):
        for output in notebook.cells[index].outputs:
            data = output.get("data", {})
            for other in sorted(mime for mime in data if mime.startswith("image/") and mime != "image/png"):
                yield f"{place(notebook, index)} shows {other}; figures are PNG"
            if "image/png" not in data:
                continue
            image = Image.open(io.BytesIO(base64.b64decode(data["image/png"])))
            dpi = round(image.info.get("dpi", (0, 0))[0])
            if dpi != DPI or image.width > WIDTH * DPI:
                has = f"{dpi} dpi and {image.width} pixels"
                may = f"{DPI} dpi and {WIDTH * DPI:.0f} pixels at most"
                yield f"{place(notebook, index)} shows a figure of {has}; figures have {may}"


def figures_are_described(notebook: NotebookNode) -> Iterator[str]:
    """Below each figure stands a line that says what it shows: `figures.show` sees to it."""
    for index in _code(notebook):
        outputs = notebook.cells[index].outputs
        for output, below in zip_longest(outputs, outputs[1:]):
            if "image/png" in output.get("data", {}) and not (below and _is_description(below)):
                yield f"{place(notebook, index)} shows a figure without a description; use figures.show"


def metadata_is_ours(notebook: NotebookNode) -> Iterator[str]:
    """Nothing of the machine: `memcourse`, the kernel's and the language's name; of cells the tags."""
    expected = {
        "kernelspec": {"display_name", "language", "name"},
        "language_info": {"name"},
        "memcourse": {"version", "chapter", "kind"},
    }
    if {name: set(held) for name, held in notebook.metadata.items()} != expected:
        yield f"the notebook's metadata must hold {expected}, and is {json.dumps(notebook.metadata)}"
    for index, cell in enumerate(notebook.cells):
        if set(cell.metadata) - {"tags"}:
            yield f"{place(notebook, index)} has metadata besides its tags: {json.dumps(cell.metadata)}"


def checks_say_what_they_should(notebook: NotebookNode) -> Iterator[str]:
    """Every check of a solution passes, and none of an untouched exercise."""
    kind = notebook.metadata.get("memcourse", {}).get("kind")
    for index in _code(notebook) if kind in ("exercises", "solutions") else ():
        cell = notebook.cells[index]
        passed = any("checks passed" in _words(output) for output in cell.outputs)
        if cell.source.startswith('check("') and passed != (kind == "solutions"):
            yield f"{place(notebook, index)} {'passed, unanswered' if passed else 'did not pass'}"


def small_enough(notebook: NotebookNode) -> Iterator[str]:
    size = len(nbformat.writes(notebook).encode())
    if size >= MAX_BYTES:
        yield f"the notebook has {size / 1000:.0f} kB, and must be under {MAX_BYTES / 1000:.0f} kB"


RULES: tuple[Callable[[NotebookNode], Iterator[str]], ...] = (
    cells_ran_once_in_order,
    no_errors,
    nothing_on_stderr,
    no_path_of_a_machine,
    sections_are_compared,
    markers_are_tags,
    figures_are_uniform,
    figures_are_described,
    metadata_is_ours,
    checks_say_what_they_should,
    small_enough,
)


def _code(notebook: NotebookNode) -> list[int]:
    return [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]


def _words(output: NotebookNode) -> str:
    """Everything in an output that is not an image."""
    data = {mime: shown for mime, shown in output.get("data", {}).items() if not mime.startswith("image/")}
    return "\n".join([output.get("text", ""), *output.get("traceback", []), *map(str, data.values())])


def _is_description(output: NotebookNode) -> bool:
    marked = output.get("metadata", {}).get("description", False)
    return bool(marked) and "\n" not in output.data["text/plain"].strip()


def _says_something(output: NotebookNode) -> bool:
    """Words that are neither a figure's nor its description's, nor the name of an object at an address."""
    if output.output_type == "stream":
        return bool(output.text.strip())
    text = output.get("data", {}).get("text/plain", "")
    return bool(text.strip()) and not text.startswith("<") and not _is_description(output)
