"""Intervals: right on average where there is no gain, and able to find one."""

import numpy as np
import pytest

from keras_distill.tuning import gain
from keras_distill.tuning.interval import looks


def verdict(rng: np.random.Generator, mean: float, rows: float) -> str:
    """Simulate the looks of one search, whose seeds have a deviation of 1."""
    of_rows = rng.normal(0, rows, 10)
    values = mean + rng.normal(0, 1, (10, 1)) + of_rows + rng.normal(0, 1, (10, 10))
    for count, share in looks(5, 10):
        found = gain(values[:count], error=0.05 * share)
        if found.verdict != "no gain shown":
            break
    return found.verdict


@pytest.mark.parametrize("rows", [0.0, 1.0])
def test_no_gain_is_rarely_taken_for_one(rows: float) -> None:
    rng = np.random.default_rng(0)
    wrong = sum(verdict(rng, 0.0, rows) != "no gain shown" for _ in range(200))
    assert wrong / 200 <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


def test_a_gain_of_three_standard_errors_of_the_first_look_is_found() -> None:
    rng = np.random.default_rng(1)
    error = np.sqrt((1 + 1 / 10) / 5)  # of the mean over 5 seeds
    found = [verdict(rng, 3 * error, 0.0) for _ in range(200)]
    assert found.count("helps") >= 160


def test_one_block_is_the_paired_t_interval() -> None:
    found = gain([[1.0], [2.0], [3.0]])
    half = 4.302652729911275 / np.sqrt(3)
    np.testing.assert_allclose([found.low, found.high], [2 - half, 2 + half])


def test_shares_sum_to_one_and_the_last_look_is_at_the_maximum() -> None:
    assert [count for count, _ in looks(3, 10)] == [3, 6, 10]
    assert sum(share for _, share in looks(3, 10)) == pytest.approx(1)


@pytest.mark.parametrize("values", [[1.0, 2.0], [[1.0]], [[1.0], [np.nan]]])
def test_errors(values: list) -> None:
    with pytest.raises(ValueError, match="Received"):
        gain(values)
