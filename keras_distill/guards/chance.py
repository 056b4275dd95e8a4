"""Whether a teacher knows more of the labels than chance does.

Two rows of a batch that have different labels are compared. A teacher that knows
something gives each row a lower label loss than its mean over both rows has, or at
least tells which label is whose. Both are free of what its outputs have in common, such
as another share of each class, and say nothing of batches with one label only.
"""

import math
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill.cautions import TeacherWarning
from keras_distill.guards.kinds import Kind
from keras_distill.per_output import of_rank
from keras_distill.types import Tensor

# Rows in pairs that are needed to tell, and that are enough.
LEAST, ENOUGH = 64, 1024
# A gain in loss below this part of it is none; where the loss is no better than that of
# outputs that are all equal, a larger one is none either.
_NO_GAIN, _LITTLE_GAIN = 0.005, 0.025
# A teacher that tells a row's label in more than this part of the pairs knows it.
_TELLS = 0.66
# A loss that rows with another label than the teacher's have in nats, where its logits
# are too large for what it was trained on, as those of pixels that weren't scaled.
_FAR_OFF = 50.0
_TOO_SURE = "it is far too sure where it is wrong, as of inputs that weren't scaled"


def sums(
    loss: Any,
    kind: Kind | None,
    labels: Tensor,
    output: Tensor,
    counts: Tensor | None,
) -> Tensor | None:
    """Return what `Standing` is made of, for one batch; None where it can't be had.

    Every operation here costs each training the time of its trace.

    Args:
        loss: The label loss, one that may be called again.
        kind: What it takes the output for.
        labels: The labels of one output.
        output: The teacher's.
        counts: Which rows or positions count, None for all.
    """
    labels, output = ops.convert_to_tensor(labels), ops.convert_to_tensor(output)
    output = ops.cast(output, "float32")
    other = ops.flip(output, axis=0)
    # one call for all, so that the loss is traced once
    outputs = [output, other, (output + other) / 2.0, _uninformed(output, kind)]
    values = loss.call(
        ops.concatenate([_of_loss(loss, labels)] * len(outputs), axis=0),
        ops.concatenate([_of_loss(loss, each) for each in outputs], axis=0),
    )
    if len(values.shape) == 0:
        return None  # a loss of the batch, not of its rows
    own, others, mean, uninformed = tf.split(values, len(outputs))
    valid = ops.ones_like(own)
    if counts is not None:
        valid = valid * ops.cast(of_rank(counts, own), own.dtype)
    paired = valid * ops.flip(valid, axis=0) * _differ(labels, own)
    wins = ops.cast(own < others, own.dtype) + 0.5 * ops.cast(own == others, own.dtype)
    has_pair, (gain, won, of_mean) = _by_row(paired, [mean - own, wins, mean])
    has_label, of_rows = _by_row(valid, [own, uninformed, own**2])
    found = [has_pair, gain, gain**2, won, of_mean, has_label, *of_rows]
    return tf.reduce_sum(tf.cast(tf.stack(found), "float32"), axis=-1)


class Standing:
    """What is known of a teacher's label loss.

    Args:
        found: The sums over all batches so far.
        kind: What the label loss takes the output for.
        output: What messages call the output, empty for the only one.
        of_logits: Whether the teacher's output is logits. A teacher of probabilities
            may rule classes out, which costs each of its errors any number of nats.
    """

    def __init__(
        self,
        found: np.ndarray,
        kind: Kind | None,
        output: str,
        *,
        of_logits: bool = True,
    ) -> None:
        self._kind, self._output = kind, output
        self._of_logits = of_logits and kind is not None and kind.values == "logits"
        (
            self.pairs,
            self._gain,
            self._gain_squared,
            self._won,
            self._mean_loss,
            self._rows,
            self._loss,
            self._none_loss,
            self._squares,
        ) = map(float, found)

    def check(self) -> bool:
        """Warn if the teacher is no better than chance; return whether."""
        if self.pairs < LEAST or not math.isfinite(self._loss):
            return False
        gain, chance = self._gain / self.pairs, self._mean_loss / self.pairs
        won = self._won / self.pairs
        loss, none = self._loss / self._rows, self._none_loss / self._rows
        variance = max(0.0, self._gain_squared / self.pairs - gain**2)
        # each pair counts twice, once for each of its rows; and early looks are many
        errors = 1.5 if self.pairs >= ENOUGH / 2 else 2.5
        error = errors * math.sqrt(2.0 * variance / self.pairs)
        is_worse = loss >= none
        least_gain = (_LITTLE_GAIN if is_worse else _NO_GAIN) * abs(chance)
        tells = won + 0.5 / math.sqrt(self.pairs) > _TELLS
        # values of neighbours in time differ by little but noise
        close = self._kind is None and loss < 0.1 * none
        knows = gain + error > least_gain or tells or close
        of_errors = self._squares / max(self._loss, 1e-9)
        far_off = self._of_logits and is_worse and of_errors > _FAR_OFF
        if knows and not far_off:
            return False
        if is_worse:
            found = (
                f"{loss:.3g} on the first {self._rows:.0f} rows, where outputs that "
                f"are all equal have {none:.3g}"
            )
        else:
            found = (
                f"{chance - gain:.3g} on {self.pairs:.0f} rows paired with others of "
                f"another label, where the mean of both outputs has {chance:.3g}"
            )
        tells_of = (
            f"in {won:.0%} of {self.pairs:.0f} pairs it tells which label is whose"
        )
        tells_of = f"though {tells_of}: {_TOO_SURE}" if knows else f"and {tells_of}"
        warnings.warn(
            f"The teacher is no better than chance{self._output}: its own label loss "
            f"is {found}, {tells_of}. Is it trained, and does it get the preprocessing "
            "and the order of classes that it was trained with? "
            "`compile(log_teacher=True)` logs its label loss. Where this is as it "
            "should be, filter `keras_distill.teachers.TeacherWarning`.",
            TeacherWarning,
            stacklevel=2,
        )
        return True


def _uninformed(output: Tensor, kind: Kind | None) -> Tensor:
    """Return an output that says the same of each row and each class."""
    if kind is None or kind.values == "logits" or len(output.shape) < 2:
        return ops.zeros_like(output)
    share = 0.5 if kind.per_unit else 1.0 / max(output.shape[kind.axis] or 1, 1)
    return ops.full_like(output, share)


def _differ(labels: Tensor, values: Tensor) -> Tensor:
    """Return which of a loss's values are of labels that differ between two rows."""
    differ = ops.not_equal(labels, ops.flip(labels, axis=0))
    while len(differ.shape) > len(values.shape):
        differ = ops.any(differ, axis=-1)
    return ops.cast(of_rank(differ, values), values.dtype)


def _by_row(counts: Tensor, values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return which rows count, and the means of their values, 0 of other rows."""
    counting = tf.where(counts > 0, tf.stack(values), 0.0)
    if len(counts.shape) == 1:
        return counts, tf.unstack(counting)
    axes = tuple(range(1, len(counts.shape)))
    number = tf.reduce_sum(counts, axis=axes)
    sums = tf.reduce_sum(counting, axis=tuple(axis + 1 for axis in axes))
    means = tf.unstack(sums / tf.maximum(number, 1.0), num=len(values))
    return tf.cast(number > 0, counts.dtype), means


def _of_loss(loss: Any, tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype that Keras gives its losses."""
    return ops.convert_to_tensor(tensor, dtype=loss.dtype)
