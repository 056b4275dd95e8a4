"""Layers that compute on floats as an integer runtime would."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
import numpy.typing as npt
from keras import ops

from keras_distill.types import Tensor

Arrays = Sequence[npt.NDArray[Any]]

# By the id of a layer: the weights that it computes with while a model is exported.
_CONSTANTS: ContextVar[Mapping[int, Arrays] | None] = ContextVar("constants")


@keras.saving.register_keras_serializable(package="keras_distill")
class FakeQuantizer(keras.layers.Layer):
    """Rounds activations to the 256 values that int8 has between `low` and `high`.

    Values beyond are clipped. Gradients pass where values aren't clipped.

    Args:
        low: The smallest value, at most 0; None before calibration, when values aren't
            rounded.
        high: The largest value, at least 0.
    """

    def __init__(
        self, low: float | None = None, high: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.low = low
        self.high = high
        self.observes = False

    def observe(self, x: Tensor) -> None:
        """Widen the range to the values of a tensor."""
        values = ops.convert_to_numpy(x)
        self.low = min(self.low or 0.0, float(values.min()))
        self.high = max(self.high or 0.0, float(values.max()))

    def call(self, x: Tensor) -> Tensor:
        """Return the rounded values."""
        if self.observes:
            self.observe(x)
        if self.observes or self.low is None or self.high is None:
            return x
        return keras.quantizers.fake_quant_with_min_max_vars(x, self.low, self.high)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        """Return the shape and dtype of the input."""
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "low": self.low, "high": self.high}


@keras.saving.register_keras_serializable(package="keras_distill")
class QuantizedWeights(keras.layers.Wrapper):
    """A layer whose matrices and kernels are rounded to integers times a scale.

    Kernels over images have a scale for each channel. Matrices and other kernels have
    one scale, because LiteRT's converter fails with more. The layer keeps its float
    weights, which are trained.

    Args:
        layer: The layer.
        bits: 8 or 4.
    """

    def __init__(self, layer: keras.layers.Layer, bits: int = 8, **kwargs: Any) -> None:
        super().__init__(layer, autocast=False, **kwargs)
        self.bits = bits

    def call(self, x: Tensor) -> Tensor:
        """Return the layer's output with rounded weights."""
        constants = (_CONSTANTS.get(None) or {}).get(id(self))
        values = self.rounded() if constants is None else constants
        # All of the layer's variables are in the scope, because it hides JAX's scope.
        mapping = list(zip(self.layer.variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            return self.layer(x)

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        """Return the shape and dtype of the layer's output."""
        return self.layer.compute_output_spec(x)

    def rounded(self) -> list[Tensor]:
        """Return the values that the layer computes with."""
        return [self._rounded(variable) for variable in self.layer.variables]

    def _rounded(self, variable: keras.Variable) -> Tensor:
        value = ops.convert_to_tensor(variable)
        rank = len(variable.shape)
        if rank < 2:
            return value
        if rank < 4:
            return _fake_quantized(value, self.bits, axis=None)
        if not isinstance(self.layer, keras.layers.DepthwiseConv2D):
            return _fake_quantized(value, self.bits, axis=-1)
        # Its channels are the last two axes.
        height, width, *channels = variable.shape
        value = ops.reshape(value, (height, width, math.prod(channels)))
        rounded = _fake_quantized(value, self.bits, axis=-1)
        return ops.reshape(rounded, variable.shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "bits": self.bits}


def _fake_quantized(value: Tensor, bits: int, axis: int | None) -> Tensor:
    axes = None if axis is None else tuple(range(len(value.shape) - 1))
    # Channels of zeros have a scale too.
    most = ops.maximum(ops.max(ops.abs(value), axis=axes), keras.config.epsilon())
    most = ops.stop_gradient(most)
    return keras.quantizers.fake_quant_with_min_max_vars(
        value, -most, most, num_bits=bits, narrow_range=True, axis=axis
    )


class _Constant(keras.layers.Layer):
    """A weight for each channel of the last axis, rounded to int8."""

    initializer = "zeros"

    def build(self, shape: Sequence[int | None]) -> None:
        """Make the weight."""
        self.value = self.add_weight(
            shape=(shape[-1],), initializer=self.initializer, name="value"
        )

    def rounded(self) -> Tensor:
        """Return the values that the layer computes with."""
        value = ops.convert_to_tensor(self.value)
        low = ops.minimum(ops.min(value), 0.0)
        high = ops.maximum(ops.max(value), low + keras.config.epsilon())
        return keras.quantizers.fake_quant_with_min_max_vars(
            value, ops.stop_gradient(low), ops.stop_gradient(high)
        )

    def compute_output_spec(self, x: Tensor) -> keras.KerasTensor:
        """Return the shape and dtype of the input."""
        return keras.KerasTensor(x.shape, x.dtype)


@keras.saving.register_keras_serializable(package="keras_distill")
class Scale(_Constant):
    """Multiplies each channel by a weight: the first half of a BatchNormalization."""

    initializer = "ones"

    def call(self, x: Tensor) -> Tensor:
        """Return the products."""
        return x * ops.cast(self.rounded(), x.dtype)


@keras.saving.register_keras_serializable(package="keras_distill")
class Offset(_Constant):
    """Adds a weight to each channel: the second half of a BatchNormalization."""

    def call(self, x: Tensor) -> Tensor:
        """Return the sums."""
        return x + ops.cast(self.rounded(), x.dtype)


def quantizers(model: keras.layers.Layer) -> list[FakeQuantizer]:
    """Return the layers of a model that round its activations."""
    layers = model._flatten_layers()
    return [layer for layer in layers if isinstance(layer, FakeQuantizer)]


@contextmanager
def constant_weights(model: keras.layers.Layer) -> Iterator[None]:
    """Let a model compute with rounded weights that are constants, for its export.

    Runtimes would otherwise round the weights in each call, or lack the operator.
    """
    found = {
        id(layer): [ops.convert_to_numpy(value) for value in layer.rounded()]
        for layer in model._flatten_layers()
        if isinstance(layer, QuantizedWeights)
    }
    token = _CONSTANTS.set(found)
    try:
        yield
    finally:
        _CONSTANTS.reset(token)


@contextmanager
def own_weights() -> Iterator[None]:
    """Let models round their weights themselves, inside of `constant_weights`."""
    token = _CONSTANTS.set(None)
    try:
        yield
    finally:
        _CONSTANTS.reset(token)
