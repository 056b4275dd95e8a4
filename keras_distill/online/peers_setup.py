"""The objects that `MutualLearning.compile` makes from its arguments."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_distill import backend
from keras_distill.guard import Guard
from keras_distill.guards.heads import linear_outputs
from keras_distill.guards.look import Look
from keras_distill.guards.subjects import Taker
from keras_distill.labels import LabelMask
from keras_distill.labels.probabilities import BAD_LABELS
from keras_distill.naming import distinct
from keras_distill.online.peer import Peer, PeerLogs
from keras_distill.setup import check_label_mask
from keras_distill.values import Value

BAD_PEER = (
    "A peer's output is NaN or infinite, so the others would learn nothing from it. "
    "Look at the inputs of this batch, at the learning rate and, where a peer computes "
    "in float16, at overflow. `compile(check_peers=False)` switches this check off."
)


class PeersSetup:
    """The checked arguments of `MutualLearning.compile`, and the objects made of them.

    A plain object: a model that holds it doesn't track or save it.

    Args:
        models: The models that train.
        config: The arguments of `MutualLearning.compile` that Keras doesn't get, for
            saved files, without `alpha`.
        alpha: As in `MutualLearning.compile`.
        takers: What reads the peers' outputs besides the losses: their mean.
        sync: Assigns the current values to variables. During `fit` on JAX, the trainer
            has these values, and the variables don't.
    """

    def __init__(
        self,
        models: Sequence[keras.Model],
        *,
        config: Mapping[str, Any],
        alpha: Any,
        takers: Sequence[Taker],
        sync: Callable[[], Any],
    ) -> None:
        self.config = dict(config)
        of_peer = {**config, "alpha": alpha}
        self._checks = of_peer.pop("check_peers")
        self.peers: list[Peer] = []
        self.looks: list[Look] = []
        names = distinct([model.name for model in models])
        for model, name in zip(models, names, strict=True):
            peer = Peer(model, name, **of_peer)
            check_label_mask(peer._label_mask, model, config["metrics"])
            self.peers.append(peer)
            self.looks.append(
                Look(
                    config["distillation_loss"],
                    config["loss"],
                    output_names=peer.output_names,
                    judges_teacher=False,
                    peer=name,
                    takers=takers,
                    linear={"student": linear_outputs(model)},
                    sync=sync,
                )
            )
        self.guard: Guard | None = None
        self._logs = [PeerLogs(peer) for peer in self.peers]

    def begin(self, model: keras.Model) -> None:
        """Read the settings that Keras derived from its own arguments.

        Args:
            model: The model that trains the peers, compiled by Keras.
        """
        if self._checks:
            self.guard = Guard(compiled=backend.compiles(model), message=BAD_PEER)
        for peer in self.peers:
            peer.jit_compile = model.jit_compile
            for value in peer.objective.all_values:
                value.read_by(model)

    @property
    def label_mask(self) -> LabelMask:
        """The label mask, the same for all peers."""
        return self.peers[0]._label_mask

    @property
    def values(self) -> dict[str, Value]:
        """Alpha and scheduled temperatures, the same for all peers."""
        return self.peers[0].objective.values

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The logs of each peer, and the hyperparameters."""
        return [*self._logs, *self.values.values()]

    @property
    def logged_in_training(self) -> set[str]:
        """The names that are logged in training only."""
        losses = {f"{peer.name}_distillation_loss" for peer in self.peers}
        return {*losses, *self.values}

    @property
    def state(self) -> list[keras.Variable]:
        """The variables that a step reads or changes, except those of peers' logs."""
        objectives = [peer.objective for peer in self.peers]
        values = [value for each in objectives for value in each.values.values()]
        return [
            *(variable for each in objectives for variable in each.state),
            *(value.state for value in values),
            *(variable for look in self.looks for variable in look.state),
        ]

    @property
    def flag_messages(self) -> dict[str, str]:
        """Error messages by the name of the loss that a compiled step flags."""
        messages = {}
        for peer in self.peers:
            messages[f"{peer.name}_loss"] = BAD_LABELS + " values that aren't"
            messages[f"{peer.name}_distillation_loss"] = BAD_PEER
        return messages
