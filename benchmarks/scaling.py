"""The cost and gain of several devices, measured with two and computed for more.

A student learns from a teacher in three ways with the same batch size: in one process,
on two devices of one process (`tf.distribute.MirroredStrategy`), and on two workers
(`MultiWorkerMirroredStrategy`). Each way has two threads in total, and the ways run in
turn. The first table has the time of a step, and its ratio to that of one process.

Two more tables are computed. Each worker has a batch of its own, and then a ring adds
up the gradients. Let `t` be the time of one worker's step, `g` the bytes of the
student's gradients (the teacher has none), `w` the bytes per second between two workers
and `l` the least seconds that a message takes. A step of `n` workers takes

    t + 2 (n - 1) / n * g / w + 2 (n - 1) * l

    python benchmarks/scaling.py [--rounds 5] [--steps 40]
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import keras_distill.devices.launching as launching

BATCH = 256
BOUND = 1.3
WAYS = {"one process": 1, "two devices": 1, "two workers": 2}
BANDWIDTHS = {"1 Gbit/s": 1e9, "10 Gbit/s": 1e10, "100 Gbit/s": 1e11}
WORKERS = (2, 8, 64, 512)
# The seconds of a step, and the bytes of the gradients of 25 million weights.
LARGE = 0.2, 100e6
LATENCY = 20e-6  # of a message in a data centre's network, in seconds


def measure(way: str, steps: int) -> dict[str, float]:
    """Return the seconds of a step in this process, and the bytes of gradients."""
    import tensorflow as tf

    # All ways have two threads: a device's, or a worker's, is one.
    threads = 1 if way == "two workers" else 2
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    strategy = tf.distribute.get_strategy()
    if way == "two devices":
        cpu = tf.config.list_physical_devices("CPU")[0]
        devices = 2 * [tf.config.LogicalDeviceConfiguration()]
        tf.config.set_logical_device_configuration(cpu, devices)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    if way == "two workers":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()

    import keras
    import numpy as np

    import keras_distill as kd

    with strategy.scope():
        student, teacher = network(16), network(64)
        distiller = kd.Distiller(student, teacher)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, 28, 28, 1)).astype("float32")
    y = rng.integers(0, 10, BATCH)
    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).repeat()
    seconds: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            seconds.append((time.perf_counter() - self.begin) / steps)

    options = {"steps_per_epoch": steps, "shuffle": False, "verbose": 0}
    distiller.fit(batches, epochs=4, callbacks=[Clock()], **options)
    gradients = sum(
        4 * weight.shape.num_elements()
        for weight in map(tf.convert_to_tensor, student.trainable_weights)
    )
    return {"seconds": statistics.median(seconds[1:]), "gradients": gradients}


def network(filters: int):
    """Build a convolutional classifier, in logits."""
    import keras
    from keras import layers

    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(filters, 3, activation="relu"),
            layers.Conv2D(2 * filters, 3, 2, activation="relu"),
            layers.Conv2D(2 * filters, 3, 2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


def run(way: str, steps: int) -> dict[str, float]:
    """Measure a way in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "measured.json")
        command = [sys.executable, __file__, "--way", way, "--steps", str(steps)]
        command += ["--file", str(file)]
        workers = WAYS[way]
        if workers == 1:
            subprocess.run(command, check=True)  # noqa: S603 - this file itself
        elif launching.launch(command, workers):
            raise RuntimeError(f"{way} failed")
        return json.loads(file.read_text())


def main() -> None:
    """Measure and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        found = measure(options.way, options.steps)
        config = json.loads(os.environ.get("TF_CONFIG", "{}"))
        if not config.get("task", {}).get("index"):
            options.file.write_text(json.dumps(found))
        return
    measured: dict[str, list[float]] = {way: [] for way in WAYS}
    gradients = 0.0
    for _ in range(options.rounds):
        for way in WAYS:
            found = run(way, options.steps)
            measured[way].append(found["seconds"])
            gradients = found["gradients"]
    missed = measured_table(measured)
    step = statistics.median(measured["one process"])
    computed_table(step, gradients)
    computed_table(*LARGE)
    sys.exit(missed)


def measured_table(measured: dict[str, list[float]]) -> bool:
    """Print what was measured; return whether the bound is missed."""
    print(f"\n| batch of {BATCH} in all | ms a step | over one process | bound |")
    print("| --- | --- | --- | --- |")
    missed = False
    whole = measured["one process"]
    for way, seconds in measured.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, whole, strict=True))
        missed |= ratio > BOUND
        milliseconds = 1e3 * statistics.median(seconds)
        print(f"| {way} | {milliseconds:.1f} | {ratio:.2f} | {BOUND} |")
    return missed


def computed_table(step: float, gradients: float) -> None:
    """Print what more workers give, by the formula."""
    print(
        f"\nWith {1e3 * step:.1f} ms for a step of {BATCH} rows on each worker, and "
        f"{gradients / 1e3:.0f} kB of gradients: rows per second over one worker's"
    )
    print("| workers | " + " | ".join(BANDWIDTHS) + " |")
    print("| --- |" + " --- |" * len(BANDWIDTHS))
    for workers in WORKERS:
        cells = [
            workers * step / (step + exchange(workers, gradients, bits / 8))
            for bits in BANDWIDTHS.values()
        ]
        print(f"| {workers} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    for name, bits in BANDWIDTHS.items():
        # Half of the time goes into the exchange.
        alone = 2 * gradients / (bits / 8)
        limit = 1 + (step - alone) / (2 * LATENCY)
        print(f"{name}: the exchange takes as long as the step at {limit:.0f} workers")


def exchange(workers: int, gradients: float, bandwidth: float) -> float:
    """Return the seconds in which gradients are added up."""
    passed = 2 * (workers - 1)
    return passed / workers * gradients / bandwidth + passed * LATENCY


if __name__ == "__main__":
    main()
