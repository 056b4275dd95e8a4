"""Rules of attention layers, of which whole heads are cut."""

import inspect
from typing import Any

import keras
import numpy as np

from keras_distill.students.axes import (
    only,
)
from keras_distill.students.tracing import Call, CannotFollow
from keras_distill.students.units import (
    Axes,
    Labels,
    labelled,
    replaced,
    whole,
)


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
        only(axes, len(axes) - 1)
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


def multi_head_attention(call: Call) -> list[Axes]:
    """Heads are units. They are cut with their part of each projection."""
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


def grouped_query_attention(call: Call) -> list[Axes]:
    """Key heads are units. They are cut with the query heads that read them."""
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
