"""A backup of a running `fit` that is complete after a kill at any moment."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from keras_distill import atomic

_NAME = re.compile(r"epoch_(\d+)\.weights\.h5")


class Backup(keras.callbacks.Callback):
    """Lets a `fit` that was killed resume after its last complete epoch.

    `keras.callbacks.BackupAndRestore` overwrites the earlier weights, and writes the
    number of the epoch to another file. Killed between the two, it trains an epoch
    twice; killed while it writes one, it can't resume. This callback writes one file
    for each epoch. The file gets its name once it is complete, and the earlier file is
    removed after that.

    The file holds the model's weights, the optimiser's state and, for models of this
    package, the states of random numbers. It remains when `fit` ends, so that a later
    `fit` with more epochs continues from it. Remove the directory to start again.

    Args:
        directory: The directory of the backup. No other `fit` may use it.

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
        """Read the last backup, if there is one."""
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
        # Keras' own backup sets the same attribute.
        self.model._initial_epoch = last

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write this epoch's backup, then remove the earlier ones."""
        finished = epoch + 1
        atomic.replace(self._path(finished), lambda path: self.model.save_weights(path))
        for earlier in self._epochs():
            if earlier < finished:
                self._path(earlier).unlink()

    def on_train_end(self, logs: Any = None) -> None:
        """Let a later `fit` without a backup start at its own `initial_epoch`."""
        self.model._initial_epoch = None

    def _epochs(self) -> Iterator[int]:
        """Yield the numbers of the epochs that have a complete file."""
        if self.directory.is_dir():
            names = [path.name for path in self.directory.iterdir()]
            yield from (int(found[1]) for n in names if (found := _NAME.fullmatch(n)))

    def _path(self, epoch: int) -> Path:
        return self.directory / f"epoch_{epoch}.weights.h5"
