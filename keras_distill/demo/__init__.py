"""The demo of `keras-distill demo`: distillation on real images, in three minutes.

`run` is the whole demo. Each module is one of its parts: the data, the two networks,
the three trainings, the measurements, the exports, the tables and the pictures.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from keras_distill.atomic import replacing
from keras_distill.demo import data, measuring, pictures, results, serving, tables
from keras_distill.demo.results import (
    ALONE,
    DISTILLED,
    FOLDERS,
    MODELS,
    TEACHER,
    Results,
)
from keras_distill.demo.training import (
    FULL,
    SMOKE,
    Budget,
    Trained,
    train_alone,
    train_distilled,
    train_teacher,
)
from keras_distill.export.quiet import quiet
from keras_distill.installing import advice
from keras_distill.report import compare
from keras_distill.report.comparing import PAGE_FILE

__all__ = ["run"]

_NEEDED = (
    "sklearn",
    "matplotlib",
    "jinja2",
    "scipy",
    "tf2onnx",
    "onnxruntime",
    "ai_edge_litert",
)


@dataclass(frozen=True)
class _Run:
    """One seed's split, and the trained models and their scores by model."""

    split: data.Split
    trained: dict[str, Trained]
    scores: dict[str, measuring.Scores]


def run(
    out: str | os.PathLike[str] = "demo-output",
    *,
    seeds: Sequence[int] | None = None,
    smoke: bool = False,
) -> Results:
    """Train a teacher, a student alone and a distilled student; compare and export.

    The demo prints its progress and two tables. `out` then contains `demo.png`,
    `results.json`, and a page in `report/` that compares the first seed's models. It
    also contains the first seed's teacher and distilled student as SavedModel, ONNX and
    LiteRT in `teacher/` and `student/`.

    Args:
        out: The directory of the files. It must be absent, empty or an earlier demo,
            which is replaced.
        seeds: Split, weights and views are made once for each seed. Defaults to 0, 1,
            2, 3, 4; for a smoke run to 0.
        smoke: Whether to train for a few steps only, to check that everything runs.

    Returns:
        Every number of the tables and the picture.

    Raises:
        ImportError: A package that the demo needs isn't installed.
        ValueError: There is no seed, or one is given twice or is negative.
        OSError: `out` can't be written, or contains anything but an earlier demo.

    Example:
        run("demo-output", seeds=range(100, 103))
    """
    seeds = list(seeds if seeds is not None else (0,) if smoke else range(5))
    _check(seeds)
    directory = Path(out).resolve()
    results.check_replaceable(directory)
    digits, budget = data.load(), SMOKE if smoke else FULL
    print(tables.who_sees_what(digits, budget), flush=True)
    # TensorFlow would warn of repeated tracing, but each network is traced once.
    with quiet("tensorflow"):
        runs = [_run_seed(digits, budget, seed) for seed in seeds]
    with (
        quiet("tensorflow"),
        replacing(directory, results.check_replaceable) as scratch,
    ):
        found = Results(
            seeds,
            budget,
            {name: it.model.count_params() for name, it in runs[0].trained.items()},
            {name: [each.scores[name] for each in runs] for name in MODELS},
            {name: [each.trained[name].curve for each in runs] for name in MODELS},
            _export(runs[0], scratch),
        )
        results.write(found, scratch)
        teacher, test = runs[0].trained[TEACHER].model, runs[0].split.test
        pictures.draw(found, teacher, test, scratch)
        _report(runs[0], scratch)
    print(f"\n{tables.quality(found)}\n\n{tables.serving(found)}")
    print(f"\nThe report is {results.REPORT}/{PAGE_FILE} in {out}.")
    print("The exported models, a picture and all numbers are in the same directory:")
    print(
        f"{FOLDERS[TEACHER]}/, {FOLDERS[DISTILLED]}/, {results.PICTURE}, {results.FILE}"
    )
    if smoke:
        print("A smoke run: its numbers mean nothing.")
    return found


def _check(seeds: list[int]) -> None:
    for module in _NEEDED:
        if importlib.util.find_spec(module) is None:
            raise ImportError(
                f"The demo needs the package that provides `{module}`, which is not "
                f"installed. Install it with {advice('demo')}."
            )
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError(
            f"`seeds` must be different integers >= 0. Received: seeds={seeds}"
        )


def _run_seed(digits: data.Digits, budget: Budget, seed: int) -> _Run:
    print(f"\nSeed {seed}", flush=True)
    split = data.split(digits, seed)
    teacher = _say(TEACHER, lambda: train_teacher(split, budget, seed))
    alone = _say(ALONE, lambda: train_alone(split, budget, seed))
    distilled = _say(
        DISTILLED, lambda: train_distilled(teacher.model, split, budget, seed)
    )
    trained = {TEACHER: teacher, ALONE: alone, DISTILLED: distilled}
    scores = {
        name: measuring.score(it.model, teacher.model, split.test)
        for name, it in trained.items()
    }
    return _Run(split, trained, scores)


def _say(name: str, train: Callable[[], Trained]) -> Trained:
    print(f"  training the {name:<18}", end="", flush=True)
    start = time.perf_counter()
    trained = train()
    seconds = time.perf_counter() - start
    print(f"test accuracy {trained.curve[-1]:.1%} after {seconds:.1f} s", flush=True)
    return trained


def _report(run: _Run, directory: Path) -> None:
    """Write the comparison of a seed's models."""
    test = run.split.test
    compare(
        {name: it.model for name, it in run.trained.items()},
        (test.images, test.labels),
        teacher=TEACHER,
        baseline=ALONE,
        exports={name: directory / folder for name, folder in FOLDERS.items()},
        batch_sizes=(1, 64),
    ).write(directory / results.REPORT)


def _export(run: _Run, directory: Path) -> dict[str, serving.Served]:
    """Export and time the teacher and the distilled student."""
    print("\nExporting teacher and student, checking and timing the files", flush=True)
    return {
        name: serving.serve(
            run.trained[name].model, directory / folder, run.split.test.images
        )
        for name, folder in FOLDERS.items()
    }
