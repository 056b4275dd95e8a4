"""The bytes, writing and reading of recordings, compared to files of one row a record.

The same rows are written as this package writes them, in TFRecords of a block of rows;
as TFRecords of one row; and as ArrayRecords of one row, in groups of one as random
reads need it, with the default compression and without. All files are read in order and
at random in batches of 500, into arrays of the rows. A row is the output of a teacher,
with random logits, and a hash. Our files are flushed to the disk and their SHA-256 is
computed while they are written. The others have neither. Rates are computed from the
processor's time in all threads, which a busy machine changes little.

    python benchmarks/record_formats.py [--rows 20000] [--rounds 3]
"""

import argparse
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

import keras_distill as kd
from keras_distill.targets.joining import opened
from keras_distill.targets.shards import Writer

BATCH = 500
ROWS_OF = {
    "10 classes, float32": (10, kd.targets.LogProbabilities()),
    "top 16 of 1,000, float16": (1000, kd.targets.TopK(16)),
    "1,000 classes, float16": (1000, kd.targets.LogProbabilities("float16")),
}
WAYS = ("write", "in order", "at random")


class Ours:
    """This package's files, with a row's columns as an array each."""

    def __init__(self, recorded: pathlib.Path, path: pathlib.Path) -> None:
        self.reader = opened(recorded, verify=False)
        self.names = [column.name for column in self.reader.layout.columns]
        positions = np.arange(self.reader.rows)
        columns = self.reader.take(self.names, positions)
        self.batches = [
            {name: columns[name][start : start + BATCH] for name in self.names}
            for start in range(0, len(positions), BATCH)
        ]
        self.path = path
        path.mkdir()

    def write(self) -> None:
        """Write all rows, as `record` does, in shards of its default size."""
        shards = len(self.reader.manifest.shards)
        each = self.reader.manifest.rows_per_shard // BATCH
        for number in range(shards):
            writer = Writer(self.path, number, self.reader.layout)
            for batch in self.batches[number * each : (number + 1) * each]:
                writer.append(batch, len(batch["content"]))
            writer.close()

    def read(self, positions: np.ndarray) -> object:
        """Return rows, as `join` reads them."""
        return self.reader.take(self.names, positions)

    def in_order(self) -> Iterator[object]:
        """Yield all rows in batches."""
        for start in range(0, self.reader.rows, BATCH):
            yield self.read(np.arange(start, min(start + BATCH, self.reader.rows)))


class ArrayRecords:
    """ArrayRecord with a row in each record."""

    def __init__(
        self, rows: list[bytes], path: pathlib.Path, options: str = "group_size:1"
    ) -> None:
        self.rows, self.path, self.options = rows, path, options
        path.mkdir()
        self.file = str(path / "rows.array_record")

    def write(self) -> None:
        """Write all rows."""
        writer = ArrayRecordWriter(self.file, self.options)
        for row in self.rows:
            writer.write(row)
        writer.close()
        self.reader = ArrayRecordReader(self.file)

    def read(self, positions: np.ndarray) -> object:
        """Return rows by their positions."""
        found = self.reader.read(positions.tolist())
        return np.frombuffer(b"".join(found), "uint8").reshape(len(positions), -1)

    def in_order(self) -> Iterator[object]:
        """Yield all rows in batches."""
        for start in range(0, len(self.rows), BATCH):
            found = self.reader.read(start, min(start + BATCH, len(self.rows)))
            yield np.frombuffer(b"".join(found), "uint8").reshape(len(found), -1)


class TFRecords:
    """TFRecord with a row in each record. It has no random access."""

    read = None

    def __init__(self, rows: list[bytes], path: pathlib.Path) -> None:
        self.rows, self.path = rows, path
        path.mkdir()
        self.file = str(path / "rows.tfrecord")

    def write(self) -> None:
        """Write all rows."""
        with tf.io.TFRecordWriter(self.file) as writer:
            for row in self.rows:
                writer.write(row)

    def in_order(self) -> Iterator[object]:
        """Yield all rows in batches."""
        records = tf.data.TFRecordDataset(self.file).batch(BATCH)
        decoded = records.map(lambda rows: tf.io.decode_raw(rows, tf.uint8))
        return iter(decoded.prefetch(tf.data.AUTOTUNE).as_numpy_iterator())


def calls_of(kept: object, wanted: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return what is timed for a format."""
    calls = {
        "write": kept.write,
        "in order": lambda: [None for _ in kept.in_order()],
    }
    if kept.read is not None:
        calls["at random"] = lambda: [None for at in wanted if kept.read(at) is None]
    return calls


def measure(
    name: str, folder: pathlib.Path, rows: int, rounds: int
) -> dict[str, tuple[float, dict[str, float]]]:
    """Return bytes a row and rows a CPU-second of each way, by format."""
    classes, stored = ROWS_OF[name]
    logits = np.random.default_rng(0).normal(0, 4, (rows, classes)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices(logits).batch(BATCH)
    kd.targets.record(lambda x: x, data, folder / "recorded", stored=stored)
    ours = Ours(folder / "recorded", folder / "ours")
    of_columns = [
        np.concatenate([batch[name] for batch in ours.batches]).reshape(rows, -1)
        for name in ours.names
    ]
    packed = np.concatenate([column.view("uint8") for column in of_columns], axis=1)
    one_each = [row.tobytes() for row in packed]
    formats = {
        "blocks of rows (ours)": ours,
        "TFRecord": TFRecords(one_each, folder / "tfrecord"),
        "ArrayRecord": ArrayRecords(one_each, folder / "array"),
        "ArrayRecord, uncompressed": ArrayRecords(
            one_each, folder / "plain", "group_size:1,uncompressed"
        ),
    }
    random = np.random.default_rng(1)
    wanted = random.integers(rows, size=(rows // BATCH, BATCH))
    times: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        for kind, kept in formats.items():
            for way, call in calls_of(kept, wanted).items():
                begin = time.process_time()
                call()
                if number:  # The first round warms the page cache.
                    times.setdefault((kind, way), []).append(
                        time.process_time() - begin
                    )
    found = {}
    for kind, kept in formats.items():
        size = sum(f.stat().st_size for f in kept.path.iterdir() if f.suffix != ".json")
        rates = {
            way: rows / statistics.median(times[kind, way])
            for way in WAYS
            if (kind, way) in times
        }
        found[kind] = (size / rows, rates)
    return found


def main() -> None:
    """Print bytes a row, thousands of rows a CPU-second, and ratios to ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print("thousands of rows a CPU-second, in brackets ours over it")
    for name in ROWS_OF:
        with tempfile.TemporaryDirectory() as folder:
            table = measure(name, pathlib.Path(folder), options.rows, options.rounds)
        print(f"\n{name:27}{'bytes a row':>12}" + "".join(f"{w:>18}" for w in WAYS))
        own = table["blocks of rows (ours)"][1]
        for kind, (size, rates) in table.items():
            cells = [
                f"{rates[way] / 1e3:9,.0f} ({own[way] / rates[way]:6.2f})"
                if way in rates
                else "-"
                for way in WAYS
            ]
            line = "".join(f"{cell:>18}" for cell in cells)
            print(f"{kind:27}{size:12.1f}{line}", flush=True)


if __name__ == "__main__":
    main()
