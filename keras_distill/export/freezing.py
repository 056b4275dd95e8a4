"""TensorFlow functions with variables, captures and calls replaced by their content."""

import uuid
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

# Marks the functions that XLA has to compile, and the nodes that call them.
_XLA = "_XlaMustCompile"


def needs_freezing(concrete: Any) -> bool:
    """Return whether a function captures tensors, or calls what XLA must compile."""
    captures = any(tensor.dtype != tf.resource for tensor in concrete.captured_inputs)
    return captures or any(_XLA in part.attr for part in _parts(_definition(concrete)))


def freeze(concrete: Any) -> Any:
    """Return a function that has variables and captured tensors as constants.

    Calls are replaced by the nodes of the called function. TensorFlow doesn't do so for
    functions that XLA must compile, as in Keras' grouped convolutions. So the mark of
    XLA is removed.
    """
    frozen = _with_constants(concrete)
    definition = _definition(frozen)
    marked = [part for part in _parts(definition) if _XLA in part.attr]
    if not marked:
        return frozen
    for part in marked:
        del part.attr[_XLA]
    _rename_functions(definition)
    imported = tf.compat.v1.wrap_function(
        lambda: tf.graph_util.import_graph_def(definition, name=""), []
    )
    sides = [[t.name for t in side] for side in (frozen.inputs, frozen.outputs)]
    return _with_constants(imported.prune(*sides))


def _with_constants(concrete: Any) -> Any:
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    # With lowered control flow, tf2onnx couldn't convert the loops of LSTM and GRU.
    return convert_variables_to_constants_v2(
        concrete, lower_control_flow=False, aggressive_inlining=True
    )


def _definition(concrete: Any) -> Any:
    return concrete.graph.as_graph_def()


def _parts(definition: Any) -> Iterator[Any]:
    """Yield the functions of a graph, and the nodes inside and outside of them."""
    yield from definition.node
    for function in definition.library.function:
        yield function
        yield from function.node_def


def _rename_functions(definition: Any) -> None:
    """Rename the functions: in a process, TensorFlow keeps one function per name."""
    suffix = uuid.uuid4().hex
    names = {function.signature.name for function in definition.library.function}
    for function in definition.library.function:
        function.signature.name += f"_{suffix}"
    for part in _parts(definition):
        for value in part.attr.values():
            for called in (value.func, *value.list.func):
                if called.name in names:
                    called.name += f"_{suffix}"
