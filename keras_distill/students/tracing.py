"""The trace that follows the units of a model from layer to layer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from keras_distill.students.elementwise import keeps_units_apart
from keras_distill.students.graph import Node, graph_of, nodes_of, times_called
from keras_distill.students.units import Axes, Labels, Units, labelled, replaced, whole

# A dimension: units of which some are kept, a number, or None if it's unknown.
Size = Labels | int | None


class CannotFollow(Exception):
    """The units of a layer can't be cut. The message gives the reason."""


@dataclass
class Weight:
    """A weight and the units along each of its axes.

    Attributes:
        variable: The Keras variable.
        axes: The units of each axis.
        maker: The axis along which its layer makes units, None for other weights.
    """

    variable: Any
    axes: Axes
    maker: int | None = None


@dataclass
class Call:
    """One call of a layer, which is the argument of the layer's rule."""

    trace: "Trace"
    layer: Any
    node: Node
    path: tuple[str, ...]
    weights: list[Weight] = field(default_factory=list)
    products: list[list[Size]] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Any]:
        """The input tensors. Masks of time steps aren't among them."""
        args, kwargs = self.node.arguments.args, dict(self.node.arguments.kwargs)
        masks = keras.tree.flatten(kwargs.pop("mask", None))
        for mask in masks:
            if isinstance(mask, keras.KerasTensor) and labelled(
                self.trace.axes_of(mask)
            ):
                raise CannotFollow("units lie along an axis of its mask")
        given = keras.tree.flatten((args, kwargs))
        return [tensor for tensor in given if isinstance(tensor, keras.KerasTensor)]

    @property
    def outputs(self) -> list[Any]:
        """The output tensors."""
        return list(self.node.outputs)

    @property
    def axes(self) -> list[Axes]:
        """The units of the inputs."""
        return [self.trace.axes_of(tensor) for tensor in self.tensors]

    @property
    def single(self) -> Axes:
        """The units of the only input."""
        if len(self.tensors) != 1:
            raise CannotFollow(f"it is called with {len(self.tensors)} tensors")
        return self.axes[0]

    @property
    def units(self) -> Units:
        """The units of the model."""
        return self.trace.units

    def new(self, count: int) -> Labels:
        """Return new units that this layer makes."""
        return self.units.new(count, self.path)

    def cut(
        self, variable: Any, *axes: Labels | None, maker: int | None = None
    ) -> None:
        """Record which units lie along the axes of a weight. The weight may be None."""
        if variable is not None:
            self.weights.append(Weight(variable, axes, maker))

    def multiplies(self, kernel: Any, positions: Sequence[Size]) -> None:
        """Record the sizes of the axes along which a layer repeats a multiplication."""
        (axes,) = (w.axes for w in self.weights if w.variable is kernel)
        pairs = zip(axes, kernel.shape, strict=True)
        sizes = [size if labels is None else labels for labels, size in pairs]
        self.products.append([*sizes, *positions])

    def activated(self, axes: Axes) -> Axes:
        """Return the output's units. Refuse to cut units that the activation mixes."""
        activation = getattr(self.layer, "activation", None)
        if isinstance(activation, keras.Layer) and activation.weights:
            raise CannotFollow("its activation has weights")
        for axis, labels in enumerate(axes):
            if labels is not None and not keeps_units_apart(
                activation, len(axes), axis
            ):
                name = getattr(activation, "__name__", repr(activation))
                why = f"its activation {name!r} reads several units at once"
                self.units.refuse(labels, self.layer.name, why)
        return axes


Rule = Callable[[Call], Axes | Sequence[Axes]]


