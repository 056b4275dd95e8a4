"""Inputs that wait for an earlier model are the same inputs."""

from typing import Any

import keras
import numpy as np
import pytest

from keras_distill.teachers import ordering

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the subject is TensorFlow"
)
on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="the subject is JAX"
)

INPUTS = {
    "x": np.array([0.0, -0.0, np.nan, np.inf], "float32"),
    "ids": np.array([3, -1], "int64"),
    "flags": np.array([True, False]),
}


@on_tensorflow
@pytest.mark.parametrize("said", [1.0, np.nan, np.inf, -np.inf])
def test_xla_gets_them_bit_by_bit(said: float) -> None:
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def waited(said: Any, inputs: Any) -> Any:
        return ordering.after({"logits": said}, inputs)

    inputs = {name: tf.constant(value) for name, value in INPUTS.items()}
    for name, value in waited(tf.constant([said]), inputs).items():
        assert value.numpy().tobytes() == INPUTS[name].tobytes()


@on_jax
@pytest.mark.parametrize("said", [1.0, np.nan, np.inf, -np.inf])
def test_jax_gets_them_bit_by_bit(said: float) -> None:
    import jax

    inputs = {name: jax.numpy.asarray(value) for name, value in INPUTS.items()}
    waited = jax.jit(lambda said, inputs: ordering.after({"logits": said}, inputs))
    for name, value in waited(jax.numpy.asarray([said]), inputs).items():
        given = np.asarray(inputs[name])
        assert np.asarray(value).tobytes() == given.tobytes()
    jaxpr = str(jax.make_jaxpr(ordering.after)(jax.numpy.ones(2), jax.numpy.ones(3)))
    assert "select_n" in jaxpr


@on_tensorflow
def test_in_xla_there_is_something_to_wait_for() -> None:
    import tensorflow as tf

    @tf.function(jit_compile=True)
    def waited(said: Any, x: Any) -> Any:
        return ordering.after(said, x)

    given = tf.ones(2), tf.ones(3)
    graph = waited.get_concrete_function(*given).graph
    assert "SelectV2" in {operation.type for operation in graph.get_operations()}


@on_tensorflow
def test_in_a_graph_nothing_is_added() -> None:
    import tensorflow as tf

    found = []

    @tf.function
    def not_compiled(x: Any) -> Any:
        found.append(ordering.after(x, x) is x)
        return x

    not_compiled(tf.ones(3))
    assert found == [True]


def test_elsewhere_nothing_is_added() -> None:
    assert ordering.after(INPUTS, INPUTS) is INPUTS
