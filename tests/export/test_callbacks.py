"""Python code inside of a model is refused by its layer, in every format."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_distill.export import export

BATCH = np.ones((2, 3), "float32")


def doubled(x):
    return 2 * x


def by_numpy(x):
    return tf.ensure_shape(tf.numpy_function(doubled, [x], x.dtype), x.shape)


def by_python(x):
    return tf.ensure_shape(tf.py_function(doubled, [x], x.dtype), x.shape)


def without_state(x):
    y = tf.numpy_function(doubled, [x], x.dtype, stateful=False)
    return tf.ensure_shape(y, x.shape)


def in_a_loop(x):
    return tf.map_fn(by_numpy, x)


def nested(layer):
    inner = keras.Sequential([keras.Input((3,)), layer], name="inner")
    return keras.Sequential([keras.Input((3,)), inner, layers.Dense(2)])


@pytest.mark.parametrize("function", [by_numpy, by_python, without_state, in_a_loop])
@pytest.mark.parametrize("form", ["saved_model", "onnx", "litert"])
def test_refused_by_layer(function, form, tmp_path):
    layer = layers.Lambda(function, output_shape=(3,), name="calling")
    message = r"must not call Python.*'inner/calling' \(Lambda\).*`keras.ops`"
    with pytest.raises(ValueError, match=message):
        export(nested(layer), tmp_path / "o", [form], example_batch=BATCH)
    assert list(tmp_path.iterdir()) == []


def test_refused_in_preprocessing(tmp_path):
    model = keras.Sequential([keras.Input((3,), name="x"), layers.Dense(2)])
    first = layers.Lambda(by_python, output_shape=(3,), name="calling")
    preprocessing = keras.Sequential([keras.Input((3,), name="raw"), first])
    with pytest.raises(ValueError, match="must not call Python.*'calling'"):
        export(
            model,
            tmp_path / "o",
            ["saved_model"],
            example_batch=BATCH,
            preprocessing=preprocessing,
        )
