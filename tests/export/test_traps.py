"""What converters do wrong without a word: each is refused, or doesn't come up."""

import dataclasses
import warnings

import keras
import numpy as np
import onnx as onnx_package
import pytest
import tensorflow as tf
from keras import layers

from keras_distill.export import (
    ParityError,
    arguments,
    export,
    litert,
    onnx,
)
from tests import slow
from tests.export.files import onnx_operators


def writing(monkeypatch, own, write):
    """Put another writer in the place of the format's own, as before it was one."""
    changed = dataclasses.replace(own, write=write)
    formats = tuple(changed if f is own else f for f in arguments._FORMATS)
    monkeypatch.setattr(arguments, "_FORMATS", formats)


def small(*inner):
    return keras.Sequential(
        [keras.Input((4,), name="x"), *inner, layers.Dense(3, name="y")]
    )


def test_litert_of_a_concrete_function_with_its_model_gives_nan(
    floats, tmp_path, monkeypatch, runtimes
):
    model, batch = small(), floats(5, 4)

    def write(conversion, path):
        concrete = conversion.served.function.get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model)
        path.write_bytes(converter.convert())

    export(model, tmp_path / "right", ["litert"], example_batch=batch)
    outputs = runtimes["litert"](tmp_path / "right", {"x": batch})
    np.testing.assert_allclose(outputs["y"], model(batch), rtol=1e-5, atol=1e-6)
    writing(monkeypatch, litert.FORMAT, write)
    with pytest.raises(RuntimeError, match="'litert'|litert artefact"):
        export(model, tmp_path / "wrong", ["litert"], example_batch=batch)
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("value", slow.but([np.inf], [np.nan, np.inf], "exports"))
def test_a_file_that_gives_no_numbers_is_refused(floats, tmp_path, monkeypatch, value):
    model, batch = small(), floats(5, 4)
    kernel, bias = model.get_weights()

    def write(conversion, path):
        model.set_weights([kernel, bias * 0 + value])
        litert.write(conversion, path)
        model.set_weights([kernel, bias])

    writing(monkeypatch, litert.FORMAT, write)
    message = r"'y' of the litert artefact must agree .*: (nan|inf|3\.40282347e\+38) "
    with pytest.raises(ParityError, match=message):
        export(model, tmp_path / "out", ["litert"], example_batch=batch)
    assert list(tmp_path.iterdir()) == []


