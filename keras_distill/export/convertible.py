"""Replacements of operations that the converters can't convert, or convert wrongly."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from keras_distill.export.patching import replaced


@contextmanager
def convertible() -> Iterator[None]:
    """Within this block, trace other operations if ONNX or LiteRT need them.

    They replace operations that these lack or convert wrongly, and compute the same
    values. Keras and TensorFlow are restored afterwards.
    """
    with ExitStack() as stack:
        for module, functions in _functions().items():
            made = {name: partial(partial, it) for name, it in functions.items()}
            stack.enter_context(replaced(module, made))
        yield


def _functions() -> dict[Any, dict[str, Callable[..., Any]]]:
    """Return the replacements by module. Their first argument is the original."""
    from keras.src.backend.tensorflow import math
    from keras.src.backend.tensorflow import numpy as backend
    from tensorflow.python.ops import gen_array_ops, gen_math_ops, gen_nn_ops

    return {
        math: {"rsqrt": _rsqrt},
        backend: {
            "isinf": _isinf,
            "isneginf": _isneginf,
            "isposinf": _isposinf,
            "nan_to_num": _nan_to_num,
            "signbit": _signbit,
        },
        # Keras and `tf` both call these, also in the caller's own layers.
        gen_array_ops: {"one_hot": _one_hot},
        gen_math_ops: {"floor_div": _floor_div},
        gen_nn_ops: {"softplus": _softplus},
    }


# Keras' `argmax` and `argmin` treat `-0.0` as less than `0.0`. They find it with
# `signbit`, from the bits of the number.
def _signbit(original: Any, x: Any) -> Any:
    """Compute the sign in the only form that `onnx_operators` converts.

    With a division, LiteRT's int8 would fail at values that are rounded to zero.
    """
    x = tf.convert_to_tensor(x)
    if x.dtype == tf.bool:
        return tf.fill(tf.shape(x), False)
    if x.dtype.is_integer:
        return x < 0
    return tf.less(tf.bitcast(keras.ops.cast(x, "float32"), tf.int32), 0)


# In LiteRT, neither `tf.math.is_inf` nor equality with infinity finds an infinity.
def _isinf(original: Any, x: Any) -> Any:
    return _isposinf(original, tf.abs(_number(x)))


def _isposinf(original: Any, x: Any) -> Any:
    x = _number(x)
    return tf.greater(x, x.dtype.max)


def _isneginf(original: Any, x: Any) -> Any:
    x = _number(x)
    return tf.less(x, x.dtype.min)


def _number(x: Any) -> Any:
    x = tf.convert_to_tensor(x)
    return x if x.dtype.is_floating else tf.cast(x, "float32")


def _nan_to_num(
    original: Any,
    x: Any,
    nan: float = 0.0,
    posinf: float | None = None,
    neginf: float | None = None,
) -> Any:
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating:
        return x
    largest = x.dtype.max if posinf is None else posinf
    smallest = x.dtype.min if neginf is None else neginf
    cleaned = tf.where(tf.math.is_nan(x), tf.constant(nan, x.dtype), x)
    cleaned = tf.where(_isposinf(None, x), tf.constant(largest, x.dtype), cleaned)
    return tf.where(_isneginf(None, x), tf.constant(smallest, x.dtype), cleaned)


def _rsqrt(original: Any, x: Any) -> Any:
    """Return infinity for zeros, for which LiteRT returns NaN."""
    x = tf.convert_to_tensor(x)
    if _has_epsilon(x):
        # Converters recognise normalisation only by this operator.
        return original(x)
    return tf.where(tf.equal(x, 0), 1 / x, original(x))


def _has_epsilon(x: Any) -> bool:
    """Return whether a tensor is a sum with a positive constant."""
    if not tf.is_symbolic_tensor(x) or x.op.type not in {"Add", "AddV2"}:
        return False
    values = [tf.get_static_value(tensor) for tensor in x.op.inputs]
    return any(value is not None and (value > 0).all() for value in values)


def _softplus(original: Any, features: Any, name: str | None = None) -> Any:
    """Avoid exponentials of large values: LiteRT computes log(1 + exp(x))."""
    x = tf.convert_to_tensor(features)
    return tf.maximum(x, 0) + tf.math.log1p(tf.exp(-tf.abs(x)))


def _floor_div(original: Any, x: Any, y: Any, name: str | None = None) -> Any:
    """Divide floats, also by zero: LiteRT's own operator fails at zeros."""
    x = tf.convert_to_tensor(x)
    return tf.floor(x / y) if x.dtype.is_floating else original(x, y, name)


def _one_hot(
    original: Any, indices: Any, depth: Any, *values: Any, **options: Any
) -> Any:
    """Replace indices outside of 0 ... depth by `depth`, whose row is all zeros.

    ONNX counts negative indices from the end, and LiteRT cuts them to 32 bits.
    """
    indices = tf.convert_to_tensor(indices)
    if indices.dtype not in (tf.int32, tf.int64):
        indices = tf.cast(indices, tf.int32)
    last = tf.cast(depth, indices.dtype)
    inside = tf.equal(indices, tf.clip_by_value(indices, 0, last))
    return original(tf.where(inside, indices, last), depth, *values, **options)
