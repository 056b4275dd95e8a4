"""Where ONNX ends: the layers whose operators it lacks."""

from collections.abc import Iterable
from typing import Any

import keras

# Tried one by one with tf2onnx 1.17 and ONNX Runtime, see the tests.
_UNPORTABLE = (
    keras.layers.Discretization,
    keras.layers.HashedCrossing,
    keras.layers.Hashing,
    keras.layers.IntegerLookup,
    keras.layers.MelSpectrogram,
    keras.layers.StringLookup,
    keras.layers.TextVectorization,
)


def unportable_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Return the layers of `model` whose operators ONNX lacks.

    These are `Discretization`, `HashedCrossing`, `Hashing`, `IntegerLookup`,
    `MelSpectrogram`, `StringLookup`, `TextVectorization`; `Resizing` other than by
    nearest neighbours or plain bilinear (ONNX has bicubic and area too, and agrees with
    TensorFlow for some sizes alone); and whatever else takes text, such as a `Lambda`
    of `tf.strings`.

    Args:
        model: A Keras model of any kind. Of a layer without symbolic calls, as in
            subclassed models, its class alone tells; that it takes text doesn't show.

    Returns:
        Each of them once, those of nested models and layers too.

    Example:
    >>> import keras
    >>> model = keras.Sequential([
    ...     keras.Input((1,), dtype="string", name="paint"),
    ...     keras.layers.StringLookup(vocabulary=["red", "blue"], name="color"),
    ...     keras.layers.Embedding(3, 4),
    ... ])
    >>> [layer.name for layer in unportable_layers(model)]
    ['color']
    """
    found: dict[int, keras.layers.Layer] = {}
    # What is attached to a model beside its graph isn't called.
    flat = {"recursive": False, "include_self": False}
    own = model.layers if is_graph(model) else model._flatten_layers(**flat)
    for layer in own:
        layers = [layer] if _is_unportable(layer) else unportable_layers(layer)
        if not layers and _takes_text(layer):
            layers = [layer]
        found.update({id(layer): layer for layer in layers})
    return list(found.values())


def unportable_within(operation: Any) -> list[keras.layers.Layer]:
    """Return the unportable layers of a layer or model, itself if it is one."""
    if not isinstance(operation, keras.Layer):
        return []
    return [operation] if _is_unportable(operation) else unportable_layers(operation)


def _is_unportable(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, keras.layers.Resizing):
        plain = layer.interpolation == "bilinear" and not layer.antialias
        return not plain and layer.interpolation != "nearest"
    return isinstance(layer, _UNPORTABLE)


def _takes_text(layer: keras.layers.Layer) -> bool:
    return any(is_text(t) for node in layer._inbound_nodes for t in node.input_tensors)


def is_text(tensor: Any) -> bool:
    """Tell whether a symbolic tensor holds text."""
    return bool(tensor.dtype == "string")


def described(layers: Iterable[Any]) -> str:
    """Name layers for an error."""
    return ", ".join(f"{layer.name!r} ({type(layer).__name__})" for layer in layers)


def is_graph(operation: Any) -> bool:
    """Whether it is a model that computes what its symbolic calls say."""
    return (
        isinstance(operation, keras.Model)
        and isinstance(getattr(operation, "inputs", None), list)
        and type(operation).call.__module__.startswith("keras.")
    )
