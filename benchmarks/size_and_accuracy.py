"""The picture at the top of README: size against accuracy in the demo.

It draws the results of `keras-distill demo` in `benchmarks/measured/demo.json`, which
are also in README's table.

    python benchmarks/size_and_accuracy.py [docs/size_and_accuracy.png]
"""

import json
import pathlib
import sys

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parents[1]
MEASURED = ROOT / "benchmarks" / "measured" / "demo.json"
COLOURS = {
    "teacher": "#7f7f7f",
    "student alone": "#d95f02",
    "student distilled": "#1b6ca8",
}
# Both students have one size. They are drawn side by side, so that bars don't overlap.
BESIDE = {"teacher": 1.0, "student alone": 0.93, "student distilled": 1.07}


def main() -> None:
    """Read the results and draw them."""
    file = sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs/size_and_accuracy.png"
    measured = json.loads(MEASURED.read_text())
    (table, *_), (sentence, *_) = measured["tables"], measured["sentences"]
    models = {row[0]: (row[1][0], *row[2]) for row in table["rows"]}
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    axes = figure.add_subplot()
    for name, (parameters, accuracy, deviation) in models.items():
        axes.errorbar(
            parameters * BESIDE[name],
            accuracy,
            deviation,
            fmt="o",
            markersize=11,
            capsize=4,
            color=COLOURS[name],
        )
        left = name == "student alone"
        axes.annotate(
            f"{name}\n{parameters:,} parameters\n{accuracy:.1f} ± {deviation} %",
            (parameters * BESIDE[name], accuracy),
            (-14 if left else 14, 0),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            color=COLOURS[name],
        )
    sizes = [parameters for parameters, *_ in models.values()]
    axes.set(
        xscale="log",
        xlim=(min(sizes) / 12, max(sizes) * 9),
        xlabel="parameters",
        ylabel="test accuracy in %",
        title="Handwritten digits, 100 of them with a label: mean and standard\n"
        "deviation of 5 seeds of `keras-distill demo`",
    )
    axes.title.set_fontsize(10)
    gains = "   ".join(f"+{gain:.1f}" for gain in sentence["numbers"])
    axes.text(
        0.98,
        0.04,
        f"distilled minus alone, in points, seed by seed:\n{gains}",
        transform=axes.transAxes,
        ha="right",
        color=COLOURS["student distilled"],
    )
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=130)


if __name__ == "__main__":
    main()
