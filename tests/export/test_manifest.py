import hashlib
import json
from importlib import metadata

import pytest

from keras_distill.export import manifest


def test_the_file_is_what_export_returns(exported):
    directory, returned = exported
    assert json.loads((directory / "manifest.json").read_text()) == returned
    assert manifest.read(directory) == returned


def test_sizes_and_checksums_are_those_of_the_files(exported):
    directory, returned = exported
    listed = {"manifest.json"}
    groups = [artefact["files"] for artefact in returned["artefacts"].values()]
    for file in sum(groups, returned["examples"]):
        data = (directory / file["path"]).read_bytes()
        assert file["bytes"] == len(data)
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
        listed.add(file["path"])
    present = {
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file()
    }
    assert listed == present == manifest.listed_files(returned)


def test_signature_and_parameters(exported, conv_model):
    _, returned = exported
    assert returned["model"] == "conv_model"
    assert returned["parameters"] == conv_model.count_params()
    inputs = {
        i["name"]: (i["dtype"], i["shape"]) for i in returned["signature"]["inputs"]
    }
    assert inputs == {
        "image": ("float32", [None, 8, 8, 1]),
        "extra": ("float32", [None, 3]),
    }
    outputs = {o["name"]: o["shape"] for o in returned["signature"]["outputs"]}
    assert outputs == {"digit": [None, 5], "tilt": [None, 1]}


def test_every_artefact_says_how_exact_it_is(exported):
    _, returned = exported
    assert list(returned["artefacts"]) == ["saved_model", "onnx", "litert"]
    for artefact in returned["artefacts"].values():
        assert artefact["tolerance"] == 1e-5
        assert 0 <= artefact["max_abs_difference"] < 1e-4


def test_versions_are_those_installed(exported):
    versions = exported[1]["versions"]
    assert set(versions) == {
        *("python", "keras", "tensorflow"),
        *("tf2onnx", "onnx", "onnxruntime", "ai-edge-litert"),
    }
    for package in set(versions) - {"python", "tensorflow"}:
        assert versions[package] == metadata.version(package)


@pytest.mark.parametrize("text", ["{}", "[]", "not json", '{"kind": "other"}'])
def test_other_manifests_are_not_ours(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    assert manifest.read(tmp_path) is None
