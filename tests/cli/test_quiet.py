"""Commands print what they have to say, and no library a line of its own accord."""

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import keras_distill as kd
from keras_distill import standard_error
from keras_distill.cli import main

COMMAND = str(Path(sys.executable).with_name("keras-distill"))
# As in a shell of somebody who knows nothing of these.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("TF_CPP_MIN_LOG_LEVEL", "ORT_DISABLE_TELEMETRY")
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quiet")
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1), name="image"),
            layers.Conv2D(4, 3, activation="relu"),
            # Keras makes a function for each call of these.
            layers.Conv2D(4, 3, groups=2, padding="same"),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dense(64, "relu"),
            layers.Dense(3, name="scores"),
        ],
        name="student",
    )
    model.compile("adam", "mse")  # what training leaves behind in a file
    images = np.random.default_rng(0).random((40, 6, 6, 1)).astype("float32")
    model.save(folder / "student.keras")
    np.savez(folder / "data.npz", image=images)
    labels = model(images).numpy().argmax(-1)
    np.savez(folder / "test.npz", image=images, labels=labels)
    return folder


def test_nothing_but_results(folder):
    line = f"{COMMAND} export student.keras --out out --max-drop 0.2 "
    line += "--calibrate data.npz --evaluate test.npz "
    line += "--quantize float16 dynamic_int8 int8 integer_only"
    done = subprocess.run(
        line.split(), capture_output=True, text=True, cwd=folder, env=ENVIRONMENT
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = [row.split()[0] for row in done.stdout.splitlines()]
    assert names[:2] == ["artefact", "saved_model"]
    assert names[-2:] == ["Keras:", "published"] and len(names) == 13


def test_a_checkpoint_of_fit_is_its_student(folder):
    """In a process that hasn't made the distiller's class known."""
    item, dwell = keras.Input((4,), name="item"), keras.Input((1,), name="dwell")
    both = layers.Concatenate()([item, dwell])
    distiller = kd.Distiller(
        keras.Model({"item": item}, layers.Dense(3, name="scores")(item)),
        keras.Model({"item": item, "dwell": dwell}, layers.Dense(3)(both)),
        privileged_features=["dwell"],
    )
    distiller.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    x = {"item": np.eye(4, dtype="float32"), "dwell": np.ones((4, 1), "float32")}
    best = keras.callbacks.ModelCheckpoint(folder / "best.keras")
    distiller.fit(x, np.eye(3)[[0, 1, 2, 0]], verbose=0, callbacks=[best])
    np.savez(folder / "batch.npz", **x)
    line = f"{COMMAND} export best.keras --to saved_model --examples batch.npz --out of"
    done = subprocess.run(
        line.split(), capture_output=True, text=True, cwd=folder, env=ENVIRONMENT
    )
    assert (done.returncode, done.stderr) == (0, "")
    manifest = json.loads((folder / "of" / "manifest.json").read_text())
    signature = manifest["signature"]
    names = [[spec["name"] for spec in signature[key]] for key in ("inputs", "outputs")]
    assert names == [["item"], ["scores"]]


def test_masks_that_a_layer_drops(tmp_path, capfd):
    """Keras remarks on them when the model is made, which is whose business it is."""
    words = keras.Input((4,), dtype="string", name="words")
    ids = layers.StringLookup(vocabulary=["a", "b"], name="ids")(words)
    embedded = layers.Embedding(4, 3, mask_zero=True)(ids)
    with pytest.warns(UserWarning, match="with a mask attached"):
        pooled = layers.Dense(2, name="y")(layers.Flatten()(embedded))
    keras.Model(words, pooled).save(tmp_path / "m.keras")
    np.savez(tmp_path / "x.npz", words=np.array([["a", "b", "c", "a"]] * 3))
    line = "export m.keras --to onnx --examples x.npz --split-preprocessing --out o"
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.chdir(tmp_path)
        assert main(line.split()) == 0
        assert main("bench o --model m.keras --calls 1 --batch-sizes 1".split()) == 0
    assert capfd.readouterr().err == ""


LINES = [
    b"WARNING: All log messages before absl::InitializeLog() is called are written\n",
    b"I0000 00:00:1795655952.445043    7247 port.cc:153] oneDNN\n",
    b"2026-11-26 01:14:11.123456: W tensorflow/core/x.cc:1] slow\n",
    b"E1126 01:14:11.123456    7247 cuda_platform.cc:52] failed call to cuInit\n",
    b"F1126 01:14:11.123456    7247 x.cc:52] Check failed\n",
    b"Illegal instruction\n",
]


@pytest.mark.parametrize(
    ("level", "kept"), [("0", 0), ("", 0), ("1", 2), ("2", 3), ("3", 4)]
)
def test_lines_by_level(level, kept, capfd):
    with standard_error.without(standard_error.log_lines(level)):
        os.write(2, b"".join(LINES))
    assert capfd.readouterr().err.encode() == b"".join(LINES[kept:])


def test_an_error_inside_keeps_what_was_written(capfd):
    with pytest.raises(ZeroDivisionError):
        with standard_error.without(re.compile(b"noise")):
            os.write(2, b"noise and more\na reason\n")
            _ = 1 / 0
    assert capfd.readouterr().err == "a reason\n"
    os.write(2, b"noise\n")  # itself again
    assert capfd.readouterr().err == "noise\n"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_nothing_but_the_error_of_what_it_tells(error, capfd):
    told_by = (ArithmeticError, KeyboardInterrupt)
    with pytest.raises(error):
        with standard_error.without(re.compile(b"noise"), told_by=told_by):
            os.write(2, b"noise and more\na reason\n")
            raise error
    assert capfd.readouterr().err == ""
    os.write(2, b"itself again\n")
    assert capfd.readouterr().err == "itself again\n"


def test_no_lines_of_the_kernels_of_a_runtime(tmp_path, capfd):
    """ONNX Runtime warns of how tf2onnx writes this layer."""
    image = keras.Input((8, 8, 1), name="image")
    resized = layers.Resizing(5, 3, interpolation="nearest")(image)
    model = keras.Model(image, resized)
    batch = np.random.default_rng(0).random((4, 8, 8, 1), "float32")
    kd.export.export(model, tmp_path / "o", ["onnx"], example_batch=batch)
    assert main(["verify", str(tmp_path / "o")]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("roll", lambda x: keras.ops.roll(x, 1, axis=1)),
        ("median", lambda x: keras.ops.median(x, axis=1)),
    ],
)
def test_a_refused_conversion_is_told_by_its_error_alone(
    name, operation, tmp_path, capfd
):
    x = keras.Input((4,), name="x")
    model, batch = keras.Model(x, operation(x)), np.eye(4, dtype="float32")
    with pytest.raises(RuntimeError, match=f"'litert': converting it.* '{name}"):
        kd.export.export(model, tmp_path / "o", ["litert"], example_batch=batch)
    assert capfd.readouterr().err == ""
