"""The cost of a step of `fit` with a teacher on a server, with 4 batches in flight.

Claim: a step costs at most 1.15 x max(student's step, teacher's time / 4) on loopback.
The first server waits instead of computing, so it uses no cores here, like a teacher on
another machine. The second is MLServer, which competes with the student for the same
cores, so its bound is the sum of both.

The bound doesn't include the client's own work, which matters if steps are short.
`--scale 2` doubles the student's widths.

    python benchmarks/remote_teacher.py [--steps 200] [--rounds 5] [--scale 1]
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from servers import serve

import keras_distill as kd
from keras_distill.devices.launching import HOST, free_ports

# The labels are random.
warnings.filterwarnings("ignore", category=kd.teachers.TeacherWarning)

BATCH, IN_FLIGHT = 128, 4


def network(widths: tuple[int, ...], name: str) -> keras.Model:
    """Return a conv net on 28x28 images, of the widths of its layers."""
    image = x = keras.Input((28, 28, 1), name="image")
    for width in widths:
        x = keras.layers.Conv2D(width, 3, strides=2, activation="relu")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(10, name="logits")(x), name=name)


def data(steps: int, **more: tuple[int, ...]) -> tf.data.Dataset:
    """Return batches of images, with more keys of numbers of the shapes in `more`."""
    rng = np.random.default_rng(0)
    image = rng.random((BATCH, 28, 28, 1), "float32")
    x = {"image": image, **{key: rng.random(it, "float32") for key, it in more.items()}}
    return tf.data.Dataset.from_tensors((x, np.arange(BATCH) % 10)).repeat(steps)


class Student:
    """A student that is fitted on batches that hold the teacher's outputs."""

    def __init__(self, scale: int) -> None:
        keras.utils.set_random_seed(0)
        student = network((32 * scale, 64 * scale, 64 * scale), "student")
        self.distiller = kd.Distiller(student, kd.teachers.Recorded("teacher"))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.distiller.compile("sgd", loss, check_teacher=False)

    def step(self, dataset: tf.data.Dataset, steps: int) -> float:
        """Return ms a step of an epoch, the fill of the pipeline included."""
        begin = time.perf_counter()
        self.distiller.fit(dataset, shuffle=False, verbose=0)
        return (time.perf_counter() - begin) / steps * 1e3


def alone(dataset: tf.data.Dataset, steps: int) -> float:
    """Return ms a batch of reading a data set without training."""
    begin = time.perf_counter()
    for _ in dataset:
        pass
    return (time.perf_counter() - begin) / steps * 1e3


def compare(name: str, url: str, student: Student, options: argparse.Namespace) -> None:
    """Print both sides of the claim for one server: medians of interleaved rounds."""
    steps = options.steps
    recorded = data(steps, teacher=(BATCH, 10))
    remote = kd.targets.remote(data(steps), url, "teacher", in_flight=IN_FLIGHT)
    serial = kd.targets.remote(data(steps // 4), url, "teacher", in_flight=1)
    sides: list[tuple[float, float, float]] = []
    for _ in range(options.rounds + 1):
        sides.append(
            (
                student.step(recorded, steps),
                alone(serial, steps // 4),
                student.step(remote, steps),
            )
        )
    own, teacher, taught = zip(*sides[1:], strict=True)
    rows = list(zip(own, teacher, taught, strict=True))
    bound = statistics.median(f / max(s, t / IN_FLIGHT) for s, t, f in rows)
    summed = statistics.median(f / (s + t) for s, t, f in rows)
    print(
        f"{name:34s} {statistics.median(own):8.1f} {statistics.median(teacher):8.1f} "
        f"{statistics.median(taught):8.1f} {bound:8.2f} {summed:8.2f}",
        flush=True,
    )


def wait_and_answer(port: int, seconds: float) -> None:
    """Serve a teacher whose time is waiting, until this process is ended."""

    def answer(image: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return np.zeros((len(image), 10), "float32")

    serve(port, answer, shape=(28, 28, 1), classes=10, threads=IN_FLIGHT)


@contextlib.contextmanager
def waiting(seconds: float) -> Iterator[str]:
    """Run a server that waits in a process of its own; yield its address."""
    (port,) = free_ports(1)
    command = [sys.executable, __file__, "--wait", str(seconds), "--port", str(port)]
    process = subprocess.Popen(command)  # noqa: S603
    try:
        yield f"{HOST}:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def mlserver() -> Iterator[str]:
    """Run MLServer on a conv net; yield the address of its gRPC."""
    from keras_distill.export.repositories.service import serving

    teacher = network((64, 128, 128), "teacher")
    port, grpc_port = free_ports(2)
    with tempfile.TemporaryDirectory() as folder:
        example = next(iter(data(1)))[0]
        exported = Path(folder, "teacher")
        kd.export.export(teacher, exported, ["onnx"], example_batch=example)
        with serving(exported, port=port, grpc_port=grpc_port):
            yield f"{HOST}:{grpc_port}"


def main() -> None:
    """Print the two sides of the claim for each server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=int, default=1, help="of the student's widths")
    parser.add_argument("--wait", type=float, help="serve, and wait so many seconds")
    parser.add_argument("--port", type=int, help="of --wait")
    options = parser.parse_args()
    if options.wait is not None:
        wait_and_answer(options.port, options.wait)
    student = Student(options.scale)
    recorded = data(options.steps, teacher=(BATCH, 10))
    own = min(student.step(recorded, options.steps) for _ in range(3)) / 1e3
    print(f"batch {BATCH}, {IN_FLIGHT} in flight, ms a step")
    print(f"{'':34s}  student  teacher      fit    bound    serial")
    for times in (1, 4, 10):
        with waiting(times * own) as url:
            compare(f"waits {times} x the student's step", url, student, options)
    if sys.version_info < (3, 13):
        with mlserver() as url:
            compare("MLServer on the same cores", url, student, options)
    print("bound = fit / max(student, teacher / 4), of the servers that wait <= 1.15")
    print("serial = fit / (student + teacher)")


if __name__ == "__main__":
    main()
