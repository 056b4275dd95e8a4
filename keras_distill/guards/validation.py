"""Checks of validation data before the first epoch, as evaluation comes after it."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_distill import backend
from keras_distill.inputs import select
from keras_distill.types import Nested

tree = keras.tree


def check_validation_data(
    student: keras.Model, data: Any, labels: Nested, *, unlabelled: bool = False
) -> None:
    """Raise ValueError if evaluation after the first epoch would fail on the data.

    Args:
        student: The model that is evaluated.
        data: `validation_data` as in `keras.Model.fit`.
        labels: The labels to train with; None if they aren't known.
        unlabelled: Whether evaluation works without labels.
    """
    unpacked = _unpacked(data)
    if unpacked is None:
        return
    x, y = unpacked
    select(student, x)
    if y is None and unlabelled:
        return
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


def unlabelled_inputs(data: Any) -> Nested:
    """Return the inputs of validation data without labels, or their specs.

    Return None if there are labels, or if only reading the data would show that.
    """
    unpacked = _unpacked(data)
    return None if unpacked is None or unpacked[1] is not None else unpacked[0]


def labels_of(x: Any, y: Nested) -> Nested:
    """Return the labels that `fit` receives, or their specs; None if not known."""
    if y is not None:
        return y
    is_dataset = backend.dataset_spec(x) is not None
    unpacked = _unpacked(x) if is_dataset else None
    return unpacked[1] if unpacked else None


def _unpacked(data: Any) -> tuple[Nested, Nested] | None:
    """Return inputs and labels, or their specs; None if only reading shows them."""
    spec = backend.dataset_spec(data)
    if spec is not None:
        data = spec
        if not isinstance(data, tuple):
            return data, None
    if not isinstance(data, tuple | list) or not 1 <= len(data) <= 3:
        return None
    return data[0], data[1] if len(data) > 1 else None


def _pairs(y: Nested, labels: Nested, names: Any) -> list[tuple[Any, Any]]:
    """Return pairs of validation labels and training labels of the same output.

    Labels that can't be matched are left to Keras, which accepts more forms, e.g. lists
    that leave out outputs.
    """
    if not tree.is_nested(y) and not tree.is_nested(labels):
        return [(y, labels)]
    y, labels = _by_name(y, names), _by_name(labels, names)
    return [(y[name], labels[name]) for name in y if name in labels]


def _by_name(labels: Nested, names: Any) -> dict[Any, Any]:
    if isinstance(labels, Mapping):
        return dict(labels)
    if isinstance(labels, list | tuple) and len(labels) == len(names or ()):
        return dict(zip(names, labels, strict=True))
    return {}


def _rank(label: Any) -> int | None:
    """Return the rank of labels without their last axes of size 1; None if unknown."""
    try:
        shape = tuple(label.shape)
    except (AttributeError, TypeError, ValueError):
        # A TensorFlow shape of unknown rank can't become a tuple.
        return None
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    return len(shape)


def _shapes(labels: Nested) -> Nested:
    return tree.map_structure(lambda x: getattr(x, "shape", x), labels)
