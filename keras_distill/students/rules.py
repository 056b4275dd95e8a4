"""How units pass through each kind of layer."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_distill.students.elementwise import keeps_units_apart
from keras_distill.students.tracing import Call, CannotFollow, Rule, combined
from keras_distill.students.units import (
    Axes,
    Labels,
    labelled,
    replaced,
    reshaped,
    whole,
)


def rule_of(layer: Any) -> Rule | None:
    """Return the rule for a layer or a function of `keras.ops`, None without one.

    Subclasses have none, as they may do anything.
    """
    if isinstance(layer, keras.Layer):
        kind = type(layer)
        if kind.__module__ == "keras.src.applications.convnext":
            return _OF_APPLICATIONS.get(kind.__name__)
        return _OF_LAYERS.get(kind)
    if not type(layer).__module__.startswith("keras.src.ops."):
        return None
    return _OF_FUNCTIONS.get(type(layer).__name__, _function)


def _channel_axis(layer: Any, rank: int) -> int:
    first = getattr(layer, "data_format", None) == "channels_first"
    return 1 if first else rank - 1


def _only(axes: Axes, axis: int) -> Labels | None:
    """Return the units of an axis, where no other axis has any."""
    if labelled(replaced(axes, axis, None)):
        raise CannotFollow(f"it mixes units that lie along another axis than {axis}")
    return axes[axis]


def _sizes(axes: Axes, shape: Sequence[int | None]) -> list[Labels | int | None]:
    """Return the size of each dimension, as labels where a part of it is kept."""
    pairs = zip(axes, shape, strict=True)
    return [size if labels is None else labels for labels, size in pairs]


def _dense(call: Call) -> Axes:
    axes, layer = call.single, call.layer
    out = call.new(layer.units)
    positions = _sizes(axes[1:-1], call.outputs[0].shape[1:-1])
    call.cut(layer.kernel, axes[-1], out, maker=1)
    call.multiplies(layer.kernel, positions)
    call.cut(layer.bias, out)
    call.config["units"] = out
    return call.activated((*axes[:-1], out))


def _embedding(call: Call) -> Axes:
    axes, layer = call.single, call.layer
    out = call.new(layer.output_dim)
    call.cut(layer.embeddings, None, out, maker=1)
    call.config["output_dim"] = out
    return (*axes, out)


def _convolution(call: Call) -> Axes:
    axes, layer = call.single, call.layer
    channel = _channel_axis(layer, len(axes))
    given = _only(axes, channel)
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
    spatial = whole(len(axes) - 2)
    maker = len(spatial) + (0 if transposed else 1)
    call.cut(layer.kernel, *spatial, *within, maker=maker)
    call.multiplies(layer.kernel, _spatial(counted.shape, channel))
    call.cut(layer.bias, out)
    call.config["filters"] = out
    return call.activated(replaced(whole(len(axes)), channel, out))


def _spatial(shape: Sequence[int | None], channel: int) -> list[int | None]:
    return [size for axis, size in enumerate(shape) if axis not in (0, channel)]


def _repeated(labels: Labels | None, times: int) -> Labels | None:
    return None if labels is None else np.repeat(labels, times)


def _depthwise(call: Call) -> Axes:
    axes, layer = call.single, call.layer
    channel = _channel_axis(layer, len(axes))
    given = _only(axes, channel)
    out = _repeated(given, layer.depth_multiplier)
    spatial = whole(len(axes) - 2)
    maker = None if given is None else len(spatial)
    call.cut(layer.kernel, *spatial, given, None, maker=maker)
    call.multiplies(layer.kernel, _spatial(call.outputs[0].shape, channel))
    call.cut(layer.bias, out)
    return call.activated(replaced(whole(len(axes)), channel, out))


def _separable(call: Call) -> Axes:
    axes, layer = call.single, call.layer
    channel = _channel_axis(layer, len(axes))
    given = _only(axes, channel)
    out = call.new(layer.filters)
    spatial = whole(len(axes) - 2)
    call.cut(layer.depthwise_kernel, *spatial, given, None)
    between = _repeated(given, layer.depth_multiplier)
    maker = len(spatial) + 1
    kernel = layer.pointwise_kernel
    call.cut(kernel, *spatial, between, out, maker=maker)
    for each in (layer.depthwise_kernel, kernel):
        call.multiplies(each, _spatial(call.outputs[0].shape, channel))
    call.cut(layer.bias, out)
    call.config["filters"] = out
    return call.activated(replaced(whole(len(axes)), channel, out))


def _of_listed(axis: Any) -> list[int]:
    return list(axis) if isinstance(axis, (list, tuple)) else [axis]


def _normalization(call: Call) -> Axes:
    """Batch, layer and RMS normalisation: weights along the normalised axes."""
    axes = call.single
    own = tuple(axes[axis] for axis in _of_listed(call.layer.axis))
    for variable in call.layer.weights:
        call.cut(variable, *own)
    return axes


def _group_normalization(call: Call) -> Axes:
    axes, layer = call.single, call.layer
    channel = layer.axis % len(axes)
    given = _only(axes, channel)
    if given is not None:
        by_group = given.reshape(layer.groups, -1)
        call.units.tie(by_group[:, :1], by_group)
        call.config["groups"] = by_group[:, 0]
    for variable in layer.weights:
        call.cut(variable, given)
    return axes


def _of_preprocessing(call: Call) -> Axes:
    axes = call.single
    if labelled(axes):
        raise CannotFollow("it has a value for each unit")
    return whole(len(call.outputs[0].shape))


def _rescaling(call: Call) -> Axes:
    numbers = (call.layer.scale, call.layer.offset)
    return (
        _same(call)
        if all(np.ndim(n) == 0 for n in numbers)
        else _of_preprocessing(call)
    )


def _layer_scale(call: Call) -> Axes:
    axes = call.single
    call.cut(call.layer.gamma, axes[-1])
    if axes[-1] is not None:
        call.config["projection_dim"] = axes[-1]
    return axes


def _prelu(call: Call) -> Axes:
    axes, alpha = call.single, call.layer.alpha
    pairs = zip(axes[1:], alpha.shape, strict=True)
    call.cut(alpha, *(None if size == 1 else labels for labels, size in pairs))
    return axes


def _same(call: Call) -> Axes:
    return call.single


def _dropout(call: Call) -> Axes:
    axes = call.single
    noise = getattr(call.layer, "noise_shape", None)
    for labels, size in zip(axes, noise or (), strict=False):
        if labels is not None and size not in (1, None):
            raise CannotFollow(f"its `noise_shape` is {noise}")
    return axes


def _activation(call: Call) -> Axes:
    return call.activated(call.single)


def _softmax(call: Call) -> Axes:
    axes = call.single
    for axis in _of_listed(call.layer.axis):
        if (labels := axes[axis]) is not None:
            why = "it reads several units at once"
            call.units.refuse(labels, call.layer.name, why)
    return axes


def _pooling(call: Call) -> Axes:
    """What moves, pools or repeats positions and leaves channels alone."""
    axes = call.single
    given = _only(axes, _channel_axis(call.layer, len(axes)))
    rank = len(call.outputs[0].shape)
    return replaced(whole(rank), _channel_axis(call.layer, rank), given)


def _reshape_to(call: Call, axes: Axes, shape: Sequence[int | None]) -> Axes:
    try:
        return reshaped(axes, shape, call.outputs[0].shape)
    except LookupError:
        why = "after it, units of one axis lie along several, or sizes are unknown"
        raise CannotFollow(why) from None


def _flatten(call: Call) -> Axes:
    axes, shape = call.single, list(call.tensors[0].shape)
    if call.layer.data_format == "channels_first" and len(axes) > 1:
        axes = (axes[0], *axes[2:], axes[1])
        shape = [shape[0], *shape[2:], shape[1]]
    return _reshape_to(call, axes, shape)


def _reshape(call: Call) -> Axes:
    axes = call.single
    result = _reshape_to(call, axes, call.tensors[0].shape)
    if labelled(result):
        target = zip(result[1:], call.layer.target_shape, strict=True)
        call.config["target_shape"] = tuple(
            size if labels is None or size == -1 else labels for labels, size in target
        )
    return result


def _permute(call: Call) -> Axes:
    axes = call.single
    return (axes[0], *(axes[axis] for axis in call.layer.dims))


def _repeat_vector(call: Call) -> Axes:
    axes = call.single
    return (axes[0], None, axes[1])


def _merge(call: Call) -> Axes:
    pairs = list(zip(call.tensors, call.axes, strict=True))
    ranks = {len(axes) for _, axes in pairs}
    if len(ranks) > 1 and any(labelled(axes) for _, axes in pairs):
        raise CannotFollow("its inputs have different ranks")
    return combined(call, pairs)


def _concatenate(call: Call) -> Axes:
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


def _bound(call: Call) -> dict[str, Any]:
    """Return the arguments of an attention layer by name."""
    arguments = call.node.arguments
    signature = inspect.signature(call.layer.call)
    return dict(signature.bind(*arguments.args, **arguments.kwargs).arguments)


def _attended(call: Call) -> tuple[dict[str, Axes], dict[str, Any]]:
    """Return the axes and the tensors of query, value and key."""
    given = _bound(call)
    given = {name: v for name, v in given.items() if isinstance(v, keras.KerasTensor)}
    for name, tensor in given.items():
        axes = call.trace.axes_of(tensor)
        if name not in ("query", "value", "key") and labelled(axes):
            raise CannotFollow(f"units lie along an axis of its argument `{name}`")
        _only(axes, len(axes) - 1)
    given.setdefault("key", given["value"])
    return {name: call.trace.axes_of(tensor) for name, tensor in given.items()}, given


def _projections(
    call: Call, heads: dict[str, Labels], out: Labels, axes: dict[str, Axes]
) -> None:
    """Cut the projections of an attention layer."""
    layer, given = call.layer, _attended(call)[1]
    for name in ("query", "key", "value", "gate"):
        dense = getattr(layer, f"_{name}_dense", None)
        if dense is None:
            continue
        source = "query" if name == "gate" else name
        own = heads.get(source, heads["value"])
        maker = 1 if name == "value" else None
        call.cut(dense.kernel, axes[source][-1], own, None, maker=maker)
        call.cut(dense.bias, own, None)
        call.multiplies(dense.kernel, given[source].shape[1:-1])
    last, queries = layer._output_dense, heads["query"]
    call.cut(last.kernel, queries, None, out, maker=2)
    call.cut(last.bias, out)
    call.multiplies(last.kernel, given["query"].shape[1:-1])
    lengths = [*given["query"].shape[1:-1], *given["key"].shape[1:-1]]
    for size in (layer._query_dense.kernel.shape[-1], last.kernel.shape[1]):
        call.products.append([*lengths, queries, size])  # scores, and weighed values


def _attention_outputs(call: Call, heads: Labels, out: Labels) -> list[Axes]:
    first = replaced(whole(len(call.outputs[0].shape)), -1, out)
    scores = [replaced(whole(len(s.shape)), 1, heads) for s in call.outputs[1:]]
    return [first, *scores]


def _multi_head_attention(call: Call) -> list[Axes]:
    axes, _ = _attended(call)
    layer, shape = call.layer, call.outputs[0].shape
    own_shape = layer.get_config()["output_shape"]
    if own_shape is not None and len(own_shape) > 1:
        raise CannotFollow(f"its `output_shape` is {own_shape}")
    heads = call.new(layer.num_heads)
    out = call.new(shape[-1])
    named = {"query": heads, "value": heads}
    _projections(call, named, out, axes)
    call.config |= {"num_heads": heads, "output_shape": (out,)}
    return _attention_outputs(call, heads, out)


def _grouped_query_attention(call: Call) -> list[Axes]:
    axes, _ = _attended(call)
    layer = call.layer
    if axes["query"][-1] is None:
        raise CannotFollow("its output is as wide as its query, which can't be cut")
    heads = call.new(layer.num_key_value_heads)
    queries = np.repeat(heads, layer.num_query_heads // layer.num_key_value_heads)
    out = call.new(call.outputs[0].shape[-1])
    call.units.tie(axes["query"][-1], out)
    _projections(call, {"query": queries, "value": heads}, out, axes)
    call.config |= {"num_key_value_heads": heads, "num_query_heads": queries}
    return _attention_outputs(call, queries, out)


def _recurrent(call: Call) -> list[Axes]:
    if len(call.tensors) > 1:
        raise CannotFollow("its first state is an input")
    axes, layer = call.axes[0], call.layer
    if labelled(axes[:-1]):
        raise CannotFollow("units lie along its time steps")
    cell = layer.cell
    out = call.new(layer.units)
    gates = np.tile(out, cell.kernel.shape[1] // layer.units)
    call.cut(cell.kernel, axes[-1], gates, maker=1)
    call.cut(cell.recurrent_kernel, out, gates)
    for kernel in (cell.kernel, cell.recurrent_kernel):
        call.multiplies(kernel, call.tensors[0].shape[1:2])
    if cell.bias is not None:
        call.cut(cell.bias, *[None] * (len(cell.bias.shape) - 1), gates)
    call.config["units"] = out
    for name in ("activation", "recurrent_activation"):
        if not keeps_units_apart(getattr(layer, name, None), 2, 1):
            raise CannotFollow(f"its `{name}` reads several units at once")
    return [replaced(whole(len(o.shape)), -1, out) for o in call.outputs]


def _function(call: Call) -> Axes | list[Axes]:
    """A function of `keras.ops` of one tensor, if it takes elements one by one."""
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


def _arithmetic(call: Call) -> Axes:
    arguments = call.node.arguments
    for value in keras.tree.flatten((arguments.args, arguments.kwargs)):
        if isinstance(value, keras.KerasTensor) or np.ndim(value) == 0:
            continue
        if any(labelled(axes) for axes in call.axes):
            raise CannotFollow("it combines units with a constant array")
    result = combined(call, list(zip(call.tensors, call.axes, strict=True)))
    return (*whole(len(call.outputs[0].shape) - len(result)), *result)


def _mean(call: Call) -> Axes:
    axes, layer = call.single, call.layer
    rank = len(axes)
    reduced = range(rank) if layer.axis is None else _of_listed(layer.axis)
    gone = {axis % rank for axis in reduced}
    if any(axes[axis] is not None for axis in gone):
        raise CannotFollow("it takes a mean over units")
    kept = [labels for axis, labels in enumerate(axes) if axis not in gone]
    return axes if layer.keepdims else tuple(kept)


def _transpose(call: Call) -> Axes:
    axes, order = call.single, call.layer.axes
    return tuple(axes[axis] for axis in order or reversed(range(len(axes))))


def _item(call: Call) -> Axes:
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


def _table(groups: dict[Rule, str]) -> dict[type, Rule]:
    return {
        getattr(layers, name): rule
        for rule, names in groups.items()
        for name in names.split()
    }


_OF_LAYERS = _table(
    {
        _dense: "Dense",
        _embedding: "Embedding",
        _convolution: "Conv1D Conv2D Conv3D "
        "Conv1DTranspose Conv2DTranspose Conv3DTranspose",
        _depthwise: "DepthwiseConv1D DepthwiseConv2D",
        _separable: "SeparableConv1D SeparableConv2D",
        _normalization: "BatchNormalization LayerNormalization RMSNormalization",
        _group_normalization: "GroupNormalization",
        _of_preprocessing: "Normalization CategoryEncoding Discretization Hashing "
        "IntegerLookup StringLookup TextVectorization",
        _rescaling: "Rescaling",
        _prelu: "PReLU",
        _same: "ReLU LeakyReLU ELU Identity UnitNormalization ActivityRegularization "
        "GaussianNoise GaussianDropout AlphaDropout SpatialDropout1D SpatialDropout2D "
        "SpatialDropout3D",
        _dropout: "Dropout",
        _activation: "Activation",
        _softmax: "Softmax",
        _pooling: "AveragePooling1D AveragePooling2D AveragePooling3D MaxPooling1D "
        "MaxPooling2D MaxPooling3D GlobalAveragePooling1D GlobalAveragePooling2D "
        "GlobalAveragePooling3D GlobalMaxPooling1D GlobalMaxPooling2D "
        "GlobalMaxPooling3D UpSampling1D UpSampling2D UpSampling3D ZeroPadding1D "
        "ZeroPadding2D ZeroPadding3D Cropping1D Cropping2D Cropping3D",
        _flatten: "Flatten",
        _reshape: "Reshape",
        _permute: "Permute",
        _repeat_vector: "RepeatVector",
        _merge: "Add Subtract Multiply Average Maximum Minimum",
        _concatenate: "Concatenate",
        _multi_head_attention: "MultiHeadAttention",
        _grouped_query_attention: "GroupQueryAttention",
        _recurrent: "LSTM GRU SimpleRNN",
    }
)
_OF_APPLICATIONS: dict[str, Callable[[Call], Any]] = {
    "LayerScale": _layer_scale,
    "StochasticDepth": _same,
}
_OF_FUNCTIONS: dict[str, Callable[[Call], Any]] = {
    "Add": _arithmetic,
    "Subtract": _arithmetic,
    "Multiply": _arithmetic,
    "Divide": _arithmetic,
    "TrueDivide": _arithmetic,
    "Maximum": _arithmetic,
    "Minimum": _arithmetic,
    "Mean": _mean,
    "Transpose": _transpose,
    "Concatenate": _concatenate,
    "GetItem": _item,
}
