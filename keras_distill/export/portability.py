"""Preprocessing layers that a format can't represent because it lacks operators."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras

# Tested one by one, with tf2onnx 1.17 and ONNX Runtime, and with the converter of
# TensorFlow 2.21 and the interpreter of LiteRT.
_UNPORTABLE = {
    "onnx": (
        keras.layers.Discretization,
        keras.layers.HashedCrossing,
        keras.layers.Hashing,
        keras.layers.IntegerLookup,
        keras.layers.MelSpectrogram,
        keras.layers.StringLookup,
        keras.layers.TextVectorization,
    ),
    "litert": (
        keras.layers.HashedCrossing,
        keras.layers.Hashing,
        keras.layers.IntegerLookup,
        keras.layers.TextVectorization,
    ),
}
# The layers that count with `DenseBincount`, which LiteRT lacks.
_COUNTING = (
    keras.layers.CategoryEncoding,
    keras.layers.Discretization,
    keras.layers.StringLookup,
)
ONNX = ("onnx",)


def unportable_layers(
    model: keras.Model, formats: Sequence[str] = ONNX
) -> list[keras.layers.Layer]:
    """Return the preprocessing layers of `model` whose operators a format lacks.

    For ONNX these are `Discretization`, `HashedCrossing`, `Hashing`, `IntegerLookup`,
    `MelSpectrogram`, `StringLookup` and `TextVectorization`; `Resizing`, except by
    nearest neighbours or plain bilinear (ONNX also has bicubic and area, but agrees
    with TensorFlow for some sizes only); and every other layer that reads text, e.g. a
    `Lambda` with `tf.strings`.

    For LiteRT these are `HashedCrossing`, `Hashing`, `IntegerLookup` and
    `TextVectorization`; `CategoryEncoding`, `Discretization` and `StringLookup` with
    the output modes `"multi_hot"`, `"count"` and `"tf_idf"`; `StringLookup` with more
    than one index for unknown words; `Resizing` as for ONNX; and every other layer that
    reads text.

    Args:
        model: A Keras model of any kind. If a layer has no symbolic calls, as in
            subclassed models, it is found only by its class, not by text that it reads.
        formats: The formats to check. SavedModel lacks nothing.

    Returns:
        Each layer that one of `formats` lacks, once, including those within nested
        models and layers.

    Example:
    >>> import keras
    >>> model = keras.Sequential([
    ...     keras.Input((1,), dtype="string", name="paint"),
    ...     keras.layers.StringLookup(vocabulary=["red", "blue"], name="color"),
    ...     keras.layers.Embedding(3, 4),
    ... ])
    >>> [layer.name for layer in unportable_layers(model)]
    ['color']
    >>> unportable_layers(model, ["litert"])
    []
    """
    found: dict[int, keras.layers.Layer] = {}
    # Layers that are attached to a model outside of its graph aren't called.
    flat = {"recursive": False, "include_self": False}
    own = model.layers if is_graph(model) else model._flatten_layers(**flat)
    for layer in own:
        layers = unportable_within(layer, formats)
        if not layers and _takes_text(layer) and lacks_text(layer, formats):
            layers = [layer]
        found.update({id(layer): layer for layer in layers})
    return list(found.values())


def unportable_within(
    operation: Any, formats: Sequence[str] = ONNX
) -> list[keras.layers.Layer]:
    """Return the unportable layers of a layer or model, itself if it is one."""
    if not isinstance(operation, keras.Layer):
        return []
    if any(_is_unportable(operation, name) for name in formats):
        return [operation]
    return unportable_layers(operation, formats)


def lacks_text(operation: Any, formats: Sequence[str] = ONNX) -> bool:
    """Return whether a format lacks the operators of a layer that reads text."""
    # LiteRT's only operators of text are those of a lookup.
    held = isinstance(operation, keras.layers.StringLookup | keras.layers.InputLayer)
    return "onnx" in formats or ("litert" in formats and not held)


def _is_unportable(layer: keras.layers.Layer, name: str) -> bool:
    if name not in _UNPORTABLE:
        return False
    if isinstance(layer, keras.layers.Resizing):
        plain = layer.interpolation == "bilinear" and not layer.antialias
        return not plain and layer.interpolation != "nearest"
    if name == "litert" and isinstance(layer, _COUNTING):
        counts = layer.output_mode in ("multi_hot", "count", "tf_idf")
        return counts or getattr(layer, "num_oov_indices", 1) > 1
    return isinstance(layer, _UNPORTABLE[name])


def _takes_text(layer: keras.layers.Layer) -> bool:
    return any(is_text(t) for node in layer._inbound_nodes for t in node.input_tensors)


def is_text(tensor: Any) -> bool:
    """Return whether a symbolic tensor contains text."""
    return bool(tensor.dtype == "string")


def described(layers: Iterable[Any]) -> str:
    """Name layers for an error."""
    return ", ".join(f"{layer.name!r} ({type(layer).__name__})" for layer in layers)


def is_graph(operation: Any) -> bool:
    """Return whether it is a model whose symbolic calls define its computation."""
    return (
        isinstance(operation, keras.Model)
        and isinstance(getattr(operation, "inputs", None), list)
        and type(operation).call.__module__.startswith("keras.")
    )
