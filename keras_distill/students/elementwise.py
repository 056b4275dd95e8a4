"""A test that distinguishes functions of single elements from others."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np


def keeps_units_apart(
    function: Callable[..., Any] | None, rank: int, axis: int
) -> bool:
    """Return whether a function computes each unit along an axis from itself alone.

    The function is tried on random numbers, so that custom functions can be tested.
    """
    if function is None:
        return True
    shape = [2] * rank
    shape[axis] = 4
    chosen = [0, 3]
    for scale in (0.5, 8.0):
        drawn = np.random.default_rng(0).normal(0.0, scale, shape).astype("float32")
        try:
            all_at_once = keras.ops.convert_to_numpy(function(_tensor(drawn)))
            alone = function(_tensor(drawn.take(chosen, axis)))
        except Exception:
            return False
        if all_at_once.shape != drawn.shape or not np.allclose(
            all_at_once.take(chosen, axis),
            keras.ops.convert_to_numpy(alone),
            1e-5,
            1e-6,
        ):
            return False
    return True


def _tensor(value: Any) -> Any:
    return keras.ops.convert_to_tensor(value)
