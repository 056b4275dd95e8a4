"""Zeros, negative integers and large values, which examples seldom contain."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from keras_distill.export.advice import computes_in_16_bits
from keras_distill.export.batches import Arrays, rows
from keras_distill.export.graphs import behind, functions
from keras_distill.export.serving import Served

# With more inputs than this, they aren't tried one by one.
MOST_INPUTS = 8
# The factor from the examples to large floats. Exponentials of these overflow, but
# powers of inputs don't.
_LARGER = 1e3
# Operators that make a tensor whose size is the value of an input.
_SIZED = {"BroadcastTo", "Fill", "LinSpace", "Pad", "PadV2", "Range", "Reshape", "Tile"}
# Operators that return the size of a tensor, whatever its values are.
_SIZES = {"Rank", "Shape", "ShapeN", "Size"}


@dataclass(frozen=True)
class Extreme:
    """Rows of inputs.

    Attributes:
        what: What they contain, for errors.
        inputs: Named inputs.
        compared: The names of the outputs whose values must be Keras'. Other outputs
            must only be finite where Keras' are, as rounding may change them by any
            amount.
    """

    what: str
    inputs: Arrays
    compared: frozenset[str]


def extremes(served: Served, batch: Arrays) -> Iterator[Extreme]:
    """Yield rows with extreme values.

    Args:
        served: The model.
        batch: Its named inputs. Inputs without extreme values keep the first example.
    """
    outputs = frozenset(served.outputs)
    kinds = {name: array.dtype.kind for name, array in batch.items()}
    floats = [name for name, kind in kinds.items() if kind == "f"]
    if floats:
        yield Extreme("rows of zeros", _zeros(batch, floats), outputs)
        if not computes_in_16_bits(served.model):
            what = f"values {_LARGER:g} times as large as the examples'"
            yield Extreme(what, _large_floats(batch, floats), frozenset())
    integers = [name for name, kind in kinds.items() if kind in "iu"]
    for group in _groups(integers):
        if any(kinds[name] == "i" for name in group):
            yield Extreme("negative integers", _negative(batch, group), outputs)
        if not _counts(served, group):
            exact = outputs - _rounded(served)
            yield Extreme("large integers", _large_integers(batch, group), exact)


def _groups(names: list[str]) -> list[list[str]]:
    """Return groups of one name: Keras may refuse such values for some inputs."""
    if len(names) > MOST_INPUTS:
        return [names]
    return [[name] for name in names]


def _zeros(batch: Arrays, names: list[str]) -> Arrays:
    """Return a row of zeros, and for each input a row in which only it is zero."""
    groups = [names, *_groups(names)] if 1 < len(names) <= MOST_INPUTS else [names]
    example = rows(batch, [0] * len(groups))
    for row, group in enumerate(groups):
        for name in group:
            example[name][row] = 0
    return example


def _large_floats(batch: Arrays, names: list[str]) -> Arrays:
    example = rows(batch, [0] * 3)
    for name in names:
        array = example[name]
        magnitudes = np.abs(batch[name].astype(np.float64))
        largest = magnitudes.max(initial=0.0, where=np.isfinite(magnitudes)) or 1.0
        large = min(_LARGER * largest, float(np.finfo(array.dtype).max) / _LARGER)
        array[0], array[1], array[2] = large, -large, _alternating(array[2], large)
    return example


def _alternating(row: npt.NDArray[Any], large: float) -> npt.NDArray[Any]:
    signs = np.where(np.arange(row.size) % 2, 1, -1).reshape(row.shape)
    return (signs * large).astype(row.dtype)


def _negative(batch: Arrays, names: list[str]) -> Arrays:
    example = rows(batch, [0] * 3)
    for name in names:
        array = example[name]
        if array.dtype.kind == "i":
            array[0], array[1] = -1, ~array[1]
            array[2] = _mixed(array[2], ~array[2])
    return example


def _large_integers(batch: Arrays, names: list[str]) -> Arrays:
    """Return consecutive integers that floats, or fewer bits, can't distinguish."""
    example = rows(batch, [0] * 3)
    for name in names:
        array = example[name]
        # Sums and differences of these still fit the dtype.
        top = np.iinfo(array.dtype).max // 8
        large = (top - np.arange(array[0].size) % 7).astype(array.dtype)
        large = large.reshape(array[0].shape)
        array[0] = large
        array[1] = -large if array.dtype.kind == "i" else large // 3
        array[2] = _mixed(array[2], large)
    return example


def _mixed(row: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a row with every second value from another row."""
    turns = np.arange(row.size).reshape(row.shape) % 2
    return np.where(turns, row, other)


def _counts(served: Served, names: list[str]) -> bool:
    """Return whether integers may define a size, or a number of iterations."""
    concrete = served.function.get_concrete_function()
    # Captured tensors come after the inputs.
    given = dict(zip(sorted(served.inputs), concrete.inputs, strict=False))
    found: set[Any] = set()
    ends = [given[name] for name in names]
    while ends:
        tensor = ends.pop()
        if tensor.ref() in found:
            continue
        found.add(tensor.ref())
        for user in tensor.consumers():
            if any(True for _ in functions(user.node_def)):
                return True
            sizes = user.inputs if user.type == "Range" else list(user.inputs)[1:]
            if user.type in _SIZED and any(size is tensor for size in sizes):
                return True
            if user.type not in _SIZES:
                ends += user.outputs
    return False


def _rounded(served: Served) -> frozenset[str]:
    """Return the outputs that depend on integers that were cast to floats."""
    graph = served.function.get_concrete_function().graph
    casts = [
        output
        for op in graph.get_operations()
        if op.type == "Cast" and op.inputs[0].dtype.is_integer
        for output in op.outputs
        if output.dtype.is_floating
    ]
    dependent = behind(casts)
    outputs = zip(sorted(served.outputs), graph.outputs, strict=True)
    return frozenset(name for name, tensor in outputs if tensor.ref() in dependent)
