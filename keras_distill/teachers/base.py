"""What may teach, and what it says of a batch."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import features
from keras_distill.teachers.recorded import Recorded

Teacher = Callable[..., Any]


def checked(teacher: Teacher | None) -> Teacher | None:
    """Return `teacher`, or raise where it can't teach.

    Raises:
        TypeError: If it can't be called.
        ValueError: If it is a Keras model or layer without weights.
    """
    if teacher is not None and not callable(teacher):
        raise TypeError(
            "`teacher` must be a Keras model or a callable of a batch. Received: "
            f"teacher={teacher!r} of type {type(teacher).__name__}"
        )
    if isinstance(teacher, keras.Layer) and not teacher.built:
        raise ValueError(
            f"The teacher '{teacher.name}' isn't built: it has no weights, let alone "
            "trained ones. Train it, load it, or call it on a batch before it teaches."
        )
    return teacher


def call(teacher: Teacher | None, x: Any, *, withheld: Sequence[str] = ()) -> Any:
    """Return what a teacher says of a batch, as it would when serving.

    Args:
        teacher: A Keras layer or model, called with `training=False`, or any other
            callable.
        x: The batch's inputs; of a dict, a model is given the keys that it declares.
        withheld: Keys that a teacher without declared inputs isn't given.

    Returns:
        The outputs as tensors, with no gradient to the teacher.

    Raises:
        ValueError: If there is no teacher.
    """
    if teacher is None:
        raise ValueError(
            "This distiller has no teacher: files don't hold it. Assign it, "
            "`distiller.teacher = teacher`, or load the file with "
            "`Distiller.load(filepath, teacher=teacher)`."
        )
    seen = features.select(teacher, x, withheld=withheld)
    is_layer = isinstance(teacher, keras.Layer)
    return as_targets(teacher(seen, training=False) if is_layer else teacher(seen))


def as_targets(outputs: Any) -> Any:
    """Return a teacher's outputs as tensors through which no gradient passes."""
    return keras.tree.map_structure(
        lambda output: ops.stop_gradient(ops.convert_to_tensor(output)), outputs
    )


def targets_read(teacher: Teacher | None) -> tuple[str, ...]:
    """Return the keys of a batch under which the teacher's own answers stand."""
    return tuple(teacher.reads) if isinstance(teacher, Recorded) else ()


def supports_jit(teacher: Teacher | None) -> bool:
    """Return whether XLA can compile a teacher, as Keras asks each layer."""
    if not isinstance(teacher, keras.Layer):
        return True
    return all(layer.supports_jit for layer in teacher._flatten_layers())
