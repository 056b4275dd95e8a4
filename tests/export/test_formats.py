import builtins
import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_distill.export import export, litert, onnx, saved_model
from keras_distill.export.formats import Target


@pytest.mark.parametrize(
    ("target", "module", "extra"),
    [
        (onnx.FORMAT, "tf2onnx", "onnx"),
        (onnx.FORMAT, "onnxruntime", "onnx"),
        (litert.FORMAT, "ai_edge_litert", "litert"),
    ],
)
def test_a_missing_package_names_its_extra(
    dense_model, tmp_path, monkeypatch, target, module, extra
):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == module else found(name),
    )
    with pytest.raises(ImportError, match=rf"pip install keras-distill\[{extra}\]"):
        export(
            dense_model, tmp_path / "o", [target.name], example_batch=np.ones((2, 4))
        )
    assert list(tmp_path.iterdir()) == []


def test_saved_model_needs_no_extra(dense_model, tmp_path, monkeypatch):
    imported = builtins.__import__

    def refuse(name, *rest):
        assert name.split(".")[0] not in {"tf2onnx", "onnxruntime", "ai_edge_litert"}
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    path = tmp_path / "out"
    returned = export(dense_model, path, ["saved_model"], example_batch=np.ones((2, 4)))
    assert set(returned["versions"]) == {"python", "keras", "tensorflow"}


def test_system_errors_pass_as_they_are():
    target = Target(onnx.FORMAT)
    with pytest.raises(OSError, match="No space left"), target.explaining("it"):
        raise OSError(28, "No space left on device")


def test_lookup_layers_are_refused_by_onnx_and_held_by_the_others(tmp_path, runtimes):
    lookup = layers.StringLookup(
        vocabulary=["a", "b"], output_mode="one_hot", name="looking"
    )
    x = keras.Input((), dtype="string", name="word")
    model = keras.Model(x, layers.Dense(2, name="y")(lookup(x)))
    words = np.array(["a", "b", "zebra"], dtype=object)
    with pytest.raises(RuntimeError, match="'onnx'.*'looking' .*split them off"):
        export(model, tmp_path / "out", example_batch=words)
    assert list(tmp_path.iterdir()) == []
    kept = ["saved_model", "litert"]
    export(model, tmp_path / "out", kept, example_batch=words)
    expected = np.array(model(words))
    for name in kept:
        outputs = runtimes[name](tmp_path / "out", {"word": words})
        np.testing.assert_allclose(outputs["y"], expected, rtol=1e-6, err_msg=name)


class Hashed(layers.Layer):
    """Hashing by hand: only the converter finds out."""

    def call(self, ids):
        text = tf.strings.as_string(ids)
        return tf.cast(tf.strings.to_hash_bucket_fast(text, 5), "float32")


class LookedUp(layers.Layer):
    """A table by hand."""

    def build(self, shape):
        entries = tf.lookup.KeyValueTensorInitializer([1, 2], [0.5, 0.25])
        self.table = tf.lookup.StaticHashTable(entries, 0.0)

    def call(self, ids):
        return self.table.lookup(tf.cast(ids, "int32"))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [(Hashed, "StringToHashBucketFast.*supported"), (LookedUp, "holds lookup tables")],
)
def test_operators_that_tf2onnx_lacks_are_named(tmp_path, layer, reason):
    x = keras.Input((3,), dtype="int64", name="ids")
    model = keras.Model(x, layers.Dense(2)(layer()(x)))
    with pytest.raises(RuntimeError, match=f"(?s)'onnx'.*{reason}.*split off"):
        export(model, tmp_path / "o", ["onnx"], example_batch=np.ones((2, 3), "int64"))
    assert list(tmp_path.iterdir()) == []


def test_normalization_adds_no_inputs_to_onnx(floats, tmp_path, runtimes):
    normalization = layers.Normalization()
    normalization.adapt(3 + 2 * floats(100, 4))
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(2, name="y")(normalization(x)))
    batch = floats(5, 4)
    export(model, tmp_path / "out", example_batch=batch)
    for name, run in runtimes.items():
        outputs = run(tmp_path / "out", {"x": batch})
        np.testing.assert_allclose(
            outputs["y"], model(batch), rtol=1e-5, atol=1e-5, err_msg=name
        )


def recurrent(cell, **options):
    x = keras.Input((5, 3), name="x")
    return keras.Model(x, layers.Dense(2, name="y")(cell(4, **options)(x)))


@pytest.mark.parametrize("cell", [layers.LSTM, layers.GRU])
def test_recurrent_models_in_onnx(cell, floats, tmp_path, runtimes):
    model, batch = recurrent(cell), floats(4, 5, 3)
    export(model, tmp_path / "out", ["onnx"], example_batch=batch)
    outputs = runtimes["onnx"](tmp_path / "out", {"x": batch[:3]})
    np.testing.assert_allclose(outputs["y"], model(batch[:3]), rtol=1e-5, atol=1e-6)


def test_lstm_in_litert_wants_unroll(floats, tmp_path, runtimes):
    batch = floats(4, 5, 3)
    with pytest.raises(RuntimeError, match="(?s)'litert'.*TensorList.*`unroll=True`"):
        export(recurrent(layers.LSTM), tmp_path / "o", ["litert"], example_batch=batch)
    model = recurrent(layers.LSTM, unroll=True)
    export(model, tmp_path / "o", ["litert"], example_batch=batch)
    outputs = runtimes["litert"](tmp_path / "o", {"x": batch[:3]})
    np.testing.assert_allclose(outputs["y"], model(batch[:3]), rtol=1e-5, atol=1e-6)


def test_onnx_opset_and_axes(exported):
    import onnx as onnx_package

    proto = onnx_package.load(exported[0] / "model.onnx")
    assert [(o.domain, o.version) for o in proto.opset_import if not o.domain] == [
        ("", onnx.OPSET)
    ]
    for value in [*proto.graph.input, *proto.graph.output]:
        first, *rest = value.type.tensor_type.shape.dim
        assert first.dim_param == "batch"
        assert all(dim.dim_value > 0 for dim in rest)


def test_open_axes_stay_open_in_every_format(floats, tmp_path, runtimes):
    x = keras.Input((None, 3), name="x")
    model = keras.Model(x, {"y": layers.Conv1D(2, 3)(x)})
    export(model, tmp_path / "out", example_batch=floats(4, 9, 3))
    batch = floats(2, 20, 3)
    for name, run in runtimes.items():
        outputs = run(tmp_path / "out", {"x": batch})
        np.testing.assert_allclose(
            outputs["y"], model(batch)["y"], rtol=1e-5, atol=1e-5, err_msg=name
        )


def test_saved_model_has_both_signatures(exported):
    saved = tf.saved_model.load(str(exported[0] / "saved_model"))
    assert set(saved.signatures) == {"serve", saved_model.SIGNATURE}
    outputs = saved.serve({"image": np.ones((2, 8, 8, 1)), "extra": np.ones((2, 3))})
    assert outputs["digit"].shape == (2, 5)
