"""Losses, weights, masks and labels, matched to the outputs of a model."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.types import Nested, Path, Tensor

tree = keras.tree


def by_path(
    per_output: Any,
    outputs: Nested,
    *,
    names: Sequence[str] | None,
    what: str,
    partial: bool = False,
) -> dict[Path, Any]:
    """Return items that belong to a model's outputs by the outputs' paths.

    Args:
        per_output: One item for all outputs, or a list, tuple or dict of items in the
            structure of `outputs`, with None for outputs without an item.
        outputs: A model's outputs.
        names: The names of the outputs in order, where the model has any. A dict by
            these names may be given for a list of outputs.
        what: The name of the items in error messages.
        partial: Whether a dict for a list of outputs may leave some out.

    Raises:
        ValueError: If `per_output` doesn't fit the outputs.
    """
    paths: list[Path] = [tuple(path) for path, _ in tree.flatten_with_path(outputs)]
    if not tree.is_nested(per_output):
        return dict.fromkeys(paths, per_output)
    if isinstance(per_output, Mapping) and not isinstance(outputs, Mapping):
        if partial:
            per_output = {**dict.fromkeys(names or ()), **per_output}
        if set(per_output) != set(names or ()):
            raise ValueError(
                f"The keys of {what} must be the names of the student's outputs. "
                f"Received: keys {sorted(per_output)}, outputs named "
                f"{list(names or ())}"
            )
        in_order = [per_output[name] for name in names or ()]
        per_output = in_order if tree.is_nested(outputs) else in_order[0]
    elif not isinstance(per_output, Mapping) and (
        not tree.is_nested(outputs) or len(per_output) != len(outputs)
    ):
        raise ValueError(
            f"{what} must hold one loss or None for each of the student's outputs. "
            f"Received: {len(per_output)} losses for outputs of shape "
            f"{describe(outputs)}"
        )
    return {
        tuple(path): item
        for path, item in tree.flatten_with_path(per_output)
        if item is not None
    }


def weights_by_path(
    weights: Any, outputs: Nested, *, names: Sequence[str] | None, what: str
) -> dict[Path, float]:
    """Return the weights of a model's outputs by their paths; some may be left out.

    Args:
        weights: A number for all outputs, a list or dict of numbers, or None.
        outputs: A model's outputs.
        names: The names of the outputs in order, where the model has any.
        what: The name of the argument in error messages.

    Raises:
        ValueError: If there is a weight that belongs to no output.
    """
    by_output: dict[Path, float] = by_path(
        1.0 if weights is None else weights,
        outputs,
        names=names,
        what=f"`{what}`",
        partial=True,
    )
    paths = {tuple(path) for path, _ in tree.flatten_with_path(outputs)}
    if not paths >= by_output.keys():
        raise ValueError(
            f"The keys of `{what}` must be the names of the student's outputs. "
            f"Received: {what}={weights} for outputs of shape {describe(outputs)}"
        )
    return by_output


def names_by_path(outputs: Nested, names: Sequence[str] | None) -> dict[Path, str]:
    """Return the names of a model's outputs by their paths; "" for the only output.

    Args:
        outputs: A model's outputs.
        names: Their names in order; None if unknown. Keys of dicts are names too.
    """
    paths: list[Path] = [tuple(path) for path, _ in tree.flatten_with_path(outputs)]
    if len(paths) == 1:
        return {paths[0]: ""}
    if names is None or len(names) != len(paths):
        names = [str(number) for number in range(len(paths))]
    return {
        path: "_".join(path) if all(isinstance(key, str) for key in path) else name
        for path, name in zip(paths, names, strict=True)
    }


def as_structured(structure: Any, outputs: Nested, names: Sequence[str] | None) -> Any:
    """Return a structure with the containers of the outputs, in Keras' order.

    A dict for a list of outputs becomes a list. A list for a dict of outputs becomes a
    dict. A list or a dict for a single output becomes its only item. A structure that
    doesn't fit the outputs is returned unchanged.
    """
    if isinstance(structure, Mapping) and not isinstance(outputs, Mapping):
        structure = [structure.get(name) for name in names or ()]
    if isinstance(structure, list | tuple):
        if isinstance(outputs, Mapping) and len(structure) == len(outputs):
            return tree.pack_sequence_as(outputs, list(structure))
        if not tree.is_nested(outputs) and len(structure) == 1:
            return structure[0]
    return structure


def at(path: Path, structure: Nested, what: str) -> Any:
    """Return the tensor of one output.

    Args:
        path: The output's path.
        structure: Tensors in the structure of the outputs.
        what: The name of `structure` in error messages.

    Raises:
        ValueError: If the structure holds no tensor there.
    """
    leaf = found(path, structure)
    if leaf is None:
        raise ValueError(
            f"There is a distillation loss for output {list(path)}, which {what} "
            "doesn't hold. Give both models the same outputs, or None as the loss of "
            f"those that aren't distilled. Received: {describe(structure)}"
        )
    return leaf


def loss_weights_of(loss: Any, loss_weights: Any) -> Any:
    """Return `loss_weights` in the form that Keras accepts for these losses.

    Keras accepts Python floats, not ints or NumPy's numbers. For a list of losses, it
    reads a dict of weights as the list of its values in the alphabetical order of keys.

    Raises:
        TypeError: If a weight isn't a number.
    """
    if isinstance(loss_weights, Mapping) and isinstance(loss, list | tuple):
        loss_weights = tree.flatten(loss_weights)
    return numbers(loss_weights, what="loss_weights")


def numbers(weights: Any, what: str) -> Any:
    """Return a structure of weights as Python floats. None stays None.

    Args:
        weights: A number, or a list or dict of numbers.
        what: The name of the argument in the error message.

    Raises:
        TypeError: If a weight isn't a number.
    """
    if isinstance(weights, np.ndarray) and weights.ndim:
        weights = list(weights)
    try:
        return tree.map_structure(
            lambda weight: None if weight is None else float(weight), weights
        )
    except (TypeError, ValueError):
        raise TypeError(
            f"`{what}` must be a number, or a list or dict of numbers. Received: "
            f"{what}={weights!r}"
        ) from None


def weight_at(path: Path, sample_weight: Nested) -> Any:
    """Return the sample weights of one output, or None if it has none.

    Raises:
        ValueError: If weights are given by output, and none for this output.
    """
    weight = sample_weight
    for key in path if tree.is_nested(sample_weight) else ():
        try:
            # The rows of a tensor aren't outputs.
            weight = weight[key] if tree.is_nested(weight) else None
        except (KeyError, IndexError, TypeError):
            return at(path, sample_weight, "`sample_weight`")
    return weight


def found(path: Path, structure: Nested) -> Any:
    """Return the tensor of one output, or None if the structure has none there."""
    leaf = part(path, structure)
    return None if tree.is_nested(leaf) else leaf


def part(path: Path, structure: Nested) -> Any:
    """Return the part of a structure at a path, or None if there is none."""
    for key in path:
        try:
            # The rows of a tensor aren't outputs.
            structure = structure[key] if tree.is_nested(structure) else None
        except (KeyError, IndexError, TypeError):
            return None
    return structure


def describe(outputs: Nested) -> str:
    """Return the structure of `outputs` with shapes in place of tensors."""
    return str(
        tree.map_structure(lambda x: tuple(getattr(x, "shape", ())) or str(x), outputs)
    )


def of_rank(mask: Tensor, other: Tensor) -> Tensor:
    """Return a mask or weights of rows with as many dimensions as `other`."""
    mask, other = ops.convert_to_tensor(mask), ops.convert_to_tensor(other)
    while len(mask.shape) > len(other.shape) and mask.shape[-1] == 1:
        mask = ops.squeeze(mask, -1)
    while len(mask.shape) < len(other.shape):
        mask = ops.expand_dims(mask, -1)
    return mask
