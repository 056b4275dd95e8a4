"""The signature of a served model: names, shapes and dtypes of inputs and outputs."""

import inspect
import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Specs = dict[str, tf.TensorSpec]

# TensorFlow changes other input names. Formats would then have different names.
_PORTABLE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

# Keras' names of inputs that the user didn't name. Their number grows with every layer
# of the process, and changes when the model is saved and loaded.
_AUTOMATIC = re.compile(r"(keras_tensor|input_layer)(_\d+)?")

# The advice for models whose inputs are several arguments.
IN_ONE_ARGUMENT = (
    "Export `keras.Model([a, b], model(a, b))` of two `keras.Input`s, which shares the "
    "weights."
)


def input_specs(
    model: keras.layers.Layer, example_batch: Any, batch_size: int | None = None
) -> Specs:
    """Return the named inputs of `model`, in its order, with the batch size or None.

    Functional and Sequential models declare their inputs. For any other model, the
    example batch defines dtypes, shapes and names. The names are its keys, or `input`,
    or `input_0`, `input_1`, ... for a list. Only the batch size is open.
    """
    tensors = _declared_inputs(model)
    if tensors is not None:
        _refuse_left_out(tensors, example_batch)
    else:
        _refuse_further_arguments(model)
        tensors = _named(_standardized(example_batch), "input")
    for name in tensors:
        if not isinstance(name, str) or not _PORTABLE.fullmatch(name):
            raise ValueError(
                "Input names must be a letter followed by letters, digits and "
                "underscores, as the formats have no others in common. "
                f"Received: {name!r}."
            )
    return {
        name: tf.TensorSpec([batch_size, *tensor.shape[1:]], tensor.dtype, name=name)
        for name, tensor in tensors.items()
    }


def further_arguments(model: keras.layers.Layer) -> dict[str, bool]:
    """Return the further arguments of `call`, and whether each is required."""
    if _is_functional(model):
        return {}
    first, *others = inspect.signature(model.call).parameters.values()
    if first.kind is first.VAR_POSITIONAL:
        others = [first, *others]
    return {
        it.name: it.default is it.empty and it.kind is not it.VAR_POSITIONAL
        for it in others
        if it.name not in ("training", "mask") and it.kind is not it.VAR_KEYWORD
    }


def _refuse_further_arguments(model: keras.layers.Layer) -> None:
    needed = [name for name, needs in further_arguments(model).items() if needs]
    if needed:
        raise ValueError(
            "`model` must take its inputs in the first argument of `call`, as a "
            "tensor, a list or a dict. Received: "
            f"{model.name!r} ({type(model).__name__}), whose `call` also needs "
            f"{needed}. {IN_ONE_ARGUMENT}"
        )


def _refuse_left_out(declared: dict[str, Any], example_batch: Any) -> None:
    """Raise an error if a batch has no values, or None, for an optional input."""
    given = example_batch
    if isinstance(given, list | tuple):
        given = dict(zip(declared, given, strict=False))
    if not isinstance(given, dict):
        return
    for name, tensor in declared.items():
        is_optional = getattr(tensor._keras_history.operation, "optional", False)
        if is_optional and given.get(name) is None:
            raise ValueError(
                "`example_batch` must hold an array for every input, as the formats "
                f"have no optional ones. Received: None for the input {name!r}. Pass "
                "values for it, or build a model without it and copy the weights."
            )


def packing(
    model: keras.layers.Layer, example_batch: Any
) -> Callable[[dict[str, Any]], Any]:
    """Return the function from named inputs to the structure that `model` reads."""
    structure = example_batch
    if isinstance(model, keras.Sequential):
        structure = None
    elif _is_functional(model):
        structure = model.input
    if isinstance(structure, dict):
        return dict
    if isinstance(structure, list | tuple):
        return lambda inputs: list(inputs.values())
    return lambda inputs: next(iter(inputs.values()))


def name_outputs(model: keras.Model, outputs: Any, taken: Specs) -> dict[str, Any]:
    """Name the outputs of one call of `model`.

    The names are the keys of a dict; else the `output_names` of a Functional model, or
    the last layer's name of a Sequential one; else `output`, or `output_0`, `output_1`,
    ... for a list. A name that an input or an earlier output has gets the suffix `_1`,
    `_2`, ...
    """
    named = _named(outputs, "output")
    own = list(named)
    if not isinstance(outputs, dict):
        own = _declared_output_names(model) or own
    result: dict[str, Any] = {}
    for name, fallback, value in zip(
        own, _fallbacks("output", len(own)), named.values(), strict=True
    ):
        wanted = fallback if _AUTOMATIC.fullmatch(str(name)) else str(name)
        result[_free(wanted, {*taken, *result})] = value
    return result


def _is_functional(model: keras.layers.Layer) -> bool:
    # Keras has no public name for the class of functional models.
    inputs = getattr(model, "inputs", None)
    return isinstance(inputs, list) and all(
        isinstance(tensor, keras.KerasTensor) for tensor in inputs
    )


def _declared_inputs(model: keras.layers.Layer) -> dict[str, Any] | None:
    if not _is_functional(model):
        return None
    if not isinstance(model, keras.Sequential) and isinstance(model.input, dict):
        return _named(model.input, "input")
    fallbacks = _fallbacks("input", len(model.inputs))
    return {
        fallback if _AUTOMATIC.fullmatch(tensor.name) else tensor.name: tensor
        for fallback, tensor in zip(fallbacks, model.inputs, strict=True)
    }


def _declared_output_names(model: keras.Model) -> list[str] | None:
    if isinstance(model, keras.Sequential):
        return [model.layers[-1].name]
    return list(model.output_names) if _is_functional(model) else None


def _named(structure: Any, prefix: str) -> dict[str, Any]:
    if isinstance(structure, dict):
        named = structure
    elif isinstance(structure, list | tuple):
        names = _fallbacks(prefix, len(structure))
        named = dict(zip(names, structure, strict=True))
    else:
        named = {prefix: structure}
    for name, value in named.items():
        if isinstance(value, dict | list | tuple) or value is None:
            raise ValueError(
                f"The {prefix}s of `model` must be a tensor, or a list or dict of "
                "tensors, as the formats know no other structure. "
                f"Received: {type(value).__name__} for {name!r}."
            )
    return dict(named)


def _fallbacks(prefix: str, count: int) -> list[str]:
    return [prefix] if count == 1 else [f"{prefix}_{i}" for i in range(count)]


def _free(name: str, taken: set[str]) -> str:
    candidates = [name, *(f"{name}_{i}" for i in range(1, len(taken) + 1))]
    return next(candidate for candidate in candidates if candidate not in taken)


def _standardized(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: _standard_array(values) for name, values in batch.items()}
    if isinstance(batch, list | tuple):
        return [_standard_array(values) for values in batch]
    return _standard_array(batch)


def _standard_array(values: Any) -> Any:
    array = np.asarray(values)
    if array.ndim == 0:
        raise ValueError(
            "`example_batch` must hold arrays whose first axis is the batch. "
            f"Received: {values!r}."
        )
    if array.dtype.kind in "OSU":
        return array.astype(object)
    if array.dtype == np.float64:
        # float64 is NumPy's default. `fit` and `predict` convert it in the same way.
        return array.astype(keras.config.floatx())
    return array
