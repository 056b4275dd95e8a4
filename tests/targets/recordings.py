"""Small data sets and teachers that the tests of recordings share."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

ROWS, FEATURES, CLASSES = 100, 4, 5


def inputs(rows: int = ROWS) -> np.ndarray:
    """Return rows that are all different."""
    generator = np.random.default_rng(0)
    return generator.normal(size=(rows, FEATURES)).astype("float32")


def dataset(rows: int = ROWS, batch: int = 8) -> tf.data.Dataset:
    """Return rows with labels, in batches."""
    labels = np.arange(rows) % CLASSES
    return tf.data.Dataset.from_tensor_slices((inputs(rows), labels)).batch(batch)


def named(rows: int = ROWS, batch: int = 8) -> tf.data.Dataset:
    """Return rows with ids of both kinds, in batches."""
    x = {
        "image": inputs(rows),
        "number": np.arange(rows, dtype="int32") * 10 - 300,
        "name": np.array([f"row {row}" for row in range(rows)]),
    }
    return tf.data.Dataset.from_tensor_slices(x).batch(batch)


def model(seed: int = 0, outputs: int = CLASSES) -> keras.Model:
    """Return a small model."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((FEATURES,)), layers.Dense(outputs)])


def files(directory: Path) -> dict[str, bytes]:
    """Return the contents of a directory's files, but those of indices."""
    return {
        path.name: path.read_bytes()
        for path in sorted(directory.iterdir())
        if not path.name.startswith(".index")
    }
