"""The subcommand `keras-distill demo`."""

import argparse

from keras_distill.cli import checks
from keras_distill.cli.parsing import Commands, add_command, needs

_DESCRIPTION = f"""\
Show on a small example what distillation can improve. The demo trains three models:
a large teacher, a small student without the teacher, and the same student with
distillation. The data are images of handwritten digits, and nothing is downloaded.

The demo repeats this for several seeds, and prints the quality of each model. It also
exports the teacher and the distilled student, and prints the size and speed of the
files. The demo takes about three minutes on two CPU cores.

{needs("The demo needs", "demo")}
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
        help="train and compare a teacher and its students on a small example",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument(
        "--out",
        type=checks.place,
        default="demo-output",
        metavar="DIRECTORY",
        help="directory to write the files to. An earlier demo there is replaced "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--seeds",
        type=checks.whole(0),
        nargs="+",
        metavar="SEED",
        help="seeds. All models are trained once for each seed (default: 0 1 2 3 4, or "
        "0 with --smoke)",
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="train for a few steps only, to check that the demo works. The numbers "
        "mean nothing",
    )


def _check(arguments: argparse.Namespace) -> None:
    seeds = arguments.seeds or []
    if len(set(seeds)) < len(seeds):
        arguments.parser.error(f"--seeds must differ, not {' '.join(map(str, seeds))}")


def _run(arguments: argparse.Namespace) -> None:
    from keras_distill import demo

    demo.run(arguments.out, seeds=arguments.seeds, smoke=arguments.smoke)
