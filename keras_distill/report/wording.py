"""The words of a report: numbers as text, tables, and verdicts in sentences."""

import numpy as np

from keras_distill.installing import advice
from keras_distill.report.measuring import OutputReport
from keras_distill.report.resampling import NO_DIFFERENCE, Interval
from keras_distill.report.results import Findings
from keras_distill.report.tasks import MEASURES, Measure

MISSING = "–"
# The error if a page can't be made.
NEEDED = (
    f"A report's page needs Matplotlib and Jinja. Install them with {advice('report')}."
)


def number(value: float | None, measure: Measure, *, signed: bool = False) -> str:
    """Return a measure's value as text; percentages have no percent sign."""
    if value is None or not np.isfinite(value):
        return MISSING
    sign = "+" if signed else ""
    if measure.is_percent:
        return f"{100.0 * value:{sign}.2f}"
    return f"{value:{sign}.4g}"


def interval(found: Interval, measure: Measure, *, signed: bool = False) -> str:
    """Return a value and its interval as text."""
    low, high = (number(end, measure, signed=signed) for end in (found.low, found.high))
    value = number(found.value, measure, signed=signed)
    return value if low == MISSING else f"{value} ({low} to {high})"


def unit(measure: Measure) -> str:
    """Return the unit of a difference of a measure, with a space before it."""
    return " points" if measure.is_percent else ""


def verdicts(report: Findings) -> list[str]:
    """Return one sentence for each model and output."""
    return [verdict(report, name, output) for name, output in judged(report)]


def judged(report: Findings) -> list[tuple[str, str]]:
    """Return pairs of a model that is compared with the baseline and an output."""
    return [
        (name, output)
        for output, found in report.outputs.items()
        for name in found.differences
    ]


def verdict(report: Findings, name: str, output: str) -> str:
    """Return the verdict on a model's output as a sentence."""
    found = report.outputs[output]
    measure = MEASURES[found.primary]
    difference = found.differences[name][found.primary]
    where = f" in {output!r}" if output else ""
    low, high = (
        number(end, measure, signed=True)
        for end in (difference.interval.low, difference.interval.high)
    )
    value = number(difference.interval.value, measure, signed=True)
    size = (
        f"{measure.title} {value}{unit(measure)}, "
        f"{report.confidence:.0%} interval {low} to {high}"
    )
    if difference.verdict == NO_DIFFERENCE:
        return (
            f"No difference is shown between {name} and {report.baseline}{where}: "
            f"{size}."
        )
    return f"{name} is {difference.verdict} than {report.baseline}{where}: {size}."


def measures_of(output: OutputReport) -> list[Measure]:
    """Return the measures that at least one model has, the deciding one first."""
    present = {key for found in output.measures.values() for key in found}
    keys = sorted(present, key=lambda key: key != output.primary)
    ordered = [key for key in MEASURES if key in keys]
    ordered.sort(key=lambda key: key != output.primary)
    return [MEASURES[key] for key in ordered]


def title(measure: Measure) -> str:
    """Return a measure's name as the head of a row."""
    return measure.title + (", %" if measure.is_percent else "")


def count(value: float | None) -> str:
    """Return a large number in thousands, millions or billions."""
    if value is None:
        return MISSING
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.0f}"


def costs(report: Findings) -> list[tuple[str, list[str]]]:
    """Return the rows of a table of costs: a head, and a cell for each model."""
    names = list(report.models)
    rows = [
        ("parameters", [count(report.models[n]["parameters"]) for n in names]),
        (
            "floating-point operations a row",
            [count(report.models[n]["flops"]) for n in names],
        ),
    ]
    for file in dict.fromkeys(file for it in report.files.values() for file in it):
        sizes = [report.files.get(name, {}).get(file) for name in names]
        rows.append((f"file, {file}", _bytes(sizes)))
    timed = {
        (row["side"], row["batch_size"], row["model"]): row for row in report.latencies
    }
    for side, batch in dict.fromkeys(key[:2] for key in timed):
        cells = []
        for name in names:
            row = timed.get((side, batch, name))
            text = f"{row['p50_ms']:.3g} / {row['p95_ms']:.3g}" if row else MISSING
            cells.append(text)
        rows.append((f"ms, {side}, batch {batch}: p50 / p95", cells))
    taken = {
        (row["side"], row["batch_size"], row["model"]): row["bytes"]
        for row in report.memory
    }
    for side, batch in dict.fromkeys(key[:2] for key in taken):
        sizes = [taken.get((side, batch, name)) for name in names]
        rows.append((f"peak memory, {side}, batch {batch}", _bytes(sizes)))
    return rows


def _bytes(sizes: list[int | None]) -> list[str]:
    return [MISSING if size is None else count(size) + "B" for size in sizes]


def table(report: Findings) -> str:
    """Return the whole report as text."""
    names = list(report.models)
    lines = [*verdicts(report), ""]
    for output, found in report.outputs.items():
        rows = [
            (
                title(measure),
                [
                    interval(found.measures[name][measure.name], measure)
                    if measure.name in found.measures[name]
                    else MISSING
                    for name in names
                ],
            )
            for measure in measures_of(found)
        ]
        lines += [*_aligned([(output or f"{report.rows:,} rows", names), *rows]), ""]
    lines += _aligned([("", names), *costs(report)])
    return "\n".join(lines)


def _aligned(rows: list[tuple[str, list[str]]]) -> list[str]:
    columns = list(zip(*([head, *cells] for head, cells in rows), strict=True))
    widths = [max(map(len, column)) for column in columns]
    return [
        head.ljust(widths[0])
        + "".join(
            "  " + cell.rjust(width)
            for cell, width in zip(cells, widths[1:], strict=True)
        )
        for head, cells in rows
    ]
