"""The comparison of a teacher's label loss with chance, on pairs of rows.

Each row of a batch is compared with another row that has a different label. A teacher
that knows the labels has a lower label loss on each row than the mean of its two
outputs has; or at least its output for a row fits the row's own label better than its
output for the other row does. Neither depends on what all outputs have in common, for
example on other shares of the classes in the teacher's training data. A batch with a
single label has no such pairs.
"""

import math
import warnings
from typing import Any

import numpy as np
from keras import ops

from keras_distill.cautions import TeacherWarning
from keras_distill.guards.kinds import Kind
from keras_distill.per_output import of_rank
from keras_distill.types import Tensor

# The number of rows in pairs from which on the comparison warns, and from which on
# more rows aren't needed.
LEAST, ENOUGH = 64, 1024
# The gain of the label loss, as a part of that of the mean output, below which a
# teacher knows nothing. The second is for teachers whose loss is no better than that
# of an output that is the same for all rows.
_NO_GAIN, _LITTLE_GAIN = 0.005, 0.025
# A teacher knows the labels if its outputs fit them in more than this part of pairs.
_TELLS = 0.66
# The mean loss, in nats, of the rows that a teacher is wrong about, above which its
# logits are too large: it may be given pixels that aren't scaled.
_FAR_OFF = 50.0
_TOO_SURE = "it is far too sure where it is wrong, as of inputs that weren't scaled"


def sums(
    loss: Any,
    kind: Kind | None,
    labels: Tensor,
    output: Tensor,
    counts: Tensor | None,
) -> Tensor | None:
    """Return the sums over one batch that `Comparison` is made of, a vector of 9.

    Every operation here is traced in each training, so there are few.

    Args:
        loss: The label loss; one of Keras' own, whose calls change no state.
        kind: The kind of values that it takes; None if unknown.
        labels: The labels of one output.
        output: The teacher's output.
        counts: Which rows or positions count; None if all do.

    Returns:
        The sums, or None for a loss that returns one value for the whole batch.
    """
    labels, output = ops.convert_to_tensor(labels), ops.convert_to_tensor(output)
    output = ops.cast(output, "float32")
    other = ops.flip(output, axis=0)
    # The loss is called once for all four outputs, so that it is traced once.
    outputs = [output, other, (output + other) / 2.0, _uninformed(output, kind)]
    values = loss.call(
        ops.concatenate([_of_loss(loss, labels)] * len(outputs), axis=0),
        ops.concatenate([_of_loss(loss, each) for each in outputs], axis=0),
    )
    if len(values.shape) == 0:
        return None
    own, others, mean, uninformed = ops.split(values, len(outputs))
    valid = ops.ones_like(own)
    if counts is not None:
        valid = valid * ops.cast(of_rank(counts, own), own.dtype)
    paired = valid * ops.flip(valid, axis=0) * _differ(labels, own)
    wins = ops.cast(own < others, own.dtype) + 0.5 * ops.cast(own == others, own.dtype)
    has_pair, (gain, won, of_mean) = _by_row(paired, [mean - own, wins, mean])
    has_label, of_rows = _by_row(valid, [own, uninformed, own**2])
    found = [has_pair, gain, gain**2, won, of_mean, has_label, *of_rows]
    return ops.sum(ops.cast(ops.stack(found), "float32"), axis=-1)


