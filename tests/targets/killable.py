"""Recordings and trainings in processes that end by SIGKILL at a chosen moment.

The processes are forked from one that has imported all that they need.
"""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_distill as kd
from keras_distill import atomic, targets
from tests.targets.recordings import dataset, model

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([__name__])
EPOCHS, BATCHES = 2, 13


def run(target: Any, *args: Any) -> int:
    """Run a function of this module in a process; return its exit code."""
    process = CONTEXT.Process(target=target, args=args)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def record(directory: Path, last: int | None) -> None:
    """Record; be killed at the start of a number of flushes of files."""
    flush, count = atomic.flush, [0]

    def counted(path: Path) -> None:
        if count[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1
        flush(path)

    atomic.flush = counted
    targets.record(model(), dataset(), directory, rows_per_shard=24)


class Killed(keras.callbacks.Callback):
    """Kills the process after a number of batches."""

    def __init__(self, after: int | None) -> None:
        super().__init__()
        self.left = after

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


def train(directory: Path, recorded: Path, after: int | None) -> None:
    """Train from a recording, with a backup; write the weights at the end."""
    keras.utils.set_random_seed(2)
    distiller = kd.Distiller(model(3), kd.teachers.Recorded("teacher"))
    distiller.compile("adam", alpha=1.0)
    data = targets.join(dataset(), recorded)
    backup = kd.online.Backup(directory / "backup")
    distiller.fit(
        data,
        epochs=EPOCHS,
        verbose=0,
        shuffle=False,
        callbacks=[backup, Killed(after)],
    )
    np.savez(directory / "weights.npz", *distiller.student.get_weights())
