"""One of several models that train in the same steps: its losses and its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_distill import own_training, per_output
from keras_distill.batch import Batch
from keras_distill.guard import Guard, flagged
from keras_distill.inputs import select
from keras_distill.labels import LabelledModel, LabelMask, OwnLoss, log_loss
from keras_distill.losses.calling import check_scope_names
from keras_distill.objective import Objective
from keras_distill.teachers.base import Lesson
from keras_distill.types import Nested, Tensor

BAD_PEER = (
    "A peer's output is NaN or infinite, so the others would learn nothing from it. "
    "Look at the inputs of this batch, at the learning rate and, where a peer computes "
    "in float16, at overflow. `compile(check_peers=False)` switches this check off."
)


class Peer(LabelledModel):
    """A model that learns from labels and from what the others say.

    It holds the model's losses and metrics, and no optimiser.

    Args:
        model: The model to train.
        name: What it is called in logs.
        label_mask: As `label_mask` in `Distiller.compile`.
        loss: The label loss, as in `keras.Model.compile`; so are `loss_weights`,
            `metrics` and `weighted_metrics`.
        distillation_loss: As in `Distiller.compile`; so is `alpha`.
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
            None,  # the optimiser is that of all peers
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

    @property
    def output_names(self) -> Sequence[str] | None:
        """Names of the model's outputs, where it declares any."""
        names: Sequence[str] | None = getattr(self.model, "output_names", None)
        return names

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the model's outputs."""
        return self.model(self._read(inputs), training=training)

    def _read(self, x: Any) -> Any:
        return select(self.model, x, withheld=self._mask.keys)

    @property
    def _trained_model(self) -> keras.Model:
        return self.model

    def alone(self, data: tuple[Any, Any, Any], output: Nested) -> OwnLoss:
        """Return the loss that the model would be trained with alone, and log it."""
        x, y, sample_weight = data
        y, sample_weight = self._by_output(y, sample_weight, output)
        own = self.own_loss(x, y, output, sample_weight)
        log_loss(self, flagged(own.total, own.are_valid), x)
        return own

    def taught_loss(
        self,
        data: tuple[Any, Any, Any],
        output: Nested,
        own: OwnLoss,
        *,
        targets: Nested,
        guard: Guard | None,
        step: Any,
    ) -> Tensor:
        """Return the loss under the others, and log what they add to it.

        Args:
            data: Inputs, labels and sample weights.
            output: The model's outputs.
            own: The result of `alone`.
            targets: The mean of the others' outputs.
            guard: Checks the targets, where they are to be checked.
            step: The optimiser's step, at which schedules are read.
        """
        x, (y, sample_weight) = data[0], self._by_output(*data[1:], output)
        is_finite = None
        if guard is not None:
            targets, is_finite = guard.checked(targets)
        labels = self._mask.mask_labels(x, y)
        batch = Batch(
            inputs=x,
            labels=per_output.as_structured(labels, output, self.output_names),
            labelled=self._mask.by_path(x, output),
            sample_weight=sample_weight,
            output=output,
            step=step,
        )
        # The peer's own loss, which `alone` logs, is flagged for bad labels.
        own = own._replace(are_valid=None)
        total, _ = self.objective.total(
            own, Lesson(targets), batch, is_finite=is_finite
        )
        return total

    def logs(self) -> dict[str, Tensor]:
        """Return the model's loss, its metrics and its distillation loss."""
        logs: dict[str, Tensor] = self.get_metrics_result()
        own_training.check_names(logs, ["distillation_loss"])
        distilled = self.objective.metrics["distillation_loss"].result()
        return {**logs, "distillation_loss": distilled}

    def reset_metrics(self) -> None:
        """Begin a new epoch."""
        super().reset_metrics()
        for metric in self.objective.metrics.values():
            metric.reset_state()

    @property
    def _label_mask(self) -> LabelMask:
        return self._mask


class PeerLogs(keras.metrics.Metric):
    """What a peer measures, under names that begin with the peer's."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(name=f"{peer.name}_logs")
        self._peer = peer

    def update_state(self, *args: Any) -> None:
        """Do nothing: the peer keeps its own state."""

    def reset_state(self) -> None:
        """Begin a new epoch."""
        self._peer.reset_metrics()

    def result(self) -> dict[str, Tensor]:
        """Return the peer's losses and metrics."""
        logs = self._peer.logs()
        return {f"{self._peer.name}_{name}": value for name, value in logs.items()}


def refresh(
    copies: Sequence[keras.Model], peers: Sequence[keras.Model], due: Any
) -> None:
    """Give copies the weights of their models where it is due; called in a step."""
    pairs = [
        (weight.value, of_peer.value)
        for copy, peer in zip(copies, peers, strict=True)
        for weight, of_peer in zip(copy.weights, peer.weights, strict=True)
    ]

    def assign(strategy: tf.distribute.Strategy, due: Tensor) -> None:
        for weight, of_peer in pairs:
            strategy.extended.update(
                weight,
                lambda old, new, due: old.assign(tf.where(due, new, old)),
                args=(of_peer, due),
                group=False,
            )

    # as optimisers do: a variable that devices mirror is assigned from outside of them
    tf.distribute.get_replica_context().merge_call(assign, args=(due,))


def _copied(metrics: Any) -> Any:
    """Return metrics of which each model has its own; names and functions stay."""
    return keras.tree.map_structure(
        lambda metric: (
            type(metric).from_config(metric.get_config())
            if isinstance(metric, keras.metrics.Metric)
            else metric
        ),
        metrics,
    )
