"""The student of `keras-distill demo`, distilled on two workers and in one process.

Claim: the test accuracy on two workers is that of one process, within its deviation
over seeds. Digits, networks, views, steps and batches are the demo's. `launch` starts
the workers, and each computes half of every batch. The demo makes several steps in one
call, which Keras can't do on workers.

    python benchmarks/demo_on_workers.py [--seeds 5]
"""

import argparse
import os
import pathlib
import statistics
import sys
import tempfile

import tensorflow as tf

# Before anything else runs on TensorFlow.
STRATEGY = (
    tf.distribute.MultiWorkerMirroredStrategy() if "TF_CONFIG" in os.environ else None
)

import keras  # noqa: E402

import keras_distill as kd  # noqa: E402
from keras_distill.demo import data, models, training  # noqa: E402
from keras_distill.devices.launching import launch  # noqa: E402

WORKERS = 2


def train(folder: pathlib.Path, seed: int) -> None:
    """Distil as a worker; the first one writes the student."""
    split = data.split(data.load(), seed)
    steps, rate = training.FULL.steps, training.STUDENT_LEARNING_RATE
    with STRATEGY.scope():
        teacher = keras.models.load_model(folder / "teacher.keras")
        distiller = kd.Distiller(models.student(seed), teacher)
        distiller.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps)),
            distillation_loss=kd.losses.ForwardKL(training.TEMPERATURE),
            alpha=1.0,
        )
    views = data.views(split.transfer, seed=seed)
    distiller.fit(views, steps_per_epoch=steps, shuffle=False, verbose=0)
    if STRATEGY.cluster_resolver.task_id == 0:
        distiller.student.save(folder / "student.keras")


def accuracy(model: keras.Model, split: data.Split) -> float:
    """Return the test accuracy in percent."""
    scores = model.predict(split.test.images, verbose=0)
    return 100 * float((scores.argmax(-1) == split.test.labels).mean())


def main() -> None:
    """Train both ways for each seed, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        train(options.worker, options.seed)
        return
    print("| seed | one process | two workers |\n| --- | --- | --- |", flush=True)
    one, two = [], []
    for seed in range(options.seeds):
        split = data.split(data.load(), seed)
        teacher = training.train_teacher(split, training.FULL, seed).model
        distilled = training.train_distilled(teacher, split, training.FULL, seed)
        one.append(accuracy(distilled.model, split))
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            teacher.save(folder / "teacher.keras")
            worker = ["--worker", name, "--seed", str(seed)]
            if launch([sys.executable, __file__, *worker], WORKERS):
                raise RuntimeError(f"the workers of seed {seed} failed")
            two.append(
                accuracy(keras.models.load_model(folder / "student.keras"), split)
            )
        print(f"| {seed} | {one[-1]:.1f} | {two[-1]:.1f} |", flush=True)
    deviation = statistics.stdev(one)
    difference = statistics.mean(two) - statistics.mean(one)
    print(
        f"means {statistics.mean(one):.1f} ± {deviation:.1f} and "
        f"{statistics.mean(two):.1f} ± {statistics.stdev(two):.1f}"
    )
    sys.exit(abs(difference) > deviation)


if __name__ == "__main__":
    main()
