"""A log for the examples: rows in the order of time, with columns for the teacher."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

UNKNOWN = 1  # the id of a value that fewer than two training rows have


class Log(NamedTuple):
    """Rows in the order of time. Ids begin with 1, and 0 is padding.

    Args:
        x: Columns of shape (rows, n). Ids are int32, numbers float32. Click logs have
            `user`, `item`, `category` of shape (rows, 1) and `history` (rows, 10).
        y: Labels, float32 of shape (rows, 1), by task.
        privileged: The columns of `x` that only a teacher may read, by task.
        sizes: One more than the largest id, by column of ids, in all rows of the log.
        truth: The probability of a purchase given a click and what a student may read,
            of shape (rows, 1), where it is known.
        day: The date of each row as yyyymmdd, of shape (rows,), where it is known.
    """

    x: dict[str, np.ndarray]
    y: dict[str, np.ndarray]
    privileged: Mapping[str, tuple[str, ...]]
    sizes: Mapping[str, int]
    truth: np.ndarray | None = None
    day: np.ndarray | None = None

    @property
    def size(self) -> int:
        """Return the number of rows."""
        return len(next(iter(self.x.values())))

    @property
    def hidden(self) -> tuple[str, ...]:
        """Return the names of all privileged columns."""
        return tuple(dict.fromkeys(sum(self.privileged.values(), ())))

    @property
    def known(self) -> tuple[str, ...]:
        """Return the names of the columns that a student reads."""
        return tuple(name for name in self.x if name not in self.hidden)

    def split(self, share: float) -> tuple["Log", "Log"]:
        """Return the first `share` of the rows, and those that came later."""
        first = int(share * self.size)
        return self.rows(slice(first)), self.rows(slice(first, None))

    def split_at(self, day: int) -> tuple["Log", "Log"]:
        """Return the rows before a day (yyyymmdd), and those from it on."""
        return self.rows(self.day < day), self.rows(self.day >= day)

    def rows(self, index: slice | np.ndarray) -> "Log":
        """Return some of the rows."""
        x, y = ({k: v[index] for k, v in d.items()} for d in (self.x, self.y))
        known = (None if it is None else it[index] for it in (self.truth, self.day))
        return Log(x, y, self.privileged, self.sizes, *known)

    def shuffled(self, seed: int) -> "Log":
        """Return the log with the privileged columns of other rows: a control."""
        other = np.random.default_rng(seed).permutation(self.size)
        moved = {name: self.x[name][other] for name in self.hidden}
        return self._replace(x={**self.x, **moved})


def batches(
    x: Any, y: Any, batch_size: int, seed: int, *, lists: np.ndarray | None = None
) -> tf.data.Dataset:
    """Return rows as batches (x, y), which are shuffled anew in each epoch.

    A batch is read at once, by the indices of its rows. `shuffle` of single rows takes
    five times as long, and a `gather` for each column twice as long.

    Args:
        x: Arrays of shape (rows, ...), in any structure.
        y: Labels of shape (rows, ...).
        batch_size: The mean number of rows in a batch is this or somewhat less.
        seed: The seed of the order, in addition to TensorFlow's global seed.
        lists: The number of each row's list, from 0, of shape (rows,). If it is given,
            whole lists are shuffled, and each list is in one batch. No list may be
            longer than a batch.
    """
    columns = tf.nest.flatten((x, y))
    rows = len(columns[0])
    count = -(-rows // batch_size)
    tables = [_Table(columns, dtype) for dtype in {it.dtype for it in columns}]

    def in_order(epoch: tf.Tensor) -> tf.data.Dataset:
        place = tf.range(rows if lists is None else lists.max() + 1)
        place = tf.random.experimental.stateless_shuffle(place, [seed, epoch])
        order, begins = place, tf.range(rows, dtype="int64")
        if lists is not None:
            places = tf.gather(place, lists)
            order = tf.argsort(places, stable=True)
            sorted_lists = tf.gather(places, order)
            begins = tf.searchsorted(sorted_lists, sorted_lists, out_type="int64")
        # A row is in the batch in which its list begins.
        batch = begins * count // rows
        ends = tf.searchsorted(batch, tf.range(count, dtype="int64"), side="right")
        begins = tf.concat([[0], ends[:-1]], 0)
        cuts = tf.data.Dataset.from_tensor_slices((begins, ends))
        # A map over a data set that is made anew in each epoch would be slower.
        return tf.data.Dataset.zip(tf.data.Dataset.from_tensors(order).repeat(), cuts)

    def gathered(order: tf.Tensor, cut: tuple[tf.Tensor, tf.Tensor]) -> Any:
        index = order[cut[0] : cut[1]]
        parts = {k: v for table in tables for k, v in table.at(index).items()}
        ordered = [parts[number] for number in range(len(columns))]
        return tf.nest.pack_sequence_as((x, y), ordered)

    epochs = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)
    known = tf.data.experimental.assert_cardinality(count)
    return epochs.flat_map(in_order).map(gathered).apply(known).prefetch(2)


class _Table:
    """The columns of one dtype side by side: one `gather` reads a batch of them."""

    def __init__(self, columns: Sequence[np.ndarray], dtype: np.dtype) -> None:
        chosen = {
            k: column for k, column in enumerate(columns) if column.dtype == dtype
        }
        self.shapes = {k: column.shape[1:] for k, column in chosen.items()}
        flat = [column.reshape(len(column), -1) for column in chosen.values()]
        self.widths = [column.shape[1] for column in flat]
        self.values = tf.constant(np.concatenate(flat, axis=1))

    def at(self, index: tf.Tensor) -> dict[int, tf.Tensor]:
        """Return rows of all columns, by the number of the column."""
        parts = tf.split(tf.gather(self.values, index), self.widths, axis=1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {
            k: part if len(shape) == 1 else tf.reshape(part, (-1, *shape))
            for (k, shape), part in named
        }


def ids(values: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Return ids of values: 2 or more for values in at least two training rows."""
    names, counts = np.unique(values[training], return_counts=True)
    names = names[counts >= 2]
    place = np.minimum(np.searchsorted(names, values), len(names) - 1)
    return np.where(names[place] == values, place + UNKNOWN + 1, UNKNOWN)


def make(
    x: Mapping[str, np.ndarray],
    y: Mapping[str, np.ndarray],
    privileged: Mapping[str, tuple[str, ...]],
) -> Log:
    """Make a log from columns. Integers are ids, and all others are numbers."""

    def column(values: np.ndarray) -> np.ndarray:
        dtype = "int32" if np.issubdtype(values.dtype, np.integer) else "float32"
        return values.reshape(len(values), -1).astype(dtype)

    x = {name: column(values) for name, values in x.items()}
    y = {name: values.astype("float32")[:, None] for name, values in y.items()}
    of_ids = {name: it for name, it in x.items() if it.dtype == np.int32}
    sizes = {name: int(column.max()) + 1 for name, column in of_ids.items()}
    return Log(x, y, privileged, sizes)
