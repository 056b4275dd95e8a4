"""`targets.augment_rows`: rows made by MUNGE, against a slow search for neighbours."""

from typing import Any

import numpy as np
import pytest

from keras_distill.targets import augment_rows, table_rows

ROWS = 60
RNG = np.random.default_rng(0)
SIDE = RNG.integers(0, 2, ROWS)
# Two clusters, one of them of rows that are far from all of the other.
TABLE = {
    "height": 10.0 * SIDE + RNG.random(ROWS),
    "count": (1000 * SIDE + RNG.integers(0, 50, ROWS)).astype("int16"),
    "side": np.array(["left", "right"])[SIDE],
    "flag": RNG.random(ROWS) < 0.5,
}


def nearest(points: np.ndarray) -> np.ndarray:
    """Return the index of the nearest other point, pair by pair."""
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    return distances.argmin(axis=1)


def expected_neighbours() -> np.ndarray:
    numbers = np.stack([TABLE["height"], TABLE["count"].astype(float)], axis=1)
    scaled = numbers / numbers.std(axis=0)
    codes = np.stack([SIDE, TABLE["flag"]], axis=1).astype(float)
    return nearest(np.concatenate([scaled, codes], axis=1))


def test_without_spread_each_value_is_the_row_s_or_its_neighbour_s() -> None:
    other = expected_neighbours()
    whole = augment_rows(TABLE, probability=1.0, spread=0.0)
    some = augment_rows(TABLE, copies=50, probability=0.25, spread=0.0)
    for name, values in TABLE.items():
        np.testing.assert_array_equal(whole[name], values[other])
        own, theirs = np.tile(values, 50), np.tile(values[other], 50)
        assert ((some[name] == own) | (some[name] == theirs)).all()
        if name in ("height", "count"):
            share = (some[name] != own)[own != theirs].mean()
            np.testing.assert_allclose(share, 0.25, atol=0.04)


def test_numbers_are_drawn_around_the_neighbour_s() -> None:
    x = {"a": np.array([0.0, 1.0, 10.0, 12.0, -50.0, 50.0])}
    made = augment_rows(x, copies=4000, probability=1.0, spread=0.5)["a"]
    by_row = made.reshape(4000, 6).T
    np.testing.assert_allclose(by_row.mean(axis=1)[:4], [1, 0, 12, 10], atol=0.05)
    np.testing.assert_allclose(by_row.std(axis=1)[:4], [0.5, 0.5, 1, 1], rtol=0.05)
    # In the range of the column.
    assert made.min() >= -50.0 and made.max() <= 50.0


def test_types_and_ranges_are_kept() -> None:
    made = augment_rows(TABLE, copies=3)
    for name, values in TABLE.items():
        assert made[name].dtype == values.dtype and made[name].shape == (3 * ROWS,)
        ordered = np.sort(values)
        assert ((made[name] >= ordered[0]) & (made[name] <= ordered[-1])).all()
    # No row is between the clusters, as it would be if columns were drawn alone.
    right = made["side"] == "right"
    assert ((made["height"] > 5) == right).all()
    assert ((made["count"] > 500) == right).all()
    assert set(np.unique(made["count"])) - set(TABLE["count"])  # values of its own


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int64", "uint8"])
def test_shapes_and_dtypes(dtype: str, shape: Any) -> None:
    x = {"a": np.arange(20, dtype=dtype).reshape(shape), "b": np.arange(20) % 3}
    made = augment_rows(x, copies=2, categorical=["b"])
    assert made["a"].shape == np.zeros(40).reshape(shape).shape
    assert made["a"].dtype == dtype and made["b"].dtype == x["b"].dtype
    whole = (made["a"] == np.rint(made["a"])).all()
    assert whole == (np.dtype(dtype).kind in "iu")


def test_an_array_is_a_table_too() -> None:
    x = np.stack([RNG.random(ROWS), RNG.integers(0, 9, ROWS), SIDE], axis=1)
    made = augment_rows(x, integer=[1], categorical=[2], copies=2)
    as_dict = dict(enumerate(x.T))
    expected = augment_rows(as_dict, integer=[1], categorical=[2], copies=2)
    np.testing.assert_array_equal(made, np.stack(list(expected.values()), axis=1))
    assert set(made[:, 2]) == {0.0, 1.0} and (made[:, 1] == np.rint(made[:, 1])).all()
    assert made.dtype == x.dtype


def test_the_seed_decides() -> None:
    first, same, other = (augment_rows(TABLE, seed=seed) for seed in (1, 1, 2))
    for name in TABLE:
        np.testing.assert_array_equal(first[name], same[name])
    assert not np.array_equal(first["height"], other["height"])


def test_the_table_is_left_as_it_was() -> None:
    before = {name: values.copy() for name, values in TABLE.items()}
    augment_rows(TABLE)
    for name, values in before.items():
        np.testing.assert_array_equal(TABLE[name], values)


