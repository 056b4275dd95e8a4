"""Data sets in files, as functions that the workers of a recording call."""

from typing import Any

import keras

from keras_distill.export.loading import load_arrays


class ArrayFile:
    """A function that returns the data set of an `.npz` file, which is read once.

    Args:
        path: The file, with one array for each input.
        labels: The name of an array that is left out, if there is one.
        batch_size: The number of rows in a batch.
    """

    def __init__(self, path: str, *, labels: str, batch_size: int) -> None:
        self.path = path
        self.labels = labels
        self.batch_size = batch_size
        self._x: Any = None

    def __call__(self, start: int = 0, stop: int | None = None) -> Any:
        """Return the data set of the rows in a range."""
        import tensorflow as tf

        if self._x is None:
            self._x = self._read()
        x = keras.tree.map_structure(lambda array: array[start:stop], self._x)
        return tf.data.Dataset.from_tensor_slices(x).batch(self.batch_size)

    def _read(self) -> Any:
        arrays = load_arrays(self.path, "dataset")
        inputs = {name: arrays[name] for name in arrays if name != self.labels}
        if not inputs:
            raise ValueError(
                "`dataset` must hold an input beside the labels. Received: "
                f"{self.path!r} with {sorted(arrays)}"
            )
        return next(iter(inputs.values())) if len(inputs) == 1 else inputs


def saved(path: str) -> Any:
    """Return a data set that `tf.data.Dataset.save` wrote."""
    import tensorflow as tf

    return tf.data.Dataset.load(path)
