"""The recommender's example: its log is what it says, and both data sets go through."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import keras_distill as kd

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def examples():
    sys.path.insert(0, str(EXAMPLES))
    import click_log
    import privileged_recommender

    yield click_log, privileged_recommender
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def log(examples):
    return examples[0].generate(200_000, seed=3)


def test_the_log_is_drawn_from_its_seed(examples, log):
    again = examples[0].generate(200_000, seed=3)
    for name, column in log.x.items():
        np.testing.assert_array_equal(column, again.x[name])
    other = examples[0].generate(200_000, seed=4)
    assert (log.x["item"] != other.x["item"]).mean() > 0.9


def test_the_truth_is_the_probability_of_a_purchase_given_a_click(log):
    clicked = log.y["click"].ravel() == 1
    truth, buy = log.truth[clicked].ravel(), log.y["buy"][clicked].ravel()
    for fold in np.array_split(np.argsort(truth), 5):
        error = (truth[fold] * (1 - truth[fold])).sum() ** 0.5 / len(fold)
        assert abs(truth[fold].mean() - buy[fold].mean()) < 4 * error


def test_dwell_mediates_all_that_the_truth_says_of_purchases(log):
    clicked = log.y["click"].ravel() == 1
    dwell, buy = log.x["dwell"][clicked].ravel(), log.y["buy"][clicked].ravel()
    residual = buy - 1.0 / (1.0 + np.exp(6.5 - dwell))
    assert abs(residual.mean()) < 4 * residual.std() / len(residual) ** 0.5
    left = np.corrcoef(residual, log.truth[clicked].ravel())[0, 1]
    assert abs(left) < 4 / len(residual) ** 0.5


def test_nothing_is_bought_or_stayed_on_without_a_click(log):
    unclicked = log.y["click"].ravel() == 0
    assert log.y["buy"][unclicked].sum() == 0
    assert (log.x["dwell"][unclicked] == 0).all()


def test_higher_positions_are_clicked_more(log):
    by_position = [
        log.y["click"][log.x["position"] == position].mean() for position in (1, 3, 10)
    ]
    assert by_position == sorted(by_position, reverse=True)


def test_the_history_holds_earlier_clicks_the_latest_first(log):
    user = log.x["user"].ravel()
    rows = np.flatnonzero(user == user[0])
    clicks = [log.x["item"][row, 0] for row in rows if log.y["click"][row, 0] == 1]
    before_last = clicks[:-1] if log.y["click"][rows[-1], 0] == 1 else clicks
    held = log.x["history"][rows[-1]]
    np.testing.assert_array_equal(held, before_last[::-1][:10])
    assert not log.x["history"][rows[0]].any()


def test_a_part_of_the_log_comes_before_the_other(log):
    first, later = log.split(0.9)
    assert len(first.x["user"]) == 180_000
    assert len(later.truth) == 20_000
    np.testing.assert_array_equal(later.x["history"], log.x["history"][180_000:])


def test_the_models_share_items_and_categories_but_no_users(examples, log):
    click_log, recommender = examples
    student, teacher = recommender.build(log, click_log.PRIVILEGED)
    shared = {layer.name for layer in student.layers} & {
        layer.name for layer in teacher.layers if layer in student.layers
    }
    assert {"items", "categories"} <= shared
    assert not any("users" in name for name in shared)


def movielens_like(self, *args, **kwargs):
    """What TensorFlow Datasets would read: three users who rate for a while."""
    rng = np.random.default_rng(0)
    rows = 300
    return tf.data.Dataset.from_tensor_slices(
        {
            "user_id": rng.integers(1, 4, rows).astype(str),
            "movie_id": rng.integers(1, 30, rows).astype(str),
            "movie_genres": rng.integers(0, 20, (rows, 2)),
            "timestamp": np.sort(rng.integers(0, 100_000, rows))[::-1].copy(),
            "user_rating": rng.integers(1, 6, rows).astype("float32"),
        }
    )


def test_movielens_goes_the_same_way(examples):
    click_log, recommender = examples
    with tfds.testing.mock_data(as_dataset_fn=movielens_like):
        log = click_log.movielens("100k")
    drawn = click_log.generate(1000, seed=0)
    for name, column in log.x.items():
        assert column.shape == (300, *drawn.x[name].shape[1:])
        assert column.dtype == drawn.x[name].dtype
    assert (log.y["buy"] <= log.y["click"]).all()
    seconds = np.expm1(log.x["dwell"][log.y["click"] == 1])
    assert seconds.min() >= 0
    assert seconds.max() <= 3600.5
    student, teacher = recommender.train(log, "privileged", seed=0)
    scores = recommender.measure(student, log)
    assert all(np.isfinite(value) for value in scores.values())


def test_movielens_as_its_own_mock_data_give_it(examples):
    with tfds.testing.mock_data(num_examples=50):
        log = examples[0].movielens("100k")
    assert len(log.y["click"]) == 50


def test_the_served_student_asks_for_nothing_privileged(examples, log, tmp_path):
    click_log, recommender = examples
    student, _ = recommender.build(log, click_log.PRIVILEGED)
    batch = {name: log.x[name][:16] for name in recommender.IDS}
    served = tmp_path / "student"
    kd.export.export(student, served, formats=("onnx",), example_batch=batch)
    session = onnxruntime.InferenceSession(served / "model.onnx")
    assert {tensor.name for tensor in session.get_inputs()} == set(recommender.IDS)
    manifest = json.loads((served / "manifest.json").read_text())
    assert not any(name in json.dumps(manifest) for name in click_log.PRIVILEGED)
    buy = session.run(["buy"], batch)[0]
    np.testing.assert_allclose(
        buy, student.predict(batch, verbose=0)["buy"], rtol=1e-4, atol=1e-5
    )
