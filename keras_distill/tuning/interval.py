"""Intervals of the gain of one setting over another, also for repeated looks at it."""

import dataclasses
from typing import Any

import numpy as np

from keras_distill.installing import advice


@dataclasses.dataclass(frozen=True)
class Gain:
    """The mean gain over seeds and rows, with its interval.

    Args:
        mean: The mean gain. It is positive if distillation is better.
        low: The lower end of the interval.
        high: The upper end of the interval.
        seeds: The number of seeds.

    Example:
        >>> Gain(mean=0.02, low=0.01, high=0.03, seeds=5).verdict
        'helps'
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """`"helps"` for an interval above 0, `"hurts"` below, or `"no gain shown"`."""
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "no gain shown"


def looks(seeds: int, max_seeds: int) -> list[tuple[int, float]]:
    """Return the numbers of seeds at which to look, each with its share of the error.

    At each of these numbers of seeds, the gain and its interval are computed. The
    number doubles from look to look. The shares are in proportion to the numbers of
    seeds and sum to 1, so by Bonferroni's inequality all intervals hold at once.

    >>> looks(5, 10)
    [(5, 0.3333333333333333), (10, 0.6666666666666666)]
    """
    counts = [seeds]
    while counts[-1] < max_seeds:
        counts.append(min(2 * counts[-1], max_seeds))
    return [(count, count / sum(counts)) for count in counts]


def gain(differences: Any, *, error: float = 0.05) -> Gain:
    r"""Return the mean of paired differences, with its interval.

    The interval is
    `mean +- t * sqrt(seeds' variance + rows' variance - variance of both)`, where `t`
    is a quantile of Student's distribution with
    `min(number of seeds, number of blocks) - 1` degrees of freedom. Each variance is
    that of a mean: over seeds, over blocks of rows, and over all values. The sum under
    the root is at least the larger one of the first two. So the interval holds for
    other seeds and for other rows of the same kind.

    Args:
        differences: Distilled minus alone, of shape `(seeds, blocks)`. Each block is a
            part of the rows. With one block, the interval is over seeds only.
        error: The probability that the true gain is outside of the interval. Defaults
            to 0.05.

    Returns:
        The gain.

    Raises:
        ImportError: If SciPy isn't installed.
        ValueError: If `differences` doesn't have two dimensions, has fewer than two
            seeds, or has a value that isn't finite.

    Example:
        >>> gain([[0.02], [0.03], [0.025], [0.02]]).verdict
        'helps'

    Reference:
        Cameron, Gelbach, Miller 2011, "Robust Inference with Multiway Clustering",
        https://doi.org/10.1198/jbes.2010.07136.
    """
    values = np.asarray(differences, "float64")
    if values.ndim != 2 or len(values) < 2 or not values.shape[1]:
        raise ValueError(
            "`differences` must have the shape (seeds, blocks), with 2 or more seeds. "
            f"Received: differences of shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise ValueError(f"`differences` must be finite. Received: {values}")
    seeds, blocks = values.shape
    variance = values.mean(axis=1).var(ddof=1) / seeds
    freedom = seeds - 1
    if blocks > 1:
        of_rows = values.mean(axis=0).var(ddof=1) / blocks
        both = values.var(ddof=1) / values.size
        variance = max(variance + of_rows - both, variance, of_rows)
        freedom = min(seeds, blocks) - 1
    half = quantile(1 - error / 2, freedom) * float(np.sqrt(variance))
    mean = float(values.mean())
    return Gain(mean, mean - half, mean + half, seeds)


def quantile(probability: float, freedom: int) -> float:
    """Return a quantile of Student's distribution.

    Raises:
        ImportError: If SciPy isn't installed.
    """
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            "Intervals of a gain need SciPy, which isn't installed. Install it with "
            f"{advice('tuning')}."
        ) from error
    return float(stats.t.ppf(probability, freedom))
