"""The clients in `export/` score what an export holds as Keras does."""

import ast
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_distill as kd

CLIENTS = pathlib.Path(__file__).parents[2] / "export"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    keras.utils.set_random_seed(0)
    image = keras.Input((6,), name="image")
    age = keras.Input((1,), name="age")
    joined = keras.layers.Concatenate()([image, age])
    model = keras.Model({"image": image, "age": age}, keras.layers.Dense(3)(joined))
    batch = {
        "image": np.random.rand(5, 6).astype("float32"),
        "age": np.random.rand(5, 1).astype("float32"),
    }
    folder = tmp_path_factory.mktemp("client")
    kd.export.export(model, folder / "student", example_batch=batch)
    np.savez(folder / "batch.npz", **batch)
    return folder, np.asarray(model(batch))


@pytest.mark.parametrize(
    ("client", "file"),
    [
        ("onnxruntime", "model.onnx"),
        ("litert", "model.tflite"),
        ("saved_model", "saved_model"),
    ],
)
def test_client_scores_as_keras_does(client, file, exported):
    folder, expected = exported
    result = subprocess.run(
        [
            sys.executable,
            str(CLIENTS / client / "client.py"),
            str(folder / "student" / file),
            str(folder / "batch.npz"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    name, _, rest = result.stdout.partition(" ")
    shape, _, row = rest.partition(") ")
    assert name == "dense" or name.startswith("dense")
    assert ast.literal_eval(shape + ")") == expected.shape
    np.testing.assert_allclose(ast.literal_eval(row), expected[0], atol=1e-4)


@pytest.mark.parametrize("client", ["onnxruntime", "litert", "saved_model"])
def test_client_imports_neither_keras_nor_this_package(client):
    tree = ast.parse((CLIENTS / client / "client.py").read_text())
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported and not any("keras" in name for name in imported)
