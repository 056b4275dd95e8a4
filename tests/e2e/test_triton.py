"""The repositories of `repositories.triton` in Triton Inference Server itself.

The server and its Python backend come from a package of NVIDIA's. Its ONNX Runtime
backend isn't to be had from a package registry: `triton_onnxruntime.py` stands in for
it under its name, so that the server reads each `config.pbtxt` as it was written.
"""

import contextlib
import functools
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from keras_distill.devices.launching import free_ports
from keras_distill.export import export, repositories
from tests.e2e.services import HOST, PYTHON, ask, running, wait_for

# The version's only place; `export/triton/README.md` names the server that it holds.
PACKAGE = "nvidia-pytriton==0.7.0"
BACKEND = Path(__file__).with_name("triton_onnxruntime.py")
RECIPE = Path(__file__).parents[2] / "export/triton"

# Name in the repository to the export, and the options that it is laid out with.
LAYOUTS = {
    "student": ("student/1", {}),
    "waiting": (
        "student/1",
        {
            "preferred_batch_sizes": [4, 8],
            "max_queue_delay_microseconds": 100_000,
            "instances": 2,
        },
    ),
    "unbatched": ("student/1", {"max_batch_size": 0}),
    "fixed": ("fixed", {}),
    "scalar": ("scalar", {}),
}


def no_dims(config):
    del config.output[0].dims[:]


def other_dims(config):
    config.output[0].dims[-1] += 1


def no_reshape(config):
    config.output[0].ClearField("reshape")


BROKEN = {
    no_dims: ("student", "must specify 'dims'"),
    other_dims: ("student", "TritonModelException: config"),
    no_reshape: ("scalar", "TritonModelException: config"),
}


def conv_net(seed):
    keras.utils.set_random_seed(seed)
    image = keras.Input((8, 8, 1), name="image")
    age = keras.Input((1,), name="age", dtype="int32")
    x = keras.layers.Conv2D(4, 3, activation="relu")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Concatenate()([x, keras.layers.Rescaling(0.1)(age)])
    outputs = {
        "digit": keras.layers.Dense(10)(x),
        "tilt": keras.layers.Dense(1, activation="tanh")(x),
    }
    return keras.Model({"image": image, "age": age}, outputs, name="student")


def dense_model():
    features = keras.Input((4,), name="features")
    outputs = {"scores": keras.layers.Dense(2)(features)}
    return keras.Model({"features": features}, outputs, name="fixed")


def scalar_model():
    """Sequences of any length to one number each, of shape `(batch,)`."""
    sequence = keras.Input((None, 5), name="sequence")
    mean = keras.layers.Lambda(lambda x: keras.ops.mean(x, (1, 2)))(sequence)
    return keras.Model({"sequence": sequence}, {"mean": mean}, name="scalar")


def batch_of(size, layout="student", seed=0):
    rng = np.random.default_rng(seed)
    if layout == "scalar":
        return {"sequence": rng.random((size, 7, 5), "float32")}
    if layout == "fixed":
        return {"features": rng.random((size, 4), "float32")}
    return {
        "image": rng.random((size, 8, 8, 1), "float32"),
        "age": rng.integers(0, 90, (size, 1), "int32"),
    }


@pytest.fixture(scope="module")
def models():
    """Export to its Keras model."""
    return {
        "student/1": conv_net(0),
        "student/2": conv_net(1),
        "fixed": dense_model(),
        "scalar": scalar_model(),
    }


@pytest.fixture(scope="module")
def exports(models, tmp_path_factory):
    root = tmp_path_factory.mktemp("exports")
    for name, model in models.items():
        batch = batch_of(3, model.name)
        size = 3 if name == "fixed" else None
        export(model, root / name, ["onnx"], example_batch=batch, batch_size=size)
    return root


@pytest.fixture(scope="module")
def environment():
    """What the server needs to embed the Python that runs the tests."""
    first = {
        "PATH": str(PYTHON.parent),
        "LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR") or "",
    }
    present = {name: os.environ.get(name, "") for name in first}
    return {k: f"{v}:{present[k]}".strip(":") for k, v in first.items()}


