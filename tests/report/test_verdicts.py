"""Verdicts are honest: they find what is there, and nothing where nothing is."""

import numpy as np
import pytest

from keras_distill.report import tasks
from keras_distill.report.measuring import Answers, measured
from keras_distill.report.resampling import NO_DIFFERENCE, Resamples

ROWS, TIMES = 500, 200
# 5 % and two standard errors of a part of 200.
# The same for all data sets, which are drawn independently of it.
RESAMPLES = Resamples(ROWS, count=1000)
AT_MOST = 0.05 + 2 * np.sqrt(0.05 * 0.95 / TIMES)


def accuracy(rng, better):
    """Two classifiers of which 80 % is right, half of the mistakes in common."""
    common = rng.random(ROWS)
    labels = rng.integers(3, size=ROWS)
    tables = []
    for gain in (0.0, better * 2.55 * np.sqrt(0.2 / ROWS)):
        wrong = (common < 0.1) | (rng.random(ROWS) < 0.1111 - gain)
        answers = np.where(wrong, (labels + 1) % 3, labels)
        tables.append(4.0 * np.eye(3)[answers] + rng.normal(size=(ROWS, 3)) / 10)
    return "classes", labels, tables


def auc(rng, better):
    """Two scores of clicks with as much noise each, of which a part is common."""
    labels = (rng.random((ROWS, 1)) < 0.3).astype("float64")
    common = rng.normal(size=(ROWS, 1))
    tables = [
        (1.0 + gain) * labels + common + rng.normal(size=(ROWS, 1))
        for gain in (0.0, better * 0.425)
    ]
    return "binary", labels, tables


def mse(rng, better):
    """Two predictions whose errors have heavy tails."""
    labels = rng.normal(size=(ROWS, 1))
    tables = [
        labels + np.sqrt(scale) * rng.laplace(size=(ROWS, 1))
        for scale in (1.0, 1.0 - better * 0.36)
    ]
    return "regression", labels, tables


def verdict(simulated, seed, better):
    kind, labels, tables = simulated(np.random.default_rng(seed), better)
    answers = {}
    for name, table in zip("ab", tables, strict=True):
        log_probs = None
        if kind != "regression":
            log_probs = tasks.log_probabilities(table, kind, True)
        answers[name] = Answers(table, log_probs)
    found = measured(
        answers,
        labels,
        kind,
        RESAMPLES,
        baseline="a",
        teacher=None,
        primary=tasks.PRIMARY[kind],
    )
    return found.differences["b"][found.primary]


@pytest.mark.parametrize("simulated", [accuracy, auc, mse])
def test_where_there_is_no_difference(simulated):
    found = [verdict(simulated, seed, 0.0).verdict for seed in range(TIMES)]
    assert np.mean([each != NO_DIFFERENCE for each in found]) <= AT_MOST


@pytest.mark.parametrize("simulated", [accuracy, auc, mse])
def test_where_there_is_one_of_three_standard_errors(simulated):
    found = [verdict(simulated, 1000 + seed, 1.0) for seed in range(TIMES)]
    differences = np.array([each.interval.value for each in found])
    # That the simulated difference is of this size, not of a larger one.
    assert abs(differences.mean()) / differences.std() == pytest.approx(3.0, abs=0.2)
    assert np.mean([each.verdict == "better" for each in found]) >= 0.8
