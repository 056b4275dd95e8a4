"""Label masks with a value for each unit of a multi-label output."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.types import Nested, Path, Tensor

tree = keras.tree

# The Keras losses that are means of one value for each unit, as classes and functions.
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
    """Return whether a mask has a value for each unit, not for each row or step."""
    return len(mask.shape) == len(output.shape) > 1 and mask.shape[-1] != 1


def masked_by_unit(masks: Mapping[Path, Tensor], predictions: Nested) -> list[Path]:
    """Return the paths of the outputs that are masked by unit."""
    return [
        tuple(path)
        for path, output in tree.flatten_with_path(predictions)
        if tuple(path) in masks and are_units(masks[tuple(path)], output)
    ]


def check_losses(losses: Sequence[Any], path: Path) -> None:
    """Raise ValueError if a loss of an output has no value for each unit."""
    for loss in losses:
        if not _has_units(loss):
            raise ValueError(
                f"The label mask of output {list(path)} holds a value for each unit, "
                "so its loss must be a mean over units, one of "
                f"{', '.join(_OF_UNITS)}. Give one of these, or a label mask of shape "
                f"(batch,). Received: loss={loss}"
            )


def with_unit_axis(structure: Nested, paths: Collection[Path]) -> Nested:
    """Add a last axis of size 1 to labels or outputs that are masked by unit.

    A metric averages over the last axis, so it then has a value for each unit.
    """
    if not paths:
        return structure
    expanded = [
        tensor
        if tensor is None or tuple(path) not in paths
        else ops.expand_dims(ops.convert_to_tensor(tensor), -1)
        for path, tensor in tree.flatten_with_path(structure)
    ]
    return tree.pack_sequence_as(structure, expanded)


def _has_units(loss: Any) -> bool:
    found = keras.losses.get(loss)
    kinds = tuple(getattr(keras.losses, name) for name in _OF_UNITS)
    functions = [getattr(keras.losses, name) for name in _FUNCTIONS_OF_UNITS]
    # A `functools.partial` holds its function as `func`.
    found = getattr(found, "func", found)
    return isinstance(found, kinds) or found in functions
