import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill.export import export
from keras_distill.export.loading import load_arrays


def test_a_keras_file_is_exported_as_its_model(dense_model, floats, tmp_path, runtimes):
    dense_model.save(tmp_path / "student.keras")
    batch = floats(3, 4)
    for path in (tmp_path / "student.keras", str(tmp_path / "student.keras")):
        export(path, tmp_path / "out", ["onnx"], example_batch=batch)
        got = runtimes["onnx"](tmp_path / "out", {"features": batch})["scores"]
        np.testing.assert_allclose(got, dense_model(batch), rtol=1e-5, atol=1e-6)


def refused(path, message, error=ValueError):
    with pytest.raises(error, match=message):
        export(path, path.parent / "out", ["onnx"], example_batch=np.ones((2, 2)))
    assert not (path.parent / "out").exists()


def test_code_in_a_file_is_refused(tmp_path):
    x = keras.Input((2,))
    path = tmp_path / "evil.keras"
    keras.Model(x, layers.Lambda(lambda t: t + 1)(x)).save(path)
    refused(path, "(?s)safe mode.*evil.keras.*Lambda")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "model.h5").write_bytes(b"x")
    refused(tmp_path / "model.h5", r"path of a `.keras` file.*model.h5.*model.keras")
    (tmp_path / "half.keras").write_bytes(b"PK half a file")
    refused(tmp_path / "half.keras", "safe mode.*half.keras")
    message = "where there is no file"
    refused(tmp_path / "absent.keras", message, FileNotFoundError)


def test_a_saved_distiller_is_its_student(dense_model, floats, tmp_path, runtimes):
    teacher = keras.models.clone_model(dense_model)
    distiller = kd.Distiller(dense_model, teacher)
    distiller.compile("sgd", "mse", distillation_loss="mse")
    distiller.fit(floats(4, 4), floats(4, 2), verbose=0)
    distiller.save(tmp_path / "run.keras")
    batch = floats(2, 4)
    manifest = export(
        tmp_path / "run.keras", tmp_path / "out", ["onnx"], example_batch=batch
    )
    assert manifest["parameters"] == dense_model.count_params()
    [name] = (spec["name"] for spec in manifest["signature"]["inputs"])
    [got] = runtimes["onnx"](tmp_path / "out", {name: batch}).values()
    np.testing.assert_allclose(got, dense_model(batch), rtol=1e-5, atol=1e-6)


def test_arrays_by_name(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.ones((2, 3)), word=np.array(["a", "bc"]))
    arrays = load_arrays(tmp_path / "data.npz")
    assert set(arrays) == {"x", "word"}
    assert arrays["word"].tolist() == ["a", "bc"]
    assert arrays["word"].dtype == object


@pytest.mark.parametrize("content", ["pickle", "array", "text"])
def test_what_holds_no_arrays_is_refused(tmp_path, content):
    path = tmp_path / "data.npz"
    with path.open("wb") as file:
        if content == "pickle":
            np.savez(file, x=np.array([{"a": 1}], dtype=object))
        elif content == "array":
            np.save(file, np.ones(3))
        else:
            file.write(b"x,y\n1,2\n")
    with pytest.raises(ValueError, match=r"must be an \.npz file.*data\.npz"):
        load_arrays(path)
