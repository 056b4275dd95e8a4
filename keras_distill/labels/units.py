"""Label masks that hold a value for each unit of a multi-label output."""

from collections.abc import Collection, Mapping
from typing import Any

import keras
from keras import ops

from keras_distill import per_output
from keras_distill.labels import structures
from keras_distill.per_output import Path, of_rank
from keras_distill.types import Tensor

tree = keras.tree

# Keras losses that are means of one value for each unit, by the names of both forms.
_OF_UNITS = (
    "BinaryCrossentropy",
    "BinaryFocalCrossentropy",
    "Hinge",
    "Huber",
    "LogCosh",
    "MeanAbsoluteError",
    "MeanAbsolutePercentageError",
    "MeanSquaredError",
    "MeanSquaredLogarithmicError",
    "Poisson",
    "SquaredHinge",
)
_FUNCTIONS_OF_UNITS = (
    "binary_crossentropy",
    "binary_focal_crossentropy",
    "hinge",
    "huber",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "poisson",
    "squared_hinge",
)


def are_units(mask: Tensor, output: Tensor) -> bool:
    """Return whether a mask holds a value for each unit, not for each row or step."""
    return len(mask.shape) == len(output.shape) > 1 and mask.shape[-1] != 1


def masked_by_unit(masks: Mapping[Path, Tensor], predictions: Any) -> list[Path]:
    """Return the paths of the outputs that are masked by unit."""
    return [
        tuple(path)
        for path, output in tree.flatten_with_path(predictions)
        if tuple(path) in masks and are_units(masks[tuple(path)], output)
    ]


def check_losses(
    losses: Any, predictions: Any, paths: Collection[Path], *, names: Any
) -> None:
    """Raise ValueError if a loss of these outputs has no value for each unit."""
    for path in paths:
        loss = structures.loss_at(path, losses, predictions, names=names)
        if loss is not None and not _has_units(loss):
            raise ValueError(
                f"The label mask of output {list(path)} holds a value for each unit, "
                "so its loss must be a mean over units, one of "
                f"{', '.join(_OF_UNITS)}. Give one of these, or a label mask of shape "
                f"(batch,). Received: loss={loss}"
            )


def with_unit_axis(structure: Any, paths: Collection[Path]) -> Any:
    """Return labels or outputs with a last axis of size 1 where masked by unit.

    So a loss, which averages over the last axis, has a value for each unit.
    """

    def expanded(path: Any, tensor: Any) -> Any:
        if tensor is None or tuple(path) not in paths:
            return tensor
        return ops.expand_dims(ops.convert_to_tensor(tensor), -1)

    return _mapped(expanded, structure) if paths else structure


def weights_of_units(
    sample_weight: Any, predictions: Any, paths: Collection[Path]
) -> Any:
    """Return sample weights that act on the values of each unit where masked so."""
    if sample_weight is None or not paths:
        return sample_weight
    if not tree.is_nested(sample_weight):
        sample_weight = tree.map_structure(lambda _: sample_weight, predictions)

    def of_units(path: Any, weight: Any) -> Any:
        if weight is None or tuple(path) not in paths:
            return weight
        return of_rank(weight, per_output.at(tuple(path), predictions, "the outputs"))

    return _mapped(of_units, sample_weight)


def _mapped(function: Any, structure: Any) -> Any:
    mapped = [function(*item) for item in tree.flatten_with_path(structure)]
    return tree.pack_sequence_as(structure, mapped)


def _has_units(loss: Any) -> bool:
    found = keras.losses.get(loss)
    kinds = tuple(getattr(keras.losses, name) for name in _OF_UNITS)
    functions = [getattr(keras.losses, name) for name in _FUNCTIONS_OF_UNITS]
    found = getattr(found, "func", found)  # of a `functools.partial`
    return isinstance(found, kinds) or found in functions
