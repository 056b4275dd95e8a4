"""Students with a part of the units of their teacher's layers."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_distill.students.graph import Rebuilding, checked
from keras_distill.students.importance import Importance, WeightNorm
from keras_distill.students.planning import Kept, Plan, length
from keras_distill.students.planning import flops as flops_of
from keras_distill.students.planning import parameters as parameters_of
from keras_distill.students.rules import rule_of
from keras_distill.students.tracing import Trace


def slice_widths(
    teacher: keras.Model,
    width: float | Mapping[str, float] | None = None,
    *,
    importance: Importance | None = None,
    parameters: float | None = None,
    flops: float | None = None,
    name: str | None = None,
) -> keras.Model:
    """Return a student that has the most important units of the teacher's layers.

    Units of dense, convolution, embedding and recurrent layers are cut, and heads of
    attention layers. The weights of all layers that read these units are cut too. Units
    that are added to each other, as in residual connections, are cut together. The
    model's outputs keep their shapes.

    Args:
        teacher: A Functional or Sequential model. It isn't changed.
        width: The share of the units that each layer keeps. Or a dict of shares by the
            name of a layer or sub-model, in which `*` matches any characters. Layers
            that the dict doesn't name keep all units. A width of 0.5 leaves about a
            quarter of the parameters.
        importance: The scores by which units are kept. Defaults to `WeightNorm()`.
        parameters: Instead of `width`: the share of the parameters to keep, met within
            5 %.
        flops: Instead of `width`: the share of the multiplications to keep, met within
            5 %.
        name: The name of the student.

    Returns:
        An uncompiled Keras model with weights of its own. Its layers have the teacher's
        names, and all of them are trainable.

    Raises:
        ValueError: If a layer can't follow a cut. The error names the layer and the
            reason.

    Example:
    >>> import keras
    >>> import keras_distill as kd
    >>> teacher = keras.Sequential(
    ...     [keras.Input((8,)), keras.layers.Dense(64, "relu"), keras.layers.Dense(3)]
    ... )
    >>> student = kd.students.slice_widths(teacher, width=0.5)
    >>> student.layers[0].units
    32
    """
    checked(teacher, "slice_widths")
    _check_one(width=width, parameters=parameters, flops=flops)
    trace = Trace(teacher, rule_of)
    plan = Plan(trace, (importance or WeightNorm()).scores(teacher, trace))
    if isinstance(width, Mapping):
        kept = plan.by_layer(width)
    elif width is not None:
        kept = plan.at(width)
    elif parameters is not None:
        size = parameters_of(teacher, trace)
        kept = plan.of_size(size, parameters, "parameters")
    else:
        kept = plan.of_size(flops_of(trace), float(flops or 0), "flops")
    return _sliced(teacher, trace, kept, name or f"{teacher.name}_student")


def _check_one(**given: Any) -> None:
    """Raise an error unless one size is given that lies within (0, 1]."""
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        raise TypeError(
            "`slice_widths` takes one of `width`, `parameters` and `flops`. "
            f"Received: {named or 'none of them'}"
        )
    ((name, value),) = named.items()
    for each in value.values() if isinstance(value, Mapping) else [value]:
        number = isinstance(each, (int, float)) and not isinstance(each, bool)
        if not number or not 0.0 < each <= 1.0:
            raise ValueError(f"`{name}` must lie in (0, 1]. Received: {name}={value!r}")


def _sliced(teacher: keras.Model, trace: Trace, kept: Kept, name: str) -> keras.Model:
    def resolved(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(resolved, value))
        return length(value, kept)

    def shape(tensor: Any) -> tuple[int | None, ...]:
        pairs = zip(trace.axes_of(tensor), tensor.shape, strict=True)
        return tuple(size if a is None else length(a, kept) for a, size in pairs)

    def cut(variable: Any, value: Any) -> Any:
        weight = trace.weights.get(id(variable))
        for axis, labels in enumerate(weight.axes if weight else ()):
            if labels is not None:
                value = np.compress(kept[labels], value, axis)
        return value

    configs = {
        layer: {key: resolved(value) for key, value in config.items()}
        for layer, config in trace.configs.items()
    }
    return Rebuilding(configs=configs, shape=shape, cut=cut).model(teacher, name)