@pytest.fixture(scope="module")
def installed(environment, tmp_path_factory):
    """The directory of the server, with ONNX Runtime behind its Python backend."""
    libc, version = platform.libc_ver()
    new = libc == "glibc" and [int(it) for it in version.split(".")] >= [2, 35]
    if (platform.system(), platform.machine(), new) != ("Linux", "x86_64", True):
        pytest.skip(f"{PACKAGE} is for Linux on x86-64 with glibc 2.35 or newer")
    target = tmp_path_factory.mktemp("pytriton")
    # Not where the tests run, as it would take NumPy back to 1.
    command = [str(PYTHON), "-m", "pip", "install", "--no-deps", "--no-compile"]
    command += ["--quiet", "--disable-pip-version-check", "--target", str(target)]
    subprocess.run([*command, PACKAGE], check=True, timeout=300)
    server = target / "pytriton" / "tritonserver"
    python = "{}.{}".format(*sys.version_info)
    stub = server / "python_backend_stubs" / python / "triton_python_backend_stub"
    if not stub.exists():
        pytest.skip(f"{PACKAGE} runs no Python {python}")
    libraries = subprocess.run(
        ["ldd", str(stub)],  # noqa: S607 - wherever the system has it
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    for line in libraries.stdout.splitlines():
        if "libpython" in line and "not found" in line:
            pytest.skip(f"Python {python} is without the library that {PACKAGE} loads")
    (server / "backends/python" / stub.name).symlink_to(stub)
    (server / "backends/onnxruntime").mkdir()
    shutil.copyfile(BACKEND, server / "backends/onnxruntime/model.py")
    return server


@pytest.fixture(scope="module")
def server(installed, environment, exports, tmp_path_factory):
    """The server on all layouts, looking for news each second; stopped at the end."""
    root = tmp_path_factory.mktemp("triton")
    repository, log = root / "models", root / "log"
    for name, (source, options) in LAYOUTS.items():
        repositories.triton(exports / source, repository, name=name, **options)
    for change, (layout, _) in BROKEN.items():
        source, name = exports / LAYOUTS[layout][0], change.__name__
        version = repositories.triton(source, repository, name=name, version=1)
        path = version.with_name("config.pbtxt")
        config = text_format.Parse(path.read_text(), ModelConfig())
        change(config)
        path.write_text(text_format.MessageToString(config))
    port, grpc_port = free_ports(2)
    command = [installed / "bin" / "tritonserver"]
    command += [f"--model-repository={repository}"]
    command += [f"--backend-directory={installed / 'backends'}"]
    command += [f"--http-address={HOST}", f"--http-port={port}"]
    command += [f"--grpc-address={HOST}", f"--grpc-port={grpc_port}"]
    command += ["--allow-metrics=false", "--exit-on-error=false"]
    command += ["--model-control-mode=poll", "--repository-poll-secs=1"]
    with running(command, log, environment=environment) as process:
        wait_for(lambda: is_live(port), process, log)
        at_start = {}

        def all_are_decided():
            for (name, _), (state, reason) in states(port).items():
                if state in ("READY", "UNAVAILABLE"):
                    at_start[name] = state, reason
            return len(at_start) == len(LAYOUTS) + len(BROKEN)

        wait_for(all_are_decided, process, log)
        for change in BROKEN:  # which it would try again each second
            shutil.rmtree(repository / change.__name__)
        yield SimpleNamespace(
            repository=repository, http=port, grpc=grpc_port, at_start=at_start
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()[-3000:]


def is_live(port):
    try:
        return ask(port, "GET", "/v2/health/live")[0] == 200
    except OSError:
        return False


def states(port):
    """Model and version to the state, and why it is that."""
    status, listed = ask(port, "POST", "/v2/repository/index")
    assert status == 200
    return {
        (it["name"], it.get("version")): (it.get("state"), it.get("reason", ""))
        for it in listed
    }


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def clients(server):
    """Protocol to its module and its client."""
    with contextlib.ExitStack() as stack:
        found = {}
        for module in (tritonclient.grpc, tritonclient.http):
            protocol = module.__name__.rpartition(".")[2]
            url = f"{HOST}:{getattr(server, protocol)}"
            client = module.InferenceServerClient(url)
            found[protocol] = module, stack.enter_context(contextlib.closing(client))
        yield found


@pytest.fixture(scope="module")
def triton(clients):
    return clients["grpc"][1]


def inputs_of(arrays, module=tritonclient.grpc):
    tensors = []
    for name, array in arrays.items():
        datatype = np_to_triton_dtype(array.dtype)
        tensors.append(module.InferInput(name, array.shape, datatype))
        tensors[-1].set_data_from_numpy(array)
    return tensors


def outputs_of(answer, names):
    return {name: answer.as_numpy(name) for name in names}


def expected_of(model, batch):
    outputs = model(batch, training=False)
    # A number for each example is a row of one for Triton's clients.
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    return {k: v[:, None] if v.ndim == 1 else v for k, v in arrays.items()}


def assert_close(outputs, expected):
    assert set(outputs) == set(expected)
    for name, value in expected.items():
        assert outputs[name].shape == value.shape
        np.testing.assert_allclose(outputs[name], value, rtol=1e-5, atol=1e-5)


def test_the_readme_names_this_server(server):
    _, answer = ask(server.http, "GET", "/v2")
    assert answer["name"] == "triton"
    readme = (RECIPE / "README.md").read_text()
    assert f"{answer['version']}, from `{PACKAGE.split('==')[0]}`" in readme


@pytest.mark.parametrize("name", LAYOUTS)
def test_it_takes_the_layout_as_it_is(server, triton, name):
    assert server.at_start[name] == ("READY", "")
    text = (server.repository / name / "config.pbtxt").read_text()
    written = text_format.Parse(text, ModelConfig())
    used = triton.get_model_config(name).config
    assert used.backend == "onnxruntime"
    for field in ("name", "platform", "max_batch_size", "input", "output"):
        assert getattr(used, field) == getattr(written, field)
    (group,), (wanted,) = used.instance_group, written.instance_group
    assert (group.count, group.kind) == (wanted.count, wanted.kind)
    assert used.HasField("dynamic_batching") == written.HasField("dynamic_batching")
    batching, wanted = used.dynamic_batching, written.dynamic_batching
    assert batching.max_queue_delay_microseconds == wanted.max_queue_delay_microseconds
    # Where none is preferred, Triton takes the largest.
    if wanted.preferred_batch_size:
        assert batching.preferred_batch_size == wanted.preferred_batch_size


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_answers_are_those_of_onnx_runtime(server, clients, protocol, name):
    module, client = clients[protocol]
    batch = batch_of(3, name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = server.repository / name / "1" / "model.onnx"
    session = onnxruntime.InferenceSession(path, options)
    names = [it.name for it in session.get_outputs()]
    expected = dict(zip(names, session.run(names, batch), strict=True))
    answer = client.infer(name, inputs_of(batch, module))
    for key, value in outputs_of(answer, names).items():
        shape = (3, 1) if name == "scalar" else expected[key].shape
        np.testing.assert_array_equal(value, expected[key].reshape(shape), strict=True)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_recipes_client(server, models, tmp_path, protocol, name):
    batch = batch_of(3, name)
    np.savez(tmp_path / "batch.npz", **batch)
    url = f"{HOST}:{getattr(server, protocol)}"
    command = [PYTHON, RECIPE / "client.py", protocol, url, name]
    done = subprocess.run(
        [*map(str, command), str(tmp_path / "batch.npz")],
        capture_output=True,
        text=True,
        env=os.environ | {"no_proxy": HOST},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    expected = expected_of(models[LAYOUTS[name][0]], batch)
    lines = done.stdout.splitlines()
    for key, line in zip(sorted(expected), lines, strict=True):
        prefix = f"{key} {expected[key].shape} "
        assert line.startswith(prefix)
        row = json.loads(line.removeprefix(prefix))
        np.testing.assert_allclose(row, expected[key][0], atol=1e-4)


@pytest.mark.parametrize("length", [1, 9])
def test_an_axis_of_any_size(triton, models, length):
    sequence = batch_of(length, "scalar")["sequence"]
    batch = {"sequence": sequence.reshape(7, length, 5)}
    answer = triton.infer("scalar", inputs_of(batch))
    assert_close(outputs_of(answer, ["mean"]), expected_of(models["scalar"], batch))


def test_the_largest_batch(triton, models):
    answer = triton.infer("student", inputs_of(batch_of(64)))
    expected = expected_of(models["student/1"], batch_of(64))
    assert_close(outputs_of(answer, expected), expected)


WRONG = {
    "one example too many": ("student", batch_of(65), "must be <= 64 for 'student'"),
    "not the fixed batch": ("fixed", batch_of(2, "fixed"), r"\[3,4\].* \[2,4\]"),
    "a shape": (
        "student",
        batch_of(1) | {"image": np.zeros((1, 7, 8, 1), "float32")},
        r"\[-1,8,8,1\].* \[1,7,8,1\]",
    ),
    "a datatype": (
        "student",
        batch_of(1) | {"age": np.zeros((1, 1), "float32")},
        "'FP32', but model 'student' expects 'INT32'",
    ),
    "no input": ("scalar", {}, "expected 1 inputs but got 0"),
    "a shape without the axis of the scalar": (
        "scalar",
        {"sequence": np.zeros((2, 5), "float32")},
        r"\[-1,-1,5\].* \[2,5\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_it_refuses_what_the_configuration_rules_out(triton, case):
    name, arrays, message = WRONG[case]
    with pytest.raises(InferenceServerException, match=message):
        triton.infer(name, inputs_of(arrays))


def counts(triton, name):
    """How many examples were scored, and by size how many batches there were."""
    (model,) = triton.get_inference_statistics(name).model_stats
    sizes = {it.batch_size: it.compute_infer.count for it in model.batch_stats}
    return model.inference_count, Counter(sizes)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("student", (1, 2, 3)), ("waiting", (1,)), ("unbatched", (1, 2, 3))],
)
def test_requests_at_the_same_time(triton, models, name, sizes):
    count = 200
    ends = np.cumsum(np.resize(sizes, count))
    whole = batch_of(ends[-1])
    batches = [
        {key: array[end - size : end] for key, array in whole.items()}
        for end, size in zip(ends, np.resize(sizes, count), strict=True)
    ]
    answers, done = {}, threading.Semaphore(0)

    def keep(number, result, error):
        answers[number] = error or result
        done.release()

    examples_before, runs_before = counts(triton, name)
    for number, batch in enumerate(batches):
        triton.async_infer(name, inputs_of(batch), functools.partial(keep, number))
    for _ in batches:
        assert done.acquire(timeout=60)
    for key, values in expected_of(models["student/1"], whole).items():
        for number, value in enumerate(np.split(values, ends[:-1])):
            assert_close(outputs_of(answers[number], [key]), {key: value})

    # The server counts a little after it has answered. Unbatched, a request is one.
    scored = count if name == "unbatched" else ends[-1]
    wait_until(lambda: counts(triton, name)[0] - examples_before == scored)
    runs = counts(triton, name)[1] - runs_before
    if name == "unbatched":
        assert runs == {1: count}
    else:
        assert max(runs) <= 64
        # The one that waits gets what it prefers, or more.
        assert runs.total() <= (count // 4 if name == "waiting" else count - 1)


def test_versions_that_come_while_the_server_looks(
    server, triton, exports, models, monkeypatch
):
    """It meets each step of a layout, and requests run all the time."""

    def state(version):
        return states(server.http).get(("coming", version), (None,))[0]

    slow(monkeypatch, shutil, "copyfile")
    slow(monkeypatch, sys.modules[repositories.triton.__module__], "replace_text")
    repositories.triton(exports / "student/1", server.repository, name="coming")
    wait_until(lambda: state("1") == "READY")
    batch = batch_of(2)
    expected = {n: expected_of(models[f"student/{n}"], batch) for n in ("1", "2")}
    answered, stop = [], threading.Event()

    def keep_asking():
        while not stop.is_set():
            try:
                answer = triton.infer("coming", inputs_of(batch))
                number = answer.get_response().model_version
                assert_close(outputs_of(answer, expected[number]), expected[number])
            except (InferenceServerException, AssertionError) as error:
                number = str(error)
            answered.append(number)

    worker = threading.Thread(target=keep_asking)
    worker.start()
    try:
        repositories.triton(exports / "student/2", server.repository, name="coming")
        wait_until(lambda: state("2") == "READY")
        wait_until(lambda: state("1") == "UNAVAILABLE")
    finally:
        stop.set()
        worker.join(30)
    assert (answered[0], answered[-1]) == ("1", "2")
    assert set(answered) == {"1", "2"}


def slow(monkeypatch, module, name):
    """Make a function last longer than from one look of the server to the next."""
    function = getattr(module, name)

    def called(*arguments):
        function(*arguments)
        time.sleep(1.1)

    monkeypatch.setattr(module, name, called)


@pytest.mark.parametrize("change", BROKEN)
def test_it_refuses_a_configuration_that_was_changed_by_hand(server, change):
    """If it didn't, that it takes the others would say nothing."""
    state, reason = server.at_start[change.__name__]
    assert state == "UNAVAILABLE"
    assert re.search(BROKEN[change][1], reason), reason
