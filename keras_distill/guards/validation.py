"""Validation data that evaluation can't take, found before the first epoch."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_distill.inputs import select

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
    select(student, x)
    if y is None:
        raise ValueError(
            "Evaluation needs labels. Pass `validation_data=(x, y)`, or none where "
            "there are no labels. Received: validation_data without labels"
        )
    names = getattr(student, "output_names", None)
    for one, other in _pairs(y, labels, names):
        ranks = _rank(one), _rank(other)
        if None not in ranks and ranks[0] != ranks[1]:
            raise ValueError(
                "The labels of `validation_data` must have the form of the labels to "
                f"train with. Received: validation labels of shape {_shapes(y)}, "
                f"labels to train with of shape {_shapes(labels)}"
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


def _pairs(y: Any, labels: Any, names: Any) -> list[tuple[Any, Any]]:
    """Return the labels that surely stand for one output.

    Keras brings together what else it takes, such as lists that leave outputs out.
    """
    if not tree.is_nested(y) and not tree.is_nested(labels):
        return [(y, labels)]
    y, labels = _by_name(y, names), _by_name(labels, names)
    return [(y[name], labels[name]) for name in y if name in labels]


def _by_name(labels: Any, names: Any) -> dict[Any, Any]:
    if isinstance(labels, Mapping):
        return dict(labels)
    if isinstance(labels, list | tuple) and len(labels) == len(names or ()):
        return dict(zip(names, labels, strict=True))
    return {}


def _rank(label: Any) -> int | None:
    """Return a label's rank, but for axes of size 1 at the end; None if not known."""
    if not isinstance(shape := getattr(label, "shape", None), tf.TensorShape | tuple):
        return None
    shape = tf.TensorShape(shape)
    while shape.rank is not None and shape.rank > 1 and shape[-1] == 1:
        shape = shape[:-1]
    rank: int | None = shape.rank
    return rank


def _shapes(labels: Any) -> Any:
    return tree.map_structure(lambda x: getattr(x, "shape", x), labels)
