"""Sums over a model's outputs that distinguish logits from probabilities."""

import math
import warnings
from typing import Any

import numpy as np
from keras import ops

from keras_distill.guards.kinds import Kind, name_of, tempered
from keras_distill.types import Tensor

# How far a value may be below 0 or above 1, and a row's sum from 1, and still count as
# a probability. Outputs in bfloat16 are off by as much.
_BELOW, _ABOVE, _OFF = 1e-3, 1e-2, 1e-2
# Values in [0, 1] count as probabilities if normal logits of the same mean and variance
# would all lie in [0, 1] with less than this probability.
_IMPROBABLE = 1e-3
# Values count as equal if their variance is below this part of their squared mean.
_ALIKE = 1e-4
# A few rows of logits may each sum to 1 by chance, so at least these rows are needed.
_FEW = 8


def sums(output: Tensor, axis: int) -> Tensor:
    """Return the sums over one batch that `Evidence` reads, a vector of 7.

    Each training traces every operation in this function, so there are few of them.
    """
    values = ops.cast(output, "float32")
    if axis != -1 and len(values.shape) > 1:
        values = ops.moveaxis(values, axis, -1)
    of_rows = ops.sum(values, axis=-1)
    return ops.stack(
        [
            ops.cast(ops.size(values), "float32"),
            _count(values < -_BELOW),
            _count(values > 1.0 + _ABOVE),
            ops.sum(of_rows),
            ops.sum(ops.square(values)),
            ops.cast(ops.size(of_rows), "float32"),
            _count(ops.abs(of_rows - 1.0) <= _OFF),
        ]
    )


class Evidence:
    """Decides whether values are logits or probabilities, from their sums.

    Args:
        found: The sums over all batches so far.
        whose: The name of the model in messages, e.g. `"teacher"` or `"student"`.
        units: Number of units in a row; None if unknown.
    """

    def __init__(self, found: np.ndarray, whose: str, units: int | None) -> None:
        self.whose = whose
        self._units = units
        self._values, self._negative, self._above = map(float, found[:3])
        self._sum, self._squares = float(found[3]), float(found[4])
        self._rows, self._rows_of_1 = float(found[5]), float(found[6])

    def check(self, loss: Any, kind: Kind) -> bool:
        """Warn if the values aren't of the kind of a loss; return whether it warned."""
        if not self._values or not math.isfinite(self._squares):
            return False
        if kind.values == "logits":
            found = self._are_probabilities(kind)
            if found:
                _warn_of_probabilities(loss, kind, self.whose)
            return found
        outside = self._negative
        if kind.values == "probabilities":
            outside += self._above
        if not outside:
            return False
        what = "probabilities" if kind.values == "probabilities" else "values from 0 on"
        warnings.warn(
            f"The {self.whose}'s output looks like logits, but `{name_of(loss)}` takes "
            f"{what}: of {self._values:.0f} values {self._negative:.0f} are negative "
            f"and {self._above:.0f} above 1. {kind.hint}",
            stacklevel=2,
        )
        return True

    def _are_probabilities(self, kind: Kind) -> bool:
        if self._negative or self._above:
            return False
        mean = self._sum / self._values
        variance = self._squares / self._values - mean**2
        # A head with zero weights returns equal values, which may be of either kind.
        if variance <= _ALIKE * mean**2:
            return False
        if not kind.per_unit:
            sums_to_1 = self._rows_of_1 == self._rows >= _FEW
            return self._units != 1 and sums_to_1
        return self._chance_of_staying_inside(mean, variance) < _IMPROBABLE

    def _chance_of_staying_inside(self, mean: float, variance: float) -> float:
        """Return the probability that normal logits all lie in [0, 1]."""
        scale = math.sqrt(2.0 * variance)
        inside = 0.5 * (math.erf((1.0 - mean) / scale) + math.erf(mean / scale))
        return float(inside**self._values)


def _count(truths: Tensor) -> Tensor:
    return ops.cast(ops.count_nonzero(truths), "float32")


def _warn_of_probabilities(loss: Any, kind: Kind, whose: str) -> None:
    ours = tempered(loss)
    if ours is not None:
        # This loss warns by itself, only once, and without the names of peers.
        ours.warn_of_probabilities("teacher" if whose == "teacher" else "student")
        return
    warnings.warn(
        f"The {whose}'s output looks like probabilities, but `{name_of(loss)}` takes "
        f"them for logits. {kind.hint}",
        stacklevel=2,
    )
