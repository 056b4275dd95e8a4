"""Rules of the functions of `keras.ops`."""

from typing import Any

import keras
import numpy as np

from keras_distill.students.axes import of_listed
from keras_distill.students.elementwise import keeps_units_apart
from keras_distill.students.tracing import Call, CannotFollow, combined
from keras_distill.students.units import Axes, labelled, whole


def function(call: Call) -> Axes | list[Axes]:
    """A function of one tensor that computes each unit from itself alone."""
    if not any(labelled(axes) for axes in call.axes):
        return [whole(len(tensor.shape)) for tensor in call.outputs]
    if len(call.outputs) > 1:
        raise CannotFollow(f"{type(call.layer).__name__} can't be followed")
    axes = call.single
    arguments, tensor = call.node.arguments, call.tensors[0]

    def applied(value: Any) -> Any:
        args, kwargs = arguments.fill_in({id(tensor): value})
        return call.layer.call(*args, **kwargs)

    for axis, labels in enumerate(axes):
        if labels is not None and not keeps_units_apart(applied, len(axes), axis):
            raise CannotFollow(f"{type(call.layer).__name__} can't be followed")
    return axes


def arithmetic(call: Call) -> Axes:
    """Combines tensors and numbers element by element."""
    arguments = call.node.arguments
    for value in keras.tree.flatten((arguments.args, arguments.kwargs)):
        if isinstance(value, keras.KerasTensor) or np.ndim(value) == 0:
            continue
        if any(labelled(axes) for axes in call.axes):
            raise CannotFollow("it combines units with a constant array")
    result = combined(call, list(zip(call.tensors, call.axes, strict=True)))
    return (*whole(len(call.outputs[0].shape) - len(result)), *result)


def mean(call: Call) -> Axes:
    """Takes a mean over positions."""
    axes, layer = call.single, call.layer
    rank = len(axes)
    reduced = range(rank) if layer.axis is None else of_listed(layer.axis)
    gone = {axis % rank for axis in reduced}
    if any(axes[axis] is not None for axis in gone):
        raise CannotFollow("it takes a mean over units")
    kept = [labels for axis, labels in enumerate(axes) if axis not in gone]
    return axes if layer.keepdims else tuple(kept)


def transpose(call: Call) -> Axes:
    """Exchanges axes."""
    axes, order = call.single, call.layer.axes
    return tuple(axes[axis] for axis in order or reversed(range(len(axes))))


def item(call: Call) -> Axes:
    """Picks positions."""
    arguments = call.node.arguments
    key = arguments.kwargs.get("key", arguments.args[1] if arguments.args[1:] else None)
    keys = list(key) if isinstance(key, tuple) else [key]
    axes = call.single
    if not labelled(axes):
        return whole(len(call.outputs[0].shape))
    keys += [slice(None)] * (len(axes) - len(keys))
    if len(keys) > len(axes) or not all(isinstance(k, (int, slice)) for k in keys):
        raise CannotFollow("it picks elements in a way that can't be followed")
    if any(
        lab is not None and k != slice(None) for lab, k in zip(axes, keys, strict=True)
    ):
        raise CannotFollow("it picks some of the units")
    return tuple(
        labels for labels, k in zip(axes, keys, strict=True) if isinstance(k, slice)
    )
