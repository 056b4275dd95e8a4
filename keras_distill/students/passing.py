"""Rules of layers that make no units of their own."""

from collections.abc import Sequence

import numpy as np

from keras_distill.students.axes import (
    channel_axis,
    of_listed,
    only,
)
from keras_distill.students.tracing import Call, CannotFollow, combined
from keras_distill.students.units import (
    Axes,
    labelled,
    replaced,
    reshaped,
    whole,
)


def normalization(call: Call) -> Axes:
    """Batch, layer and RMS normalisation: weights along the normalised axes."""
    axes = call.single
    own = tuple(axes[axis] for axis in of_listed(call.layer.axis))
    for variable in call.layer.weights:
        call.cut(variable, *own)
    return axes


def group_normalization(call: Call) -> Axes:
    """Groups are cut as a whole, unless there is only one group."""
    axes, layer = call.single, call.layer
    channel = layer.axis % len(axes)
    given = only(axes, channel)
    if given is not None and layer.groups > 1:
        by_group = given.reshape(layer.groups, -1)
        call.units.tie(by_group[:, :1], by_group)
        call.config["groups"] = by_group[:, 0]
    for variable in layer.weights:
        call.cut(variable, given)
    return axes


def of_preprocessing(call: Call) -> Axes:
    """Layers of preprocessing, which may have a value for each of their inputs."""
    axes = call.single
    if labelled(axes):
        raise CannotFollow("it has a value for each unit")
    return whole(len(call.outputs[0].shape))


def rescaling(call: Call) -> Axes:
    """Rescaling by numbers. With arrays, it is a layer of preprocessing."""
    numbers = (call.layer.scale, call.layer.offset)
    return (
        same(call) if all(np.ndim(n) == 0 for n in numbers) else of_preprocessing(call)
    )


def layer_scale(call: Call) -> Axes:
    """LayerScale, a factor for each unit."""
    axes = call.single
    call.cut(call.layer.gamma, axes[-1])
    if axes[-1] is not None:
        call.config["projection_dim"] = axes[-1]
    return axes


def prelu(call: Call) -> Axes:
    """PReLU, a slope for each element, which may be shared along axes."""
    axes, alpha = call.single, call.layer.alpha
    pairs = zip(axes[1:], alpha.shape, strict=True)
    call.cut(alpha, *(None if size == 1 else labels for labels, size in pairs))
    return axes


def same(call: Call) -> Axes:
    """Layers that compute each unit from itself alone."""
    return call.single


def dropout(call: Call) -> Axes:
    """Dropout, whose `noise_shape` may be given."""
    axes = call.single
    noise = getattr(call.layer, "noise_shape", None)
    for labels, size in zip(axes, noise or (), strict=False):
        if labels is not None and size not in (1, None):
            raise CannotFollow(f"its `noise_shape` is {noise}")
    return axes


def activation(call: Call) -> Axes:
    """A function of single elements, or one that is refused."""
    return call.activated(call.single)


def softmax(call: Call) -> Axes:
    """Softmax, which reads all elements along its axes."""
    axes = call.single
    for axis in of_listed(call.layer.axis):
        if (labels := axes[axis]) is not None:
            why = "it reads several units at once"
            call.units.refuse(labels, call.layer.name, why)
    return axes


def pooling(call: Call) -> Axes:
    """Layers that move, pool or repeat positions and don't mix channels."""
    axes = call.single
    given = only(axes, channel_axis(call.layer, len(axes)))
    rank = len(call.outputs[0].shape)
    return replaced(whole(rank), channel_axis(call.layer, rank), given)


def _reshape_to(call: Call, axes: Axes, shape: Sequence[int | None]) -> Axes:
    try:
        return reshaped(axes, shape, call.outputs[0].shape)
    except LookupError:
        why = "after it, units of one axis lie along several, or sizes are unknown"
        raise CannotFollow(why) from None


def flatten(call: Call) -> Axes:
    """Flatten. Afterwards each unit occurs once for each position."""
    axes, shape = call.single, list(call.tensors[0].shape)
    if call.layer.data_format == "channels_first" and len(axes) > 1:
        axes = (axes[0], *axes[2:], axes[1])
        shape = [shape[0], *shape[2:], shape[1]]
    return _reshape_to(call, axes, shape)


def reshape(call: Call) -> Axes:
    """Reshape into a shape in which units lie along one axis."""
    axes = call.single
    result = _reshape_to(call, axes, call.tensors[0].shape)
    if labelled(result):
        target = zip(result[1:], call.layer.target_shape, strict=True)
        call.config["target_shape"] = tuple(
            size if labels is None or size == -1 else labels for labels, size in target
        )
    return result


def permute(call: Call) -> Axes:
    """Exchanges axes."""
    axes = call.single
    return (axes[0], *(axes[axis] for axis in call.layer.dims))


def repeat_vector(call: Call) -> Axes:
    """Repeats along a new axis."""
    axes = call.single
    return (axes[0], None, axes[1])


def merge(call: Call) -> Axes:
    """Combines tensors of one rank element by element."""
    pairs = list(zip(call.tensors, call.axes, strict=True))
    ranks = {len(axes) for _, axes in pairs}
    if len(ranks) > 1 and any(labelled(axes) for _, axes in pairs):
        raise CannotFollow("its inputs have different ranks")
    return combined(call, pairs)


def concatenate(call: Call) -> Axes:
    """Concatenate, which places the units of one tensor after those of another."""
    rank = len(call.axes[0])
    axis = call.layer.axis % rank
    parts = list(zip(call.tensors, call.axes, strict=True))
    if all(axes[axis] is None for _, axes in parts):
        joined = None
    elif any(tensor.shape[axis] is None for tensor, _ in parts):
        raise CannotFollow("the length of an input is unknown")
    else:
        joined = np.concatenate(
            [
                call.units.new_fixed(tensor.shape[axis])
                if axes[axis] is None
                else axes[axis]
                for tensor, axes in parts
            ]
        )
    others = [(tensor, replaced(axes, axis, None)) for tensor, axes in parts]
    return replaced(combined(call, others), axis, joined)
