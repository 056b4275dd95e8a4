"""An MLServer that serves an export on this machine while a `with` block runs."""

import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from keras_distill.export.repositories.mlserver import (
    SERVER_SETTINGS,
    mlserver,
    server_settings,
)
from keras_distill.export.repositories.versions import replace_text
from keras_distill.installing import advice

_HOST = "127.0.0.1"
# The command `mlserver`, run by this process's interpreter.
_MLSERVER = "from mlserver.cli import main; main()"
# A large model takes long to load. When the server stops, requests have time to end.
_SECONDS_TO_START = 120
_SECONDS_TO_STOP = 15


@dataclass(frozen=True)
class Service:
    """A model that a running server serves.

    Attributes:
        name: The model's name in the server.
        port: The port of HTTP, on the loopback address.
        grpc_port: The port of gRPC, on the loopback address.
        process: The process of the server.
    """

    name: str
    port: int
    grpc_port: int
    process: subprocess.Popen[bytes]

    @property
    def urls(self) -> dict[str, str]:
        """The addresses of the service, by what they are for."""
        base = f"http://{_HOST}:{self.port}/v2"
        return {
            "health": f"{base}/health/ready",
            "metadata": f"{base}/models/{self.name}",
            "infer": f"{base}/models/{self.name}/infer",
            "gRPC": f"{_HOST}:{self.grpc_port}",
        }

    def wait(self) -> None:
        """Wait until the server ends, and raise RuntimeError."""
        raise _ended(self.process.wait(), "while it served")


@contextmanager
def serving(
    export: str | os.PathLike[str],
    *,
    port: int = 8080,
    grpc_port: int = 8081,
    name: str | None = None,
    artefact: str = "onnx",
) -> Iterator[Service]:
    """Serve an export until the block ends, reachable from this machine only.

    Args:
        export: An export's directory.
        port: The port of HTTP.
        grpc_port: The port of gRPC.
        name: The model's name in the server. Defaults to the Keras model's name.
        artefact: An ONNX artefact.

    Raises:
        ImportError: A package that the server needs isn't installed.
        OSError: A port is already used.
        RuntimeError: The server didn't start, or ended.
        ValueError: An argument isn't usable, or doesn't fit the export.
    """
    _check_ports(port, grpc_port)
    with tempfile.TemporaryDirectory(prefix="keras-distill-") as repository:
        version = mlserver(export, repository, name=name, artefact=artefact)
        # Arguments are checked first: nobody should install a package and then learn
        # that the arguments are wrong.
        _require()
        settings = server_settings(
            http_port=port,
            grpc_port=grpc_port,
            # Metrics would take a third port.
            metrics_endpoint=None,
            logging_settings=_logging(),
        )
        replace_text(Path(repository, SERVER_SETTINGS), json.dumps(settings))
        with _running(repository) as process:
            service = Service(version.parent.name, port, grpc_port, process)
            _wait_until_ready(service)
            yield service


def _require() -> None:
    for package in ("mlserver", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"A service needs the package {package!r}, which is not installed. "
                f"Install it with {advice('serve')}, on Python 3.11 or 3.12: MLServer "
                "has no release for later ones."
            )


def _check_ports(port: int, grpc_port: int) -> None:
    for argument, value in (("port", port), ("grpc_port", grpc_port)):
        if not 0 < value < 2**16:
            raise ValueError(
                f"`{argument}` must be from 1 to 65535. Received: {argument}={value}."
            )
    if port == grpc_port:
        raise ValueError(
            "`port` and `grpc_port` must differ. "
            f"Received: port={port}, grpc_port={grpc_port}."
        )
    for argument, value in (("port", port), ("grpc_port", grpc_port)):
        try:
            # This check needs a free port, as `reuse_port` isn't set. gRPC itself would
            # share the port of another server.
            socket.create_server((_HOST, value)).close()
        except OSError as error:
            raise OSError(
                error.errno,
                f"`{argument}` must be free. Received: {argument}={value} "
                f"({error.strerror}). Choose another",
            ) from error


def _logging() -> dict[str, object]:
    """Return settings that log only warnings and errors, on the standard error."""
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"stderr": handler},
        "root": {"level": "WARNING", "handlers": ["stderr"]},
        "loggers": {"mlserver": {"level": "WARNING"}},
    }


@contextmanager
def _running(repository: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(  # noqa: S603 - its own interpreter and directory
        [sys.executable, "-c", _MLSERVER, "start", repository],
        # MLServer reads `.env` from the working directory, and imports from it.
        cwd=repository,
        # Ctrl-C reaches only this process, which then stops the server.
        start_new_session=True,
    )
    try:
        yield process
    finally:
        try:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_STOP)
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(service: Service) -> None:
    """Wait for server and model: a server without models also reports to be ready."""
    paths = ("/v2/health/ready", f"/v2/models/{service.name}/ready")
    end = time.monotonic() + _SECONDS_TO_START
    while not all(_answers(service.port, path) for path in paths):
        code = service.process.poll()
        if code is not None:
            raise _ended(code, "before it was ready")
        if time.monotonic() > end:
            raise RuntimeError(
                f"MLServer must be ready within {_SECONDS_TO_START} seconds. Received: "
                f"no answer on {service.urls['health']}."
            )
        time.sleep(0.1)


def _answers(port: int, path: str) -> bool:
    # urllib would read proxies from the environment.
    connection = http.client.HTTPConnection(_HOST, port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _ended(code: int, when: str) -> RuntimeError:
    return RuntimeError(
        f"MLServer ended {when}. Received: exit code {code}; what it printed says why."
    )
