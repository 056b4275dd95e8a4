"""Models that can't be traced are refused in words that lead on.

Names that TensorFlow doesn't take for scopes are no reason to refuse a model.
"""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_distill.export import export, split_preprocessing
from keras_distill.export.latency import measure


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
    assert path_of_a_new_weight() == "new/kernel"
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


def path_of_a_new_weight():
    """Which begins with the scopes that are open."""
    layer = layers.Dense(1, name="new")
    layer.build((None, 1))
    return layer.kernel.path


# Names of a model and of its layer.
NAMES = [("my model", "a layer"), ("модель", "层#1"), ("_model", "a\\b'>c%")]


@pytest.mark.parametrize(
    "of_model, of_layer",
    [
        NAMES[1],
        *(pytest.param(*n, marks=pytest.mark.slow("exports")) for n in NAMES[::2]),
    ],
)
def test_models_and_layers_may_have_any_name(
    of_model, of_layer, tmp_path, runtimes, floats
):
    x, batch = keras.Input((3,), name="x"), floats(4, 3)
    y = layers.Dense(2, name=of_layer)(layers.LayerNormalization(name="a norm")(x))
    model = keras.Model(x, y, name=of_model)
    before = [(weight.path, weight.value.name) for weight in model.weights]
    export(model, tmp_path / "out", example_batch=batch)
    for run in runtimes.values():
        got = run(tmp_path / "out", {"x": batch})[of_layer]
        np.testing.assert_allclose(got, model(batch), rtol=1e-5, atol=1e-6)
    rows = measure(tmp_path / "out", model=model, batch_sizes=[1], calls=5)
    assert len(rows) == 5  # three formats, `predict` and a function
    assert before == [(weight.path, weight.value.name) for weight in model.weights]
    assert path_of_a_new_weight() == "new/kernel"
    with pytest.raises(ValueError, match="not a valid"):  # outside, as ever
        tf.function(lambda: tf.name_scope("my model").__enter__())()


@pytest.mark.parametrize("name", ["saved_model", "litert"])
def test_a_colon_in_a_name_is_refused(name, tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="a:b")])
    with pytest.raises(RuntimeError, match="':' in their names, as '.*a:b/.*without"):
        export(model, tmp_path / "out", [name], example_batch=np.ones((2, 3), "f"))


def test_splitting_takes_any_name():
    lookup = layers.StringLookup(vocabulary=["red"], name="look up")
    x = keras.Input((1,), dtype="string", name="paint")
    model = keras.Model(x, layers.Embedding(2, 3, name="a-b c")(lookup(x)), name="my m")
    preprocessing, core = split_preprocessing(model)
    paint = tf.constant([["red"]])
    np.testing.assert_array_equal(core(preprocessing({"paint": paint})), model(paint))
    assert path_of_a_new_weight() == "new/kernel"
