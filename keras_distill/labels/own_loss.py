"""The loss that a model would be trained with alone, and its parts."""

from collections.abc import Mapping
from typing import NamedTuple

import keras

from keras_distill.batch import log_batch_mean
from keras_distill.types import Nested, Path, Tensor


class OwnLoss(NamedTuple):
    """The loss that a model would be trained with alone.

    Args:
        total: The sum of the label loss, regularisers and `add_loss` terms.
        labels: The label loss in `total`; None if there are no labels.
        by_output: The weighted label loss of each output, by the output's path.
        are_valid: Whether all labels are valid, a boolean scalar. None if the step
            itself raises an error for invalid labels.
    """

    total: Tensor
    labels: Tensor | None = None
    by_output: Mapping[Path, Tensor] = {}
    are_valid: Tensor | None = None


def log_loss(model: keras.Model, loss: Tensor, x: Nested) -> None:
    """Update the mean that Keras logs as `loss`, as its own train step does.

    Args:
        model: The compiled model whose loss it is.
        loss: The loss that is minimised. Keras divides it by the number of devices.
        x: The batch's inputs.
    """
    log_batch_mean(model._loss_tracker, loss, x)
