"""The subcommand `keras-distill launch`."""

import argparse

from keras_distill.cli import checks
from keras_distill.cli.parsing import Commands, add_command

_DESCRIPTION = """\
Run a training program in several processes on this machine. TensorFlow uses the
processes as one cluster (`tf.distribute.MultiWorkerMirroredStrategy`).

If a process fails, the command ends all processes and starts them again. A program that
trains with `keras_distill.online.Backup` then resumes after its last complete epoch.
"""

_EXAMPLES = """\
  keras-distill launch --workers 2 -- python train.py
  keras-distill launch --workers 4 --restarts 10 -- python train.py --epochs 90

exit codes:
  0      All processes ended without an error.
  75     The training was asked to end, and can resume. Run the command again.
  other  A process failed, and no restart was left. The code is that of the process.
         If a signal ended it or this command, the code is 128 + the signal's number.
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "launch",
        _run,
        help="run a training program in several processes on this machine",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
        imports=False,  # It would hold memory that the workers need.
    )
    parser.add_argument(
        "--workers",
        type=checks.whole(1),
        required=True,
        metavar="N",
        help="number of processes",
    )
    parser.add_argument(
        "--restarts",
        type=checks.whole(0),
        default=3,
        metavar="N",
        help="how many times all processes may be restarted (default: %(default)s)",
    )
    parser.add_argument(
        "program",
        nargs=argparse.REMAINDER,
        metavar="-- PROGRAM",
        help="training program and its arguments",
    )


def _check(arguments: argparse.Namespace) -> None:
    if arguments.program[:1] == ["--"]:
        del arguments.program[0]
    if not arguments.program:
        arguments.parser.error("the program is missing: ... -- python train.py")


def _run(arguments: argparse.Namespace) -> int:
    from keras_distill.devices.launching import launch

    return launch(arguments.program, arguments.workers, restarts=arguments.restarts)
