"""Schedules that come to nothing in the steps that a training has."""

import warnings
from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_distill.values import Value

_SAMPLES = 32
# How far beyond the end a schedule is looked at.
_LATER = tuple(10**power for power in range(9))


def warn_of_idle(values: Mapping[str, Value], begin: int, end: int) -> bool:
    """Warn of schedules that had no effect from one step to another; return whether.

    Args:
        values: Weights and temperatures by the names that they are logged by.
        begin: The optimiser's first step.
        end: The step after its last.
    """
    warned = False
    for name, value in values.items():
        if not value.scheduled or end <= begin:
            continue
        constant = _constant(value, begin, end)
        is_weight = value.name != "temperature"
        # of a single step, no temperature tells whether it moves
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
    """Return how many updates an optimizer has made, on one device or several."""
    # a tensor while gradients are accumulated, else a variable of each device
    return int(tf.convert_to_tensor(ops.convert_to_tensor(optimizer.iterations)))


def _constant(value: Value, begin: int, end: int) -> float | None:
    """Return the one value that a schedule has between two steps, None if several."""
    last = float(value.at(end - 1))
    for step in np.unique(np.linspace(begin, end - 1, _SAMPLES).astype(int)):
        if float(value.at(int(step))) != last:
            return None
    return last
