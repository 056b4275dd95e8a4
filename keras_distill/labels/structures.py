"""Labels and sample weights in the structure of a model's outputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_distill import per_output
from keras_distill.types import Nested, Path

tree = keras.tree


def labels_by_output(
    labels: Nested, predictions: Nested, *, names: Sequence[str] | None, losses: Any
) -> Nested:
    """Return labels in the structure of the outputs, None for outputs without labels.

    Keras matches a dict of labels by name, and a list of labels with the losses that
    aren't None. Labels of any other structure are returned unchanged.

    Args:
        labels: The labels.
        predictions: The outputs.
        names: The names of the outputs in order, if the model has names.
        losses: As `loss` in `keras.Model.compile`.
    """
    count = len(tree.flatten(predictions))
    if not tree.is_nested(labels) or not _is_flat(predictions):
        return labels
    if isinstance(labels, Mapping):
        keys = list(predictions) if isinstance(predictions, Mapping) else names
        if not keys or len(keys) != count or not set(labels) <= set(keys):
            return labels
        if isinstance(predictions, Mapping):
            return {key: labels.get(key) for key in predictions}
        return [labels.get(key) for key in keys]
    if len(labels) == count or not tree.is_nested(losses):
        return per_output.as_structured(labels, predictions, names)
    of_outputs = per_output.as_structured(losses, predictions, names)
    with_loss = [
        tuple(path)
        for path, loss in tree.flatten_with_path(of_outputs)
        if loss is not None
    ]
    if len(with_loss) != len(labels):
        return labels
    given = dict(zip(with_loss, labels, strict=True))
    paths = [tuple(path) for path, _ in tree.flatten_with_path(predictions)]
    return tree.pack_sequence_as(predictions, [given.get(path) for path in paths])


def losses_at(
    path: Path, losses: Any, predictions: Nested, *, names: Sequence[str] | None
) -> list[Any]:
    """Return the label losses of one output; an empty list if it has none.

    Args:
        path: The output's path.
        losses: As `loss` in `keras.Model.compile`.
        predictions: The outputs.
        names: The names of the outputs in order, if the model has names.
    """
    if not path:
        # Of several losses of a single output, Keras returns the value of the first.
        of_output: Any = tree.flatten(losses)[:1]
    elif not tree.is_nested(losses):
        of_output = losses
    else:
        count = len(tree.flatten(predictions))
        is_list = isinstance(losses, list | tuple) and _is_flat(losses)
        if is_list and len(losses) == count and not _is_flat(predictions):
            losses = tree.pack_sequence_as(predictions, list(losses))
        losses = per_output.as_structured(losses, predictions, names)
        of_output = per_output.part(path, losses)
    return [loss for loss in tree.flatten(of_output) if loss is not None]


def weights_by_output(
    sample_weight: Nested, predictions: Nested, *, names: Sequence[str] | None
) -> Nested:
    """Return sample weights in the structure of the outputs.

    Raises:
        ValueError: If a dict of weights has a key that isn't the name of an output.
    """
    if not isinstance(sample_weight, Mapping):
        return per_output.as_structured(sample_weight, predictions, names)
    by_name = isinstance(predictions, Mapping)
    known = list(predictions if by_name else names or ())
    unknown = [key for key in sample_weight if key not in known]
    if unknown:
        raise ValueError(
            "The keys of `sample_weight` must be the names of the outputs. Received: "
            f"keys {sorted(sample_weight)}, outputs named {known}"
        )
    if by_name:
        return {key: sample_weight.get(key) for key in known}
    return per_output.as_structured(sample_weight, predictions, names)


def check_weights_are_read(y: Nested, sample_weight: Nested, received: str) -> None:
    """Raise ValueError for sample weights without labels, which Keras would drop.

    Args:
        y: The labels, as in `keras.Model.fit`.
        sample_weight: As in `keras.Model.fit`.
        received: A description of the arguments, for the error message.
    """
    if y is None and sample_weight is not None:
        raise ValueError(
            "Keras drops the weights of arrays without labels. Pass a `tf.data.Dataset`"
            " of `(x, None, sample_weight)`: `tf.data.Dataset.from_tensor_slices((x, "
            "sample_weight)).batch(32).map(lambda x, weight: (x, None, weight))`. "
            f"Received: {received}"
        )


def _is_flat(structure: Nested) -> bool:
    """Return whether a structure is a list, tuple or dict of tensors."""
    if not tree.is_nested(structure):
        return False
    items = structure.values() if isinstance(structure, Mapping) else structure
    return not any(tree.is_nested(item) for item in items)
