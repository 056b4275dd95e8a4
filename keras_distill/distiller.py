"""The Distiller: a Keras model that trains a student with a teacher."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_distill import arguments, backend, per_output
from keras_distill.building import build_early, build_optimizer
from keras_distill.devices import uneven
from keras_distill.devices.refusals import check_compile
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
    outputs of the student and the teacher. To call, evaluate or save a distiller, or to
    predict with it, is to do so with its student. The teacher runs in `fit`, and in the
    evaluation of data without labels, which returns the distillation loss. It is called
    with `training=False`, and is neither changed nor saved, unless it trains (see
    `teacher_loss`) or follows the student.

    Inputs may be a dict. Then each model reads the keys that it declares as inputs. So
    the teacher may read features that the student doesn't have.

    Args:
        student: The model to train. If its class overrides `compute_loss`,
            `compute_metrics`, `test_step`, `predict_step`, `get_metrics_result` or
            `reset_metrics`, these methods are called. If it overrides `train_step`,
            `compile` raises an error; if it overrides `fit` or the like, `compile`
            warns. An overridden `compute_loss` replaces
            `loss(y, s) + sum(student.losses)`, and has the weight `1 - alpha`. It may
            work without labels, as the loss of an autoencoder does.
        teacher: A trained, built Keras model, or any callable that takes a batch of
            inputs and returns outputs like the student's. May return None. The student
            then learns from the labels only. Whether it returns None is decided when
            the step is traced. Its inputs and dtype may differ from the student's. To
            set it later, e.g. after `keras.saving.load_model`, assign
            `distiller.teacher`.
        privileged_features: Names of inputs that the student must never read.
        hints: `keras_distill.hints.Hint`s: pairs of layers, in which the student's
            layer learns from the teacher's. `projectors` holds the layers that map the
            student's features to the shape of the teacher's.
        name: Name of the model.
        **kwargs: Arguments of `keras.Model`.

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
        ...     distillation_loss=ForwardKL(),
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
        """The weight of the distillation loss. Callbacks may assign a float."""
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
                with `alpha=1`: the student learns from the teacher only.
            distillation_loss: A `keras.losses.Loss`, or any callable that Keras accepts
                as a loss. It is called with the teacher's output as `y_true` and the
                student's as `y_pred`. Or a list, tuple or dict of losses, with None for
                outputs that aren't distilled. Sample and class weights apply to it as
                to `loss`. Defaults to `ForwardKL()`.
            alpha: The weight of the distillation loss, in [0, 1]. The label loss has
                the weight `1 - alpha`. A float, or a `LearningRateSchedule` of the
                optimiser's updates (fewer than batches where gradients are
                accumulated), or a dict of them by output. Defaults to 0.5.
            label_mask: The name of an input that marks the rows with a label: True or
                nonzero, of shape `(batch,)` or `(batch, 1)`, or of the labels' shape to
                mark time steps or units of a multi-label head. Or a dict of such names
                by output, with None for outputs whose rows all have a label. Label
                losses, and distillation losses that read labels, are averaged over the
                marked rows. From other rows, the student learns the teacher's outputs
                only. So a label loss must return a value for each row. No model gets
                the mask, except a teacher that declares it. Pass metrics of labels as
                `weighted_metrics`. In evaluation, all rows of a batch without the mask
                count as labelled.
            distillation_loss_weights: Weights of the distillation losses by output: a
                number, or a list or dict of numbers, 1 for outputs that are left out.
                Defaults to 1.
            teacher_loss: The teacher's own label loss or losses. With it, the teacher
                trains in the same steps as the student. It is called with
                `training=True`, no gradient of the distillation loss reaches it, and
                files hold it. Weights that both models share get the gradients of both.
            teacher_optimizer: The teacher's optimiser. Defaults to a new one with the
                configuration of `optimizer`.
            teacher_metrics: Metrics of the teacher's outputs. They and its loss are
                logged under names that begin with `teacher_`. Sample weights apply to
                them if there is a `label_mask`.
            check_teacher: Whether to raise an error in a step in which the teacher's
                output is NaN or infinite. False permits -inf, the logit of a class that
                the teacher excludes. `ForwardKL` and `SoftTargets` can compute with it.
                Defaults to True.
            log_teacher: Whether to log the label loss of a fixed teacher's outputs as
                `teacher_loss`, weighted and masked like the student's. The loss is
                called a second time in each step, so a loss that has a variable or a
                seed raises an error. A teacher that trains always logs its loss.
                Defaults to False.
            loss_weights: As in `keras.Model.compile`. They apply to `loss` only.
            metrics: As in `keras.Model.compile`.
            **kwargs: `weighted_metrics`, `run_eagerly`, `steps_per_execution`,
                `jit_compile`, `auto_scale_loss`, as in `keras.Model.compile`.

        Raises:
            ValueError: If `alpha` isn't in [0, 1], or isn't 1 without a `loss`; if a
                fixed teacher holds weights that the student trains; if other arguments
                of a teacher that trains are given without `teacher_loss`.
            TypeError: If a weight of a loss isn't a number.
        """
        ours = {
            "distillation_loss": distillation_loss,
            "distillation_loss_weights": distillation_loss_weights,
            "label_mask": label_mask,
            "teacher_loss": teacher_loss,
            "teacher_optimizer": teacher_optimizer,
            "teacher_metrics": teacher_metrics,
            "check_teacher": check_teacher,
            "log_teacher": log_teacher,
        }
        known = arguments.parameters(Distiller.compile, keras.Model.compile)
        arguments.check_known("compile", kwargs, known)
        arguments.check_distillation_loss(distillation_loss)
        if all(item is None for item in keras.tree.flatten(loss)):
            loss = None
        of_keras = {
            "optimizer": keras.optimizers.get(optimizer),
            "loss": loss,
            "loss_weights": per_output.loss_weights_of(loss, loss_weights),
            "metrics": metrics,
        }
        self._compile(ours, alpha, of_keras, kwargs)

    def _compile(
        self,
        ours: dict[str, Any],
        alpha: Any,
        of_keras: dict[str, Any],
        others: dict[str, Any],
    ) -> None:
        if ours["distillation_loss"] is None:
            ours["distillation_loss"] = ForwardKL()
        optimizers = {
            "optimizer": of_keras["optimizer"],
            "teacher_optimizer": ours["teacher_optimizer"],
        }
        check_compile(self, optimizers, others)
        scaled = others.get("auto_scale_loss", True)
        # Made before Keras compiles: a wrong argument leaves the earlier `compile`.
        setup = Setup(self, ours=ours, alpha=alpha, auto_scale_loss=scaled, **of_keras)
        self.supports_jit = supports_jit(self.teacher)
        # Otherwise Keras would keep the loss and metrics of an earlier `compile`.
        self.loss = self._compile_loss = self._compile_metrics = None
        super().compile(**of_keras, **others)
        self._lent.setup = setup
        self.warned_of_idle_schedules = False
        setup.begin()
        # So that `load_weights` before the first step restores the optimiser's state.
        build_early(self)

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        """Return the student's outputs."""
        if not training:
            return self.student(self._read(inputs), training=training)
        with self._listening():
            return self.student(self._read(inputs), training=True)

    def outputs_of_both(self, x: Nested, y: Nested = None) -> tuple[Nested, Nested]:
        """Return the outputs of the student and of the teacher, as in evaluation.

        Args:
            x: The inputs of a batch, with all keys if they are a dict.
            y: The labels, which some teachers read, or None.
        """
        output = self(x, training=False)
        y, _ = self._by_output(y, None, output)
        batch = self._batch(x, y, output, None, training=False)
        return output, self._ask(batch).targets

    def train_step(self, *args: Any) -> Any:
        """Run each model once, and update the models that train."""
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
            losses = uneven.weighed(losses, x, compiled=self._setup.losses)
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
                # The loss includes the check of the teacher's outputs. Without this,
                # the teacher could be updated before the check has run.
                with tf.control_dependencies([] if model is self else [loss]):
                    weights = model.trainable_weights
                    pairs = zip(of_model, weights, strict=True)
                    model.optimizer.apply_gradients(pairs)
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

        In training, this is the sum of the student's label loss and the distillation
        loss, weighted by `alpha`, the hints, the regularisers, and the loss of a
        teacher that trains. In evaluation, it is the student's own loss. Without
        labels, it is the distillation loss and the regularisers.
        """
        losses = self.losses_of_step(x, y, y_pred, sample_weight, training)
        if training and isinstance(self.optimizer, JointOptimizer):
            # The optimiser adds the teacher's loss after the trainer has logged the
            # student's.
            return self.optimizer.taken(*losses)
        return sum(losses[1:], start=losses[0])
