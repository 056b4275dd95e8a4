"""Folds go forward in time, and groups weigh as their rows do."""

import numpy as np
import pytest

from keras_distill.privileged.folds import by_group, chained, groups_of, order
from keras_distill.tuning import gain


@pytest.mark.parametrize("folds", [1, 2, 3, 7])
def test_each_later_row_is_tested_once_by_models_of_all_rows_before(folds: int) -> None:
    found = chained(None, 301, folds)
    assert len(found) == folds
    for fold in found:
        assert list(fold.train) == list(range(fold.test[0]))
    tested = np.concatenate([fold.test for fold in found])
    assert list(tested) == list(range(150, 301))


def test_rows_of_one_time_stay_on_one_side() -> None:
    days = np.repeat(np.arange(8), [40, 10, 30, 50, 20, 70, 30, 50])
    found = chained(days, len(days), 3)
    for fold in found:
        assert days[fold.train].max() < days[fold.test].min()
    assert [len(fold.test) for fold in found] == [70, 30, 50]  # cut at 150, 220, 250


@pytest.mark.parametrize(
    ("time", "rows", "folds"),
    [(None, 19, 1), (None, 57, 3), (np.zeros(99), 99, 1), (np.arange(99) // 50, 99, 2)],
)  # fmt: skip
def test_too_few_rows_for_the_folds(
    time: np.ndarray | None, rows: int, folds: int
) -> None:
    with pytest.raises(ValueError, match=f"Lower `folds`.*Received: {rows} rows"):
        chained(time, rows, folds)


def test_order_keeps_the_most_recent_rows() -> None:
    time = np.array([3, 1, 2, 1])
    assert list(order(time, 4, None)) == [1, 3, 2, 0]
    assert list(order(time, 4, 2)) == [2, 0]
    assert list(order(None, 4, 3)) == [1, 2, 3]


def test_blocks_are_of_successive_rows_of_one_fold() -> None:
    folds = chained(None, 105, 2)
    blocks = groups_of(None, folds)
    assert (np.diff(blocks) >= 0).all() and set(blocks) == set(range(20))
    assert (blocks[: len(folds[0].test)] < 10).all()


def test_groups_are_those_of_the_test_rows() -> None:
    users = np.array(["a", "b"] * 30 + ["c", "d", "c"] * 20)
    numbers = groups_of(users, chained(None, 120, 1))
    assert list(numbers) == [0, 1, 0] * 20


def test_groups_of_one_size_have_their_means() -> None:
    values = np.random.default_rng(0).normal(size=(3, 40))
    groups = np.repeat(np.arange(8), 5)
    expected = values.reshape(3, 8, 5).mean(axis=2)
    np.testing.assert_allclose(by_group(values, groups), expected)


def test_the_mean_is_that_of_all_rows_whatever_the_groups_are() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.normal(size=(3, 200)), rng.integers(0, 9, 200)
    np.testing.assert_allclose(by_group(values, groups).mean(1), values.mean(1))


def test_rows_of_one_user_that_are_alike_widen_the_interval() -> None:
    """The interval over users covers a truth of zero, one over rows doesn't."""
    rng = np.random.default_rng(0)
    missed = {"users": 0, "rows": 0}
    for _ in range(100):
        users = rng.integers(0, 20, 400)
        values = rng.normal(size=20)[users] + rng.normal(size=(5, 400))
        for name, groups in (("users", users), ("rows", np.arange(400))):
            found = gain(by_group(values, groups))
            missed[name] += found.verdict != "no gain shown"
    assert missed["users"] <= 10 < 30 <= missed["rows"]
