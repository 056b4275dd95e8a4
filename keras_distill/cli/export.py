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
Convert a Keras model to SavedModel, ONNX and LiteRT, in full precision and quantised.
Each exported model then runs in its own runtime: TensorFlow, ONNX Runtime or LiteRT.
If its outputs differ too much from those of the Keras model, nothing is published.
`--evaluate` adds a check: how much of a metric each exported model loses.

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
  Each FILE.npz is a file that `numpy.savez` wrote. It contains one array for each
  input. An array has the name of its input.

exit codes:
  0  The export was published.
  1  The command failed, and nothing was published. The error message says why.
  2  The arguments are wrong.
  3  Nothing was published, because an exported model differs too much from the Keras
     model, or loses too much of the metric.
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
        help="convert a model for servers and phones, and check the result",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
        check=_check,
    )
    parser.add_argument(
        "model",
        metavar="MODEL.keras",
        help="file of the model. Keras loads it in safe mode",
    )
    _add_published(parser)
    _add_precision(parser)
    _add_kept(parser)
    parser.add_argument(
        "--json", action="store_true", help="print the manifest instead of a table"
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
        help="formats to write: saved_model, onnx, litert (default: all three)",
    )
    parser.add_argument(
        "--out",
        type=checks.place,
        required=True,
        metavar="DIRECTORY",
        help="directory to write to. An earlier export there is replaced",
    )
    parser.add_argument(
        "--version",
        type=checks.version,
        metavar="N",
        help="write to DIRECTORY/N instead of DIRECTORY. `next` is the number after "
        "the highest version there",
    )


def _add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the options of quantisation and of the comparison with Keras."""
    parser.add_argument(
        "--quantize",
        nargs="+",
        choices=_PRECISIONS["litert"],
        metavar="PRECISION",
        help="precisions to write in addition to the model's own: float16, "
        "dynamic_int8, int8, integer_only",
    )
    parser.add_argument(
        "--calibrate",
        type=checks.file,
        metavar="FILE.npz",
        help="a few hundred typical inputs. int8 and integer_only need them",
    )
    parser.add_argument(
        "--examples",
        type=checks.file,
        metavar="FILE.npz",
        help="inputs on which the exported models are compared with the Keras model "
        "(default: the inputs of --calibrate, or else of --evaluate)",
    )
    parser.add_argument(
        "--tolerance",
        type=checks.positive,
        metavar="T",
        help="largest difference from the Keras model in full precision, relative to "
        "the scale of the output (default: 1e-5, or more if the model's own rounding "
        "needs it)",
    )


def _add_kept(parser: argparse.ArgumentParser) -> None:
    """Add the options that change what the artefacts take and keep."""
    parser.add_argument(
        "--batch-size",
        type=checks.whole(1),
        metavar="N",
        help="batch size of the exported models (default: any size)",
    )
    parser.add_argument(
        "--outputs",
        nargs="+",
        metavar="NAME",
        help="outputs to export. Layers and inputs that only other outputs need are "
        "left out (default: all outputs)",
    )
    parser.add_argument(
        "--split-preprocessing",
        action="store_true",
        help="leave out preprocessing that a format of --to can't represent, such as "
        "text, lookups and hashing. The signature serving_raw of the SavedModel still "
        "contains it",
    )
    parser.add_argument(
        "--provenance",
        type=checks.json_file,
        metavar="FILE.json",
        help="JSON file that says how the model was made. It is copied to the manifest",
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
        ["artefact", "kB", "max difference", *_metric_names(manifest)],
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
        f"The peak memory was {peak / 1e9:.2f} GB, and the model has "
        f"{model / 1e9:.2f} GB. TensorFlow itself needs {before / 1e9:.2f} GB. Keras, "
        "the converters and the runtimes that check the files each keep copies of the "
        "weights. LiteRT's converter keeps several copies."
    )
