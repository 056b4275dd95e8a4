"""The label mask: which rows of a batch have a label."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill import per_output
from keras_distill.labels import units
from keras_distill.labels.loss_inputs import LossInputs, loss_inputs
from keras_distill.labels.row_values import RowValues
from keras_distill.per_output import of_rank
from keras_distill.types import Nested, Path, Tensor

tree = keras.tree


class LabelMask:
    """Leaves rows without a label out of the label losses and their metrics.

    A label loss is averaged over the rows that have a label. It is 0 if no row has one.

    Args:
        keys: The key of the mask in the inputs. The mask is True or nonzero where a row
            has a label. Or a dict of such keys by output, with None for outputs in
            which all rows have a label. None if all rows of all outputs have one.
        output_names: The names of the outputs in order, if the model has names.

    Raises:
        TypeError: If a key isn't a string.
    """

    def __init__(
        self,
        keys: str | Mapping[str, str | None] | None,
        *,
        output_names: Sequence[str] | None,
    ) -> None:
        flat = list(keys.values()) if isinstance(keys, Mapping) else [keys]
        if not all(key is None or isinstance(key, str) for key in flat):
            raise TypeError(
                "`label_mask` must be the name of an input, or a dict of such names, "
                "with None for outputs that are labelled throughout. Received: "
                f"label_mask={keys!r}"
            )
        self._per_output = keys
        self._output_names = output_names
        self._row_values = RowValues()
        self.keys = tuple(dict.fromkeys(key for key in flat if key is not None))

    def loss_inputs(
        self,
        x: Nested,
        labels: Nested,
        predictions: Nested,
        sample_weight: Nested,
        *,
        losses: Any,
        names: Sequence[str] | None,
    ) -> LossInputs:
        """Return the arguments with which label losses leave out unlabelled rows.

        Args:
            x: The inputs of the batch.
            labels: The labels in the structure of the outputs, as `mask_labels` returns
                them.
            predictions: The outputs.
            sample_weight: One tensor for all outputs, or a structure like theirs.
            losses: As `loss` in `keras.Model.compile`.
            names: The names of the outputs in order, if the model has names.

        Raises:
            ValueError: If a loss doesn't have a value for each value of its mask.
        """
        self._check_names(predictions)
        masks = self.by_path(x, predictions)
        if labels is None or not masks:
            return LossInputs(labels, predictions, sample_weight)
        return loss_inputs(
            masks,
            labels,
            predictions,
            sample_weight,
            losses=losses,
            names=names,
            row_values=self._row_values,
        )

    def mask_labels(self, x: Nested, labels: Nested) -> Nested:
        """Return labels in which rows without a label have the label of another row.

        All values computed from these labels are then finite, so a weight of 0 removes
        them. If no row has a label, all labels are 0.
        """
        if labels is None:
            return None

        def masked(label: Tensor, mask: Tensor | None) -> Tensor:
            if mask is None or label is None:
                return label
            label = ops.convert_to_tensor(label)
            dtype = keras.backend.standardize_dtype(label.dtype)
            if len(label.shape) == 1 and keras.backend.is_float_dtype(dtype):
                # Keras would not add the axis for outputs of shape (batch, 1).
                label = ops.expand_dims(label, -1)
            return _filled(label, of_rank(mask, label))

        return self._map(masked, labels, x)

    def mask_weights(
        self, x: Nested, labels: Nested, sample_weight: Nested, predictions: Nested
    ) -> Nested:
        """Return the sample weights of metrics, which are 0 where there is no label."""
        if not self._found(x):
            return sample_weight

        def masked(label: Tensor, mask: Tensor | None) -> Tensor:
            if label is None:
                return None
            if mask is None:
                return ops.ones(ops.shape(label)[:1])
            return ops.cast(of_rank(mask, label), keras.config.floatx())

        masks = self._map(masked, labels, x)
        flat = [
            _of_rows(mask, per_output.found(tuple(path), predictions))
            for path, mask in tree.flatten_with_path(masks)
        ]
        masks = tree.pack_sequence_as(masks, flat)
        if sample_weight is None:
            return masks
        weights = sample_weight
        if not tree.is_nested(weights):
            weights = tree.map_structure(lambda _: sample_weight, labels)
        return tree.map_structure(_product, weights, masks)

    def by_path(self, x: Nested, structure: Nested) -> dict[Path, Tensor]:
        """Return the boolean masks of a batch by the paths of their outputs.

        In a batch without the mask's key, which evaluation may have, all rows count as
        labelled.
        """
        masks: dict[Path, Tensor] = {}
        keys = self._by_path(structure) if self._found(x) else {}
        for path, tensor in tree.flatten_with_path(structure):
            key = keys.get(tuple(path))
            mask = _value_at(x, key)
            if mask is not None and tensor is not None:
                masks[tuple(path)] = ops.cast(mask, "bool")
                _check_rows(masks[tuple(path)], tensor, key)
        return masks

    def masked_by_unit(self, x: Nested, predictions: Nested) -> list[Path]:
        """Return the paths of the outputs whose masks have a value for each unit."""
        return units.masked_by_unit(self.by_path(x, predictions), predictions)

    def _found(self, x: Nested) -> bool:
        return any(_value_at(x, key) is not None for key in self.keys)

    def _check_names(self, predictions: Nested) -> None:
        if not isinstance(self._per_output, Mapping):
            return
        keys = self._by_path(predictions)
        paths = {tuple(path) for path, _ in tree.flatten_with_path(predictions)}
        if not paths.issuperset(keys):
            raise ValueError(
                "The keys of `label_mask` must be the names of the student's outputs. "
                f"Received: keys {sorted(self._per_output)} for outputs of shape "
                f"{per_output.describe(predictions)}"
            )

    def _by_path(self, structure: Nested) -> dict[Path, str]:
        return per_output.by_path(
            self._per_output,
            structure,
            names=self._output_names,
            what="`label_mask`",
            partial=True,
        )

    def _map(
        self,
        function: Callable[[Tensor, Tensor | None], Tensor],
        structure: Nested,
        x: Nested,
    ) -> Nested:
        """Return a structure with `function(tensor, mask)` of each of its tensors.

        The mask is None for outputs in which all rows have a label. For a batch without
        masks, the structure is returned unchanged.
        """
        if not self._found(x):
            return structure
        masks = self.by_path(x, structure)
        mapped = [
            function(tensor, masks.get(tuple(path)))
            for path, tensor in tree.flatten_with_path(structure)
        ]
        return tree.pack_sequence_as(structure, mapped)


def _filled(label: Tensor, mask: Tensor) -> Tensor:
    """Return a label in which the first labelled row replaces unlabelled rows."""
    mask = ops.broadcast_to(mask, ops.shape(label))
    # A row of zeros is added at the end. It is the first one if no row has a label.
    below = [[0, 1], *([[0, 0]] * (len(label.shape) - 1))]
    order = ops.pad(2 * ops.cast(mask, "int32"), below, constant_values=1)
    first = ops.expand_dims(ops.argmax(order, axis=0), 0)
    filling = ops.take_along_axis(ops.pad(label, below), first, axis=0)
    return ops.where(mask, label, filling)


def _of_rows(weight: Tensor | None, prediction: Tensor | None) -> Tensor | None:
    """Return weights of rows in the one shape that all metrics of Keras accept."""
    # `F1Score` and `R2Score` refuse weights of shape (batch, 1).
    if weight is None or prediction is None or len(prediction.shape) > 2:
        return weight
    is_column = len(weight.shape) == 2 and weight.shape[-1] == 1
    return ops.squeeze(weight, -1) if is_column else weight


def _value_at(x: Nested, key: str | None) -> Any:
    """Return the value of a key in a dict, or in the dicts in it; None if not found."""
    if not isinstance(x, Mapping):
        return None
    if key in x:
        return x[key]
    values = (_value_at(item, key) for item in x.values())
    return next((value for value in values if value is not None), None)


def _product(weight: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Return the weight of each label, 0 where there is none."""
    if weight is None or mask is None:
        return mask
    return ops.cast(of_rank(weight, mask), mask.dtype) * mask


def _check_rows(mask: Tensor, tensor: Tensor, key: str | None) -> None:
    """Raise ValueError unless a mask has a value for each row, or each element."""
    shape, rows = tuple(mask.shape), tuple(tensor.shape)
    pairs = zip(shape, rows, strict=False)
    fits = all(size in (1, None, of) or of is None for size, of in pairs)
    if not fits or (len(shape) > len(rows) and shape[len(rows) :] != (1,)):
        raise ValueError(
            f"The label mask '{key}' must be of shape (batch,) or (batch, 1), or hold "
            f"a value for each label. Received: a mask of shape {shape} for labels or "
            f"outputs of shape {rows}"
        )
