"""Ranking losses over lists of items, list-wise and pair-wise."""

from abc import abstractmethod
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill.losses import divergences
from keras_distill.losses.list_loss import RankingLoss
from keras_distill.losses.lists import Lists
from keras_distill.types import Tensor
from keras_distill.values import Value

_register = keras.saving.register_keras_serializable(package="keras_distill")


class ListwiseLoss(RankingLoss):
    """Cross-entropy between distributions over the items of a list.

    Subclasses implement `log_masses`.
    """

    @abstractmethod
    def log_masses(self, logits: Tensor) -> Tensor:
        """Return the numbers whose softmax over a list is the list's distribution."""

    def list_divergence(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        temperature: Tensor,
        lists: Lists,
    ) -> Tensor:
        """Return the cross-entropy per list."""
        return divergences.listwise_cross_entropy(
            self.log_masses(teacher_logits),
            self.log_masses(student_logits),
            temperature,
            lists.members,
            lists.item_weight,
        )

    def has_a_ranking(self, teacher_logits: Tensor, lists: Lists) -> Tensor:
        """Return per list whether it has two items or more."""
        return ops.sum(ops.cast(lists.members, "int32"), axis=-1) >= 2


@_register
class ListwiseSoftTargets(ListwiseLoss):
    r"""Cross-entropy between the softmaxes of teacher and student over a list.

    `T**2 * -sum_i(w_i * p_i * log(q_i))` over the valid items of a list, with
    `p = softmax(t / T)` of the teacher's scores and `q = softmax(s / T)` of the
    student's. `w` are the items' weights, 1 by default. Adding a number to all scores
    of a list doesn't change the loss. Lists with fewer than two valid items are left
    out of the mean.

    Lists: outputs of shape `(batch, list_size)` or `(batch, list_size, 1)` have one
    list per row. A boolean mask of that shape is True for items and False for padding.
    Outputs of shape `(batch,)` or `(batch, 1)` have one item per row. Rows of a batch
    with the same group id form a list, and a mask is True for the rows that count. Ids
    are integers or strings. Groups take memory for `batch**2` numbers. String ids need
    TensorFlow and `compile(jit_compile=False)`. Without a reduction, the first row of
    a group has the value of the group's list, and its other rows are 0.

    Calling:
    `loss({"scores": teacher_output, "mask": mask, "group": ids}, student_output)`, or
    with the teacher's output alone. `Distiller` builds the dict from the inputs that
    `mask` and `group` name. Masked scores may have any value, including NaN. If the
    student's output has a Keras mask too, an item is valid if both masks are True.

    Weights: a `sample_weight` of shape `(batch,)` or `(batch, 1)` has a weight per
    list. With shape `(batch, list_size)`, or with groups, it has a weight per item,
    e.g. the inverse propensity of the position at which the item was shown. An item of
    weight 0 still counts in the softmaxes, unlike a masked item. If the weights of
    items differ, the loss is smallest for a `q` in proportion to `w * p`. Only weights
    of lists count in the divisor of `reduction="mean_with_sample_weight"`.

    Args:
        temperature: Divides the scores; positive; float or schedule. Defaults to 1.
        mask: Name of the model's input with the mask, for `Distiller`.
        group: Name of the model's input with the group ids, for `Distiller`.
        from_logits: Whether outputs are scores (default), or probabilities of a
            sigmoid head. The range of probabilities is checked, except in steps that
            XLA or JAX compiles.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        reduction: As in `keras.losses.Loss`, over lists. Defaults to
            `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        TypeError: If `mask` or `group` isn't a string.
        ValueError: If the temperature isn't positive, the outputs' shapes differ or
            aren't those of lists, probabilities lie outside [0, 1], or an input that
            `mask` or `group` names is missing.

    Example:
        >>> loss = ListwiseSoftTargets()
        >>> teacher, student = [[2.0, 0.0, 9.9]], [[0.0, 2.0, 0.0]]
        >>> mask = [[True, True, False]]
        >>> round(float(loss({"scores": teacher, "mask": mask}, student)), 4)
        1.8885

    Reference:
        Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise
        Approach", https://doi.org/10.1145/1273496.1273513, section 4 (ListNet).
    """

    def log_masses(self, logits: Tensor) -> Tensor:
        """Return the logits themselves."""
        return logits


