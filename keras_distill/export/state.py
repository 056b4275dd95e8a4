"""State that a call changes: refused, and the caller's model left as it was."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export import seeds

_ASSIGNMENTS = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"}
_TABLE_UPDATES = {"LookupTableInsertV2", "LookupTableImportV2", "LookupTableRemoveV2"}
# Of `tf.random.Generator`.
_DRAWS = {"RngReadAndSkip", "RngSkip", "StatefulStandardNormalV2", "StatefulUniform"}
_RECURRENT = (
    "build the layer with `stateful=False` and copy the weights, or make the state an "
    "input and an output of the model (`initial_state=`, `return_state=True`)"
)
_RANDOM = (
    "the outputs are random: switch the noise off with `training=False`, or draw it "
    "outside of the model and make it an input; augment in the data, not in the model"
)
_OTHER = (
    "update it with `training=True` only, or make the state an input and an output of "
    "the model"
)


def refuse_stateful(model: keras.layers.Layer) -> None:
    """Raise `ValueError` where a layer says that it carries state between calls.

    Reads attributes only, so that nothing has run when it raises.
    """
    recurrent = keras.layers.RNN | keras.layers.Bidirectional
    for layer in model._flatten_layers():
        if isinstance(layer, recurrent) and layer.stateful:
            raise ValueError(_message(_named(layer), "its state", _RECURRENT))


def refuse_random(
    drawing: Sequence[keras.random.SeedGenerator], models: Sequence[keras.layers.Layer]
) -> None:
    """Raise `ValueError` where outputs of the models depend on a seed.

    Args:
        drawing: The generators whose seeds reach an output.
        models: The models that were called.
    """
    for generator in drawing:
        layers = (layer for model in models for layer in model._flatten_layers())
        owners = [it for it in layers if generator in it._seed_generators]
        owner = _named(owners[0]) if owners else f"the seeds {generator.name!r}"
        raise ValueError(_message(owner, generator.state.path, _RANDOM))


def refuse_updates(function: Any, models: Sequence[keras.layers.Layer]) -> None:
    """Raise `ValueError` where a traced call would change state of the models.

    The traced graph lists every assignment, also those of custom layers, and tracing
    runs none of them.

    Args:
        function: A concrete function that calls the models with `training=False`.
        models: The models whose state must stay.
    """
    updated = list(_updated(function.graph))
    if not updated:
        return
    owners = _owners(models)
    for handle, operation in updated:
        if id(handle) in owners:
            layer, name, advice = owners[id(handle)]
            raise ValueError(_message(_named(layer), name, advice))
        # Keras' global seed belongs to no model; comparing the values finds those.
        if operation.type in _TABLE_UPDATES | _DRAWS:
            what = _RANDOM if operation.type in _DRAWS else _OTHER
            raise ValueError(_message("the operation", repr(operation.name), what))


@contextmanager
def untouched(*models: keras.layers.Layer | None) -> Iterator[None]:
    """Put back what calls leave behind in the layers, whatever happens inside.

    Tracing stores symbolic values of `add_loss` and `activity_regularizer` in the
    layers. Reading `model.losses` afterwards would fail. Layers of augmentation draw
    seeds in inference too.
    """
    layers = [layer for model in models if model for layer in model._flatten_layers()]
    losses = [(list(layer._losses), set(layer._loss_ids)) for layer in layers]
    try:
        with seeds.kept(*models):
            yield
    finally:
        for layer, (own, ids) in zip(layers, losses, strict=True):
            layer._losses[:] = own
            layer._loss_ids.clear()
            layer._loss_ids.update(ids)


def _updated(
    graph: Any, outside: Sequence[Any] | None = None
) -> Iterator[tuple[Any, Any]]:
    """Yield the outer tensor and the operation of each update, in nested graphs too.

    Args:
        graph: The graph of a function.
        outside: What its inputs are in the outermost function; None for that itself.
    """
    if outside is None:
        origin = {id(inner): outer for outer, inner in graph.captures}
    else:
        pairs = zip(graph.inputs, outside, strict=False)
        origin = {id(inner): outer for inner, outer in pairs}
    for operation in graph.get_operations():
        inputs = [origin.get(id(tensor), tensor) for tensor in operation.inputs]
        if _is_update(operation):
            yield (inputs[0] if inputs else None), operation
        for inner in _nested(graph, operation):
            # The condition of `If` and `Case` comes before the arguments.
            extra = len(inputs) - len(inner.inputs)
            yield from _updated(inner, inputs[max(extra, 0) :])


def _is_update(operation: Any) -> bool:
    kind = operation.type
    known = kind in _ASSIGNMENTS | _TABLE_UPDATES | _DRAWS
    return known or kind.startswith(("ResourceScatter", "ResourceApply"))


def _nested(graph: Any, operation: Any) -> Iterator[Any]:
    for attribute in operation.node_def.attr.values():
        for name in [attribute.func.name, *(f.name for f in attribute.list.func)]:
            function = graph._get_function(name) if name else None
            inner = getattr(function, "graph", None)
            if inner is not None:
                yield inner


def _owners(models: Sequence[keras.layers.Layer]) -> dict[int, tuple[Any, str, str]]:
    """Return layer, name and advice by the id of a variable's handle."""
    owners: dict[int, tuple[Any, str, str]] = {}
    for model in models:
        for layer in model._flatten_layers():
            # Variables that only TensorFlow knows of, as attributes of custom layers.
            for child in tf.train.TrackableView(layer).children(layer).values():
                if isinstance(child, tf.Variable):
                    owners[id(child.handle)] = (layer, child.name, _OTHER)
            for variable in _variables(layer):
                owners[id(variable.value.handle)] = (layer, variable.path, _OTHER)
            for generator in layer._seed_generators:
                handle = generator.state.value.handle
                owners[id(handle)] = (layer, generator.state.path, _RANDOM)
    return owners


def _variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def _named(layer: keras.layers.Layer) -> str:
    kind = "model" if isinstance(layer, keras.Model) else "layer"
    return f"the {kind} {layer.name!r} ({type(layer).__name__})"


def _message(owner: str, name: str, advice: str) -> str:
    return (
        "`model` must not carry state from call to call: the files would start from a "
        "state of their own, and exporting would change the state of your model. "
        f"Received: {owner}, which changes {name} in every call. Remedy: {advice}."
    )
