"""Teachers and data sets that the workers of Beam import."""

import os
import signal
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tests.targets.recordings import ROWS, inputs, model

# A file that is there while the worker that reads the third shard is to be killed.
KILL = "KERAS_DISTILL_TEST_KILL"
LOADED: list[str] = []


def teacher() -> keras.Model:
    LOADED.append("teacher")
    return model()


def whole() -> tf.data.Dataset:
    """Return all rows, without a way to begin in their middle."""
    return tf.data.Dataset.from_tensor_slices(inputs()).batch(8)


def by_range(start: int = 0, stop: int | None = None) -> tf.data.Dataset:
    """Return rows in a range."""
    LOADED.append(f"{start}:{stop}")
    return tf.data.Dataset.from_tensor_slices(inputs()[start:stop]).batch(8)


def deadly(start: int = 0, stop: int | None = None) -> tf.data.Dataset:
    """Return rows in a range. Where the file is there, remove it and kill the worker.

    That is while the third shard of 24 rows is read.
    """
    mark = Path(os.environ[KILL])
    if start == 48 and mark.exists():
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return by_range(start, stop)


def of_unknown_length() -> tf.data.Dataset:
    return whole().filter(lambda x: True)


def uneven() -> tf.data.Dataset:
    """Return batches of 1 and 99 rows."""
    data = tf.data.Dataset.from_tensor_slices(inputs())
    batches = data.take(1).batch(1).concatenate(data.skip(1).batch(ROWS))
    return batches


def augment(x: Any, seed: Any) -> Any:
    return x + tf.random.stateless_normal(tf.shape(x), seed)


not_a_function = 3
