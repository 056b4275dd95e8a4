"""A run of the command line: parsing, imports, the subcommand and its errors."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from keras_distill import standard_error
from keras_distill.cli import (
    bench,
    compare,
    demo,
    export,
    launch,
    record,
    repository,
    serve,
    verify,
)
from keras_distill.cli.interrupts import INTERRUPTED, Interrupts
from keras_distill.cli.parsing import Parser, WrongArguments, print_json
from keras_distill.cli.wording import explained
from keras_distill.version import __version__

_COMMANDS = (
    demo,
    record,
    compare,
    export,
    verify,
    bench,
    repository,
    serve,
    launch,
)
# The modules that subcommands call, or whose classes a `.keras` file may contain.
_ROOMS = (
    "distiller",
    "export",
    "hints",
    "metrics",
    "online",
    "schedules",
    "targets",
    "teachers",
)
_LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
_BACKEND = "KERAS_BACKEND"


def run(argv: Sequence[str] | None) -> int:
    """Run a subcommand and return its exit code, as `keras_distill.cli.main` does."""
    arguments = _arguments(sys.argv[1:] if argv is None else argv)
    # With `argv` given, the caller's process goes on, so its handling of Ctrl-C is
    # restored.
    with Interrupts(restore=argv is not None) as interrupts:
        try:
            arguments.check(arguments)
            if not arguments.imports:
                return arguments.command(arguments) or 0
            with interrupts.leaving_at_once():
                _import()
            return _command(arguments)
        except KeyboardInterrupt:
            return INTERRUPTED
        except WrongArguments as wrong:
            _leave(wrong, as_json=arguments.json)
        except Exception as error:
            if interrupts.seen:
                # A library has raised another error because of the interrupt.
                return INTERRUPTED
            return _failed(error, arguments)


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    try:
        return _parser().parse_args(argv, argparse.Namespace(json=False))
    except WrongArguments as wrong:
        _leave(wrong, as_json="--json" in argv)


def _leave(wrong: WrongArguments, *, as_json: bool) -> NoReturn:
    wrong.report()
    if as_json:
        print_json({"error": wrong.message})
    sys.exit(2)


def _parser() -> Parser:
    parser = Parser(
        prog="keras-distill",
        description="Knowledge distillation for Keras 3.",
        epilog="`keras-distill COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser


def _import() -> None:
    """Import the package, and TensorFlow without its log lines."""
    # The converters of exports are TensorFlow's. Keras loads models of all backends on
    # it. A caller that has imported Keras has chosen the backend already.
    if "keras" not in sys.modules:
        os.environ[_BACKEND] = "tensorflow"
    level = os.environ.setdefault(_LOG_LEVEL, "3")
    # TensorFlow applies the level only after its first lines.
    with standard_error.without(standard_error.log_lines(level)):
        for room in _ROOMS:
            import_module(f"keras_distill.{room}")


def _command(arguments: argparse.Namespace) -> int:
    from keras_distill.export.quiet import no_remarks

    # Loading and exporting both call the model, whose warning must appear once.
    with no_remarks():
        return arguments.command(arguments) or 0


def _failed(error: Exception, arguments: argparse.Namespace) -> int:
    message = explained(error, arguments)
    print(f"keras-distill: error: {message}", file=sys.stderr)
    if arguments.json:
        print_json({"error": message})
    # The module isn't imported yet if the arguments were wrong.
    parity = sys.modules.get("keras_distill.export.parity")
    return 3 if parity and isinstance(error, parity.ParityError) else 1