class Trace:
    """The units of a model.

    Attributes:
        units: All units, with those that are cut together.
        weights: The weights that have units, by the variable's id.
        configs: The changes to the config of a layer, by the layer's id. An array of
            units means the number of them that are kept.
        products: For each matrix product, the sizes whose product is its number of
            multiplications.
        refusals: The layers whose own units can't be cut, and why.
    """

    def __init__(self, model: keras.Model, rule_of: Callable[[Any], Rule | None]):
        self.units = Units()
        self.weights: dict[int, Weight] = {}
        self.configs: dict[int, dict[str, Any]] = {}
        self.products: list[list[Size]] = []
        self.refusals: list[tuple[str, str]] = []
        self._axes: dict[int, Axes] = {}
        self._rule_of = rule_of
        self._times = times_called(model)
        graph = graph_of(model)
        for tensor in graph.inputs:
            self._axes[id(tensor)] = whole(len(tensor.shape))
        self._follow(graph, ())
        for tensor in graph.outputs:
            for labels in labelled(self._axes[id(tensor)]):
                self.units.fix(labels)

    def axes_of(self, tensor: Any) -> Axes:
        """Return the units along the axes of a tensor of the model."""
        return self._axes[id(tensor)]

    def knows(self, tensor: Any) -> bool:
        """Return whether the tensor was followed."""
        return id(tensor) in self._axes

    def _follow(self, graph: Any, path: tuple[str, ...]) -> None:
        for node in nodes_of(graph):
            layer = node.operation
            made = len(self.units.made)
            try:
                if (times := self._times[id(layer)]) > 1:
                    raise CannotFollow(
                        f"it is shared: the model calls it {times} times"
                    )
                inner = graph_of(layer)
                if inner is not None:
                    outputs = self._enter(inner, node, (*path, layer.name))
                else:
                    outputs = self._rule(node, (*path, layer.name))
            except CannotFollow as error:
                del self.units.made[made:]
                outputs = self._refused(node, str(error))
            for tensor, axes in zip(node.outputs, outputs, strict=True):
                self._axes[id(tensor)] = axes

    def _enter(self, inner: Any, node: Node, path: tuple[str, ...]) -> list[Axes]:
        """Follow the units through a sub-model."""
        given = keras.tree.flatten(node.arguments.args)
        if [id(t) for t in given] != [id(t) for t in node.input_tensors] or [
            len(t.shape) for t in given
        ] != [len(t.shape) for t in inner.inputs]:
            raise CannotFollow("its inputs are given otherwise than it declares them")
        for tensor, own in zip(given, inner.inputs, strict=True):
            self._axes[id(own)] = self.axes_of(tensor)
        self._follow(inner, path)
        return [self._axes[id(tensor)] for tensor in inner.outputs]

    def _rule(self, node: Node, path: tuple[str, ...]) -> list[Axes]:
        layer = node.operation
        call = Call(self, layer, node, path)
        rule = self._rule_of(layer)
        weights = getattr(layer, "weights", [])
        if rule is None:
            if weights or any(labelled(axes) for axes in call.axes):
                kind = type(layer).__name__
                raise CannotFollow(f"the class {kind} isn't one that can be followed")
            return [whole(len(tensor.shape)) for tensor in node.outputs]
        if getattr(layer, "quantization_mode", None) is not None:
            raise CannotFollow(f"it is quantised to {layer.quantization_mode}")
        if getattr(layer, "lora_enabled", False):
            raise CannotFollow("it has LoRA weights; merge or drop them first")
        outputs = rule(call)
        self.weights.update((id(weight.variable), weight) for weight in call.weights)
        self.products += call.products
        self.configs[id(layer)] = call.config
        return [outputs] if isinstance(outputs, tuple) else list(outputs)

    def _refused(self, node: Node, why: str) -> list[Axes]:
        """Return outputs without units, and exclude the inputs' units from cuts."""
        name = node.operation.name
        for tensor in node.input_tensors:
            for labels in labelled(self.axes_of(tensor)):
                self.units.refuse(labels, name, why)
        if getattr(node.operation, "weights", []):
            self.refusals.append((name, why))
        return [whole(len(tensor.shape)) for tensor in node.outputs]


def combined(call: Call, several: Sequence[tuple[Any, Axes]]) -> Axes:
    """Return the units of tensors that are combined element by element."""
    rank = max(len(tensor.shape) for tensor, _ in several)
    result = whole(rank)
    for axis in range(rank):
        found = []
        for tensor, axes in several:
            own = axis - rank + len(axes)
            if own >= 0 and (axes[own] is not None or tensor.shape[own] != 1):
                found.append(axes[own])
        result = replaced(result, axis, _tied(call.units, found))
    return result


def _tied(units: Units, found: Sequence[Labels | None]) -> Labels | None:
    """Tie the units along one axis of tensors that are combined, and return them.

    If one tensor has no units along the axis (None), no units are cut there. A single
    unit that is broadcast to many isn't cut.
    """
    labels = [each for each in found if each is not None]
    long = [each for each in labels if len(each) > 1]
    if len(labels) < len(found):
        for each in labels:
            units.fix(each)
    elif long:
        for each in labels:
            if len(each) == 1:
                units.fix(each)
    tied = long or ([] if len(labels) < len(found) else labels)
    for other in tied[1:]:
        units.tie(tied[0], other)
    return tied[0] if tied else None
