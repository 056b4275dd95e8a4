"""The base class of losses that compute with another distillation loss."""

from typing import Any, Self

import keras

from keras_distill.batch import Batch
from keras_distill.losses.base import DistillationLoss
from keras_distill.types import Tensor


class LossAround(DistillationLoss):
    """A loss that computes with another distillation loss and uses its temperature.

    Args:
        loss: The other loss. Its dtype and class axis are used.
        reduction: As in `keras.losses.Loss`. Defaults to that of `loss`.
        name: Name of the loss.
    """

    # The verb in the error message for a `loss` without a temperature.
    does = "computes with"

    def __init__(
        self,
        loss: DistillationLoss,
        *,
        reduction: str | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(
            axis=loss.axis,
            reduction=reduction or loss.reduction,
            name=name,
            dtype=loss.dtype,
        )
        self.loss = loss
        self.tempering = loss.tempering
        self.reads_packed = loss.reads_packed

    @property
    def temperature(self) -> Any:
        """The temperature of `loss`, which can be assigned here too."""
        return self._tempered().temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._tempered().temperature = value

    @property
    def step(self) -> Any:
        """The step at which `loss` reads a scheduled temperature."""
        return self._tempered().step

    @step.setter
    def step(self, value: Any) -> None:
        self._tempered().step = value

    def for_batch(self, batch: Batch) -> Self:
        """Return the loss for one batch of training data."""
        return self._around(self.loss.for_batch(batch))

    def for_weights(self, sample_weight: Tensor, mask: Tensor) -> Self:
        """Return the loss for a call with these weights and this Keras mask."""
        return self._around(self.loss.for_weights(sample_weight, mask))

    def counted(self, y_true: Any, y_pred: Tensor) -> Tensor | None:
        """Return which values of `loss` count."""
        return self.loss.counted(y_true, y_pred)

    def logits(self, output: Tensor, whose: str) -> Tensor:
        """Return the logits of an output, as `loss` does."""
        return self.loss.logits(output, whose)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        loss = keras.saving.serialize_keras_object(self.loss)
        return {"loss": loss, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LossAround":
        """Build the loss from `get_config`'s result."""
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})

    def _around(self, loss: DistillationLoss) -> Self:
        around = self.copied()
        around.loss = loss
        return around

    def _tempered(self) -> Any:
        if self.tempering is None:
            raise AttributeError(
                f"`{self.loss.name}`, which `{self.name}` {self.does}, has no "
                "temperature."
            )
        return self.loss


def innermost(loss: Any) -> Any:
    """Return the innermost loss: `loss` itself if it isn't a `LossAround`."""
    while isinstance(loss, LossAround):
        loss = loss.loss
    return loss
