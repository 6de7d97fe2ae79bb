"""The arena's results as one figure and one table.

found = results.read("08_transformer_fam")["results"]
figures.show(scorecard(found), DESCRIPTION)
print(table(found))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from memcourse.course.figures import INK, LINES, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DESCRIPTION = (
    "Table of numbers, a row for each memory: percent right on four tasks, darker where worse, and beside it what the "
    "memory keeps, how fast it trains and how long a token takes after 4,096 others."
)
DAGGER = "†"
WIDE_SPREAD = 0.10  # between the seeds: from here on a cell shows its range


class Column(NamedTuple):
    task: str
    place: float
    label: str


GROUPS: dict[str, tuple[Column, ...]] = {
    "recall\npairs": tuple(Column("recall", n, str(n)) for n in (1, 2, 4, 8)),
    "passkey\ntokens": tuple(
        Column("passkey", n, label) for n, label in ((8, "128"), (16, "256"), (64, "1k"), (256, "4k"))
    ),
    "flip-flop\nto ignore": tuple(Column("flip-flop", p, f"{100 * p:.0f}%") for p in (0.8, 0.98, 0.1)),
    "copy\nitems": tuple(Column("copy", n, str(n)) for n in (1, 2, 4)),
}


class Cost(NamedTuple):
    label: str
    text: str


def cost_columns(found: Mapping[str, Any], name: str) -> list[Cost]:
    """State after 4,096 tokens, training speed and decoding time there; the last two as ratios to full attention."""
    own, full = found["costs"][name], found["costs"]["full attention"]
    return [
        Cost("state\nat 4k", bytes_in_words(own["state_bytes_long"])),
        Cost("train\nspeed", f"{own['training'] / full['training']:.2f}×"),
        Cost("time a\ntoken", f"{own['decode_long'] / full['decode_long']:.2f}×"),
    ]


def bytes_in_words(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000 or unit == "MB":
            return f"{n:.1f} {unit}" if n < 10 and unit != "B" else f"{n:.0f} {unit}"
        n /= 1000
    raise AssertionError


class Score(NamedTuple):
    mean: float
    low: float
    high: float
    own_rate: float | None  # the learning rate of a second try, where that was the better one


def score(found: Mapping[str, Any], name: str, column: Column) -> Score:
    """Accuracy over the seeds: mean, lowest and highest.  Of two tries at a task, the one that is better on average."""
    task = found["tasks"][column.task]
    at = list(task["places"]).index(column.place)
    tries = {None: task["contestants"][name]["accuracy"]}
    for second in found.get("second_tries", ()):
        if (second["task"], second["contestant"]) == (column.task, name):
            tries[second["learning_rate"]] = second["accuracy"]
    rate = max(tries, key=lambda rate: sum(tries[rate]["mean"]))
    mean, low, high = (tries[rate][part][at] for part in ("mean", "low", "high"))
    return Score(mean, low, high, rate)


def scorecard(found: Mapping[str, Any], *, title: str = "What each memory remembers, and what it costs") -> Figure:
    """Every contestant's percent right on the synthetic tasks, and its costs.

    A cell's colour goes from chance (dark) to all right (bright); where the seeds differ by ten points and more, the
    range stands below the mean.  `found` is the "results" of experiment 08; tasks that it does not hold are left out.
    """
    from matplotlib.figure import Figure

    names = list(found["costs"])
    groups = {title: [c for c in cells if c.task in found["tasks"]] for title, cells in GROUPS.items()}
    fig = Figure(figsize=(WIDTH, 1.85 + 0.34 * len(names)))
    ax = fig.subplots()
    ax.set_axis_off()
    ax.set_title(title)
    for row, name in enumerate(names):
        ax.text(-0.15, row, name, ha="right", va="center", fontsize=9)
    left, own_rates = 0.0, set()
    for heading, columns in groups.items():
        if columns:
            _heading(ax, left + len(columns) / 2, heading)
        for column in columns:
            ax.text(left + 0.5, -0.68, column.label, ha="center", va="center", fontsize=8)
            for row, name in enumerate(names):
                found_here = score(found, name, column)
                _cell(ax, left, row, found_here, found["tasks"][column.task]["chance"])
                own_rates |= {found_here.own_rate} - {None}
            left += 1
        left += 0.22 if columns else 0
    _costs(ax, found, names, left - 0.2)
    _notes(ax, len(names), own_rates)
    ax.set(xlim=(-2.5, left + 4.2), ylim=(len(names) + 1.3, -2.4))
    return fig


def _heading(ax: Axes, middle: float, text: str) -> None:
    task, unit = text.split("\n")
    ax.text(middle, -1.75, task, ha="center", va="center", fontsize=9, fontweight="bold")
    ax.text(middle, -1.25, unit, ha="center", va="center", fontsize=8, color="#555555")


def _cell(ax: Axes, left: float, row: int, found: Score, chance: float) -> None:
    """A box whose colour goes from chance to all right, with the mean, and the range where it is wide."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    level = max(0.0, (found.mean - chance) / (1 - chance))
    color = colormaps["cividis"](level)
    ax.add_patch(Rectangle((left + 0.02, row - 0.46), 0.96, 0.92, facecolor=color, linewidth=0))
    put: dict[str, Any] = {"ha": "center", "va": "center", "color": "black" if level > 0.5 else "white"}
    wide = found.high - found.low >= WIDE_SPREAD
    mean = f"{100 * found.mean:.0f}{DAGGER if found.own_rate else ''}"
    ax.text(left + 0.5, row - 0.14 * wide, mean, fontsize=8.5, **put)
    if wide:
        ax.text(left + 0.5, row + 0.27, f"{100 * found.low:.0f}–{100 * found.high:.0f}", fontsize=5.5, **put)


