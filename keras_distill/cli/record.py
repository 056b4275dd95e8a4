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
Run a teacher once over a data set, and write its outputs to a directory. You can then
train any number of students from the directory, without the teacher.

The outputs are written in several files, called shards. If the command is interrupted,
run it again with the same arguments. It then writes only the shards that are missing or
damaged.

{needs("The option `--runner` needs", "beam")}
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

forms of DATA:
  FILE.npz         A file that `numpy.savez` wrote. It contains one array for each
                   input. An array has the name of its input.
  DIRECTORY        A directory that `tf.data.Dataset.save` wrote. The data set must
                   be in batches.
  module:function  A Python function that returns a `tf.data.Dataset` of batches. If it
                   has the parameters `start` and `stop`, it must return only the rows
                   `[start:stop]`. With `--runner`, each process then reads only the
                   rows that it needs.

exit codes:
  0  All outputs are recorded.
  1  The command failed. The error message says why.
  2  The arguments are wrong.
"""

_OPTION = re.compile(r"[A-Za-z]\w*(=.*)?", re.DOTALL)
_BATCH = 128


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "record",
        _run,
        help="save a teacher's outputs, to train students without the teacher",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument(
        "model",
        metavar="TEACHER.keras",
        help="file of the teacher. Keras loads it in safe mode",
    )
    parser.add_argument(
        "--data",
        type=_data,
        required=True,
        metavar="DATA",
        help="FILE.npz, DIRECTORY or module:function, as explained below",
    )
    parser.add_argument(
        "--out",
        type=checks.place,
        required=True,
        metavar="DIRECTORY",
        help="directory to write to. An incomplete recording there is completed",
    )
    parser.add_argument(
        "--json", action="store_true", help="print the manifest instead of a table"
    )
    _add_data(parser)
    _add_stored(parser)
    _add_runner(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of the data")
    group.add_argument(
        "--labels",
        metavar="NAME",
        help="array in FILE.npz that contains the labels. The teacher doesn't read it "
        "(default: labels)",
    )
    group.add_argument(
        "--batch-size",
        type=checks.whole(1),
        metavar="N",
        help="number of rows in one call of the teacher (default: the batch size of "
        f"DATA, or {_BATCH} for FILE.npz)",
    )
    group.add_argument(
        "--rows-per-shard",
        type=checks.whole(1),
        metavar="N",
        help="number of rows in one shard. It must be a multiple of the batch size "
        "(default: about 32,768)",
    )
    group.add_argument(
        "--ids",
        metavar="NAME",
        help="input that contains an id for each row (default: the id is the number "
        "of the row)",
    )
    group.add_argument(
        "--hash-keys",
        nargs="+",
        metavar="NAME",
        help="inputs that identify each row later. The students' data must contain "
        "these inputs (default: all inputs)",
    )


def _add_stored(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what to store (default: log-probabilities of all classes)"
    )
    forms = group.add_mutually_exclusive_group()
    forms.add_argument(
        "--top-k",
        type=checks.whole(1),
        metavar="K",
        help="store only the K most likely classes of each row",
    )
    forms.add_argument(
        "--samples",
        type=checks.whole(1),
        metavar="N",
        help="store N classes of each row, drawn at random by their probabilities",
    )
    forms.add_argument(
        "--values",
        action="store_true",
        help="store the outputs as they are. Use this for regressions, embeddings and "
        "sigmoid outputs",
    )
    group.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        help="type of the stored numbers (default: float32, or float16 with --top-k)",
    )
    group.add_argument(
        "--sample-seed",
        type=checks.whole(0),
        metavar="SEED",
        help="seed of the draws of --samples (default: 0)",
    )
    group.add_argument(
        "--probabilities",
        action="store_true",
        help="read the teacher's outputs as probabilities (default: as logits)",
    )


def _add_runner(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "options for several processes or machines, with Apache Beam"
    )
    group.add_argument(
        "--runner",
        metavar="RUNNER",
        help="runner of Apache Beam, such as DirectRunner, FlinkRunner, SparkRunner or "
        "DataflowRunner (default: one process without Beam)",
    )
    group.add_argument(
        "--num-workers",
        type=checks.whole(1),
        metavar="N",
        help="number of processes of DirectRunner (default: one for each core)",
    )
    group.add_argument(
        "--pipeline-option",
        action="append",
        type=_pipeline_option,
        metavar="NAME=VALUE",
        help="option of the runner, without the dashes in front. Repeat "
        "--pipeline-option for more options",
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
