"""Losses for records of only a part of the teacher's distribution."""

from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import backend
from keras_distill.losses import checks
from keras_distill.losses.base import DistillationLoss, TemperedLoss
from keras_distill.losses.packed_divergences import (
    sampled_cross_entropy,
    top_k_forward_kl,
)
from keras_distill.types import Tensor

_register = keras.saving.register_keras_serializable(package="keras_distill")

# How far a logarithm of a probability may exceed 0, and a share 1, by rounding.
_ROUNDING = 1e-3


class PackedLoss(DistillationLoss):
    """A loss whose `y_true` is a part of the teacher's output, packed in one tensor.

    The last axis of `y_true` has the ids of some classes and then numbers for these
    classes. The student's output has all classes on its last axis.
    """

    reads_packed = True
    # The form of `y_true`, for messages.
    form: str
    # How many numbers there are besides the ids and one number for each id.
    extra = 0

    def with_mask(
        self, y_true: Any, y_pred: Tensor, sample_weight: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the reduced loss; `mask` is the Keras mask of `y_pred`, or None."""
        for dtype in (getattr(y_true, "dtype", "float32"), self.dtype):
            if keras.backend.standardize_dtype(dtype) in ("float16", "bfloat16"):
                raise ValueError(
                    f"`{self.name}` reads ids of classes, which half precision rounds. "
                    "Give the loss and its packed `y_true` the dtype float32; the "
                    f"student's output may have another. Received: dtype {dtype}"
                )
        return super().with_mask(y_true, y_pred, sample_weight, mask)

    def check_outputs(self, teacher_output: Tensor, student_output: Tensor) -> None:
        """Raise ValueError unless the shapes are those of packed targets and logits."""
        checks.check_axis(student_output, -1)
        checks.check_classes(student_output, -1)
        known = backend.has_rank(teacher_output)
        shape = tuple(teacher_output.shape) if known else ()
        if shape and checks.may_have_shape(student_output, [*shape[:-1], None]):
            if self._may_have_width(shape[-1], student_output.shape[-1]):
                return
        raise ValueError(
            f"`{self.name}` compares {self.form} for each row of logits of shape "
            "(..., classes), both of known size, with k at most the number of classes. "
            f"Received: teacher output {shape if known else 'of unknown rank'}, "
            f"student output {tuple(student_output.shape)}"
        )

    def _may_have_width(self, width: int | None, classes: int | None) -> bool:
        if width is None or classes is None:
            return False
        count, odd = divmod(width - self.extra, 2)
        # There may be more places for samples than classes: some places aren't used.
        return not odd and count >= 1 and (not self.extra or count <= classes)

    def logits(self, output: Tensor, whose: str) -> Tensor:
        """Return the student's logits, or the teacher's packed output as it is."""
        return output if whose == "teacher" else super().logits(output, whose)

    def unpacked(
        self, packed: Tensor, classes: int, least: float, greatest: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the ids, the other numbers, and which rows are valid.

        Args:
            packed: The teacher's output.
            classes: The number of classes.
            least: The least valid value of the other numbers.
            greatest: The greatest valid value of the other numbers.

        Raises:
            ValueError: If a row isn't valid. A TensorFlow graph raises an error when it
                runs. Steps that XLA or JAX compiles raise none.
        """
        k = (packed.shape[-1] - self.extra) // 2
        ids, numbers = packed[..., :k], packed[..., k : 2 * k + self.extra // 2]
        are_ids = (ids >= 0) & (ids < classes) & (ids == ops.floor(ids))
        good = ops.all(are_ids, axis=-1) & ops.all(
            (numbers >= least - _ROUNDING) & (numbers <= greatest + _ROUNDING), axis=-1
        )
        extremes = [
            extreme(x, initial=initial)
            for x in (ids, numbers)
            for extreme, initial in ((ops.min, np.inf), (ops.max, -np.inf))
        ]
        self._check_all(ops.all(good), classes, extremes)
        return ops.cast(ops.where(are_ids, ids, 0.0), "int32"), numbers, good

    def _check_all(self, good: Tensor, classes: int, extremes: list[Tensor]) -> None:
        message = (
            f"`{self.name}` reads {self.form} as `y_true`, for {classes} classes: ids "
            "are whole numbers below that. Outputs of a model, and means or parts of "
            "packed ones, aren't of this form"
        )
        if backend.is_traced(good):
            backend.assert_in_graph(
                good, f"{message}. Received: (least, greatest) of both", extremes
            )
        elif not good:
            least_id, greatest_id, least, greatest = map(float, extremes)
            raise ValueError(
                f"{message}. Received: ids from {least_id} to {greatest_id}, numbers "
                f"from {least} to {greatest}"
            )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config = super().get_config()
        del config["axis"]
        return config


@_register
class TopKForwardKL(PackedLoss, TemperedLoss):
    r"""Forward KL divergence, computed from the teacher's k likeliest classes.

    `T**2 * [sum_k p (log p - log q) + (1 - a) (log(1 - a) - log(1 - b))]`, where `a` is
    the teacher's probability of its k likeliest classes together, and `b` is the
    student's probability of the same classes. All other classes form one bucket, so the
    loss doesn't push their probabilities to 0. If all classes are recorded, the loss is
    `ForwardKL`.

    At `T != 1` it approximates `ForwardKL`: the k classes and the bucket, with their
    probabilities at temperature 1, are tempered as `k + 1` classes. The record doesn't
    show how the teacher spreads the rest over the other classes at another temperature.

    `y_true` has shape `(..., 2k + 2)`, in float32: k ids of classes, their k
    log-probabilities at temperature 1, the logarithm of the probability of all others,
    and the logsumexp of the teacher's logits, which this loss doesn't use. The
    logarithm of a probability of 0 is a large negative number such as -65504, because
    `Distiller` treats -inf as a failure of the teacher. `y_pred` has shape
    `(..., classes)`.

    The package has no reverse KL of a top k, and no divergence of a renormalised top k.
    A reverse KL of a top k is smallest if the student moves its probability to classes
    that weren't recorded. A divergence of a renormalised top k has another gradient
    than the divergence of all classes: `benchmarks/recorded_precision.py` prints the
    cosine between these gradients.

    Args:
        temperature: Divides the logits; positive; float or schedule. Defaults to 1.
        from_logits: Whether the student's output is logits (default) or probabilities.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result, float32 or float64. Defaults to
            `keras.config.floatx()`.

    Raises:
        ValueError: If the temperature isn't positive, the shapes don't fit, or `y_true`
            isn't such a record. In a step that XLA or JAX compiles, the values of wrong
            rows are NaN instead.

    Example:
        >>> loss = TopKForwardKL()
        >>> log = np.log
        >>> recorded = [[2.0, 0.0, log(0.6), log(0.3), log(0.1), 1.5]]
        >>> round(float(loss(recorded, log([[0.3, 0.05, 0.6, 0.05]]))), 4)
        0.0
        >>> round(float(loss(recorded, log([[0.2, 0.1, 0.6, 0.1]]))), 4)
        0.0523

    Reference:
        Hinton, Vinyals, Dean 2015, https://arxiv.org/abs/1503.02531, section 2, for
        the divergence of all classes.
    """

    form = (
        "a recorded top k, [k ids, k log-probabilities, log of the rest's, logsumexp],"
    )
    extra = 2

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 1.0,
        *,
        from_logits: bool = True,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            temperature,
            from_logits=from_logits,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )

    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the divergence per example."""
        classes = student_logits.shape[-1]
        ids, log_p, good = self.unpacked(teacher_logits, classes, -np.inf, 0.0)
        values = top_k_forward_kl(log_p, student_logits, temperature, ids)
        return ops.where(good, values, np.nan)


@_register
class SampledSoftTargets(PackedLoss):
    r"""Cross-entropy of the student for classes that were sampled from the teacher.

    `-sum_i c_i / N * log(q_i)`, `q = softmax(s)`, where class `i` was drawn `c_i` times
    in N draws from the teacher's distribution. On average over draws, its gradient is
    that of `SoftTargets` and `ForwardKL` at temperature 1. The loss has no temperature:
    classes are drawn at temperature 1, and tempered shares of the draws are biased
    estimates of tempered probabilities. For the same reason no other divergence reads
    samples.

    `y_true` has shape `(..., 2n)`, in float32: n ids of classes and their n shares
    `c_i / N`. The shares are 0 in places that aren't used. `y_pred` has shape
    `(..., classes)` and contains the student's logits.

    Args:
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result, float32 or float64. Defaults to
            `keras.config.floatx()`.

    Raises:
        ValueError: If the shapes don't fit, or `y_true` isn't such a record. In a step
            that XLA or JAX compiles, the values of wrong rows are NaN instead.

    Example:
        >>> loss = SampledSoftTargets()
        >>> recorded = [[2.0, 0.0, 0.75, 0.25]]
        >>> round(float(loss(recorded, np.log([[0.25, 0.25, 0.5]]))), 4)
        0.8664

    Reference:
        Anshumann et al. 2025, "Sparse Logit Sampling: Accelerating Knowledge
        Distillation in LLMs", https://arxiv.org/abs/2503.16870.
    """

    form = "recorded samples, [n ids, n shares from 0 to 1],"

    def __init__(
        self,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name, dtype=dtype)

    def compare(self, teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
        """Return the cross-entropy per example."""
        classes = student_logits.shape[-1]
        ids, shares, good = self.unpacked(teacher_logits, classes, 0.0, 1.0)
        values = sampled_cross_entropy(shares, student_logits, ids)
        return ops.where(good, values, np.nan)
