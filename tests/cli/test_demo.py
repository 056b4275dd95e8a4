"""The command as users call it: in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keras_distill.version import __version__

COMMAND = str(Path(sys.executable).with_name("keras-distill"))


def call(*arguments, cwd=None):
    return subprocess.run(
        [COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, timeout=300
    )


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The output and the directory of one smoke run in a directory of its own."""
    directory = tmp_path_factory.mktemp("smoke")
    finished = call("demo", "--smoke", cwd=directory)
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout, directory / "demo-output"


@pytest.fixture(scope="module")
def found(smoke):
    return json.loads((smoke[1] / "results.json").read_text())


def test_demo_says_who_sees_what_and_prints_both_tables(smoke, found):
    printed = smoke[0]
    assert "100 labelled, 1,100 unlabelled" in printed
    assert printed.count("test accuracy") == 3
    assert printed.splitlines()[-1] == "A smoke run: its numbers mean nothing."
    for name in ("teacher", "student alone", "student distilled"):
        accuracy = 100 * found["models"][name]["summary"]["accuracy"]["mean"]
        row = next(it for it in printed.splitlines() if it.startswith(f"{name}  "))
        assert f"{accuracy:.1f} ± 0.0" in row
    for name in ("saved_model", "onnx", "litert"):
        assert f"\n{name} " in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_demo_leaves_nothing_but_its_directory(smoke):
    directory = smoke[1]
    assert [path.name for path in directory.parent.iterdir()] == ["demo-output"]
    assert {path.name for path in directory.iterdir()} == {
        "demo.png",
        "report",
        "results.json",
        "student",
        "teacher",
    }


def test_demo_json_holds_every_number(found):
    assert found["seeds"] == [0]
    assert found["setting"]["steps_per_epoch"] == 10
    assert found["models"]["teacher"]["scores"][0]["agreement"] == 1.0
    sizes = {name: it["parameters"] for name, it in found["models"].items()}
    assert sizes["student alone"] == sizes["student distilled"]
    assert sizes["teacher"] > 50 * sizes["student alone"]
    for model in found["models"].values():
        (curve,), (scores,) = model["accuracy_by_epoch"], model["scores"]
        assert len(curve) == 2
        assert curve[-1] == pytest.approx(scores["accuracy"], abs=1e-6)
        assert scores["nll"] > 0


def test_demo_artefacts_run_and_are_as_large_as_said(smoke, found):
    import onnxruntime

    directory = smoke[1]
    for folder, name in (("teacher", "teacher"), ("student", "student distilled")):
        served = found["served"][name]
        for file, artefact in (
            ("model.onnx", served["artefacts"]["onnx"]),
            ("model.tflite", served["artefacts"]["litert"]),
        ):
            assert artefact["bytes"] == (directory / folder / file).stat().st_size
        for artefact in served["artefacts"].values():
            assert 0 <= artefact["parity"] < 1e-4
            assert 0 < artefact["latency_ms"] < served["predict_ms"]
        session = onnxruntime.InferenceSession(directory / folder / "model.onnx")
        images = np.zeros((3, 8, 8, 1), "float32")
        assert session.run(["logits"], {"image": images})[0].shape == (3, 10)


def test_demo_picture_is_wide_and_not_empty(smoke):
    from matplotlib.image import imread

    pixels = imread(smoke[1] / "demo.png")
    height, width = pixels.shape[:2]
    assert width >= 1600
    assert 2 < width / height < 3
    assert (pixels[..., :3].min(axis=-1) < 0.9).mean() > 0.02


def test_help_names_the_commands(capsys):
    from keras_distill.cli import main

    with pytest.raises(SystemExit):
        main(["--help"])
    assert "demo" in capsys.readouterr().out


def test_help_of_the_demo_has_every_option_and_examples():
    finished = call("demo", "--help")
    assert finished.returncode == 0
    for part in ("--out", "--seeds", "--smoke", "examples:", "keras-distill[demo]"):
        assert part in finished.stdout


def test_version(capsys):
    from keras_distill.cli import main

    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    "arguments", [(), ("dance",), ("demo", "--seeds", "many"), ("demo", "--fast")]
)
def test_wrong_arguments_leave_with_2_and_usage(arguments, capsys):
    from keras_distill.cli import main

    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: keras-distill" in capsys.readouterr().err


def test_failure_leaves_with_1_and_one_line(tmp_path, capsys):
    from keras_distill.cli import main

    (tmp_path / "thesis.tex").touch()
    assert main(["demo", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("keras-distill: error: `--out` must be absent, empty")
    assert error.count("\n") == 1


def test_missing_extra_leaves_with_1_and_its_remedy(monkeypatch, tmp_path, capsys):
    from keras_distill.cli import main

    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    assert "pip install keras-distill[demo]" in capsys.readouterr().err


def test_interrupt_leaves_with_130(monkeypatch, tmp_path):
    from keras_distill import cli, demo

    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 130
