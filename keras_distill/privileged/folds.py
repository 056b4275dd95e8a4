"""Folds of rows in the order of time, and values of groups of rows."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keras_distill.tuning.fits import BLOCKS

Array = npt.NDArray[Any]


class Fold(NamedTuple):
    """Indices of rows to train on, and of later rows to test on, in order of time."""

    train: Array
    test: Array


def order(time: Array | None, rows: int, max_rows: int | None) -> Array:
    """Return the indices of the most recent rows, in the order of time.

    Args:
        time: The time of each row, of shape `(rows,)`. None if the rows are in order.
        rows: The number of rows.
        max_rows: How many rows to keep. None keeps all.
    """
    indices = np.arange(rows) if time is None else np.argsort(time, kind="stable")
    return indices if max_rows is None else indices[-max_rows:]


def chained(time: Array | None, rows: int, folds: int) -> list[Fold]:
    """Return forward-chaining folds of rows that are in the order of time.

    The later half of the rows is cut into `folds` parts. Each part is the test set of
    one fold, which trains on all rows before it. Rows of the same time stay together.

    Args:
        time: The time of each row, in ascending order. None if all times differ.
        rows: The number of rows.
        folds: The number of folds.

    Raises:
        ValueError: If a part has fewer than ten rows.

    >>> [(len(fold.train), len(fold.test)) for fold in chained(None, 80, 2)]
    [(40, 20), (60, 20)]
    """
    edges = np.linspace(rows // 2, rows, folds + 1).astype(int)
    if time is not None:
        edges[:-1] = _between_times(time, edges[:-1])
    smallest = min(edges[0], np.diff(edges).min())
    if smallest < BLOCKS:
        raise ValueError(
            f"Each of the {folds} folds must train on {BLOCKS} rows or more, and test "
            f"on {BLOCKS} later ones or more. Lower `folds`, pass more rows, or a "
            f"finer `time`: rows of the same time stay together. Received: {rows} "
            f"rows, which are cut before the rows {edges.tolist()}"
        )
    every = np.arange(rows)
    return [
        Fold(every[:begin], every[begin:end])
        for begin, end in zip(edges[:-1], edges[1:], strict=True)
    ]


def _between_times(time: Array, edges: Array) -> Array:
    """Return the cuts nearest to `edges` that don't separate rows of the same time."""
    before = np.searchsorted(time, time[edges], side="left")
    after = np.searchsorted(time, time[edges], side="right")
    return np.where(edges - before <= after - edges, before, after)


def groups_of(groups: Array | None, folds: list[Fold]) -> Array:
    """Return the number of the group of each test row, with the folds in order.

    Args:
        groups: The group of each row. None makes ten blocks of successive rows in each
            fold.
        folds: The folds.
    """
    if groups is not None:
        of_test = np.concatenate([groups[fold.test] for fold in folds])
        numbers: Array = np.unique(of_test, return_inverse=True)[1]
        return numbers
    return np.concatenate(
        [
            number * BLOCKS + np.arange(len(fold.test)) * BLOCKS // len(fold.test)
            for number, fold in enumerate(folds)
        ]
    )


def by_group(values: Array, groups: Array) -> Array:
    """Return a value for each group of rows. Their mean is the mean of all rows.

    A value is `mean + (sum of the group - mean * rows of the group) * groups / rows`.
    So the weight of a group is its number of rows, and the variance over groups is that
    of a ratio of sums.

    Args:
        values: Of shape `(seeds, rows)`.
        groups: The number of each row's group, from 0, of shape `(rows,)`.

    Returns:
        An array of shape `(seeds, groups)`.

    >>> by_group(np.array([[1.0, 1.0, 4.0]]), np.array([0, 0, 1]))
    array([[0.66666667, 3.33333333]])
    """
    sizes = np.bincount(groups)
    means = values.mean(axis=1, keepdims=True)
    sums = np.stack([np.bincount(groups, weights=row) for row in values])
    found: Array = means + (sums - means * sizes) * len(sizes) / len(groups)
    return found