class Comparison:
    """Compares a teacher's label loss with chance, from its sums.

    Args:
        found: The sums over all batches so far.
        kind: The kind of values that the label loss takes; None if unknown.
        output: The name of the output in messages; empty for the only one.
        of_logits: Whether the teacher's output is logits. The loss of probabilities
            has no upper limit: a teacher may give a class the probability 0, so a large
            loss doesn't show that logits are too large.
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
        knows = self._knows()
        if knows and not self._is_far_off():
            return False
        won = self._won / self.pairs
        tells = (
            f"in {won:.0%} of {self.pairs:.0f} pairs of rows its output for a row fits "
            "that row's label better than its output for the other row does"
        )
        tells = f"though {tells}: {_TOO_SURE}" if knows else f"and {tells}"
        warnings.warn(
            f"The teacher is no better than chance{self._output}: its own label loss "
            f"is {self._figures()}, {tells}. Is it trained, and does it get the "
            "preprocessing and the order of classes that it was trained with? "
            "`compile(log_teacher=True)` logs its label loss. Where this is as it "
            "should be, filter `keras_distill.teachers.TeacherWarning`.",
            TeacherWarning,
            stacklevel=2,
        )
        return True

    @property
    def _is_worse(self) -> bool:
        """Whether the loss is no better than that of one output for all rows."""
        return self._loss / self._rows >= self._none_loss / self._rows

    def _knows(self) -> bool:
        gain, chance = self._gain / self.pairs, self._mean_loss / self.pairs
        variance = max(0.0, self._gain_squared / self.pairs - gain**2)
        # The sums are looked at many times, so few pairs need a wider margin. Each
        # pair counts twice, once for each of its rows.
        margin = 1.5 if self.pairs >= ENOUGH / 2 else 2.5
        error = margin * math.sqrt(2.0 * variance / self.pairs)
        least_gain = (_LITTLE_GAIN if self._is_worse else _NO_GAIN) * abs(chance)
        won = self._won / self.pairs
        tells = won + 0.5 / math.sqrt(self.pairs) > _TELLS
        # In a time series, rows that follow each other differ only by noise. There a
        # good teacher shows no gain, but a small loss.
        close = self._kind is None and self._loss < 0.1 * self._none_loss
        return gain + error > least_gain or tells or close

    def _is_far_off(self) -> bool:
        # The mean loss weighted by the loss itself: that of the wrong rows.
        of_errors = self._squares / max(self._loss, 1e-9)
        return self._of_logits and self._is_worse and of_errors > _FAR_OFF

    def _figures(self) -> str:
        if self._is_worse:
            loss, none = self._loss / self._rows, self._none_loss / self._rows
            return (
                f"{loss:.3g} on the first {self._rows:.0f} rows, where outputs that "
                f"are all equal have {none:.3g}"
            )
        gain, chance = self._gain / self.pairs, self._mean_loss / self.pairs
        return (
            f"{chance - gain:.3g} on {self.pairs:.0f} rows paired with others of "
            f"another label, where the mean of both outputs has {chance:.3g}"
        )


def _uninformed(output: Tensor, kind: Kind | None) -> Tensor:
    """Return an output that is the same for each row and each class."""
    if kind is None or kind.values == "logits" or len(output.shape) < 2:
        return ops.zeros_like(output)
    share = 0.5 if kind.per_unit else 1.0 / max(output.shape[kind.axis] or 1, 1)
    return ops.full_like(output, share)


def _differ(labels: Tensor, values: Tensor) -> Tensor:
    """Return 1 for each value of a loss whose label differs from its pair's, else 0."""
    differ = ops.not_equal(labels, ops.flip(labels, axis=0))
    while len(differ.shape) > len(values.shape):
        differ = ops.any(differ, axis=-1)
    return ops.cast(of_rank(differ, values), values.dtype)


def _by_row(counts: Tensor, values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Return which rows count, and the mean of each row's values that count.

    The mean of a row that doesn't count is 0.
    """
    counting = ops.where(counts > 0, ops.stack(values), 0.0)
    if len(counts.shape) == 1:
        return counts, ops.unstack(counting, len(values))
    axes = tuple(range(1, len(counts.shape)))
    number = ops.sum(counts, axis=axes)
    of_rows = ops.sum(counting, axis=tuple(axis + 1 for axis in axes))
    means = ops.unstack(of_rows / ops.maximum(number, 1.0), len(values))
    return ops.cast(number > 0, counts.dtype), means


def _of_loss(loss: Any, tensor: Tensor) -> Tensor:
    """Return a tensor in the dtype that Keras gives the loss."""
    return ops.convert_to_tensor(tensor, dtype=loss.dtype)
