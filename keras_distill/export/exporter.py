"""`export`: one model, every format, checked and published together."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from keras_distill.export import (
    arguments,
    examples,
    manifest,
    parity,
    rounding,
    saved_model,
    state,
)
from keras_distill.export.batches import Arrays, pieces, size_of, taken
from keras_distill.export.blame import Examiner
from keras_distill.export.evaluation import Evaluation, Judge
from keras_distill.export.formats import (
    FULL,
    Conversion,
    Loaded,
    Target,
    quantized_weights,
)
from keras_distill.export.loading import load_served
from keras_distill.export.manifest import Artefact, Manifest
from keras_distill.export.outputs import chosen
from keras_distill.export.parity import Difference, ParityError, Reference
from keras_distill.export.publish import publishing
from keras_distill.export.quiet import no_remarks
from keras_distill.export.rows import Dependence
from keras_distill.export.serving import Served, serve
from keras_distill.fake_quantization import constant_weights, quantizers


def export(
    model: keras.Model | str | os.PathLike[str],
    directory: str | os.PathLike[str],
    formats: Sequence[str] = ("saved_model", "onnx", "litert"),
    *,
    example_batch: Any = None,
    quantize: str | Sequence[str] | None = None,
    calibration_data: Any = None,
    evaluation: Evaluation | None = None,
    preprocessing: keras.layers.Layer | None = None,
    outputs: Sequence[str] | None = None,
    batch_size: int | None = None,
    tolerance: float | Mapping[str, float] | None = None,
    version: int | Literal["next"] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Manifest:
    """Export `model` to `directory`, checked in each format's own runtime.

    Every artefact takes the same named inputs, of any batch size, and gives the same
    named outputs, which are what `model(x, training=False)` gives:

    - Inputs are called what the model calls them: the name of a Functional `Input`, or
      the key where inputs are a dict. Inputs without a name of their own are `input`,
      or `input_0`, `input_1`, ... where there are several.
    - Outputs are called by their key in a dict, by their layer in a Functional or
      Sequential model, else `output`, or `output_0`, `output_1`, .... A name that is
      taken gets the suffix `_1`, `_2`, ....

    Before anything is put in place, each artefact is loaded by TensorFlow, ONNX
    Runtime or the LiteRT interpreter, and compared with Keras on `example_batch`, on a
    batch of another size, on the data of `evaluation`, and on what examples don't
    show: inputs of other sizes where sizes are open, infinities and NaN where the
    model looks for them, zeros, negative integers and large values:

        max |artefact - keras| <= tolerance * max(scale, |keras|)

    value by value, where `scale` is the largest magnitude of that output in
    `example_batch`, leaving out masks (values of 1e4 and more). Outputs that aren't
    floats have to be equal.

    `directory` then holds `manifest.json`, `examples.npz` (the first 32 rows of
    `example_batch` with the model's outputs, for `verify`) and, as asked for,
    `saved_model/`, `model.onnx` (opset 18) and `model.tflite`, each with its quantised
    forms beside it: `model.int8.onnx`. An earlier export there is replaced as a whole
    at the very end: a process that dies before leaves it as it was.

    Args:
        model: A built Keras model, or the path of a `.keras` file, which is loaded in
            safe mode. Of a distiller the student is exported; data may then hold keys
            that the student doesn't read.
        directory: Where the export goes: absent, empty, or an earlier export.
        formats: Any of `"saved_model"`, `"onnx"`, `"litert"`.
        example_batch: A batch of real inputs as the model takes them: an array, a
            list of arrays or a dict of arrays, of shape `(batch, ...)`. Models that
            are neither Functional nor Sequential take dtypes and shapes from it.
        quantize: Precisions to write besides the model's own, for each format that
            knows them:

            - `"float16"` (ONNX, LiteRT): half the size; inputs and outputs stay.
            - `"dynamic_int8"` (ONNX, LiteRT): weights in int8. In ONNX of Dense,
              Embedding, attention and LSTM layers alone, as its convolutions would
              become slower; in LiteRT those of 1024 values and more.
            - `"int8"` (ONNX, LiteRT): weights and activations in int8, by
              `calibration_data`; inputs and outputs stay floats. LSTM and GRU layers
              need `unroll=True`: without, ONNX leaves their weights in floats, and
              LiteRT can't be calibrated.
            - `"integer_only"` (LiteRT): the same with int8 inputs and outputs, for
              accelerators without floats; the manifest has their scales.
        calibration_data: Inputs as in `example_batch`, a few hundred typical ones, for
            `"int8"` and `"integer_only"`. None for a model of
            `students.quantization_aware`, which has ranges of its own.
        evaluation: Held-out data with a metric and the most that an artefact may lose
            of it. It decides about int8 artefacts in place of `tolerance`.
        preprocessing: A layer or model that makes the model's inputs of raw features,
            such as the first half of `split_preprocessing`. Then `example_batch`,
            `calibration_data` and `evaluation` are raw, and the SavedModel has a
            signature `serving_raw` that takes them so, with the preprocessing inside.
        outputs: The names of the outputs that the artefacts have, by default all. Of
            other outputs, the layers and inputs that only they need are left out, as
            of a head that has served its purpose in training.
        batch_size: The only batch size that the artefacts take; None for any. LSTM and
            GRU layers become LiteRT's own with one.
        tolerance: The largest difference from Keras, relative to the scale of the
            output, or a dict of that by precision (`"full"` and those of `quantize`).
            Defaults to 1e-5, about five times what deep float32 networks need, or to
            what the model's own rounding asks for where that is more: twice what the
            outputs change by when each weight moves by one unit in its last place,
            and never more than 1e-4. 1e-2 for `"float16"`, and where a model that
            computes in 16 bits, as with `mixed_float16`, needs it; 0.2 for int8, which
            detects a broken file, but not a less accurate one. A number is meant for
            `"full"`, and is kept to. In a model of `students.quantization_aware`,
            "full" rounds too, and its default is that of int8.
        version: Publish to `directory/3` rather than to `directory`, or to the number
            after the highest there with `"next"`. Earlier versions stay.
        provenance: What JSON can hold about how the model was made, kept in the
            manifest as it is: `Distiller.provenance()`, dates, a commit.

    Returns:
        The manifest, as in `manifest.json`: the model's name, parameter count and
        signature; for each artefact its files with sizes and SHA-256, the largest
        difference seen, the tolerance, its metric; how it was quantised; the versions
        that made it.

    Raises:
        TypeError: `model` isn't a Keras model.
        ValueError: An argument isn't usable, the model isn't built, it has NaN in its
            weights or outputs, or calls change its state.
        ImportError: A package that a format needs isn't installed.
        OSError: `directory` can't be written, or holds something else.
        ParityError: An artefact differs from the model, or loses too much.
        RuntimeError: A format can't hold the model, it can't be traced, or Keras runs
            on another backend than TensorFlow.

    Warns:
        UserWarning: The rows of a batch change each other's outputs.

    Example:
    >>> import tempfile
    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)])
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     manifest = export(
    ...         model, f"{parent}/served", ["saved_model"],
    ...         example_batch=np.ones((3, 4), "float32"),
    ...     )
    >>> manifest["signature"]["inputs"]
    [{'name': 'x', 'dtype': 'float32', 'shape': [None, 4]}]
    """
    arguments.check_backend()
    order = arguments.order(formats, quantize, batch_size, tolerance, provenance)
    arguments.check_types(directory, preprocessing, evaluation)
    order.require()
    model, select = _chosen(model, outputs, all_inputs=preprocessing is not None)
    order = _with_own_ranges(order, model, example_batch, calibration_data)
    example_batch = select(example_batch)
    with (
        no_remarks(),
        constant_weights(model),
        state.untouched(model, preprocessing),
        publishing(Path(os.path.realpath(directory)), version) as (goal, scratch),
    ):
        served = serve(
            model,
            example_batch,
            batch_size=order.batch_size,
            preprocessing=preprocessing,
        )
        expected = _reference(served, example_batch)
        judge = _judge(evaluation, served, select)
        calibration = _calibration(served, select(calibration_data))
        number = None if version is None else int(goal.name)
        return _written(scratch, served, order, expected, judge, calibration, number)


def _with_own_ranges(
    order: arguments.Order,
    model: keras.Model,
    example_batch: Any,
    calibration_data: Any,
) -> arguments.Order:
    """Return the order, with int8 by the ranges of a model that has its own."""
    has_ranges = bool(quantizers(model))
    if has_ranges:
        order = arguments.of_own_ranges(order)
    arguments.check_data(
        order.targets, example_batch, calibration_data, has_ranges=has_ranges
    )
    return order


def _chosen(
    model: keras.Model | str | os.PathLike[str],
    outputs: Sequence[str] | None,
    *,
    all_inputs: bool,
) -> tuple[keras.Model, Callable[[Any], Any]]:
    """Return the served model with the chosen outputs, and what picks its inputs."""
    served, of_serving = load_served(model)
    part, of_part = chosen(served, outputs, all_inputs=all_inputs)
    return part, lambda batch: of_part(of_serving(batch))


def _written(
    scratch: Path,
    served: Served,
    order: arguments.Order,
    expected: Reference,
    judge: Judge | None,
    calibration: list[Arrays],
    version: int | None,
) -> Manifest:
    """Write all artefacts, the examples and the manifest to a directory.

    Args:
        scratch: The directory.
        served: The model.
        order: What was asked for.
        expected: The model's outputs on the examples.
        judge: Decides by a metric; None without an evaluation.
        calibration: Batches for int8.
        version: The number of the version; None without versions.

    Returns:
        The manifest.
    """
    artefacts = []
    for target in order.targets:
        bound = order.tolerances[target.precision]
        examine = Examiner(served, expected.cases[0][0], bound)
        path = scratch / target.file
        with target.explaining("converting it", examine):
            target.format.write(Conversion(served, target.precision, calibration), path)
        is_given = target.precision != FULL or order.gives_full
        artefacts.append(
            _checked(target, path, expected, judge, examine, is_given=is_given)
        )
    examples.write(scratch, expected, order.batch_size)
    described = manifest.describe(
        served,
        scratch,
        artefacts,
        expected.scales,
        version=version,
        batch_size=order.batch_size,
        evaluation=judge.describe() if judge else None,
        calibration=_describe_calibration(calibration),
        rows_depend_on_each_other=_describe_dependence(expected),
        provenance=order.provenance,
    )
    manifest.write(described, scratch)
    return described


def _reference(served: Served, example_batch: Any) -> Reference:
    """Run the model on the examples; warn where rows depend on each other."""
    expected = parity.reference(served, example_batch)
    dependence = expected.dependence
    if dependence is None or not dependence.repeats:
        return expected
    warnings.warn(f"{dependence}.", stacklevel=3)
    few = size_of(expected.cases[0][0]) <= examples.COUNT
    if served.batch_size is not None or few:
        return expected
    # `verify` runs the rows that are kept, which give other outputs by themselves.
    kept = keras.tree.map_structure(
        lambda values: np.asarray(values)[: examples.COUNT], example_batch
    )
    return dataclasses.replace(parity.reference(served, kept), dependence=dependence)


def _checked(
    target: Target,
    path: Path,
    expected: Reference,
    judge: Judge | None,
    examine: Examiner,
    *,
    is_given: bool,
) -> Artefact:
    """Load an artefact and compare it with its model in every way asked for.

    Where no tolerance is given, it is at least what the model's own rounding asks for.
    """
    with target.explaining("loading what the converter wrote", examine):
        loaded = target.format.load(path)
    # int8 is judged by what it is for, where that can be told.
    judged = judge is not None and target.precision in arguments.INTEGERS
    compared = partial(_compared, target, path, loaded, expected, judged)
    tolerance = examine.tolerance
    try:
        # its cause is looked for only where it is refused
        first = examine if is_given else None
        difference = compared(tolerance, first)
    except RuntimeError:
        if is_given:
            raise
        tolerance = max(tolerance, rounding.tolerance(examine.served, expected))
        examine = dataclasses.replace(examine, tolerance=tolerance)
        difference = compared(tolerance, examine)
    details: dict[str, Any] = {}
    if target.precision != FULL:
        with target.explaining("looking for what became smaller", examine):
            details["weights"] = quantized_weights(target, path)
    bound = None if judged else tolerance
    if judge is not None:
        details["evaluation"] = judge.score(target, loaded, expected.scales, bound)
    if loaded.integers:
        details["integers"] = loaded.integers
    # Kernels of another machine may round otherwise where nothing bounds them here.
    kept = max(2 * difference.relative, tolerance) if bound is None else bound
    return Artefact(target, difference, kept, details)


def _compared(
    target: Target,
    path: Path,
    loaded: Loaded,
    expected: Reference,
    judged: bool,
    tolerance: float,
    examine: Examiner | None,
) -> Difference:
    """Compare an artefact with its model on the examples, and on the probes."""
    bound = None if judged else tolerance
    with _naming(expected.dependence):
        difference = parity.compare(
            target, loaded, expected.cases, expected.scales, bound, examine
        )
        if expected.raw_cases and target.format is saved_model.FORMAT:
            raw = saved_model.load_signature(path, saved_model.RAW_SIGNATURE)
            difference |= parity.compare(
                target, raw, expected.raw_cases, expected.scales, bound
            )
    # Integers stand for no infinity, and for few sizes that they weren't calibrated on.
    if target.precision not in arguments.INTEGERS:
        of_batch = None if examine is None else partial(_examiner_of, examine)
        parity.compare_probes(target, loaded, expected, tolerance, of_batch)
    return difference


def _examiner_of(examine: Examiner, batch: Arrays) -> Examiner:
    return dataclasses.replace(examine, batch=batch)


@contextmanager
def _naming(dependence: Dependence | None) -> Iterator[None]:
    """Add the cause to an error of parity where it is known."""
    try:
        yield
    except ParityError as error:
        if dependence is None:
            raise
        raise ParityError(f"{error} {dependence}.") from error


def _describe_dependence(expected: Reference) -> dict[str, Any] | None:
    found = expected.dependence
    if found is None:
        return None
    return {"part": found.part, "layer": found.layer, "output": found.output}


def _judge(
    evaluation: Evaluation | None, served: Served, select: Callable[[Any], Any]
) -> Judge | None:
    if evaluation is None:
        return None
    return Judge(evaluation.selecting(select), served)


def _calibration(served: Served, data: Any) -> list[Arrays]:
    """Cut calibration data to single examples, or to batches of the fixed size."""
    if data is None:
        return []
    with taken("calibration_data"):
        arrays = served.arrays(data, "calibration_data")
        # Runtimes would blame the model for what a value of these is at fault for.
        for piece, _ in pieces(arrays, served.batch_size or examples.COUNT):
            parity.call(served, piece, "calibration_data", arrays)
    return [piece for piece, _ in pieces(arrays, served.batch_size or 1)]


def _describe_calibration(calibration: list[Arrays]) -> dict[str, int] | None:
    if not calibration:
        return None
    return {"batches": len(calibration), "batch_size": size_of(calibration[0])}
