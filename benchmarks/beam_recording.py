"""The cost of recording with Beam's workers, compared to one process on the same cores.

Claim: two workers on two cores take no longer than one process, and write the same
bytes. Each side is the command `keras-distill record`, including the start of Python,
TensorFlow and the teacher. The sides run in turn.

    python benchmarks/beam_recording.py [--rows 40000] [--rounds 3]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers

SHARDS = 8
BATCH = 128


def teacher(width: int) -> keras.Model:
    """Return a convolutional network of Fashion-MNIST's shape."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((28, 28, 1), name="image")
    x = inputs
    for factor in (1, 2, 4):
        x = layers.Conv2D(factor * width, 3, padding="same", activation="relu")(x)
        x = layers.Conv2D(factor * width, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name="scores")(x))


def seconds(command: list[str], folder: Path) -> float:
    """Run a command and return how long it took."""
    begin = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    return time.perf_counter() - begin


def contents(directory: Path) -> dict[str, bytes]:
    """Return the files of a directory."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def main() -> None:
    """Record with each side in turn, compare the bytes, print times and ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    shard = -(-arguments.rows // (SHARDS * BATCH)) * BATCH
    command = [str(Path(sys.executable).with_name("keras-distill")), "record"]
    command += ["teacher.keras", "--data", "data.npz", "--rows-per-shard", str(shard)]
    beam = ["--runner", "DirectRunner", "--num-workers", str(arguments.workers)]
    sides = {"one process": [], f"{arguments.workers} Beam workers": beam}
    times: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = teacher(arguments.width)
        model.save(folder / "teacher.keras")
        generator = np.random.default_rng(0)
        images = generator.random((arguments.rows, 28, 28, 1), dtype="float32")
        np.savez(folder / "data.npz", image=images)
        print(
            f"a teacher of {model.count_params():,} parameters, {arguments.rows:,} "
            f"images, {SHARDS} shards, {os.cpu_count()} cores"
        )
        for number in range(arguments.rounds):
            written = []
            for side, options in sides.items():
                out = f"{len(options)}-{number}"
                times[side].append(seconds([*command, "--out", out, *options], folder))
                written.append(contents(folder / out))
                print(f"{side:16s} {times[side][-1]:6.1f} s", flush=True)
            assert written[0] == written[1], "the files differ"
    one, several = times.values()
    ratios = [b / a for a, b in zip(one, several, strict=True)]
    for side, values in times.items():
        print(f"{side:16s} {statistics.median(values):6.1f} s, median")
    print(
        f"ratio            {statistics.median(ratios):6.3f}   the same bytes; "
        f"rounds {min(ratios):.3f} to {max(ratios):.3f}"
    )


if __name__ == "__main__":
    main()
