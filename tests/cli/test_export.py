"""`export`, `verify` and `bench` as scripts use them: files in, exit codes out."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_distill as kd
from keras_distill.cli import main
from keras_distill.export import split_preprocessing

COMMAND = str(Path(sys.executable).with_name("keras-distill"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A student, its data and two that can't be exported."""
    keras.utils.set_random_seed(0)
    folder = tmp_path_factory.mktemp("cli")
    student = keras.Sequential(
        [
            keras.Input((6,), name="features"),
            layers.Dense(16, "relu"),
            layers.Dense(3, name="scores"),
        ],
        name="student",
    )
    student.save(folder / "student.keras")
    student.set_weights([w * np.nan for w in student.get_weights()])
    student.save(folder / "nan.keras")
    words = keras.Input((), dtype="string", name="word")
    ids = layers.StringLookup(
        vocabulary=["a", "b"], output_mode="one_hot", name="string_lookup"
    )(words)
    keras.Model(words, layers.Dense(2, name="y")(ids)).save(folder / "words.keras")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 6)).astype("float32")
    y = np.argmax(keras.saving.load_model(folder / "student.keras")(x), -1)
    np.savez(folder / "data.npz", features=x[:100])
    np.savez(folder / "test.npz", features=x[100:], labels=y[100:])
    np.savez(folder / "wrong.npz", features=x[100:], labels=2 - y[100:])
    np.savez(folder / "words.npz", word=np.array(["a", "b", "c"]))
    np.savez(folder / "pickled.npz", word=np.array(["a", None], dtype=object))
    return folder


def call(*arguments):
    return main([str(argument) for argument in arguments])


def test_the_line_of_the_help_as_a_process(folder):
    """int8 with calibration data alone, then verify, then a flipped byte.

    Exports are made by TensorFlow, also where students are trained on JAX.
    """
    env = {**os.environ, "KERAS_BACKEND": "jax"}

    def command(*arguments):
        return subprocess.run(
            [COMMAND, *arguments], capture_output=True, text=True, cwd=folder, env=env
        )

    line = "export student.keras --to onnx --quantize int8 --calibrate data.npz"
    exported = command(*line.split(), "--out", "build/")
    assert exported.returncode == 0, exported.stderr
    assert [row.split()[0] for row in exported.stdout.splitlines()] == [
        "artefact",
        "onnx",
        "onnx_int8",
        "published",
    ]
    assert exported.stdout.splitlines()[-1] == "published build"
    verified = command("verify", "build")
    assert (verified.returncode, verified.stdout) == (0, "onnx: ok\nonnx_int8: ok\n")
    path = folder / "build" / "model.int8.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    verified = command("verify", "build")
    assert verified.returncode == 3
    assert "onnx_int8: model.int8.onnx has another SHA-256" in verified.stdout


