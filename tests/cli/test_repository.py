"""`keras-distill repository` and the help of `keras-distill serve`."""

import json

import keras
import numpy as np
import pytest

from keras_distill.cli import main
from keras_distill.export import export

SERVERS = ("triton", "tensorflow-serving", "mlserver")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = keras.Sequential(
        [keras.Input((4,), name="x"), keras.layers.Dense(2)], name="student"
    )
    directory = tmp_path_factory.mktemp("cli") / "student"
    formats = ["saved_model", "onnx"]
    export(model, directory, formats, example_batch=np.ones((2, 4), "float32"))
    return str(directory)


@pytest.mark.parametrize(
    "arguments", [*(("repository", it) for it in SERVERS), ("serve",)]
)
def test_help_has_examples(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main([*arguments, "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert f"examples:\n  keras-distill {' '.join(arguments)} student" in printed
    assert max(map(len, printed.splitlines())) <= 88


def test_help_names_the_servers(capsys):
    with pytest.raises(SystemExit):
        main(["repository", "--help"])
    printed = capsys.readouterr().out
    assert all(f"\n    {server}" in printed for server in SERVERS)


@pytest.mark.parametrize(
    ("server", "file", "command"),
    [
        ("triton", "model.onnx", "tritonserver --model-repository={}"),
        (
            "tensorflow-serving",
            "saved_model.pb",
            "tensorflow_model_server --model_config_file={}/models.config "
            "--port=8500 --rest_api_port=8501",
        ),
        ("mlserver", "model.onnx", "mlserver start {}"),
    ],
)
def test_it_says_what_it_wrote_and_what_serves_it(
    exported, tmp_path, capsys, server, file, command
):
    out = tmp_path / "models"
    arguments = ["repository", server, exported, "--out", str(out)]
    assert main([*arguments, "--name", "digits", "--version", "5"]) == 0
    assert (out / "digits" / "5" / file).is_file()
    wrote, serve = capsys.readouterr().out.splitlines()
    assert wrote == f"wrote {out / 'digits' / '5'}"
    assert serve == f"serve it with `{command.format(out)}`"
    assert main([*arguments, "--name", "digits", "--version", "5"]) == 1
    assert "`--version` must be new" in capsys.readouterr().err


def test_options_of_triton(exported, tmp_path):
    arguments = ["repository", "triton", exported, "--out", str(tmp_path)]
    arguments += ["--max-batch-size", "32", "--preferred-batch-size", "8", "16"]
    arguments += ["--max-queue-delay", "500", "--instances", "2", "--device", "gpu"]
    arguments += ["--accelerator", "tensorrt", "precision_mode=FP16", "path=/a=b"]
    arguments += ["--accelerator", "cuda"]
    assert main(arguments) == 0
    text = " ".join((tmp_path / "student/config.pbtxt").read_text().split())
    for part in (
        "max_batch_size: 32",
        "preferred_batch_size: 8 preferred_batch_size: 16",
        "max_queue_delay_microseconds: 500",
        "count: 2 kind: KIND_GPU",
        'name: "tensorrt"',
        'key: "precision_mode" value: "FP16"',
        'key: "path" value: "/a=b"',
        'name: "cuda"',
    ):
        assert part in text


def test_options_of_the_others(exported, tmp_path, capsys):
    out = str(tmp_path)
    arguments = ["repository", "tensorflow-serving", exported, "--out", out]
    assert main([*arguments, "--base-path", "/models"]) == 0
    assert 'base_path: "/models/student"' in (tmp_path / "models.config").read_text()
    assert "=/models/models.config " in capsys.readouterr().out
    arguments = ["repository", "mlserver", exported, "--out", out, "--threads", "2"]
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert main([*arguments, "--version", "9", "--provider", *providers]) == 0
    settings = json.loads((tmp_path / "student/model-settings.json").read_text())
    extra = settings["parameters"]["extra"]
    assert extra == {"providers": providers, "threads": 2}


def test_a_server_finds_no_artefact_that_it_reads(exported, tmp_path, capsys):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    export(model, tmp_path / "x", ["onnx"], example_batch=np.ones((2, 4), "float32"))
    out = ["--out", str(tmp_path / "models")]
    line = ["repository", "tensorflow-serving", str(tmp_path / "x")]
    assert main([*line, *out]) == 1
    error = capsys.readouterr().err
    assert "`EXPORT` must hold an artefact" in error and "(saved_model)" in error
    assert main(["repository", "triton", exported, *out, "--artefact", "x"]) == 1
    assert "`--artefact` must be one of" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["triton"], ["kserve", "x", "--out", "y"]])
def test_wrong_arguments_leave_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(["repository", *arguments])
    assert left.value.code == 2
    assert "usage: keras-distill repository" in capsys.readouterr().err
