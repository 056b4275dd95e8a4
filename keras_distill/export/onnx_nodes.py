"""ONNX nodes that replace a TensorFlow node in tf2onnx' graph."""

from typing import Any

import numpy as np
import numpy.typing as npt


class Nodes:
    """A maker of the ONNX nodes that replace one TensorFlow node.

    Tensors are identified by their names.

    Args:
        graph: tf2onnx' graph.
        node: The node that they replace.
    """

    def __init__(self, graph: Any, node: Any) -> None:
        self._graph = graph
        self._node = node
        # The dtype of the node's first output, for constants.
        self.dtype = dtype_of(graph, node.output[0])

    def make(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return its output."""
        [output] = self.several(operator, 1, *inputs, **attributes)
        return output

    def several(
        self, operator: str, count: int, *inputs: str, **attributes: Any
    ) -> list[str]:
        """Add a node with `count` outputs; return them."""
        made = self._graph.make_node(
            operator, list(inputs), attributes, output_count=count
        )
        return [str(output) for output in made.output]

    def cast(self, tensor: str, dtype: npt.DTypeLike) -> str:
        """Add a cast; return its output."""
        import onnx

        to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        output = self.make("Cast", tensor, to=to)
        self._graph.set_dtype(output, to)
        return output

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """Add a constant; return its name."""
        from tf2onnx import utils

        name = utils.make_name(f"{self._node.name}_constant")
        return str(self._graph.make_const(name, np.asarray(value, dtype)).output[0])

    def one_axis(self) -> str:
        """Add the constant [-1], the shape of a vector for `Reshape`."""
        return self.constant([-1])

    def finish(self, *outputs: str) -> None:
        """Remove the node, and replace its outputs by `outputs`."""
        replaced = list(self._node.output)
        shapes = [self._graph.get_shape(tensor) for tensor in replaced]
        dtypes = [self._graph.get_dtype(tensor) for tensor in replaced]
        self._graph.remove_node(self._node.name)
        for output, tensor, shape, dtype in zip(
            outputs, replaced, shapes, dtypes, strict=True
        ):
            self._graph.make_node(
                "Identity", [output], outputs=[tensor], shapes=[shape], dtypes=[dtype]
            )


def dtype_of(graph: Any, tensor: str) -> "np.dtype[Any]":
    """Return the dtype of a tensor in tf2onnx' graph."""
    import onnx

    found: np.dtype[Any] = onnx.helper.tensor_dtype_to_np_dtype(graph.get_dtype(tensor))
    return found
