"""Does an artefact compute what its model computes?"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_distill.export.batches import (
    Arrays,
    as_bytes,
    other_size,
    pieces,
    size_of,
    to_arrays,
)
from keras_distill.export.formats import Loaded, Target
from keras_distill.export.quiet import quiet
from keras_distill.export.serving import Served, tensors_of

# Outputs from here on are taken for masks (-1e9 in padded places): they are compared
# relative to themselves, and don't blow up the scale of the others.
_MASK = 1e4


class ParityError(RuntimeError):
    """An artefact isn't the model that it was made of."""


@dataclass(frozen=True)
class Reference:
    """What Keras computes on the example batch and on a batch of another size.

    Attributes:
        cases: Pairs of named inputs and named outputs.
        raw_cases: Pairs of named raw features and named outputs; empty where there is
            no preprocessing.
        scales: Output name to the largest magnitude in the example batch.
    """

    cases: list[tuple[Arrays, Arrays]]
    raw_cases: list[tuple[Arrays, Arrays]]
    scales: dict[str, float]


@dataclass(frozen=True)
class Difference:
    """The largest difference between artefact and model.

    Attributes:
        absolute: As it is.
        relative: Over the larger of the scale of the output and the value itself.
    """

    absolute: float = 0.0
    relative: float = 0.0

    def __or__(self, other: "Difference") -> "Difference":
        return Difference(
            max(self.absolute, other.absolute), max(self.relative, other.relative)
        )


def reference(served: Served, example_batch: Any) -> Reference:
    """Run the model itself, eagerly, in inference mode, on the CPU.

    Raises:
        ValueError: A weight or an output is NaN, or the batch doesn't fit the model.
    """
    _refuse_nan_weights(served.model)
    batches = _batches(served.arrays(example_batch, "example_batch"), served.batch_size)
    outputs = [call(served, batch) for batch in batches]
    raw_cases = []
    if served.raw is not None:
        raw = to_arrays(example_batch, served.raw.inputs)
        raw_cases = list(zip(_batches(raw, served.batch_size), outputs, strict=True))
    cases = list(zip(batches, outputs, strict=True))
    return Reference(cases, raw_cases, _scales(outputs))


def _batches(arrays: Arrays, batch_size: int | None) -> list[Arrays]:
    if batch_size is None:
        return [arrays, other_size(arrays)]
    return [piece for piece, _ in pieces(arrays, batch_size)]


def call(served: Served, batch: Arrays) -> Arrays:
    """Run the model itself on one batch.

    Raises:
        ValueError: An output is NaN.
    """
    # Runtimes are compared on the CPU; GPUs multiply in TF32, which is no reference.
    # Keras makes functions for grouped convolutions, of which TensorFlow warns.
    with tf.device("/CPU:0"), quiet("tensorflow", "absl"):
        outputs = served.call(tensors_of(batch))
    arrays = {name: outputs[name].numpy() for name in outputs}
    for name, array in arrays.items():
        if array.shape[:1] != (size_of(batch),):
            raise ValueError(
                "The outputs of `model` must have the batch as their first axis. "
                f"Received: shape={array.shape} for {size_of(batch)} examples in the "
                f"output {name!r}."
            )
    for name, array in arrays.items():
        bad = int(np.isnan(_numbers(array)).sum())
        if bad:
            raise ValueError(
                "`model` must give no NaN on the examples. Received: "
                f"{bad} NaN among the {array.size} values of the output {name!r}."
            )
    return arrays


def compare(
    target: Target,
    loaded: Loaded,
    cases: Iterable[tuple[Arrays, Arrays]],
    scales: dict[str, float],
    tolerance: float | None,
) -> Difference:
    """Return the largest difference between artefact and model.

    Args:
        target: Which artefact, for errors.
        loaded: The artefact.
        cases: Pairs of named inputs and what the model gives for them.
        scales: Output name to its scale.
        tolerance: The largest relative difference; None for any that is finite.

    Raises:
        ParityError: Its names, shapes or dtypes aren't the model's, or an output is
            NaN or off by more than `tolerance` times the scale of the output.
        RuntimeError: The artefact doesn't run.
    """
    largest = Difference()
    for batch, wanted in cases:
        _check_names(target.name, "input", loaded.inputs, frozenset(batch))
        _check_names(target.name, "output", loaded.outputs, frozenset(wanted))
        with target.explaining(f"running it on a batch of {size_of(batch)}"):
            given = loaded.run(batch)
        for name, scale in scales.items():
            label = f"output {name!r} of the {target.name} artefact"
            check = partial(
                _difference,
                label,
                wanted=wanted[name],
                scale=scale,
                tolerance=tolerance,
            )
            try:
                largest |= check(given[name])
            except ParityError as error:
                _blame_optimizer(error, loaded, batch, name, check)
                raise
    return largest


