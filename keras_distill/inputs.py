"""Which model reads which keys of the batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf


def declared_names(model: Any) -> list[str] | None:
    """Return the names of a model's inputs, None where it doesn't declare any.

    Functional and Sequential models declare their inputs; a subclassed model takes
    what it finds, and so does any other callable. In nested dicts of inputs, every
    key on the way down counts as a name.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return None
    declared = _declared(model)
    if isinstance(declared, Mapping):
        return sorted(_keys(declared))
    return [tensor.name for tensor in inputs]


def select(
    model: Any, x: Any, *, withheld: Sequence[str] = (), check_dtypes: bool = True
) -> Any:
    """Return the part of a batch that `model` reads.

    Args:
        model: A Keras model or another callable.
        x: The batch's inputs. A dict, which may hold dicts, is read by name; anything
            else is passed on.
        withheld: Keys that a model without declared inputs must not see.
        check_dtypes: Whether to check the dtypes. False where something converts the
            inputs before the model reads them.

    Returns:
        What the model declares: a tensor for a single input, else a dict.

    Raises:
        ValueError: If the batch lacks an input that the model declares.
        TypeError: If an input's dtype isn't what the model declares and can't become
            it without loss: numbers for strings, fractions for integers.
    """
    if not isinstance(x, Mapping):
        return x
    if declared_names(model) is None:
        return _without(x, withheld)
    declared = _declared(model)
    if isinstance(declared, Mapping):
        return _read(model, declared, x, check_dtypes)
    named = {tensor.name: tensor for tensor in model.inputs}
    read = _read(model, named, x, check_dtypes)
    return read if len(read) > 1 else next(iter(read.values()))


def served(model: keras.Model, x: Any, *, withheld: Sequence[str] = ()) -> Any:
    """Return the part of a batch that `model` reads when it serves.

    A model that declares no inputs reads the keys that it was built on. What the batch
    lacks is left to the caller to find.

    Args:
        model: A built Keras model.
        x: The batch's inputs. A dict is read by name; anything else is passed on.
        withheld: Keys that a model without declared inputs must not see.
    """
    if not isinstance(x, Mapping):
        return x
    names = declared_names(model)
    if names is None:
        shapes = (model.get_build_config() or {}).get("input_shape")
        built_on = list(shapes) if isinstance(shapes, Mapping) else list(x)
        names = [name for name in built_on if name not in withheld]
    return {name: value for name, value in x.items() if name in names}


def check_not_declared(student: keras.Model, keys: Any, *, what: str) -> None:
    """Raise ValueError if the student declares one of the keys, which are `what`."""
    declared = declared_names(student) or []
    leaked = [name for name in keys if name in declared]
    if leaked:
        raise ValueError(
            f"The student '{student.name}' declares {what} as inputs: {leaked}. They "
            "don't exist when it serves; remove these inputs from the student. "
            f"Received: {tuple(keys)}"
        )


def check_held(x: Any, keys: Sequence[str], *, what: str) -> None:
    """Raise ValueError if a batch to train on lacks one of the keys."""
    held = _keys(x) if isinstance(x, Mapping) else set()
    missing = [name for name in keys if name not in held]
    if missing:
        received = sorted(held) if isinstance(x, Mapping) else None
        raise ValueError(
            f"The batch doesn't hold {what} {missing}. Pass a dict with these keys as "
            f"`x`. Received: keys {received}"
        )


def _declared(model: Any) -> Any:
    """Return a model's inputs in the structure that it was made with."""
    return getattr(model, "input", None)


def _keys(structure: Mapping[str, Any]) -> set[str]:
    """Return the keys of a dict, and of the dicts in it."""
    nested = [_keys(item) for item in structure.values() if isinstance(item, Mapping)]
    return set(structure).union(*nested)


def _without(x: Mapping[str, Any], withheld: Sequence[str]) -> dict[str, Any]:
    return {
        key: _without(item, withheld) if isinstance(item, Mapping) else item
        for key, item in x.items()
        if key not in withheld
    }


def _read(
    model: Any, declared: Mapping[str, Any], x: Any, check_dtypes: bool
) -> dict[str, Any]:
    missing = [name for name in declared if name not in x]
    if missing:
        raise ValueError(
            f"Model '{model.name}' declares inputs that the batch doesn't hold: "
            f"{missing}. Name the `keras.Input`s as the keys of the batch. Received: "
            f"keys {sorted(x)}"
        )
    read = {}
    for name, tensor in declared.items():
        if isinstance(tensor, Mapping) and isinstance(x[name], Mapping):
            read[name] = _read(model, tensor, x[name], check_dtypes)
        else:
            if check_dtypes:
                _check_dtype(model, name, getattr(tensor, "dtype", None), x[name])
            read[name] = x[name]
    return read


def _check_dtype(model: Any, name: str, declared: str | None, value: Any) -> None:
    if declared is None or not hasattr(value, "dtype"):
        return
    if tf.distribute.has_strategy() and tf.distribute.in_cross_replica_context():
        return  # Keras builds with the devices' mean there, a float whatever the data
    dtype = tf.as_dtype(value.dtype)
    integer = tf.as_dtype(declared).is_integer
    if (dtype == tf.string) != (declared == "string") or (
        integer and dtype.is_floating
    ):
        raise TypeError(
            f"Input '{name}' of model '{model.name}' is declared as {declared}, which "
            f"{dtype.name} can't become without loss. Convert it in the data, or "
            f"declare the `keras.Input` with the dtype that the data have. Received: "
            f"'{name}' of dtype {dtype.name}"
        )
