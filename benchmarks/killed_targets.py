"""A test of recordings, and of trainings from them and a server, that are killed.

Claim: however often a process is killed by SIGKILL at random moments, the recording
ends with the same bytes, and the training with the same weights, as one that wasn't
killed.

    python benchmarks/killed_targets.py [--kills 30] [--seed 0]
"""

import argparse
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial

import keras
import numpy as np
import tensorflow as tf
from servers import serve

import keras_distill as kd
from keras_distill.devices.launching import HOST, free_ports

CONTEXT = multiprocessing.get_context("forkserver")
ROWS, EPOCHS = 4_000, 4


def data() -> tf.data.Dataset:
    """Return 4,000 rows in batches of 20."""
    x = np.random.default_rng(0).normal(size=(ROWS, 8)).astype("float32")
    return tf.data.Dataset.from_tensor_slices(x).batch(20)


def model(seed: int) -> keras.Model:
    """Return a small model."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(10)])


def record(directory: pathlib.Path, _: pathlib.Path) -> None:
    """Make a recording of 100 shards."""
    kd.targets.record(model(0), data(), directory, rows_per_shard=40)


def train_recorded(directory: pathlib.Path, recorded: pathlib.Path) -> None:
    """Train from a recording."""
    train(directory, kd.targets.join(data(), recorded))


def train_remote(directory: pathlib.Path, _: pathlib.Path, *, url: str) -> None:
    """Train under a teacher on a server."""
    train(directory, kd.targets.remote(data(), url, "teacher"))


def train(directory: pathlib.Path, taught: tf.data.Dataset) -> None:
    """Train with a backup, and write the weights."""
    directory.mkdir(exist_ok=True)
    distiller = kd.Distiller(model(1), kd.teachers.Recorded("teacher"))
    distiller.compile("adam", alpha=1.0)
    # That of Keras can leave a truncated file.
    backup = kd.online.Backup(directory / "backup")
    distiller.fit(taught, epochs=EPOCHS, verbose=0, shuffle=False, callbacks=[backup])
    scratch = directory / "scratch.npz"
    np.savez(scratch, *distiller.student.get_weights())
    os.replace(scratch, directory / "weights.npz")


def serve_teacher(port: int) -> None:
    """Serve a linear model until this process is ended."""
    kernel = np.random.default_rng(1).normal(size=(8, 10)).astype("float32")
    serve(port, lambda x: x @ kernel, shape=(8,), classes=10, threads=1)


def recorded_bytes(directory: pathlib.Path) -> object:
    """Return the contents of all files of a recording."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def weights(directory: pathlib.Path) -> object:
    """Return the weights that `train` wrote, as bytes."""
    with np.load(directory / "weights.npz") as found:
        return [found[name].tobytes() for name in found.files]


def killed(
    work: Callable[[pathlib.Path, pathlib.Path], None],
    result: Callable[[pathlib.Path], object],
    directory: pathlib.Path,
    recorded: pathlib.Path,
    kills: int,
) -> None:
    """Kill the work at random moments, and compare what it ends with."""

    def run(target: pathlib.Path, seconds: float | None) -> tuple[bool, float]:
        process = CONTEXT.Process(target=work, args=(target, recorded))
        begin = time.perf_counter()
        process.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
        return process.exitcode == 0, time.perf_counter() - begin

    _, longest = run(directory / "whole", None)
    expected = result(directory / "whole")
    done = compared = 0
    target = directory / "killed"
    while done < kills:
        ended, _ = run(target, random.uniform(0.3, 1.0) * longest)  # noqa: S311
        done += not ended
        if ended or done == kills:
            run(target, None)
            assert result(target) == expected, f"another result after {done} kills"
            compared += 1
            shutil.rmtree(target)
    print(
        f"{directory.name}: {done} kills, {compared} results, all as without; "
        f"{longest:.1f} s without",
        flush=True,
    )


def main() -> None:
    """Kill recordings, then trainings of both kinds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    CONTEXT.set_forkserver_preload(["__main__"])
    (port,) = free_ports(1)
    server = CONTEXT.Process(target=serve_teacher, args=(port,), daemon=True)
    server.start()
    remote = partial(train_remote, url=f"{HOST}:{port}")
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        recorded = root / "recording" / "whole"
        for folder, work, result in (
            ("recording", record, recorded_bytes),
            ("training", train_recorded, weights),
            ("remote", remote, weights),
        ):
            directory = root / folder
            directory.mkdir()
            killed(work, result, directory, recorded, options.kills)
    server.kill()


if __name__ == "__main__":
    main()
