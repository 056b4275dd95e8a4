"""TensorFlow operators that tf2onnx doesn't know, or that it converts wrongly."""

from collections.abc import Callable
from typing import Any

import numpy as np

from keras_distill.export import onnx_convolutions
from keras_distill.export.onnx_nodes import Nodes

# Takes tf2onnx' graph, the node to convert, its name and no arguments.
Handler = Callable[[Any, Any, str, list[Any]], None]


def handlers() -> dict[str, tuple[Handler, list[Any]]]:
    """Return what tf2onnx takes as `custom_op_handlers`."""
    by_operator: dict[str, Handler] = {
        "Conv2DBackpropInput": onnx_convolutions.transposed_convolution,
        "Conv3D": onnx_convolutions.convolution_3d,
        "Conv3DBackpropInputV2": onnx_convolutions.transposed_convolution,
        "Erfc": _erfc,
    }
    return {name: (handler, []) for name, handler in by_operator.items()}


def _erfc(graph: Any, node: Any, name: str, arguments: list[Any]) -> None:
    """Make `1 - erf(x)` of `erfc(x)`, which the exact `gelu` is made of."""
    import onnx

    nodes = Nodes(graph, node)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(graph.get_dtype(node.output[0]))
    one = nodes.constant(1, dtype)
    nodes.finish(nodes.make("Sub", one, nodes.make("Erf", node.input[0])))
