"""A loss of standardised logits, around another loss."""

from typing import Any, Self

import keras
from keras import ops

from keras_distill.batch import Batch
from keras_distill.losses import checks
from keras_distill.losses.base import INFINITE, DistillationLoss
from keras_distill.losses.binary import SigmoidLoss
from keras_distill.types import Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class Standardized(DistillationLoss):
    r"""A loss of logits that are standardised for each example.

    `loss(z(t), z(s))`, `z(x) = (x - mean(x)) / (std(x) + epsilon)` over the classes,
    where `std` divides by the number of classes. So the mean and the spread of the
    student's logits may differ from the teacher's. The temperature is that of `loss`:
    it divides the standardised logits, and the loss multiplies its result by the
    square. Label losses and predictions use the logits without standardisation.

    Logits that are all equal become 0. Their gradient is computed with `std=1`, so a
    head whose weights start from zeros can learn. Classes whose logit is -inf keep it,
    and count neither in the mean nor in the deviation.

    Args:
        loss: A distillation loss over a class axis: `ForwardKL`, `DecoupledKD`,
            `LogitMSE`, ... Its reduction, dtype and class axis are used.
        epsilon: Added to the standard deviation; positive. Defaults to 1e-7.
        name: Name of the loss.

    Raises:
        TypeError: If `loss` isn't such a loss. Losses of sigmoids and lists aren't,
            because they depend on the level of each output.
        ValueError: If `epsilon` isn't positive, or if `loss` raises it.

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
        super().__init__(
            axis=loss.axis, reduction=loss.reduction, name=name, dtype=loss.dtype
        )
        self.loss = loss
        self.epsilon = float(epsilon)
        self.tempering = loss.tempering

    @property
    def temperature(self) -> Any:
        """The temperature of `loss`, which can be assigned here too."""
        return self._tempered().temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._tempered().temperature = value

    @property
    def step(self) -> Any:
        """The step at which `loss` reads a scheduled temperature."""
        return self._tempered().step

    @step.setter
    def step(self, value: Any) -> None:
        self._tempered().step = value

    def for_batch(self, batch: Batch) -> Self:
        """Return the loss for one batch of training data."""
        return self._around(self.loss.for_batch(batch))

    def for_weights(self, sample_weight: Tensor, mask: Tensor) -> Self:
        """Return the loss for a call with these weights and Keras mask, or None."""
        return self._around(self.loss.for_weights(sample_weight, mask))

    def counted(self, y_true: Any, y_pred: Tensor) -> Tensor | None:
        """Return which values of `loss` count."""
        return self.loss.counted(y_true, y_pred)

    def logits(self, output: Tensor, whose: str) -> Tensor:
        """Return the logits of an output, as `loss` does."""
        return self.loss.logits(output, whose)

    def compare(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return the loss per example of standardised logits."""
        checks.check_classes(student_logits, self.axis)
        return self.loss.compare(
            standardized(teacher_logits, self.epsilon, self.axis),
            standardized(student_logits, self.epsilon, self.axis),
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "loss": keras.saving.serialize_keras_object(self.loss),
            "epsilon": self.epsilon,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Standardized":
        """Build the loss from `get_config`'s result."""
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})

    def _around(self, loss: DistillationLoss) -> Self:
        standardized_loss = self.copied()
        standardized_loss.loss = loss
        return standardized_loss

    def _tempered(self) -> Any:
        if self.tempering is None:
            raise AttributeError(
                f"`{self.loss.name}`, which `{self.name}` standardises logits for, has "
                "no temperature."
            )
        return self.loss


def standardized(logits: Tensor, epsilon: float, axis: int) -> Tensor:
    """Return logits with mean 0 and standard deviation 1 along an axis.

    Logits that are all equal become 0. Logits of masked classes are returned as they
    are.
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