def test_json_is_all_that_is_printed(folder, tmp_path, capsys):
    (tmp_path / "made.json").write_text('{"teacher": "large", "alpha": 0.5}')
    out = tmp_path / "student"
    arguments = ["export", folder / "student.keras", "--to", "onnx", "litert"]
    arguments += ["--quantize", "float16", "--examples", folder / "data.npz"]
    arguments += ["--evaluate", folder / "test.npz", "--metric", "accuracy"]
    arguments += ["--out", out, "--version", "next"]
    arguments += ["--provenance", tmp_path / "made.json", "--json"]
    assert call(*arguments) == 0
    manifest = json.loads(capsys.readouterr().out)
    assert manifest == json.loads((out / "1" / "manifest.json").read_text())
    assert manifest["provenance"] == {"teacher": "large", "alpha": 0.5}
    assert manifest["evaluation"]["keras"] == 1
    assert manifest["artefacts"]["onnx_float16"]["evaluation"]["metric"] >= 0.99

    evaluate = ["--evaluate", folder / "test.npz", "--json"]
    assert call("verify", out / "1", *evaluate) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert report["artefacts"]["onnx"]["metric"] == 1

    bench = ["--model", folder / "student.keras", "--batch-sizes", "1", "4"]
    assert call("bench", out / "1", *bench, "--calls", "10", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    sides = [*manifest["artefacts"], "keras predict", "keras tf.function"]
    assert [(row["side"], row["batch_size"]) for row in rows] == [
        (side, size) for size in (1, 4) for side in sides
    ]
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["calls"] == 10
        if row["side"] == "keras predict":
            assert row["speedup"] == pytest.approx(1)


def test_bench_prints_one_table(folder, tmp_path, capsys):
    out = tmp_path / "out"
    data = ["--examples", folder / "data.npz", "--out", out]
    assert call("export", folder / "student.keras", "--to", "onnx", *data) == 0
    capsys.readouterr()
    assert call("bench", out, "--batch-sizes", "1", "--calls", "10") == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split("  ")[0].strip() == "side"
    assert row.split()[:2] == ["onnx", "1"]


def test_verify_prints_the_metric(folder, tmp_path, capsys):
    out = tmp_path / "out"
    evaluate = ["--evaluate", folder / "test.npz"]
    export = ["export", folder / "student.keras", "--to", "onnx", "--out", out]
    assert call(*export, *evaluate, "--version", "next") == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"published {out / '1'}"
    assert call("verify", out / "1", *evaluate) == 0
    said = "onnx: ok; sparse_categorical_accuracy 1.0000, Keras 1.0000\n"
    assert capsys.readouterr().out == said


def test_bench_wants_the_model_and_the_files_that_were_published(
    folder, tmp_path, capsys
):
    out = tmp_path / "out"
    arguments = ["--to", "onnx", "--examples", folder / "data.npz", "--out", out]
    assert call("export", folder / "student.keras", *arguments) == 0
    other = keras.saving.load_model(folder / "student.keras")
    other.set_weights([w + 1 for w in other.get_weights()])
    other.save(tmp_path / "other.keras")
    bench = ["bench", out, "--batch-sizes", "1", "--calls", "10", "--model"]
    assert call(*bench, tmp_path / "other.keras") == 1
    assert "other answers on the examples" in capsys.readouterr().err
    assert call(*bench, folder / "words.keras") == 1
    assert "inputs and outputs" in capsys.readouterr().err
    (out / "model.onnx").write_bytes(b"x")
    assert call(*bench, folder / "student.keras") == 3


def test_a_metric_that_drops_publishes_nothing(folder, tmp_path, capsys, monkeypatch):
    from keras_distill.export import evaluation

    values = iter([0.9, 0.7])
    monkeypatch.setattr(evaluation.HeldOut, "metric", lambda *_: next(values))
    arguments = ["--to", "onnx", "--evaluate", folder / "test.npz"]
    arguments += ["--max-drop", "0.1", "--out", tmp_path / "out", "--json"]
    assert call("export", folder / "student.keras", *arguments) == 3
    printed = capsys.readouterr()
    assert "0.7 where Keras has 0.9" in json.loads(printed.out)["error"]
    assert "0.7 where Keras has 0.9" in printed.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.keras", "--examples", "data.npz"], "where there is no file"),
        (["data.npz", "--examples", "data.npz"], "path of a `.keras` file"),
        (["nan.keras", "--examples", "data.npz"], "no NaN in its weights"),
        (["student.keras", "--examples", "pickled.npz"], "pickle"),
        (["student.keras", "--examples", "student.keras"], "arrays by input name"),
        (
            ["words.keras", "--examples", "words.npz"],
            "'string_lookup.*StringLookup.*--split-preprocessing",
        ),
    ],
)
def test_bad_input_leaves_with_1(
    folder, tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(folder)
    assert call("export", *arguments, "--to", "onnx", "--out", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.startswith("keras-distill: error: ")
    assert re.search(message, error, re.DOTALL), error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--evaluate", "data.npz"], "`--labels` must name.*features"),
        (
            ["--evaluate", "test.npz", "--labels", "nope"],
            "`--labels` must name.*Received: nope",
        ),
        (
            ["--evaluate", "test.npz", "--metric", "niceness"],
            "class in keras.metrics.*niceness",
        ),
        (
            [
                *("--evaluate", "test.npz", "--metric", "AUC"),
                *("--metric-config", '{"foo": 1}'),
            ],
            "`--metric-config` must hold the arguments of AUC.*foo",
        ),
    ],
)
def test_options_of_the_evaluation_that_are_wrong_leave_with_2(
    folder, tmp_path, capsys, monkeypatch, arguments, message
):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match="2"):
        call("export", "student.keras", *arguments, "--out", tmp_path / "out")
    error = capsys.readouterr().err
    assert error.startswith("usage: keras-distill export")
    assert re.search(message, error, re.DOTALL), error
    assert list(tmp_path.iterdir()) == []


def test_split_preprocessing(folder, tmp_path):
    out = tmp_path / "out"
    data = ["--examples", folder / "words.npz", "--out", out, "--split-preprocessing"]
    assert call("export", folder / "words.keras", *data) == 0
    saved = tf.saved_model.load(str(out / "saved_model"))
    words = tf.constant(["a", "zebra"])
    got = saved.signatures["serving_raw"](word=words)["y"]
    model = keras.saving.load_model(folder / "words.keras")
    np.testing.assert_allclose(got, model(words), atol=1e-6)
    assert call("verify", out) == 0


