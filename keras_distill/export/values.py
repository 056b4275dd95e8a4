"""Conversion of a caller's numbers to Python's, which JSON can contain."""

import math
import numbers
from typing import Any

import numpy as np


def as_int(value: Any) -> int | None:
    """Return a whole number of Python or NumPy as `int`; None for anything else."""
    value = _scalar(value)
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return int(value) if whole else None


def as_float(value: Any) -> float | None:
    """Return a real number of Python or NumPy as `float`; None for anything else.

    Infinities and NaN are returned, and infinity for numbers too large for a float.
    """
    value = _scalar(value)
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _scalar(value: Any) -> Any:
    """Return the number in an array without axes, or else the value itself."""
    return value[()] if isinstance(value, np.ndarray) and not value.ndim else value


def from_numpy(value: Any) -> Any:
    """Return a scalar or an array of NumPy as a value of JSON.

    Raises:
        TypeError: The value is neither.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is nothing that JSON can hold")
