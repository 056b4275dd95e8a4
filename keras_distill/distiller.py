"""The Distiller: a Keras model that trains a student under a teacher."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill import features
from keras_distill.losses import ForwardKL
from keras_distill.losses.per_output import PerOutputLoss
from keras_distill.monitoring import LastValue, TeacherGuard
from keras_distill.schedules import Hyperparameter

Tensor = Any
Teacher = Callable[..., Any]


class _Targets(NamedTuple):
    """What a training step learns from, on its way through Keras as `y`."""

    labels: Any
    teacher_output: Any


class _Untracked:
    """What a distiller uses but doesn't own, so that Keras doesn't track or save it."""

    def __init__(self, teacher: Teacher | None) -> None:
        self.teacher = teacher
        self.loss: PerOutputLoss
        self.alpha: Hyperparameter
        self.guard: TeacherGuard | None
        self.metrics: dict[str, keras.metrics.Metric] = {}
        self.compile_config: dict[str, Any]


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
        self._untracked = _Untracked(_checked(teacher))
        self.built = student.built  # all of a distiller's weights are its student's

    @property
    def teacher(self) -> Teacher | None:
        """The teacher; assign one to a distiller that was loaded without."""
        return self._untracked.teacher

    @teacher.setter
    def teacher(self, teacher: Teacher) -> None:
        self._untracked.teacher = _checked(teacher)
        self.train_function: Any = None  # it was traced with the earlier teacher

    @property
    def alpha(self) -> float | LearningRateSchedule:
        """Weight of the distillation loss; a float may be assigned during `fit`."""
        self._assert_compile_called("alpha")
        return self._untracked.alpha.value

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._assert_compile_called("alpha")
        self._untracked.alpha.value = value

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
                act on it as on `loss`. Defaults to `ForwardKL(temperature=4.0)`.
            alpha: Weight of the distillation loss, in [0, 1]; the label loss weighs
                `1 - alpha`. A float or a `LearningRateSchedule` of the optimiser's
                step. Defaults to 0.5.
            check_teacher: Whether to stop with an error at the step at which the
                teacher's output is NaN or infinite. Defaults to True.
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
        untracked = self._untracked
        untracked.alpha = Hyperparameter(
            "alpha",
            alpha,
            requirement="in [0, 1]",
            accepts=lambda value: 0.0 <= value <= 1.0,
        )
        untracked.loss = PerOutputLoss(
            distillation_loss, output_names=getattr(self, "output_names", None)
        )
        super().compile(optimizer, loss, **kwargs)
        untracked.guard = TeacherGuard(xla=self.jit_compile) if check_teacher else None
        untracked.metrics = self._make_metrics()
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
        targets = _Targets(y, self._teacher_output(x))
        logs: dict[str, Tensor] = super().train_step((x, targets, sample_weight))
        return logs

    def test_step(self, data: Any) -> dict[str, Tensor]:
        """Evaluate the student; the teacher isn't run."""
        _, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        logs = super().test_step(data)
        not_measured = {*self._untracked.metrics, *(() if self.loss else ("loss",))}
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
        untracked, step = self._untracked, self.optimizer.iterations
        own_loss = self._own_loss(x, y.labels, y_pred, sample_weight, training)
        alpha = ops.cast(untracked.alpha.at(step), own_loss.dtype)
        distillation_loss = untracked.loss(
            y.teacher_output, y_pred, sample_weight, step=step
        )
        distillation_loss = ops.cast(distillation_loss, own_loss.dtype)
        terms = {"distillation_loss": distillation_loss}
        if y.labels is None and self.alpha != 1.0:
            raise ValueError(
                "`alpha` must be 1 where the data hold no labels: the student learns "
                f"from the teacher alone. Received: alpha={self.alpha}, y=None"
            )
        if self._learns_from(y.labels):
            terms["student_loss"] = own_loss - self._additional_loss()
            # (1 - alpha) * student_loss + alpha * distillation_loss + sum(losses),
            # put so that alpha=0 is Keras' own loss to the last bit
            distillation_loss = distillation_loss - terms["student_loss"]
        _check_scalar(terms)
        self._log(y_pred, alpha, terms)
        return own_loss + alpha * distillation_loss

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
        own = {"loss", *self._untracked.metrics} - {"student_loss"}
        logs = self.get_metrics_result()
        return {name: log for name, log in logs.items() if name in own}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras' metrics, then the terms of the loss and what is scheduled."""
        # compiled metrics that no labels have come to yet have no result
        built = [m for m in super().metrics if getattr(m, "built", True)]
        return [*built, *self._untracked.metrics.values()]

    def make_train_function(self, force: bool = False) -> None:
        """Build the function that `fit` calls, with the teacher's guard around it."""
        if self.train_function is not None and not force:
            return
        super().make_train_function(force=force)
        guard = self._untracked.guard
        if guard is not None:
            self.train_function = guard.after_each(self.train_function)

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

    def _teacher_output(self, x: Any) -> Any:
        teacher, guard = self._untracked.teacher, self._untracked.guard
        if teacher is None:
            raise ValueError(
                "This distiller has no teacher: files don't hold it. Assign it, "
                "`distiller.teacher = teacher`, or load the file with "
                "`Distiller.load(filepath, teacher=teacher)`."
            )
        seen = features.select(teacher, x)
        is_layer = isinstance(teacher, keras.Layer)
        outputs = teacher(seen, training=False) if is_layer else teacher(seen)
        outputs = keras.tree.map_structure(ops.convert_to_tensor, outputs)
        if guard is not None:
            outputs = guard.watch(outputs)
        return keras.tree.map_structure(ops.stop_gradient, outputs)

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
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        dtype = keras.config.floatx()
        terms = [ops.cast(ops.sum(loss), dtype) for loss in self.losses]
        return sum(terms, start=ops.zeros(())) / replicas

    def _make_metrics(self) -> dict[str, keras.metrics.Metric]:
        names = ["distillation_loss"]
        if self.loss is not None:
            names.insert(0, "student_loss")
        metrics = {name: keras.metrics.Mean(name) for name in names}
        metrics["alpha"] = LastValue("alpha")
        for name in self._scheduled_temperatures():
            metrics[name] = LastValue(name)
        return metrics

    def _scheduled_temperatures(self) -> dict[str, Hyperparameter]:
        losses = list(self._untracked.loss.scheduled())
        if len(losses) == 1:
            return {"temperature": losses[0].tempering}
        return {f"{loss.name}_temperature": loss.tempering for loss in losses}

    def _log(self, y_pred: Any, alpha: Tensor, terms: dict[str, Tensor]) -> None:
        metrics, step = self._untracked.metrics, self.optimizer.iterations
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        batch_size = ops.shape(keras.tree.flatten(y_pred)[0])[0]
        for name, value in terms.items():
            metrics[name].update_state(value * replicas, sample_weight=batch_size)
        metrics["alpha"].update_state(alpha)
        for name, temperature in self._scheduled_temperatures().items():
            metrics[name].update_state(temperature.at(step))


def _check_scalar(terms: dict[str, Tensor]) -> None:
    for name, value in terms.items():
        if len(value.shape) != 0:
            raise ValueError(
                f"The `{name}` of a batch must be a single number, or it would weigh "
                "as much more as it has elements. Give the loss a `reduction`. "
                f"Received: a `{name}` of shape {tuple(value.shape)}"
            )


def _checked(teacher: Teacher | None) -> Teacher | None:
    if teacher is not None and not callable(teacher):
        raise TypeError(
            "`teacher` must be a Keras model or a callable of a batch. Received: "
            f"teacher={teacher!r} of type {type(teacher).__name__}"
        )
    if isinstance(teacher, keras.Model) and not teacher.built:
        raise ValueError(
            f"The teacher '{teacher.name}' isn't built: it has no weights, let alone "
            "trained ones. Train it, load it, or call it on a batch before it teaches."
        )
    return teacher
