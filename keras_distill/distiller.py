"""The Distiller: a Keras model that trains a student under a teacher."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import features, teachers
from keras_distill.distillation import DistillationTerm, replicas
from keras_distill.losses import ForwardKL
from keras_distill.monitoring import TeacherGuard
from keras_distill.teachers import Teacher

Tensor = Any


class _Targets(NamedTuple):
    """What a training step learns from, on its way through Keras as `y`."""

    labels: Any
    teacher_output: Any
    teacher_is_finite: Tensor | None


class _Untracked:
    """What a distiller uses but doesn't own, so that Keras doesn't track or save it."""

    def __init__(self, teacher: Teacher | None) -> None:
        self.teacher = teacher
        # set by `compile`
        self.term: DistillationTerm | None = None
        self.guard: TeacherGuard | None = None
        self.compile_config: dict[str, Any] = {}


@keras.saving.register_keras_serializable(package="keras_distill")
class Distiller(keras.Model):
    r"""Trains a student on labels and on the outputs of a teacher.

    `loss = (1 - alpha) * loss(y, s) + alpha * distillation_loss(t, s)
    + sum(student.losses)`, where `s` and `t` are the outputs of the student and the
    teacher. Calling, evaluating, predicting and saving a distiller is calling,
    evaluating, predicting and saving its student: the teacher is run in `fit` alone,
    with `training=False`, and is neither changed nor saved.

    Inputs may be a dict; then each model reads the keys that it declares as inputs,
    so that the teacher may read features that the student never has.

    Args:
        student: The model to train.
        teacher: A trained, built Keras model, or any callable that takes a batch of
            inputs and returns outputs like the student's. Its input and dtype may
            differ from the student's. It may be given later, as after
            `keras.saving.load_model`, by assigning `distiller.teacher`.
        privileged_features: Names of inputs that the student must never read.
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

    def __init__(
        self,
        student: keras.Model,
        teacher: Teacher | None = None,
        *,
        privileged_features: Sequence[str] = (),
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
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
        features.check_not_declared(student, privileged_features)
        # the student casts its own inputs; the teacher may need them as they come
        super().__init__(
            name=name,
            **{"dtype": student.dtype_policy, "autocast": False, **kwargs},
        )
        self.student = student
        self.privileged_features = tuple(privileged_features)
        self._untracked = _Untracked(teachers.checked(teacher))
        self.built = student.built  # all of a distiller's weights are its student's

    @property
    def teacher(self) -> Teacher | None:
        """The teacher; assign one to a distiller that was loaded without."""
        return self._untracked.teacher

    @teacher.setter
    def teacher(self, teacher: Teacher) -> None:
        self._untracked.teacher = teachers.checked(teacher)
        self.train_function: Any = None  # it was traced with the earlier teacher

    @property
    def alpha(self) -> float | LearningRateSchedule:
        """Weight of the distillation loss; a float may be assigned during `fit`."""
        return self._term.alpha.value

    @alpha.setter
    def alpha(self, value: float) -> None:
        if self._term.without_labels and value != 1.0:
            raise ValueError(
                "`alpha` must stay 1 where there are no labels: the student learns "
                f"from the teacher alone. Received: alpha={value}"
            )
        self._term.alpha.value = value

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

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *,
        distillation_loss: Any = None,
        alpha: float | LearningRateSchedule = 0.5,
        check_teacher: bool = True,
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
                act on it as on `loss`; `loss_weights` act on `loss` alone. Defaults to
                `ForwardKL(temperature=4.0)`.
            alpha: Weight of the distillation loss, in [0, 1]; the label loss weighs
                `1 - alpha`. A float or a `LearningRateSchedule` of the optimiser's
                updates (with gradient accumulation, fewer than batches). Defaults
                to 0.5.
            check_teacher: Whether to stop with an error at the step at which the
                teacher's output is NaN or infinite. False lets -inf pass, the logit of
                a class that the teacher rules out; `ForwardKL` and `SoftTargets` bear
                it. Defaults to True.
            **kwargs: `metrics`, `weighted_metrics`, `loss_weights`, `run_eagerly`,
                `steps_per_execution`, `jit_compile`, `auto_scale_loss`, as in
                `keras.Model.compile`.

        Raises:
            ValueError: If `alpha` isn't in [0, 1], or isn't 1 without a `loss`.
        """
        if distillation_loss is None:
            distillation_loss = ForwardKL(temperature=4.0)
        if loss is None and alpha != 1:
            raise ValueError(
                "`alpha` must be 1 where there is no label `loss`: the student learns "
                f"from the teacher alone. Received: alpha={alpha}, loss=None"
            )
        # before Keras' own, so that a wrong argument leaves what was compiled earlier
        term = DistillationTerm(
            distillation_loss,
            alpha,
            output_names=getattr(self, "output_names", None),
            with_labels=loss is not None,
        )
        super().compile(optimizer, loss, **kwargs)
        untracked = self._untracked
        untracked.term = term
        untracked.guard = TeacherGuard(xla=self.jit_compile) if check_teacher else None
        untracked.compile_config = {
            "distillation_loss": distillation_loss,
            "check_teacher": check_teacher,
        }

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the student's outputs."""
        seen = features.select(self.student, inputs, withheld=self.privileged_features)
        return self.student(seen, training=training)

    def train_step(self, data: Any) -> dict[str, Tensor]:
        """Run the teacher, then Keras' own step on what it says."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        features.check_held(x, self.privileged_features)
        teacher_output, is_finite = teachers.outputs(self.teacher, x), None
        if self._untracked.guard is not None:
            teacher_output, is_finite = self._untracked.guard.watch(teacher_output)
        targets = _Targets(y, teacher_output, is_finite)
        logs: dict[str, Tensor] = super().train_step((x, targets, sample_weight))
        return logs

    def test_step(self, data: Any) -> dict[str, Tensor]:
        """Evaluate the student; the teacher isn't run."""
        _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        logs = super().test_step(data)
        not_measured = {*self._term.metrics, *(() if self.loss else ("loss",))}
        logs = {name: log for name, log in logs.items() if name not in not_measured}
        if y is None or not logs:
            raise ValueError(
                "Evaluation needs labels, and a `loss` or `metrics` in `compile`. "
                f"Received: y={y}, loss={self.loss}"
            )
        return logs

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return the total loss in training, the student's own in evaluation."""
        if not isinstance(y, _Targets):
            return self._own_loss(x, y, y_pred, sample_weight, training)
        if y.labels is None and self.alpha != 1.0:
            raise ValueError(
                "`alpha` must be 1 where the data hold no labels: the student learns "
                f"from the teacher alone. Received: alpha={self.alpha}, y=None"
            )
        own_loss = self._own_loss(x, y.labels, y_pred, sample_weight, training)
        student_loss = None
        if self._learns_from(y.labels):
            student_loss = own_loss - self._additional_loss()
        return self._term.add_to(
            own_loss,
            student_loss=student_loss,
            teacher_output=y.teacher_output,
            teacher_is_finite=y.teacher_is_finite,
            student_output=y_pred,
            sample_weight=sample_weight,
            step=self.optimizer.iterations,
        )

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Tensor]:
        """Update the compiled metrics, those of labels only where there are labels."""
        labels = y.labels if isinstance(y, _Targets) else y
        if labels is not None:
            logs: dict[str, Tensor] = super().compute_metrics(
                x, labels, y_pred, sample_weight
            )
            return logs
        own = {"loss", *self._term.metrics} - {"student_loss"}
        logs = self.get_metrics_result()
        return {name: log for name, log in logs.items() if name in own}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras' metrics, then the terms of the loss and what is scheduled."""
        # compiled metrics that no labels have come to yet have no result
        built = [m for m in super().metrics if getattr(m, "built", True)]
        term = self._untracked.term
        return [*built, *(term.metrics.values() if term else ())]

    def make_train_function(self, force: bool = False) -> None:
        """Build the function that `fit` calls, with the teacher's guard around it."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force=force)
        guard = self._untracked.guard
        if guard is not None:
            self.train_function = guard.after_each(self.train_function)

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """Train the student; takes and returns what `keras.Model.fit` does.

        Raises:
            ValueError: If the data hold no batch, of which Keras itself says little.
        """
        history = super().fit(*args, **kwargs)
        if history.epoch and "loss" not in history.history:
            raise ValueError(
                "`fit` needs data, but none of its epochs saw a batch. Received: an "
                "empty data set, or an iterator that was read to its end before"
            )
        return history

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Export the student, as `keras.Model.export` does."""
        return self.student.export(*args, **kwargs)

    def save_own_variables(self, store: Any) -> None:
        """Write the states of the student's random numbers, which Keras leaves out."""
        for i, state in enumerate(self._random_states()):
            store[str(i)] = state.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Read them, so that dropout goes on as if training hadn't been stopped."""
        for i, state in enumerate(self._random_states()):
            if str(i) in store.keys():  # a layer without weights may be an addition
                state.assign(store[str(i)])

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments without the teacher."""
        return {
            **super().get_config(),
            "student": keras.saving.serialize_keras_object(self.student),
            "privileged_features": list(self.privileged_features),
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "Distiller":
        """Build a distiller without a teacher from `get_config`'s result."""
        student = keras.saving.deserialize_keras_object(
            config["student"], custom_objects=custom_objects
        )
        return cls(**{**config, "student": student})

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
        if self.built:
            self.optimizer.build(self.trainable_variables)

    @classmethod
    def load(cls, filepath: Any, teacher: Teacher, **kwargs: Any) -> "Distiller":
        """Load a saved distiller, compiled state included, and give it its teacher.

        Args:
            filepath: A `.keras` file that `distiller.save` wrote.
            teacher: The teacher, which the file doesn't hold.
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
        distiller.teacher = teacher
        return distiller

    def _random_states(self) -> list[keras.Variable]:
        weights = {id(weight) for weight in self.non_trainable_weights}
        return [v for v in self.non_trainable_variables if id(v) not in weights]

    def _get_metrics_result_or_logs(self, logs: dict[str, Tensor]) -> dict[str, Tensor]:
        # Keras' own falls back to the last step's logs where a step doesn't log every
        # metric, as ours in evaluation; on several devices these are but near
        results = self.get_metrics_result()
        return {name: results.get(name, log) for name, log in logs.items()}

    def _own_loss(
        self, x: Any, labels: Any, y_pred: Any, sample_weight: Any, training: bool
    ) -> Tensor:
        """Return the loss of the student alone: of labels, and what layers add."""
        if self._learns_from(labels):
            return super().compute_loss(x, labels, y_pred, sample_weight, training)
        return self._additional_loss()

    def _learns_from(self, labels: Any) -> bool:
        return self.loss is not None and labels is not None

    def _additional_loss(self) -> Tensor:
        """Return the regularisers and `add_loss` terms, scaled as Keras scales them."""
        dtype = keras.config.floatx()
        terms = [ops.cast(ops.sum(loss), dtype) for loss in self.losses]
        return sum(terms, start=ops.zeros(())) / replicas()

    @property
    def _term(self) -> DistillationTerm:
        if self._untracked.term is None:
            raise ValueError("You must call `compile()` on the distiller before this.")
        return self._untracked.term
