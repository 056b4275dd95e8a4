"""Formats in which a teacher's outputs are stored, and read back for losses."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_distill.targets.records import Column
from keras_distill.types import Tensor

Shape = tuple[int, ...]
Arrays = Mapping[str, np.ndarray]
Place = tuple[int, int]

_FLOATS = ("float16", "float32")
# Losses read ids as float32, which holds whole numbers up to here exactly.
_LARGEST_ID = 2**24
# How far the sum of a row's probabilities may be from 1. Teachers that compute in half
# precision return such sums.
OFF_ONE = 1e-2


class Format(ABC):
    """A form in which one output of a teacher is stored.

    Formats are frozen dataclasses. The manifest keeps their fields.
    """

    @abstractmethod
    def columns(self, shape: Shape) -> Sequence[Column]:
        """Return the columns of an output.

        Args:
            shape: The output's shape without the rows.
        """

    @abstractmethod
    def pack(self, output: Tensor, from_logits: bool) -> dict[str, Tensor]:
        """Return the columns' values. It runs in one function with the teacher.

        Args:
            output: The output of a batch.
            from_logits: Whether the output holds logits; otherwise, probabilities.
        """

    @abstractmethod
    def packed_shape(self, shape: Shape) -> Shape:
        """Return the shape that `unpack` returns, without the rows."""

    @abstractmethod
    def unpack(self, arrays: Arrays) -> np.ndarray:
        """Return the values that losses read, in float32, given the stored columns."""

    def stored(self, arrays: Arrays, shape: Shape, place: Place) -> Arrays:
        """Return the values as they are stored, given those that `pack` returned.

        Args:
            arrays: The values of a batch.
            shape: The output's shape without the rows.
            place: The position of the batch's first row in the recording, and the
                number of the view.
        """
        return {
            column.name: _cast(arrays[column.name], column.dtype)
            for column in self.columns(shape)
        }

    def get_config(self) -> dict[str, Any]:
        """Return the format's name and fields, as the manifest keeps them."""
        return {"class": type(self).__name__, **vars(self)}


@dataclasses.dataclass(frozen=True)
class LogProbabilities(Format):
    """All classes' log-probabilities at temperature 1, and their log-sum-exp.

    For the logits `z`, `log p = z - logsumexp(z)` is stored in `dtype`, and the
    log-sum-exp in float32. Losses read the logits `z = log p + logsumexp(z)`, so any
    temperature can be chosen when a student is trained.

    Args:
        dtype: `"float32"` (default) or `"float16"`.

    Raises:
        ValueError: If `dtype` is another one.

    Example:
        >>> LogProbabilities("float16").get_config()
        {'class': 'LogProbabilities', 'dtype': 'float16'}
    """

    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)

    def columns(self, shape: Shape) -> Sequence[Column]:
        """Return the columns `log_p` and `logsumexp`."""
        _classes(self, shape)
        return [
            Column("log_p", self.dtype, shape),
            Column("logsumexp", "float32", shape[:-1]),
        ]

    def pack(self, output: Tensor, from_logits: bool) -> dict[str, Tensor]:
        """Return the log-probabilities and their log-sum-exp."""
        log_p, logsumexp = _log_probabilities(output, from_logits)
        return {"log_p": log_p, "logsumexp": logsumexp}

    def packed_shape(self, shape: Shape) -> Shape:
        """Return the shape of the logits."""
        return shape

    def unpack(self, arrays: Arrays) -> np.ndarray:
        """Return the logits."""
        log_p = arrays["log_p"].astype("float32", copy=False)
        return log_p + arrays["logsumexp"][..., None]


@dataclasses.dataclass(frozen=True)
class Values(Format):
    """The numbers themselves, e.g. of regressions, embeddings, sigmoid units or hints.

    Args:
        dtype: `"float32"` (default) or `"float16"`.

    Raises:
        ValueError: If `dtype` is another one.

    Example:
        >>> Values().columns((3,))
        [Column(name='values', dtype='float32', shape=(3,))]
    """

    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_dtype(self.dtype)

    def columns(self, shape: Shape) -> Sequence[Column]:
        """Return the column `values`."""
        return [Column("values", self.dtype, shape)]

    def pack(self, output: Tensor, from_logits: bool) -> dict[str, Tensor]:
        """Return the numbers."""
        return {"values": ops.cast(output, "float32")}

    def packed_shape(self, shape: Shape) -> Shape:
        """Return the shape of the output."""
        return shape

    def stored(self, arrays: Arrays, shape: Shape, place: Place) -> Arrays:
        """Return the numbers in `dtype`, with infinity where one is too large."""
        # Not clipped: a number that can't be stored must stop the recording.
        with np.errstate(over="ignore"):
            return {"values": arrays["values"].astype(self.dtype)}

    def unpack(self, arrays: Arrays) -> np.ndarray:
        """Return the numbers in float32."""
        return arrays["values"].astype("float32", copy=False)


