"""Comparisons of artefacts with the model that they were made from."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    reason,
    size_of,
    taken,
    to_arrays,
)
from keras_distill.export.formats import FULL, Diagnosis, Examine, Loaded, Target
from keras_distill.export.probes import (
    Probe,
    has_open_sizes,
    probes,
    refused_sizes,
)
from keras_distill.export.quiet import quiet
from keras_distill.export.rows import Dependence, dependence, fails_alone
from keras_distill.export.serving import Served, tensors_of

# Outputs of this magnitude and more count as masks (-1e9 in padded places). They are
# compared relative to themselves, and don't count for the scale of other values.
_MASK = 1e4


class ParityError(RuntimeError):
    """The error of an artefact that differs from its model.

    Attributes:
        output: The name of the output that differs; None if no single output does.
    """

    output: str | None = None


@dataclass(frozen=True)
class Reference:
    """What Keras computes on the example batch and on a batch of another size.

    Attributes:
        cases: Pairs of named inputs and named outputs.
        raw_cases: Pairs of named raw features and named outputs; empty without a
            preprocessing.
        scales: Output name to the largest magnitude in the example batch.
        dependence: How the rows of a batch depend on each other; None if they don't.
        probes: Further inputs on which the artefacts are compared.
    """

    cases: list[tuple[Arrays, Arrays]]
    raw_cases: list[tuple[Arrays, Arrays]]
    scales: dict[str, float]
    dependence: Dependence | None = None
    probes: list[Probe] = field(default_factory=list)


@dataclass(frozen=True)
class Difference:
    """The largest difference between artefact and model.

    Attributes:
        absolute: The absolute difference.
        relative: The difference divided by the scale of the output or the value's
            magnitude, whichever is larger.
    """

    absolute: float = 0.0
    relative: float = 0.0

    def __or__(self, other: "Difference") -> "Difference":
        return Difference(
            max(self.absolute, other.absolute), max(self.relative, other.relative)
        )


def reference(served: Served, example_batch: Any) -> Reference:
    """Run the Keras model eagerly, in inference mode, on the CPU.

    Raises:
        ValueError: A weight or an output is NaN, or the batch doesn't fit the model.
    """
    _refuse_nan_weights(served.model)
    given = to_arrays(example_batch, (served.raw or served).inputs)
    raw = _batches(given, served.batch_size)
    # Each batch is preprocessed by itself, as its rows may depend on each other.
    with taken("example_batch"):
        batches = [served.prepare(raw[0])]
        _refuse_sizes(served, batches[0])
        outputs = [call(served, batches[0], "example_batch", raw[0])]
    with taken("example_batch") if served.batch_size else _first_row():
        batches += [served.prepare(batch) for batch in raw[1:]]
        outputs += [
            call(served, batch, "example_batch", given)
            for batch, given in zip(batches[1:], raw[1:], strict=True)
        ]
    return Reference(
        cases=list(zip(batches, outputs, strict=True)),
        raw_cases=list(zip(raw, outputs, strict=True)) if served.raw else [],
        scales=_scales(outputs),
        dependence=dependence(served, served.prepare(given), given),
        probes=probes(served, batches[0]),
    )


@contextmanager
def _first_row() -> Iterator[None]:
    """Raise ValueError if Keras can't compute the first row without other rows."""
    try:
        yield
    except tf.errors.OpError as error:
        failure = f"row 0 by itself: {reason(error)}"
        raise ValueError(
            "`example_batch` must begin with an example that the model can compute by "
            f"itself. Received: {fails_alone('`model`', failure)}."
        ) from error


def _refuse_sizes(served: Served, batch: Arrays) -> None:
    """Raise an error if Keras' outputs for the examples' sizes can't be a reference."""
    error = refused_sizes(served, batch) if has_open_sizes(served) else None
    if error is not None:
        sizes = {name: array.shape[1:] for name, array in batch.items()}
        raise ValueError(
            "`example_batch` must hold examples of sizes that the model can compute "
            f"with. Received: sizes={sizes}, for which it can't be traced: "
            f"{reason(error.__cause__ or error)}"
        ) from error


def _batches(arrays: Arrays, batch_size: int | None) -> list[Arrays]:
    if batch_size is None:
        return [arrays, other_size(arrays)]
    return [piece for piece, _ in pieces(arrays, batch_size)]


