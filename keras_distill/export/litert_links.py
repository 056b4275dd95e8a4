"""Places in a LiteRT file where channels can be scaled and scaled back."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from keras_distill.export.litert_graphs import Array, Graph, Operator, inputs, outputs

# Codes of the schema.
_ADD, _AVERAGE_POOL, _CONV, _DEPTHWISE_CONV = 0, 1, 3, 4
_FULLY_CONNECTED, _MAX_POOL, _MUL, _RELU, _PAD, _MEAN = 9, 17, 18, 19, 34, 40
_NO_ACTIVATION, _FUSED_RELU = 0, 1
AFFINE = (_CONV, _DEPTHWISE_CONV, _FULLY_CONNECTED)
# Positive factors of channels pass through these operators unchanged.
_PASSING = (_AVERAGE_POOL, _MAX_POOL, _RELU, _PAD, _MEAN)


class Weights(NamedTuple):
    """The weights that multiply the channels of a tensor.

    Args:
        kernel: The constant.
        values: The weights, of shape (outputs, positions, channels). For a depthwise
            convolution, `outputs` is the number of outputs of each channel.
        by_channel: Whether each output depends on a single channel.
    """

    kernel: int
    values: Array
    by_channel: bool


class Link(NamedTuple):
    """Operators between which channels can be scaled.

    Args:
        producer: The affine operator before; None if it can't be scaled.
        begin: The output of `producer`, or the tensor that `factors` multiplies.
        factors: The operator that multiplies each channel by a constant, or None.
        offsets: The operator that adds a constant to each channel, or None.
        averaged: The number of values in each mean of `end`; 1 without means.
        end: The tensor that `consumers` read.
        consumers: The affine operators after.
    """

    producer: Operator | None
    begin: int
    factors: Operator | None
    offsets: Operator | None
    averaged: float
    end: int
    consumers: Sequence[Operator]

    @property
    def scaled(self) -> list[int]:
        """The tensors whose channels are scaled."""
        begin = [] if self.producer is None else [self.begin]
        between = [it for it in (self.factors, self.offsets) if it is not None]
        of_between = [int(operator.outputs[0]) for operator in between]
        return list(dict.fromkeys([*begin, *of_between, self.end]))


def links(graph: Graph) -> Iterator[Link]:
    """Yield the places where channels can be scaled."""
    inside: set[int] = set()
    for operator in graph.operators:
        kind = graph.kind(operator)
        if kind in AFFINE and _can_be_scaled(graph, operator):
            (output,) = outputs(operator)
            link = _link(graph, operator, output, graph.only_reader(output))
        elif (
            kind == _MUL
            and inside.isdisjoint(outputs(operator))
            and has_constant(graph, operator)
        ):
            link = _link(graph, None, data_of(graph, operator), operator)
        else:
            continue
        if link is not None:
            inside.update(link.scaled)
            yield link


def _link(
    graph: Graph, producer: Operator | None, begin: int, follower: Operator | None
) -> Link | None:
    """Return the link that continues with `follower`; None if there is no link."""
    factors = offsets = None
    end, passes, averaged = begin, False, 1.0
    while follower is not None:
        kind = graph.kind(follower)
        combines = has_constant(graph, follower) and not passes
        if kind == _MUL and combines and factors is offsets is None:
            factors = follower
        elif kind == _ADD and combines and offsets is None:
            offsets = follower
        elif kind in _PASSING and _keeps_channels(graph, follower):
            passes = True
            if kind in (_AVERAGE_POOL, _MEAN):
                averaged *= graph.size(end) / graph.size(int(follower.outputs[0]))
        else:
            break
        if not _lets_factors_pass(follower):
            return None
        end = int(follower.outputs[0])
        follower = graph.only_reader(end)
    consumers = graph.readers(end)
    if producer is factors is None or not consumers:
        return None
    if not all(_multiplies(graph, operator, end) for operator in consumers):
        return None
    return Link(producer, begin, factors, offsets, averaged, end, consumers)


def _activation(operator: Operator) -> int:
    options = operator.builtinOptions
    return int(getattr(options, "fusedActivationFunction", _NO_ACTIVATION))


def has_activation(operator: Operator) -> bool:
    """Return whether an operator has a fused activation."""
    return _activation(operator) != _NO_ACTIVATION


def _lets_factors_pass(operator: Operator) -> bool:
    """Return whether positive factors pass through an operator's fused activation."""
    return _activation(operator) in (_NO_ACTIVATION, _FUSED_RELU)


