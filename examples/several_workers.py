"""Several workers, each with a device of its own, distil one student.

Run this program in one process first: it trains the teacher on Fashion-MNIST and saves
it. Then run it on workers:

    python examples/several_workers.py
    keras-distill launch --workers 2 -- python examples/several_workers.py

All workers run this program. Each reads its part of every batch. The result is that of
one process with the same batches, so the learning rate stays the same. If a run is
stopped, or one of its workers is killed, it resumes after its last complete epoch.
`examples/cluster` has manifests for Kubernetes and SLURM.
"""

import argparse
import os
import shutil
from pathlib import Path

import tensorflow as tf


def make_strategy() -> tf.distribute.Strategy:
    """Return the strategy of the cluster that this process belongs to."""
    if "TF_CONFIG" in os.environ:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        # The resolver counts a node's tasks by its GPUs, so CPUs need such numbers too.
        on_cpus = {"gpus_per_node": 64, "gpus_per_task": 1, "auto_set_gpu": False}
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            **({} if shutil.which("nvidia-smi") else on_cpus)
        )
        return tf.distribute.MultiWorkerMirroredStrategy(resolver)
    return tf.distribute.get_strategy()


# This must come before anything else runs on TensorFlow.
STRATEGY = make_strategy()

import keras  # noqa: E402
from data import Arrays, load_images  # noqa: E402

import keras_distill as kd  # noqa: E402

BATCH = 128  # of all workers together


def network(filters: int, name: str) -> keras.Model:
    """Build a convolutional classifier, in logits."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(filters, 3, 2, activation="relu"),
            layers.Conv2D(2 * filters, 3, 2, activation="relu"),
            layers.Flatten(),
            layers.Dense(10),
        ],
        name=name,
    )


def train_teacher(path: Path, train: Arrays, epochs: int) -> None:
    """Train the teacher in this process alone, and write it."""
    keras.utils.set_random_seed(0)
    teacher = network(64, "teacher")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    teacher.compile("adam", loss, metrics=["accuracy"])
    teacher.fit(*train, batch_size=BATCH, epochs=epochs, verbose=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    teacher.save(path)


def distil(directory: Path, train: Arrays, test: Arrays, epochs: int) -> float:
    """Train the student on all workers, and return its test accuracy."""
    keras.utils.set_random_seed(1)
    with STRATEGY.scope():
        teacher = keras.models.load_model(directory / "teacher.keras")
        distiller = kd.Distiller(network(8, "student"), teacher)
        distiller.compile(
            "adam",
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
    examples = tf.data.Dataset.from_tensor_slices(train)
    batches = examples.shuffle(len(train[0]), seed=1).batch(BATCH).prefetch(2)
    distiller.fit(
        batches,
        epochs=epochs,
        shuffle=False,  # The data set shuffles itself, equally on all workers.
        verbose=2,
        callbacks=[kd.online.Backup(directory / "backup")],
    )
    tested = tf.data.Dataset.from_tensor_slices(test).batch(BATCH)
    return distiller.evaluate(tested, verbose=0, return_dict=True)["accuracy"]


def main() -> None:
    """Train the teacher if there is none, then the student."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="a TensorFlow Datasets folder")
    parser.add_argument("--directory", type=Path, default=Path("build/several_workers"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    arguments = parser.parse_args()
    epochs, directory = arguments.epochs, arguments.directory
    path = directory / "teacher.keras"
    workers = STRATEGY.num_replicas_in_sync
    if workers > 1 and not path.exists():
        parser.error(f"there is no {path}: run this program alone first")
    train, test = load_images("fashion_mnist", arguments.data_dir)
    if arguments.smoke:
        epochs, train = 1, (train[0][:1280], train[1][:1280])
    if not path.exists():
        train_teacher(path, train, epochs)
    accuracy = distil(directory, train, test, epochs)
    print(f"{workers} worker(s): test accuracy of the student {100 * accuracy:.2f} %")
    if arguments.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()
