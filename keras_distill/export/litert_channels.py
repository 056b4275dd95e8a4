"""Statistics of the channels of a LiteRT file's tensors on calibration data."""

from collections.abc import Iterable

import numpy as np

from keras_distill.export.litert_graphs import Array, Samples, computed_values


class Channels:
    """Statistics of the values of each channel of a tensor in calibration."""

    def __init__(self) -> None:
        self.low: Array = np.full((), np.inf)
        self.high: Array = np.full((), -np.inf)
        self._sum: Array = np.zeros(())
        self._squares: Array = np.zeros(())
        self._count = 0

    def add(self, values: Array) -> None:
        """Add the values of a batch, with channels along the last axis."""
        rows = values.reshape(-1, values.shape[-1]).astype(np.float64)
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))
        self._sum = self._sum + rows.sum(axis=0)
        self._squares = self._squares + np.square(rows).sum(axis=0)
        self._count += len(rows)

    @property
    def largest(self) -> Array:
        """The largest absolute values."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def power(self) -> Array:
        """The means of the squares."""
        return self._squares / self._count

    @property
    def variance(self) -> Array:
        """The variances."""
        return self.power - np.square(self._sum / self._count)


def channels_of(
    file: bytes, samples: Samples, tensors: Iterable[int]
) -> dict[int, Channels]:
    """Return the statistics of tensors' channels.

    Args:
        file: A model, in floats or integers.
        samples: Makes the calibration data.
        tensors: The indices of the tensors.
    """
    found = {index: Channels() for index in tensors}
    for index, values in computed_values(file, samples, found):
        found[index].add(values)
    return found
