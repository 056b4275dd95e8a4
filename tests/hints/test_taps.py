"""Layers are listened to, and left as they were."""

import threading
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill.hints.taps import Taps
from tests.distiller.models import data, mlp


def test_outputs_are_caught_and_the_layer_is_left_as_it_was() -> None:
    model = mlp()
    layer, x = model.layers[0], data()[0]
    before = dict(vars(layer))
    with Taps({"it": layer}).open() as caught:
        model(x)
    np.testing.assert_array_equal(caught.output("it"), layer(x))
    assert vars(layer).keys() == before.keys() and "call" not in vars(layer)
    model(x)
    caught.output("it")  # no later pass is heard


def test_a_call_of_the_caller_s_own_is_put_back() -> None:
    layer = mlp().layers[0]
    own = lambda x: x + 1.0  # noqa: E731
    object.__setattr__(layer, "call", own)
    x = data()[0]
    with Taps({"it": layer}).open() as caught:
        layer(x)
    np.testing.assert_array_equal(caught.output("it"), x + 1.0)
    assert vars(layer)["call"] is own


def test_it_is_left_as_it_was_after_an_error() -> None:
    layer = mlp().layers[0]
    with pytest.raises(ZeroDivisionError), Taps({"it": layer}).open():
        1 / 0  # noqa: B018
    assert "call" not in vars(layer)


def test_one_layer_is_heard_by_several_at_once() -> None:
    layer, x = mlp().layers[0], data()[0]
    with Taps({"a": layer, "b": layer}).open() as outer:
        with Taps({"c": layer}).open() as inner:
            layer(x)
        assert "call" in vars(layer)
    for caught, name in ((outer, "a"), (outer, "b"), (inner, "c")):
        assert caught.output(name).shape == (24, 5)
    assert "call" not in vars(layer)


def test_each_thread_hears_itself() -> None:
    layer, x = mlp().layers[0], data()[0]
    together = threading.Barrier(4)
    right = []

    def listen(rows: int) -> None:
        with Taps({"it": layer}).open() as caught:
            together.wait()
            layer(x[:rows])
            together.wait()
        right.append(caught.output("it").shape[0] == rows)

    threads = [threading.Thread(target=listen, args=(rows,)) for rows in (3, 5, 7, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == 4 * [True] and "call" not in vars(layer)


def test_a_compiled_function_traces_with_it() -> None:
    model, x = mlp(), data()[0]
    taps = Taps({"it": model.layers[0]})

    @tf.function
    def both(x: Any) -> Any:
        with taps.open() as caught:
            output = model(x)
        return output, caught.output("it")

    for _ in range(2):
        output, hidden = both(x)
        np.testing.assert_allclose(output, model(x), atol=1e-6)
        np.testing.assert_allclose(hidden, model.layers[0](x), atol=1e-6)


def test_a_quantised_layer_is_heard() -> None:
    layer = keras.layers.Dense(4)
    layer.build((None, 4))
    layer.quantize("int8")
    x = data()[0]
    with Taps({"it": layer}).open() as caught:
        layer(x)
    np.testing.assert_array_equal(caught.output("it"), layer(x))
