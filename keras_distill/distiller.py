"""The Distiller: a Keras model that trains a student under a teacher."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_distill import arguments, backend, per_output
from keras_distill.building import build_early, build_optimizer
from keras_distill.distilled_fit import DistilledFit
from keras_distill.labels import log_loss
from keras_distill.losses import ForwardKL
from keras_distill.resuming import SavedDistiller
from keras_distill.serving import ServesStudent
from keras_distill.setup import Setup
from keras_distill.step import DistilledStep
from keras_distill.teachers.base import supports_jit
from keras_distill.teachers.joint_optimizer import JointOptimizer, step_of_both
from keras_distill.types import Nested, Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class Distiller(DistilledStep, DistilledFit, SavedDistiller, ServesStudent):
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

    @property
    def alpha(self) -> Any:
        """Weight of the distillation loss; floats may be assigned during `fit`."""
        return self._setup.objective.alpha

    @alpha.setter
    def alpha(self, value: Any) -> None:
        self._setup.objective.alpha = value

    @arguments.explained
    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *,
        distillation_loss: Any = None,
        alpha: Any = 0.5,
        label_mask: str | Mapping[str, str | None] | None = None,
        distillation_loss_weights: Any = None,
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
            distillation_loss_weights: Weights of the distillation losses by output, as
                `loss_weights` of the label losses: a list or dict of floats, 1 for
                outputs that are left out. Defaults to 1 for each.
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
        # Made before Keras compiles: a wrong argument leaves the earlier `compile`.
        setup = Setup(
            self.student,
            self._lent.given,
            self._lent.teacher,
            self.privileged_features,
            optimizer=optimizer,
            config={
                "distillation_loss": distillation_loss,
                "distillation_loss_weights": distillation_loss_weights,
                "label_mask": label_mask,
                "teacher_loss": teacher_loss,
                "teacher_optimizer": teacher_optimizer,
                "teacher_metrics": teacher_metrics,
                "check_teacher": check_teacher,
                "log_teacher": log_teacher,
            },
            loss=loss,
            loss_weights=loss_weights,
            metrics=metrics,
            alpha=alpha,
            auto_scale_loss=kwargs.get("auto_scale_loss", True),
            afterwards=self._compare_sizes,
            sync=getattr(self, "jax_state_sync", lambda: None),
        )
        self.supports_jit = supports_jit(self.teacher)
        # Otherwise Keras would keep the loss and metrics of an earlier `compile`.
        self.loss = self._compile_loss = self._compile_metrics = None
        super().compile(
            optimizer, loss, loss_weights=loss_weights, metrics=metrics, **kwargs
        )
        self._lent.setup = setup
        self.warned_of_idle_schedules = False
        setup.begin(self)
        # So that `load_weights` before the first step restores its state.
        build_early(self)

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        """Return the student's outputs."""
        if not training:
            return self.student(self._read(inputs), training=training)
        with self._listening():
            return self.student(self._read(inputs), training=True)

    def train_step(self, *args: Any) -> Any:
        """Run each model once, and update what trains."""
        joint = self.teacher_in_training
        if not backend.is_tensorflow():
            if joint is not None:
                return step_of_both(super().train_step, self, joint, *args)
            return backend.after_update(super().train_step(*args), self, self._follow)
        import tensorflow as tf

        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(*args)
        models = [self] if joint is None else [self, joint]
        with tf.GradientTape() as tape:
            output = self(x, training=True)
            losses = self.losses_of_step(x, y, output, sample_weight)
            log_loss(self, losses[0], x)
            scaled = [
                model.optimizer.scale_loss(loss)
                for model, loss in zip(models, losses, strict=True)
            ]
            loss = sum(scaled[1:], start=scaled[0])
        gradients = tape.gradient(loss, [model.trainable_weights for model in models])
        build_optimizer(self)
        updates = tf.identity(self.optimizer.iterations)
        for model, of_model in zip(models, gradients, strict=True):
            if of_model:
                # The loss holds the check of the teacher's outputs, which the update
                # of the teacher would overtake.
                with tf.control_dependencies([] if model is self else [loss]):
                    model.optimizer.apply(of_model, model.trainable_weights)
        self._follow(updates)
        return self.compute_metrics(x, y, output, sample_weight)

    def compute_loss(
        self,
        x: Nested = None,
        y: Nested = None,
        y_pred: Nested = None,
        sample_weight: Nested = None,
        training: bool = True,
    ) -> Tensor:
        """Return the loss that training minimises, or the one that evaluation logs.

        In training, this is the student's own loss with the distillation loss and the
        hints, and the loss of a teacher that trains. In evaluation, it is the student's
        own loss; of a batch without labels, the distillation loss is added.
        """
        losses = self.losses_of_step(x, y, y_pred, sample_weight, training)
        if training and isinstance(self.optimizer, JointOptimizer):
            # It adds the teacher's loss after the trainer has logged the student's.
            return self.optimizer.taken(*losses)
        return sum(losses[1:], start=losses[0])
