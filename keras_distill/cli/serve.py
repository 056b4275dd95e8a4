"""The subcommand `keras-distill serve`."""

import argparse
import signal

from keras_distill.cli import checks
from keras_distill.cli.parsing import Commands, add_command, needs

_DESCRIPTION = f"""\
Serve an export over HTTP and gRPC, with the Open Inference Protocol. MLServer receives
the requests, and ONNX Runtime runs the model. Only programs on this machine can reach
the server. Ctrl-C or SIGTERM stops it.

{needs("This command needs", "serve")}
"""

_EXAMPLES = """\
  keras-distill serve student
  keras-distill serve student/3 --port 9000 --grpc-port 9001 --name digits
  curl http://127.0.0.1:8080/v2/models/NAME
"""

_port = checks.whole(1, 2**16 - 1)


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "serve",
        _run,
        help="serve an export on this machine over HTTP and gRPC",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument("export", metavar="EXPORT", help="directory of an export")
    parser.add_argument(
        "--port", type=_port, default=8080, help="port of HTTP (default: %(default)s)"
    )
    parser.add_argument(
        "--grpc-port",
        type=_port,
        default=8081,
        help="port of gRPC (default: %(default)s)",
    )
    parser.add_argument(
        "--name",
        type=checks.server_name,
        help="name of the model in the server (default: the name of the Keras model)",
    )
    parser.add_argument(
        "--artefact",
        default="onnx",
        help="exported ONNX model to serve, such as onnx_int8 (default: %(default)s)",
    )


def _check(arguments: argparse.Namespace) -> None:
    if arguments.port == arguments.grpc_port:
        arguments.parser.error("--port and --grpc-port must differ")
    checks.require_input(arguments.export, "EXPORT")


def _run(arguments: argparse.Namespace) -> None:
    from keras_distill.export.repositories.service import serving

    # These signals must clean up as Ctrl-C does, unless the shell makes this process
    # ignore them.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    with serving(
        arguments.export,
        port=arguments.port,
        grpc_port=arguments.grpc_port,
        name=arguments.name,
        artefact=arguments.artefact,
    ) as service:
        try:
            for what, url in service.urls.items():
                print(f"{what:<10}{url}", flush=True)
            service.wait()
        except KeyboardInterrupt:
            # Ctrl-C is the normal end of a service.
            pass
    print("stopped", flush=True)
