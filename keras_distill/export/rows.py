"""The check whether a row's outputs depend on the other rows of its batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_distill.export import signature
from keras_distill.export.batches import Arrays, pieces, reason, rows, size_of
from keras_distill.export.portability import described, is_graph
from keras_distill.export.serving import Served, tensors_of

# Rounding differs between batch sizes by this, relative to the largest magnitude.
_ROUNDING = {"float16": 5e-2, "bfloat16": 1e-1}
_ROUNDING_ELSE = 1e-4
_MASK = 1e4
# How many rows are run by themselves.
_ALONE = 4
_TINY = 1e-30


@dataclass(frozen=True)
class Dependence:
    """The dependence of rows on each other, or of outputs on chance.

    Attributes:
        part: `"model"` or `"preprocessing"`.
        layer: The first layer whose rows depend on each other; None if unknown.
        output: An output that differs.
        difference: The change of that output in one row.
        repeats: Whether the same batch has the same outputs twice.
        failure: The rows that Keras can't compute without the others, and its error.
    """

    part: str
    layer: str | None
    output: str
    difference: float
    repeats: bool = True
    failure: str | None = None

    def __str__(self) -> str:
        where = f"`{self.part}`" + (f" in the layer {self.layer}" if self.layer else "")
        if not self.repeats:
            return (
                f"The outputs of {where} change from call to call on one batch, by "
                f"{self.difference:.3g} in {self.output!r}: they are random or depend "
                "on earlier calls. Switch that off with `training=False`"
            )
        if self.failure is not None:
            return fails_alone(where, self.failure)
        return (
            f"The rows of a batch change each other's outputs in {where}: "
            f"{self.output!r} of a row changes by {self.difference:.3g} with the rows "
            "beside it. A server that batches requests then answers each by its "
            "neighbours. Export with `batch_size=1`, or compute each row by itself, "
            "without the batch axis in maxima, means or sums"
        )


def fails_alone(where: str, failure: str) -> str:
    """Return the advice for a row that a model can't compute without other rows."""
    return (
        f"The rows of a batch depend on each other in {where}, which fails for "
        f"{failure}. A server that gets it without longer ones beside it fails too. "
        "Give all rows one length, as with "
        "`TextVectorization(output_sequence_length=...)`"
    )


def dependence(served: Served, batch: Arrays, raw: Arrays | None) -> Dependence | None:
    """Compare the outputs of rows in the batch with those in other batches, in Keras.

    Each half of the batch and each of the first rows is run by itself, which costs
    about as much as one more call. If the batch has a single row, it is run between
    invented rows. These keep its whole numbers, which may be ids of a limited range.

    Args:
        served: The model.
        batch: Named inputs of the model.
        raw: The raw features that they were made from; None without a preprocessing.
    """
    if served.batch_size == 1:
        return None
    found = None
    if served.raw is not None and raw is not None:
        calls = served.raw.preprocessing, served.raw.call
        found = _of_part("preprocessing", *calls, raw, served.batch_size)
    return found or _of_part(
        "model", served.model, served.call, batch, served.batch_size
    )


def _of_part(
    part: str, model: Any, call: Any, batch: Arrays, batch_size: int | None
) -> Dependence | None:
    def run(arrays: Arrays) -> Arrays:
        with tf.device("/CPU:0"):
            outputs = call(tensors_of(arrays))
        return {name: outputs[name].numpy() for name in outputs}

    rounding = _ROUNDING.get(model.compute_dtype, _ROUNDING_ELSE)
    if batch_size is not None:
        batch, _ = next(pieces(batch, batch_size))
    expected = run(batch)
    worst = _worst(run, batch, expected, batch_size, rounding)
    if worst is None:
        return None
    if isinstance(worst, str):
        return Dependence(part, None, next(iter(expected)), np.inf, failure=worst)
    comparison, name, difference = worst
    again = {n: _difference(run(batch)[n], value) for n, value in expected.items()}
    if any(relative > 0 for relative, _ in again.values()):
        return Dependence(part, None, name, again[name][1] or difference, False)
    layer = _first_layer(model, batch, comparison, rounding)
    return Dependence(part, layer, name, difference)


# Rows of the batch, another batch that contains them, and the index of the first there.
_Comparison = tuple[slice, Arrays, int]