def _blame_optimizer(
    error: ParityError,
    loaded: Loaded,
    batch: Arrays,
    name: str,
    check: Callable[[npt.NDArray[np.generic]], Difference],
) -> None:
    """Raise where the file is right, and the optimiser of its runtime changes it."""
    if loaded.unoptimized is None:
        return
    try:
        plain = loaded.unoptimized().run(batch)[name]
        check(plain)
    except Exception:
        return
    given = loaded.run(batch)[name]
    distance = np.nan_to_num(np.abs(_numbers(given) - _numbers(plain)), nan=np.inf)
    worst = int(np.argmax(distance))
    raise ParityError(
        f"{error} ONNX Runtime's optimiser changes it: without graph optimisation the "
        f"same file gives {plain.flat[worst]:.9g} in place of "
        f"{given.flat[worst]:.9g}, and agrees with Keras."
    ) from error


def _refuse_nan_weights(model: keras.Model) -> None:
    for weight in model.weights:
        bad = int(np.isnan(weight.numpy()).sum())
        if bad:
            raise ValueError(
                "`model` must have no NaN in its weights. Received: "
                f"{bad} NaN in {weight.path!r} of shape {tuple(weight.shape)}."
            )


def _check_names(
    artefact: str, kind: str, given: frozenset[str], wanted: frozenset[str]
) -> None:
    if given != wanted:
        raise ParityError(
            f"The {artefact} artefact must have the {kind} names {sorted(wanted)}. "
            f"Received: {sorted(given)}."
        )


def _difference(
    label: str,
    given: npt.NDArray[np.generic],
    wanted: npt.NDArray[np.generic],
    scale: float,
    tolerance: float | None,
) -> Difference:
    _check_kind(label, given, wanted)
    if not np.issubdtype(wanted.dtype, np.inexact) and wanted.dtype.kind != "V":
        return _exact_difference(label, given, wanted, tolerance)
    got, want = _numbers(given), _numbers(wanted)
    measure = np.maximum(scale, np.abs(want))
    with np.errstate(invalid="ignore"):  # infinities: equal or refused
        distance = np.where(got == want, 0.0, np.abs(got - want))
        relative = distance / measure
    relative = np.where(np.isnan(relative), np.inf, relative)
    if not relative.size:
        return Difference()
    worst = int(np.argmax(relative))
    limit = np.finfo(np.float64).max if tolerance is None else tolerance
    if relative.flat[worst] > limit:
        demand = (
            "be finite where Keras is"
            if tolerance is None
            else f"agree with Keras within {limit * measure.flat[worst]:.3g} "
            f"(`tolerance` {limit:g}, scale of the output {scale:.3g})"
        )
        raise ParityError(
            f"The {label} must {demand}. Received: {got.flat[worst]:.9g} where Keras "
            f"gives {want.flat[worst]:.9g}, and {int((relative > limit).sum())} of "
            f"{want.size} values beyond the tolerance. Leave the format "
            "or precision out, raise `tolerance` if the model computes in 16 bits, or "
            "give an `evaluation` to judge int8 by."
        )
    return Difference(float(distance.max()), float(relative.flat[worst]))


def _check_kind(
    label: str, given: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]
) -> None:
    # Runtimes give text as objects or bytes.
    same_dtype = given.dtype == wanted.dtype or _is_text(given) and _is_text(wanted)
    if given.shape != wanted.shape or not same_dtype:
        raise ParityError(
            f"The {label} must be {wanted.dtype} of shape {wanted.shape}. "
            f"Received: {given.dtype} of shape {given.shape}."
        )


def _exact_difference(
    label: str,
    given: npt.NDArray[np.generic],
    wanted: npt.NDArray[np.generic],
    tolerance: float | None,
) -> Difference:
    if _is_text(wanted):
        given, wanted = as_bytes(given), as_bytes(wanted)
    unequal = int((given != wanted).sum())
    if unequal and tolerance is not None:
        raise ParityError(
            f"The {label} must equal Keras', as it is {wanted.dtype}. Received: "
            f"{unequal} of {wanted.size} values that differ."
        )
    return Difference(float(unequal > 0), float(unequal > 0))


def _scales(cases: list[Arrays]) -> dict[str, float]:
    return {
        name: max(_largest(outputs[name]) for outputs in cases) or 1.0
        for name in cases[0]
    }


def _largest(wanted: npt.NDArray[np.generic]) -> float:
    magnitudes = np.abs(_numbers(wanted))
    return float(magnitudes[magnitudes < _MASK].max(initial=0.0))


def _numbers(array: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    if _is_text(array):  # has no magnitude, and is compared by equality alone
        return np.zeros(array.shape)
    return array.astype(np.float64)


def _is_text(array: npt.NDArray[np.generic]) -> bool:
    return array.dtype.kind in "OSU"
