"""Validation data that evaluation can't take, found before the first epoch."""

from typing import Any

import keras
import tensorflow as tf

from keras_distill import features

tree = keras.tree


def check_validation_data(student: keras.Model, data: Any, labels: Any) -> None:
    """Raise ValueError where `fit` would, after its first epoch.

    Args:
        student: The model that is evaluated.
        data: `validation_data` as in `keras.Model.fit`.
        labels: The labels to train with, None where they aren't known.
    """
    unpacked = _unpacked(data)
    if unpacked is None:
        return
    x, y = unpacked
    features.select(student, x)
    if y is None:
        raise ValueError(
            "Evaluation needs labels. Pass `validation_data=(x, y)`, or none where "
            "there are no labels. Received: validation_data without labels"
        )
    if labels is not None and _ranks(y) != _ranks(labels):
        raise ValueError(
            "The labels of `validation_data` must have the form of the labels to train "
            f"with. Received: validation labels of shape {_shapes(y)}, labels to train "
            f"with of shape {_shapes(labels)}"
        )


def labels_of(x: Any, y: Any) -> Any:
    """Return the labels of what `fit` is given, None where they aren't known."""
    if y is not None:
        return y
    unpacked = _unpacked(x) if isinstance(x, tf.data.Dataset) else None
    return unpacked[1] if unpacked else None


def _unpacked(data: Any) -> tuple[Any, Any] | None:
    """Return inputs and labels, or their specs; None where it takes a read to know."""
    if isinstance(data, tf.data.Dataset):
        data = data.element_spec
        if not isinstance(data, tuple):
            return data, None
    if not isinstance(data, tuple | list) or not 1 <= len(data) <= 3:
        return None
    return data[0], data[1] if len(data) > 1 else None


def _ranks(labels: Any) -> Any:
    """Return the ranks of labels by their path; axes of size 1 at the end don't count.

    Of a list and of a dict, which Keras takes in the same order, the same.
    """
    return [_rank(tuple(shape)) for shape in tree.flatten(_shapes(labels))]


def _rank(shape: Any) -> int:
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return len(shape)


def _shapes(labels: Any) -> Any:
    return tree.map_structure(
        lambda x: tf.TensorShape(getattr(x, "shape", None)), labels
    )
