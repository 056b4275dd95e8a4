"""Losses between relations of examples: distances, angles, similarities.

Features are flattened to one vector per example. Relations of the vectors don't depend
on their width, so the features of both models may have any shapes.
"""

from abc import ABC
from typing import Any, ClassVar

import keras
from keras import ops

from keras_distill.hints.losses import pairs
from keras_distill.hints.losses.base import (
    FeatureLoss,
    Shape,
    checked_positive,
    same_size,
)
from keras_distill.types import Tensor


class RelationLoss(FeatureLoss, ABC):
    """A loss between relations of the examples in a batch.

    The value of an example is the weighted mean over the examples that it is compared
    to, so the mean over examples is the mean over pairs. With several devices, each
    compares the examples in its own part of the batch.
    """

    needs_equal_widths: ClassVar[bool] = False

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise ValueError unless both have features of the same number of examples."""
        if min(len(teacher_shape), len(student_shape)) < 2 or not same_size(
            teacher_shape[0], student_shape[0]
        ):
            raise ValueError(
                f"`{self.name}` compares the relations of the examples in a batch, so "
                "both features must have the shape (batch, ...) with one size of the "
                "batch. Choose layers whose outputs keep the batch axis first. "
                f"Received: teacher features {teacher_shape}, student features "
                f"{student_shape}"
            )


class HuberRelationLoss(RelationLoss):
    """A loss that compares relations by Huber's function.

    Args:
        delta: The error up to which Huber's function is quadratic; positive. Beyond,
            it is linear.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.
    """

    def __init__(
        self,
        delta: float = 1.0,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.delta = checked_positive("delta", delta)

    def huber(self, error: Tensor) -> Tensor:
        """Return half the square of errors up to `delta`, a linear function beyond."""
        size = ops.abs(error)
        inner = ops.minimum(size, self.delta)
        return inner * (size - 0.5 * inner)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "delta": self.delta}


@keras.saving.register_keras_serializable(package="keras_distill")
class RelationalDistance(HuberRelationLoss):
    r"""Huber loss between the distances of examples (RKD-D).

    `mean_{i != j} huber(d(t_i, t_j) / mean(d_t) - d(s_i, s_j) / mean(d_s))`, `d` the
    Euclidean distance of two examples' features, and the means over all pairs of
    different examples in the batch. The paper's weight for classification is
    `Hint(..., weight=25)`, together with `RelationalAngle` of weight 50.

    The paper prints a sum over the pairs. The authors' code, for which the weights were
    chosen, divides the sum by `batch**2`, so its value is smaller by `1 / batch` of
    this one. The distance of equal examples has no gradient. Where all of the teacher's
    examples are equal, as in a batch of one, there is nothing to learn, and the loss is
    0. Two examples have one distance, which equals the mean in both models.

    Weights: the `sample_weight` of an example is its weight in the means of distances
    and among the examples that others are compared to. A masked example or one of
    weight 0 doesn't count.

    Args:
        delta: The error up to which Huber's function is quadratic; positive. Beyond,
            it is linear. Defaults to 1, as in the paper.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If `delta` isn't positive and finite, or, when called, if the
            features differ in the size of the batch.

    Example:
        >>> teacher = [[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]
        >>> student = [[0.0], [2.0], [2.0]]
        >>> round(float(RelationalDistance()(teacher, student)), 4)
        0.1875

    Reference:
        Park et al. 2019, "Relational Knowledge Distillation",
        https://arxiv.org/abs/1904.05068, section 3.2.1.
    """

    def compare(self, teacher_features: Tensor, student_features: Tensor) -> Tensor:
        """Return the mean over the other examples, for each example."""
        counts = self.counts(student_features)
        teacher_distances, student_distances = (
            pairs.relative_distances(features, counts)
            for features in (teacher_features, student_features)
        )
        # Equal examples of the teacher have no distances to learn.
        spread = ops.any(teacher_distances > 0.0)
        errors = ops.where(spread, teacher_distances - student_distances, 0.0)
        values = pairs.mean(self.huber(errors), pairs.partners(counts))
        return ops.cast(values, student_features.dtype)


@keras.saving.register_keras_serializable(package="keras_distill")
class RelationalAngle(HuberRelationLoss):
    r"""Huber loss between the angles that examples form (RKD-A).

    `mean_{i, j, k} huber(cos(t_i, t_j, t_k) - cos(s_i, s_j, s_k))` over all triplets of
    different examples, `cos(x_i, x_j, x_k)` the cosine of the angle at `x_j`: the inner
    product of `x_i - x_j` and `x_k - x_j`, each divided by its length. The paper's
    weight for classification is `Hint(..., weight=50)`, together with
    `RelationalDistance` of weight 25.

    The value of an example is the mean over the angles at it. The paper prints a sum
    over the triplets. The authors' code, for which the weights were chosen, divides the
    sum by `batch**3`, so its value is smaller by `3 / batch` of this one. Where two of
    the teacher's examples are equal, there is no angle to learn, and the value of the
    triplet is 0. Where two of the student's are equal, the cosine is 0, and it has no
    gradient. So a batch of one or two has the value 0.

    Memory and time grow with `batch**3`. The gradient of a step takes 0.2 GB in
    addition to the features at batch 128, and 1.8 GB at 256, in float64. Use another
    loss for larger batches.

    Weights: the `sample_weight` of an example is its weight among the examples that
    others are compared to. A masked example or one of weight 0 doesn't count.

    Args:
        delta: The error up to which Huber's function is quadratic; positive. Beyond,
            it is linear. Defaults to 1, as in the paper.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If `delta` isn't positive and finite, or, when called, if the
            features differ in the size of the batch.

    Example:
        >>> teacher = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
        >>> student = [[0.0], [1.0], [2.0]]
        >>> round(float(RelationalAngle()(teacher, student)), 4)
        0.5833

    Reference:
        Park et al. 2019, "Relational Knowledge Distillation",
        https://arxiv.org/abs/1904.05068, section 3.2.2.
    """

    def compare(self, teacher_features: Tensor, student_features: Tensor) -> Tensor:
        """Return the mean over pairs of other examples, for each example."""
        counts = self.counts(student_features)
        teacher_cosines, defined = pairs.cosines(teacher_features, counts)
        student_cosines, _ = pairs.cosines(student_features, counts)
        errors = ops.where(defined, teacher_cosines - student_cosines, 0.0)
        partners = pairs.partners(counts)
        both = partners[:, :, None] * partners[:, None, :]
        both = both * pairs.off_diagonal(partners)[None]
        values = pairs.mean(self.huber(errors), both)
        return ops.cast(values, student_features.dtype)


@keras.saving.register_keras_serializable(package="keras_distill")
class SimilarityPreserving(RelationLoss):
    r"""Squared distance between matrices of the examples' similarities.

    `||G_t - G_s||**2 / batch**2`: the squared Frobenius norm, `G` the matrix of inner
    products of the examples' features, each row divided by its length. The paper has
    the weight 3,000 on CIFAR-10. The row of an example whose features are all 0 is 0.

    Weights: the `sample_weight` of an example, over the mean of the positive weights,
    is its weight in the lengths of the rows and among the examples that others are
    compared to. A masked example or one of weight 0 doesn't count.

    Args:
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: When called, if the features differ in the size of the batch.

    Example:
        >>> teacher = [[1.0, 0.0], [0.0, 1.0]]
        >>> student = [[1.0], [1.0]]
        >>> round(float(SimilarityPreserving()(teacher, student)), 4)
        0.2929

    Reference:
        Tung, Mori 2019, "Similarity-Preserving Knowledge Distillation",
        https://arxiv.org/abs/1907.09682.
    """

    def compare(self, teacher_features: Tensor, student_features: Tensor) -> Tensor:
        """Return the mean over all examples, for each example."""
        counts = self.counts(student_features)
        teacher_rows, student_rows = (
            pairs.similarities(features, counts)
            for features in (teacher_features, student_features)
        )
        errors = ops.square(teacher_rows - student_rows)
        values = pairs.mean(errors, ops.broadcast_to(counts, ops.shape(errors)))
        return ops.cast(values, student_features.dtype)
