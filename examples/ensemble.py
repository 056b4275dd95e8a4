"""Four models, their ensemble, and one model of the same size that learns from it.

The data are 10,000 training images of Fashion-MNIST. The four models differ in their
initial weights and the order of their data. Their ensemble is better than each of them,
but costs four times as much to serve. The student learns from it in three ways: by
plain distillation, from teachers that count less where they are wrong, and with a
teachers' weight that falls to 0 (annealing). The last rows are generations, each taught
by the one before, which need no ensemble. Architecture, epochs, data and optimiser are
the same for all. The last column is the gain over the mean of the four single models.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from data import Arrays, load_images

import keras_distill as kd

TEACHERS, GENERATIONS = 4, 2
BATCH, RATE = 128, 2e-3
TEMPERATURE, ALPHA = 2.0, 0.5  # the better of two pairs, on held-out training images
ROWS = (
    "single model, mean of four",
    "ensemble of the four",
    "student of the ensemble",
    "student, correctness-weighted",
    "student, annealed",
    "born again, last generation",
    "ensemble of the generations",
)


def build() -> keras.Model:
    """Build a conv net of 102,130 parameters, for teachers and students."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(120, "relu"),
            keras.layers.Dense(10),
        ]
    )


def fit(model: keras.Model, data: tf.data.Dataset, epochs: int, **options: Any) -> None:
    """Fit a model or a Distiller by Adam, its learning rate falling to zero."""
    callbacks = options.pop("callbacks", [])
    rate = keras.optimizers.schedules.CosineDecay(RATE, epochs * len(data))
    labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        keras.optimizers.Adam(rate), labels, steps_per_execution=16, **options
    )
    model.fit(data, epochs=epochs, callbacks=callbacks, verbose=0)


def distilled(teacher: Any, train: Callable[..., None], alpha: Any) -> keras.Model:
    """Return a new student that learned from a teacher."""
    distiller = kd.Distiller(build(), teacher)
    loss = kd.losses.ForwardKL(TEMPERATURE)
    train(distiller, distillation_loss=loss, alpha=alpha)
    return distiller.student


def run(train: Arrays, test: Arrays, seed: int, epochs: int) -> list[float]:
    """Train all models of one seed; return their test accuracies in %, as in `ROWS`."""
    keras.utils.set_random_seed(seed)
    examples = tf.data.Dataset.from_tensor_slices(train).cache().shuffle(len(train[0]))
    data = examples.batch(BATCH, drop_remainder=True).prefetch(2)

    def train_one(model: keras.Model, **options: Any) -> None:
        fit(model, data, epochs, **options)

    def accuracy(model: keras.Model) -> float:
        logits = model.predict(test[0], batch_size=1000, verbose=0)
        return 100.0 * float(np.mean(logits.argmax(-1) == test[1]))

    teachers = [build() for _ in range(TEACHERS)]
    for teacher in teachers:
        train_one(teacher)
    ensemble = kd.teachers.Ensemble(teachers)
    weighted = kd.teachers.CorrectnessWeighted(teachers, wrong_weight=0.75)
    annealed = kd.schedules.TeacherAnnealing(epochs * len(data))

    def fit_generation(distiller: kd.Distiller, callbacks: list[Any]) -> None:
        loss = kd.losses.ForwardKL(TEMPERATURE)
        train_one(distiller, distillation_loss=loss, alpha=ALPHA, callbacks=callbacks)

    with tempfile.TemporaryDirectory() as directory:  # keep yours: killed runs resume
        generations = kd.online.born_again(
            build, teachers[0], GENERATIONS, fit=fit_generation, directory=directory
        )
    accuracies = [
        float(np.mean([accuracy(teacher) for teacher in teachers])),
        *map(
            accuracy,
            [
                ensemble,
                distilled(ensemble, train_one, ALPHA),
                distilled(weighted, train_one, ALPHA),
                distilled(ensemble, train_one, annealed),
                generations.students[-1],
                kd.teachers.Ensemble([teachers[0], *generations.students]),
            ],
        ),
    ]
    for row, percent in zip(ROWS, accuracies, strict=True):
        print(f"seed {seed}: {row:32s}{percent:7.2f}", flush=True)
    return accuracies


def main() -> None:
    """Run every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="a TensorFlow Datasets folder")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=10_000, help="to train on")
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    arguments = parser.parse_args()
    (x, y), test = load_images("fashion_mnist", arguments.data_dir)
    images, seeds, epochs = arguments.images, arguments.seeds, arguments.epochs
    if arguments.smoke:
        images, seeds, epochs = 2_048, 1, 2
    table = np.array(
        [run((x[:images], y[:images]), test, seed, epochs) for seed in range(seeds)]
    )

    print(f"\ntest accuracy in %, {images:,} training images, {seeds} seeds")
    single = table[:, :1]
    for row, percents, gains in zip(ROWS, table.T, (table - single).T, strict=True):
        spread = f" ± {percents.std(ddof=1):.2f}" if seeds > 1 else ""
        print(f"{row:32s}{percents.mean():7.2f}{spread}   {gains.mean():+.2f}")
    if arguments.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()
