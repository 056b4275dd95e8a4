"""What is inside of the files, read by other means than the code under test."""

import numpy as np


def onnx_nodes(path):
    """Every node, those inside of loops and branches too."""
    import onnx

    return list(_nodes(onnx.load(path).graph))


def onnx_operators(path):
    return {node.op_type for node in onnx_nodes(path)}


def onnx_weights(path, least=1):
    """Pairs of type and number of values of the constants with at least so many."""
    import onnx

    graphs = [onnx.load(path).graph]
    for node in _nodes(graphs[0]):
        graphs += [a.g for a in node.attribute if a.HasField("g")]
    return [
        (onnx.TensorProto.DataType.Name(tensor.data_type), int(np.prod(tensor.dims)))
        for graph in graphs
        for tensor in graph.initializer
        if np.prod(tensor.dims) >= least
    ]


def litert_model(path):
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes()))


def litert_operators(path):
    """Names of the operators, as `CONV_2D`."""
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items()}
    return {names[code.builtinCode] for code in litert_model(path).operatorCodes}


def litert_tensors(path, least=0):
    """Pairs of type and number of values: of the constants with at least so many."""
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.TensorType).items()}
    model = litert_model(path)
    return [
        (names[tensor.type], int(np.prod(tensor.shape)))
        for graph in model.subgraphs
        for tensor in graph.tensors
        if not least
        or model.buffers[tensor.buffer].data is not None
        and np.prod(tensor.shape) >= least
    ]


def _nodes(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)
