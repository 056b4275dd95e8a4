"""Gradients of devices whose parts of a batch differ in size."""

from typing import Any

import keras
from keras import ops

from keras_distill import backend
from keras_distill.batch import count_rows
from keras_distill.labels.loss_inputs import reduction_and_dtype
from keras_distill.losses.weighting import MEANS
from keras_distill.types import Nested, Tensor


def weighed(losses: list[Tensor], x: Nested, *, compiled: Any) -> list[Tensor]:
    """Return losses whose gradients, added over devices, are those of the whole batch.

    A device's loss is a mean over its rows, and Keras adds the devices' means with
    equal weights. In the last batch, a device may have fewer rows than the others. So
    the gradients are weighted by the number of rows. The values of the losses don't
    change.

    Args:
        losses: The losses of a device, scalars.
        x: The inputs of the device's part of the batch.
        compiled: The losses that the model was compiled with, in any structure. If one
            isn't a mean over rows, but a sum or a mean over tokens, nothing is changed.
    """
    count = backend.replicas()
    if count == 1 or not _are_means_over_rows(compiled):
        return losses
    rows = ops.cast(count_rows(x), keras.config.floatx())
    share = count * rows / backend.sum_over_replicas(rows)
    values = [ops.stop_gradient(loss) for loss in losses]
    return [
        value + ops.cast(share, loss.dtype) * (loss - value)
        for loss, value in zip(losses, values, strict=True)
    ]


def _are_means_over_rows(compiled: Any) -> bool:
    return all(
        reduction_and_dtype(loss)[0] in MEANS for loss in keras.tree.flatten(compiled)
    )
