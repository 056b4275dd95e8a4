"""The label loss of each row, by which an audit compares models."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import per_output
from keras_distill.losses.calling import as_loss
from keras_distill.privileged.folds import Array
from keras_distill.types import Nested, Tensor

# A function of labels, predictions and sample weights, which returns row values.
Score = Callable[[Nested, Nested, Nested], Any]


def label_loss(
    given: Mapping[str, Any], outputs: Nested, names: Sequence[str] | None
) -> Score:
    """Return a function that computes the label loss of each row.

    The label loss of a row is a sum over outputs. Each term is the loss of the row
    before Keras averages over rows, times the sample weight and the loss weight.

    Args:
        given: The arguments of `Distiller.compile`.
        outputs: Outputs of the student.
        names: The names of the outputs in order, if the student has names.

    Raises:
        ValueError: If the losses don't fit the outputs.
    """
    what = "`loss`"
    losses = per_output.by_path(given["loss"], outputs, names=names, what=what)
    weights = per_output.weights_by_path(
        given.get("loss_weights"), outputs, names=names, what="loss_weights"
    )

    def score(y: Nested, prediction: Nested, sample_weight: Nested) -> Any:
        labels = per_output.as_structured(y, prediction, names)
        of_rows = per_output.as_structured(sample_weight, prediction, names)
        total = 0.0
        for path, loss in losses.items():
            values = _row_values(
                as_loss(loss),
                per_output.at(path, labels, "`y`"),
                per_output.at(path, prediction, "the prediction"),
                per_output.weight_at(path, of_rows),
            )
            total = total + weights.get(path, 1.0) * values
        return total

    return score


def checked(score: Score, y: Nested, prediction: Nested, weight: Nested) -> Array:
    """Return the score of each row as float64.

    Raises:
        ValueError: If the score doesn't have a value for each row, if a value isn't
            finite, or if the mean of the values is negative.
    """
    values = np.asarray(ops.convert_to_numpy(score(y, prediction, weight)), "float64")
    rows = len(keras.tree.flatten(prediction)[0])
    if values.shape not in ((rows,), (rows, 1)):
        raise ValueError(
            "`score` must return a value for each row, and so must the label loss "
            "where there is no `score`. Pass a function of (y, prediction, "
            f"sample_weight). Received: shape {values.shape} for {rows} rows"
        )
    values = values.reshape(rows)
    if not np.isfinite(values).all() or values.mean() < 0:
        raise ValueError(
            "The score must be finite, 0 for a perfect prediction and positive for "
            "others. Use a smaller learning rate where it isn't finite, and pass a "
            "`score` where the label loss may be negative. Received: values from "
            f"{values.min():.4g} to {values.max():.4g}, with the mean "
            f"{values.mean():.4g}"
        )
    return values


def _row_values(loss: Any, label: Any, output: Any, weight: Any) -> Tensor:
    label, output = (ops.convert_to_tensor(it, loss.dtype) for it in (label, output))
    values = loss.call(label, output)
    if weight is not None:
        weight = ops.convert_to_tensor(weight, values.dtype)
        values = values * per_output.of_rank(weight, values)
    axes = tuple(range(1, len(values.shape)))
    return ops.mean(values, axis=axes) if axes else values
