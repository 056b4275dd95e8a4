"""Losses that compare the features of both models for the same example."""

from typing import Any, ClassVar

import keras
from keras import ops

from keras_distill.hints.losses.base import (
    FeatureLoss,
    Shape,
    checked_positive,
    divided,
    root,
    same_size,
)
from keras_distill.types import Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class FeatureMSE(FeatureLoss):
    r"""Mean squared error between features.

    `mean((t - s)**2)` over all elements of an example. `t` are the teacher's features,
    and `s` are the student's features, after a projector to the same shape. The paper
    uses half the sum instead. With the mean, the weight of a hint doesn't depend on the
    size of the layer. Masked positions are left out of the mean.

    Args:
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: When called, if the features' shapes differ.

    Example:
        >>> float(FeatureMSE()([[1.0, 3.0]], [[2.0, 1.0]]))
        2.5

    Reference:
        Romero et al. 2015, "FitNets: Hints for Thin Deep Nets",
        https://arxiv.org/abs/1412.6550, equation 3.
    """

    needs_equal_widths: ClassVar[bool] = True

    def compare(self, teacher_features: Tensor, student_features: Tensor) -> Tensor:
        """Return the mean squared difference per example."""
        squares = ops.square(teacher_features - student_features)
        axes = _all_but_batch(squares)
        if self._mask is None:
            return ops.mean(squares, axis=axes)
        kept = ops.broadcast_to(self._mask, ops.shape(squares))
        count = ops.sum(ops.cast(kept, squares.dtype), axis=axes)
        return divided(ops.sum(squares, axis=axes), count)

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise ValueError unless both shapes are the same."""
        if len(teacher_shape) != len(student_shape) or not all(
            map(same_size, teacher_shape, student_shape)
        ):
            raise ValueError(
                f"`{self.name}` compares element by element, so both features must "
                "have the same shape. Choose layers of the same spatial size and give "
                "the `Hint` a projector to the teacher's width, or compare relations "
                "with `SimilarityPreserving`, which fits any two shapes. Received: "
                f"teacher features {teacher_shape}, student features {student_shape}"
            )


@keras.saving.register_keras_serializable(package="keras_distill")
class AttentionTransfer(FeatureLoss):
    r"""Squared distance between the attention maps of both models.

    `||a(t) / ||a(t)|| - a(s) / ||a(s)||||**2`, where `a(x) = sum_c |x_c|**power` sums
    over the channels and is flattened over the positions. The loss is in [0, 2],
    whatever the scale of the features. A map that is 0 everywhere isn't divided by its
    length. Such a map of the student has no gradient.

    The loss is a sum over the positions. The authors' code uses the mean and the weight
    1,000. A `Hint` of weight `1000 / positions` equals that: 15.6 for a map of 8x8. The
    paper's equation 2 prints the distance without the square.

    Args:
        power: The exponent of the activations; at least 1. With a larger exponent, the
            most active positions dominate. Defaults to 2, as in the paper.
        axis: The channel axis. Its size may differ between the models. Defaults to -1.
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If `power` is less than 1 or not finite. When called, if the
            features have no positions, or if their positions differ.

    Example:
        >>> teacher = [[[1.0, 2.0], [2.0, 4.0]]]  # 2 positions of 2 channels
        >>> student = [[[2.0], [1.0]]]
        >>> round(float(AttentionTransfer()(teacher, student)), 4)
        1.0588

    Reference:
        Zagoruyko, Komodakis 2017, "Paying More Attention to Attention",
        https://arxiv.org/abs/1612.03928, section 3.1.
    """

    needs_equal_widths: ClassVar[bool] = False

    def __init__(
        self,
        power: float = 2.0,
        *,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(reduction=reduction, name=name, dtype=dtype)
        self.power = checked_positive("power", power, least=1.0)
        self.axis = axis

    def compare(self, teacher_features: Tensor, student_features: Tensor) -> Tensor:
        """Return the squared distance between both maps per example."""
        difference = self.attention(teacher_features) - self.attention(student_features)
        return ops.sum(ops.square(difference), axis=_all_but_batch(difference))

    def attention(self, features: Tensor) -> Tensor:
        """Return the attention maps, each divided by its length."""
        sizes = ops.abs(features)
        # A common factor cancels out. Without it, powers could overflow or underflow.
        largest = ops.max(
            ops.stop_gradient(sizes), _all_but_batch(sizes), keepdims=True, initial=0.0
        )
        maps = ops.sum(divided(sizes, largest) ** self.power, axis=self.axis)
        squares = ops.sum(ops.square(maps), axis=_all_but_batch(maps), keepdims=True)
        return divided(maps, root(squares, squares > 0.0))

    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise ValueError if the shapes differ in more than the channels."""
        ranks = {len(teacher_shape), len(student_shape)}
        rank = len(student_shape)
        received = (
            f"Received: teacher features {teacher_shape}, student features "
            f"{student_shape}, axis={self.axis}"
        )
        if len(ranks) > 1 or rank < 3:
            raise ValueError(
                f"`{self.name}` compares maps over positions, so both features must "
                "have the shape (batch, positions..., channels). Choose layers before "
                "pooling and flattening, or compare relations with "
                f"`SimilarityPreserving`, which fits any two shapes. {received}"
            )
        if not -rank <= self.axis < rank or self.axis % rank == 0:
            raise ValueError(
                "`axis` must be an axis of the features other than the batch's. "
                f"{received}"
            )
        for axis in set(range(rank)) - {self.axis % rank}:
            if not same_size(teacher_shape[axis], student_shape[axis]):
                raise ValueError(
                    f"`{self.name}` compares maps over positions, so both features "
                    "must have the same shape but for the channels. Choose layers of "
                    "the same spatial size, or compare relations with "
                    f"`SimilarityPreserving`, which fits any two shapes. {received}"
                )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "power": self.power, "axis": self.axis}


def _all_but_batch(features: Tensor) -> tuple[int, ...]:
    return tuple(range(1, len(features.shape)))
