"""Divergences between the tempered distributions of a teacher and a student.

These are pure functions of logits, with `p = softmax(teacher_logits / temperature)`
and `q = softmax(student_logits / temperature)`. They compute in log space, and don't
multiply by the squared temperature. Logits must be finite: `DistillationLoss` replaces
infinite ones. Each function returns one value per example, in the shape of the logits
without `axis`. Only the gradients of the student's logits are exact. Callers stop the
gradients of the teacher's logits.

The list-wise and pair-wise functions return one value per list. Their argument
`members` is a boolean `(lists, items)`, True for the items of a list. Scores have shape
`(rows, items)` and broadcast to it: either each row is a list, or one row has the items
of all lists.

Some sums below contain the term `- p + q`, which adds 0 to the value because both
sum to 1. It makes every summand non-negative, so that small divergences keep their
relative precision, and it makes the gradient exactly 0 where both distributions are
equal.
"""

import math

from keras import ops

from keras_distill.types import Tensor

# Lower than all scores, and finite, so that its product with 0 is 0.
_LOWEST = -1e30


def log_probabilities(logits: Tensor, temperature: Tensor, axis: int) -> Tensor:
    """Return `log softmax(logits / temperature)`.

    The largest logit is subtracted before the division, so that a large common offset
    costs no precision. At temperature 1, `log_softmax` itself subtracts it.
    """
    if isinstance(temperature, float) and temperature == 1.0:
        return ops.log_softmax(logits, axis=axis)
    # With several devices, one may get no rows of the last batch: the maximum of none
    # needs an `initial` value.
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
    # The cross-entropy isn't 0 at equality, so the term `- p + q` corrects the gradient
    # only.
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

    If the teacher gives almost no probability to the classes that the student considers
    likely, `log q - log p` is large and nearly the same for all of these classes. The
    gradient depends on its differences between classes, which rounding would destroy.
    So `log q - log p` is computed from differences of raw logits, relative to its value
    for the student's most likely class.
    """
    log_p = log_probabilities(teacher_logits, temperature, axis)
    log_q = log_probabilities(student_logits, temperature, axis)
    q = ops.exp(log_q)
    top = ops.expand_dims(ops.argmax(student_logits, axis=axis), axis)

    def above_top(values: Tensor) -> Tensor:
        return values - ops.take_along_axis(values, top, axis=axis)

    ratio = (above_top(student_logits) - above_top(teacher_logits)) / temperature
    # The sum has the value of `ratio` and the gradient of `log q`.
    ratio = ops.stop_gradient(ratio - log_q) + log_q
    differentiated = ops.sum(q * ratio - q, axis=axis)
    # The value of `differentiated` isn't the divergence: the ratio of the top class was
    # subtracted. Its terms have both signs, so a sum over many classes would lose small
    # divergences.
    value = ops.sum(q * (log_q - log_p) - q + ops.exp(log_p), axis=axis)
    nothing = differentiated - ops.stop_gradient(differentiated)
    return ops.stop_gradient(value) + nothing


def generalized_jsd(
    teacher_logits: Tensor,
    student_logits: Tensor,
    temperature: Tensor,
    axis: int,
    *,
    beta: float,
) -> Tensor:
    """Return `beta KL(p || m) + (1 - beta) KL(q || m)`, `m = beta p + (1 - beta) q`.

    With `beta=0` the result is the forward KL, with `beta=1` the reverse KL (Agarwal et
    al. 2024, https://arxiv.org/abs/2306.13649, equation 1 and the text below it).
    """
    if beta == 0.0:
        return forward_kl(teacher_logits, student_logits, temperature, axis)
    if beta == 1.0:
        return reverse_kl(teacher_logits, student_logits, temperature, axis)
    log_p = log_probabilities(teacher_logits, temperature, axis)
    log_q = log_probabilities(student_logits, temperature, axis)
    p, q = ops.exp(log_p), ops.exp(log_q)
    # The gradients through m sum to 0. Automatic differentiation returns another sum
    # where p equals q, because its gradient of logaddexp is wrong for equal numbers.
    log_m_over_p = ops.stop_gradient(log_mixed(log_q - log_p, 1.0 - beta))
    log_m_over_q = ops.stop_gradient(log_mixed(log_p - log_q, beta))
    # As in `reverse_kl`, the gradient depends on differences between classes.
    common = ops.stop_gradient(ops.sum(q * log_m_over_q, axis=axis, keepdims=True))
    balance = common * (ops.stop_gradient(q) - q)
    teacher_term, student_term = p * log_m_over_p, q * log_m_over_q + balance
    return -ops.sum(beta * teacher_term + (1.0 - beta) * student_term, axis=axis)


def log_mixed(log_ratio: Tensor, weight: float) -> Tensor:
    """Return `log(1 - weight + weight * exp(log_ratio))`.

    Results near 0 keep their relative precision, even for weights near 0. So the
    divergence can be divided by its weights.
    """
    # exp(80) is finite in float32, and its product with any weight is far above 0.5.
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
    """Return `KL` over two classes: the target class, and all other classes together.

    `target` is a boolean of the shape of the logits, and True at one class of the last
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
    """Return `-sum w p log q` per list; `p` and `q` are softmaxes over its members."""
    log_p = _log_shares(teacher_scores, temperature, members)
    log_q = _log_shares(student_scores, temperature, members)
    p, q = item_weight * ops.exp(log_p), ops.exp(log_q)
    # As in `soft_target_cross_entropy`, this corrects the gradient only.
    balance = q - ops.stop_gradient(q)
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

    `rivals`, of shape `(rows, items, items)`, is True for the items that an item may be
    paired with. A pair counts if the teacher scores its first item higher. It has the
    weight of that item. The mean is 0 if there are no pairs.
    """
    teacher_gap, student_gap = _gaps(teacher_scores), _gaps(student_scores)
    values = binary_cross_entropy(teacher_gap, student_gap, temperature)
    counted = ops.logical_and(rivals, teacher_gap > 0.0)
    per_item = item_weight * ops.sum(ops.where(counted, values, 0.0), axis=-1)
    count = ops.sum(ops.cast(counted, values.dtype), axis=-1)
    return _total(per_item, members) / ops.maximum(_total(count, members), 1.0)


def _log_shares(scores: Tensor, temperature: Tensor, members: Tensor) -> Tensor:
    """Return `log softmax(scores / temperature)` over each list's members.

    Other items have a share of 0. In a list without members, all shares are equal.
    """
    top = ops.max(
        ops.where(members, scores, _LOWEST), -1, keepdims=True, initial=_LOWEST
    )
    relative = (scores - ops.stop_gradient(top)) / temperature
    return ops.log_softmax(ops.where(members, relative, _LOWEST), axis=-1)


def _margin(logits: Tensor, temperature: Tensor, target: Tensor) -> Tensor:
    """Return the tempered logit of the target class minus that of all the others."""
    top = ops.max(
        ops.where(target, _LOWEST, logits), axis=-1, keepdims=True, initial=_LOWEST
    )
    relative = (logits - ops.stop_gradient(top)) / temperature
    others = ops.logsumexp(ops.where(target, _LOWEST, relative), axis=-1)
    return _total(relative, target) - others


def _gaps(scores: Tensor) -> Tensor:
    """Return the difference between each item's score and each other item's."""
    return scores[..., :, None] - scores[..., None, :]


def _total(per_item: Tensor, members: Tensor) -> Tensor:
    return ops.sum(ops.where(members, per_item, 0.0), axis=-1)