def _worst(
    run: Callable[[Arrays], Arrays],
    batch: Arrays,
    expected: Arrays,
    batch_size: int | None,
    rounding: float,
) -> tuple[_Comparison, str, float] | str | None:
    """Return a comparison in which an output differs, its name and the difference.

    If no output differs beyond rounding, return which rows can't be computed without
    the others, and why; None if all can.
    """
    failures: list[tuple[int, str]] = []
    for comparison in _comparisons(batch, batch_size):
        part, other, begin = comparison
        try:
            given = run(other)
        except Exception as error:  # Any error of Keras for rows it can't compute.
            if size_of(batch) == 1:
                return None  # The model can't compute with the invented values.
            count = part.stop - part.start
            failures.append((count, f"{_named(part)}: {reason(error)}"))
            continue
        for name, wanted in expected.items():
            want = wanted[part]
            got = given[name][begin : begin + len(want)]
            relative, absolute = _difference(got, want)
            if relative > rounding:
                return comparison, name, absolute
    # The failure with the fewest rows is the most specific.
    return min(failures, key=lambda it: it[0])[1] if failures else None


def _named(part: slice) -> str:
    if part.stop - part.start == 1:
        return f"row {part.start} by itself"
    return f"the rows {part.start} to {part.stop - 1} by themselves"


def _comparisons(batch: Arrays, batch_size: int | None) -> Iterator[_Comparison]:
    size = size_of(batch)
    if size == 1:
        yield slice(0, 1), _between_others(batch), 1
        return
    # Each half lacks the rows of the other, and a single row lacks all others.
    alone = [slice(row, row + 1) for row in range(min(size, _ALONE))]
    for part in (slice(0, size // 2), slice(size // 2, size), *alone):
        some = rows(batch, part)
        yield part, next(pieces(some, batch_size))[0] if batch_size else some, 0


def _between_others(row: Arrays) -> Arrays:
    """Add invented rows, with larger floats and the same whole numbers and text."""
    others = {name: _invented(row[name]).astype(row[name].dtype) for name in row}
    return {
        name: np.concatenate([others[name], array, others[name]])
        for name, array in row.items()
    }


def _invented(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if not np.issubdtype(array.dtype, np.inexact) and array.dtype.kind != "V":
        return array
    values = array.astype(np.float64)
    magnitude = np.clip(10 * np.abs(values).max(initial=0), 1, 1e4)
    noise = magnitude * np.random.default_rng(0).standard_normal(array.shape)
    return np.where(values == np.round(values), values, noise)


def _difference(got: npt.NDArray[Any], want: npt.NDArray[Any]) -> tuple[float, float]:
    """Return the largest relative and absolute difference of finite values."""
    if got.shape != want.shape:
        return np.inf, np.inf
    if want.dtype.kind in "OSU":
        unequal = float((got != want).any())
        return unequal, unequal
    got, want = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(got) & np.isfinite(want)
    distance = np.abs(np.subtract(got, want, where=finite, out=np.zeros(want.shape)))
    magnitude = np.abs(np.where(finite, want, 0))
    # Masks, e.g. -1e9 in padded places, don't count for the scale of other values.
    scale = magnitude.max(initial=0, where=magnitude < _MASK)
    relative = distance / np.maximum(np.maximum(scale, magnitude), _TINY)
    return float(relative.max(initial=0)), float(distance.max(initial=0))


def _first_layer(
    model: Any, batch: Arrays, comparison: _Comparison, rounding: float
) -> str | None:
    """Return the first layer of a graph whose rows differ; None without one."""
    if not is_graph(model):
        return None
    graph = getattr(model, "_functional", model)  # Sequential models contain a graph.
    depths = sorted(graph._nodes_by_depth, reverse=True)
    nodes = [node for depth in depths for node in graph._nodes_by_depth[depth]]
    tensors = [tensor for node in nodes for tensor in node.outputs]
    pack = signature.packing(graph, None)
    every = keras.Model(graph.input, tensors)
    part, other, begin = comparison
    pairs = zip(
        tensors,
        keras.tree.flatten(every(pack(tensors_of(other)), training=False)),
        keras.tree.flatten(every(pack(tensors_of(batch)), training=False)),
        strict=True,
    )
    for tensor, given, expected in pairs:
        # Sparse tensors, and those whose first axis isn't the batch, are skipped.
        dense = isinstance(expected, tf.Tensor)
        if not dense or expected.shape[:1] != (size_of(batch),):
            continue
        want = expected.numpy()[part]
        got = given.numpy()[begin : begin + len(want)]
        if _difference(got, want)[0] > rounding:
            return described([tensor._keras_history.operation])
    return None
