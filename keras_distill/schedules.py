"""Schedules of alpha and temperature that papers use and Keras lacks.

A schedule is a `keras.optimizers.schedules.LearningRateSchedule` of the optimiser's
step, so the schedules of Keras can be passed as the same arguments.

The classes below derive from schedules of Keras, which compute the value. Your own
schedule computes the value in `__call__(step)` with `keras.ops`. The step is an integer
tensor in training, and a Python integer when the values of the schedule are checked.
"""

import numbers
from typing import Any

import keras
from keras.optimizers.schedules import (
    PiecewiseConstantDecay,
    PolynomialDecay,
)

from keras_distill import arguments

__all__ = ["LateStart", "LinearWarmup", "TeacherAnnealing"]


def __dir__() -> list[str]:
    return sorted(__all__)


def _check_steps(steps: int, minimum: int) -> int:
    is_number = isinstance(steps, numbers.Real) and not isinstance(steps, bool)
    if not is_number or steps % 1 != 0 or steps < minimum:
        raise ValueError(
            f"`steps` must be an integer >= {minimum}. Received: steps={steps!r}"
        )
    return int(steps)


@keras.saving.register_keras_serializable(package="keras_distill")
class LateStart(PiecewiseConstantDecay):
    """A schedule that is 0 for the first `steps` optimiser steps, then `value`.

    Use it for a teacher that trains with its student: the teacher's first outputs are
    random.

    Args:
        steps: The number of optimiser steps with value 0, an integer >= 0.
        value: The value from step `steps` on. The first step is 0. Defaults to 1.
        name: Name of the schedule.

    Raises:
        ValueError: If `steps` is negative or not an integer.

    Example:
        >>> schedule = LateStart(1000, value=0.5)
        >>> float(schedule(999)), float(schedule(1000))
        (0.0, 0.5)

    Reference:
        Xu et al. 2020, "Privileged Features Distillation at Taobao
        Recommendations", https://arxiv.org/abs/1907.05171, section 3.3.
    """

    @arguments.explained
    def __init__(
        self, steps: int, value: float = 1.0, *, name: str = "LateStart"
    ) -> None:
        self.steps = _check_steps(steps, minimum=0)
        self.value = float(value)
        super().__init__([self.steps - 1], [0.0, self.value], name=name)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"steps": self.steps, "value": self.value, "name": self.name}


@keras.saving.register_keras_serializable(package="keras_distill")
class LinearWarmup(PolynomialDecay):
    """A schedule that rises linearly from 0 to `value` in `steps` optimiser steps.

    After that it is `value`.

    Args:
        steps: The length of the rise in optimiser steps, an integer >= 1.
        value: The value at the end. Defaults to 1.
        name: Name of the schedule.

    Raises:
        ValueError: If `steps` is not a positive integer.

    Example:
        >>> schedule = LinearWarmup(100, value=0.5)
        >>> float(schedule(0)), float(schedule(50)), float(schedule(200))
        (0.0, 0.25, 0.5)
    """

    @arguments.explained
    def __init__(
        self, steps: int, value: float = 1.0, *, name: str = "LinearWarmup"
    ) -> None:
        self.steps = _check_steps(steps, minimum=1)
        self.value = float(value)
        super().__init__(0.0, self.steps, self.value, name=name)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"steps": self.steps, "value": self.value, "name": self.name}


@keras.saving.register_keras_serializable(package="keras_distill")
class TeacherAnnealing(PolynomialDecay):
    """A schedule that falls linearly from 1 to 0 in `steps` optimiser steps.

    As `alpha`, it moves the weight from the distillation loss to the label loss.

    Args:
        steps: The length of the fall in optimiser steps, an integer >= 1. Usually it is
            the length of the whole training.
        name: Name of the schedule.

    Raises:
        ValueError: If `steps` is not a positive integer.

    Example:
        >>> schedule = TeacherAnnealing(100)
        >>> float(schedule(0)), float(schedule(75)), float(schedule(100))
        (1.0, 0.25, 0.0)

    Reference:
        Clark et al. 2019, "BAM! Born-Again Multi-Task Networks",
        https://arxiv.org/abs/1907.04829, section 3.2.
    """

    @arguments.explained
    def __init__(self, steps: int, *, name: str = "TeacherAnnealing") -> None:
        self.steps = _check_steps(steps, minimum=1)
        super().__init__(1.0, self.steps, 0.0, name=name)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"steps": self.steps, "name": self.name}
