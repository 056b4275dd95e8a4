"""The arguments of `export`: their checks and their defaults."""

import dataclasses
import json
import math
import os
import textwrap
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import keras

from keras_distill.export import litert, onnx, saved_model
from keras_distill.export.evaluation import Evaluation
from keras_distill.export.formats import FULL, Target
from keras_distill.export.values import as_float, as_int, from_numpy

# In the order of writing. LiteRT is converted from the SavedModel, and quantised
# artefacts from those in full precision.
_FORMATS = (saved_model.FORMAT, onnx.FORMAT, litert.FORMAT)
# Static quantisation measures the ranges of activations on calibration data.
_CALIBRATED = ("int8", "integer_only")
INTEGERS = ("dynamic_int8", *_CALIBRATED)
# The largest relative differences. Those of int8 depend on the model far more than
# on the converter. This tolerance detects a broken file; an `Evaluation` detects a less
# accurate one.
_TOLERANCES = {FULL: 1e-5, "float16": 1e-2} | dict.fromkeys(INTEGERS, 0.2)


def check_backend() -> None:
    """Raise RuntimeError if Keras runs on another backend than TensorFlow."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise RuntimeError(
            "Exports are made by TensorFlow. Save the model, `model.save("
            "'model.keras')`, and export the file with the command `keras-distill "
            "export model.keras`, or in a process with KERAS_BACKEND=tensorflow. "
            f"Received: Keras on {backend!r}"
        )


@dataclasses.dataclass(frozen=True)
class Order:
    """The checked arguments of `export`.

    Args:
        targets: The artefacts, in the order of writing.
        batch_size: The only batch size of the artefacts; None for any.
        tolerances: The tolerance of every precision.
        gives_full: Whether the caller gave a tolerance of full precision.
        provenance: The provenance, as it is read from the manifest's file.
    """

    targets: list[Target]
    batch_size: int | None
    tolerances: dict[str, float]
    gives_full: bool
    provenance: Any

    def require(self) -> None:
        """Raise ImportError if a package that a format needs isn't installed."""
        for target in self.targets:
            target.format.require()


def order(
    formats: Sequence[str],
    quantize: str | Sequence[str] | None,
    batch_size: Any,
    tolerance: float | Mapping[str, float] | None,
    provenance: Mapping[str, Any] | None,
) -> Order:
    """Check arguments of `export`, and return them."""
    return Order(
        targets(formats, quantize),
        fixed_size(batch_size),
        tolerances(tolerance),
        gives_full(tolerance),
        as_json(provenance),
    )


def targets(
    formats: Sequence[str], quantize: str | Sequence[str] | None
) -> list[Target]:
    """Return the artefacts to write, in the order of writing."""
    known = [known.name for known in _FORMATS]
    if not formats or not _is_list_of(formats, known):
        raise ValueError(
            f"`formats` must be a list of some of {known}. "
            f"Received: formats={formats!r}."
        )
    chosen = [known for known in _FORMATS if known.name in formats]
    precisions = [quantize] if isinstance(quantize, str) else quantize
    precisions = [] if precisions is None else precisions
    possible = {precision for format in chosen for precision in format.precisions}
    if not _is_list_of(precisions, possible):
        names = [format.name for format in chosen]
        remedy = "" if possible else " Add 'onnx' or 'litert' to `formats`."
        raise ValueError(
            f"`quantize` must be of {sorted(possible)} for the formats {names}. "
            f"Received: quantize={quantize!r}.{remedy}"
        )
    return [
        Target(format, precision)
        for format in chosen
        for precision in (FULL, *format.precisions)
        if precision == FULL or precision in precisions
    ]


def _is_list_of(values: Any, possible: Collection[str]) -> bool:
    if isinstance(values, str) or not isinstance(values, Collection):
        return False
    return all(isinstance(value, str) and value in possible for value in values)


def target_named(name: str) -> Target:
    """Return the artefact that a manifest calls `name`."""
    possible = [
        Target(format, precision)
        for format in _FORMATS
        for precision in (FULL, *format.precisions)
    ]
    for target in possible:
        if target.name == name:
            return target
    raise ValueError(
        f"An artefact must be one of {[target.name for target in possible]}. "
        f"Received: {name!r}, made by another version of this package."
    )


def tolerances(tolerance: float | Mapping[str, float] | None) -> dict[str, float]:
    """Return the tolerance of every precision."""
    if tolerance is None:
        return _TOLERANCES
    named = dict(tolerance) if isinstance(tolerance, Mapping) else {FULL: tolerance}
    given = {
        name: value for name, v in named.items() if (value := as_float(v)) is not None
    }
    if len(given) < len(named):
        raise TypeError(
            f"`tolerance` must be a number, or a dict of numbers by {list(_TOLERANCES)}"
            f". Received: tolerance={tolerance!r}."
        )
    unknown = [name for name in given if name not in _TOLERANCES]
    if unknown:
        raise ValueError(
            f"`tolerance` must be a number or have the keys {list(_TOLERANCES)}. "
            f"Received: keys={unknown}."
        )
    for value in given.values():
        if not 0 < value < math.inf:
            raise ValueError(
                "`tolerance` must be positive and finite. "
                f"Received: tolerance={tolerance}."
            )
    # A quantised artefact isn't nearer to Keras than the one that it is made from.
    floor = given.get(FULL, 0.0)
    return {name: max(value, floor) for name, value in _TOLERANCES.items()} | given


