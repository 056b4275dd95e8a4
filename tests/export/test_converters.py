"""Operators that the converters have no answer to by themselves: right values.

Each export holds many small layers, and an output is called by its case.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_distill.export import export, onnx
from keras_distill.export.parity import ParityError
from tests.export.files import onnx_nodes

SHAPES = {1: (9, 4), 2: (9, 8, 4), 3: (5, 4, 4, 4)}


def convolutions(axes):
    """Name to layer: groups, and outputs beyond the reach of a kernel."""
    conv, transposed = (
        getattr(layers, f"Conv{axes}D{kind}") for kind in ("", "Transpose")
    )
    groups = {
        "groups": conv(4, 3, groups=2),
        "groups_strided": conv(4, 3, groups=4, strides=2, padding="same"),
        "groups_dilated": conv(4, 2, groups=2, dilation_rate=2, padding="same"),
    }
    beyond = {
        "gaps": transposed(2, 2, strides=3),
        "gaps_same": transposed(2, 1, strides=2, padding="same"),
        "less": transposed(2, 3, strides=2, padding="same", output_padding=0),
        "more": transposed(2, 3, strides=2, output_padding=1),
        "more_same": transposed(2, 3, strides=2, padding="same", output_padding=1),
    }
    return groups | beyond


def batch_of(shape, size=3):
    rng = np.random.default_rng(size)
    return rng.standard_normal((size, *shape)).astype("float32")


def randomise(model):
    """Leave no weight at 0 or 1."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        weight.assign(weight.numpy() + 0.3 * rng.uniform(0.5, 1.5, weight.shape))
    return model


def branches(shape, cases):
    """One input, an output for each case."""
    x = keras.Input(shape, name="x")
    outputs = {name: make(x) for name, make in cases.items()}
    return randomise(keras.Model({"x": x}, outputs))


def check(model, given, directory, runtimes, formats, exact=False):
    export(model, directory, formats, example_batch=given)
    wanted = model(given, training=False)
    for form in formats:
        got = runtimes[form](directory, given)
        for case, want in wanted.items():
            want = want.numpy()
            assert got[case].dtype == want.dtype, (form, case)
            limit = 0 if exact else 2e-5 * max(1.0, np.abs(want).max())
            np.testing.assert_allclose(
                got[case], want, rtol=0, atol=limit, err_msg=f"{form} {case}"
            )


@pytest.mark.parametrize(
    ("axes", "is_open"),
    [
        pytest.param(1, False, marks=pytest.mark.slow("exports")),
        pytest.param(2, False, marks=pytest.mark.slow("exports")),
        (2, True),
        (3, True),
    ],
)
def test_convolutions_in_onnx(axes, is_open, tmp_path, runtimes):
    shape = SHAPES[axes]
    sizes = (None,) * axes + shape[-1:] if is_open else shape
    model = branches(sizes, convolutions(axes))
    check(model, {"x": batch_of(shape)}, tmp_path / "out", runtimes, ["onnx"])


ONE_PIXEL = {
    "layer": layers.LayerNormalization,
    "rms": layers.RMSNormalization,
    "groups": lambda: layers.GroupNormalization(2),
    "units": layers.UnitNormalization,
    "batches": layers.BatchNormalization,
    "softmax": layers.Softmax,
    "mean": lambda: layers.Lambda(lambda x: x - ops.mean(x, axis=-1, keepdims=True)),
    "largest": lambda: layers.Lambda(lambda x: x / ops.max(x, axis=-1, keepdims=True)),
}


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_maps_of_one_pixel_in_onnx(axes, tmp_path, runtimes):
    """Transposed or reshaped, they are the same numbers; so shapes get mixed up."""
    shape = (4,) * axes + (3,)
    conv = getattr(layers, f"Conv{axes}D")

    def after(make):
        def branch(x):
            x = layers.Dense(5)(make()(conv(6, 4)(x)))
            return layers.Flatten()(conv(4, 1)(x))

        return branch

    model = branches(shape, {name: after(make) for name, make in ONE_PIXEL.items()})
    check(model, {"x": batch_of(shape)}, tmp_path / "out", runtimes, ["onnx"])


