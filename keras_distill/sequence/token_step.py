"""The step of a distiller of token models: it makes a batch, then trains on it."""

from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import keras
from keras import ops

from keras_distill import backend
from keras_distill.batch import Batch
from keras_distill.building import build_optimizer
from keras_distill.devices.workers import first_batch
from keras_distill.distiller import Distiller
from keras_distill.inputs import TENSOR
from keras_distill.sequence.accumulation import TokenAccumulation, steps
from keras_distill.sequence.token_batch import (
    CONTEXT_LENGTH,
    OF_TEACHER,
    OTHERS,
    after_context,
)
from keras_distill.sequence.token_loss import TokenLoss
from keras_distill.sequence.token_metrics import TokenMetrics
from keras_distill.teachers.base import Lesson, Teacher
from keras_distill.types import Nested, Tensor
from keras_distill.values import Value


class TokenStep(Distiller):
    """A distiller of token models whose steps begin by making a batch.

    Subclasses implement `make_batch`. The rest of a step is that of `Distiller`: the
    student and the teacher read the tokens, and the loss compares their predictions of
    the next tokens. The weights leave out prompts and padding.
    """

    _own: SimpleNamespace

    def make_batch(self, x: Nested, training: bool) -> tuple[Nested, Nested, Tensor]:
        """Return inputs, labels and token weights, as `token_batch.as_batch` does.

        Args:
            x: The inputs of a batch of `fit` or `evaluate`.
            training: Whether the step trains.
        """
        raise NotImplementedError

    def _begin(self, **values: Value) -> None:
        """Create the objects of a step that Keras neither tracks nor saves.

        Args:
            **values: Hyperparameters of `make_batch`, by the names of their logs.
        """
        self._own = SimpleNamespace(
            metrics=TokenMetrics(), accumulation=TokenAccumulation(), values=values
        )
        # Metrics of `make_batch` by name. Subclasses may add and update them.
        self._own.of_making = {}
        for value in values.values():
            value.read_by(self)

    def train_step(self, *args: Any) -> Any:
        """Make the batch, run each model once on it, and update the student."""
        if backend.is_tensorflow():
            build_optimizer(self)
        return backend.on_made_batch(super().train_step, self, self._to_train, *args)

    def test_step(self, *args: Any) -> Any:
        """Make the batch and evaluate the student on it."""
        return backend.on_made_batch(super().test_step, self, self._to_test, *args)

    def _to_train(self, data: Any) -> tuple[Nested, Nested, Tensor]:
        x, y, weight = self.make_batch(_prompts(data), training=True)
        if self._accumulated is not None:
            self._own.accumulation.add(self.optimizer, self._accumulated, weight)
        return x, y, weight

    def _to_test(self, data: Any) -> tuple[Nested, Nested, Tensor]:
        return self.make_batch(_prompts(data), training=False)

    @property
    def _accumulated(self) -> TokenLoss | None:
        """The loss whose tokens weigh accumulated batches. None if none are weighed."""
        loss = self._setup.config["distillation_loss"]
        adds = steps(self.optimizer) > 1 and isinstance(loss, TokenLoss)
        return loss if adds else None

    def losses_of_step(
        self,
        x: Nested,
        y: Nested,
        y_pred: Nested,
        sample_weight: Nested,
        training: bool = True,
    ) -> list[Tensor]:
        """Return the student's loss, as `Distiller` does, and log hyperparameters."""
        losses = super().losses_of_step(x, y, y_pred, sample_weight, training)
        if not training:
            return losses
        own = {*self._own.values, *self._own.of_making}
        self._log_of_step = (self._log_of_step or set()) | own
        loss = self._accumulated
        if loss is not None:
            weigh = self._own.accumulation.weighed
            losses[0] = weigh(losses[0], self.optimizer, loss, sample_weight)
        return losses

    def _ask(self, batch: Batch) -> Lesson:
        """Return the teacher's predictions of the tokens that the student predicts."""
        x, time = batch.inputs, ops.shape(batch.output)[1]
        seen = x.get(OF_TEACHER, x)
        if not isinstance(self.teacher, keras.Layer | Teacher):
            seen = seen[TENSOR]  # A function of token ids.
        withheld = (*batch.withheld, *OTHERS)
        lesson = super()._ask(batch._replace(inputs=seen, withheld=withheld))
        if OF_TEACHER not in x:
            return lesson
        targets, members = keras.tree.map_structure(
            lambda output: after_context(output, x[CONTEXT_LENGTH], time),
            (lesson.targets, dict(lesson.members)),
        )
        return Lesson(targets, members)

    def _compare(self, targets: Nested, batch: Batch) -> set[str]:
        loss = self._setup.config["distillation_loss"]
        outputs = targets, batch.output, batch.sample_weight
        names: set[str] = self._own.metrics.update(loss, *outputs)
        return names

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras' metrics, those of a distiller, and means over tokens."""
        if self._lent.setup is None:
            return super().metrics
        return [*super().metrics, *self._logs.values()]

    @property
    def _logs(self) -> dict[str, keras.metrics.Metric]:
        own = self._own
        return {**own.metrics.metrics, **own.values, **own.of_making}

    @property
    def _logged_names(self) -> set[str]:
        return {*super()._logged_names, *self._logs}

    @property
    def _borrowed(self) -> Sequence[keras.Variable]:
        states = [value.state for value in self._own.values.values()]
        return [*super()._borrowed, *states, self._own.accumulation.tokens]

    @property
    def _withheld(self) -> tuple[str, ...]:
        return (*super()._withheld, *OTHERS)

    def _random_states(self) -> list[keras.Variable]:
        """The random states, and the tokens counted since the last update."""
        return [*super()._random_states(), self._own.accumulation.tokens]

    @property
    def _evaluated(self) -> Sequence[keras.Model]:
        return []  # Validation data are prompts: no model reads them unchanged.

    def _evaluated_without_labels(self, x: Any) -> Tensor:
        # Generation would take too long for a check.
        return ops.zeros(())

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras would call the student on prompts, to build losses and metrics.
        if not self._is_built:
            data = first_batch(iterator) if data_batch is None else data_batch
            x = keras.tree.map_structure(_spec, _prompts(data))
            make = partial(self.make_batch, training=False)
            data_batch = backend.traced(make, x)
        super()._symbolic_build(iterator, data_batch)

    @property
    def _is_built(self) -> bool:
        parts = [self._compile_loss, self._compile_metrics]
        return all(part is None or part.built for part in parts)


def _prompts(data: Any) -> Nested:
    """Return the inputs of a batch, which must have nothing else."""
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if y is not None or sample_weight is not None:
        raise ValueError(
            "Prompts have neither labels nor weights: the labels are the tokens of the "
            "completions. Pass reference completions as `x={'prompts': ..., "
            "'completions': ...}`. Received: "
            f"{'`y`' if y is not None else '`sample_weight`'}"
        )
    return x


def _spec(x: Any) -> keras.KerasTensor:
    return keras.KerasTensor(x.shape, keras.backend.standardize_dtype(x.dtype))
