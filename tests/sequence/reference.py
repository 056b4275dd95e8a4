"""A second implementation of the means over tokens: float64 NumPy, loops, by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np

# A loss of one token and its gradient in the student's logits.
OfToken = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]


def token_mean(
    of_token: OfToken,
    teacher: np.ndarray,
    student: np.ndarray,
    weight: np.ndarray,
    reduction: str,
) -> tuple[float, np.ndarray]:
    """The mean of a loss, and its gradient in the student's logits."""
    value, gradient = 0.0, np.zeros(student.shape)
    valid = [[t for t, w in enumerate(row) if w != 0] for row in weight]
    sequences = sum(bool(row) for row in valid)
    for b, row in enumerate(valid):
        for t in row:
            share = 1 / sum(map(len, valid))
            if reduction == "sequence":
                share = 1 / (sequences * len(row))
            of_this, in_logits = of_token(teacher[b, t], student[b, t])
            value += share * weight[b, t] * of_this
            gradient[b, t] = share * weight[b, t] * in_logits
    return value, gradient


def log_softmax(logits: Any) -> np.ndarray:
    logits = np.asarray(logits, "float64")
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def compared(teacher: Any, student: Any) -> dict[str, np.ndarray]:
    """What is logged of the distributions over tokens, of each token."""
    log_p, log_q = log_softmax(teacher), log_softmax(student)
    p, q = np.exp(log_p), np.exp(log_q)
    return {
        "forward_kl": (p * (log_p - log_q)).sum(-1),
        "reverse_kl": (q * (log_q - log_p)).sum(-1),
        "teacher_agreement": 1.0 * (p.argmax(-1) == q.argmax(-1)),
        "student_entropy": -(q * log_q).sum(-1),
        "teacher_entropy": -(p * log_p).sum(-1),
    }
