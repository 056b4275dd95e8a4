"""The cost of training from a recording, compared to training without a teacher.

Claim: an epoch of a `Distiller` over `targets.join` takes at most 1.05 x a plain
`student.fit` on the same data, whatever the teacher costs. Reading and the second loss
cost about the same with every student, so the ratio depends on the student's own step.
It is printed for students of three sizes. The ratio to `keras.distillation`, which
calls the teacher in each step, is printed for teachers of about 2, 10 and 50 x the
student's step, with the largest possible ratio: 1 + (teacher's forward pass / student's
step). All sides run in one process, in turn for an epoch each. The medians of the
rounds' ratios are printed. The files are read from the page cache.

The autotuner of `tf.data` is off on all sides. With it, the end of an epoch waits for
the autotuner's next run, after 1.27, 2.55 or 5.11 s, which hides the measured times.

    python benchmarks/recorded_epoch.py [--rounds 5]
"""

import argparse
import logging
import pathlib
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from timing import interleaved, ratio, show

import keras_distill as kd

CLASSES, BATCH = 10, 128
# Pixels of an image's side, filters of the student's convolutions, steps of an epoch.
STUDENTS = ((28, 48, 100), (28, 16, 200), (16, 16, 400))
SMALL, FILTERS = 16, 16


def convnet(filters: int, depth: int, seed: int, size: int = SMALL) -> keras.Model:
    """A conv net on square images that ends in logits."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((size, size, 1))])
    for _ in range(depth):
        model.add(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(CLASSES))
    return model


def label_loss() -> keras.losses.Loss:
    """Return the label loss of every side."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def student(size: int = SMALL, filters: int = FILTERS) -> keras.Model:
    """Return the student of every side."""
    return convnet(filters, 3, seed=1, size=size)


def plain(*of_student: int) -> keras.Model:
    """Return the student alone."""
    model = student(*of_student)
    model.compile("adam", label_loss())
    return model


def recorded(*of_student: int) -> kd.Distiller:
    """Return a distiller that reads recorded outputs."""
    distiller = kd.Distiller(student(*of_student), kd.teachers.Recorded("teacher"))
    distiller.compile("adam", label_loss())
    return distiller


def rival(teacher: keras.Model) -> keras.Model:
    """Return the distiller of Keras, which asks the teacher in each step."""
    distiller = keras.distillation.Distiller(
        teacher,
        student(),
        keras.distillation.LogitsDistillation(
            temperature=1.0, loss=keras.losses.KLDivergence()
        ),
    )
    distiller.compile("adam", label_loss())
    return distiller


def epoch(model: keras.Model, data: tf.data.Dataset) -> Callable[[], object]:
    """Return one epoch of training."""
    return lambda: model.fit(data, verbose=0, shuffle=False).history["loss"]


def against_keras(
    teacher: keras.Model, data: tf.data.Dataset, recorded_at: pathlib.Path, rounds: int
) -> None:
    """Time an epoch of each side, and print the ratios.

    Args:
        teacher: The teacher that `keras.distillation` asks.
        data: The batches of an epoch.
        recorded_at: A recording of any teacher of as many classes.
        rounds: The number of epochs of each side.
    """
    forward = tf.function(lambda x: teacher(x, training=False))
    batches = [x for x, _ in data]
    times = interleaved(
        {
            "student alone": epoch(plain(), data),
            "recorded": epoch(recorded(), kd.targets.join(data, recorded_at)),
            "keras.distillation": epoch(rival(teacher), data),
            "teacher forward": lambda: [forward(x) for x in batches],
        },
        rounds,
        1,
    )
    alone, asked = times["student alone"], times["teacher forward"]
    both = [a + b for a, b in zip(alone, asked, strict=True)]
    show(
        f"{teacher.count_params():,} parameters, {len(batches)} steps",
        times,
        {
            "teacher forward / student's step": ratio(asked, alone),
            "keras.distillation / recorded": ratio(
                times["keras.distillation"], times["recorded"]
            ),
            "at most possible": ratio(both, alone),
        },
    )


def images(rows: int, size: int) -> tf.data.Dataset:
    """Return batches of random images and labels."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, size, size, 1)).astype("float32")
    y = generator.integers(CLASSES, size=rows)
    options = tf.data.Options()
    options.autotune.enabled = False
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH).prefetch(2)
    return data.with_options(options)


def against_plain(
    data: tf.data.Dataset, path: pathlib.Path, of_student: tuple, rounds: int
) -> None:
    """Record a teacher, time an epoch of each way to read it, and print the ratios."""
    size, filters = of_student
    kd.targets.record(convnet(32, 3, 0, size), data, path, progress=False)
    in_order = kd.targets.join(data, path)
    by_content = kd.targets.join(data, path, by="content")
    times = interleaved(
        {
            "student alone": epoch(plain(*of_student), data),
            "recorded, in order": epoch(recorded(*of_student), in_order),
            "recorded, by content": epoch(recorded(*of_student), by_content),
        },
        rounds,
        1,
    )
    alone = times["student alone"]
    show(
        f"an epoch of {len(data)} steps of {BATCH} images of {size} x {size}, "
        f"{filters} filters",
        times,
        {
            f"{name} / student alone   (<= 1.05)": ratio(times[name], alone)
            for name in list(times)[1:]
        },
    )


def main() -> None:
    """Time all sides and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        for number, (*of_student, steps) in enumerate(STUDENTS):
            data = images(steps * BATCH, of_student[0])
            path = pathlib.Path(directory) / str(number)
            against_plain(data, path, tuple(of_student), options.rounds)
        # About 2, 10 and 50 x the student's step in operations.
        for filters, depth, steps in ((32, 8, 100), (64, 14, 25), (128, 20, 10)):
            teacher = convnet(filters, depth, seed=0)
            against_keras(teacher, data.take(steps), path, min(3, options.rounds))


if __name__ == "__main__":
    main()
