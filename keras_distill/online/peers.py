"""Models that train together in one `fit`, each taught by the mean of the others."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_distill import backend, own_training
from keras_distill.batch import Batch
from keras_distill.building import build_optimizer
from keras_distill.fitting import WatchedFit
from keras_distill.guard import Guard
from keras_distill.guards import kinds
from keras_distill.guards.look import Look
from keras_distill.inputs import check_held, select
from keras_distill.labels import log_loss
from keras_distill.labels.probabilities import BAD_LABELS
from keras_distill.losses import ForwardKL
from keras_distill.naming import distinct
from keras_distill.online import checks
from keras_distill.online.peer import BAD_PEER, Peer, PeerLogs, refresh
from keras_distill.per_output import loss_weights_of
from keras_distill.resuming import RandomStates
from keras_distill.setup import check_label_mask
from keras_distill.teachers.base import as_targets
from keras_distill.teachers.combining import check_combination, mean_outputs
from keras_distill.types import Tensor
from keras_distill.values import Value


class _Untracked:
    """What `compile` sets up, so that Keras doesn't track or save it."""

    def __init__(self) -> None:
        self.peers: list[Peer] = []
        self.metrics: list[keras.metrics.Metric] = []
        self.guard: Guard | None = None
        self.looks: list[Look] = []
        self.config: dict[str, Any] = {}


