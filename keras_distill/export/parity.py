"""Does an artefact compute what its model computes?"""

from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from keras_distill.export.batches import Arrays, other_size
from keras_distill.export.formats import Format, Loaded
from keras_distill.export.serving import Served

# Outputs from here on are taken for masks (-1e9 in padded places): they are compared
# relative to themselves, and don't blow up the scale of the others.
_MASK = 1e4


@dataclass(frozen=True)
class Reference:
    """What Keras computes on the example batch and on a batch of another size.

    Attributes:
        cases: Pairs of named inputs and named outputs.
        scales: Output name to the largest magnitude in the example batch.
    """

    cases: list[tuple[Arrays, Arrays]]
    scales: dict[str, float]


def reference(served: Served, arrays: Arrays) -> Reference:
    """Run the model itself, eagerly, in inference mode, on the CPU.

    Raises:
        ValueError: A weight or an output is NaN.
    """
    _refuse_nan_weights(served.model)
    cases = [(batch, _call(served, batch)) for batch in (arrays, other_size(arrays))]
    outputs = cases[0][1]
    return Reference(cases, {name: _scale(outputs[name]) for name in outputs})


def compare(
    target: Format, loaded: Loaded, expected: Reference, tolerance: float
) -> float:
    """Return the largest absolute difference between artefact and model.

    Raises:
        RuntimeError: The artefact doesn't run, its names, shapes or dtypes aren't the
            model's, or an output is NaN or off by more than `tolerance` times the
            scale of the output.
    """
    inputs, outputs = expected.cases[0]
    _check_names(target.name, "input", loaded.inputs, frozenset(inputs))
    _check_names(target.name, "output", loaded.outputs, frozenset(outputs))
    largest = 0.0
    for batch, wanted in expected.cases:
        size = len(next(iter(batch.values())))
        with target.explaining(f"running it on a batch of {size}"):
            given = loaded.run(batch)
        for name, scale in expected.scales.items():
            label = f"output {name!r} of the {target.name} artefact"
            difference = _difference(label, given[name], wanted[name], scale, tolerance)
            largest = max(largest, difference)
    return largest


def _call(served: Served, batch: Arrays) -> Arrays:
    # Runtimes are compared on the CPU; GPUs multiply in TF32, which is no reference.
    with tf.device("/CPU:0"):
        tensors = {name: tf.constant(array) for name, array in batch.items()}
        outputs = served.call(tensors)
    arrays = {name: outputs[name].numpy() for name in outputs}
    for name, array in arrays.items():
        bad = int(np.isnan(_numbers(array)).sum())
        if bad:
            raise ValueError(
                "`model` must give no NaN on `example_batch`. Received: "
                f"{bad} NaN among the {array.size} values of the output {name!r}."
            )
    return arrays


def _refuse_nan_weights(model: keras.Model) -> None:
    for weight in model.weights:
        bad = int(np.isnan(weight.numpy()).sum())
        if bad:
            raise ValueError(
                "`model` must have no NaN in its weights. Received: "
                f"{bad} NaN in {weight.path!r} of shape {tuple(weight.shape)}."
            )


def _check_names(
    format_name: str, kind: str, given: frozenset[str], wanted: frozenset[str]
) -> None:
    if given != wanted:
        raise RuntimeError(
            f"The {format_name} artefact must have the {kind} names {sorted(wanted)}. "
            f"Received: {sorted(given)}. Nothing was published."
        )


def _difference(
    label: str,
    given: npt.NDArray[np.generic],
    wanted: npt.NDArray[np.generic],
    scale: float,
    tolerance: float,
) -> float:
    _check_kind(label, given, wanted)
    if not np.issubdtype(wanted.dtype, np.inexact) and wanted.dtype.kind != "V":
        return _exact_difference(label, given, wanted)
    got, want = _numbers(given), _numbers(wanted)
    allowed = tolerance * np.maximum(scale, np.abs(want))
    with np.errstate(invalid="ignore"):  # infinities: equal or refused
        distance = np.where(got == want, 0.0, np.abs(got - want))
        excess = distance / allowed
    excess = np.where(np.isnan(excess), np.inf, excess)
    worst = int(np.argmax(excess)) if excess.size else None
    if worst is not None and excess.flat[worst] > 1:
        raise RuntimeError(
            f"The {label} must agree with Keras within {allowed.flat[worst]:.3g} "
            f"(`tolerance` {tolerance:g}, scale of the output {scale:.3g}). Received: "
            f"{got.flat[worst]:.9g} where Keras gives {want.flat[worst]:.9g}, and "
            f"{int((excess > 1).sum())} of {want.size} values beyond the tolerance. "
            "Nothing was published. Leave the format out, or "
            "raise `tolerance` if the model computes in 16 bits."
        )
    return float(distance.max(initial=0.0))


def _check_kind(
    label: str, given: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]
) -> None:
    # Runtimes give text as objects or bytes.
    same_dtype = given.dtype == wanted.dtype or _is_text(given) and _is_text(wanted)
    if given.shape != wanted.shape or not same_dtype:
        raise RuntimeError(
            f"The {label} must be {wanted.dtype} of shape {wanted.shape}. "
            f"Received: {given.dtype} of shape {given.shape}. Nothing was published."
        )


def _exact_difference(
    label: str, given: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]
) -> float:
    unequal = int((given != wanted).sum())
    if unequal:
        raise RuntimeError(
            f"The {label} must equal Keras', as it is {wanted.dtype}. Received: "
            f"{unequal} of {wanted.size} values that differ. Nothing was published."
        )
    return 0.0


def _scale(wanted: npt.NDArray[np.generic]) -> float:
    magnitudes = np.abs(_numbers(wanted))
    return float(magnitudes[magnitudes < _MASK].max(initial=0.0)) or 1.0


def _numbers(array: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    if _is_text(array):  # has no magnitude, and is compared by equality alone
        return np.zeros(array.shape)
    return array.astype(np.float64)


def _is_text(array: npt.NDArray[np.generic]) -> bool:
    return array.dtype.kind in "OSU"
