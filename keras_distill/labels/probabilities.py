"""A check of binary cross-entropies: their labels must lie in [0, 1]."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import backend
from keras_distill.per_output import of_rank
from keras_distill.types import Nested, Path, Tensor

tree = keras.tree

BAD_LABELS = (
    "Labels of a binary cross-entropy must lie in [0, 1]. Name a `label_mask`, or give "
    "a sample weight of 0, where there is no label. Received: labels between"
)

_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)


def checked_probabilities(
    loss: Any,
    labels: Nested,
    sample_weight: Nested = None,
    *,
    output_names: Sequence[str] | None = None,
    xla: bool = False,
) -> tuple[Nested, Tensor]:
    """Check that the labels of binary cross-entropies lie in [0, 1].

    A label outside of [0, 1] raises an error if TensorFlow runs the step without XLA. A
    step that XLA or JAX compiles can't raise errors. There, zeros replace the labels,
    so that the weights stay finite until the caller reads the returned flag.

    Rows of weight 0 may have any label but NaN, because 0 * NaN is NaN.

    Args:
        loss: The label loss, or a structure of losses like the outputs.
        labels: The labels.
        sample_weight: As in `keras.Model.fit`.
        output_names: The names of the outputs in order, if the model has names.
        xla: Whether XLA compiles the step.

    Returns:
        The labels, and whether all of them are valid, a boolean scalar.

    Raises:
        tf.errors.InvalidArgumentError: If a label is outside of [0, 1], or is NaN.
    """
    losses = _by_path_of_labels(loss, labels, output_names)
    weights = {tuple(p): weight for p, weight in tree.flatten_with_path(sample_weight)}
    checked: list[Any] = []
    all_valid = ops.convert_to_tensor(True)
    for path, label in tree.flatten_with_path(labels):
        path = tuple(path)
        # One loss or weight for all outputs has the path ().
        if label is None:
            _check_needs_no_label(losses.get(path, losses.get(())), path)
            checked.append(None)
            continue
        label = ops.convert_to_tensor(label)
        of_binary = _is_binary_crossentropy(losses.get(path, losses.get(())))
        if of_binary and keras.backend.standardize_dtype(label.dtype) != "bool":
            counting = _counting(label, weights.get(path, weights.get(())))
            # Under XLA, a check of the smallest and largest label would miss NaN.
            within = ops.logical_and(counting >= 0, counting <= 1)
            valid = ops.all(within)
            if raises(xla=xla):
                span = [ops.min(counting), ops.max(counting)]
                label = backend.after_check(label, valid, BAD_LABELS, span)
            else:
                label = ops.where(valid, label, ops.zeros_like(label))
            all_valid = ops.logical_and(all_valid, valid)
        checked.append(label)
    return tree.pack_sequence_as(labels, checked), all_valid


def raises(*, xla: bool) -> bool:
    """Return whether bad labels raise an error; otherwise they are only flagged."""
    return backend.is_tensorflow() and not xla


def _by_path_of_labels(
    loss: Any, labels: Nested, names: Sequence[str] | None
) -> dict[Path, Any]:
    """Return losses by the path of their labels, matched as Keras does it."""
    flat = tree.flatten(loss)
    if not tree.is_nested(labels) and len(flat) == 1:
        return {(): flat[0]}
    if isinstance(loss, Mapping) and not isinstance(labels, Mapping):
        loss = [loss.get(name) for name in names or ()]
    elif isinstance(labels, Mapping) and isinstance(loss, list | tuple):
        loss = dict(zip(names or (), loss, strict=False))
    return {tuple(path): item for path, item in tree.flatten_with_path(loss)}


def _check_needs_no_label(loss: Any, path: Path) -> None:
    if loss is not None:
        raise ValueError(
            f"Output {list(path)} has a loss, but no labels. Pass them, or give None "
            f"as its loss. Received: y=None and loss={loss} for this output"
        )


def _is_binary_crossentropy(loss: Any) -> bool:
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        # The shape of the output decides which loss it is.
        return False
    found = keras.losses.get(loss)
    if isinstance(found, functools.partial):
        found = found.func
    return isinstance(found, _BINARY) or found in (
        keras.losses.binary_crossentropy,
        keras.losses.binary_focal_crossentropy,
    )


def _counting(label: Tensor, weight: Tensor | None) -> Tensor:
    """Return the labels, with 0 for rows whose weight is 0."""
    if weight is None:
        return label
    counts = ops.not_equal(of_rank(weight, label), 0)
    # NaN counts in any row. Only NaN doesn't equal itself.
    counts = ops.logical_or(counts, ops.not_equal(label, label))
    return ops.where(counts, label, ops.zeros_like(label))
