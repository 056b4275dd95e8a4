"""The disk space, time and memory of a recording, and the speed of reading its rows.

Claims: the files take at most 1.05 x the stored numbers and hashes, and top-16 of 1,000
classes at most 1/15 of dense float32. `record` takes at most 1.1 x the time of the
teacher's own `predict`. Recording and joining 10 million small examples takes no more
memory than 100,000. At least 100,000 records a second are read at random from the page
cache.

    python benchmarks/recording.py [--rows 10000000] [--rounds 5]

`memory` is the peak of the process's own memory (`RssAnon`), beyond that at its start.
Pages of mapped files (`RssFile`) are printed too. The system frees them when it needs
memory.
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import keras_distill as kd
from keras_distill.targets.joining import opened

FORMATS = {
    "float32": kd.targets.LogProbabilities(),
    "float16": kd.targets.LogProbabilities("float16"),
    "top-16, float16": kd.targets.TopK(16),
    "top-16, float32": kd.targets.TopK(16, "float32"),
    "sampled, n=50": kd.targets.Sampled(50),
}


def sizes(directory: pathlib.Path) -> None:
    """Print the bytes that 1,000 classes take, and ten."""
    print("\nbytes a row: stored numbers and hash, on disk, their ratio (<= 1.05)")
    for classes in (10, 1000):
        weights = tf.random.stateless_normal((16, classes), (0, 1))
        x = np.random.default_rng(0).normal(size=(20_000, 16)).astype("float32")
        data = tf.data.Dataset.from_tensor_slices(x).batch(500)
        dense = 0.0
        for name, stored in FORMATS.items():
            if classes == 10 and name.startswith("top"):
                continue
            path = directory / f"{classes} {name}"
            made = kd.targets.record(
                lambda x, w=weights: x @ w, data, path, stored=stored
            )
            size = sum(file.stat().st_size for file in path.iterdir()) / len(x)
            dense = dense or size
            payload = made.layout().row_bytes
            print(
                f"  {classes:5} classes, {name:16s} {payload:6} {size:8.1f} "
                f"{size / payload:.3f}, 1/{dense / size:.1f} of float32"
            )


def speed(directory: pathlib.Path, rounds: int) -> None:
    """Print the time to record over that of `predict`."""
    print("\nseconds to record and to predict 30,720 images, ratio (<= 1.1)")
    keras.utils.set_random_seed(0)
    convolution = {"padding": "same", "activation": "relu"}
    teacher = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            *(keras.layers.Conv2D(32, 3, **convolution) for _ in range(4)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(1000),
        ]
    )
    x = np.random.default_rng(0).random((30_720, 32, 32, 3), "float32")
    options = tf.data.Options()
    # With it, the end of either side waits for the tuner's next look.
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensor_slices(x).batch(128).with_options(options)
    sides: dict[str, Callable[[int], object]] = {
        "predict": lambda n: teacher.predict(data, verbose=0),
        **{
            name: lambda n, s=stored, k=name: kd.targets.record(
                teacher, data, directory / f"{k} {n}", stored=s, progress=False
            )
            for name, stored in FORMATS.items()
        },
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, call in sides.items():
            begin = time.perf_counter()
            call(number)
            times[name].append(time.perf_counter() - begin)
    for name, of_side in times.items():
        pairs = zip(of_side[1:], times["predict"][1:], strict=True)
        found = statistics.median(a / b for a, b in pairs)
        print(f"  {name:18s} {statistics.median(of_side[1:]):7.2f} {found:6.3f}")


def resident() -> tuple[float, float]:
    """Return the MB of this process itself, and of the files that it maps."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    found = {line.split(":")[0]: line.split()[1] for line in lines if "Rss" in line}
    return int(found["RssAnon"]) / 1e3, int(found["RssFile"]) / 1e3


class Highest:
    """The most memory that was taken during the block, beyond that at its start."""

    def __enter__(self) -> "Highest":
        self.start = resident()
        self.anon = self.file = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            anon, file = resident()
            self.anon = max(self.anon, anon - self.start[0])
            self.file = max(self.file, file - self.start[1])


def examples(rows: int) -> tf.data.Dataset:
    """Return small examples that are computed and not kept."""

    def made(start: tf.Tensor) -> tf.Tensor:
        numbers = tf.cast(start + tf.range(2000, dtype=tf.int64), "float32")
        return tf.stack([numbers, tf.sqrt(numbers), tf.sin(numbers)], axis=1)

    return tf.data.Dataset.range(0, rows, 2000).map(made)


def one_size(directory: str, rows: int) -> None:
    """Print memory and speed of one number of examples, in this process."""
    path = pathlib.Path(directory) / f"{rows}"
    weights = tf.random.stateless_normal((3, 10), (0, 1))
    data = examples(rows)
    # What TensorFlow takes once isn't counted.
    kd.targets.record(lambda x: x @ weights, data.take(2), f"{path} warm")
    list(kd.targets.join(data.take(2), f"{path} warm", by="content"))
    for name, call in {
        "record": lambda: kd.targets.record(
            lambda x: x @ weights, data, path, stored=kd.targets.Values()
        ),
        "join in order": lambda: [None for _ in kd.targets.join(data, path)],
        "join by content": lambda: [
            None for _ in kd.targets.join(data.shuffle(20, seed=0), path, by="content")
        ],
    }.items():
        begin = time.perf_counter()
        with Highest() as most:
            call()
        rate = rows / (time.perf_counter() - begin)
        print(
            f"  {rows:10,} {name:16s} {most.anon:6.0f} MB, mapped {most.file:6.0f} MB, "
            f"{rate:10,.0f} examples/s",
            flush=True,
        )
    reader = opened(path, verify=False)
    names = [column.name for column in reader.layout.columns]
    random = np.random.default_rng(0)
    for batch in (128, 4096):
        wanted = random.integers(rows, size=(400_000 // batch, batch))
        for _ in range(2):  # The first warms the page cache.
            begin = time.perf_counter()
            for positions in wanted:
                reader.take(names, positions)
            rate = wanted.size / (time.perf_counter() - begin)
        print(f"  {rows:10,} random reads of {batch:5}: {rate:10,.0f} records/s")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one-size", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_size:
        one_size(options.one_size[0], int(options.one_size[1]))
        return
    with tempfile.TemporaryDirectory() as directory:
        sizes(pathlib.Path(directory) / "sizes")
        speed(pathlib.Path(directory) / "speed", options.rounds)
        print("\nmemory and speed by the number of examples", flush=True)
        for rows in (100_000, options.rows):
            command = [sys.executable, __file__, "--one-size", directory, str(rows)]
            subprocess.run(command, check=True)  # noqa: S603 (this file)


if __name__ == "__main__":
    main()
