"""Nodes in tf2onnx' graph, in place of one of TensorFlow's."""

from typing import Any

import numpy as np
import numpy.typing as npt


class Nodes:
    """Makes the ONNX nodes that one TensorFlow node becomes.

    Tensors are named by strings.

    Args:
        graph: tf2onnx' graph.
        node: The node that they replace.
    """

    def __init__(self, graph: Any, node: Any) -> None:
        import onnx

        self._graph = graph
        self._node = node
        # Of the node's output, for constants beside it.
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(
            graph.get_dtype(node.output[0])
        )

    def make(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; return its output."""
        made = self._graph.make_node(operator, list(inputs), attributes)
        return str(made.output[0])

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """Add a constant."""
        from tf2onnx import utils

        name = utils.make_name(f"{self._node.name}_constant")
        return str(self._graph.make_const(name, np.asarray(value, dtype)).output[0])

    def finish(self, output: str) -> None:
        """Let `output` take the place of the node's only output."""
        [replaced] = self._node.output
        shape, dtype = self._graph.get_shape(replaced), self._graph.get_dtype(replaced)
        self._graph.remove_node(self._node.name)
        self._graph.make_node(
            "Identity", [output], outputs=[replaced], shapes=[shape], dtypes=[dtype]
        )
