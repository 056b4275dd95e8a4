"""One loss called with a teacher's and a student's output, as Keras calls it."""

import re
from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import DistillationLoss
from keras_distill.losses.checks import ChecksShapes, may_have_shape
from keras_distill.types import Tensor

# Keras losses whose `y_true` are ids, so that it has an axis less than `y_pred`
_OF_IDS = (keras.losses.SparseCategoricalCrossentropy, keras.losses.CTC)
_FUNCTIONS_OF_IDS = (keras.losses.sparse_categorical_crossentropy, keras.losses.ctc)

_DIFFERENT = (
    "The teacher's and the student's output must have the same shape, but for a last "
    "dimension of 1; integer ids of classes come without the axis of the classes. "
    "Reshape the teacher's output, e.g. with `teacher=lambda x: "
    "keras.ops.reshape(model(x), ...)`. Received:"
)

_SCOPE = re.compile(r"[A-Za-z0-9_.\\>-]*")  # within another
_ROOT_SCOPE = re.compile(r"[A-Za-z0-9.][A-Za-z0-9_.\\>-]*")  # what TensorFlow takes


class FunctionLoss(keras.losses.Loss):
    """A loss function, e.g. what Keras finds under `"mse"`, with Keras' reduction."""

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
    """Return what Keras computes for the name `"crossentropy"`: the shapes decide."""
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

    Ranks that differ by a last axis of size 1 are brought together as Keras brings
    those of labels and predictions. A shape that isn't known takes the student's.

    Raises:
        ValueError: If the shapes differ otherwise.
    """
    student, teacher = ops.convert_to_tensor(student), ops.convert_to_tensor(teacher)
    loss = _with_scope_name(loss)
    if not _reads_ids(loss):
        teacher = with_known_shape(teacher, student)
    if isinstance(loss, DistillationLoss):
        teacher, student = _of_students_rank(teacher, student)
    if isinstance(loss, ChecksShapes) or _reads_ids(loss):
        return loss(teacher, student, sample_weight)
    teacher, student = of_one_rank(teacher, student)
    if not _may_be_ids(loss, teacher, student):
        _check_no_broadcast(teacher, student)
    try:
        return loss(teacher, student, sample_weight)
    except Exception as error:
        if may_have_shape(teacher, student.shape):
            raise
        raise ValueError(_different(teacher, student)) from error


def of_one_rank(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return two tensors of one rank where theirs differ by a last axis of size 1.

    As Keras does with labels and predictions: a vector becomes a column, everything
    else loses the axis. Masks of Keras' stay.
    """
    if len(x.shape) == len(y.shape) + 1:
        y, x = of_one_rank(y, x)
    elif len(y.shape) == len(x.shape) + 1 and y.shape[-1] in (1, None):
        if len(x.shape) == 1:
            x = _masked_as(x, ops.expand_dims(x, -1))
        elif len(x.shape) > 1:
            y = _masked_as(y, ops.squeeze(y, -1))
    return x, y


def with_known_shape(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the teacher's output with what the student's tells of its shape.

    An output of `tf.py_function` has no static shape, which losses need. Where the
    shapes differ when the step runs by more than a last dimension of 1, TensorFlow
    raises an error.
    """
    if keras.backend.backend() != "tensorflow":
        return teacher
    import tensorflow as tf

    if teacher.shape.rank is None:
        return _shaped_as(teacher, student)
    is_open = None in tuple(teacher.shape)[1:]
    if is_open and may_have_shape(teacher, student.shape):
        return tf.ensure_shape(teacher, student.shape)
    return teacher


def _shaped_as(teacher: Tensor, student: Tensor) -> Tensor:
    """Return an output of unknown rank in the student's shape, once the step runs."""
    import tensorflow as tf

    shapes = tf.shape(teacher), tf.shape(student)
    # as text, because shapes of different ranks can't be compared as numbers
    t, s = (
        tf.strings.reduce_join(tf.strings.as_string(shape), separator=",")
        for shape in shapes
    )
    fits = (t == s) | (t + ",1" == s) | (t == s + ",1")
    message = _DIFFERENT + " outputs of shape"
    with tf.control_dependencies([tf.debugging.Assert(fits, [message, *shapes])]):
        return tf.ensure_shape(tf.reshape(teacher, shapes[1]), student.shape)


def _of_students_rank(teacher: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with the student's rank, whose last axis is that of the units."""
    if len(student.shape) == len(teacher.shape) + 1 > 2 and student.shape[-1] == 1:
        return ops.expand_dims(teacher, -1), student
    return of_one_rank(teacher, student)


def _check_no_broadcast(teacher: Tensor, student: Tensor) -> None:
    """Raise ValueError where an operation would compare rows with other rows."""
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


def _masked_as(old: Tensor, new: Tensor) -> Tensor:
    mask = getattr(old, "_keras_mask", None)
    if mask is not None:
        new._keras_mask = mask
    return new


def _reads_ids(loss: keras.losses.Loss) -> bool:
    if isinstance(loss, FunctionLoss):
        return loss.function in _FUNCTIONS_OF_IDS
    return isinstance(loss, _OF_IDS)


def _may_be_ids(loss: keras.losses.Loss, teacher: Tensor, student: Tensor) -> bool:
    """Return whether a teacher's output may be ids of classes, which a loss reads.

    Ids are integers without the axis of the classes. Keras' losses say which of them
    read ids; what other losses do with them is theirs to say.
    """
    dtype = keras.backend.standardize_dtype(teacher.dtype)
    if keras.backend.is_float_dtype(dtype):
        return False
    if isinstance(loss, FunctionLoss) and loss.function is crossentropy:
        return True  # shapes decide what it reads
    has_no_classes = len(student.shape) == len(teacher.shape) + 1
    return has_no_classes and not _is_of_keras(loss)


def _is_of_keras(loss: keras.losses.Loss) -> bool:
    computed: Any = type(loss)
    if isinstance(loss, FunctionLoss):
        computed = getattr(loss.function, "func", loss.function)  # of a partial
    return str(getattr(computed, "__module__", "")).partition(".")[0] == "keras"


def _with_scope_name(loss: keras.losses.Loss) -> keras.losses.Loss:
    """Return the loss, or a copy with a name that TensorFlow takes for a scope.

    Keras never forgets a scope that couldn't be entered: later models would fail.
    """
    name = _scope_name(loss.name)
    if name == loss.name:
        return loss
    copied = object.__new__(type(loss))  # `copy.copy` would write the loss to a file
    copied.__dict__.update(loss.__dict__)
    copied.__dict__["name"] = name
    return copied


def check_scope_names(losses: Any) -> None:
    """Raise ValueError if a label loss has a name that Keras can't use as a scope."""
    for loss in keras.tree.flatten(losses):
        if loss is None or isinstance(loss, str):
            continue
        # Keras strips what is no letter, digit or underscore from functions' names
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
