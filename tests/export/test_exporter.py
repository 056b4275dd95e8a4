import json

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.export import arguments, export, exporter, onnx


class TwoHeads(keras.Model):
    """Subclassed: a dict of inputs, a list of outputs, `call` without `training`."""

    def __init__(self):
        super().__init__()
        self.left = layers.Dense(2)
        self.right = layers.Dense(3)

    def call(self, inputs):
        return [self.left(inputs["a"]), self.right(inputs["b"]) + 1.0]


def check_parity(model, inputs, directory, runtimes, names):
    """Export, then compare what the files give with Keras on three batch sizes."""
    export(model, directory, example_batch=inputs)
    for size in (1, 3, 7):
        batch = keras.tree.map_structure(
            lambda x, n=size: np.resize(x, (n, *x.shape[1:])), inputs
        )
        expected = keras.tree.flatten(model(batch, training=False))
        named = names[0] if isinstance(batch, dict) else None
        values = [batch[name] for name in named] if named else keras.tree.flatten(batch)
        arrays = dict(zip(names[0], values, strict=True))
        for name, run in runtimes.items():
            outputs = run(directory, arrays)
            assert sorted(outputs) == sorted(names[1]), name
            for key, want in zip(names[1], expected, strict=True):
                np.testing.assert_allclose(
                    outputs[key], want, rtol=1e-5, atol=1e-5, err_msg=name
                )


def test_functional(dense_model, floats, tmp_path, runtimes):
    names = (["features"], ["scores"])
    check_parity(dense_model, floats(4, 4), tmp_path / "out", runtimes, names)


def test_list_inputs_keep_the_order_of_the_model(floats, tmp_path, runtimes):
    z, a = keras.Input((3,), name="z"), keras.Input((2,), name="a")
    outputs = [layers.Dense(2, name="zz")(z), layers.Dense(2, name="aa")(a)]
    names = (["z", "a"], ["zz", "aa"])
    model = keras.Model([z, a], outputs)
    check_parity(model, [floats(4, 3), floats(4, 2)], tmp_path / "o", runtimes, names)


def test_sequential_of_tokens_with_a_mask(tmp_path, runtimes):
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32", name="tokens"),
            layers.Embedding(11, 4, mask_zero=True),
            layers.GlobalAveragePooling1D(),
            layers.Dense(2, name="scores"),
        ]
    )
    tokens = np.random.default_rng(0).integers(0, 11, (4, 5)).astype("int32")
    names = (["tokens"], ["scores"])
    check_parity(model, tokens, tmp_path / "out", runtimes, names)


def test_subclassed(floats, tmp_path, runtimes):
    model = TwoHeads()
    batch = {"b": floats(4, 3), "a": floats(4, 2)}
    model(batch)
    names = (["b", "a"], ["output_0", "output_1"])
    check_parity(model, batch, tmp_path / "out", runtimes, names)


def test_conv_net_with_dicts(exported, conv_model, conv_batch, runtimes):
    directory, _ = exported
    for rows in (slice(None), slice(2), slice(1)):
        batch = {name: array[rows] for name, array in conv_batch.items()}
        expected = conv_model(batch, training=False)
        for name, run in runtimes.items():
            outputs = run(directory, batch)
            assert set(outputs) == {"digit", "tilt"}
            for key in outputs:
                np.testing.assert_allclose(
                    outputs[key], expected[key], rtol=1e-5, atol=1e-5, err_msg=name
                )


def test_the_model_is_left_as_it_was(dense_model, floats, tmp_path):
    before = dense_model.get_weights()
    dense_model.trainable = False
    export(dense_model, tmp_path / "o", ["saved_model"], example_batch=floats(2, 4))
    assert dense_model.trainable is False
    for weight, array in zip(dense_model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, array)


def test_formats_are_those_asked_for(dense_model, floats, tmp_path):
    export(dense_model, tmp_path / "out", ["litert"], example_batch=floats(2, 4))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.tflite", "examples.npz", "manifest.json"}


