"""The page of a report: one HTML file that needs no other file and no network."""

import base64
from collections.abc import Mapping
from typing import Any

from keras_distill.report import pictures, wording
from keras_distill.report.measuring import OutputReport
from keras_distill.report.resampling import BETTER, WORSE, Difference, Interval
from keras_distill.report.results import Findings
from keras_distill.report.tasks import Measure

# The CSS class of a verdict.
_LOOKS = {BETTER: "better", WORSE: "worse"}


def render(report: Findings, drawn: Mapping[str, bytes]) -> str:
    """Return the page.

    Args:
        report: The results.
        drawn: The pictures, as `pictures.draw` returns them.

    Raises:
        ImportError: If Jinja isn't installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(wording.NEEDED) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("keras_distill.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        report=report,
        names=list(report.models),
        verdicts=[_verdict(report, *of) for of in wording.judged(report)],
        outputs=[_output(report, *of, drawn) for of in report.outputs.items()],
        costs=wording.costs(report),
    )


def _verdict(report: Findings, name: str, output: str) -> dict[str, str]:
    return {
        "text": wording.verdict(report, name, output),
        "looks": _LOOKS.get(report.verdict(name, output), ""),
    }


def _cell(
    found: Interval | None, measure: Measure, *, signed: bool = False
) -> dict[str, str]:
    """Return a value and its interval for a cell of a table."""
    cell = dict.fromkeys(("range", "p", "verdict", "looks"), "")
    if found is None:
        return cell | {"value": wording.MISSING}
    value, low, high = (wording.number(it, measure, signed=signed) for it in found)
    if low != wording.MISSING:
        cell["range"] = f"{low} to {high}"
    return cell | {"value": value}


def _of_difference(found: Difference | None, measure: Measure) -> dict[str, str]:
    """Return a difference, its interval, p-value and verdict for a cell of a table."""
    if found is None:
        return _cell(None, measure)
    cell = _cell(found.interval, measure, signed=True)
    cell["p"] = "p < 0.001" if found.p < 1e-3 else f"p = {found.p:.3f}"
    if measure.is_better:
        cell["verdict"] = found.verdict
        cell["looks"] = _LOOKS.get(found.verdict, "")
    return cell


def _output(
    report: Findings, output: str, found: OutputReport, drawn: Mapping[str, bytes]
) -> dict[str, Any]:
    names = list(report.models)
    captions = pictures.captions(report, output)
    return {
        "name": output,
        "kind": found.kind,
        "measures": [
            {
                "title": wording.title(measure),
                "cells": [
                    _cell(found.measures[name].get(measure.name), measure)
                    for name in names
                ],
            }
            for measure in wording.measures_of(found)
        ],
        "compared": list(found.differences),
        "differences": [
            {
                "title": wording.title(measure),
                "cells": [
                    _of_difference(of_model.get(measure.name), measure)
                    for of_model in found.differences.values()
                ],
            }
            for measure in wording.measures_of(found)
            if any(measure.name in it for it in found.differences.values())
        ],
        "pictures": [
            {
                "data": base64.b64encode(drawn[file]).decode("ascii"),
                "caption": caption,
            }
            for file, caption in captions.items()
            if file in drawn
        ],
    }