@dataclasses.dataclass(frozen=True)
class TopK(Format):
    """The `k` likeliest classes, and the probability of the rest as one more class.

    The format stores the classes' ids, their log-probabilities at temperature 1, the
    logarithm of the rest's probability, and the log-sum-exp of the logits. In the
    batch, the last axis holds these `2 * k + 2` numbers in this order.
    `losses.TopKForwardKL` reads them.

    Args:
        k: The number of classes to keep. It must be below the number of classes.
        dtype: The dtype of the log-probabilities, `"float16"` (default) or `"float32"`.

    Raises:
        ValueError: If `k` isn't a positive whole number, or `dtype` is another one.

    Example:
        >>> TopK(16).packed_shape((1000,))
        (34,)
    """

    k: int
    dtype: str = "float16"

    def __post_init__(self) -> None:
        _check_positive("k", self.k)
        _check_dtype(self.dtype)

    def columns(self, shape: Shape) -> Sequence[Column]:
        """Return the columns `ids`, `log_p`, `log_rest` and `logsumexp`."""
        classes = _classes(self, shape)
        if self.k >= classes:
            raise ValueError(
                "`k` must be smaller than the number of classes. To store them all, "
                f"use `LogProbabilities`. Received: k={self.k} for {classes} classes"
            )
        kept = (*shape[:-1], self.k)
        return [
            Column("ids", _id_dtype(classes), kept),
            Column("log_p", self.dtype, kept),
            Column("log_rest", "float32", shape[:-1]),
            Column("logsumexp", "float32", shape[:-1]),
        ]

    def pack(self, output: Tensor, from_logits: bool) -> dict[str, Tensor]:
        """Return the likeliest classes and the logarithm of the rest's probability."""
        log_p, logsumexp = _log_probabilities(output, from_logits)
        classes = int(log_p.shape[-1])
        kept, ids = ops.top_k(log_p, self.k)
        # By logsumexp over the rest: where the teacher is sure, 1 - sum(p) would hold
        # rounding errors only.
        flat = ops.reshape(log_p, (-1, classes))
        flat_ids = ops.reshape(ids, (-1, self.k))
        rows = ops.broadcast_to(
            ops.expand_dims(ops.arange(ops.shape(flat)[0], dtype="int32"), -1),
            ops.shape(flat_ids),
        )
        places = ops.stack([rows, ops.cast(flat_ids, "int32")], axis=-1)
        rest = ops.scatter_update(
            flat,
            ops.reshape(places, (-1, 2)),
            ops.full_like(ops.reshape(kept, (-1,)), -np.inf),
        )
        log_rest = ops.reshape(ops.logsumexp(rest, axis=-1), ops.shape(logsumexp))
        return {
            "ids": ids,
            "log_p": kept,
            "log_rest": log_rest,
            "logsumexp": logsumexp,
        }

    def packed_shape(self, shape: Shape) -> Shape:
        """Return the shape with `2 * k + 2` as its last axis."""
        return (*shape[:-1], 2 * self.k + 2)

    def unpack(self, arrays: Arrays) -> np.ndarray:
        """Return ids, log-probabilities, the rest and the log-sum-exp side by side."""
        scalars = [arrays[name][..., None] for name in ("log_rest", "logsumexp")]
        parts = [arrays["ids"], arrays["log_p"], *scalars]
        return np.concatenate([part.astype("float32") for part in parts], axis=-1)


@dataclasses.dataclass(frozen=True)
class Sampled(Format):
    r"""Classes drawn at random by their probabilities, and how often each was drawn.

    If a class is drawn `c` times, its share `c / n` is an unbiased estimate of its
    probability at temperature 1. Cross-entropy and forward KL are linear in the
    probabilities, so their gradients are unbiased. In the batch, the last axis holds
    `2 * n` numbers: the ids of the drawn classes, then their shares. Both are padded
    with zeros. `losses.SampledSoftTargets` reads them.

    Args:
        n: The number of draws for each distribution.
        seed: The seed of the draws. Defaults to 0.

    Raises:
        ValueError: If `n` isn't a positive whole number.

    Example:
        >>> Sampled(50).packed_shape((10000,))
        (100,)
    """

    n: int
    seed: int = 0

    def __post_init__(self) -> None:
        _check_positive("n", self.n)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(
                f"`seed` must be a whole number. Received: seed={self.seed!r}"
            )

    def columns(self, shape: Shape) -> Sequence[Column]:
        """Return the columns `ids` and `counts`."""
        drawn = (*shape[:-1], self.n)
        return [
            Column("ids", _id_dtype(_classes(self, shape)), drawn),
            Column("counts", _id_dtype(self.n + 1), drawn),
        ]

    def pack(self, output: Tensor, from_logits: bool) -> dict[str, Tensor]:
        """Return the log-probabilities, from which `stored` draws."""
        return {"log_p": _log_probabilities(output, from_logits)[0]}

    def packed_shape(self, shape: Shape) -> Shape:
        """Return the shape with `2 * n` as its last axis."""
        return (*shape[:-1], 2 * self.n)

    def stored(self, arrays: Arrays, shape: Shape, place: Place) -> Arrays:
        """Return the drawn ids and their counts."""
        given = np.asarray(arrays["log_p"], "float64")
        check_finite("log_p", given, place[0])  # NaN would draw class 0.
        log_p = given.reshape(-1, given.shape[-1])
        # In NumPy, so that all backends draw the same.
        random = np.random.default_rng([self.seed % 2**64, *place])
        cumulated = np.cumsum(np.exp(log_p), axis=-1)
        points = np.sort(random.random((len(log_p), self.n)), axis=-1)
        points *= cumulated[:, -1:]
        classes = log_p.shape[-1]
        drawn = np.stack(
            [
                np.minimum(np.searchsorted(c, p, side="right"), classes - 1)
                for c, p in zip(cumulated, points, strict=True)
            ]
        )
        ids, counts = _counted(drawn)
        return {
            column.name: values.reshape(len(given), *column.shape).astype(column.dtype)
            for column, values in zip(self.columns(shape), (ids, counts), strict=True)
        }

    def unpack(self, arrays: Arrays) -> np.ndarray:
        """Return the ids and the shares side by side."""
        shares = arrays["counts"].astype("float32") / np.float32(self.n)
        return np.concatenate([arrays["ids"].astype("float32"), shares], axis=-1)


