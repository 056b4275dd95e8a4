"""Biases of an int8 LiteRT file that correct the mean errors of rounding.

Rounding shifts the mean of a layer's output a little. The shifts of many layers add up,
while random errors average out. So the layers are corrected in their order: each runs
in int8 on calibration data, and its bias is lowered by the difference between its mean
and that of the float model. In large models, only some layers are corrected, always
including the last.

Reference: "Data-Free Quantization Through Weight Equalization and Bias Correction",
https://arxiv.org/abs/1906.04721, appendix D: empirical bias correction.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

import numpy as np

from keras_distill.export.batches import Arrays
from keras_distill.export.litert_graphs import (
    Array,
    Graph,
    Operator,
    Samples,
    computed_values,
    inputs,
)
from keras_distill.export.litert_links import AFFINE

# The largest numbers of layers that are corrected, and of batches for each of them.
_VISITS = 16
_BATCHES = 100
# The share of values that aren't clipped, and so move with the bias, is at least this.
_LEAST_MOVABLE = 0.05

Limits = tuple[float, float]


class Means(NamedTuple):
    """Statistics of a tensor's channels on calibration data.

    Args:
        mean: The means of the values, clipped to the limits of int8.
        movable: The shares of values within the limits: those that weren't clipped.
    """

    mean: Array
    movable: Array


def unbiased(file: bytes, floats: bytes, samples: Samples) -> bytes:
    """Return an int8 file whose layers' outputs have the means of the float model's.

    Args:
        file: The int8 file that TensorFlow's converter has made from `floats`.
        floats: The float model.
        samples: Makes the calibration data.
    """

    def some() -> Iterator[tuple[str, Arrays]]:
        return islice(samples(), _BATCHES)

    whole, rounded = Graph(floats), Graph(file)
    pairs = list(_pairs(whole, rounded))
    count = min(len(pairs), _VISITS)
    visits = [pairs[i] for i in np.linspace(len(pairs) - 1, 0, count, dtype=int)[::-1]]
    outputs = [int(of_whole.outputs[0]) for of_whole, _ in visits]
    limits = [rounded.limits(int(of_rounded.outputs[0])) for _, of_rounded in visits]
    wanted = _means(floats, some, dict(zip(outputs, limits, strict=True)))
    for output, (_, operator) in zip(outputs, visits, strict=True):
        index = int(operator.outputs[0])
        found = _means(rounded.file(), some, {index: (-np.inf, np.inf)})[index]
        scale, zero = rounded.scale(index)
        moved = (found.mean - zero) * scale - wanted[output].mean
        _lower_bias(
            rounded,
            operator,
            moved / np.maximum(wanted[output].movable, _LEAST_MOVABLE),
        )
    return rounded.file()


def _pairs(whole: Graph, rounded: Graph) -> Iterator[tuple[Operator, Operator]]:
    """Yield the layers of both files whose bias can change; the order is the same."""
    of_whole, of_rounded = (
        [it for it in graph.operators if graph.kind(it) in AFFINE]
        for graph in (whole, rounded)
    )
    if list(map(whole.kind, of_whole)) != list(map(rounded.kind, of_rounded)):
        return
    for first, second in zip(of_whole, of_rounded, strict=True):
        biases = inputs(second)[2:]
        if biases and rounded.is_constant(biases[0]):
            yield first, second


def _means(
    file: bytes, samples: Samples, limits: Mapping[int, Limits]
) -> dict[int, Means]:
    """Return the statistics of tensors, each clipped to its limits."""
    found: dict[int, list[Means]] = {index: [] for index in limits}
    for index, values in computed_values(file, samples, limits):
        low, high = limits[index]
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        movable = (rows > low) & (rows < high)
        means = Means(np.clip(rows, low, high).mean(axis=0), movable.mean(axis=0))
        found[index].append(means)
    return {index: _mean(batches) for index, batches in found.items()}


def _mean(batches: Iterable[Means]) -> Means:
    means, movable = zip(*batches, strict=True)
    return Means(np.mean(means, axis=0), np.mean(movable, axis=0))


def _lower_bias(graph: Graph, operator: Operator, by: Array) -> None:
    """Lower the bias of a layer in int8."""
    index = graph.separate(operator, 2)
    steps = np.asarray(graph.tensors[index].quantization.scale)
    bias = graph.constant(index)
    graph.set_constant(index, bias - np.rint(by / steps).astype(bias.dtype))
