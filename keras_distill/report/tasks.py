"""Tasks: the measures of a row, by the kind of labels and outputs."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from keras_distill.metrics import distributions

Array = npt.NDArray[Any]
Kind = Literal["classes", "binary", "multi-label", "regression"]

KINDS: tuple[Kind, ...] = ("classes", "binary", "multi-label", "regression")
# With at least this number of classes, top-5 accuracy is measured.
_MANY_CLASSES = 10
# Rounding may put probabilities this far outside of [0, 1], and their sum from 1.
_ROUNDING = 1e-2


class Measure(NamedTuple):
    """A measure of a task.

    Args:
        name: Its key in reports.
        title: Its name in words.
        is_better: 1 if more is better, -1 if less is better, 0 if neither is.
        is_percent: Whether it is printed in percent.
    """

    name: str
    title: str
    is_better: int
    is_percent: bool = False


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("accuracy", "accuracy", 1, True),
        Measure("top_5", "top-5 accuracy", 1, True),
        Measure("nll", "negative log-likelihood, nats", -1),
        Measure("brier", "Brier score", -1),
        Measure("auc", "area under the ROC curve", 1),
        Measure("mse", "mean squared error", -1),
        Measure("mae", "mean absolute error", -1),
        Measure("ece", "expected calibration error", -1, True),
        Measure("predicted_to_observed", "predicted / observed", 0),
        Measure("agreement", "agreement with the teacher", 1, True),
        Measure("kl", "KL divergence from the teacher, nats", -1),
        Measure("mse_to_teacher", "squared distance to the teacher", -1),
    )
}

# The measure that decides the verdict, unless the caller names another one.
PRIMARY: Mapping[Kind, str] = {
    "classes": "accuracy",
    "binary": "auc",
    "multi-label": "nll",
    "regression": "mse",
}


_MEASURES: Mapping[Kind, tuple[str, ...]] = {
    "classes": ("accuracy", "top_5", "nll", "brier", "ece"),
    "binary": ("auc", "accuracy", "nll", "brier", "ece", "predicted_to_observed"),
    "multi-label": ("accuracy", "nll", "brier", "ece"),
    "regression": ("mse", "mae"),
}


def deciding(kind: Kind) -> list[str]:
    """Return the measures by which models of a task can be better or worse."""
    return [name for name in _MEASURES[kind] if MEASURES[name].is_better]


def kind_of(labels: Array, units: int) -> Kind:
    """Return the likely kind of task, given labels and a number of units."""
    whole = labels.dtype.kind in "biu" or bool(np.all(labels == np.round(labels)))
    of_two = whole and bool(np.all((labels == 0) | (labels == 1)))
    if units == 1:
        return "binary" if of_two else "regression"
    if labels.ndim == 1 or labels.shape[-1] == 1:
        return "classes" if whole else "regression"
    if not of_two:
        is_soft = labels.min() >= 0 and np.allclose(labels.sum(-1), 1.0, atol=_ROUNDING)
        return "classes" if is_soft else "regression"
    return "classes" if np.all(labels.sum(-1) == 1) else "multi-label"


def as_labels(labels: Array, kind: Kind, shape: tuple[int, ...]) -> Array:
    """Convert labels to the form of their kind, and check them.

    Returns:
        For classes, ids of shape `(rows,)`; else numbers of the outputs' shape.

    Raises:
        ValueError: If the labels don't fit outputs of this shape.
    """
    received = f"Received: labels of shape {labels.shape} and outputs of shape {shape}"
    if kind == "classes":
        one_hot = labels.ndim == len(shape) and labels.shape[-1] == shape[-1] > 1
        ids = np.asarray(labels.argmax(-1) if one_hot else labels).reshape(-1)
        if len(ids) != len(labels):
            raise ValueError(f"There must be one label in each row. {received}")
        ids = ids.astype("int64")
        if ids.min() < 0 or ids.max() >= shape[-1]:
            raise ValueError(
                f"Labels must be class ids from 0 to {shape[-1] - 1}, as there are "
                f"{shape[-1]} outputs. Received: ids from {ids.min()} to {ids.max()}"
            )
        return ids
    if labels.size != np.prod(shape):
        raise ValueError(f"Labels must have the shape of the outputs. {received}")
    numbers = labels.reshape(shape).astype("float64")
    if kind != "regression" and not np.all((numbers >= 0) & (numbers <= 1)):
        raise ValueError(
            f"Labels of a {kind} task must be 0 or 1. Received: labels from "
            f"{numbers.min():g} to {numbers.max():g}"
        )
    return numbers


def look_like_logits(outputs: Array, kind: Kind) -> bool:
    """Return whether outputs can't be probabilities."""
    outside = outputs.min() < -_ROUNDING or outputs.max() > 1.0 + _ROUNDING
    if kind != "classes":
        return bool(outside)
    return bool(outside or not np.allclose(outputs.sum(-1), 1.0, atol=_ROUNDING))


