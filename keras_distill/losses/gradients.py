"""Gradients of divergences with respect to the student's logits, in closed form.

Each function returns the gradient of the function of the same name in
`keras_distill.losses.divergences`, in the shape of the logits. So a loss over a large
vocabulary needs no automatic differentiation, which would keep every intermediate
result in memory. All gradients are `q * (v - sum q v) / temperature`, where `v` is the
derivative of the divergence with respect to `q`, up to a constant.
"""

from keras import ops

from keras_distill.losses.divergences import log_mixed, log_probabilities
from keras_distill.types import Tensor


def forward_kl(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor, axis: int
) -> Tensor:
    """Return `(q - p) / temperature`."""
    log_p = log_probabilities(teacher_logits, temperature, axis)
    log_q = log_probabilities(student_logits, temperature, axis)
    return (ops.exp(log_q) - ops.exp(log_p)) / temperature


def reverse_kl(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor, axis: int
) -> Tensor:
    """Return `q (d - sum q d) / temperature`, `d = log q - log p`.

    As in the divergence, `d` is computed relative to its value for the student's most
    likely class. So rounding doesn't destroy its differences between classes.
    """
    q = ops.exp(log_probabilities(student_logits, temperature, axis))
    top = ops.expand_dims(ops.argmax(student_logits, axis=axis), axis)
    student, teacher = (
        logits - ops.take_along_axis(logits, top, axis=axis)
        for logits in (student_logits, teacher_logits)
    )
    return _centred(q, (student - teacher) / temperature, axis) / temperature


def generalized_jsd(
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor,
    axis: int,
    *,
    beta: float,
) -> Tensor:
    """Return `(1 - beta) q (u - sum q u) / temperature`, `u = log q - log m`."""
    if beta == 0.0:
        return forward_kl(teacher_logits, student_logits, temperature, axis)
    if beta == 1.0:
        return reverse_kl(teacher_logits, student_logits, temperature, axis)
    log_p = log_probabilities(teacher_logits, temperature, axis)
    log_q = log_probabilities(student_logits, temperature, axis)
    log_m_over_q = log_mixed(log_p - log_q, beta)
    gradient = _centred(ops.exp(log_q), log_m_over_q, axis)
    return (beta - 1.0) / temperature * gradient


def jeffreys(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor, axis: int
) -> Tensor:
    """Return the sum of the gradients of both KL divergences."""
    return forward_kl(teacher_logits, student_logits, temperature, axis) + reverse_kl(
        teacher_logits, student_logits, temperature, axis
    )


def total_variation(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor, axis: int
) -> Tensor:
    """Return `q (v - sum q v) / temperature`, `v = sign(q - p) / 2`."""
    p = ops.exp(log_probabilities(teacher_logits, temperature, axis))
    q = ops.exp(log_probabilities(student_logits, temperature, axis))
    return _centred(q, 0.5 * ops.sign(q - p), axis) / temperature


def _centred(q: Tensor, derivative: Tensor, axis: int) -> Tensor:
    """Return `q (v - sum q v)` for a derivative `v` with respect to `q`."""
    mean = ops.sum(q * derivative, axis=axis, keepdims=True)
    return q * (derivative - mean)
