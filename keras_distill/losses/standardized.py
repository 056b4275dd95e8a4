"""A loss of standardised logits, around another loss."""

from typing import Any

import keras
from keras import ops

from keras_distill.losses import checks
from keras_distill.losses.around import LossAround
from keras_distill.losses.base import INFINITE, DistillationLoss
from keras_distill.losses.binary import SigmoidLoss
from keras_distill.types import Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class Standardized(LossAround):
    r"""A loss of logits that are standardised for each example.

    `loss(z(t), z(s))` for logits `t` of the teacher and `s` of the student, with
    `z(x) = (x - mean(x)) / (std(x) + epsilon)` over the classes. `std` divides by the
    number of classes. So the mean and the spread of the student's logits may differ
    from the teacher's. The temperature is that of `loss`: it divides the standardised
    logits, and the loss multiplies its result by the squared temperature. Label losses
    and predictions use the logits without standardisation.

    Logits that are all equal become 0. Their gradient is computed with `std=1`, so a
    head whose weights start from zeros can learn. Logits of -inf don't change, and
    count neither in the mean nor in the deviation.

    Args:
        loss: A distillation loss over a class axis: `ForwardKL`, `DecoupledKD`,
            `LogitMSE`, ... Its reduction, dtype and class axis are used.
        epsilon: Added to the standard deviation; positive. Defaults to 1e-7.
        name: Name of the loss.

    Raises:
        TypeError: If `loss` isn't a distillation loss over a class axis. Losses of
            sigmoids and lists aren't allowed, because they depend on the level of each
            output.
        ValueError: If `epsilon` isn't positive, or if `loss` raises this error.

    Example:
        >>> from keras_distill.losses.softmax import ForwardKL
        >>> loss = Standardized(ForwardKL(temperature=2.0))
        >>> round(float(loss([[4.0, 0.0, 2.0]], [[2.0, 0.0, 1.0]])), 4)
        0.0
        >>> round(float(loss([[4.0, 0.0, 2.0]], [[0.0, 2.0, 1.0]])), 4)
        1.8844

    Reference:
        Sun et al. 2024, "Logit Standardization in Knowledge Distillation",
        https://arxiv.org/abs/2403.01427, algorithms 1 and 2.
    """

    does = "standardises logits for"

    def __init__(
        self,
        loss: DistillationLoss,
        *,
        epsilon: float = 1e-7,
        name: str | None = None,
    ) -> None:
        if not isinstance(loss, DistillationLoss) or isinstance(loss, SigmoidLoss):
            raise TypeError(
                "`loss` must be a distillation loss over a class axis, such as "
                "`keras_distill.losses.ForwardKL()`. Received: "
                f"loss={loss!r} of type {type(loss).__name__}"
            )
        if loss.reads_packed:
            raise TypeError(
                "Logits can't be standardised where only a part of the teacher's was "
                "recorded. Record all of them, as log-probabilities. Received: "
                f"loss={loss!r} of type {type(loss).__name__}"
            )
        if not epsilon > 0.0:
            raise ValueError(f"`epsilon` must be positive. Received: epsilon={epsilon}")
        super().__init__(loss, name=name)
        self.epsilon = float(epsilon)

    def compare(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return the loss per example of standardised logits."""
        checks.check_classes(student_logits, self.axis)
        return self.loss.compare(
            standardized(teacher_logits, self.epsilon, self.axis),
            standardized(student_logits, self.epsilon, self.axis),
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "epsilon": self.epsilon}


def standardized(logits: Tensor, epsilon: float, axis: int) -> Tensor:
    """Return logits with mean 0 and standard deviation 1 along an axis.

    Logits that are all equal become 0. Logits of masked classes don't change.
    """
    present = logits > -INFINITE
    # A common value is subtracted first, so that the mean of equal logits is exactly 0.
    top = ops.max(logits, axis=axis, keepdims=True, initial=-INFINITE)
    relative = ops.where(present, logits - ops.stop_gradient(top), 0.0)
    count = ops.sum(ops.cast(present, logits.dtype), axis=axis, keepdims=True)
    count = ops.maximum(count, 1.0)
    mean = ops.sum(relative, axis=axis, keepdims=True) / count
    deviation = ops.where(present, relative - mean, 0.0)
    variance = ops.sum(ops.square(deviation), axis=axis, keepdims=True) / count
    varies = variance > 0.0
    # The gradient of a square root is infinite at 0.
    spread = ops.sqrt(ops.where(varies, variance, 1.0)) + epsilon
    return ops.where(present, deviation / spread, logits)
