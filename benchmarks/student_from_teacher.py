"""The test accuracy of students cut from their teacher, and of the same at random.

A residual net on Fashion-MNIST (16, 32 and 64 filters, two blocks a stage) teaches
students of half its widths, and students without one block a stage. Each architecture
begins with the teacher's weights, or with random ones from its initialisers. All
students learn from the teacher's recorded outputs alone (temperature 4, no labels), on
the same images in the same number of steps. The learning rate is searched separately
for each way of starting and for each length of training up to `--searched` epochs.
Longer trainings use the last rates. The search uses images that are neither in the
training nor in the test. The control of importance keeps the filters of the least norm.

    python benchmarks/student_from_teacher.py [--data-dir DIR] [--smoke]
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Iterator
from functools import partial

import keras
import numpy as np
from keras import layers
from results import Results, quick, spread

import keras_distill as kd

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
from data import load_images

BATCH = 128


def teacher_model() -> keras.Model:
    """A residual net of 176 thousand parameters."""

    def convolution(x: keras.KerasTensor, filters: int, size: int, strides: int = 1):
        x = layers.Conv2D(
            filters, size, strides=strides, padding="same", use_bias=False
        )(x)
        # Keras' momentum of .99 forgets the first statistics after three epochs of this
        # size: until then, a model that starts at random would be tested with them.
        return layers.BatchNormalization(momentum=0.9)(x)

    inputs = keras.Input((28, 28, 1), name="image")
    x = layers.ReLU()(convolution(inputs, 16, 3))
    for filters in (16, 32, 64):
        for block in range(2):
            strides = 2 if block == 0 and filters > 16 else 1
            y = layers.ReLU()(convolution(x, filters, 3, strides))
            y = convolution(y, filters, 3)
            if x.shape[-1] != filters:
                x = convolution(x, filters, 1, strides)
            x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x), name="teacher")


class LeastNorm(kd.students.WeightNorm):
    """Keeps what `WeightNorm` would cut."""

    def lines(self, teacher: keras.Model, trace: object) -> Iterator[tuple]:
        """Yield the norms upside down."""
        for labels, norms in super().lines(teacher, trace):
            yield labels, norms.max() - norms


def halved(teacher: keras.Model) -> keras.Model:
    """Return the filters of the largest norms."""
    return kd.students.slice_widths(teacher, 0.5)


def halved_least(teacher: keras.Model) -> keras.Model:
    """Return the filters of the smallest norms."""
    return kd.students.slice_widths(teacher, 0.5, importance=LeastNorm())


def dropped(teacher: keras.Model) -> keras.Model:
    """Return one block a stage: beside the first, both other stages begin with one."""
    return kd.students.drop_layers(teacher, keep=[0])


def at_random(cut: Callable[[keras.Model], keras.Model]) -> Callable:
    """Return the function that makes the same architecture with fresh weights."""
    return lambda teacher: keras.models.clone_model(cut(teacher))


STARTS: dict[str, Callable[[keras.Model], keras.Model]] = {
    "half, cut": halved,
    "half, least": halved_least,
    "half, random": at_random(halved),
    "blocks, cut": dropped,
    "blocks, random": at_random(dropped),
}
GAINS = (
    ("half, cut", "half, random"),
    ("half, cut", "half, least"),
    ("blocks, cut", "blocks, random"),
)


def fit(model: keras.Model, data: tuple, rate: float, epochs: int, loss: dict) -> None:
    """Compile and fit with a cosine schedule."""
    images = len(keras.tree.flatten(data)[0])
    steps = -(-images // BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps * epochs)
    model.compile(keras.optimizers.Adam(schedule), **quick(steps), **loss)
    model.fit(*data, batch_size=BATCH, epochs=epochs, verbose=0)


def accuracy(model: keras.Model, data: tuple) -> float:
    """Return the accuracy in percent."""
    scores = model.predict(data[0], batch_size=1000, verbose=0)
    return 100.0 * float(np.mean(scores.argmax(-1) == data[1]))


def trained_teacher(data: tuple, epochs: int) -> keras.Model:
    """Train the teacher on the labels."""
    keras.utils.set_random_seed(0)
    teacher = teacher_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fit(teacher, data, 3e-3, epochs, {"loss": loss})
    return teacher


def distilled(
    teacher: keras.Model, start: str, lessons: dict, rate: float, epochs: int, seed: int
) -> keras.Model:
    """Return a student that learned from images and the teacher's logits for them."""
    keras.utils.set_random_seed(seed)
    student = STARTS[start](teacher)
    losses = {"distillation_loss": kd.losses.ForwardKL(temperature=4.0), "alpha": 1.0}
    distiller = kd.Distiller(student, kd.teachers.Recorded("logits"))
    fit(distiller, (lessons,), rate, epochs, losses)
    return student


