"""Labels of a softmax output, converted to class ids."""

from typing import Any

import keras
from keras import ops

from keras_distill.losses import checks
from keras_distill.per_output import of_rank
from keras_distill.types import Tensor


def target_ids(
    labels: Any, logits: Tensor, axis: int, *, labelled: Any, reader: str
) -> Tensor:
    """Return the class of each example, in the outputs' shape without the class axis.

    Args:
        labels: Class ids of that shape, or with an additional last axis of size 1. Or a
            number for each class; the largest number is at the label.
        logits: The outputs.
        axis: The class axis.
        labelled: Boolean: which rows have a label. Other rows get the id 0. None if all
            rows have a label.
        reader: The name of the loss that reads the labels, for error messages.

    Raises:
        ValueError: If the shapes don't fit, or a label isn't a class. The classes
            aren't checked in steps that XLA or JAX compiles.
    """
    labels = ops.convert_to_tensor(labels)
    shape = list(logits.shape)
    shape.pop(axis)
    if checks.may_have_shape(labels, logits.shape):
        # In a graph, this raises an error if a dimension that wasn't known differs.
        labels = ops.reshape(labels, ops.shape(logits))
        return ops.argmax(ops.cast(labels, logits.dtype), axis=axis)
    if checks.may_have_shape(labels, [*shape, 1]):
        labels = ops.squeeze(labels, -1)
    if not checks.may_have_shape(labels, shape):
        raise ValueError(
            f"The labels that `{reader}` reads must have the shape of the outputs, "
            "with or without the class axis. Received: labels of shape "
            f"{tuple(labels.shape)} for outputs of shape {tuple(logits.shape)}, "
            f"axis={axis}"
        )
    if keras.backend.is_float_dtype(keras.backend.standardize_dtype(labels.dtype)):
        # Backends cast NaN to different integers. One of them is 0, which is a class.
        labels = ops.where(ops.isnan(labels), -ops.ones_like(labels), labels)
    ids = ops.cast(labels, "int32")
    if labelled is not None:
        ids = ops.where(ops.cast(of_rank(labelled, ids), "bool"), ids, 0)
    checks.check_class_ids(ids, ops.shape(logits)[axis], reader)
    return ids
