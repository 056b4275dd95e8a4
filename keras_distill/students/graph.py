"""The graph of a Functional or Sequential model: reading it and building another."""

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

Layer = Any  # A `keras.Operation`: a layer, or a function of `keras.ops`.
Node = Any  # A call of one of them.


def graph_of(layer: Layer) -> Any:
    """Return the graph of a Functional or Sequential model, None for other layers."""
    if isinstance(layer, keras.Sequential):
        return layer._functional
    own_call = getattr(type(layer).call, "__qualname__", "") != "Functional.call"
    is_graph = isinstance(layer, keras.Model) and not own_call
    return layer if is_graph and hasattr(layer, "_nodes_by_depth") else None


def nodes_of(graph: Any) -> list[Node]:
    """Return the calls of a graph in an order in which they can be computed."""
    depths = sorted(graph._nodes_by_depth, reverse=True)
    nodes = [node for depth in depths for node in graph._nodes_by_depth[depth]]
    return [node for node in nodes if node.operation and not node.is_input]


def checked(teacher: Any, call: str) -> keras.Model:
    """Return the teacher. Raise an error with the reason if it can't be cut."""
    if not isinstance(teacher, keras.Model):
        raise TypeError(
            f"`{call}` takes a Keras model as `teacher`. Received: teacher={teacher!r}"
        )
    if isinstance(teacher, keras.Sequential) and not teacher.built:
        raise ValueError(
            f"`{call}` needs a built teacher: begin it with `keras.Input(shape)`. "
            f"Received: teacher={teacher.name!r}, which isn't built."
        )
    if graph_of(teacher) is None:
        raise ValueError(
            f"`{call}` cuts Functional and Sequential models, whose layers Keras knows "
            "in their order. Received: teacher={!r} of the class {}, which has a "
            "`call` of its own.".format(teacher.name, type(teacher).__name__)
        )
    holders: dict[int, str] = {}
    for layer in _leaves(teacher):
        for weight in layer.weights:
            other = holders.setdefault(id(weight), layer.name)
            if other != layer.name:
                raise ValueError(
                    f"The layers {other!r} and {layer.name!r} share the weight "
                    f"{weight.name!r}, which `{call}` can't copy to a student."
                )
    return teacher


def _leaves(model: keras.Model) -> Iterator[keras.Layer]:
    """Yield the layers of a model and of its sub-models, not the sub-models."""
    for node in nodes_of(graph_of(model)):
        if graph_of(node.operation) is not None:
            yield from _leaves(node.operation)
        elif isinstance(node.operation, keras.Layer):
            yield node.operation


def times_called(model: keras.Model) -> dict[int, int]:
    """Return the number of calls of each layer by its id, sub-models included."""
    counts: dict[int, int] = {}
    for node in nodes_of(graph_of(model)):
        operation = node.operation
        counts[id(operation)] = counts.get(id(operation), 0) + 1
        if counts[id(operation)] == 1 and graph_of(operation) is not None:
            for key, count in times_called(operation).items():
                counts[key] = counts.get(key, 0) + count
    return counts


