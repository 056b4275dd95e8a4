"""Models that train together in one `fit`, each taught by the mean of the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill.building import build_early
from keras_distill.devices.refusals import check_compile
from keras_distill.guards import kinds
from keras_distill.losses import ForwardKL
from keras_distill.online import checks
from keras_distill.online.peers_fit import Untracked
from keras_distill.online.peers_setup import PeersSetup
from keras_distill.online.peers_step import PeersStep
from keras_distill.online.saved_peers import SavedPeers
from keras_distill.per_output import loss_weights_of
from keras_distill.teachers.combining import check_combination


@keras.saving.register_keras_serializable(package="keras_distill")
class MutualLearning(PeersStep, SavedPeers):
    r"""Trains models together, each on labels and on the mean of the others' outputs.

    `loss = sum_i (1 - alpha) * loss(y, p_i) + alpha * distillation_loss(t_i, p_i)
    + sum(peers[i].losses)`, where `p_i` is the output of peer `i`, and `t_i` is the
    mean of the outputs of all other peers. No gradient passes through `t_i`. One
    optimiser trains all peers. With `alpha=0`, each peer is trained as it would be
    alone. In the first steps, the peers have not learned anything yet.
    With `alpha=kd.schedules.LateStart(steps, 0.5)`, they teach after `steps` updates.

    For each peer, `fit` and `evaluate` log its metrics and `<peer>_loss`, the loss that
    the peer would have if it were trained alone. `fit` also logs
    `<peer>_distillation_loss`. If two peers have the same name, a number is added to
    the name of the second.

    Each peer remains a separate model: evaluate, save and export `mutual.peers[0]`.
    `mutual(x)` and `mutual.predict(x)` return the mean of the peers' outputs.

    Args:
        peers: Two or more Keras models, of the same or of different architectures. All
            have the same dtype policy, and return logits of the same structure and
            shape. From a dict of inputs, each peer reads the keys that it declares.
        combine: The quantity to average: `"logits"` (default) or `"probabilities"`.
        activation: The function that turns outputs into probabilities, `"softmax"`
            (default) or, unit by unit, `"sigmoid"`.
        staleness: With 0 (default), the other peers' outputs of the same step teach,
            computed with `training=True`. With 1 or more, copies of the other peers
            teach, called with `training=False`. The copies get the peers' weights every
            `staleness` updates of the optimiser. This costs another copy of the weights
            and another forward pass. Saved files contain the copies, so that resumed
            training equals uninterrupted training.
        name: The name of the model.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        TypeError: If the peers aren't Keras models.
        ValueError: If there are fewer than two peers, if they share weights that train,
            if their dtype policies differ, or if `staleness` is positive and a peer
            isn't built.

    Example:
        >>> import numpy as np
        >>> x, y = np.random.rand(64, 8).astype("float32"), np.arange(64) % 3
        >>> def peer(name, units):
        ...     return keras.Sequential(
        ...         [keras.Input((8,)), keras.layers.Dense(units, "relu"),
        ...          keras.layers.Dense(3)], name=name)
        >>> mutual = MutualLearning([peer("small", 4), peer("large", 16)])
        >>> mutual.compile(
        ...     "adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = mutual.fit(x, y, verbose=0)
        >>> for name in sorted(history.history):
        ...     print(name)
        alpha
        large_distillation_loss
        large_loss
        loss
        small_distillation_loss
        small_loss

    Reference:
        Zhang et al. 2018, "Deep Mutual Learning", https://arxiv.org/abs/1706.00384;
        Anil et al. 2018, "Large scale distributed neural network training through
        online distillation", https://arxiv.org/abs/1804.03235.
    """

    def __init__(
        self,
        peers: Sequence[keras.Model],
        *,
        combine: str = "logits",
        activation: str = "softmax",
        staleness: int = 0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_combination(combine, activation)
        checks.check_peers(peers, staleness)
        # The peers cast their own inputs.
        super().__init__(
            name=name,
            **{"dtype": peers[0].dtype_policy, "autocast": False, **kwargs},
        )
        self.peers = list(peers)
        self.combine = combine
        self.activation = activation
        self.staleness = staleness
        self.copies = [_frozen_copy(peer) for peer in peers] if staleness else []
        self.built = all(peer.built for peer in peers)
        self._untracked = Untracked()

    @property
    def alpha(self) -> Any:
        """The weight of the distillation loss. Floats may be assigned during `fit`."""
        return self._setup.peers[0].objective.alpha

    @alpha.setter
    def alpha(self, value: Any) -> None:
        for peer in self._setup.peers:
            peer.objective.alpha = value

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        *,
        distillation_loss: Any = None,
        alpha: Any = 0.5,
        label_mask: str | Mapping[str, str | None] | None = None,
        check_peers: bool = True,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **kwargs: Any,
    ) -> None:
        """Configure training.

        Args:
            optimizer: As in `keras.Model.compile`. It trains the weights of all peers.
            loss: The label loss or losses of every peer, as in `keras.Model.compile`.
            distillation_loss: The loss of each peer against the others, called with the
                mean of their outputs as `y_true`, as in `Distiller.compile`. Defaults
                to `ForwardKL()`, as in Deep Mutual Learning.
            alpha: The weight of the distillation loss, as in `Distiller.compile`.
                Defaults to 0.5.
            label_mask: As in `Distiller.compile`. On rows without a label, a peer
                learns from the other peers only.
            check_peers: Whether to stop with an error at the step at which a peer's
                output is NaN or infinite. Defaults to True.
            loss_weights: As in `keras.Model.compile`. They act on `loss` only.
            metrics: As in `keras.Model.compile`. Each peer has its own.
            weighted_metrics: As in `keras.Model.compile`. Each peer has its own.
            **kwargs: `run_eagerly`, `steps_per_execution`, `jit_compile`,
                `auto_scale_loss`, as in `keras.Model.compile`.

        Raises:
            ValueError: If there is no `loss`, or `alpha` isn't in [0, 1].
        """
        checks.check_loss(loss)
        optimizer = keras.optimizers.get(optimizer)
        check_compile(self, {"optimizer": optimizer}, kwargs)
        if distillation_loss is None:
            distillation_loss = ForwardKL()
        # Made before Keras compiles: a wrong argument keeps the earlier `compile`.
        setup = PeersSetup(
            self.peers,
            config={
                "distillation_loss": distillation_loss,
                "label_mask": label_mask,
                "loss": loss,
                "loss_weights": loss_weights_of(loss, loss_weights),
                "metrics": metrics,
                "weighted_metrics": weighted_metrics,
                "check_peers": check_peers,
            },
            alpha=alpha,
            takers=kinds.of_combination(self.combine, self.activation),
            sync=getattr(self, "jax_state_sync", lambda: None),
        )
        super().compile(optimizer, **kwargs)
        self._untracked.setup = setup
        self.warned_of_idle_schedules = False
        setup.begin(self)
        # So that `load_weights` before the first step restores its state.
        build_early(self)


def _frozen_copy(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    if not copy.built:
        copy.build_from_config(model.get_build_config())
    # Copies of the arrays: JAX would give both weights one buffer, which a step can't
    # update twice.
    copy.set_weights([np.array(weight) for weight in model.get_weights()])
    copy.trainable = False
    return copy
