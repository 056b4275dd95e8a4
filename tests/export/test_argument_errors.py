"""Every argument of `export` that can't be used: its value, and what to pass."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_distill.export import export

BATCH = np.ones((3, 4), "float32")
DATASET = tf.data.Dataset.from_tensor_slices(BATCH).batch(2)
LIST = r"a list of some of \['saved_model', 'onnx', 'litert'\]. Received: formats="
ARRAYS = "`example_batch` must hold arrays. Received: "
ONE = r"one array for each of the 1 inputs \['x'\]. Received: "
NUMBER = "`tolerance` must be a number, or a dict of numbers by .*Received: tolerance="
VERSION = "number from 1 on, 'next', or None. Received: version="

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
