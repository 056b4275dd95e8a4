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
ALL_CLIENTS = sorted(CLIENTS.glob("*/client.py"))


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


def test_onnxruntime_client_refuses_a_provider_that_is_not_there(exported):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("it is there")
    folder, _ = exported
    client = CLIENTS / "onnxruntime" / "client.py"
    files = [folder / "student/model.onnx", folder / "batch.npz"]
    result = subprocess.run(
        [sys.executable, str(client), *map(str, files), "CUDAExecutionProvider"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert result.stderr.endswith("not to be had here: CUDAExecutionProvider\n")
    assert not result.stdout


def test_litert_names_that_the_kotlin_class_uses(exported):
    """`CompiledModel` by signature and names, on a batch of 1 that isn't resized."""
    compiled = pytest.importorskip("ai_edge_litert.compiled_model")
    folder, expected = exported
    batch = dict(np.load(folder / "batch.npz"))
    path = str(folder / "student" / "model.tflite")
    with compiled.CompiledModel.from_file(path) as model:
        signature = "serving_default"
        assert set(model.get_signature_list()[signature]["inputs"]) == set(batch)
        (name,) = model.get_signature_list()[signature]["outputs"]
        inputs = {}
        for key, value in batch.items():
            inputs[key] = model.create_input_buffer_by_name(signature, key)
            inputs[key].write(value[:1])
        outputs = {name: model.create_output_buffer_by_name(signature, name)}
        model.run_by_name(signature, inputs, outputs)
        row = outputs[name].read(expected[0].size, np.float32)
    np.testing.assert_allclose(row, expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("client", [path.parent.name for path in ALL_CLIENTS])
def test_client_imports_neither_keras_nor_this_package(client):
    tree = ast.parse((CLIENTS / client / "client.py").read_text())
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported and not any("keras" in name for name in imported)
