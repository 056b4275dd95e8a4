"""Unlabelled rows for a table, made from its rows and their nearest neighbours."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from keras_distill.targets.checks import checked_count

Array = np.ndarray
# Up to this number of categories in a column, each gets an axis when distances are
# computed. Above it, each gets a random code of this many signs. Any two codes are then
# nearly equally far apart.
_AXES = 64
# How many distances are held in memory at once.
_AT_ONCE = 2**24
# Whole numbers up to here are exact as float64.
_LARGEST = 2**53


def augment_rows(
    x: Any,
    *,
    copies: int = 1,
    categorical: Collection[Any] = (),
    integer: Collection[Any] = (),
    probability: float = 0.5,
    spread: float = 1.0,
    candidates: int = 50_000,
    seed: int = 0,
) -> Any:
    r"""Return rows like those of a table, for a teacher to label.

    This is the method MUNGE. Each row is made from a row `e` of `x` and the nearest row
    `e'` that differs from it. Each column keeps its value of `e`, or with `probability`
    it gets

        numeric:       a draw from Normal(e', (spread * |e - e'|)**2)
        integer:       the same, rounded
        categorical:   e'

    So the rows stay close to rows of the table. Independent draws from each column
    wouldn't. Values stay in the range of the column. A missing value (NaN) is exchanged
    like a category.

    In distances, a difference of one standard deviation in a number counts as much as
    a different category. The time grows with the number of rows times `candidates`. In
    the paper, `e'` also gets the values of `e`. Here, `e'` has rows of its own.

    Args:
        x: A dict of arrays of shape `(rows,)` or `(rows, 1)`, or an array of shape
            `(rows, columns)`. Floats are numeric. Integers are integer. Text, bytes,
            objects and bools are categorical.
        copies: The number of rows to make from each row.
        categorical: Columns whose numbers are codes: keys of the dict, or positions in
            the array.
        integer: Columns of floats that hold whole numbers only.
        probability: The probability that a value is exchanged; `p` in the paper.
        spread: The factor of the standard deviations; `1 / s` in the paper.
        candidates: The number of rows, drawn at random, among which the nearest row is
            searched.
        seed: The same seed gives the same rows.

    Returns:
        `copies` times as many rows as `x` has, of the same structure and dtypes,
        without the rows of `x`.

    Raises:
        TypeError: `x` is neither a dict of arrays nor an array.
        ValueError: A column or another argument isn't usable.

    Example:
        >>> import numpy as np
        >>> from keras_distill import targets
        >>> x = {"age": np.array([30, 40, 50]), "job": np.array(["a", "b", "b"])}
        >>> made = targets.augment_rows(x, copies=2, seed=1)
        >>> made["age"].shape, made["age"].dtype == x["age"].dtype, set(made["job"])
        ((6,), True, {...})

    Reference: Bucila, Caruana, Niculescu-Mizil 2006, "Model compression".
    """
    _check(probability, spread, seed)
    columns = _columns(x, set(categorical), set(integer))
    rng = np.random.default_rng(seed)
    points = np.concatenate([column.axes(rng) for column in columns.values()], axis=1)
    neighbours = _neighbours(points, checked_count("candidates", candidates), rng)
    own = np.tile(np.arange(len(points)), checked_count("copies", copies))
    other = neighbours[own]
    made = {}
    for name, column in columns.items():
        exchanged = rng.random(len(own)) < probability
        made[name] = column.made(own, other, exchanged, spread, rng)
    if isinstance(x, Mapping):
        return made
    return np.stack(list(made.values()), axis=1)


@dataclasses.dataclass(frozen=True)
class _Column:
    """A column of a table.

    Args:
        given: Its values as they are.
        values: The same as float64; for categories, their numbers from 0 on.
        kind: `"numeric"`, `"integer"` or `"categorical"`.
    """

    given: Array
    values: Array
    kind: str

    def axes(self, rng: np.random.Generator) -> Array:
        """Return points of the column whose distances are those of its values."""
        if self.kind == "categorical":
            count = 1 + int(self.values.max())
            codes = np.eye(count)
            if count > _AXES:
                codes = rng.choice([-1.0, 1.0], (count, _AXES)) / np.sqrt(_AXES)
            points: Array = (codes * np.sqrt(0.5))[self.values.astype(int)]
            return points.astype("float32")
        missing = np.isnan(self.values)
        known = self.values[~missing]
        centred = self.values - (known.mean() if known.size else 0.0)
        deviation = (known.std() if known.size else 0.0) or 1.0
        scaled = np.where(missing, 0.0, centred / deviation)
        axes = [scaled, missing] if missing.any() else [scaled]
        return np.stack(axes, axis=1).astype("float32")

    def made(
        self,
        own: Array,
        other: Array,
        exchanged: Array,
        spread: float,
        rng: np.random.Generator,
    ) -> Array:
        """Return values for new rows, of which some get their neighbours' values.

        Args:
            own: The rows that the new rows are made from.
            other: The neighbours of these rows.
            exchanged: A mask of the rows whose value is exchanged.
            spread: Scales the standard deviations.
            rng: Draws the numbers.
        """
        if self.kind == "categorical":
            return self.given[np.where(exchanged, other, own)]
        before, after = self.values[own], self.values[other]
        noise = rng.standard_normal(len(own)) * spread
        drawn = after + noise * np.abs(after - before)
        # A missing value has no distance.
        drawn = np.where(np.isnan(before), after, drawn)
        if self.kind == "integer":
            drawn = np.rint(drawn)
        known = self.values[~np.isnan(self.values)]
        if known.size:
            drawn = np.clip(drawn, known.min(), known.max())
        drawn = drawn.astype(self.given.dtype).reshape(-1, *self.given.shape[1:])
        kept = ~exchanged.reshape(-1, *[1] * (self.given.ndim - 1))
        result: Array = np.where(kept, self.given[own], drawn)
        return result


def _columns(x: Any, categorical: set[Any], integer: set[Any]) -> dict[Any, _Column]:
    """Return the columns of a table by name, or by their position in an array."""
    if isinstance(x, Mapping):
        given = {name: np.asarray(values) for name, values in x.items()}
    else:
        array = np.asarray(x)
        if array.ndim != 2 or array.dtype.kind == "O":
            raise TypeError(
                "`x` must be a dict of arrays, or an array of shape (rows, columns) of "
                "one type. Of a DataFrame, pass `{name: frame[name].to_numpy() for "
                f"name in frame}}`. Received: x of type {type(x).__name__}, as an "
                f"array of {array.dtype} and shape {array.shape}"
            )
        given = dict(enumerate(array.T))
    sizes = {name: values.shape for name, values in given.items()}
    flat = all(len(it) == 1 or (len(it) == 2 and it[1] == 1) for it in sizes.values())
    rows = {it[0] for it in sizes.values() if it}
    if not flat or len(rows) != 1 or min(rows) < 2:
        raise ValueError(
            "The columns of `x` must have shape (rows,) or (rows, 1), with two rows or "
            f"more and as many in each. Received: shapes {sizes}"
        )
    unknown = [name for name in categorical | integer if name not in given]
    if unknown or categorical & integer:
        raise ValueError(
            "`categorical` and `integer` must be columns of `x`, each in one of them. "
            f"Received: categorical={sorted(categorical, key=str)}, "
            f"integer={sorted(integer, key=str)}, columns {sorted(given, key=str)}"
        )
    return {
        name: _column(name, values, name in categorical, name in integer)
        for name, values in given.items()
    }


def _column(name: Any, given: Array, is_categorical: bool, is_integer: bool) -> _Column:
    """Return a column with its kind, checked."""
    flat = given.reshape(len(given))
    if is_categorical or flat.dtype.kind not in "iuf":
        if is_integer:
            raise ValueError(
                "`integer` must name columns of numbers. Received: "
                f"{name!r} of {flat.dtype}"
            )
        try:
            _, codes = np.unique(flat, return_inverse=True)
        except TypeError as error:
            raise ValueError(
                "A categorical column must hold values of one type: replace None by a "
                f"text of its own. Received: {name!r} ({error})"
            ) from error
        return _Column(given, codes.astype("float64"), "categorical")
    values = flat.astype("float64")
    wrong = values[np.isinf(values)]
    if wrong.size:
        raise ValueError(
            "A column of `x` must not hold infinity. Received: "
            f"{name!r} with {wrong[0]}"
        )
    if not is_integer and flat.dtype.kind == "f":
        return _Column(given, values, "numeric")
    known = values[~np.isnan(values)]
    wrong = known[(known != np.rint(known)) | (np.abs(known) > _LARGEST)]
    if wrong.size:
        raise ValueError(
            "An integer column must hold whole numbers up to 2**53; name ids in "
            f"`categorical`. Received: {name!r} with {wrong[0]}"
        )
    return _Column(given, values, "integer")


def _neighbours(points: Array, candidates: int, rng: np.random.Generator) -> Array:
    """Return for each point the index of the nearest point that differs from it.

    Args:
        points: Points of shape `(rows, axes)`, centred.
        candidates: The number of points, drawn at random, among which it is searched.
        rng: Draws the candidates.
    """
    among = np.arange(len(points))
    if candidates < len(points):
        among = np.sort(rng.choice(len(points), candidates, replace=False))
    squares = (points**2).sum(axis=1)
    # A single product gives |b|**2 - 2ab, which is the distance less |a|**2.
    ones = np.ones((len(points), 1), points.dtype)
    left = np.concatenate([points, ones], axis=1)
    right = np.concatenate([-2 * points[among], squares[among, None]], axis=1).T
    # Equal rows have equal bytes; their distance in float32 needn't be 0.
    as_bytes = np.ascontiguousarray(points).view(f"V{points[0].nbytes}")
    _, same = np.unique(as_bytes.ravel(), return_inverse=True)
    size = max(1, _AT_ONCE // len(among))
    nearest = np.empty(len(points), int)
    for at in range(0, len(points), size):
        part = slice(at, at + size)
        distances = left[part] @ right
        distances[same[part, None] == same[among]] = np.inf
        best = distances.argmin(axis=1)
        if np.isinf(distances[np.arange(len(best)), best]).any():
            raise ValueError(
                "Each row of `x` must have a row that differs from it among the "
                f"candidates. Received: row {at} or one of the next {size} without, of "
                f"{len(points)} rows and {len(among)} candidates"
            )
        nearest[part] = among[best]
    return nearest


def _check(probability: Any, spread: Any, seed: Any) -> None:
    if not 0 < probability <= 1:
        raise ValueError(
            "`probability` must be above 0 and at most 1. Received: "
            f"probability={probability!r}"
        )
    if not 0 <= spread < np.inf:
        raise ValueError(
            f"`spread` must be finite and not negative. Received: spread={spread!r}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(
            f"`seed` must be a whole number from 0 on. Received: seed={seed!r}"
        )
