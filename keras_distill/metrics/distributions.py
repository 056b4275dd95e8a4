"""Log-probabilities of outputs, and comparisons of them, in NumPy."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The least probability whose logarithm is taken.
_TINY = np.finfo("float32").tiny


def log_of_classes(outputs: Array, *, from_logits: bool, axis: int = -1) -> Array:
    """Return the log-probabilities of classes, along the last axis.

    Args:
        outputs: Logits or probabilities.
        from_logits: Whether the outputs are logits.
        axis: The axis of the classes.
    """
    values = np.moveaxis(outputs.astype("float64"), axis, -1)
    if not from_logits:
        values = np.log(np.clip(values, _TINY, None))
    values = values - values.max(axis=-1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return np.asarray(values)


def log_of_units(outputs: Array, *, from_logits: bool) -> Array:
    """Return the log-probabilities of the labels 0 and 1 of each unit.

    Args:
        outputs: Logits or probabilities of label 1.
        from_logits: Whether the outputs are logits.

    Returns:
        An array of the outputs' shape with an additional last axis of size 2.
    """
    values = outputs.astype("float64")
    if not from_logits:
        both = np.stack([1.0 - values, values], axis=-1)
        return np.asarray(np.log(np.clip(both, _TINY, 1.0)))
    both = np.stack([values, -values], axis=-1)
    return np.asarray(-np.logaddexp(0.0, both))


def agreement(log_p: Array, log_q: Array) -> Array:
    """Return whether two distributions have the same likeliest class."""
    return np.asarray(log_p.argmax(-1) == log_q.argmax(-1))


def forward_kl(log_p: Array, log_q: Array) -> Array:
    """Return `KL(p || q)`, in nats."""
    with np.errstate(invalid="ignore"):
        return _mean(log_p - log_q, log_p)


def entropy(log_p: Array) -> Array:
    """Return the entropy of a distribution, in nats."""
    return _mean(-log_p, log_p)


def _mean(values: Array, log_p: Array) -> Array:
    """Return the mean of values under a distribution.

    A class of probability 0 adds nothing, though its log-probability is infinite.
    """
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(p == 0.0, 0.0, p * values).sum(-1))
