"""Models that can't be traced are refused in words that lead on."""

import re

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_distill.export import export


class Reads(layers.Layer):
    """Reads a value while it is called."""

    def call(self, x):
        return x * 2 if float(ops.max(x)) > 0 else x

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape)


class Counts(layers.Layer):
    """Takes an open size for a number of Python."""

    def call(self, x):
        return ops.concatenate([x[:, i] for i in range(ops.shape(x)[1])], -1)

    def compute_output_spec(self, x):
        return keras.KerasTensor((None, None))


def of_size(*inner, shape=(None, None, 3)):
    return keras.Sequential([keras.Input(shape, name="image"), *inner])


def upsampled(method):
    return of_size(layers.UpSampling2D(2, interpolation=method, name="larger"))


REFUSED = {
    "bilinear": (lambda: upsampled("bilinear"), (6, 6, 3), ["'larger'", "nearest"]),
    "bicubic": (lambda: upsampled("bicubic"), (6, 6, 3), ["'larger'", "fixed sizes"]),
    "Python's range": (
        lambda: of_size(Counts(name="counts"), shape=(None, 3)),
        (4, 3),
        [r"'counts' \(Counts\)", "fixed sizes", "keras.ops.shape"],
    ),
    "a value": (
        lambda: of_size(Reads(name="reads"), shape=(3,)),
        (3,),
        [r"'reads' \(Reads\)", "`batch_size`", "keras.ops"],
    ),
    "a name": (
        lambda: keras.Sequential([keras.Input((3,)), layers.Dense(2)], name="my model"),
        (3,),
        ["letters, digits and underscores"],
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_the_layer_the_sizes_and_the_remedy_are_named(kind, tmp_path):
    make, shape, words = REFUSED[kind]
    batch = np.ones((2, *shape), "float32")
    with pytest.raises(RuntimeError) as caught:
        export(make(), tmp_path / "out", example_batch=batch)
    message = str(caught.value)
    assert "can't be traced" in message and "\x1b" not in message
    assert "None is an open size" in message and len(message) < 1000
    for word in words:
        assert re.search(word, message), message
    assert list(tmp_path.iterdir()) == []


def test_what_the_error_advises_helps(tmp_path, runtimes):
    batch = np.random.default_rng(0).random((2, 3, 3, 1)).astype("float32")
    fixed = layers.UpSampling2D(2, interpolation="bilinear", name="y")
    for model in (
        of_size(layers.UpSampling2D(2, name="y"), shape=(None, None, 1)),
        of_size(fixed, shape=(3, 3, 1)),
    ):
        export(model, tmp_path / "out", ["onnx"], example_batch=batch)
        got = runtimes["onnx"](tmp_path / "out", {"image": batch})["y"]
        np.testing.assert_allclose(got, model(batch), rtol=1e-5, atol=1e-6)
