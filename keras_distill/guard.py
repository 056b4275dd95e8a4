"""The guard against outputs of a teacher that are NaN or infinite."""

from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_distill import backend
from keras_distill.types import Nested, Tensor

BAD_TEACHER = (
    "The teacher's output is NaN or infinite, so the student would learn nothing from "
    "it. Look at the teacher's weights, at the inputs of this batch and, where the "
    "teacher computes in float16, at overflow. `compile(check_teacher=False)` switches "
    "this check off, e.g. for a teacher that masks classes with -inf."
)

# A compiled step logs this value in place of an unusable loss, because XLA and JAX drop
# assertions. No real loss has this value, and a mean over batches keeps it.
FLAG = -float("inf")


class Guard:
    """Stops training at the step in which a teacher's output isn't finite.

    A step that can raise an error raises it before it updates any weight. A step that
    XLA or JAX compiles can't. Its targets become zeros, so that weights stay finite,
    and it logs `FLAG` as its loss. Then `raise_if_flagged` raises the error.

    Args:
        message: The text of the error. Defaults to `BAD_TEACHER`.
        compiled: Whether XLA or JAX compiles the step.
    """

    def __init__(self, *, compiled: bool, message: str = BAD_TEACHER) -> None:
        self.message = message
        self._compiled = compiled

    def checked(self, outputs: Nested) -> tuple[Nested, Tensor | None]:
        """Return finite outputs, and whether the given outputs were finite.

        Returns:
            The outputs, and a boolean scalar, or None if the step itself raises errors.
        """
        if not self._compiled:
            check = backend.check_finite
            return keras.tree.map_structure(
                lambda output: check(output, self.message), outputs
            ), None
        is_finite = ops.convert_to_tensor(True)
        for output in keras.tree.flatten(outputs):
            if keras.backend.is_float_dtype(output.dtype):
                is_finite = is_finite & ops.all(ops.isfinite(output))
        neutral = keras.tree.map_structure(
            lambda output: ops.where(is_finite, output, ops.zeros_like(output)), outputs
        )
        return neutral, is_finite


def flagged(loss: Tensor, is_good: Tensor | None) -> Tensor:
    """Return the value to log: the loss, or `FLAG` where the step went wrong."""
    return loss if is_good is None else ops.where(is_good, loss, FLAG)


def raise_if_flagged(logs: Mapping[str, Any], messages: Mapping[str, str]) -> None:
    """Raise an error if a compiled step has logged `FLAG`.

    Args:
        logs: The logs of a step.
        messages: The text of the error by the name of the loss.

    Raises:
        tf.errors.InvalidArgumentError: On TensorFlow, as uncompiled steps do.
        FloatingPointError: On other backends.
    """
    for name, message in messages.items():
        if name in logs and float(logs[name]) == FLAG:
            raise backend.invalid_values(message)
