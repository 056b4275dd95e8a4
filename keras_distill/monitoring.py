"""What a training step watches: values to log, and a teacher that has gone wrong."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Tensor = Any

_BAD_TEACHER = (
    "The teacher's output is NaN or infinite, so the student would learn nothing from "
    "it. Look at the teacher's weights, at the inputs of this batch and, where the "
    "teacher computes in float16, at overflow. `compile(check_teacher=False)` switches "
    "this check off."
)


class LastValue(keras.metrics.Mean):
    """The last value seen, e.g. of a schedule; in an epoch's log, that of its end."""

    def update_state(self, values: Tensor, sample_weight: Tensor = None) -> None:
        """Forget the earlier value and keep this one."""
        # total over count, because replicas each add theirs
        self.total.assign(values)
        self.count.assign(1)


class TeacherGuard:
    """Stops training at the step at which the teacher's output isn't finite.

    Args:
        xla: Whether the step is compiled by XLA, which drops assertions silently.
            There a flag is raised in the step and read after it; the student is
            spared the step's NaN by zeros in the place of the teacher's output.
    """

    def __init__(self, *, xla: bool) -> None:
        self._finite = tf.Variable(True, trainable=False) if xla else None

    def watch(self, outputs: Any) -> Any:
        """Return the teacher's outputs, checked; called in the step."""
        return keras.tree.map_structure(self._watch_one, outputs)

    def after_each(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return `step` followed by a look at the flag."""
        if self._finite is None:
            return step

        def checked_step(iterator: Any) -> Any:
            logs = step(iterator)
            self._raise_if_flagged()
            return logs

        return checked_step

    def _watch_one(self, output: Tensor) -> Tensor:
        if not output.dtype.is_floating:
            return output
        # -inf is the logit of a class that a teacher rules out
        is_masked = tf.equal(output, tf.constant(-float("inf"), output.dtype))
        unmasked = tf.where(is_masked, tf.zeros_like(output), output)
        if self._finite is None:
            check = tf.debugging.check_numerics(unmasked, _BAD_TEACHER)
            with tf.control_dependencies([check]):
                return tf.identity(output)
        finite = tf.reduce_all(tf.math.is_finite(unmasked))
        self._finite.assign(tf.logical_and(self._finite, finite))
        return tf.where(finite, output, tf.zeros_like(output))

    def _raise_if_flagged(self) -> None:
        if self._finite is not None and not self._finite.numpy():
            self._finite.assign(True)
            raise tf.errors.InvalidArgumentError(None, None, _BAD_TEACHER)
