"""The subcommand `keras-distill repository`."""

import argparse
import os
from pathlib import Path

from keras_distill.cli import checks
from keras_distill.cli.parsing import Commands, add_command, needs

_DESCRIPTION = """\
Write an export into the model repository of a server, as a new version of a model. A
model repository is the directory that the server loads its models from. Earlier
versions stay. If the command fails, the repository doesn't contain the new version.
"""

_TRITON = f"""\
Write an export into a model repository of NVIDIA Triton Inference Server.
The command writes NAME/VERSION/model.onnx and NAME/config.pbtxt. The file config.pbtxt
applies to all versions of the model. Each call replaces it, according to the options.

{needs("This command needs", "triton")}
"""

_TRITON_EXAMPLES = """\
  keras-distill repository triton student --out models
  keras-distill repository triton student --out models --max-batch-size 128 \\
      --preferred-batch-size 32 64 --max-queue-delay 500
  keras-distill repository triton student --out models --device gpu \\
      --accelerator tensorrt precision_mode=FP16 trt_engine_cache_enable=1
"""

_TENSORFLOW_SERVING = """\
Write an export into a model repository of TensorFlow Serving. The command writes
NAME/VERSION/saved_model.pb. It also adds the model to the list in models.config.
"""

_TENSORFLOW_SERVING_EXAMPLES = """\
  keras-distill repository tensorflow-serving student --out models
  keras-distill repository tensorflow-serving student --out models --base-path /models
"""

_MLSERVER = """\
Write an export into a model repository of MLServer. The command writes
NAME/VERSION/model.onnx, NAME/model-settings.json and NAME/runtime.py, which runs the
model with ONNX Runtime. Start the server with `mlserver start REPOSITORY`.
"""

_MLSERVER_EXAMPLES = """\
  keras-distill repository mlserver student --out models
  keras-distill repository mlserver student/3 --out models --artefact onnx_int8
"""

# Triton's accelerators for ONNX on a GPU.
_ACCELERATORS = ("tensorrt", "cuda")


def add(commands: Commands) -> None:
    """Add the subcommand, which has a subcommand for each server."""
    parser = commands.add_parser(
        "repository",
        help="write an export into a model repository of Triton, TensorFlow Serving or "
        "MLServer",
        description=_DESCRIPTION,
        epilog="`keras-distill repository SERVER --help` has examples.",
    )
    servers = parser.add_subparsers(metavar="SERVER", required=True)
    _add_triton(servers)
    _add_tensorflow_serving(servers)
    _add_mlserver(servers)


def _add_triton(servers: Commands) -> None:
    parser = add_command(
        servers,
        "triton",
        _triton,
        help="NVIDIA Triton Inference Server",
        description=_TRITON,
        examples=_TRITON_EXAMPLES,
        check=_check_triton,
    )
    _add_common(parser)
    _add_artefact(parser, "exported model to serve, such as onnx_int8 or saved_model")
    _add_batching(parser)
    _add_instances(parser)


def _add_batching(parser: argparse.ArgumentParser) -> None:
    """Add the options of the dynamic batcher."""
    parser.add_argument(
        "--max-batch-size",
        type=checks.whole(0),
        metavar="SIZE",
        help="largest number of examples in one call of the model. 0 means no batching "
        "(default: 64, or 0 for a model without a batch axis)",
    )
    parser.add_argument(
        "--preferred-batch-size",
        type=checks.whole(1),
        nargs="+",
        default=[],
        metavar="SIZE",
        help="batch sizes that Triton runs without waiting for more requests",
    )
    parser.add_argument(
        "--max-queue-delay",
        type=checks.whole(0),
        default=0,
        metavar="MICROSECONDS",
        help="how long Triton waits for more requests, to reach a preferred batch size "
        "(default: %(default)s)",
    )


