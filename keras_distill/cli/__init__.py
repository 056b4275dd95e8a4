"""The command line: arguments in, calls to the library, exit codes out."""

import argparse
import sys
from collections.abc import Sequence

from keras_distill.cli import bench, demo, export, repository, serve, verify
from keras_distill.cli.parsing import print_json
from keras_distill.export import ParityError
from keras_distill.version import __version__

_COMMANDS = (demo, export, verify, bench, repository, serve)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: The arguments; those of this process by default.

    Returns:
        The exit code: 0, 1 where the subcommand failed with a message on the standard
        error, 3 where an artefact isn't the model that it was made from, 130 where it
        was interrupted. Wrong arguments leave with 2. With `--json` the standard output
        is one JSON document, `{"error": ...}` where the subcommand failed.
    """
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments) or 0
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"keras-distill: error: {error}", file=sys.stderr)
        if getattr(arguments, "json", False):
            print_json({"error": str(error)})
        return 3 if isinstance(error, ParityError) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-distill",
        description="Knowledge distillation for Keras 3.",
        epilog="`keras-distill COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in _COMMANDS:
        command.add(commands)
    return parser
