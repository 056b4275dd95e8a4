"""A second implementation of the losses: float64 NumPy and SciPy, gradients by hand.

Every function takes logits of shape `(examples, classes)` and a temperature, and
returns the loss per example and its gradient with respect to the student's logits.
Classes may be masked by `-inf` in both arrays.
"""

import numpy as np
from scipy.special import expit, log_expit, log_softmax


def tempered(logits, temperature):
    """`log softmax(logits / temperature)`."""
    top = logits.max(axis=-1, keepdims=True)
    return log_softmax((logits - top) / temperature, axis=-1)


def times(weight, x):
    """`weight * x` with `0 * inf = 0`, the limit that entropies have."""
    with np.errstate(invalid="ignore"):
        return np.where(weight > 0.0, weight * x, 0.0)


def minus(x, y):
    """`x - y`, 0 where both are the same infinity."""
    with np.errstate(invalid="ignore"):
        return np.where(x == y, 0.0, x - y)


def softmax_gradient(q, d_log_q, temperature):
    """The gradient in logits of what has the gradient `q * d_log_q` in `log q`."""
    weighted = times(q, d_log_q)
    return (weighted - q * weighted.sum(-1, keepdims=True)) / temperature


def soft_targets(t, s, temperature):
    log_p, log_q = tempered(t, temperature), tempered(s, temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    value = -times(p, log_q).sum(-1)
    return temperature**2 * value, temperature * (q - p)


def forward_kl(t, s, temperature):
    log_p, log_q = tempered(t, temperature), tempered(s, temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    value = times(p, minus(log_p, log_q)).sum(-1)
    return temperature**2 * value, temperature * (q - p)


def reverse_kl(t, s, temperature):
    log_p, log_q = tempered(t, temperature), tempered(s, temperature)
    q, ratio = np.exp(log_q), minus(log_q, log_p)
    value = times(q, ratio).sum(-1)
    gradient = softmax_gradient(q, ratio, temperature)
    return temperature**2 * value, temperature**2 * gradient


def jeffreys(t, s, temperature):
    forward, reverse = forward_kl(t, s, temperature), reverse_kl(t, s, temperature)
    return forward[0] + reverse[0], forward[1] + reverse[1]


def generalized_jsd(t, s, temperature, *, beta, normalize=False):
    if beta in (0.0, 1.0):
        return (reverse_kl if beta else forward_kl)(t, s, temperature)
    log_p, log_q = tempered(t, temperature), tempered(s, temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    log_m = np.logaddexp(np.log(beta) + log_p, np.log1p(-beta) + log_q)
    value = beta * times(p, minus(log_p, log_m)).sum(-1)
    value += (1 - beta) * times(q, minus(log_q, log_m)).sum(-1)
    gradient = softmax_gradient(q, (1 - beta) * minus(log_q, log_m), temperature)
    scale = temperature**2 / (beta * (1 - beta) if normalize else 1.0)
    return scale * value, scale * gradient


def total_variation(t, s, temperature):
    p, q = np.exp(tempered(t, temperature)), np.exp(tempered(s, temperature))
    value = 0.5 * np.abs(p - q).sum(-1)
    return value, softmax_gradient(q, 0.5 * np.sign(q - p), temperature)


def binary_cross_entropy(t, s, temperature):
    t, s = t / temperature, s / temperature
    value = -times(expit(t), log_expit(s)) - times(expit(-t), log_expit(-s))
    gradient = temperature * (expit(s) - expit(t)) / s.shape[-1]
    return temperature**2 * value.mean(-1), gradient


def binary_kl(t, s, temperature):
    value, gradient = binary_cross_entropy(t, s, temperature)
    entropy, _ = binary_cross_entropy(t, t, temperature)
    return value - entropy, gradient


def logit_mse(t, s, temperature=None):
    difference = minus(s, t)
    return np.square(difference).mean(-1), 2.0 * difference / s.shape[-1]
