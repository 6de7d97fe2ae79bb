"""Examples of the synthetic tasks, drawn: what is read, token by token, and what should be said after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from memcourse.course.figures import INK, LINES, PALE, WIDTH

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def examples(rows: Mapping[str, Sequence[tuple[str, str]]], *, title: str) -> Figure:
    """One strip of boxes for each task: name -> [(token read, token to be said or ""), ...] of `tasks.describe`."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    longest = max(map(len, rows.values()))
    fig = Figure(figsize=(WIDTH, 0.35 + 0.85 * len(rows)))
    ax = fig.add_subplot()
    ax.set(xlim=(0, longest), ylim=(len(rows), -0.02))
    ax.axis("off")
    ax.set_title(title)
    said_color = LINES[1][0]
    for top, (name, tokens) in enumerate(rows.items()):
        ax.text(0, top + 0.16, name, fontsize=9, weight="bold", color=INK)
        for x, (token, said) in enumerate(tokens):
            box = Rectangle((x + 0.06, top + 0.24), 0.88, 0.3, facecolor="white", linewidth=1.4)
            box.set_edgecolor(said_color if said else PALE)
            ax.add_patch(box)
            ax.text(x + 0.5, top + 0.39, token, ha="center", va="center", fontsize=7)
            if said:
                ax.text(x + 0.5, top + 0.69, said, ha="center", va="center", fontsize=8, weight="bold").set_color(
                    said_color
                )
    return fig
