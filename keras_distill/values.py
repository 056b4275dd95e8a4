"""Hyperparameters that training reads in every step: floats and schedules."""

import weakref
from collections.abc import Callable
from typing import Any, Self

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill.types import Tensor

# The steps at which the values of a schedule are checked: its start, its end, between.
_CHECKED_STEPS = (0, *(10**power for power in range(8)))
# A value that a schedule has only if it underflows.
_SMALLEST = 1e-30


class Value(keras.metrics.Metric):
    """A hyperparameter, the variable that a compiled step reads, and its log.

    A float is kept in a variable, so that a callback's assignment takes effect in a
    step that is compiled already. A schedule is computed from the optimiser's step; the
    variable keeps its last value, which `fit` logs.

    Args:
        name: The name of the argument, for error messages, and of the log.
        value: A float or a `LearningRateSchedule`.
        requirement: The condition on a float in error messages, e.g. `"positive"`.
        accepts: Returns whether a float meets `requirement`.

    Raises:
        TypeError: If `value` is neither a number nor a schedule.
        ValueError: If `accepts` rejects a float, or the value of a schedule at step 0
            or at a power of ten up to 10 million.
    """

    def __init__(
        self,
        name: str,
        value: float | LearningRateSchedule,
        *,
        requirement: str,
        accepts: Callable[[float], bool],
    ) -> None:
        super().__init__(name=name, dtype="float32")
        self.argument = name
        self._requirement = requirement
        self._accepts = accepts
        self._schedule: LearningRateSchedule | None = None
        self._read_by: weakref.WeakSet[keras.Model] = weakref.WeakSet()
        if isinstance(value, LearningRateSchedule):
            self._schedule = value
            self._check_schedule(value)
            # On several devices, all compute the same.
            self.state = self.add_variable((), "zeros", aggregation="mean", name=name)
            return
        self._float = self._checked(value)
        # Autocast would round it in the scope of a float16 layer.
        self.state = keras.Variable(
            self._float, dtype="float32", trainable=False, autocast=False, name=name
        )

    @property
    def scheduled(self) -> bool:
        """Whether the value is a schedule."""
        return self._schedule is not None

    @property
    def value(self) -> float | LearningRateSchedule:
        """The float or the schedule."""
        return self._float if self._schedule is None else self._schedule

    @value.setter
    def value(self, value: float) -> None:
        if self.scheduled or isinstance(value, LearningRateSchedule):
            raise TypeError(
                f"`{self.argument}` can be assigned only where both the old and the "
                "new value are floats: a schedule is part of the compiled step. Call "
                f"`compile` again instead. Received: {self.argument}={value}"
            )
        self._float = self._checked(value)
        for model in self._read_by:
            # During `fit` on JAX, variables have no values of their own.
            getattr(model, "jax_state_sync", lambda: None)()
        self.state.assign(self._float)

    def read_by(self, model: keras.Model) -> None:
        """Let assignments take effect in the running `fit` of a model."""
        self._read_by.add(model)

    def named(self, name: str) -> Self:
        """Return the same value under another name in the log."""
        # `copy.copy` would make another variable.
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        copied.__dict__["name"] = name
        return copied

    def at(self, step: Any) -> Tensor:
        """Return the value at the optimiser's `step`, a float32 scalar tensor."""
        if self._schedule is not None:
            return ops.cast(self._scheduled_at(step, self._schedule), "float32")
        # TensorFlow would read the variable itself only where it is used.
        return ops.add(self.state, 0.0)

    def _scheduled_at(self, step: Any, schedule: LearningRateSchedule) -> Any:
        try:
            return schedule(step)
        # What TensorFlow and JAX raise where a traced tensor is taken for a number.
        except (TypeError, NotImplementedError) as error:
            raise TypeError(
                f"The schedule of `{self.argument}` must compute with tensors: in "
                "training, the step is an integer tensor without a value. Use "
                "`keras.ops` in place of `math`, NumPy and `if`, and begin with "
                '`step = keras.ops.cast(step, "float32")`. Received: '
                f"{self.argument}={schedule!r} ({type(error).__name__}: {error})"
            ) from error

    def update_state(self, value: Tensor) -> None:
        """Store a schedule's value of this step for the log."""
        if self._schedule is not None:
            self.state.assign(value)

    def reset_state(self) -> None:
        """Keep the value: it doesn't depend on the epoch."""

    def result(self) -> Tensor:
        """Return the float, or the last value of the schedule."""
        # A copy: JAX reuses the memory of the variables in the next step.
        return ops.add(self.state, 0.0)

    def save_own_variables(self, store: Any) -> None:
        """Save nothing: the value is an argument, which configs hold."""

    def load_own_variables(self, store: Any) -> None:
        """Load nothing: the value is an argument, which configs hold."""

    def _check_schedule(self, schedule: LearningRateSchedule) -> None:
        nonzero = 0
        for step in _CHECKED_STEPS:
            number = float(schedule(step))
            if number != 0.0:
                nonzero = step
            elif step and not self._accepts(0.0):
                # An exponential decay underflows to 0 long after training has ended.
                if _underflows(schedule, nonzero, step):
                    continue
            self._checked(number, f"a schedule that is {{}} at step {step}")

    def _checked(self, value: float, received: str = "{}") -> float:
        try:
            # float() would accept "4", True and [0.5].
            if isinstance(value, str | bool | np.bool_) or np.ndim(value) > 0:
                raise TypeError
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"`{self.argument}` must be a float or a "
                "`keras.optimizers.schedules.LearningRateSchedule`. "
                f"Received: {self.argument}={value!r} of type {type(value).__name__}"
            ) from None
        if not self._accepts(number):
            raise ValueError(
                f"`{self.argument}` must be {self._requirement}. "
                f"Received: {self.argument}={received.format(value)}"
            )
        return number


def _underflows(schedule: LearningRateSchedule, low: int, high: int) -> bool:
    """Return whether a schedule shrinks to 0 between two steps, and doesn't end at 0.

    A decay that underflows passes through the smallest numbers. A decay that ends at 0
    gets there from a value of the order of 1 / steps.
    """
    while high - low > 1:
        middle = (low + high) // 2
        if float(schedule(middle)) == 0.0:
            high = middle
        else:
            low = middle
    return abs(float(schedule(low))) < _SMALLEST
