"""Python code that a graph calls. No file can contain it."""

from collections.abc import Callable
from typing import Any

from keras_distill.export.graphs import running
from keras_distill.export.recording import recording

# The operators of `tf.py_function` and `tf.numpy_function`.
_CALLBACKS = {"EagerPyFunc", "PyFunc", "PyFuncStateless"}


def refuse_callbacks(concrete: Any, trace: Callable[[], Any]) -> None:
    """Raise `ValueError` if a traced call runs Python code.

    The graph contains only a number by which this process finds the code. So a file of
    it works in this process only.

    Args:
        concrete: The concrete function of the call.
        trace: Traces the call again.
    """
    found = running(concrete.graph, _CALLBACKS)
    if not found:
        return
    with recording() as recorded:
        trace()
    calls = [call for name in found for call in recorded.makers.get(name, ())]
    where = ", ".join(dict.fromkeys(call.label for call in calls)) or repr(found[0])
    raise ValueError(
        "`model` must not call Python code from its graph: files are run without it. "
        f"Received: {where}, which calls `tf.py_function` or `tf.numpy_function`. "
        "Remedy: write the layer with `keras.ops` or TensorFlow's own operations, or "
        "compute this in the data, before the model."
    )
