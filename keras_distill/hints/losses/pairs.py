"""Relations between the examples in a batch, with values where they are undefined.

They are computed in float64 where the backend has it. The distance of similar examples
is a small difference of large inner products, so it needs the digits. In float32, as on
JAX, examples whose distance is less than 0.4 % of their distance from the mean count as
equal. To subtract the features themselves would take memory for `batch**2` times their
width.
"""

import keras
import numpy as np
from keras import ops

from keras_distill import backend
from keras_distill.hints.losses.base import divided, root
from keras_distill.types import Tensor


def mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean over all axes but the first; 0 if all weights are 0."""
    axes = tuple(range(1, len(values.shape)))
    return divided(ops.sum(weights * values, axis=axes), ops.sum(weights, axis=axes))


def partners(counts: Tensor) -> Tensor:
    """Return the weights of the examples (columns) that each (row) is compared to."""
    return off_diagonal(counts) * counts[None]


def off_diagonal(examples: Tensor) -> Tensor:
    """Return a matrix over pairs of examples, 0 on the diagonal and 1 elsewhere."""
    index = ops.arange(ops.shape(examples)[0])
    return ops.cast(index[:, None] != index[None], examples.dtype)


def relative_distances(features: Tensor, counts: Tensor) -> Tensor:
    """Return the Euclidean distances over their mean; all 0 if the mean is 0."""
    distances = _distances(_gram_of_deviations(features, counts))
    weights = counts[:, None] * partners(counts)
    mean_distance = divided(ops.sum(weights * distances), ops.sum(weights))
    return divided(distances, mean_distance)


def cosines(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines of the angles at each example, and where they are defined.

    Both have the shape `(batch, batch, batch)`; the first axis is that of the vertices.
    """
    gram = _gram_of_deviations(features, counts)
    distances = _distances(gram)
    products = gram[None] - gram[:, :, None] - gram[:, None, :]
    products = products + ops.diagonal(gram)[:, None, None]
    lengths = distances[:, :, None] * distances[:, None, :]
    return divided(products, lengths), lengths > 0.0


def similarities(features: Tensor, counts: Tensor) -> Tensor:
    """Return the matrix of inner products, each row of unit length, or of zeros."""
    gram = _gram(_flat(features))
    squares = ops.sum(counts[None] * ops.square(gram), axis=1, keepdims=True)
    return divided(gram, root(squares, squares > 0.0))


def _flat(features: Tensor) -> Tensor:
    batch, *sizes = ops.shape(features)
    width = 1
    for size in sizes:
        width = width * size
    return ops.cast(ops.reshape(features, (batch, width)), backend.widest_float())


def _gram(vectors: Tensor) -> Tensor:
    return backend.exact_matmul(vectors, ops.transpose(vectors))


def _gram_of_deviations(features: Tensor, counts: Tensor) -> Tensor:
    """Return the inner products of the examples' differences from their mean."""
    flat = _flat(features)
    total = ops.sum(counts[:, None] * flat, axis=0, keepdims=True)
    return _gram(flat - divided(total, ops.sum(counts)))


def _distances(gram: Tensor) -> Tensor:
    """Return the Euclidean distances, exactly 0 between equal examples."""
    squares = ops.diagonal(gram)
    sums = squares[:, None] + squares[None]
    differences = sums - 2.0 * gram
    # A smaller difference may be a rounding error of 0.
    epsilon = float(np.finfo(keras.backend.standardize_dtype(gram.dtype)).eps)
    return root(differences, differences > 100.0 * epsilon * sums)
