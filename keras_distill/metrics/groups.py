"""Metrics of ranking within groups of rows, such as users, sessions or queries."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def group_auc(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    groups: npt.ArrayLike,
    *,
    sample_weight: npt.ArrayLike | None = None,
) -> float:
    r"""Return the area under the ROC curve within groups, averaged over the groups.

    `sum_g n_g * AUC_g / sum_g n_g` over the groups that have a positive and a negative
    row, where `n_g` is the number of rows of a group. A score that differs only between
    groups, such as how often a user clicks, doesn't raise the result. Ties count half.

    Args:
        labels: 0 or 1. All arguments have the shape `(rows,)` or `(rows, 1)`.
        scores: Logits, probabilities or other scores, higher for label 1.
        groups: The id of each row's group, e.g. of a user: integers or strings.
        sample_weight: Weights >= 0. The weight of a pair is the product of its rows'
            weights, and `n_g` is the sum of a group's weights. Rows of weight 0 don't
            count.

    Returns:
        A number between 0 and 1; 0.5 for random scores.

    Raises:
        ValueError: If shapes differ, labels aren't 0 or 1, scores are NaN, weights are
            negative or not finite, or no group has both labels.

    Example:
        >>> users = ["ann", "ann", "ann", "bob", "bob", "cy"]
        >>> group_auc([1, 0, 0, 1, 0, 1], [0.9, 0.1, 0.2, 0.3, 0.4, 0.5], users)
        0.6

    Reference:
        Zhu et al. 2017, "Optimized Cost per Click in Taobao Display Advertising",
        https://arxiv.org/abs/1703.02091; Zhou et al. 2018, "Deep Interest Network for
        Click-Through Rate Prediction", https://arxiv.org/abs/1706.06978.
    """
    columns = {"labels": labels, "scores": scores, "groups": groups}
    if sample_weight is not None:
        columns["sample_weight"] = sample_weight
    rows = _columns(columns)
    _check(rows["labels"], "`labels` must be 0 or 1.", np.isin(rows["labels"], (0, 1)))
    ranks = rows["scores"].astype("float64")
    _check(ranks, "`scores` must not be NaN.", ~np.isnan(ranks))
    weight = rows.get("sample_weight", np.ones(len(ranks))).astype("float64")
    valid = np.isfinite(weight) & (weight >= 0.0)
    _check(weight, "`sample_weight` must be finite and >= 0.", valid)

    group = np.unique(rows["groups"], return_inverse=True)[1]
    order = np.lexsort((ranks, group))
    positive = (weight * rows["labels"])[order]
    wins, positive, negative = _counted(
        group[order], ranks[order], positive, weight[order] - positive
    )
    both = (positive > 0.0) & (negative > 0.0)
    if not both.any():
        raise ValueError(
            "No group has both a row labelled 0 and one labelled 1, so there is "
            f"nothing to rank. Received: {len(ranks)} rows in {len(both)} groups, of "
            f"which {int((positive > 0.0).sum())} have a positive row"
        )
    auc = wins[both] / (positive[both] * negative[both])
    return float(np.average(auc, weights=(positive + negative)[both]))


def _counted(
    group: Array, ranks: Array, positive: Array, negative: Array
) -> tuple[Array, Array, Array]:
    """Return each group's weights of ordered pairs, of positive and of negative rows.

    A pair is ordered if its positive row has the higher score. A tie counts half.

    Args:
        group: The number of each row's group. Rows are sorted by it, then by score.
        ranks: The scores.
        positive: The weights of rows labelled 1, 0 for others.
        negative: The weights of rows labelled 0, 0 for others.
    """
    # A run is the rows of one group that have the same score.
    runs = _starts((group[1:] != group[:-1]) | (ranks[1:] != ranks[:-1]))
    positive, negative = np.add.reduceat([positive, negative], runs, axis=1)
    group = group[runs]
    first = _starts(group[1:] != group[:-1])
    below = np.cumsum(negative) - negative
    below -= np.repeat(below[first], np.diff(np.append(first, len(group))))
    wins = positive * (below + negative / 2.0)
    wins, positive, negative = np.add.reduceat(
        [wins, positive, negative], first, axis=1
    )
    return wins, positive, negative


def by_group(groups: npt.ArrayLike, *arrays: npt.ArrayLike) -> tuple[Array, ...]:
    """Return the columns of a log as padded lists, one for each group.

    The log has one row per item.

    Args:
        groups: The id of each row's group, e.g. of a session: integers or strings. All
            arguments have the shape `(rows,)` or `(rows, 1)`.
        *arrays: Columns of the log.

    Returns:
        Each column as an array of shape `(groups, longest)`, padded with zeros. At the
        end a mask of that shape, which is True for rows and False for padding. Groups
        are sorted, as in `np.unique(groups)`. The rows of a group keep their order.

    Raises:
        ValueError: If shapes differ or there are no rows.

    Example:
        >>> users = ["bob", "ann", "bob", "ann", "ann"]
        >>> labels, scores, mask = by_group(
        ...     users, [0, 0, 1, 1, 0], [0.2, 0.7, 0.8, 0.4, 0.1])
        >>> labels
        array([[0, 1, 0],
               [0, 1, 0]])
        >>> mask
        array([[ True,  True,  True],
               [ True,  True, False]])
        >>> import keras_rs
        >>> lists = {"labels": labels, "mask": mask}
        >>> round(float(keras_rs.metrics.NDCG(k=2)(lists, scores)), 4)
        0.8155
        >>> float(keras_rs.metrics.MeanReciprocalRank()(lists, scores))
        0.75
    """
    named = {f"arrays[{i}]": array for i, array in enumerate(arrays)}
    names, *columns = _columns({"groups": groups, **named}).values()
    group, sizes = np.unique(names, return_inverse=True, return_counts=True)[1:]
    order = np.argsort(group, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)

    def padded(column: Array) -> Array:
        lists = np.zeros((len(sizes), sizes.max()), column.dtype)
        lists[group, place] = column
        return lists

    return (*map(padded, columns), padded(np.ones(len(group), bool)))


def _columns(values: dict[str, npt.ArrayLike]) -> dict[str, Array]:
    """Return columns as vectors, checked to have the same length."""
    columns = {name: np.asarray(column) for name, column in values.items()}
    shapes = {name: column.shape for name, column in columns.items()}
    vectors = {name: column.reshape(-1) for name, column in columns.items()}
    lengths = {len(vector) for vector in vectors.values()}
    if (
        any(len(shape) == 0 or shape[1:] not in ((), (1,)) for shape in shapes.values())
        or len(lengths) != 1
        or lengths == {0}
    ):
        listed = ", ".join(f"{name}={shape}" for name, shape in shapes.items())
        raise ValueError(
            "Columns must have one shape, (rows,) or (rows, 1), and a row at least. "
            f"Received: shapes {listed}"
        )
    return vectors


def _check(column: Array, requirement: str, valid: Array) -> None:
    """Raise ValueError if a row of a column isn't valid."""
    if not valid.all():
        row = int(np.argmin(valid))
        raise ValueError(
            f"{requirement} Received: {column[row]} in row {row}, one of "
            f"{int((~valid).sum())} such rows of {len(column)}"
        )


def _starts(differs: Array) -> Array:
    """Return the indices of the first elements of runs.

    Args:
        differs: For each element but the first, whether it differs from the one before.
    """
    return np.flatnonzero(np.append(True, differs))