class Rebuilding:
    """Builds a copy of a model with changed layers and the same or cut weights.

    Args:
        configs: The changes to the configs of layers, by the id of the layer.
        shape: Returns the new shape of an input's tensor.
        cut: Returns the part of a weight that the new layer keeps.
        skipped: The ids of calls that are left out.
        bypassed: The tensors that replace the outputs of calls that are left out, by
            the id of the call.
    """

    def __init__(
        self,
        *,
        configs: Mapping[int, Mapping[str, Any]] | None = None,
        shape: Callable[[Any], Any] = lambda tensor: tensor.shape,
        cut: Callable[[Any, Any], Any] = lambda variable, value: value,
        skipped: set[int] | None = None,
        bypassed: Mapping[int, Any] | None = None,
    ) -> None:
        self.configs = configs or {}
        self.shape = shape
        self.cut = cut
        self.skipped = skipped or set()
        self.bypassed = bypassed or {}
        self._new: dict[int, tuple[Layer, Layer]] = {}

    def model(self, model: keras.Model, name: str) -> keras.Model:
        """Return the new model, with copied weights."""
        built = self._graph(model, name)
        for old, new in self._new.values():
            if isinstance(old, keras.Layer) and graph_of(old) is None:
                self._copy(old, new)
        for layer in built._flatten_layers():  # also if the teacher was frozen
            layer.trainable = True
        return built

    def _graph(self, model: keras.Model, name: str) -> keras.Model:
        if isinstance(model, keras.Sequential):
            return self._sequential(model, name)
        tensors = {id(tensor): self._input(tensor) for tensor in model.inputs}
        for node in nodes_of(model):
            if id(node) in self.bypassed:
                given = tensors[id(self.bypassed[id(node)])]
                tensors[id(node.outputs[0])] = given
            elif id(node) not in self.skipped:
                args, kwargs = node.arguments.fill_in(tensors)
                outputs = keras.tree.flatten(self._called(node, args, kwargs))
                for old, new in zip(node.outputs, outputs, strict=True):
                    tensors[id(old)] = new

        def renewed(structure: Any) -> Any:
            return keras.tree.map_structure(lambda old: tensors[id(old)], structure)

        inputs, outputs = model._inputs_struct, model._outputs_struct
        return keras.Model(renewed(inputs), renewed(outputs), name=name)

    def _sequential(self, model: keras.Model, name: str) -> keras.Model:
        (tensor,) = model._functional.inputs
        layers = [
            self._layer(node.operation)
            for node in nodes_of(model._functional)
            if id(node) not in self.skipped
        ]
        built = keras.Sequential([self._input_layer(tensor)], name=name)
        for layer in layers:
            try:
                built.add(layer)
            except Exception as error:
                raise _not_rebuilt(layer.name, error) from error
        return built

    def _input_layer(self, tensor: Any) -> Layer:
        layer = tensor._keras_history.operation
        config = {**layer.get_config(), "batch_shape": tuple(self.shape(tensor))}
        return type(layer).from_config(config)

    def _input(self, tensor: Any) -> Any:
        return self._input_layer(tensor).output

    def _called(self, node: Node, args: Any, kwargs: Any) -> Any:
        layer = self._layer(node.operation)
        try:
            return layer(*args, **kwargs)
        except Exception as error:
            raise _not_rebuilt(node.operation.name, error) from error

    def _layer(self, old: Layer) -> Layer:
        if id(old) not in self._new:
            if graph_of(old) is not None:
                new = self._graph(old, old.name)
            else:
                new = _remade(old, self.configs.get(id(old), {}))
            self._new[id(old)] = old, new
        return self._new[id(old)][1]

    def _copy(self, old: keras.Layer, new: keras.Layer) -> None:
        """Copy a layer's state: weights, vocabularies, adapted values."""
        for source, target in zip(old.weights, new.weights, strict=True):
            value = self.cut(source, keras.ops.convert_to_numpy(source))
            if tuple(target.shape) != value.shape:
                raise ValueError(
                    f"The layer {old.name!r} can't be cut: its weight {source.name!r} "
                    f"has the shape {tuple(target.shape)} where {value.shape} fits. "
                    "Leave it whole with `width` by layer."
                )
            target.assign(value)
        if hasattr(old, "save_assets") and hasattr(old, "load_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)
        if isinstance(old, keras.layers.Discretization):
            new.bin_boundaries = np.array(old.bin_boundaries).tolist()
        if isinstance(old, keras.layers.Normalization):
            new.finalize_state()


def _remade(old: Layer, changes: Mapping[str, Any]) -> Layer:
    """Return a layer with the config and the functions of another layer."""
    with warnings.catch_warnings():
        # Keras warns of functions in files. This config isn't written to a file.
        warnings.filterwarnings("ignore", "The object being serialized includes a `la")
        config = {**old.get_config(), **changes}
    if isinstance(old, keras.layers.Lambda):
        keys = ("name", "dtype", "output_shape")  # the last only where it was given
        named = {key: config[key] for key in keys if key in config}
        kept = {"mask": old.mask, "arguments": old.arguments}
        return type(old)(old.function, **{**named, **kept})
    for key in ("activation", "recurrent_activation"):
        if key in config:
            config[key] = getattr(old, key)
    return type(old).from_config(config)


def _not_rebuilt(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"The layer {name!r} can't be built for the student: {error} Leave the layers "
        "before it whole: give `width` by layer."
    )
