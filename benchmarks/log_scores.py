"""Scores of predictions on a log, and intervals of their differences."""

from collections.abc import Sequence
from typing import NamedTuple

import keras_rs
import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

import keras_distill as kd

Array = np.ndarray
SCORES = ("AUC", "group AUC", "NDCG@5", "log-loss", "pred/obs", "ECE")


class Interval(NamedTuple):
    """A mean difference with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the mean and the interval, with a star where it excludes zero."""
        star = "*" if self.low > 0 or self.high < 0 else " "
        return f"{self.mean:+.4f}{star}[{self.low:+.4f}, {self.high:+.4f}]"


def scores(y: Array, p: Array, cluster: Array, lists: Array) -> dict[str, float]:
    """Return all scores of a model.

    Args:
        y: Labels, 0 or 1, of shape (rows,), as are all arguments.
        p: Probabilities.
        cluster: Within which the group AUC ranks: a user, or a day.
        lists: Within which NDCG ranks. Lists of one label are left out.
    """
    mixed = np.bincount(lists, y) * np.bincount(lists, 1.0 - y) > 0
    kept = mixed[lists]
    labels, predicted, mask = kd.metrics.by_group(lists[kept], y[kept], p[kept])
    ndcg = keras_rs.metrics.NDCG(k=5, seed=0)  # which orders equal predictions
    ndcg.update_state({"labels": labels, "mask": mask}, predicted)
    calibration = kd.metrics.ExpectedCalibrationError()
    calibration.update_state(y, p)
    values = (
        roc_auc_score(y, p),
        kd.metrics.group_auc(y, p, cluster),
        float(ndcg.result()),
        log_loss(y, p),
        p.mean() / y.mean(),
        float(calibration.result()),
    )
    return dict(zip(SCORES, map(float, values), strict=True))


class Bootstrap:
    """Resamples of whole clusters and of seeds, the same for all models.

    Rows of one user, or of one day, are alike: rows drawn one by one would give
    intervals that are too narrow.

    Args:
        y: Labels, 0 or 1, of shape (rows,).
        cluster: The cluster of each row, of shape (rows,).
        seeds: The number of seeds that each model was trained with.
        count: The number of resamples.
    """

    def __init__(self, y: Array, cluster: Array, seeds: int, count: int = 500) -> None:
        generator = np.random.default_rng(0)
        number = np.unique(cluster, return_inverse=True)[1]
        clusters = number.max() + 1
        even = np.full(clusters, 1.0 / clusters)
        # The first "resample" is the data as they are.
        drawn = [np.ones(clusters), *generator.multinomial(clusters, even, count)]
        self.y = y.astype("float64")
        self.weights = [counts.astype("float32")[number] for counts in drawn]
        times = generator.multinomial(seeds, np.full(seeds, 1.0 / seeds), count)
        self.seeds = np.vstack([np.ones(seeds), times]) / seeds

    def auc(self, predictions: Sequence[Array]) -> Array:
        """Return the AUC, mean over seeds, of each resample."""
        by_seed = []
        for p in predictions:
            order = np.argsort(p, kind="stable")
            by_seed.append([_auc(self.y[order], w[order]) for w in self.weights])
        return (self.seeds * np.transpose(by_seed)).sum(axis=1)

    def log_loss(self, predictions: Sequence[Array]) -> Array:
        """Return the log-loss, mean over seeds, of each resample."""
        by_seed = []
        for p in predictions:
            loss = -np.log(np.where(self.y == 1, p, 1.0 - p))
            by_seed.append([np.average(loss, weights=w) for w in self.weights])
        return (self.seeds * np.transpose(by_seed)).sum(axis=1)


def difference(ours: Array, others: Array) -> Interval:
    """Return a paired difference of resampled scores; the first is that of the data."""
    values = ours - others
    low, high = np.percentile(values[1:], [2.5, 97.5])
    return Interval(float(values[0]), float(low), float(high))


def _auc(y: Array, weight: Array) -> float:
    """Return the AUC of rows that are in the order of their predictions."""
    positive, negative = weight * y, weight * (1.0 - y)
    below = np.cumsum(negative) - negative / 2.0
    return float(positive @ below / (positive.sum() * negative.sum()))
