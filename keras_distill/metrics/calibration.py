"""Streaming metrics of calibration: whether events occur as often as predicted."""

import numbers
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import backend
from keras_distill.types import Tensor


@keras.saving.register_keras_serializable(package="keras_distill")
class ExpectedCalibrationError(keras.metrics.Metric):
    r"""Expected calibration error of binary predictions.

    The error is `sum_b n_b / n * |mean prediction_b - mean label_b|` over bins of equal
    width `((b - 1) / bins, b / bins]`. The first bin includes 0. The metric keeps sums
    for each bin in its variables `weight`, `predicted` and `observed`. So the result
    doesn't depend on how the data are batched, and you can draw a reliability diagram
    from these variables. The units of a multi-label head share the bins.

    Args:
        bins: Number of bins, an integer >= 1. Defaults to 15.
        from_logits: Whether predictions are logits or probabilities (default).
        name: Name of the metric.
        dtype: dtype of the sums and the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: If `bins` isn't a positive integer; when called, if labels or
            probabilities aren't in [0, 1] or shapes don't fit. For values outside
            [0, 1], a TensorFlow graph raises `tf.errors.InvalidArgumentError`. Steps
            that XLA or JAX compiles can't raise errors, so the result is NaN.

    Example:
        >>> metric = ExpectedCalibrationError(bins=2)
        >>> metric.update_state([0, 0, 1], [0.1, 0.3, 0.9])
        >>> metric.update_state([0], [0.7])
        >>> round(float(metric.result()), 4)  # 2/4 * |0.2 - 0| + 2/4 * |0.8 - 0.5|
        0.25

    Reference:
        Naeini, Cooper, Hauskrecht 2015, "Obtaining Well Calibrated Probabilities
        Using Bayesian Binning"; Guo et al. 2017, "On Calibration of Modern Neural
        Networks", https://arxiv.org/abs/1706.04599, which bins by the confidence in
        the predicted class, not by the probability of a positive label as here.
    """

    def __init__(
        self,
        bins: int = 15,
        *,
        from_logits: bool = False,
        name: str = "expected_calibration_error",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        is_number = isinstance(bins, numbers.Real) and not isinstance(bins, bool)
        if not is_number or bins % 1 != 0 or bins < 1:
            raise ValueError(f"`bins` must be an integer >= 1. Received: bins={bins!r}")
        self.bins = int(bins)
        self.from_logits = from_logits
        self.weight, self.predicted, self.observed = (
            self.add_variable((self.bins,), "zeros", dtype=self.dtype, name=of)
            for of in ("weight", "predicted", "observed")
        )

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            y_true: Labels in [0, 1] of shape `(batch,)` or `(batch, units)`.
            y_pred: Predictions of the same shape; `(batch,)` counts as `(batch, 1)`.
            sample_weight: Weights of shape `(batch,)` or `(batch, units)`.
        """
        labels, predictions, weight = _by_unit(
            y_true,
            y_pred,
            sample_weight,
            from_logits=self.from_logits,
            dtype=self.dtype,
        )
        # Multiplying a prediction by `bins` could round it into the wrong bin.
        edges = ops.convert_to_tensor(np.arange(1, self.bins) / self.bins, self.dtype)
        bin_of = ops.searchsorted(edges, predictions, side="left")
        for total, values in (
            (self.weight, weight),
            (self.predicted, weight * predictions),
            (self.observed, weight * labels),
        ):
            total.assign_add(ops.segment_sum(values, bin_of, num_segments=self.bins))

    def result(self) -> Tensor:
        """Return the error so far, 0 before the first row."""
        gap = ops.sum(ops.abs(self.predicted - self.observed))
        return ops.divide_no_nan(gap, ops.sum(self.weight))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config: dict[str, Any] = super().get_config()
        return {**config, "bins": self.bins, "from_logits": self.from_logits}


@keras.saving.register_keras_serializable(package="keras_distill")
class PredictedOverObserved(keras.metrics.Metric):
    r"""Calibration in the large: predicted positives divided by observed positives.

    The value is `sum(prediction) / sum(label)`, with weighted sums. It is 1 if the mean
    prediction equals the mean label, 1.1 if the mean prediction is 10% too high, and 0
    as long as there is no positive label.

    Args:
        from_logits: Whether predictions are logits or probabilities (default).
        name: Name of the metric.
        dtype: dtype of the sums and the result. Defaults to `keras.config.floatx()`.

    Raises:
        ValueError: When called, for the same reasons as `ExpectedCalibrationError`.

    Example:
        >>> metric = PredictedOverObserved()
        >>> round(float(metric([0, 0, 1, 1], [0.2, 0.4, 0.9, 0.7])), 4)
        1.1

    Reference:
        He et al. 2014, "Practical Lessons from Predicting Clicks on Ads at Facebook",
        section 2, where it is called calibration.
    """

    def __init__(
        self,
        *,
        from_logits: bool = False,
        name: str = "predicted_over_observed",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.from_logits = from_logits
        self.predicted, self.observed = (
            self.add_variable((), "zeros", dtype=self.dtype, name=of)
            for of in ("predicted", "observed")
        )

    def update_state(
        self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None
    ) -> None:
        """Add a batch, given as for `ExpectedCalibrationError.update_state`."""
        labels, predictions, weight = _by_unit(
            y_true,
            y_pred,
            sample_weight,
            from_logits=self.from_logits,
            dtype=self.dtype,
        )
        self.predicted.assign_add(ops.sum(weight * predictions))
        self.observed.assign_add(ops.sum(weight * labels))

    def result(self) -> Tensor:
        """Return the ratio so far, 0 before the first positive label."""
        return ops.divide_no_nan(
            ops.convert_to_tensor(self.predicted), ops.convert_to_tensor(self.observed)
        )

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        config: dict[str, Any] = super().get_config()
        return {**config, "from_logits": self.from_logits}


def _by_unit(
    y_true: Tensor,
    y_pred: Tensor,
    sample_weight: Tensor | None,
    *,
    from_logits: bool,
    dtype: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return labels, probabilities and weights as vectors, checked."""
    labels, predictions = _table(y_true, dtype), _table(y_pred, dtype)
    weight = ops.ones_like(predictions[:, :1])
    if sample_weight is not None:
        weight = _table(sample_weight, dtype)
    if not (
        _fits(labels.shape, predictions.shape)
        and (
            _fits(weight.shape, predictions.shape)
            or _fits(weight.shape, (predictions.shape[0], 1))
        )
    ):
        raise ValueError(
            "`y_true` and `y_pred` must have one shape, (batch,) or (batch, units), "
            "and `sample_weight` the same or (batch,). Received: shapes "
            f"y_true={tuple(labels.shape)}, y_pred={tuple(predictions.shape)}, "
            f"sample_weight={tuple(weight.shape)}"
        )
    if from_logits:
        predictions = ops.sigmoid(predictions)
    else:
        predictions = _within_0_and_1(
            predictions, "`y_pred` must be in [0, 1]; for logits, `from_logits=True`."
        )
    labels = _within_0_and_1(labels, "`y_true` must be in [0, 1].")
    weight = ops.broadcast_to(weight, ops.shape(predictions))
    return tuple(ops.reshape(x, (-1,)) for x in (labels, predictions, weight))


def _table(x: Tensor, dtype: str) -> Tensor:
    """Return `x` as a tensor with an axis of units."""
    x = ops.convert_to_tensor(x, dtype)
    return x[:, None] if len(x.shape) == 1 else x


def _fits(shape: Any, other: Any) -> bool:
    """Return whether two shapes have rank 2 and the same sizes, where known."""
    return len(shape) == len(other) == 2 and all(
        a == b or a is None or b is None for a, b in zip(shape, other, strict=True)
    )


def _within_0_and_1(x: Tensor, requirement: str) -> Tensor:
    """Return `x`, or raise an error if values are outside [0, 1].

    In a trace, such values become NaN, because XLA and JAX can't raise errors.
    """
    outside = ops.logical_or(x < 0.0, x > 1.0)
    message = f"{requirement} Received: from"
    if backend.is_traced(x):
        within = ops.logical_not(ops.any(outside))
        backend.assert_in_graph(within, message, [ops.min(x), "to", ops.max(x)])
        return ops.where(outside, float("nan"), x)
    if ops.any(outside):
        raise ValueError(f"{message} {float(ops.min(x))} to {float(ops.max(x))}")
    return x
