"""Ranking in groups against loops over them, with scikit-learn's metrics of each."""

import time

import keras
import keras_rs
import numpy as np
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from keras_distill.metrics import by_group, group_auc

RNG = np.random.default_rng(3)
ROWS = 600
USERS = RNG.integers(0, 80, ROWS)
SCORES = RNG.standard_normal(ROWS).round(1)  # with ties
LABELS = (RNG.random(ROWS) < 0.2 + 0.2 * (SCORES > 0)).astype("int64")
WEIGHTS = RNG.integers(0, 4, ROWS) * 0.37


def auc_by_loop(labels, scores, groups, weights):
    total = size = 0.0
    for group in np.unique(groups):
        rows = (groups == group) & (weights > 0)
        if len(np.unique(labels[rows])) == 2:
            auc = roc_auc_score(labels[rows], scores[rows], sample_weight=weights[rows])
            total += weights[rows].sum() * auc
            size += weights[rows].sum()
    return total / size


def test_auc_of_each_group_by_scikit_learn():
    expected = auc_by_loop(LABELS, SCORES, USERS, np.ones(ROWS))
    assert any(len(set(LABELS[USERS == user])) == 1 for user in set(USERS))
    assert group_auc(LABELS, SCORES, USERS) == pytest.approx(expected, rel=1e-12)


def test_weighted_auc_of_each_group_by_scikit_learn():
    expected = auc_by_loop(LABELS, SCORES, USERS, WEIGHTS)
    actual = group_auc(LABELS, SCORES, USERS, sample_weight=WEIGHTS)
    assert actual == pytest.approx(expected, rel=1e-9)


def test_one_group_is_the_whole():
    actual = group_auc(LABELS, SCORES, np.zeros(ROWS))
    assert actual == pytest.approx(roc_auc_score(LABELS, SCORES), rel=1e-12)


@pytest.mark.parametrize(
    ("scores", "expected"), [([1, 2], 1.0), ([2, 1], 0.0), ([1, 1], 0.5)]
)
def test_a_pair(scores, expected):
    assert group_auc([0, 1], scores, ["a", "a"]) == expected


def test_what_is_common_to_a_group_earns_nothing():
    of_user = 100.0 * RNG.standard_normal(80).round(1)
    expected = group_auc(LABELS, SCORES, USERS)
    shifted = SCORES + of_user[USERS]
    assert group_auc(LABELS, shifted.round(1), USERS) == pytest.approx(expected)


@pytest.mark.parametrize(
    "named",
    [
        lambda users: np.char.add("user-", users.astype(str)),
        lambda users: np.array([f"user-{user}" for user in users], object),
        lambda users: users - 40,
        lambda users: users[:, None],
        list,
    ],
)
def test_groups_of_any_name(named):
    expected = group_auc(LABELS, SCORES, USERS)
    assert group_auc(LABELS, SCORES, named(USERS)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "labels", [LABELS.astype(bool), LABELS.astype("float32"), LABELS[:, None]]
)
def test_labels_and_scores_as_they_come(labels):
    expected = group_auc(LABELS, SCORES, USERS)
    scores = keras.ops.convert_to_tensor(SCORES[:, None], "float32")
    assert group_auc(labels, scores, USERS) == pytest.approx(expected, rel=1e-12)


def test_order_of_rows_is_of_no_matter():
    order = RNG.permutation(ROWS)
    expected = group_auc(LABELS, SCORES, USERS, sample_weight=WEIGHTS)
    actual = group_auc(
        LABELS[order], SCORES[order], USERS[order], sample_weight=WEIGHTS[order]
    )
    assert actual == pytest.approx(expected, rel=1e-12)


def test_infinite_scores_rank():
    scores = [-np.inf, np.inf, 0.0]
    assert group_auc([0, 1, 0], scores, [7, 7, 7]) == 1.0


