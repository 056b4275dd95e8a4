"""Whatever happened to an export since it was published is found."""

import hashlib
import json
import shutil

import keras
import numpy as np
import pytest
from keras import layers

from keras_distill.export import Evaluation, examples, export, verify
from keras_distill.export.parity import ParityError
from keras_distill.export.verification import check_files


@pytest.fixture(scope="module")
def original(tmp_path_factory, floats):
    """A student in all formats, its evaluation with it."""
    keras.utils.set_random_seed(3)
    x = keras.Input((6,), name="features")
    hidden = layers.Dense(32, "relu")(x)
    model = keras.Model(x, layers.Dense(3, name="scores")(hidden), name="student")
    features = floats(64, 6)
    labels = np.argmax(model(features), -1)
    directory = tmp_path_factory.mktemp("original") / "student"
    data = (features, labels)
    export(
        model,
        directory,
        example_batch=features[:8],
        quantize=["float16", "int8"],
        calibration_data=features,
        evaluation=Evaluation(
            data, keras.metrics.SparseCategoricalAccuracy(), max_drop=0.1
        ),
    )
    return directory, data


@pytest.fixture
def copied(original, tmp_path):
    return shutil.copytree(original[0], tmp_path / "student")


def files(directory):
    return sorted(p for p in directory.rglob("*") if p.is_file())


def rewrite(directory, change):
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def problems(directory, **options):
    report = verify(directory, **options)
    found = [it for item in report["artefacts"].values() for it in item["problems"]]
    assert report["ok"] is not bool(found or report["problems"])
    return report["problems"] + found


def test_as_published(copied):
    report = verify(copied)
    assert report["ok"] and report["problems"] == []
    assert set(report["artefacts"]) == {
        "saved_model",
        *("onnx", "onnx_float16", "onnx_int8"),
        *("litert", "litert_float16", "litert_int8"),
    }
    for artefact in report["artefacts"].values():
        assert artefact["ok"] and 0 <= artefact["max_abs_difference"] < 1
    json.dumps(report)


def test_a_flipped_byte_in_any_file(original, tmp_path):
    for number, path in enumerate(files(original[0])):
        if path.name == "manifest.json":
            continue
        copy = shutil.copytree(original[0], tmp_path / str(number))
        damaged = copy / path.relative_to(original[0])
        data = bytearray(damaged.read_bytes())
        if data:
            data[len(data) // 2] ^= 1
        else:
            data = b"x"
        damaged.write_bytes(data)
        [problem] = problems(copy, run=False)
        assert problem.startswith(damaged.relative_to(copy).as_posix())


@pytest.mark.parametrize("file", ["model.onnx", "examples.npz", "saved_model.pb"])
@pytest.mark.parametrize("damage", ["gone", "shorter", "longer"])
def test_size_and_presence(copied, file, damage):
    [path] = copied.rglob(file)
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-1] if damage == "shorter" else data + b"x")
    [problem] = problems(copied)
    assert file in problem
    assert ("missing" if damage == "gone" else "bytes") in problem


def test_a_damaged_artefact_is_not_loaded_and_the_others_are(copied):
    (copied / "model.onnx").write_bytes(b"not a model")
    report = verify(copied)
    assert not report["artefacts"]["onnx"]["ok"]
    assert "max_abs_difference" not in report["artefacts"]["onnx"]
    assert report["artefacts"]["litert"]["ok"]
    assert "max_abs_difference" in report["artefacts"]["litert"]


def test_a_file_that_came(copied):
    (copied / "saved_model" / "assets" / "x.txt").write_text("x")
    assert problems(copied) == ["saved_model/assets/x.txt isn't in the manifest"]


def test_links_and_paths_that_lead_out(copied, tmp_path):
    inside = copied / "model.onnx"
    inside.rename(tmp_path / "elsewhere.onnx")
    inside.symlink_to(tmp_path / "elsewhere.onnx")
    assert problems(copied) == ["model.onnx lies outside of the export"]

    def lead_out(manifest):
        manifest["artefacts"]["onnx"]["files"][0]["path"] = "../elsewhere.onnx"

    rewrite(copied, lead_out)
    inside.unlink()
    assert problems(copied) == ["../elsewhere.onnx lies outside of the export"]


def test_another_model_with_the_right_checksum_is_found_by_its_answers(
    copied, dense_model, tmp_path, floats
):
    x = keras.Input((6,), name="features")
    other = keras.Model(x, layers.Dense(3, name="scores")(x))
    export(other, tmp_path / "other", ["onnx"], example_batch=floats(2, 6))
    data = (tmp_path / "other" / "model.onnx").read_bytes()
    (copied / "model.onnx").write_bytes(data)

    def adopt(manifest):
        [file] = manifest["artefacts"]["onnx"]["files"]
        file.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    rewrite(copied, adopt)
    assert problems(copied, run=False) == []
    [problem] = problems(copied)
    assert "output 'scores' of the onnx artefact must agree with Keras" in problem