def log_probabilities(outputs: Array, kind: Kind, from_logits: bool) -> Array:
    """Return log-probabilities of classes, or of the labels 0 and 1 of each unit.

    Returns:
        For classes, an array of shape `(rows, classes)`; for units, of shape
        `(rows, units, 2)`.
    """
    if kind == "classes":
        return distributions.log_of_classes(outputs, from_logits=from_logits)
    return distributions.log_of_units(outputs, from_logits=from_logits)


def of_rows(
    kind: Kind, labels: Array, outputs: Array, log_probs: Array | None
) -> dict[str, Array]:
    """Return the measures that are means over rows, as one number a row."""
    if log_probs is None:
        wrong = outputs.astype("float64") - labels
        found = {"mse": np.square(wrong), "mae": np.abs(wrong)}
    elif kind == "classes":
        rows = np.arange(len(labels))
        right = log_probs[rows, labels]
        probabilities = np.exp(log_probs)
        found = {"accuracy": log_probs.argmax(-1) == labels}
        if log_probs.shape[-1] >= _MANY_CLASSES:
            # A class is among the first five if fewer than five are above it.
            found["top_5"] = (log_probs > right[:, None]).sum(-1) < 5
        squares = np.square(probabilities).sum(-1)
        brier = squares - 2.0 * np.exp(right) + 1.0
        found |= {"nll": -right, "brier": brier}
    else:
        positive = np.exp(log_probs[..., 1])
        likelihood = labels * log_probs[..., 1] + (1.0 - labels) * log_probs[..., 0]
        found = {"nll": -likelihood, "brier": np.square(positive - labels)}
        found["accuracy"] = (positive > 0.5) == (labels > 0.5)
    return {name: _by_row(values) for name, values in found.items()}


def against_teacher(
    kind: Kind, outputs: Array, log_probs: Array | None, teacher: tuple[Array, Any]
) -> dict[str, Array]:
    """Return the comparisons with the teacher's outputs, as one number a row."""
    of_teacher, log_teacher = teacher
    if log_probs is None:
        distance = np.square(outputs.astype("float64") - of_teacher)
        return {"mse_to_teacher": _by_row(distance)}
    agree = distributions.agreement(log_teacher, log_probs)
    divergence = distributions.forward_kl(log_teacher, log_probs)
    return {"agreement": _by_row(agree), "kl": _by_row(divergence)}


def confidence(kind: Kind, labels: Array, log_probs: Array) -> tuple[Array, Array]:
    """Return probabilities of events, and whether each event came true.

    For classes, the event is that the predicted class is right. For other tasks, it is
    that a unit's label is positive. Both arrays have the shape `(rows, units)`.
    """
    if kind == "classes":
        highest = np.exp(log_probs.max(-1))
        right = log_probs.argmax(-1) == labels
        return highest[:, None], right[:, None].astype("float64")
    positive = np.exp(log_probs[..., 1])
    return positive.reshape(len(positive), -1), labels.reshape(len(labels), -1)


def _by_row(values: Array) -> Array:
    return np.asarray(values.reshape(len(values), -1).mean(-1), dtype="float64")
