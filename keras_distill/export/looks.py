"""The operations of a traced model that test inputs for infinities or NaN."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill.export.graphs import behind, functions
from keras_distill.export.serving import Served

# Operators that test whether a value is finite.
_TESTS = {"IsNan", "IsInf", "IsFinite"}
_COMPARISONS = {"Less", "LessEqual", "Greater", "GreaterEqual", "Equal", "NotEqual"}
# Operators that keep the values of an input separate, so that a comparison of their
# output is a comparison of the input.
_ELEMENTWISE = {
    *("Abs", "AddV2", "BatchToSpaceND", "Cast", "ConcatV2", "Div", "ExpandDims"),
    *("GatherV2", "Identity", "IdentityN", "Mul", "Neg", "Pack", "RealDiv", "Reshape"),
    *("Slice", "Split", "SplitV", "Squeeze", "StridedSlice", "Sub", "Transpose"),
    *("Unpack",),
}
_SELECTIONS = {"Select", "SelectV2"}
_LOGIC = {"LogicalAnd", "LogicalOr", "LogicalNot"}


@dataclass(frozen=True)
class Looks:
    """The tests for infinities or NaN in a model.

    Attributes:
        operators: The operators, with their layers.
        outputs: The outputs that depend on them.
    """

    operators: list[str]
    outputs: frozenset[str]


def find(served: Served, largest: float) -> Looks:
    """Return the operators of the traced graph that test for infinities or NaN.

    Args:
        served: The model.
        largest: The largest magnitude among the examples. A comparison with a larger
            bound counts as a test. One with a smaller bound is part of an activation.
    """
    concrete = served.function.get_concrete_function()
    graph = concrete.graph
    reached = _of_inputs(graph)
    inner = _inner_tests(graph)
    operators: list[str] = []
    ends: list[Any] = []
    for op in graph.get_operations():
        names = [f"{op.type} ({_scope(op.name)})"]
        called = [inner.get(name, []) for name in functions(op.node_def)]
        if any(called):
            names = sum(called, [])
        elif op.type not in _TESTS and not _is_guard(op, reached, largest):
            continue
        operators += names
        ends += op.outputs
    outputs = zip(sorted(served.outputs), graph.outputs, strict=True)
    dependent = behind(ends)
    return Looks(
        list(dict.fromkeys(operators)),
        frozenset(name for name, tensor in outputs if tensor.ref() in dependent),
    )


def _is_guard(op: Any, reached: set[Any], largest: float) -> bool:
    """Return whether an input is compared with a large bound, or with itself."""
    if op.type not in _COMPARISONS or not op.inputs[0].dtype.is_floating:
        return False
    if not any(tensor.ref() in reached for tensor in op.inputs):
        return False
    constants = [_constant(tensor) for tensor in op.inputs]
    bound = max((np.abs(c).max() for c in constants if c is not None), default=0.0)
    if op.inputs[0] is not op.inputs[1] and bound <= largest:
        return False
    return bool(bound >= op.inputs[0].dtype.max) or _selects(op)


def _constant(tensor: Any) -> Any:
    """Return the values of a constant, also if it is broadcast to a shape."""
    while tensor.op.type in {"Fill", "BroadcastTo", "Cast", "Identity"}:
        tensor = tensor.op.inputs[1 if tensor.op.type == "Fill" else 0]
    return tf.get_static_value(tensor)


def _inner_tests(graph: Any) -> dict[str, list[str]]:
    """Return the tests in each function that the graph calls, also indirectly."""
    library = {f.signature.name: f for f in graph.as_graph_def().library.function}
    found: dict[str, list[str]] = {}

    def tests(name: str) -> list[str]:
        if name not in found:
            found[name] = []  # Ends the recursion if a function calls itself.
            for node in library[name].node_def if name in library else ():
                found[name] += [node.op] if node.op in _TESTS else []
                found[name] += [t for f in functions(node) for t in tests(f)]
        return found[name]

    return {name: tests(name) for name in library}


def _of_inputs(graph: Any) -> set[Any]:
    """Return the tensors that contain the values of float inputs, one by one."""
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
    """Return whether a selection reads a comparison, directly or in a condition."""
    consumers = [user for output in op.outputs for user in output.consumers()]
    return any(
        user.type in _SELECTIONS or (user.type in _LOGIC and _selects(user))
        for user in consumers
    )


def _scope(name: str) -> str:
    """Return the layer's name from the name of an operation: its scope."""
    parts = name.split("/")
    return parts[-2] if len(parts) > 1 else name
