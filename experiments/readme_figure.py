"""The picture in the README, drawn from the results of chapter 01: python experiments/readme_figure.py"""

from pathlib import Path

from memcourse.course import figures, results

reach = results.read("01_attention")["results"]["reach"]
names = {"all": "no window", "32": "window of 32", "16": "window of 16", "1": "window of 1"}
figures.use_style()
figure = figures.curves(
    {name: (reach["distance"], reach["window"][window]["per_seed"]) for window, name in names.items()},
    x="how long ago the answer stood in the text (words)",
    y="share of words said rightly",
    title="What slides out of the window is gone",
)
png, _ = figures.to_png(figure)
Path(__file__).with_name("results").joinpath("01_attention.png").write_bytes(png)
