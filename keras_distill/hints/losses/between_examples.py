"""Losses between relations of examples: distances, angles, similarities.

Features are flattened to one vector per example. Relations between vectors have the
same shape for all widths, so the features of both models may have any shapes.
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
    device compares the examples in its own part of the batch.
    """

    needs_equal_widths: ClassVar[bool] = False

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise ValueError unless both have a batch axis of one size and more axes."""
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
    """A loss that compares relations with Huber's function.

    Args:
        delta: Huber's function is quadratic for errors up to `delta` and linear above.
            Must be positive.
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
        """Return half the squared error up to `delta`, and a linear function above."""
        size = ops.abs(error)
        inner = ops.minimum(size, self.delta)
        return inner * (size - 0.5 * inner)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "delta": self.delta}


@keras.saving.register_keras_serializable(package="keras_distill")
class RelationalDistance(HuberRelationLoss):
    r"""Huber loss between the distances of examples (RKD-D).

    `mean_{i != j} huber(d(t_i, t_j) / mean(d_t) - d(s_i, s_j) / mean(d_s))`, where `d`
    is the Euclidean distance between the features of two examples. The means are over
    all pairs of different examples in the batch. For classification, the paper uses
    `Hint(..., weight=25)`, together with `RelationalAngle` of weight 50.

    The paper prints a sum over the pairs. The authors chose the weights for their code,
    which divides the sum by `batch**2`. So the value of their code is smaller than this
    one by the fraction `1 / batch`. The distance of equal examples has no gradient. If
    all of the teacher's examples are equal, as in a batch of one, the loss is 0. In a
    batch of two, the only distance equals the mean distance in both models, so there is
    nothing to learn.

    Weights: the `sample_weight` of an example is its weight in the mean distances, and
    in the means over the examples that others are compared to. A masked example or one
    of weight 0 doesn't count.

    Args:
        delta: Huber's function is quadratic for errors up to `delta` and linear above.
            Must be positive. Defaults to 1, as in the paper.
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
        """Return the mean loss of each example over the other examples."""
        counts = self.counts(student_features)
        teacher_distances, student_distances = (
            pairs.relative_distances(features, counts)
            for features in (teacher_features, student_features)
        )
        # If all of the teacher's examples are equal, there is nothing to learn.
        spread = ops.any(teacher_distances > 0.0)
        errors = ops.where(spread, teacher_distances - student_distances, 0.0)
        values = pairs.mean(self.huber(errors), pairs.partners(counts))
        return ops.cast(values, student_features.dtype)


@keras.saving.register_keras_serializable(package="keras_distill")
class RelationalAngle(HuberRelationLoss):
    r"""Huber loss between the angles that examples form (RKD-A).

    `mean_{i, j, k} huber(cos(t_i, t_j, t_k) - cos(s_i, s_j, s_k))` over all triplets of
    different examples. `cos(x_i, x_j, x_k)` is the cosine of the angle at `x_j`: the
    inner product of `x_i - x_j` and `x_k - x_j`, each divided by its length. For
    classification, the paper uses `Hint(..., weight=50)`, together with
    `RelationalDistance` of weight 25.

    The value of an example is the mean over the angles at this example. The paper
    prints a sum over the triplets. The authors chose the weights for their code, which
    divides the sum by `batch**3`. So the value of their code is smaller than this one
    by about the fraction `3 / batch`. If `t_i` or `t_k` equals `t_j`, the teacher has
    no angle, and the value of the triplet is 0. If `s_i` or `s_k` equals `s_j`, the
    student's cosine is 0 and has no gradient. A batch of one or two examples has no
    triplets, so its value is 0.

    Memory and time grow with `batch**3`. In float64, the gradient of a step takes 0.2
    GB at batch 128 and 1.8 GB at 256, in addition to the features. Use another loss for
    larger batches.

    Weights: the `sample_weight` of an example is its weight in the means over the
    examples that others are compared to. A masked example or one of weight 0 doesn't
    count.

    Args:
        delta: Huber's function is quadratic for errors up to `delta` and linear above.
            Must be positive. Defaults to 1, as in the paper.
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
        """Return the mean loss of each example over the pairs of other examples."""
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
    r"""Squared distance between the similarity matrices of both models.

    `||G_t - G_s||**2 / batch**2` with the Frobenius norm. `G` is the matrix of inner
    products between the features of the examples, with each row divided by its length.
    The paper uses weight 3,000 on CIFAR-10. If the features of an example are all 0,
    its row is 0.

    Weights: the `sample_weight` of an example, divided by the mean of the positive
    weights, is its weight in the lengths of the rows and in the means over examples. A
    masked example or one of weight 0 doesn't count.

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
        """Return the mean squared difference of each example's row."""
        counts = self.counts(student_features)
        teacher_rows, student_rows = (
            pairs.similarities(features, counts)
            for features in (teacher_features, student_features)
        )
        errors = ops.square(teacher_rows - student_rows)
        values = pairs.mean(errors, ops.broadcast_to(counts, ops.shape(errors)))
        return ops.cast(values, student_features.dtype)
