"""Figures: fixed size, labels that cannot be left out or overlap, and words below each."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402

from memcourse.course import figures  # noqa: E402

WORDS = "the cat sat on the mat because it was tired".split()
CAUSAL = np.tril(np.ones((10, 10), dtype=bool))
EVEN = CAUSAL / CAUSAL.sum(axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with matplotlib.rc_context():
        figures.use_style()
        yield


def a_heat_map(title: str = "Each word looks back evenly") -> Figure:
    return figures.weights(EVEN, WORDS, WORDS, title=title, mask=CAUSAL)


def some_curves(title: str = "The loss falls") -> Figure:
    x = np.arange(1, 9)
    noise = np.random.default_rng(0).normal(size=(3, 8)) / 10
    series = {f"memory {i}": (x, np.exp(-x / (i + 2)) + noise) for i in range(6)}
    return figures.curves(series, x="steps", y="loss (nats)", title=title, log_x=True, levels={"chance": 0.5})


def some_text(title: str = "Tired looks at cat") -> Figure:
    return figures.text_weights(WORDS * 4, np.full(40, 1 / 40), query=39, title=title)


ALL = pytest.mark.parametrize("draw", [a_heat_map, some_curves, some_text])


@ALL
def test_every_figure_is_a_png_of_one_width_and_dpi(draw) -> None:
    png, width = figures.to_png(draw())
    image = Image.open(io.BytesIO(png))
    assert image.width == width == round(figures.WIDTH * figures.DPI)
    assert round(image.info["dpi"][0]) == figures.DPI
    assert len(png) < 60_000


@ALL
def test_nothing_is_cut_off(draw) -> None:
    fig = draw("A title of so many words that it cannot stand in one line of a figure as wide as the course's are")
    fig.draw_without_rendering()
    box = fig.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0
    assert box.x1 <= fig.get_figwidth() + 0.01 and box.y1 <= fig.get_figheight() + 0.01


@ALL
def test_a_figure_has_a_title(draw) -> None:
    assert draw("Something to see").axes[0].get_title("left") == "Something to see"


def test_a_heat_map_names_its_axes_words_and_numbers() -> None:
    fig = figures.weights([[0.25, 0.75]], ["red"], ["apple", "sky"], title="Red finds the apple")
    ax, bar = fig.axes
    assert (ax.get_xlabel(), ax.get_ylabel(), bar.get_ylabel()) == ("key", "query", "weight (rows sum to 1)")
    assert [label.get_text() for label in ax.get_xticklabels()] == ["apple", "sky"]
    assert [text.get_text() for text in ax.texts] == ["0.25", "0.75"]


def test_masked_cells_are_hatched_and_only_they() -> None:
    hatched = {
        (patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in a_heat_map().axes[0].patches if patch.get_hatch()
    }
    assert hatched == {(column, row) for row, column in np.argwhere(~CAUSAL)}


def test_curves_show_mean_and_spread_and_look_different() -> None:
    fig = figures.curves({"a": ([1, 2], [[0, 4], [2, 8]]), "b": ([1, 2], [[9, 9], [9, 9]])}, x="x", y="y", title="t")
    ax = fig.axes[0]
    first, second = ax.lines
    assert first.get_ydata().tolist() == [1, 6]
    assert ax.collections[0].get_datalim(ax.transData).bounds == (1, 0, 1, 8)  # from 0, the lowest, to 8
    assert first.get_linestyle() != second.get_linestyle()
    assert first.get_marker() != second.get_marker()
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "b",
        "a",
    ]  # as the lines end, from the top


def test_lines_differ_without_colour() -> None:
    look = [(dash, marker) for _, dash, marker in figures.LINES]
    assert len(set(look)) == len(look)


def test_text_wraps_and_frames_its_query() -> None:
    ax = some_text().axes[0]
    rows = {text.get_position()[1] for text in ax.texts}
    assert rows == {0, 1, 2}
    frames = [patch for patch in ax.patches if not patch.get_fill()]
    assert len(frames) == 1
    last = ax.texts[-1].get_position()
    assert frames[0].get_x() < last[0] < frames[0].get_x() + frames[0].get_width()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: figures.weights(EVEN, WORDS, WORDS[:3], title="t"),
            r"\(10 queries, 3 keys\), got \(10, 10\)",
        ),
        (lambda: figures.weights(EVEN, WORDS, WORDS, title="t", mask=[True]), r"mask .* got \(1,\)"),
        (lambda: figures.curves({}, x="x", y="y", title="t"), "1 to 6 lines, got 0"),
        (
            lambda: figures.curves({"a": ([1, 2], [3, 4])}, x="x", y="y", title="t"),
            r"'a' must be .*got \(2,\) and \(2,\)",
        ),
        (lambda: figures.text_weights(WORDS, [1.0], query=0, title="t"), r"10 tokens, got shape \(1,\)"),
        (lambda: figures.text_weights(["a"], [1.0], query=1, title="t"), "from 0 to 0, got 1"),
        (lambda: figures.show(a_heat_map(), "two\nlines"), "one line .* got 'two"),
        (lambda: figures.show(a_heat_map(), " "), "one line"),
    ],
)
def test_bad_input_is_named(draw, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


def test_a_curve_needs_a_name_of_its_own() -> None:
    with pytest.raises(ValueError, match="names of their own"):
        figures.curves({"a": ([1], [[1]])}, x="x", y="y", title="t", levels={"a": 0.5})


def test_outside_a_notebook_the_description_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    figures.show(a_heat_map(), "Weights fall evenly on what came before.")
    assert capsys.readouterr().out == "Weights fall evenly on what came before.\n"


def test_the_first_cell_of_a_notebook_works_without_matplotlib() -> None:
    program = "import sys; from memcourse.course import figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])
