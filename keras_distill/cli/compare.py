"""The subcommand `keras-distill compare`."""

import argparse
from argparse import ArgumentTypeError

from keras_distill.cli import checks, data
from keras_distill.cli.parsing import Commands, add_command, needs, print_json

_DESCRIPTION = f"""\
Compare models on held-out data: quality with intervals, agreement with the teacher,
calibration, size and latency, and a verdict in words. Writes a page that needs no
network, its pictures and report.json.
{needs("It needs", "report")}
"""

_EXAMPLES = """\
  keras-distill compare teacher=teacher.keras "student alone=alone.keras" \\
      distilled=student.keras --data test.npz --out report
  keras-distill compare before=old.keras after=new.keras --data test.npz \\
      --baseline before --export after=models/student/3 --out report --json
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "compare",
        _run,
        help="compare models on held-out data, on a page to show",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument(
        "models",
        type=_named,
        nargs="+",
        metavar="NAME=MODEL.keras",
        help="the models by name",
    )
    parser.add_argument(
        "--data",
        type=checks.file,
        required=True,
        metavar="FILE.npz",
        help="inputs by name, and the labels",
    )
    parser.add_argument(
        "--labels",
        default="labels",
        metavar="NAME",
        help="the array in FILE.npz that holds the labels (default: %(default)s)",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="where to write the report"
    )
    _add_roles(parser)
    _add_costs(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_costs(parser: argparse.ArgumentParser) -> None:
    """Add the options of files, latencies and memory."""
    parser.add_argument(
        "--export",
        type=_named,
        action="append",
        default=[],
        metavar="NAME=EXPORT",
        help="an export of a model, to measure its files; may be repeated",
    )
    parser.add_argument(
        "--batch-sizes",
        type=checks.whole(1),
        nargs="*",
        default=[1, 8, 64],
        metavar="N",
        help="of latencies (default: 1 8 64)",
    )
    parser.add_argument(
        "--peak-memory",
        action="store_true",
        help="measure memory too, of each model in a process of its own (on Linux)",
    )


def _add_roles(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the models and their outputs are."""
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="the model that the others are compared with (default: `student alone`, "
        "else the first that isn't the teacher)",
    )
    parser.add_argument(
        "--teacher", metavar="NAME", help="the teacher (default: `teacher`, if given)"
    )
    parser.add_argument(
        "--task",
        choices=("classes", "binary", "multi-label", "regression"),
        help="(default: by labels and outputs)",
    )
    parser.add_argument(
        "--primary",
        metavar="MEASURE",
        help="the measure that decides, as nll (default: accuracy, auc, nll or mse)",
    )


def _named(text: str) -> tuple[str, str]:
    """Parse `NAME=PATH`."""
    name, is_named, path = text.partition("=")
    if not (name and is_named and path):
        raise ArgumentTypeError(f"must be NAME=PATH, not {text!r}")
    return name, path


def _check(arguments: argparse.Namespace) -> None:
    names = [name for name, _ in arguments.models]
    error = arguments.parser.error
    if len(names) < 2:
        error(f"at least two models are compared. Received: {names}")
    if len(set(names)) < len(names):
        error(f"each model needs a name of its own. Received: {names}")
    for option in ("baseline", "teacher"):
        value = getattr(arguments, option)
        if value is not None and value not in names:
            error(f"--{option} must be one of {names}. Received: {value}")
    for name, _ in arguments.export:
        if name not in names:
            error(f"--export must be of one of {names}. Received: {name}")
    for name, path in (*arguments.models, *arguments.export):
        checks.require_input(path, name)


def _run(arguments: argparse.Namespace) -> None:
    from keras_distill.report import compare

    report = compare(
        dict(arguments.models),
        data.labelled(arguments.data, arguments.labels, arguments.parser),
        baseline=arguments.baseline,
        teacher=arguments.teacher,
        task=arguments.task,
        primary=arguments.primary,
        exports=dict(arguments.export),
        batch_sizes=arguments.batch_sizes,
        peak_memory=arguments.peak_memory,
    )
    page = report.write(arguments.out)
    if arguments.json:
        print_json({**report.to_dict(), "page": str(page)})
        return
    print(report)
    print(f"\nThe page is {page}")
