"""The arguments of label losses that leave out the rows without a label."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import backend, per_output
from keras_distill.labels import structures, units
from keras_distill.labels.row_values import RowValues
from keras_distill.losses.weighting import MEANS, masked_weights
from keras_distill.per_output import of_rank
from keras_distill.types import Nested, Path, Tensor

tree = keras.tree

# The reduction that Keras uses for losses that are functions or names.
_DEFAULT_REDUCTION = "sum_over_batch_size"


class LossInputs(NamedTuple):
    """The arguments of label losses, in the structure of the outputs.

    Args:
        labels: The labels.
        predictions: The outputs.
        sample_weight: The sample weights; None without weights.
    """

    labels: Nested
    predictions: Nested
    sample_weight: Nested


def loss_inputs(
    masks: Mapping[Path, Tensor],
    labels: Nested,
    predictions: Nested,
    sample_weight: Nested,
    *,
    losses: Any,
    names: Sequence[str] | None,
    row_values: RowValues,
) -> LossInputs:
    """Return the arguments of label losses, with the masks as sample weights.

    If an output has a Keras mask, e.g. from the layer `Masking`, this mask is combined
    with the label mask. The output is then returned without a mask.

    Args:
        masks: The label masks by the path of their output.
        labels: The labels in the structure of the outputs.
        predictions: The outputs.
        sample_weight: One tensor for all outputs, or a structure like theirs.
        losses: As `loss` in `keras.Model.compile`.
        names: The names of the outputs in order, if the model has names.
        row_values: Checks that the losses have a value for each row.

    Raises:
        ValueError: If a loss doesn't have a value for each value of its mask.
    """
    given = []
    for path, output in tree.flatten_with_path(predictions):
        path = tuple(path)
        of_output = structures.losses_at(path, losses, predictions, names=names)
        label = per_output.found(path, labels)
        # An output without a loss needs no weights, because Keras doesn't read them.
        weight_at = per_output.weight_at if of_output else _weight_found
        weight = weight_at(path, sample_weight)
        if path in masks:
            mask = masks[path]
            if units.are_units(mask, output):
                units.check_losses(of_output, path)
                # A loss is a mean over the last axis, so it has a value for each unit.
                if label is not None:
                    label = ops.expand_dims(ops.convert_to_tensor(label), -1)
                weight = None if weight is None else of_rank(weight, output)
            output, mask = _output_and_mask(output, mask)
            for loss in of_output:
                row_values.check(loss, label, output, mask, path)
            weight = _weights(of_output, label, output, mask, weight, path, row_values)
        given.append(LossInputs(label, output, weight))
    of_labels, of_outputs, weights = zip(*given, strict=True)
    return LossInputs(
        _replaced(labels, predictions, of_labels),
        tree.pack_sequence_as(predictions, of_outputs),
        tree.pack_sequence_as(predictions, weights),
    )


def _output_and_mask(output: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return an output without Keras' mask, and the mask of the values of its loss."""
    of_keras = backend.keras_mask(output)
    if len(output.shape) == 1 or units.are_units(mask, output):
        output = ops.expand_dims(output, -1)
    values = output[..., 0]
    mask = ops.broadcast_to(of_rank(mask, values), ops.shape(values))
    if of_keras is not None:
        of_keras = ops.cast(of_rank(of_keras, mask), "bool")
        mask = ops.logical_and(mask, of_keras)
    # The copy has no mask. Outputs without a mask are copied too, so that Keras never
    # looks for the activation that computed an output.
    return ops.copy(output), mask


def _weights(
    losses: Sequence[Any],
    label: Tensor | None,
    output: Tensor,
    mask: Tensor,
    sample_weight: Tensor | None,
    path: Path,
    row_values: RowValues,
) -> Tensor:
    """Return the sample weights under which the losses of an output apply its mask."""
    weights: dict[tuple[Any, ...], Tensor] = {}
    for loss in losses or [None]:
        reduction, dtype = reduction_and_dtype(loss)
        own = row_values.own_mask(loss, label, output, path)
        if own is None:
            weight = masked_weights(mask, sample_weight, reduction, dtype)
        else:
            own = ops.cast(of_rank(own, mask), "bool")
            counted = ops.logical_and(mask, own)
            weight = masked_weights(counted, sample_weight, reduction, dtype)
            if reduction in MEANS:
                # Keras multiplies by `values / valid values` of the loss's own mask.
                weight = weight * ops.mean(ops.cast(own, dtype))
        weights[reduction, dtype, own is None or id(loss)] = weight
    if len(weights) > 1:
        raise ValueError(
            f"The losses of output {list(path)} must have one `reduction` and one "
            "`dtype` where there is a label mask, for Keras gives all of them the same "
            f"sample weights. Received: losses={list(losses)}"
        )
    return next(iter(weights.values()))


def reduction_and_dtype(loss: Any) -> tuple[str | None, str]:
    """Return the reduction and the dtype with which Keras calls a loss."""
    found = loss
    if isinstance(loss, str) and loss.lower() not in ("crossentropy", "ce"):
        found = keras.losses.get(loss)
    if isinstance(found, keras.losses.Loss):
        return found.reduction, found.dtype
    return _DEFAULT_REDUCTION, keras.config.floatx()


def _weight_found(path: Path, sample_weight: Nested) -> Tensor | None:
    """Return the sample weights of an output; None if the structure has none."""
    if not tree.is_nested(sample_weight):
        return sample_weight
    return per_output.found(path, sample_weight)


def _replaced(
    labels: Nested, predictions: Nested, of_outputs: Sequence[Tensor]
) -> Nested:
    """Return labels in which those of outputs are replaced."""
    paths = [tuple(path) for path, _ in tree.flatten_with_path(predictions)]
    by_path = dict(zip(paths, of_outputs, strict=True))
    replaced = [
        label if by_path.get(tuple(path)) is None else by_path[tuple(path)]
        for path, label in tree.flatten_with_path(labels)
    ]
    return tree.pack_sequence_as(labels, replaced)
