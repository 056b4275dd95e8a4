"""A model with some of its outputs only."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_distill.export import signature
from keras_distill.export.portability import is_graph
from keras_distill.export.preprocessing import named_inputs, nodes

Select = Callable[[Any], Any]


def chosen(
    model: keras.Model, outputs: Sequence[str] | None, *, all_inputs: bool = False
) -> tuple[keras.Model, Select]:
    """Return a model with some of the outputs, and the function for its inputs.

    The new model shares the layers that the chosen outputs need.

    Args:
        model: A built model.
        outputs: The names of the outputs, as in `export`; None for all.
        all_inputs: Whether to keep inputs that no chosen output needs.

    Returns:
        The new model, and the function that converts a batch for `model` to one for
        the new model.

    Raises:
        ValueError: The model has no such output, or isn't Functional or Sequential.
    """
    if outputs is None:
        return model, lambda batch: batch
    if not is_graph(model):
        raise ValueError(
            "`outputs` must be of a Functional model, as the calls of the layers of "
            "any other don't show. Export `keras.Model(x, model(x)['name'])` of a "
            f"`keras.Input` `x`. Received: outputs={outputs!r}, a "
            f"{type(model).__name__}."
        )
    specs = signature.input_specs(model, None)
    single = isinstance(model, keras.Sequential)
    structure = model.outputs[0] if single else model.output
    named = signature.name_outputs(model, structure, specs)
    _check(outputs, list(named))
    inputs = named_inputs(model, list(specs))
    wanted = {name: named[name] for name in outputs}
    part = keras.Model(_structured(model, inputs), wanted, name=model.name)
    read = {id(tensor) for node in nodes(part) for tensor in node.input_tensors}
    read |= {id(tensor) for tensor in part.outputs}
    kept = [name for name, it in inputs.items() if all_inputs or id(it) in read]
    if len(kept) < len(inputs):
        given = _structured(model, {name: inputs[name] for name in kept})
        part = keras.Model(given, wanted, name=model.name)
    return part, _selecting(list(inputs), kept)


def _structured(model: keras.Model, inputs: dict[str, Any]) -> Any:
    """Return inputs in the structure that `model` reads."""
    if not isinstance(model, keras.Sequential) and isinstance(model.input, dict):
        return inputs
    return list(inputs.values())


def _selecting(names: list[str], kept: list[str]) -> Select:
    """Return the function that drops the inputs of a batch that aren't kept."""
    dropped = set(names) - set(kept)

    def select(batch: Any) -> Any:
        if isinstance(batch, dict):
            return {name: it for name, it in batch.items() if name not in dropped}
        if isinstance(batch, list | tuple) and len(batch) == len(names):
            pairs = zip(names, batch, strict=True)
            return [it for name, it in pairs if name in kept]
        return batch

    return select


def _check(outputs: Any, possible: list[str]) -> None:
    usable = isinstance(outputs, list | tuple) and outputs
    if not usable or any(outputs.count(it) > 1 or it not in possible for it in outputs):
        raise ValueError(
            f"`outputs` must be a list of some of the model's {possible}. "
            f"Received: outputs={outputs!r}."
        )
