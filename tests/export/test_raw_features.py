"""A SavedModel that takes raw features, with the preprocessing inside."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.export import Evaluation, export, split_preprocessing, verify


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    color = keras.Input((), dtype="string", name="color")
    size = keras.Input((2,), name="size")
    ids = layers.StringLookup(vocabulary=["red", "blue"], name="lookup")(color)
    scaled = layers.Normalization(mean=3.0, variance=4.0)(size)
    x = layers.Concatenate()([layers.Embedding(3, 4)(ids), scaled])
    return keras.Model(
        {"color": color, "size": size}, layers.Dense(3, name="scores")(x)
    )


@pytest.fixture
def raw(floats):
    colors = np.array(["red", "green", "blue", "red"], dtype=object)
    return {"color": colors, "size": 3 + floats(4, 2)}


# Plain TensorFlow: neither Keras nor this package can be imported.
PROGRAM = """
import json, sys
sys.modules.update(keras=None, keras_distill=None)
import tensorflow as tf
directory, raw = sys.argv[1], json.loads(sys.argv[2])
saved = tf.saved_model.load(directory)
raw = {name: tf.constant(values) for name, values in raw.items()}
outputs = saved.signatures["serving_raw"](**raw)
print(json.dumps({name: array.numpy().tolist() for name, array in outputs.items()}))
"""


def raw_answers(directory, raw):
    raw = json.dumps({name: array.tolist() for name, array in raw.items()})
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory / "saved_model"), raw],
        capture_output=True,
        text=True,
        cwd=directory,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_both_signatures_and_every_format(model, raw, tmp_path, runtimes):
    preprocessing, core = split_preprocessing(model)
    out = tmp_path / "out"
    labels = np.argmax(model(raw), -1)
    manifest = export(
        core,
        out,
        example_batch=raw,
        preprocessing=preprocessing,
        quantize="int8",
        calibration_data=raw,
        evaluation=Evaluation(
            (raw, labels), keras.metrics.SparseCategoricalAccuracy(), max_drop=0.5
        ),
    )
    expected = np.array(model(raw))
    answers = raw_answers(out, raw)
    np.testing.assert_allclose(answers["scores"], expected, atol=1e-5)
    prepared = {name: np.array(t) for name, t in preprocessing(raw).items()}
    for name, run in runtimes.items():
        got = run(out, prepared)["scores"]
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=name)
    names = [spec["name"] for spec in manifest["signature"]["raw_inputs"]]
    assert names == ["color", "size"]
    assert manifest["evaluation"]["keras"] == 1
    assert verify(out)["ok"]


def test_raw_signature_of_a_fixed_batch(model, raw, tmp_path):
    preprocessing, core = split_preprocessing(model)
    export(
        core,
        tmp_path / "out",
        ["saved_model"],
        example_batch={name: array[:3] for name, array in raw.items()},
        preprocessing=preprocessing,
        batch_size=2,
    )
    two = {name: array[:2] for name, array in raw.items()}
    got = raw_answers(tmp_path / "out", two)["scores"]
    np.testing.assert_allclose(got, model(two), atol=1e-5)
    assert verify(tmp_path / "out")["ok"]


def test_a_layer_as_preprocessing(floats, tmp_path):
    vectorize = layers.TextVectorization(
        vocabulary=["good", "bad"], output_sequence_length=4
    )
    tokens = keras.Input((4,), dtype="int64", name="tokens")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(4, 3)(tokens))
    model = keras.Model(tokens, layers.Dense(2, name="y")(x))
    text = np.array(["good good", "bad film", ""], dtype=object)
    export(
        model,
        tmp_path / "out",
        ["saved_model"],
        example_batch=text,
        preprocessing=vectorize,
    )
    got = raw_answers(tmp_path / "out", {"input": text})["y"]
    np.testing.assert_allclose(got, model(vectorize(text)), atol=1e-5)


def test_a_wrong_raw_signature_is_not_published(model, raw, tmp_path, monkeypatch):
    from keras_distill.export import saved_model

    real = saved_model.load_signature

    def load(path, signature):
        loaded = real(path, signature)
        if signature == saved_model.RAW_SIGNATURE:
            run = loaded.run
            object.__setattr__(
                loaded, "run", lambda x: {k: v + 1 for k, v in run(x).items()}
            )
        return loaded

    monkeypatch.setattr(saved_model, "load_signature", load)
    preprocessing, core = split_preprocessing(model)
    with pytest.raises(RuntimeError, match="saved_model artefact must agree"):
        export(
            core,
            tmp_path / "out",
            ["saved_model"],
            example_batch=raw,
            preprocessing=preprocessing,
        )
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_that_gives_other_inputs_is_refused(floats, tmp_path):
    x = keras.Input((2,), name="x")
    model = keras.Model(x, layers.Dense(2)(x))
    raw = keras.Input((2,), name="raw")
    other = keras.Model({"raw": raw}, {"z": layers.Rescaling(2.0)(raw)})
    with pytest.raises(ValueError, match=r"must have the keys \['x'\].*\['z'\]"):
        export(
            model,
            tmp_path / "out",
            example_batch={"raw": floats(2, 2)},
            preprocessing=other,
        )
