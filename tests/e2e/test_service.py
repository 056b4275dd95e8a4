"""`keras-distill serve` and `mlserver start`, as real processes under real requests."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill.devices.launching import free_ports
from keras_distill.export import export, repositories
from keras_distill.export.repositories.service import serving
from tests.e2e.services import (
    HOST,
    PYTHON,
    ask,
    listening,
    ready,
    running,
    to_arrays,
    to_request,
    wait_for,
)

pytestmark = pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="MLServer has no release for Python 3.13"
)

COMMAND = PYTHON.with_name("keras-distill")
RECIPES = Path(__file__).parents[2] / "export"


def conv_net(seed):
    keras.utils.set_random_seed(seed)
    image = keras.Input((28, 28, 1), name="image")
    age = keras.Input((1,), name="age")
    x = keras.layers.Conv2D(8, 3, activation="relu")(image)
    x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Conv2D(16, 3, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Concatenate()([x, age])
    outputs = {
        "digit": keras.layers.Dense(10, name="digit")(x),
        "tilt": keras.layers.Dense(1, name="tilt")(x),
    }
    return keras.Model({"image": image, "age": age}, outputs, name="student")


def batch_of(size, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": rng.random((size, 28, 28, 1), "float32"),
        "age": rng.standard_normal((size, 1)).astype("float32"),
    }


@pytest.fixture(scope="module")
def models():
    return conv_net(0), conv_net(1)


@pytest.fixture(scope="module")
def exports(models, tmp_path_factory):
    """Two versions of a student, published under their numbers."""
    directory = tmp_path_factory.mktemp("exports") / "student"
    for version, model in enumerate(models, 1):
        export(model, directory / str(version), ["onnx"], example_batch=batch_of(4))
    return directory


@pytest.fixture(scope="module")
def service(exports, tmp_path_factory):
    """Ports of `keras-distill serve`, which is stopped at the end."""
    port, grpc_port = free_ports(2)
    log = tmp_path_factory.mktemp("logs") / "serve.log"
    command = [COMMAND, "serve", exports / "1"]
    command += ["--port", port, "--grpc-port", grpc_port]
    with running(command, log) as process:
        wait_for(lambda: f"gRPC      {HOST}" in log.read_text(), process, log)
        yield port, grpc_port, log
    assert process.returncode == 0, log.read_text()[-3000:]


def expected_of(model, batch):
    outputs = model(batch, training=False)
    return {name: np.asarray(value) for name, value in outputs.items()}


def assert_close(outputs, expected):
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        assert outputs[name].shape == value.shape
        np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=1e-5)


def infer(port, arrays, name="student", **more):
    path = f"/v2/models/{name}/infer"
    status, answer = ask(port, "POST", path, to_request(arrays, **more))
    assert status == 200, answer
    return answer


def test_urls_are_printed_when_it_is_ready(service):
    port, _, log = service
    printed = log.read_text()
    for path in ("health/ready", "models/student", "models/student/infer"):
        assert f"http://{HOST}:{port}/v2/{path}\n" in printed


def test_health_and_metadata(service):
    port, _, _ = service
    for path in ("health/live", "health/ready", "models/student/ready"):
        assert ask(port, "GET", f"/v2/{path}")[0] == 200
    status, metadata = ask(port, "GET", "/v2/models/student")
    assert status == 200
    assert metadata["name"] == "student"
    assert metadata["versions"] == ["1"]
    assert metadata["platform"] == "onnxruntime_onnx"
    tensors = {it["name"]: it for it in metadata["inputs"] + metadata["outputs"]}
    assert {name: it["shape"] for name, it in tensors.items()} == {
        "image": [-1, 28, 28, 1],
        "age": [-1, 1],
        "digit": [-1, 10],
        "tilt": [-1, 1],
    }
    assert {it["datatype"] for it in tensors.values()} == {"FP32"}


@pytest.mark.parametrize("size", [1, 3, 64])
def test_answers_are_those_of_keras(service, models, size):
    batch = batch_of(size, seed=size)
    answer = infer(service[0], batch, id="mine")
    assert (answer["id"], answer["model_version"]) == ("mine", "1")
    assert_close(to_arrays(answer), expected_of(models[0], batch))


def test_nested_data_and_some_outputs(service, models):
    batch = batch_of(2)
    request = to_request(batch, outputs=[{"name": "tilt"}])
    for tensor in request["inputs"]:
        tensor["data"] = batch[tensor["name"]].tolist()
    _, answer = ask(service[0], "POST", "/v2/models/student/infer", request)
    tilt = expected_of(models[0], batch)["tilt"]
    assert_close(to_arrays(answer), {"tilt": tilt})


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tritonclient(service, models, protocol):
    triton = pytest.importorskip(f"tritonclient.{protocol}")
    port = service[["http", "grpc"].index(protocol)]
    form = {"binary_data": False} if protocol == "http" else {}
    batch = batch_of(64)
    inputs = []
    for name, array in batch.items():
        tensor = triton.InferInput(name, array.shape, "FP32")
        tensor.set_data_from_numpy(array, **form)
        inputs.append(tensor)
    names = ("digit", "tilt")
    outputs = [triton.InferRequestedOutput(name, **form) for name in names]
    with contextlib.closing(triton.InferenceServerClient(f"{HOST}:{port}")) as client:
        assert client.is_server_live() and client.is_model_ready("student")
        answer = client.infer("student", inputs, outputs=outputs)
    found = {name: answer.as_numpy(name) for name in names}
    assert_close(found, expected_of(models[0], batch))


def call_client(folder, *arguments):
    done = subprocess.run(
        [sys.executable, str(RECIPES / folder / "client.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"no_proxy": HOST},
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("protocol", ["open_inference", "http", "grpc"])
def test_the_recipes_clients(service, models, tmp_path, protocol):
    batch = batch_of(5)
    np.savez(tmp_path / "batch.npz", **batch)
    port, grpc_port, _ = service
    rest = ["student", tmp_path / "batch.npz"]
    if protocol == "open_inference":
        called = call_client("open_inference", f"http://{HOST}:{port}", *rest)
    else:
        url = f"{HOST}:{port if protocol == 'http' else grpc_port}"
        called = call_client("triton", protocol, url, *rest)
    code, printed, errors = called
    assert code == 0, errors
    expected = expected_of(models[0], batch)
    for name, line in zip(("digit", "tilt"), printed.splitlines(), strict=True):
        prefix = f"{name} {expected[name].shape} "
        assert line.startswith(prefix)
        row = json.loads(line.removeprefix(prefix))
        np.testing.assert_allclose(row, expected[name][0], atol=1e-4)


def test_the_client_says_what_the_server_does(service, tmp_path):
    np.savez(tmp_path / "batch.npz", image=np.zeros((1, 2), "float32"))
    url = f"http://{HOST}:{service[0]}"
    code, _, errors = call_client(
        "open_inference", url, "student", tmp_path / "batch.npz"
    )
    assert code == 1
    assert (
        errors.startswith("HTTP 400:") and "Inputs must be ['age', 'image']" in errors
    )


def test_under_load_every_answer_is_right(service, models, capsys):
    threads, each = 8, 50
    batches = [batch_of(1, seed=thread) for thread in range(threads)]
    expected = [expected_of(models[0], batch) for batch in batches]
    bodies = [json.dumps(to_request(batch)) for batch in batches]
    right, seconds = [0] * threads, []

    def work(thread):
        connection = http.client.HTTPConnection(HOST, service[0], timeout=30)
        for _ in range(each):
            begin = time.perf_counter()
            connection.request("POST", "/v2/models/student/infer", bodies[thread])
            answer = connection.getresponse()
            outputs = to_arrays(json.loads(answer.read()))
            seconds.append(time.perf_counter() - begin)
            assert_close(outputs, expected[thread])
            right[thread] += 1
        connection.close()

    workers = [threading.Thread(target=work, args=[it]) for it in range(threads)]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    took = time.perf_counter() - begin
    assert right == [each] * threads
    p50, p99 = 1000 * np.quantile(seconds, [0.5, 0.99])
    with capsys.disabled():
        print(
            f"\nload: {threads} clients x {each}: {threads * each / took:.0f} "
            f"requests/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        )


def spoilt(change):
    request = to_request(batch_of(2))
    change({tensor["name"]: tensor for tensor in request["inputs"]}, request)
    return request


WRONG = {
    "a name": (
        lambda it, _: it["age"].update(name="years"),
        "Inputs must be ['age', 'image']. Received: ['image', 'years'].",
    ),
    "a missing input": (
        lambda _, request: request["inputs"].pop(),
        "Inputs must be ['age', 'image']. Received: ['image'].",
    ),
    "an input twice": (
        lambda it, request: request["inputs"].append(it["age"]),
        "Received: ['image', 'age', 'age'].",
    ),
    "a shape": (
        lambda it, _: it["image"].update(shape=[2, 28, 28]),
        "Input 'image' must have shape [-1, 28, 28, 1]; -1 takes any size. "
        "Received: [2, 28, 28].",
    ),
    "a negative size": (
        lambda it, _: it["age"].update(shape=[-1, 1]),
        "must have shape [-1, 1]; -1 takes any size. Received: [-1, 1].",
    ),
    "a shape that isn't the data's": (
        lambda it, _: it["age"].update(shape=[3, 1]),
        "must hold FP32 values, as many as its shape [3, 1] says",
    ),
    "a datatype": (
        lambda it, _: it["age"].update(datatype="INT64"),
        "Input 'age' must have datatype FP32. Received: INT64.",
    ),
    "text": (
        lambda it, _: it["age"].update(data=["1", "2"]),
        "must hold FP32 values",
    ),
    "ragged data": (
        lambda it, _: it["age"].update(data=[[1.0], [2.0, 3.0]]),
        "must hold FP32 values",
    ),
    "batches that differ": (
        lambda it, _: it["age"].update(shape=[1, 1], data=[1.0]),
        "the same number of examples, and at least one. Received: "
        "{'age': 1, 'image': 2}.",
    ),
    "an empty batch": (
        lambda it, _: (
            it["age"].update(shape=[0, 1], data=[]),
            it["image"].update(shape=[0, 28, 28, 1], data=[]),
        ),
        "at least one. Received: {'age': 0, 'image': 0}.",
    ),
    "an output": (
        lambda _, request: request.update(outputs=[{"name": "class"}]),
        "Outputs must be some of ['digit', 'tilt']. Received: ['class'].",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_are_answered_with_400(service, case):
    change, message = WRONG[case]
    path = "/v2/models/student/infer"
    status, answer = ask(service[0], "POST", path, spoilt(change))
    assert status == 400, answer
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("student/infer", '{"inputs": [', 422),
        ("student/infer", {"inputs": [{"name": "age"}]}, 422),
        ("student/infer", spoilt(lambda it, _: it["age"].update(datatype="F32")), 422),
        ("teacher/infer", to_request(batch_of(1)), 404),
        ("student/versions/9/infer", to_request(batch_of(1)), 404),
    ],
)
def test_what_is_no_request_is_answered_with_4xx(service, path, body, expected):
    assert ask(service[0], "POST", f"/v2/models/{path}", body)[0] == expected


def test_wrong_requests_over_grpc(service):
    triton = pytest.importorskip("tritonclient.grpc")
    tensor = triton.InferInput("age", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 1), "float32"))
    client = triton.InferenceServerClient(f"{HOST}:{service[1]}")
    with contextlib.closing(client):
        with pytest.raises(Exception, match=r"Inputs must be \['age', 'image'\]") as it:
            client.infer("student", [tensor])
    assert it.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_it_still_answers(service, models):
    batch = batch_of(1)
    found = to_arrays(infer(service[0], batch))
    assert_close(found, expected_of(models[0], batch))


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux")
def test_it_listens_on_loopback_alone(service):
    # 127.0.0.1, and the same as an address of IPv6.
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    for port in service[:2]:
        assert listening(port) and set(listening(port)) <= loopback


def test_a_port_that_is_taken(service, exports):
    for taken, argument in zip(service[:2], ("port", "grpc_port"), strict=True):
        ports = dict(zip(("port", "grpc_port"), free_ports(2), strict=True))
        ports[argument] = taken
        message = f"`{argument}` must be free. Received: {argument}={taken}"
        with pytest.raises(OSError, match=message), serving(exports / "1", **ports):
            pass


@pytest.mark.parametrize(
    ("ports", "message"),
    [
        ({"port": 0}, "`port` must be from 1 to 65535. Received: port=0"),
        ({"grpc_port": 65536}, "`grpc_port` must be from 1 to 65535"),
        ({"port": 9999, "grpc_port": 9999}, "must differ.*port=9999, grpc_port=9999"),
    ],
)
def test_ports_that_are_none(exports, ports, message):
    with pytest.raises(ValueError, match=message), serving(exports / "1", **ports):
        pass


def test_without_mlserver(exports, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"'mlserver'.*keras-distill\[serve\]"):
        with serving(exports / "1"):
            pass


@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow("starts servers")),
    ],
)
def test_a_signal_ends_it_and_nothing_is_left(exports, tmp_path, sent):
    port, grpc_port = free_ports(2)
    log = tmp_path / "serve.log"
    command = [COMMAND, "serve", exports / "1", "--name", "other"]
    command += ["--port", port, "--grpc-port", grpc_port]
    (tmp_path / "tmp").mkdir()
    directory = {"TMPDIR": str(tmp_path / "tmp")}
    with running(command, log, environment=directory) as process:
        wait_for(ready(port, "other"), process, log)
        wait_for(lambda: "gRPC" in log.read_text(), process, log)
        (repository,) = (tmp_path / "tmp").glob("keras-distill-*")
        assert (repository / "other" / "1" / "model.onnx").is_file()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        process.send_signal(sent)
        assert process.wait(30) == 0, log.read_text()[-3000:]
    assert log.read_text().endswith("stopped\n")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert [it for it in children.split() if Path("/proc", it).exists()] == []
    assert not listening(port) and not listening(grpc_port)


def test_a_model_that_does_not_load(exports, tmp_path, monkeypatch):
    """The server ends; so does the command, with its reason."""
    from keras_distill.export.repositories import service as module

    def broken(*arguments, **keywords):
        directory = repositories.mlserver(*arguments, **keywords)
        (directory / "model.onnx").write_bytes(b"no model")
        return directory

    monkeypatch.setattr(module, "mlserver", broken)
    port, grpc_port = free_ports(2)
    with pytest.raises(RuntimeError, match="MLServer ended before it was ready"):
        with serving(exports / "1", port=port, grpc_port=grpc_port):
            pass
    assert not listening(port)


# What must not be imported by the server, as it isn't there in production.
BLOCKED = "raise ImportError('not in production')\n"


@pytest.fixture(scope="module")
def bare_server(exports, tmp_path_factory):
    """`mlserver start` on a repository, without TensorFlow, Keras and this package."""
    root = tmp_path_factory.mktemp("bare")
    repository = root / "models"
    repositories.mlserver(exports / "1", repository)
    for name, write in (("types", write_types), ("rows", write_rows)):
        directory = root / name
        write(directory)
        repositories.mlserver(directory, repository)
    port, grpc_port = free_ports(2)
    settings = json.loads((repository / "settings.json").read_text())
    settings |= {
        "http_port": port,
        "grpc_port": grpc_port,
        "metrics_endpoint": None,
    }
    (repository / "settings.json").write_text(json.dumps(settings))
    (root / "blocked").mkdir()
    for name in ("tensorflow", "keras", "keras_distill"):
        (root / "blocked" / f"{name}.py").write_text(BLOCKED)
    log = root / "mlserver.log"
    command = [PYTHON.with_name("mlserver"), "start", repository]
    environment = {"PYTHONPATH": str(root / "blocked")}
    with running(command, log, environment=environment, cwd=root) as process:
        wait_for(ready(port, "student"), process, log)
        wait_for(ready(port, "types"), process, log)
        wait_for(ready(port, "rows"), process, log)
        yield repository, port, grpc_port


TYPES = {
    "bool": [True, False],
    "uint8": [0, 255],
    "uint16": [0, 65535],
    "uint32": [0, 2**32 - 1],
    "uint64": [0, 2**64 - 1],
    "int8": [-128, 127],
    "int16": [-32768, 32767],
    "int32": [-(2**31), 2**31 - 1],
    "int64": [-(2**63), 2**63 - 1],
    "float16": [0.5, 65504.0],
    "float32": [0.1, -3e38],
    "float64": [0.1, 1e300],
    "string": ["añ", ""],
}


def write_export(directory, name, graph):
    """Write a hand-made ONNX graph as an export."""
    import hashlib

    import onnx

    from keras_distill.export import manifest

    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9
    )
    data = model.SerializeToString()
    directory.mkdir()
    (directory / "model.onnx").write_bytes(data)
    file = {
        "path": "model.onnx",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    manifest.write(
        {
            "kind": "keras_distill.export",
            "format_version": manifest.FORMAT_VERSION,
            "model": name,
            "signature": {"inputs": [], "outputs": []},
            "artefacts": {"onnx": {"format": "onnx", "files": [file]}},
        },
        directory,
    )


def write_types(directory):
    """A model that gives back what it takes, in every datatype of the protocol."""
    import onnx
    from onnx import helper

    def value(name, dtype):
        kind = {"float32": "FLOAT", "float64": "DOUBLE"}.get(dtype, dtype.upper())
        element = getattr(onnx.TensorProto, kind)
        return helper.make_tensor_value_info(name, element, ["batch"])

    graph = helper.make_graph(
        [helper.make_node("Identity", [f"in_{it}"], [f"out_{it}"]) for it in TYPES],
        "types",
        [value(f"in_{it}", it) for it in TYPES],
        [value(f"out_{it}", it) for it in TYPES],
    )
    write_export(directory, "types", graph)


def write_rows(directory):
    """A model that looks up one of three rows: an embedding."""
    import onnx
    from onnx import helper

    table = helper.make_tensor("table", onnx.TensorProto.FLOAT, [3, 2], range(6))
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "index"], ["row"])],
        "rows",
        [helper.make_tensor_value_info("index", onnx.TensorProto.INT32, ["batch"])],
        [helper.make_tensor_value_info("row", onnx.TensorProto.FLOAT, ["batch", 2])],
        [table],
    )
    write_export(directory, "rows", graph)


def types_request(**changes):
    datatypes = {"float16": "FP16", "float32": "FP32", "float64": "FP64"}
    datatypes["string"] = "BYTES"
    return {
        "inputs": [
            {
                "name": f"in_{dtype}",
                "shape": [2],
                "datatype": datatypes.get(dtype, dtype.upper()),
                "data": changes.get(dtype, values),
            }
            for dtype, values in TYPES.items()
        ]
    }


def test_every_datatype_comes_back_as_it_was(bare_server):
    _, port, _ = bare_server
    request = types_request()
    status, answer = ask(port, "POST", "/v2/models/types/infer", request)
    assert status == 200, answer
    sent = {it["name"].removeprefix("in_"): it for it in request["inputs"]}
    for output in answer["outputs"]:
        dtype = output["name"].removeprefix("out_")
        assert output["datatype"] == sent[dtype]["datatype"]
        assert output["shape"] == [2]
        if dtype == "float32":
            np.testing.assert_allclose(output["data"], TYPES[dtype], rtol=1e-6)
        else:
            assert output["data"] == TYPES[dtype]


def test_nan_is_null(bare_server):
    request = types_request(float32=[None, 1.5])
    _, answer = ask(bare_server[1], "POST", "/v2/models/types/infer", request)
    found = {it["name"]: it["data"] for it in answer["outputs"]}
    assert found["out_float32"] == [None, 1.5]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("uint8", [0, 256]),
        ("int8", [0, -129]),
        ("int64", [0, 2**63]),
        ("int32", [0, 1.5]),
        ("int32", [0, None]),
        ("bool", [0, 1]),
        ("float64", [0.0, "x"]),
        ("float32", {"a": 1}),
    ],
)
def test_values_that_a_datatype_does_not_have(bare_server, dtype, values):
    request = types_request(**{dtype: values})
    status, answer = ask(bare_server[1], "POST", "/v2/models/types/infer", request)
    assert status == 400, answer
    assert answer["error"].startswith(f"Input 'in_{dtype}' must hold")


def test_strings_over_grpc(bare_server):
    triton = pytest.importorskip("tritonclient.grpc")
    inputs = []
    for tensor in types_request()["inputs"]:
        dtype = tensor["name"].removeprefix("in_").replace("string", "object")
        made = triton.InferInput(tensor["name"], [2], tensor["datatype"])
        made.set_data_from_numpy(np.array(tensor["data"], dtype))
        inputs.append(made)
    url = f"{HOST}:{bare_server[2]}"
    with contextlib.closing(triton.InferenceServerClient(url)) as client:
        answer = client.infer("types", inputs)
    assert [it.decode() for it in answer.as_numpy("out_string")] == TYPES["string"]
    assert answer.as_numpy("out_float16").tolist() == TYPES["float16"]


def test_values_that_the_model_does_not_have(bare_server):
    _, port, _ = bare_server
    good = {"index": np.array([2], "int32")}
    assert to_arrays(infer(port, good, "rows"))["row"].tolist() == [[4, 5]]
    request = to_request({"index": np.array([7], "int32")})
    status, answer = ask(port, "POST", "/v2/models/rows/infer", request)
    assert status == 400
    assert answer["error"].startswith("Inputs must be values that the model can")


def test_a_new_version_is_taken_up_without_a_pause(bare_server, exports, models):
    repository, port, _ = bare_server
    batch = batch_of(2)
    old, new = (expected_of(model, batch) for model in models)
    assert_close(to_arrays(infer(port, batch)), old)
    statuses, stop = [], threading.Event()

    def keep_asking():
        body = to_request(batch)
        while not stop.is_set():
            path = "/v2/models/student/infer"
            statuses.append(ask(port, "POST", path, body)[0])

    worker = threading.Thread(target=keep_asking)
    worker.start()
    try:
        repositories.mlserver(exports / "2", repository)
        load = "/v2/repository/models/student/load"
        assert ask(port, "POST", load)[0] == 200
        answer = infer(port, batch)
    finally:
        stop.set()
        worker.join(30)
    assert answer["model_version"] == "2"
    assert_close(to_arrays(answer), new)
    assert len(statuses) > 1 and set(statuses) == {200}
    # The server lets the old one go.
    assert ask(port, "GET", "/v2/models/student/versions/1")[0] == 404
