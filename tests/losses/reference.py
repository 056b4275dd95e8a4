"""A second implementation of the losses: float64 NumPy and SciPy, gradients by hand.

Every function takes logits of shape `(examples, classes)` and a temperature, and
returns the loss per example and its gradient with respect to the student's logits.
Classes may be masked by `-inf` in both arrays.
"""

import numpy as np
from scipy.special import expit, log_expit, log_softmax, logsumexp


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


def decoupled(t, s, temperature, *, labels, alpha, beta):
    target = np.arange(t.shape[-1]) == labels[:, None]

    def split(logits):
        log_p = tempered(logits, temperature)
        log_others = logsumexp(log_p, axis=-1, keepdims=True, b=~target)
        log_of_two = np.concatenate([log_p[target][:, None], log_others], -1)
        return log_of_two, np.where(target, -np.inf, minus(log_p, log_others))

    (log_p, log_r), (log_q, log_u) = split(t), split(s)
    p, q, r, u = np.exp(log_p), np.exp(log_q), np.exp(log_r), np.exp(log_u)
    of_target = times(p, minus(log_p, log_q)).sum(-1)
    of_others = times(r, minus(log_r, log_u)).sum(-1)
    toward_target = q[:, :1] - p[:, :1]
    gradient = np.where(
        target, alpha * toward_target, beta * (u - r) - alpha * toward_target * u
    )
    value = temperature**2 * (alpha * of_target + beta * of_others)
    return value, temperature * gradient


def pearson_distance(x, y, weight, axis):
    """`1 - r` and its gradient in `y`, where both vary."""
    share = weight / weight.sum(axis=axis, keepdims=True)

    def standardised(values):
        deviation = values - (share * values).sum(axis=axis, keepdims=True)
        spread = np.sqrt((share * deviation**2).sum(axis=axis, keepdims=True))
        return deviation / spread, spread

    (x, _), (y, spread) = standardised(x), standardised(y)
    r = (share * x * y).sum(axis=axis, keepdims=True)
    return 1.0 - np.squeeze(r, axis), -share * (x - r * y) / spread


def dist(t, s, temperature, *, beta, gamma, weight=None):
    """The loss per example, and the gradient of its mean with these weights."""
    weight = np.ones(len(t)) if weight is None else weight
    p, q = np.exp(tempered(t, temperature)), np.exp(tempered(s, temperature))
    value, gradient = pearson_distance(p, q, np.ones_like(p), -1)
    batch_value, batch_gradient = pearson_distance(p, q, weight[:, None], 0)
    value = beta * value + gamma * batch_value.mean()
    gradient = beta * gradient * (weight / weight.sum())[:, None]
    gradient = gradient + gamma * batch_gradient / p.shape[-1]
    gradient = softmax_gradient(q, gradient, temperature)
    return temperature**2 * value, temperature**2 * gradient


def packed_top_k(t, k):
    """The record of the k likeliest classes."""
    log_p = tempered(t, 1.0)
    ids = np.argsort(-log_p, axis=-1, kind="stable")[..., :k]
    chosen = np.zeros(t.shape, bool)
    np.put_along_axis(chosen, ids, True, axis=-1)
    with np.errstate(divide="ignore"):
        rest = logsumexp(log_p, axis=-1, keepdims=True, b=~chosen)
    total = logsumexp(t, axis=-1, keepdims=True)
    kept = np.take_along_axis(log_p, ids, axis=-1)
    return np.concatenate([ids, kept, rest, total], axis=-1)


def top_k_forward_kl(t, s, temperature, *, k):
    """The forward KL of k classes and one that has the probability of all others."""
    log_p, log_q = tempered(t, 1.0), tempered(s, 1.0)
    ids = np.argsort(-log_p, axis=-1, kind="stable")[..., :k]
    chosen = np.zeros(t.shape, bool)
    np.put_along_axis(chosen, ids, True, axis=-1)

    def coarse(log):
        with np.errstate(divide="ignore"):
            rest = logsumexp(log, axis=-1, keepdims=True, b=~chosen)
        return np.concatenate([np.take_along_axis(log, ids, axis=-1), rest], axis=-1)

    value, of_coarse = forward_kl(coarse(log_p), coarse(log_q), temperature)
    gradient = np.zeros(s.shape)
    np.put_along_axis(gradient, ids, of_coarse[..., :k], axis=-1)
    others = np.where(chosen, -np.inf, log_q)
    within = np.exp(minus(others, coarse(log_q)[..., -1:]))
    return value, np.where(chosen, gradient, times(within, of_coarse[..., -1:]))


def sampled_soft_targets(t, s, temperature=None, *, counts):
    """The cross-entropy of draws, and its gradient."""
    log_q = tempered(s, 1.0)
    shares = counts / counts.sum(-1, keepdims=True)
    return -times(shares, log_q).sum(-1), np.exp(log_q) - shares


def standardized(loss, t, s, temperature, epsilon=1e-7, **arguments):
    """Another loss of standardised logits; those that are all equal have `std=1`."""

    def statistics(x):
        present = np.isfinite(x)
        finite = np.where(present, x, 0.0)
        count = present.sum(-1, keepdims=True)
        deviation = finite - finite.sum(-1, keepdims=True) / count
        deviation = np.where(present, deviation, 0.0)
        std = np.sqrt((deviation**2).sum(-1, keepdims=True) / count)
        highest = np.where(present, x, -np.inf).max(-1, keepdims=True)
        varies = highest > np.where(present, x, np.inf).min(-1, keepdims=True)
        return (
            present,
            count,
            np.where(varies, deviation, 0.0),
            np.where(varies, std, 1.0),
        )

    def z(x):
        present, _, deviation, std = statistics(x)
        return np.where(present, deviation / (std + epsilon), x)

    value, gradient = loss(z(t), z(s), temperature, **arguments)
    present, count, deviation, std = statistics(s)
    gradient = np.where(present, gradient, 0.0)
    through_mean = gradient.sum(-1, keepdims=True) / count
    through_std = (gradient * deviation).sum(-1, keepdims=True) / (count * std)
    gradient = (gradient - through_mean) / (std + epsilon)
    gradient = gradient - deviation * through_std / (std + epsilon) ** 2
    return value, np.where(present, gradient, 0.0)
