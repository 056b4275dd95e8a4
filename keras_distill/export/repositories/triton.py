"""Repositories of NVIDIA Triton: `NAME/config.pbtxt`, `NAME/VERSION/model.onnx`."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_distill.export.repositories.source import (
    onnx_files,
    open_export,
    saved_model_files,
)
from keras_distill.export.repositories.versions import (
    new_version,
    replace_text,
    writing,
)
from keras_distill.installing import advice

CONFIG = "config.pbtxt"
_HEADER = "# Written by keras-distill, which replaces it with every version.\n"
_PLATFORMS = {"onnx": "onnxruntime_onnx", "saved_model": "tensorflow_savedmodel"}
_DEVICES = ("cpu", "gpu")
_ACCELERATORS = ("tensorrt", "cuda")
_MAX_BATCH_SIZE = 64
# TensorFlow's names to Triton's.
_DATA_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "string": "TYPE_STRING",
}


def triton(
    export: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    name: str | None = None,
    artefact: str = "onnx",
    version: int | None = None,
    max_batch_size: int | None = None,
    preferred_batch_sizes: Sequence[int] = (),
    max_queue_delay_microseconds: int = 0,
    instances: int = 1,
    device: str = "cpu",
    accelerators: Mapping[str, Mapping[str, str]] | None = None,
) -> Path:
    """Write an export into a repository of Triton Inference Server, as a new version.

    `config.pbtxt` applies to all versions of a model. Each call replaces it according
    to the arguments. So a version with other inputs or outputs needs another name.

    Args:
        export: An export's directory.
        repository: The directory that Triton is started with. It is made if absent.
        name: The model's name in Triton. Defaults to the Keras model's name.
        artefact: An ONNX artefact, or `"saved_model"`, which only Triton's containers
            up to 25.02 read.
        version: A positive number. Defaults to the name of the export's directory if
            that is a number, else to the number after the highest version.
        max_batch_size: The largest number of examples in one call of the model.
            Defaults to 64, or to 0 if the batch isn't the first axis of every input and
            output. 0 means no batching.
        preferred_batch_sizes: Batch sizes that the dynamic batcher runs immediately.
        max_queue_delay_microseconds: How long the batcher waits for one of these sizes.
            By default it doesn't wait, and runs the requests in the queue.
        instances: How many copies of the model run at the same time, on the CPU or
            on each GPU.
        device: `"cpu"` or `"gpu"`.
        accelerators: For an ONNX artefact on a GPU: the parameters of an accelerator,
            `"tensorrt"` or `"cuda"`, by its name, e.g.
            `{"tensorrt": {"precision_mode": "FP16"}}`.

    Returns:
        The directory of the new version.

    Raises:
        ValueError: An argument isn't usable, or doesn't fit the export.
        FileExistsError: The version already exists, or this function didn't write the
            present `config.pbtxt`.
        ImportError: `tritonclient` isn't installed.
        FileNotFoundError: `export` contains no export.
        RuntimeError: The export's files aren't those that were published.
        OSError: The repository can't be written.
    """
    source = open_export(export)
    files = source.files(artefact, tuple(_PLATFORMS))
    format = source.manifest["artefacts"][artefact]["format"]
    with new_version(source, repository, name, version) as directory:
        config = model_config(
            directory.parent.name,
            format,
            source.manifest["signature"],
            max_batch_size=max_batch_size,
            preferred_batch_sizes=preferred_batch_sizes,
            max_queue_delay_microseconds=max_queue_delay_microseconds,
            instances=instances,
            device=device,
            accelerators=accelerators,
        )
        path = directory.with_name(CONFIG)
        _check_replaceable(path, config)
        with writing(directory, _layout(format, files)):
            # The configuration is written first. Without one, Triton would guess it.
            replace_text(path, _HEADER + _text_format().MessageToString(config))
    return directory


def model_config(
    name: str,
    format: str,
    signature: Mapping[str, Any],
    *,
    max_batch_size: int | None = None,
    preferred_batch_sizes: Sequence[int] = (),
    max_queue_delay_microseconds: int = 0,
    instances: int = 1,
    device: str = "cpu",
    accelerators: Mapping[str, Mapping[str, str]] | None = None,
) -> Any:
    """Return the `inference.ModelConfig` of a model; see `triton`."""
    largest = _largest_batch(signature, max_batch_size)
    _check_batching(largest, preferred_batch_sizes, max_queue_delay_microseconds)
    _check_placement(format, instances, device, accelerators or {})
    proto = _model_config_pb2()
    batched = largest > 0
    config = proto.ModelConfig(
        name=name,
        platform=_PLATFORMS[format],
        max_batch_size=largest,
        input=[
            proto.ModelInput(**_tensor(spec, batched)) for spec in signature["inputs"]
        ],
        output=[
            proto.ModelOutput(**_tensor(spec, batched)) for spec in signature["outputs"]
        ],
        instance_group=[{"count": instances, "kind": f"KIND_{device.upper()}"}],
    )
    if largest > 1:
        config.dynamic_batching.preferred_batch_size.extend(preferred_batch_sizes)
        config.dynamic_batching.max_queue_delay_microseconds = (
            max_queue_delay_microseconds
        )
        config.dynamic_batching.SetInParent()
    for accelerator, parameters in (accelerators or {}).items():
        config.optimization.execution_accelerators.gpu_execution_accelerator.add(
            name=accelerator, parameters=parameters
        )
    return config


def _largest_batch(signature: Mapping[str, Any], wanted: int | None) -> int:
    fixed = [
        spec["name"]
        for spec in [*signature["inputs"], *signature["outputs"]]
        if not _shape(spec) or spec["shape"][0] is not None
    ]
    if fixed and wanted:
        raise ValueError(
            "`max_batch_size` must be 0 for a model whose batch isn't the first axis "
            f"of every input and output. Received: max_batch_size={wanted}, and "
            f"{fixed} without that axis."
        )
    if wanted is None:
        return 0 if fixed else _MAX_BATCH_SIZE
    if wanted < 0:
        raise ValueError(
            "`max_batch_size` must be 0, which is no batching, or more. "
            f"Received: max_batch_size={wanted}."
        )
    return wanted


def _check_batching(largest: int, preferred: Sequence[int], delay: int) -> None:
    if any(not 1 <= size <= largest for size in preferred):
        raise ValueError(
            "`preferred_batch_sizes` must be from 1 to `max_batch_size`. Received: "
            f"preferred_batch_sizes={list(preferred)}, max_batch_size={largest}."
        )
    if delay < 0 or (delay and largest < 2):
        raise ValueError(
            "`max_queue_delay_microseconds` must be 0 or more, and 0 where nothing is "
            f"batched. Received: max_queue_delay_microseconds={delay}, "
            f"max_batch_size={largest}."
        )


def _check_placement(
    format: str, instances: int, device: str, accelerators: Mapping[str, Any]
) -> None:
    if instances < 1:
        raise ValueError(
            f"`instances` must be at least 1. Received: instances={instances}."
        )
    if device not in _DEVICES:
        raise ValueError(
            f"`device` must be one of {list(_DEVICES)}. Received: device={device!r}."
        )
    if not set(accelerators) <= set(_ACCELERATORS):
        raise ValueError(
            f"`accelerators` must be some of {list(_ACCELERATORS)}. "
            f"Received: {list(accelerators)}."
        )
    if accelerators and (device != "gpu" or format != "onnx"):
        raise ValueError(
            "`accelerators` must be left out unless an ONNX artefact runs on "
            f'device="gpu". Received: accelerators={dict(accelerators)}, '
            f"device={device!r}, with an artefact of the format {format!r}."
        )


def _tensor(spec: Mapping[str, Any], batched: bool) -> dict[str, Any]:
    """Describe an input or output; its dims omit the batch if `batched`."""
    if spec["dtype"] not in _DATA_TYPES:
        raise ValueError(
            f"`export` must have inputs and outputs of {sorted(_DATA_TYPES)}. "
            f"Received: {spec['name']!r} of {spec['dtype']}."
        )
    shape = _shape(spec)[1:] if batched else _shape(spec)
    dims = [-1 if size is None else size for size in shape]
    described = {"name": spec["name"], "data_type": _DATA_TYPES[spec["dtype"]]}
    # Triton has no empty dims, so clients pass one axis that the model doesn't have.
    scalar = {"dims": [1], "reshape": {"shape": []}}
    return described | ({"dims": dims} if dims else scalar)


def _shape(spec: Mapping[str, Any]) -> list[int | None]:
    if spec["shape"] is None:
        raise ValueError(
            "`export` must have inputs and outputs of a known rank. "
            f"Received: {spec['name']!r} of any."
        )
    return list(spec["shape"])


def _layout(format: str, files: list[Path]) -> dict[str, Path]:
    if format == "saved_model":
        return {
            f"model.savedmodel/{relative}": path
            for relative, path in saved_model_files(files).items()
        }
    named = onnx_files(files)
    # Several files go into a directory that has the name of a single file.
    folder = "model.onnx/" if len(named) > 1 else ""
    return {f"{folder}{relative}": path for relative, path in named.items()}


def _check_replaceable(path: Path, config: Any) -> None:
    """Raise an error if the present versions need another configuration."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    if not text.startswith(_HEADER):
        raise FileExistsError(
            f"{CONFIG} must be one that this function wrote, as it is replaced. "
            f"Received: {str(path)!r}, which isn't. Move it, or choose another `name`."
        )
    earlier = _text_format().Parse(text, _model_config_pb2().ModelConfig())
    for field in ("platform", "input", "output"):
        before, after = getattr(earlier, field), getattr(config, field)
        if before != after:
            raise ValueError(
                "`name` must be another for a model of another signature, batching or "
                f"format: clients rely on it, and {CONFIG} is that of all versions. "
                f"Received: name={config.name!r}, whose {field} would change."
            )


def _model_config_pb2() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise _missing() from error
    return model_config_pb2


def _text_format() -> Any:
    from google.protobuf import text_format  # type: ignore[import-untyped]

    return text_format


def _missing() -> ImportError:
    return ImportError(
        "Triton's configuration needs the package 'tritonclient', which is not "
        f"installed. Install it with {advice('triton')}."
    )
