"""A heavy teacher is recorded once, and three students learn from the recording.

The data are 10,000 training images of Fashion-MNIST. The teacher is a conv net, the
students are perceptrons of 32, 128 and 512 units. Each student is trained three times,
with the same initial weights and order of images: alone on the labels (the control),
with the teacher in every step ("online"), and from the recording, which finds a
shuffled image by its content. The recording is in float16, so online and recorded
students differ by rounding only. The table has the test accuracy in % and the seconds
of `fit`, with its compilation.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from data import Arrays, load_images

import keras_distill as kd

BATCH, SEED = 128, 0
WIDTHS = (32, 128, 512)
WAYS = ("alone", "online", "recorded")
ALPHA = 0.5


def build_teacher() -> keras.Model:
    """Build a conv net of 1,635,114 parameters."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(10),
        ]
    )


def build_student(width: int) -> keras.Model:
    """Build a perceptron with one hidden layer."""
    keras.utils.set_random_seed(SEED)
    flat = keras.Input((28, 28, 1)), keras.layers.Flatten()
    hidden = keras.layers.Dense(width, "relu")
    return keras.Sequential([*flat, hidden, keras.layers.Dense(10)])


def fit(trainer: keras.Model, data: tf.data.Dataset, epochs: int, **given: Any) -> None:
    """Fit a model or a Distiller by Adam, its learning rate falling to zero."""
    rate = keras.optimizers.schedules.CosineDecay(1e-3, epochs * len(data))
    labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(rate), labels, **given)
    trainer.fit(data, epochs=epochs, shuffle=False, verbose=0)


def accuracy(model: keras.Model, test: Arrays) -> float:
    """Return the share of test images in % that a model gets right."""
    logits = model.predict(test[0], batch_size=1000, verbose=0)
    return 100.0 * float(np.mean(logits.argmax(-1) == test[1]))


def trained(
    width: int, way: str, teacher: keras.Model, train: Arrays, folder: Path, epochs: int
) -> tuple[keras.Model, float]:
    """Return a student that was trained in one of the ways, and the seconds taken."""
    examples = tf.data.Dataset.from_tensor_slices(train)
    # With a seed, each student gets the images in the same order.
    batches = examples.shuffle(len(train[0]), seed=SEED).batch(BATCH).prefetch(2)
    student = build_student(width)
    begin = time.perf_counter()
    if way == "alone":
        fit(student, batches, epochs)
        return student, time.perf_counter() - begin
    source: Any = teacher
    if way == "recorded":
        source = kd.teachers.Recorded("teacher")
        batches = kd.targets.join(batches, folder, by="content")
    loss = kd.losses.ForwardKL()
    distiller = kd.Distiller(student, source)
    fit(distiller, batches, epochs, distillation_loss=loss, alpha=ALPHA)
    return student, time.perf_counter() - begin


def run(
    train: Arrays, test: Arrays, folder: Path, teacher_epochs: int, epochs: int
) -> None:
    """Train and record the teacher, train all students, and print the table."""
    keras.utils.set_random_seed(SEED)
    teacher = build_teacher()
    examples = tf.data.Dataset.from_tensor_slices(train)
    fit(teacher, examples.shuffle(len(train[0])).batch(BATCH), teacher_epochs)
    print(f"teacher: {accuracy(teacher, test):.2f} % of the test images", flush=True)

    begin = time.perf_counter()
    float16 = kd.targets.LogProbabilities("float16")
    batches = examples.batch(BATCH)  # not shuffled; students may read another order
    made = kd.targets.record(teacher, batches, folder, stored=float16)
    recording = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in folder.glob("shard-*")) / 1e3
    print(f"recording: {recording:.1f} s, {made.rows:,} rows, {size:,.0f} kB")

    heads = "".join(f"{way}{unit:>2}".rjust(12) for unit in "%s" for way in WAYS)
    print(f"\nstudent   parameters{heads}")
    totals = dict.fromkeys(WAYS, 0.0)
    for width in WIDTHS:
        percents, seconds = [], []
        for way in WAYS:
            student, took = trained(width, way, teacher, train, folder, epochs)
            percents.append(accuracy(student, test))
            seconds.append(took)
            totals[way] += took
        row = "".join(f"{number:12.2f}" for number in percents + seconds)
        print(f"{width:4} units{student.count_params():12,}{row}", flush=True)
    sums = "".join(f"{seconds:12.2f}" for seconds in totals.values())
    print(f"all, without the recording{' ' * 31}{sums}")
    both, online = recording + totals["recorded"], totals["online"]
    print(f"online / (recording and students from it): {online / both:.2f}")


def main() -> None:
    """Run the whole example in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="a TensorFlow Datasets folder")
    parser.add_argument("--images", type=int, default=10_000, help="to train on")
    parser.add_argument("--teacher-epochs", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=10, help="of each student")
    parser.add_argument("--smoke", action="store_true", help="a size for CI")
    arguments = parser.parse_args()
    (x, y), test = load_images("fashion_mnist", arguments.data_dir)
    images, epochs = arguments.images, (arguments.teacher_epochs, arguments.epochs)
    if arguments.smoke:
        images, test, epochs = 1_024, (test[0][:1000], test[1][:1000]), (1, 2)
    with tempfile.TemporaryDirectory() as folder:
        run((x[:images], y[:images]), test, Path(folder), *epochs)
    if arguments.smoke:
        print("A smoke run: its numbers mean nothing.")


if __name__ == "__main__":
    main()
