"""The command line: arguments in, calls to the library, exit codes out."""

import argparse
import sys
from collections.abc import Sequence

from keras_distill.version import __version__

_DEMO = """\
Does distillation pay? Trains a teacher, a small student alone and the same student
distilled, on handwritten digits that need no download; prints how good each is over
several seeds, and how large and fast the exported files are. About two minutes on two
CPU cores. Needs `pip install keras-distill[demo]`.
"""

_DEMO_EXAMPLES = """\
examples:
  keras-distill demo
  keras-distill demo --out /tmp/demo --seeds 0 1 2 3 4 5 6 7 8 9
  keras-distill demo --smoke
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: The arguments; those of this process by default.

    Returns:
        The exit code: 0, 1 where the subcommand failed with a message on the standard
        error, 130 where it was interrupted. Wrong arguments leave with 2.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.command(arguments)
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"keras-distill: error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-distill",
        description="Knowledge distillation for Keras 3.",
        epilog="`keras-distill COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands)
    return parser


def _add_demo(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "demo",
        help="compare a teacher, a student alone and a distilled one on real images",
        description=_DEMO,
        epilog=_DEMO_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        default="demo-output",
        metavar="DIRECTORY",
        help="where the files go; an earlier demo there is replaced "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="SEED",
        help="everything is done once for each (default: 0 1 2 3 4; with --smoke: 0)",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="a few steps only, to see that everything runs",
    )
    parser.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> None:
    from keras_distill import demo

    demo.run(arguments.out, seeds=arguments.seeds, smoke=arguments.smoke)
