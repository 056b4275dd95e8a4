"""Metrics of the distributions of a teacher and a student over tokens."""

from typing import Any

import keras
from keras import ops

from keras_distill.losses.base import DistillationLoss, computable
from keras_distill.losses.divergences import log_probabilities
from keras_distill.losses.weighting import token_weights
from keras_distill.types import Tensor

NAMES = (
    "forward_kl",
    "reverse_kl",
    "teacher_agreement",
    "student_entropy",
    "teacher_entropy",
)


def compared(teacher_logits: Tensor, student_logits: Tensor) -> dict[str, Tensor]:
    """Return metrics that compare two distributions over tokens, at temperature 1.

    Args:
        teacher_logits: Finite logits, of shape `(..., vocabulary)`.
        student_logits: Of the same shape.

    Returns:
        A dict of values of shape `(...)`: `forward_kl`, `KL(teacher || student)`;
        `reverse_kl`, `KL(student || teacher)`; `teacher_agreement`, 1 if both have the
        same most probable token, else 0; `student_entropy` and `teacher_entropy`.
        Divergences and entropies are in nats.

    Example:
        >>> values = compared(ops.zeros((1, 4)), ops.zeros((1, 4)))
        >>> round(float(values["student_entropy"][0]), 4)
        1.3863
    """
    log_p = log_probabilities(teacher_logits, 1.0, -1)
    log_q = log_probabilities(student_logits, 1.0, -1)
    p, q = ops.exp(log_p), ops.exp(log_q)
    difference, ratio = q - p, log_p - log_q
    best = ops.equal(ops.argmax(log_p, axis=-1), ops.argmax(log_q, axis=-1))
    # The sum of `difference` is 0. It keeps the digits of small divergences.
    return {
        "forward_kl": ops.sum(p * ratio + difference, axis=-1),
        "reverse_kl": -ops.sum(q * ratio + difference, axis=-1),
        "teacher_agreement": ops.cast(best, log_p.dtype),
        "student_entropy": -ops.sum(q * log_q, axis=-1),
        "teacher_entropy": -ops.sum(p * log_p, axis=-1),
    }


class TokenMetrics:
    """Means over valid tokens of the metrics that `compared` returns.

    A plain object: a model that holds it doesn't track or save it.
    """

    def __init__(self) -> None:
        self.metrics = {name: keras.metrics.Mean(name) for name in NAMES}

    def update(
        self, loss: Any, teacher_output: Tensor, student_output: Tensor, weight: Tensor
    ) -> set[str]:
        """Add a batch, and return the names of the metrics.

        Args:
            loss: The distillation loss. It determines the kind of the outputs, logits
                or probabilities.
            teacher_output: Of shape `(batch, time, vocabulary)`.
            student_output: Of the same shape.
            weight: The weights of the tokens, of shape `(batch, time)`. A token is
                valid if its weight isn't 0.
        """
        outputs = ops.stop_gradient(teacher_output), ops.stop_gradient(student_output)
        if isinstance(loss, DistillationLoss):
            logits = loss.prepared(*outputs)
        else:
            logits = computable(outputs[0]), computable(outputs[1])
        values = compared(*logits)
        weight = token_weights(values["forward_kl"], weight, None)
        is_valid = ops.not_equal(weight, 0.0)
        for name, value in values.items():
            value = ops.where(is_valid, value, 0.0)
            self.metrics[name].update_state(value, sample_weight=is_valid)
        return set(values)
