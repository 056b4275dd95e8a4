"""Similar ranges for the channels of a float LiteRT file, before it becomes int8.

All channels of a tensor in int8 share one step, which the channel of the largest values
determines. Channels of small values keep few distinct values. So a channel is divided
by a number if the weights before allow it, and the weights after are multiplied by the
same number: the model computes the same. One such place is a BatchNormalization after
an activation. Its factors become part of the weights before, which have a scale for
each channel. Then no operator multiplies by these factors any more.

Reference: "Data-Free Quantization Through Weight Equalization and Bias Correction",
https://arxiv.org/abs/1906.04721. There, the ranges of weights determine the numbers.
Here, a few candidates follow from the ranges of activations, and the one with the least
noise is used.
"""

from collections.abc import Mapping

import numpy as np

from keras_distill.export.litert_channels import Channels, channels_of
from keras_distill.export.litert_graphs import Array, Graph, Samples
from keras_distill.export.litert_links import (
    Link,
    constant_of,
    has_activation,
    links,
    scale_inputs,
    scale_outputs,
    set_constant_of,
    weights,
)

# A channel may be divided by these powers of its range and of its factor.
_POWERS = ((0, 0), (0.25, 0), (0.5, 0), (0.75, 0), (1, 0), (0, 0.5), (0, 1), (0.5, 0.5))
# The lower limit of a channel's range, relative to the largest one.
_LEAST = 1e-3
_STEPS = 255


def equalized(file: bytes, samples: Samples) -> bytes:
    """Return a file that computes the same, with more similar ranges of channels.

    Args:
        file: A float model.
        samples: Makes the calibration data.
    """
    graph = Graph(file)
    places = list(links(graph))
    tensors = {index for link in places for index in (link.begin, *link.scaled)}
    found = channels_of(file, samples, tensors)
    for link in places:
        candidates = _candidates(graph, link, found)
        noises = [_noise(graph, link, found, divisors) for divisors in candidates]
        _divide(graph, link, candidates[int(np.argmin(noises))])
    return graph.file()


def _candidates(graph: Graph, link: Link, found: Mapping[int, Channels]) -> list[Array]:
    """Return numbers by which channels may be divided."""
    ranges = np.max([found[index].largest for index in link.scaled], axis=0)
    factors = np.ones_like(ranges)
    if link.factors is not None:
        factors = np.abs(constant_of(graph, link.factors))
    return [
        _floored(ranges) ** of_range * _floored(factors) ** of_factor
        for of_range, of_factor in _POWERS
    ]


def _floored(values: Array) -> Array:
    """Return positive values, the largest of which is 1."""
    most = values.max()
    return np.maximum(values / most, _LEAST) if most > 0 else np.ones_like(values)


def _noise(
    graph: Graph, link: Link, found: Mapping[int, Channels], divisors: Array
) -> float:
    """Return the noise of rounding in the consumers' outputs, relative to their signal.

    Rounding to steps of 1 has a variance of 1 / 12. This factor is left out.
    """
    end = found[link.end]
    squares: Array = np.zeros(())
    for index in link.scaled:
        step = _step(found[index].low / divisors, found[index].high / divisors)
        # The mean of independent errors has a smaller variance.
        squares = squares + step**2 / (1 if index == link.end else link.averaged)
    if link.offsets is not None:
        squares = squares + _step_of(constant_of(graph, link.offsets) / divisors) ** 2
    if link.factors is not None and link.producer is None:
        step = _step_of(constant_of(graph, link.factors) / divisors)
        squares = squares + step**2 * found[link.begin].power
    of_channels = np.square(divisors) * squares
    total = 0.0
    for consumer in link.consumers:
        read = weights(graph, consumer, len(divisors))
        gains = np.square(read.values).sum(axis=1)
        if read.by_channel:
            # Each channel's weights have a scale of their own, so their size is
            # irrelevant.
            signal, noise = gains * end.variance, gains * of_channels
        else:
            rows = 2 * np.abs(read.values * divisors).max(axis=(1, 2)) / _STEPS
            of_weights = np.sum(end.power / np.square(divisors)) * read.values.shape[1]
            signal = gains @ end.variance
            noise = gains @ of_channels + np.square(rows) * of_weights
        total += float(np.mean(noise / np.maximum(signal, _LEAST * signal.mean())))
    return total


def _step(low: Array, high: Array) -> float:
    """Return the step of a tensor whose channels have these ranges."""
    return float(max(high.max(), 0) - min(low.min(), 0)) / _STEPS


def _step_of(values: Array) -> float:
    return _step(values, values)


def _divide(graph: Graph, link: Link, divisors: Array) -> None:
    """Divide the channels of a link, and multiply the weights after it accordingly."""
    factors = np.ones_like(divisors)
    if link.factors is not None:
        factors = constant_of(graph, link.factors)
    sizes = np.ones_like(divisors)
    if link.producer is not None:
        # The weights before are multiplied by the factors without their signs.
        sizes = np.abs(factors)
        sizes = np.maximum(sizes, _LEAST * sizes.max() or 1)
        scale_outputs(graph, link.producer, sizes / divisors)
        factors = factors / sizes
    else:
        factors = factors / divisors
    if link.factors is not None:
        set_constant_of(graph, link.factors, factors)
        if (factors == 1).all() and not has_activation(link.factors):
            graph.remove(link.factors, link.begin)
    if link.offsets is not None:
        offsets = constant_of(graph, link.offsets)
        set_constant_of(graph, link.offsets, offsets / divisors)
    for consumer in link.consumers:
        scale_inputs(graph, consumer, divisors)
