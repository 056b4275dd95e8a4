"""Shards: files of rows that are written completely, checked, and read in any order."""

import json
import mmap
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from keras_distill import atomic
from keras_distill.targets.manifest import Manifest, shard_name
from keras_distill.targets.records import Layout, Views

NAME = re.compile(r"shard-(?P<number>\d{5,})\.tfrecord")
_SCRATCH = re.compile(r"\.writing-[0-9a-f]{8}\.shard-.*")
# Each open shard takes a file descriptor, of which a process has 1,024 at least.
_OPEN_SHARDS = 512


class Writer:
    """Writes one shard. The file exists only once it is complete.

    Args:
        directory: The directory of the recording.
        number: The number of the shard.
        layout: The layout of its rows.
    """

    def __init__(self, directory: Path, number: int, layout: Layout) -> None:
        import tensorflow as tf

        self.path = directory / shard_name(number)
        self.layout = layout
        self.rows = 0
        self._waiting: list[Mapping[str, np.ndarray]] = []
        self._waiting_rows = 0
        # Other workers may write the same shard at the same time.
        token = secrets.token_hex(4)
        self._scratch = directory / f".writing-{token}.{self.path.name}"
        self._file = tf.io.TFRecordWriter(str(self._scratch))

    def append(self, arrays: Mapping[str, np.ndarray], rows: int) -> None:
        """Append the rows of a batch.

        Raises:
            OSError: If they can't be written.
        """
        with self._explained():
            self._append(arrays, rows)

    def close(self) -> None:
        """Write the remaining rows, and give the file its name and checksum.

        Raises:
            OSError: If they can't be written.
        """
        with self._explained():
            self._close()

    def _append(self, arrays: Mapping[str, np.ndarray], rows: int) -> None:
        self.rows += rows
        self._waiting.append(arrays)
        self._waiting_rows += rows
        if self._waiting_rows >= self.layout.block_rows:
            self._write_block()

    def _close(self) -> None:
        if self._waiting_rows:
            self._write_block()
        self._file.close()
        expected = self.layout.file_size(self.rows)
        if self._scratch.stat().st_size != expected:
            raise OSError(
                f"{self._scratch.stat().st_size} of {expected} bytes were written"
            )
        atomic.flush(self._scratch)
        note = {"rows": self.rows, "sha256": atomic.sha256(self._scratch)}
        atomic.replace_text(note_of(self.path), json.dumps(note))
        os.replace(self._scratch, self.path)
        atomic.flush(self.path.parent)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Remove the file after an error, and raise an error that says what remains."""
        import tensorflow as tf

        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self.discard()
            raise OSError(
                getattr(error, "errno", None),
                "The recording can't be written. Shards that are whole remain: call "
                "`targets.record` again once there is space, and it goes on. Received: "
                f"{self.path} ({error})",
            ) from error

    def discard(self) -> None:
        """Remove the unfinished file."""
        import tensorflow as tf

        # The error that led to this call explains more.
        with suppress(OSError, tf.errors.OpError):
            self._file.close()
        self._scratch.unlink(missing_ok=True)

    def _write_block(self) -> None:
        arrays = {
            column.name: np.concatenate([part[column.name] for part in self._waiting])
            for column in self.layout.columns
        }
        self._file.write(self.layout.encode(arrays))
        self._waiting, self._waiting_rows = [], 0


def note_of(path: Path) -> Path:
    """Return the file with the checksum of a shard whose recording isn't complete."""
    return path.with_suffix(".json")


