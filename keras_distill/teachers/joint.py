"""A teacher that trains in the same steps as its student."""

from typing import Any

import keras

from keras_distill import own_training
from keras_distill.inputs import select
from keras_distill.labels import LabelledModel, LabelMask
from keras_distill.resuming import RandomStates
from keras_distill.shared_weights import shared_weights
from keras_distill.teachers.base import Teacher
from keras_distill.types import Tensor


class TrainingTeacher(RandomStates, LabelledModel):
    """A teacher with a loss, an optimiser and metrics of its own.

    Args:
        teacher: The model to train.
        student: The model that it teaches. Weights that both hold are the student's
            optimiser's to update.
        optimizer: As in `keras.Model.compile`.
        student_optimizer: The student's.
        loss: The teacher's label loss or losses, as in `keras.Model.compile`.
        metrics: As in `keras.Model.compile`.
        label_mask: Which rows have a label; the metrics see no others.
        auto_scale_loss: As in `keras.Model.compile`.

    Raises:
        TypeError: If the teacher isn't a Keras model, or one of several models.
        ValueError: If the optimiser is the student's, or if weights are shared
            between models whose losses are scaled differently.
    """

    def __init__(
        self,
        teacher: keras.Model,
        student: keras.Model,
        *,
        optimizer: Any,
        student_optimizer: keras.optimizers.Optimizer,
        loss: Any,
        metrics: Any,
        label_mask: LabelMask,
        auto_scale_loss: bool = True,
    ) -> None:
        if not isinstance(teacher, keras.Model):
            raise TypeError(
                "A teacher with a `teacher_loss` must be a `keras.Model`: others have "
                f"no weights to train. Received: teacher={teacher!r} of type "
                f"{type(teacher).__name__}"
            )
        if isinstance(teacher, Teacher):
            raise TypeError(
                f"An object of type {type(teacher).__name__} teaches by what others "
                "have learned, so it takes no `teacher_loss`. Train its models before, "
                "or train one `keras.Model` that holds them. Received: teacher="
                f"{teacher!r}"
            )
        whose = "teacher that trains"
        own_training.check_replaced(teacher, whose, serves=False)
        own_training.check_called(teacher, whose, masks=label_mask.keys)
        if optimizer is student_optimizer:
            raise ValueError(
                "An optimizer keeps the state of one model. Give the teacher another, "
                f"or none. Received: teacher_optimizer={optimizer}, the student's"
            )
        super().__init__(dtype=teacher.dtype_policy, autocast=False)
        self.teacher = teacher
        self.built = True
        self._mask = label_mask
        self._shared = {id(weight) for weight in shared_weights(teacher, student)}
        counted = "weighted_metrics" if label_mask.keys else "metrics"
        self.compile(
            optimizer, loss, auto_scale_loss=auto_scale_loss, **{counted: metrics}
        )
        scales = {
            _loss_scale(self.optimizer, teacher, auto_scale_loss),
            _loss_scale(student_optimizer, student, auto_scale_loss),
        }
        if self._shared and (len(scales) > 1 or "dynamic" in scales):
            raise ValueError(
                "A teacher and a student that share trainable weights can't train "
                "together where each has a loss scale of its own, as in mixed_float16. "
                "Use mixed_bfloat16, or give each model its own layers. Received: "
                f"loss scales {sorted(map(str, scales))}, teacher of policy "
                f"{teacher.dtype_policy.name}, student of {student.dtype_policy.name}"
            )
        self.optimizer.build(self.trainable_weights)

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The teacher's weights that aren't the student's too."""
        weights = self.teacher.trainable_weights
        return [weight for weight in weights if id(weight) not in self._shared]

    @property
    def output_names(self) -> list[str]:
        """Names of the teacher's outputs, where it declares any."""
        names: list[str] = self.teacher.output_names
        return names

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the teacher's outputs."""
        return self.teacher(self._read(inputs), training=training)

    def _read(self, x: Any) -> Any:
        return select(self.teacher, x, withheld=self._label_mask.keys)

    @property
    def _trained_model(self) -> keras.Model:
        return self.teacher

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return the teacher's loss on the rows that have a label."""
        if y is None:
            raise ValueError(
                "A teacher that trains needs labels. Pass `y` to `fit`, with a "
                "`label_mask` where some rows have none. Received: y=None"
            )
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    @property
    def _label_mask(self) -> LabelMask:
        return self._mask


class TeacherLogs(keras.metrics.Metric):
    """What a training teacher measures, under names that begin with `teacher_`."""

    def __init__(self, teacher: TrainingTeacher) -> None:
        super().__init__(name="teacher_logs")
        self._teacher = teacher

    def update_state(self, *args: Any) -> None:
        """Do nothing: the teacher keeps its own state."""

    def reset_state(self) -> None:
        """Begin a new epoch."""
        self._teacher.reset_metrics()

    def result(self) -> dict[str, Tensor]:
        """Return the teacher's loss and metrics."""
        logs = self._teacher.get_metrics_result()
        return {f"teacher_{name}": value for name, value in logs.items()}


def _loss_scale(
    optimizer: keras.optimizers.Optimizer, model: keras.Model, automatic: bool
) -> Any:
    """Return by what Keras multiplies a model's loss: a number, None, "dynamic"."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or (
        automatic and model.dtype_policy.name == "mixed_float16"
    ):
        return "dynamic"
    return optimizer.loss_scale_factor
