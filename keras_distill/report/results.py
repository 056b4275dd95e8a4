"""The results of a comparison, and their form as JSON."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np

from keras_distill.report.measuring import OutputReport
from keras_distill.version import __version__


@dataclass(frozen=True)
class Findings:
    """The results of a comparison.

    Args:
        baseline: The model that the others are compared with.
        teacher: The teacher's name; None without one.
        rows: The number of rows.
        confidence: The share of the resamples that an interval covers.
        models: By model, its `parameters`, `flops` and the seconds of `predict`.
        files: By model, the bytes of each exported file.
        latencies: The time of a call by model, side and batch size.
        memory: The peak memory of serving in bytes, by model, side and batch size.
        outputs: The results by output; a single output is named "".
        class_names: The names of the classes; None for their ids.
    """

    baseline: str
    teacher: str | None
    rows: int
    confidence: float
    models: dict[str, dict[str, Any]]
    files: dict[str, dict[str, int]]
    latencies: list[dict[str, Any]]
    memory: list[dict[str, Any]]
    outputs: dict[str, OutputReport]
    class_names: Sequence[str] | None = None

    def verdict(self, model: str, output: str = "") -> str:
        """Return "better", "worse" or "no difference shown" for a model's output."""
        found = self.outputs[output]
        return found.differences[model][found.primary].verdict

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values of JSON; None for what couldn't be computed."""
        described = asdict(self)
        for name, output in self.outputs.items():
            described["outputs"][name]["measures"] = _plain(output.measures)
            described["outputs"][name]["differences"] = _plain(output.differences)
            described["outputs"][name]["classes"] = _plain(output.classes)
        return {
            "kind": "keras_distill.report",
            **_finite(described),
            "versions": {
                "python": platform.python_version(),
                "keras": keras.__version__,
                "keras_distill": __version__,
            },
        }


def _plain(value: Any) -> Any:
    """Return named tuples as dicts, within dicts and lists."""
    if hasattr(value, "_asdict"):
        return {key: _plain(item) for key, item in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _finite(value: Any) -> Any:
    """Return values of JSON: numbers of Python, None for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
