"""Masks of a loss's values, converted to sample weights.

Keras reads the mask of a loss from an attribute of a tensor, which has no public
setter. A sample weight is public and has the same effect.
"""

from typing import Any

from keras import ops

from keras_distill import backend
from keras_distill.losses.ranks import of_one_rank
from keras_distill.per_output import of_rank
from keras_distill.types import Tensor

# Reductions that are means over all values.
MEANS = ("mean", "sum_over_batch_size")


def masked_weights(
    mask: Tensor | None, sample_weight: Any, reduction: str | None, dtype: Any
) -> Any:
    """Return sample weights that have the same effect as a mask of a loss's values.

    Masked values have weight 0. The reductions `"mean"` and `"sum_over_batch_size"`
    divide by the number of all values, so the weights of the other values are
    multiplied by `values / valid values`. Keras computes the same from a mask. But if
    several devices share a batch, it counts only the values of one device.

    Args:
        mask: Boolean, of the shape of the loss's values. True or nonzero where a value
            counts; None if all values count.
        sample_weight: The sample weights of the call, or None.
        reduction: The `reduction` of the loss.
        dtype: The `dtype` of the loss.

    Returns:
        A tensor of `dtype`; `sample_weight` itself if there is no mask.
    """
    if mask is None:
        return sample_weight
    mask = ops.convert_to_tensor(mask)
    weight = ops.cast(mask, dtype)
    if reduction in MEANS:
        # Keras counts the values in the loss's dtype too.
        total = ops.cast(ops.prod(ops.convert_to_tensor(ops.shape(mask))), dtype)
        # Devices that share a batch may have different numbers of valid values.
        total, valid = map(backend.sum_over_replicas, (total, ops.sum(weight)))
        share = ops.divide_no_nan(total, valid)
        weight = ops.where(ops.cast(mask, "bool"), share, ops.zeros_like(weight))
    if sample_weight is None:
        return weight
    sample_weight = ops.cast(ops.convert_to_tensor(sample_weight), dtype)
    weight, sample_weight = of_one_rank(weight, sample_weight)
    return weight * sample_weight


def both(mask: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return where both masks are True. None counts as True everywhere."""
    if mask is None or other is None:
        return other if mask is None else mask
    mask, other = (ops.cast(each, "bool") for each in (mask, other))
    return ops.logical_and(*of_one_rank(mask, other))


def token_weights(values: Tensor, sample_weight: Any, valid: Tensor | None) -> Tensor:
    """Return the weight of each token, 0 where it isn't valid.

    Args:
        values: A tensor of the tokens' shape, e.g. `(batch, time)`, and of the weights'
            dtype.
        sample_weight: Of shape `(batch,)`, `(batch, 1)` or `(batch, time)`, or None.
        valid: Boolean, of shape `(batch, time)`, or None.
    """
    weight = ops.ones_like(values)
    if sample_weight is not None:
        weight = weight * ops.cast(of_rank(sample_weight, values), weight.dtype)
    if valid is not None:
        weight = ops.where(ops.cast(of_rank(valid, values), "bool"), weight, 0.0)
    return weight


def are_valid(weight: Tensor) -> Tensor:
    """Return 1 for tokens whose weight isn't 0, else 0, in the dtype of `weight`."""
    return ops.cast(ops.not_equal(weight, 0.0), weight.dtype)
