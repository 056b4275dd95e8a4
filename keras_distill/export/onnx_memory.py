"""Conversions by tf2onnx without a copy of every weight for each of its passes."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

from keras_distill.export.patching import replaced

# By default, tf2onnx copies the whole graph before each pass, in case that one fails.
_COPIES = "TF2ONNX_CATCH_ERRORS"
# The number of weights from which on memory is worth the time of a collection, which
# grows with all that the process holds: .3 s and more.
_LARGE = 1_000_000


def convert(converter: Callable[[], Any], weights: int) -> Any:
    """Return what a conversion returns, with few copies of the weights in memory.

    Args:
        converter: Calls tf2onnx. It is called again, with a copy of the graph before
            each pass, if a pass fails: tf2onnx then goes on without that pass.
        weights: The number of weights of the model.
    """
    from tf2onnx import tf_loader
    from tf2onnx.graph import Node

    with (
        replaced(Node, {"update_proto": _without_constants}),
        _collecting(tf_loader) if weights >= _LARGE else nullcontext(),
    ):
        try:
            with _no_graph_copies():
                return converter()
        except Exception:
            return converter()


@contextmanager
def _collecting(tf_loader: ModuleType) -> Iterator[None]:
    """Free graphs that nothing uses, before, during and after a conversion.

    Traced graphs refer to themselves, so they stay until they are collected.
    """
    gc.collect()
    try:
        with replaced(tf_loader, {"tf_optimize": _after_collection}):
            yield
    finally:
        gc.collect()


def _without_constants(update_proto: Callable[..., None]) -> Callable[..., None]:
    """Return a `Node.update_proto` that leaves constants as they are.

    Each pass writes all nodes to their messages. A message never gives back what was
    written to it before, and nothing reads the message of a constant.
    """

    def update(node: Any, external_tensor_storage: Any = None) -> None:
        if not node.is_const() or external_tensor_storage is not None:
            update_proto(node, external_tensor_storage)

    return update


def _after_collection(optimize: Callable[..., Any]) -> Callable[..., Any]:
    """Return TensorFlow's optimiser of graphs, called without earlier graphs around."""

    def collected(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        return optimize(*args, **kwargs)

    return collected


@contextmanager
def _no_graph_copies() -> Iterator[None]:
    before = os.environ.get(_COPIES)
    os.environ[_COPIES] = "FALSE"
    try:
        yield
    finally:
        os.environ.pop(_COPIES)
        if before is not None:
            os.environ[_COPIES] = before
