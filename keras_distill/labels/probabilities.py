"""Labels that are probabilities must lie in [0, 1]."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill import outputs
from keras_distill.outputs import of_rank

Tensor = Any
tree = keras.tree

_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)


def checked_probabilities(
    loss: Any,
    labels: Any,
    sample_weight: Any = None,
    *,
    output_names: Sequence[str] | None = None,
) -> Any:
    """Return the labels, or raise where a binary cross-entropy's lie outside [0, 1].

    Rows of weight 0 are passed over, except for NaN, which no weight makes up for. A
    step that XLA compiles doesn't check.

    Args:
        loss: The label loss, or a structure of them that mirrors the outputs.
        labels: The labels.
        sample_weight: As in `keras.Model.fit`.
        output_names: The names of the outputs in order, where the model has any.

    Raises:
        tf.errors.InvalidArgumentError: If a label lies outside; so does NaN.
    """
    losses = _by_path_of_labels(loss, labels, output_names)
    weights = {tuple(p): weight for p, weight in tree.flatten_with_path(sample_weight)}
    checked = []
    for path, label in tree.flatten_with_path(labels):
        path = tuple(path)
        # () is the path of what is given once for all outputs
        if _is_binary_crossentropy(losses.get(path, losses.get(()))):
            weight = weights.get(path, weights.get(()))
            label = _checked_unit_interval(ops.convert_to_tensor(label), weight)
        checked.append(label)
    return tree.pack_sequence_as(labels, checked)


def _by_path_of_labels(
    loss: Any, labels: Any, names: Sequence[str] | None
) -> dict[outputs.Path, Any]:
    """Return losses by the path of their labels, as Keras matches the two."""
    flat = tree.flatten(loss)
    if not tree.is_nested(labels) and len(flat) == 1:
        return {(): flat[0]}
    if isinstance(loss, Mapping) and not isinstance(labels, Mapping):
        loss = [loss.get(name) for name in names or ()]
    elif isinstance(labels, Mapping) and isinstance(loss, list | tuple):
        loss = dict(zip(names or (), loss, strict=False))
    return {tuple(path): item for path, item in tree.flatten_with_path(loss)}


def _is_binary_crossentropy(loss: Any) -> bool:
    found = keras.losses.get(loss)
    return isinstance(found, _BINARY) or found in (
        keras.losses.binary_crossentropy,
        keras.losses.binary_focal_crossentropy,
    )


def _checked_unit_interval(label: Tensor, weight: Tensor | None) -> Tensor:
    if not label.dtype.is_floating and not label.dtype.is_integer:
        return label
    seen = label
    if weight is not None:
        weighs = ops.not_equal(of_rank(weight, label), 0)
        weighs |= ops.not_equal(label, label)  # 0 * NaN would be NaN
        seen = ops.where(weighs, label, ops.zeros_like(label))
    low, high = tf.reduce_min(seen), tf.reduce_max(seen)
    message = (
        "Labels of a binary cross-entropy must lie in [0, 1]. Name a `label_mask`, or "
        "give a sample weight of 0, where there is no label. Received: labels between"
    )
    valid = (low >= 0) & (high <= 1) | tf.equal(tf.size(label), 0)
    # what is computed of the labels, updates included, is to wait for the check
    with tf.control_dependencies([tf.debugging.Assert(valid, [message, low, high])]):
        return tf.identity(label)
