"""A worker that is killed once: `python -m tests.devices.resuming DIRECTORY`.

`TF_CONFIG` tells which worker it is; without it, one process trains alone.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.devices.worker import STRATEGY, scope  # isort: skip - before TensorFlow runs

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from tests.distiller.models import crossentropy, data, mlp


class Killed(keras.callbacks.Callback):
    """Kills the second worker at a step, if it wasn't before."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker = marker

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.model.optimizer.iterations == 8 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def main(directory: Path) -> None:
    with scope():
        distiller = kd.Distiller(mlp(), mlp(seed=1))
        optimizer = keras.optimizers.SGD(0.3, momentum=0.9)
        distiller.compile(optimizer, crossentropy(), alpha=kd.schedules.LinearWarmup(9))
    callbacks: list[keras.callbacks.Callback] = [kd.online.Backup(directory / "backup")]
    index = 0
    if STRATEGY is not None:
        index = STRATEGY.cluster_resolver.task_id
    if index == 1:
        callbacks.append(Killed(directory / "killed"))
    batches = tf.data.Dataset.from_tensor_slices(data(22)).batch(8)
    distiller.fit(batches, epochs=4, shuffle=False, verbose=0, callbacks=callbacks)
    np.savez(directory / f"weights_{index}.npz", *distiller.student.get_weights())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
