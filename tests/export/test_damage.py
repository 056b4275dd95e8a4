"""Damaged manifests and files of every kind: one clear line, never a traceback."""

import io
import json
import re
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
from keras import layers

from keras_distill import atomic
from keras_distill.cli import main
from keras_distill.export import examples, export, verify
from keras_distill.export.latency import measure
from keras_distill.export.loading import load_model
from keras_distill.export.repositories.source import open_export

PIECE = object()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """An export, and the model's file beside it."""
    folder = tmp_path_factory.mktemp("published")
    model = keras.Sequential(
        [keras.Input((3,), name="x"), layers.Dense(2, name="y")], name="student"
    )
    model.save(folder / "student.keras")
    batch = np.ones((2, 3), "float32")
    export(model, folder / "models", ["onnx"], example_batch=batch, version=9)
    export(model, folder / "models", ["onnx"], example_batch=batch, version=10)
    return folder


@pytest.fixture
def copied(published, tmp_path):
    return shutil.copytree(published / "models" / "9", tmp_path / "out")


def written(directory, text):
    data = text if isinstance(text, bytes) else text.encode()
    (directory / "manifest.json").write_bytes(data)


def refused(directory, capsys, *, code=1):
    """What the command line prints, of every command that reads a manifest."""
    lines = []
    for command in (["verify"], ["verify", "--files-only"], ["bench"]):
        assert main([*command, str(directory)]) == code
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith("keras-distill: error: ")
        lines.append(error)
    assert len(set(lines)) == 1
    return lines[0]


