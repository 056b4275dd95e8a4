"""What tests of losses need of a backend: gradients, compilation, masks, precision."""

from contextlib import contextmanager

import keras
import numpy as np
import pytest
from keras import ops

BACKEND = keras.backend.backend()
IS_TENSORFLOW = BACKEND == "tensorflow"

only_tensorflow = pytest.mark.skipif(
    not IS_TENSORFLOW, reason="about graphs of TensorFlow"
)


def value_and_gradient(function, *inputs):
    """A function's value, and the gradients of its sum in all its inputs, as NumPy's.

    The gradient in one input isn't in a list.
    """
    value, gradients = differentiated(function)(*inputs)
    gradients = [None if g is None else numpy(g) for g in gradients]
    return numpy(value), gradients[0] if len(inputs) == 1 else gradients


def differentiated(function):
    """A function that returns another's value and its gradients, which may compile."""

    def of_tensorflow(*inputs):
        import tensorflow as tf

        inputs = [tf.convert_to_tensor(x) for x in inputs]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = function(*inputs)
        return value, tape.gradient(value, inputs)

    def of_jax(*inputs):
        import jax

        def summed(*inputs):
            value = function(*inputs)
            return ops.sum(value), value

        inputs = [ops.convert_to_tensor(x) for x in inputs]
        places = tuple(range(len(inputs)))
        gradient, value = jax.grad(summed, argnums=places, has_aux=True)(*inputs)
        return value, gradient

    return of_tensorflow if IS_TENSORFLOW else of_jax


def is_stopped(gradient):
    """Whether a gradient doesn't get to an input: TensorFlow's is None, JAX's 0."""
    return gradient is None if IS_TENSORFLOW else not gradient.any()


def compilers():
    """Ways in which the backend compiles a function of tensors, by name."""
    if IS_TENSORFLOW:
        import tensorflow as tf

        return {
            "graph": lambda f: tf.function(f, autograph=False),
            "XLA": lambda f: tf.function(f, jit_compile=True, autograph=False),
        }
    import jax

    return {"jit": jax.jit}


def softmax(x, axis=-1):
    """Probabilities as a NumPy array."""
    return numpy(ops.softmax(ops.convert_to_tensor(x), axis=axis))


def rounded(x, dtype):
    """A tensor of `dtype`."""
    return ops.cast(ops.convert_to_tensor(x), dtype)


def numpy(x):
    """A tensor as a NumPy array."""
    # `np.asarray` fails for scalars of TensorFlow's in bfloat16
    return np.asarray(x.numpy() if hasattr(x, "numpy") else x)


def masked(x, mask):
    """A tensor with a Keras mask, as layers return it."""
    from keras.src.backend.common.masking import set_keras_mask

    x = ops.copy(ops.convert_to_tensor(x))
    set_keras_mask(x, ops.convert_to_tensor(mask))
    return x


@contextmanager
def float64():
    """Let JAX compute in float64."""
    if BACKEND != "jax":
        yield
        return
    import jax

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def dtype_of(x):
    return np.dtype(keras.backend.standardize_dtype(x.dtype))
