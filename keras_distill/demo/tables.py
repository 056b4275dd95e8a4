"""The demo's results in words, for a terminal of 80 columns."""

import textwrap

from keras_distill.demo import data
from keras_distill.demo.measuring import Spread, spread
from keras_distill.demo.results import DISTILLED, MODELS, TEACHER, Results
from keras_distill.demo.training import Budget


def who_sees_what(digits: data.Digits, budget: Budget) -> str:
    """Return a description of the data that each model learns from."""
    unlabelled = len(digits.labels) - data.LABELLED - data.TEST
    return textwrap.fill(
        f"Each seed splits {len(digits.labels):,} real 8x8 digits into "
        f"{data.LABELLED} labelled, {unlabelled:,} unlabelled and {data.TEST} test "
        "images. The teacher and the student alone learn from the "
        f"{data.LABELLED} labelled images. The distilled student reads no labels. It "
        f"learns from the teacher's outputs on the same {data.LABELLED} images and on "
        f"the {unlabelled:,} unlabelled ones. All three models are trained for "
        f"{budget.steps:,} steps, with {data.BATCH_SIZE} randomly shifted and rotated "
        "images in each step. Both students start from the same weights.",
        width=80,
    )


def quality(results: Results) -> str:
    """Return the models' scores, and the difference between the students."""
    row = "{:<18}{:>11}{:>16}{:>17}{:>18}".format
    lines = [
        "Results on the test images: mean ± standard deviation over "
        f"{_seeds(len(results.seeds))}.",
        "Agreement: share of images for which a model predicts the teacher's class.",
        "",
        row("", "parameters", "accuracy %", "NLL", "agreement %"),
    ]
    for name in MODELS:
        columns = zip(*results.scores[name], strict=True)
        accuracy, nll, agreement = (spread(values) for values in columns)
        parameters = f"{results.parameters[name]:,}"
        lines.append(
            row(name, parameters, _percent(accuracy), _plain(nll), _percent(agreement))
        )
    return "\n".join([*lines, "", _difference(results)])


def serving(results: Results) -> str:
    """Return size, exactness and speed of the exported files."""
    teacher, student = results.served[TEACHER], results.served[DISTILLED]
    row = "{:<22}{:>9}{:>9}{:>13}{:>13}{:>14}".format
    lines = [
        f"Exported models of seed {results.seeds[0]}. ms: median latency of one image.",
        "Difference: largest difference between the exported student and Keras.",
        "",
        row("", "teacher", "student", "teacher", "student", "student"),
        row("", "kB", "kB", "ms", "ms", "difference"),
    ]
    for name, small in student.artefacts.items():
        large = teacher.artefacts[name]
        sizes = f"{large.bytes / 1000:,.0f}", f"{small.bytes / 1000:,.0f}"
        times = _ms(large.latency_ms), _ms(small.latency_ms)
        lines.append(row(name, *sizes, *times, f"{small.parity:.1e}"))
    for name, large_ms, small_ms in (
        ("Keras, tf.function", teacher.compiled_ms, student.compiled_ms),
        ("Keras, predict", teacher.predict_ms, student.predict_ms),
    ):
        lines.append(row(name, "", "", _ms(large_ms), _ms(small_ms), "").rstrip())
    return "\n".join(lines)


def _difference(results: Results) -> str:
    gain = results.comparison
    each = ", ".join(f"{100 * value:+.1f}" for value in gain.differences)
    return textwrap.fill(
        "Accuracy of the distilled student minus accuracy of the student alone, for "
        f"each seed: {each} points. The mean is {100 * gain.spread.mean:+.1f} ± "
        f"{100 * gain.spread.deviation:.1f} points. The distilled student is better in "
        f"{gain.wins} of {_seeds(len(results.seeds))}.",
        width=80,
    )


def _seeds(count: int) -> str:
    return f"{count} seeds" if count > 1 else "1 seed"


def _percent(value: Spread) -> str:
    return f"{100 * value.mean:.1f} ± {100 * value.deviation:.1f}"


def _plain(value: Spread) -> str:
    return f"{value.mean:.3f} ± {value.deviation:.3f}"


def _ms(value: float) -> str:
    return f"{value:.3f}"
