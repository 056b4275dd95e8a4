"""Conversions by tf2onnx that don't copy every weight in each pass."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any

from keras_distill.export.patching import replaced

# By default, tf2onnx copies the whole graph before each pass, in case the pass fails.
_COPIES = "TF2ONNX_CATCH_ERRORS"
# With at least this number of weights, garbage is collected to save memory. It takes
# .3 s and more, depending on all objects of the process.
_LARGE = 1_000_000


def convert(converter: Callable[[], Any], weights: int) -> Any:
    """Run a conversion with few copies of the weights in memory; return its result.

    Args:
        converter: Calls tf2onnx. If a pass fails, it is called again, with a copy of
            the graph before each pass: tf2onnx then continues without that pass.
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
    """Free unused graphs before, during and after a conversion.

    Traced graphs refer to themselves, so only the garbage collection frees them.
    """
    gc.collect()
    try:
        with replaced(tf_loader, {"tf_optimize": _after_collection}):
            yield
    finally:
        gc.collect()


def _without_constants(update_proto: Callable[..., None]) -> Callable[..., None]:
    """Return a `Node.update_proto` that skips constants.

    Each pass writes all nodes to their messages. A message never frees the memory of
    earlier writes, and the message of a constant is never read.
    """

    def update(node: Any, external_tensor_storage: Any = None) -> None:
        if not node.is_const() or external_tensor_storage is not None:
            update_proto(node, external_tensor_storage)

    return update


def _after_collection(optimize: Callable[..., Any]) -> Callable[..., Any]:
    """Return TensorFlow's graph optimiser, called after earlier graphs are freed."""

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
