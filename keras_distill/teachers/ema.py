"""A teacher that is the moving average of its student."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import shared_weights
from keras_distill.batch import Batch
from keras_distill.teachers import base
from keras_distill.teachers.base import FollowingTeacher, Lesson
from keras_distill.types import Nested
from keras_distill.values import Value


@keras.saving.register_keras_serializable(package="keras_distill")
class EMA(keras.Model, FollowingTeacher):
    r"""The moving average of a student: the mean teacher.

    `w_t <- decay w_t + (1 - decay) w_s` after each update by the student's optimiser,
    for the weights `w_t` of the teacher and `w_s` of the student. With gradient
    accumulation there are fewer updates than batches. The average covers trained
    weights and moving statistics, such as those of `BatchNormalization`. Integers and
    the states of random generators are copied. `teacher.model` is a model of the
    student's class, which can be evaluated and exported. `Distiller` updates the
    teacher and saves it in its files, so that a resumed training continues with the
    same teacher.

    The teacher reads the same inputs as the student.

    Args:
        student: The built student. The teacher's model is made from the student's
            config, and starts with the student's weights.
        decay: The share of its weights that the teacher keeps at an update, in [0, 1).
            A float, which a callback may assign, or a `LearningRateSchedule` of the
            number of earlier updates. Defaults to 0.999.
        name: Name of the teacher.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        TypeError: If the student isn't a Keras model, or can't be copied.
        ValueError: If the student isn't built, if it has weights in float16 or
            bfloat16, which are too coarse for the steps of an average, or if `decay`
            isn't in [0, 1).

    Example:
        >>> import numpy as np
        >>> student = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        >>> student.set_weights([np.array([[2.0]]), np.array([0.0])])
        >>> teacher = EMA(student, decay=0.75)
        >>> student.set_weights([np.array([[6.0]]), np.array([4.0])])
        >>> teacher.follow(student)
        >>> [weight.numpy().item() for weight in teacher.model.weights]
        [3.0, 1.0]

    Reference:
        Tarvainen, Valpola 2017, "Mean teachers are better role models",
        https://arxiv.org/abs/1703.01780.
    """

    def __init__(
        self,
        student: keras.Model,
        decay: float | LearningRateSchedule = 0.999,
        *,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        _check_student(student)
        # The model casts its inputs to its own dtype.
        super().__init__(name=name, **{"autocast": False, **kwargs})
        # Otherwise Keras would track the `Value` as one of the model's metrics.
        self._untracked = SimpleNamespace()
        self._untracked.decay = Value(
            "decay",
            decay,
            requirement="in [0, 1)",
            accepts=lambda number: 0.0 <= number < 1.0,
        )
        self.model = _copy(student)
        self.built = True

    @property
    def decay(self) -> float | LearningRateSchedule:
        """The share of its weights that the teacher keeps.

        A float may be assigned, also during `fit`.
        """
        return self._untracked.decay.value

    @decay.setter
    def decay(self, value: float) -> None:
        self._untracked.decay.value = value

    @property
    def state(self) -> Sequence[keras.Variable]:
        """The variables of the model and of the decay."""
        return [*self.model.variables, self._untracked.decay.state]

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        """Return the model's outputs."""
        return base.call(self.model, inputs, training=training)

    def teach(self, batch: Batch) -> Lesson:
        """Return the model's outputs for the inputs that the student reads."""
        withheld = batch.withheld_from_student
        return Lesson(base.call(self.model, batch.inputs, withheld=withheld))

    def follow(
        self, student: keras.Model, *, step: Any = 0, updated: Any = True
    ) -> None:
        """Move the teacher's weights towards the student's.

        Args:
            student: The student.
            step: The number of earlier updates. A scheduled `decay` is read at it.
            updated: Whether the student's optimiser has updated its weights, a boolean
                scalar. If not, nothing changes.
        """
        _check_alike(self.model, student)
        # A tensor: with accumulated gradients, `updated` is known only within a step.
        moved = ops.where(updated, 1.0 - self._untracked.decay.at(step), 0.0)
        for of_teacher, of_student in zip(
            self.model.variables, student.variables, strict=True
        ):
            old, new = (ops.convert_to_tensor(v) for v in (of_teacher, of_student))
            if "float" in of_teacher.dtype:
                value = old + ops.cast(moved, old.dtype) * (new - old)
            else:
                value = ops.where(updated, new, old)
            of_teacher.assign(value)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "student": keras.saving.serialize_keras_object(self.model),
            "decay": keras.saving.serialize_keras_object(self.decay),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "EMA":
        """Build the teacher from `get_config`'s result."""
        made = {
            name: keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
            for name in ("student", "decay")
        }
        return cls(**{**config, **made})


def _check_student(student: Any) -> None:
    if not isinstance(student, keras.Model):
        raise TypeError(
            "`student` must be a `keras.Model`. Received: "
            f"student={student!r} of type {type(student).__name__}"
        )
    if not student.built:
        raise ValueError(
            f"The student '{student.name}' isn't built: it has no weights to start "
            "from. Call it on a batch first."
        )
    dtypes = {weight.dtype for weight in student.weights}
    if narrow := sorted(dtypes & {"float16", "bfloat16"}):
        raise ValueError(
            f"A moving average of weights in {narrow[0]} would stand still: its steps "
            "are smaller than what the weights can tell apart. Give the student the "
            f"policy 'mixed_{narrow[0]}'. Received: weights of dtypes {sorted(dtypes)}"
        )


def _copy(student: keras.Model) -> keras.Model:
    """Return another model of the student's config, with the student's values."""
    try:
        model = keras.models.clone_model(student)
    except Exception as error:
        raise TypeError(
            f"{_CANT_COPY} Received: student '{student.name}' of type "
            f"{type(student).__name__} ({type(error).__name__}: {error})"
        ) from error
    if shared_weights.count_shared(model, student) or _shapes(model) != _shapes(
        student
    ):
        raise TypeError(
            f"{_CANT_COPY} Received: student '{student.name}' of type "
            f"{type(student).__name__}, with {len(student.variables)} variables, and a "
            f"copy with {len(model.variables)}, of which "
            f"{shared_weights.count_shared(model, student)} are the student's own"
        )
    for copied, original in zip(model.variables, student.variables, strict=True):
        # JAX would give both variables one buffer, which a step can't update twice.
        copied.assign(ops.copy(original))
    return model


_CANT_COPY = (
    "The student must be a model that its config makes again, with weights of its own: "
    "give its class a `get_config` (and `from_config`) that holds the constructor's "
    "arguments, and register it with `keras.saving.register_keras_serializable`."
)


def _check_alike(model: keras.Model, student: keras.Model) -> None:
    if _shapes(model) != _shapes(student):
        raise ValueError(
            "The teacher follows a student of the model that it was made from. "
            f"Received: student '{student.name}' with variables {_shapes(student)}, "
            f"where the teacher has {_shapes(model)}"
        )


def _shapes(model: keras.Model) -> list[Any]:
    return [(*variable.shape, variable.dtype) for variable in model.variables]
