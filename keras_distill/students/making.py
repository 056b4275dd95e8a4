"""Rules of layers that make units. Their weights are cut along two axes."""

import numpy as np

from keras_distill.students.axes import channel_axis, only, repeated, sizes, spatial
from keras_distill.students.elementwise import keeps_units_apart
from keras_distill.students.tracing import Call, CannotFollow
from keras_distill.students.units import Axes, labelled, replaced, whole


def dense(call: Call) -> Axes:
    """Dense, with a kernel of inputs and units."""
    axes, layer = call.single, call.layer
    out = call.new(layer.units)
    positions = sizes(axes[1:-1], call.outputs[0].shape[1:-1])
    call.cut(layer.kernel, axes[-1], out, maker=1)
    call.multiplies(layer.kernel, positions)
    call.cut(layer.bias, out)
    call.config["units"] = out
    return call.activated((*axes[:-1], out))


def embedding(call: Call) -> Axes:
    """Embedding, with a table of tokens and units."""
    axes, layer = call.single, call.layer
    out = call.new(layer.output_dim)
    call.cut(layer.embeddings, None, out, maker=1)
    call.config["output_dim"] = out
    return (*axes, out)


def convolution(call: Call) -> Axes:
    """Plain, grouped and transposed convolutions."""
    axes, layer = call.single, call.layer
    channel = channel_axis(layer, len(axes))
    given = only(axes, channel)
    groups = getattr(layer, "groups", 1)
    out = call.new(layer.filters)
    if groups > 1:
        if given is None:
            call.units.fix(out)
        else:
            by_group = given.reshape(groups, -1)
            call.units.tie(by_group[:, :1], by_group)
            call.units.tie(by_group[:, :1], out.reshape(groups, -1))
            call.config["groups"] = by_group[:, 0]
        given = None
    transposed = "Transpose" in type(layer).__name__
    within = (out, given) if transposed else (given, out)
    counted = call.tensors[0] if transposed else call.outputs[0]
    window = whole(len(axes) - 2)
    maker = len(window) + (0 if transposed else 1)
    call.cut(layer.kernel, *window, *within, maker=maker)
    call.multiplies(layer.kernel, spatial(counted.shape, channel))
    call.cut(layer.bias, out)
    call.config["filters"] = out
    return call.activated(replaced(whole(len(axes)), channel, out))


def depthwise(call: Call) -> Axes:
    """Depthwise convolutions. The outputs of a channel are cut with the channel."""
    axes, layer = call.single, call.layer
    channel = channel_axis(layer, len(axes))
    given = only(axes, channel)
    out = repeated(given, layer.depth_multiplier)
    window = whole(len(axes) - 2)
    maker = None if given is None else len(window)
    call.cut(layer.kernel, *window, given, None, maker=maker)
    call.multiplies(layer.kernel, spatial(call.outputs[0].shape, channel))
    call.cut(layer.bias, out)
    return call.activated(replaced(whole(len(axes)), channel, out))


def separable(call: Call) -> Axes:
    """Separable convolutions: a depthwise one, then one of size 1."""
    axes, layer = call.single, call.layer
    channel = channel_axis(layer, len(axes))
    given = only(axes, channel)
    out = call.new(layer.filters)
    window = whole(len(axes) - 2)
    call.cut(layer.depthwise_kernel, *window, given, None)
    between = repeated(given, layer.depth_multiplier)
    maker = len(window) + 1
    kernel = layer.pointwise_kernel
    call.cut(kernel, *window, between, out, maker=maker)
    for each in (layer.depthwise_kernel, kernel):
        call.multiplies(each, spatial(call.outputs[0].shape, channel))
    call.cut(layer.bias, out)
    call.config["filters"] = out
    return call.activated(replaced(whole(len(axes)), channel, out))


def recurrent(call: Call) -> list[Axes]:
    """Recurrent layers, with a kernel for each gate of a unit."""
    if len(call.tensors) > 1:
        raise CannotFollow("its first state is an input")
    axes, layer = call.axes[0], call.layer
    if labelled(axes[:-1]):
        raise CannotFollow("units lie along its time steps")
    cell = layer.cell
    out = call.new(layer.units)
    gates = np.tile(out, cell.kernel.shape[1] // layer.units)
    call.cut(cell.kernel, axes[-1], gates, maker=1)
    call.cut(cell.recurrent_kernel, out, gates, maker=1)
    for kernel in (cell.kernel, cell.recurrent_kernel):
        call.multiplies(kernel, call.tensors[0].shape[1:2])
    if cell.bias is not None:
        call.cut(cell.bias, *[None] * (len(cell.bias.shape) - 1), gates)
    call.config["units"] = out
    for name in ("activation", "recurrent_activation"):
        if not keeps_units_apart(getattr(layer, name, None), 2, 1):
            raise CannotFollow(f"its `{name}` reads several units at once")
    return [replaced(whole(len(o.shape)), -1, out) for o in call.outputs]