TEXTS = {
    "empty": ("", "is empty"),
    "spaces": (" \n ", "is empty"),
    "not JSON": ("not json", "isn't JSON"),
    "not UTF-8": (b'{"kind": "\xff\xfe"}', "isn't JSON"),
    "UTF-16": ("{}".encode("utf-16"), "isn't JSON"),
    "a list": ("[]", "must be a JSON object"),
    "a number": ("3", "must be a JSON object"),
    "null": ("null", "must be a JSON object"),
    "deep": ("[" * 100_000, "isn't JSON"),
    "a number of many digits": ("9" * 5000, "isn't JSON"),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_what_is_no_manifest(kind, copied, capsys):
    text, words = TEXTS[kind]
    written(copied, text)
    line = refused(copied, capsys)
    assert "is damaged" in line and words in line and str(copied) in line


def test_cut_short_at_any_place(copied, capsys):
    data = (copied / "manifest.json").read_bytes()
    for end in range(1, len(data.rstrip()), len(data) // 12):
        written(copied, data[:end])
        assert "isn't JSON" in refused(copied, capsys)


def changed(value, path, new):
    """Set what lies at a path of keys; delete it where `new` is PIECE."""
    for key in path[:-1]:
        value = value[key]
    if new is PIECE:
        del value[path[-1]]
    else:
        value[path[-1]] = new


FILE = ("artefacts", "onnx", "files", 0)
WRONG = [
    (("artefacts",), PIECE, "has no 'artefacts'"),
    (("artefacts",), [1], "artefacts must be an object, not a list"),
    (("artefacts",), {}, "has no artefacts"),
    (("artefacts", "onnx"), None, "artefacts.onnx must be an object, not None"),
    (("artefacts", "onnx", "files"), {}, "files must be a list, not an object"),
    (FILE, "model.onnx", r"files\[0\] must be an object, not 'model.onnx'"),
    ((*FILE, "path"), PIECE, r"files\[0\] has no 'path'"),
    ((*FILE, "path"), 3, "path must be the path of a file, not 3"),
    ((*FILE, "path"), "a\0b", "path must be the path of a file"),
    ((*FILE, "path"), "\ud800", "path must be the path of a file"),
    ((*FILE, "bytes"), -1, "bytes must be a whole number from 0 on, not -1"),
    ((*FILE, "bytes"), "12", "bytes must be a whole number from 0 on, not '12'"),
    ((*FILE, "bytes"), 10**30, "bytes must be a whole number"),
    ((*FILE, "bytes"), True, "bytes must be a whole number from 0 on, not True"),
    ((*FILE, "sha256"), "x", "sha256 must be a SHA-256"),
    (("artefacts", "onnx", "tolerance"), "1e-5", "tolerance must be a positive"),
    (("artefacts", "onnx", "tolerance"), -1.0, "tolerance must be a positive"),
    (("artefacts", "onnx", "tolerance"), float("nan"), "tolerance must be a positive"),
    (("artefacts", "onnx", "tolerance"), 10**400, "tolerance must be a positive"),
    (("artefacts", "onnx", "format"), PIECE, "onnx has no 'format'"),
    (("examples",), "x", "examples must be a list, not 'x'"),
    (("examples",), [], "lacks examples.npz"),
    (("scales",), {"z": 1.0}, r"scales of \['z'\] for the outputs \['y'\]"),
    (("scales", "y"), None, "scales.y must be a positive number, not None"),
    (("scales", "y"), 0, "scales.y must be a positive number, not 0"),
    (("signature",), [], "signature must be an object, not a list"),
    (("signature", "inputs"), PIECE, "signature has no 'inputs'"),
    (("signature", "inputs", 0, "dtype"), "float33", "dtype must be the name of a"),
    (("signature", "inputs", 0, "shape"), [None, -3], "shape must be a list of sizes"),
    (("signature", "outputs", 0, "shape"), "ab", "shape must be a list of sizes"),
    (("batch_size",), 0, "batch_size must be a whole number from 1 on, not 0"),
    (("batch_size",), "4", "batch_size must be a whole number from 1 on, not '4'"),
    (("evaluation",), 3, "evaluation must be an object, not 3"),
    (("model",), None, "model must be text, not None"),
    (("format_version",), "2", "must be of version 2. Received: '2'"),
]


def test_wrong_entries(copied, capsys):
    good = (copied / "manifest.json").read_text()
    for path, new, words in WRONG:
        described = json.loads(good)
        changed(described, path, new)
        written(copied, json.dumps(described))
        assert re.search(words, refused(copied, capsys)), path
        with pytest.raises(ValueError, match="(?s)manifest"):
            verify(copied)
        with pytest.raises(ValueError, match="(?s)manifest"):
            measure(copied)


def test_every_entry_may_be_missing_or_null(copied, capsys):
    """Whatever it is, nothing but an error of one line, or none, comes of it."""
    good = json.loads((copied / "manifest.json").read_text())
    paths = [(key,) for key in good]
    paths += [("artefacts", "onnx", key) for key in good["artefacts"]["onnx"]]
    paths += [(*FILE, key) for key in ("path", "bytes", "sha256")]
    for path in paths:
        for new in (PIECE, None, {}, [], "x", -1, 1e300):
            described = json.loads(json.dumps(good))
            changed(described, path, new)
            written(copied, json.dumps(described))
            code = main(["verify", "--files-only", str(copied)])
            error = capsys.readouterr().err
            assert code in (0, 1, 3) and error.count("\n") == (code == 1), path


def test_a_repository_is_not_made_of_a_damaged_one(copied):
    described = json.loads((copied / "manifest.json").read_text())
    described["signature"] = 3
    written(copied, json.dumps(described))
    with pytest.raises(ValueError, match="is damaged: .*signature must be an object"):
        open_export(copied)


def test_paths_that_lead_out_are_no_error_but_a_problem(copied, tmp_path):
    good = json.loads((copied / "manifest.json").read_text())
    for path in ("../out.keras", "/etc/hostname", "..", "a/../../x"):
        changed(good, (*FILE, "path"), path)
        written(copied, json.dumps(good))
        [problem] = verify(copied)["artefacts"]["onnx"]["problems"]
        assert problem == f"{path} lies outside of the export"


def test_an_artefact_whose_file_is_not_listed(copied):
    good = json.loads((copied / "manifest.json").read_text())
    changed(good, ("artefacts", "onnx", "files"), [])
    written(copied, json.dumps(good))
    (copied / "model.onnx").unlink()
    report = verify(copied)
    assert report["artefacts"]["onnx"]["problems"] == [
        "model.onnx isn't among the files of onnx in the manifest"
    ]


def archived(**arrays):
    def write(path):
        with path.open("wb") as file:
            np.savez(file, **arrays)

    return write


EXAMPLES = {
    "no archive": (lambda path: path.write_bytes(b"x"), "is damaged"),
    "empty": (lambda path: path.write_bytes(b""), "is damaged"),
    "other arrays": (archived(x=np.ones(2)), r"arrays of \['x'\]"),
    "other names": (
        archived(**{"inputs/z": np.ones((2, 3)), "outputs/y": np.ones((2, 2))}),
        r"inputs \['x'\] of the manifest. Received: \['z'\]",
    ),
    "other sizes": (
        archived(**{"inputs/x": np.ones((2, 3)), "outputs/y": np.ones((1, 2))}),
        "one number of examples",
    ),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_examples_that_are_listed_and_no_examples(kind, copied):
    write, words = EXAMPLES[kind]
    write(copied / examples.FILE)
    described = json.loads((copied / "manifest.json").read_text())
    path = copied / examples.FILE
    changed(described, ("examples", 0, "bytes"), path.stat().st_size)
    changed(described, ("examples", 0, "sha256"), atomic.sha256(path))
    written(copied, json.dumps(described))
    for check in (verify, measure):
        with pytest.raises(ValueError, match=words):
            check(copied)


def test_a_damaged_export_is_no_earlier_one(copied, published):
    written(copied, json.dumps({"kind": "keras_distill.export", "artefacts": [1]}))
    model = keras.saving.load_model(published / "student.keras")
    with pytest.raises(FileExistsError, match="which holds examples.npz, manifest"):
        export(model, copied, ["onnx"], example_batch=np.ones((2, 3)))


def test_the_directory_above_names_the_versions(published, tmp_path, capsys):
    line = refused(published / "models", capsys)
    assert "holds the versions 9, 10. Pass one, as " in line
    assert str(published / "models" / "10") in line
    assert "where there is nothing" in refused(tmp_path / "absent", capsys)
    (tmp_path / "file").write_text("x")
    assert "which is a file" in refused(tmp_path / "file", capsys)
    assert "versions" not in refused(published, capsys)


def cut(data):
    return data[: len(data) // 2]


def without_config(data):
    return _archive(data, lambda name, text: None if name == "config.json" else text)


def changed_weights(data):
    at = data.index(b"\x89HDF") + 600
    return data[:at] + b"changed!" + data[at + 8 :]


def unknown_layer(data):
    def rename(name, text):
        if name != "config.json":
            return text
        dense = b'"module": "keras.layers", "class_name": "Dense"'
        assert dense in text
        return text.replace(dense, b'"module": "mine", "class_name": "Mine"')

    return _archive(data, rename)


def _archive(data, change):
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            text = change(name, old.read(name))
            if text is not None:
                new.writestr(name, text)
    return made.getvalue()


KERAS_FILES = {
    "empty": (lambda data: b"", "which is empty"),
    "cut short": (cut, "which is cut short"),
    "text": (lambda data: b"weights", "which is a file of another kind"),
    "HDF5": (lambda data: b"\x89HDF\r\n\x1a\n123", "which is an HDF5 file"),
    "no config": (without_config, "an archive without config.json"),
    "changed": (changed_weights, "'model.weights.h5' in it is damaged"),
    "an unknown layer": (unknown_layer, "its class 'Mine' isn't registered"),
}


@pytest.mark.parametrize("kind", KERAS_FILES)
def test_keras_files_that_are_none(kind, published, tmp_path, capsys):
    change, words = KERAS_FILES[kind]
    path = tmp_path / "best.keras"
    path.write_bytes(change((published / "student.keras").read_bytes()))
    with pytest.raises(ValueError, match="safe mode.*best.keras") as caught:
        load_model(path)
    assert words in str(caught.value) and "not found" not in str(caught.value)
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3), "float32"))
    line = ["export", path, "--examples", tmp_path / "x.npz", "--out", tmp_path / "o"]
    assert main([str(it) for it in line]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_directories_and_other_files_given_for_a_model(published, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    (tmp_path / "best.keras").mkdir()
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["model_config"] = "{}"
    for path, words in {
        tmp_path / "saved": "the directory of a SavedModel. A SavedModel holds",
        published / "models" / "9": "the directory of an export",
        tmp_path / "best.keras": "which is a directory",
        tmp_path / "old.h5": "an HDF5 file. Load it in Python",
        published / "models" / "9" / "model.onnx": "a file of another kind",
    }.items():
        with pytest.raises(ValueError, match=r"path of a `\.keras` file") as caught:
            load_model(path)
        assert words in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("group", "entry", "value"),
    [
        ("inputs", "shape", [None, 4]),
        ("inputs", "shape", [None]),
        ("inputs", "dtype", "int32"),
        ("outputs", "shape", [None, 3]),
        ("outputs", "dtype", "float64"),
    ],
)
def test_a_signature_that_the_examples_have_not(copied, group, entry, value):
    described = json.loads((copied / "manifest.json").read_text())
    described["signature"][group][0][entry] = value
    written(copied, json.dumps(described))
    with pytest.raises(ValueError, match=f"examples.npz must hold the {group}.*Expo"):
        verify(copied)
