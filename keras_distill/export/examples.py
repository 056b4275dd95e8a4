"""The examples that an export keeps, so that it can be checked later and elsewhere."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_distill.export.batches import Arrays, as_bytes, rows
from keras_distill.export.parity import Reference

FILE = "examples.npz"
# Enough to detect a wrong file, and few enough that the file stays small.
COUNT = 32

# It ends each item, as NumPy would drop zeros at an item's end.
_END = b"."

Examples = dict[str, Arrays]


def write(directory: Path, expected: Reference, batch_size: int | None) -> None:
    """Keep the first `COUNT` examples, or the first batch of a fixed size.

    Text is stored as text: NumPy would pickle it as objects.
    """
    kept = slice(batch_size or COUNT)
    inputs, outputs = expected.cases[0]
    groups = {"inputs": inputs, "outputs": outputs}
    if expected.raw_cases:
        groups["raw"] = expected.raw_cases[0][0]
    arrays: dict[str, Any] = {
        f"{group}/{name}": _storable(array)
        for group, members in groups.items()
        for name, array in rows(members, kept).items()
    }
    with (directory / FILE).open("wb") as file:
        np.savez(file, **arrays)


def read(directory: Path) -> Examples:
    """Read the file of `write`.

    Raises:
        ValueError: `write` didn't write it, although the manifest may list it.
    """
    groups: Examples = {}
    try:
        with np.load(directory / FILE, allow_pickle=False) as arrays:
            for key in arrays.files:
                group, _, name = key.partition("/")
                groups.setdefault(group, {})[name] = _restored(arrays[key])
    except (ValueError, AttributeError, TypeError, EOFError, zipfile.BadZipFile) as bad:
        raise _damaged(directory, str(bad)) from bad
    if not {"inputs", "outputs"} <= set(groups):
        raise _damaged(directory, f"it has arrays of {sorted(groups)}")
    sizes = [array.shape[:1] for group in groups.values() for array in group.values()]
    if len(set(sizes)) != 1 or sizes[0] in ((), (0,)):
        raise _damaged(directory, "its arrays must have one number of examples")
    return groups


def _damaged(directory: Path, reason: str) -> ValueError:
    return ValueError(
        f"{FILE} must hold the inputs and outputs of examples. Received: "
        f"{str(directory / FILE)!r}, which is damaged: {reason}. Export the model "
        "again."
    )


def _restored(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype.kind == "V":  # bfloat16, for which NumPy's files have no name
        return array.view(tf.bfloat16.as_numpy_dtype)
    if array.dtype.kind == "S":
        items = [item[: -len(_END)] for item in array.flat]
        return np.array(items, dtype=object).reshape(array.shape)
    return array


def _storable(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if array.dtype != object:
        return array
    items = [item + _END for item in as_bytes(array).flat]
    return np.array(items, dtype=bytes).reshape(array.shape)
