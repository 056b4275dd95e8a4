"""The mean of what several models say, of their logits or of their probabilities."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

Tensor = Any
tree = keras.tree

_COMBINATIONS = ("logits", "probabilities")
_ACTIVATIONS = ("softmax", "sigmoid")


def check_combination(combine: str, activation: str) -> None:
    """Raise ValueError unless there is such a mean."""
    for name, value, known in (
        ("combine", combine, _COMBINATIONS),
        ("activation", activation, _ACTIVATIONS),
    ):
        if value not in known:
            raise ValueError(
                f"`{name}` must be one of {known}. Received: {name}={value!r}"
            )


def mean_outputs(
    outputs: Sequence[Any],
    shares: Sequence[Any] | None = None,
    *,
    combine: str = "logits",
    activation: str = "softmax",
    axis: int = -1,
) -> Any:
    """Return the mean of several models' outputs, in the structure of one's.

    Args:
        outputs: The outputs of each model, tensors or structures of them, logits.
        shares: What each model contributes, numbers that sum to 1, or structures like
            the outputs of tensors that broadcast to them. Defaults to equal shares.
        combine: `"logits"` or `"probabilities"`. The mean of probabilities is
            returned as logits too, `log(mean(softmax(t)))`, at temperature 1.
        activation: `"softmax"` over `axis`, or `"sigmoid"` of each unit; what makes
            probabilities of these logits.
        axis: The class axis.

    Raises:
        ValueError: If the models' outputs differ in structure or shape.
    """
    _check_alike(outputs)
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
            yes = _log_mean([ops.log_sigmoid(x) for x in tensors], parts)
            return yes - _log_mean([ops.log_sigmoid(-x) for x in tensors], parts)
        return _log_mean([ops.log_softmax(x, axis=axis) for x in tensors], parts)

    return tree.map_structure(mean, *outputs, *of_each_output)


def _part(share: Any, x: Tensor) -> Tensor:
    """Return `share * x`; 0 of a class that is ruled out, infinity, is 0."""
    if isinstance(share, float):
        return share * x
    share = ops.cast(share, x.dtype)
    return ops.where(share == 0.0, ops.zeros_like(x), share * x)


def _log_mean(logs: Sequence[Tensor], shares: Sequence[Any]) -> Tensor:
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


def _check_alike(outputs: Sequence[Any]) -> None:
    shapes = [
        tree.map_structure(lambda x: tuple(ops.convert_to_tensor(x).shape), output)
        for output in outputs
    ]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            "Models whose mean is taken must have outputs of one structure and shape. "
            f"Received: outputs of shapes {shapes}"
        )
