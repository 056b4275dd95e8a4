"""Bootstrap intervals of measures and of their differences between models."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

BETTER, NO_DIFFERENCE, WORSE = "better", "no difference shown", "worse"
# The most counts that are drawn at once, and the most that are kept for another use.
_AT_ONCE, _KEPT = 2**24, 2**26


class Interval(NamedTuple):
    """A measure with the interval that its resamples lie in.

    Args:
        value: The measure on the data as they are.
        low: The lower end of the interval.
        high: The upper end.
    """

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A model's measure minus that of the baseline, on the same rows.

    Args:
        interval: The difference with its interval.
        p: The probability of a difference at least as large, of either sign, if the
            models are equal.
        verdict: "better", "worse", or "no difference shown".
    """

    interval: Interval
    p: float
    verdict: str


class Resamples:
    """Resampled data sets: how often each row is in each of them.

    All measures of all models are computed on the same resamples, so that differences
    between models are paired.

    Args:
        rows: The number of rows.
        count: The number of resamples.
        seed: Seed of the generator.
        confidence: The share of the resamples that an interval covers.
    """

    def __init__(
        self, rows: int, *, count: int = 2000, seed: int = 0, confidence: float = 0.95
    ) -> None:
        self.rows, self.count, self.confidence = rows, count, confidence
        self._seed = seed
        self._kept: list[npt.NDArray[np.float32]] = []

    def weights(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield the counts of rows, in pieces of shape `(resamples, rows)`.

        Each call yields the same counts.
        """
        if self.count * self.rows > _KEPT:
            yield from self._drawn()
            return
        self._kept = self._kept or list(self._drawn())
        yield from self._kept

    def _drawn(self) -> Iterator[npt.NDArray[np.float32]]:
        generator = np.random.default_rng(self._seed)
        size = max(1, _AT_ONCE // self.rows)
        for begin in range(0, self.count, size):
            resamples = min(size, self.count - begin)
            counts = np.empty((resamples, self.rows), "float32")
            # A single resample fits the cache, which halves the time of the loop.
            for index in range(resamples):
                drawn = generator.integers(self.rows, size=self.rows, dtype="int32")
                counts[index] = np.bincount(drawn, minlength=self.rows)
            yield counts

    def interval(self, value: float, resampled: Array) -> Interval:
        """Return a value with the percentiles of its resamples."""
        finite = resampled[np.isfinite(resampled)]
        if not len(finite) or not np.isfinite(value):
            return Interval(value, np.nan, np.nan)
        tail = 50.0 * (1.0 - self.confidence)
        low, high = np.percentile(finite, [tail, 100.0 - tail])
        return Interval(float(value), float(low), float(high))

    def difference(
        self,
        value: float,
        resampled: Array,
        *,
        is_better: int,
        rows: Array | None = None,
    ) -> Difference:
        """Return a difference with its interval, test and verdict.

        Args:
            value: The difference on the data as they are.
            resampled: The differences on the resamples.
            is_better: 1 if more is better, -1 if less is better, 0 if neither is.
            rows: The difference of each row, if the measure is a mean over rows. The
                test then uses these differences, otherwise the resamples.
        """
        interval = self.interval(value, resampled)
        p = _of_resamples(resampled) if rows is None else _of_rows(rows)
        outside = interval.low > 0.0 or interval.high < 0.0
        verdict = NO_DIFFERENCE
        # If few rows differ, the interval alone finds too many differences.
        if is_better and outside and p < 1.0 - self.confidence:
            verdict = BETTER if np.sign(value) == is_better else WORSE
        return Difference(interval, p, verdict)


def means(resamples: Resamples, columns: Mapping[Any, Array]) -> dict[Any, Array]:
    """Return the means of columns of row values on each resample."""
    if not columns:
        return {}
    stacked = np.stack(list(columns.values()), axis=1).astype("float32")
    # In float32, a mean of large values would lose the differences between models.
    centre = stacked.mean(axis=0, dtype="float64").astype("float32")
    found = [weights @ (stacked - centre) for weights in resamples.weights()]
    values = np.concatenate(found).astype("float64") / resamples.rows + centre
    return dict(zip(columns, values.T, strict=True))


def _of_rows(rows: Array) -> float:
    """Return the p-value of a paired test on differences of rows."""
    from scipy import stats

    changed = rows[rows != 0.0]
    if not len(changed):
        return 1.0
    sizes = np.abs(changed)
    if np.allclose(sizes, sizes[0]):
        # McNemar's test with the mid-p-value: the exact test finds too few differences
        # (Fagerland, Lydersen, Laake 2013, doi:10.1186/1471-2288-13-91).
        fewer = min(np.sum(changed > 0), np.sum(changed < 0))
        coin = stats.binom(len(changed), 0.5)
        return float(min(1.0, 2.0 * coin.cdf(fewer) - coin.pmf(fewer)))
    return float(stats.ttest_1samp(rows, 0.0).pvalue)


def _of_resamples(resampled: Array) -> float:
    """Return the p-value from how many resamples lie on either side of zero."""
    finite = resampled[np.isfinite(resampled)]
    if not len(finite):
        return float("nan")
    beyond = min(np.sum(finite <= 0.0), np.sum(finite >= 0.0))
    return float(min(1.0, 2.0 * (beyond + 1) / (len(finite) + 1)))
