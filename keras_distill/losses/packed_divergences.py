"""Divergences from a part of the teacher's distribution: its top k, or samples of it.

These are pure functions, as in `divergences`. `ids` are the recorded classes, integers
of shape `(..., k)`. Logits have the shape `(..., classes)`.
"""

from keras import ops

from keras_distill.losses.divergences import forward_kl, log_probabilities
from keras_distill.types import Tensor

# Lower than all logits, and finite, so that its product with 0 is 0.
_LOWEST = -1e30


def top_k_forward_kl(
    teacher_log_probabilities: Tensor,
    student_logits: Tensor,
    temperature: Tensor,
    ids: Tensor,
) -> Tensor:
    """Return `KL` between distributions over k classes and the bucket of all others.

    At temperature 1 it is
    `sum_k p (log p - log q) + (1 - a) (log(1 - a) - log(1 - b))`, where `a` and `b` are
    the teacher's and the student's probabilities of the k classes together. At other
    temperatures, the k classes and the bucket of probability `1 - a` are tempered as
    `k + 1` classes.

    Args:
        teacher_log_probabilities: The log-probabilities of the k classes and of the
            bucket, of shape `(..., k + 1)`, at temperature 1.
        student_logits: Of shape `(..., classes)`.
        temperature: Divides the log-probabilities.
        ids: The k classes, all different.
    """
    student = with_bucket(student_logits, ids)
    # If all classes were recorded, there is no bucket.
    teacher = teacher_log_probabilities[..., : student.shape[-1]]
    return forward_kl(teacher, student, temperature, -1)


def with_bucket(logits: Tensor, ids: Tensor) -> Tensor:
    """Return the logits of k classes, and the logsumexp of all others if there are any.

    The softmax of the result has the probabilities of the k classes and of the rest.
    """
    top = ops.max(logits, axis=-1, keepdims=True, initial=_LOWEST)
    # A large common offset would cost the logsumexp precision.
    logits = logits - ops.stop_gradient(top)
    chosen = ops.take_along_axis(logits, ids, axis=-1)
    if ids.shape[-1] == logits.shape[-1]:
        return chosen
    others = ops.where(_are_chosen(ids, logits), _LOWEST, logits)
    rest = ops.logsumexp(others, axis=-1, keepdims=True)
    return ops.concatenate([chosen, rest], axis=-1)


def sampled_cross_entropy(
    shares: Tensor, student_logits: Tensor, ids: Tensor
) -> Tensor:
    """Return `-sum shares log q` over sampled classes; `q` is the student's softmax.

    Args:
        shares: The shares of the samples in each class of `ids`, which sum to 1.
        student_logits: Of shape `(..., classes)`.
        ids: The classes.
    """
    log_q = log_probabilities(student_logits, 1.0, -1)
    q = ops.exp(log_q)
    # As in `soft_target_cross_entropy`, this corrects the gradient only.
    balance = ops.sum(q - ops.stop_gradient(q), axis=-1)
    return balance - ops.sum(shares * ops.take_along_axis(log_q, ids, axis=-1), axis=-1)


def _are_chosen(ids: Tensor, logits: Tensor) -> Tensor:
    """Return which logits are those of `ids`, a boolean of their shape.

    Memory grows with the number of classes, not with k times as many.
    """
    k, classes = ids.shape[-1], logits.shape[-1]
    flat = ops.reshape(ids, (-1, k))
    rows = ops.broadcast_to(ops.arange(ops.shape(flat)[0])[:, None], ops.shape(flat))
    at = ops.stack([rows, ops.cast(flat, rows.dtype)], axis=-1)
    none = ops.zeros((ops.shape(flat)[0], classes), "bool")
    at = ops.reshape(at, (-1, 2))
    chosen = ops.scatter_update(none, at, ops.ones_like(at[:, 0], dtype="bool"))
    return ops.reshape(chosen, ops.shape(logits))
