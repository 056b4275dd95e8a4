"""Base class of losses between features: checks, precision, masks, weights."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_distill import arguments, backend
from keras_distill.losses.checks import ChecksShapes
from keras_distill.losses.weighting import masked_weights
from keras_distill.per_output import of_rank
from keras_distill.types import Tensor

Shape = tuple[int | None, ...]


class FeatureLoss(ChecksShapes, keras.losses.Loss, ABC):
    """A Keras loss whose `y_true` is the output of a layer of the teacher.

    `y_pred` is the output of a layer of the student, or of the projector after it.
    Subclasses implement `compare`, which returns a value per example, and
    `check_shapes`. Reductions, sample weights and masks work as in `keras.losses.Loss`.
    The loss is computed in float32 or wider, whatever the dtype of the features. No
    gradient reaches the teacher's features.

    Weights and masks: `sample_weight` has one weight per example. A Keras mask of
    `y_pred` may have more axes, for positions. Masked positions become 0 in the
    student's features, and in the teacher's features if they have the same positions.
    An example doesn't count if its weight is 0 or if all of its positions are masked:
    it adds nothing to the loss, and other examples aren't compared to it.

    Args:
        reduction: As in `keras.losses.Loss`. Defaults to `"sum_over_batch_size"`.
        name: Name of the loss.
        dtype: dtype of the loss's result. Defaults to `keras.config.floatx()`.
    """

    # Whether the loss compares element by element. Then features of different widths
    # need a projector.
    needs_equal_widths: ClassVar[bool]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = arguments.explained(cls.__init__)  # type: ignore[method-assign]

    @arguments.explained
    def __init__(
        self,
        *,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        # The weights and the mask of one call, in a copy of the loss.
        self._weight: Tensor = None
        self._mask: Tensor = None

    @abstractmethod
    def compare(self, teacher_features: Tensor, student_features: Tensor) -> Tensor:
        """Return the loss per example, of shape `(batch,)`."""

    @abstractmethod
    def check_shapes(self, teacher_shape: Shape, student_shape: Shape) -> None:
        """Raise ValueError if features of these shapes can't be compared.

        Args:
            teacher_shape: Shape with the batch axis; None where a size is unknown.
            student_shape: The same for the student's features after the projector.
        """

    def __call__(
        self, y_true: Any, y_pred: Tensor, sample_weight: Tensor = None
    ) -> Tensor:
        """Return the reduced loss; `y_true` are the teacher's features."""
        return self.with_mask(y_true, y_pred, sample_weight, backend.keras_mask(y_pred))

    def with_mask(
        self, y_true: Any, y_pred: Tensor, sample_weight: Tensor, mask: Tensor
    ) -> Tensor:
        """Return the reduced loss; `mask` is the Keras mask of `y_pred`, or None."""
        # Keras has converted only the leaves of nested lists.
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        self.check_shapes(tuple(y_true.shape), tuple(y_pred.shape))
        loss = object.__new__(type(self))
        loss.__dict__.update(self.__dict__)
        if mask is not None:
            mask = ops.cast(mask, "bool")
            loss._mask = of_rank(mask, y_pred)
            # Without the copy, Keras would apply the mask of the features once more.
            y_true, y_pred = _kept(mask, y_true), _kept(mask, ops.copy(y_pred))
            mask = ops.any(mask, axis=tuple(range(1, len(mask.shape))))
            loss._weight = mask
        if sample_weight is not None:
            sample_weight = _by_example(sample_weight)
            counted = sample_weight > 0.0
            # Examples of weight 0 may be NaN, and 0 * NaN is NaN.
            y_true, y_pred = _kept(counted, y_true), _kept(counted, y_pred)
            loss._weight = _product(sample_weight, mask)
        weight = masked_weights(mask, sample_weight, self.reduction, self.dtype)
        return super(FeatureLoss, loss).__call__(y_true, y_pred, weight)

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss per example; `y_true` are the teacher's features."""
        teacher_features = ops.stop_gradient(_at_least_float32(y_true))
        return self.compare(teacher_features, _at_least_float32(y_pred))

    def counts(self, features: Tensor) -> Tensor:
        """Return the weight of each example when others are compared to it.

        This is its sample weight over the mean of the positive sample weights. So it is
        1 for all examples if their weights are equal, and 0 for a weight of 0.
        """
        wide = backend.widest_float()
        weight = ops.ones((ops.shape(features)[0],), wide)
        if self._weight is not None:
            weight = weight * ops.cast(self._weight, wide)
        counted = ops.cast(weight > 0.0, wide)
        return divided(weight * ops.sum(counted), ops.sum(weight))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config: dict[str, Any] = super().get_config()
        return {**config, "dtype": self.dtype}


def divided(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, or 0 with a gradient of 0 where the denominator is 0."""
    positive = denominator > 0.0
    return ops.where(positive, numerator / ops.where(positive, denominator, 1.0), 0.0)


def root(squares: Tensor, positive: Tensor) -> Tensor:
    """Return square roots, or 0 with a gradient of 0 where `positive` is False."""
    return ops.where(positive, ops.sqrt(ops.where(positive, squares, 1.0)), 0.0)


def same_size(size: int | None, other: int | None) -> bool:
    """Return whether two sizes may be the same."""
    return size is None or other is None or size == other


def checked_positive(name: str, value: float, *, least: float = 0.0) -> float:
    """Return an argument, or raise ValueError unless it is finite and large enough."""
    if not (0.0 < value < np.inf and value >= least):
        requirement = f"at least {least:g}" if least else "positive"
        raise ValueError(
            f"`{name}` must be {requirement} and finite. Received: {name}={value}"
        )
    return float(value)


def _by_example(sample_weight: Tensor) -> Tensor:
    sample_weight = _at_least_float32(ops.convert_to_tensor(sample_weight))
    weight = of_rank(sample_weight, ops.zeros((1,)))
    if len(weight.shape) != 1:
        raise ValueError(
            "A loss between features has one value per example, so `sample_weight` "
            "must have the shape (batch,) or (batch, 1). Mask positions with a Keras "
            f"mask instead. Received: sample_weight of shape "
            f"{tuple(sample_weight.shape)}"
        )
    return weight


def _kept(kept: Tensor, features: Tensor) -> Tensor:
    """Return features with 0 where they aren't kept."""
    positions = tuple(kept.shape[1:])
    # The teacher's features may have other positions than the student's.
    if not all(map(same_size, positions, features.shape[1:])):
        return features
    return ops.where(of_rank(kept, features), features, ops.zeros_like(features))


def _product(weight: Tensor, mask: Tensor) -> Tensor:
    return weight if mask is None else weight * ops.cast(mask, weight.dtype)


def _at_least_float32(x: Tensor) -> Tensor:
    return ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
