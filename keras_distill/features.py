"""Which model reads which keys of the batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras


def declared_names(model: Any) -> list[str] | None:
    """Return the names of a model's inputs, None where it doesn't declare any.

    Functional and Sequential models declare their inputs; a subclassed model takes
    what it finds, and so does any other callable.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return None
    return list(_as_dict(model) or (tensor.name for tensor in inputs))


def _as_dict(model: Any) -> Mapping[str, Any] | None:
    """Return the inputs of a Functional model that declares them as a dict."""
    structure = getattr(model, "input", None)
    return structure if isinstance(structure, Mapping) else None


def select(model: Any, x: Any, *, withheld: Sequence[str] = ()) -> Any:
    """Return the part of a batch that `model` reads.

    Args:
        model: A Keras model or another callable.
        x: The batch's inputs. A dict is read by name; anything else is passed on.
        withheld: Keys that a model without declared inputs must not see.

    Returns:
        What the model declares: a tensor for a single input, else a dict.

    Raises:
        ValueError: If the batch lacks an input that the model declares.
    """
    if not isinstance(x, Mapping):
        return x
    names = declared_names(model)
    if names is None:
        return {key: value for key, value in x.items() if key not in withheld}
    missing = [name for name in names if name not in x]
    if missing:
        raise ValueError(
            f"Model '{model.name}' declares inputs that the batch doesn't hold: "
            f"{missing}. Name the `keras.Input`s as the keys of the batch. Received: "
            f"keys {sorted(x)}"
        )
    if len(names) == 1 and _as_dict(model) is None:
        return x[names[0]]
    return {name: x[name] for name in names}


def check_not_declared(student: keras.Model, privileged_features: Any) -> None:
    """Raise ValueError if the student declares one of the privileged features."""
    declared = declared_names(student) or []
    leaked = [name for name in privileged_features if name in declared]
    if leaked:
        raise ValueError(
            f"The student '{student.name}' declares privileged features as inputs: "
            f"{leaked}. They don't exist when it serves; remove these inputs from "
            f"the student. Received: privileged_features={tuple(privileged_features)}"
        )


def check_held(x: Any, privileged_features: Sequence[str]) -> None:
    """Raise ValueError if a batch to train on lacks one of the privileged features."""
    keys = sorted(x) if isinstance(x, Mapping) else None
    missing = [name for name in privileged_features if name not in (keys or ())]
    if missing:
        raise ValueError(
            f"The batch doesn't hold the privileged features {missing}, so nothing "
            "would be withheld from the student. Pass a dict with these keys as `x`. "
            f"Received: keys {keys}"
        )
