"""The split of a model into preprocessing (text, lookups, hashing) and network."""

import graphlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export import signature, state
from keras_distill.export.loading import served_model
from keras_distill.export.names import any_name
from keras_distill.export.portability import (
    described,
    is_graph,
    is_text,
    lacks_text,
    unportable_layers,
    unportable_within,
)


def split_preprocessing(
    model: keras.Model, formats: Sequence[str] = ("saved_model", "onnx", "litert")
) -> tuple[keras.Model, keras.Model]:
    """Split `model` into the preprocessing that a format lacks, and the rest.

        core(preprocessing(x)) == model(x)

    An unportable layer is one whose operators a format lacks. The unportable layers,
    and all layers that they depend on, become `preprocessing`. All other layers become
    `core`. Both models share layers and weights with `model`, which isn't changed. A
    nested model that contains unportable layers is split in the same way, and each part
    is nested in its place. Both models can be saved and loaded.

    Args:
        model: A Functional or Sequential model that contains unportable layers, none of
            which depends on a trained layer; or the distiller that trains it, or a
            `.keras` file of either.
        formats: The formats that `core` is exported to, named as in `export`. Layers
            that one of them lacks are split off. ONNX lacks text, lookups and hashing.
            LiteRT lacks text (except `StringLookup`), integer lookups, hashing and
            counts.

    Returns:
        `preprocessing` and `core`, both Functional. `preprocessing` reads a dict of the
        inputs of `model`, under the names that `export` gives them, and returns the
        dict that `core` reads. An input that `core` reads directly passes through
        unchanged, under its own name. An output of a preprocessing layer has the name
        of that layer, after the name of the nested model around it, if any. Characters
        other than letters, digits and underscores become underscores, and a name that
        is already used gets the suffix `_1`, `_2`, .... `core` returns the outputs of
        `model`, with the same structure and names.

    Raises:
        ValueError: The model is neither Functional nor Sequential; nothing or all of
            it is preprocessing; the preprocessing would contain trained weights; or a
            value that it returns to `core` is text, ragged, sparse or masked.

    Example:
    >>> import keras, tensorflow as tf
    >>> model = keras.Sequential([
    ...     keras.Input((1,), dtype="string", name="paint"),
    ...     keras.layers.StringLookup(vocabulary=["red", "blue"], name="color"),
    ...     keras.layers.Embedding(3, 4, name="taste"),
    ... ])
    >>> preprocessing, core = split_preprocessing(model)
    >>> preprocessing({"paint": tf.constant([["blue"], ["mauve"]])})["color"].numpy()
    array([[2],
           [0]])
    >>> core.output_names
    ['taste']
    """
    if isinstance(formats, str) or not set(formats) <= _FORMATS:
        raise ValueError(
            f"`formats` must be a list of some of {sorted(_FORMATS)}. "
            f"Received: formats={formats!r}."
        )
    model = served_model(model)
    if not is_graph(model):
        raise ValueError(
            "`model` must be a built Functional or Sequential model, as the calls of "
            "the layers of any other don't show. Received: a "
            f"{type(model).__name__}. Build it with `keras.Model(inputs, outputs)`, or "
            "look up, hash and split text outside it, and export what is left."
        )
    with state.untouched(model):
        return _split(model, formats)


def _split(
    model: keras.Model, formats: Sequence[str]
) -> tuple[keras.Model, keras.Model]:
    specs = signature.input_specs(model, None)
    structure = model.outputs[0] if _is_sequential(model) else model.output
    outputs = signature.name_outputs(model, structure, specs)
    nested = _Nested(tuple(formats))
    cut = _cut(model, named_inputs(model, list(specs)), {*specs, *outputs}, nested)
    if not cut.before:
        raise ValueError(
            f"`model` must hold layers that {_listed(formats)} lacks operators for; "
            f"there is nothing to split off. Received: {model.name!r} of "
            f"{described(model.layers)}. Export it as it is."
        )
    if not cut.after:
        raise ValueError(
            "`model` must hold more than preprocessing; nothing is left to export. "
            f"Received: {model.name!r} of {described(model.layers)}. Leave "
            f"{_listed(formats)} out of the formats."
        )
    preprocessing = _preprocessing(
        cut, cut.inputs, cut.straight, name=f"{model.name}_preprocessing"
    )
    return preprocessing, _core(cut, preprocessing, structure, name=model.name)


