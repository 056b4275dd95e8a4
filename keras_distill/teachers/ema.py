"""A teacher that is the moving average of its student."""

from types import SimpleNamespace
from typing import Any

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import shared_weights
from keras_distill.teachers import base
from keras_distill.teachers.base import FollowingTeacher, Lesson, Step
from keras_distill.values import Value


@keras.saving.register_keras_serializable(package="keras_distill")
class EMA(FollowingTeacher):
    r"""A copy of the student whose weights follow the student's: the mean teacher.

    `w_t <- decay w_t + (1 - decay) w_s` after each update by the student's optimiser
    (with gradient accumulation, fewer than batches), for trained weights and for moving
    statistics as those of `BatchNormalization`; integers and the states of random
    numbers are copied. `teacher.model` is an ordinary model of the student's class, to
    evaluate and export. `Distiller` lets it follow, and its files hold it, so that a
    resumed training goes on with the same teacher.

    The teacher reads what the student reads.

    Args:
        student: The student, built, from whose weights the teacher's start. It is
            copied through its config.
        decay: How much of its weights the teacher keeps at an update, in [0, 1). A
            float, which a callback may assign, or a `LearningRateSchedule` of the
            updates before this one. Defaults to 0.999.
        name: Name of the teacher.
        **kwargs: What `keras.Model` takes.

    Raises:
        TypeError: If the student isn't a Keras model, or can't be copied.
        ValueError: If it isn't built, holds weights in float16 or bfloat16, in which
            the average would stand still, or if `decay` isn't in [0, 1).

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
        # the model casts its own inputs
        super().__init__(name=name, **{"autocast": False, **kwargs})
        # Not tracked: a hyperparameter is none of the model's metrics.
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
        """How much the teacher keeps; floats may be assigned during `fit`."""
        return self._untracked.decay.value

    @decay.setter
    def decay(self, value: float) -> None:
        self._untracked.decay.value = value

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the model's outputs."""
        return base.call(self.model, inputs, training=training)

    def teach(self, step: Step) -> Lesson:
        """Return what the model says of what its student reads."""
        seen = step.withheld_from_student
        return Lesson(base.call(self.model, step.inputs, withheld=seen))

    def follow(
        self, student: keras.Model, *, step: Any = 0, updated: Any = True
    ) -> None:
        """Move the teacher's weights towards the student's.

        Args:
            student: The student.
            step: The number of updates before this one, for a scheduled `decay`.
            updated: Whether the student's optimiser has updated its weights, a boolean
                scalar; if not, nothing changes.
        """
        _check_alike(self.model, student)
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
    """Return a model of the same config and weights."""
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
        copied.assign(original)
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
