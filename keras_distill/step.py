"""One step of a distiller: both models run, losses are added, terms are logged."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill import backend, own_training
from keras_distill.batch import Batch
from keras_distill.inputs import check_held
from keras_distill.labels import LabelledModel, LabelMask, OwnLoss, log_loss
from keras_distill.setup import Setup
from keras_distill.teachers.base import Lesson, as_targets, ask
from keras_distill.teaching import Taught
from keras_distill.types import Nested, Tensor


class DistilledStep(Taught, LabelledModel):
    """The parts of a distiller that run in each step of training and evaluation."""

    def losses_of_step(
        self,
        x: Nested,
        y: Nested,
        y_pred: Nested,
        sample_weight: Nested,
        training: bool = True,
    ) -> list[Tensor]:
        """Return the student's loss, and the loss of a teacher that trains.

        Args:
            x: The inputs, with all keys if they are a dict.
            y: The labels, or None.
            y_pred: The student's outputs.
            sample_weight: As in `keras.Model.fit`.
            training: Whether the step trains or evaluates.
        """
        setup, given = self._setup, (x, y, sample_weight)
        y, sample_weight = self._by_output(y, sample_weight, y_pred)
        # Before the teacher runs: a layer that both models share keeps its added losses
        # only until its next call.
        own = self.own_loss(x, y, y_pred, sample_weight, training)
        self._log_of_step = set()
        if not training and (y is not None or self._evaluates_itself):
            return [own.total]
        batch = self._batch(x, y, y_pred, sample_weight, training)
        if not training:
            lesson = self._ask(batch)
            loss, logged = setup.objective.measure(lesson, batch)
            self._log_of_step = logged | self._compare(lesson.targets, batch)
            return [own.total + loss]
        check_held(x, self.privileged_features, what="privileged features")
        check_held(x, setup.label_mask.keys, what="the label mask")
        if y is None and own.labels is None:
            setup.objective.check_needs_no_labels("y=None")
        if not self.student.trainable_weights:
            own_training.warn_of_frozen("student", [self.student.name])
        with self._lent.hints.of_teacher() as hinting:
            lesson, of_teacher = self._lesson(batch, given)
        total = self._taught(own, lesson, batch)
        total = self._lent.hints.add_to(total, self._guided(), hinting, batch)
        return [total, *of_teacher]

    def _batch(
        self,
        x: Nested,
        y: Nested,
        y_pred: Nested,
        sample_weight: Nested,
        training: bool,
    ) -> Batch:
        """Return the record of a step, with the keys that are withheld from each model.

        The batches of training are counted; an evaluation has step 0.
        """
        step, batches = 0, self._lent.batches
        if training:
            step = backend.updates(self.optimizer, batches)
            backend.count(batches)
        return self._record(x, y, y_pred, sample_weight, step)._replace(
            withheld=(*self._label_mask.keys, *self._lent.hints.reads),
            withheld_from_student=self._withheld,
        )

    def _lesson(
        self, batch: Batch, given: tuple[Any, Any, Any]
    ) -> tuple[Lesson, list[Tensor]]:
        """Return the teacher's outputs, and its loss if it trains.

        Args:
            batch: The record of the step.
            given: Inputs, labels and weights, in the structure that the user passed.
        """
        joint = self.teacher_in_training
        if joint is None:
            return self._ask(batch), []
        x, y, sample_weight = given
        with backend.collecting_losses():
            output = joint(x, training=True)
            loss = joint.compute_loss(x, y, output, sample_weight)
        log_loss(joint, loss, x)
        joint.compute_metrics(x, y, output, sample_weight)
        return Lesson(as_targets(output)), [loss]

    def _ask(self, batch: Batch) -> Lesson:
        """Return the lesson of a teacher that doesn't train."""
        return ask(self._lent.teacher, batch)

    def _compare(self, targets: Nested, batch: Batch) -> set[str]:
        """Log comparisons of both models' outputs, and return the names of the logs."""
        return set()

    def _taught(self, own: OwnLoss, lesson: Lesson, batch: Batch) -> Tensor:
        """Return the loss without hints, and pass the batch to the guards."""
        setup, is_finite = self._setup, None
        if setup.guard is not None and lesson.targets is not None:
            targets, is_finite = setup.guard.checked(lesson.targets)
            lesson = lesson._replace(targets=targets)
        total, logged = setup.objective.total(own, lesson, batch, is_finite=is_finite)
        setup.look.at(batch, lesson.targets)
        if setup.teacher_log is not None and lesson.targets is not None:
            setup.teacher_log.update(batch, lesson.targets, setup.output_names)
            logged.add("teacher_loss")
        if lesson.targets is not None:
            logged |= self._compare(lesson.targets, batch)
        if setup.joint_logs is not None:
            logged |= set(setup.joint_logs.result())
        self._log_of_step = logged | set(self._lent.hints.metrics)
        return total

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Tensor]:
        """Update the compiled metrics, and return the logs of this step.

        The logs leave out terms of the loss and hyperparameters that the step didn't
        compute: in an evaluation, or for a batch without labels or targets.
        """
        if y is not None or own_training.overrides(self.student, "compute_metrics"):
            logs = super().compute_metrics(x, y, y_pred, sample_weight)
            of_labels = set()
        else:
            logs = self.get_metrics_result()
            of_labels = own_training.logged_names(own_training.compiled_metrics(self))
        computed = self._log_of_step
        if computed is None:
            return logs  # Keras builds the metrics outside of a step.
        self._log_of_step = None
        hidden = of_labels | (self._logged_names - computed)
        if not (self._has_label_loss or computed):
            hidden.add("loss")  # An evaluation of metrics alone.
        shown = {name: log for name, log in logs.items() if name not in hidden}
        if not shown:
            raise ValueError(
                "Evaluation needs labels, and a `loss` or `metrics` in `compile`. "
                f"Received: y={y}, loss={self.loss}"
            )
        return shown

    def test_step(self, *args: Any) -> Any:
        """Evaluate the student. The teacher runs only if there are no labels."""
        if not own_training.overrides(self.student, "test_step"):
            return super().test_step(*args)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(*args)
        with own_training.compiled_as(self.student, self):
            logs = self.student.test_step((self._read(x), y, sample_weight))
        own_training.check_names(logs, self._logged_names)
        return logs

    def predict_step(self, *args: Any) -> Any:
        """Predict with the student."""
        if not own_training.overrides(self.student, "predict_step"):
            return super().predict_step(*args)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(*args)
        return self.student.predict_step((self._read(x), y, sample_weight))

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Metrics of Keras, of the loss's terms, of hyperparameters and the teacher."""
        setup = self._lent.setup
        if setup is None:
            return super().metrics
        ours = {**setup.metrics, **self._lent.hints.metrics}
        of_teacher = [] if setup.joint_logs is None else [setup.joint_logs]
        return [*super().metrics, *ours.values(), *of_teacher]

    @property
    def _logged_names(self) -> set[str]:
        """The names that no other metric may have."""
        setup = self._setup
        of_teacher = setup.joint_logs.result() if setup.joint_logs else ()
        return {*setup.metrics, *self._lent.hints.metrics, *of_teacher}

    @property
    def _log_of_step(self) -> set[str] | None:
        """The names of the terms that this thread's step has computed, or None."""
        return getattr(self._lent.of_step, "logged", None)

    @_log_of_step.setter
    def _log_of_step(self, names: set[str] | None) -> None:
        self._lent.of_step.logged = names

    @property
    def _evaluated(self) -> Sequence[keras.Model]:
        """The models that validation data must fit, unless they evaluate themselves."""
        return [] if self._evaluates_itself else [self.student]

    @property
    def _evaluates_without_labels(self) -> bool:
        return True

    def _learns_from(self, y: Nested) -> bool:
        """Return whether a batch with these labels, or None, has a label loss."""
        if y is None and own_training.overrides(self.student, "compute_loss"):
            # The student's own loss may need no labels.
            return not self._setup.objective.is_alone
        return super()._learns_from(y)

    @property
    def _evaluates_itself(self) -> bool:
        """Whether the student overrides methods, which then may need no labels."""
        methods = ("compute_loss", "compute_metrics", "test_step")
        return any(own_training.overrides(self.student, name) for name in methods)

    @property
    def _setup(self) -> Setup:
        if self._lent.setup is None:
            raise ValueError("You must call `compile()` on the distiller before this.")
        return self._lent.setup

    @property
    def _label_mask(self) -> LabelMask:
        return self._setup.label_mask

    @property
    def _trained_model(self) -> keras.Model:
        return self.student