def _costs(ax: Axes, found: Mapping[str, Any], names: list[str], left: float) -> None:
    right, first = left, cost_columns(found, names[0])
    for number, width in enumerate((1.5, 1.3, 1.3)):
        right += width
        ax.text(right, -0.85, first[number].label, ha="right", va="center", fontsize=8, linespacing=1.1)
        for row, name in enumerate(names):
            text = cost_columns(found, name)[number].text
            ax.text(right, row, text, ha="right", va="center", fontsize=8, color=INK)
    ax.text(right, -1.75, "costs", ha="right", va="center", fontsize=9, fontweight="bold")


def _notes(ax: Axes, n_rows: int, own_rates: set[float | None]) -> None:
    notes = [
        "Percent right: mean of three seeds, and their range where it is ten points or more.  Dark: a guess.",
        "Training went up to 8 pairs, 128 tokens, 80% to ignore and 4 items.  State and time after 4,096 tokens,",
        "speed and time as multiples of full attention's.",
    ]
    if own_rates:
        rates = ", ".join(f"{rate:g}" for rate in sorted(rate for rate in own_rates if rate))
        notes.append(f"{DAGGER} a second try, at a learning rate of its own ({rates}): better than at the common one.")
    ax.text(-2.45, n_rows - 0.3, "\n".join(notes), ha="left", va="top", fontsize=7.3, color="#555555", linespacing=1.4)


def table(found: Mapping[str, Any]) -> str:
    """The same as Markdown: mean (lowest to highest) of the seeds in percent, parameters, and costs as numbers."""
    columns = [column for cells in GROUPS.values() for column in cells if column.task in found["tasks"]]
    heads = ["memory", "parameters", *(f"{column.task} {column.label}" for column in columns)]
    heads += ["state, 128 tokens", "state, 4,096", "forward, tokens/s", "training, tokens/s"]
    heads += ["token after 128, ms", "after 4,096, ms"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, cost in found["costs"].items():
        cells = [name, f"{found['parameters'][name]:,}"]
        for column in columns:
            mean, low, high, own_rate = score(found, name, column)
            spread = f" ({100 * low:.0f} to {100 * high:.0f})" if round(100 * low) != round(100 * high) else ""
            cells.append(f"{100 * mean:.0f}{DAGGER if own_rate else ''}{spread}")
        cells += [bytes_in_words(cost["state_bytes"]), bytes_in_words(cost["state_bytes_long"])]
        cells += [f"{cost['forward']:,.0f}", f"{cost['training']:,.0f}"]
        cells += [f"{1e3 * cost['decode']:.2f}", f"{1e3 * cost['decode_long']:.2f}"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def text_figure(found: Mapping[str, Any], *, title: str = "Four of them on real text") -> Figure:
    """bAbI's facts in prose against the length of the text, and perplexity of books against the place in them."""
    from matplotlib.figure import Figure

    fig = Figure(figsize=(WIDTH, 3.3))
    left, right = fig.subplots(1, 2)
    fig.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    babi, books = found["tasks"]["babi"], found["tasks"]["books"]
    segment = 16
    for (name, scores), (color, dash, marker) in zip(babi["contestants"].items(), LINES, strict=False):
        look: dict[str, Any] = {"color": color, "linestyle": dash, "marker": marker, "label": name}
        of_one_fact = [at for at, (_, n_facts) in enumerate(babi["places"]) if n_facts == 1]
        lengths = [segment * babi["places"][at][0] for at in of_one_fact]
        accuracy = {part: [scores["accuracy"][part][at] for at in of_one_fact] for part in ("low", "mean", "high")}
        _band(left, lengths, accuracy, look, 100)
        nats = books["contestants"][name]["nats"]
        perplexity = {part: [math.exp(value) for value in nats[part]] for part in ("low", "mean", "high")}
        _band(right, books["places"], perplexity, look, 1)
    left.axhline(100 * babi["chance"], color="#777777", linestyle=":", linewidth=1.2)
    left.axvspan(segment * babi["trained"][0], segment * babi["trained"][1], color="#eeeeee", zorder=0)
    right.axvspan(*books["trained"], color="#eeeeee", zorder=0)
    left.set(xlabel="words (shaded: lengths of training)", ylabel="percent right", ylim=(0, 102))
    right.set(xlabel="place in the passage, up to this token", ylabel="perplexity per token")
    left.set_title("a fact of bAbI in prose", fontsize=10)
    right.set_title("books", fontsize=10)
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig


def _band(ax: Axes, at: list[float], summary: Mapping[str, Any], look: dict[str, Any], scale: float) -> None:
    low, mean, high = ([scale * value for value in summary[part]] for part in ("low", "mean", "high"))
    ax.plot(at, mean, **look)
    ax.fill_between(at, low, high, color=look["color"], alpha=0.1, linewidth=0)
