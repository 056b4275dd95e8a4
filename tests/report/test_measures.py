"""Measures of a comparison against scikit-learn and Keras."""

import keras
import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from keras_distill.report import compare, resampling
from keras_distill.report.resampling import Resamples, means
from tests.report.models import Answering, numbers

ROWS, CLASSES = 400, 12
RNG = np.random.default_rng(0)
LOGITS = {name: 2.0 * RNG.normal(size=(ROWS, CLASSES)) for name in ("a", "b")}
IDS = RNG.integers(CLASSES, size=ROWS)
CLICKS = RNG.integers(2, size=ROWS)


def report(tables, labels, **kwargs):
    models = {name: Answering(table) for name, table in tables.items()}
    given = {"batch_sizes": (), "resamples": 200, **kwargs}
    return compare(models, (numbers(len(labels)), labels), **given).outputs[""]


def values(found, name):
    return {key: it.value for key, it in found.measures[name].items()}


def test_classes():
    found = values(report(LOGITS, IDS, teacher="a"), "b")
    probabilities = scipy.special.softmax(LOGITS["b"], axis=-1)
    top_5 = sklearn.metrics.top_k_accuracy_score(IDS, probabilities, k=5)
    one_hot = np.eye(CLASSES)[IDS]
    of_teacher = scipy.special.softmax(LOGITS["a"], axis=-1)
    expected = {
        "accuracy": np.mean(probabilities.argmax(-1) == IDS),
        "top_5": top_5,
        "nll": sklearn.metrics.log_loss(IDS, probabilities),
        "brier": np.square(probabilities - one_hot).sum(-1).mean(),
        "agreement": np.mean(LOGITS["a"].argmax(-1) == LOGITS["b"].argmax(-1)),
        "kl": scipy.special.rel_entr(of_teacher, probabilities).sum(-1).mean(),
        "ece": calibration_error(
            probabilities.max(-1), probabilities.argmax(-1) == IDS
        ),
    }
    assert found == pytest.approx(expected, rel=1e-4)


def test_confusions():
    found = report(LOGITS, IDS, baseline="a").confusions
    of_a, of_b = (
        sklearn.metrics.confusion_matrix(
            IDS, LOGITS[name].argmax(-1), labels=range(CLASSES), normalize="true"
        )
        for name in "ab"
    )
    assert set(found) == set(LOGITS) - {"a"}
    np.testing.assert_allclose(found["b"], of_b - of_a, atol=1e-12)


def calibration_error(predicted, came_true):
    bins = np.digitize(predicted, np.linspace(0.0, 1.0, 16)[1:-1], right=True)
    return sum(
        np.mean(bins == bin) * abs(np.mean((predicted - came_true)[bins == bin]))
        for bin in range(15)
        if np.any(bins == bin)
    )


@pytest.mark.parametrize("is_probability", [False, True])
def test_binary(is_probability):
    logits = {name: np.round(table[:, :1], 1) for name, table in LOGITS.items()}
    probabilities = {name: scipy.special.expit(it) for name, it in logits.items()}
    given = probabilities if is_probability else logits
    found = values(report(given, CLICKS), "b")
    positive = probabilities["b"][:, 0]
    expected = {
        "auc": sklearn.metrics.roc_auc_score(CLICKS, positive),  # with ties
        "accuracy": np.mean((positive > 0.5) == CLICKS),
        "nll": sklearn.metrics.log_loss(CLICKS, positive),
        "brier": sklearn.metrics.brier_score_loss(CLICKS, positive),
        "ece": calibration_error(positive, CLICKS),
        "predicted_to_observed": positive.mean() / CLICKS.mean(),
    }
    assert found == pytest.approx(expected, rel=1e-4)


def test_several_labels():
    labels = RNG.integers(2, size=(ROWS, CLASSES))
    found = values(report(LOGITS, labels), "b")
    probabilities = scipy.special.expit(LOGITS["b"])
    nll = keras.losses.BinaryCrossentropy()(labels, probabilities)
    assert found["nll"] == pytest.approx(float(nll), rel=1e-4)
    assert found["accuracy"] == pytest.approx(np.mean((probabilities > 0.5) == labels))


def test_regression():
    labels = LOGITS["a"] + RNG.normal(size=(ROWS, CLASSES))
    found = values(report(LOGITS, labels, teacher="a"), "b")
    expected = {
        "mse": sklearn.metrics.mean_squared_error(labels, LOGITS["b"]),
        "mae": sklearn.metrics.mean_absolute_error(labels, LOGITS["b"]),
        "mse_to_teacher": np.square(LOGITS["b"] - LOGITS["a"]).mean(),
    }
    assert found == pytest.approx(expected, rel=1e-4)


def test_labels_in_all_forms():
    forms = [IDS, IDS[:, None], np.eye(CLASSES)[IDS], IDS.astype("float32")]
    found = [values(report(LOGITS, labels), "b") for labels in forms]
    assert all(each == found[0] for each in found)


def test_an_interval_covers_the_truth():
    """Of 95 % intervals of a mean, about 95 % cover it."""
    resamples, covered = Resamples(200, count=1000), 0
    for seed in range(400):
        right = np.random.default_rng(seed).random(200) < 0.7
        drawn = means(resamples, {"right": right})["right"]
        _, low, high = resamples.interval(right.mean(), drawn)
        covered += low <= 0.7 <= high
    assert covered / 400 == pytest.approx(0.95, abs=2 * np.sqrt(0.05 * 0.95 / 400))


def test_pieces_of_a_large_resampling_make_the_whole(monkeypatch):
    columns = {"a": RNG.normal(size=300), "b": 1e6 + RNG.normal(size=300)}
    whole = means(Resamples(300, count=50), columns)
    monkeypatch.setattr(resampling, "_KEPT", 0)
    monkeypatch.setattr(resampling, "_AT_ONCE", 1000)
    pieces = means(Resamples(300, count=50), columns)
    for name, values in columns.items():
        assert np.allclose(whole[name], pieces[name], rtol=1e-6)
        assert whole[name].std() == pytest.approx(values.std() / 300**0.5, rel=0.3)


def test_the_same_seed_gives_the_same_report():
    found = [report(LOGITS, IDS, seed=3).measures for _ in range(2)]
    assert found[0] == found[1]
    assert report(LOGITS, IDS, seed=4).measures != found[0]
