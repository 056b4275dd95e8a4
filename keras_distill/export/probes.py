"""Inputs that the example batch doesn't show: other lengths, infinities and NaN."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_distill.export.batches import Arrays, pieces, rows
from keras_distill.export.serving import Served, tensors_of

# Operators that ask whether a value is finite.
_TESTS = {"IsNan", "IsInf", "IsFinite"}
_COMPARISONS = {"Less", "LessEqual", "Greater", "GreaterEqual", "Equal", "NotEqual"}
# What passes the values of an input on one by one, so that a comparison behind it is
# one of the input.
_ELEMENTWISE = {
    *("Abs", "AddV2", "BatchToSpaceND", "Cast", "ConcatV2", "Div", "ExpandDims"),
    *("GatherV2", "Identity", "IdentityN", "Mul", "Neg", "Pack", "RealDiv", "Reshape"),
    *("Slice", "Split", "SplitV", "Squeeze", "StridedSlice", "Sub", "Transpose"),
    *("Unpack",),
}
_SELECTIONS = {"Select", "SelectV2"}
_LOGIC = {"LogicalAnd", "LogicalOr", "LogicalNot"}
# More inputs than this are probed together.
_MOST_INPUTS = 8


@dataclass(frozen=True)
class Probe:
    """A batch that the example batch doesn't show, and Keras' outputs.

    Attributes:
        what: What is special about it, for errors.
        cases: Pairs of named inputs and named outputs.
        remedy: What to do where an artefact differs.
        cleaned: Whether outputs are compared only where Keras gives no NaN.
    """

    what: str
    cases: list[tuple[Arrays, Arrays]]
    remedy: str
    cleaned: bool = False


def probes(served: Served, batch: Arrays) -> list[Probe]:
    """Return what every artefact is to be compared on besides the examples.

    They are made of the first example and run by Keras here, once.

    Args:
        served: The model.
        batch: Its named inputs.
    """
    first = rows(batch, [0])
    return [*_lengths(served, first), *_not_finite(served, first)]


def _lengths(served: Served, first: Arrays) -> Iterator[Probe]:
    """Yield a longer and a shorter example where sizes are open.

    All open sizes are doubled or halved together, as inputs may have to have one
    length. A size that Keras itself refuses, or gives NaN for, is no probe.
    """
    if not any(None in tuple(spec.shape)[1:] for spec in served.inputs.values()):
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
        if case is not None:
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
    try:
        with tf.device("/CPU:0"):
            given = served.call(tensors_of(example))
    except Exception:  # whatever Keras raises for a size that the model can't take
        return None
    outputs = {name: given[name].numpy() for name in given}
    return (
        None
        if any(_has_nan(array) for array in outputs.values())
        else (
            example,
            outputs,
        )
    )


def _not_finite(served: Served, first: Arrays) -> Iterator[Probe]:
    """Yield rows of infinities, NaN and zeros where the graph looks for them."""
    operators = _operators(served)
    floats = [name for name, spec in served.inputs.items() if spec.dtype.is_floating]
    if not operators or not floats:
        return
    groups = [[name] for name in floats]
    if len(floats) > _MOST_INPUTS:
        groups = [floats]
    size = served.batch_size
    cases = []
    for names in groups:
        example = _odd_rows(first, names)
        batches = [b for b, _ in pieces(example, size)] if size else [example]
        for batch in batches:
            with tf.device("/CPU:0"):
                given = served.call(tensors_of(batch))
            cases.append((batch, {name: given[name].numpy() for name in given}))
    yield Probe(
        "rows with +inf, -inf, NaN or 0, which `model` looks for with "
        f"{', '.join(operators)}",
        cases,
        "Clean such values before they reach the model, in the data or by "
        "`split_preprocessing`, or write the test otherwise, as "
        "`keras.ops.clip` for infinities",
        cleaned=True,
    )


def _odd_rows(first: Arrays, names: list[str]) -> Arrays:
    values = (np.inf, -np.inf, np.nan, 0.0)
    example = rows(first, [0] * (len(values) + 1))
    for name in names:
        array = example[name].copy()
        for row, value in enumerate(values):
            array[row] = value
        # The last has all of them beside usual values.
        mixed = array[-1].reshape(-1)
        for start, value in enumerate(values):
            mixed[start :: len(values) + 1] = value
        array[-1] = mixed.reshape(array.shape[1:])
        example[name] = array
    return example


def _operators(served: Served) -> list[str]:
    """Name the operators of the traced graph that look for infinities or NaN."""
    graph = served.function.get_concrete_function().graph
    operations = graph.get_operations()
    tests = [op for op in operations if op.type in _TESTS]
    named = [f"{op.type} ({_scope(op.name)})" for op in tests]
    library = graph.as_graph_def().library.function
    named += [
        node.op
        for function in library
        for node in function.node_def
        if node.op in _TESTS
    ]
    reached = _of_inputs(graph)
    named += [
        f"{op.type} ({_scope(op.name)})"
        for op in operations
        if op.type in _COMPARISONS
        and op.inputs[0].dtype.is_floating
        and any(tensor.ref() in reached for tensor in op.inputs)
        and _selects(op)
    ]
    return list(dict.fromkeys(named))


def _of_inputs(graph: Any) -> set[Any]:
    """Return the tensors that hold the values of float inputs, one by one."""
    inner = {id(tensor) for _, tensor in graph.captures}
    reached = {
        tensor.ref()
        for tensor in graph.inputs
        if id(tensor) not in inner and tensor.dtype.is_floating
    }
    for op in graph.get_operations():
        if op.type in _ELEMENTWISE and any(t.ref() in reached for t in op.inputs):
            reached.update(tensor.ref() for tensor in op.outputs)
    return reached


def _selects(op: Any) -> bool:
    """Whether a selection reads a comparison, also by way of other conditions."""
    consumers = [user for output in op.outputs for user in output.consumers()]
    return any(
        user.type in _SELECTIONS or (user.type in _LOGIC and _selects(user))
        for user in consumers
    )


def _scope(name: str) -> str:
    """Return the layer in the name of an operation: its scope."""
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 else name


def _has_nan(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind not in "OSU" and bool(
        np.isnan(array.astype(np.float64)).any()
    )
