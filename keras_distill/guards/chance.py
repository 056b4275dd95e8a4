"""The comparison of a teacher's label loss with chance.

Rows are compared in pairs with different labels. If a teacher has learned the labels,
its output for a row has a lower label loss than the mean of its outputs for both rows.
Or at least its output for a row fits that row's label better than its output for the
other row does. Neither test depends on what all outputs have in common, for example on
other shares of the classes in the teacher's training data.
"""

import math
import warnings

import numpy as np

from keras_distill.cautions import TeacherWarning
from keras_distill.guards import pairs
from keras_distill.guards.kinds import Kind
from keras_distill.guards.pairs import ENOUGH, LEAST

# A teacher has learned nothing if its gain is below this part of the label loss of the
# mean output. The second number is for teachers whose loss is no better than that of an
# output that is the same for all rows.
_NO_GAIN, _LITTLE_GAIN = 0.005, 0.025
# A teacher has learned the labels if its outputs fit them in more than this part of the
# pairs.
_TELLS = 0.66
# Logits are too large if the mean loss of the rows that a teacher gets wrong is above
# this number of nats. The teacher may read pixels that aren't scaled.
_FAR_OFF = 50.0
_TOO_SURE = "it is far too sure where it is wrong, as of inputs that weren't scaled"


class Comparison:
    """Compares a teacher's label loss with chance, from its sums.

    Args:
        found: The sums over all batches so far, as `pairs.sums` returns them.
        kind: The kind of values that the label loss expects; None if unknown.
        output: The name of the output in messages; empty for the only one.
        of_logits: Whether the teacher's output is logits. With probabilities, a large
            loss isn't a mistake: a teacher may give a class the probability 0.
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
        ) = map(float, found[: pairs.OF_TEACHER])

    def check(self) -> bool:
        """Warn if the teacher is no better than chance; return whether it warned."""
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
        # The sums are checked several times, so the margin is wider for few pairs. Each
        # pair counts twice, once for each of its rows.
        margin = 1.5 if self.pairs >= ENOUGH / 2 else 2.5
        error = margin * math.sqrt(2.0 * variance / self.pairs)
        least_gain = (_LITTLE_GAIN if self._is_worse else _NO_GAIN) * abs(chance)
        won = self._won / self.pairs
        tells = won + 0.5 / math.sqrt(self.pairs) > _TELLS
        # In a time series, successive rows differ only by noise. There, a good teacher
        # has no gain, but a small loss.
        close = self._kind is None and self._loss < 0.1 * self._none_loss
        return gain + error > least_gain or tells or close

    def _is_far_off(self) -> bool:
        # The mean loss, weighted by the loss itself. Wrong rows dominate it.
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
