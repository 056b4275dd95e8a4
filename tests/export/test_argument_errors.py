"""Every argument of `export` that can't be used: its value, and what to pass."""

import json
import pathlib
from fractions import Fraction

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_distill.export import Evaluation, export
from keras_distill.export.latency import measure

BATCH = np.ones((3, 4), "float32")
DATASET = tf.data.Dataset.from_tensor_slices(BATCH).batch(2)
LIST = r"a list of some of \['saved_model', 'onnx', 'litert'\]. Received: formats="
ARRAYS = "`example_batch` must hold arrays. Received: "
ONE = r"one array for each of the 1 inputs \['x'\]. Received: "
NUMBER = "`tolerance` must be a number, or a dict of numbers by .*Received: tolerance="
VERSION = "number from 1 on, 'next', or None. Received: version="
INF, NAN = float("inf"), float("nan")

CASES = [
    ({"formats": None}, ValueError, f"{LIST}None"),
    ({"formats": 3}, ValueError, f"{LIST}3"),
    ({"formats": [3]}, ValueError, rf"{LIST}\[3\]"),
    ({"formats": [["onnx"]]}, ValueError, rf"{LIST}\[\['onnx'\]\]"),
    ({"formats": b"onnx"}, ValueError, f"{LIST}b'onnx'"),
    ({"quantize": 3}, ValueError, "quantize=3"),
    ({"quantize": True}, ValueError, "quantize=True"),
    ({"quantize": [None]}, ValueError, r"quantize=\[None\]"),
    ({"quantize": "int8"}, ValueError, "'int8'. Add 'onnx' or 'litert' to `formats`"),
    (
        {"quantize": "int4", "formats": ["onnx"]},
        ValueError,
        "'int8'.*='int4'",
    ),
    ({"example_batch": DATASET}, ValueError, f"{ARRAYS}.*Dataset.*next.iter.dataset"),
    ({"example_batch": iter([BATCH])}, ValueError, f"{ARRAYS}list_iterator.*next"),
    ({"example_batch": "x.npz"}, ValueError, f"{ARRAYS}str.*numpy.load"),
    (
        {"example_batch": pathlib.Path("x")},
        ValueError,
        f"{ARRAYS}PosixPath.*load",
    ),
    ({"example_batch": {"x": None}}, ValueError, f"{ARRAYS}NoneType"),
    ({"example_batch": keras.Input((4,))}, ValueError, f"{ARRAYS}KerasTensor"),
    ({"example_batch": (BATCH, BATCH)}, ValueError, f"{ONE}2 of .*without labels"),
    ({"example_batch": [[1, 2], [3]]}, ValueError, f"{ONE}2 of .*numpy.asarray"),
    ({"example_batch": []}, ValueError, f"{ONE}0 of type list"),
    ({"example_batch": 3}, ValueError, r"must have shape \(None, 4\).*shape=\(\)"),
    ({"example_batch": {"z": BATCH}}, ValueError, r"keys \['x'\].*keys=\['z'\]"),
    ({"batch_size": "3"}, TypeError, "whole number, or None.*batch_size='3'"),
    ({"batch_size": 2.0}, TypeError, "whole number, or None.*batch_size=2.0"),
    ({"batch_size": True}, TypeError, "whole number, or None.*batch_size=True"),
    ({"tolerance": "1e-3"}, TypeError, f"{NUMBER}'1e-3'"),
    ({"tolerance": [1e-3]}, TypeError, rf"{NUMBER}\[0.001\]"),
    ({"tolerance": True}, TypeError, f"{NUMBER}True"),
    ({"tolerance": {"full": None}}, TypeError, f"{NUMBER}{{'full': None}}"),
    ({"batch_size": np.float32(2)}, TypeError, r"whole number, .*np.float32\(2.0\)"),
    ({"batch_size": np.True_}, TypeError, "whole number, .*batch_size=np.True_"),
    ({"batch_size": np.array([2])}, TypeError, r"whole number, .*array\(\[2\]\)"),
    ({"batch_size": np.int64(0)}, ValueError, "at least 1. Received: batch_size=0"),
    ({"tolerance": INF}, ValueError, "positive and finite.*tolerance=inf"),
    ({"tolerance": np.float32(INF)}, ValueError, "positive and finite.*=inf"),
    ({"tolerance": 10**400}, ValueError, "positive and finite.*tolerance=1000"),
    ({"tolerance": {"int8": NAN}}, ValueError, "finite.*{'int8': nan}"),
    ({"tolerance": {3: 0.1}}, ValueError, r"keys=\[3\]"),
    ({"version": np.int64(0)}, ValueError, rf"{VERSION}np.int64\(0\)"),
    ({"version": INF}, ValueError, f"{VERSION}inf"),
    ({"provenance": {"loss": NAN}}, ValueError, "what JSON can hold.*{'loss': nan}"),
    (
        {"provenance": {"loss": [np.float32(INF)]}},
        ValueError,
        r"what JSON can hold.*np.float32\(inf\)",
    ),
    ({"provenance": {"a": {1}}}, ValueError, "what JSON can hold.*set is nothing"),
    ({"evaluation": (BATCH, BATCH)}, TypeError, r"as `Evaluation\(\(x, y\).*tuple"),
    ({"evaluation": "acc"}, TypeError, "export.Evaluation.*'acc' of type str"),
    ({"version": "3"}, ValueError, f"{VERSION}'3'"),
    ({"version": True}, ValueError, f"{VERSION}True"),
    ({"version": 1.0}, ValueError, f"{VERSION}1.0"),
    ({"directory": None}, TypeError, "`directory` must be the path.*=None"),
    ({"directory": ""}, TypeError, "`directory` must be the path.*=''"),
    ({"preprocessing": len}, TypeError, "`preprocessing` must be a Keras.*len"),
    ({"provenance": [3]}, ValueError, r"must be a dict of what JSON.*\[3\].*a list"),
    ({"model": layers.Dense(2)}, TypeError, "must be a `keras.Model` or .*Dense"),
    ({"model": b"x.keras"}, TypeError, "must be a `keras.Model` or .*bytes"),
]


