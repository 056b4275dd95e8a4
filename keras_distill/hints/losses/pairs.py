"""Relations between the examples in a batch, 0 where they are undefined.

The distance of similar examples is a small difference of large inner products, so it
needs the precision of float64. If the backend has no float64, as JAX by default, the
features themselves are subtracted, one example at a time. Subtracting all of them at
once would take memory for `batch**2` times their width.
"""

from typing import Any

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
    """Return a row per example: the weights of the examples that it is compared to."""
    return off_diagonal(counts) * counts[None]


def off_diagonal(examples: Tensor) -> Tensor:
    """Return a matrix over pairs of examples, 0 on the diagonal and 1 elsewhere."""
    index = ops.arange(ops.shape(examples)[0])
    return ops.cast(index[:, None] != index[None], examples.dtype)


def relative_distances(features: Tensor, counts: Tensor) -> Tensor:
    """Return the Euclidean distances divided by their mean; all 0 if the mean is 0."""
    distances = root(*_squared_distances(features, counts))
    weights = counts[:, None] * partners(counts)
    mean_distance = divided(ops.sum(weights * distances), ops.sum(weights))
    return divided(distances, mean_distance)


def cosines(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines of the angles at each example, and where they are defined.

    Both have the shape `(batch, batch, batch)`. The first axis is the example at which
    the angle is.
    """
    squares, positive = _squared_distances(features, counts)
    distances = root(squares, positive)
    squares = ops.where(positive, squares, ops.zeros_like(squares))
    # The law of cosines, in the triangle of a vertex and two others.
    products = 0.5 * (squares[:, :, None] + squares[:, None, :] - squares[None])
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


def _squared_distances(features: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distances, and where they are positive.

    The other distances may have any small value.
    """
    flat = _flat(features)
    if keras.backend.standardize_dtype(flat.dtype) != "float64":
        squares = _squared_differences(flat)
        return squares, squares > 0.0
    # Features minus their mean have smaller inner products.
    total = ops.sum(counts[:, None] * flat, axis=0, keepdims=True)
    gram = _gram(flat - divided(total, ops.sum(counts)))
    diagonal = ops.diagonal(gram)
    sums = diagonal[:, None] + diagonal[None]
    differences = sums - 2.0 * gram
    # A smaller difference may be only a rounding error.
    return differences, differences > 100.0 * float(np.finfo("float64").eps) * sums


@ops.custom_gradient
def _squared_differences(vectors: Tensor) -> tuple[Tensor, Any]:
    """Return the squared distances of vectors, from their differences."""

    def of_one(vector: Tensor) -> Tensor:
        return ops.sum(ops.square(vectors - vector), axis=-1)

    def gradient(*args: Tensor, upstream: Tensor | None = None) -> Tensor:
        # Automatic differentiation would keep all differences in memory.
        (given,) = args if upstream is None else (upstream,)
        both = given + ops.transpose(given)
        # Distances don't depend on the mean, which would cost precision here.
        centred = vectors - ops.mean(vectors, axis=0, keepdims=True)
        weighted = ops.sum(both, axis=1)[:, None] * centred
        return 2.0 * (weighted - backend.exact_matmul(both, centred))

    return ops.map(of_one, vectors), gradient
