"""Checks that calls don't change state, and the restoring of the caller's model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras

from keras_distill.export import seeds
from keras_distill.export.recording import recording
from keras_distill.scopes import scopes_kept

_ASSIGNMENTS = {"AssignVariableOp", "AssignAddVariableOp", "AssignSubVariableOp"}
_TABLE_UPDATES = {"LookupTableInsertV2", "LookupTableImportV2", "LookupTableRemoveV2"}
# The operators of `tf.random.Generator`.
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
    """Raise `ValueError` if a recurrent layer is stateful.

    Only attributes are read, so the check runs nothing.
    """
    recurrent = keras.layers.RNN | keras.layers.Bidirectional
    for layer in model._flatten_layers():
        if isinstance(layer, recurrent) and layer.stateful:
            raise ValueError(_message(_named(layer), "its state", _RECURRENT))


def refuse_random(
    drawing: Sequence[keras.random.SeedGenerator], models: Sequence[keras.layers.Layer]
) -> None:
    """Raise `ValueError` if outputs of the models depend on a seed.

    Args:
        drawing: The generators whose seeds reach an output.
        models: The models that were called.
    """
    for generator in drawing:
        layers = (layer for model in models for layer in model._flatten_layers())
        owners = [it for it in layers if generator in it._seed_generators]
        owner = _named(owners[0]) if owners else f"the seeds {generator.name!r}"
        raise ValueError(_message(owner, generator.state.path, _RANDOM))


def refuse_updates(
    trace: Callable[[], Any], function: Any, models: Sequence[keras.layers.Layer]
) -> None:
    """Raise `ValueError` if a traced call would change state outside of it.

    The traced graph contains every assignment, also of custom layers, and tracing runs
    none of them. The changed state may be a weight, a metric of a layer, a variable in
    a list or one of the caller's module.

    Args:
        trace: Traces the call again.
        function: A concrete function that calls the models with `training=False`.
        models: The models that it calls.
    """
    graph = function.graph
    # Keras' global seed belongs to no model. The comparison of outputs finds its draws.
    outer = {id(handle) for handle, _ in graph.captures} - _global_seed()
    updated = [
        (handle, kind, node)
        for handle, kind, node in _updated(graph)
        if id(handle) in outer
    ]
    if not updated:
        return
    owners = _owners(models)
    handle, kind, node = next((u for u in updated if id(u[0]) in owners), updated[0])
    if id(handle) in owners:
        raise ValueError(_message(*owners[id(handle)]))
    with recording() as recorded:
        trace()
    names = {id(variable.handle): variable.name for variable in graph.variables}
    calls = recorded.makers.get(node, [])
    owner = f"the layer {calls[0].label}" if calls else f"the operation {node!r}"
    name = names.get(id(handle), "a table" if kind in _TABLE_UPDATES else "its seed")
    raise ValueError(_message(owner, name, _RANDOM if kind in _DRAWS else _OTHER))


@contextmanager
def untouched(*models: keras.layers.Layer | None) -> Iterator[None]:
    """Restore the layers' losses and seeds after the block, also after an error.

    Tracing stores symbolic values of `add_loss` and `activity_regularizer` in the
    layers. Reading `model.losses` afterwards would fail. Layers of augmentation also
    draw seeds in inference.
    """
    layers = [layer for model in models if model for layer in model._flatten_layers()]
    losses = [(list(layer._losses), set(layer._loss_ids)) for layer in layers]
    try:
        with scopes_kept(), seeds.kept(*models):
            yield
    finally:
        for layer, (own, ids) in zip(layers, losses, strict=True):
            layer._losses[:] = own
            layer._loss_ids.clear()
            layer._loss_ids.update(ids)


def _updated(
    graph: Any, outside: Sequence[Any] | None = None, around: str | None = None
) -> Iterator[tuple[Any, str, str]]:
    """Yield the changed variable, the type and the node of each update.

    Nested graphs are searched too.

    Args:
        graph: The graph of a function.
        outside: The tensors of the outermost function that are this graph's inputs;
            None if this is the outermost function.
        around: The node of the outermost function that runs this graph.
    """
    if outside is None:
        origin = {id(inner): outer for outer, inner in graph.captures}
    else:
        pairs = zip(graph.inputs, outside, strict=False)
        origin = {id(inner): outer for inner, outer in pairs}
    for operation in graph.get_operations():
        inputs = [origin.get(id(tensor), tensor) for tensor in operation.inputs]
        node = around or operation.name
        if inputs and _is_update(operation.type):
            yield inputs[0], operation.type, node
        for inner in _nested(graph, operation):
            # The condition of `If` and `Case` comes before the arguments.
            extra = len(inputs) - len(inner.inputs)
            yield from _updated(inner, inputs[max(extra, 0) :], node)


def _is_update(kind: str) -> bool:
    known = kind in _ASSIGNMENTS | _TABLE_UPDATES | _DRAWS
    return known or kind.startswith(("ResourceScatter", "ResourceApply"))


def _nested(graph: Any, operation: Any) -> Iterator[Any]:
    for attribute in operation.node_def.attr.values():
        for name in [attribute.func.name, *(f.name for f in attribute.list.func)]:
            function = graph._get_function(name) if name else None
            inner = getattr(function, "graph", None)
            if inner is not None:
                yield inner


def _global_seed() -> set[int]:
    """Return the id of the handle of Keras' global seed; an empty set without one."""
    from keras.src.backend.common import global_state

    generator = global_state.get_global_attribute("global_seed_generator")
    return set() if generator is None else {id(generator.state.value.handle)}


def _owners(models: Sequence[keras.layers.Layer]) -> dict[int, tuple[str, str, str]]:
    """Return layer, name and advice for each variable, by the id of its handle."""
    owners: dict[int, tuple[str, str, str]] = {}
    for layer in (layer for model in models for layer in model._flatten_layers()):
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            owner = _named(layer), variable.path, _OTHER
            owners[id(variable.value.handle)] = owner
        for generator in layer._seed_generators:
            owner = _named(layer), generator.state.path, _RANDOM
            owners[id(generator.state.value.handle)] = owner
    return owners


def _named(layer: keras.layers.Layer) -> str:
    kind = "model" if isinstance(layer, keras.Model) else "layer"
    return f"the {kind} {layer.name!r} ({type(layer).__name__})"


def _message(owner: str, name: str, advice: str) -> str:
    return (
        "`model` must not carry state from call to call: the files would start from a "
        "state of their own, and exporting would change the state of your model. "
        f"Received: {owner}, which changes {name} in every call. Remedy: {advice}."
    )
