"""Decoupled distillation: separate losses for the target class and the others."""

from typing import Any, Self

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill.batch import Batch
from keras_distill.losses import checks, divergences
from keras_distill.losses.class_labels import target_ids
from keras_distill.losses.softmax import SoftmaxLoss
from keras_distill.per_output import of_rank
from keras_distill.types import Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class DecoupledKD(SoftmaxLoss):
    r"""Forward KL in two terms with separate weights: the target class and the others.

    The loss is `T**2 * (alpha * KL(b_t || b_s) + beta * KL(r_t || r_s))`. `b` has two
    probabilities: that of the target class, and that of all other classes together.
    `r` is the distribution over the other classes. `b_t` and `r_t` come from
    `softmax(t / T)` of the teacher's logits, `b_s` and `r_s` from `softmax(s / T)` of
    the student's. `ForwardKL` is this loss with `alpha=1` and with the teacher's
    probability of the other classes as `beta`. So in `ForwardKL` the second term
    vanishes if the teacher is certain. Here it doesn't, because `beta` is constant.

    The target class is the label. `Distiller` passes the labels. Elsewhere, call
    `loss.with_labels(labels)(teacher_output, student_output)`. Labels are class ids of
    the outputs' shape without the class axis, or with a last axis of size 1. They may
    also have one number for each class, of which the largest is at the target, as in
    one-hot or smoothed labels. Rows without a label have no target class. A
    `label_mask` leaves these rows out of both this loss and the label loss, so the
    student learns nothing from them.

    Args:
        temperature: Divides the logits; positive; float or schedule. Defaults to 1; the
            paper uses 4 for CIFAR-100.
        alpha: Weight of the target class's term; not negative. It isn't the `alpha` of
            `Distiller.compile`. Defaults to 1.
        beta: Weight of the other classes' term; not negative. Defaults to 8, one of
            the paper's values for CIFAR-100. Teachers that are more certain need
            larger values.
        from_logits: Whether outputs are logits (default) or probabilities.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        axis: The class axis. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If the temperature isn't positive or a weight is negative. When
            called, if there are no labels, the shapes don't fit, there are fewer than
            three classes, or a label isn't a class. In steps that XLA or JAX compiles,
            the loss of such a label is NaN instead.

    Example:
        >>> loss = DecoupledKD(temperature=2.0, alpha=1.0, beta=2.0)
        >>> teacher, student = [[2.0, 0.0, 1.0]], [[0.0, 2.0, 0.0]]
        >>> round(float(loss.with_labels([0])(teacher, student)), 4)
        3.024

    Reference:
        Zhao et al. 2022, "Decoupled Knowledge Distillation",
        https://arxiv.org/abs/2203.08679, equation 7.
    """

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 1.0,
        *,
        alpha: float = 1.0,
        beta: float = 8.0,
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
        self.alpha = checks.checked_weight("alpha", alpha)
        self.beta = checks.checked_weight("beta", beta)
        self._labels: Any = None
        self._labelled: Any = None

    def with_labels(self, labels: Any, *, labelled: Any = None) -> Self:
        """Return the loss for a batch with these labels.

        Args:
            labels: The labels, in a form that the class documents.
            labelled: Boolean: which rows have a label. It has the labels' shape,
                `(batch,)` or `(batch, 1)`. None, the default, if all rows have a label.
        """
        loss = self.copied()
        loss._labels, loss._labelled = labels, labelled
        return loss

    def for_batch(self, batch: Batch) -> Self:
        """Return the loss with the labels of a batch."""
        loss = super().for_batch(batch)
        return loss.with_labels(batch.labels, labelled=batch.labelled)

    def counted(self, y_true: Any, y_pred: Tensor) -> Tensor | None:
        """Return which examples have a label."""
        if self._labelled is None:
            return None
        y_pred = ops.convert_to_tensor(y_pred)
        checks.check_axis(y_pred, self.axis)
        shape = list(ops.shape(y_pred))
        shape.pop(self.axis)
        mask = of_rank(self._labelled, ops.zeros((1,) * len(shape)))
        return ops.broadcast_to(ops.cast(mask, "bool"), shape)

    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the weighted sum of both divergences per example."""
        ids = self._target_ids(student_logits)
        teacher_logits, student_logits = (
            ops.moveaxis(logits, self.axis, -1)
            for logits in (teacher_logits, student_logits)
        )
        classes = ops.shape(student_logits)[-1]
        target = ops.cast(ops.one_hot(ids, classes), "bool")
        given = teacher_logits, student_logits, temperature, target
        values = self.alpha * divergences.target_kl(*given)
        values += self.beta * divergences.nontarget_kl(*given)
        # Steps that XLA or JAX compiles don't check the labels.
        return ops.where(ops.any(target, axis=-1), values, np.nan)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta}

    def _target_ids(self, logits: Tensor) -> Tensor:
        """Return the target class of each example."""
        classes = logits.shape[self.axis]
        if classes is not None and classes < 3:
            raise ValueError(
                f"`{self.name}` needs three classes: with two, nothing but the target "
                f"class is left. Use `keras_distill.losses.ForwardKL`. Received: "
                f"outputs of shape {tuple(logits.shape)}, axis={self.axis}"
            )
        if self._labels is None:
            raise ValueError(
                f"`{self.name}` needs the label of each example. Give `fit` labels for "
                "this output; elsewhere call it as `loss.with_labels(labels)("
                "teacher_output, student_output)`. Received: labels=None"
            )
        return target_ids(
            self._labels,
            logits,
            self.axis,
            labelled=self._labelled,
            reader=self.name,
        )
