"""Two MNIST students of one architecture: one learns from labels, one from a teacher.

This is the experiment of section 3 of Hinton, Vinyals, Dean 2015, "Distilling the
Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531. The teacher is wide,
and dropout and shifted images regularise it. The student is smaller and isn't
regularised. It never reads shifted images, but learns about shifts from the teacher's
logits for unshifted ones. The table has the numbers of test errors. The paper has 67
for the teacher, 146 for the student alone and 74 for the distilled student.
"""

import argparse
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from data import Arrays, load_images

import keras_distill as kd

SHIFT = 2
TEMPERATURE = 20.0
ALPHA = 1.0  # soft targets only, no labels
MODELS = ("teacher", "student alone", "distilled")


def build_teacher() -> keras.Model:
    """Build 784-1200-1200-10 with dropout and bounded weight norms."""
    layers: list[keras.layers.Layer] = []
    for _ in range(2):
        bounded = keras.constraints.MaxNorm(3.0)
        layers += [
            keras.layers.Dense(1200, "relu", kernel_constraint=bounded),
            keras.layers.Dropout(0.4),
        ]
    return _classifier(layers)


def build_student() -> keras.Model:
    """Build 784-800-800-10 without any regularisation."""
    return _classifier([keras.layers.Dense(800, "relu") for _ in range(2)])


def _classifier(hidden: list[keras.layers.Layer]) -> keras.Model:
    inputs = keras.Input((28, 28, 1)), keras.layers.Flatten()
    return keras.Sequential([*inputs, *hidden, keras.layers.Dense(10)])


def jitter(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Shift each image of a batch by up to `SHIFT` pixels on either axis."""
    count, side = tf.shape(images)[0], 28 + 2 * SHIFT
    around = [[0, 0], [SHIFT, SHIFT], [SHIFT, SHIFT], [0, 0]]
    flat = tf.reshape(tf.pad(images, around), (count, side * side))
    # The indices of an image's pixels, counted from its own corner.
    pixels = tf.reshape(side * tf.range(28)[:, None] + tf.range(28), (1, 784))
    corners = tf.random.uniform((count, 2), 0, 2 * SHIFT + 1, tf.int32)
    pixels += side * corners[:, :1] + corners[:, 1:]
    return tf.reshape(tf.gather(flat, pixels, batch_dims=1), tf.shape(images)), labels


def fit(
    trainer: keras.Model, data: tf.data.Dataset, epochs: int, rate: float, **losses: Any
) -> None:
    """Fit a model or a Distiller by Adam, its learning rate falling to zero."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * len(data))
    optimizer = keras.optimizers.Adam(schedule)
    label_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(optimizer, label_loss, steps_per_execution=20, **losses)
    trainer.fit(data, epochs=epochs, shuffle=False, verbose=0)


def count_errors(model: keras.Model, x: np.ndarray, y: np.ndarray) -> int:
    """Count the images that a model classifies as another digit."""
    logits = model.predict(x, batch_size=1000, verbose=0)
    return int((logits.argmax(axis=-1) != y).sum())


def run(
    train: Arrays, test: Arrays, seed: int, teacher_epochs: int, student_epochs: int
) -> list[int]:
    """Train the three models of one seed, and count their errors on `test`."""
    keras.utils.set_random_seed(seed)
    examples = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train[0]))
    batches = examples.batch(128).prefetch(2)
    errors: list[int] = []

    def report(model: keras.Model) -> None:
        name = MODELS[len(errors)]
        errors.append(count_errors(model, *test))
        print(f"seed {seed}: {name:<14}{errors[-1]:5d} test errors", flush=True)

    teacher = build_teacher()
    shifted = examples.batch(256).map(jitter).prefetch(2)
    fit(teacher, shifted, teacher_epochs, rate=2e-3)
    report(teacher)

    student = build_student()
    fit(student, batches, student_epochs, rate=3e-3)
    report(student)

    distiller = kd.Distiller(build_student(), teacher)
    soft_loss = kd.losses.ForwardKL(temperature=TEMPERATURE)
    fit(
        distiller,
        batches,
        student_epochs,
        rate=3e-3,
        distillation_loss=soft_loss,
        alpha=ALPHA,
    )
    report(distiller.student)
    return errors


def main() -> None:
    """Run every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="a TensorFlow Datasets folder")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--teacher-epochs", type=int, default=80)
    parser.add_argument("--student-epochs", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    arguments = parser.parse_args()
    train, test = load_images("mnist", arguments.data_dir)
    seeds = arguments.seeds
    epochs = arguments.teacher_epochs, arguments.student_epochs
    if arguments.smoke:
        train, seeds, epochs = (train[0][:6000], train[1][:6000]), 1, (6, 4)
    rows = [run(train, test, seed, *epochs) for seed in range(seeds)]

    print(f"errors of {len(test[0]):,}" + "".join(f"{name:>15}" for name in MODELS))
    for name, row in [*enumerate(rows), ("mean", np.mean(rows, axis=0))]:
        print(f"{name:>16}" + "".join(f"{count:15.4g}" for count in row))
    if arguments.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()
