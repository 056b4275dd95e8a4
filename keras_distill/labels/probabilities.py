"""Labels that are probabilities must lie in [0, 1]."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill import per_output
from keras_distill.per_output import of_rank
from keras_distill.types import Tensor

tree = keras.tree

BAD_LABELS = (
    "Labels of a binary cross-entropy must lie in [0, 1]. Name a `label_mask`, or give "
    "a sample weight of 0, where there is no label. Received: labels between"
)

_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)


def checked_probabilities(
    loss: Any,
    labels: Any,
    sample_weight: Any = None,
    *,
    output_names: Sequence[str] | None = None,
    xla: bool = False,
) -> tuple[Any, Tensor]:
    """Raise where the labels of a binary cross-entropy lie outside [0, 1].

    Rows of weight 0 are passed over, except for NaN, which no weight makes up for.

    Args:
        loss: The label loss, or a structure of them that mirrors the outputs.
        labels: The labels.
        sample_weight: As in `keras.Model.fit`.
        output_names: The names of the outputs in order, where the model has any.
        xla: Whether the step is compiled by XLA, which drops assertions silently.
            There zeros take the place of such labels, so that the step's weights
            stay finite until someone looks at what is returned.

    Returns:
        The labels, and whether all are as they must be, a boolean scalar.

    Raises:
        tf.errors.InvalidArgumentError: If a label lies outside; so does NaN.
    """
    losses = _by_path_of_labels(loss, labels, output_names)
    weights = {tuple(p): weight for p, weight in tree.flatten_with_path(sample_weight)}
    checked: list[Any] = []
    all_valid = tf.constant(True)
    for path, label in tree.flatten_with_path(labels):
        path = tuple(path)
        # () is the path of what is given once for all outputs
        if label is None:
            _check_needs_no_label(losses.get(path, losses.get(())), path)
            checked.append(None)
            continue
        label = ops.convert_to_tensor(label)
        of_binary = _is_binary_crossentropy(losses.get(path, losses.get(())))
        if of_binary and not label.dtype.is_bool:
            counting = _counting(label, weights.get(path, weights.get(())))
            # not by their range: where XLA looks for one, it passes over NaN
            valid = tf.reduce_all((counting >= 0) & (counting <= 1))
            if xla:
                label = tf.where(valid, label, tf.zeros_like(label))
            else:
                label = _asserted(valid, label, counting)
            all_valid &= valid
        checked.append(label)
    return tree.pack_sequence_as(labels, checked), all_valid


def _by_path_of_labels(
    loss: Any, labels: Any, names: Sequence[str] | None
) -> dict[per_output.Path, Any]:
    """Return losses by the path of their labels, as Keras matches the two."""
    flat = tree.flatten(loss)
    if not tree.is_nested(labels) and len(flat) == 1:
        return {(): flat[0]}
    if isinstance(loss, Mapping) and not isinstance(labels, Mapping):
        loss = [loss.get(name) for name in names or ()]
    elif isinstance(labels, Mapping) and isinstance(loss, list | tuple):
        loss = dict(zip(names or (), loss, strict=False))
    return {tuple(path): item for path, item in tree.flatten_with_path(loss)}


def _check_needs_no_label(loss: Any, path: per_output.Path) -> None:
    if loss is not None:
        raise ValueError(
            f"Output {list(path)} has a loss, but no labels. Pass them, or give None "
            f"as its loss. Received: y=None and loss={loss} for this output"
        )


def _is_binary_crossentropy(loss: Any) -> bool:
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        return False  # the shape of the output decides
    found = keras.losses.get(loss)
    if isinstance(found, functools.partial):
        found = found.func
    return isinstance(found, _BINARY) or found in (
        keras.losses.binary_crossentropy,
        keras.losses.binary_focal_crossentropy,
    )


def _counting(label: Tensor, weight: Tensor | None) -> Tensor:
    """Return the labels with 0 in place of those that don't count."""
    if weight is None:
        return label
    counts = ops.not_equal(of_rank(weight, label), 0)
    counts |= ops.not_equal(label, label)  # 0 * NaN would be NaN
    return ops.where(counts, label, ops.zeros_like(label))


def _asserted(valid: Tensor, label: Tensor, counting: Tensor) -> Tensor:
    found = [tf.reduce_min(counting), tf.reduce_max(counting)]
    # what is computed of the labels, updates included, is to wait for the check
    with tf.control_dependencies([tf.debugging.Assert(valid, [BAD_LABELS, *found])]):
        return tf.identity(label)
