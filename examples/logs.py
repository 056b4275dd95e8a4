"""A log for the examples: columns in the order of time, with those of the teacher."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

UNKNOWN = 1  # the id of a value that training rows don't have twice


class Log(NamedTuple):
    """Rows in the order of time; ids begin with 1, 0 is padding.

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

    Whole batches are read, by the numbers of their rows: `shuffle` of single rows takes
    five times as long.

    Args:
        x: Arrays of shape (rows, ...), in any structure.
        y: Labels of shape (rows, ...).
        batch_size: The mean number of rows in a batch is this or somewhat less.
        seed: The seed of the order, beside TensorFlow's global one.
        lists: The number of each row's list, 0 and up, of shape (rows,). Then lists are
            shuffled, and each is in one batch; none may be longer than a batch.
    """
    columns = tf.nest.map_structure(tf.constant, (x, y))
    rows = len(tf.nest.flatten(columns)[0])
    count = -(-rows // batch_size)

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
        return cuts.map(lambda begin, end: order[begin:end])

    def gathered(index: tf.Tensor) -> Any:
        return tf.nest.map_structure(lambda column: tf.gather(column, index), columns)

    epochs = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).take(1)
    known = tf.data.experimental.assert_cardinality(count)
    return epochs.flat_map(in_order).map(gathered).apply(known).prefetch(2)


def ids(values: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Return ids of values: 2 and more for those that training rows hold twice."""
    names, counts = np.unique(values[training], return_counts=True)
    names = names[counts >= 2]
    place = np.minimum(np.searchsorted(names, values), len(names) - 1)
    return np.where(names[place] == values, place + UNKNOWN + 1, UNKNOWN)


def make(
    x: Mapping[str, np.ndarray],
    y: Mapping[str, np.ndarray],
    privileged: Mapping[str, tuple[str, ...]],
) -> Log:
    """Make a log of columns: integers are ids, all others numbers."""

    def column(values: np.ndarray) -> np.ndarray:
        dtype = "int32" if np.issubdtype(values.dtype, np.integer) else "float32"
        return values.reshape(len(values), -1).astype(dtype)

    x = {name: column(values) for name, values in x.items()}
    y = {name: values.astype("float32")[:, None] for name, values in y.items()}
    of_ids = {name: it for name, it in x.items() if it.dtype == np.int32}
    sizes = {name: int(column.max()) + 1 for name, column in of_ids.items()}
    return Log(x, y, privileged, sizes)
