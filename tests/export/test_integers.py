"""Integers in ONNX and LiteRT: negative ones, and those that floats can't hold."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_distill.export import export
from keras_distill.export.parity import ParityError

OPERATIONS = {
    "abs": lambda x, y: ops.abs(x),
    "argsort": lambda x, y: ops.argsort(x),
    "clip": lambda x, y: ops.clip(x, -5, 2**30),
    "count": lambda x, y: ops.count_nonzero(x, axis=-1),
    "cumsum": lambda x, y: ops.cumsum(x, axis=-1),
    "equal": lambda x, y: ops.equal(x, y),
    "floor_divide": lambda x, y: x // y,
    "floor_divide by a constant": lambda x, y: x // -3,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "left_shift": lambda x, y: ops.left_shift(x, 3),
    "less": lambda x, y: x < y,
    "less_equal": lambda x, y: x <= y,
    "matmul": lambda x, y: ops.matmul(
        ops.expand_dims(x, 1), ops.expand_dims(ops.sign(y), 2)
    ),
    "max": lambda x, y: ops.max(x, axis=-1),
    "maximum": lambda x, y: layers.Maximum()([x, y]),
    "min": lambda x, y: ops.min(x, axis=-1),
    "minimum": lambda x, y: ops.minimum(x, y),
    "mod": lambda x, y: x % y,
    "mod by a constant": lambda x, y: x % -3,
    "multi_hot": lambda x, y: ops.multi_hot(x, 5),
    "one_hot": lambda x, y: ops.one_hot(x, 5),
    "one_hot on axis 1": lambda x, y: ops.one_hot(x, 5, axis=1),
    "power": lambda x, y: x**3,
    "ptp": lambda x, y: ops.ptp(x, axis=-1),
    "right_shift": lambda x, y: ops.right_shift(x, 3),
    "sign": lambda x, y: ops.sign(x),
    "sort": lambda x, y: ops.sort(x),
    "square": lambda x, y: ops.square(x),
    "sum": lambda x, y: ops.sum(x, axis=-1),
    "sum over two axes": lambda x, y: ops.sum(
        ops.expand_dims(x, 1) - ops.expand_dims(y, 2), axis=(1, 2), keepdims=True
    ),
    "take_along_axis": lambda x, y: ops.take_along_axis(x, ops.argsort(x), axis=1),
    "top_k": lambda x, y: ops.top_k(x, 2)[0],
    "where": lambda x, y: ops.where(x > y, x, y),
}
LACKING = {
    ("litert", "int32"): [
        *("left_shift", "matmul"),
    ],
    ("litert", "int64"): [
        *("abs", "floor_divide", "floor_divide by a constant", "left_shift", "matmul"),
        *("power", "right_shift", "sign"),
    ],
}


def held(form, dtype):
    lacking = LACKING.get((form, dtype), ())
    return {name: op for name, op in OPERATIONS.items() if name not in lacking}


def odd(dtype):
    """Pairs of rows; no sum of a row is beyond the dtype."""
    large = np.iinfo(dtype).max // 8
    x = [
        [-1, -2, -7, 8],
        [5, -5, 0, -9],
        [large, large - 1, 3, large - 2],
        [-large, 1 - large, 2, -3],
    ]
    y = [
        [3, -3, 2, -2],
        [-2, 3, 5, -9],
        [large - 1, large, 7, large],
        [7, -large, 5, -2],
    ]
    return {"x": np.array(x, dtype), "y": np.array(y, dtype)}


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("onnx", "int32"),
        ("onnx", "int64"),
        pytest.param("litert", "int32", marks=pytest.mark.slow("exports")),
        ("litert", "int64"),
    ],
)
def test_integers_are_keras(form, dtype, tmp_path, runtimes):
    x, y = (keras.Input((4,), name=name, dtype=dtype) for name in "xy")
    outputs = {
        name.replace(" ", "_"): make(x, y) for name, make in held(form, dtype).items()
    }
    model = keras.Model([x, y], outputs)
    example = {name: np.array([[1, 2, 3, 4]] * 2, dtype) for name in "xy"}
    export(model, tmp_path / "o", [form], example_batch=example)
    got = runtimes[form](tmp_path / "o", odd(dtype))
    for name, want in model(odd(dtype)).items():
        np.testing.assert_array_equal(got[name], want, err_msg=name)


def test_shifts_beyond_the_bits(tmp_path, runtimes):
    """As TensorFlow clips them."""
    x, y = (keras.Input((4,), name=name, dtype="int32") for name in "xy")
    outputs = {"left": ops.left_shift(x, y), "right": ops.right_shift(x, y)}
    model = keras.Model([x, y], outputs)
    example = {name: np.array([[1, 2, 3, 4]] * 2, "int32") for name in "xy"}
    export(model, tmp_path / "o", ["onnx"], example_batch=example)
    given = {
        "x": np.array([[-7, 5, -1, 9]], "int32"),
        "y": np.array([[40, 40, -3, 31]], "int32"),
    }
    got = runtimes["onnx"](tmp_path / "o", given)
    for name, want in model(given).items():
        np.testing.assert_array_equal(got[name], want, err_msg=name)


ROUNDED = {
    "prod": lambda x: ops.prod(x, axis=-1),
    "max_pooling1d": lambda x: layers.MaxPooling1D(2)(ops.expand_dims(x, -1)),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_what_is_computed_in_floats_is_refused(name, tmp_path):
    x = keras.Input((4,), dtype="int32")
    model = keras.Model(x, ROUNDED[name](x))
    example = np.array([[1, 2, 3, 4]] * 2, "int32")
    with pytest.raises(
        ParityError, match=f"(?s)large integers.*off by itself: '{name}"
    ):
        export(model, tmp_path / "o", ["onnx"], example_batch=example)
