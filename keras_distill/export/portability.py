"""The preprocessing layers that a format can't hold, for lack of operators."""

from collections.abc import Iterable, Sequence
from typing import Any

import keras

# Tried one by one with tf2onnx 1.17 and ONNX Runtime, and with the converter of
# TensorFlow 2.21 and the interpreter of LiteRT, see the tests.
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
# Those that count, by `DenseBincount`, which LiteRT lacks.
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
    `MelSpectrogram`, `StringLookup`, `TextVectorization`; `Resizing` other than by
    nearest neighbours or plain bilinear (ONNX has bicubic and area too, and agrees with
    TensorFlow for some sizes alone); and whatever else takes text, such as a `Lambda`
    of `tf.strings`.

    For LiteRT these are `HashedCrossing`, `Hashing`, `IntegerLookup`,
    `TextVectorization`; `CategoryEncoding`, `Discretization` and `StringLookup` with
    the output modes `"multi_hot"`, `"count"` and `"tf_idf"`; `StringLookup` with more
    than one index for unknown words; `Resizing` as for ONNX; and whatever else takes
    text.

    Args:
        model: A Keras model of any kind. Of a layer without symbolic calls, as in
            subclassed models, its class alone tells; that it takes text doesn't show.
        formats: The formats that have to hold the model. SavedModel lacks nothing.

    Returns:
        Each layer that one of `formats` lacks once, those of nested models and layers
        too.

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
    # What is attached to a model beside its graph isn't called.
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
    """Tell whether a format lacks the operators of what takes text."""
    # LiteRT has a lookup of text, and no other operator of it.
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