def _add_instances(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how many copies run, and on what."""
    parser.add_argument(
        "--instances",
        type=checks.whole(1),
        default=1,
        metavar="COUNT",
        help="number of copies of the model that run at the same time, on the CPU or "
        "on each GPU (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "gpu"],
        default="cpu",
        help="device that runs the model (default: %(default)s)",
    )
    parser.add_argument(
        "--accelerator",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "KEY=VALUE"),
        help="tensorrt or cuda, followed by its parameters. It needs an ONNX model and "
        "--device gpu",
    )


def _add_tensorflow_serving(servers: Commands) -> None:
    parser = add_command(
        servers,
        "tensorflow-serving",
        _tensorflow_serving,
        help="TensorFlow Serving",
        description=_TENSORFLOW_SERVING,
        examples=_TENSORFLOW_SERVING_EXAMPLES,
        check=_check,
    )
    _add_common(parser)
    parser.add_argument(
        "--base-path",
        type=checks.absolute,
        metavar="DIRECTORY",
        help="path of the repository for the server, such as /models in a container "
        "(default: its path on this machine)",
    )


def _add_mlserver(servers: Commands) -> None:
    parser = add_command(
        servers,
        "mlserver",
        _mlserver,
        help="MLServer, a server in Python for the Open Inference Protocol",
        description=_MLSERVER,
        examples=_MLSERVER_EXAMPLES,
        check=_check,
    )
    _add_common(parser)
    _add_artefact(parser, "exported ONNX model to serve, such as onnx_int8")
    parser.add_argument(
        "--provider",
        nargs="+",
        default=["CPUExecutionProvider"],
        help="execution providers of ONNX Runtime, in order of preference (default: "
        "CPUExecutionProvider)",
    )
    parser.add_argument(
        "--threads",
        type=checks.whole(0),
        default=0,
        metavar="COUNT",
        help="number of threads for one request. 0 means one for each core (default: "
        "%(default)s)",
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("export", metavar="EXPORT", help="directory of an export")
    parser.add_argument(
        "--out",
        type=checks.place,
        required=True,
        metavar="REPOSITORY",
        help="directory of the model repository. It is created if it doesn't exist",
    )
    parser.add_argument(
        "--name",
        type=checks.server_name,
        help="name of the model in the server (default: the name of the Keras model)",
    )
    parser.add_argument(
        "--version",
        type=checks.whole(1),
        metavar="NUMBER",
        help="number of the new version (default: the name of the EXPORT directory if "
        "it is a number, or else the number after the highest version)",
    )


def _add_artefact(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--artefact", default="onnx", help=f"{what} (default: %(default)s)"
    )


def _check(arguments: argparse.Namespace) -> None:
    checks.require_input(arguments.export, "EXPORT")
    out, export = (os.path.realpath(it) for it in (arguments.out, arguments.export))
    if Path(out).is_relative_to(export):
        arguments.parser.error(
            f"--out must be elsewhere than EXPORT, not {arguments.out!r} in "
            f"{arguments.export!r}"
        )


def _check_triton(arguments: argparse.Namespace) -> None:
    error, largest = arguments.parser.error, arguments.max_batch_size
    preferred, delay = arguments.preferred_batch_size, arguments.max_queue_delay
    for accelerator, *pairs in arguments.accelerator:
        if accelerator not in _ACCELERATORS:
            error(f"--accelerator must be tensorrt or cuda, not {accelerator!r}")
        for pair in pairs:
            if "=" not in pair:
                error(f"--accelerator takes parameters as KEY=VALUE, not {pair!r}")
        if arguments.device != "gpu":
            error("--accelerator needs --device gpu")
    if largest is not None and max(preferred, default=0) > largest:
        error(
            f"--preferred-batch-size must be at most --max-batch-size {largest}, not "
            f"{max(preferred)}"
        )
    if delay and largest is not None and largest < 2:
        error(f"--max-queue-delay needs a --max-batch-size above 1, not {largest}")
    _check(arguments)


def _triton(arguments: argparse.Namespace) -> None:
    from keras_distill.export import repositories

    directory = repositories.triton(
        arguments.export,
        arguments.out,
        name=arguments.name,
        artefact=arguments.artefact,
        version=arguments.version,
        max_batch_size=arguments.max_batch_size,
        preferred_batch_sizes=arguments.preferred_batch_size,
        max_queue_delay_microseconds=arguments.max_queue_delay,
        instances=arguments.instances,
        device=arguments.device,
        accelerators={
            name: dict(pair.split("=", 1) for pair in pairs)
            for name, *pairs in arguments.accelerator
        },
    )
    _report(directory, "tritonserver --model-repository={}")


def _tensorflow_serving(arguments: argparse.Namespace) -> None:
    from keras_distill.export import repositories

    directory = repositories.tensorflow_serving(
        arguments.export,
        arguments.out,
        name=arguments.name,
        version=arguments.version,
        base_path=arguments.base_path,
    )
    root = arguments.base_path or directory.parents[1]
    _report(
        directory,
        f"tensorflow_model_server --model_config_file={root}/models.config "
        "--port=8500 --rest_api_port=8501",
    )


def _mlserver(arguments: argparse.Namespace) -> None:
    from keras_distill.export import repositories

    directory = repositories.mlserver(
        arguments.export,
        arguments.out,
        name=arguments.name,
        artefact=arguments.artefact,
        version=arguments.version,
        providers=arguments.provider,
        threads=arguments.threads,
    )
    _report(directory, "mlserver start {}")


def _report(directory: Path, command: str) -> None:
    print(f"wrote {directory}")
    print(f"serve it with `{command.format(directory.parents[1])}`")