def test_export_replaces_an_earlier_one_whole(dense_model, floats, tmp_path):
    directory = tmp_path / "out"
    export(dense_model, directory, ["saved_model"], example_batch=floats(2, 4))
    returned = export(dense_model, directory, ["onnx"], example_batch=floats(2, 4))
    assert {path.name for path in directory.iterdir()} == {
        "model.onnx",
        "examples.npz",
        "manifest.json",
    }
    assert json.loads((directory / "manifest.json").read_text()) == returned
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_converter_that_fails_leaves_the_old_export(
    dense_model, floats, tmp_path, monkeypatch
):
    directory = tmp_path / "out"
    export(dense_model, directory, ["onnx"], example_batch=floats(2, 4))
    before = (directory / "model.onnx").read_bytes()

    def broken(conversion, path):
        path.write_bytes(b"half a fi")
        raise KeyError("no such op")

    failing = onnx.Format(**{**vars(onnx.FORMAT), "write": broken})
    monkeypatch.setattr(arguments, "_FORMATS", (failing,))
    with pytest.raises(RuntimeError, match="'onnx': converting it failed.*no such op"):
        export(dense_model, directory, ["onnx"], example_batch=floats(2, 4))
    assert (directory / "model.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_artefact_of_other_weights_is_not_published(
    dense_model, floats, tmp_path, monkeypatch
):
    def wrong(conversion, path):
        model = conversion.served.model
        model.set_weights([w + 0.01 for w in model.get_weights()])
        onnx.write(conversion, path)
        model.set_weights([w - 0.01 for w in model.get_weights()])

    monkeypatch.setattr(
        arguments, "_FORMATS", (onnx.Format(**{**vars(onnx.FORMAT), "write": wrong}),)
    )
    with pytest.raises(RuntimeError, match="'scores' of the onnx .* within .* Keras"):
        export(dense_model, tmp_path / "out", ["onnx"], example_batch=floats(2, 4))
    assert list(tmp_path.iterdir()) == []


def test_nan_weights_are_refused(dense_model, floats, tmp_path):
    kernel, bias = dense_model.get_weights()
    dense_model.set_weights([kernel, bias * np.nan])
    with pytest.raises(ValueError, match="no NaN in its weights.* 2 NaN in .*bias"):
        export(dense_model, tmp_path / "out", example_batch=floats(2, 4))
    assert list(tmp_path.iterdir()) == []


def test_nan_outputs_are_refused(tmp_path):
    x = keras.Input((2,), name="x")
    model = keras.Model(x, {"y": keras.ops.log(x)})
    with pytest.raises(ValueError, match="no NaN .* 1 NaN among the 4 .* 'y'"):
        export(model, tmp_path / "out", example_batch=np.array([[1, -1], [1, 1.0]]))


def test_a_random_model_is_refused(floats, tmp_path):
    x = keras.Input((2,), name="x")
    noise = layers.Lambda(lambda t: t + keras.random.normal(keras.ops.shape(t)))
    with pytest.raises(RuntimeError, match="saved_model artefact must agree"):
        export(keras.Model(x, noise(x)), tmp_path / "out", example_batch=floats(4, 2))


def test_tolerance_decides(floats, tmp_path):
    # A sum of 2**12 products: every runtime rounds it in its own order.
    model = keras.Sequential([keras.Input((4096,), name="x"), layers.Dense(8)])
    batch = floats(8, 4096)
    with pytest.raises(RuntimeError, match=r"`tolerance` 1e-12"):
        export(model, tmp_path / "o", ["onnx"], example_batch=batch, tolerance=1e-12)
    manifest = export(model, tmp_path / "o", ["onnx"], example_batch=batch)
    assert 0 < manifest["artefacts"]["onnx"]["max_abs_difference"] < 1e-5 * 10


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": 3}, TypeError, "`model` must be a `keras.Model` or .*: int"),
        ({"model": "m.keras"}, FileNotFoundError, "Received: 'm.keras', where .*no"),
        ({"model": TwoHeads()}, ValueError, "`model` must be built.*two_heads"),
        ({"formats": ["onnx", "tfjs"]}, ValueError, "some of .*litert.*tfjs"),
        ({"formats": "onnx"}, ValueError, "must be a list"),
        ({"formats": []}, ValueError, r"Received: formats=\[\]"),
        ({"example_batch": None}, ValueError, "`example_batch` must be a batch"),
        ({"batch_size": 0}, ValueError, "at least 1. Received: batch_size=0"),
        ({"provenance": {"a": np.nan}}, ValueError, "what JSON can hold.* nan"),
        ({"tolerance": {"int4": 0.1}}, ValueError, r"the keys .*keys=\['int4'\]"),
        ({"tolerance": {"int8": -1}}, ValueError, "must be positive.*'int8': -1"),
        ({"tolerance": 0.0}, ValueError, "`tolerance` must be positive.*=0.0"),
        ({"tolerance": float("nan")}, ValueError, "`tolerance` must be positive.*nan"),
    ],
)
def test_arguments(dense_model, tmp_path, change, error, message):
    arguments = {
        "model": dense_model,
        "directory": tmp_path / "out",
        "example_batch": np.ones((2, 4)),
        **change,
    }
    with pytest.raises(error, match=message):
        export(**arguments)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place_is_told_before_any_conversion(
    dense_model, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(exporter, "serve", None)  # would raise another error
    with pytest.raises(OSError, match="process can write.*file/out"):
        export(dense_model, tmp_path / "file" / "out", example_batch=np.ones((2, 4)))
