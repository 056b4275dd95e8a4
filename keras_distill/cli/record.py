"""The subcommand `keras-distill record`."""

import argparse
import json
import os
import re
import sys
from argparse import ArgumentTypeError
from functools import partial
from pathlib import Path
from typing import Any

from keras_distill.cli import checks, pipelines
from keras_distill.cli.parsing import (
    Commands,
    add_command,
    needs,
    print_json,
    print_table,
)

_DESCRIPTION = f"""\
Run a teacher over a data set once and write its outputs to a directory, from which any
number of students is trained without it. A call that was interrupted goes on after the
last whole shard when it is made again; missing or damaged shards are made again.
{needs("--runner needs", "beam")}
"""

_EXAMPLES = """\
  keras-distill record teacher.keras --data train.npz --out recorded
  keras-distill record teacher.keras --data train.npz --out recorded \\
      --top-k 16 --dtype float16 --rows-per-shard 65536
  keras-distill record teacher.keras --data my_package.data:train --out recorded \\
      --runner DirectRunner --num-workers 2
  keras-distill record /shared/teacher.keras --data my_package.data:train \\
      --out /shared/recorded --runner FlinkRunner \\
      --pipeline-option flink_master=flink:8081 --pipeline-option parallelism=16 \\
      --pipeline-option environment_type=EXTERNAL \\
      --pipeline-option environment_config=localhost:50000

data:
  FILE.npz         as `numpy.savez` writes it, one array an input, under its name
  DIRECTORY        of batches, as `tf.data.Dataset.save` writes it
  module:function  a function that returns a `tf.data.Dataset` of batches; one with the
                   parameters `start` and `stop` is called with the rows of a shard

exit codes:
  0 recorded   1 not recorded, the reason on the standard error   2 wrong arguments
"""

