"""Processes that serve, and plain requests to them."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from keras_distill.devices.launching import HOST

PYTHON = Path(sys.executable)


@contextlib.contextmanager
def running(command, log, *, environment=None, **options):
    """Run a command until the block ends; what it prints goes to `log`."""
    # A shell that runs the tests in the background ignores Ctrl-C, for children too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(it) for it in command],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            **options,
        )
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        process.kill()
        process.wait()


def wait_for(condition, process, log, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()[-3000:]
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.1)


def ask(port, method, path, body=None):
    """Return status and parsed answer of one request."""
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    with contextlib.closing(connection):
        text = body if isinstance(body, str | None) else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, text, headers)
        answer = connection.getresponse()
        data = answer.read()
        return answer.status, json.loads(data) if data else None


def ready(port, name):
    def condition():
        try:
            paths = ("/v2/health/ready", f"/v2/models/{name}/ready")
            return all(ask(port, "GET", path)[0] == 200 for path in paths)
        except OSError:
            return False

    return condition


def to_request(arrays, **more):
    """Make the body of a request, as the protocol describes it."""
    datatypes = {"float32": "FP32", "float64": "FP64", "float16": "FP16"}
    return {
        "inputs": [
            {
                "name": name,
                "shape": list(array.shape),
                "datatype": datatypes.get(array.dtype.name, array.dtype.name.upper()),
                "data": array.ravel().tolist(),
            }
            for name, array in arrays.items()
        ],
        **more,
    }


def to_arrays(answer):
    return {
        it["name"]: np.array(it["data"]).reshape(it["shape"])
        for it in answer["outputs"]
    }


def listening(port):
    """The local addresses that listen on a port, as /proc has them."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, number = local.partition(":")
            if int(number, 16) == port and state == "0A":
                found.append(address)
    return found
