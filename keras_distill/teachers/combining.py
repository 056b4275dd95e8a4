"""The mean of several models' outputs: of their logits or of their probabilities."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.losses.calling import of_one_rank, with_known_shape
from keras_distill.losses.checks import may_have_shape
from keras_distill.types import Nested, Tensor

tree = keras.tree

_COMBINATIONS = ("logits", "probabilities")
_ACTIVATIONS = ("softmax", "sigmoid")


def check_combination(combine: str, activation: str) -> None:
    """Raise ValueError if `mean_outputs` doesn't support an argument's value."""
    for name, value, known in (
        ("combine", combine, _COMBINATIONS),
        ("activation", activation, _ACTIVATIONS),
    ):
        if value not in known:
            raise ValueError(
                f"`{name}` must be one of {known}. Received: {name}={value!r}"
            )


def mean_outputs(
    outputs: Sequence[Nested],
    shares: Sequence[Any] | None = None,
    *,
    combine: str = "logits",
    activation: str = "softmax",
    axis: int = -1,
) -> Nested:
    """Return the mean of several models' outputs, in the structure of one model's.

    Args:
        outputs: The outputs of each model: a tensor of logits, or a structure of such
            tensors.
        shares: The share of each model: a number, or tensors that broadcast to the
            outputs, in their structure. Shares sum to 1. Defaults to equal shares.
        combine: `"logits"` or `"probabilities"`. The mean of probabilities is
            returned as logits too, `log(mean(softmax(t)))`, at temperature 1.
        activation: The function that turns logits into probabilities, `"softmax"` over
            `axis`, or `"sigmoid"` of each unit.
        axis: The class axis.

    Raises:
        ValueError: If the models' outputs differ in structure or shape.
    """
    outputs = alike(outputs)
    if shares is None:
        shares = [1.0 / len(outputs)] * len(outputs)
    of_each_output = [
        share
        if tree.is_nested(share)
        else tree.map_structure(lambda _, s=share: s, out)
        for share, out in zip(shares, outputs, strict=True)
    ]

    def mean(*tensors_and_shares: Any) -> Tensor:
        tensors = [_at_least_float32(x) for x in tensors_and_shares[: len(outputs)]]
        parts = tensors_and_shares[len(outputs) :]
        if combine == "logits":
            return _sum([_part(s, x) for s, x in zip(parts, tensors, strict=True)])
        if activation == "sigmoid":
            # The logit of the mean is log(p) - log(1 - p), each in log space.
            yes = _log_mean([ops.log_sigmoid(x) for x in tensors], parts)
            return yes - _log_mean([ops.log_sigmoid(-x) for x in tensors], parts)
        return _log_mean([ops.log_softmax(x, axis=axis) for x in tensors], parts)

    return tree.map_structure(mean, *outputs, *of_each_output)


def _part(share: Any, x: Tensor) -> Tensor:
    """Return `share * x`, where a share of 0 gives 0 also for infinite logits."""
    if isinstance(share, float):
        return share * x
    share = ops.cast(share, x.dtype)
    return ops.where(share == 0.0, ops.zeros_like(x), share * x)


def _log_mean(logs: Sequence[Tensor], shares: Sequence[Any]) -> Tensor:
    """Return the logarithm of the weighted mean of `exp(logs)`."""
    weighted = [
        x + ops.log(ops.cast(share, x.dtype))
        for x, share in zip(logs, shares, strict=True)
    ]
    return ops.logsumexp(ops.stack(weighted), axis=0)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    return sum(terms[1:], start=terms[0])


def _at_least_float32(x: Any) -> Tensor:
    x = ops.convert_to_tensor(x)
    dtype = keras.backend.standardize_dtype(x.dtype)
    return x if dtype in ("float32", "float64") else ops.cast(x, "float32")


def alike(outputs: Sequence[Nested]) -> list[Nested]:
    """Return several models' outputs as tensors of the same shape.

    A last axis of size 1 is added or removed where only some models' outputs have it.
    An output without a static shape, such as one of `tf.py_function`, gets the shape of
    the others.

    Raises:
        ValueError: If structures or shapes differ in another way, or if no model's
            shape is known.
    """
    outputs = [tree.map_structure(ops.convert_to_tensor, output) for output in outputs]
    try:
        flat = [tree.flatten(output) for output in outputs]
        for output in outputs[1:]:
            tree.assert_same_structure(outputs[0], output)
        of_outputs = [_of_one_shape(tensors) for tensors in zip(*flat, strict=True)]
    except (TypeError, ValueError) as error:
        shapes = [tree.map_structure(_shape, output) for output in outputs]
        advice = ""
        if "unknown" in tree.flatten(shapes):
            advice = "Give them static shapes with `tf.ensure_shape`. "
        raise ValueError(
            "Models whose mean is taken must have outputs of one structure and shape. "
            f"{advice}Received: outputs of shapes {shapes}"
        ) from error
    of_models = zip(*of_outputs, strict=True)
    return [tree.pack_sequence_as(outputs[0], list(tensors)) for tensors in of_models]


def _of_one_shape(tensors: Sequence[Tensor]) -> list[Tensor]:
    known = [tensor for tensor in tensors if _shape(tensor) != "unknown"]
    ranks = sorted(known, key=lambda tensor: len(tensor.shape))
    if not known:
        raise ValueError
    # A vector becomes a column; from a higher rank, the last axis is removed.
    like = ranks[0] if len(ranks[0].shape) > 1 else ranks[-1]
    same = [of_one_rank(with_known_shape(x, like), like)[0] for x in tensors]
    if any(not may_have_shape(tensor, like.shape) for tensor in same):
        raise ValueError
    return same


def _shape(tensor: Tensor) -> Any:
    # Only TensorFlow has shapes of unknown rank.
    if getattr(tensor.shape, "rank", 0) is None:
        return "unknown"
    return tuple(tensor.shape)
