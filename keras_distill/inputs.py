"""The part of a batch that each model reads, by the names of its inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from keras_distill import backend
from keras_distill.types import Nested

# If a batch's inputs are a tensor, a data stage that adds keys makes them a dict with
# the tensor under this key.
TENSOR = "inputs"


def declared_names(model: Any) -> list[str] | None:
    """Return the names of a model's inputs; None if it doesn't declare any.

    Functional and Sequential models declare their inputs. Subclassed models and other
    callables don't: they are given the whole batch. In nested dicts of inputs, the keys
    of all levels are names.
    """
    inputs = getattr(model, "inputs", None)
    if not inputs:
        return None
    declared = _declared(model)
    if isinstance(declared, Mapping):
        return sorted(_keys(declared))
    return [tensor.name for tensor in inputs]


def select(
    model: Any, x: Nested, *, withheld: Sequence[str] = (), check_dtypes: bool = True
) -> Nested:
    """Return the part of a batch that `model` reads.

    Args:
        model: A Keras model or another callable.
        x: The batch's inputs. A dict, which may hold dicts, is read by name. Anything
            else is returned unchanged. If `"inputs"` is the only key that isn't
            withheld, a model with a single input reads it, whatever its own name is.
        withheld: Keys that a model without declared inputs doesn't get.
        check_dtypes: Whether to check the dtypes. False if the inputs are converted
            before the model reads them.

    Returns:
        The declared inputs: a tensor for a single input, else a dict.

    Raises:
        ValueError: If the batch lacks an input that the model declares.
        TypeError: If an input can't be converted to the declared dtype without loss:
            numbers to strings, or fractions to integers.
    """
    if not isinstance(x, Mapping):
        return x
    names = declared_names(model)
    if names is None:
        left = _without(x, withheld)
        alone = list(left) == [TENSOR] and _is_built_on_a_tensor(model)
        return left[TENSOR] if alone else left
    declared = _declared(model)
    if isinstance(declared, Mapping):
        return _read(model, declared, x, check_dtypes)
    named = {tensor.name: tensor for tensor in model.inputs}
    if (
        len(names) == 1
        and names[0] not in x
        and list(_without(x, withheld)) == [TENSOR]
    ):
        x = {names[0]: x[TENSOR]}
    read = _read(model, named, x, check_dtypes)
    return read if len(read) > 1 else next(iter(read.values()))


def served(model: keras.Model, x: Nested, *, withheld: Sequence[str] = ()) -> Nested:
    """Return the part of a batch that `model` reads in production.

    A model that declares no inputs reads the keys that it was built with. This function
    doesn't check that the batch has all inputs.

    Args:
        model: A built Keras model.
        x: The batch's inputs. A dict is read by name. Anything else is returned
            unchanged.
        withheld: Keys that a model without declared inputs doesn't get.
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
    """Raise ValueError if the student declares one of the keys as an input.

    Args:
        student: The student.
        keys: Keys of the batch that the student must not read.
        what: A description of the keys, for the message.
    """
    declared = declared_names(student) or []
    leaked = [name for name in keys if name in declared]
    if leaked:
        raise ValueError(
            f"The student '{student.name}' declares {what} as inputs: {leaked}. They "
            "don't exist when it serves; remove these inputs from the student. "
            f"Received: {tuple(keys)}"
        )


def check_held(x: Nested, keys: Sequence[str], *, what: str) -> None:
    """Raise ValueError if a training batch lacks a key. `what` describes the keys."""
    held = _keys(x) if isinstance(x, Mapping) else set()
    missing = [name for name in keys if name not in held]
    if missing:
        received = sorted(held) if isinstance(x, Mapping) else None
        raise ValueError(
            f"The batch doesn't hold {what} {missing}. Pass a dict with these keys as "
            f"`x`. Received: keys {received}"
        )


def _declared(model: Any) -> Any:
    """Return a model's inputs in the structure that the model was made with."""
    return getattr(model, "input", None)


def _is_built_on_a_tensor(model: Any) -> bool:
    """Return whether a model that declares no inputs was built with a tensor."""
    if not isinstance(model, keras.Layer) or not model.built:
        return False
    shapes = (model.get_build_config() or {}).get("input_shape")
    return shapes is not None and not isinstance(shapes, Mapping)


def _keys(structure: Mapping[str, Any]) -> set[str]:
    """Return the keys of a dict and of all dicts in it."""
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
    # In this context, Keras builds models with the mean of the devices' inputs, a float
    # whatever the dtype of the data is.
    if backend.in_cross_replica_context():
        return
    dtype = _name_of(value.dtype)
    to_integer = declared.startswith(("int", "uint"))
    from_float = dtype.startswith(("float", "bfloat"))
    if (dtype == "string") != (declared == "string") or (to_integer and from_float):
        raise TypeError(
            f"Input '{name}' of model '{model.name}' is declared as {declared}, which "
            f"{dtype} can't become without loss. Convert it in the data, or "
            f"declare the `keras.Input` with the dtype that the data have. Received: "
            f"'{name}' of dtype {dtype}"
        )


def _name_of(dtype: Any) -> str:
    """Return the name of a dtype of any library, `"string"` for all kinds of text."""
    # NumPy's letters for objects, which are text in data, and for text and bytes.
    if getattr(dtype, "kind", None) in ("O", "U", "S"):
        return "string"
    try:
        return str(keras.backend.standardize_dtype(dtype))
    except ValueError:
        # A dtype that Keras doesn't know, such as a date, is neither text nor number.
        return str(dtype)
