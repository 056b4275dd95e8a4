"""The example of delayed labels: which labels its models learn from, and its table."""

import importlib

import keras
import numpy as np
import pytest

from tests.scripts import imported


@pytest.fixture(scope="module")
def example():
    with imported("examples/delayed_labels.py") as module:
        yield module


@pytest.fixture(scope="module")
def log(example):
    """A log of 12 days: the teacher's column is the label with some noise."""
    make = importlib.import_module("logs").make
    rng = np.random.default_rng(0)
    label = rng.random(240) < 0.5
    x = {
        "item": rng.integers(1, 9, 240),
        "history": rng.integers(0, 9, (240, 3)),
        "weight": rng.normal(size=240),
        "after": label + rng.normal(size=240),
    }
    made = make(x, {"bought": label}, {"bought": ("after",)})
    return made._replace(day=20220401 + np.arange(240) // 20)


@pytest.fixture(scope="module")
def recipe(example):
    return example.Recipe(1e-2, epochs=2, dropout=0.1, batch=64)


def test_the_last_third_of_the_days_has_no_label(example, log):
    labelled = example.has_label(log.day)
    np.testing.assert_array_equal(labelled, log.day < 20220409)


def test_folds_hold_whole_days_and_each_row_once(example, log):
    held_out = []
    for training, fold in example.by_day(log.day):
        assert not set(log.day[training]) & set(log.day[fold])
        held_out.append(fold)
    assert sorted(np.concatenate(held_out)) == list(range(240))


def test_shuffled_columns_are_those_of_other_rows(log):
    moved = log.shuffled(seed=0)
    assert not np.array_equal(moved.x["after"], log.x["after"])
    np.testing.assert_array_equal(
        np.sort(moved.x["after"], 0), np.sort(log.x["after"], 0)
    )
    for name in log.known:
        np.testing.assert_array_equal(moved.x[name], log.x[name])


@pytest.mark.parametrize(
    "variant",
    [
        ("known", "first"),
        ("shuffled", "first"),
        ("privileged", "together"),
        ("privileged", "cross-fitted"),
    ],
)
def test_labels_that_have_not_arrived_are_not_read(
    variant, example, log, recipe, monkeypatch
):
    monkeypatch.setattr(example, "FOLDS", 2)
    labelled = example.has_label(log.day)
    y = {"bought": np.where(labelled[:, None], log.y["bought"], np.nan)}
    late = log._replace(y=y)
    student = example.train_taught(late, "bought", labelled, variant, recipe, seed=1)
    assert all(np.isfinite(weight).all() for weight in student.get_weights())
    assert set(student.input) == set(log.known)
    keras.backend.clear_session()


def test_the_student_alone_reads_no_privileged_column(example, log, recipe):
    student = example.train_alone(log, "bought", recipe, seed=0)
    assert set(student.input) == {"item", "history", "weight"}
    auc, loss, calibration = example.measure(student, log, "bought")
    assert 0 <= auc <= 1 and loss > 0 and calibration > 0


def test_the_table_has_the_share_of_the_oracles_lead(example, capsys):
    seeds = {
        example.ALONE: [(0.6, 0.7, 1.0), (0.62, 0.7, 1.0)],
        "privileged, first": [(0.61, 0.7, 1.0), (0.63, 0.7, 1.0)],
        example.ORACLE: [(0.64, 0.7, 1.0), (0.66, 0.7, 1.0)],
    }
    example.print_table(seeds)
    line = capsys.readouterr().out.splitlines()[2]
    assert line.split()[2:] == [
        "0.6200",
        "0.7000",
        "1.000",
        "+0.0100",
        "(0.0000)",
        "25%",
    ]
