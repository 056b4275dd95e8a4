"""All questions about the backend that Keras runs on, asked in one place."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_distill.types import Tensor


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


def inside_xla(x: Any) -> bool:
    """Return whether XLA compiles the function that computes a tensor."""
    if not is_tensorflow():
        # XLA compiles all that JAX traces.
        return is_jax() and is_traced(x)
    import tensorflow as tf

    return tf.__internal__.get_enclosing_xla_context() is not None


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
