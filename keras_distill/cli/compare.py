"""The subcommand `keras-distill compare`."""

import argparse
from argparse import ArgumentTypeError

from keras_distill.cli import checks, data
from keras_distill.cli.parsing import Commands, add_command, needs, print_json

_DESCRIPTION = f"""\
Compare models on held-out data, and write a report. The report shows the quality of
each model with confidence intervals, its agreement with the teacher, its calibration,
its size and its latency. It also gives a verdict in words.

The report is an HTML page with pictures, and report.json. The page works offline.

{needs("This command needs", "report")}
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
        help="compare models on held-out data, and write a report",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument(
        "models",
        type=_named,
        nargs="+",
        metavar="NAME=MODEL.keras",
        help="models to compare, at least two, each with a name",
    )
    parser.add_argument(
        "--data",
        type=checks.file,
        required=True,
        metavar="FILE.npz",
        help="held-out data: one array for each input, and the labels",
    )
    parser.add_argument(
        "--labels",
        default="labels",
        metavar="NAME",
        help="array in FILE.npz that contains the labels (default: %(default)s)",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="directory to write the report to"
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
        help="export of the model NAME, whose files are measured too. Repeat the "
        "option for more models",
    )
    parser.add_argument(
        "--batch-sizes",
        type=checks.whole(1),
        nargs="*",
        default=[1, 8, 64],
        metavar="N",
        help="batch sizes to measure latencies at. Without a number, no latency is "
        "measured (default: 1 8 64)",
    )
    parser.add_argument(
        "--peak-memory",
        action="store_true",
        help="also measure the peak memory of each model, in a separate process "
        "(Linux only)",
    )


def _add_roles(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the models and their outputs are."""
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="name of the model that the others are compared with (default: "
        "`student alone`, or else the first model that isn't the teacher)",
    )
    parser.add_argument(
        "--teacher",
        metavar="NAME",
        help="name of the teacher (default: the model named `teacher`, if any)",
    )
    parser.add_argument(
        "--task",
        choices=("classes", "binary", "multi-label", "regression"),
        help="what the models predict (default: derived from labels and outputs)",
    )
    parser.add_argument(
        "--primary",
        metavar="MEASURE",
        help="measure that decides the verdict (default: accuracy for classes, auc for "
        "binary, nll for multi-label, mse for regression)",
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
    print(f"\nThe report is {page}")
