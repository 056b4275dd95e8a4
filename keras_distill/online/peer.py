"""One of several models that train in the same steps: its losses and its metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill import monitoring, own_training
from keras_distill.distillation import Batch, DistillationTerm
from keras_distill.inputs import select
from keras_distill.labels import LabelledModel, LabelMask
from keras_distill.losses.calling import check_scope_names
from keras_distill.monitoring import BAD_LOSS, TeacherGuard
from keras_distill.types import Tensor

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
        self.term = DistillationTerm(
            distillation_loss,
            alpha,
            label_losses=loss,
            output_names=self.output_names,
        )
        self.term.record(self._compile_loss)

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

    def own_loss(self, data: tuple[Any, Any, Any], output: Any) -> Tensor:
        """Return the loss that the model would be trained with alone, and log it."""
        x, y, sample_weight = data
        loss = self.compute_loss(x, y, output, sample_weight)
        logged = loss
        if self.jit_compile:  # without XLA, the loss has asserted it
            y, sample_weight = self._by_output(y, sample_weight, output)
            _, are_valid = self._checked_labels(x, y, sample_weight)
            logged = ops.where(are_valid, loss, BAD_LOSS)
        monitoring.log_loss(self, logged, x)
        return loss

    def taught_loss(
        self,
        data: tuple[Any, Any, Any],
        output: Any,
        own_loss: Tensor,
        *,
        said: Any,
        guard: TeacherGuard | None,
        step: Any,
    ) -> Tensor:
        """Return the loss under the others, and log what they add to it.

        Args:
            data: Inputs, labels and sample weights.
            output: The model's.
            own_loss: What `own_loss` returned.
            said: The mean of the others' outputs.
            guard: Looks at it, where it is to be looked at.
            step: The optimiser's, which schedules are read at.
        """
        x, (y, sample_weight) = data[0], self._by_output(*data[1:], output)
        are_finite = None
        if guard is not None:
            said, are_finite = guard.watch(said)
        batch = Batch(
            inputs=x,
            labels=self._mask.mask_labels(x, y),
            label_masks=self._mask.by_path(x, output),
            sample_weight=sample_weight,
            teacher_output=said,
            member_outputs={},
            teacher_is_finite=are_finite,
            labels_are_valid=None,
            student_output=output,
            masked_output=self._mask.mask_predictions(x, output),
            step=step,
        )
        student_loss = monitoring.label_loss(self, self.model, own_loss)
        return self.term.add_to(own_loss, student_loss, batch)

    def logs(self) -> dict[str, Tensor]:
        """Return the model's loss, its metrics and its distillation loss."""
        logs: dict[str, Tensor] = self.get_metrics_result()
        own_training.check_names(logs, ["distillation_loss"])
        distilled = self.term.metrics["distillation_loss"].result()
        return {**logs, "distillation_loss": distilled}

    def reset_metrics(self) -> None:
        """Begin a new epoch."""
        super().reset_metrics()
        for metric in self.term.metrics.values():
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
