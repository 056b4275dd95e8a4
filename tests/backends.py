"""What tests need of Keras' backends: a mark, and functions that compile.

`@tensorflow_only("how gradients of XLA are read")` skips a test on other backends, and
`pytestmark = tensorflow_only(...)` a whole file. `tests/conftest.py` applies it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

ON_TENSORFLOW = keras.backend.backend() == "tensorflow"
ON_JAX = keras.backend.backend() == "jax"

tensorflow_only = pytest.mark.tensorflow_only


def compiled(
    function: Callable[..., Any], *, reads: Sequence[keras.Variable] = ()
) -> Callable[..., Any]:
    """Return a function compiled as Keras' trainer on this backend compiles a step.

    Args:
        function: A function of tensors.
        reads: The variables that it reads, whose values it finds at each call.
    """
    if ON_TENSORFLOW:
        import tensorflow as tf

        graph: Callable[..., Any] = tf.function(function, autograph=False)
        return graph
    if not ON_JAX:
        return function
    import jax

    @jax.jit
    def stateless(values: Sequence[Any], *inputs: Any) -> Any:
        state = list(zip(reads, values, strict=True))
        with keras.StatelessScope(state_mapping=state):
            return function(*inputs)

    return lambda *inputs: stateless([v.value for v in reads], *inputs)


def gradients(
    loss: Callable[[], Any], weights: Sequence[keras.Variable]
) -> list[np.ndarray]:
    """Return the gradients of a loss as dense arrays, zeros of weights not in it."""
    if ON_TENSORFLOW:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss()
        found = tape.gradient(
            value,
            [weight.value for weight in weights],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [tf.convert_to_tensor(gradient).numpy() for gradient in found]
    import jax

    def of_values(values: Sequence[Any]) -> Any:
        state = list(zip(weights, values, strict=True))
        with keras.StatelessScope(state_mapping=state):
            return loss()

    found = jax.grad(of_values)([weight.value for weight in weights])
    return [np.asarray(gradient) for gradient in found]


def step_counter(step: int) -> Any:
    """Return a step as a tensor of the type of an optimiser's `iterations`."""
    iterations = keras.optimizers.SGD().iterations
    return ops.convert_to_tensor(step, dtype=iterations.dtype)
