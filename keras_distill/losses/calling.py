"""Calls of a loss with the outputs of a teacher and a student, as Keras calls it."""

import re
from typing import Any

import keras
from keras import ops

from keras_distill import backend
from keras_distill.losses.base import DistillationLoss
from keras_distill.losses.checks import ChecksShapes, may_have_shape
from keras_distill.losses.ranks import of_one_rank as of_one_rank
from keras_distill.losses.weighting import masked_weights
from keras_distill.types import Tensor

# Keras losses whose `y_true` are ids, with one axis less than `y_pred`.
_OF_IDS = (keras.losses.SparseCategoricalCrossentropy, keras.losses.CTC)
_FUNCTIONS_OF_IDS = (keras.losses.sparse_categorical_crossentropy, keras.losses.ctc)

_DIFFERENT = (
    "The teacher's and the student's output must have the same shape, but for a last "
    "dimension of 1; integer ids of classes come without the axis of the classes. "
    "Reshape the teacher's output, e.g. with `teacher=lambda x: "
    "keras.ops.reshape(model(x), ...)`. Received:"
)

# Names that TensorFlow accepts for a scope within another scope, and outside of one.
_SCOPE = re.compile(r"[A-Za-z0-9_.\\>-]*")
_ROOT_SCOPE = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\>-]*")


class FunctionLoss(keras.losses.Loss):
    """A loss that reduces the values of a function, such as Keras' `"mse"`."""

    def __init__(self, function: Any) -> None:
        super().__init__(name=_scope_name(_name_of(function)))
        self.function = function

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the function's values."""
        return self.function(*of_one_rank(y_true, y_pred))


def as_loss(loss: Any) -> Any:
    """Return the `keras.losses.Loss` that `keras.Model.compile` makes of `loss`."""
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        return FunctionLoss(crossentropy)
    found = keras.losses.get(loss)
    if found is None or isinstance(found, keras.losses.Loss):
        return found
    return FunctionLoss(found)


