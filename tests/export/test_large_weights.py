"""Weights that go from Keras into the ONNX file without passing through tf2onnx."""

import keras
import numpy as np
import onnx as onnx_package
import pytest
from keras import layers

from keras_distill.export import export, onnx


@pytest.fixture(autouse=True)
def every_weight_is_large(monkeypatch):
    monkeypatch.setattr(onnx, "_LARGE", 1)


@pytest.fixture
def model():
    """Tokens and numbers, a layer that is called twice, weights that stay small."""
    keras.utils.set_random_seed(0)
    tokens = keras.Input((5,), dtype="int32", name="tokens")
    numbers = keras.Input((7,), name="numbers")
    shared = layers.Dense(4, name="shared")
    x = layers.Embedding(11, 7, name="table")(tokens)
    x = layers.GlobalAveragePooling1D()(layers.Dense(7, "relu")(x))
    x = layers.Concatenate()([shared(x), shared(numbers)])
    x = layers.BatchNormalization()(x)
    x = layers.Reshape((4, 2))(x)
    x = layers.LSTM(3, name="recurrent")(x)
    return keras.Model([tokens, numbers], layers.Dense(2, name="y")(x))


@pytest.fixture
def batch(floats):
    tokens = np.random.default_rng(0).integers(0, 11, (6, 5)).astype("int32")
    return [tokens, floats(6, 7)]


def initializers(path):
    return {tensor.name: tensor for tensor in onnx_package.load(path).graph.initializer}


def test_answers_and_file(model, batch, tmp_path, runtimes):
    export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    path = tmp_path / "out" / "model.onnx"
    onnx_package.checker.check_model(str(path), full_check=True)
    named = dict(zip(["tokens", "numbers"], batch, strict=True))
    for size in (1, 2, 6):
        given = {name: array[:size] for name, array in named.items()}
        got = runtimes["onnx"](tmp_path / "out", given)["y"]
        want = model([array[:size] for array in batch])
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    graph = onnx_package.load(path).graph
    assert {value.name for value in graph.input} == set(named)
    streamed = [name for name in initializers(path) if name.startswith("weight_")]
    # Kernels and biases of three Dense layers and the table; those of the LSTM and
    # the normalisation have to be constants for tf2onnx.
    assert len(streamed) == 7


def test_shared_weights_are_stored_once(floats, tmp_path):
    x = keras.Input((5,), dtype="int32", name="tokens")
    table = layers.Embedding(13, 4)
    hidden = layers.Dense(4, use_bias=False)(table(x)) + table(x)
    model = keras.Model(x, layers.Dense(2)(hidden))
    export(model, tmp_path / "out", ["onnx"], example_batch=np.ones((2, 5), "int32"))
    shapes = [list(t.dims) for t in initializers(tmp_path / "out/model.onnx").values()]
    assert shapes.count([13, 4]) == 1


def test_quantised_from_such_a_file(model, batch, tmp_path, runtimes):
    manifest = export(
        model,
        tmp_path / "out",
        ["onnx"],
        example_batch=batch,
        quantize=["float16", "dynamic_int8", "int8"],
        calibration_data=batch,
    )
    types = {
        name: {tensor.data_type for tensor in initializers(path).values()}
        for name in ("float16", "dynamic_int8", "int8")
        for path in [tmp_path / "out" / f"model.{name}.onnx"]
    }
    assert onnx_package.TensorProto.FLOAT16 in types["float16"]
    assert onnx_package.TensorProto.INT8 in types["dynamic_int8"]
    assert onnx_package.TensorProto.INT8 in types["int8"]
    named = dict(zip(["tokens", "numbers"], batch, strict=True))
    want = model(batch, training=False).numpy()
    for name in types:
        got = runtimes["onnx"](tmp_path / "out", named, name)["y"]
        assert 0 < np.abs(got - want).max() < 0.1 * np.abs(want).max()
    assert set(manifest["artefacts"]) == {
        "onnx",
        "onnx_float16",
        "onnx_dynamic_int8",
        "onnx_int8",
    }


def test_weights_with_captured_constants(floats, tmp_path, runtimes):
    normalization = layers.Normalization()
    normalization.adapt(3 + 2 * floats(100, 4))
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(2, name="y")(normalization(x)))
    export(model, tmp_path / "out", ["onnx"], example_batch=floats(4, 4))
    given = floats(3, 4)
    got = runtimes["onnx"](tmp_path / "out", {"x": given})["y"]
    np.testing.assert_allclose(got, model(given), rtol=1e-5, atol=1e-6)


def test_the_model_keeps_its_weights(model, batch, tmp_path):
    before = [w.copy() for w in model.get_weights()]
    export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_what_a_file_cannot_hold_is_said_before_it_is_written(
    model, batch, tmp_path, monkeypatch
):
    monkeypatch.setattr(onnx, "_LARGEST_FILE", 2000)
    with pytest.raises(RuntimeError, match=r"would have [\d,]+ bytes.*ends at 2 GB"):
        export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    assert list(tmp_path.iterdir()) == []
