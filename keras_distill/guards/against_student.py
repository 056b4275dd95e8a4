"""The comparison of a teacher's label loss with that of a student that has trained.

A teacher may be better than chance and yet worse than its student soon is: features of
random filters distinguish many images. The teacher's loss alone doesn't show that,
because an accurate teacher whose logits are far too large has a large loss, too. So the
warning also needs pairs of rows in which the student fits the labels and the teacher
doesn't. This doesn't depend on the scale of the logits.
"""

import math
import warnings
from typing import Any

import numpy as np

from keras_distill.cautions import TeacherWarning
from keras_distill.guards.pairs import LEAST, OF_BOTH, OF_TEACHER

# The comparison warns only with this number of rows in pairs or more. A student soon
# memorises fewer rows.
_ROWS = 256
# The student must win more pairs than the teacher, by more than this part of all pairs.
# A student that has memorised some rows is better on them than a good teacher that
# never saw them.
_CLEARLY = 0.05
# The difference must also exceed so many standard errors, because the comparison is
# made for each output, and more than once.
_ERRORS = 3.0
# A student began as a copy of its teacher if the mean squared difference of their
# margins was less than this part of the teacher's mean squared margin. The difference
# of two independent models is more than the whole.
_ALIKE = 0.5


class AgainstStudent:
    """Compares the label losses of a teacher and a student on pairs of rows.

    Args:
        output: The name of the output; empty for the only one.
        mistake: Identifies the mistake, as in `Check`.
    """

    def __init__(self, output: str, mistake: Any) -> None:
        self._where = f" in output '{output}'" if output else ""
        self.mistake = mistake
        self._began_alike: bool | None = None

    def begin(self, found: np.ndarray) -> None:
        """Note whether the student begins as a copy of its teacher, or as a part of it.

        Such a student soon has a lower loss than its teacher, even a good one.

        Args:
            found: The sums over the first batches, as `pairs.sums` returns them.
        """
        pairs, *_, margin, difference = _of_both(found)
        if self._began_alike is None and pairs >= LEAST:
            self._began_alike = difference < _ALIKE * margin

    def check(self, found: np.ndarray) -> bool:
        """Warn if the teacher is no better than the student; return whether it warned.

        Args:
            found: The sums over batches on which the student has trained before.
        """
        pairs, loss, of_student, won, won_by_student, squares, *_ = _of_both(found)
        if self._began_alike or pairs < _ROWS or not math.isfinite(loss + of_student):
            return False
        gap = (won_by_student - won) / pairs
        # Each pair counts twice, once for each of its rows.
        error = math.sqrt(2.0 * max(0.0, squares / pairs - gap**2) / pairs)
        if loss < of_student or gap <= max(_CLEARLY, _ERRORS * error):
            return False
        warnings.warn(
            f"The teacher is no better than the student{self._where}: on "
            f"{pairs:.0f} rows, its own label loss is {loss / pairs:.3g} and that of "
            f"the student {of_student / pairs:.3g}. Its output for a row fits that "
            "row's label better than its output for a row of another label does in "
            f"{won / pairs:.0%} of the pairs, the student's in "
            f"{won_by_student / pairs:.0%}. Is the teacher trained, and does it get "
            "the preprocessing and the order of classes that it was trained with? "
            "Where this is as it should be, filter "
            "`keras_distill.teachers.TeacherWarning`.",
            TeacherWarning,
            stacklevel=2,
        )
        return True


def _of_both(found: np.ndarray) -> list[float]:
    return [float(value) for value in found[OF_TEACHER : OF_TEACHER + OF_BOTH]]
