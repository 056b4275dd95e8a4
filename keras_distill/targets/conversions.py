"""Conversions to logits, in NumPy, for the outputs of teachers outside of Keras."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_distill.targets.formats import OFF_ONE

Array = np.ndarray
# How far a probability may lie outside of [0, 1] by rounding.
_ROUNDING = 1e-6
# As `LogProbabilities` stores it: a probability of 0 has no logarithm.
_SMALLEST = float(np.finfo("float32").tiny)


def logits_of_probabilities(label: str, given: Array) -> Array:
    """Return log-odds of one probability a row, or log-probabilities of classes.

    Args:
        label: A name of the probabilities, for errors.
        given: Probabilities in float64 of shape `(rows, ..., 1)` or
            `(rows, ..., classes)`.

    Raises:
        ValueError: A probability lies outside of [0, 1], or those of a row's classes
            don't sum to 1.
    """
    _check(
        label,
        given,
        (given >= -_ROUNDING) & (given <= 1 + _ROUNDING),
        "must be probabilities in [0, 1]. Pass `outputs='log_odds'` or 'logits' for "
        "scores of any size",
    )
    if given.shape[-1] == 1:
        log_odds: Array = _log(given) - _log(1.0 - given)
        return log_odds
    total = given.sum(axis=-1, keepdims=True)
    _check(
        label,
        given,
        np.abs(total - 1.0) < OFF_ONE,
        "must be probabilities of classes, which sum to 1 in each row. Of events that "
        "don't exclude each other, return the log-odds, and pass `outputs='log_odds'`",
    )
    return _log(given)


def unchanged(label: str, given: Array) -> Array:
    """Return outputs that are logits already."""
    return given


# By the value of the argument `outputs`.
CONVERSIONS: dict[str, Callable[[str, Array], Array]] = {
    "probabilities": logits_of_probabilities,
    "log_odds": unchanged,
    "logits": unchanged,
}


def converted(label: str, given: Any, outputs: str, rows: int) -> Array:
    """Return the logits of a batch in float32, with an axis of units.

    Args:
        label: A name of the outputs, for errors.
        given: The teacher's outputs for the batch.
        outputs: The kind of the outputs: a key of `CONVERSIONS`.
        rows: The number of rows of the batch.

    Raises:
        ValueError: The outputs aren't numbers for each row, or have values that this
            kind can't have.
    """
    array = np.asarray(given)
    if array.dtype.kind not in "biuf" or array.shape[:1] != (rows,):
        raise ValueError(
            f"{label} must be an array of numbers with a row for each of the batch. "
            f"Received: {array.dtype} of shape {array.shape} for {rows} rows"
        )
    array = array.astype("float64")
    if array.ndim == 1:
        array = array[:, None]
    _check(label, array, ~np.isnan(array), "must not be NaN")
    logits = CONVERSIONS[outputs](label, array)
    with np.errstate(over="ignore"):
        result = logits.astype("float32")
    _check(label, array, np.isfinite(result), "must be finite as float32")
    return result


def _log(p: Array) -> Array:
    log_p: Array = np.log(np.maximum(p, _SMALLEST))
    return log_p


def _check(label: str, given: Array, right: Array, rule: str) -> None:
    """Raise ValueError if a row has a value that isn't right."""
    wrong = np.flatnonzero(~right.reshape(len(right), -1).all(axis=-1))
    if wrong.size:
        raise ValueError(
            f"{label} {rule}. Received: {wrong.size} of {len(right)} such rows in a "
            f"batch, the first of them row {wrong[0]}: {given[wrong[0]]}"
        )
