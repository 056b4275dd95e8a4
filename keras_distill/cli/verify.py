"""The subcommand `keras-distill verify`."""

import argparse
from typing import Any

from keras_distill.cli import checks, data
from keras_distill.cli.parsing import Commands, add_command, print_json

_DESCRIPTION = """\
Check an export. The Keras model isn't needed. The command checks three things:

  1. Each file has the checksum that is written in the manifest.
  2. Each exported model still gives the right outputs. It runs in its own runtime, on
     the examples that the export contains.
  3. With `--evaluate`, no exported model loses too much of the metric.
"""

_EXAMPLES = """\
  keras-distill verify models/student/3
  keras-distill verify models/student/3 --files-only
  keras-distill verify models/student/3 --evaluate test.npz --json

exit codes:
  0  The export passed all checks.
  1  The export can't be checked. The error message says why.
  2  The arguments are wrong.
  3  The export failed a check.
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "verify",
        _run,
        help="check that an export is unchanged and works",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument("export", metavar="EXPORT", help="directory of an export")
    parser.add_argument(
        "--files-only",
        action="store_true",
        help="check only the files, and run no model",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    data.add_evaluation(parser)


def _check(arguments: argparse.Namespace) -> None:
    data.check_evaluation(arguments)
    if arguments.files_only and arguments.evaluate:
        arguments.parser.error("--evaluate runs the files, which --files-only doesn't")
    checks.require_input(arguments.export, "EXPORT")


def _run(arguments: argparse.Namespace) -> int:
    from keras_distill.export import verify

    report = verify(
        arguments.export,
        run=not arguments.files_only,
        evaluation=data.evaluation(arguments),
    )
    if arguments.json:
        print_json(report)
    else:
        for name, artefact in report["artefacts"].items():
            said = artefact["problems"] or ["ok", *_metric(artefact, report)]
            print(f"{name}: {'; '.join(said)}")
        for problem in report["problems"]:
            print(problem)
    return 0 if report["ok"] else 3


def _metric(artefact: dict[str, Any], report: dict[str, Any]) -> list[str]:
    if "metric" not in artefact:
        return []
    before = report["evaluation"]
    return [f"{before['metric']} {artefact['metric']:.4f}, Keras {before['keras']:.4f}"]