def test_channels_first_in_onnx(tmp_path, runtimes):
    first = {"data_format": "channels_first"}
    cases = {
        "groups": lambda x: layers.Conv2D(4, 3, groups=2, **first)(x),
        "beyond": lambda x: layers.Conv2DTranspose(2, 2, strides=3, **first)(x),
        "more": lambda x: layers.Conv2DTranspose(
            2, 3, strides=2, padding="same", output_padding=1, **first
        )(x),
    }
    model = branches((4, 6, 5), cases)
    check(model, {"x": batch_of((4, 6, 5))}, tmp_path / "out", runtimes, ["onnx"])


def test_convolutions_in_litert(tmp_path, runtimes):
    model = branches(SHAPES[2], convolutions(2))
    batch = {"x": batch_of(SHAPES[2])}
    check(model, batch, tmp_path / "out", runtimes, ["litert"])


# Zeros that count in the pool: values are negative.
POOLS = {
    "max": lambda x: layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(1)(x)),
    "max_same": lambda x: layers.MaxPooling2D(3, strides=2, padding="same")(
        layers.ZeroPadding2D(((1, 0), (2, 1)))(x)
    ),
    "mean": lambda x: layers.AveragePooling2D(3)(layers.ZeroPadding2D(1)(x)),
    "mean_same": lambda x: layers.AveragePooling2D(3, padding="same")(
        layers.ZeroPadding2D(2)(x)
    ),
    "max_of_ones": lambda x: layers.MaxPooling2D(3)(
        ops.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=1.0)
    ),
    "max_of_channels": lambda x: layers.MaxPooling2D(3)(
        ops.pad(x, [(0, 0), (1, 1), (1, 1), (1, 0)])
    ),
}


def padded(pool, axes=2):
    """A convolution gives what is padded: the optimiser fuses nothing else."""
    x = keras.Input(SHAPES[axes], name="x")
    conv = getattr(layers, f"Conv{axes}D")(
        4, 1, bias_initializer=keras.initializers.Constant(-3)
    )
    return keras.Model({"x": x}, {"y": pool(conv(x))})


@pytest.mark.parametrize("case", POOLS)
def test_padding_before_pools_in_onnx(case, tmp_path, runtimes):
    model = padded(POOLS[case])
    given = {"x": batch_of(SHAPES[2])}
    check(model, given, tmp_path / "out", runtimes, ["onnx"])
    assert (model(given)["y"].numpy() < -1).any()


@pytest.mark.parametrize("axes", [1, 3])
def test_padding_before_pools_of_other_axes_in_onnx(axes, tmp_path, runtimes):
    pad, pool = (
        getattr(layers, f"{name}{axes}D") for name in ("ZeroPadding", "MaxPooling")
    )
    model = padded(lambda x: pool(3, strides=2)(pad(1)(x)), axes)
    check(model, {"x": batch_of(SHAPES[axes])}, tmp_path / "out", runtimes, ["onnx"])


def test_padding_before_a_convolution_may_be_fused(tmp_path, runtimes):
    model = padded(lambda x: layers.Conv2D(2, 3)(layers.ZeroPadding2D(1)(x)))
    check(model, {"x": batch_of(SHAPES[2])}, tmp_path / "out", runtimes, ["onnx"])
    pads = [n for n in onnx_nodes(tmp_path / "out/model.onnx") if n.op_type == "Pad"]
    assert all(len(node.input) < 4 for node in pads)


def test_a_fault_of_the_optimiser_is_called_one(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "keep_padding", lambda model: None)
    message = (
        r"(?s)must agree with Keras.*ONNX Runtime's optimiser changes it: without "
        r"graph optimisation the same file gives 0 in place of -[\d.]+, and agrees"
    )
    with pytest.raises(ParityError, match=message):
        export(
            padded(POOLS["max"]),
            tmp_path / "out",
            ["onnx"],
            example_batch={"x": batch_of(SHAPES[2])},
        )


