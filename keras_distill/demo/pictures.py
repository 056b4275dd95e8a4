"""The demo's picture: softened outputs, training curves and the students' accuracy."""

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
# The range of the teacher's probability for the right class in the pictured example.
TELLING_CONFIDENCE = (0.6, 0.95)
OTHERS = "#9ecae1"
COLOURS = {TEACHER: "#7f7f7f", ALONE: "#d95f02", DISTILLED: "#1b6ca8"}


def draw(results: Results, teacher: keras.Model, test: Digits, directory: Path) -> None:
    """Draw three pictures side by side into one PNG.

    Args:
        results: The results of all seeds.
        teacher: The teacher of the first seed.
        test: The test images of the first seed.
        directory: The directory of the PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    parts: Any = figure.subfigures(1, 3, width_ratios=(1.25, 1, 0.8), wspace=0.04)
    _draw_softening(parts[0], teacher, test)
    _draw_curves(parts[1], results)
    _draw_gains(parts[2], results)
    figure.savefig(directory / PICTURE, dpi=150)


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
    """Return a digit that the teacher classifies correctly, but not with certainty.

    Among such digits, it is the one nearest to the mean of its class.
    """
    logits = teacher.predict(test.images, batch_size=len(test.labels), verbose=0)
    means = [test.images[test.labels == each].mean(axis=0) for each in range(CLASSES)]
    unlike = np.square(test.images - np.stack(means)[test.labels]).sum(axis=(1, 2, 3))
    given_to_label = soften(logits, 1.0)[np.arange(len(logits)), test.labels]
    lowest, highest = TELLING_CONFIDENCE
    outside = np.maximum(lowest - given_to_label, given_to_label - highest).clip(0)
    index = int(np.lexsort([unlike, outside])[0])
    return test.images[index], logits[index], int(test.labels[index])


def _draw_softening(figure: Any, teacher: keras.Model, test: Digits) -> None:
    image, logits, label = _telling_example(teacher, test)
    figure.suptitle("The teacher's probabilities for a test image")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.7))
    picture = left.add_subplot()
    # 8x8 pixels are hard to recognise as handwriting unless they are smoothed.
    framed = np.pad(image[..., 0], 1)
    picture.imshow(framed, cmap="gray_r", interpolation="bicubic")
    picture.set_title(f"a handwritten {label}", fontsize=11)
    picture.set(xticks=(), yticks=())
    right.supylabel("probability of each digit", fontsize=10)
    panels = right.subplots(len(TEMPERATURES), 1, sharex=True)
    for axes, temperature in zip(panels, TEMPERATURES, strict=True):
        bars = axes.bar(range(CLASSES), soften(logits, temperature), color=OTHERS)
        bars[label].set_color(COLOURS[DISTILLED])
        axes.set(ylim=(0, 1), yticks=(0, 0.5, 1), xticks=range(CLASSES))
        axes.set_title(f"temperature {temperature:g}", loc="right", fontsize=9, pad=2)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("digit")


def _draw_curves(figure: Any, results: Results) -> None:
    figure.suptitle("Training, mean over seeds")
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
    # The first epochs are far below. Their accuracy doesn't matter here.
    lowest = 100 * min(scores.accuracy for scores in results.scores[ALONE]) - 10
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(
        xlabel=f"training epoch, of {results.budget.steps_per_epoch} steps",
        ylabel="test accuracy in % (band: standard deviation)",
        ylim=(max(0, lowest), 100),
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)


def _draw_gains(figure: Any, results: Results) -> None:
    """Draw each seed's two students as a pair: they have the same initial weights."""
    figure.suptitle("What distillation gains, seed by seed")
    axes = figure.add_subplot()
    places = np.arange(len(results.seeds))
    alone, distilled = (
        100 * np.array([scores.accuracy for scores in results.scores[name]])
        for name in (ALONE, DISTILLED)
    )
    axes.vlines(places, alone, distilled, color="#bdbdbd", lw=3, zorder=1)
    for name, values in ((DISTILLED, distilled), (ALONE, alone)):
        axes.scatter(places, values, color=COLOURS[name], s=60, label=name, zorder=2)
    for place, before, after in zip(places, alone, distilled, strict=True):
        axes.annotate(
            f"{after - before:+.1f}",
            (place, max(before, after)),
            (0, 8),
            textcoords="offset points",
            ha="center",
        )
    axes.set(
        xticks=places,
        xticklabels=results.seeds,
        xlim=(-0.6, len(places) - 0.4),
        xlabel="seed of the split and of the initial weights",
        ylabel="test accuracy in % after training",
    )
    axes.margins(y=0.15)
    axes.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