@dataclass(frozen=True, eq=False)
class _Call:
    """A call in the graph of the caller's model, to be made again in another graph.

    Attributes:
        operation: The layer or operation that is called.
        args: Its positional arguments, including the caller's symbolic tensors.
        kwargs: Its keyword arguments, also with these tensors.
        outputs: The symbolic tensors that it returns, each with the label for its name.
        unportable: The unportable layers in it.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[tuple[str, Any]]
    unportable: list[Any]

    def inputs(self) -> list[Any]:
        flat = keras.tree.flatten((self.args, self.kwargs))
        return [value for value in flat if isinstance(value, keras.KerasTensor)]

    def repeat(self, values: dict[int, Any]) -> None:
        """Make the call with the tensors that replace the caller's in `values`."""
        args, kwargs = keras.tree.map_structure(
            lambda x: values[id(x)] if isinstance(x, keras.KerasTensor) else x,
            (self.args, self.kwargs),
        )
        given = keras.tree.flatten(self.operation(*args, **kwargs))
        for (_, tensor), value in zip(self.outputs, given, strict=True):
            values[id(tensor)] = value


@dataclass(frozen=True, eq=False)
class _Cut:
    """The calls of preprocessing and core, and the tensors between them.

    Attributes:
        inputs: Name to tensor of the model's inputs.
        before: The calls of the preprocessing, in order.
        after: The calls of the core, in order.
        straight: The part of `inputs` that the core reads or the model returns.
        made: Name to tensor that `before` computes for `after` or the model's outputs.
    """

    inputs: dict[str, Any]
    before: list[_Call]
    after: list[_Call]
    straight: dict[str, Any]
    made: dict[str, Any]


@dataclass(frozen=True)
class _Nested:
    """Nested models that were split.

    Attributes:
        formats: The formats that the core is exported to.
        halves: The id of a nested model to its two halves, or None if it isn't split.
    """

    formats: tuple[str, ...]
    halves: dict[int, tuple[keras.Model, keras.Model] | None] = field(
        default_factory=dict
    )


def _cut(
    model: keras.Model, inputs: dict[str, Any], taken: set[str], nested: _Nested
) -> _Cut:
    calls = _calls(model, nested)
    before = _upstream_of_unportable(calls)
    _refuse_trained(before, nested.formats)
    after = [call for call in calls if call not in before]
    wanted = {id(tensor) for call in after for tensor in call.inputs()}
    wanted.update(id(tensor) for tensor in model.outputs)
    straight = {name: t for name, t in inputs.items() if id(t) in wanted}
    # Inputs and layers of one model can't have the same name.
    taken = {*taken, *(call.operation.name for call in after)}
    made: dict[str, Any] = {}
    for label, tensor in (pair for call in before for pair in call.outputs):
        if id(tensor) in wanted:
            made[_portable_name(label, {*taken, *made})] = tensor
    return _Cut(inputs, before, after, straight, made)


def _calls(model: keras.Model, nested: _Nested) -> list[_Call]:
    return [call for node in nodes(model) for call in _calls_of(node, nested)]


def nodes(model: keras.Model) -> list[Any]:
    """Return the nodes of a graph except its inputs, in the order of dependence.

    Nodes of one layer stay in their order: `summary` shows the last of them.
    """
    found: dict[Any, list[Any]] = {}
    open_ends = [_node(tensor) for tensor in model.outputs]
    while open_ends:
        node = open_ends.pop()
        if node not in found and not node.is_input:
            found[node] = node.parent_nodes
            open_ends.extend(node.parent_nodes)
    order: graphlib.TopologicalSorter[Any] = graphlib.TopologicalSorter(found)
    for operation in {node.operation: None for node in found}:
        calls = [node for node in operation._inbound_nodes if node in found]
        for earlier, later in itertools.pairwise(calls):
            order.add(later, earlier)
    return [node for node in order.static_order() if node in found]


def _node(tensor: Any) -> Any:
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def _calls_of(node: Any, nested: _Nested) -> list[_Call]:
    """Return the call of a node, or two calls for a nested model that is split."""
    halves = None
    # A mask that is passed explicitly couldn't be assigned to one of the halves.
    if is_graph(node.operation) and len(node.input_tensors) == len(
        node.operation.inputs
    ):
        halves = _halves(node.operation, nested)
    if halves is None:
        return [_whole(node, nested.formats)]
    return _halved(node, *halves, nested.formats)


