"""A check that a label loss has a value for each row of its mask."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_distill import backend
from keras_distill.losses.calling import as_loss
from keras_distill.types import Path, Tensor

# Computes the values of a loss from labels and outputs.
_Call = Callable[[Tensor, Tensor], Tensor]


class RowValues:
    """Checks that losses have a value for each row of a label mask.

    Keras multiplies the values by the sample weights. A loss with one value for the
    whole batch would count the rows without a label too.

    Each loss is traced once for each output. It isn't run, because another call would
    change its state, such as a seed.
    """

    def __init__(self) -> None:
        self._traced: dict[tuple[Path, int], _Values | None] = {}

    def check(
        self, loss: Any, label: Tensor | None, output: Tensor, mask: Tensor, path: Path
    ) -> None:
        """Raise ValueError if the values of a loss don't fit its mask.

        Args:
            loss: A label loss, as in `keras.Model.compile`.
            label: The labels of the output; None without labels.
            output: The output, as it is passed to the loss.
            mask: The mask, of the shape that the values must have.
            path: The path of the output.
        """
        key = path, id(loss)
        if label is None or key in self._traced:
            return
        values = _traced(loss, label, output)
        self._traced[key] = values
        rows = tuple(mask.shape)
        if values is not None and not _are_of(rows, values.shape):
            raise ValueError(
                f"The loss of output {list(path)} must have a value for each row "
                "of its label mask, or rows without a label would count. Average "
                "over the last axis alone, as `keras.ops.mean(values, axis=-1)`; "
                f"Keras averages over the rows. Received: loss={loss}, which "
                f"returns values of shape {values.shape}, for a label mask of "
                f"shape {rows}"
            )

    def own_mask(
        self, loss: Any, label: Tensor | None, output: Tensor, path: Path
    ) -> Tensor | None:
        """Return the mask that a checked loss itself sets on its values; None without.

        `SparseCategoricalCrossentropy` sets one for its `ignore_class`. To get the
        mask, the loss is called another time.
        """
        values = self._traced.get((path, id(loss)))
        if values is None or not values.are_masked:
            return None
        found = as_loss(loss)
        given = [ops.convert_to_tensor(x, dtype=found.dtype) for x in (label, output)]
        return backend.keras_mask(found.call(*given))


class _Values(NamedTuple):
    """The shape of a loss's values, and whether the loss sets a mask on them."""

    shape: tuple[int | None, ...]
    are_masked: bool


class _ValuesOf(keras.Operation):
    """The computation of a loss's values, for Keras to trace on any backend."""

    def __init__(self, function: _Call) -> None:
        super().__init__()
        self.function = function
        self.are_masked = False

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        values = self.function(y_true, y_pred)
        self.are_masked = backend.keras_mask(values) is not None
        return values


def _are_of(rows: Sequence[Any], values: Sequence[Any]) -> bool:
    """Return whether there is one value for each row, as Keras matches the two."""
    is_column = len(values) == len(rows) + 1 and values[-1] == 1
    return is_column or len(values) == len(rows)


def _traced(loss: Any, label: Tensor, output: Tensor) -> _Values | None:
    """Return the shape of a loss's values, from a trace; None if it isn't known."""
    call = _call_of(loss)
    if call is None:
        return None
    dtype = keras.config.floatx()
    operation = _ValuesOf(call)
    try:
        specs = [
            keras.KerasTensor(ops.convert_to_tensor(x).shape, dtype)
            for x in (label, output)
        ]
        shape = operation.compute_output_spec(*specs).shape
    except Exception:
        # A loss that can't be called raises its error in the step.
        return None
    return _Values(tuple(shape), operation.are_masked)


def _call_of(loss: Any) -> _Call | None:
    """Return the function that computes a loss's values; None if it isn't known."""
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        # Keras chooses by shape, among losses that have a value for each row.
        return None
    found = as_loss(loss)
    if type(found).__call__ is not keras.losses.Loss.__call__:
        # It may do more than reduce the values of `call`.
        return None
    call: _Call = found.call
    return call
