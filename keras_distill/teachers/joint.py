"""A teacher that trains in the same steps as its student."""

from typing import Any

import keras

from keras_distill import backend, own_training
from keras_distill.inputs import select
from keras_distill.labels import LabelledModel, LabelMask
from keras_distill.resuming import RandomStates
from keras_distill.shared_weights import shared_weights
from keras_distill.teachers.base import Teacher
from keras_distill.types import Nested, Tensor


class TrainingTeacher(RandomStates, LabelledModel):
    """A teacher with a loss, an optimiser and metrics of its own.

    Args:
        teacher: The model to train.
        student: The model that it teaches. The student's optimiser updates the weights
            that both models hold.
        optimizer: The teacher's optimiser, as in `keras.Model.compile`.
        student_optimizer: The student's optimiser.
        loss: The teacher's label loss or losses, as in `keras.Model.compile`.
        metrics: The teacher's metrics, as in `keras.Model.compile`.
        label_mask: Finds the rows that have a label. The loss and the metrics leave out
            the others.
        auto_scale_loss: As in `keras.Model.compile`.

    Raises:
        TypeError: If the teacher isn't a Keras model, or combines several models.
        ValueError: If the optimiser is the student's, or if models share weights but
            scale their losses differently.
        NotImplementedError: If Keras runs on another backend than TensorFlow or JAX.
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
        _check_teacher(teacher, label_mask)
        if optimizer is student_optimizer:
            raise ValueError(
                "An optimizer keeps the state of one model. Give the teacher another, "
                f"or none. Received: teacher_optimizer={optimizer}, the student's"
            )
        # The teacher casts its own inputs.
        super().__init__(dtype=teacher.dtype_policy, autocast=False)
        self.teacher = teacher
        self.built = True
        self._mask = label_mask
        self._shared = {id(weight) for weight in shared_weights(teacher, student)}
        # Rows without a label weigh 0, which `metrics` would ignore.
        counted = "weighted_metrics" if label_mask.keys else "metrics"
        self.compile(
            optimizer, loss, auto_scale_loss=auto_scale_loss, **{counted: metrics}
        )
        if self._shared:
            scales = {
                _loss_scale(self.optimizer, teacher, auto_scale_loss),
                _loss_scale(student_optimizer, student, auto_scale_loss),
            }
            _check_one_scale(scales, teacher, student)
        # Built now, so that files that are loaded before the first step restore its
        # state.
        self.optimizer.build(self.trainable_weights)

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        """The teacher's trainable weights without those shared with the student."""
        weights = self.teacher.trainable_weights
        return [weight for weight in weights if id(weight) not in self._shared]

    @property
    def output_names(self) -> list[str]:
        """The names of the teacher's outputs, if it declares any."""
        names: list[str] = self.teacher.output_names
        return names

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        """Return the teacher's outputs for the inputs that it reads."""
        return self.teacher(self._read(inputs), training=training)

    def _read(self, x: Nested) -> Nested:
        return select(self.teacher, x, withheld=self._label_mask.keys)

    @property
    def _trained_model(self) -> keras.Model:
        return self.teacher

    def compute_loss(
        self,
        x: Nested = None,
        y: Nested = None,
        y_pred: Nested = None,
        sample_weight: Nested = None,
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
    """The loss and the metrics of a teacher that trains, as one metric of its student.

    The names of the logs begin with `teacher_`.

    Args:
        teacher: The teacher.
    """

    def __init__(self, teacher: TrainingTeacher) -> None:
        super().__init__(name="teacher_logs")
        self._teacher = teacher

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the teacher's metrics, which a step updates."""
        variables: list[keras.Variable] = self._teacher.metrics_variables
        return variables

    def update_state(self, *args: Any) -> None:
        """Do nothing: the step updates the teacher's own metrics."""

    def reset_state(self) -> None:
        """Reset the teacher's metrics, as at the beginning of an epoch."""
        self._teacher.reset_metrics()

    def result(self) -> dict[str, Tensor]:
        """Return the values of the teacher's loss and metrics by name."""
        logs = self._teacher.get_metrics_result()
        return {f"teacher_{name}": value for name, value in logs.items()}


def _loss_scale(
    optimizer: keras.optimizers.Optimizer, model: keras.Model, automatic: bool
) -> Any:
    """Return the factor by which Keras multiplies a model's loss.

    Returns:
        A number; None if the loss isn't scaled; "dynamic" if the factor changes during
        training.
    """
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) or (
        automatic and model.dtype_policy.name == "mixed_float16"
    ):
        return "dynamic"
    return optimizer.loss_scale_factor


def _check_one_scale(
    scales: set[Any], teacher: keras.Model, student: keras.Model
) -> None:
    """Raise ValueError if two models that share weights scale their losses differently.

    The gradient of a shared weight is the sum of the gradients of both losses.
    """
    if len(scales) > 1 or "dynamic" in scales:
        raise ValueError(
            "A teacher and a student that share trainable weights can't train "
            "together where each has a loss scale of its own, as in mixed_float16. "
            "Use mixed_bfloat16, or give each model its own layers. Received: "
            f"loss scales {sorted(map(str, scales))}, teacher of policy "
            f"{teacher.dtype_policy.name}, student of {student.dtype_policy.name}"
        )


def _check_teacher(teacher: Any, label_mask: LabelMask) -> None:
    """Raise an error unless this teacher can train with its student."""
    if not (backend.is_tensorflow() or backend.is_jax()):
        raise NotImplementedError(
            "A teacher trains with its student on TensorFlow and on JAX only. "
            "Train the teacher first, and compile without `teacher_loss`. "
            f"Received: the backend {backend.name()}"
        )
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
    own_training.check_replaced(teacher, whose, serves=False, stacklevel=8)
    own_training.check_called(teacher, whose, masks=label_mask.keys)
