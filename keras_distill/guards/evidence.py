"""Sums over a model's outputs that tell logits from probabilities."""

import math
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill.guards.kinds import Kind, name_of, tempered
from keras_distill.types import Tensor

# What values may miss [0, 1] by, and rows a sum of 1, e.g. as of bfloat16.
_BELOW, _ABOVE, _OFF = 1e-3, 1e-2, 1e-2
# How improbable it must be that logits all lie in [0, 1].
_IMPROBABLE = 1e-3
# The variance of values that are all the same, for each square of their mean.
_ALIKE = 1e-4
# Rows of logits that may each have a sum of 1 by chance.
_FEW = 8


def sums(output: Tensor, axis: int) -> Tensor:
    """Return what `Evidence` is made of, for one batch.

    Every operation here costs each training the time of its trace.
    """
    values = ops.cast(output, "float32")
    if axis != -1 and len(values.shape) > 1:
        values = ops.moveaxis(values, axis, -1)
    of_rows = tf.reduce_sum(values, axis=-1)
    return tf.stack(
        [
            tf.cast(tf.size(values), "float32"),
            _count(values < -_BELOW),
            _count(values > 1.0 + _ABOVE),
            tf.reduce_sum(of_rows),
            tf.reduce_sum(tf.square(values)),
            tf.cast(tf.size(of_rows), "float32"),
            _count(tf.abs(of_rows - 1.0) <= _OFF),
        ]
    )


class Evidence:
    """What is known of an output's values.

    Args:
        found: The sums over all batches so far.
        whose: `"teacher"`, `"student"`, or what else messages call the model.
        units: How many units a row has, None where it isn't known.
    """

    def __init__(self, found: np.ndarray, whose: str, units: int | None) -> None:
        self.whose = whose
        self._units = units
        self._values, self._negative, self._above = map(float, found[:3])
        self._sum, self._squares = float(found[3]), float(found[4])
        self._rows, self._rows_of_1 = float(found[5]), float(found[6])

    def check(self, loss: Any, kind: Kind) -> bool:
        """Warn if a loss takes these values for what they aren't; return whether."""
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
        if variance <= _ALIKE * mean**2:  # as of a head that starts from zeros
            return False
        if not kind.per_unit:
            sums_to_1 = self._rows_of_1 == self._rows >= _FEW
            return self._units != 1 and sums_to_1
        return self._chance_of_staying_inside(mean, variance) < _IMPROBABLE

    def _chance_of_staying_inside(self, mean: float, variance: float) -> float:
        """Return how probably logits of this mean and spread all lie in [0, 1]."""
        scale = math.sqrt(2.0 * variance)
        inside = 0.5 * (math.erf((1.0 - mean) / scale) + math.erf(mean / scale))
        return float(inside**self._values)


def _count(truths: Tensor) -> Tensor:
    return tf.cast(tf.math.count_nonzero(truths), "float32")


def _warn_of_probabilities(loss: Any, kind: Kind, whose: str) -> None:
    ours = tempered(loss)
    if ours is not None:
        # it may have warned before, where it saw a softmax; it knows no names of peers
        ours.warn_of_probabilities("teacher" if whose == "teacher" else "student")
        return
    warnings.warn(
        f"The {whose}'s output looks like probabilities, but `{name_of(loss)}` takes "
        f"them for logits. {kind.hint}",
        stacklevel=2,
    )