def call(
    served: Served,
    batch: Arrays,
    argument: str = "example_batch",
    given: Arrays | None = None,
) -> Arrays:
    """Run the Keras model on one batch.

    Args:
        served: The model.
        batch: Its inputs.
        argument: The caller's name for these inputs, for errors.
        given: The values that the batch was made from, for errors. Defaults to the
            batch.

    Raises:
        ValueError: An output is NaN.
    """
    # Runtimes are compared on the CPU: GPUs multiply in TF32, which is no reference.
    # TensorFlow warns of the functions that Keras makes for grouped convolutions.
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
            _refuse_not_finite(batch if given is None else given, argument, name)
            _refuse_not_finite(batch, "preprocessing", name)
            raise ValueError(
                "`model` must give no NaN on the examples. Received: "
                f"{bad} NaN among the {array.size} values of the output {name!r}."
            )
    return arrays


def _refuse_not_finite(given: Arrays, argument: str, output: str) -> None:
    """Raise an error if inputs are infinite or NaN, which may make an output NaN."""
    for name, array in given.items():
        values = _numbers(array)
        nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        if nan or infinite:
            raise ValueError(
                f"`{argument}` must be finite, as the output {output!r} is NaN for it. "
                f"Received: {nan} NaN and {infinite} infinities among the "
                f"{array.size} values of the input {name!r}."
            )


def compare(
    target: Target,
    loaded: Loaded,
    cases: Iterable[tuple[Arrays, Arrays]],
    scales: dict[str, float],
    tolerance: float | None,
    examine: Examine | None = None,
) -> Difference:
    """Return the largest difference between artefact and model.

    Args:
        target: The artefact's format and precision, for errors.
        loaded: The artefact.
        cases: Pairs of named inputs and the model's named outputs for them.
        scales: Output name to its scale.
        tolerance: The largest relative difference; None for any that is finite.
        examine: Searches for the cause of a difference; None without the model.

    Raises:
        ParityError: Its names, shapes or dtypes aren't the model's, or an output is
            NaN or differs by more than `tolerance` times the scale of the output.
        RuntimeError: The artefact doesn't run.
    """
    largest = Difference()
    for batch, wanted in cases:
        _check_names(target.name, "input", loaded.inputs, frozenset(batch))
        _check_names(target.name, "output", loaded.outputs, frozenset(wanted))
        action = f"running it on a batch of {size_of(batch)}"
        with target.explaining(action, examine):
            given = loaded.run(batch)
        try:
            largest |= differences(target.name, given, wanted, scales, tolerance)
        except ParityError as error:
            cause = _of_optimizer(loaded, batch, given, wanted, scales, tolerance)
            advice = _advice(target, error, examine)
            raise ParityError(f"{error} {cause}{advice}") from None
    return largest


def differences(
    artefact: str,
    given: Arrays,
    wanted: Arrays,
    scales: dict[str, float],
    tolerance: float | None,
) -> Difference:
    """Return the largest difference of some outputs from Keras'.

    Args:
        artefact: Its name, for errors.
        given: Its outputs.
        wanted: The outputs of Keras.
        scales: Output name to scale, for the outputs to compare.
        tolerance: The largest relative difference; None for any that is finite.

    Raises:
        ParityError: An output differs more. The error has the name of the output.
    """
    largest = Difference()
    for name, scale in scales.items():
        label = f"output {name!r} of the {artefact} artefact"
        try:
            largest |= _difference(label, given[name], wanted[name], scale, tolerance)
        except ParityError as error:
            error.output = name
            raise
    return largest


def _of_optimizer(
    loaded: Loaded,
    batch: Arrays,
    given: Arrays,
    wanted: Arrays,
    scales: dict[str, float],
    tolerance: float | None,
) -> str:
    """Return a sentence about the runtime's optimiser if it causes the difference."""
    if loaded.unoptimized is None:
        return ""
    try:
        plain = loaded.unoptimized().run(batch)
        differences("", plain, wanted, scales, tolerance)
    except Exception:
        return ""
    distances = {
        name: np.nan_to_num(np.abs(_numbers(given[name]) - _numbers(value)), nan=np.inf)
        for name, value in plain.items()
        if not _is_text(value)
    }
    name = max(distances, key=lambda name: distances[name].max(initial=0.0))
    worst = int(np.argmax(distances[name]))
    return (
        "ONNX Runtime's optimiser changes it: without graph optimisation the same file "
        f"gives {plain[name].flat[worst]:.9g} in place of "
        f"{given[name].flat[worst]:.9g}, and agrees with Keras. "
    )


