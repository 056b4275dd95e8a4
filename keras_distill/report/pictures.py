"""The pictures of a report, as PNGs that Matplotlib draws."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_distill.report import wording
from keras_distill.report.measuring import SOFT, OutputReport
from keras_distill.report.results import Findings
from keras_distill.report.tasks import MEASURES

# Distinct in print and for the colour-blind (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#7f7f7f"
# The texts must be readable at the width of a page on a phone.
_WIDTH, _HEIGHT, _DPI = 5.6, 3.9, 110
# The largest number of confusion matrices that can be read side by side.
_PANELS = 2


def draw(report: Findings) -> dict[str, bytes]:
    """Return the pictures by the names of their files.

    Raises:
        ImportError: If Matplotlib isn't installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(wording.NEEDED) from error
    return {name: _png(drawing, report) for name, drawing in _drawings(report)}


def file_name(output: str, what: str) -> str:
    """Return the name of a picture's file."""
    part = re.sub(r"[^\w-]+", "_", output)
    return f"{part}_{what}.png" if part else f"{what}.png"


def captions(report: Findings, output: str) -> dict[str, str]:
    """Return the captions of an output's pictures, by the names of their files."""
    found = report.outputs[output]
    measure = MEASURES[found.primary]
    part = f"{report.confidence:.0%}"
    return {
        file_name(output, "size"): (
            f"Size against quality: parameters and {measure.title}, with its {part} "
            "interval."
        ),
        file_name(output, "gains"): (
            f"Difference to {report.baseline} by class: what part of a class is right "
            f"more or less often, in points, with its {part} interval."
        ),
        file_name(output, "confusions"): (
            f"Confusions beside {report.baseline}: of the rows of a class, the part "
            "that is given each class, in points more or less. On the diagonal, more "
            "is better; elsewhere, less is."
        ),
        file_name(output, "calibration"): (
            "Calibration: of the rows that a model gives a probability, the part that "
            "came true. On the diagonal, both are equal. Larger points are more rows."
        ),
        file_name(output, "similarity"): (
            f"What classes have in common: mean probabilities at temperature {SOFT:g} "
            "for the rows of each class."
        ),
    }


Drawing = Callable[[Any, Findings], None]


def _drawings(report: Findings) -> Iterator[tuple[str, Drawing]]:
    for output, found in report.outputs.items():
        yield file_name(output, "size"), _with(_size, found)
        if any(found.reliability.values()):
            yield file_name(output, "calibration"), _with(_calibration, found)
        if found.classes:
            yield file_name(output, "gains"), _with(_gains, found)
        if found.confusions:
            yield file_name(output, "confusions"), _with(_confusions, found)
        if found.similarity:
            yield file_name(output, "similarity"), _with(_similarity, found)


def _with(
    drawing: Callable[[Any, Findings, OutputReport], None], found: OutputReport
) -> Drawing:
    return lambda figure, report: drawing(figure, report, found)


def _png(drawing: Drawing, report: Findings) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)  # draws without a display
    drawing(figure, report)
    file = io.BytesIO()
    # `savefig` would compute the layout twice.
    canvas.print_png(file)
    return file.getvalue()


def _colours(report: Findings) -> dict[str, str]:
    others = [name for name in report.models if name != report.teacher]
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(others)}
    return colours if report.teacher is None else {report.teacher: GREY} | colours


