"""Operators on integers that tf2onnx or ONNX Runtime computes in floats, or wrongly."""

from typing import Any

import numpy as np
import numpy.typing as npt

from keras_distill.export.onnx_nodes import Nodes, dtype_of

# The dtypes that ONNX Runtime computes with. Other integers are cast to int64.
_COMPUTED = (np.float16, np.float32, np.float64, np.int32, np.int64)
_MOST_FACTORS = 64


def floor_divide(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Round quotients down: tf2onnx rounds those of integers towards 0."""
    if not _is_signed(graph, node):
        from tf2onnx.onnx_opset.math import FloorDiv

        FloorDiv.version_6(graph, node)
        return
    nodes = Nodes(graph, node)
    x, y = _computed(graph, nodes, node.input)
    quotient = nodes.make("Div", x, y)
    rest = nodes.make("Sub", x, nodes.make("Mul", quotient, y))
    is_below = nodes.make("Not", nodes.make("Equal", rest, nodes.make("Mod", x, y)))
    below = nodes.cast(is_below, dtype_of(graph, x))
    nodes.finish(nodes.cast(nodes.make("Sub", quotient, below), nodes.dtype))


def floor_mod(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Give the remainder the sign of the divisor, as ONNX' own operator does."""
    if not _is_signed(graph, node):
        from tf2onnx.onnx_opset.math import FloorMod

        FloorMod.version_7(graph, node)
        return
    nodes = Nodes(graph, node)
    nodes.finish(nodes.make("Mod", *node.input))


def comparison(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Compare integers as int64; tf2onnx would round them to float32.

    Counters of loops are int64 too, although tf2onnx may record another dtype.
    """
    nodes, tensors = Nodes(graph, node), list(node.input)
    if np.issubdtype(dtype_of(graph, tensors[0]), np.integer):
        tensors = [nodes.cast(tensor, np.int64) for tensor in tensors]
    nodes.finish(nodes.make(node.type, *tensors))


def top_k(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Sort values in their own dtype; tf2onnx would round them to float32."""
    nodes = Nodes(graph, node)
    [x] = _computed(graph, nodes, node.input[:1])
    count = nodes.make("Reshape", nodes.cast(node.input[1], np.int64), nodes.one_axis())
    made = nodes.several("TopK", 2, x, count, sorted=node.get_attr_value("sorted", 1))
    nodes.finish(
        *(
            nodes.cast(output, dtype_of(graph, replaced))
            for output, replaced in zip(made, node.output, strict=True)
        )
    )


def total(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Add up integers exactly, although ONNX Runtime adds them up in float64.

    float64 is exact for integers up to 2**53. So int64 is added up in two halves.
    """
    nodes = Nodes(graph, node)
    if not np.issubdtype(nodes.dtype, np.integer):
        from tf2onnx.onnx_opset.reduction import ReduceOpBase

        node.type = "ReduceSum"
        ReduceOpBase.version_13(graph, node)
        return
    axes = nodes.make("Reshape", nodes.cast(node.input[1], np.int64), nodes.one_axis())
    options = {
        "keepdims": node.get_attr_value("keep_dims", 0),
        "noop_with_empty_axes": 1,
    }
    x = nodes.cast(node.input[0], np.int64)
    if nodes.dtype.itemsize < 8:
        whole = nodes.make("ReduceSum", x, axes, **options)
    else:
        step = nodes.constant(2**32)
        upper = nodes.make("Div", x, step)
        lower = nodes.make("Sub", x, nodes.make("Mul", upper, step))
        upper, lower = (
            nodes.make("ReduceSum", half, axes, **options) for half in (upper, lower)
        )
        whole = nodes.make("Add", nodes.make("Mul", upper, step), lower)
    nodes.finish(nodes.cast(whole, nodes.dtype))


def power(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Write powers of integers as products; ONNX Runtime would use float64."""
    exponent = node.inputs[1]
    nodes = Nodes(graph, node)
    if not (exponent.is_const() and np.issubdtype(nodes.dtype, np.integer)):
        return
    values = exponent.get_tensor_value(as_list=False)
    if values.size != 1 or not 0 < values.item() <= _MOST_FACTORS:
        return
    [x] = _computed(graph, nodes, node.input[:1])
    square, result, left = x, "", int(values.item())
    while left:
        if left % 2:
            result = nodes.make("Mul", result, square) if result else square
        left //= 2
        square = nodes.make("Mul", square, square) if left else square
    nodes.finish(nodes.cast(result, nodes.dtype))


def shift(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Shift the bits of signed integers; ONNX shifts only unsigned ones.

    To the right, negative integers are shifted as complements and keep their sign.
    """
    if not _is_signed(graph, node):
        from tf2onnx.onnx_opset.math import BitShift

        BitShift.version_11(graph, node)
        return
    nodes = Nodes(graph, node)
    bits = nodes.dtype.itemsize * 8
    x, count = (nodes.cast(tensor, np.int64) for tensor in node.input)
    limits = nodes.constant(0), nodes.constant(bits - 1)
    count = nodes.cast(nodes.make("Clip", count, *limits), np.uint64)
    if node.type == "LeftShift":
        moved = nodes.make(
            "BitShift", nodes.cast(x, np.uint64), count, direction="LEFT"
        )
        nodes.finish(nodes.cast(moved, nodes.dtype))
        return
    is_negative = nodes.make("Less", x, nodes.constant(0))

    def folded(tensor: str) -> str:
        return nodes.make(
            "Where", is_negative, nodes.make("BitwiseNot", tensor), tensor
        )

    positive = nodes.cast(folded(x), np.uint64)
    moved = nodes.make("BitShift", positive, count, direction="RIGHT")
    nodes.finish(nodes.cast(folded(nodes.cast(moved, np.int64)), nodes.dtype))


def _is_signed(graph: Any, node: Any) -> bool:
    return np.issubdtype(dtype_of(graph, node.input[0]), np.signedinteger)


def _computed(graph: Any, nodes: Nodes, tensors: list[str]) -> list[str]:
    """Cast dtypes that ONNX Runtime doesn't compute with to int64."""
    dtype: npt.DTypeLike = dtype_of(graph, tensors[0])
    if dtype in _COMPUTED:
        return list(tensors)
    return [nodes.cast(tensor, np.int64) for tensor in tensors]
