"""An index on disk: the positions of rows by 64-bit keys, content hashes or ids.

Its file holds the sorted keys, then their positions, then the positions of two rows
with the same key, or 0 and 0 if all keys differ. It is read through a memory map. It
is built in pieces of bounded size, so that its memory doesn't grow with the recording.
"""

import hashlib
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill.targets.shards import Reader

# Rows that are sorted at once, in 16 bytes each.
_SORTED_AT_ONCE = 1_000_000


class Index:
    """Finds rows of a recording by a column of keys.

    The index is kept in the recording's directory as a hidden file. If that can't be
    written, it is an unnamed file in the system's directory for temporary files.

    Args:
        reader: The recording.
        column: The name of the column.
    """

    def __init__(self, reader: Reader, column: str) -> None:
        self.rows = reader.rows
        size = 16 * self.rows + 16
        path = reader.directory / f".index-{column}-{_version(reader)}"
        if not path.is_file() or path.stat().st_size != size:
            path = _made(reader, column, path)
        numbers = np.memmap(path, "<u8", mode="r")
        self._keys = numbers[: self.rows]
        self._positions = numbers[self.rows : -2]
        self._twice = numbers[-2:].astype("int64")
        if path.parent != reader.directory:
            path.unlink()  # The memory map keeps its content.

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the position of each key, and a mask of the keys that were found."""
        wanted = _mixed(keys)
        places = np.searchsorted(self._keys, wanted)
        places = np.minimum(places, self.rows - 1)
        return self._positions[places].astype("int64"), self._keys[places] == wanted

    def duplicate(self) -> tuple[int, int] | None:
        """Return the positions of two rows with the same key, if there are any."""
        first, second = map(int, self._twice)
        return (first, second) if first != second else None


def _version(reader: Reader) -> str:
    """Return a name for the content of the shards, so that no older index is read."""
    shards = json.dumps(reader.manifest.shards, sort_keys=True)
    return hashlib.sha256(shards.encode()).hexdigest()[:16]


def _made(reader: Reader, column: str, path: Path) -> Path:
    """Write an index and return its path, a temporary one if `path` isn't writable."""
    try:
        scratch = path.with_name(f".writing-{secrets.token_hex(4)}.shard-index")
        scratch.touch()
    except OSError:
        descriptor, name = tempfile.mkstemp()
        os.close(descriptor)
        path = scratch = Path(name)
    try:
        _build(reader, column, scratch)
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    return path


def _build(reader: Reader, column: str, path: Path) -> None:
    """Sort the keys of all rows by their leading bits, then within each piece."""
    rows = reader.rows
    bits = max((rows - 1) // _SORTED_AT_ONCE, 0).bit_length()
    counts = np.zeros(2**bits, "int64")
    for keys in reader.column(column):
        counts += np.bincount(_piece(_mixed(keys), bits), minlength=2**bits)
    ends = np.cumsum(counts)
    next_free = ends - counts
    twice = np.zeros(2, "<u8")
    with path.open("r+b") as file:
        file.truncate(16 * rows + 16)
        position = 0
        for keys in reader.column(column):
            mixed = _mixed(keys)
            positions = np.arange(position, position + len(keys), dtype="<u8")
            position += len(keys)
            pieces = _piece(mixed, bits)
            for piece in np.unique(pieces):
                inside = pieces == piece
                _write(file, rows, next_free[piece], mixed[inside], positions[inside])
                next_free[piece] += inside.sum()
        for start, count in zip(ends - counts, counts, strict=True):
            file.seek(8 * start)
            mixed = np.fromfile(file, "<u8", count)
            file.seek(8 * (rows + start))
            positions = np.fromfile(file, "<u8", count)
            # Stable, so that of rows with one key the first is found.
            order = np.argsort(mixed, kind="stable")
            mixed, positions = mixed[order], positions[order]
            _write(file, rows, start, mixed, positions)
            same = np.flatnonzero(mixed[1:] == mixed[:-1])
            if same.size:
                twice = positions[same[0] :][:2]
        file.seek(16 * rows)
        file.write(twice.tobytes())


def _write(
    file: Any, rows: int, place: int, keys: np.ndarray, positions: np.ndarray
) -> None:
    file.seek(8 * int(place))
    file.write(keys.astype("<u8").tobytes())
    file.seek(8 * (rows + int(place)))
    file.write(positions.astype("<u8").tobytes())


def _piece(mixed: np.ndarray, bits: int) -> np.ndarray:
    """Return the leading bits of keys."""
    return (
        (mixed >> np.uint64(64 - bits)).astype("int64")
        if bits
        else np.zeros(len(mixed), "int64")
    )


def _mixed(keys: np.ndarray) -> np.ndarray:
    """Return keys with mixed bits, because ids may be consecutive.

    Different keys stay different. The mixing is that of SplitMix64.
    """
    mixed = np.ascontiguousarray(keys).view("uint64").copy()
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
