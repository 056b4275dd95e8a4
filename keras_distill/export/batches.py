"""Conversion of a caller's batches to named NumPy arrays, and their pieces."""

import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_distill.types import Nested

Arrays = dict[str, npt.NDArray[Any]]
# Parts of Keras' errors: colours of a terminal, names of nodes and all arguments.
_NOISE = re.compile(
    r"\x1b\[[0-9;]*m|\[?\{\{.*?\}\}\]?|\[Op:.*?\]|Arguments received by.*", re.DOTALL
)


def to_arrays(
    batch: Any, specs: dict[str, tf.TensorSpec], argument: str = "example_batch"
) -> Arrays:
    """Convert `batch` to the input names and dtypes of `specs`, and check it.

    Args:
        batch: An array, or a list or dict of arrays.
        specs: Input name to spec; the size of the first axis is ignored.
        argument: What the caller calls `batch`, for errors.
    """
    arrays = {
        name: to_array(values, specs[name], name, argument)
        for name, values in by_name(batch, list(specs), argument).items()
    }
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"`{argument}` must have the same number of examples in every input. "
            f"Received: {sizes}."
        )
    return arrays


def to_array(
    values: Any, spec: tf.TensorSpec, name: str, argument: str = "example_batch"
) -> npt.NDArray[Any]:
    """Convert one input to the dtype of `spec`, and check its shape."""
    array = _as_array(values, name, argument)
    dtype = np.dtype(spec.dtype.as_numpy_dtype)
    is_text = array.dtype.kind in "OSU"
    if is_text != (spec.dtype == tf.string) or not (
        is_text or np.can_cast(array.dtype, dtype, "same_kind")
    ):
        raise ValueError(
            f"`{argument}` must hold {spec.dtype.name} for the input {name!r}. "
            f"Received: dtype={array.dtype}."
        )
    if array.ndim == 0 or not spec.shape[1:].is_compatible_with(array.shape[1:]):
        raise ValueError(
            f"`{argument}` must have shape {(None, *spec.shape[1:])} for the input "
            f"{name!r}; None takes any size. Received: shape={array.shape}."
        )
    if len(array) == 0:
        raise ValueError(
            f"`{argument}` must hold at least one example. "
            f"Received: shape={array.shape} for the input {name!r}."
        )
    return array.astype(dtype, copy=False)


def _as_array(values: Any, name: str, argument: str) -> npt.NDArray[Any]:
    """Return a tensor, a list or a data frame as an array."""
    try:
        array = np.asarray(values)
    except Exception as error:  # ragged lists, ragged and sparse tensors
        raise ValueError(
            f"`{argument}` must hold arrays. Received: {type(values).__name__} for the "
            f"input {name!r} ({textwrap.shorten(str(error), 200)})."
        ) from error
    if array.ndim == 0 and array.dtype.kind in "OSU":
        remedy = (
            "Of a dataset pass one batch of inputs, as `x, y = next(iter(dataset))` "
            f"and `{argument}=x`."
        )
        if isinstance(values, str | os.PathLike):
            remedy = "Read the file, as with `numpy.load`, and pass its arrays."
        raise ValueError(
            f"`{argument}` must hold arrays. Received: {type(values).__name__} for the "
            f"input {name!r}. {remedy}"
        )
    return array


def by_name(batch: Any, names: list[str], argument: str) -> dict[str, Any]:
    """Return an array, or a list or dict of arrays, as a dict with the keys `names`."""
    if isinstance(batch, dict):
        if set(batch) != set(names):
            raise ValueError(
                f"`{argument}` must have the keys {sorted(names)}. "
                f"Received: keys={sorted(map(str, batch))}."
            )
        return {name: batch[name] for name in names}
    values = list(batch) if isinstance(batch, list | tuple) else [batch]
    if len(values) != len(names):
        remedy = ""
        if len(names) == 1:
            remedy = (
                " Pass the inputs without labels, and numbers as one array, as "
                "`numpy.asarray` makes it."
            )
        raise ValueError(
            f"`{argument}` must hold one array for each of the {len(names)} inputs "
            f"{names}. Received: {len(values)} of type {type(batch).__name__}.{remedy}"
        )
    return dict(zip(names, values, strict=True))


@contextmanager
def taken(argument: str, errors: type[Exception] = tf.errors.OpError) -> Iterator[None]:
    """Raise ValueError if the model can't compute with the values of an argument.

    Args:
        argument: The caller's name for these values.
        errors: The errors that a runtime raises for such values.
    """
    try:
        yield
    except errors as error:
        raise ValueError(
            f"`{argument}` must hold values that the model can compute with, such as "
            "ids below the number of rows of their Embedding, or texts no shorter than "
            f"a kernel. Received: {reason(error)}"
        ) from error


def reason(error: BaseException) -> str:
    """Return an error's message on one line, without colours and names of nodes."""
    return textwrap.shorten(_NOISE.sub("", str(error)), 300)


def as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return text as `bytes` objects, as TensorFlow does; other runtimes use `str`."""
    encoded = [x if isinstance(x, bytes) else str(x).encode() for x in array.flat]
    return np.array(encoded, dtype=object).reshape(array.shape)


def size_of(arrays: Arrays) -> int:
    """Return the number of examples."""
    return len(next(iter(arrays.values())))


def rows(arrays: Arrays, which: slice | list[int]) -> Arrays:
    """Return some examples."""
    return {name: array[which] for name, array in arrays.items()}


def of_size(arrays: Nested, size: int) -> Nested:
    """Return nested arrays whose rows are repeated, or cut, to a number of rows."""
    return keras.tree.map_structure(
        lambda array: np.resize(array, (size, *array.shape[1:])), arrays
    )


def other_size(arrays: Arrays) -> Arrays:
    """Return a batch of another size: its first example, or that example twice."""
    return rows(arrays, [0] if size_of(arrays) > 1 else [0, 0])


def pieces(arrays: Arrays, size: int) -> Iterator[tuple[Arrays, int]]:
    """Yield batches of exactly `size` examples, each with the number that counts.

    The last batch is filled up by repeating its last example.
    """
    total = size_of(arrays)
    for begin in range(0, total, size):
        count = min(size, total - begin)
        fill = [begin + count - 1] * (size - count)
        yield rows(arrays, [*range(begin, begin + count), *fill]), count
