"""Blocks of rows: the layout of columns in a shard's TFRecords, and reading of rows."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

# A TFRecord holds its length (8 bytes), the length's checksum (4), the data, and their
# checksum (4).
BEFORE, AFTER = 12, 4


class Column(NamedTuple):
    """One value, or an array of values, in each row.

    Args:
        name: Its name.
        dtype: The dtype of its numbers.
        shape: Its shape without the rows.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes_per_row(self) -> int:
        """The number of bytes of the column in a row."""
        return self.stored_dtype.itemsize * math.prod(self.shape)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Its dtype in files, little-endian on every machine."""
        return np.dtype(self.dtype).newbyteorder("<")


class Layout:
    """The columns of a row, and the offsets of rows in a shard.

    A shard is a TFRecord file. Each record is a block of rows: all values of the first
    column, then all of the second, and so on. All blocks have the same number of rows,
    except the last of a shard, which may have fewer. So a row's offset can be computed.

    Args:
        columns: The columns.
        block_rows: The number of rows in a block.
    """

    def __init__(self, columns: Sequence[Column], block_rows: int) -> None:
        self.columns = list(columns)
        self.block_rows = block_rows
        self.row_bytes = sum(column.bytes_per_row for column in columns)

    def encode(self, arrays: Mapping[str, np.ndarray]) -> bytes:
        """Return a block of rows as bytes."""
        return b"".join(
            np.ascontiguousarray(arrays[column.name], column.stored_dtype).tobytes()
            for column in self.columns
        )

    def file_size(self, rows: int) -> int:
        """Return the size in bytes of a shard with a number of rows."""
        blocks = -(-rows // self.block_rows)
        return rows * self.row_bytes + blocks * (BEFORE + AFTER)

    def views(self, buffer: Any, rows: int) -> "Views":
        """Return the columns of a shard, given its file's content as a buffer."""
        full, rest = divmod(rows, self.block_rows)
        record = self.block_rows * self.row_bytes + BEFORE + AFTER
        blocks = dict(self._of_blocks(buffer, 0, full, self.block_rows))
        tail = dict(self._of_blocks(buffer, full * record, 1 if rest else 0, rest))
        return Views(self, blocks, tail, full * self.block_rows)

    def _of_blocks(
        self, buffer: Any, start: int, blocks: int, rows: int
    ) -> Iterator[tuple[str, np.ndarray]]:
        """Yield each column of blocks in a buffer, of shape (blocks, rows, ...)."""
        record = rows * self.row_bytes + BEFORE + AFTER
        offset = start + BEFORE
        for column in self.columns:
            shape = (blocks, rows, *column.shape)
            if blocks:
                within = np.empty(column.shape, column.stored_dtype).strides
                yield (
                    column.name,
                    np.ndarray(
                        shape,
                        column.stored_dtype,
                        buffer=buffer,
                        offset=offset,
                        strides=(record, column.bytes_per_row, *within),
                    ),
                )
            else:
                yield column.name, np.empty(shape, column.stored_dtype)
            offset += rows * column.bytes_per_row


class Views(NamedTuple):
    """The columns of a shard, not copied: those of its full blocks, then the rest."""

    layout: Layout
    blocks: dict[str, np.ndarray]
    tail: dict[str, np.ndarray]
    in_blocks: int

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return a copy of rows of a column, by their positions in the shard."""
        inside = rows < self.in_blocks
        if inside.all():
            return self._of_blocks(name, rows)
        if not inside.any():
            rest: np.ndarray = self.tail[name][0]
            return np.asarray(rest[rows - self.in_blocks])
        column = self.blocks[name]
        taken = np.empty((len(rows), *column.shape[2:]), column.dtype)
        taken[inside] = self._of_blocks(name, rows[inside])
        taken[~inside] = self.tail[name][0][rows[~inside] - self.in_blocks]
        return taken

    def _of_blocks(self, name: str, rows: np.ndarray) -> np.ndarray:
        block, within = np.divmod(rows, self.layout.block_rows)
        taken: np.ndarray = self.blocks[name][block, within]
        return taken
