"""The search: settings are tried, and the best one is confirmed against none."""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill import atomic
from keras_distill.tuning import oracles
from keras_distill.tuning.answer import Answer
from keras_distill.tuning.fits import Fits, Record, Rows, is_finite, take
from keras_distill.tuning.interval import Gain, gain, looks
from keras_distill.tuning.settings import ALONE, Losses, Setting, Space

# The seeds of the confirmation are none of those of the search.
_FRESH = 10_000


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
    """Find out whether distillation helps here, and with which setting.

    First the search: KerasTuner tries losses, temperatures and alphas. The student
    alone (alpha 0) is always tried, and first. Each fit is judged on one half of
    the held-out rows. Then the confirmation: the best setting and the student alone
    are fit with fresh seeds, and judged on the other half. For one seed both have the
    same initial weights and the same batches. Seeds are added until the interval of
    the gain excludes 0, or is narrower than `smallest_gain` on either side, or
    `max_seeds` is reached. The intervals of all looks hold at once with 95 %.

    The cost in fits: at most `max_trials * fits_per_trial + 2 * max_seeds`. With the
    defaults, 10 for the search and 10 or 20 for the confirmation.

    Args:
        build_student: A function that returns a fresh, untrained student.
        teacher: As for `Distiller`. It must not train.
        train: `(x, y)` or `(x, y, sample_weight)` of arrays, or a data set of batches.
            A data set must draw the same batches after the same
            `keras.utils.set_random_seed`.
        held_out: `(x, y)` or `(x, y, sample_weight)` of arrays that aren't in `train`.
        compile: A function that returns a dict of arguments of `Distiller.compile`,
            with a fresh optimiser in each call. It needs a `loss`, and the metric that
            is the objective.
        losses: Names, each with a function of `temperature` that returns a loss, or
            with a Keras loss that has no temperature. Defaults to
            `{"ForwardKL": keras_distill.losses.ForwardKL}`.
        temperatures: The temperatures to try. Defaults to 1, 2 and 4.
        alphas: The values of alpha to try; 0 is added where it is missing. Defaults to
            0, 0.1, 0.5 and 0.9.
        objective: What `Distiller.evaluate` returns under this name. Defaults to
            `"accuracy"`.
        direction: `"max"` or `"min"`. Defaults to what KerasTuner knows of the name.
        epochs: As in `fit`. Defaults to 1.
        batch_size: As in `fit`.
        callbacks: A function that returns fresh callbacks for one fit, e.g. early
            stopping. With it, the rows of the search are the validation data.
        oracle: A function of `objective`, `max_trials` and `seed` that returns an
            oracle, e.g. the class `keras_tuner.oracles.BayesianOptimizationOracle`.
            Defaults to a grid search, or to a random one where `max_trials` is below
            the number of settings.
        max_trials: The settings to try at most, the student alone among them. Defaults
            to all of them.
        fits_per_trial: The seeds of each trial. Defaults to 1.
        seeds: The seeds of the first look at the gain. Later looks double them.
            Defaults to 5.
        max_seeds: The seeds of the last look. Defaults to 10.
        smallest_gain: The gain that would matter to you. Defaults to 0: the interval
            is never narrow enough.
        seed: The seed of the split, of the search and of the fits. Each fit sets the
            global seed. Defaults to 0.
        directory: Where to keep the results, so that a search that was stopped goes
            on. Defaults to a directory that is removed at the end.
        overwrite: Whether to drop the results of an earlier search in `directory`.
            Defaults to False.
        verbose: 1 prints a line for each fit, 0 none. Defaults to 1.

    Returns:
        The answer. It recommends the student alone unless distillation helps.

    Raises:
        ImportError: If KerasTuner or SciPy isn't installed.
        TypeError: If the teacher is None, or a function isn't one.
        ValueError: If held-out rows or labels are missing or too few; if a setting, the
            objective or a number is wrong; if `directory` holds another search; if no
            score of a setting with alpha above 0 is finite.

    Example:
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
    functions = {"build_student": build_student, "teacher": teacher, "compile": compile}
    _check_callable(functions, callbacks, oracle)
    numbers = {"epochs": epochs, "fits_per_trial": fits_per_trial}
    _check_numbers(numbers, seeds, max_seeds, max_trials, smallest_gain)
    parts = _split(held_out, seed)
    space = Space(losses, temperatures, alphas)
    aim = objective, oracles.direction_of(objective, direction)
    plan = {
        "losses": list(space.losses), "temperatures": space.temperatures,
        "alphas": space.alphas, "objective": aim, "epochs": epochs,
        "batch_size": batch_size, "max_trials": max_trials,
        "fits_per_trial": fits_per_trial, "seeds": seeds, "max_seeds": max_seeds,
        "smallest_gain": smallest_gain, "seed": seed,
        "held_out": [_count(part) for part in parts.values()],
    }  # fmt: skip
    fit = {"epochs": epochs, "batch_size": batch_size}
    with tempfile.TemporaryDirectory() as scratch:
        folder = _prepared(Path(directory or scratch), plan, overwrite)
        record = Record(folder / "fits.jsonl")
        fits = Fits(
            build_student, teacher, train, parts, compile, callbacks, fit, space,
            objective, record, verbose, seed,
        )  # fmt: skip
        chooser = oracles.made(oracle, space, aim, max_trials, seed)
        trial_seeds = [seed + i for i in range(fits_per_trial)]
        scores = {ALONE: oracles.score(fits, ALONE, trial_seeds)}
        scores |= oracles.tried(fits, chooser, trial_seeds, folder)
        best = _best(scores, aim[1])
        found = _confirmed(fits, best, aim[1], looks(seeds, max_seeds), smallest_gain)
    loss = space.distillation_loss(best)
    return Answer(best, found, *aim, scores, len(record.scores), loss)


def _confirmed(
    fits: Fits,
    best: Setting,
    direction: str,
    planned: Sequence[tuple[int, float]],
    smallest_gain: float,
) -> Gain:
    """Add seeds until the gain is known well enough."""
    sign = 1 if direction == "max" else -1
    first = fits.seed + _FRESH
    differences: list[Any] = []
    for count, share in planned:
        for i in range(len(differences), count):
            pair = [
                fits.scores(setting, first + i, "confirm", oracles.BLOCKS)
                for setting in (best, ALONE)
            ]
            if not all(map(is_finite, pair)):
                raise ValueError(
                    f"A score of {best} or of the student alone isn't finite with seed "
                    f"{first + i}. Use a smaller learning rate. Received: {pair}"
                )
            differences.append(sign * np.subtract(*pair))
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


def _count(rows: Rows) -> int:
    return len(keras.tree.flatten(rows)[0])


def _split(held_out: Any, seed: int) -> dict[str, Rows]:
    """Return half of the rows for the search, and the other half to confirm."""
    given = isinstance(held_out, (tuple, list)) and len(held_out) in (2, 3)
    if not given or any(part is None for part in held_out):
        raise ValueError(
            "`held_out` must be (x, y) or (x, y, sample_weight), arrays that aren't in "
            f"`train`, with labels. Received: held_out of {type(held_out).__name__}"
            + (f" with {[type(it).__name__ for it in held_out]}" if given else "")
        )
    rows = keras.tree.map_structure(np.asarray, tuple(held_out))
    counts = {len(array) for array in keras.tree.flatten(rows)}
    if len(counts) != 1 or min(counts) < 2 * oracles.BLOCKS:
        raise ValueError(
            f"`held_out` must have {2 * oracles.BLOCKS} rows or more, as many labels as "
            f"inputs. Received: arrays of {sorted(counts)} rows"
        )
    order = np.random.default_rng(seed).permutation(counts.pop())
    half = len(order) // 2
    return {"search": take(rows, order[:half]), "confirm": take(rows, order[half:])}


def _check_callable(functions: Mapping[str, Any], *optional: Any) -> None:
    names = ("callbacks", "oracle")
    given = {k: v for k, v in zip(names, optional, strict=True) if v is not None}
    for name, value in {**functions, **given}.items():
        if not callable(value):
            raise TypeError(
                f"`{name}` must be a function, or for a teacher also a model. Objects "
                "such as optimisers serve one fit, so that each fit makes its own. "
                f"Received: {name}={value!r}"
            )


def _check_numbers(
    counts: Mapping[str, int],
    seeds: int,
    max_seeds: int,
    max_trials: int | None,
    smallest_gain: float,
) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"`{name}` must be 1 or more. Received: {name}={value}")
    if not 2 <= seeds <= max_seeds:
        raise ValueError(
            "`seeds` must be 2 or more, and at most `max_seeds`. Received: "
            f"seeds={seeds}, max_seeds={max_seeds}"
        )
    if max_trials is not None and max_trials < 2:
        raise ValueError(
            "`max_trials` must be 2 or more: the student alone and one setting. "
            f"Received: max_trials={max_trials}"
        )
    if not smallest_gain >= 0:
        raise ValueError(
            f"`smallest_gain` must be 0 or more. Received: {smallest_gain=}"
        )
