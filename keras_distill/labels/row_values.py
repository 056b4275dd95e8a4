"""Losses under a label mask need a value for each row, or unlabelled rows count."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_distill import per_output
from keras_distill.labels import structures
from keras_distill.per_output import Path
from keras_distill.types import Tensor


class RowValues:
    """Checks, once for each loss, that its values are those of a mask's rows.

    Keras multiplies a loss's values by the mask: a value for the whole batch would
    stay as it is.
    """

    def __init__(self) -> None:
        self._checked: set[tuple[Path, int]] = set()

    def check(
        self,
        losses: Any,
        labels: Any,
        masked: Any,
        masks: Mapping[Path, Tensor],
        *,
        names: Any,
    ) -> None:
        """Raise ValueError if the values of a loss don't fit its mask.

        Args:
            losses: As `loss` in `keras.Model.compile`.
            labels: The labels in the structure of the outputs.
            masked: The outputs with their masks, as losses are given them.
            masks: The label masks by the path of their output.
            names: The names of the outputs in order, where the model has any.
        """
        for path in masks:
            loss = structures.loss_at(path, losses, masked, names=names)
            label, output = (
                per_output.found(path, labels),
                per_output.found(path, masked),
            )
            key = path, id(loss)
            if loss is None or label is None or key in self._checked:
                continue
            self._checked.add(key)
            values, rows = _values_of(loss, label, output), output._keras_mask.shape
            if values is not None and not _are_of(rows, values):
                raise ValueError(
                    f"The loss of output {list(path)} must have a value for each row "
                    "of its label mask, or rows without a label would count. Average "
                    "over the last axis alone, as `keras.ops.mean(values, axis=-1)`; "
                    f"Keras averages over the rows. Received: loss={loss}, which "
                    f"returns values of shape {tuple(values)}, for a label mask of "
                    f"shape {tuple(rows)}"
                )


def _are_of(rows: Sequence[Any], values: Sequence[Any]) -> bool:
    """Return whether there is one value for each row, as Keras matches the two."""
    is_column = len(values) == len(rows) + 1 and values[-1] == 1
    return is_column or len(values) == len(rows)


def _values_of(
    loss: Any, label: Tensor, output: Tensor
) -> tuple[int | None, ...] | None:
    """Return the shape of a loss's values, None where it doesn't show.

    The loss is traced, not run, so that it is called but once in a step.
    """
    call = _call_of(loss)
    if call is None:
        return None
    dtype = keras.config.floatx()
    specs = [
        tf.TensorSpec(ops.convert_to_tensor(t).shape, dtype) for t in (label, output)
    ]
    try:
        traced = tf.function(call, autograph=False).get_concrete_function(*specs)
        shape = traced.structured_outputs.shape
    except Exception:
        return None  # what can't be called raises where it is computed
    return None if shape.rank is None else tuple(shape)


def _call_of(loss: Any) -> Any:
    """Return what computes the values of a loss, None where nothing does alone."""
    if isinstance(loss, str) and loss.lower() in ("crossentropy", "ce"):
        return None  # Keras chooses by shape among losses that have them
    found: Any = keras.losses.get(loss)
    if not isinstance(found, keras.losses.Loss):
        return found  # a function
    if type(found).__call__ is not keras.losses.Loss.__call__:
        return None  # it reads the mask itself
    return found.call
