"""Pearson's correlation, with fixed values where it is undefined."""

import keras
import numpy as np
from keras import ops

from keras_distill.types import Tensor

# A number divided by a smaller deviation would overflow.
_TINY = 1e-30


def pearson_distance(
    teacher: Tensor, student: Tensor, weight: Tensor, axis: int
) -> Tensor:
    """Return `1 - r`, where `r` is Pearson's correlation coefficient along an axis.

    A value of weight `w` counts as `w` equal values. A value of weight 0 doesn't
    count. If the teacher's values are all equal, there is no relation to learn, and
    the distance is 0. If the student's values are all equal, the distance is 1. Its
    gradient is computed with a deviation of 1, so that training can start there.

    Args:
        teacher: The teacher's values.
        student: The student's values, of the same shape.
        weight: Weights that broadcast to that shape; not negative.
        axis: The axis to correlate along. The result doesn't have this axis.
    """
    weight = ops.broadcast_to(weight, ops.shape(teacher))
    share = weight / ops.maximum(ops.sum(weight, axis=axis, keepdims=True), _TINY)
    teacher, teacher_varies = _standardized(teacher, share, axis)
    student, student_varies = _standardized(student, share, axis)
    # The distance of unit vectors. It and its gradient are exactly 0 where both are
    # equal.
    distance = 0.5 * ops.sum(share * ops.square(teacher - student), axis=axis)
    distance = ops.where(student_varies, distance, distance + 0.5)
    return ops.where(teacher_varies, distance, 0.0)


def _standardized(values: Tensor, share: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Return values of mean 0 and standard deviation 1, and whether they vary.

    Values that don't vary become 0.
    """
    counted = share > 0.0
    # A common value is subtracted first, so that the mean of equal values is exactly 0.
    top = ops.max(
        ops.where(counted, values, -np.inf), axis=axis, keepdims=True, initial=0.0
    )
    relative = values - ops.stop_gradient(top)
    relative = relative - ops.sum(share * relative, axis=axis, keepdims=True)
    deviation = ops.where(counted, relative, 0.0)
    largest = _largest(deviation, axis)
    epsilon = np.finfo(keras.backend.standardize_dtype(values.dtype)).eps
    varies = largest > ops.maximum(8.0 * float(epsilon) * ops.abs(top), _TINY)
    # Small deviations are scaled up, or their squares would underflow to 0.
    deviation = deviation / ops.where(varies, largest, 1.0)
    variance = ops.sum(share * ops.square(deviation), axis=axis, keepdims=True)
    deviation = deviation / ops.sqrt(ops.where(varies, variance, 1.0))
    return deviation, ops.squeeze(varies, axis)


def _largest(deviation: Tensor, axis: int) -> Tensor:
    sizes = ops.abs(ops.stop_gradient(deviation))
    return ops.max(sizes, axis=axis, keepdims=True, initial=0.0)
