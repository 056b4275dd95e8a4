"""TensorFlow operators that tf2onnx doesn't know or converts wrongly."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_distill.export import onnx_convolutions, onnx_integers
from keras_distill.export.onnx_nodes import Nodes, dtype_of

# Called with tf2onnx' graph, the node to convert, its name and no arguments.
Handler = Callable[[Any, Any, str, list[Any]], None]
# Below this magnitude, 1 + x would lose digits of x. The forms with `Tanh` and `Atanh`
# don't.
_SMALL = 0.5


def handlers() -> dict[str, tuple[Handler, list[Any]]]:
    """Return the argument `custom_op_handlers` of tf2onnx."""
    by_operator: dict[str, Handler] = {
        "Bitcast": _bitcast,
        "Conv2DBackpropInput": onnx_convolutions.transposed_convolution,
        "Conv3D": onnx_convolutions.convolution_3d,
        "Conv3DBackpropInputV2": onnx_convolutions.transposed_convolution,
        "Erfc": _erfc,
        "Expm1": _expm1,
        "FloorDiv": onnx_integers.floor_divide,
        "FloorMod": onnx_integers.floor_mod,
        "Greater": onnx_integers.comparison,
        "LeftShift": onnx_integers.shift,
        "Less": onnx_integers.comparison,
        "Log1p": _log1p,
        "Pow": onnx_integers.power,
        "RightShift": onnx_integers.shift,
        "Select": _select,
        "SelectV2": _select,
        "Sum": onnx_integers.total,
        "TopKV2": onnx_integers.top_k,
    }
    return {name: (handler, []) for name, handler in by_operator.items()}


def _bitcast(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Compute a number's sign bit; for a zero, from the sign of its reciprocal."""
    nodes, [x] = Nodes(graph, node), node.input
    dtype = dtype_of(graph, x)
    users = graph.find_output_consumers(node.output[0])
    if dtype != np.float32 or not all(map(_compares_with_zero, users)):
        raise ValueError(f"Tensorflow op [{node.name}: Bitcast] is not supported")
    zero, one = nodes.constant(0, dtype), nodes.constant(1, dtype)
    is_zero, inverse = nodes.make("Equal", x, zero), nodes.make("Div", one, x)
    is_negative = nodes.make("Less", nodes.make("Where", is_zero, inverse, x), zero)
    nodes.finish(nodes.make("Neg", nodes.cast(is_negative, nodes.dtype)))


def _compares_with_zero(node: Any) -> bool:
    zero = node.inputs[1]
    return node.type == "Less" and zero.is_const() and not zero.get_tensor_value()


def _erfc(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Write `erfc(x)`, which the exact `gelu` uses, as `1 - erf(x)`."""
    nodes = Nodes(graph, node)
    one = nodes.constant(1, nodes.dtype)
    nodes.finish(nodes.make("Sub", one, nodes.make("Erf", node.input[0])))


def _expm1(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Write `expm1(x)` as 2 t / (1 - t), with t = tanh(x / 2), or as exp(x) - 1."""
    nodes, [x] = Nodes(graph, node), node.input
    one, two = nodes.constant(1, nodes.dtype), nodes.constant(2, nodes.dtype)
    tanh = nodes.make("Tanh", nodes.make("Div", x, two))
    near = nodes.make("Div", nodes.make("Mul", two, tanh), nodes.make("Sub", one, tanh))
    far = nodes.make("Sub", nodes.make("Exp", x), one)
    nodes.finish(nodes.make("Where", _is_small(nodes, x), near, far))


def _log1p(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Write `log1p(x)` as 2 atanh(x / (2 + x)) or as log(1 + x)."""
    nodes, [x] = Nodes(graph, node), node.input
    one, two = nodes.constant(1, nodes.dtype), nodes.constant(2, nodes.dtype)
    ratio = nodes.make("Div", x, nodes.make("Add", two, x))
    near = nodes.make("Mul", two, nodes.make("Atanh", ratio))
    far = nodes.make("Log", nodes.make("Add", one, x))
    nodes.finish(nodes.make("Where", _is_small(nodes, x), near, far))


def _select(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Select by `Where`. tf2onnx' products with 0 and 1 are NaN for infinities."""
    from tf2onnx.onnx_opset.controlflow import Select

    if np.issubdtype(Nodes(graph, node).dtype, np.floating):
        node.set_attr("handles_nan", True)
    Select.version_9(graph, node)


def _is_small(nodes: Nodes, x: str) -> str:
    return nodes.make("Less", nodes.make("Abs", x), nodes.constant(_SMALL, nodes.dtype))
