"""Regression losses between logits."""

import keras
from keras import ops

from keras_distill.losses.base import DistillationLoss
from keras_distill.types import Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class LogitMSE(DistillationLoss):
    r"""Mean squared error between logits.

    `mean_c((t - s)**2)` of the teacher's logits `t` and the student's logits `s`. If
    both have mean 0 over the classes, `T**2` times the forward KL approaches half of
    this loss as the temperature `T` grows.

    Args:
        axis: The class axis, over which the mean is taken. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If the outputs' shapes differ.

    Example:
        >>> float(LogitMSE()([[1.0, 3.0]], [[2.0, 1.0]]))
        2.5

    Reference:
        Ba, Caruana 2014, "Do Deep Nets Really Need to be Deep?",
        https://arxiv.org/abs/1312.6184, equation 1; Hinton, Vinyals, Dean 2015,
        https://arxiv.org/abs/1503.02531, section 2.1.
    """

    def compare(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return the mean squared difference per example."""
        return ops.mean(ops.square(teacher_logits - student_logits), axis=self.axis)
