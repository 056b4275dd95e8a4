"""What training from a recording costs beside training without a teacher.

Claims: an epoch of a `Distiller` over `targets.join` takes at most 1.05 x a plain
`student.fit` on the same data, whatever the teacher costs. Against `keras.distillation`,
which asks the teacher in each step, the ratio is printed for teachers of about 2, 10 and
50 x the student's step, with what is possible at most: 1 + (teacher's forward pass /
student's step). All sides run in one process, an epoch each in turn; the medians of the
rounds' ratios are printed. The files are read from the page cache.

    python benchmarks/recorded_epoch.py [--rounds 5] [--rows 12800]
"""

import argparse
import logging
import pathlib
import tempfile
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from timing import interleaved, ratio, show

import keras_distill as kd

CLASSES, SIZE, BATCH = 10, 16, 128


def convnet(filters: int, depth: int, seed: int) -> keras.Model:
    """A conv net on 16x16 images that ends in logits."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((SIZE, SIZE, 1))])
    for _ in range(depth):
        model.add(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
    model.add(keras.layers.GlobalAveragePooling2D())
    model.add(keras.layers.Dense(CLASSES))
    return model


def label_loss() -> keras.losses.Loss:
    """Return the label loss of every side."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def student() -> keras.Model:
    """Return the student of every side."""
    return convnet(16, 3, seed=1)


def plain() -> keras.Model:
    """Return the student alone."""
    model = student()
    model.compile("adam", label_loss())
    return model


def recorded() -> kd.Distiller:
    """Return a distiller that reads recorded outputs."""
    distiller = kd.Distiller(student(), kd.teachers.Recorded("teacher"))
    distiller.compile("adam", label_loss())
    return distiller


def rival(teacher: keras.Model) -> keras.Model:
    """Return the distiller of Keras, which asks the teacher in each step."""
    distiller = keras.distillation.Distiller(
        teacher,
        student(),
        keras.distillation.LogitsDistillation(
            temperature=4.0, loss=keras.losses.KLDivergence()
        ),
    )
    distiller.compile("adam", label_loss())
    return distiller


def epoch(model: keras.Model, data: tf.data.Dataset) -> Callable[[], object]:
    """Return one epoch of training."""
    return lambda: model.fit(data, verbose=0, shuffle=False).history["loss"]


def seconds(call: Callable[[], object]) -> float:
    """Return what a second call takes."""
    call()
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def teachers(step: float, x: np.ndarray) -> dict[int, keras.Model]:
    """Return teachers whose forward pass takes 2, 10 and 50 x a student's step.

    Args:
        step: The seconds of the student's step.
        x: A batch.
    """
    found = {}
    for times in (2, 10, 50):
        filters, depth = (32, 3) if times < 50 else (64, 4)
        while True:
            teacher = convnet(filters, depth, seed=0)
            forward = tf.function(lambda x, t=teacher: t(x, training=False))
            factor = seconds(lambda f=forward: f(x).numpy()) / step
            if factor > 0.8 * times:
                break
            depth += max(1, round(depth * (times / factor - 1) * 0.9))
        found[times] = teacher
    return found


def main() -> None:
    """Time all sides and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=12_800)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(options.rows, SIZE, SIZE, 1)).astype("float32")
    y = generator.integers(CLASSES, size=options.rows)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    data = data.prefetch(tf.data.AUTOTUNE)
    steps = options.rows // BATCH
    step = seconds(epoch(plain(), data)) / steps
    with tempfile.TemporaryDirectory() as directory:
        any_teacher = convnet(32, 3, seed=0)
        sides = {"student alone": epoch(plain(), data)}
        for order, by in (("in order", None), ("by content", "content")):
            path = pathlib.Path(directory) / "recorded"
            kd.targets.record(any_teacher, data, path, progress=False)
            joined = kd.targets.join(data, path, by=by)
            sides[f"recorded, {order}"] = epoch(recorded(), joined)
        times = interleaved(sides, options.rounds, 1)
        alone = times["student alone"]
        show(
            f"an epoch of {steps} steps of {BATCH}",
            times,
            {
                f"{name} / student alone   (<= 1.05)": ratio(times[name], alone)
                for name in list(sides)[1:]
            },
        )
        in_order = sides["recorded, in order"]
        for factor, teacher in teachers(step, x[:BATCH]).items():
            forward = tf.function(lambda x, t=teacher: t(x, training=False))
            few = data.take(max(5, steps * 2 // factor))
            count = int(few.cardinality())
            batch = tf.constant(x[:BATCH])
            joined = kd.targets.join(few, pathlib.Path(directory) / "recorded")
            pair = {
                "student alone": epoch(plain(), few),
                "recorded": epoch(recorded(), joined),
                "keras.distillation": epoch(rival(teacher), few),
                "teacher forward": lambda f=forward, b=batch, n=count: [
                    f(b) for _ in range(n)
                ],
            }
            times = interleaved(pair, max(3, options.rounds // 2), 1)
            alone = times["student alone"]
            possible = ratio(
                [a + b for a, b in zip(alone, times["teacher forward"], strict=True)],
                alone,
            )
            show(
                f"a teacher of about {factor} x the student's step, {count} steps",
                times,
                {
                    "keras.distillation / recorded": ratio(
                        times["keras.distillation"], times["recorded"]
                    ),
                    "at most possible": possible,
                },
            )
        del in_order


if __name__ == "__main__":
    main()