def gives_full(tolerance: float | Mapping[str, float] | None) -> bool:
    """Return whether a caller's tolerance has a value for full precision."""
    if isinstance(tolerance, Mapping):
        return FULL in tolerance
    return tolerance is not None


def check_types(directory: Any, preprocessing: Any, evaluation: Any) -> None:
    """Raise an error if an argument has a type that can't be used."""
    if not isinstance(directory, str | os.PathLike) or not os.fspath(directory):
        raise TypeError(
            "`directory` must be the path of a directory. "
            f"Received: directory={directory!r}."
        )
    if preprocessing is not None and not isinstance(preprocessing, keras.Layer):
        raise TypeError(
            "`preprocessing` must be a Keras layer or model, as the first that "
            "`split_preprocessing` returns. Received: preprocessing="
            f"{_shown(preprocessing)}."
        )
    if evaluation is not None and not isinstance(evaluation, Evaluation):
        raise TypeError(
            "`evaluation` must be a `keras_distill.export.Evaluation`, as "
            "`Evaluation((x, y), metric, max_drop=0.01)`. "
            f"Received: evaluation={_shown(evaluation)}."
        )


def fixed_size(batch_size: Any) -> int | None:
    """Return the only batch size of the artefacts; None for any."""
    if batch_size is None:
        return None
    whole = as_int(batch_size)
    if whole is None:
        raise TypeError(
            "`batch_size` must be a whole number, or None for any size. "
            f"Received: batch_size={batch_size!r}."
        )
    if whole < 1:
        raise ValueError(
            f"`batch_size` must be at least 1. Received: batch_size={batch_size}."
        )
    return whole


def _shown(value: Any) -> str:
    return f"{textwrap.shorten(repr(value), 80)} of type {type(value).__name__}"


def of_own_ranges(order: Order) -> Order:
    """Return the order for a model whose layers round its activations.

    Raises:
        ValueError: A target can't use the model's ranges.
    """
    refused = [
        target.name
        for target in order.targets
        if target.precision != FULL and target.precision not in _CALIBRATED
    ]
    if refused:
        raise ValueError(
            f"`quantize` must be of {list(_CALIBRATED)}, as `model` has ranges and "
            f"weights made for it. Received: {refused}. Export the float model to "
            "others."
        )
    if order.gives_full:
        return order
    # Model and artefact both round, so a value may differ by a step.
    full = max(order.tolerances[FULL], _TOLERANCES["int8"])
    return dataclasses.replace(order, tolerances=order.tolerances | {FULL: full})


def check_data(
    targets: Sequence[Target],
    example_batch: Any,
    calibration_data: Any,
    *,
    has_ranges: bool = False,
) -> None:
    """Raise an error if needed data is missing, or given data isn't needed.

    Args:
        targets: The artefacts.
        example_batch: The caller's argument.
        calibration_data: The caller's argument.
        has_ranges: Whether the model contains the ranges of its activations.
    """
    if example_batch is None:
        raise ValueError(
            "`example_batch` must be a batch of inputs as the model takes them; every "
            "artefact is compared with the model on it. Received: example_batch=None."
        )
    if has_ranges and calibration_data is not None:
        raise ValueError(
            "`calibration_data` must be None, as `model` was calibrated when it became "
            "quantisation-aware, and was trained with these ranges. "
            "Received: calibration_data."
        )
    calibrated = [
        target.name
        for target in targets
        if target.precision in _CALIBRATED and not has_ranges
    ]
    if calibrated and calibration_data is None:
        raise ValueError(
            "`calibration_data` must hold a few hundred typical inputs for "
            f"{calibrated}. Received: calibration_data=None. Without such data "
            "`quantize='dynamic_int8'` is possible."
        )
    if calibration_data is not None and not calibrated:
        raise ValueError(
            "`calibration_data` is for `quantize` 'int8' or 'integer_only'. "
            f"Received: calibration_data for {[target.name for target in targets]}."
        )


def as_json(provenance: Mapping[str, Any] | None) -> Any:
    """Return the provenance as it will be read from the manifest's file."""
    try:
        if provenance is not None and not isinstance(provenance, Mapping):
            raise TypeError(f"a {type(provenance).__name__}")
        text = json.dumps(provenance, allow_nan=False, default=from_numpy)
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "`provenance` must be a dict of what JSON can hold. "
            f"Received: {provenance!r} ({error})."
        ) from None
