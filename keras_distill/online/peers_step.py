"""One step of mutual learning: each peer runs once, and all losses are added."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_distill import backend, own_training
from keras_distill.building import build_optimizer
from keras_distill.devices import uneven
from keras_distill.inputs import check_held
from keras_distill.labels import OwnLoss
from keras_distill.online import checks
from keras_distill.online.peer import Pass
from keras_distill.online.peers_fit import PeersFit
from keras_distill.scopes import uncast
from keras_distill.teachers import base
from keras_distill.teachers.base import as_targets
from keras_distill.teachers.combining import mean_outputs
from keras_distill.types import Nested, Tensor


class PeersStep(PeersFit):
    """The parts of mutual learning that run in each step."""

    copies: list[keras.Model]
    combine: str
    activation: str
    staleness: int

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        """Return the mean of the peers' outputs."""
        kept = self._kept
        if kept is None:
            return self._mean(self._outputs(self.peers, inputs, training))
        # Keras may have built the model by an earlier call, in a graph that has ended.
        kept.clear()
        with uncast():
            if training and self.staleness:
                # Before the peers run and change their moving statistics.
                due = ops.equal(ops.mod(self._step, self.staleness), 0)
                backend.assign_where(_pairs(self.copies, self.peers), due)
            for peer in self.peers:
                # A layer keeps the losses that it has added until its next call. The
                # losses of one peer's call don't belong to the next peer.
                peer._clear_losses()
                (output,) = self._outputs([peer], inputs, training)
                kept.append(Pass(output, list(peer.losses)))
            return self._mean([passed.output for passed in kept])

    def train_step(self, *args: Any) -> Any:
        """Run each peer once, and update all, as Keras' trainer does."""
        if backend.is_tensorflow() and all(peer.built for peer in self.peers):
            build_optimizer(self)
        with self._keeping():
            return super().train_step(*args)

    def test_step(self, *args: Any) -> Any:
        """Evaluate each peer, as Keras' trainer does."""
        with self._keeping():
            return super().test_step(*args)

    def compute_loss(
        self,
        x: Nested = None,
        y: Nested = None,
        y_pred: Nested = None,
        sample_weight: Nested = None,
        training: bool = True,
    ) -> Tensor:
        """Return the sum of the peers' losses, and update their metrics.

        In training, the loss of each peer includes the distillation loss. In
        evaluation, it is the loss that the peer would have if it were evaluated alone.
        """
        setup, data = self._setup, (x, y, sample_weight)
        if training:
            check_held(x, setup.label_mask.keys, what="the label mask")
            if not self.trainable_weights:
                names = [peer.name for peer in self.peers]
                own_training.warn_of_frozen("peers", names)
        checks.check_labels(y)
        passes = self._passes(x, training)
        peers = list(zip(setup.peers, passes, strict=True))
        own = [peer.alone(data, passed, training=training) for peer, passed in peers]
        # On JAX, this is the last scope in which variables of metrics can change while
        # the peers' outputs are in reach.
        for peer, passed in peers:
            peer.compute_metrics(x, y, passed.output, sample_weight)
        losses = [loss.total for loss in own]
        if training:
            checks.check_apart(self.peers)  # Peers that weren't built before.
            losses = self._taught(data, passes, own)
        total = sum(losses[1:], start=losses[0])
        if not training:
            return total
        compiled = [setup.config["loss"], setup.config["distillation_loss"]]
        (total,) = uneven.weighed([total], x, compiled=compiled)
        return backend.before_gradients(total)

    def _taught(
        self,
        data: tuple[Nested, Nested, Nested],
        passes: Sequence[Pass],
        own: Sequence[OwnLoss],
    ) -> list[Tensor]:
        """Return the loss that each peer is trained with, and check the batch."""
        setup, step = self._setup, self._step
        outputs = [passed.output for passed in passes]
        teaching = outputs
        if self.staleness:
            teaching = self._outputs(self.copies, data[0], training=False)
        losses = []
        for i, peer in enumerate(setup.peers):
            others = [*teaching[:i], *teaching[i + 1 :]]
            loss, batch = peer.taught_loss(
                data,
                outputs[i],
                own[i],
                targets=as_targets(self._mean(others)),
                guard=setup.guard,
                step=step,
            )
            setup.looks[i].at(batch, outputs[i])
            losses.append(loss)
        backend.count(self._untracked.batches)
        self._untracked.of_step.trained = True
        return losses

    def compute_metrics(
        self, x: Nested, y: Nested, y_pred: Nested, sample_weight: Nested = None
    ) -> dict[str, Tensor]:
        """Return the logs of this step. `compute_loss` has updated the metrics."""
        logs: dict[str, Tensor] = self.get_metrics_result()
        if getattr(self._untracked.of_step, "trained", False):
            return logs
        hidden = self._setup.logged_in_training
        return {name: log for name, log in logs.items() if name not in hidden}

    def _passes(self, x: Nested, training: bool) -> list[Pass]:
        """Return the forward passes of the peers in this step, and clear them."""
        kept = self._kept
        if kept:
            self._untracked.of_step.passes = []
            return kept
        # `compute_loss` is called directly, outside of a step of Keras' trainer.
        with self._keeping():
            self(x, training=training)
            return self._kept or []

    @contextmanager
    def _keeping(self) -> Iterator[None]:
        """Let `call` keep the peers' forward passes for `compute_loss`."""
        of_step = self._untracked.of_step
        of_step.passes = []
        try:
            yield
        finally:
            vars(of_step).clear()

    @property
    def _kept(self) -> list[Pass] | None:
        """The peers' forward passes in this thread's step. None outside of a step."""
        kept: list[Pass] | None = getattr(self._untracked.of_step, "passes", None)
        return kept

    @property
    def _step(self) -> Tensor:
        """The number of the optimiser's updates before this step."""
        return backend.updates(self.optimizer, self._untracked.batches)

    def _outputs(
        self, models: Sequence[keras.Model], x: Nested, training: bool | None
    ) -> list[Nested]:
        """Return the outputs of models, none of which is given a label mask."""
        setup = self._untracked.setup
        withheld = setup.label_mask.keys if setup else ()
        return [base.call(m, x, withheld=withheld, training=training) for m in models]

    def _mean(self, outputs: Sequence[Nested]) -> Nested:
        return mean_outputs(outputs, combine=self.combine, activation=self.activation)


def _pairs(
    copies: Sequence[keras.Model], models: Sequence[keras.Model]
) -> list[tuple[keras.Variable, keras.Variable]]:
    """Return each weight of the copies with the weight that it is a copy of."""
    return [
        pair
        for copy, model in zip(copies, models, strict=True)
        for pair in zip(copy.weights, model.weights, strict=True)
    ]
