"""What `Distiller.compile` sets up beside what Keras does."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_distill import own_training
from keras_distill.distillation import DistillationTerm
from keras_distill.inputs import check_not_declared
from keras_distill.labels import LabelMask
from keras_distill.losses.calling import check_scope_names
from keras_distill.shared_weights import shared_state
from keras_distill.teachers.base import Teacher, declared_names, logged_members
from keras_distill.teachers.training import TeacherLogs, TrainingTeacher


class Compilation:
    """Everything that the arguments of `Distiller.compile` come to, checked.

    A plain object: a model that holds it neither tracks nor saves it.

    Args:
        student: The student.
        teacher: The teacher, if there is one yet.
        privileged_features: As in `Distiller`.
        optimizer: The student's.
        auto_scale_loss: As in `keras.Model.compile`.

    The other arguments are those of `Distiller.compile`.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: Teacher | None,
        privileged_features: Sequence[str],
        *,
        optimizer: keras.optimizers.Optimizer,
        loss: Any,
        metrics: Any,
        distillation_loss: Any,
        alpha: Any,
        label_mask: str | Mapping[str, str | None] | None,
        teacher_loss: Any,
        teacher_optimizer: Any,
        teacher_metrics: Any,
        auto_scale_loss: bool,
    ) -> None:
        check_scope_names([loss, teacher_loss])
        output_names = getattr(student, "output_names", None)
        if loss is None and own_training.overrides(student, "compute_loss"):
            loss = student.compute_loss
        self.term = DistillationTerm(
            distillation_loss,
            alpha,
            label_losses=loss,
            output_names=output_names,
            members=logged_members(teacher),
        )
        if loss is None:
            self.term.check_needs_no_labels("loss=None")
        self.label_mask = LabelMask(label_mask, output_names=output_names)
        check_label_mask(self.label_mask, student, metrics)
        own_training.check_replaced(student, "student")
        masks = self.label_mask.keys
        own_training.check_called(student, "student", masks=masks, alpha=alpha)
        check_names(self.term, student)
        _warn_of_privileged_features_alone(teacher, privileged_features, self.term)
        self.training_teacher: TrainingTeacher | None = None
        self.teacher_logs: TeacherLogs | None = None
        if teacher_loss is not None:
            self.training_teacher = TrainingTeacher(
                teacher,
                student,
                optimizer=teacher_optimizer or _another(optimizer),
                student_optimizer=optimizer,
                loss=teacher_loss,
                metrics=teacher_metrics,
                label_mask=self.label_mask,
                auto_scale_loss=auto_scale_loss,
            )
            self.teacher_logs = TeacherLogs(self.training_teacher)
        elif teacher_optimizer is not None or teacher_metrics is not None:
            raise ValueError(
                "The teacher trains only where it has a `teacher_loss`. Received: "
                f"teacher_optimizer={teacher_optimizer}, "
                f"teacher_metrics={teacher_metrics}, teacher_loss=None"
            )
        else:
            check_not_shared(teacher, student)


def check_not_shared(teacher: Teacher | None, student: keras.Model) -> None:
    """Raise ValueError if a student's training would change its fixed teacher."""
    shared = shared_state(teacher, student)
    if shared:
        raise ValueError(
            "The student would train weights that its fixed teacher holds too, and so "
            "change the teacher. Give `teacher_loss` to train both, freeze the shared "
            "layers, or give each model its own. Received: shared weights "
            f"{[weight.path for weight in shared]}"
        )


def check_label_mask(mask: LabelMask, student: keras.Model, metrics: Any) -> None:
    """Raise ValueError if a student reads the mask, or metrics would pass it over."""
    check_not_declared(student, mask.keys, what="label masks")
    if mask.keys and metrics is not None:
        raise ValueError(
            "`metrics` would count rows without a label. Pass them as "
            "`weighted_metrics`, where such rows weigh 0. Received: "
            f"metrics={metrics} with label masks {mask.keys}"
        )


def check_names(term: DistillationTerm, student: keras.Model) -> None:
    """Raise ValueError if Keras logs an output's loss under the name of ours."""
    output_names = getattr(student, "output_names", None)
    taken = [name for name in output_names or () if f"{name}_loss" in term.metrics]
    if taken:
        raise ValueError(
            "An output's loss would be logged under the name of one of ours, "
            f"{sorted(term.metrics)}. Name the output otherwise. Received: outputs "
            f"named {taken}"
        )


def _warn_of_privileged_features_alone(
    teacher: Teacher | None, privileged_features: Sequence[str], term: DistillationTerm
) -> None:
    read, alpha = declared_names(teacher), term.final_alpha()
    if read and set(read) <= set(privileged_features) and alpha > 0.5:
        warnings.warn(
            f"The teacher reads privileged features alone, {read}, at alpha {alpha}: "
            "what the student can't predict of them is noise to it, and it may end "
            "below a student without a teacher. Let the teacher read the student's "
            "features too, or lower alpha.",
            stacklevel=5,  # where `Distiller.compile` is called
        )


def _another(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return an optimiser of the same configuration, with no state yet."""
    return type(optimizer).from_config(optimizer.get_config())
