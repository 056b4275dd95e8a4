"""The outputs that are scores of classes, which is known from their losses."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_distill.guards import kinds
from keras_distill.guards.kinds import Kind
from keras_distill.guards.subjects import losses_by_path
from keras_distill.per_output import found, names_by_path
from keras_distill.types import Nested, Path


class Scores(NamedTuple):
    """An output of classes, or of independent units.

    Args:
        path: The path of the output.
        teacher: The kind of the teacher's values.
        student: The kind of the student's values.
    """

    path: Path
    teacher: Kind
    student: Kind


def outputs_of_classes(
    distillation_loss: Any,
    label_loss: Any,
    outputs: Nested,
    names: Sequence[str] | None,
) -> dict[str, Scores]:
    """Return the outputs of classes by name; the only output is named "".

    Args:
        distillation_loss: As in `Distiller.compile`.
        label_loss: The `loss` of `Distiller.compile`.
        outputs: The student's outputs.
        names: The names of the outputs in order; None if unknown.
    """
    distillation, label = (
        losses_by_path(loss, outputs, names) for loss in (distillation_loss, label_loss)
    )
    scores = {}
    for path, name in names_by_path(outputs, names).items():
        if path not in distillation:
            continue
        loss, units = distillation[path], found(path, outputs).shape[-1]
        of_labels = kinds.of_labels(label[path], units) if path in label else None
        student = kinds.of_student(loss, units) or of_labels
        teacher = kinds.of_teacher(loss, units)
        if teacher is None and kinds.is_known(loss):
            teacher = student
        if teacher is None or student is None or _is_rate(teacher) or _is_rate(student):
            continue
        scores[name] = Scores(path, teacher, student)
    return scores


def _is_rate(kind: Kind) -> bool:
    """Return whether values are independent rates, which aren't probabilities."""
    return kind.per_unit and kind.values == "positive"
