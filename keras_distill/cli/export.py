"""The subcommand `keras-distill export`."""

import argparse
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_distill.cli import checks, data
from keras_distill.cli.parsing import (
    Commands,
    add_command,
    needs,
    print_json,
    print_table,
)

_DESCRIPTION = f"""\
Write a Keras model as SavedModel, ONNX or LiteRT, in full precision and quantised. Each
file is run by its own runtime and compared with the model before anything is published;
a file that isn't the model, or loses too much of the metric, is not.
{needs("ONNX and LiteRT need", "onnx,litert")}
"""

_EXAMPLES = """\
  keras-distill export student.keras --to onnx litert --examples data.npz --out build/
  keras-distill export student.keras --to onnx --quantize int8 \\
      --calibrate data.npz --out build/
  keras-distill export student.keras --to litert --quantize int8 integer_only \\
      --calibrate data.npz --evaluate test.npz --metric accuracy --max-drop 0.01 \\
      --out models/student --version next
  keras-distill export ranker.keras --to onnx --split-preprocessing \\
      --examples raw.npz --out build/

data files:
  .npz as `numpy.savez` writes it, one array an input, under the input's name

exit codes:
  0 published   1 not published, the reason on the standard error
  2 wrong arguments   3 not published, as a file isn't the model or loses too much
"""