# Ties, zeros of both signs, infinities.
ROWS = np.array(
    [
        [0.0, -0.0, 0.0, -1.0],
        [-0.0, 0.0, -1.0, 0.0],
        [-0.0, -0.0, -2.0, -0.0],
        [3.0, 3.0, 1.0, 1.0],
        [-np.inf, np.inf, np.inf, -np.inf],
        [1e-30, -1e-30, 0.0, -0.0],
    ],
    "float32",
)
LABELS = {
    "argmax": lambda x: ops.argmax(x, axis=-1),
    "argmin": lambda x: ops.argmin(x, axis=-1),
    "argmax_kept": lambda x: ops.argmax(x, axis=1, keepdims=True),
    "argmax_of_half": lambda x: ops.argmax(ops.cast(x, "float16"), axis=-1),
    "argmax_of_integers": lambda x: ops.argmax(
        ops.cast(ops.clip(x, -9, 9), "int32"), axis=-1
    ),
    "signbit": lambda x: ops.cast(ops.signbit(x), "int32"),
    "order": lambda x: ops.argsort(x, axis=-1)[:, :1],
    "best": lambda x: ops.top_k(x, 2)[1],
    "one_hot": lambda x: ops.one_hot(ops.argmax(x, axis=-1), 4),
}


def test_labels(tmp_path, runtimes):
    x = keras.Input((4,), name="x")
    model = keras.Model({"x": x}, {name: make(x) for name, make in LABELS.items()})
    wanted = model({"x": ROWS})
    assert list(wanted["argmax"].numpy()[:3]) == [0, 1, 0]
    assert list(wanted["argmin"].numpy()[:2]) == [3, 2]
    formats = ["saved_model", "onnx", "litert"]
    check(model, {"x": ROWS}, tmp_path / "out", runtimes, formats, exact=True)


class Bits(layers.Layer):
    def call(self, x):
        return tf.bitcast(x, tf.int32) // 2**23


def test_bits_beside_the_sign_are_refused_by_onnx(tmp_path):
    x = keras.Input((4,), name="x")
    model = keras.Model({"x": x}, {"exponent": Bits(name="bits")(x)})
    with pytest.raises(RuntimeError, match=r"converting it failed in 'bits' \(Bits\)"):
        export(model, tmp_path / "out", ["onnx"], example_batch={"x": ROWS})


def test_keras_is_as_it_was(tmp_path):
    from keras.src.backend.tensorflow import numpy as backend

    before = backend.signbit
    x = keras.Input((4,), name="x")
    model = keras.Model({"x": x}, {"label": ops.argmax(x, axis=-1)})
    export(model, tmp_path / "out", ["saved_model"], example_batch={"x": ROWS})
    assert backend.signbit is before


def test_logarithms_and_exponentials_near_zero_in_onnx(tmp_path, runtimes):
    cases = {"expm1": ops.expm1, "celu": ops.celu}
    x = keras.Input((4,), name="x")
    outputs = {name: make(x) for name, make in cases.items()}
    outputs["log1p"] = ops.log1p(ops.abs(x))
    outputs["logaddexp"] = ops.logaddexp(x, -x)
    model = keras.Model({"x": x}, outputs)
    values = [[1e-7, -1e-6, 1e-3, -0.3], [0.49, 0.51, -0.51, 3.0], [0, -20, 20, -1]]
    given = {"x": np.array(values, "float32")}
    export(model, tmp_path / "out", ["onnx"], example_batch=given)
    got = runtimes["onnx"](tmp_path / "out", given)
    for name, want in model(given).items():
        # Relative to each value: not one of their digits is lost.
        np.testing.assert_allclose(got[name], want, rtol=2e-6, err_msg=name)
