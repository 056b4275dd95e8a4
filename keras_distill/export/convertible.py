"""Keras operations as the converters need them traced."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

_LOCK = threading.RLock()


@contextmanager
def convertible() -> Iterator[None]:
    """Let Keras trace operations that neither ONNX nor LiteRT has as others.

    The values are the same. Keras is as it was afterwards.

    Keras' `argmax` and `argmin` take `-0.0` for less than `0.0`, and look for it by
    `signbit`, in the bits of the number.
    """
    from keras.src.backend.tensorflow import numpy as backend

    with _LOCK:
        before = {name: getattr(backend, name) for name in _REPLACED}
        try:
            for name, function in _REPLACED.items():
                setattr(backend, name, function)
            yield
        finally:
            for name, function in before.items():
                setattr(backend, name, function)


def _signbit(x: Any) -> Any:
    """Compute the sign without a look at bits: of zeros, from their reciprocals."""
    x = tf.convert_to_tensor(x)
    if x.dtype == tf.bool:
        return tf.fill(tf.shape(x), False)
    if x.dtype.is_integer:
        return x < 0
    x = keras.ops.cast(x, "float32")
    return tf.less(tf.where(tf.equal(x, 0.0), 1.0 / x, x), 0.0)


# LiteRT finds no infinity by `tf.math.is_inf`, nor by equality with one.
def _isinf(x: Any) -> Any:
    return _isposinf(tf.abs(_number(x)))


def _isposinf(x: Any) -> Any:
    x = _number(x)
    return tf.greater(x, x.dtype.max)


def _isneginf(x: Any) -> Any:
    x = _number(x)
    return tf.less(x, x.dtype.min)


def _number(x: Any) -> Any:
    x = tf.convert_to_tensor(x)
    return x if x.dtype.is_floating else tf.cast(x, "float32")


def _nan_to_num(
    x: Any, nan: float = 0.0, posinf: float | None = None, neginf: float | None = None
) -> Any:
    x = tf.convert_to_tensor(x)
    if not x.dtype.is_floating:
        return x
    largest = x.dtype.max if posinf is None else posinf
    smallest = x.dtype.min if neginf is None else neginf
    cleaned = tf.where(tf.math.is_nan(x), tf.constant(nan, x.dtype), x)
    cleaned = tf.where(_isposinf(x), tf.constant(largest, x.dtype), cleaned)
    return tf.where(_isneginf(x), tf.constant(smallest, x.dtype), cleaned)


_REPLACED = {
    "isinf": _isinf,
    "isneginf": _isneginf,
    "isposinf": _isposinf,
    "nan_to_num": _nan_to_num,
    "signbit": _signbit,
}
