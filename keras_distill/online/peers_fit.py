"""The parts of mutual learning's `fit` besides its steps: checks and logs."""

import threading
from collections.abc import Mapping, Sequence

import keras

from keras_distill import backend, own_training
from keras_distill.fitting import WatchedFit
from keras_distill.guards.look import Look
from keras_distill.lending import Borrower
from keras_distill.online.peer import Peer
from keras_distill.online.peers_setup import PeersSetup
from keras_distill.values import Value


class Untracked:
    """Objects of a trainer of peers that Keras neither tracks nor saves."""

    def __init__(self) -> None:
        self.setup: PeersSetup | None = None
        # The number of batches that JAX's trainer has seen.
        self.batches = keras.Variable(0, dtype="int32", trainable=False)
        # Each device of a strategy traces its step in a thread of its own.
        self.of_step = threading.local()


class PeersFit(WatchedFit, Borrower):
    """A trainer of peers, with their logs and the state of its steps."""

    peers: list[keras.Model]
    _untracked: Untracked

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The total loss, the logs of each peer, and hyperparameters."""
        setup = self._untracked.setup
        return [*super().metrics, *(setup.metrics if setup else ())]

    @property
    def metrics_variables(self) -> list[keras.Variable]:
        """The variables of the metrics, each once, because JAX donates their memory."""
        # A layer's own metrics are among the metrics of its peer, and of this model.
        return list({id(v): v for v in super().metrics_variables}.values())

    @property
    def _borrowed(self) -> Sequence[keras.Variable]:
        """The variables of the guards and hyperparameters, and the count of batches."""
        setup = self._untracked.setup
        return [*(setup.state if setup else ()), self._untracked.batches]

    def _before_steps(self) -> None:
        """Start the count of batches at the optimiser's count, e.g. after a resume."""
        self._untracked.batches.assign(backend.batches_seen(self.optimizer))

    @property
    def _setup(self) -> PeersSetup:
        if self._untracked.setup is None:
            raise ValueError("You must call `compile()` on the peers before this.")
        return self._untracked.setup

    @property
    def _looks(self) -> Sequence[Look]:
        setup = self._untracked.setup
        return setup.looks if setup else []

    @property
    def _flag_messages(self) -> Mapping[str, str]:
        return self._setup.flag_messages if backend.compiles(self) else {}

    @property
    def _scheduled(self) -> Mapping[str, Value]:
        return self._setup.values

    @property
    def _evaluated(self) -> Sequence[keras.Model]:
        # A peer's own `compute_loss` may need labels of another form than the outputs.
        own = "compute_loss"
        return [peer for peer in self.peers if not own_training.overrides(peer, own)]

    @property
    def _compiled_within(self) -> Sequence[Peer]:
        setup = self._untracked.setup
        return setup.peers if setup else []
