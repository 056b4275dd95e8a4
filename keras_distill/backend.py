"""All questions about the backend that Keras runs on, asked in one place."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill.types import Tensor

# Operations of TensorFlow that keep the values of an activation, and which of their
# inputs holds them.
_TRANSPARENT_OPS = {
    "Cast": 0,
    "CheckNumerics": 0,
    "Identity": 0,
    "Maximum": 0,
    "Minimum": 0,
    "Reshape": 0,
    "SelectV2": 1,
    "StopGradient": 0,
    "Transpose": 0,
}


def is_tensorflow() -> bool:
    """Return whether Keras runs on TensorFlow."""
    return bool(keras.backend.backend() == "tensorflow")


def is_jax() -> bool:
    """Return whether Keras runs on JAX."""
    return bool(keras.backend.backend() == "jax")


def replicas() -> int:
    """Return the number of devices among which Keras divides the loss of a batch."""
    if not is_tensorflow():
        return 1
    import tensorflow as tf

    count: int = tf.distribute.get_strategy().num_replicas_in_sync
    return count


def is_traced(x: Any) -> bool:
    """Return whether a tensor has no values yet, as while a step is compiled."""
    if is_tensorflow():
        import tensorflow as tf

        return bool(tf.is_symbolic_tensor(x))
    if is_jax():
        import jax

        return isinstance(x, jax.core.Tracer | keras.KerasTensor)
    return isinstance(x, keras.KerasTensor)


def keras_mask(x: Tensor) -> Tensor | None:
    """Return the mask that a layer of Keras has left on its output, None without."""
    # Keras' own reader, for JAX's tensors bear no attributes.
    from keras.src.backend.common.masking import get_keras_mask

    return get_keras_mask(x)


def assert_in_graph(holds: Tensor, message: str, values: Sequence[Tensor]) -> None:
    """Raise `message` when a TensorFlow graph runs in which a condition is False.

    XLA and JAX leave assertions out: what they compile can't raise.

    Args:
        holds: The condition, a boolean scalar.
        message: The text of the `tf.errors.InvalidArgumentError`.
        values: Tensors that are printed after it.
    """
    if is_tensorflow():
        import tensorflow as tf

        tf.debugging.Assert(holds, [message, *values])


def widest_float() -> str:
    """Return the dtype for maths that needs more digits than float32.

    JAX has float64 only where `jax_enable_x64` is set.
    """
    if is_jax():
        import jax.numpy as jnp

        return str(jnp.result_type(float))
    return "float64"


def exact_matmul(x: Tensor, y: Tensor) -> Tensor:
    """Return the product of two matrices in the precision of their dtype.

    JAX would multiply float32 in fewer digits on accelerators.
    """
    if is_jax():
        import jax.numpy as jnp

        return jnp.matmul(x, y, precision="highest")
    return ops.matmul(x, y)


def comes_from(output: Tensor, operation: str) -> bool:
    """Return whether an operation computes a tensor of a TensorFlow graph.

    Operations that keep the values, such as a cast or a reshape, may follow it.
    Returns False for other tensors.

    Args:
        output: The tensor.
        operation: TensorFlow's name of the operation, e.g. `"Softmax"`.
    """
    if not (is_tensorflow() and is_traced(output)):
        return False
    found = output.op
    while found.type in _TRANSPARENT_OPS:
        found = found.inputs[_TRANSPARENT_OPS[found.type]].op
    return bool(found.type == operation)


def has_rank(x: Tensor) -> bool:
    """Return whether the rank of a tensor is known, as it is but in TensorFlow."""
    return not is_tensorflow() or x.shape.rank is not None


def with_shape(x: Tensor, shape: Sequence[int | None]) -> Tensor:
    """Return a tensor with a static shape, which TensorFlow checks in each step.

    The static shape is always known on other backends: the tensor is returned as it is.
    """
    if not is_tensorflow():
        return x
    import tensorflow as tf

    return tf.ensure_shape(x, shape)


def reshaped_as(x: Tensor, other: Tensor, message: str) -> Tensor:
    """Return a TensorFlow tensor of unknown rank in the shape of another.

    Args:
        x: The tensor.
        other: The tensor that has the shape.
        message: The text of the error that a step raises if the shapes differ by more
            than a last dimension of 1. Both shapes are printed after it.
    """
    import tensorflow as tf

    shapes = tf.shape(x), tf.shape(other)
    # Shapes of different ranks can't be compared as numbers, so they become text.
    s, t = (
        tf.strings.reduce_join(tf.strings.as_string(shape), separator=",")
        for shape in shapes
    )
    fits = (s == t) | (s + ",1" == t) | (s == t + ",1")
    with tf.control_dependencies([tf.debugging.Assert(fits, [message, *shapes])]):
        return tf.ensure_shape(tf.reshape(x, shapes[1]), other.shape)
