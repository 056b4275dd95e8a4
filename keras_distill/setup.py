"""The parts of a distiller that `compile` makes in addition to Keras' own."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_distill import backend, own_training
from keras_distill.guard import BAD_TEACHER, Guard
from keras_distill.guards.classes import Scores, outputs_of_classes
from keras_distill.guards.heads import linear_outputs
from keras_distill.guards.look import Look
from keras_distill.guards.teacher_loss import TeacherLabelLoss
from keras_distill.inputs import check_not_declared
from keras_distill.labels import LabelMask
from keras_distill.labels.probabilities import BAD_LABELS
from keras_distill.losses.calling import check_scope_names, reads_packed
from keras_distill.objective import Objective
from keras_distill.shared_weights import shared_state
from keras_distill.teachers.base import Teacher, TeacherLike
from keras_distill.teachers.joint import TeacherLogs, TrainingTeacher
from keras_distill.types import Nested


class Setup:
    """The checked arguments of `Distiller.compile`, and the objects made of them.

    It is a plain object, so that a model that holds it doesn't track or save it.

    Args:
        distiller: The distiller, which Keras hasn't compiled yet.
        optimizer: The student's optimiser.
        ours: The arguments of `Distiller.compile` that are not Keras', without `alpha`.
        alpha: As in `Distiller.compile`.
        loss: As in `keras.Model.compile`; so are `loss_weights` and `metrics`.
        auto_scale_loss: As in `keras.Model.compile`.
    """

    def __init__(
        self,
        distiller: Any,
        *,
        optimizer: keras.optimizers.Optimizer,
        ours: Mapping[str, Any],
        alpha: Any,
        loss: Any,
        loss_weights: Any,
        metrics: Any,
        auto_scale_loss: bool,
    ) -> None:
        self.config, self._loss = dict(ours), loss
        self._distiller = distiller
        student, teacher = distiller.student, distiller.adapted_teacher
        self.output_names = getattr(student, "output_names", None)
        check_scope_names([loss, ours["teacher_loss"]])
        has_own_loss = own_training.overrides(student, "compute_loss")
        self.objective = Objective(
            ours["distillation_loss"],
            alpha,
            loss_weights=ours["distillation_loss_weights"],
            output_names=self.output_names,
            has_labels=loss is not None or has_own_loss,
            members=teacher.logged_members,
        )
        if loss is None and not has_own_loss:
            self.objective.check_needs_no_labels("loss=None")
        self.label_mask = LabelMask(ours["label_mask"], output_names=self.output_names)
        self._check(alpha, metrics)
        self.joint = self._joint(optimizer, auto_scale_loss)
        self.joint_logs = None if self.joint is None else TeacherLogs(self.joint)
        self.teacher_log: TeacherLabelLoss | None = None
        if ours["log_teacher"] and self.joint is None:
            _check_not_packed(ours["distillation_loss"])
            self.teacher_log = TeacherLabelLoss(loss, loss_weights, self.label_mask)
        self.guard: Guard | None = None
        self.look = self._look(teacher)

    @property
    def losses(self) -> Nested:
        """The losses of both models, as they were given."""
        ours = self.config["distillation_loss"], self.config["teacher_loss"]
        return [self._loss, *ours]

    def _check(self, alpha: Any, metrics: Any) -> None:
        """Raise ValueError if the student doesn't fit the arguments."""
        distiller, student = self._distiller, self._distiller.student
        check_label_mask(self.label_mask, student, metrics)
        own_training.check_replaced(student, "student", stacklevel=7)
        masks = self.label_mask.keys
        own_training.check_called(student, "student", masks=masks, alpha=alpha)
        check_names(self.objective, student)
        check_trained(self.objective, student)
        _warn_of_privileged_features_alone(
            distiller.adapted_teacher, distiller.privileged_features, self.objective
        )

    def _joint(
        self, optimizer: keras.optimizers.Optimizer, auto_scale_loss: bool
    ) -> TrainingTeacher | None:
        """Return the teacher with its optimiser, or None if it doesn't train."""
        config, student = self.config, self._distiller.student
        given = self._distiller.teacher
        if config["teacher_loss"] is None:
            others = config["teacher_optimizer"], config["teacher_metrics"]
            if any(other is not None for other in others):
                raise ValueError(
                    "The teacher trains only where it has a `teacher_loss`. Received: "
                    f"teacher_optimizer={config['teacher_optimizer']}, "
                    f"teacher_metrics={config['teacher_metrics']}, teacher_loss=None"
                )
            check_not_shared(given, student)
            return None
        return TrainingTeacher(
            given,
            student,
            optimizer=config["teacher_optimizer"] or _another(optimizer),
            student_optimizer=optimizer,
            loss=config["teacher_loss"],
            metrics=config["teacher_metrics"],
            label_mask=self.label_mask,
            auto_scale_loss=auto_scale_loss,
        )

    def _look(self, teacher: Teacher) -> Look:
        """Return the checks of the values that the losses of this `compile` get."""
        return Look(
            self.config["distillation_loss"],
            self._loss,
            teacher_loss=self.config["teacher_loss"],
            output_names=self.output_names,
            judges_teacher=self.joint is None and not teacher.changes,
            linear={
                "student": linear_outputs(self._distiller.student),
                "teacher": linear_outputs(self._distiller.teacher),
            },
            # Sizes are known once both models are built; sums, once JAX's trainer has
            # given the variables their values.
            afterwards=self._distiller.compare_sizes,
            sync=getattr(self._distiller, "jax_state_sync", lambda: None),
        )

    def outputs_of_classes(self, outputs: Nested) -> dict[str, Scores]:
        """Return the outputs that are scores of classes, by name."""
        losses = self.config["distillation_loss"], self._loss
        return outputs_of_classes(*losses, outputs, self.output_names)

    def take_teacher(self, teacher: Teacher) -> None:
        """Log and check another teacher from the next step on."""
        self.objective.log_members(teacher.logged_members)
        check_names(self.objective, self._distiller.student)
        self.look = self._look(teacher)

    def begin(self) -> None:
        """Finish the setup after Keras has compiled the distiller."""
        model = self._distiller
        if self.config["check_teacher"]:
            self.guard = Guard(compiled=backend.compiles(model))
        if self.joint is not None:
            self.joint.jit_compile = model.jit_compile
        for value in self.objective.all_values:
            value.read_by(model)

    @property
    def metrics(self) -> dict[str, keras.metrics.Metric]:
        """The metrics of the loss's terms and hyperparameters, by name."""
        log = self.teacher_log
        return self.objective.metrics | ({"teacher_loss": log.metric} if log else {})

    @property
    def state(self) -> list[keras.Variable]:
        """The variables that a step reads or changes, and that no metric holds."""
        joint = [] if self.joint is None else self.joint.optimizer.variables
        return [*self.objective.state, *self.look.state, *joint]

    @property
    def flag_messages(self) -> dict[str, str]:
        """Error messages by the name of the loss that a compiled step flags."""
        messages = {"student_loss": BAD_LABELS + " values that aren't"}
        if self.guard is not None:
            messages["distillation_loss"] = BAD_TEACHER
        return messages


