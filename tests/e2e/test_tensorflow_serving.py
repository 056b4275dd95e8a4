"""The client of TensorFlow Serving, against a stand-in of the same stubs.

The server's binary is not to be had from a package registry. The stand-in answers what
arrives from the version's directory, so that names, dtypes and shapes have to be right.
"""

import importlib.util
import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from keras_distill.export import export, repositories
from tests.e2e.services import HOST

CLIENT = Path(__file__).parents[2] / "export/tensorflow_serving/client.py"


@pytest.fixture(scope="module")
def models():
    """With two outputs, and with one."""
    keras.utils.set_random_seed(0)
    image = keras.Input((6, 6, 1), name="image")
    age = keras.Input((1,), name="age", dtype="int32")
    x = keras.layers.Flatten()(keras.layers.Conv2D(4, 3)(image))
    x = keras.layers.Concatenate()([x, keras.layers.Rescaling(0.1)(age)])
    outputs = {"digit": keras.layers.Dense(3)(x), "tilt": keras.layers.Dense(1)(x)}
    features = keras.Input((4,), name="features")
    return {
        "two": keras.Model({"image": image, "age": age}, outputs, name="two"),
        "one": keras.Model(features, keras.layers.Dense(2, name="y")(features)),
    }


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    return {
        "two": {
            "image": rng.random((5, 6, 6, 1), "float32"),
            "age": rng.integers(0, 90, (5, 1), "int32"),
        },
        "one": {"features": rng.random((5, 4), "float32")},
    }


@pytest.fixture(scope="module")
def repository(models, batches, tmp_path_factory):
    root = tmp_path_factory.mktemp("serving")
    for name, model in models.items():
        example = batches[name] if name == "two" else batches[name]["features"]
        export(model, root / name, ["saved_model"], example_batch=example)
        repositories.tensorflow_serving(root / name, root / "models", name=name)
    return root / "models"


@pytest.fixture(scope="module")
def client():
    spec = importlib.util.spec_from_file_location("tensorflow_serving_client", CLIENT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Served:
    """What a version's directory answers."""

    def __init__(self, directory):
        self.loaded = tf.saved_model.load(str(directory))
        self.signature = self.loaded.signatures["serving_default"]
        self.specs = self.signature.structured_input_signature[1]

    def __call__(self, tensors):
        assert set(tensors) == set(self.specs)
        for name, tensor in tensors.items():
            assert tensor.dtype == self.specs[name].dtype, name
            assert self.specs[name].shape.is_compatible_with(tensor.shape), name
        outputs = self.signature(**tensors)
        return {name: value.numpy() for name, value in outputs.items()}


@pytest.fixture(scope="module")
def served(repository, models):
    return {name: Served(repository / name / "1") for name in models}


@pytest.fixture(scope="module")
def grpc_url(served):
    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802 - the stub's name
            assert request.model_spec.signature_name == "serving_default"
            tensors = {
                name: tf.constant(tf.make_ndarray(it))
                for name, it in request.inputs.items()
            }
            answer = predict_pb2.PredictResponse()
            for name, value in served[request.model_spec.name](tensors).items():
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return answer

    server = grpc.server(ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Service(), server
    )
    port = server.add_insecure_port(f"{HOST}:0")
    server.start()
    yield f"{HOST}:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def rest_url(served):
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):  # noqa: N802 - the base class's name
            name = self.path.removeprefix("/v1/models/").removesuffix(":predict")
            assert self.path == f"/v1/models/{name}:predict"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            columns = json.loads(body)["inputs"]
            # JSON has no dtypes: the server takes those of the signature.
            tensors = {
                key: tf.constant(values, served[name].specs[key].dtype)
                for key, values in columns.items()
            }
            outputs = {k: v.tolist() for k, v in served[name](tensors).items()}
            # As documented: the values alone where there is one output.
            only = next(iter(outputs.values())) if len(outputs) == 1 else outputs
            answer = json.dumps({"outputs": only}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer((HOST, 0), Handler) as server:
        worker = threading.Thread(target=server.serve_forever, args=[0.05])
        worker.start()
        yield f"http://{HOST}:{server.server_port}"
        server.shutdown()
        worker.join()


@pytest.mark.parametrize("name", ["one", "two"])
def test_the_request_fits_the_signature_of_the_saved_model(
    client, served, models, batches, name
):
    request = client.predict_request(name, batches[name])
    # Through its bytes, as it is sent.
    request = predict_pb2.PredictRequest.FromString(request.SerializeToString())
    assert request.model_spec.name == name
    tensors = {
        key: tf.constant(tf.make_ndarray(it)) for key, it in request.inputs.items()
    }
    outputs = served[name](tensors)
    expected = models[name](
        batches[name] if name == "two" else batches[name]["features"], training=False
    )
    expected = expected if name == "two" else {"y": expected}
    assert set(outputs) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(outputs[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize("name", ["one", "two"])
def test_answers_are_those_of_keras(
    client, request, monkeypatch, models, batches, protocol, name
):
    monkeypatch.setenv("no_proxy", HOST)
    url = request.getfixturevalue(f"{protocol}_url")
    ask = {"rest": client.rest, "grpc": client.remote}[protocol]
    outputs = ask(url, name, batches[name])
    if name == "one":
        only = "output" if protocol == "rest" else "y"
        expected = {only: models[name](batches[name]["features"], training=False)}
    else:
        expected = models[name](batches[name], training=False)
    assert set(outputs) == set(expected)
    for key, value in expected.items():
        assert outputs[key].shape == tuple(value.shape)
        np.testing.assert_allclose(outputs[key], value, rtol=1e-5, atol=1e-5)


def test_the_command(grpc_url, models, batches, tmp_path):
    np.savez(tmp_path / "batch.npz", **batches["two"])
    command = [sys.executable, str(CLIENT), "grpc", grpc_url, "two"]
    done = subprocess.run(
        [*command, str(tmp_path / "batch.npz")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    expected = models["two"](batches["two"], training=False)
    lines = dict(line.split(" (", 1) for line in done.stdout.splitlines())
    assert set(lines) == {"digit", "tilt"}
    shape, _, row = lines["digit"].partition(") ")
    assert shape == "5, 3"
    np.testing.assert_allclose(json.loads(row), expected["digit"][0], atol=1e-4)
