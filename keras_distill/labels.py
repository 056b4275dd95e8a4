"""Which rows of a batch have a label, and what a label may be."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill import outputs

Tensor = Any
tree = keras.tree

_BINARY = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)


class LabelMask:
    """Leaves rows without a label out of the label losses and their metrics.

    It acts as Keras' own masks do: a loss is averaged over the rows that have a
    label, and is 0 where none has.

    Args:
        keys: The key of the batch's inputs under which the mask stands, True or
            nonzero where a row has a label; a dict of keys by output, None for those
            that are labelled throughout; None where every row is labelled.
        output_names: The names of the outputs in order, where the model has any.
    """

    def __init__(self, keys: Any, *, output_names: Sequence[str] | None) -> None:
        flat = list(keys.values()) if isinstance(keys, Mapping) else [keys]
        if not all(key is None or isinstance(key, str) for key in flat):
            raise TypeError(
                "`label_mask` must be the name of an input, or a dict of such names, "
                "with None for outputs that are labelled throughout. Received: "
                f"label_mask={keys!r}"
            )
        self._per_output = keys
        self._output_names = output_names
        self.keys = tuple(dict.fromkeys(key for key in flat if key is not None))

    def mask_predictions(self, x: Any, predictions: Any) -> Any:
        """Return predictions that Keras' losses take as masked."""

        def masked(output: Tensor, mask: Tensor | None) -> Tensor:
            if mask is None:
                return output
            mask = _for_values(mask, output)
            earlier = getattr(output, "_keras_mask", None)
            output = ops.copy(output)  # whoever else holds it is to see no mask
            output._keras_mask = mask if earlier is None else mask & earlier
            return output

        self._check_names(predictions)
        return self._map(masked, predictions, x)

    def mask_labels(self, x: Any, labels: Any) -> Any:
        """Return labels with 0 in place of what stands where there is none."""

        def masked(label: Tensor, mask: Tensor | None) -> Tensor:
            if mask is None:
                return label
            label = ops.convert_to_tensor(label)
            return ops.where(_of_rank(mask, label), label, ops.zeros_like(label))

        return self._map(masked, labels, x)

    def mask_weights(self, x: Any, labels: Any, sample_weight: Any) -> Any:
        """Return the weights of a metric: 0 where there is no label."""
        if not self._found(x):
            return sample_weight

        def masked(label: Tensor, mask: Tensor | None) -> Tensor:
            if mask is None:
                return ops.ones(ops.shape(label)[:1])
            return ops.cast(_of_rank(mask, label), keras.config.floatx())

        masks = self._map(masked, labels, x)
        if sample_weight is None:
            return masks
        weights = sample_weight
        if not tree.is_nested(weights):
            weights = tree.map_structure(lambda _: sample_weight, labels)
        return tree.map_structure(
            lambda weight, mask: _of_rank(weight, mask) * mask, weights, masks
        )

    def _found(self, x: Any) -> bool:
        return any(_held(x, key) is not None for key in self.keys)

    def _check_names(self, predictions: Any) -> None:
        if not isinstance(self._per_output, Mapping):
            return
        keys = self._by_path(predictions)
        paths = {tuple(path) for path, _ in tree.flatten_with_path(predictions)}
        if not paths.issuperset(keys):
            raise ValueError(
                "The keys of `label_mask` must be the names of the student's outputs. "
                f"Received: keys {sorted(self._per_output)} for outputs of shape "
                f"{outputs.describe(predictions)}"
            )

    def _by_path(self, structure: Any) -> dict[outputs.Path, str]:
        return outputs.by_path(
            self._per_output, structure, names=self._output_names, what="`label_mask`"
        )

    def _map(self, function: Any, structure: Any, x: Any) -> Any:
        """Return `function(tensor, mask)` of each output's tensor, mask None for some.

        A batch without the mask's key, as evaluation may have, is labelled throughout.
        """
        if not self._found(x):
            return structure
        keys = self._by_path(structure)
        mapped = [
            function(tensor, _held(x, keys.get(tuple(path))))
            for path, tensor in tree.flatten_with_path(structure)
        ]
        return tree.pack_sequence_as(structure, mapped)


class LabelledModel(keras.Model):
    """A model whose label losses and metrics see labels alone: none that isn't one."""

    @property
    def _label_mask(self) -> LabelMask:
        raise NotImplementedError

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return Keras' loss of the rows that have a label."""
        y = self._label_mask.mask_labels(x, y)
        y = checked_probabilities(
            self.loss,
            y,
            sample_weight,
            output_names=getattr(self, "output_names", None),
        )
        y_pred = self._label_mask.mask_predictions(x, y_pred)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Tensor]:
        """Update the metrics with the rows that have a label."""
        weights = self._label_mask.mask_weights(x, y, sample_weight)
        y = self._label_mask.mask_labels(x, y)
        logs: dict[str, Tensor] = super().compute_metrics(x, y, y_pred, weights)
        return logs

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """Keras' metrics; compiled ones have no result before labels have come."""
        return [m for m in super().metrics if getattr(m, "built", True)]


def _held(x: Any, key: str | None) -> Any:
    """Return what a dict, or a dict in it, holds under a key; None where none does."""
    if not isinstance(x, Mapping):
        return None
    if key in x:
        return x[key]
    found = (_held(item, key) for item in x.values())
    return next((item for item in found if item is not None), None)


def _of_rank(mask: Tensor, other: Tensor) -> Tensor:
    """Return the rows' mask or weights with as many dimensions as `other`."""
    mask, other = ops.convert_to_tensor(mask), ops.convert_to_tensor(other)
    while len(mask.shape) > len(other.shape) and mask.shape[-1] == 1:
        mask = ops.squeeze(mask, -1)
    while len(mask.shape) < len(other.shape):
        mask = ops.expand_dims(mask, -1)
    return mask


def _for_values(mask: Tensor, output: Tensor) -> Tensor:
    """Return the rows' mask in the shape of a loss's values of `output`."""
    values = output[..., 0] if len(output.shape) > 1 else output
    mask = ops.cast(_of_rank(mask, values), "bool")
    return ops.broadcast_to(mask, ops.shape(values))


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
        weighs = ops.not_equal(_of_rank(weight, label), 0)
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
