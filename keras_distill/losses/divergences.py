"""Divergences between the tempered distributions of a teacher and a student.

Pure functions of logits; `p = softmax(teacher_logits / temperature)` and
`q = softmax(student_logits / temperature)`. All stay in log space and none is scaled
by the squared temperature. Logits must be finite (`DistillationLoss` sees to it).
Each returns one value per example: the shape of the logits without `axis`. Gradients
are those with respect to the student's logits; the teacher's are not to be used.

The list-wise and pair-wise ones return one value per list instead. Which items form
a list, `members` says: a boolean `(lists, items)` that scores of shape `(rows, items)`
broadcast to. Either a row is a list, or one row holds the items of all lists.

Each sum below may carry a term `- p + q`, which adds 0 to the value because both
sum to 1. It makes every summand non-negative, so that small divergences don't drown
in rounding, and the gradient exactly 0 where both distributions are equal.
"""

import math

from keras import ops

from keras_distill.types import Tensor

# Below all scores, and finite, so that its products with 0 are 0.
_LOWEST = -1e30


def log_probabilities(logits: Tensor, temperature: Tensor, axis: int) -> Tensor:
    """Return `log softmax(logits / temperature)`.

    The largest logit is subtracted before the division: exact where it matters,
    whatever offset the logits have in common.
    """
    # `initial`, because a replica's share of the last batch may be empty
    top = ops.max(logits, axis=axis, keepdims=True, initial=-math.inf)
    top = ops.stop_gradient(top)
    return ops.log_softmax((logits - top) / temperature, axis=axis)


def soft_target_cross_entropy(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor, axis: int
) -> Tensor:
    """Return `-sum p log q` (Hinton, Vinyals, Dean 2015, equation 2)."""
    log_p = log_probabilities(teacher_logits, temperature, axis)
    log_q = log_probabilities(student_logits, temperature, axis)
    p, q = ops.exp(log_p), ops.exp(log_q)
    # stop_gradient leaves the value alone: here -p + q serves the gradient only
    balance = q - ops.stop_gradient(q)
    return ops.sum(balance - p * log_q, axis=axis)


def forward_kl(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor, axis: int
) -> Tensor:
    """Return `KL(p || q) = sum p (log p - log q)`."""
    log_p = log_probabilities(teacher_logits, temperature, axis)
    log_q = log_probabilities(student_logits, temperature, axis)
    p, q = ops.exp(log_p), ops.exp(log_q)
    return ops.sum(p * (log_p - log_q) - p + q, axis=axis)


def reverse_kl(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor, axis: int
) -> Tensor:
    """Return `KL(q || p) = sum q (log q - log p)`.

    Where the teacher rules out all that the student believes in, `log q - log p` is
    a large number common to those classes, and the gradient, which lives on the
    differences between them, would be lost in its rounding. So the log ratio is
    taken relative to that of the student's top class, from differences of raw
    logits.
    """
    log_p = log_probabilities(teacher_logits, temperature, axis)
    log_q = log_probabilities(student_logits, temperature, axis)
    q = ops.exp(log_q)
    top = ops.expand_dims(ops.argmax(student_logits, axis=axis), axis)

    def above_top(values: Tensor) -> Tensor:
        return values - ops.take_along_axis(values, top, axis=axis)

    ratio = (above_top(student_logits) - above_top(teacher_logits)) / temperature
    # the value of `ratio`, the gradient of `log q`
    ratio = ops.stop_gradient(ratio - log_q) + log_q
    top_ratio = ops.take_along_axis(log_q - log_p, top, axis=axis)
    return ops.sum(q * ratio - q + ops.stop_gradient(q), axis=axis) + ops.squeeze(
        ops.stop_gradient(top_ratio), axis
    )


def generalized_jsd(
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor,
    axis: int,
    *,
    beta: float,
) -> Tensor:
    """Return `beta KL(p || m) + (1 - beta) KL(q || m)`, `m = beta p + (1 - beta) q`.

    `beta` = 0 is taken as the forward and 1 as the reverse KL (Agarwal et al. 2024,
    https://arxiv.org/abs/2306.13649, equation 1 and the text below it).
    """
    if beta == 0.0:
        return forward_kl(teacher_logits, student_logits, temperature, axis)
    if beta == 1.0:
        return reverse_kl(teacher_logits, student_logits, temperature, axis)
    log_p = log_probabilities(teacher_logits, temperature, axis)
    log_q = log_probabilities(student_logits, temperature, axis)
    p, q = ops.exp(log_p), ops.exp(log_q)
    # what m adds to the gradient is 0 in sum; left to autodiff it isn't where p equals
    # q, because the gradient of logaddexp is wrong between equal numbers
    log_m_over_p = ops.stop_gradient(_log_mixed(log_q - log_p, 1.0 - beta))
    log_m_over_q = ops.stop_gradient(_log_mixed(log_p - log_q, beta))
    # as in `reverse_kl`, the gradient lives on differences between the classes
    common = ops.stop_gradient(ops.sum(q * log_m_over_q, axis=axis, keepdims=True))
    balance = common * (ops.stop_gradient(q) - q)
    teacher_term, student_term = p * log_m_over_p, q * log_m_over_q + balance
    return -ops.sum(beta * teacher_term + (1.0 - beta) * student_term, axis=axis)


def _log_mixed(log_ratio: Tensor, weight: float) -> Tensor:
    """Return `log(1 - weight + weight * exp(log_ratio))`.

    Results near 0 keep their relative precision, also for weights near 0, so that the
    divergence may be divided by its weights.
    """
    # 80: exp of it is finite in float32, and far from 0 times any weight
    shift = weight * ops.expm1(ops.minimum(log_ratio, 80.0))
    far = ops.logaddexp(log_ratio + math.log(weight), math.log1p(-weight))
    return ops.where(ops.abs(shift) < 0.5, ops.log1p(shift), far)


