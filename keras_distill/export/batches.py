"""Example batches: from what the caller passes to named NumPy arrays."""

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

Arrays = dict[str, npt.NDArray[Any]]


def to_arrays(batch: Any, specs: dict[str, tf.TensorSpec]) -> Arrays:
    """Bring `batch` under the input names and dtypes of `specs`, and check it."""
    arrays = {
        name: to_array(values, specs[name], name)
        for name, values in _by_name(batch, list(specs)).items()
    }
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            "`example_batch` must have the same number of examples in every input. "
            f"Received: {sizes}."
        )
    return arrays


def to_array(values: Any, spec: tf.TensorSpec, name: str) -> npt.NDArray[Any]:
    """Bring one input to the dtype of `spec` and check its shape."""
    array = np.asarray(values)
    dtype = np.dtype(spec.dtype.as_numpy_dtype)
    is_text = array.dtype.kind in "OSU"
    if is_text != (spec.dtype == tf.string) or not (
        is_text or np.can_cast(array.dtype, dtype, "same_kind")
    ):
        raise ValueError(
            f"`example_batch` must hold {spec.dtype.name} for the input {name!r}. "
            f"Received: dtype={array.dtype}."
        )
    if array.ndim == 0 or not spec.shape.is_compatible_with(array.shape):
        raise ValueError(
            f"`example_batch` must have shape {tuple(spec.shape)} for the input "
            f"{name!r}; None takes any size. Received: shape={array.shape}."
        )
    if len(array) == 0:
        raise ValueError(
            "`example_batch` must hold at least one example. "
            f"Received: shape={array.shape} for the input {name!r}."
        )
    return array.astype(dtype)


def other_size(arrays: Arrays) -> Arrays:
    """Make a batch of another size: its first example, or that example twice."""
    size = len(next(iter(arrays.values())))
    rows = [0] if size > 1 else [0, 0]
    return {name: array[rows] for name, array in arrays.items()}


def _by_name(batch: Any, names: list[str]) -> dict[str, Any]:
    if isinstance(batch, dict):
        if set(batch) != set(names):
            raise ValueError(
                f"`example_batch` must have the keys {sorted(names)}. "
                f"Received: keys={sorted(map(str, batch))}."
            )
        return {name: batch[name] for name in names}
    values = list(batch) if isinstance(batch, list | tuple) else [batch]
    if len(values) != len(names):
        raise ValueError(
            f"`example_batch` must hold one array for each of the {len(names)} inputs "
            f"{names}. Received: {len(values)} of type {type(batch).__name__}."
        )
    return dict(zip(names, values, strict=True))