def crossentropy(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Return the loss that Keras computes under the name `"crossentropy"`.

    The shapes decide whether it is the binary, sparse or categorical cross-entropy.
    """
    classes = y_pred.shape[-1]
    if classes == 1:
        return keras.losses.binary_crossentropy(y_true, y_pred)
    if len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1:
        return keras.losses.sparse_categorical_crossentropy(y_true, y_pred)
    return keras.losses.categorical_crossentropy(y_true, y_pred)


def call_loss(
    loss: keras.losses.Loss, teacher: Any, student: Any, sample_weight: Any = None
) -> Tensor:
    """Return a loss between the outputs of a teacher and a student.

    If the ranks differ by a last axis of size 1, they are aligned as Keras aligns those
    of labels and predictions. If the teacher's output has no static shape, it gets that
    of the student's output.

    Raises:
        ValueError: If the shapes differ in another way.
    """
    student, teacher = ops.convert_to_tensor(student), ops.convert_to_tensor(teacher)
    loss = _with_scope_name(loss)
    if not _reads_ids(loss) and not reads_packed(loss):
        teacher = with_known_shape(teacher, student)
    checks_itself = isinstance(loss, ChecksShapes) or _reads_ids(loss)
    aligned = student
    if isinstance(loss, DistillationLoss) and not loss.reads_packed:
        teacher, aligned = _of_students_rank(teacher, student)
    elif not checks_itself:
        teacher, aligned = of_one_rank(teacher, student)
        if not _may_be_ids(loss, teacher, aligned):
            _check_no_broadcast(teacher, aligned)
    # A tensor of another rank doesn't carry the mask.
    mask = None if aligned is student else backend.keras_mask(student)
    try:
        return _called(loss, teacher, aligned, sample_weight, mask)
    except Exception as error:
        if checks_itself or may_have_shape(teacher, aligned.shape):
            raise
        raise ValueError(_different(teacher, aligned)) from error


def _called(
    loss: keras.losses.Loss,
    teacher: Tensor,
    student: Tensor,
    sample_weight: Any,
    mask: Tensor | None,
) -> Tensor:
    """Return a loss; `mask` is a Keras mask that `student` has lost, or None."""
    if mask is not None and isinstance(loss, ChecksShapes):
        return loss.with_mask(teacher, student, sample_weight, mask)
    weight = masked_weights(mask, sample_weight, loss.reduction, loss.dtype)
    return loss(teacher, student, weight)


def with_known_shape(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the teacher's output with the static shape of the student's.

    The output of a `tf.py_function` has no static shape, which losses need. If the
    shapes differ when the step runs, by more than a last dimension of 1, TensorFlow
    raises an error.
    """
    if not backend.has_rank(teacher):
        return backend.reshaped_as(teacher, student, _DIFFERENT + " outputs of shape")
    is_open = None in tuple(teacher.shape)[1:]
    if is_open and may_have_shape(teacher, student.shape):
        return backend.with_shape(teacher, student.shape)
    return teacher


def _of_students_rank(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with one rank. The student's last axis, of its units, is kept."""
    if len(student.shape) == len(teacher.shape) + 1 > 2 and student.shape[-1] == 1:
        return ops.expand_dims(teacher, -1), student
    return of_one_rank(teacher, student)


def _check_no_broadcast(teacher: Tensor, student: Tensor) -> None:
    """Raise ValueError if broadcasting would compare rows with other rows."""
    shapes = tuple(teacher.shape), tuple(student.shape)
    alike = len(shapes[0]) == len(shapes[1]) and not any(
        t != s and 1 in (t, s) and None not in (t, s)
        for t, s in zip(*shapes, strict=True)
    )
    if not alike:
        raise ValueError(_different(teacher, student))


def _different(teacher: Tensor, student: Tensor) -> str:
    return (
        f"{_DIFFERENT} teacher output {tuple(teacher.shape)}, student output "
        f"{tuple(student.shape)}"
    )


def reads_packed(loss: Any) -> bool:
    """Return whether a loss reads a part of the teacher's output in another form."""
    return isinstance(loss, DistillationLoss) and loss.reads_packed


def _reads_ids(loss: keras.losses.Loss) -> bool:
    if isinstance(loss, FunctionLoss):
        return loss.function in _FUNCTIONS_OF_IDS
    return isinstance(loss, _OF_IDS)


def _may_be_ids(loss: keras.losses.Loss, teacher: Tensor, student: Tensor) -> bool:
    """Return whether a teacher's output may be ids of classes that the loss reads.

    Ids are integers without the axis of the classes. Of Keras' losses, it is known
    which read ids. Any other loss may read ids.
    """
    dtype = keras.backend.standardize_dtype(teacher.dtype)
    if keras.backend.is_float_dtype(dtype):
        return False
    if isinstance(loss, FunctionLoss) and loss.function is crossentropy:
        return True
    has_no_classes = len(student.shape) == len(teacher.shape) + 1
    return has_no_classes and not _is_of_keras(loss)


def _is_of_keras(loss: keras.losses.Loss) -> bool:
    computed: Any = type(loss)
    if isinstance(loss, FunctionLoss):
        # A `functools.partial` has the module of functools.
        computed = getattr(loss.function, "func", loss.function)
    return str(getattr(computed, "__module__", "")).partition(".")[0] == "keras"


def _with_scope_name(loss: keras.losses.Loss) -> keras.losses.Loss:
    """Return the loss, or a copy whose name TensorFlow accepts for a scope.

    TensorFlow raises an error for other names. Keras would keep the failed scope, and
    models that are built later would fail.
    """
    name = _scope_name(loss.name)
    if name == loss.name:
        return loss
    # `copy.copy` would serialise the loss.
    copied = object.__new__(type(loss))
    copied.__dict__.update(loss.__dict__)
    copied.__dict__["name"] = name
    return copied


def check_scope_names(losses: Any) -> None:
    """Raise ValueError if a label loss has a name that Keras can't use as a scope."""
    for loss in keras.tree.flatten(losses):
        if loss is None or isinstance(loss, str):
            continue
        # Keras keeps only letters, digits and underscores of functions' names.
        name = str(getattr(loss, "name", None) or re.sub(r"\W", "", _name_of(loss)))
        if not _SCOPE.fullmatch(name):
            raise ValueError(
                "TensorFlow needs names of losses of ASCII letters, digits and `_.-`. "
                f"Rename it. Received: a loss named {name!r}"
            )


def _scope_name(name: str) -> str:
    if _ROOT_SCOPE.fullmatch(name):
        return name
    return re.sub(r"[^A-Za-z0-9_.]", "", name).lstrip("_") or "loss"


def _name_of(function: Any) -> str:
    name = getattr(function, "__name__", None) or type(function).__name__
    return str(name)