def check_not_shared(teacher: TeacherLike | None, student: keras.Model) -> None:
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
    """Raise ValueError if a student reads the mask, or metrics would ignore it."""
    check_not_declared(student, mask.keys, what="label masks")
    if mask.keys and metrics is not None:
        raise ValueError(
            "`metrics` would count rows without a label. Pass them as "
            "`weighted_metrics`, where such rows weigh 0. Received: "
            f"metrics={metrics} with label masks {mask.keys}"
        )


def check_names(objective: Objective, student: keras.Model) -> None:
    """Raise ValueError if Keras logs an output's loss under the name of our logs."""
    output_names = getattr(student, "output_names", None) or ()
    ours = objective.metrics
    taken = [name for name in output_names if f"{name}_loss" in ours]
    # Keras doesn't log the loss of a single output by its name.
    if taken and len(output_names) > 1:
        raise ValueError(
            "An output's loss would be logged under the name of one of ours, "
            f"{sorted(ours)}. Name the output otherwise. Received: outputs "
            f"named {taken}"
        )


def check_trained(objective: Objective, student: keras.Model) -> None:
    """Raise ValueError if a loss computes with weights that the student should train.

    Nothing would update them.
    """
    held = {id(weight) for weight in student.trainable_weights}
    others = [weight for weight in objective.trains if id(weight) not in held]
    if others:
        raise ValueError(
            "The student must hold all weights that its loss trains. Give it the head "
            'as a second output, `keras.Model(inputs, {"hidden": hidden, "logits": '
            "head(hidden)})`, or freeze the head. Received: weights of the loss "
            f"{[weight.path for weight in others]}, a student '{student.name}'"
        )


def _check_not_packed(losses: Any) -> None:
    """Raise ValueError if the teacher's outputs can't be compared with labels."""
    packed = [loss.name for loss in keras.tree.flatten(losses) if reads_packed(loss)]
    if packed:
        raise ValueError(
            "`log_teacher=True` needs the teacher's whole outputs, but a loss reads a "
            "recorded part of them. Compile without it. Received: log_teacher=True, "
            f"distillation losses {packed}"
        )


def _warn_of_privileged_features_alone(
    teacher: Teacher, privileged_features: Sequence[str], objective: Objective
) -> None:
    read, alpha = teacher.declares, objective.final_alpha()
    if read and set(read) <= set(privileged_features) and alpha > 0.5:
        warnings.warn(
            f"The teacher reads privileged features alone, {list(read)}, at alpha "
            f"{alpha}: what the student can't predict of them is noise to it, and it "
            "may end below a student without a teacher. Let the teacher read the "
            "student's features too, or lower alpha.",
            stacklevel=7,  # where `Distiller.compile` is called
        )


def _another(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Return an optimiser of the same configuration, with no state yet."""
    return type(optimizer).from_config(optimizer.get_config())
