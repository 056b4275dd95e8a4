"""Schedules of alpha and temperature that papers name, on top of Keras' own.

A schedule is a `keras.optimizers.schedules.LearningRateSchedule` of the optimiser's
step count, so any that Keras ships works in the same places.
"""

import numbers
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import (
    LearningRateSchedule,
    PiecewiseConstantDecay,
    PolynomialDecay,
)

from keras_distill import arguments

__all__ = ["LateStart", "LinearWarmup", "TeacherAnnealing"]

# Where a schedule is looked at before training: its start, its end, some between.
_PROBED_STEPS = (0, *(10**power for power in range(8)))


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
    """0 for the first `steps` optimiser steps, then `value`.

    Privileged-feature distillation starts so: the teacher is not worth listening
    to before it has learned something.

    Args:
        steps: Number of optimiser steps at 0, an integer >= 0.
        value: The value from step number `steps` on (steps count from 0).
            Defaults to 1.
        name: Name of the schedule.

    Raises:
        ValueError: If `steps` is negative or not whole.

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
    """Linear from 0 to `value` in `steps` optimiser steps, then `value`.

    Args:
        steps: Length of the ramp in optimiser steps, an integer >= 1.
        value: The value at its end. Defaults to 1.
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
    """Linear from 1 to 0 in `steps` optimiser steps: from the teacher to the labels.

    Args:
        steps: Length of the ramp in optimiser steps, an integer >= 1; usually the
            whole training.
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


class Hyperparameter:
    """A number that a compiled step reads anew at each call.

    Either a float, kept in a variable so that a callback's assignment acts in a
    traced function, or a schedule of the optimiser's step. A plain object: models
    that hold it neither track nor save it.

    Args:
        name: The argument that it stands for, as error messages say it.
        value: A float or a `LearningRateSchedule`.
        requirement: What a float must be, e.g. `"positive"`; completes the error.
        accepts: Tells whether a float meets `requirement`.

    Raises:
        TypeError: If `value` is neither a number nor a schedule.
        ValueError: If a float isn't accepted, or the schedule's value at step 0 or at
            a power of ten up to 10 million.
    """

    def __init__(
        self,
        name: str,
        value: float | LearningRateSchedule,
        *,
        requirement: str,
        accepts: Callable[[float], bool],
    ) -> None:
        self.name = name
        self._requirement = requirement
        self._accepts = accepts
        if isinstance(value, LearningRateSchedule):
            self._schedule = value
            for step in _PROBED_STEPS:
                number = float(value(step))
                # an exponential decay underflows to 0 long after training has ended
                if step == 0 or number != 0.0:
                    self._check(number, f"a schedule that is {{}} at step {step}")
            return
        self._schedule = None
        # autocast would round it in a float16 layer's scope
        self._variable = keras.Variable(
            self._check(value), dtype="float32", trainable=False, autocast=False
        )

    @property
    def scheduled(self) -> bool:
        """Whether the value is a schedule."""
        return self._schedule is not None

    @property
    def value(self) -> float | LearningRateSchedule:
        """The float or the schedule."""
        return self._schedule or self._float

    @value.setter
    def value(self, value: float) -> None:
        if self.scheduled or isinstance(value, LearningRateSchedule):
            raise TypeError(
                f"`{self.name}` can be assigned only where both the old and the new "
                "value are floats: a schedule is part of the compiled step. Call "
                f"`compile` again instead. Received: {self.name}={value}"
            )
        self._variable.assign(self._check(value))

    def at(self, step: Any) -> Any:
        """Return the value at the optimiser's `step`, a float32 scalar tensor."""
        if self._schedule is not None:
            return ops.cast(self._schedule(step), "float32")
        return ops.convert_to_tensor(self._variable)

    def _check(self, value: float, received: str = "{}") -> float:
        try:
            # float() would take "4", True and [0.5]
            if isinstance(value, str | bool | np.bool_) or np.ndim(value) > 0:
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"`{self.name}` must be a float or a "
                "`keras.optimizers.schedules.LearningRateSchedule`. "
                f"Received: {self.name}={value!r} of type {type(value).__name__}"
            ) from None
        if not self._accepts(number):
            raise ValueError(
                f"`{self.name}` must be {self._requirement}. "
                f"Received: {self.name}={received.format(value)}"
            )
        self._float = number
        return number
