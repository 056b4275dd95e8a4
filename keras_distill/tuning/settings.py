"""The settings that a search tries: a loss, a temperature and alpha."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from keras_distill.losses import ForwardKL

# By name, functions of the temperature that return a loss, or losses without one.
Losses = Mapping[str, Callable[..., Any]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to train the student.

    Args:
        alpha: The weight of the distillation loss; 0 for the student alone.
        loss: The name of the distillation loss. None for the student alone.
        temperature: The temperature of the loss. None if the loss has none.

    Example:
        >>> str(Setting(0.5, "ForwardKL", 4.0)), str(Setting(0.0))
        ('ForwardKL, temperature 4, alpha 0.5', 'alone (alpha 0)')
    """

    alpha: float
    loss: str | None = None
    temperature: float | None = None

    def __str__(self) -> str:
        if not self.alpha:
            return "alone (alpha 0)"
        warm = "" if self.temperature is None else f", temperature {self.temperature:g}"
        return f"{self.loss}{warm}, alpha {self.alpha:g}"


ALONE = Setting(0.0)


class Space:
    """The settings that a search may try."""

    def __init__(
        self,
        losses: Losses | None,
        temperatures: Sequence[float],
        alphas: Sequence[float],
    ) -> None:
        self.losses = dict({"ForwardKL": ForwardKL} if losses is None else losses)
        self.temperatures = [float(value) for value in temperatures]
        self.alphas = sorted({0.0, *map(float, alphas)})
        self.check()

    def check(self) -> None:
        """Raise ValueError or TypeError for a space that can't be searched."""
        for name, loss in self.losses.items():
            if not callable(loss):
                raise TypeError(
                    "Each of `losses` must be a function of the temperature, e.g. "
                    "`keras_distill.losses.ForwardKL`, or a Keras loss. Received: "
                    f"losses[{name!r}]={loss!r}"
                )
        if not self.losses:
            raise ValueError("`losses` must name a loss or more. Received: losses={}")
        if not all(math.isfinite(it) and it > 0 for it in self.temperatures):
            raise ValueError(
                "`temperatures` must be positive. Received: "
                f"temperatures={self.temperatures}"
            )
        if self.tempered() and not self.temperatures:
            raise ValueError(
                "`temperatures` must have a value, since these losses have one: "
                f"{self.tempered()}. Received: temperatures=[]"
            )
        if not all(0 <= it <= 1 for it in self.alphas) or len(self.alphas) < 2:
            raise ValueError(
                "`alphas` must be in [0, 1], and one of them above 0. (0 is added "
                f"where it is missing.) Received: alphas={self.alphas}"
            )

    def tempered(self) -> list[str]:
        """Return the names of the losses that have a temperature."""
        return [
            name
            for name, loss in self.losses.items()
            if not isinstance(loss, keras.losses.Loss)
        ]

    def size(self) -> int:
        """Return the number of settings, including the student alone."""
        warm = len(self.tempered())
        cold = len(self.losses) - warm
        return 1 + (len(self.alphas) - 1) * (warm * len(self.temperatures) + cold)

    def setting(self, hyperparameters: Any) -> Setting:
        """Return the setting that KerasTuner's hyperparameters choose."""
        alpha = hyperparameters.Choice("alpha", self.alphas, default=0.0)
        with hyperparameters.conditional_scope("alpha", self.alphas[1:]):
            loss = hyperparameters.Choice("loss", list(self.losses))
            warm = self.tempered()
            if warm:
                with hyperparameters.conditional_scope("loss", warm):
                    degree = hyperparameters.Choice("temperature", self.temperatures)
        if not alpha:
            return ALONE
        return Setting(float(alpha), loss, float(degree) if loss in warm else None)

    def distillation_loss(self, setting: Setting) -> Any:
        """Return the distillation loss of a setting, None for the student alone."""
        if setting.loss is None:
            return None
        loss = self.losses[setting.loss]
        if isinstance(loss, keras.losses.Loss):
            return loss
        return loss(temperature=setting.temperature)
