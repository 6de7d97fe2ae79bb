"""The pictures in the README, drawn from the results of chapters 01 and 08: python experiments/readme_figure.py"""

from pathlib import Path
from typing import TYPE_CHECKING

from memcourse.course import arena_figure, figures, results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reach() -> "Figure":
    """What a model says rightly against how long ago it stood in the text, by the window of its attention."""
    found = results.read("01_attention")["results"]["reach"]
    names = {"all": "no window", "32": "window of 32", "16": "window of 16", "1": "window of 1"}
    return figures.curves(
        {name: (found["distance"], found["window"][window]["per_seed"]) for window, name in names.items()},
        x="how long ago the answer stood in the text (words)",
        y="share of words said rightly",
        title="What slides out of the window is gone",
    )


def arena() -> "Figure":
    """Every memory of the course on the same tasks, and what it costs."""
    return arena_figure.scorecard(results.read("08_transformer_fam")["results"])


figures.use_style()
for name, draw in (("01_attention", reach), ("08_transformer_fam", arena)):
    png, _ = figures.to_png(draw())
    Path(__file__).with_name("results").joinpath(f"{name}.png").write_bytes(png)
