"""Alignment of the ranks of two tensors, as Keras does for labels and predictions."""

from keras import ops

from keras_distill.types import Tensor


def of_one_rank(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return both tensors with one rank if they differ by a last axis of size 1.

    As in Keras, a vector becomes a column. Otherwise the axis of size 1 is removed. A
    result that is a new tensor has no Keras mask.
    """
    if len(x.shape) == len(y.shape) + 1:
        y, x = of_one_rank(y, x)
    elif len(y.shape) == len(x.shape) + 1 and y.shape[-1] in (1, None):
        if len(x.shape) == 1:
            x = ops.expand_dims(x, -1)
        elif len(x.shape) > 1:
            y = ops.squeeze(y, -1)
    return x, y
