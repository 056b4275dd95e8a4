"""Warnings about schedules that don't start within the steps of a training."""

import warnings
from collections.abc import Mapping

import keras
import numpy as np
from keras import ops

from keras_distill.values import Value

_SAMPLES = 32
# The numbers of steps after the end at which a schedule is checked for a start.
_LATER = tuple(10**power for power in range(9))


def warn_of_idle(values: Mapping[str, Value], begin: int, end: int) -> bool:
    """Warn of schedules without effect in a range of steps; return whether it warned.

    Args:
        values: Weights and temperatures, by their names in the logs.
        begin: The optimiser's first step.
        end: The step after the optimiser's last.
    """
    warned = False
    for name, value in values.items():
        if not value.scheduled or end <= begin:
            continue
        constant = _constant(value, begin, end)
        is_weight = value.name != "temperature"
        # A single step doesn't show whether a temperature changes.
        idle = constant == 0.0 if is_weight else end - begin > 1
        if constant is None or not idle:
            continue
        later = [end + step for step in _LATER]
        starts = next((s for s in later if float(value.at(s)) != constant), None)
        if starts is not None:
            warned = True
            state = "0: what it weighs taught nothing" if is_weight else constant
            warnings.warn(
                f"The schedule of `{name}` never started: in all {end - begin} steps, "
                f"{begin} to {end - 1}, it was {state}. Steps are updates of the "
                "optimizer, not epochs. Let it start earlier, or train longer; another "
                f"`fit` goes on at step {end}.",
                stacklevel=3,
            )
    return warned


def updates_of(optimizer: keras.optimizers.Optimizer) -> int:
    """Return the number of an optimiser's updates so far."""
    # An operation reads the variable on several devices, too.
    return int(ops.convert_to_numpy(ops.add(optimizer.iterations, 0)))


def _constant(value: Value, begin: int, end: int) -> float | None:
    """Return a schedule's value if it is the same in all steps of a range, else None.

    A sample of the steps is compared.
    """
    last = float(value.at(end - 1))
    for step in np.unique(np.linspace(begin, end - 1, _SAMPLES).astype(int)):
        if float(value.at(int(step))) != last:
            return None
    return last