def _whole(node: Any, formats: Sequence[str]) -> _Call:
    operation, arguments = node.operation, node.arguments
    outputs = [(operation.name, tensor) for tensor in node.outputs]
    unportable = unportable_within(operation, formats)
    takes_text = any(is_text(tensor) for tensor in node.input_tensors)
    if not unportable and takes_text and lacks_text(operation, formats):
        unportable = [operation]
    return _Call(operation, arguments.args, arguments.kwargs, outputs, unportable)


def _halved(
    node: Any,
    preprocessing: keras.Model,
    core: keras.Model,
    formats: Sequence[str],
) -> list[_Call]:
    name, kwargs = node.operation.name, dict(node.arguments.kwargs)
    given = node.arguments.args[0] if node.arguments.args else kwargs.pop("inputs")
    tensors = _by_inner_name(node.operation, given)
    # In the order in which Keras flattens the dict.
    crossing = {
        key: keras.KerasTensor(tensor.shape, tensor.dtype)
        for key, tensor in sorted(preprocessing.output.items())
    }
    needed = {key: tensors[key] for key in preprocessing.input}
    made = [(f"{name}_{key}", tensor) for key, tensor in crossing.items()]
    rest = {key: {**tensors, **crossing}[key] for key in core.input}
    outputs = [(name, tensor) for tensor in node.outputs]
    unportable = unportable_layers(preprocessing, formats) or [preprocessing]
    return [
        _Call(preprocessing, (needed,), kwargs, made, unportable),
        _Call(core, (rest,), kwargs, outputs, []),
    ]


def _halves(
    model: keras.Model, nested: _Nested
) -> tuple[keras.Model, keras.Model] | None:
    if id(model) not in nested.halves:
        inputs = {tensor.name: tensor for tensor in model.inputs}
        cut = _cut(model, inputs, set(inputs), nested)
        if not cut.before or not cut.after:
            nested.halves[id(model)] = None
        else:
            used = {id(tensor) for call in cut.before for tensor in call.inputs()}
            needed = {name: t for name, t in inputs.items() if id(t) in used}
            preprocessing = _preprocessing(
                cut, needed, {}, name=f"{model.name}_preprocessing"
            )
            core = _core(cut, preprocessing, model.outputs, name=model.name)
            nested.halves[id(model)] = preprocessing, core
    return nested.halves[id(model)]


def _preprocessing(
    cut: _Cut, inputs: dict[str, Any], straight: dict[str, Any], *, name: str
) -> keras.Model:
    fresh, values = _inputs(inputs, {})
    for call in cut.before:
        call.repeat(values)
    given = {key: values[id(t)] for key, t in {**straight, **cut.made}.items()}
    return keras.Model(fresh, given, name=name)


def _core(
    cut: _Cut, preprocessing: keras.Model, structure: Any, *, name: str
) -> keras.Model:
    dtypes = _handed_over(preprocessing)
    fresh, values = _inputs({**cut.straight, **cut.made}, dtypes)
    inputs = set(values)
    for call in cut.after:
        call.repeat(values)
    renaming: dict[str, keras.layers.Layer] = {}

    def output(tensor: Any) -> Any:
        value, maker = values[id(tensor)], tensor._keras_history.operation.name
        if id(tensor) not in inputs or value.name == maker:
            return value
        # Keras names an output after the layer that makes it, which the core lacks.
        if maker not in renaming:
            renaming[maker] = keras.layers.Identity(name=maker, dtype=value.dtype)
        return renaming[maker](value)

    return keras.Model(fresh, keras.tree.map_structure(output, structure), name=name)


def _inputs(
    tensors: dict[str, Any], dtypes: dict[str, str]
) -> tuple[dict[str, Any], dict[int, Any]]:
    """Make inputs like `tensors`; return them by name, and by the tensors' ids."""
    fresh = {
        name: keras.Input(
            batch_shape=tensor.shape, dtype=dtypes.get(name, tensor.dtype), name=name
        )
        for name, tensor in tensors.items()
    }
    return fresh, {id(tensor): fresh[name] for name, tensor in tensors.items()}


