"""The results of the demo, and their JSON file."""

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_distill.demo import data, training
from keras_distill.demo.measuring import Comparison, Scores, compare, spread
from keras_distill.demo.serving import Served
from keras_distill.demo.training import Budget
from keras_distill.version import __version__

FILE = "results.json"
KIND = "keras_distill.demo"
PICTURE = "demo.png"

TEACHER = "teacher"
ALONE = "student alone"
DISTILLED = "student distilled"
MODELS = (TEACHER, ALONE, DISTILLED)

# The folders of these models' exports and of the page, and all that a demo writes.
FOLDERS = {TEACHER: "teacher", DISTILLED: "student"}
REPORT = "report"
WRITTEN = {FILE, PICTURE, REPORT, *FOLDERS.values()}


@dataclass(frozen=True)
class Results:
    """The results of all seeds.

    Attributes:
        seeds: The seeds; each had a run of its own.
        budget: The steps that every model was trained for.
        parameters: Number of parameters by model.
        scores: By model, the scores of each seed.
        curves: By model, the test accuracy after each epoch of each seed.
        served: The teacher and the distilled student of the first seed, as exported.
    """

    seeds: list[int]
    budget: Budget
    parameters: dict[str, int]
    scores: dict[str, list[Scores]]
    curves: dict[str, list[list[float]]]
    served: dict[str, Served]

    @property
    def comparison(self) -> Comparison:
        """The comparison of the distilled student with the student alone."""
        return compare(self.scores[ALONE], self.scores[DISTILLED])


def write(results: Results, directory: Path) -> None:
    """Write every number, and the settings and versions that reproduce it."""
    text = json.dumps(_describe(results), indent=2, allow_nan=False)
    (directory / FILE).write_text(text + "\n", encoding="utf-8")


def check_replaceable(directory: Path) -> None:
    """Raise an error if `directory` contains files that no demo wrote."""
    if not directory.exists():
        return
    if not directory.is_dir():
        raise NotADirectoryError(
            f"`out` must be a directory. Received: out={str(directory)!r}, a file"
        )
    present = {path.name for path in directory.iterdir()}
    foreign = present - (WRITTEN if _is_ours(directory) else set())
    if foreign:
        raise FileExistsError(
            "`out` must be absent, empty or an earlier demo's output, as it is "
            f"replaced. Received: out={str(directory)!r}, which holds "
            f"{', '.join(sorted(foreign)[:3])}"
        )


def _is_ours(directory: Path) -> bool:
    try:
        described = json.loads((directory / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return isinstance(described, dict) and described.get("kind") == KIND


def _describe(results: Results) -> dict[str, Any]:
    return {
        "kind": KIND,
        "seeds": results.seeds,
        "setting": {
            "labelled": data.LABELLED,
            "test": data.TEST,
            "batch_size": data.BATCH_SIZE,
            "temperature": training.TEMPERATURE,
            **asdict(results.budget),
        },
        "models": {name: _describe_model(results, name) for name in MODELS},
        "distilled_minus_alone": results.comparison._asdict()
        | {"spread": results.comparison.spread._asdict()},
        "served": {name: _describe_served(it) for name, it in results.served.items()},
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "keras_distill": __version__,
        },
    }


def _describe_model(results: Results, name: str) -> dict[str, Any]:
    scores = results.scores[name]
    return {
        "parameters": results.parameters[name],
        "scores": [each._asdict() for each in scores],
        "summary": {
            field: spread(values)._asdict()
            for field, values in zip(
                Scores._fields, zip(*scores, strict=True), strict=True
            )
        },
        "accuracy_by_epoch": results.curves[name],
    }


def _describe_served(served: Served) -> dict[str, Any]:
    artefacts = {name: it._asdict() for name, it in served.artefacts.items()}
    return {**served._asdict(), "artefacts": artefacts}
