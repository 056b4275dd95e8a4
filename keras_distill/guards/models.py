"""Checks that the student and the teacher are two models, given in the right order."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from keras_distill import inputs
from keras_distill.cautions import TeacherWarning
from keras_distill.shared_weights import count_shared

# A student as large as its teacher may have a few more weights, e.g. to read its own
# inputs.
_LARGER = 1.1


def check_two(student: keras.Model, teacher: Any) -> None:
    """Raise ValueError if the student and the teacher are the same object."""
    if teacher is student:
        raise ValueError(
            "The student and the teacher must be two models: a model learns nothing "
            "from its own outputs. For its moving average, pass "
            "`keras_distill.teachers.EMA(student)`; for what it was before, "
            "a copy with its weights; for what it is at each step, without dropout, "
            "`lambda x: student(x, training=False)`. Received: student and teacher "
            f"'{student.name}', one object"
        )


def warn_if_swapped(
    student: keras.Model,
    teacher: Any,
    privileged_features: Sequence[str],
    stacklevel: int = 3,
) -> None:
    """Warn if the student is larger than the teacher, unless the teacher reads more.

    Args:
        student: The student.
        teacher: The teacher. Only a built Keras model is compared.
        privileged_features: Names of inputs that the student must not read. With them,
            a small teacher makes sense.
        stacklevel: As in `warnings.warn`.
    """
    models = (student, teacher)
    if not all(isinstance(model, keras.Model) and model.built for model in models):
        return
    read = inputs.declared_names(teacher) or []
    reads_more = set(read) - set(inputs.declared_names(student) or read)
    if privileged_features or (len(read) > 1 and reads_more):
        return
    own, of_teacher = (model.count_params() for model in models)
    # A teacher without weights calls other functions, whose size isn't known.
    unknown = of_teacher == 0 or count_shared(teacher, student) > 0
    if unknown or own <= _LARGER * of_teacher:
        return
    warnings.warn(
        f"The student '{student.name}' has {own:,} parameters, more than its teacher "
        f"'{teacher.name}' with {of_teacher:,}. Are they swapped? The student comes "
        "first, `Distiller(student, teacher)`; in `keras.distillation` the teacher "
        "does. Where a smaller model is to teach a larger one, as from weak to strong, "
        "filter `keras_distill.teachers.TeacherWarning`.",
        TeacherWarning,
        stacklevel=stacklevel,
    )
