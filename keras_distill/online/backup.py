"""A backup of a running `fit`, complete even if the process is killed meanwhile."""

import re
import signal
import threading
import warnings
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import keras

from keras_distill import atomic
from keras_distill.devices import workers
from keras_distill.devices.launching import SAVED

# Earlier versions wrote no checksum.
_NAME = re.compile(r"epoch_(\d+)(?:\.([0-9a-f]{16}))?\.weights\.h5")
# The newest file may be damaged, by a disk that reported it as written.
_KEPT = 2


class _File(NamedTuple):
    """A file of a backup.

    Args:
        path: Where it is.
        epoch: The number of epochs that were complete.
        checksum: The first digits of its SHA-256. None in files of earlier versions.
    """

    path: Path
    epoch: int
    checksum: str | None

    @property
    def is_whole(self) -> bool:
        """Whether the file has the bytes that were written."""
        return self.checksum is None or self.checksum == _checksum(self.path)


class Backup(keras.callbacks.Callback):
    """Lets a `fit` that was killed resume after its last complete epoch.

    `keras.callbacks.BackupAndRestore` overwrites the earlier weights, and writes the
    number of the epoch to another file. If it is killed between the two, it trains an
    epoch twice. If it is killed while it writes a file, it can't resume. This callback
    writes one file for each epoch. A file gets its name, which contains a checksum,
    when it is complete. The last two files are kept. If the newest one is damaged,
    `fit` warns, and resumes from the other.

    A file contains the model's weights, the optimiser's state and, for models of this
    package, the states of random numbers. It remains when `fit` ends, so that a later
    `fit` with more epochs continues from it. Remove the directory to start again.

    Clusters send SIGTERM before they reclaim a machine. The process then ends with exit
    code 75, and the next `fit` resumes after the last complete epoch. If epochs are
    long, shorten them with `steps_per_epoch`, so that less work is lost. If the process
    has a handler for SIGTERM, that handler is called instead.

    With several workers (`tf.distribute.MultiWorkerMirroredStrategy`), the first worker
    writes the files, and all workers read them. The directory must be shared by all.

    Args:
        directory: The directory of the backup. No other `fit` may use it.

    Raises:
        ValueError: In `fit`, if the model isn't built, or all files are damaged.
        RuntimeError: In `fit`, if workers have read files of different epochs.

    Warns:
        UserWarning: If the newest file is damaged.

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
        self._asked_to_end = False
        self._handler: Any = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Read the last backup, if there is one."""
        if not self.model.built:
            raise ValueError(
                "A backup is of a model that is built before `fit`. Give it a "
                f"`keras.Input`, or call it on a batch. Received: '{self.model.name}'"
            )
        last = self._last_whole()
        if last is not None:
            if not self.model.optimizer.built:
                self.model.optimizer.build(self.model.trainable_variables)
            self.model.load_weights(last.path)
        epoch = last.epoch if last else 0
        workers.check_equal(self.model, epoch, "The epoch that each worker resumes at")
        # Keras' own backup sets the same attribute.
        self.model._initial_epoch = epoch or None
        self._listen()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """End the process if SIGTERM came and a library suppressed the exit."""
        if self._asked_to_end:
            raise SystemExit(SAVED)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Write this epoch's backup, then remove earlier ones."""
        if workers.writes(self.model):
            self._write(epoch + 1)

    def on_train_end(self, logs: Any = None) -> None:
        """Let a later `fit` without a backup start at its own `initial_epoch`."""
        self.model._initial_epoch = None
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)
            self._handler = None

    def _write(self, epoch: int) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        scratch = self.directory / ".writing.weights.h5"
        self.model.save_weights(scratch)
        name = f"epoch_{epoch}.{_checksum(scratch)}.weights.h5"
        atomic.move(scratch, self.directory / name)
        for file in self._files()[_KEPT:]:
            file.path.unlink()

    def _last_whole(self) -> _File | None:
        """Return the newest file that isn't damaged, or None if there is no file."""
        files = self._files()
        last = next((file for file in files if file.is_whole), None)
        if files and last is None:
            raise ValueError(
                "A backup must have the bytes that were written. Remove the directory "
                f"to start again. Received: {[file.path.name for file in files]} in "
                f"{str(self.directory)!r}, whose checksums are others"
            )
        if last is not None and last is not files[0]:
            warnings.warn(
                f"The backup {files[0].path.name} in {str(self.directory)!r} is "
                "damaged: its checksum is another. `fit` resumes after epoch "
                f"{last.epoch}.",
                stacklevel=2,
            )
        return last

    def _files(self) -> list[_File]:
        """Return the complete files, the newest first."""
        if not self.directory.is_dir():
            return []
        files = [
            _File(path, int(found[1]), found[2])
            for path in self.directory.iterdir()
            if (found := _NAME.fullmatch(path.name))
        ]
        return sorted(files, key=lambda file: file.epoch, reverse=True)

    def _listen(self) -> None:
        """Handle SIGTERM in the main thread. Python handles signals only there."""
        self._asked_to_end = False
        in_main = threading.current_thread() is threading.main_thread()
        # A handler that the user has set is kept.
        if in_main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._handler = signal.signal(signal.SIGTERM, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        # Files under their final names are complete, whatever runs at this moment.
        self._asked_to_end = True
        raise SystemExit(SAVED)


def _checksum(path: Path) -> str:
    return atomic.sha256(path)[:16]
