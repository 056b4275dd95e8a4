"""The subcommand `keras-distill demo`."""

import argparse

from keras_distill.cli import checks
from keras_distill.cli.parsing import Commands, add_command, needs

_DESCRIPTION = f"""\
Does distillation pay? Trains a teacher, a small student alone and the same student
distilled, on handwritten digits that need no download; prints how good each is over
several seeds, and how large and fast the exported files are. About two minutes on two
CPU cores.
{needs("Needs", "demo")}
"""

_EXAMPLES = """\
  keras-distill demo
  keras-distill demo --out /tmp/demo --seeds 0 1 2 3 4 5 6 7 8 9
  keras-distill demo --smoke
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "demo",
        _run,
        help="compare a teacher, a student alone and a distilled one on real images",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument(
        "--out",
        type=checks.place,
        default="demo-output",
        metavar="DIRECTORY",
        help="where the files go; an earlier demo there is replaced "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=checks.whole(0),
        nargs="+",
        metavar="SEED",
        help="everything is done once for each (default: 0 1 2 3 4; with --smoke: 0)",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="a few steps only, to see that everything runs; the numbers mean nothing",
    )


def _check(arguments: argparse.Namespace) -> None:
    seeds = arguments.seeds or []
    if len(set(seeds)) < len(seeds):
        arguments.parser.error(f"--seeds must differ, not {' '.join(map(str, seeds))}")


def _run(arguments: argparse.Namespace) -> None:
    from keras_distill import demo

    demo.run(arguments.out, seeds=arguments.seeds, smoke=arguments.smoke)
