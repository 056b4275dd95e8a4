"""A student learns from a teacher that MLServer or `keras-distill serve` runs."""

import contextlib
import json
import signal
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill as kd
from keras_distill.devices.launching import free_ports
from keras_distill.export import export, repositories
from tests.e2e.services import HOST, PYTHON, ready, running, wait_for

pytestmark = [
    pytest.mark.skipif(
        sys.version_info >= (3, 13), reason="MLServer has no release for Python 3.13"
    ),
    pytest.mark.tensorflow_only("it exports"),
]

ROWS, SIZE, EPOCHS = 64, 8, 3


def network(units, seed):
    keras.utils.set_random_seed(seed)
    image, age = keras.Input((4, 4), name="image"), keras.Input((1,), name="age")
    x = keras.layers.Concatenate()([keras.layers.Flatten()(image), age])
    x = keras.layers.Dense(units, "relu")(x)
    return keras.Model({"image": image, "age": age}, keras.layers.Dense(5)(x))


def data():
    rng = np.random.default_rng(0)
    x = {
        "image": rng.normal(size=(ROWS, 4, 4)).astype("float32"),
        "age": rng.normal(size=(ROWS, 1)).astype("float32"),
    }
    return tf.data.Dataset.from_tensor_slices((x, np.arange(ROWS) % 5)).batch(SIZE)


def distilled(teacher, dataset, callbacks=()):
    distiller = kd.Distiller(network(8, seed=2), teacher)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss)
    distiller.fit(
        dataset, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return distiller.student


@pytest.fixture(scope="module")
def teacher():
    return network(32, seed=1)


@pytest.fixture(scope="module")
def expected(teacher):
    """The weights of a student whose teacher is in the same process."""
    return distilled(teacher, data()).get_weights()


@pytest.fixture(scope="module")
def exported(teacher, tmp_path_factory):
    directory = tmp_path_factory.mktemp("teacher") / "export"
    export(teacher, directory, ["onnx"], example_batch=next(iter(data()))[0])
    return directory


def assert_close(student, expected):
    for weight, other in zip(student.get_weights(), expected, strict=True):
        np.testing.assert_allclose(weight, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow("test_documents.py serves and trains so in every run")
def test_keras_distill_serve_at_the_other_end(exported, expected, tmp_path):
    port, grpc_port = free_ports(2)
    log = tmp_path / "serve.log"
    command = [PYTHON.with_name("keras-distill"), "serve", exported]
    command += ["--port", port, "--grpc-port", grpc_port, "--name", "teacher"]
    with running(command, log) as process:
        wait_for(lambda: f"gRPC      {HOST}" in log.read_text(), process, log)
        taught = kd.targets.remote(data(), f"{HOST}:{grpc_port}", "teacher")
        assert_close(distilled(kd.teachers.Recorded("teacher"), taught), expected)


def test_mlserver_is_killed_and_starts_again_during_fit(exported, expected, tmp_path):
    """The server listens for a while before it has its model."""
    repository, log = tmp_path / "models", tmp_path / "log"
    repositories.mlserver(exported, repository, name="teacher")
    port, grpc_port = free_ports(2)
    settings = json.loads((repository / "settings.json").read_text())
    settings |= {"http_port": port, "grpc_port": grpc_port, "metrics_endpoint": None}
    (repository / "settings.json").write_text(json.dumps(settings))
    command = [PYTHON.with_name("mlserver"), "start", repository]
    with running(command, log) as first, contextlib.ExitStack() as stack:
        wait_for(ready(port, "teacher"), first, log)
        taught = kd.targets.remote(data(), f"{HOST}:{grpc_port}", "teacher", retries=20)
        batches = []

        def kill(batch, logs):
            batches.append(batch)
            if len(batches) == 10:
                first.send_signal(signal.SIGKILL)
                first.wait()
                stack.enter_context(running(command, tmp_path / "second"))

        callback = keras.callbacks.LambdaCallback(on_train_batch_end=kill)
        student = distilled(kd.teachers.Recorded("teacher"), taught, [callback])
    assert len(batches) == EPOCHS * ROWS // SIZE
    assert_close(student, expected)
