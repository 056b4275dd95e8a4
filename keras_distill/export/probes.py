"""Inputs that examples seldom contain: other lengths, unusual values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_distill.export import looks
from keras_distill.export.batches import Arrays, pieces, rows
from keras_distill.export.extremes import MOST_INPUTS, extremes
from keras_distill.export.serving import Served, tensors_of, trace


@dataclass(frozen=True)
class Probe:
    """Further inputs for the comparison with Keras, and Keras' outputs.

    Attributes:
        what: A description of the inputs, for errors.
        cases: Pairs of named inputs and named outputs.
        remedy: The advice if an artefact differs.
        cleaned: Whether outputs are compared only where Keras' aren't NaN.
        finite: Whether outputs are compared only where Keras' are finite.
        outputs: The names of the outputs to compare; None for all.
        compared: Whether values must be Keras'. If not, they must only be finite where
            Keras' are.
    """

    what: str
    cases: list[tuple[Arrays, Arrays]]
    remedy: str
    cleaned: bool = False
    finite: bool = False
    outputs: frozenset[str] | None = None
    compared: bool = True


def probes(served: Served, batch: Arrays) -> list[Probe]:
    """Return the probes on which every artefact is compared besides the examples.

    They are made from the first example. Keras runs them here, once.

    Args:
        served: The model.
        batch: Its named inputs.
    """
    first = rows(batch, [0])
    return [
        *_lengths(served, first),
        *_not_finite(served, batch),
        *_extremes(served, batch),
    ]


def _lengths(served: Served, first: Arrays) -> Iterator[Probe]:
    """Yield a longer and a shorter example if sizes are open.

    All open sizes are doubled or halved together, as inputs may need the same length. A
    size that Keras itself refuses, or for which it returns NaN, is left out.
    """
    if not has_open_sizes(served):
        return
    for longer in (True, False):
        example = {
            name: _resized(array, served.inputs[name], longer)
            for name, array in first.items()
        }
        shapes = {name: array.shape[1:] for name, array in example.items()}
        if shapes == {name: array.shape[1:] for name, array in first.items()}:
            continue
        case = _case(served, example)
        if case is not None and refused_sizes(served, case[0]) is None:
            yield Probe(
                f"inputs of another size than the examples', {shapes}",
                [case],
                "Build the model with fixed sizes, as `keras.Input((224, 224, 3))`",
            )


def _resized(
    array: npt.NDArray[Any], spec: tf.TensorSpec, longer: bool
) -> npt.NDArray[Any]:
    for axis, size in enumerate(tuple(spec.shape)):
        if axis and size is None:
            length = array.shape[axis]
            indices = range(2 * length if longer else (length + 1) // 2)
            array = np.take(array, indices, axis, mode="wrap")
    return array


def _case(served: Served, example: Arrays) -> tuple[Arrays, Arrays] | None:
    if served.batch_size is not None:
        example, _ = next(pieces(example, served.batch_size))
    outputs = _outputs(served, example)
    if outputs is None or any(_has_nan(array) for array in outputs.values()):
        return None
    return example, outputs


def refused_sizes(served: Served, example: Arrays) -> Exception | None:
    """Return the error of tracing an example's sizes; None without an error.

    TensorFlow checks sizes only in a graph. For an input that is shorter than its
    kernel, an eager convolution may return arbitrary values from memory.
    """
    specs = {
        name: tf.TensorSpec(array.shape, served.inputs[name].dtype, name=name)
        for name, array in example.items()
    }
    try:
        trace(served.call, specs).get_concrete_function()
    except Exception as error:  # Any error of Keras for a size that it can't compute.
        return error
    return None


def has_open_sizes(served: Served) -> bool:
    """Return whether an input has an axis of open size besides the batch."""
    return any(None in tuple(spec.shape)[1:] for spec in served.inputs.values())


def _outputs(served: Served, example: Arrays) -> Arrays | None:
    """Run Keras; return None if Keras itself fails: there is nothing to compare."""
    try:
        with tf.device("/CPU:0"):
            given = served.call(tensors_of(example))
    except Exception:  # Any error of Keras for a size or value it can't compute.
        return None
    return {name: given[name].numpy() for name in given}


def _not_finite(served: Served, batch: Arrays) -> Iterator[Probe]:
    """Yield rows of infinities, NaN and zeros if the graph tests for them."""
    floats = [name for name, spec in served.inputs.items() if spec.dtype.is_floating]
    largest = max((_largest(batch[name]) for name in floats), default=0.0)
    found = looks.find(served, largest)
    if not found.operators or not floats:
        return
    groups = [[name] for name in floats]
    if len(floats) > MOST_INPUTS:
        groups = [floats]
    cases = [
        case
        for names in groups
        for case in _cases(served, _odd_rows(rows(batch, [0]), names))
    ]
    yield Probe(
        "rows with +inf, -inf, NaN or 0, which `model` looks for with "
        f"{', '.join(found.operators)}",
        cases,
        "Clean such values before they reach the model, in the data or by "
        "`split_preprocessing`, or write the test otherwise, as "
        "`keras.ops.clip` for infinities",
        cleaned=True,
        outputs=found.outputs,
    )


def _extremes(served: Served, batch: Arrays) -> Iterator[Probe]:
    """Yield rows of zeros, negative integers and large values."""
    remedy = (
        "Build the model without what is named here, or keep such values from it, in "
        "the data or by `split_preprocessing`"
    )
    for extreme in extremes(served, batch):
        cases = _cases(served, extreme.inputs)
        others = frozenset(served.outputs) - extreme.compared
        for outputs, compared in ((extreme.compared, True), (others, False)):
            if cases and outputs:
                yield Probe(
                    extreme.what,
                    cases,
                    remedy,
                    finite=True,
                    outputs=outputs,
                    compared=compared,
                )


def _cases(served: Served, example: Arrays) -> list[tuple[Arrays, Arrays]]:
    """Run Keras on rows; leave out batches for which it fails."""
    size = served.batch_size
    batches = [piece for piece, _ in pieces(example, size)] if size else [example]
    given = [(piece, _outputs(served, piece)) for piece in batches]
    return [(piece, outputs) for piece, outputs in given if outputs is not None]


def _odd_rows(first: Arrays, names: list[str]) -> Arrays:
    values = (np.inf, -np.inf, np.nan, 0.0)
    example = rows(first, [0] * (len(values) + 1))
    for name in names:
        array = example[name].copy()
        for row, value in enumerate(values):
            array[row] = value
        # The last row has all of these values besides usual ones.
        mixed = array[-1].reshape(-1)
        for start, value in enumerate(values):
            mixed[start :: len(values) + 1] = value
        array[-1] = mixed.reshape(array.shape[1:])
        example[name] = array
    return example


def _has_nan(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind not in "OSU" and bool(
        np.isnan(array.astype(np.float64)).any()
    )


def _largest(array: npt.NDArray[Any]) -> float:
    magnitudes = np.abs(array.astype(np.float64))
    return float(magnitudes.max(initial=0.0, where=np.isfinite(magnitudes)))