def _size(figure: Any, report: Findings, found: OutputReport) -> None:
    axes = figure.add_subplot()
    measure = MEASURES[found.primary]
    scale = 100.0 if measure.is_percent else 1.0
    for name, colour in _colours(report).items():
        it = found.measures[name][measure.name]
        error = scale * np.array([[it.value - it.low], [it.high - it.value]])
        axes.errorbar(
            report.models[name]["parameters"],
            scale * it.value,
            yerr=np.nan_to_num(error.clip(0.0)),
            fmt="o",
            capsize=4,
            color=colour,
            label=name,
        )
    unit = " in %" if measure.is_percent else ""
    axes.set(xscale="log", xlabel="parameters", ylabel=measure.title + unit)
    sizes = sorted({it["parameters"] for it in report.models.values()})
    axes.set_xticks(sizes, [wording.count(size) for size in sizes])
    axes.minorticks_off()
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def _calibration(figure: Any, report: Findings, found: OutputReport) -> None:
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#bbbbbb", lw=1, zorder=0)
    most = max(n for bins in found.reliability.values() for *_, n in bins)
    for name, colour in _colours(report).items():
        predicted, observed, counts = zip(*found.reliability[name], strict=True)
        sizes = 6 + 60 * np.sqrt(np.array(counts) / most)
        axes.plot(predicted, observed, color=colour, lw=1, alpha=0.6)
        axes.scatter(predicted, observed, s=sizes, color=colour, label=name)
    axes.set(xlabel="predicted probability", ylabel="part that came true")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)


def _gains(figure: Any, report: Findings, found: OutputReport) -> None:
    colours = _colours(report)
    panels = figure.subplots(1, len(found.classes), sharex=True, squeeze=False)[0]
    for axes, (name, changes) in zip(panels, found.classes.items(), strict=True):
        places = np.arange(len(changes))
        values, low, high = 100.0 * np.array([interval for _, interval in changes]).T
        error = np.nan_to_num(np.stack([values - low, high - values]).clip(0.0))
        axes.barh(places, values, xerr=error, color=colours[name], alpha=0.8)
        axes.axvline(0.0, color="black", lw=0.8)
        labels = [_class_name(report, index) for index, _ in changes]
        axes.set_yticks(places, labels, fontsize=8)
        axes.invert_yaxis()
        axes.set_title(name, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
    figure.supxlabel("points more or less often right", fontsize=10)


def _confusions(figure: Any, report: Findings, found: OutputReport) -> None:
    students = [name for name in found.confusions if name != report.teacher]
    shown = (students or list(found.confusions))[-_PANELS:]
    matrices = {name: 100.0 * np.array(found.confusions[name]) for name in shown}
    top = max(np.abs(matrix).max() for matrix in matrices.values()) or 1.0
    _heat_maps(figure, report, matrices, "given class", -top, top)


def _similarity(figure: Any, report: Findings, found: OutputReport) -> None:
    shown = _two(report, found)
    matrices = {name: np.array(found.similarity[name]) for name in shown}
    # The probability of the true class would hide those of the others.
    for matrix in matrices.values():
        np.fill_diagonal(matrix, np.nan)
    top = max(np.nanmax(matrix) for matrix in matrices.values())
    _heat_maps(figure, report, matrices, "probability of", 0.0, top)


def _heat_maps(
    figure: Any,
    report: Findings,
    matrices: Mapping[str, np.ndarray],
    across: str,
    low: float,
    high: float,
) -> None:
    """Draw matrices of classes side by side; colours diverge where `low` isn't 0."""
    panels = figure.subplots(1, len(matrices), squeeze=False)[0]
    classes = range(len(next(iter(matrices.values()))))
    names = [_class_name(report, index) for index in classes]
    few = len(names) <= 20
    colours = "PuOr_r" if low < 0 else "viridis"
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        image = axes.imshow(matrix, vmin=low, vmax=high, cmap=colours)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(across, fontsize=9)
        axes.set_xticks(classes if few else (), names if few else (), rotation=90)
        axes.set_yticks(classes if few else (), names if few else ())
        axes.tick_params(labelsize=7)
    panels[0].set_ylabel("true class", fontsize=9)
    figure.colorbar(image, ax=list(panels), shrink=0.6)


def _two(report: Findings, found: OutputReport) -> Sequence[str]:
    """Return the models whose classes are shown: the teacher and a student."""
    names = list(found.similarity)
    students = [n for n in names if n not in (report.teacher, report.baseline)]
    first = report.teacher or report.baseline
    return [first, *students[:1]] if students else names[:2]


def _class_name(report: Findings, index: int) -> str:
    names = report.class_names
    return str(names[index]) if names and index < len(names) else str(index)
