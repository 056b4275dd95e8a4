"""Soft-target losses for sigmoid heads: binary and multi-label outputs."""

from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill.losses import checks, divergences
from keras_distill.losses.base import TemperedLoss, smallest
from keras_distill.types import Tensor


class SigmoidLoss(TemperedLoss):
    """A tempered loss of independent units, each with a logit or a probability."""

    activation = "sigmoid"

    def logits_of_probabilities(self, probabilities: Tensor) -> Tensor:
        """Return logits whose sigmoid is `probabilities`."""
        # The spacing of floats below 1 limits the precision of 1 - p.
        epsneg = float(
            np.finfo(keras.backend.standardize_dtype(probabilities.dtype)).epsneg
        )
        complement = ops.maximum(1.0 - probabilities, epsneg)
        return ops.log(ops.maximum(probabilities, smallest(probabilities))) - ops.log(
            complement
        )

    def logits(self, output: Tensor, whose: str) -> Tensor:
        """Return the logits of an output, which may be probabilities."""
        if not self.takes_logits(whose):
            of_one = whose == "teacher" and self.teacher_from_logits is not None
            argument = "teacher_from_logits" if of_one else "from_logits"
            checks.check_probabilities(output, whose, self.name, argument)
        return super().logits(output, whose)


@keras.saving.register_keras_serializable(package="keras_distill")
class BinarySoftTargets(SigmoidLoss):
    r"""Binary cross-entropy of each unit under the teacher's soft target.

    `T**2 * (-p * log(q) - (1 - p) * log(1 - q))`, `p = sigmoid(t / T)`,
    `q = sigmoid(s / T)`, for logits `t` of the teacher and `s` of the student. The loss
    of an example is the mean over its units, as in `keras.losses.BinaryCrossentropy`.
    For click and conversion heads, keep `temperature=1`: the student is less well
    calibrated at higher temperatures.

    Args:
        temperature: Divides the logits; positive; float or schedule. Defaults to 1.
        subtract_entropy: Whether to subtract the teacher's entropy. The loss is then
            the KL divergence: it is 0 if the student equals the teacher, and has the
            same gradient. Defaults to False.
        from_logits: Whether outputs are logits (default) or probabilities. The range
            of probabilities is checked, except in steps that XLA or JAX compiles.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        axis: The axis of the units, over which the mean is taken. Defaults to -1.
            Outputs of shape `(batch,)` have one unit per example.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If the temperature isn't positive, the outputs' shapes differ, or
            probabilities lie outside [0, 1].

    Example:
        >>> loss = BinarySoftTargets()
        >>> round(float(loss([[0.0]], [[2.0]])), 4)
        1.1269

    Reference:
        Xu et al. 2020, "Privileged Features Distillation at Taobao
        Recommendations", https://arxiv.org/abs/1907.05171, equation 2.
    """

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 1.0,
        *,
        subtract_entropy: bool = False,
        from_logits: bool = True,
        teacher_from_logits: bool | None = None,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            temperature,
            from_logits=from_logits,
            teacher_from_logits=teacher_from_logits,
            axis=axis,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.subtract_entropy = subtract_entropy

    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the mean over the units of each example."""
        per_unit = (
            divergences.binary_kl
            if self.subtract_entropy
            else divergences.binary_cross_entropy
        )
        values = per_unit(teacher_logits, student_logits, temperature)
        return values if len(values.shape) == 1 else ops.mean(values, axis=self.axis)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "subtract_entropy": self.subtract_entropy}
