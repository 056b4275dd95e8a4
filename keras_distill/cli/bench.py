"""The subcommand `keras-distill bench`."""

import argparse

from keras_distill.cli import checks
from keras_distill.cli.parsing import Commands, add_command, print_json, print_table

_DESCRIPTION = """\
Measure the speed of the exported models in an export. Each one runs in its own runtime:
TensorFlow, ONNX Runtime or LiteRT. The table shows latency and throughput for each
batch size. With `--model`, it also shows the Keras model, and the speedup of each model
over Keras' `predict`.

The command calls the models alternately, so that a busy machine slows all of them
alike. On a busy machine, don't use the times themselves. Use only their ratios, such
as the speedup.
"""

_EXAMPLES = """\
  keras-distill bench models/student/3 --model student.keras
  keras-distill bench models/student/3 --batch-sizes 1 32 --threads 1 --json
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "bench",
        _run,
        help="measure the speed of exported models and of the Keras model",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument("export", metavar="EXPORT", help="directory of an export")
    parser.add_argument(
        "--model",
        metavar="MODEL.keras",
        help="Keras model that the export was made from. It is timed too",
    )
    parser.add_argument(
        "--batch-sizes",
        type=checks.whole(1),
        nargs="+",
        default=[1, 8, 64],
        metavar="N",
        help="batch sizes to measure (default: 1 8 64)",
    )
    parser.add_argument(
        "--calls",
        type=checks.whole(1),
        default=200,
        metavar="N",
        help="largest number of calls of each model, for each batch size "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--threads",
        type=checks.whole(1),
        metavar="N",
        help="threads that each runtime uses (default: each runtime decides)",
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def _check(arguments: argparse.Namespace) -> None:
    checks.require_input(arguments.export, "EXPORT")
    if arguments.model is not None:
        checks.require_input(arguments.model, "--model")


def _run(arguments: argparse.Namespace) -> None:
    from keras_distill import backend
    from keras_distill.export.latency import measure

    if arguments.threads:
        backend.limit_tensorflow_threads(arguments.threads)
    rows = measure(
        arguments.export,
        model=arguments.model,
        batch_sizes=arguments.batch_sizes,
        calls=arguments.calls,
        threads=arguments.threads,
    )
    if arguments.json:
        print_json(rows)
        return
    print_table(
        ["side", "batch", "p50 ms", "p95 ms", "p99 ms", "examples/s", "speedup"],
        [
            [
                row["side"],
                str(row["batch_size"]),
                f"{row['p50_ms']:.3f}",
                f"{row['p95_ms']:.3f}",
                f"{row['p99_ms']:.3f}",
                f"{row['examples_per_s']:,.0f}",
                f"{row['speedup']:.1f}" if row["speedup"] else "",
            ]
            for row in rows
        ],
    )
