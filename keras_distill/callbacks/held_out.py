"""Held-out data that a callback reads in each epoch."""

import hashlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import backend
from keras_distill.metrics.distributions import Array
from keras_distill.types import Nested

tree = keras.tree


class HeldOut:
    """Held-out inputs and optional labels, in batches.

    Args:
        data: Inputs as arrays, a tuple of inputs and labels, or a `tf.data.Dataset` of
            batches of either form.
        batch_size: The number of rows of a batch of arrays; None for a data set.

    Raises:
        TypeError: If the data are neither arrays nor a data set.
        ValueError: If the data have no rows or have sample weights; if `batch_size`
            isn't positive or is given for a data set.
    """

    def __init__(self, data: Any, batch_size: int | None) -> None:
        _check(data, batch_size)
        self._data, self._batch_size = data, batch_size
        self._is_arrays = backend.dataset_spec(data) is None

    def batches(self) -> Iterator[list[Any]]:
        """Yield the inputs, and the labels if there are any, of each batch as tensors.

        Raises:
            ValueError: If the data set is empty.
        """
        is_empty = True
        for batch in self._of_arrays() if self._is_arrays else self._data:
            is_empty = False
            yield [
                tree.map_structure(ops.convert_to_tensor, part)
                for part in _parts(batch)
            ]
        if is_empty:
            raise ValueError(
                "`validation_data` must have rows. Received: an empty data set"
            )

    def _of_arrays(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of each batch of arrays."""
        arrays = [tree.map_structure(_array, part) for part in _parts(self._data)]
        size = self._batch_size or 32
        for start in range(0, len(tree.flatten(arrays)[0]), size):
            rows = slice(start, start + size)
            yield tuple(
                tree.map_structure(lambda array, rows=rows: array[rows], part)
                for part in arrays
            )


def digest(tensors: Nested) -> bytes:
    """Return a hash of the values of tensors."""
    hashed = hashlib.blake2b(digest_size=16)
    for tensor in tree.flatten(tensors):
        array = ops.convert_to_numpy(tensor)
        # The bytes of an array of objects, such as strings, are their addresses.
        of_objects = array.dtype.hasobject
        hashed.update(repr(array.tolist()).encode() if of_objects else array.tobytes())
    return hashed.digest()


def _check(data: Any, batch_size: int | None) -> None:
    """Raise an error if data can't be read in each epoch."""
    spec = backend.dataset_spec(data)
    if spec is not None and batch_size is not None:
        raise ValueError(
            "A data set has batches of its own. Received: "
            f"batch_size={batch_size} and a data set"
        )
    if batch_size is not None and batch_size < 1:
        raise ValueError(
            f"`batch_size` must be positive. Received: batch_size={batch_size}"
        )
    if spec is not None:
        _parts(spec)
        return
    arrays = tree.flatten(_parts(data))
    if not all(hasattr(array, "shape") and len(array.shape) for array in arrays):
        raise TypeError(
            "`validation_data` must be arrays or a `tf.data.Dataset`. Received: "
            f"{type(data).__name__}"
        )
    sizes = {len(array) for array in arrays}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            "`validation_data` must have rows, and as many labels as inputs. "
            f"Received: arrays of {sorted(sizes)} rows"
        )


def _parts(data: Any) -> list[Any]:
    """Return the inputs of data, and the labels if there are any."""
    x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
    if weight is not None:
        raise ValueError(
            "`validation_data` must be inputs, or inputs and labels: all rows count "
            "alike. Received: sample weights"
        )
    return [x] if y is None else [x, y]


def _array(values: Any) -> Array:
    """Return an array, with floats in the dtype that Keras passes to a model."""
    array = np.asarray(values)
    return array.astype(keras.config.floatx()) if array.dtype.kind == "f" else array
