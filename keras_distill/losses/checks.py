"""What can be said about a pair of outputs before a divergence is taken."""

from typing import Any

import keras
import numpy as np
from keras import ops

Tensor = Any

# Operations that an activation shows through, and which of their inputs carries it.
_TRANSPARENT_OPS = {
    "Cast": 0,
    "CheckNumerics": 0,
    "Identity": 0,
    "Maximum": 0,
    "Minimum": 0,
    "Reshape": 0,
    "SelectV2": 1,
    "StopGradient": 0,
    "Transpose": 0,
}

# What probabilities may exceed 1 by, e.g. as the weighted mean of an ensemble's.
_ROUNDING = 1e-3


def check_same_shape(teacher_output: Tensor, student_output: Tensor) -> None:
    """Raise ValueError unless both shapes agree wherever both are known."""
    teacher_shape, student_shape = teacher_output.shape, student_output.shape
    agree = len(teacher_shape) == len(student_shape) and all(
        t == s or t is None or s is None
        for t, s in zip(teacher_shape, student_shape, strict=True)
    )
    if not agree:
        raise ValueError(
            "The teacher's and the student's output must have the same shape; the "
            "last dimension is usually the number of classes. Received: teacher "
            f"output {tuple(teacher_shape)}, student output {tuple(student_shape)}"
        )


def check_axis(output: Tensor, axis: int) -> None:
    """Raise ValueError unless `output` has the axis."""
    rank = len(output.shape)
    if not -rank <= axis < rank:
        raise ValueError(
            f"`axis` must be an axis of the outputs. Received: axis={axis} for outputs "
            f"of shape {tuple(output.shape)}"
        )


def check_classes(output: Tensor, axis: int) -> None:
    """Raise ValueError where a softmax along `axis` would be constant."""
    if output.shape[axis] == 1:
        raise ValueError(
            "A softmax over one unit is always 1, so this loss would be 0 whatever the "
            "student says. Use `keras_distill.losses.BinarySoftTargets` for one-unit "
            f"heads. Received: outputs of shape {tuple(output.shape)}, axis={axis}"
        )


def check_probabilities(output: Tensor, whose: str, loss_name: str) -> None:
    """Raise ValueError if values lie outside [0, 1].

    A graph of TensorFlow's asserts it when it runs, which XLA leaves out in silence.
    NaN passes: it is no probability, but the mistake is another one.
    """
    outside = ops.any((output < -_ROUNDING) | (output > 1.0 + _ROUNDING))
    message = (
        f"`{loss_name}` was told `from_logits=False`, so the {whose}'s output must be "
        "probabilities in [0, 1]. Pass `from_logits=True` for logits. Received: values "
    )
    extremes = ops.min(output, initial=np.inf), ops.max(output, initial=-np.inf)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.is_symbolic_tensor(output):
            tf.debugging.Assert(~outside, [message + "(least, greatest)", *extremes])
            return
    if outside:
        least, greatest = (float(extreme) for extreme in extremes)
        raise ValueError(f"{message}from {least} to {greatest}")


def are_probabilities(output: Tensor, axis: int, activation: str) -> bool:
    """Return whether `output` is found to be probabilities, where looking is cheap.

    While TensorFlow traces a graph, by the operation that made the tensor; in eager
    calls by value, where it was a softmax: rows tell it by their sum.
    """
    if activation == "softmax" and _rows_are_probabilities(output, axis):
        return True
    return _comes_from(output, activation.capitalize())


def _comes_from(output: Tensor, operation_type: str) -> bool:
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    if not tf.is_symbolic_tensor(output):
        return False
    operation = output.op
    while operation.type in _TRANSPARENT_OPS:
        operation = operation.inputs[_TRANSPARENT_OPS[operation.type]].op
    return bool(operation.type == operation_type)


def _rows_are_probabilities(output: Tensor, axis: int) -> bool:
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not isinstance(output, tf.__internal__.EagerTensor):
            return False
    values = ops.convert_to_numpy(output).astype("float32")
    if values.size == 0 or values.min() < 0.0 or values.max() > 1.0:
        return False
    # bfloat16 and float16 outputs sum to 1 only so far
    return bool(np.allclose(values.sum(axis=axis), 1.0, atol=1e-2))