def test_outputs_have_the_names_of_the_model_and_not_identity(
    floats, tmp_path, monkeypatch
):
    model, batch = small(), floats(5, 4)
    export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    graph = onnx_package.load(tmp_path / "out" / "model.onnx").graph
    assert [value.name for value in graph.input] == ["x"]
    assert [value.name for value in graph.output] == ["y"]

    def write(conversion, path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.export(path, format="onnx", verbose=False)

    writing(monkeypatch, onnx.FORMAT, write)
    message = (
        r"onnx artefact must have the .* names \['y'\]. Received: \['Identity:0'\]"
    )
    with pytest.raises(ParityError, match=message):
        export(model, tmp_path / "wrong", ["onnx"], example_batch=batch)
    assert not (tmp_path / "wrong").exists()


def test_captured_tensors_are_no_inputs(floats, tmp_path, monkeypatch, runtimes):
    """As the mean and variance of Normalization, which tf2onnx asks callers for."""
    normalization = layers.Normalization()
    normalization.adapt(3 + 2 * floats(100, 4))
    model, batch = small(normalization), floats(5, 4)
    export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    graph = onnx_package.load(tmp_path / "out" / "model.onnx").graph
    assert [value.name for value in graph.input] == ["x"]
    outputs = runtimes["onnx"](tmp_path / "out", {"x": batch})
    np.testing.assert_allclose(outputs["y"], model(batch), rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(onnx, "_without_captures", lambda function, *_: function)
    with pytest.raises(RuntimeError, match="onnx"):
        export(model, tmp_path / "wrong", ["onnx"], example_batch=batch)
    assert not (tmp_path / "wrong").exists()


LOOKUPS = {
    "StringLookup": (layers.StringLookup(vocabulary=["a", "b"]), "string"),
    "IntegerLookup": (layers.IntegerLookup(vocabulary=[3, 5]), "int64"),
    "TextVectorization": (
        layers.TextVectorization(vocabulary=["a", "b"], output_sequence_length=1),
        "string",
    ),
}


@pytest.mark.parametrize("case", LOOKUPS)
def test_lookup_layers_are_refused_by_name_and_before_tf2onnx(
    tmp_path, monkeypatch, case
):
    """tf2onnx writes a file that ONNX Runtime doesn't load."""
    layer, dtype = LOOKUPS[case]
    x = keras.Input((1,), dtype=dtype, name="x")
    model = keras.Model(x, layers.Embedding(4, 2, name="y")(layer(x)))
    batch = np.array([["a"], ["b"], ["c"]], dtype=object)
    if dtype == "int64":
        batch = np.array([[3], [5], [7]])
    with pytest.raises(RuntimeError, match=rf"'onnx'.*\({case}\).*split"):
        export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    # Were it not recognised, what tf2onnx makes of it would be.
    monkeypatch.setattr(onnx, "_refuse_unportable", lambda model: None)
    with pytest.raises(RuntimeError, match="can't be exported as 'onnx'"):
        export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    assert list(tmp_path.iterdir()) == []


def recurrent():
    return keras.Sequential(
        [keras.Input((5, 3), name="x"), layers.LSTM(4), layers.Dense(2, name="y")]
    )


class Products(layers.Layer):
    """LiteRT has no operator for it, TensorFlow has."""

    def call(self, x):
        return tf.math.cumprod(x, axis=1)


FLEX = {
    "LSTM": (recurrent, (5, 3)),
    "cumprod": (lambda: small(Products()), (4,)),
}


@pytest.mark.parametrize("case", FLEX)
def test_tensorflow_operators_are_not_written_unasked(floats, tmp_path, case):
    make, shape = FLEX[case]
    with pytest.raises(RuntimeError, match="(?s)'litert': converting it failed"):
        export(make(), tmp_path / "out", ["litert"], example_batch=floats(4, *shape))
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_keras_itself_traces_wrong_is_refused(floats, tmp_path):
    """Of an open length, `TimeDistributed` takes that of the batch in a graph."""
    x = keras.Input((None, 3), name="x")
    model = keras.Model(x, {"y": layers.TimeDistributed(layers.Dense(2))(x)})
    for name in ("saved_model", "onnx"):
        message = rf"'y' of the {name} artefact must be .* shape \(4, 6, 2\)"
        with pytest.raises(ParityError, match=message):
            export(model, tmp_path / "out", [name], example_batch=floats(4, 6, 3))
    assert list(tmp_path.iterdir()) == []


def test_dynamic_int8_has_no_slow_convolutions(floats, tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2), name="x"),
            layers.Conv2D(3, 3),
            layers.Flatten(),
            layers.Dense(2, name="y"),
        ]
    )
    export(
        model,
        tmp_path / "out",
        ["onnx"],
        example_batch=floats(4, 6, 6, 2),
        quantize="dynamic_int8",
    )
    operators = onnx_operators(tmp_path / "out" / "model.dynamic_int8.onnx")
    assert {"Conv", "MatMulInteger"} <= operators
    assert "ConvInteger" not in operators


def tokens_into(cell):
    return keras.Sequential(
        [
            keras.Input((6,), dtype="int32", name="x"),
            layers.Embedding(20, 8, mask_zero=True),
            cell(8),
            layers.Dense(3, name="y"),
        ]
    )


@pytest.mark.parametrize("cell", [layers.LSTM, layers.GRU])
def test_dynamic_int8_of_an_embedding_before_a_loop(cell, tmp_path, runtimes):
    """ONNX Runtime ends the process on int8 tables whose rows a loop reads."""
    model = tokens_into(cell)
    batch = np.random.default_rng(0).integers(0, 20, (5, 6)).astype("int32")
    export(
        model,
        tmp_path / "out",
        ["onnx"],
        example_batch=batch,
        quantize="dynamic_int8",
    )
    assert "MatMulInteger" in onnx_operators(
        tmp_path / "out" / "model.dynamic_int8.onnx"
    )
    outputs = runtimes["onnx"](tmp_path / "out", {"x": batch}, "dynamic_int8")
    wanted = model(batch).numpy()
    assert np.abs(outputs["y"] - wanted).max() < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("precision", ["int8", "integer_only"])
def test_loops_are_not_calibrated_in_litert(floats, tmp_path, precision):
    """TensorFlow ends the process when it tries."""
    message = f"'litert_{precision}': .* holds a loop.*`unroll=True`"
    with pytest.raises(RuntimeError, match=message):
        export(
            recurrent(),
            tmp_path / "out",
            ["litert"],
            example_batch=floats(4, 5, 3),
            quantize=precision,
            calibration_data=floats(4, 5, 3),
            batch_size=1,
        )
    assert list(tmp_path.iterdir()) == []