Score = Callable[[str, float, int, int, tuple], float]


def searched(
    results: Results, score: Score, held_out: tuple, rates: list[float], epochs: int
) -> dict[str, float]:
    """Return the best learning rate of each way of starting."""
    chosen = {}
    for start in STARTS:
        # A seed of its own, which isn't among those that are reported.
        found = {
            rate: results.add(
                f"{start}, {epochs} ep, rate {rate:g}",
                1000,
                partial(score, start, rate, epochs, 1000, held_out),
            )
            for rate in rates
        }
        chosen[start] = max(found, key=lambda rate: found[rate])
    return chosen


def table(results: Results, epochs: list[int], seeds: int) -> None:
    """Print accuracies by the number of epochs, and the gains by seed."""
    print("\n| | " + " | ".join(f"{count} epochs" for count in epochs))

    def values(start: str, count: int) -> list[float]:
        return [results.found[f"{start}, {count} ep", seed] for seed in range(seeds)]

    for start in STARTS:
        cells = (spread(values(start, count)) for count in epochs)
        print(f"| {start} | " + " | ".join(cells))
    for ours, control in GAINS:
        cells = []
        for count in epochs:
            pairs = zip(values(ours, count), values(control, count), strict=True)
            cells.append(spread([a - b for a, b in pairs], "+"))
        print(f"| {ours} minus {control} | " + " | ".join(cells))


def main() -> None:
    """Train the teacher, search the rates, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--images", type=int, default=6_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--searched", type=int, default=3)
    parser.add_argument("--teacher-epochs", type=int, default=10)
    rates = [1e-3, 3e-3, 1e-2, 3e-2]
    parser.add_argument("--rates", type=float, nargs="+", default=rates)
    kept = pathlib.Path("build/student_from_teacher.jsonl")
    parser.add_argument("--results", type=pathlib.Path, default=kept)
    parser.add_argument("--smoke", action="store_true", help="a size to try it in")
    options = parser.parse_args()
    if options.smoke:
        options.images, options.teacher_epochs, options.seeds = 512, 1, 2
        options.epochs, options.rates = [1], [1e-3, 1e-2]
    (x, y), test = load_images("fashion_mnist", options.data_dir)
    train = x[: options.images], y[: options.images]
    teacher = trained_teacher(train, options.teacher_epochs)
    print(f"teacher {accuracy(teacher, test):.2f}", flush=True)

    logits = teacher.predict(train[0], batch_size=1000, verbose=0)
    lessons = {"image": train[0], "logits": logits}

    def score(start: str, rate: float, epochs: int, seed: int, data: tuple) -> float:
        student = distilled(teacher, start, lessons, rate, epochs, seed)
        return accuracy(student, data)

    size = {"images": options.images, "teacher_epochs": options.teacher_epochs}
    results = Results(options.results, size)
    held_out = x[-5_000:], y[-5_000:]
    chosen: dict[str, float] = {}
    for count in sorted(options.epochs):
        if count <= options.searched or not chosen:
            chosen = searched(results, score, held_out, options.rates, count)
        for start, rate in chosen.items():
            for seed in range(options.seeds):
                measure = partial(score, start, rate, count, seed, test)
                results.add(f"{start}, {count} ep", seed, measure)
    table(results, options.epochs, options.seeds)


if __name__ == "__main__":
    main()