# The precisions that each format can have, and those that need calibration data.
_PRECISIONS = {
    "saved_model": (),
    "onnx": ("float16", "dynamic_int8", "int8"),
    "litert": ("float16", "dynamic_int8", "int8", "integer_only"),
}
_CALIBRATED = {"int8", "integer_only"}
# With fewer parameters, the libraries take most of the memory.
_LARGE = 100_000_000


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = add_command(
        commands,
        "export",
        _run,
        help="write a model for servers and phones, checked and quantised",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument("model", metavar="MODEL.keras", help="loaded in safe mode")
    _add_published(parser)
    _add_precision(parser)
    _add_kept(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the manifest, not a table"
    )
    data.add_evaluation(parser)


def _add_published(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which formats are written, and where."""
    parser.add_argument(
        "--to",
        nargs="+",
        default=list(_PRECISIONS),
        choices=tuple(_PRECISIONS),
        metavar="FORMAT",
        help="saved_model, onnx, litert (default: all of them)",
    )
    parser.add_argument(
        "--out",
        type=checks.place,
        required=True,
        metavar="DIRECTORY",
        help="an earlier export there is replaced as a whole",
    )
    parser.add_argument(
        "--version",
        type=checks.version,
        metavar="N",
        help="publish to DIRECTORY/N, or with `next` to the number after the highest",
    )


def _add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the options of quantisation and of the comparison with Keras."""
    parser.add_argument(
        "--quantize",
        nargs="+",
        choices=_PRECISIONS["litert"],
        metavar="PRECISION",
        help="float16, dynamic_int8, int8, integer_only, besides the model's own",
    )
    parser.add_argument(
        "--calibrate",
        type=checks.file,
        metavar="FILE.npz",
        help="a few hundred typical inputs, for int8 and integer_only",
    )
    parser.add_argument(
        "--examples",
        type=checks.file,
        metavar="FILE.npz",
        help="inputs to compare on (default: those of --calibrate or --evaluate)",
    )
    parser.add_argument(
        "--tolerance",
        type=checks.positive,
        metavar="T",
        help="largest difference in full precision, relative to the scale of the "
        "output (default: 1e-5)",
    )


def _add_kept(parser: argparse.ArgumentParser) -> None:
    """Add the options that change what the artefacts take and keep."""
    parser.add_argument(
        "--batch-size",
        type=checks.whole(1),
        metavar="N",
        help="the only one (default: any)",
    )
    parser.add_argument(
        "--outputs",
        nargs="+",
        metavar="NAME",
        help="those that the files have; what only others need is left out "
        "(default: all)",
    )
    parser.add_argument(
        "--split-preprocessing",
        action="store_true",
        help="leave out the lookups, hashing and text that a format of --to lacks; the "
        "SavedModel keeps them in its signature serving_raw",
    )
    parser.add_argument(
        "--provenance",
        type=checks.json_file,
        metavar="FILE.json",
        help="kept in the manifest as it is",
    )


def _check(arguments: argparse.Namespace) -> None:
    data.check_evaluation(arguments)
    error, precisions = arguments.parser.error, set(arguments.quantize or ())
    possible = {each for format in arguments.to for each in _PRECISIONS[format]}
    if not precisions <= possible:
        error(
            f"--quantize {' '.join(sorted(precisions - possible))} is not possible for "
            f"--to {' '.join(arguments.to)}"
        )
    calibrated = sorted(precisions & _CALIBRATED)
    if calibrated and arguments.calibrate is None:
        error(
            f"--quantize {' '.join(calibrated)} needs --calibrate FILE.npz, a few "
            "hundred typical inputs; dynamic_int8 needs none"
        )
    if arguments.calibrate is not None and not calibrated:
        error("--calibrate is for --quantize int8 or integer_only")
    if not (arguments.examples or arguments.calibrate or arguments.evaluate):
        error(
            "one of --examples, --calibrate, --evaluate must give inputs, on which the "
            "files are compared with the model"
        )
    checks.require_input(arguments.model, "MODEL.keras")


def _run(arguments: argparse.Namespace) -> None:
    from keras_distill.export import export, split_preprocessing
    from keras_distill.export.loading import load_served

    before = _peak_memory()
    model, select = load_served(arguments.model)
    preprocessing = None
    if arguments.split_preprocessing:
        preprocessing, model = split_preprocessing(model, arguments.to)
    calibration = arguments.calibrate
    evaluation = data.evaluation(arguments)
    manifest = export(
        model,
        arguments.out,
        arguments.to,
        example_batch=select(_example_batch(arguments)),
        quantize=arguments.quantize,
        calibration_data=None
        if calibration is None
        else select(data.inputs(calibration, "calibration_data", arguments.labels)),
        evaluation=None if evaluation is None else evaluation.selecting(select),
        preprocessing=preprocessing,
        outputs=arguments.outputs,
        batch_size=arguments.batch_size,
        tolerance=arguments.tolerance,
        version=arguments.version,
        provenance=arguments.provenance,
    )
    if arguments.json:
        print_json(manifest)
        return
    _print(manifest)
    print(f"published {_published(arguments.out, manifest)}")
    _report_memory(before, manifest["parameters"])


def _print(manifest: Mapping[str, Any]) -> None:
    """Print a table of the artefacts."""
    print_table(
        ["artefact", "kB", "off Keras by", *_metric_names(manifest)],
        [
            [
                name,
                f"{artefact['bytes'] / 1e3:,.1f}",
                f"{artefact['max_abs_difference']:.2g}",
                *_metric_values(artefact),
            ]
            for name, artefact in manifest["artefacts"].items()
        ],
    )
    if "evaluation" in manifest:
        evaluation = manifest["evaluation"]
        print(f"Keras: {evaluation['metric']} {evaluation['keras']:.4f}")


def _example_batch(arguments: argparse.Namespace) -> Any:
    import keras

    path = arguments.examples or arguments.calibrate or arguments.evaluate
    batch = data.inputs(path, "example_batch", arguments.labels)
    return keras.tree.map_structure(lambda array: array[:32], batch)


def _published(out: str, manifest: dict[str, Any]) -> str:
    return str(
        Path(out, *([str(manifest["version"])] if "version" in manifest else []))
    )


def _metric_names(manifest: Mapping[str, Any]) -> list[str]:
    return [manifest["evaluation"]["metric"]] if "evaluation" in manifest else []


def _metric_values(artefact: Mapping[str, Any]) -> list[str]:
    if "evaluation" not in artefact:
        return []
    return [f"{artefact['evaluation']['metric']:.4f}"]


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _report_memory(before: int, parameters: int) -> None:
    """Print how much memory a large model took, and why it took so much."""
    peak, model = _peak_memory(), 4 * parameters
    if peak < 3 * model or model < _LARGE:
        return
    print(
        f"peak memory {peak / 1e9:.2f} GB, of a model of {model / 1e9:.2f} GB: "
        f"{before / 1e9:.2f} GB are TensorFlow itself, and beside Keras' weights there "
        "are those in the runtime that checks a file, and those in converters: "
        "LiteRT's holds them several times."
    )
