"""Zeros, negative integers and large values: right in every format, or refused."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_distill.export import convertible, export, onnx_operators
from keras_distill.export.extremes import extremes
from keras_distill.export.parity import ParityError
from keras_distill.export.serving import serve

FLOATS = np.array([[1.5, -0.5, 2.0, 0.25], [0.5, 1.0, -1.0, 3.0]], "float32")
ODD = np.array(
    [
        [0, 0, 0, 0],
        [1e4, -1e4, 100, -100],
        [-1e4, -1e4, -1e4, -1e4],
        [89, -89, 20, -20],
        [-0.0, 1e-6, 0, 3],
    ],
    "float32",
)


class Own(layers.Layer):
    """Calls TensorFlow itself."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


FUNCTIONS = {
    "cosine": lambda x, y: ops.sum(ops.normalize(x) * ops.normalize(y), axis=-1),
    "dot": lambda x, y: layers.Dot(1, normalize=True)([x, y]),
    "exp": lambda x, y: ops.exp(x),
    "floor_divide": lambda x, y: x // y,
    "log_sigmoid": lambda x, y: ops.log_sigmoid(x),
    "mish": lambda x, y: layers.Activation("mish")(x),
    "normalize": lambda x, y: ops.normalize(x),
    "normalize_1": lambda x, y: ops.normalize(x, order=1),
    "own_log_sigmoid": lambda x, y: Own(tf.math.log_sigmoid)(x),
    "own_softplus": lambda x, y: Own(tf.nn.softplus)(x),
    "power": lambda x, y: x**12,
    "reciprocal": lambda x, y: ops.reciprocal(x),
    "rsqrt": lambda x, y: ops.rsqrt(ops.abs(x)),
    "softplus": lambda x, y: ops.softplus(x),
    "unit": lambda x, y: layers.UnitNormalization()(x),
}


def test_floats_that_formats_hold(tmp_path, runtimes):
    """Right at zeros and large values; published where Keras overflows itself."""
    x, y = keras.Input((4,), name="x"), keras.Input((4,), name="y")
    model = keras.Model([x, y], {n: make(x, y) for n, make in FUNCTIONS.items()})
    example = {"x": FLOATS, "y": FLOATS[::-1].copy()}
    export(model, tmp_path / "o", example_batch=example)
    for other in (ODD[::-1].copy(), ODD, np.ones_like(ODD)):
        given = {"x": ODD, "y": other}
        for form in runtimes:
            got = runtimes[form](tmp_path / "o", given)
            for name, tensor in model(given).items():
                want = tensor.numpy()
                finite = np.isfinite(want)
                np.testing.assert_allclose(
                    got[name][finite],
                    want[finite],
                    rtol=2e-5,
                    atol=1e-6,
                    err_msg=f"{form} {name}",
                )


def alone(make, dtype):
    x = keras.Input((4,), name="x", dtype=dtype)
    return keras.Model(x, {"y": make(x)})


# What would be wrong were it not traced or converted otherwise, and the error.
WRONG = {
    "softplus": (layers.Activation("softplus"), "float32", "litert", "1000 times"),
    "unit": (layers.UnitNormalization(), "float32", "litert", "rows of zeros"),
    "one_hot": (lambda x: ops.one_hot(x, 9), "int32", "onnx", "negative integers"),
    "floor": (lambda x: x // 2, "int32", "onnx", "negative integers"),
    "sort": (lambda x: ops.sort(x), "int64", "onnx", "large integers"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_refused_by_layer(kind, tmp_path, monkeypatch):
    make, dtype, form, what = WRONG[kind]
    monkeypatch.setattr(convertible, "_functions", dict)
    monkeypatch.setattr(onnx_operators, "handlers", dict)
    model = alone(make, dtype)
    example = FLOATS if dtype == "float32" else np.array([[1, 2, 3, 4]] * 2, dtype)
    with pytest.raises(ParityError, match=f"(?s){what}.*off by itself: '") as caught:
        export(model, tmp_path / "o", [form], example_batch=example)
    assert model.operations[-1].name in str(caught.value)
    assert not (tmp_path / "o").exists()


def tried(model, batch):
    served = serve(model, batch)
    return {
        extreme.what: extreme
        for extreme in extremes(served, served.arrays(batch, "example_batch"))
    }


def test_rows():
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    ids = keras.Input((3,), name="ids", dtype="int32")
    outputs = {"exact": ids // 2, "rounded": ops.cast(ids, "float32") + a + b}
    model = keras.Model([a, b, ids], outputs)
    ones = np.ones((2, 3), "float32")
    whole = np.array([[1, 2, 3]] * 2, "int32")
    found = tried(model, {"a": ones, "b": 2 * ones, "ids": whole})
    assert list(found) == [
        "rows of zeros",
        "values 1000 times as large as the examples'",
        "negative integers",
        "large integers",
    ]
    zeros, large, negative, integers = found.values()
    np.testing.assert_array_equal(zeros.inputs["a"][:, 0], [0, 0, 1])
    np.testing.assert_array_equal(zeros.inputs["b"][:, 0], [0, 2, 0])
    np.testing.assert_array_equal(zeros.inputs["ids"], [[1, 2, 3]] * 3)
    assert zeros.compared == {"exact", "rounded"} and not large.compared
    np.testing.assert_array_equal(
        large.inputs["b"], 2000 * np.array([[1] * 3, [-1] * 3, [-1, 1, -1]])
    )
    np.testing.assert_array_equal(
        negative.inputs["ids"], [[-1, -1, -1], [-2, -3, -4], [-2, 2, -4]]
    )
    top = 2**28 - 1
    np.testing.assert_array_equal(
        integers.inputs["ids"],
        [[top, top - 1, top - 2], [-top, 1 - top, 2 - top], [top, 2, top - 2]],
    )
    assert integers.compared == {"exact"}


COUNTS = {
    "a loop": lambda x: tf.while_loop(
        lambda i, v: i < x[0, 0], lambda i, v: (i + 1, 2 * v), [0, x]
    )[1],
    "a range": lambda x: x + tf.reduce_sum(tf.range(x[0, 0])),
    "a mask": lambda x: tf.reduce_sum(tf.cast(tf.sequence_mask(x), "int32"), axis=-1),
}


@pytest.mark.parametrize("kind", COUNTS)
def test_large_integers_are_no_sizes_and_no_turns_of_loops(kind):
    layer = layers.Lambda(COUNTS[kind], output_shape=(4,))
    found = tried(alone(layer, "int32"), np.ones((2, 4), "int32"))
    assert list(found) == ["negative integers"]


def test_integers_that_keras_refuses_are_not_tried(tmp_path):
    embedded = alone(layers.Embedding(5, 2), "int32")
    export(
        embedded,
        tmp_path / "o",
        ["saved_model"],
        example_batch=np.ones((2, 4), "int32"),
    )


def test_16_bits_have_no_large_values():
    half = alone(layers.Dense(2, dtype="mixed_float16"), "float32")
    assert list(tried(half, FLOATS)) == ["rows of zeros"]
