"""The losses and metrics of one of several models that train in the same steps."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import keras

from keras_distill import own_training
from keras_distill.batch import Batch
from keras_distill.guard import Guard, flagged
from keras_distill.inputs import select
from keras_distill.labels import LabelledModel, LabelMask, OwnLoss, log_loss
from keras_distill.losses.calling import check_scope_names
from keras_distill.objective import Objective
from keras_distill.setup import check_trained
from keras_distill.teachers.base import Lesson
from keras_distill.types import Nested, Tensor
from keras_distill.values import Value


class Pass(NamedTuple):
    """The result of a forward pass of a peer's model in a step.

    Args:
        output: The model's outputs.
        losses: The losses of its regularisers, and those that its layers have added.
    """

    output: Nested
    losses: Sequence[Tensor]


class Peer(LabelledModel):
    """The losses and metrics of a model that learns from labels and from other models.

    It has no optimiser: one optimiser trains all peers.

    Args:
        model: The model to train.
        name: The name of the model in logs.
        label_mask: As in `Distiller.compile`.
        loss: The label loss, as in `keras.Model.compile`. The same holds for
            `loss_weights`, `metrics` and `weighted_metrics`.
        distillation_loss: As in `Distiller.compile`. The same holds for `alpha`.
    """

    def __init__(
        self,
        model: keras.Model,
        name: str,
        *,
        label_mask: str | Mapping[str, str | None] | None,
        loss: Any,
        loss_weights: Any,
        metrics: Any,
        weighted_metrics: Any,
        distillation_loss: Any,
        alpha: Any,
    ) -> None:
        super().__init__(name=name, dtype=model.dtype_policy, autocast=False)
        own_training.check_replaced(model, "peer")
        check_scope_names(loss)
        self.model = model
        self.built = True
        self._mask = LabelMask(label_mask, output_names=self.output_names)
        own_training.check_called(model, "peer", masks=self._mask.keys, alpha=alpha)
        self.compile(
            None,
            loss,
            loss_weights=loss_weights,
            metrics=_copied(metrics),
            weighted_metrics=_copied(weighted_metrics),
        )
        self.objective = Objective(
            distillation_loss,
            alpha,
            output_names=self.output_names,
            has_labels=True,
        )
        check_trained(self.objective, model)

    @property
    def output_names(self) -> Sequence[str] | None:
        """The names of the model's outputs, or None if it declares none."""
        names: Sequence[str] | None = getattr(self.model, "output_names", None)
        return names

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        """Return the model's outputs."""
        return self.model(self._read(inputs), training=training)

    def _read(self, x: Nested) -> Nested:
        return select(self.model, x, withheld=self._mask.keys)

    @property
    def _trained_model(self) -> keras.Model:
        return self.model

    def alone(
        self, data: tuple[Nested, Nested, Nested], passed: Pass, *, training: bool
    ) -> OwnLoss:
        """Return and log the loss that the model would have if it were trained alone.

        Args:
            data: The inputs, labels and sample weights.
            passed: The model's forward pass on these inputs.
            training: Whether the step trains or evaluates.
        """
        x, y, sample_weight = data
        y, sample_weight = self._by_output(y, sample_weight, passed.output)
        with self._with_losses(passed.losses):
            own = self.own_loss(x, y, passed.output, sample_weight, training)
        # An evaluation with bad labels logs NaN, because flags are read in `fit` only.
        log_loss(self, flagged(own.total, own.are_valid if training else None), x)
        return own

    @contextmanager
    def _with_losses(self, losses: Sequence[Tensor]) -> Iterator[None]:
        """Set the models' added losses to those of an earlier call.

        The layers don't keep them: another peer may have called the same layer since,
        and on JAX the loss is computed in another scope than the outputs.
        """
        # If the model has its own `compute_loss`, that reads them from the model.
        models = self, self.model
        for model in models:
            model._losses_override = list(losses)
        try:
            yield
        finally:
            for model in models:
                model._losses_override = []

    def taught_loss(
        self,
        data: tuple[Nested, Nested, Nested],
        output: Nested,
        own: OwnLoss,
        *,
        targets: Nested,
        guard: Guard | None,
        step: Any,
    ) -> tuple[Tensor, Batch]:
        """Return the loss that training minimises, and the record of the step.

        The terms of the loss are logged.

        Args:
            data: The inputs, labels and sample weights.
            output: The model's outputs.
            own: The result of `alone`.
            targets: The mean of the others' outputs.
            guard: Checks the targets. None where they aren't checked.
            step: The number of the optimiser's updates, at which schedules are read.
        """
        is_finite = None
        if guard is not None:
            targets, is_finite = guard.checked(targets)
        x, y, sample_weight = data
        y, sample_weight = self._by_output(y, sample_weight, output)
        batch = self._record(x, y, output, sample_weight, step)
        # The flag of bad labels is in the model's own loss, which `alone` logs.
        own = own._replace(are_valid=None)
        total, _ = self.objective.total(
            own, Lesson(targets), batch, is_finite=is_finite
        )
        return total, batch

    def logs(self) -> dict[str, Tensor]:
        """Return the model's loss, its metrics and its distillation loss."""
        logs: dict[str, Tensor] = self.get_metrics_result()
        own_training.check_names(logs, ["distillation_loss"])
        distilled = self.objective.metrics["distillation_loss"].result()
        return {**logs, "distillation_loss": distilled}

    def reset_metrics(self) -> None:
        """Reset the metrics for a new epoch."""
        super().reset_metrics()
        for metric in self.objective.metrics.values():
            metric.reset_state()

    @property
    def _label_mask(self) -> LabelMask:
        return self._mask


class PeerLogs(keras.metrics.Metric):
    """The losses and metrics of a peer, under names that begin with the peer's."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(name=f"{peer.name}_logs")
        self._peer = peer

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the peer's losses and metrics, without hyperparameters."""
        of_terms = self._peer.objective.metrics.values()
        means = [metric for metric in of_terms if not isinstance(metric, Value)]
        own: list[keras.Variable] = self._peer.metrics_variables
        return [*own, *(v for mean in means for v in mean.variables)]

    def update_state(self, *args: Any) -> None:
        """Do nothing: the peer updates its own state."""

    def reset_state(self) -> None:
        """Reset the peer's metrics for a new epoch."""
        self._peer.reset_metrics()

    def result(self) -> dict[str, Tensor]:
        """Return the peer's losses and metrics."""
        logs = self._peer.logs()
        return {f"{self._peer.name}_{name}": value for name, value in logs.items()}


def _copied(metrics: Any) -> Any:
    """Return copies of the metrics for one model. Names and functions aren't copied."""
    return keras.tree.map_structure(
        lambda metric: (
            type(metric).from_config(metric.get_config())
            if isinstance(metric, keras.metrics.Metric)
            else metric
        ),
        metrics,
    )
