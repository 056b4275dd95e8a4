"""The demo's picture: what softened outputs are, and what comes of them."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from keras_distill.demo.data import CLASSES, Digits
from keras_distill.demo.results import (
    ALONE,
    DISTILLED,
    MODELS,
    PICTURE,
    TEACHER,
    Results,
)

TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
TELLING_CONFIDENCE = 0.9
OTHERS = "#9ecae1"
COLOURS = {TEACHER: "#7f7f7f", ALONE: "#d95f02", DISTILLED: "#1b6ca8"}


def draw(results: Results, teacher: keras.Model, test: Digits, directory: Path) -> None:
    """Draw both pictures side by side into one PNG.

    Args:
        results: Of all seeds.
        teacher: The teacher of the first seed.
        test: The test images of the first seed.
        directory: Where the PNG goes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.15, 1), wspace=0.04)
    _draw_softening(halves[0], teacher, test)
    _draw_curves(halves[1], results)
    figure.savefig(directory / PICTURE, dpi=170)


def soften(
    logits: npt.NDArray[np.float32], temperature: float
) -> npt.NDArray[np.float32]:
    """Return `softmax(logits / temperature)`."""
    softened: npt.NDArray[np.float32] = keras.ops.convert_to_numpy(
        keras.ops.softmax(logits / temperature)
    )
    return softened


def _telling_example(
    teacher: keras.Model, test: Digits
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], int]:
    """Return a digit that the teacher gets right without being certain of it."""
    logits = teacher.predict(test.images, batch_size=len(test.labels), verbose=0)
    given_to_label = soften(logits, 1.0)[np.arange(len(logits)), test.labels]
    index = int(np.argmin(np.abs(given_to_label - TELLING_CONFIDENCE)))
    return test.images[index], logits[index], int(test.labels[index])


def _draw_softening(figure: Any, teacher: keras.Model, test: Digits) -> None:
    image, logits, label = _telling_example(teacher, test)
    figure.suptitle("The teacher on a test image: softmax(logits / T)")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 2.4))
    picture = left.add_subplot()
    picture.imshow(image[..., 0], cmap="gray_r")
    picture.set_title(f"class {label}", fontsize=11)
    picture.set_axis_off()
    right.supylabel("probability", fontsize=11)
    panels = right.subplots(len(TEMPERATURES), 1, sharex=True)
    for axes, temperature in zip(panels, TEMPERATURES, strict=True):
        bars = axes.bar(range(CLASSES), soften(logits, temperature), color=OTHERS)
        bars[label].set_color(COLOURS[DISTILLED])
        axes.set(ylim=(0, 1), yticks=(0, 0.5, 1), xticks=range(CLASSES))
        axes.text(
            0.99, 0.8, f"T = {temperature:g}", ha="right", transform=axes.transAxes
        )
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("class")


def _draw_curves(figure: Any, results: Results) -> None:
    figure.suptitle("Accuracy on the test images")
    axes = figure.add_subplot()
    for name in MODELS:
        curves = 100 * np.array(results.curves[name])
        epochs, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
        deviation = curves.std(axis=0, ddof=1) if len(curves) > 1 else 0 * mean
        label = f"{name}, {results.parameters[name]:,} parameters"
        axes.plot(epochs, mean, color=COLOURS[name], label=label)
        axes.fill_between(
            epochs,
            mean - deviation,
            mean + deviation,
            color=COLOURS[name],
            alpha=0.15,
            lw=0,
        )
    # the first epochs are far below, and aren't the point
    lowest = 100 * min(scores.accuracy for scores in results.scores[ALONE]) - 10
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(
        xlabel=f"epoch of {results.budget.steps_per_epoch} steps",
        ylabel="%; band: ± standard deviation over seeds",
        ylim=(max(0, lowest), 100),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