@keras.saving.register_keras_serializable(package="keras_distill")
class MutualLearning(WatchedFit, RandomStates):
    r"""Trains models together, each on labels and on the mean of what the others say.

    `loss = sum_i (1 - alpha) * loss(y, p_i) + alpha * distillation_loss(t_i, p_i)
    + sum(peers[i].losses)`, where `t_i` is the mean of the outputs of the peers but
    `p_i`, through which no gradient passes. One optimiser trains all; with `alpha=0`
    each peer is trained as it would be alone. A burn-in, in which peers that know
    nothing yet leave each other alone, is `alpha=kd.schedules.LateStart(steps, 0.5)`.

    `fit` and `evaluate` log what each peer would be trained with alone as
    `<peer>_loss`, with its metrics, and `fit` `<peer>_distillation_loss` too. Where
    two peers have one name, a number is added to the second's.

    Peers stay models of their own: evaluate, save and export `mutual.peers[0]`. Calling
    or predicting with all of them gives the mean of their outputs.

    Args:
        peers: Two Keras models or more, of the same or of different architecture, with
            outputs of one structure and shape, in logits, and one dtype policy. Of a
            dict of inputs each reads the keys that it declares.
        combine: What the mean is taken of, `"logits"` (default) or `"probabilities"`.
        activation: What makes probabilities of the outputs, `"softmax"` (default) or
            `"sigmoid"` of each unit.
        staleness: 0 (default): peers are taught by what the others say in this step,
            in training. From 1 on: by copies of the others, run as when serving, which
            get the others' weights every so many steps of the optimiser; costs another
            copy of the weights and another forward pass. Files hold the copies, so
            that a resumed training equals one that wasn't interrupted.
        name: Name of the model.
        **kwargs: What `keras.Model` takes.

    Raises:
        TypeError: If the peers aren't Keras models.
        ValueError: If there are fewer than two, they share weights that train, differ
            in dtype policy, or aren't built where there is a `staleness`.

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
        # the peers cast their own inputs
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
        self._untracked = _Untracked()

    @property
    def alpha(self) -> Any:
        """Weight of the distillation loss; floats may be assigned during `fit`."""
        return self._compiled_peers[0].objective.alpha

    @alpha.setter
    def alpha(self, value: Any) -> None:
        for peer in self._compiled_peers:
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
            optimizer: As in `keras.Model.compile`; it trains the weights of all peers.
            loss: The label loss or losses of every peer, as in `keras.Model.compile`.
            distillation_loss: Each peer's loss under the others, called with the mean
                of their outputs as `y_true`; as in `Distiller.compile`. Defaults to
                `ForwardKL()`, as in Deep Mutual Learning.
            alpha: Weight of the distillation loss, as in `Distiller.compile`. Defaults
                to 0.5.
            label_mask: As in `Distiller.compile`: rows without a label are taught by
                the other peers alone.
            check_peers: Whether to stop with an error at the step at which what peers
                say is NaN or infinite. Defaults to True.
            loss_weights: As in `keras.Model.compile`; of `loss` alone.
            metrics: As in `keras.Model.compile`; each peer has its own.
            weighted_metrics: As in `keras.Model.compile`; each peer has its own.
            **kwargs: `run_eagerly`, `steps_per_execution`, `jit_compile`,
                `auto_scale_loss`, as in `keras.Model.compile`.

        Raises:
            ValueError: If there is no `loss`, or `alpha` isn't in [0, 1].
        """
        if loss is None:
            raise ValueError(
                "Peers need a label `loss`: with nothing but each other to learn from, "
                "they agree on nothing in particular. Received: loss=None"
            )
        if distillation_loss is None:
            distillation_loss = ForwardKL()
        ours = {
            "distillation_loss": distillation_loss,
            "label_mask": label_mask,
            "loss": loss,
            "loss_weights": loss_weights_of(loss, loss_weights),
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
        }
        names = distinct([peer.name for peer in self.peers])
        trained = [
            Peer(peer, name, alpha=alpha, **ours)
            for peer, name in zip(self.peers, names, strict=True)
        ]
        for peer in trained:
            check_label_mask(peer._label_mask, peer.model, metrics)
        super().compile(optimizer, **kwargs)
        for peer in trained:
            peer.jit_compile = self.jit_compile
        hyperparameters = dict(trained[0].objective.metrics)
        for name in ("student_loss", "distillation_loss"):
            del hyperparameters[name]
        untracked = self._untracked
        untracked.peers = trained
        untracked.metrics = [
            *(PeerLogs(peer) for peer in trained),
            *hyperparameters.values(),
        ]
        untracked.guard = None
        if check_peers:
            untracked.guard = Guard(compiled=backend.compiles(self), message=BAD_PEER)
        takers = kinds.of_combination(self.combine, self.activation)
        untracked.looks = [
            Look(
                distillation_loss,
                loss,
                output_names=peer.output_names,
                judges_teacher=False,
                peer=peer.name,
                takers=takers,
            )
            for peer in trained
        ]
        self.warned_of_idle_schedules = False
        untracked.config = {**ours, "check_peers": check_peers}

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the mean of the peers' outputs."""
        withheld = {}
        if self._untracked.peers:
            withheld = {"withheld": self._untracked.peers[0]._label_mask.keys}
        return self._mean(
            [_run(peer, inputs, training, **withheld) for peer in self.peers]
        )

    def train_step(self, data: Any) -> dict[str, Tensor]:
        """Run each peer once, and update all."""
        data = keras.utils.unpack_x_y_sample_weight(data)
        x, y, sample_weight = data
        peers, step = self._compiled_peers, self.optimizer.iterations
        check_held(x, peers[0]._label_mask.keys, what="the label mask")
        checks.check_labels(y)
        said = self._said_by_copies(x)
        with tf.GradientTape() as tape:
            outputs, own_losses = [], []
            for peer in peers:
                # a layer keeps what it adds to a loss only until it is called again
                outputs.append(peer(x, training=True))
                own_losses.append(peer.alone(data, outputs[-1]))
            checks.check_apart(self.peers)  # those that weren't built before
            losses = []
            for i, peer in enumerate(peers):
                others = [*(said or outputs)]
                del others[i]
                losses.append(
                    peer.taught_loss(
                        data,
                        outputs[i],
                        own_losses[i],
                        targets=as_targets(self._mean(others)),
                        guard=self._untracked.guard,
                        step=step,
                    )
                )
            loss = sum(losses[1:], start=losses[0])
            log_loss(self, loss, x)
            loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, self.trainable_weights)
        if gradients:
            self._update(gradients, loss)
        else:
            own_training.warn_of_frozen("peers", [peer.name for peer in self.peers])
        looks = self._untracked.looks
        for peer, output, look in zip(peers, outputs, looks, strict=True):
            masks = peer._label_mask.by_path(x, output)
            look.at(Batch(inputs=x, output=output, labelled=masks), output)
            peer.compute_metrics(x, y, output, sample_weight)
        logs: dict[str, Tensor] = self.get_metrics_result()
        return logs

    def _update(self, gradients: Sequence[Tensor], loss: Tensor) -> None:
        build_optimizer(self)
        if not self.optimizer.built:  # not where its variables would wait for the loss
            self.optimizer.build(self.trainable_weights)
        pairs = zip(gradients, self.trainable_weights, strict=True)
        # the loss holds the check of what peers say, which updates would overtake
        with tf.control_dependencies([loss]):
            self.optimizer.apply_gradients(pairs)

    def test_step(self, data: Any) -> dict[str, Tensor]:
        """Evaluate each peer, as it would be alone; `loss` is the sum of theirs."""
        data = keras.utils.unpack_x_y_sample_weight(data)
        x, y, sample_weight = data
        checks.check_labels(y)
        losses = []
        for peer in self._compiled_peers:
            output = peer(x, training=False)
            losses.append(peer.alone(data, output).total)
            peer.compute_metrics(x, y, output, sample_weight)
        log_loss(self, sum(losses[1:], start=losses[0]), x)
        measured = {f"{p.name}_distillation_loss" for p in self._compiled_peers}
        measured |= set(self._compiled_peers[0].objective.metrics)
        logs = self.get_metrics_result()
        return {name: log for name, log in logs.items() if name not in measured}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The loss, what each peer measures, and what is scheduled."""
        return [*super().metrics, *self._untracked.metrics]

    @property
    def _looks(self) -> Sequence[Look]:
        return self._untracked.looks

    @property
    def _flag_messages(self) -> dict[str, str]:
        messages = {}
        for peer in self._compiled_peers if backend.compiles(self) else ():
            messages[f"{peer.name}_loss"] = BAD_LABELS + " values that aren't"
            messages[f"{peer.name}_distillation_loss"] = BAD_PEER
        return messages

    @property
    def _scheduled(self) -> dict[str, Value]:
        return self._compiled_peers[0].objective.values

    @property
    def _evaluated(self) -> Sequence[keras.Model]:
        # A loss of a peer's own may take other labels than outputs.
        own = "compute_loss"
        return [peer for peer in self.peers if not own_training.overrides(peer, own)]

    def serving_model(self) -> keras.Model:
        """Raise, as peers serve one by one: `keras_distill.export` asks for one model.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Peers that train together are models of their own, of which one is "
            "exported. Pass `mutual.peers[0]`; of a file "
            "`keras.saving.load_model(path).peers[0]`. Received: "
            f"{self.name!r} with the peers {[peer.name for peer in self.peers]}"
        )

    def serving_inputs(self, inputs: Any) -> Any:
        """Return `inputs`; a peer reads the keys that it declares."""
        return inputs

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments.

        Raises:
            ValueError: If peers share weights, which then don't train.
        """
        held = [weight for peer in self.peers for weight in peer.weights]
        if len({id(weight) for weight in held}) < len(held):
            raise ValueError(
                "Files of Keras can't hold peers that share weights. Use "
                "`save_weights`, or save each peer. Received: peers "
                f"{[peer.name for peer in self.peers]}"
            )
        return {
            **super().get_config(),
            "peers": [keras.saving.serialize_keras_object(peer) for peer in self.peers],
            "combine": self.combine,
            "activation": self.activation,
            "staleness": self.staleness,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> "MutualLearning":
        """Build the model from `get_config`'s result."""
        peers = [
            keras.saving.deserialize_keras_object(peer, custom_objects=custom_objects)
            for peer in config["peers"]
        ]
        return cls(**{**config, "peers": peers})

    def get_compile_config(self) -> dict[str, Any]:
        """Return what `compile` was called with, serialised."""
        config: dict[str, Any] = super().get_compile_config()
        if config:
            config |= keras.saving.serialize_keras_object(
                {**self._untracked.config, "alpha": self.alpha}
            )
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile with `get_compile_config`'s result."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def _get_metrics_result_or_logs(self, logs: dict[str, Tensor]) -> dict[str, Tensor]:
        # Keras' own falls back to the last step's logs where a step doesn't log every
        # metric, as ours in evaluation
        results = self.get_metrics_result()
        return {name: results.get(name, log) for name, log in logs.items()}

    def _symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # on several devices, where Keras builds what is compiled before the first step
        super()._symbolic_build(iterator, data_batch)
        for peer in self._compiled_peers:
            peer._symbolic_build(data_batch=data_batch)

    def _said_by_copies(self, x: Any) -> list[Any]:
        """Return what the peers' copies say, refreshed where it is time."""
        if not self.staleness:
            return []
        due = tf.equal(self.optimizer.iterations % self.staleness, 0)
        refresh(self.copies, self.peers, due)
        withheld = self._compiled_peers[0]._label_mask.keys
        return [_run(copy, x, False, withheld=withheld) for copy in self.copies]

    def _mean(self, outputs: Sequence[Any]) -> Any:
        return mean_outputs(outputs, combine=self.combine, activation=self.activation)

    @property
    def _compiled_within(self) -> list[Peer]:
        return self._untracked.peers

    @property
    def _compiled_peers(self) -> list[Peer]:
        if not self._untracked.peers:
            raise ValueError("You must call `compile()` on the peers before this.")
        return self._untracked.peers


def _run(
    model: keras.Model, x: Any, training: bool | None, *, withheld: Sequence[str] = ()
) -> Any:
    return model(select(model, x, withheld=withheld), training=training)


def _frozen_copy(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    if not copy.built:
        copy.build_from_config(model.get_build_config())
    copy.set_weights(model.get_weights())
    copy.trainable = False
    return copy
