"""A backup of a running `fit` that a kill at any moment leaves whole."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_distill import atomic

_NAME = re.compile(r"epoch_(\d+)\.weights\.h5")


class Backup(keras.callbacks.Callback):
    """Takes a `fit` that was killed up again after its last finished epoch.

    As `keras.callbacks.BackupAndRestore`, which writes weights over the earlier ones
    and the epoch's number into another file: killed between the two it trains an epoch
    twice, killed within one it can't go on. Here an epoch is one file, which takes its
    place once it is whole, and the earlier one goes after that.

    The file holds the model's weights, the optimiser and, of this package's models,
    the states of random numbers. It stays when `fit` ends, so that a later `fit` of
    more epochs goes on from it; remove the directory to begin again.

    Args:
        directory: Where the backup lies, of this `fit` alone.

    Raises:
        ValueError: In `fit`, if the model isn't built.

    Example:
        >>> import numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        >>> model.compile("adam", "mse")
        >>> x, y = np.ones((8, 2)), np.ones((8, 1))
        >>> def fit(epochs):
        ...     callbacks = [Backup("running")]
        ...     return model.fit(x, y, epochs=epochs, verbose=0, callbacks=callbacks)
        >>> fit(2).epoch, fit(5).epoch
        ([0, 1], [2, 3, 4])
    """

    def __init__(self, directory: str | Path) -> None:
        super().__init__()
        self.directory = Path(directory)

    def on_train_begin(self, logs: Any = None) -> None:
        """Read the last backup, where there is one."""
        if not self.model.built:
            raise ValueError(
                "A backup is of a model that is built before `fit`. Give it a "
                f"`keras.Input`, or call it on a batch. Received: '{self.model.name}'"
            )
        last = max(self._epochs(), default=0)
        if last:
            if not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self.model.load_weights(self._path(last))
        self.model._initial_epoch = last  # where Keras' own backup writes it too

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write this epoch's backup, then remove the earlier ones."""
        finished = epoch + 1
        atomic.replace(self._path(finished), lambda path: self.model.save_weights(path))
        for earlier in self._epochs():
            if earlier < finished:
                self._path(earlier).unlink()

    def on_train_end(self, logs: Any = None) -> None:
        """Leave a later `fit` without a backup to begin where it is told to."""
        self.model._initial_epoch = None

    def _epochs(self) -> Iterator[int]:
        """Yield the numbers of finished epochs that there is a whole file of."""
        if self.directory.is_dir():
            names = [path.name for path in self.directory.iterdir()]
            yield from (int(found[1]) for n in names if (found := _NAME.fullmatch(n)))

    def _path(self, epoch: int) -> Path:
        return self.directory / f"epoch_{epoch}.weights.h5"
