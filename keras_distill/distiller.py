"""The Distiller: a Keras model that trains a student under a teacher."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill import (
    arguments,
    monitoring,
    own_training,
    per_output,
    resuming,
)
from keras_distill.building import build_optimizer
from keras_distill.compilation import Compilation, check_names, check_not_shared
from keras_distill.distillation import Batch, DistillationTerm
from keras_distill.guards.look import Look, Seen
from keras_distill.guards.models import check_two, warn_if_swapped
from keras_distill.guards.planned_steps import updates_of, warn_of_idle
from keras_distill.guards.teacher_loss import TeacherLabelLoss
from keras_distill.guards.validation import check_validation_data, labels_of
from keras_distill.hints import Hint
from keras_distill.hints.term import HintTerm
from keras_distill.inputs import check_held, check_not_declared, select, served
from keras_distill.labels import LabelledModel, LabelMask
from keras_distill.labels.probabilities import BAD_LABELS
from keras_distill.labels.structures import check_weights_are_read
from keras_distill.losses import ForwardKL
from keras_distill.monitoring import TeacherGuard
from keras_distill.resuming import RandomStates
from keras_distill.signatures import like
from keras_distill.teachers import base as teachers
from keras_distill.teachers.base import FollowingTeacher, Lesson, Step, Teacher
from keras_distill.teachers.training import TrainingTeacher
from keras_distill.tracing import Retraceable
from keras_distill.types import Tensor


class _Untracked:
    """What a distiller uses but doesn't own, so that Keras doesn't track or save it."""

    def __init__(self, teacher: Teacher | None, hints: HintTerm) -> None:
        self.teacher = teacher
        self.hints = hints
        # set by `compile`
        self.compilation: Compilation | None = None
        self.guard: TeacherGuard | None = None
        self.look: Look | None = None
        self.teacher_log: TeacherLabelLoss | None = None
        self.warned_of_idle = False
        self.compared_sizes = False
        self.compile_config: dict[str, Any] = {}


@keras.saving.register_keras_serializable(package="keras_distill")
class Distiller(Retraceable, RandomStates, LabelledModel):
    r"""Trains a student on labels and on the outputs of a teacher.

    `loss = (1 - alpha) * loss(y, s) + alpha * distillation_loss(t, s)
    + sum(hint.weight * hint_loss) + sum(student.losses)`, where `s` and `t` are the
    outputs of the student and the teacher. Calling, evaluating, predicting and saving
    a distiller is calling, evaluating, predicting and saving its student: the teacher
    is run in `fit` alone, with `training=False`, and is neither changed nor saved,
    unless it trains or follows the student.

    Inputs may be a dict; then each model reads the keys that it declares as inputs,
    so that the teacher may read features that the student never has.

    Args:
        student: The model to train. `compute_loss`, `compute_metrics`, `test_step`,
            `predict_step`, `get_metrics_result` and `reset_metrics` that its class
            overrides are called; `compile` refuses a `train_step` of its own, and warns
            of a `fit` or the like. What its `compute_loss` returns stands for
            `loss(y, s) + sum(student.losses)` as a whole: `1 - alpha` weighs all of it.
            It may need no labels, as that of an autoencoder.
        teacher: A trained, built Keras model, or any callable that takes a batch of
            inputs and returns outputs like the student's, or None where it has nothing
            to say: then, as is known once the step is traced, the student learns from
            the labels alone. Its input and dtype may differ from the student's. It may
            be given later, as after `keras.saving.load_model`, by assigning
            `distiller.teacher`.
        privileged_features: Names of inputs that the student must never read.
        hints: `keras_distill.hints.Hint`s: pairs of layers, of which the teacher's
            guides the student's. What brings them to one shape is in `projectors`.
        name: Name of the model.
        **kwargs: What `keras.Model` takes.

    Raises:
        TypeError: If the student isn't a Keras model or the teacher isn't callable.
        ValueError: If the teacher isn't built, or the student declares a privileged
            feature.

    Example:
        >>> import numpy as np
        >>> x, y = np.random.rand(64, 8).astype("float32"), np.arange(64) % 3
        >>> teacher = keras.Sequential(
        ...     [keras.Input((8,)), keras.layers.Dense(32, "relu"),
        ...      keras.layers.Dense(3)])
        >>> student = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
        >>> distiller = Distiller(student, teacher)
        >>> distiller.compile(
        ...     "adam",
        ...     keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        ...     distillation_loss=ForwardKL(temperature=4.0),
        ...     alpha=0.5,
        ... )
        >>> history = distiller.fit(x, y, verbose=0)
        >>> sorted(history.history)
        ['alpha', 'distillation_loss', 'loss', 'student_loss']

    Reference:
        Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network",
        https://arxiv.org/abs/1503.02531; Lopez-Paz et al. 2016, "Unifying
        distillation and privileged information", https://arxiv.org/abs/1511.03643.
    """

    @arguments.explained
    def __init__(
        self,
        student: keras.Model,
        teacher: Teacher | None = None,
        *,
        privileged_features: Sequence[str] = (),
        hints: Sequence[Hint] = (),
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        known = arguments.parameters(Distiller.__init__, keras.Layer.__init__)
        arguments.check_known("Distiller", kwargs, known)
        if not isinstance(student, keras.Model):
            raise TypeError(
                "`student` must be a `keras.Model`. Received: "
                f"student={student!r} of type {type(student).__name__}"
            )
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                "`Distiller` trains on the TensorFlow backend. Set KERAS_BACKEND="
                f"tensorflow. Received: backend {keras.backend.backend()!r}"
            )
        if isinstance(privileged_features, str):
            raise TypeError(
                "`privileged_features` must be a list of names. Received: "
                f"privileged_features={privileged_features!r}"
            )
        check_two(student, teacher)
        check_not_declared(student, privileged_features, what="privileged features")
        check_not_declared(
            student, teachers.targets_read(teacher), what="recorded teacher outputs"
        )
        # the student casts its own inputs; the teacher may need them as they come
        super().__init__(
            name=name,
            **{"dtype": student.dtype_policy, "autocast": False, **kwargs},
        )
        self.student = student
        self.privileged_features = tuple(privileged_features)
        self._untracked = _Untracked(
            teachers.checked(teacher), HintTerm(student, hints)
        )
        if teacher is not None:
            self._untracked.hints.attach(teacher)
            self._compare_sizes(stacklevel=5)
        self.projectors = self._untracked.hints.projectors
        # all of a distiller's weights are its student's and its projectors'
        self.built = student.built

    @property
    def teacher(self) -> Teacher | None:
        """The teacher; assign one to a distiller that was loaded without."""
        return self._untracked.teacher

    @teacher.setter
    def teacher(self, teacher: Teacher) -> None:
        if self.teacher_in_training is not None:
            raise ValueError(
                "This distiller's teacher trains, so it can't be replaced: files hold "
                "it. Make a new `Distiller`, or `compile` without `teacher_loss` first."
            )
        check_two(self.student, teacher)
        checked = teachers.checked(teacher)
        if self.compiled:
            check_not_shared(checked, self.student)
        self._untracked.hints.attach(checked)
        self.projectors = self._untracked.hints.projectors
        if self.compiled:
            self._term.log_members(teachers.logged_members(checked))
            check_names(self._term, self.student)
        self._untracked.teacher = checked
        if self.compiled:
            self._untracked.look = self._new_look()
        self.train_function: Any = None  # it was traced with the earlier teacher
        self._untracked.compared_sizes = False
        self._compare_sizes(stacklevel=5)

    @property
    def teacher_in_training(self) -> TrainingTeacher | None:
        """The teacher with its optimiser, where it trains; files hold it."""
        compilation = self._untracked.compilation
        return compilation.training_teacher if compilation else None

    @property
    def following_teacher(self) -> FollowingTeacher | None:
        """The teacher, where its weights follow the student's; files hold it."""
        teacher = self.teacher
        return teacher if isinstance(teacher, FollowingTeacher) else None

    @property
    def alpha(self) -> Any:
        """Weight of the distillation loss; floats may be assigned during `fit`."""
        return self._term.alpha

    @alpha.setter
    def alpha(self, value: Any) -> None:
        self._term.alpha = value

    @property
    def output_names(self) -> list[str]:
        """Names of the student's outputs, where it declares any."""
        names: list[str] = self.student.output_names
        return names

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teacher":
            object.__setattr__(self, name, value)  # past Keras' tracking
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        # Keras saves what dir() lists; the teacher isn't ours to save
        return [name for name in super().__dir__() if name != "teacher"]

    @arguments.explained
    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *,
        distillation_loss: Any = None,
        alpha: Any = 0.5,
        label_mask: str | Mapping[str, str | None] | None = None,
        teacher_loss: Any = None,
        teacher_optimizer: Any = None,
        teacher_metrics: Any = None,
        check_teacher: bool = True,
        log_teacher: bool = False,
        loss_weights: Any = None,
        metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configure training.

        Args:
            optimizer: As in `keras.Model.compile`.
            loss: The label loss or losses, as in `keras.Model.compile`. None only
                with `alpha=1`: the student learns from the teacher alone.
            distillation_loss: A `keras.losses.Loss` called with the teacher's output
                as `y_true` and the student's as `y_pred`; or a list, tuple or dict of
                them, None for outputs that aren't distilled. Sample and class weights
                act on it as on `loss`; `loss_weights` act on `loss` alone. Any callable
                that Keras takes as a loss will do. Defaults to
                `ForwardKL(temperature=4.0)`.
            alpha: Weight of the distillation loss, in [0, 1]; the label loss weighs
                `1 - alpha`. A float or a `LearningRateSchedule` of the optimiser's
                updates (with gradient accumulation, fewer than batches); or a dict of
                them by output. Defaults to 0.5.
            label_mask: Name of an input that says which rows have a label, of shape
                `(batch,)` or `(batch, 1)`, True or nonzero where there is one, or of
                the labels' shape, by time step or by unit of a multi-label head; or a
                dict of such names by output, None for outputs that are labelled
                throughout. The label losses average over these rows, as do distillation
                losses that read labels; the others are taught by the teacher alone.
                So each label loss needs a value for each row, and none for the batch.
                Neither model is given the mask unless the teacher declares it. Put
                metrics of labels into `weighted_metrics`.
                Evaluation takes a batch without the mask as labelled throughout.
            teacher_loss: The teacher's own label loss or losses. Given, the teacher
                trains in the same steps as the student: it is called with
                `training=True`, its outputs teach behind a stop-gradient, and files
                hold it. Weights that both models hold get the gradients of both.
            teacher_optimizer: The teacher's optimiser. Defaults to another of the
                same configuration as `optimizer`.
            teacher_metrics: Metrics of the teacher's outputs; they and its loss are
                logged under names that begin with `teacher_`. Sample weights act on
                them where there is a `label_mask`.
            check_teacher: Whether to stop with an error at the step at which the
                teacher's output is NaN or infinite. False lets -inf pass, the logit of
                a class that the teacher rules out; `ForwardKL` and `SoftTargets` bear
                it. Defaults to True.
            log_teacher: Whether to log the label loss of a fixed teacher's outputs as
                `teacher_loss`, weighted and masked as the student's. The loss is called
                another time a step, so one that keeps a variable or a seed is refused.
                Defaults to False; a teacher with a `teacher_loss` logs that.
            loss_weights: As in `keras.Model.compile`; of `loss` alone.
            metrics: As in `keras.Model.compile`.
            **kwargs: `weighted_metrics`, `run_eagerly`, `steps_per_execution`,
                `jit_compile`, `auto_scale_loss`, as in `keras.Model.compile`.

        Raises:
            ValueError: If `alpha` isn't in [0, 1], or isn't 1 without a `loss`; if a
                fixed teacher holds weights that the student trains; if arguments of a
                teacher that trains lack `teacher_loss`.
        """
        known = arguments.parameters(Distiller.compile, keras.Model.compile)
        arguments.check_known("compile", kwargs, known)
        arguments.check_distillation_loss(distillation_loss)
        if distillation_loss is None:
            distillation_loss = ForwardKL(temperature=4.0)
        optimizer = keras.optimizers.get(optimizer)
        loss_weights = per_output.loss_weights_of(loss, loss_weights)
        if all(item is None for item in keras.tree.flatten(loss)):
            loss = None
        ours = {
            "distillation_loss": distillation_loss,
            "label_mask": label_mask,
            "teacher_loss": teacher_loss,
            "teacher_optimizer": teacher_optimizer,
            "teacher_metrics": teacher_metrics,
        }
        # before Keras' own, so that a wrong argument leaves what was compiled earlier
        compilation = Compilation(
            self.student,
            self.teacher,
            self.privileged_features,
            optimizer=optimizer,
            loss=loss,
            metrics=metrics,
            alpha=alpha,
            auto_scale_loss=kwargs.get("auto_scale_loss", True),
            **ours,
        )
        teacher_log = None
        if log_teacher and teacher_loss is None:
            teacher_log = TeacherLabelLoss(loss, loss_weights, compilation.label_mask)
        self.supports_jit = teachers.supports_jit(self.teacher)
        # which Keras would keep where this call names none
        self.loss = self._compile_loss = self._compile_metrics = None
        super().compile(
            optimizer, loss, loss_weights=loss_weights, metrics=metrics, **kwargs
        )
        untracked = self._untracked
        untracked.compilation = compilation
        compilation.term.record(self._compile_loss)
        untracked.guard = TeacherGuard(xla=self.jit_compile) if check_teacher else None
        untracked.teacher_log = teacher_log
        untracked.compile_config = {
            **ours,
            "check_teacher": check_teacher,
            "log_teacher": log_teacher,
        }
        untracked.warned_of_idle = False
        untracked.look = self._new_look()
        if compilation.training_teacher is not None:
            compilation.training_teacher.jit_compile = self.jit_compile
            self._build_optimizer()  # as the teacher's is, so that files fit both

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the student's outputs."""
        return self.student(self._read(inputs), training=training)

    def _read(self, x: Any) -> Any:
        return select(self.student, x, withheld=self._withheld)

    def train_step(self, data: Any) -> dict[str, Tensor]:
        """Run each model once, and update what trains."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        check_held(x, self.privileged_features, what="privileged features")
        check_held(x, self._label_mask.keys, what="the label mask")
        trained, hints = self.teacher_in_training, self._untracked.hints
        with tf.GradientTape() as tape:
            # a model's loss is taken before the other model runs: a layer that both
            # hold keeps what it adds to a loss only until it is called again
            if trained is not None:
                with hints.of_teacher() as hinting:
                    said = trained(x, training=True)
                teacher_loss = trained.compute_loss(x, y, said, sample_weight)
                monitoring.log_loss(trained, teacher_loss, x)
            with hints.of_student() as guided:
                output = self(x, training=True)
            y, sample_weight = self._by_output(y, sample_weight, output)
            own_loss = self.compute_loss(x, y, output, sample_weight)
            student_loss = None
            if self._learns_from(y):
                student_loss = monitoring.label_loss(self, self.student, own_loss)
            step = self._step(x, y, output)
            if trained is None:
                with tape.stop_recording(), hints.of_teacher() as hinting:
                    lesson = teachers.ask(self.teacher, step)
            else:
                lesson = Lesson(teachers.as_targets(said))
            batch = self._batch(step, y, sample_weight, lesson, output)
            loss = self._term.add_to(own_loss, student_loss, batch)
            loss = hints.add_to(
                loss,
                guided,
                hinting,
                sample_weight=sample_weight,
                rows=ops.shape(keras.tree.flatten(output)[0])[0],
                step=batch.step,
            )
            monitoring.log_loss(self, loss, x)
            loss = self.optimizer.scale_loss(loss)
            if trained is not None:
                loss += trained.optimizer.scale_loss(teacher_loss)
        self._update(tape, loss)
        self._look_at(step, batch)
        if trained is not None:
            trained.compute_metrics(x, y, said, sample_weight)
        logs: dict[str, Tensor] = self.compute_metrics(x, y, output, sample_weight)
        unsaid: set[str] = set()
        if lesson.targets is None:
            unsaid = self._term.teacher_metrics | {"teacher_loss"}
        return {name: log for name, log in logs.items() if name not in unsaid}

    def test_step(self, data: Any) -> dict[str, Tensor]:
        """Evaluate the student; the teacher isn't run."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if own_training.overrides(self.student, "test_step"):
            with own_training.compiled_as(self.student, self):
                logs = self.student.test_step((self._read(x), y, sample_weight))
            own_training.check_names(logs, self._logged_names)
        else:
            logs = super().test_step(data)
        no_loss = () if self._has_label_loss else ("loss",)
        not_measured = {*self._logged_names, *no_loss}
        logs = {name: log for name, log in logs.items() if name not in not_measured}
        if (y is None and not self._evaluates_itself) or not logs:
            raise ValueError(
                "Evaluation needs labels, and a `loss` or `metrics` in `compile`. "
                f"Received: y={y}, loss={self.loss}"
            )
        return logs

    def predict_step(self, data: Any) -> Any:
        """Predict with the student."""
        if not own_training.overrides(self.student, "predict_step"):
            return super().predict_step(data)
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        return self.student.predict_step((self._read(x), y, sample_weight))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return the student's own loss: of labels, and what its layers add."""
        of_own = own_training.overrides(self.student, "compute_loss") and not training
        if not of_own and not self._learns_from(y):
            return monitoring.additional_loss(self)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Tensor]:
        """Update the compiled metrics, those of labels only where there are labels."""
        if y is not None or own_training.overrides(self.student, "compute_metrics"):
            return super().compute_metrics(x, y, y_pred, sample_weight)
        compiled = own_training.compiled_metrics(self)
        of_labels = own_training.logged_names(compiled)
        if not self._learns_from(y):
            of_labels.add("student_loss")
        logs = self.get_metrics_result()
        return {name: log for name, log in logs.items() if name not in of_labels}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras' metrics, the terms of the loss, what is scheduled, the teacher's."""
        compilation = self._untracked.compilation
        if compilation is None:
            return super().metrics
        teacher_logs = [compilation.teacher_logs] if compilation.teacher_logs else []
        return [*super().metrics, *self._of_training.values(), *teacher_logs]

    def make_train_function(self, force: bool = False) -> None:
        """Build the function that `fit` calls; XLA's is looked after from outside."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force=force)
        if self._untracked.look is not None:
            self.train_function = self._untracked.look.watching(self.train_function)
        if self.jit_compile:
            messages = {"student_loss": BAD_LABELS + " values that aren't"}
            if self._untracked.guard is not None:
                messages["distillation_loss"] = monitoring.BAD_TEACHER
            self.train_function = monitoring.stopping(self.train_function, messages)

    @like(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Train the student; takes and returns what `keras.Model.fit` does.

        Raises:
            ValueError: If the data hold no batch, of which Keras itself says little.
        """
        arguments.check_known("fit", kwargs, arguments.parameters(keras.Model.fit))
        given = inspect.signature(super().fit).bind(*args, **kwargs).arguments
        received = "`sample_weight` without `y`"
        check_weights_are_read(given.get("y"), given.get("sample_weight"), received)
        if isinstance(given.get("validation_data"), tuple | list):
            _, y, weight = keras.utils.unpack_x_y_sample_weight(
                given["validation_data"]
            )
            check_weights_are_read(
                y, weight, "`validation_data` of `(x, None, weights)`"
            )
        # methods of the student's own may take other labels than outputs, or none
        if given.get("validation_data") is not None and not self._evaluates_itself:
            labels = labels_of(given.get("x"), given.get("y"))
            check_validation_data(self.student, given["validation_data"], labels)
        begin = self._updates if self.compiled else 0
        history = super().fit(*args, **kwargs)
        untracked = self._untracked
        if untracked.look is not None:
            untracked.look.conclude()
        if not untracked.warned_of_idle:
            untracked.warned_of_idle = warn_of_idle(
                self._scheduled, begin, self._updates
            )
        trained = self.teacher_in_training
        if trained is not None and history.epoch:  # as Keras does with the student's
            trained.optimizer.finalize_variable_values(trained.trainable_weights)
        if history.epoch and "loss" not in history.history:
            raise ValueError(
                "`fit` needs data, but none of its epochs saw a batch. Received: an "
                "empty data set, or an iterator that was read to its end before"
            )
        return history

    @like(keras.Model.evaluate)
    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the student; takes and returns what `keras.Model.evaluate` does.

        Raises:
            ValueError: If there are sample weights, but no labels.
        """
        given = inspect.signature(super().evaluate).bind(*args, **kwargs).arguments
        received = "`sample_weight` without `y`"
        check_weights_are_read(given.get("y"), given.get("sample_weight"), received)
        return super().evaluate(*args, **kwargs)

    @like(keras.Model.export)
    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Export the student, as `keras.Model.export` does."""
        return self.student.export(*args, **kwargs)

    def serving_model(self) -> keras.Model:
        """Return the student: what `keras_distill.export` exports of a distiller."""
        return self.student

    def serving_inputs(self, inputs: Any) -> Any:
        """Return the part of a batch to train on that the student reads."""
        return served(self.student, inputs, withheld=self._withheld)

    def provenance(self) -> dict[str, Any]:
        """Return how the student was trained, for the manifest of its export.

        Returns:
            What JSON can hold: the teacher's name, `alpha`, the distillation loss with
            its temperature, the privileged features and the number of steps.

        Raises:
            RuntimeError: The distiller isn't compiled.
        """
        if not self.compiled:
            raise RuntimeError("`provenance` is of a distiller that was compiled.")
        config = self.get_compile_config()
        return {
            "teacher": getattr(self.teacher, "name", type(self.teacher).__name__),
            "alpha": config["alpha"],
            "distillation_loss": config["distillation_loss"],
            "privileged_features": list(self.privileged_features),
            "steps": int(self.optimizer.iterations),
        }

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments, with a teacher only where it changes."""
        changes = self.teacher_in_training or self.following_teacher
        return {
            **super().get_config(),
            **resuming.models_config(self.student, self.teacher if changes else None),
            "privileged_features": list(self.privileged_features),
            "hints": keras.saving.serialize_keras_object(
                self._untracked.hints.settled()
            ),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "Distiller":
        """Build a distiller from `get_config`'s result."""
        config = resuming.with_models(config, custom_objects)
        config["hints"] = keras.saving.deserialize_keras_object(
            config.get("hints", []), custom_objects=custom_objects
        )
        return cls(**config)

    def get_compile_config(self) -> dict[str, Any]:
        """Return what `compile` was called with, serialised."""
        config: dict[str, Any] = super().get_compile_config()
        if config:
            config |= keras.saving.serialize_keras_object(
                {**self._untracked.compile_config, "alpha": self.alpha}
            )
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile with `get_compile_config`'s result."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self._build_optimizer()

    @classmethod
    def load(
        cls, filepath: Any, teacher: Teacher | None = None, **kwargs: Any
    ) -> "Distiller":
        """Load a saved distiller, compiled state included, and give it its teacher.

        Args:
            filepath: A `.keras` file that `distiller.save` wrote.
            teacher: The teacher, which the file holds only where it trains or follows
                the student.
            **kwargs: What `keras.saving.load_model` takes.

        Raises:
            TypeError: If the file holds another kind of model.
        """
        distiller = keras.saving.load_model(filepath, **kwargs)
        if not isinstance(distiller, cls):
            raise TypeError(
                f"The file must hold a `Distiller`. Received: {filepath}, which holds "
                f"a {type(distiller).__name__}"
            )
        if teacher is not None:
            distiller.teacher = teacher
        return distiller

    def _get_metrics_result_or_logs(self, logs: dict[str, Tensor]) -> dict[str, Tensor]:
        # Keras' own falls back to the last step's logs where a step doesn't log every
        # metric, as ours in evaluation; on several devices these are but near
        results = self.get_metrics_result()
        return {name: results.get(name, log) for name, log in logs.items()}

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # on several devices, where Keras builds what is compiled before the first step
        super()._symbolic_build(iterator, data_batch)
        if self.teacher_in_training is not None:
            self.teacher_in_training._symbolic_build(data_batch=data_batch)

    @property
    def _compiled_within(self) -> list[keras.Model]:
        trained = self.teacher_in_training
        return [] if trained is None else [trained]

    def _build_optimizer(self) -> None:
        if self.built and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)

    def _step(self, x: Any, y: Any, output: Any) -> Step:
        """Return what a teacher may read of a step."""
        return Step(
            inputs=x,
            labels=per_output.as_structured(
                self._label_mask.mask_labels(x, y),
                output,
                getattr(self, "output_names", None),
            ),
            label_masks=self._label_mask.by_path(x, output),
            withheld=self._label_mask.keys,
            withheld_from_student=self._withheld,
        )

    def _update(self, tape: tf.GradientTape, loss: Tensor) -> None:
        """Let each optimiser take a step, and a teacher that follows follow."""
        trained, following = self.teacher_in_training, self.following_teacher
        if not self.student.trainable_weights:
            own_training.warn_of_frozen("student", [self.student.name])
        build_optimizer(self)
        updates = tf.identity(self.optimizer.iterations)  # before this one
        models = [self] if trained is None else [self, trained]
        gradients = tape.gradient(loss, [model.trainable_weights for model in models])
        for model, of_model in zip(models, gradients, strict=True):
            if of_model:
                pairs = zip(of_model, model.trainable_weights, strict=True)
                # the loss holds the check of the teacher, which the teacher's own
                # update would overtake
                with tf.control_dependencies([loss] if model is trained else []):
                    model.optimizer.apply_gradients(pairs)
        if following is not None:
            # no update of weights while gradients are accumulated
            updated = ops.not_equal(self.optimizer.iterations, updates)
            following.follow(self.student, step=updates, updated=updated)

    def _batch(
        self, step: Step, y: Any, sample_weight: Any, lesson: Lesson, output: Any
    ) -> Batch:
        """Return what the distillation term reads of a step."""
        x, labels, are_valid = step.inputs, step.labels, None
        if y is None and not self._learns_from(y):
            self._term.check_needs_no_labels("y=None")
        targets, is_finite = lesson.targets, None
        if self._untracked.guard is not None and targets is not None:
            targets, is_finite = self._untracked.guard.watch(targets)
        if self.jit_compile and self._learns_from(y):
            # without XLA, the student's own loss has asserted it
            labels, are_valid = self._checked_labels(x, y, sample_weight)
        return Batch(
            inputs=x,
            labels=labels,
            label_masks=step.label_masks,
            sample_weight=sample_weight,
            teacher_output=targets,
            member_outputs=lesson.members,
            teacher_is_finite=is_finite,
            labels_are_valid=are_valid,
            student_output=output,
            masked_output=self._label_mask.mask_predictions(x, output),
            step=self.optimizer.iterations,
        )

    def _new_look(self) -> Look:
        """Return a look at the values that the losses of this `compile` are given."""
        ours = self._untracked.compile_config
        return Look(
            ours["distillation_loss"],
            self.loss,
            teacher_loss=ours["teacher_loss"],
            output_names=getattr(self, "output_names", None),
            judges_teacher=ours["teacher_loss"] is None
            and not teachers.changes(self.teacher),
            afterwards=self._compare_sizes,
        )

    def _compare_sizes(self, stacklevel: int = 4) -> None:
        """Warn of models that seem swapped, once both are built."""
        untracked = self._untracked
        if not untracked.compared_sizes and self.student.built:
            untracked.compared_sizes = True
            models = self.student, untracked.teacher
            warn_if_swapped(*models, self.privileged_features, stacklevel=stacklevel)

    def _look_at(self, step: Step, batch: Batch) -> None:
        """Let what watches and logs the teacher see a batch."""
        seen = Seen(
            batch.student_output,
            batch.teacher_output,
            None if batch.labels is None else step.labels,
            step.label_masks,
            batch.sample_weight,
        )
        if self._untracked.look is not None:
            self._untracked.look.at(seen)
        if self._untracked.teacher_log is not None:
            names = getattr(self, "output_names", None)
            self._untracked.teacher_log.update(step.inputs, seen, names)

    def _learns_from(self, labels: Any) -> bool:
        """Return whether a batch has a loss for the student beside the teacher's."""
        if labels is None and own_training.overrides(self.student, "compute_loss"):
            return not self._term.is_alone  # which may need no labels
        return self._has_label_loss and labels is not None

    @property
    def _evaluates_itself(self) -> bool:
        """Whether methods of the student's own may need no labels."""
        methods = ("compute_loss", "compute_metrics", "test_step")
        return any(own_training.overrides(self.student, name) for name in methods)

    @property
    def _has_label_loss(self) -> bool:
        own = own_training.overrides(self.student, "compute_loss")
        return own or self.loss is not None

    @property
    def _compilation(self) -> Compilation:
        if self._untracked.compilation is None:
            raise ValueError("You must call `compile()` on the distiller before this.")
        return self._untracked.compilation

    @property
    def _term(self) -> DistillationTerm:
        return self._compilation.term

    @property
    def _of_training(self) -> dict[str, keras.metrics.Metric]:
        """What `fit` logs beside Keras' metrics: terms of the loss, and schedules."""
        teacher_log = self._untracked.teacher_log
        logged = {"teacher_loss": teacher_log.metric} if teacher_log else {}
        return {**self._term.metrics, **self._untracked.hints.metrics, **logged}

    @property
    def _logged_names(self) -> set[str]:
        teacher_logs = self._compilation.teacher_logs
        return {*self._of_training, *(teacher_logs.result() if teacher_logs else ())}

    @property
    def _updates(self) -> int:
        return updates_of(self.optimizer)

    @property
    def _scheduled(self) -> dict[str, Any]:
        """Weights and temperatures that `fit` logs, by name."""
        return {**self._term.hyperparameters, **self._untracked.hints.weights}

    @property
    def _label_mask(self) -> LabelMask:
        return self._compilation.label_mask

    @property
    def _trained_model(self) -> keras.Model:
        return self.student

    @property
    def _withheld(self) -> tuple[str, ...]:
        """Inputs that a model without declared inputs isn't given."""
        compilation = self._untracked.compilation
        masks = compilation.label_mask.keys if compilation else ()
        recorded = teachers.targets_read(self.teacher)
        return (*self.privileged_features, *masks, *recorded)