def test_raw_data_of_an_export_that_was_split(folder, tmp_path, capsys):
    """`export` takes it; artefacts begin behind the preprocessing."""
    words = np.array(["a", "b", "c"])
    model = keras.saving.load_model(folder / "words.keras")
    labels = np.argmax(model(tf.constant(words)), -1)
    np.savez(tmp_path / "raw.npz", word=words, labels=labels)
    preprocessing, _ = split_preprocessing(model, ["onnx"])
    prepared = preprocessing({"word": tf.constant(words)})
    np.savez(tmp_path / "prepared.npz", labels=labels, **prepared)
    out = tmp_path / "out"
    line = ["export", folder / "words.keras", "--to", "onnx", "--out", out]
    evaluate = ["--evaluate", tmp_path / "raw.npz"]
    assert call(*line, *evaluate, "--split-preprocessing") == 0
    assert call("verify", out, "--evaluate", tmp_path / "prepared.npz") == 0
    bench = ["bench", out, "--calls", "1", "--batch-sizes", "2", "--model"]
    assert call(*bench, folder / "words.keras") == 0
    assert "keras predict" in capsys.readouterr().out
    assert call("verify", out, *evaluate) == 1
    error = capsys.readouterr().err
    assert "`--evaluate` must hold ['string_lookup'], as the preprocessing" in error
    assert "numpy.savez('prepared.npz', labels=y, **preprocessing(x))" in error


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    """A model that looks up ids from 0 to 9, given as integers or as floats."""
    folder = tmp_path_factory.mktemp("ids")
    for dtype in ("int32", "float32"):
        x = keras.Input((3,), dtype=dtype, name="ids")
        y = layers.Flatten()(layers.Embedding(10, 2)(x))
        keras.Model(x, layers.Dense(2, name="y")(y)).save(folder / f"{dtype}.keras")
        rows = np.array([[9, 1, 3], [2, 9, 9]], dtype)
        np.savez(folder / f"{dtype}.npz", ids=rows, labels=[0, 1])
        np.savez(folder / f"{dtype}_one.npz", ids=rows[:1])
        np.savez(folder / f"{dtype}_beyond.npz", ids=rows + 90, labels=[0, 1])
        np.savez(folder / f"{dtype}_long.npz", ids=np.ones((2, 5), dtype))
    return folder


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_one_row_of_ids(dtype, ids, tmp_path):
    """Others that stand beside it must be ids too."""
    data = ["--examples", ids / f"{dtype}_one.npz", "--out", tmp_path / "out"]
    assert call("export", ids / f"{dtype}.keras", "--to", "onnx", *data) == 0


OPTIONS = {
    "--examples": ["--examples", "{}"],
    "--calibrate": ["--quantize", "int8", "--calibrate", "{}"],
    "--evaluate": ["--evaluate", "{}"],
    "--calibrate beside": [
        *("--examples", "int32.npz", "--quantize", "int8", "--calibrate", "{}"),
    ],
    "--evaluate beside": ["--examples", "int32.npz", "--evaluate", "{}"],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_the_option_whose_file_is_wrong_is_named(
    option, ids, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(ids)
    for name, words in {
        "int32_beyond.npz": r"must hold values that.*\[0,0\] = 99 is not in \[0, 10\)",
        "float32.npz": "must hold int32 for the input 'ids'",
    }.items():
        data = [it.format(name) for it in OPTIONS[option]]
        line = ["export", "int32.keras", "--to", "onnx", "--out", tmp_path / "out"]
        assert call(*line, *data) == 1
        error = capsys.readouterr().err
        assert re.search(f": error: `{option.split()[0]}` {words}", error), error
        assert error.count("\n") == 1


def test_ids_beyond_an_embedding_in_what_is_verified(ids, tmp_path, capfd):
    out = tmp_path / "out"
    line = ["export", ids / "int32.keras", "--to", "onnx", "litert", "--out", out]
    assert call(*line, "--evaluate", ids / "int32.npz") == 0
    capfd.readouterr()
    assert call("verify", out, "--evaluate", ids / "int32_beyond.npz") == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert ": error: `--evaluate` must hold values that the model can" in error


def test_data_of_a_distiller_and_its_labels(tmp_path, capsys):
    """Of its file; every option takes the keys of training, and the labels."""
    item, dwell = keras.Input((4,), name="item"), keras.Input((1,), name="dwell")
    both = layers.Concatenate()([item, dwell])
    distiller = kd.Distiller(
        keras.Model({"item": item}, layers.Dense(3, name="scores")(item)),
        keras.Model({"item": item, "dwell": dwell}, layers.Dense(3)(both)),
        privileged_features=["dwell"],
    )
    distiller.save(tmp_path / "d.keras")
    x = np.eye(4, dtype="float32")
    labels = np.argmax(distiller.student({"item": x}), -1)
    np.savez(tmp_path / "b.npz", item=x, dwell=np.ones((4, 1)), labels=labels)
    data = ["--calibrate", tmp_path / "b.npz", "--evaluate", tmp_path / "b.npz"]
    line = ["export", tmp_path / "d.keras", "--to", "onnx", "--quantize", "int8"]
    assert call(*line, *data, "--max-drop", "1", "--out", tmp_path / "out") == 0
    assert call("verify", tmp_path / "out", *data[2:], "--max-drop", "1") == 0
    assert "Keras 1.0000" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["export", "verify", "bench"])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        call(command, "--help")
    printed = capsys.readouterr().out
    assert f"  keras-distill {command} " in printed[printed.index("examples:") :]


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "student.keras"],
        ["export", "student.keras", "--to", "tfjs", "--out", "x"],
        ["export", "student.keras", "--out", "x", "--version", "latest"],
        ["verify"],
    ],
)
def test_wrong_arguments_leave_with_2(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        call(*arguments)


def test_verify_and_bench_want_an_export(tmp_path, capsys):
    assert call("verify", tmp_path) == 1
    assert call("bench", tmp_path) == 1
    assert capsys.readouterr().err.count("must hold an export") == 2
