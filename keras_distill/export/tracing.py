"""Calls of a model during tracing, with errors that name sizes and layer."""

import re
import textwrap
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export.recording import Call, recording
from keras_distill.export.signature import (
    IN_ONE_ARGUMENT,
    Specs,
    further_arguments,
)

# Keras prints its errors in bold.
_STYLES = re.compile(r"\x1b\[\d*m")


def call(model: keras.layers.Layer, packed: Any, inputs: Specs) -> Any:
    """Call `model` in inference mode.

    Args:
        model: The model.
        packed: Its inputs, in the structure that it reads.
        inputs: Input name to spec, for errors.

    Raises:
        RuntimeError: The call can't be traced, e.g. because a size isn't fixed. Errors
            of eager calls aren't replaced.
    """
    if tf.executing_eagerly():
        return model(packed, training=False)
    try:
        return model(packed, training=False)
    except Warning:  # The process turns warnings into errors.
        raise
    except Exception as error:
        raise RuntimeError(_message(model, packed, inputs, error)) from error


def _message(
    model: keras.layers.Layer, packed: Any, inputs: Specs, error: Exception
) -> str:
    text = _STYLES.sub("", str(error))
    failed = _failed(model, packed)
    reason = textwrap.shorten(f"{type(error).__name__}: {text}", 400).rstrip(". ")
    if failed is not None:
        reason = f"{failed.label}, which fails: {reason}"
    shapes = {name: tuple(spec.shape) for name, spec in inputs.items()}
    operation = None if failed is None else failed.operation
    return (
        "`model` can't be traced, and every format is made of its trace. Received: "
        f"{reason}; inputs of the shapes {shapes}, where None is an open size. "
        f"{_remedy(model, operation, inputs)}"
    )


def _failed(model: keras.layers.Layer, packed: Any) -> Call | None:
    """Call the model again; return the innermost call that raises an error."""
    with recording() as recorded:
        try:
            model(packed, training=False)
        except Exception:
            failed = recorded.failed
            return None if failed is None or failed.is_outermost else failed
    return None


def _remedy(model: keras.layers.Layer, operation: Any, inputs: Specs) -> str:
    if len(inputs) > 1 and further_arguments(model):
        return IN_ONE_ARGUMENT
    if operation is not None and not isinstance(operation, keras.layers.Layer):
        own = "build the model without it"
    else:
        own = "compute with `keras.ops` and `keras.ops.shape` in custom layers"
    sizes = [size for spec in inputs.values() for size in tuple(spec.shape)[1:]]
    if None not in sizes:
        return (
            "Give the export a `batch_size` where the open size of the batch is the "
            f"cause, or {own}."
        )
    nearest = ""
    if isinstance(operation, keras.layers.UpSampling2D):
        nearest = ", or `interpolation='nearest'`"
    return (
        "Build the model with fixed sizes, as `keras.Input((224, 224, 3))`, and copy "
        f"the weights{nearest}; or {own}."
    )
