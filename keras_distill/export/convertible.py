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
        signbit = backend.signbit
        backend.signbit = _signbit
        try:
            yield
        finally:
            backend.signbit = signbit


def _signbit(x: Any) -> Any:
    """Compute the sign without a look at bits: of zeros, from their reciprocals."""
    x = tf.convert_to_tensor(x)
    if x.dtype == tf.bool:
        return tf.fill(tf.shape(x), False)
    if x.dtype.is_integer:
        return x < 0
    x = keras.ops.cast(x, "float32")
    return tf.less(tf.where(tf.equal(x, 0.0), 1.0 / x, x), 0.0)