def test_a_million_rows_take_seconds():
    rows = 1_000_000
    users = RNG.integers(0, 100_000, rows)
    labels, scores = RNG.random(rows) < 0.2, RNG.random(rows)
    start = time.perf_counter()
    value = group_auc(labels, scores, users)
    by_group(users, labels, scores)
    assert time.perf_counter() - start < 10.0  # 0.6 s on two shared cores
    assert value == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": [0, 1, 2, -1]}, "`labels` must be 0 or 1. .*2 in row 2, one of 2 "),
        ({"labels": [0, 0.5, 1, 1]}, "`labels` must be 0 or 1. Received: 0.5 in row 1"),
        ({"scores": [0.1, np.nan, 1, 1]}, "`scores` must not be NaN. .*nan in row 1"),
        ({"sample_weight": [1, 1, -2, 1]}, "`sample_weight` must be .*-2.0 in row 2"),
        ({"sample_weight": [1, 1, np.inf, 1]}, "must be finite and >= 0. .*inf in row"),
        ({"groups": [1, 2, 3, 4]}, "No group has both .* 4 rows in 4 groups.* 2 have"),
        ({"sample_weight": [0, 1, 1, 1]}, "No group has both .* 4 rows in 2 groups"),
        ({"labels": [0, 0, 0, 0]}, "No group has both .*of which 0 have a positive"),
        ({"scores": [1, 2, 3]}, r"one shape.*labels=\(4,\), scores=\(3,\), groups="),
        ({"groups": [[1, 2], [3, 4]]}, r"one shape.*groups=\(2, 2\)"),
        ({"sample_weight": 1.0}, r"one shape.*sample_weight=\(\)"),
    ],
)
def test_group_auc_refuses(changed, message):
    arguments = {
        "labels": [0, 1, 1, 0],
        "scores": [0.1, 0.2, 0.3, 0.4],
        "groups": ["a", "a", "b", "c"],
        **changed,
    }
    if "sample_weight" in changed:
        arguments["groups"] = ["a", "a", "b", "b"]
        arguments["labels"] = [0, 1, 1, 1]
    with pytest.raises(ValueError, match=message):
        group_auc(**arguments)


@pytest.mark.parametrize(
    "function", [lambda: group_auc([], [], []), lambda: by_group([])]
)
def test_no_rows(function):
    with pytest.raises(ValueError, match="and a row at least. Received: shapes .*"):
        function()


def test_by_group_by_loop():
    names = np.char.add("user-", USERS.astype(str))
    labels, scores, mask = by_group(names, LABELS, SCORES[:, None])
    groups = np.unique(names)
    longest = max(np.sum(names == group) for group in groups)
    assert labels.shape == scores.shape == mask.shape == (len(groups), longest)
    assert labels.dtype == LABELS.dtype and mask.dtype == bool
    for i, group in enumerate(groups):
        rows = names == group
        np.testing.assert_array_equal(labels[i, mask[i]], LABELS[rows])
        np.testing.assert_array_equal(scores[i, mask[i]], SCORES[rows])
        assert mask[i].sum() == rows.sum()
        assert not mask[i, rows.sum() :].any()
    assert not scores[~mask].any()


def test_by_group_of_nothing_but_groups_is_the_mask():
    (mask,) = by_group(["b", "a", "b"])
    np.testing.assert_array_equal(mask, [[True, False], [True, True]])


def test_by_group_keeps_strings():
    items, _ = by_group([2, 1, 2], ["tea", "ink", "oil"])
    np.testing.assert_array_equal(items, [["ink", ""], ["tea", "oil"]])


def test_by_group_refuses():
    with pytest.raises(ValueError, match=r"groups=\(2,\), arrays\[0\]=\(3,\)"):
        by_group([1, 1], [1, 2, 3])
    with pytest.raises(ValueError, match=r"groups=\(2,\), arrays\[0\]=\(2, 2\)"):
        by_group([1, 1], [[1, 2], [3, 4]])


@pytest.fixture
def lists():
    """Lists of 2 to 12 rows, some without a positive, and a flat log of them."""
    lists = [RNG.standard_normal(size) for size in RNG.integers(2, 13, 50)]
    relevant = [(RNG.random(len(scores)) < 0.3).astype(int) for scores in lists]
    assert any(not labels.any() for labels in relevant)
    users = np.repeat(np.arange(50), [len(scores) for scores in lists])
    order = RNG.permutation(len(users))
    log = (users, np.concatenate(relevant), np.concatenate(lists))
    return relevant, lists, [column[order] for column in log]


@pytest.mark.parametrize("k", [1, 3, None])
def test_ndcg_of_lists_by_scikit_learn(lists, k):
    relevant, scores, log = lists
    labels, predictions, mask = by_group(*log)
    metric = keras_rs.metrics.NDCG(k=k)
    expected = np.mean(
        [ndcg_score([y], [s], k=k) for y, s in zip(relevant, scores, strict=True)]
    )
    actual = metric({"labels": labels, "mask": mask}, predictions)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_reciprocal_rank_of_lists_by_hand(lists):
    relevant, scores, log = lists
    labels, predictions, mask = by_group(*log)
    reciprocal_ranks = []
    for y, s in zip(relevant, scores, strict=True):
        hits = np.flatnonzero(y[np.argsort(-s)])
        reciprocal_ranks.append(1.0 / (hits[0] + 1) if len(hits) else 0.0)
    metric = keras_rs.metrics.MeanReciprocalRank()
    actual = metric({"labels": labels, "mask": mask}, predictions)
    np.testing.assert_allclose(actual, np.mean(reciprocal_ranks), rtol=1e-5)