@_register
class CalibratedListwise(ListwiseLoss):
    r"""Cross-entropy between the items' shares of the clicks on their list.

    `-sum_i(w_i * p_i * log(q_i))` over the valid items of a list, with
    `p = sigmoid(t) / sum(sigmoid(t))` of the teacher's logits and
    `q = sigmoid(s) / sum(sigmoid(s))` of the student's. `w` are the items' weights, 1
    by default. `p` and `q` are each item's share of the clicks expected on the list.

    The loss is smallest if the student's click probabilities equal the teacher's. This
    is also the minimum of binary cross-entropy (`BinarySoftTargets`), so the sum of
    both losses keeps the student calibrated. This loss alone determines the
    probabilities only up to a factor per list. Weights that differ between items move
    the minimum. There is no temperature, because tempered sigmoids aren't click
    probabilities. If clicks are rare, sigmoids are nearly exponentials, and the loss is
    nearly `ListwiseSoftTargets`.

    Lists, masks, group ids and weights are those of `ListwiseSoftTargets`.

    Args:
        mask: Name of the model's input with the mask, for `Distiller`.
        group: Name of the model's input with the group ids, for `Distiller`.
        from_logits: Whether outputs are logits (default), or probabilities of a
            sigmoid head. The range of probabilities is checked, except in steps that
            XLA or JAX compiles.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        reduction: As in `keras.losses.Loss`, over lists. Defaults to
            `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        TypeError: If `mask` or `group` isn't a string.
        ValueError: If the outputs' shapes differ or aren't those of lists,
            probabilities lie outside [0, 1], or an input that `mask` or `group` names
            is missing.

    Example:
        >>> loss = CalibratedListwise(from_logits=False)
        >>> round(float(loss([[0.1, 0.3]], [[0.2, 0.2]])), 4)
        0.6931

    Reference:
        Gui et al. 2024, "Calibration-compatible Listwise Distillation of Privileged
        Features for CTR Prediction", https://arxiv.org/abs/2312.08727.
    """

    def __init__(
        self,
        *,
        mask: str | None = None,
        group: str | None = None,
        from_logits: bool = True,
        teacher_from_logits: bool | None = None,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            mask=mask,
            group=group,
            from_logits=from_logits,
            teacher_from_logits=teacher_from_logits,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.tempering = Value(
            "temperature",
            1.0,
            requirement="1 in a calibrated loss",
            accepts=lambda value: value == 1.0,
        )

    def log_masses(self, logits: Tensor) -> Tensor:
        """Return the logarithms of the click probabilities."""
        return ops.log_sigmoid(logits)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config = super().get_config()
        del config["temperature"]
        return config


@_register
class PairwiseSoftTargets(RankingLoss):
    r"""Cross-entropy of the order of two items, over the pairs of a list.

    `T**2 * mean(w_i * (-p * log(q) - (1 - p) * log(1 - q)))` over the pairs of valid
    items of a list with `t_i > t_j`. `p = sigmoid((t_i - t_j) / T)` is computed from
    the teacher's scores, and `q = sigmoid((s_i - s_j) / T)` from the student's. `w` are
    the items' weights, 1 by default. A pair has the weight of the item that the teacher
    scores higher, and the sum is divided by the number of pairs. Two items with equal
    scores of the teacher aren't a pair, and lists without pairs are left out of the
    mean. The loss takes memory for `batch * list_size**2` numbers.

    Lists, masks, group ids and weights are those of `ListwiseSoftTargets`.

    Args:
        temperature: Divides the scores; positive; float or schedule. Defaults to 1.
        mask: Name of the model's input with the mask, for `Distiller`.
        group: Name of the model's input with the group ids, for `Distiller`.
        from_logits: Whether outputs are scores (default), or probabilities of a
            sigmoid head. The range of probabilities is checked, except in steps that
            XLA or JAX compiles.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        reduction: As in `keras.losses.Loss`, over lists. Defaults to
            `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        TypeError: If `mask` or `group` isn't a string.
        ValueError: If the temperature isn't positive, the outputs' shapes differ or
            aren't those of lists, probabilities lie outside [0, 1], or an input that
            `mask` or `group` names is missing.

    Example:
        >>> loss = PairwiseSoftTargets()
        >>> teacher, student = [2.0, 5.0, 0.0, 3.0], [0.0, 4.0, 2.0, 4.0]
        >>> pages = ["a", "b", "a", "b"]
        >>> round(float(loss({"scores": teacher, "group": pages}, student)), 4)
        1.2908

    Reference:
        Burges et al. 2005, "Learning to Rank using Gradient Descent",
        https://doi.org/10.1145/1102351.1102363, section 3 (RankNet), with the
        teacher's probabilities as targets.
    """

    def list_divergence(
        self,
        teacher_logits: Tensor,
        student_logits: Tensor,
        temperature: Tensor,
        lists: Lists,
    ) -> Tensor:
        """Return the mean over the pairs of each list."""
        return divergences.pairwise_cross_entropy(
            teacher_logits,
            student_logits,
            temperature,
            lists.members,
            lists.rivals,
            lists.item_weight,
        )

    def has_a_ranking(self, teacher_logits: Tensor, lists: Lists) -> Tensor:
        """Return per list whether the teacher's scores differ."""
        highest = ops.where(lists.members, teacher_logits, -np.inf)
        lowest = ops.where(lists.members, teacher_logits, np.inf)
        return ops.max(highest, axis=-1, initial=-np.inf) > ops.min(
            lowest, axis=-1, initial=np.inf
        )