def _can_be_scaled(graph: Graph, operator: Operator) -> bool:
    """Return whether the weights of an affine operator can scale its outputs."""
    _, kernel, *biases = inputs(operator)
    is_constant = graph.is_own(kernel) and all(map(graph.is_constant, biases))
    return is_constant and _lets_factors_pass(operator)


def _keeps_channels(graph: Graph, operator: Operator) -> bool:
    """Return whether an operator doesn't change the last axis."""
    data, *others = inputs(operator)
    if graph.kind(operator) not in (_MEAN, _PAD):
        return True
    if not graph.is_constant(others[0]):
        return False
    values = graph.constant(others[0])
    if graph.kind(operator) == _PAD:
        return not values[-1].any()
    rank = len(graph.shape(data))
    return bool((values % rank < rank - 1).all())


def _multiplies(graph: Graph, operator: Operator | None, index: int) -> bool:
    """Return whether an operator multiplies each channel of a tensor by weights."""
    if operator is None or graph.kind(operator) not in AFFINE:
        return False
    data, kernel = inputs(operator)[:2]
    if data != index or not graph.is_own(kernel):
        return False
    channels, last = graph.channels(index), graph.channels(kernel)
    if graph.kind(operator) == _DEPTHWISE_CONV:
        return last % channels == 0
    # Other kernels have groups of channels, or read flattened axes.
    return last == channels


def has_constant(graph: Graph, operator: Operator) -> bool:
    """Return whether one of two inputs is a number for each channel."""
    if sum(map(graph.is_constant, inputs(operator))) != 1 or len(inputs(operator)) != 2:
        return False
    channels = graph.channels(int(operator.outputs[0]))
    constant = inputs(operator)[_place(graph, operator)]
    # The constant must vary along the last axis only.
    return graph.channels(constant) == channels == graph.size(constant)


def _place(graph: Graph, operator: Operator) -> int:
    """Return which of two inputs is the constant."""
    return 0 if graph.is_constant(inputs(operator)[0]) else 1


def data_of(graph: Graph, operator: Operator) -> int:
    """Return the tensor that is combined with the constant."""
    return inputs(operator)[1 - _place(graph, operator)]


def constant_of(graph: Graph, operator: Operator) -> Array:
    """Return the numbers that channels are combined with, of shape (channels,)."""
    return graph.constant(inputs(operator)[_place(graph, operator)]).reshape(-1)


def set_constant_of(graph: Graph, operator: Operator, values: Array) -> None:
    """Set the numbers that channels are combined with."""
    own = graph.separate(operator, _place(graph, operator))
    graph.set_constant(own, values)


def scale_outputs(graph: Graph, operator: Operator, factors: Array) -> None:
    """Multiply the outputs of an affine operator by positive factors."""
    is_depthwise = graph.kind(operator) == _DEPTHWISE_CONV
    for position in range(1, len(inputs(operator))):
        index = graph.separate(operator, position)
        values = graph.constant(index)
        outputs_first = 1 if is_depthwise else values.ndim
        shape = (-1,) + (outputs_first - 1) * (1,)
        graph.set_constant(index, values * factors.reshape(shape))


def scale_inputs(graph: Graph, operator: Operator, factors: Array) -> None:
    """Multiply the weights of each input channel of an affine operator."""
    kernel = inputs(operator)[1]
    values = graph.constant(kernel)
    factors = np.repeat(factors, values.shape[-1] // len(factors))
    graph.set_constant(kernel, values * factors)


def weights(graph: Graph, operator: Operator, channels: int) -> Weights:
    """Return the weights of an affine operator."""
    kernel = inputs(operator)[1]
    values = graph.constant(kernel).astype(np.float64)
    if graph.kind(operator) == _DEPTHWISE_CONV:
        values = values.reshape(-1, channels, values.shape[-1] // channels)
        return Weights(kernel, values.transpose(2, 0, 1), by_channel=True)
    values = values.reshape(len(values), -1, channels)
    return Weights(kernel, values, by_channel=False)
