"""Every artefact runs where nothing but its runtime is installed."""

import subprocess
import textwrap
import venv
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers
from sklearn.datasets import load_digits

from keras_distill.export import Evaluation, export

ROOT = Path(__file__).parents[2]
PRECISIONS = ("", "float16", "dynamic_int8", "int8")

# What is installed, which modules mustn't be there, how an artefact is run.
RUNTIMES = {
    "onnx": (
        ["onnxruntime", "numpy"],
        ["keras", "tensorflow", "keras_distill", "onnx"],
        """
        import onnxruntime
        def run(path, arrays):
            session = onnxruntime.InferenceSession(path)
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(names, arrays)))
        """,
    ),
    "litert": (
        ["ai-edge-litert", "numpy"],
        ["keras", "tensorflow", "keras_distill"],
        """
        from ai_edge_litert.interpreter import Interpreter
        def run(path, arrays):
            return Interpreter(model_path=path).get_signature_runner()(**arrays)
        """,
    ),
    "saved_model": (
        ["tensorflow"],
        ["keras", "keras_distill"],
        """
        import tensorflow as tf
        def run(path, arrays):
            saved = tf.saved_model.load(path)
            arrays = {name: tf.constant(array) for name, array in arrays.items()}
            outputs = saved.signatures["serving_default"](**arrays)
            return {name: tensor.numpy() for name, tensor in outputs.items()}
        """,
    ),
}

# TensorFlow's distribution brings Keras along; None makes its import fail.
FRAME = """
import sys
source, target, forbidden, *paths = sys.argv[1:]
sys.modules.update(dict.fromkeys(forbidden.split(",")))
import numpy as np
{run}
arrays = dict(np.load(source))
results = {{}}
for number, path in enumerate(paths):
    for name, array in run(path, arrays).items():
        results[f"{{number}}/{{name}}"] = array
np.savez(target, **results)
"""


@pytest.fixture(scope="module")
def digits():
    """Real images, half of them held out; as 8x8 and as sixteen tokens of 4 pixels."""
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], labels[order].astype("int64")
    return (x[:900], y[:900]), (x[900:], y[900:])


def inputs(x):
    return {"image": x, "patches": x.reshape(len(x), 16, 4)}


@pytest.fixture(scope="module")
def exported(digits, tmp_path_factory):
    """A student with convolutions, attention, two inputs and two outputs."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 1), name="image")
    patches = keras.Input((16, 4), name="patches")
    x = layers.Conv2D(16, 3, padding="same", use_bias=False)(image)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    tokens = layers.Dense(16)(patches)
    tokens = layers.LayerNormalization()(
        tokens + layers.MultiHeadAttention(2, 8)(tokens, tokens)
    )
    x = layers.Concatenate()([x, layers.GlobalAveragePooling1D()(tokens)])
    x = layers.Dense(64, "relu")(x)
    student = keras.Model(
        {"image": image, "patches": patches},
        {
            "digit": layers.Dense(10, "softmax")(x),
            "ink": layers.Dense(1, "sigmoid")(x),
        },
        name="student",
    )
    (x_train, y_train), test = digits
    student.compile("adam", {"digit": "sparse_categorical_crossentropy", "ink": "mse"})
    ink = x_train.mean((1, 2, 3))[:, None]
    labels = {"digit": y_train, "ink": ink}
    student.fit(inputs(x_train), labels, epochs=25, batch_size=32, verbose=0)
    directory = tmp_path_factory.mktemp("exports") / "student"
    manifest = export(
        student,
        directory,
        example_batch=inputs(test[0][:32]),
        quantize=[precision for precision in PRECISIONS if precision],
        calibration_data=inputs(x_train[:300]),
        evaluation=Evaluation(
            (inputs(test[0]), test[1]),
            keras.metrics.SparseCategoricalAccuracy(),
            output="digit",
            max_drop=0.01,
        ),
    )
    assert manifest["evaluation"]["keras"] > 0.9
    return student, directory, manifest


def run_elsewhere(folder, runtime, arrays, paths):
    """Install a runtime into a new environment; run artefacts there."""
    packages, forbidden, program = RUNTIMES[runtime]
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [
            *(python, "-m", "pip", "install", "--quiet"),
            *("--disable-pip-version-check", "-c", ROOT / "constraints.txt", *packages),
        ],
        check=True,
    )
    np.savez(folder / "in.npz", **arrays)
    program = FRAME.format(run=textwrap.dedent(program))
    (folder / "run.py").write_text(program)
    done = subprocess.run(
        [
            *(python, "-I", "run.py", "in.npz", "out.npz", ",".join(forbidden)),
            *map(str, paths),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = [{} for _ in paths]
    for key, array in np.load(folder / "out.npz").items():
        number, _, name = key.partition("/")
        results[int(number)][name] = array
    return results


@pytest.mark.slow("makes an environment for each runtime")
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_artefacts_agree_with_keras(exported, digits, tmp_path, runtime):
    student, directory, manifest = exported
    x, y = digits[1]
    expected = student(inputs(x), training=False)
    accuracy = np.mean(np.argmax(expected["digit"], -1) == y)
    precisions = [""] if runtime == "saved_model" else PRECISIONS
    names = [f"{runtime}_{it}" if it else runtime for it in precisions]
    files = [manifest["artefacts"][name]["files"] for name in names]
    paths = [
        directory / ("saved_model" if name == "saved_model" else file[0]["path"])
        for name, file in zip(names, files, strict=True)
    ]
    results = run_elsewhere(tmp_path, runtime, inputs(x), paths)
    for precision, outputs in zip(precisions, results, strict=True):
        assert set(outputs) == {"digit", "ink"}
        if "int8" in precision:
            drop = accuracy - np.mean(np.argmax(outputs["digit"], -1) == y)
            assert drop <= 0.01, (precision, drop)
            continue
        within = 1e-2 if precision == "float16" else 1e-5
        for name, want in expected.items():
            np.testing.assert_allclose(
                outputs[name], want, rtol=0, atol=within, err_msg=f"{precision} {name}"
            )
