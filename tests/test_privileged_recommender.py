"""The recommender's example: its logs are what it says, and all of them go through."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import keras_distill as kd
from tests.scripts import ROOT, imported


@pytest.fixture(scope="module")
def examples():
    with imported("examples/privileged_recommender.py") as module:
        yield module.click_log, module


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
    student, teacher = recommender.build(log, log.privileged)
    shared = {layer.name for layer in student.layers} & {
        layer.name for layer in teacher.layers if layer in student.layers
    }
    assert {"items", "category_embedding"} <= shared
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
    scores = recommender.measure(recommender.predict(student, log), log)
    assert all(np.isfinite(value) for value in scores.values())


def test_movielens_as_its_own_mock_data_give_it(examples):
    with tfds.testing.mock_data(num_examples=50):
        log = examples[0].movielens("100k")
    assert len(log.y["click"]) == 50


AFTERWARDS = {
    "is_follow",
    "is_comment",
    "is_forward",
    "is_profile_enter",
    "comment_stay_time",
}
DAYS = range(20220408, 20220422)


def write_kuairand(directory, rows=600):
    """Write a table like KuaiRand's, its rows not in order of time; return it."""
    rng = np.random.default_rng(0)
    second = rng.permutation(rows) // 3  # three rows are shown at once
    day = np.array(DAYS)[second * len(DAYS) // (rows // 3)]
    click = rng.integers(0, 2, rows)
    table = {
        "user_id": 100 + second % 7,
        "video_id": rng.integers(0, 90, rows) ** 2,
        "date": day,
        "hourmin": 100 * rng.integers(0, 24, rows),
        "time_ms": 1_649_000_000_000 + 1000 * second,
        "is_click": click,
        **{name: rng.integers(0, 2, rows) for name in sorted(AFTERWARDS)},
        "long_view": rng.integers(0, 2, rows),
        "play_time_ms": 9000 * click,
        "duration_ms": rng.integers(0, 5, rows) * 4000,
        "label": rng.integers(0, 2, rows),
        "timestamp": np.full(rows, "2022-04-10 08:59:09"),
    }
    lines = ["\t".join(table)]
    lines += ["\t".join(map(str, row)) for row in zip(*table.values(), strict=True)]
    with gzip.open(directory / "processed_standard_kcore_15.tsv.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    order = np.argsort(table["time_ms"], kind="stable")
    return {name: column[order] for name, column in table.items()}


@pytest.fixture(scope="module")
def kuairand(examples, tmp_path_factory):
    directory = tmp_path_factory.mktemp("kuairand")
    table = write_kuairand(directory)
    return directory, table, examples[0].kuairand(directory, withheld=0.0)


def test_kuairand_is_a_log_of_the_same_shape(examples, kuairand):
    _, table, log = kuairand
    drawn = examples[0].generate(1000, seed=0)
    for name in ("user", "item", "category", "history"):
        assert log.x[name].shape == (600, *drawn.x[name].shape[1:])
        assert log.x[name].dtype == drawn.x[name].dtype
    assert log.known == ("user", "item", "category", "hour", "history")
    np.testing.assert_array_equal(log.y["click"].ravel(), table["is_click"])
    both = table["is_click"] & table["long_view"]
    np.testing.assert_array_equal(log.y["buy"].ravel(), both)
    np.testing.assert_array_equal(log.day, table["date"])
    unknown = table["duration_ms"] == 0
    np.testing.assert_array_equal(log.x["category"].ravel() == 1, unknown)


def test_only_a_teacher_reads_what_the_user_did_afterwards(examples, kuairand):
    directory, table, log = kuairand
    assert set(log.hidden) == AFTERWARDS
    assert {task: set(names) for task, names in log.privileged.items()} == {
        "click": AFTERWARDS,
        "buy": AFTERWARDS,
    }
    assert not {"label", "long_view", "play_time_ms"} & set(log.x)
    leaky = examples[0].kuairand(directory, leak=True)
    assert set(leaky.hidden) == AFTERWARDS | {"play_time_ms"}
    assert leaky.known == log.known
    stayed = np.log1p(table["comment_stay_time"])
    np.testing.assert_allclose(log.x["comment_stay_time"].ravel(), stayed, rtol=1e-6)


def test_ids_are_those_of_training_rows(examples, kuairand):
    directory, table, log = kuairand
    for test_from, read in (
        (20220418, log),
        (
            20220412,
            examples[0].kuairand(directory, test_from=20220412, withheld=0.0),
        ),
    ):
        seen = table["video_id"][table["date"] < test_from]
        often = [(seen == video).sum() >= 2 for video in table["video_id"]]
        np.testing.assert_array_equal(read.x["item"].ravel() > 1, often)
        pairs = np.unique([table["video_id"], read.x["item"].ravel()], axis=1)
        assert len(np.unique(pairs[0])) == pairs.shape[1]
    train, test = log.split_at(20220418)
    assert train.day.max() < 20220418 <= test.day.min()
    assert train.size + test.size == 600


def test_items_of_some_training_rows_are_withheld(examples, kuairand):
    directory, table, whole = kuairand
    log = examples[0].kuairand(directory)
    moved = (log.x["item"] != whole.x["item"]).ravel()
    assert (log.x["item"][moved] == 1).all()
    training = table["date"] < 20220418
    assert not moved[~training].any() and 0.2 < moved[training].mean() < 0.4
    for name in set(log.x) - {"item"}:
        np.testing.assert_array_equal(log.x[name], whole.x[name])


def test_a_click_is_not_in_the_history_of_what_was_shown_with_it(kuairand):
    _, table, log = kuairand
    for row in range(0, 600, 17):
        earlier = table["time_ms"] < table["time_ms"][row]
        same = table["user_id"] == table["user_id"][row]
        clicked = np.flatnonzero(earlier & same & (table["is_click"] == 1))
        expected = log.x["item"].ravel()[clicked[::-1][:10]]
        held = log.x["history"][row]
        np.testing.assert_array_equal(held[held > 0], expected)


def test_a_missing_log_is_named(examples, tmp_path):
    with pytest.raises(FileNotFoundError, match="processed_standard_kcore_15"):
        examples[0].kuairand(tmp_path)


def test_kuairand_as_published(examples):
    root = Path(os.environ.get("KERAS_DISTILL_DATA", ROOT.parent / "shared"))
    directory = root / "data" / "kuairand"
    if not directory.exists():
        pytest.skip(f"KuaiRand isn't in {directory}: set KERAS_DISTILL_DATA")
    train, test = examples[0].kuairand(directory).split_at(20220418)
    assert (train.size, test.size) == (33_485, 8_343)
    assert abs(train.y["click"].mean() - 0.656) < 0.001
    assert (test.x["item"] == 1).mean() > 0.5  # videos that training rows lack


def test_a_student_of_kuairand_is_served_without_its_teachers_columns(
    examples, kuairand, tmp_path
):
    _, recommender = examples
    train, test = kuairand[2].split_at(20220418)
    student, teacher = recommender.train(train, "privileged", 0, (64, 1, 1e-2))
    assert set(teacher.input) == set(train.x)
    batch = {name: test.x[name][:16] for name in test.known}
    kd.export.export(
        student, tmp_path / "student", formats=("onnx",), example_batch=batch
    )
    session = onnxruntime.InferenceSession(tmp_path / "student" / "model.onnx")
    assert {tensor.name for tensor in session.get_inputs()} == set(test.known)
    served = {name: test.x[name] for name in test.known}
    click, buy = session.run(["click", "buy"], served)
    scores = recommender.measure({"click": click, "buy": buy}, test)
    expected = recommender.measure(recommender.predict(student, test), test)
    np.testing.assert_allclose(list(scores.values()), list(expected.values()), 1e-3)


def test_the_served_student_asks_for_nothing_privileged(examples, log, tmp_path):
    click_log, recommender = examples
    student, _ = recommender.build(log, log.privileged)
    batch = {name: log.x[name][:16] for name in log.known}
    served = tmp_path / "student"
    kd.export.export(student, served, formats=("onnx",), example_batch=batch)
    session = onnxruntime.InferenceSession(served / "model.onnx")
    assert {tensor.name for tensor in session.get_inputs()} == set(log.known)
    manifest = json.loads((served / "manifest.json").read_text())
    assert not any(name in json.dumps(manifest) for name in log.hidden)
    buy = session.run(["buy"], batch)[0]
    np.testing.assert_allclose(
        buy, student.predict(batch, verbose=0)["buy"], rtol=1e-4, atol=1e-5
    )
