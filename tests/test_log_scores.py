"""The benchmarks' scores of logs, and that their intervals respect clusters."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests.scripts import imported


@pytest.fixture(scope="module")
def log_scores():
    with imported("benchmarks/log_scores.py") as module:
        yield module


@pytest.fixture(scope="module")
def log():
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(40), 25)
    # Rows of a user are alike, in the label and in what is predicted.
    level = rng.normal(size=40)[user]
    y = (level + rng.normal(size=1000) > 0).astype("float32")
    seeds = [1 / (1 + np.exp(-level - 0.1 * rng.normal(size=1000))) for _ in range(3)]
    return user, y, seeds


def test_the_first_resample_is_the_data(log_scores, log):
    user, y, seeds = log
    resamples = log_scores.Bootstrap(y, user, seeds=3, count=5)
    expected = np.mean([roc_auc_score(y, p) for p in seeds])
    np.testing.assert_allclose(resamples.auc(seeds)[0], expected, rtol=1e-9)
    expected = np.mean([log_loss(y, p) for p in seeds])
    np.testing.assert_allclose(resamples.log_loss(seeds)[0], expected, rtol=1e-5)


def test_a_resample_is_the_score_of_the_rows_that_were_drawn(log_scores, log):
    user, y, seeds = log
    resamples = log_scores.Bootstrap(y, user, seeds=1, count=3)
    drawn = np.repeat(np.arange(1000), resamples.weights[2].astype(int))
    assert len(np.unique(user[drawn])) < 40
    expected = roc_auc_score(y[drawn], seeds[0][drawn])
    np.testing.assert_allclose(resamples.auc(seeds[:1])[2], expected, rtol=1e-9)


def test_clusters_make_intervals_wider(log_scores, log):
    user, y, seeds = log
    flat = np.full(1000, 0.5)

    def width(cluster):
        resamples = log_scores.Bootstrap(y, cluster, seeds=3, count=200)
        gain = log_scores.difference(
            resamples.log_loss(seeds), resamples.log_loss([flat] * 3)
        )
        assert gain.low < gain.mean < gain.high < 0
        assert "*" in str(gain)
        return gain.high - gain.low

    assert width(user) > 1.5 * width(np.arange(1000))


def test_scores_of_a_log(log_scores, log):
    user, y, seeds = log
    found = log_scores.scores(y, seeds[0], user, user)
    assert tuple(found) == log_scores.SCORES
    assert all(np.isfinite(value) for value in found.values())
    np.testing.assert_allclose(found["AUC"], roc_auc_score(y, seeds[0]))
