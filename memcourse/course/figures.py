"""The look of the course's figures, and the few figures that chapters share.

Every function asks for its title, so that no figure goes without. Colours are Okabe and Ito's for lines (each
with its own dash and marker) and cividis for maps: they differ in grey print and for colour-blind readers.
matplotlib is imported when a figure is drawn, so that checks work where it is not installed.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

WIDTH = 7.0  # inches, of every figure
DPI = 144  # pixels per inch in the file
ON_PAGE = 96  # pixels per inch on the page: the file is finer, for sharp screens
INK, PALE = "#222222", "#dddddd"
LINES = (  # colour, dash, marker
    ("#0072B2", "-", "o"),
    ("#D55E00", (0, (5, 2)), "s"),
    ("#009E73", (0, (1, 1.2)), "^"),
    ("#000000", (0, (6, 1.5, 1, 1.5)), "D"),
    ("#CC79A7", (0, (3, 1, 1, 1, 1, 1)), "v"),
    ("#56B4E9", (0, (8, 3)), "P"),
)
LEVELS = (":", "--", "-.")  # dashes of the thin grey lines
STYLE: dict[Any, Any] = {
    "figure.figsize": (WIDTH, 3.6),
    "figure.dpi": DPI,
    "figure.constrained_layout.use": True,
    "savefig.dpi": DPI,
    "font.family": "DejaVu Sans",  # ships with matplotlib, so it is the same everywhere
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "image.cmap": "cividis",
}


def use_style() -> None:
    """Make every matplotlib figure of this session look like the course's, the reader's own among them."""
    import matplotlib
    from cycler import cycler

    colors, dashes, markers = zip(*LINES, strict=True)
    cycle = cycler(color=colors) + cycler(linestyle=dashes) + cycler(marker=markers)
    matplotlib.rcParams.update({**STYLE, "axes.prop_cycle": cycle})


def show(fig: Figure, description: str) -> None:
    """Display the figure as a PNG with its description, one line, below it, and close it.

    Outside a notebook only the description is printed. Raises ValueError where it is not one line.
    """
    if not description.strip() or "\n" in description:
        raise ValueError(f"description must be one line that says what the figure shows, got {description!r}")
    from IPython import get_ipython
    from IPython.display import display
    from matplotlib import pyplot

    pyplot.close(fig)
    if get_ipython() is None:
        print(description)
        return
    png, width = to_png(fig)
    shown = {"width": round(width * ON_PAGE / DPI), "alt": description}
    display({"image/png": png, "text/plain": "<Figure>"}, raw=True, metadata={"image/png": shown})
    words = {"text/markdown": description, "text/plain": description}
    display(words, raw=True, metadata={"description": True})


def to_png(fig: Figure) -> tuple[bytes, int]:
    """The figure as PNG with a palette of 128 colours (a quarter of the bytes), and its width in pixels."""
    from PIL import Image

    drawn = io.BytesIO()
    fig.savefig(drawn, format="png", dpi=DPI)
    # Maximum coverage keeps the rare colours exact, which here are the data.
    few: dict[str, Any] = {"colors": 128, "method": Image.Quantize.MAXCOVERAGE, "dither": Image.Dither.NONE}
    image = Image.open(drawn).convert("RGB").quantize(**few)
    small = io.BytesIO()
    image.save(small, format="png", dpi=(DPI, DPI), optimize=True)
    return small.getvalue(), image.width


def weights(
    weights: ArrayLike,
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    title: str,
    query_label: str = "query",
    key_label: str = "key",
    value_label: str = "weight (rows sum to 1)",
    mask: ArrayLike | None = None,
) -> Figure:
    """Heat map of weights (T, S): a row for each of T queries, a column for each of S keys.

    `mask` (T, S) is True where a query may look; the other cells are hatched. Up to 64 cells show numbers.
    Raises ValueError where words, mask and weights do not fit each other.
    """
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    table = np.asarray(weights, dtype=np.float64)  # (T, S)
    may_look = np.ones(table.shape, dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
    if table.shape != (len(queries), len(keys)):
        raise ValueError(f"weights must be ({len(queries)} queries, {len(keys)} keys), got {table.shape}")
    if may_look.shape != table.shape:
        raise ValueError(f"mask must have the shape of weights, {table.shape}, got {may_look.shape}")

    rows, columns = table.shape
    height = min(7.0, max(2.5, 1.5 + 0.3 * rows))
    fig, ax = _axes(height, title=title, x=key_label, y=query_label)
    high = max(float(table[may_look].max(initial=0.0)), 1e-12)
    shown = np.where(may_look, table, np.nan)
    image = ax.imshow(shown, norm=Normalize(0.0, high), cmap="cividis", aspect="auto")
    hatched: dict[str, Any] = {"facecolor": "white", "edgecolor": "#999999", "hatch": "////", "linewidth": 0}
    for row, column in np.argwhere(~may_look):
        ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **hatched))
    if table.size <= 64:
        for row, column in np.argwhere(may_look):
            ink = "black" if table[row, column] > 0.55 * high else "white"
            ax.text(column, row, f"{table[row, column]:.2f}", ha="center", va="center", fontsize=9, color=ink)
    _label_ticks(ax, queries, keys)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    fig.colorbar(image, ax=ax, label=value_label, pad=0.02)
    return fig


def curves(
    series: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    x: str,
    y: str,
    title: str,
    log_x: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """A line for each name: its x values (P,) and y values (seeds, P).

    The line is the mean over seeds, and its band goes from the lowest seed to the highest. `levels` are up to
    three named heights to compare with (chance, a paper's number), drawn as thin grey lines.
    Raises ValueError for a series whose y is not (seeds, P), and for more lines than there are looks.
    """
    if not 1 <= len(series) <= len(LINES):
        raise ValueError(f"series must hold 1 to {len(LINES)} lines, got {len(series)}")
    levels = levels or {}
    if len(levels) > len(LEVELS) or levels.keys() & series.keys():
        raise ValueError(f"levels must be up to {len(LEVELS)}, with names of their own, got {list(levels)}")
    fig, ax = _axes(3.6, title=title, x=x, y=y)
    heights: dict[str, float] = {}  # of each line at its right end
    for (name, (at, values)), (color, dash, marker) in zip(series.items(), LINES, strict=False):
        places = np.asarray(at, dtype=np.float64)  # (P,)
        table = np.asarray(values, dtype=np.float64)  # (seeds, P)
        if table.ndim != 2 or places.shape != table.shape[1:]:
            shapes = f"{places.shape} and {table.shape}"
            raise ValueError(f"series {name!r} must be x (P,) and y (seeds, P), got {shapes}")
        mean = table.mean(axis=0)
        every = math.ceil(len(places) / 12)
        ax.plot(places, mean, color=color, linestyle=dash, marker=marker, markevery=every, label=name)
        ax.fill_between(places, table.min(axis=0), table.max(axis=0), color=color, alpha=0.2, linewidth=0)
        heights[name] = float(mean[-1])
    for (name, level), dash in zip(levels.items(), LEVELS, strict=False):
        ax.axhline(level, color="#777777", linestyle=dash, linewidth=1.2, zorder=1, label=name)
        heights[name] = level
    if log_x:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    handles = sorted(ax.get_legend_handles_labels()[0], key=lambda line: -heights[str(line.get_label())])
    fig.legend(handles=handles, loc="outside right center")  # in the order of the lines' right ends
    return fig


def text_weights(
    tokens: Sequence[str],
    weights: ArrayLike,
    *,
    query: int,
    title: str,
    value_label: str = "weight (they sum to 1)",
    separator: str = " ",
) -> Figure:
    """The tokens as running text, each the darker the more the token at index `query` looks at it.

    weights: (len(tokens),). The query is framed. `separator` stands between tokens; "" suits characters.
    Raises ValueError where weights and tokens do not fit each other, or the query is not one of them.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.patches import Rectangle

    looked = np.asarray(weights, dtype=np.float64)  # (len(tokens),)
    if looked.shape != (len(tokens),):
        raise ValueError(f"weights must be one for each of {len(tokens)} tokens, got shape {looked.shape}")
    if not 0 <= query < len(tokens):
        raise ValueError(f"query must be an index from 0 to {len(tokens) - 1}, got {query}")

    line_length, pad = 76, 0.25 if separator else 0.0  # in letters
    words = [token.replace("\n", "\u23ce").replace("\t", "\u21e5") for token in tokens]
    places, column, row = [], 0, 0
    for token, word in zip(tokens, words, strict=True):
        if column and column + len(word) > line_length:
            column, row = 0, row + 1
        places.append((column, row))
        column += len(word) + len(separator)
        if "\n" in token:
            column, row = 0, row + 1
    rows = places[-1][1] + 1

    fig, ax = _axes(1.35 + 0.26 * rows, title=title, x="", y="")
    ax.set(xlim=(-0.5, line_length + 0.5), ylim=(rows - 0.5, -0.5))
    ax.set_axis_off()
    shade = LinearSegmentedColormap.from_list("shade", ["#ffffff", "#9ecae1", "#08306b"])
    norm = Normalize(0.0, max(float(looked.max()), 1e-12))
    # A letter of DejaVu Sans Mono is 0.602 of its size wide; there are 72 points in an inch.
    size = 0.97 * (WIDTH - 0.3) * 72 / (line_length + 1) / 0.602
    mono: dict[str, Any] = {"family": "DejaVu Sans Mono", "size": size, "ha": "center", "va": "center"}
    for index, (word, (column, row)) in enumerate(zip(words, places, strict=True)):
        level = norm(looked[index])
        corner, width = (column - pad, row - 0.42), len(word) + 2 * pad
        ax.add_patch(Rectangle(corner, width, 0.84, color=shade(level), linewidth=0))
        ink = "white" if level > 0.6 else INK
        ax.text(column + len(word) / 2, row, word, color=ink, **mono)
    column, row = places[query]
    corner, width = (column - pad, row - 0.46), len(words[query]) + 2 * pad
    ax.add_patch(Rectangle(corner, width, 0.92, fill=False, edgecolor="#D55E00", linewidth=2, zorder=3))
    bar = fig.colorbar(ScalarMappable(norm, shade), ax=ax, location="bottom", shrink=0.5, aspect=40, pad=0.03)
    bar.set_label(f"{value_label}; the frame is the query")
    return fig


def _axes(height: float, *, title: str, x: str, y: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    fig = Figure(figsize=(WIDTH, height))
    ax = fig.subplots()
    ax.set(xlabel=x, ylabel=y)
    ax.set_title(title, wrap=True)
    return fig, ax


def _label_ticks(ax: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Words at the ticks: upright where they would touch, and some left out where even that is too dense."""
    every = math.ceil(len(columns) / 40)
    longest = max(map(len, columns), default=0)
    upright = longest * len(columns) / every > 70
    ax.set_xticks(range(0, len(columns), every), list(columns[::every]), rotation=90 if upright else 0)
    every = math.ceil(len(rows) / 32)
    ax.set_yticks(range(0, len(rows), every), list(rows[::every]))
    ax.tick_params(length=0)