def test_the_value_and_the_remedy(tmp_path):
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(2)])
    usual = {
        "model": model,
        "directory": tmp_path / "out",
        "formats": ["saved_model"],
        "example_batch": BATCH,
    }
    for change, error, message in CASES:
        with pytest.raises(error, match=f"(?s){message}"):
            export(**{**usual, **change})
        assert list(tmp_path.iterdir()) == [], change


MSE = keras.metrics.MeanSquaredError()
DATA = (BATCH, np.zeros((3, 2), "float32"))


def test_numbers_of_numpy_are_numbers(tmp_path):
    model = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(2)])
    drop = np.float32(0.5)
    evaluation = Evaluation(DATA, MSE, max_drop=drop, batch_size=np.int64(2))
    usual = {"formats": ["saved_model"], "example_batch": BATCH}
    manifest = export(
        model,
        tmp_path,
        batch_size=np.int64(2),
        version=np.int32(7),
        tolerance={"full": np.float32(0.25), "int8": Fraction(1, 8)},
        evaluation=evaluation,
        provenance={"a": np.float32(0.5), "b": [np.bool_(True), np.arange(2)]},
        **usual,
    )
    written = json.loads((tmp_path / "7" / "manifest.json").read_text())
    assert written == json.loads(json.dumps(manifest)) == manifest
    assert [manifest["batch_size"], manifest["version"]] == [2, 7]
    assert manifest["artefacts"]["saved_model"]["tolerance"] == 0.25
    assert manifest["evaluation"]["max_drop"] == 0.5
    assert manifest["provenance"] == {"a": 0.5, "b": [True, [0, 1]]}
    options = {"batch_size": np.array(3, "uint8"), "version": np.array(8), **usual}
    manifest = export(model, tmp_path, tolerance=np.int8(1), **options)
    assert [manifest["batch_size"], manifest["version"]] == [3, 8]
    rows = measure(tmp_path / "8", batch_sizes=np.array([3]), calls=np.int8(5))
    assert json.loads(json.dumps(rows)) == rows


def test_an_evaluation_tells_the_number():
    for change, error, message in [
        ({"max_drop": INF}, ValueError, "finite and.*Received: max_drop=inf"),
        ({"max_drop": NAN}, ValueError, "Received: max_drop=nan"),
        ({"max_drop": True}, TypeError, "a number. Received: max_drop=True"),
        ({"max_drop": None}, TypeError, "a number. Received: max_drop=None"),
        ({"max_drop": "1"}, TypeError, "a number. Received: max_drop='1'"),
        ({"batch_size": 2.5}, TypeError, "whole number. Received: batch_size=2.5"),
    ]:
        with pytest.raises(error, match=message):
            Evaluation(DATA, MSE, **{"max_drop": 0.1, **change})


def test_a_measurement_tells_the_number():
    for change, message in [
        ({"batch_sizes": 3}, "a list of whole numbers.*batch_sizes=3"),
        ({"batch_sizes": []}, r"a list of whole numbers.*batch_sizes=\[\]"),
        ({"batch_sizes": [1, 1.5]}, r"a list of whole numbers.*\[1, 1.5\]"),
        ({"batch_sizes": "12"}, "a list of whole numbers.*'12'"),
        ({"calls": 0}, "whole number from 1 on.*calls=0"),
        ({"calls": 2.5}, "whole number from 1 on.*calls=2.5"),
        ({"seconds": NAN}, "positive number.*seconds=nan"),
        ({"seconds": -1}, "positive number.*seconds=-1"),
        ({"threads": 0}, "whole number from 1 on.*threads=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            measure("nowhere", **change)


@pytest.mark.parametrize(
    ("value", "counted"), [(NAN, "2 NaN and 0 inf"), (-INF, "0 NaN and 2 inf")]
)
@pytest.mark.parametrize("argument", ["example_batch", "calibration_data"])
def test_values_that_make_nan_are_no_fault_of_the_model(
    argument, value, counted, tmp_path
):
    x = keras.Input((4,), name="x")
    model = keras.Model(x, layers.Dense(2)(x - x))
    wrong = BATCH.copy()
    wrong[:2, 1] = value
    given = {"example_batch": BATCH, "calibration_data": BATCH, argument: wrong}
    message = f"`{argument}` must be finite.*{counted}.*12 values of the input 'x'"
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "o", ["onnx"], quantize="int8", **given)


def test_nan_of_the_preprocessing_or_of_the_model(tmp_path):
    x = keras.Input((4,), name="x")
    log = keras.Model(x, keras.ops.log(x))
    core = keras.Sequential([keras.Input((4,), name="x"), layers.Dense(2)])
    usual = {"formats": ["onnx"], "example_batch": -BATCH}
    with pytest.raises(ValueError, match="`preprocessing` must be finite.*12 NaN"):
        export(core, tmp_path / "o", preprocessing=log, **usual)
    with pytest.raises(ValueError, match="`model` must give no NaN"):
        export(log, tmp_path / "o", **usual)
