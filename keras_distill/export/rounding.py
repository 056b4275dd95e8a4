"""The tolerance for outputs that the rounding of a model's weights needs."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_distill.export import parity
from keras_distill.export.advice import computes_in_16_bits
from keras_distill.export.batches import Arrays
from keras_distill.export.parity import Reference
from keras_distill.export.probes import Probe
from keras_distill.export.serving import Served

# Two computations may have rounding errors in opposite directions.
_FACTOR = 2
# Ten times the usual tolerance. Larger differences may come from a wrong operator.
_MOST = 1e-4
# For models that compute in float16 or bfloat16, as for `quantize="float16"`. Only some
# runtimes sum such products in float32.
_IN_16_BITS = 1e-2
# The number of random directions, as their results differ.
_DRAWS = 2


def tolerance(served: Served, expected: Reference) -> float:
    """Return the tolerance that the model's own rounding needs, at most 1e-4.

    For models that compute in 16 bits, it is 1e-2.

    Each weight is moved up or down by one unit in its last place. The change of the
    outputs is the effect of rounding alone. In deep networks it is about the difference
    between float32 and float64. The caller's model isn't changed.

    Raises:
        RuntimeError: With moved weights, an output is no longer finite.
        ValueError: With moved weights, an output is NaN.
    """
    if computes_in_16_bits(served.model):
        return _IN_16_BITS
    weights = [v for v in served.model.variables if _is_float(v.dtype)]
    largest = parity.Difference()
    for seed in range(_DRAWS):
        rng = np.random.default_rng(seed)
        moved = [(weight, _moved(weight, rng)) for weight in weights]
        with keras.StatelessScope(state_mapping=moved):
            for batch, wanted, probe in _compared(expected):
                given = parity.call(served, batch)
                if probe is not None:
                    given, wanted = parity.without_undefined(given, wanted, probe)
                scales = parity.scales_for(expected, wanted, probe)
                floats = {n: s for n, s in scales.items() if _is_float(wanted[n].dtype)}
                largest |= parity.differences("", given, wanted, floats, None)
    return min(_FACTOR * largest.relative, _MOST)


def _compared(expected: Reference) -> Iterator[tuple[Arrays, Arrays, Probe | None]]:
    """Yield the batches on which values are compared: examples, zeros, large values."""
    yield *expected.cases[0], None
    for probe in expected.probes:
        if probe.compared and not probe.cleaned:
            for batch, wanted in probe.cases:
                yield batch, wanted, probe


def _moved(weight: keras.Variable, rng: np.random.Generator) -> Any:
    values = keras.ops.convert_to_numpy(weight)
    signs = rng.integers(0, 2, values.shape, "int8") * 2 - 1
    return keras.ops.convert_to_tensor(
        values + (np.spacing(np.abs(values)) * signs).astype(values.dtype)
    )


def _is_float(dtype: Any) -> bool:
    """Return whether NumPy can compute the unit in the last place of a dtype."""
    return keras.backend.standardize_dtype(dtype) in ("float32", "float64")