def jeffreys(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor, axis: int
) -> Tensor:
    """Return `KL(p || q) + KL(q || p)`."""
    return forward_kl(teacher_logits, student_logits, temperature, axis) + reverse_kl(
        teacher_logits, student_logits, temperature, axis
    )


def target_kl(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor, target: Tensor
) -> Tensor:
    """Return `KL` between the distributions over the target class and all others.

    `target`, a boolean of the shape of the logits, is True at one class of the last
    axis (Zhao et al. 2022, https://arxiv.org/abs/2203.08679, the first term of
    equation 6).
    """
    teacher, student = (
        _margin(logits, temperature, target)
        for logits in (teacher_logits, student_logits)
    )
    zero = ops.zeros_like(teacher)
    return forward_kl(
        ops.stack([teacher, zero], -1), ops.stack([student, zero], -1), 1.0, -1
    )


def nontarget_kl(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor, target: Tensor
) -> Tensor:
    """Return `KL` between the distributions over the classes that aren't the target.

    With `target_kl` and the teacher's probability `p` of the target class,
    `target_kl + (1 - p) * nontarget_kl` is `forward_kl`.
    """
    others = ops.logical_not(target)
    log_p = _log_shares(teacher_logits, temperature, others)
    log_q = _log_shares(student_logits, temperature, others)
    p, q = ops.exp(log_p), ops.exp(log_q)
    return _total(p * (log_p - log_q) - p + q, others)


def total_variation(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor, axis: int
) -> Tensor:
    """Return `1/2 sum |p - q|`, in [0, 1]."""
    p = ops.exp(log_probabilities(teacher_logits, temperature, axis))
    q = ops.exp(log_probabilities(student_logits, temperature, axis))
    return 0.5 * ops.sum(ops.abs(p - q), axis=axis)


def binary_cross_entropy(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
) -> Tensor:
    """Return, per unit, `-p log q - (1 - p) log(1 - q)` of tempered sigmoids."""
    t, s = teacher_logits / temperature, student_logits / temperature
    return -(
        ops.sigmoid(t) * ops.log_sigmoid(s) + ops.sigmoid(-t) * ops.log_sigmoid(-s)
    )


def binary_kl(
    teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
) -> Tensor:
    """Return, per unit, `p log(p/q) + (1 - p) log((1 - p)/(1 - q))`."""
    t, s = teacher_logits / temperature, student_logits / temperature
    positive = ops.sigmoid(t) * (ops.log_sigmoid(t) - ops.log_sigmoid(s))
    negative = ops.sigmoid(-t) * (ops.log_sigmoid(-t) - ops.log_sigmoid(-s))
    return positive + negative


def listwise_cross_entropy(
    teacher_scores: Tensor,
    student_scores: Tensor,
    temperature: Tensor,
    members: Tensor,
    item_weight: Tensor,
) -> Tensor:
    """Return `-sum w p log q` of each list, `p` and `q` softmaxes over its members."""
    log_p = _log_shares(teacher_scores, temperature, members)
    log_q = _log_shares(student_scores, temperature, members)
    p, q = item_weight * ops.exp(log_p), ops.exp(log_q)
    balance = q - ops.stop_gradient(q)  # as in `soft_target_cross_entropy`
    return _total(balance - p * log_q, members)


def pairwise_cross_entropy(
    teacher_scores: Tensor,
    student_scores: Tensor,
    temperature: Tensor,
    members: Tensor,
    rivals: Tensor,
    item_weight: Tensor,
) -> Tensor:
    """Return the mean of `binary_cross_entropy` over the pairs of each list.

    `rivals`, of shape `(rows, items, items)`, tells with which others an item may be
    paired. A pair counts where the teacher scores its first item higher, and weighs
    what that item weighs. The mean of none is 0.
    """
    teacher_gap, student_gap = _gaps(teacher_scores), _gaps(student_scores)
    values = binary_cross_entropy(teacher_gap, student_gap, temperature)
    counted = ops.logical_and(rivals, teacher_gap > 0.0)
    per_item = item_weight * ops.sum(ops.where(counted, values, 0.0), axis=-1)
    count = ops.sum(ops.cast(counted, values.dtype), axis=-1)
    return _total(per_item, members) / ops.maximum(_total(count, members), 1.0)


def _log_shares(scores: Tensor, temperature: Tensor, members: Tensor) -> Tensor:
    """Return `log softmax(scores / temperature)` over each list's members.

    Others have a share of 0, but in a list without members, where all are equal.
    """
    top = ops.max(
        ops.where(members, scores, _LOWEST), -1, keepdims=True, initial=_LOWEST
    )
    relative = (scores - ops.stop_gradient(top)) / temperature
    return ops.log_softmax(ops.where(members, relative, _LOWEST), axis=-1)


def _margin(logits: Tensor, temperature: Tensor, target: Tensor) -> Tensor:
    """Return the tempered logit of the target class against all others together."""
    top = ops.max(
        ops.where(target, _LOWEST, logits), axis=-1, keepdims=True, initial=_LOWEST
    )
    relative = (logits - ops.stop_gradient(top)) / temperature
    others = ops.logsumexp(ops.where(target, _LOWEST, relative), axis=-1)
    return _total(relative, target) - others


def _gaps(scores: Tensor) -> Tensor:
    """Return by how much each item's score exceeds each other's."""
    return scores[..., :, None] - scores[..., None, :]


def _total(per_item: Tensor, members: Tensor) -> Tensor:
    return ops.sum(ops.where(members, per_item, 0.0), axis=-1)
