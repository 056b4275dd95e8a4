"""A loss that compares relations between classes and relations between examples."""

from typing import Any, Self

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_distill.losses import checks
from keras_distill.losses.correlations import pearson_distance
from keras_distill.losses.divergences import log_probabilities
from keras_distill.losses.softmax import SoftmaxLoss
from keras_distill.per_output import of_rank
from keras_distill.types import Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class DIST(SoftmaxLoss):
    r"""Pearson correlation of probabilities, over the classes and over the batch.

    `T**2 * (beta * (1 - r(p_i, q_i)) + gamma * mean_c(1 - r(p_c, q_c)))`, with
    `p = softmax(t / T)` of the teacher's logits and `q = softmax(s / T)` of the
    student's. `r` is Pearson's correlation. `p_i` are the probabilities of one example
    over the classes, and `p_c` are the probabilities of one class over the batch. Use
    this loss if the teacher is so much stronger than the student that the student can
    match relations but not values.

    The second term is computed over the batch and added to the value of each example.
    So the mean over examples is the paper's loss. With `reduction="sum"` the result is
    the paper's loss times the number of examples. All positions of outputs with more
    axes, such as pixels or tokens, count as examples. If the teacher's probabilities
    are all equal, as over a batch of one example, there is no correlation, and `1 - r`
    counts as 0. If only the student's are all equal, it counts as 1. The second term is
    more exact in larger batches. With several devices, each device computes it over its
    own part of the batch.

    Weights: a `sample_weight` weights the values as in any loss. An example of weight
    `w` also counts as `w` examples in the correlations over the batch. A masked example
    or one of weight 0 doesn't count.

    Args:
        temperature: Divides the logits; positive; float or schedule. Defaults to 1; the
            paper uses 4 for CIFAR-100.
        beta: Weight of the correlation over the classes; not negative. Defaults to 1.
        gamma: Weight of the correlation over the batch; not negative. Defaults to 1.
            In the paper, each term has twice the weight of the label loss. For this,
            pass `alpha=2/3` to `Distiller.compile`.
        from_logits: Whether outputs are logits (default) or probabilities.
        teacher_from_logits: The same for the teacher's output alone. Defaults to
            `from_logits`.
        axis: The class axis. Defaults to -1. With two classes, the first term depends
            only on which one is more probable, so it has no gradient.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If the temperature isn't positive, a weight is negative, the
            outputs' shapes differ, or the class axis has one unit only.

    Example:
        >>> loss = DIST(temperature=2.0)
        >>> teacher = [[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]]
        >>> student = [[1.0, 0.0, 2.0], [0.0, 2.0, 1.0]]
        >>> round(float(loss(teacher, student)), 4)
        6.1149

    Reference:
        Huang et al. 2022, "Knowledge Distillation from A Stronger Teacher",
        https://arxiv.org/abs/2205.10536, section 4.
    """

    def __init__(
        self,
        temperature: float | LearningRateSchedule = 1.0,
        *,
        beta: float = 1.0,
        gamma: float = 1.0,
        from_logits: bool = True,
        teacher_from_logits: bool | None = None,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(
            temperature,
            from_logits=from_logits,
            teacher_from_logits=teacher_from_logits,
            axis=axis,
            reduction=reduction,
            name=name,
            dtype=dtype,
        )
        self.beta = checks.checked_weight("beta", beta)
        self.gamma = checks.checked_weight("gamma", gamma)
        self._weights: tuple[Tensor, ...] = ()

    def for_weights(self, sample_weight: Tensor, mask: Tensor) -> Self:
        """Return the loss with the weights of the examples in the batch."""
        loss = self.copied()
        loss._weights = tuple(x for x in (sample_weight, mask) if x is not None)
        return loss

    def divergence(
        self, teacher_logits: Tensor, student_logits: Tensor, temperature: Tensor
    ) -> Tensor:
        """Return the weighted sum of both distances per example."""
        p, q = (
            ops.moveaxis(
                ops.exp(log_probabilities(logits, temperature, self.axis)),
                self.axis,
                -1,
            )
            for logits in (teacher_logits, student_logits)
        )
        one = ops.ones_like(p[..., :1])
        of_examples = pearson_distance(p, q, one, -1)
        weight = one[..., 0]
        for given in self._weights:
            weight = weight * ops.cast(of_rank(given, weight), weight.dtype)
        classes = ops.shape(p)[-1]
        of_classes = pearson_distance(
            ops.reshape(p, (-1, classes)),
            ops.reshape(q, (-1, classes)),
            ops.reshape(weight, (-1, 1)),
            0,
        )
        return self.beta * of_examples + self.gamma * ops.mean(of_classes)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "beta": self.beta, "gamma": self.gamma}
