"""KerasTuner's part of a search: its oracles choose the next setting to try."""

import contextlib
import functools
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill.installing import advice
from keras_distill.tuning.fits import Fits, is_finite
from keras_distill.tuning.settings import Setting, Space

PROJECT = "keras_tuner"


def keras_tuner() -> Any:
    """Return the package KerasTuner; without it, raise an error with install advice."""
    try:
        import keras_tuner as package
    except ImportError as error:
        raise ImportError(
            "`tuning` needs KerasTuner, which isn't installed. Install it with "
            f"{advice('tuning')}."
        ) from error
    return package


def direction_of(objective: str, direction: str | None) -> str:
    """Return the direction, which for None is that of the objective in KerasTuner."""
    if direction is None:
        package = keras_tuner()
        try:
            oracle = package.oracles.RandomSearchOracle(objective)
        except ValueError as error:
            raise ValueError(
                "`direction` must be 'max' or 'min' for an objective that isn't a "
                f"Keras metric. Received: objective={objective!r}, direction=None"
            ) from error
        direction = str(oracle.objective.direction)
    if direction not in ("max", "min"):
        raise ValueError(
            f"`direction` must be 'max' or 'min'. Received: direction={direction!r}"
        )
    return direction


def made(
    oracle: Callable[..., Any] | None,
    space: Space,
    objective: tuple[str, str],
    max_trials: int | None,
    seed: int,
) -> Any:
    """Return the oracle that chooses the settings.

    If `oracle` is None, all settings are tried in turn if `max_trials` allows it.
    Otherwise settings are drawn at random.
    """
    package = keras_tuner()
    oracles, size = package.oracles, space.size()
    trials = size if max_trials is None else max_trials
    if oracle is None:
        whole = trials >= size
        oracle = functools.partial(
            oracles.GridSearchOracle if whole else oracles.RandomSearchOracle,
            # Settings whose scores aren't finite don't end the search.
            max_consecutive_failed_trials=trials + 1,
        )
    result = oracle(
        objective=package.Objective(*objective), max_trials=trials, seed=seed + 1
    )
    if not isinstance(result, package.Oracle) or isinstance(
        result, oracles.HyperbandOracle
    ):
        raise TypeError(
            "`oracle` must return a `keras_tuner.Oracle` that fits each setting once "
            f"and whole, which Hyperband doesn't. Received: {result!r}"
        )
    return result


def tried(
    fits: Fits, oracle: Any, seeds: list[int], directory: Path
) -> dict[Setting, float]:
    """Run the trials that the oracle chooses, and return the score of each setting."""
    package = keras_tuner()

    class Tuner(package.engine.base_tuner.BaseTuner):  # type: ignore[name-defined]
        """Fits one setting in each trial."""

        def run_trial(self, trial: Any, *args: Any, **kwargs: Any) -> dict[str, float]:
            setting = fits.space.setting(trial.hyperparameters)
            try:
                value = score(fits, setting, seeds)
            except Exception as error:
                # After any other error, KerasTuner would try the next setting.
                raise package.errors.FatalError(str(error)) from error
            return {oracle.objective.name: value}

    # When KerasTuner resumes an earlier search, it prints a line about it.
    with contextlib.redirect_stdout(io.StringIO()):
        tuner = Tuner(oracle, fits.space.setting, str(directory), PROJECT)
    with warnings.catch_warnings():
        # KerasTuner computes the best score of a trial, whose only score may be NaN.
        warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
        try:
            tuner.search(verbose=0)
        except package.errors.FatalError as error:
            raise (error.__cause__ or error) from None
    settings = [
        (
            fits.space.setting(trial.hyperparameters),
            trial.score if trial.status == "COMPLETED" else float("nan"),
        )
        for trial in oracle.trials.values()
        if trial.status in ("COMPLETED", "FAILED")
    ]
    # KerasTuner doesn't load trials in the order in which it ran them. A resumed search
    # must choose the same one of several best settings.
    settings.sort(key=lambda item: str(item[0]))
    return {setting: float(value) for setting, value in settings}


def score(fits: Fits, setting: Setting, seeds: list[int]) -> float:
    """Return the mean score of a setting on the rows of the search."""
    found = [fits.scores(setting, seed, "search", 1) for seed in seeds]
    return float(np.mean(found)) if all(map(is_finite, found)) else float("nan")
