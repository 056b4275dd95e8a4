"""Layers of a model by their paths, and the shapes of their outputs."""

import difflib
from collections.abc import Callable, Iterator
from typing import Any

import keras

Shape = tuple[int | None, ...]
Where = str | Callable[[keras.Model], keras.Layer]

# The number of layers that an error message names.
_LISTED = 40


def find(model: keras.Model, where: Where, *, whose: str) -> keras.Layer:
    """Return a layer of a model.

    Args:
        model: The model.
        where: The layer's path: `"block3"`, or `"backbone/block3/conv"` within nested
            models or layers. Or a function that maps the model to the layer.
        whose: `"student"` or `"teacher"`, for error messages.

    Raises:
        ValueError: If the model has no such layer, or more than one.
        TypeError: If the function doesn't return a layer.
    """
    if not isinstance(where, str):
        layer = where(model)
        if not isinstance(layer, keras.Layer):
            raise TypeError(
                f"A function that stands for a layer of the {whose} must return a "
                f"`keras.Layer`. Received: {layer!r} of type {type(layer).__name__}"
            )
        if all(layer is not held for _, held in _walk(model)):
            raise ValueError(
                f"A function that stands for a layer of the {whose} must return one "
                f"of '{model.name}'. Received: layer '{layer.name}', which isn't"
            )
        return layer
    found = {id(layer): layer for path, layer in _walk(model) if path == where}
    if len(found) != 1:
        raise ValueError(
            f"The {whose} '{model.name}' must hold one layer '{where}'. Received: "
            f"'{where}', of which there are {len(found)}. "
            f"{listing(model, whose=whose, like=where)}"
        )
    return next(iter(found.values()))


def output_shape(layer: keras.Layer, *, whose: str) -> Shape:
    """Return the shape of a layer's output, with None for the size of the batch.

    Raises:
        ValueError: If the shape isn't known, or if the layer has several outputs.
    """
    try:
        shape: Any = keras.tree.map_structure(lambda x: Axes(x.shape), layer.output)
    except (AttributeError, ValueError):
        # The layer isn't part of a functional model.
        shape = _shape_from_build(layer)
    if shape is None:
        raise ValueError(
            f"The shape of what the {whose}'s layer '{layer.name}' puts out isn't "
            "known. Call the model on a batch before it is given a hint; where that "
            "was done, name the layer around it."
        )
    if not isinstance(shape, Axes):
        raise ValueError(
            f"A hint needs a layer with one output. Received: the {whose}'s layer "
            f"'{layer.name}' with outputs of shapes {shape}"
        )
    return (None, *shape.axes[1:])


def listing(model: keras.Model, *, whose: str, like: str = "") -> str:
    """Return a sentence that lists a model's layers.

    Args:
        model: The model.
        whose: `"student"` or `"teacher"`.
        like: A name. Layers with similar names come first.
    """
    layers = dict(_walk(model))
    near = difflib.get_close_matches(like, layers, n=5, cutoff=0.5)
    paths = [*near, *(path for path in layers if path not in near)]
    listed = [f"{path}{_known_shape(layers[path])}" for path in paths[:_LISTED]]
    more = f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else ""
    return f"Layers of the {whose}: {', '.join(listed)}{more}."


class Axes:
    """A shape that the functions of `keras.tree` treat as a single leaf."""

    def __init__(self, shape: Any) -> None:
        self.axes = tuple(shape)

    def __repr__(self) -> str:
        return str(self.axes)


def _shape_from_build(layer: keras.Layer) -> Axes | None:
    """Return the output's shape for the input shapes that a layer was built with."""
    built_with = layer.get_build_config() if layer.built else None
    if not built_with:
        return None
    shapes = built_with.get("shapes_dict") or built_with
    try:
        shape = layer.compute_output_shape(*shapes.values())
    except NotImplementedError:
        # Cells of recurrent layers raise this.
        return None
    one = isinstance(shape, tuple | list) and all(
        size is None or isinstance(size, int) for size in shape
    )
    return Axes(shape) if one else None


def _known_shape(layer: keras.Layer) -> str:
    try:
        return f" {output_shape(layer, whose='model')}"
    except Exception:
        # A custom layer may raise any error, and the shape is only for a message.
        return ""


def _walk(layer: keras.Layer, prefix: str = "") -> Iterator[tuple[str, keras.Layer]]:
    for held in layer._flatten_layers(include_self=False, recursive=False):
        path = f"{prefix}{held.name}"
        yield path, held
        yield from _walk(held, f"{path}/")
