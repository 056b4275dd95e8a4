"""The distillation term: what `Distiller.compile` adds to a Keras model's loss."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill.losses.per_output import PerOutputLoss
from keras_distill.monitoring import BAD_TEACHER_LOSS, CurrentValue, LastValue
from keras_distill.schedules import Hyperparameter

Tensor = Any


class DistillationTerm:
    """Distillation losses, their weight, and the metrics that log both.

    A plain object: a model that holds it neither tracks nor saves it.

    Args:
        losses: As `distillation_loss` in `Distiller.compile`.
        alpha: As in `Distiller.compile`.
        output_names: Names of the student's outputs, where it declares any.
        with_labels: Whether there is a label loss to weigh against.
    """

    def __init__(
        self,
        losses: Any,
        alpha: float | LearningRateSchedule,
        *,
        output_names: Sequence[str] | None,
        with_labels: bool,
    ) -> None:
        self.alpha = Hyperparameter(
            "alpha",
            alpha,
            requirement="in [0, 1]",
            accepts=lambda value: 0.0 <= value <= 1.0,
        )
        self._losses = PerOutputLoss(losses, output_names=output_names)
        self._scheduled = _temperatures(self._losses)
        if self.alpha.scheduled:
            self._scheduled["alpha"] = self.alpha
        self.without_labels = not with_labels
        means = ["student_loss"] * with_labels + ["distillation_loss"]
        self.metrics: dict[str, keras.metrics.Metric] = {
            **{name: keras.metrics.Mean(name) for name in means},
            "alpha": CurrentValue(lambda: self.alpha.at(0), "alpha"),
            **{name: LastValue(name) for name in self._scheduled},
        }

    def add_to(
        self,
        own_loss: Tensor,
        *,
        student_loss: Tensor | None,
        teacher_output: Any,
        teacher_is_finite: Tensor | None,
        student_output: Any,
        sample_weight: Any,
        step: Any,
    ) -> Tensor:
        """Return a batch's total loss, and log what it consists of.

        Args:
            own_loss: What the student would be trained with alone: the label loss,
                where there are labels, and what its layers add.
            student_loss: The label loss within it; None where there are no labels.
            teacher_output: The targets.
            teacher_is_finite: What `TeacherGuard.watch` says of them.
            student_output: What is held against them.
            sample_weight: As in `keras.Model.fit`.
            step: The optimiser's count of updates, which schedules are read at.
        """
        alpha = ops.cast(self.alpha.at(step), own_loss.dtype)
        distillation_loss = ops.cast(
            self._losses(teacher_output, student_output, sample_weight, step=step),
            own_loss.dtype,
        )
        terms = {"distillation_loss": distillation_loss}
        self.without_labels = student_loss is None
        if student_loss is not None:
            terms["student_loss"] = student_loss
            # (1 - alpha) * student_loss + alpha * distillation_loss + what layers add,
            # put so that alpha=0 is Keras' own loss to the last bit
            distillation_loss = distillation_loss - student_loss
        _check_scalar(terms)
        if teacher_is_finite is not None:
            terms["distillation_loss"] = ops.where(
                teacher_is_finite, terms["distillation_loss"], BAD_TEACHER_LOSS
            )
        self._log(terms, step, keras.tree.flatten(student_output)[0])
        return own_loss + alpha * distillation_loss

    def _log(self, terms: dict[str, Tensor], step: Any, output: Tensor) -> None:
        for name, value in terms.items():
            self.metrics[name].update_state(
                value * replicas(), sample_weight=ops.shape(output)[0]
            )
        for name, hyperparameter in self._scheduled.items():
            self.metrics[name].update_state(hyperparameter.at(step))


def replicas() -> int:
    """Return among how many devices Keras divides the loss of a batch."""
    count: int = tf.distribute.get_strategy().num_replicas_in_sync
    return count


def _temperatures(losses: PerOutputLoss) -> dict[str, Hyperparameter]:
    """Return the scheduled temperatures under the names that they're logged by."""
    scheduled = list(losses.scheduled())
    if len(scheduled) == 1:
        return {"temperature": scheduled[0].tempering}
    return {f"{loss.name}_temperature": loss.tempering for loss in scheduled}


def _check_scalar(terms: dict[str, Tensor]) -> None:
    for name, value in terms.items():
        if len(value.shape) != 0:
            raise ValueError(
                f"The `{name}` of a batch must be a single number, or it would weigh "
                "as much more as it has elements. Give the loss a `reduction`. "
                f"Received: a `{name}` of shape {tuple(value.shape)}"
            )
