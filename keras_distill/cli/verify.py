"""The subcommand `keras-distill verify`."""

import argparse
from typing import Any

from keras_distill.cli import checks, data
from keras_distill.cli.parsing import Commands, add_command, print_json

_DESCRIPTION = """\
Check an export without its model: every file against the checksum of the manifest,
then every artefact in its own runtime on the examples that the export keeps, then, with
`--evaluate`, what it loses of the metric.
"""

_EXAMPLES = """\
  keras-distill verify models/student/3
  keras-distill verify models/student/3 --files-only
  keras-distill verify models/student/3 --evaluate test.npz --json

exit codes:
  0 as published   1 can't be checked   2 wrong arguments   3 not as published
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "verify",
        _run,
        help="check that an export is still what was published",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument("export", metavar="EXPORT", help="with a manifest.json")
    parser.add_argument(
        "--files-only", action="store_true", help="run nothing, check files alone"
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
