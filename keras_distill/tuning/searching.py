"""The search: it tries settings and compares the best one with the student alone."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill import atomic
from keras_distill.tuning import checks, oracles
from keras_distill.tuning.answer import Answer
from keras_distill.tuning.fits import BLOCKS, Fits, Record, Rows, is_finite
from keras_distill.tuning.interval import Gain, gain, looks
from keras_distill.tuning.settings import ALONE, Losses, Setting, Space

# This is added to the seed, so that the confirmation has other seeds than the search.
_FRESH = 10_000
_FUNCTIONS = "build_student", "teacher", "compile"
# A resumed search must have the same values of these arguments.
_PLAN = (
    "objective",
    "epochs",
    "batch_size",
    "max_trials",
    "fits_per_trial",
    "seeds",
    "max_seeds",
    "smallest_gain",
    "seed",
)
_OF_FITS = (*_FUNCTIONS, "train", "callbacks", "objective", "verbose", "seed")


def search(
    build_student: Callable[[], Any],
    teacher: Any,
    train: Any,
    held_out: Rows,
    *,
    compile: Callable[[], Mapping[str, Any]],
    losses: Losses | None = None,
    temperatures: Sequence[float] = (1.0, 2.0, 4.0),
    alphas: Sequence[float] = (0.0, 0.1, 0.5, 0.9),
    objective: str = "accuracy",
    direction: str | None = None,
    epochs: int = 1,
    batch_size: int | None = None,
    callbacks: Callable[[], Sequence[Any]] | None = None,
    oracle: Callable[..., Any] | None = None,
    max_trials: int | None = None,
    fits_per_trial: int = 1,
    seeds: int = 5,
    max_seeds: int = 10,
    smallest_gain: float = 0.0,
    seed: int = 0,
    directory: str | Path | None = None,
    overwrite: bool = False,
    verbose: int = 1,
) -> Answer:
    """Find out whether distillation helps on your data, and with which setting.

    First comes the search. KerasTuner tries losses, temperatures and alphas. The
    student alone (alpha 0) is always tried, before all others. Each fit is scored on
    one half of the held-out rows.

    Then comes the confirmation. The best setting and the student alone are fit with new
    seeds and scored on the other half. For the same seed, both have the same initial
    weights and batches. Seeds are added until the interval of the gain doesn't contain
    0, or half its width is below `smallest_gain`, or `max_seeds` is reached. The
    interval may be computed several times; all these intervals hold at once with 95 %.

    The number of fits is at most `(max_trials + 1) * fits_per_trial + 2 * max_seeds`.
    The 1 is for an oracle that doesn't try the student alone. With the defaults, there
    are 10 fits in the search and 10 or 20 in the confirmation.

    Args:
        build_student: A function that returns a fresh, untrained student.
        teacher: A teacher as for `Distiller`, which must not change in training.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays, or a data set of batches.
            A data set must draw the same batches after the same
            `keras.utils.set_random_seed`.
        held_out: `(x, y)` or `(x, y, sample_weight)` of arrays that aren't in `train`.
        compile: A function that returns a dict of arguments of `Distiller.compile`,
            with a fresh optimiser in each call. The dict needs a `loss`, and the metric
            that is the objective.
        losses: A dict by name. Each value is a function of `temperature` that returns a
            loss, or a Keras loss without a temperature. Defaults to
            `{"ForwardKL": keras_distill.losses.ForwardKL}`.
        temperatures: The temperatures to try. Defaults to 1, 2 and 4.
        alphas: The values of alpha to try; 0 is added if it is missing. Defaults to
            0, 0.1, 0.5 and 0.9.
        objective: The name of the score, one of the values that `Distiller.evaluate`
            returns. Defaults to `"accuracy"`.
        direction: `"max"` or `"min"`. By default, KerasTuner derives it from the name
            of the objective.
        epochs: As in `fit`. Defaults to 1.
        batch_size: As in `fit`.
        callbacks: A function that returns fresh callbacks for one fit, e.g. early
            stopping. If it is given, the rows of the search are the validation data.
        oracle: A function of `objective`, `max_trials` and `seed` that returns an
            oracle, e.g. the class `keras_tuner.oracles.BayesianOptimizationOracle`.
            Defaults to a grid search, or to a random search if `max_trials` is below
            the number of settings.
        max_trials: The largest number of settings to try, including the student alone.
            Defaults to the number of all settings.
        fits_per_trial: The number of seeds for each setting in the search. Defaults to
            1.
        seeds: The number of seeds after which the gain is first computed. It is doubled
            for each later computation. Defaults to 5.
        max_seeds: The largest number of seeds in the confirmation. Defaults to 10.
        smallest_gain: The smallest gain that matters to you. Defaults to 0, with which
            no interval is narrow enough to end the confirmation.
        seed: The seed of the split, of the search and of the fits. Each fit sets the
            global seed. Defaults to 0.
        directory: The directory of the results, from which a search that was stopped
            resumes. Defaults to a directory that is removed at the end.
        overwrite: Whether to delete the results of an earlier search in `directory`.
            Defaults to False.
        verbose: 1 prints a line for each fit, 0 none. Defaults to 1.

    Returns:
        The answer. It recommends the student alone unless distillation helps.

    Raises:
        ImportError: If KerasTuner or SciPy isn't installed.
        TypeError: If the teacher is None, or if an argument that must be a function
            isn't one.
        ValueError: If held-out rows or labels are missing or too few; if a setting, the
            objective or a number is wrong; if `directory` holds another search; if no
            score of a setting with alpha above 0 is finite.

    Example:
        >>> import keras
        >>> x = np.random.default_rng(0).normal(size=(96, 4)).astype("float32")
        >>> y = x.argmax(axis=1)
        >>> def student():
        ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
        >>> def settings():
        ...     loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        ...     return {"optimizer": "adam", "loss": loss, "metrics": ["accuracy"]}
        >>> answer = search(
        ...     student, lambda x: 9 * x, (x[:48], y[:48]), (x[48:], y[48:]),
        ...     compile=settings, temperatures=[2.0], alphas=[0.5], seeds=2,
        ...     max_seeds=2, verbose=0)
        >>> answer.fits, answer.verdict in ("helps", "no gain shown", "hurts")
        (6, True)
    """
    given = dict(locals())
    checks.check_callable({name: given[name] for name in _FUNCTIONS}, callbacks, oracle)
    numbers = {"epochs": epochs, "fits_per_trial": fits_per_trial}
    checks.check_numbers(numbers, seeds, max_seeds, max_trials, smallest_gain)
    space = Space(losses, temperatures, alphas)
    parts = checks.split(held_out, seed)
    with tempfile.TemporaryDirectory() as scratch:
        return _answer(given, space, parts, Path(directory or scratch))


def _answer(
    given: Mapping[str, Any], space: Space, parts: Mapping[str, Rows], directory: Path
) -> Answer:
    """Search, confirm, and return the answer."""
    objective = given["objective"]
    aim = objective, oracles.direction_of(objective, given["direction"])
    plan = {name: given[name] for name in _PLAN} | {
        "losses": list(space.losses),
        "temperatures": space.temperatures,
        "alphas": space.alphas,
        "direction": aim[1],
        "held_out": [checks.count(part) for part in parts.values()],
    }
    folder = _prepared(directory, plan, given["overwrite"])
    record = Record(folder / "fits.jsonl")
    fits = Fits(
        fit={name: given[name] for name in ("epochs", "batch_size")},
        parts=parts,
        space=space,
        record=record,
        **{name: given[name] for name in _OF_FITS},
    )
    chooser = oracles.made(
        given["oracle"], space, aim, given["max_trials"], given["seed"]
    )
    seeds = [given["seed"] + i for i in range(given["fits_per_trial"])]
    scores = {ALONE: oracles.score(fits, ALONE, seeds)}
    scores |= oracles.tried(fits, chooser, seeds, folder)
    best = _best(scores, aim[1])
    planned = looks(given["seeds"], given["max_seeds"])
    found = _confirmed(fits, best, aim[1], planned, given["smallest_gain"])
    loss = space.distillation_loss(best)
    return Answer(best, found, *aim, scores, len(record.scores), loss)


def _confirmed(
    fits: Fits,
    best: Setting,
    direction: str,
    planned: Sequence[tuple[int, float]],
    smallest_gain: float,
) -> Gain:
    """Add seeds until the gain is known well enough, and return it."""
    sign = 1 if direction == "max" else -1
    first = fits.seed + _FRESH
    differences: list[Any] = []
    for count, share in planned:
        for i in range(len(differences), count):
            pair = [
                fits.scores(setting, first + i, "confirm", BLOCKS)
                for setting in (best, ALONE)
            ]
            if not all(map(is_finite, pair)):
                raise ValueError(
                    f"A score of {best} or of the student alone isn't finite with seed "
                    f"{first + i}. Use a smaller learning rate. Received: {pair}"
                )
            differences.append(sign * np.subtract(pair[0], pair[1]))
        found = gain(differences, error=0.05 * share)
        narrow = (found.high - found.low) / 2 < smallest_gain
        if narrow or found.verdict != "no gain shown":
            break
    return found


def _best(scores: Mapping[Setting, float], direction: str) -> Setting:
    able = {it: value for it, value in scores.items() if it.alpha}
    able = {it: value for it, value in able.items() if math.isfinite(value)}
    if not able:
        raise ValueError(
            "No setting with alpha above 0 was tried and had a finite score. Raise "
            f"`max_trials`. Received: { {str(k): v for k, v in scores.items()} }"
        )
    return (max if direction == "max" else min)(able, key=lambda it: able[it])


def _prepared(folder: Path, plan: Mapping[str, Any], overwrite: bool) -> Path:
    """Make the directory, or check that it holds the same search."""
    path = folder / "plan.json"
    if overwrite:
        for name in ("plan.json", "fits.jsonl"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / oracles.PROJECT, ignore_errors=True)
    text = json.dumps(plan)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(
            "`directory` holds a search with other arguments. Choose another one, or "
            f"pass `overwrite=True`. Received: directory={str(folder)!r}, {text} but "
            f"found {path.read_text(encoding='utf-8')}"
        )
    atomic.replace_text(path, text)
    return folder
