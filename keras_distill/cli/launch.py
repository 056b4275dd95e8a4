"""The subcommand `keras-distill launch`."""

import argparse

from keras_distill.cli import checks
from keras_distill.cli.parsing import Commands, add_command

_DESCRIPTION = """\
Run a training in several processes on this host, which TensorFlow knows as one cluster
(`tf.distribute.MultiWorkerMirroredStrategy`). When one of them fails, all are ended and
started again; with `keras_distill.online.Backup` the training resumes.
Exit code: that of the worker that failed; 75 if a worker was asked to end and resumes.
"""

_EXAMPLES = """\
  keras-distill launch --workers 2 -- python train.py
  keras-distill launch --workers 4 --restarts 10 -- python train.py --epochs 90
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "launch",
        _run,
        help="run a training in several processes on this host",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
        imports=False,  # It would hold memory that the workers need.
    )
    parser.add_argument(
        "--workers", type=checks.whole(1), required=True, metavar="N", help="processes"
    )
    parser.add_argument(
        "--restarts",
        type=checks.whole(0),
        default=3,
        metavar="N",
        help="of all workers, at most (default: %(default)s)",
    )
    parser.add_argument(
        "program",
        nargs=argparse.REMAINDER,
        metavar="-- PROGRAM",
        help="the program and its arguments",
    )


def _check(arguments: argparse.Namespace) -> None:
    if arguments.program[:1] == ["--"]:
        del arguments.program[0]
    if not arguments.program:
        arguments.parser.error("the program is missing: ... -- python train.py")


def _run(arguments: argparse.Namespace) -> int:
    from keras_distill.devices.launching import launch

    return launch(arguments.program, arguments.workers, restarts=arguments.restarts)