_FORMATS = {f.__name__: f for f in (LogProbabilities, Values, TopK, Sampled)}


def from_config(config: Mapping[str, Any]) -> Format:
    """Return the format of a config that `get_config` returned."""
    fields = {name: value for name, value in config.items() if name != "class"}
    try:
        return _FORMATS[config["class"]](**fields)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"A stored format must be one of {sorted(_FORMATS)} with its arguments. "
            f"Received: {dict(config)}"
        ) from error


def _log_probabilities(output: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and the log-sum-exp of the logits, in float32."""
    output = ops.cast(output, "float32")
    if not from_logits:
        total = ops.sum(output, axis=-1, keepdims=True)
        are_probabilities = ops.abs(total - 1.0) < OFF_ONE
        are_probabilities &= ops.min(output, axis=-1, keepdims=True) >= 0.0
        # The smallest normal float32: a probability of 0 has no logarithm.
        output = ops.log(ops.maximum(output, np.finfo("float32").tiny))
        # `check_finite` raises an error for rows that aren't probabilities.
        output = ops.where(are_probabilities, output, np.nan)
    logsumexp = ops.logsumexp(output, axis=-1)
    return ops.log_softmax(output, axis=-1), logsumexp


def _counted(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row's different numbers and their counts, padded with 0.

    Args:
        drawn: Numbers in ascending order in each row.
    """
    is_first = np.ones(drawn.shape, bool)
    is_first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    place = np.cumsum(is_first, axis=-1) - 1
    rows = np.arange(len(drawn))[:, None]
    ids, counts = np.zeros_like(drawn), np.zeros_like(drawn)
    ids[rows, place] = drawn
    np.add.at(counts, (rows, place), 1)
    return ids, counts


def _cast(values: np.ndarray, dtype: str) -> np.ndarray:
    """Return an array in another dtype. Finite numbers stay finite."""
    if dtype == "float16" and np.isfinite(values).all():
        # Log-probabilities below it are 0 as probabilities at any usual temperature.
        values = np.maximum(values, np.finfo(dtype).min)
    return values.astype(dtype, copy=False)


def check_finite(name: str, values: np.ndarray, first_row: int) -> None:
    """Raise ValueError if rows of numbers hold NaN or infinity.

    Args:
        name: The name of the column.
        values: Its values for a batch.
        first_row: The position of the batch's first row in the recording.
    """
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    rows = values.reshape(len(values), -1)
    row = np.flatnonzero(~np.isfinite(rows).all(axis=-1))[0]
    number = rows[row][~np.isfinite(rows[row])][0]
    large = (
        " float16 ends at 65504; store float32." if values.dtype == "float16" else ""
    )
    raise ValueError(
        f"The teacher's outputs must be finite to be stored.{large} With "
        f"`from_logits=False` they must be probabilities. Received: {number} "
        f"in row {first_row + row}, column '{name}'"
    )


def _classes(stored: Format, shape: Shape) -> int:
    """Return the number of classes of an output, its last axis."""
    if not shape:
        raise ValueError(
            f"`{type(stored).__name__}` stores outputs with a class axis. Use `Values` "
            "for one number a row. Received: an output of shape (rows,)"
        )
    return shape[-1]


def _id_dtype(count: int) -> str:
    """Return the smallest unsigned dtype for the numbers below `count`."""
    if count > _LARGEST_ID:
        raise ValueError(
            "Losses read ids as float32, which is exact up to 2**24. Received: "
            f"{count} classes"
        )
    return str(np.min_scalar_type(count - 1))


def _check_dtype(dtype: Any) -> None:
    if dtype not in _FLOATS:
        raise ValueError(f"`dtype` must be one of {_FLOATS}. Received: dtype={dtype!r}")


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"`{name}` must be a whole number from 1 on. Received: {name}={value!r}"
        )
