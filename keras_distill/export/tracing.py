"""Calls of a model while it is traced, with errors that name sizes and layer."""

import re
import textwrap
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export.signature import Specs

_COLORS = re.compile(r"\x1b\[\d*m")
# How Keras begins an error that was raised within a layer.
_WHERE = re.compile(r"Exception encountered when calling (?:layer ')?(\w+)")


def call(model: keras.layers.Layer, packed: Any, inputs: Specs) -> Any:
    """Call `model` in inference mode.

    Args:
        model: The model.
        packed: Its inputs, in the structure that it takes.
        inputs: Input name to spec, for errors.

    Raises:
        RuntimeError: The call can't be traced, as for a size that isn't fixed. Errors
            of a call with values pass as they are.
    """
    if tf.executing_eagerly():
        return model(packed, training=False)
    try:
        return model(packed, training=False)
    except Warning:  # of a process that turns warnings into errors
        raise
    except Exception as error:
        raise RuntimeError(_message(model, inputs, error)) from error


def _message(model: keras.layers.Layer, inputs: Specs, error: Exception) -> str:
    text = _COLORS.sub("", str(error))
    where = _WHERE.search(text)
    layers = _layers(model, where[1]) if where else []
    named = " or ".join(repr(layer.name) for layer in layers)
    layer = f" in the layer {named} ({where[1]})" if where and layers else ""
    reason = textwrap.shorten(f"{type(error).__name__}: {text}", 400)
    shapes = {name: tuple(spec.shape) for name, spec in inputs.items()}
    return (
        f"`model` can't be traced{layer}, and every format is made of its trace. "
        f"Received: inputs of the shapes {shapes}, where None is an open size "
        f"({reason.rstrip('. ')}). {_remedy(text, layers, inputs)}"
    )


def _layers(model: keras.layers.Layer, kind: str) -> list[keras.layers.Layer]:
    return [layer for layer in model._flatten_layers() if type(layer).__name__ == kind]


def _remedy(text: str, layers: list[keras.layers.Layer], inputs: Specs) -> str:
    if "scope name" in text:
        return (
            "Name the model and its layers with letters, digits and underscores, as "
            "`keras.Model(inputs, outputs, name='my_student')`."
        )
    sizes = [size for spec in inputs.values() for size in tuple(spec.shape)[1:]]
    own = "compute with `keras.ops` and `keras.ops.shape` in custom layers"
    if None not in sizes:
        return (
            "Give the export a `batch_size` where the open size of the batch is the "
            f"cause, or {own}."
        )
    nearest = ""
    if any(isinstance(layer, keras.layers.UpSampling2D) for layer in layers):
        nearest = ", or `interpolation='nearest'`"
    return (
        "Build the model with fixed sizes, as `keras.Input((224, 224, 3))`, and copy "
        f"the weights{nearest}; or {own}."
    )
