"""Repositories of MLServer: `NAME/VERSION/model.onnx`, its settings and its runtime."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_distill.export.repositories.source import Export, onnx_files, open_export
from keras_distill.export.repositories.versions import (
    new_version,
    replace_text,
    writing,
)

SERVER_SETTINGS = "settings.json"
# The runtime isn't imported here. MLServer and Triton's client can't be imported by the
# same process, as both register the messages of the protocol.
RUNTIME = Path(__file__).parent / "templates" / "runtime.py"
# Batches of images are larger than 4 MB, the default limit of gRPC.
_MAX_MESSAGE_BYTES = 256 * 1024**2
# The dtypes that the runtime serves. Neither the protocol nor NumPy has bfloat16.
_DTYPES = (
    "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 "
    "float16 float32 float64 string"
).split()


def mlserver(
    export: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    name: str | None = None,
    artefact: str = "onnx",
    version: int | None = None,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
) -> Path:
    """Write an export into a repository of MLServer, as a new version of a model.

    `mlserver start REPOSITORY` then serves the Open Inference Protocol over HTTP and
    gRPC. It uses ONNX Runtime, and needs no TensorFlow, Keras or this package. It
    serves the version that `model-settings.json` names: the one that was written last.
    A running server loads it on `POST /v2/repository/models/NAME/load`.

    `settings.json`, for the whole server, is written only if there is none. With it,
    the server listens on the loopback address only, and infers in its own process.

    Args:
        export: An export's directory.
        repository: The directory that MLServer is started with. It is made if absent.
        name: The model's name in the server. Defaults to the Keras model's name.
        artefact: An ONNX artefact.
        version: A positive number. Defaults to the name of the export's directory if
            that is a number, else to the number after the highest version.
        providers: ONNX Runtime's execution providers, in the order of preference.
        threads: How many threads ONNX Runtime uses for one request; 0 for one a core.

    Returns:
        The directory of the new version.

    Raises:
        ValueError: An argument isn't usable, or doesn't fit the export.
        FileExistsError: The version already exists.
        FileNotFoundError: `export` contains no export.
        RuntimeError: The export's files aren't those that were published.
        OSError: The repository can't be written.
    """
    source = open_export(export)
    files = onnx_files(source.files(artefact, ("onnx",)))
    _check_dtypes(source)
    if threads < 0:
        raise ValueError(
            "`threads` must be 0, which is one a core, or more. "
            f"Received: threads={threads}."
        )
    with new_version(source, repository, name, version) as directory:
        model = directory.parent
        with writing(directory, files):
            pass
        replace_text(model / RUNTIME.name, RUNTIME.read_text(encoding="utf-8"))
        settings = model_settings(model.name, directory.name, providers, threads)
        _write_json(model / "model-settings.json", settings)
        if not (model.parent / SERVER_SETTINGS).exists():
            _write_json(model.parent / SERVER_SETTINGS, server_settings())
    return directory


def model_settings(
    name: str, version: str, providers: Sequence[str], threads: int
) -> dict[str, Any]:
    """Return the content of `model-settings.json`, without inputs and outputs."""
    return {
        "name": name,
        "platform": "onnxruntime_onnx",
        "versions": [version],
        "implementation": "runtime.OnnxModel",
        "parameters": {
            "uri": f"./{version}/model.onnx",
            "version": version,
            "extra": {"providers": list(providers), "threads": threads},
        },
    }


def server_settings(**settings: Any) -> dict[str, Any]:
    """Return the content of `settings.json`, with `settings` added."""
    return {
        "host": "127.0.0.1",
        "parallel_workers": 0,
        "debug": False,
        "grpc_max_message_length": _MAX_MESSAGE_BYTES,
        **settings,
    }


def _check_dtypes(source: Export) -> None:
    signature = source.manifest["signature"]
    for spec in [*signature["inputs"], *signature["outputs"]]:
        if spec["dtype"] not in _DTYPES:
            raise ValueError(
                f"`export` must have inputs and outputs of {_DTYPES}. "
                f"Received: {spec['name']!r} of {spec['dtype']}."
            )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    replace_text(path, json.dumps(content, indent=2) + "\n")