_OPTION = re.compile(r"[A-Za-z]\w*(=.*)?", re.DOTALL)
_BATCH = 128


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "record",
        _run,
        help="keep a teacher's outputs, to train students without it",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument("model", metavar="TEACHER.keras", help="loaded in safe mode")
    parser.add_argument(
        "--data",
        type=_data,
        required=True,
        metavar="DATA",
        help="FILE.npz, a saved data set, or module:function",
    )
    parser.add_argument(
        "--out",
        type=checks.place,
        required=True,
        metavar="DIRECTORY",
        help="a recording there is completed",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the manifest, not a table"
    )
    _add_data(parser)
    _add_stored(parser)
    _add_runner(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the data and its rows")
    group.add_argument(
        "--labels",
        metavar="NAME",
        help="the array of FILE.npz that is no input (default: labels)",
    )
    group.add_argument(
        "--batch-size",
        type=checks.whole(1),
        metavar="N",
        help=f"rows that the teacher is given at once (default: as DATA has; {_BATCH})",
    )
    group.add_argument(
        "--rows-per-shard",
        type=checks.whole(1),
        metavar="N",
        help="rows of a file, a multiple of the batch size (default: about 32,768)",
    )
    group.add_argument(
        "--ids", metavar="NAME", help="the input with an id of each row (default: none)"
    )
    group.add_argument(
        "--hash-keys",
        nargs="+",
        metavar="NAME",
        help="the inputs that tell rows apart (default: all)",
    )


def _add_stored(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is stored (default: log-probabilities)")
    forms = group.add_mutually_exclusive_group()
    forms.add_argument(
        "--top-k", type=checks.whole(1), metavar="K", help="only the K largest classes"
    )
    forms.add_argument(
        "--samples", type=checks.whole(1), metavar="N", help="N classes that are drawn"
    )
    forms.add_argument(
        "--values",
        action="store_true",
        help="outputs as they are: regressions, embeddings, sigmoid units",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        help="of the stored numbers (default: float32; float16 with --top-k)",
    )
    group.add_argument(
        "--sample-seed",
        type=checks.whole(0),
        metavar="SEED",
        help="of --samples (default: 0)",
    )
    group.add_argument(
        "--probabilities",
        action="store_true",
        help="the teacher returns probabilities (default: logits)",
    )


def _add_runner(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several processes or machines, with Apache Beam")
    group.add_argument(
        "--runner",
        metavar="RUNNER",
        help="DirectRunner, FlinkRunner, SparkRunner, DataflowRunner, ...",
    )
    group.add_argument(
        "--num-workers",
        type=checks.whole(1),
        metavar="N",
        help="processes of DirectRunner (default: one for each core)",
    )
    group.add_argument(
        "--pipeline-option",
        action="append",
        type=_pipeline_option,
        metavar="NAME=VALUE",
        help="an option of the runner, without its dashes; may be repeated",
    )


def _data(text: str) -> str:
    """Check that a text names a data set."""
    if text.endswith(".npz"):
        return checks.file(text)
    if os.path.isdir(text) or re.fullmatch(r"[\w.]+:\w+", text):
        return text
    raise ArgumentTypeError(
        "must be FILE.npz, a directory that `tf.data.Dataset.save` wrote, or "
        f"module:function, not {text[:200]!r}"
    )


def _pipeline_option(text: str) -> str:
    if not _OPTION.fullmatch(text):
        raise ArgumentTypeError(
            f"must be NAME=VALUE or NAME, without dashes, not {text[:200]!r}"
        )
    return f"--{text}"


def _check(arguments: argparse.Namespace) -> None:
    error, of_file = arguments.parser.error, arguments.data.endswith(".npz")
    if arguments.labels is not None and not of_file:
        error("--labels is for --data FILE.npz")
    if arguments.dtype and arguments.samples:
        error("--dtype is not for --samples, which stores whole numbers")
    if arguments.sample_seed is not None and not arguments.samples:
        error("--sample-seed needs --samples")
    if arguments.probabilities and arguments.values:
        error("--probabilities is not for --values, which are stored as they are")
    if arguments.pipeline_option and not arguments.runner:
        error("--pipeline-option needs --runner")
    if arguments.num_workers and arguments.runner != pipelines.LOCAL:
        error(
            "--num-workers needs --runner DirectRunner; others have an option of their "
            "own, as --pipeline-option parallelism=8 or num_workers=8"
        )
    checks.require_input(arguments.model, "TEACHER.keras")


def _run(arguments: argparse.Namespace) -> None:
    from keras_distill.targets import Manifest

    if arguments.runner:
        _in_pipeline(arguments)
    else:
        _here(arguments)
    manifest = Manifest.read(arguments.out)
    path = Path(arguments.out)
    if arguments.json:
        print_json(json.loads((path / "manifest.json").read_text(encoding="utf-8")))
        return
    print_table(
        ["output", "shape", "stored as"],
        [
            [output.name, str(list(output.shape)), str(output.stored)]
            for output in manifest.outputs
        ],
    )
    size = sum((path / name).stat().st_size for name in manifest.shards)
    print(
        f"recorded {arguments.out}: {manifest.rows:,} rows in "
        f"{len(manifest.shards):,} shards, {size / 1e6:,.1f} MB"
    )


def _here(arguments: argparse.Namespace) -> None:
    from keras_distill import targets
    from keras_distill.targets import references

    teacher = references.teacher_of(arguments.model)
    dataset = references.whole(references.dataset_of(_dataset(arguments)))
    targets.record(teacher, dataset, arguments.out, **_options(arguments))


def _in_pipeline(arguments: argparse.Namespace) -> None:
    def transform() -> Any:
        from keras_distill import targets

        return targets.beam.Record(
            arguments.model, _dataset(arguments), arguments.out, **_options(arguments)
        )

    pipelines.run(
        transform,
        arguments.runner,
        options=arguments.pipeline_option or (),
        workers=arguments.num_workers,
    )


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `targets.record`."""
    return {
        "stored": _stored(arguments),
        "from_logits": not arguments.probabilities,
        "ids": arguments.ids,
        "hash_keys": arguments.hash_keys,
        "rows_per_shard": arguments.rows_per_shard,
        "batch_size": arguments.batch_size,
    }


def _stored(arguments: argparse.Namespace) -> Any:
    from keras_distill import targets

    dtype = arguments.dtype
    if arguments.samples:
        return targets.Sampled(arguments.samples, arguments.sample_seed or 0)
    if arguments.top_k:
        return targets.TopK(arguments.top_k, dtype or "float16")
    if arguments.values:
        return targets.Values(dtype or "float32")
    return targets.LogProbabilities(dtype or "float32")


def _dataset(arguments: argparse.Namespace) -> Any:
    """Return the function of the data set, or its name."""
    from keras_distill.targets import sources

    data, labels = arguments.data, arguments.labels or "labels"
    if data.endswith(".npz"):
        path = os.path.abspath(data)
        return sources.ArrayFile(path, labels=labels, batch_size=_BATCH)
    if os.path.isdir(data):
        return partial(sources.saved, os.path.abspath(data))
    if os.getcwd() not in sys.path:
        # Beam starts its workers with `python -m`, which can import from there.
        sys.path.insert(0, os.getcwd())
    return data