def compare_probes(
    target: Target,
    loaded: Loaded,
    expected: Reference,
    tolerance: float,
    examine: Callable[[Arrays], Examine] | None = None,
) -> None:
    """Compare an artefact with the model on the probes.

    Args:
        target: The artefact's format and precision.
        loaded: The artefact.
        expected: The outputs of Keras.
        tolerance: The largest relative difference.
        examine: Returns, for a batch, the search for the cause of a difference.

    Raises:
        ParityError: The artefact differs, or doesn't run.
    """
    for probe in expected.probes:
        # The largest float16 is 65504, so large values are skipped.
        if not probe.compared and target.precision != FULL:
            continue
        for batch, wanted in probe.cases:
            try:
                with target.explaining(f"running it on a batch of {size_of(batch)}"):
                    given = loaded.run(batch)
                given, wanted = without_undefined(given, wanted, probe)
                scales = scales_for(expected, wanted, probe)
                bound = tolerance if probe.compared else None
                differences(target.name, given, wanted, scales, bound)
            except RuntimeError as error:
                raise ParityError(
                    f"The {target.name} artefact must compute what Keras does for "
                    f"{probe.what}. {probe.remedy}, or leave out the format. "
                    f"Received: {error}{_where(target, error, examine, batch)}"
                ) from error


def scales_for(
    expected: Reference, wanted: Arrays, probe: Probe | None
) -> dict[str, float]:
    """Return the scales of the outputs that are compared on a batch."""
    if probe is None:
        return expected.scales
    return {
        name: max(scale, _largest(wanted[name]))
        for name, scale in expected.scales.items()
        if probe.outputs is None or name in probe.outputs
    }


def without_undefined(
    given: Arrays, wanted: Arrays, probe: Probe
) -> tuple[Arrays, Arrays]:
    """Set both outputs to zero where Keras' value isn't compared."""
    if not probe.cleaned and not probe.finite:
        return given, wanted
    taken, defined = dict(given), dict(wanted)
    for name, want in wanted.items():
        if want.dtype.kind != "f" or given[name].shape != want.shape:
            continue
        bad = ~np.isfinite(want) if probe.finite else np.isnan(want)
        taken[name] = np.where(bad, 0, given[name]).astype(given[name].dtype)
        defined[name] = np.where(bad, 0, want).astype(want.dtype)
    return taken, defined


def _where(
    target: Target,
    error: RuntimeError,
    examine: Callable[[Arrays], Examine] | None,
    batch: Arrays,
) -> str:
    """Return a sentence about the first layer that differs by itself for a batch."""
    if examine is None or target.precision != FULL:
        return ""
    found = examine(batch).of_values(target, error)
    return f" The first layer that is off by itself: {found.where}." * bool(found.where)


def agree(
    given: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic], tolerance: float
) -> bool:
    """Return whether an output is Keras', to `tolerance` times its own scale."""
    scale = _scales([{"": wanted}])[""]
    try:
        _difference("", given, wanted, scale, tolerance)
    except ParityError:
        # NaN within a model may be masked by a later layer.
        return wanted.dtype.kind == "f" and np.array_equal(given, wanted, True)
    return True


def _advice(target: Target, error: ParityError, examine: Examine | None) -> str:
    found = Diagnosis() if examine is None else examine.of_values(target, error)
    remedies = found.remedies
    if target.precision not in (FULL, "float16"):
        remedies = (*remedies, "give an `evaluation` to judge int8 by")
    first = f"The first layer that is off by itself: {found.where}. "
    advice = target.advice(Diagnosis("", remedies, found.note))
    return f"{first if found.where else ''}{advice}"


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
    with np.errstate(invalid="ignore"):  # Infinities are either equal or refused.
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
            f"{want.size} values beyond the tolerance."
        )
    return Difference(float(distance.max()), float(relative.flat[worst]))


def _check_kind(
    label: str, given: npt.NDArray[np.generic], wanted: npt.NDArray[np.generic]
) -> None:
    # Runtimes return text as objects or bytes.
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
    if _is_text(array):  # Text has no magnitude. It is compared by equality only.
        return np.zeros(array.shape)
    return array.astype(np.float64)


def _is_text(array: npt.NDArray[np.generic]) -> bool:
    return array.dtype.kind in "OSU"
