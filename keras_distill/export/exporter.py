"""The function `export`, which writes, checks and publishes all formats together."""

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

    An artefact is the file or folder of one format in one precision. All artefacts have
    the same named inputs, of any batch size. They return the same named outputs as
    `model(x, training=False)`:

    - An input has the name of its Functional `Input`, or its key if inputs are a dict.
      Inputs that the user didn't name are `input`, or `input_0`, `input_1`, ... if
      there are several.
    - An output has its key in a dict, or the name of its layer in a Functional or
      Sequential model. Other outputs are `output`, or `output_0`, `output_1`, .... A
      name that is already used gets the suffix `_1`, `_2`, ....

    Before anything is published, each artefact is loaded by TensorFlow, ONNX Runtime or
    the LiteRT interpreter. It is compared with Keras on `example_batch`, on a batch of
    another size and on the data of `evaluation`. It is also compared on values that
    examples seldom contain: inputs of other sizes if sizes are open, infinities and NaN
    if the model tests for them, zeros, negative integers and large values. int8
    artefacts aren't compared on these values, and float16 artefacts not on large ones.
    Each output must satisfy this condition:

        max |artefact - keras| <= tolerance * max(scale, |keras|)

    `scale` is the largest magnitude of that output, without masks (values of 1e4 and
    more), or 1 if all values are 0. Outputs that aren't floats must be equal.

    `directory` then contains `manifest.json`, `examples.npz` (the first 32 rows of
    `example_batch` with the model's outputs, for `verify`) and the chosen formats:
    `saved_model/`, `model.onnx` (opset 18) and `model.tflite`. Quantised files lie
    beside them, e.g. `model.int8.onnx`. An earlier export is replaced as a whole at the
    very end. If the process dies before that, the earlier export is unchanged.

    Args:
        model: A built Keras model, or the path of a `.keras` file, which is loaded in
            safe mode. If it is a distiller, its student is exported. The data may then
            contain keys that the student doesn't read.
        directory: The directory to write. It must be absent, empty or an earlier
            export.
        formats: Any of `"saved_model"`, `"onnx"`, `"litert"`.
        example_batch: A batch of real inputs in the form that the model reads: an
            array, a list of arrays or a dict of arrays, of shape `(batch, ...)`. It
            also defines dtypes and shapes if the model is neither Functional nor
            Sequential.
        quantize: Precisions to write besides the model's own, for each format that
            supports them:

            - `"float16"` (ONNX, LiteRT): half the size. Inputs and outputs keep their
              dtypes.
            - `"dynamic_int8"` (ONNX, LiteRT): weights in int8. ONNX: only the weights
              of Dense, Embedding, attention and LSTM layers, as convolutions would
              become slower. LiteRT: weights of 1024 values and more.
            - `"int8"` (ONNX, LiteRT): weights and activations in int8, with ranges from
              `calibration_data`. Inputs and outputs stay floats. LSTM and GRU layers
              need `unroll=True`. Otherwise ONNX keeps their weights in floats, and
              LiteRT can't be calibrated.
            - `"integer_only"` (LiteRT): as `"int8"`, but with int8 inputs and outputs,
              for accelerators without floats. The manifest contains their scales.
        calibration_data: A few hundred typical inputs in the form of `example_batch`,
            for `"int8"` and `"integer_only"`. None for a model of
            `students.quantization_aware`, which already contains its ranges.
        evaluation: Held-out data with a metric, and how much of that metric an artefact
            may lose. It decides about int8 artefacts instead of `tolerance`.
        preprocessing: A layer or model that computes the model's inputs from raw
            features, e.g. the first model that `split_preprocessing` returns.
            `example_batch`, `calibration_data` and `evaluation` must then be raw
            features. The SavedModel also has a signature `serving_raw`, which reads raw
            features and contains the preprocessing.
        outputs: The names of the outputs that the artefacts have; all by default.
            Layers and inputs that only other outputs need are left out, e.g. a head
            that was needed in training only.
        batch_size: The only batch size of the artefacts; None for any. With a fixed
            one, LSTM and GRU layers are converted to LiteRT's own operators.
        tolerance: The largest difference from Keras, relative to the scale of the
            output. A dict has precisions as keys (`"full"` and those of `quantize`). A
            number is for `"full"`, and is never raised. It is also the least tolerance
            of the other precisions. Defaults by precision:

            - `"full"`: 1e-5, about five times what deep float32 networks need. If the
              model's own rounding needs more, the default rises to twice the change of
              the outputs when each weight moves by one unit in its last place, at most
              to 1e-4. It rises to 1e-2 if a model that computes in 16 bits, as with
              `mixed_float16`, needs it. A model of `students.quantization_aware` also
              rounds in `"full"`, so its default is that of int8.
            - `"float16"`: 1e-2.
            - int8: 0.2, which detects a broken file, but not a less accurate one.
        version: A number, e.g. 3, publishes to `directory/3` instead of `directory`.
            `"next"` publishes to the number after the highest one there. Earlier
            versions stay.
        provenance: How the model was made, in values of JSON, e.g.
            `Distiller.provenance()`, dates or a commit. It is copied to the manifest.

    Returns:
        The manifest, as in `manifest.json`. It contains the model's name, parameter
        count and signature. For each artefact, it contains the files with sizes and
        SHA-256, the largest difference seen, the tolerance and the metric. It also
        contains how the model was quantised, and the versions of the packages used.

    Raises:
        TypeError: `model` isn't a Keras model.
        ValueError: An argument isn't usable, the model isn't built, its weights or
            outputs contain NaN, or a call changes its state.
        ImportError: A package that a format needs isn't installed.
        OSError: `directory` can't be written, or contains anything but an export.
        ParityError: An artefact differs from the model, or loses too much of the
            metric.
        RuntimeError: A format can't represent the model, the model can't be traced, or
            Keras runs on another backend than TensorFlow.

    Warns:
        UserWarning: The outputs of a row depend on the other rows of its batch.

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
    """Return the order, adapted to a model that contains its ranges; check the data."""
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
    """Return the model with the chosen outputs, and what selects its inputs."""
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
        order: The checked arguments of `export`.
        expected: The model's outputs on the examples.
        judge: Compares metrics; None without an evaluation.
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
    # If rows depend on each other, the kept rows alone have other outputs, and `verify`
    # runs only these rows.
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
    """Load an artefact, and compare it with its model.

    If the caller gave no tolerance, it is raised to what the model's rounding needs.
    """
    with target.explaining("loading what the converter wrote", examine):
        loaded = target.format.load(path)
    # With an evaluation, the metric decides about int8, not the tolerance.
    judged = judge is not None and target.precision in arguments.INTEGERS
    compared = partial(_compared, target, path, loaded, expected, judged)
    tolerance = examine.tolerance
    try:
        # The cause is searched only if the error isn't followed by a second try.
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
    # Without a bound here, `verify` allows for the rounding of another machine.
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
    # Integers can't represent infinity, nor most sizes that they weren't calibrated on.
    if target.precision not in arguments.INTEGERS:
        of_batch = None if examine is None else partial(_examiner_of, examine)
        parity.compare_probes(target, loaded, expected, tolerance, of_batch)
    return difference


def _examiner_of(examine: Examiner, batch: Arrays) -> Examiner:
    return dataclasses.replace(examine, batch=batch)


@contextmanager
def _naming(dependence: Dependence | None) -> Iterator[None]:
    """Add the dependence between rows, if there is one, to a `ParityError`."""
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
        # If one of these values is wrong, runtimes would report an error of the model.
        for piece, _ in pieces(arrays, served.batch_size or examples.COUNT):
            parity.call(served, piece, "calibration_data", arrays)
    return [piece for piece, _ in pieces(arrays, served.batch_size or 1)]


def _describe_calibration(calibration: list[Arrays]) -> dict[str, int] | None:
    if not calibration:
        return None
    return {"batches": len(calibration), "batch_size": size_of(calibration[0])}