def noted(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the checksums of the shards of an unfinished recording, by file name."""
    found = {}
    for path in sorted(directory.glob("shard-*.tfrecord")):
        try:
            note = json.loads(note_of(path).read_text())
            found[path.name] = {"rows": int(note["rows"]), "sha256": note["sha256"]}
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Without a readable checksum, the shard is made again.
    return found


def remove_scratch(directory: Path) -> None:
    """Remove the unfinished files of killed writers. No writer may be running."""
    for path in directory.iterdir():
        if _SCRATCH.fullmatch(path.name):
            path.unlink(missing_ok=True)


def remove_notes(directory: Path) -> None:
    """Remove the checksum files of a complete recording, whose manifest holds them."""
    for path in directory.glob("shard-*.json"):
        path.unlink(missing_ok=True)


def damaged(
    directory: Path,
    listed: Mapping[str, Mapping[str, Any]],
    layout: Layout,
    *,
    contents: bool = True,
) -> dict[str, str]:
    """Return the listed shards that are missing or damaged, with the reasons.

    Args:
        directory: The directory of the recording.
        listed: The shards' numbers of rows and SHA-256, by file name.
        layout: The layout of their rows.
        contents: Whether to compare checksums too, and not only sizes.

    Raises:
        ValueError: If a name isn't that of a shard, e.g. if it leaves the directory.
    """
    found = {}
    for name, of_shard in listed.items():
        if not NAME.fullmatch(name):
            raise ValueError(
                "The manifest must list files named 'shard-<number>.tfrecord' in its "
                f"own directory. Received: {name!r}"
            )
        path = directory / name
        expected = layout.file_size(of_shard["rows"])
        if not path.is_file():
            found[name] = "the file is missing"
        elif path.resolve().parent != directory.resolve():
            found[name] = f"the file is outside of the directory: {path.resolve()}"
        elif path.stat().st_size != expected:
            found[name] = f"it has {path.stat().st_size} bytes instead of {expected}"
        elif contents and atomic.sha256(path) != of_shard["sha256"]:
            found[name] = "its SHA-256 isn't that of the manifest"
    return found


class Reader:
    """Reads rows of a complete recording in any order, through memory maps.

    Args:
        directory: The directory of the recording.
        manifest: Its manifest.
        at_once: The number of shards that are kept open.
    """

    def __init__(
        self, directory: Path, manifest: Manifest, *, at_once: int = _OPEN_SHARDS
    ) -> None:
        self._at_once = at_once
        self.directory = directory
        self.manifest = manifest
        self.layout = manifest.layout()
        self.rows = manifest.rows
        self._open: OrderedDict[int, Views] = OrderedDict()
        self._lock = threading.Lock()

    def take(
        self, names: Sequence[str], positions: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return rows of columns by their positions in the recording."""
        shards, within = np.divmod(positions, self.manifest.rows_per_shard)
        first = int(shards[0])
        if (shards == first).all():
            views = self._views(first)
            return {name: views.take(name, within) for name in names}
        order = np.argsort(shards, kind="stable")
        shards, within = shards[order], within[order]
        starts = np.flatnonzero(np.diff(shards, prepend=-1))
        ends = [*starts[1:], len(shards)]
        shapes = {c.name: (c.stored_dtype, c.shape) for c in self.layout.columns}
        found = {}
        for name in names:
            dtype, shape = shapes[name]
            found[name] = np.empty((len(positions), *shape), dtype)
        for start, end in zip(starts, ends, strict=True):
            views = self._views(int(shards[start]))
            for name in names:
                taken = views.take(name, within[start:end])
                found[name][order[start:end]] = taken
        return found

    def column(self, name: str) -> Iterator[np.ndarray]:
        """Yield a column of each shard."""
        for number in range(len(self.manifest.shards)):
            yield self.column_of(name, number)

    def column_of(self, name: str, number: int) -> np.ndarray:
        """Return a column of a shard."""
        views = self._views(number)
        blocks = views.blocks[name]
        parts = [blocks.reshape(-1, *blocks.shape[2:])]
        if views.tail[name].size:
            parts.append(views.tail[name][0])
        return np.concatenate(parts)

    def _views(self, number: int) -> Views:
        """Return the columns of a shard. The shards used last stay open."""
        with self._lock:
            if number in self._open:
                self._open.move_to_end(number)
                return self._open[number]
            name = shard_name(number)
            with (self.directory / name).open("rb") as file:
                buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            views = self.layout.views(buffer, self.manifest.shards[name]["rows"])
            self._open[number] = views
            if len(self._open) > self._at_once:
                self._open.popitem(last=False)
            return views
