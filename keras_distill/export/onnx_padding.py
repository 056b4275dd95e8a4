"""Padding before pools, protected from a wrong optimisation of ONNX Runtime."""

from typing import Any

import numpy as np

from keras_distill.export.onnx_graphs import graphs

_POOLS = {"AveragePool", "MaxPool"}
# Nodes that a runtime may move behind the pool, or remove.
_MOVABLE = {
    "Cast",
    "DequantizeLinear",
    "Identity",
    "QuantizeLinear",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}


def keep_padding(model: Any) -> None:
    """Give each `Pad` before a pool the input `axes`, with all of its axes.

    ONNX Runtime's `Pad_Fusion` replaces a `Pad` with zeros by the pool's own padding.
    That padding counts as minus infinity for a maximum, and doesn't count for a mean
    (microsoft/onnxruntime issues 22177 and 24737). A `Pad` with `axes` isn't replaced.
    """
    for graph in graphs(model.graph):
        ranks = _ranks(graph)
        readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        for node in graph.node:
            is_pad = node.op_type == "Pad" and len(node.input) < 4
            # If `pads` isn't constant, ONNX Runtime fuses nothing.
            if is_pad and node.input[1] in ranks and _reaches_pool(node, readers):
                axes = _all_axes(graph, ranks[node.input[1]])
                value = [*node.input[2:], ""][0]
                node.input[:] = [*node.input[:2], value, axes]


def _ranks(graph: Any) -> dict[str, int]:
    """Return the rank of the input of a `Pad` with each constant as `pads`, by name."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    return {
        name: tensor.dims[0] // 2
        for name, tensor in constants.items()
        if len(tensor.dims) == 1
    }


def _reaches_pool(node: Any, readers: dict[str, list[Any]]) -> bool:
    following = [reader for name in node.output for reader in readers.get(name, [])]
    return any(
        reader.op_type in _POOLS
        or (reader.op_type in _MOVABLE and _reaches_pool(reader, readers))
        for reader in following
    )


def _all_axes(graph: Any, rank: int) -> str:
    import onnx

    name = f"all_{rank}_axes"
    if all(tensor.name != name for tensor in graph.initializer):
        values = np.arange(rank, dtype=np.int64)
        graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return name