def test_missing_values_are_exchanged_like_categories() -> None:
    x = {"a": np.where(SIDE == 1, np.nan, TABLE["height"]), "b": RNG.random(ROWS)}
    made = augment_rows(x, copies=20, probability=1.0)
    again = np.tile(SIDE == 1, 20)
    # Rows without `a` are nearest to others without, and get their `b`.
    np.testing.assert_array_equal(np.isnan(made["a"]), again)
    assert not np.isnan(made["b"]).any()
    pair = {"a": np.array([1.0, np.nan]), "b": np.array([0.0, 0.1])}
    made = augment_rows(pair, probability=1.0, spread=0.0)
    np.testing.assert_array_equal(made["a"], [np.nan, 1.0])
    empty = {"a": np.full(3, np.nan), "b": np.arange(3.0)}
    assert np.isnan(augment_rows(empty)["a"]).all()


def test_equal_rows_are_no_neighbours() -> None:
    """Exchanged with its own copy, a row would give nothing but itself."""
    x = {"a": np.array(["x"] * 50 + ["y"] * 50)}
    made = augment_rows(x, probability=1.0)["a"]
    np.testing.assert_array_equal(made, x["a"][::-1])
    large = {"a": np.repeat([1e9, 1e9 + 1.0], 50)}
    made = augment_rows(large, probability=1.0, spread=0.0)["a"]
    np.testing.assert_array_equal(made, large["a"][::-1])


def test_many_categories_are_nearly_as_far_apart() -> None:
    count = 3 * table_rows._AXES
    column = table_rows._Column(np.arange(count), np.arange(count), "categorical")
    points = column.axes(np.random.default_rng(0)).astype("float64")
    squares = ((points[:, None] - points[None]) ** 2).sum(axis=-1)
    others = squares[~np.eye(count, dtype=bool)]
    np.testing.assert_allclose(np.diag(squares), 0.0)
    np.testing.assert_allclose([others.mean(), others.std()], [1.0, 0.1], atol=0.05)


@pytest.mark.parametrize("candidates", [500, 100])
def test_neighbours_in_pieces_and_among_a_part(
    candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = np.random.default_rng(3).normal(size=(500, 12)).astype("float32")
    monkeypatch.setattr(table_rows, "_AT_ONCE", 7 * 500)
    found = table_rows._neighbours(points, candidates, np.random.default_rng(0))
    assert len(set(found)) > candidates / 4
    drawn = np.random.default_rng(0).choice(500, 100, replace=False)
    among = np.arange(500) if candidates == 500 else np.sort(drawn)
    distances = np.linalg.norm(points[:, None] - points[among], axis=-1)
    distances[distances == 0] = np.inf
    np.testing.assert_array_equal(found, among[distances.argmin(axis=1)])


WRONG: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    (3, {}, TypeError, "must be a dict of arrays, or an array.*type int"),
    (np.zeros(3), {}, TypeError, r"to_numpy.*shape \(3,\)"),
    (np.array([["a", 1]], object), {}, TypeError, "of one type.*object"),
    ({}, {}, ValueError, "shapes {}"),
    ({"a": np.zeros(1)}, {}, ValueError, r"two rows or more.*\(1,\)"),
    ({"a": np.zeros((3, 2))}, {}, ValueError, r"shape \(rows,\) or.*\(3, 2\)"),
    ({"a": np.zeros(3), "b": np.zeros(4)}, {}, ValueError, "as many in each"),
    ({"a": np.ones(3)}, {}, ValueError, "must have a row that differs.*of 3 rows"),
    ({"a": np.array([1.0, np.inf])}, {}, ValueError, "infinity.*'a' with inf"),
    ({"a": np.array([0, 2**60])}, {}, ValueError, "name ids in `categorical`.*'a'"),
    ({"a": np.array(["x", None])}, {}, ValueError, "replace None.*'a'"),
    (TABLE, {"categorical": ["z"]}, ValueError, r"columns of `x`.*\['z'\]"),
    (TABLE, {"integer": ["height"]}, ValueError, "whole numbers.*'height' with "),
    (TABLE, {"integer": ["side"]}, ValueError, "columns of numbers.*'side' of <U5"),
    (
        TABLE,
        {"integer": ["count"], "categorical": ["count"]},
        ValueError,
        "each in one",
    ),
    (TABLE, {"probability": 0.0}, ValueError, "above 0 and at most 1.*=0.0"),
    (TABLE, {"probability": 1.5}, ValueError, "probability=1.5"),
    (TABLE, {"spread": -1.0}, ValueError, "not negative.*spread=-1.0"),
    (TABLE, {"spread": float("nan")}, ValueError, "spread=nan"),
    (TABLE, {"copies": 0}, ValueError, "copies=0"),
    (TABLE, {"copies": 1.5}, ValueError, "copies=1.5"),
    (TABLE, {"candidates": 0}, ValueError, "candidates=0"),
    (TABLE, {"candidates": 1}, ValueError, "must have a row that differs"),
    (TABLE, {"seed": None}, ValueError, "seed=None"),
    (TABLE, {"seed": -1}, ValueError, "seed=-1"),
]


@pytest.mark.parametrize(
    ("x", "options", "error", "message"), WRONG, ids=[it[-1] for it in WRONG]
)
def test_what_can_not_be(x: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=f"(?s){message}"):
        augment_rows(x, **options)