def test_a_file_that_gives_nan_is_found(copied):
    import onnx

    path = copied / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [32, 3]:
            nan = np.full((32, 3), np.nan, "float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(nan, tensor.name))
    onnx.save(model, path)
    data = path.read_bytes()

    def adopt(manifest):
        [file] = manifest["artefacts"]["onnx"]["files"]
        file.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    rewrite(copied, adopt)
    [problem] = problems(copied)
    assert "of the onnx artefact must agree" in problem
    assert "Received: nan where" in problem


@pytest.mark.parametrize("policy", ["bfloat16", "mixed_bfloat16", "float16"])
def test_outputs_of_16_bits_are_kept_as_they_are(floats, tmp_path, policy):
    y = layers.Dense(2, name="y", dtype=policy)
    model = keras.Sequential([keras.Input((4,), name="x"), y])
    batch = floats(5, 4)
    export(model, tmp_path / "o", ["saved_model"], example_batch=batch, tolerance=1e-2)
    assert verify(tmp_path / "o")["ok"]


def test_the_metric_again(original, copied):
    metric = keras.metrics.SparseCategoricalAccuracy()
    evaluation = Evaluation(original[1], metric, max_drop=0.1)
    report = verify(copied, evaluation=evaluation)
    assert report["ok"]
    assert report["artefacts"]["onnx"]["metric"] == 1.0
    features, labels = original[1]
    wrong = Evaluation((features, (labels + 1) % 3), metric, max_drop=0.1)
    found = problems(copied, evaluation=wrong)
    assert len(found) == 7
    assert "may lose at most 0.1" in found[0]


def test_another_evaluation_is_refused(original, copied, dense_model, floats, tmp_path):
    features, labels = original[1]
    metric = keras.metrics.SparseCategoricalAccuracy()
    fewer = Evaluation((features[:9], labels[:9]), metric, max_drop=0.1)
    with pytest.raises(ValueError, match="on 64 examples.*on 9 examples"):
        verify(copied, evaluation=fewer)
    export(dense_model, tmp_path / "out", ["onnx"], example_batch=floats(2, 4))
    with pytest.raises(ValueError, match="an export made without any"):
        verify(tmp_path / "out", evaluation=fewer)


def test_no_export(tmp_path, copied):
    with pytest.raises(FileNotFoundError, match="must hold an export"):
        verify(tmp_path)
    (tmp_path / "manifest.json").write_text('{"kind": "something else"}')
    with pytest.raises(FileNotFoundError, match="must hold an export"):
        verify(tmp_path)
    rewrite(copied, lambda manifest: manifest.update(format_version=1))
    with pytest.raises(ValueError, match="version 2. Received: 1"):
        verify(copied)


def test_artefacts_of_a_later_version_are_refused(copied):
    def rename(manifest):
        manifest["artefacts"]["tensorrt"] = manifest["artefacts"].pop("onnx")

    rewrite(copied, rename)
    with pytest.raises(ValueError, match="must be one of .*'tensorrt'"):
        verify(copied)


def test_a_missing_runtime_names_its_extra(copied, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "ai_edge_litert" else real(name),
    )
    with pytest.raises(ImportError, match=r"keras-distill\[litert\]"):
        verify(copied)
    assert verify(copied, run=False)["ok"]


def test_text_is_kept_without_pickles(tmp_path):
    x = keras.Input((), dtype="string", name="word")
    lookup = layers.StringLookup(vocabulary=["a", "ö"], output_mode="one_hot")
    model = keras.Model(x, layers.Dense(2, name="y")(lookup(x)))
    words = np.array(["a", "ö", b"\xff\xd8 a picture, say \x00"], dtype=object)
    formats = ["saved_model", "litert"]
    export(model, tmp_path / "out", formats, example_batch=words)
    with np.load(tmp_path / "out" / "examples.npz", allow_pickle=False) as kept:
        assert kept["inputs/word"].dtype.kind == "S"
    restored = examples.read(tmp_path / "out")["inputs"]["word"].tolist()
    assert restored == [b"a", "ö".encode(), words[2]]
    assert verify(tmp_path / "out")["ok"]


def test_examples_are_few_and_no_more(tmp_path, dense_model, floats):
    export(dense_model, tmp_path / "out", ["onnx"], example_batch=floats(100, 4))
    with np.load(tmp_path / "out" / "examples.npz") as kept:
        assert kept["inputs/features"].shape == (32, 4)
        assert kept["outputs/scores"].shape == (32, 2)


def test_check_files_raises(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    check_files(copied, manifest)
    (copied / "model.onnx").unlink()
    with pytest.raises(ParityError, match="model.onnx is missing.*Export the model"):
        check_files(copied, manifest)