def _handed_over(preprocessing: keras.Model) -> dict[str, str]:
    """Return the actual dtypes of `preprocessing`'s outputs.

    Lookups declare floats if they return int64, and int64 if they return text.
    """
    dtypes: dict[str, str] = {}

    def trace(tensors: dict[str, tf.Tensor]) -> None:
        for name, tensor in preprocessing(tensors, training=False).items():
            _refuse_kind(name, _kind(tensor))
            dtypes[name] = tensor.dtype.name

    for name, tensor in preprocessing.output.items():
        # Keras fails to trace some sparse layers, and doesn't mark their outputs.
        if getattr(tensor._keras_history.operation, "sparse", False):
            _refuse_kind(name, "sparse")
    specs = {
        name: tf.TensorSpec(tensor.shape, tensor.dtype)
        for name, tensor in preprocessing.input.items()
    }
    function = tf.function(trace, input_signature=[specs], autograph=False)
    with any_name():
        function.get_concrete_function()
    return dtypes


_REMEDIES = {
    "sparse": "Give the layer `sparse=False`.",
    "ragged": "Give the layer `ragged=False` and an `output_sequence_length`.",
    "text": "Take the text out of the outputs of the model.",
    "masked": "Mask behind the preprocessing, as `mask_zero` of an Embedding does.",
}


def _kind(tensor: Any) -> str | None:
    """Return why a tensor can't be an input of a core; None if it can."""
    if isinstance(tensor, tf.SparseTensor):
        return "sparse"
    if isinstance(tensor, tf.RaggedTensor):
        return "ragged"
    if tensor.dtype == tf.string:
        return "text"
    return None if getattr(tensor, "_keras_mask", None) is None else "masked"


def _refuse_kind(name: str, kind: str | None) -> None:
    if kind is not None:
        raise ValueError(
            "What the preprocessing of `model` gives must be dense numbers without a "
            f"mask. Received: {name!r}, which is {kind}. {_REMEDIES[kind]}"
        )


def _upstream_of_unportable(calls: list[_Call]) -> list[_Call]:
    wanted: set[int] = set()
    before = []
    for call in reversed(calls):
        given = {id(tensor) for _, tensor in call.outputs}
        if call.unportable or given & wanted:
            before.append(call)
            wanted.update(id(tensor) for tensor in call.inputs())
    return before[::-1]


def _refuse_trained(before: list[_Call], formats: Sequence[str]) -> None:
    layers = [c.operation for c in before if isinstance(c.operation, keras.Layer)]
    trained = [layer for layer in layers if _is_trained(layer)]
    if trained:
        cause = {id(part): part for call in before for part in call.unportable}
        raise ValueError(
            "`model` must have nothing trained upstream of, or in one piece with, what "
            f"{_listed(formats)} lacks operators for: {described(cause.values())}. "
            "Received: "
            f"{described(trained)}, which has trainable weights. Leave the one or the "
            "other out of the model; of what holds both, call the layers one by one."
        )


def _is_trained(layer: keras.layers.Layer) -> bool:
    # A layer that is frozen for serving counts too: it was trained.
    return any(inner._trainable_variables for inner in layer._flatten_layers())


_FORMATS = {"saved_model", "onnx", "litert"}


def _listed(formats: Sequence[str]) -> str:
    """Return the names of formats that may lack operators, e.g. `ONNX or LiteRT`."""
    names = {"onnx": "ONNX", "litert": "LiteRT"}
    listed = [names[name] for name in formats if name in names]
    return " or ".join(listed) or "SavedModel"


def _is_sequential(model: keras.Model) -> bool:
    return isinstance(model, keras.Sequential)


def named_inputs(model: keras.Model, names: list[str]) -> dict[str, Any]:
    """Return the symbolic inputs of a graph by name, given the names in order."""
    if not _is_sequential(model) and isinstance(model.input, dict):
        return dict(model.input)
    return dict(zip(names, model.inputs, strict=True))


def _by_inner_name(model: keras.Model, given: Any) -> dict[str, Any]:
    """Return the inputs of a nested model's call, by the names of its own inputs."""
    names = [tensor.name for tensor in model.inputs]
    # Keras reads a dict by name, but in sorted order if the model declares a dict.
    if isinstance(given, dict) and set(names) <= set(given):
        return {name: given[name] for name in names}
    return dict(zip(names, keras.tree.flatten(given), strict=True))


def _portable_name(label: str, taken: set[str]) -> str:
    name = re.sub(r"[^A-Za-z0-9_]", "_", label)
    name = name if name[0].isalpha() else f"input_{name}"
    candidates = [name, *(f"{name}_{i}" for i in range(1, len(taken) + 1))]
    return next(candidate for candidate in candidates if candidate not in taken)
