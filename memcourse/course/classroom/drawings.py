"""Pictures inside a page: PNG in its address, so that the page needs no other file."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from memcourse.course.exercise import Outcome, Report
from memcourse.course.figures import DPI, INK, ON_PAGE, STYLE, WIDTH, to_png
from memcourse.course.words import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOOKS: dict[Outcome, dict[str, Any]] = {  # from dark to white: the order holds in grey print
    "passed": {"facecolor": "#1f4e79", "edgecolor": INK},
    "wrong": {"facecolor": "#e69f00", "edgecolor": INK, "hatch": "////"},
    "crashed": {"facecolor": "#f3d9b1", "edgecolor": INK, "hatch": "...."},
    "not attempted": {"facecolor": "#ffffff", "edgecolor": INK},
}
NAMED = 3  # exercises that the title of a plot names at most
Counts = Mapping[str, Counter[Outcome]]  # exercise id -> how many


class Drawing(NamedTuple):
    """Its data URI, its width in pixels on the page, and what it shows in one line."""

    uri: str
    width: int
    says: str


def outcomes(chapter: str, exercises: Mapping[str, str], counts: Counts) -> Drawing:
    """How many passed the checks, were wrong, crashed or did not attempt each exercise (id -> name): a bar for each."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    total = max(count.total() for count in counts.values())
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(WIDTH, 1.7 + 0.36 * len(exercises)))
        ax = fig.subplots()
        _bars(ax, counts)
        ax.set_yticks(range(len(exercises)), [f"{id} {name}" for id, name in exercises.items()])
        ax.invert_yaxis()
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(axis="y", visible=False)
        ax.set(xlabel="submissions", xlim=(0, total))
        ax.set_title(title(exercises, counts))
        fig.legend(loc="outside lower center", ncols=len(LOOKS))
        says = "for each exercise, how many submissions passed its checks, were wrong, crashed or did not attempt it"
        return _drawn(fig, f"{chapter}: {says}.")


def title(exercises: Mapping[str, str], counts: Counts) -> str:
    """Which exercises were passed by the fewest, where there are some that stand out."""
    fewest = min(count["passed"] for count in counts.values())
    least = [id for id, count in counts.items() if count["passed"] == fewest]
    share = f"{fewest} of {counts[least[0]].total()}"
    if len(least) == len(counts):
        return f"Checks passed: {share} in every exercise" if len(counts) > 1 else f"Checks passed: {share}"
    if len(least) == 1:
        return f"Checks passed by the fewest: {least[0]} {exercises[least[0]]}, {share}"
    which = listed(least) if len(least) <= NAMED else f"{len(least)} exercises"
    return f"Checks passed by the fewest: {which}, {share} each"


def said(outcome: Outcome) -> str:
    """An outcome in the words of `check`."""
    return "checks passed" if outcome == "passed" else outcome


def _bars(ax: Axes, counts: Counts) -> None:
    left = dict.fromkeys(counts, 0)
    for outcome, look in LOOKS.items():
        widths = {id: count[outcome] for id, count in counts.items()}
        ax.barh(
            range(len(counts)),
            list(widths.values()),
            left=list(left.values()),
            height=0.72,
            label=said(outcome),
            **look,
        )
        behind = {"facecolor": look["facecolor"], "linewidth": 0, "pad": 1}
        ink = "white" if outcome == "passed" else "black"
        for row, (id, width) in enumerate(widths.items()):
            if width >= counts[id].total() / 20:  # a number would not fit into less
                ax.text(left[id] + width / 2, row, str(width), ha="center", va="center", color=ink, bbox=behind)
            left[id] += width


def picture(report: Report) -> Drawing:
    """The picture that a report carries."""
    return _picture(json.dumps(report.picture))


@lru_cache(maxsize=256)  # learners who make the same mistake see the same picture
def _picture(text: str) -> Drawing:
    import matplotlib

    from memcourse.course import pictures

    fields = json.loads(text)
    with matplotlib.rc_context(STYLE):
        return _drawn(pictures.figure(fields), fields["title"])


def _drawn(fig: Figure, says: str) -> Drawing:
    png, width = to_png(fig)
    return Drawing(f"data:image/png;base64,{base64.b64encode(png).decode()}", round(width * ON_PAGE / DPI), says)
