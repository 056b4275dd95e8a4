"""Integer weights for ONNX files whose float weights are already rounded."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keras_distill.export.onnx_graphs import graphs

Array = npt.NDArray[Any]

# The axis of the output channels of each operator's weights, which are its input 1.
_CHANNELS = {"Conv": 0, "ConvTranspose": 1, "Gemm": None, "MatMul": None}
# The largest integers that weights were rounded to, in 8 and in 4 bits.
_LARGEST = (127, 7)
# The largest error of a multiple of a scale in float32.
_OFF = 1e-3


class _Integers(NamedTuple):
    """Weights as integers times a scale.

    Args:
        values: Integers from -127 to 127.
        scale: A single scale, or one for each channel.
        axis: The axis of the channels; None for a single scale.
    """

    values: Array
    scale: Array
    axis: int | None


def in_integers(model: Any) -> None:
    """Store weights that are integers times a scale as integers, in place.

    Models of `students.quantization_aware` have such weights. The values stay the same:
    an operator `DequantizeLinear` multiplies by the scale, and runtimes compute with
    the integers. Otherwise ONNX Runtime would round the floats again, to other
    integers, as it does if activations are rounded but weights are floats.
    """
    for graph in graphs(model.graph):
        _convert(graph)


def _convert(graph: Any) -> None:
    import onnx

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    readers = [node for node in graph.node if node.op_type in _CHANNELS]
    found = []
    for name in dict.fromkeys(node.input[1] for node in readers):
        axes = {_CHANNELS[node.op_type] for node in readers if node.input[1] == name}
        if name not in tensors or len(axes) > 1:
            continue
        weights = _as_integers(onnx.numpy_helper.to_array(tensors[name]), axes.pop())
        if weights is not None:
            graph.initializer.remove(tensors[name])
            found.append(_dequantized(graph, name, weights))
    others = list(graph.node)
    del graph.node[:]
    graph.node.extend([*found, *others])


def _as_integers(weights: Array, channels: int | None) -> _Integers | None:
    """Return weights as integers times a scale; None if they aren't."""
    if weights.dtype != np.float32 or weights.ndim < 2:
        return None
    for axis in dict.fromkeys((None, channels)):
        others = tuple(a for a in range(weights.ndim) if a != axis)
        most = np.abs(weights).max(axis=None if axis is None else others, keepdims=True)
        for largest in _LARGEST:
            scale = np.where(most == 0.0, 1.0, most / largest)
            multiples = weights / scale
            values = np.rint(multiples)
            if np.abs(multiples - values).max() < _OFF:
                # A single scale must be a scalar: a vector would mean channels.
                shape = () if axis is None else (-1,)
                return _Integers(values, scale.reshape(shape), axis)
    return None


def _dequantized(graph: Any, name: str, weights: _Integers) -> Any:
    """Add integers to a graph; return the node that converts them to floats."""
    import onnx

    parts = {
        f"{name}_integers": weights.values.astype("int8"),
        f"{name}_scale": weights.scale.astype("float32"),
        f"{name}_zero": np.zeros(weights.scale.shape, "int8"),
    }
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(values), part)
        for part, values in parts.items()
    )
    axis = {} if weights.axis is None else {"axis": weights.axis}
    return onnx.helper.make_node(
        "DequantizeLinear", list(parts), [name], f"{name}_dequantized", **axis
    )
